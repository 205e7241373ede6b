--- The demonstration of `make demo`: a rendered face says a sentence that it has never said before.
--
-- models/mini contains the clip, the sentence and the model, all made by models/mini/train. The demo prints how well
-- lips and sound agree before and after, and where the video and a contact sheet are.

local cr = require 'cr'
local cli = require 'cr.tools.cli'

local args = cli.parse(arg, {
  name = 'demo', summary = 'Makes a rendered face say a new sentence, with the built-in small model.',
  options = {
    { '--out', 'file', metavar = 'DIR', help = 'folder for the result', default_text = 'build/demo' },
    { '--seconds', 'number', default = 5, min = 0.2, max = 5, unit = 'seconds', help = 'length of the video' },
    { '--steps', 'int', min = 1, max = 1000, help = 'denoising steps', default_text = "the checkpoint's" },
    { '--quant', 'choice', choices = { '8bit', 'int8', 'int4' }, default_text = 'none',
      help = "quantize the model to 8 or 4 bits; the first use takes a minute or two" },
    { '--device', 'string', default = 'cpu', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N' },
  },
})

local FPS = 25
local LONGER_THAN = 20 -- minimum frames of a face that is evaluated

local mini = cr.root .. '/models/mini'
local video, sound = mini .. '/demo.mp4', mini .. '/demo.flac'
local dir = args.out or cr.root .. '/build/demo'

local function quoted(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

local function make_folder(path)
  if not require 'cr.files'.make_folder(path) then cli.fail(('--out: %s is not a folder and cannot be created'):format(path)) end
end

local function read_json(path)
  local f, reason = io.open(path, 'rb')
  if not f then cli.fail(reason) end
  local text = f:read '*a'
  f:close()
  return require 'cjson'.decode(text)
end

--- Frames and mouths of input and output, with the same crops.
local function contact_sheet(path, title, output, frames)
  local sheet = require 'models.laboratory.face_sheet'
  local finder, places, rows = require 'models.latentsync.face'.load { range = 'full' }, {}, {}
  for k, file in ipairs { video, output } do
    local row, i = sheet.row(k == 1 and 'input' or 'output', frames), 0
    for frame in require 'cr.media'.frames(file, { fps = FPS }) do
      i = i + 1
      if i <= frames and row:wants(i) then
        places[i] = places[i] or finder:find(frame)
        row:add(frame, places[i], i)
      end
      frame:free()
    end
    rows[k] = row
  end
  finder:free()
  sheet.write(path, { { title = title, rows = rows } })
end

--- Prints how well lips and sound agree, before and after.
local function judge(output)
  local judging = require 'models.laboratory.evaluate'.open {}
  print(('  %-46s %10s %8s'):format('', 'confidence', 'offset'))
  for _, line in ipairs {
    { 'the clip with its own sound', video },
    { 'before: the clip with the new sentence', video, sound },
    { 'after: the result with the new sentence', output },
  } do
    local ok, r = pcall(judging.run, judging, line[2], { audio = line[3], longer_than = LONGER_THAN })
    if ok then
      print(('  %-46s %10.2f %8d'):format(line[1], r.confidence, r.offset))
    else
      print(('  %-46s %s'):format(line[1], r))
    end
  end
  print '  (confidence: how well lips and sound agree; offset: by how many frames the sound is early)'
  judging:free()
end

-- The small model, or its quantized variant.
local function checkpoint()
  if not args.quant then return mini end
  local folder
  cr.run(function()
    folder = require 'models.laboratory.quantizer.variant'.folder(mini, args.quant, {
      clips = { { video = video, audio = sound } }, windows = 2, device = cli.device(args.device),
      progress = function(text) io.stderr:write(text, '\n') end,
    })
  end)
  return folder
end

local function run()
  io.stdout:setvbuf 'line'
  make_folder(dir)
  local output, report_path, contact = dir .. '/lipsync.mp4', dir .. '/report.json', dir .. '/contact.png'
  local about = read_json(mini .. '/demo.json')
  print(('The face in %s says: %s'):format(video, about.own.text))
  print(('New sentence, in another voice: %s'):format(about.new.text))

  local command = { quoted(require 'luv'.exepath()), 'lipsync', '--video', quoted(video), '--audio', quoted(sound),
    '--out', quoted(output), '--checkpoint', quoted(checkpoint()), '--device', quoted(args.device), '--duration', args.seconds,
    '--report', quoted(report_path) }
  if args.steps then command[#command + 1] = '--steps ' .. args.steps end
  print('Running: ' .. table.concat(command, ' '))
  if os.execute(table.concat(command, ' ')) ~= 0 then cli.fail 'the run failed: see above' end

  local report = read_json(report_path)
  print()
  print(('%d frames in %.1f s, %d without a face; peak memory %.0f MiB'):format(report.frames,
    report.seconds, report.frames_without_face, report.peak_resident_bytes / 2 ^ 20))
  for _, stage in ipairs { 'decode', 'detect', 'align', 'audio', 'encode latents', 'denoise', 'decode latents', 'paste', 'encode' } do
    local s = report.stages[stage]
    if s then print(('  %-15s %7.2f s'):format(stage, s.working_seconds)) end
  end
  print()
  cr.scope(judge, output)
  print()
  cr.scope(contact_sheet, contact, about.new.text, output, report.frames)
  print('video:          ' .. output)
  print('contact sheet:  ' .. contact)
  print()
  print('your own files: build/crescent lipsync --video face.mp4 --audio voice.wav --out out.mp4 --checkpoint models/mini')
  print('in a browser:   build/crescent serve --checkpoint models/mini')
end

run()
