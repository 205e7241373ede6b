--- The cost of sound settings in CPU seconds, with the small model: `--audio-overlap`, as a share of a whole run, and
--- `--silence keep`, by the number of windows and the time of denoising.
--
--     build/crescent tests/bench/sound_costs.lua [--part overlap|silence] [--seconds 120] [--windows 2] [--pause 4] [--steps N]
--
-- Tiny: --part overlap --seconds 1 --windows 1 --steps 1
--
-- Overlap: a sound is encoded in segments of 30 s without overlap and with the default overlap. The time of a run is
-- the difference between a run and one with twice the windows, so that the startup is excluded. Silence: the sound
-- has speech of three times the pause's length with two pauses in it.

local audio = require 'models.latentsync.audio'
local child = require 'tests.support.child'
local cr = require 'cr'
local latentsync = require 'models.latentsync'
local media = require 'cr.media'
local options = require 'tests.bench.options'
local scratch = require 'tests.support.scratch'

io.stdout:setvbuf 'line'
local o = options.read('What settings of the sound cost and save.', {
  { '--part', 'choice', choices = { 'overlap', 'silence', 'both' }, default = 'both', help = 'which' },
  { '--seconds', 'number', default = 120, above = 0, unit = 'seconds', help = 'of the sound for overlaps' },
  { '--windows', 'int', default = 2, min = 1, help = 'of 16 frames, of the shorter run' },
  { '--pause', 'number', default = 4, above = 0.5, unit = 'seconds', help = 'of silence, and of speech around it' },
  { '--steps', 'int', min = 1, help = 'denoising steps', default_text = "the small model's; 1 of --part silence" },
})

local MINI, RATE, OVERLAP = cr.root .. '/models/mini', audio.rate, 2
local VIDEO, SOUND = MINI .. '/demo.mp4', MINI .. '/demo.flac'
local voice = media.load_audio(SOUND, { rate = RATE, channels = 1, s16 = true })

-- The voice, repeated to this many seconds.
local function speech(seconds)
  local n, list = math.floor(seconds * RATE), {}
  for _ = 1, math.ceil(n / voice:numel()) do list[#list + 1] = voice end
  return cr.cat(list, 1):narrow(1, 1, n):contiguous()
end

-- CPU seconds of fn.
local function spent(fn, ...)
  local before = os.clock()
  fn(...)
  return os.clock() - before
end

local function overlap()
  local model, x = latentsync.load(MINI), speech(o.seconds)
  local function hear(seconds)
    cr.scope(function()
      local tokens = audio.tokens(model.whisper, x, { overlap = seconds })
      for first = 1, tokens:count(), 16 do cr.scope(function() tokens:window(first, math.min(16, tokens:count() - first + 1)) end) end
      tokens:free()
    end)
  end
  local function whole(windows)
    local r = child.run { 'lipsync', '--video', VIDEO, '--audio', SOUND, '--checkpoint', MINI, '--out', child.folder .. '/out.mp4',
      '--duration', tostring(windows * 16 / 25), '--device', 'cpu', '--quiet', o.steps and '--steps=' .. o.steps }
    assert(r.code == 0, r.err)
    return r.processor
  end
  hear(0) -- one uncounted run
  local without, with = spent(hear, 0), spent(hear, OVERLAP)
  local run = (whole(2 * o.windows) - whole(o.windows)) / (o.windows * 16 / 25)
  local cost = (with - without) / o.seconds
  print(('overlap: encoding %g s of sound takes %.2f CPU seconds without overlap, %.2f with %d s'):format(o.seconds, without,
    with, OVERLAP))
  print(('overlap: %.4f more CPU seconds per second of video; a whole run takes %.1f: %.2f %%'):format(cost, run, 100 * cost / run))
end

local function silence()
  local pause = cr.zeros(math.floor(o.pause * RATE))
  local words = speech(o.pause)
  local path = scratch.write('pauses.wav', scratch.wav_of(cr.cat({ words, pause, words, pause, words }, 1)))
  local seconds, windows = {}, {}
  for _, value in ipairs { 'model', 'keep' } do
    local run = latentsync.session { video = VIDEO, audio = path, checkpoint = MINI, device = 'cpu', silence = value, quiet = true }
    seconds[value] = spent(function() run:sample { steps = o.steps or 1, quiet = true } end)
    windows[value] = 0
    for _, window in ipairs(run.windows) do windows[value] = windows[value] + (window.made and 1 or 0) end
    run:free()
  end
  print(('silence: %g s of sound, two pauses of %g s: %d of %d windows are generated (%.2f), denoising takes %.1f of %.1f s (%.2f)'):format(
    5 * o.pause, o.pause, windows.keep, windows.model, windows.keep / windows.model, seconds.keep, seconds.model,
    seconds.keep / seconds.model))
end

cr.run(function()
  cr.scope(function()
    if o.part ~= 'silence' then overlap() end
    if o.part ~= 'overlap' then silence() end
  end)
end)
child.clean()
