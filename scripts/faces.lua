--- Finds the people in a video: each with a number, when and where, and how well their lips agree with a sound.
--
-- The numbers are those that `lipsync --face` and `--voice` accept for the same piece of the video.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local files = require 'cr.files'
local finders = require 'models.latentsync.finder'

local args = cli.parse(arg, {
  name = 'faces', summary = 'Finds the people in a video, numbered as lipsync --face takes them.',
  options = {
    { '--audio', 'file', help = 'sound to compare their lips with (SyncNet), per segment of speech' },
    { '--out', 'file', metavar = 'SHEET.png', help = 'image of everybody, with numbered boxes' },
    { '--json', 'file', metavar = 'FILE', help = 'write the result as JSON' },
    { '--checkpoint', 'folder', help = "the model's folder, whose networks find faces, as in lipsync" },
    { '--detector', 'choice', choices = { 'auto', 'insightface', 'mediapipe' }, default = 'auto',
      help = 'the face detector, as for lipsync' },
    { '--start', 'number', default = 0, metavar = 'S', help = 'start in seconds' },
    { '--duration', 'number', metavar = 'S', help = 'length in seconds', default_text = 'all' },
    { '--device', 'string', default = 'auto', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N' },
    { '--quiet', 'flag', help = 'no progress' },
  },
  positional = { { 'video', 'file', help = 'video' } },
})

local function seconds(frame) return frame / 25 end

local function check()
  cli.check_readable(nil, args.video)
  if args.audio then cli.check_readable('--audio', args.audio) end
  local inputs = { video = args.video, ['--audio'] = args.audio }
  for _, name in ipairs { 'out', 'json' } do
    if args[name] then
      cli.check_folder('--' .. name, args[name])
      files.check_output(args[name], inputs, '--' .. name)
    end
  end
  if args.out and args.out == args.json then cli.failf('--json: %s is also the output of --out: choose another name', args.json) end
  if args.out and not args.out:lower():find '%.png$' then
    cli.failf('--out: %s: the sheet is a PNG, so the name must end in .png', args.out)
  end
  if args.start < 0 then cli.failf('--start: %g is less than 0', args.start) end
  if args.duration and args.duration <= 0 then cli.failf('--duration: %g is not more than 0', args.duration) end
  local media = require 'cr.media'
  if not media.probe(args.video).has_video then cli.failf('%s has no video stream', args.video) end
  if args.audio and not media.probe(args.audio).has_audio then cli.failf('--audio: %s has no audio stream', args.audio) end
end

-- The description of a person, as lines.
local function lines_of(p)
  local b = p.box
  local lines = { ('%.2f to %.2f s, in %.0f %% of the frames; first at %.0f,%.0f, %.0f x %.0f pixels'):format(seconds(p.first),
    seconds(p.last + 1), 100 * p.share, (b[1] + b[3]) / 2, (b[2] + b[4]) / 2, b[3] - b[1], b[4] - b[2]) }
  for _, s in ipairs(p.segments) do
    if s.confidence then
      lines[#lines + 1] = ('speech from %.2f to %.2f s: confidence %.2f, offset %d'):format(seconds(s.first), seconds(s.last + 1),
        s.confidence, s.offset)
    end
  end
  return lines
end

local function as_json(result)
  local json = require 'cr.json'
  local list = {}
  for i, p in ipairs(result.people) do
    local segments, box = {}, {}
    for k, s in ipairs(p.segments) do
      segments[k] = { first = seconds(s.first), last = seconds(s.last + 1), confidence = s.confidence, offset = s.offset,
        windows = s.windows }
    end
    for k = 1, 4 do box[k] = math.floor(p.box[k] * 10 + 0.5) / 10 end
    list[i] = { number = p.number, first = seconds(p.first), last = seconds(p.last + 1), share = p.share, frames = p.count,
      box = box, segments = json.list(segments) }
  end
  local cuts = {}
  for i, cut in ipairs(result.cuts) do cuts[i] = seconds(cut) end
  return json.encode({ people = json.list(list), frames = result.frames, cuts = json.list(cuts) }, true)
end

cr.run(function()
  check()
  local device = cli.device(args.device)
  local progress = require 'cr.tools.progress'.new { quiet = args.quiet }
  local finder = finders.load(finders.choose(args.detector, args.checkpoint, '--'), args.checkpoint, { device = device })
  local ok, result = pcall(require 'models.latentsync.census'.of, args.video, {
    finder = finder, device = device, sound = args.audio, start = args.start, duration = args.duration,
    portraits = args.out ~= nil, measure = function(...) return progress:measure(...) end,
    advance = function(n) progress:advance(n) end,
  })
  progress:clear()
  finder:free()
  if not ok then error(result, 0) end
  local lines = {}
  for i, p in ipairs(result.people) do
    lines[i] = lines_of(p)
    for k, line in ipairs(lines[i]) do print(('%4s  %s'):format(k == 1 and p.number or '', line)) end
  end
  if #result.people == 0 then print(('no face was found in any of the %d frames of %s'):format(result.frames, args.video)) end
  for _, turn in ipairs(result.turns or {}) do
    print(("from %.2f s on %d speaks"):format(seconds(turn.first), turn.number))
  end
  if args.out then require 'models.laboratory.census_sheet'.write(args.out, result, lines) end
  if args.json then files.write(args.json, as_json(result) .. '\n', '--json') end
end)
