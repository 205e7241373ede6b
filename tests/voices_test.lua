--- Several people in a film, each with their own voice.

local child = require 'tests.support.child'
local cjson = require 'cjson'
local cr = require 'cr'
local latentsync = require 'models.latentsync'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local settings = require 'models.latentsync.settings'
local smooth = require 'tests.support.formula_image'
local t = require 'tests.support.tap'

if not t.has_fetched 'whisper/tiny.en.safetensors' then
  t.test('voices', function() t.skip 'whisper/tiny.en.safetensors is not fetched: run `make models`' end)
  t.done()
end

local HALF, HEIGHT, FRAMES, WINDOW = 128, 96, 8, 4
local function path(name) return child.folder .. '/' .. name end

-- A film of two people: the left half shows one face, the right half the other, which appears at a frame (from 0).
-- The faces do not change, so that they are recognized; the frames are distinguished by a line.
local function film(name, from)
  local sink = media.writer(path(name), { lossless = true, fps = 25 })
  for k = 0, FRAMES - 1 do
    cr.scope(function()
      local left, right = smooth.image('one', HEIGHT, HALF):clone(), smooth.image('other', HEIGHT, HALF):clone()
      for _, half in ipairs { left, right } do half:narrow(1, HEIGHT, 1):copy_(cr.full({ 1, HALF, 3 }, 20 * k, { dtype = 'u8' })) end
      -- What the finder below uses to recognize a face.
      right:narrow(1, 1, 2):narrow(2, HALF - 1, 2):copy_(cr.full({ 2, 2, 3 }, k >= (from or 0) and 255 or 0, { dtype = 'u8' }))
      sink:write(cr.cat({ left, right }, 2))
    end)
  end
  sink:close()
  return path(name)
end

-- Finds a face in the left half of a frame, and one in the right half if its corner is white.
local finder = {}
function finder:detect(frame)
  local function face(x) return { box = { x + 30, 10, x + 100, 90 }, score = 1 } end
  local width = frame:size(2)
  return { face(0), frame:pointer()[3 * width - 1] > 128 and face(HALF) or nil }
end
function finder:place(_, d)
  local x = d.box[1] - 30
  return { box = d.box, score = 1, presence = 1, points = { { x + 45, 32 }, { x + 80, 33 }, { x + 62, 54 } } }
end
function finder:free() end

-- Sounds of noise by formula, 16 kHz.
local function sound(name, seconds, loud)
  return child.file(name .. '.wav', scratch.wav_of(t.formula(name, { math.floor(seconds * 16000) }) * loud))
end

local alice, bob, short
local model

cr.scope(function()
  require 'tests.support.checkpoint'.write(path 'checkpoint')
  alice, bob, short = sound('alice', 0.32, 0.6), sound('bob', 0.32, 0.9), sound('short', 0.16, 0.3)
  film 'two.mkv'
  film('late.mkv', 5)
  model = latentsync.load(path 'checkpoint', { size = 64 })
end)

-- The frames of a session's result, and its sound samples.
local function made(given)
  local o = { video = path 'two.mkv', checkpoint = model, finder = finder, frames = WINDOW, guidance = 1, quiet = true }
  for key, value in pairs(given) do o[key] = value end
  local run = latentsync.session(o)
  run:sample { scheduler = 'euler_ancestral', steps = 2, quiet = true }
  run:save(path 'out.mkv', { lossless = true, quiet = true })
  local reader = media.reader(path 'out.mkv', { fps = 25 })
  local list = reader:read(100)
  reader:close()
  run:free()
  return list, media.load_audio(path 'out.mkv')
end

local function left(frame) return frame:narrow(2, 1, HALF) end
local function right(frame) return frame:narrow(2, HALF + 1, HALF) end

