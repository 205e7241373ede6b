--- The effect of noise and music behind the voice on the mouth, with the small model: noise or music is added to the
--- demonstration's voice at several ratios, and the openings of the generated mouths are measured.
--
--     build/crescent tests/bench/noise.lua [--windows 4] [--sounds noise,music] [--ratios 20,10,5] [--steps N] [--alone] [--device cpu]
--
-- Tiny: --windows 1 --sounds noise --ratios 5 --steps 1
--
-- Noise is pink, like that of rooms and streets; music is chords of four voices with overtones, a bass, and two beats
-- per second. The ratio is the mean power of the voice divided by that of the other sound, in dB. Printed are the
-- correlation of the opening with the one that was rendered for the voice (r), its mean, its mean in the frames in
-- which the rendered mouth is closed, and its mean error compared with the result of the clean voice (in mouth
-- widths).

local cr = require 'cr'
local face = require 'models.latentsync.face'
local json = require 'cr.json'
local latentsync = require 'models.latentsync'
local measure = require 'tests.bench.mini_measure'
local media = require 'cr.media'
local options = require 'tests.bench.options'
local scratch = require 'tests.support.scratch'

io.stdout:setvbuf 'line'
local o = options.read('Effect of noise and music on the mouth.', {
  { '--windows', 'int', default = 4, min = 1, help = 'of 16 frames' },
  { '--sounds', default = 'noise,music', help = 'sounds to add to the voice' },
  { '--alone', 'flag', help = 'also these sounds without the voice, and silence' },
  { '--ratios', default = '20,10,5', unit = 'dB', help = 'ratios of voice to noise' },
  { '--steps', 'int', min = 1, help = 'denoising steps', default_text = "the small model's" },
  { '--device', 'string', default = 'auto', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N' },
})

local MINI = cr.root .. '/models/mini'
local VIDEO, RATE, FIRST = MINI .. '/demo.mp4', 16000, 8 -- frames skipped at the start: the first words begin
local device = require 'cr.tools.cli'.device(o.device)
local voice = media.load_audio(MINI .. '/demo.flac', { rate = RATE, channels = 1 })
local samples = voice:numel()
local truth = json.decode(scratch.read(MINI .. '/demo.json')).opening

-- ---- sounds ----------------------------------------------------------------------------------

-- Pink noise by Kellet's three-pole filter.
local function noise()
  local white = cr.randn(samples, { generator = cr.generator(1, 'philox') }):tolist()
  local a, b, c = 0, 0, 0
  for i, w in ipairs(white) do
    a, b, c = 0.99765 * a + 0.0990460 * w, 0.96300 * b + 0.2965164 * w, 0.57000 * c + 1.0526913 * w
    white[i] = a + b + c + 0.1848 * w
  end
  return cr.tensor(white)
end

local CHORDS = { { 57, 60, 64, 69 }, { 53, 57, 60, 65 }, { 48, 55, 60, 64 }, { 55, 59, 62, 67 } } -- MIDI note numbers

local function music()
  local list, hiss = {}, cr.rand(samples, { generator = cr.generator(2, 'philox') }):tolist()
  for i = 1, samples do
    local at = (i - 1) / RATE
    local chord, since = CHORDS[math.floor(at) % 4 + 1], at % 0.5
    local x = 0
    for k, key in ipairs(chord) do
      local f = 440 * 2 ^ ((key - 69) / 12) * (k == 1 and 0.5 or 1)
      for overtone = 1, 6 do x = x + math.sin(2 * math.pi * f * overtone * at) / overtone end
    end
    list[i] = x * (0.3 + 0.7 * math.exp(-4 * since)) + 6 * (hiss[i] - 0.5) * math.exp(-40 * since)
  end
  return cr.tensor(list)
end

local SOUNDS = { noise = noise, music = music }

local first, last = FIRST * RATE / 25, math.min(samples, (FIRST + 16 * o.windows) * RATE / 25)
local function power(x) return x:narrow(1, first + 1, last - first):square():mean():item() end

-- ---- mouths ----------------------------------------------------------------------------------

local model = latentsync.load(MINI, { device = device })
local finder = face.load { range = 'full', device = device }

-- The openings of the mouth that a sound generates.
local function openings(x)
  local path = scratch.write('sound.wav', scratch.wav_of(x))
  local curve = measure.curves(finder)
  measure.generate(model, VIDEO, path, { start = FIRST / 25, duration = o.windows * 16 / 25, steps = o.steps,
    frame = function(_, after) curve.read(after) end })
  return curve
end

-- The mean of value(i) over the frames for which it is a number.
local function mean_of(curve, value)
  local list = {}
  for i = 1, curve.n do list[#list + 1] = curve.opening[i] and value(i) or nil end
  return measure.mean(list) or 0 / 0
end

-- An unknown value gives an empty cell.
local function cell(form, value) return value == value and form:format(value) or '' end

local clean

local function row(name, curve, speaks)
  local wanted = {}
  for i = 1, curve.n do wanted[i] = truth[FIRST + i] end
  local function closed(i) return wanted[i] == 0 and curve.opening[i] end
  local off = speaks and curve ~= clean and mean_of(curve, function(i)
    return clean.opening[i] and math.abs(curve.opening[i] - clean.opening[i])
  end)
  print(('| %s | %s | %s | %s | %s |'):format(name, cell('%.2f', speaks and measure.correlation(curve.opening, wanted) or 0 / 0),
    cell('%.3f', mean_of(curve, function(i) return curve.opening[i] end)), cell('%.3f', speaks and mean_of(curve, closed) or 0 / 0),
    cell('%.3f', off or 0 / 0)))
end

cr.run(function()
  print '| sound | r | mean opening | where it is to be closed | off the voice alone |'
  print '| --- | --- | --- | --- | --- |'
  cr.scope(function()
    clean = openings(voice)
    row('the voice alone', clean, true)
    for name in o.sounds:gmatch '%a+' do
      local x = assert(SOUNDS[name], name .. ': no such sound: noise, music')()
      local scale = math.sqrt(power(voice) / power(x))
      for _, ratio in ipairs(options.numbers(o.ratios)) do
        row(('%s at %d dB'):format(name, ratio), openings(voice + x * (scale * 10 ^ (-ratio / 20))), true)
      end
      if o.alone then row(name .. ' alone, as loud as at 10 dB', openings(x * (scale * 10 ^ -0.5))) end
    end
    if o.alone then row('silence', openings(voice * 0)) end
  end)
end)
finder:free()
