--- Measures how well the lips of a video and its sound agree: SyncNet's confidence, and the offset between video and
--- sound.

local cr = require 'cr'
local cli = require 'cr.tools.cli'

local args = cli.parse(arg, {
  name = 'evaluate', summary = 'Measures how well the lips of a video and its sound agree (SyncNet).',
  options = {
    { '--audio', 'file', help = 'sound to compare the lips with', default_text = "the video's own" },
    { '--voice', 'string', many = true, metavar = 'FACE=FILE', help = "sound for one face of the table, as in 2=bob.wav; repeatable" },
    { '--syncnet', 'file', help = 'SyncNet weights, such as syncnet_v2.model', default_text = "the project's own small network" },
    { '--s3fd', 'file', help = 'sfd_face.pth, to find faces as the reference does', default_text = "MediaPipe's detector" },
    { '--json', 'flag', help = 'print JSON instead of a table' },
    { '--plot', 'file', metavar = 'FILE.svg', help = 'plot distance against offset' },
    { '--device', 'string', default = 'auto', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N' },
    { '--quiet', 'flag', help = 'no progress' },
  },
  positional = { { 'video', 'file', help = 'video with at least one face' } },
})

local fail = cli.failf

local NOTE = {
  [true] = "The figures are comparable with published ones, because both networks are the reference's.",
  [false] = 'The figures are comparable only with each other. For published figures use both --syncnet ' ..
    'syncnet_v2.model and --s3fd sfd_face.pth.',
}

-- Parses the sounds of single faces, by number.
local function voices_of(words)
  local voices = {}
  for _, word in ipairs(words or {}) do
    local number, path = word:match '^([1-9]%d*)=(.+)$'
    if not number then fail("--voice: '%s' is not FACE=FILE, as in 2=bob.wav", word) end
    number = tonumber(number)
    if voices[number] then fail('--voice: face %d has two voices: leave one of them out', number) end
    cli.check_readable('--voice', path)
    voices[number] = path
  end
  return voices
end

local function check_plot(path)
  if not path:lower():find '%.svg$' then fail('--plot: %s: the plot is an SVG, so the name must end in .svg', path) end
  cli.check_folder('--plot', path)
end

--- The fields of a result that are printed as JSON.
local function as_json(result)
  local out = { tracks = {} }
  for _, key in ipairs { 'video', 'audio', 'confidence', 'offset', 'minimum', 'offsets', 'distances', 'frames',
    'frames_with_face', 'detector', 'comparable' } do
    out[key] = result[key]
  end
  out.syncnet, out.note = result.syncnet, NOTE[result.comparable]
  for i, track in ipairs(result.tracks) do
    out.tracks[i] = {
      first_frame = track.first, frames = track.frames, windows = track.windows, confidence = track.confidence,
      offset = track.offset, minimum = track.minimum, distances = track.distances,
      face_width = track.face.width, face_height = track.face.height, face_x = track.face.x, face_y = track.face.y, audio = track.audio,
    }
  end
  return require 'cr.json'.encode(out, true)
end

local function early(offset)
  if offset == 0 then return 'lips and sound are in sync' end
  local n = math.abs(offset)
  return ('the sound is %d frame%s (%.2f s) %s'):format(n, n == 1 and '' or 's', n / 25, offset > 0 and 'early' or 'late')
end

local function print_table(result)
  print '  face   seconds          size      place  windows   offset   confidence   distance'
  for i, track in ipairs(result.tracks) do
    local face = track.face
    print(('  %4d   %-13s %7s  %9s  %7d  %7d  %11.2f  %9.2f'):format(i,
      ('%.1f to %.1f'):format(track.first / 25, (track.first + track.frames) / 25), ('%.0fx%.0f'):format(face.width, face.height),
      ('%.0f,%.0f'):format(face.x, face.y), track.windows, track.offset, track.confidence, track.minimum))
  end
  print(('confidence %.2f, offset %d: %s'):format(result.confidence, result.offset, early(result.offset)))
  print(('SyncNet %s, faces found by %s. %s'):format(result.syncnet,
    result.detector == 's3fd' and 'S3FD' or "MediaPipe's detector", NOTE[result.comparable]))
end

cr.run(function()
  cli.check_readable(nil, args.video)
  if args.audio then cli.check_readable('--audio', args.audio) end
  if args.syncnet then cli.check_readable('--syncnet', args.syncnet) end
  if args.s3fd then cli.check_readable('--s3fd', args.s3fd) end
  if args.plot then check_plot(args.plot) end
  local voices = voices_of(args.voice)
  local judge = require 'models.laboratory.evaluate'.open {
    syncnet = args.syncnet, s3fd = args.s3fd, device = cli.device(args.device),
  }
  local progress = require 'cr.tools.progress'.new { quiet = args.quiet }
  local ok, result = pcall(judge.run, judge, args.video, {
    audio = args.audio, voices = voices,
    measure = function(...) return progress:measure(...) end,
    advance = function(n) progress:advance(n) end,
    expect = function(n) progress:expect(n) end,
  })
  progress:clear()
  judge:free()
  if not ok then error(result, 0) end
  result.syncnet = judge.files.syncnet
  if args.plot then require 'cr.files'.write(args.plot, require 'models.laboratory.evaluate_plot'.svg(result), '--plot') end
  if args.json then print(as_json(result)) else print_table(result) end
end)