local function same(a, b, part, what)
  t.equal(#a, #b, what)
  for i = 1, #a do t.equal(smooth.compare(part(a[i]), part(b[i])), 0, ('%s, frame %d'):format(what, i)) end
end

local function source(name, fps)
  local reader = media.reader(path(name), { fps = fps or 25 })
  local list = reader:read(100)
  reader:close()
  return list
end

t.test('each of two people is generated as if alone in the film', function()
  cr.scope(function()
    local both, mixed = made { voice = { '1=' .. alice, 'right=' .. bob } }
    local one, alone = made { voice = '1=' .. alice }
    local other = made { voice = '2=' .. bob }
    local before = source 'two.mkv'
    same(both, one, left, 'the first one')
    same(both, other, right, 'the second one')
    same(one, before, right, 'who has no voice')
    same(other, before, left, 'who has no voice')
    for i, frame in ipairs(both) do
      t.ok(smooth.compare(left(frame), left(before[i])) > 0 and smooth.compare(right(frame), right(before[i])) > 0, 'made, frame ' .. i)
    end
    t.near(alone, media.load_audio(alice), 1e-4, 'the sound of one voice is that voice')
    local sum = media.load_audio(alice) + media.load_audio(bob)
    local loudest = sum:abs():max():item()
    t.ok(loudest > 1, 'the sum would be cut off')
    t.near(mixed, sum * (10 ^ (-1 / 20) / loudest), 1e-3, 'the sum, quieter by one factor')
    local swapped = made { voice = { '1=' .. bob, '2=' .. alice } }
    t.ok(smooth.compare(left(swapped[5]), left(both[5])) > 0 and smooth.compare(right(swapped[5]), right(both[5])) > 0, 'by other voices')
  end)
end)

t.test('after its end a voice is silent; the volume is reduced only if necessary', function()
  cr.scope(function()
    local list, mixed = made { voice = { '1=' .. short, '2=' .. alice } }
    t.equal(#list, 8, 'as long as the longest')
    local sum = media.load_audio(alice):clone()
    local a = media.load_audio(short)
    local part = sum:narrow(1, 1, a:numel())
    part:copy_(part + a)
    t.near(mixed, sum * math.min(1, 10 ^ (-1 / 20) / sum:abs():max():item()), 1e-3)
    local _, quiet = made { voice = { '1=' .. short, '2=' .. short } }
    t.near(quiet, a, 1e-4, 'a sound of two people is there once')
    local _, own = made { voice = { '1=' .. alice, '2=' .. bob }, sound = short }
    t.near(own:narrow(1, 1, a:numel()), a, 1e-4, 'a sound of its own')
  end)
end)

t.test('one voice for everybody, including people who appear later', function()
  cr.scope(function()
    local all = made { voice = 'all=' .. alice, video = path 'late.mkv' }
    local one, other = made { voice = '1=' .. alice, video = path 'late.mkv' }, made { voice = '2=' .. alice, video = path 'late.mkv' }
    same(all, one, left, 'the first one')
    same(all, other, right, 'the second one')
    local before = source 'late.mkv'
    for i = 1, #all do
      t.equal(smooth.compare(right(all[i]), right(before[i])) == 0, i <= 5, 'the second one is there from frame 6 on, ' .. i)
    end
  end)
end)

t.test('other settings apply to each person', function()
  cr.scope(function()
    for _, o in ipairs { { match_colour = true, no_face = 'hold' }, { smooth = false, start = 0.12, duration = 0.2 } } do
      local function with(voice)
        local given = { voice = voice, video = path 'late.mkv' }
        for key, value in pairs(o) do given[key] = value end
        return (made(given))
      end
      local both = with { '1=' .. alice, '2=' .. bob }
      same(both, with('1=' .. alice), left, next(o))
      same(both, with('2=' .. bob), right, next(o))
    end
  end)
end)

t.test('refusals', function()
  local function refused(given, pattern)
    local ok, message = pcall(made, given)
    t.ok(not ok and tostring(message):find(pattern), ('%s: %s'):format(pattern, tostring(message)))
  end
  refused({ voice = { '1=' .. alice, 'left=' .. bob } }, 'at 0%.00 s 1 and left are the same person %(1%), who has two voices')
  refused({ voice = { '1=' .. alice, '3=' .. bob } }, 'nobody in .*two%.mkv is 3: there are 2 people: 1 %(0%.0 to 0%.3 s, at .*%), 2 %(')
  refused({ voice = { '1=' .. alice, '1=' .. bob } }, '1 has two voices')
  refused({ voice = { '1=' .. alice, 'nobody=' .. bob } }, "'nobody=.*' is not of the form SELECTOR=FILE")
  refused({ voice = alice }, 'is not of the form SELECTOR=FILE')
  refused({ voice = '1=' .. alice, audio = bob }, 'leave one of them out')
  refused({ voice = '1=' .. alice, points = { { { 1, 1 }, { 9, 1 }, { 5, 9 } } } }, 'points belongs to one person')
  refused({ voice = 'all=' .. alice, paste = 'reference' }, 'may cover another person')
  refused({ voice = '1=' .. path 'nothing.wav' }, 'nothing%.wav: No such file')
  refused({ voice = '1=' .. path 'two.mkv' }, 'two%.mkv has no audio stream')
  refused({}, 'audio is missing')
end)

t.test('the settings of voices', function()
  local function list(s)
    local words = {}
    for i, one in ipairs(settings.voices(s)) do words[i] = one.face .. ' says ' .. one.path end
    return table.concat(words, ', ')
  end
  t.equal(list { audio = 'a.wav' }, 'largest says a.wav')
  t.equal(list { audio = 'a=b.wav', face = 'left' }, 'left says a=b.wav')
  t.equal(list { voice = { '1=a=b.wav', '20,30=c.wav' } }, '1 says a=b.wav, 20,30 says c.wav')
  local words = settings.schema:words { voice = { '1=a.wav', '2=b.wav' } }
  t.equal(table.concat(words, ' '), '--voice=1=a.wav --voice=2=b.wav')
end)

-- The frames of the command's result with their times, and its report.
local function lipsync(voices, name)
  local args = { 'lipsync', '--video', path 'talk.mkv', '--out', path(name), '--checkpoint', path 'checkpoint', '--size', '64',
    '--steps', '2', '--scheduler', 'euler_ancestral', '--guidance', '1',
    '--frames-per-window', '8', '--lossless', '--fps', 'source', '--match-colour',
    '--silence', 'keep', '--upscale', 'mouth:' .. path 'small.safetensors', '--no-face', 'hold', '--device', 'cpu', '--quiet',
    '--report', path 'report.json', '--dump-latents', path(name .. '.safetensors') }
  for _, voice in ipairs(voices) do args[#args + 1] = '--voice=' .. voice end
  local r = child.run(args)
  t.equal(r.code, 0, r.err)
  local reader = media.reader(path(name), { fps = 0 })
  local list = reader:read(200)
  local times = reader.last_seconds
  reader:close()
  return list, times, cjson.decode(scratch.read(path 'report.json'))
end

t.test('all features at once: own rate, colours, silence, upscaled mouths', function()
  t.fetched 'face/face_landmark.tflite'
  t.fetched 'vad/silero_vad_16k.safetensors'
  cr.scope(function()
    local people = require 'tests.support.film'
    local anna, bert = people.person 'anna', people.person 'bert'
    local sink = media.writer(path 'talk.mkv', { lossless = true, timed = true, fps = 30 })
    for k = 0, 11 do
      cr.scope(function() sink:write(people.frame(200, 400, { { anna, x = 0, y = 0 }, { bert, x = 200, y = 0 } }, k), k / 30) end)
    end
    sink:close()
    people.free()
    require 'tests.support.checkpoint'.upscaler(path 'small.safetensors')
    local words = media.load_audio(cr.root .. '/models/mini/demo.flac', { rate = 16000, channels = 1 }):narrow(1, 5601, 16000 * 0.4)
    local pause = cr.zeros(16000 * 0.8)
    local first, second = '1=' .. child.file('first.wav', scratch.wav_of(cr.cat({ words, pause }, 1))),
      '2=' .. child.file('second.wav', scratch.wav_of(cr.cat({ pause, words }, 1)))
    local both, times, report = lipsync({ first, second }, 'both.mkv')
    local one, one_times, alone = lipsync({ first }, 'one.mkv')
    local other = lipsync({ second }, 'other.mkv')
    local before = source('talk.mkv', 0)
    t.equal(#both, 36)
    local changed = { left = 0, right = 0 }
    for i, frame in ipairs(both) do
      t.ok(math.abs(times[i] - (i - 1) / 30) < 3e-3 and times[i] == one_times[i], ('frame %d at %g s'):format(i, times[i]))
      local turn, within = math.floor((i - 1) / 12), (i - 1) % 12
      local own = before[turn % 2 == 0 and within + 1 or 12 - within]
      t.equal(smooth.compare(frame:narrow(2, 1, 200), one[i]:narrow(2, 1, 200)), 0, 'the first one, frame ' .. i)
      t.equal(smooth.compare(frame:narrow(2, 201, 200), other[i]:narrow(2, 201, 200)), 0, 'the second one, frame ' .. i)
      local left_changed = smooth.compare(frame:narrow(2, 1, 200), own:narrow(2, 1, 200)) > 0
      local right_changed = smooth.compare(frame:narrow(2, 201, 200), own:narrow(2, 201, 200)) > 0
      if i <= 9 then t.ok(left_changed and not right_changed, 'the first one speaks, frame ' .. i) end
      if i >= 29 then t.ok(right_changed and not left_changed, 'the second one speaks, frame ' .. i) end
      changed.left, changed.right = changed.left + (left_changed and 1 or 0), changed.right + (right_changed and 1 or 0)
    end
    t.ok(changed.left < 24 and changed.right < 24, 'the others are the video\'s own')
    t.equal(#report.settings.voice, 2)
    t.equal(alone.settings.voice, first)
    t.ok(report.windows_in_silence > alone.windows_in_silence and report.frames_in_silence < alone.frames_in_silence, 'counted')
    local latents, alone_latents = cr.load(path 'both.mkv.safetensors'), cr.load(path 'one.mkv.safetensors')
    t.near(latents['latents.1'], alone_latents.latents, 0)
    t.ok(latents['latents.2'] ~= nil)
  end)
end)

model.unet, model.vae = nil, nil
child.clean()
t.done()
