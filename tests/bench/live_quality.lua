-- The lip-sync quality of live sessions, compared with a job that has the whole sound: SyncNet's confidence on the small model's
-- clip for several window sizes and look-aheads, the time of a window on this device, and the CPU seconds per generated mouth:
-- `live` on a CPU generates 5 per second. It runs without a clock: the sound of each window is truncated where it would end in a
-- live session.
--
--     build/crescent tests/bench/live_quality.lua [--windows 16,8,4] [--run-in 0] [--ahead 0,40,100,200] [--spans 8] [--audio A,B]
--         [--checkpoint models/mini] [--steps 10] [--seconds 5] [--device cpu] [--out DIR]
--
-- Tiny: --checkpoint DIR --windows 4 --ahead 100 --seconds 0.4 --steps 1 --out OUT

local clock = require 'cr.clock'
local cr = require 'cr'
local evaluate = require 'models.laboratory.evaluate'
local hearings = require 'models.latentsync.live.hearing'
local live = require 'models.latentsync.live'
local makers = require 'models.latentsync.live.maker'
local media = require 'cr.media'
local options = require 'tests.bench.options'

local clip = cr.root .. '/models/mini/demo'
local o = options.read('Lip-sync quality of live sessions.', {
  { '--windows', default = '16,8,4', help = 'frames per window' },
  { '--run-in', default = '0', help = 'frames before a window that it gets as context' },
  { '--ahead', default = '0,40,100,200', unit = 'milliseconds', help = 'look-ahead of the sound' },
  { '--spans', default = '8', unit = 'seconds', help = 'sound that Whisper encodes together; 30: its whole segment' },
  { '--audio', default = clip .. '.flac', help = 'sounds, one or more' },
  { '--video', 'file', default = clip .. '.mp4', help = 'the face' },
  { '--checkpoint', 'file', default = cr.root .. '/models/mini', help = 'the model' },
  { '--steps', 'int', default = 10, min = 1, help = 'denoising steps' },
  { '--seconds', 'number', default = 5, above = 0, unit = 'seconds', help = 'length of each sound' },
  { '--device', default = 'cpu', help = 'as for `crescent live`' },
  { '--out', 'file', default = '/tmp', help = 'folder for the videos' },
})
local LONGER_THAN = 20
local judge

local function judged(path)
  local ok, r = pcall(judge.run, judge, path, { longer_than = LONGER_THAN })
  if not ok then
    print(r)
    return nil
  end
  return r
end

local function offline(sound)
  local path = o.out .. '/live-offline.mp4'
  local job = require 'models.latentsync.job'.new { video = o.video, audio = sound, out = path, checkpoint = o.checkpoint,
    steps = o.steps, duration = o.seconds, device = o.device, quiet = true }
  job:run()
  return judged(path)
end

-- Makes a video of the session's clip with a sound, window by window. Returns the seconds per window, without the first.
local function film(session, maker, sound, path, window, run_in, ahead, span)
  local x = media.load_audio(sound, { rate = 16000, channels = 1, s16 = true, seconds = 3600 })
  local total = math.min(math.floor(x:numel() / 640), math.floor(o.seconds * 25))
  local hearing = hearings.new(session.model.whisper, { span = span, whole = span == 30 })
  local source = { tokens = function(_, frames) return hearing:window(frames) end }
  local sink = media.writer(path, { like = o.video, audio = sound, audio_end = total / 25 })
  local fed, took, work, n = 0, 0, 0, 0
  for first = 0, total - 1, window do
    local stop = math.min(x:numel(), (first + window) * 640 + math.floor(ahead * 16000))
    if stop > fed then hearing:feed(x:narrow(1, fed + 1, stop - fed):clone()) end
    fed = math.max(fed, stop)
    local numbers, frames = {}, {}
    local before = math.min(run_in, first)
    for i = 1, before + window do
      frames[i] = math.min(first - before + i - 1, total - 1)
      numbers[i] = session.idle:index(frames[i])
    end
    local began, worked = clock(), os.clock()
    local faces = maker:make(numbers, source, frames, o.steps, nil, before)
    if first > 0 then took, work, n = took + clock() - began, work + os.clock() - worked, n + 1 end
    for i = 1, math.min(window, total - first) do
      cr.scope(function() sink:write(session.idle:picture(numbers[before + i], faces:select(1, i), 1):to 'cpu') end)
    end
    faces:free()
  end
  sink:close()
  hearing:free()
  x:free()
  return took / math.max(1, n), work / math.max(1, n)
end

cr.run(function()
  judge = evaluate.open { device = o.device }
  local sounds, base = {}, 0
  for sound in o.audio:gmatch '[^,]+' do
    sounds[#sounds + 1] = sound
    local r = offline(sound)
    base = base + (r and r.confidence or 0)
    print(('%s, a job: confidence %.3f, offset %d'):format(sound, r and r.confidence or 0, r and r.offset or 0))
  end
  print ' window run-in  ahead    span   confidence   of a job   offsets   seconds a window   processor s a mouth'
  for _, window in ipairs(options.numbers(o.windows)) do
    local session = live.open({ idle = o.video, checkpoint = o.checkpoint, device = o.device, steps = o.steps, frames_per_window = window,
      duration = o.seconds, silence = 'model', quiet = true }, { bytes = print })
    local maker = makers.new(session.model, session.idle, session.settings)
    local function row(run_in, span, ahead)
      local sum, offsets, took, work = 0, {}, 0, 0
      for i, sound in ipairs(sounds) do
        local path = ('%s/live-%d-%d-%d-%d-%d.mp4'):format(o.out, window, run_in, ahead, span, i)
        took, work = film(session, maker, sound, path, window, run_in, ahead / 1000, span)
        local r = judged(path)
        sum, offsets[i] = sum + (r and r.confidence or 0), r and r.offset or '-'
      end
      print(('%7d %6d %4d ms %5d s %12.3f %8.1f %% %9s %18.3f %20.3f'):format(window, run_in, ahead, span, sum / #sounds,
        base > 0 and 100 * sum / base or 0, table.concat(offsets, ' '), took, work / window))
      io.stdout:flush()
    end
    for _, run_in in ipairs(options.numbers(o.run_in)) do
      for _, span in ipairs(options.numbers(o.spans)) do
        for _, ahead in ipairs(options.numbers(o.ahead)) do row(run_in, span, ahead) end
      end
    end
    session:free()
  end
  judge:free()
end)
