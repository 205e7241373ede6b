--- The demonstration behind `make demo`: makes its own input, runs the main job on it, and says
--- where the result is.
--
-- The face is a public-domain portrait, slowly panned and zoomed; the voice is a synthetic one. The
-- model is a tiny one with made-up weights: it shows that everything works, not how lips move.

local cr = require 'cr'
local cli = require 'cr.cli'

local args = cli.parse(arg, {
  name = 'demo', summary = 'Makes a small video and a voice, and runs lipsync on them with an untrained model.',
  options = {
    { '--out', 'file', metavar = 'DIR', help = 'folder for input, checkpoint and result', default_text = 'build/demo' },
    { '--seconds', 'number', default = 3, min = 0.2, max = 60, unit = 'seconds', help = 'length of the video' },
    { '--steps', 'int', default = 4, min = 1, max = 1000, help = 'denoising steps' },
  },
})

local SENTENCE = 'Crescent moves the lips. This voice was made by a machine.'
local SIDE, FPS = 512, 25

local dir = args.out or cr.root .. '/build/demo'
local fetched = cr.root .. '/models/fetched'

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function make_folder(path)
  local at = path:sub(1, 1) == '/' and '' or '.'
  for part in path:gmatch '[^/]+' do
    at = at .. '/' .. part
    require 'lfs'.mkdir(at)
  end
end

--- A voice of as many seconds as the video, spoken by flite.
local function make_voice(path)
  if os.execute('command -v flite >/dev/null 2>&1') ~= 0 then
    cli.fail 'flite is missing, it speaks the sentence: apt-get install flite'
  end
  if os.execute(('flite -voice slt -t %s -o %s'):format(quoted(SENTENCE), quoted(path))) ~= 0 then
    cli.fail('flite could not write ' .. path)
  end
end

--- The portrait, slowly moved: frame k looks at a window that drifts and shrinks.
local function make_video(path)
  local media, image = require 'cr.media', require 'cr.image'
  local portrait_path = fetched .. '/demo/astronaut.png'
  local f = io.open(portrait_path, 'rb')
  if not f then cli.fail(portrait_path .. ' is not there: run `make models`') end
  f:close()
  local portrait = media.read_picture(portrait_path)
  local sink = media.writer(path, { width = SIDE, height = SIDE, fps = FPS, crf = 14 })
  local n = math.max(1, math.floor(args.seconds * FPS + 0.5))
  for k = 0, n - 1 do
    cr.scope(function()
      local s = k / math.max(1, n - 1)
      local zoom = 1.5 + 0.15 * s
      local x, y = 150 + 20 * s, 12 + 6 * math.sin(2 * math.pi * s)
      local matrix = { zoom, 0, -zoom * (x - 75 / zoom), 0, zoom, -zoom * (y - 10 / zoom) }
      local area = { left = 0, top = 0, width = SIDE, height = SIDE }
      local frame = image.warp_bicubic(portrait:to 'f32', matrix, area):round():clamp(0, 255):to 'u8'
      sink:write { frame }
    end)
  end
  sink:close()
  portrait:free()
end

--- A row of frames from the input above the same frames of the output, as a PNG.
local function contact_sheet(input, output, path)
  local media, nn = require 'cr.media', require 'cr.nn'
  local rows = {}
  for _, file in ipairs { input, output } do
    local reader, picked = media.reader(file, { fps = FPS }), {}
    local at = 0
    while true do
      local batch = reader:read(16)
      if #batch == 0 then break end
      for _, frame in ipairs(batch) do
        if at % 12 == 6 and #picked < 6 then picked[#picked + 1] = nn.resize(frame, 256, 256, 'bilinear') end
        frame:free()
        at = at + 1
      end
    end
    reader:close()
    rows[#rows + 1] = cr.cat(picked, 2)
  end
  media.write_picture(path, cr.cat(rows, 1))
end

local function run()
  io.stdout:setvbuf 'line'
  make_folder(dir)
  local input, voice, output = dir .. '/face.mp4', dir .. '/voice.wav', dir .. '/lipsync.mp4'
  local report_path = dir .. '/report.json'
  print 'Making the input: a portrait on the move, and a sentence by a synthetic voice.'
  make_voice(voice)
  cr.scope(make_video, input)
  print 'Making the model: a tiny LatentSync with made-up weights. It has learned nothing, so the mouth'
  print 'will be noise: this run shows that every part works.'
  require 'models.nano'.write(dir .. '/checkpoint')

  local command = { quoted(require 'luv'.exepath()), 'lipsync', '--video', quoted(input), '--audio', quoted(voice), '--out', quoted(output),
    '--checkpoint', quoted(dir .. '/checkpoint'), '--steps', args.steps, '--duration', args.seconds, '--report', quoted(report_path) }
  print('Running: ' .. table.concat(command, ' '))
  if os.execute(table.concat(command, ' ')) ~= 0 then cli.fail 'the run failed: see above' end
  cr.scope(contact_sheet, input, output, dir .. '/contact.png')

  local f = assert(io.open(report_path, 'rb'))
  local report = require 'cjson'.decode(f:read '*a')
  f:close()
  print()
  print(('%d frames in %.1f s, %d without a face; %.0f MiB of memory at most'):format(report.frames,
    report.seconds, report.frames_without_face, report.peak_resident_bytes / 2 ^ 20))
  for _, stage in ipairs { 'decode', 'detect', 'align', 'audio', 'encode latents', 'denoise', 'decode latents', 'paste', 'encode' } do
    local s = report.stages[stage]
    if s then print(('  %-15s %7.2f s'):format(stage, s.seconds)) end
  end
  print()
  print 'The model is untrained; with a LatentSync checkpoint the same command moves the lips.'
  print('video:          ' .. output)
  print('contact sheet:  ' .. dir .. '/contact.png')
end

run()
