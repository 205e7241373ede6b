-- A film split into parts and joined: crescent split, the parts generated one by one as workers do, crescent join.
-- With CR_SLOW=1 seven parts instead of two, and all settings that make a part depend on earlier frames.

local t = require 'tests.support.tap'
local cr = require 'cr'
local checkpoint = require 'tests.support.checkpoint'
local child = require 'tests.support.child'
local drawn = require 'tests.support.film'
local files = require 'cr.files'
local json = require 'cr.json'
local media = require 'cr.media'
local parts = require 'models.latentsync.part'
local requests = require 'models.service.request'
local scratch = require 'tests.support.scratch'

local VIDEO, SOUND = cr.root .. '/models/mini/demo.mp4', cr.root .. '/models/mini/demo.flac'
local PARTS, FRAMES = 2, 28
if os.getenv 'CR_SLOW' then PARTS, FRAMES = 7, 110 end

if not t.has_fetched 'whisper/tiny.en.safetensors' then
  t.test('a film in parts', function() t.skip 'Whisper tiny.en is not fetched: run `make models`' end)
  t.done()
end

local tiny = scratch.path 'tiny'
checkpoint.write(tiny)
local model -- loaded once

-- Runs a job as a worker process does.
local function make(body, out)
  body = json.decode(json.encode(body))
  body.id, body.out = nil, nil
  local s = requests.settings(requests.check(body), function(name) return (name:gsub('^file://', '')) end)
  s.out, s.checkpoint, s.size, s.quiet = out, model, 64, true
  return require 'models.latentsync.job'.new(s):run()
end

local function film(ending, more)
  local settings = { duration = FRAMES / 25, steps = 1, lossless = ending == '.mkv' or nil }
  for key, value in pairs(more or {}) do settings[key] = value end
  return { id = 'film', video = 'file://' .. VIDEO, audio = 'file://' .. SOUND, out = ('file://%s/film%s'):format(scratch.folder, ending),
    settings = settings }
end

-- A film at 30 frames per second in which each part depends on much earlier frames: nobody at first, then two people,
-- one of whom leaves; after a cut the other one and a third, larger person.
local function write_people(path)
  local sink = media.writer(path, { fps = 30, lossless = true })
  for i = 1, 56 do
    local layers = {}
    if i > 38 then
      layers = { { drawn.person 'carl', x = 10, y = 20 }, { drawn.person 'bert', x = 230, y = 30 } }
    elseif i > 26 then
      layers = { { drawn.person 'anna', x = 10 + i, y = 30 }, { drawn.person 'bert', x = 230, y = 30 } }
    end
    local frame = drawn.frame(240, 440, layers, i, i > 38 and 90 or 128)
    sink:write { frame }
    frame:free()
  end
  sink:close()
end

local function split(body, ...)
  return child.run { 'split', scratch.write('film.json', json.encode(body)), '--root', '/', ... }
end

-- Splits, generates every part, joins; returns the paths of the film and its parts.
local function in_parts(body, n, ending, ...)
  local r = split(body, '--parts', tostring(n), ...)
  t.equal(r.code, 0, r.err)
  local list, count = {}, 0
  for line in r.out:gmatch '[^\n]+' do
    count = count + 1
    local job = json.decode(line)
    list[count] = job.out:gsub('^file://', '')
    make(job, list[count])
  end
  t.equal(count, n)
  local out = scratch.path('joined' .. ending)
  local lines = scratch.write('parts.jsonl', r.out)
  r = child.run { 'join', lines, '--out', out, '--root', '/' }
  t.equal(r.code, 0, r.err)
  return out, list, lines
end

local function decoded(path)
  local reader, sound = media.reader(path, { fps = 0 }), media.load_audio(path)
  local frames = reader:read(1000)
  reader:close()
  return frames, sound
end

local function free(frames, sound)
  for _, frame in ipairs(frames) do frame:free() end
  sound:free()
end

-- Compares a film in parts with the whole: every pixel, every sample, the duration.
local function compare(body, n, ...)
  local whole = scratch.path 'whole.mkv'
  local result = make(body, whole)
  local joined = in_parts(body, n, '.mkv', ...)
  local a, sound_a = decoded(whole)
  local b, sound_b = decoded(joined)
  t.equal(#b, #a)
  local same = 0
  for i, frame in ipairs(a) do same = same + (b[i] and frame:equal(b[i]) and 1 or 0) end
  t.equal(same, #a)
  t.equal(sound_b:size(1), sound_a:size(1))
  t.ok(sound_a:equal(sound_b))
  t.near(media.probe(joined).duration, media.probe(whole).duration, 1e-3)
  t.ok(not a[1]:equal(a[math.min(#a, 28)]), 'frames that are all alike tell nothing')
  local length = sound_a:size(1) / media.probe(whole).sample_rate
  free(a, sound_a)
  free(b, sound_b)
  return result, length
end

t.test(PARTS .. ' lossless parts have the pixels and the sound samples of the whole film', function()
  t.keeps_storages() -- the model
  cr.run(function()
    model = require 'models.latentsync'.load(tiny, { device = 'cpu', dtype = 'f32', size = 64 })
    local result, length = compare(film '.mkv', PARTS, '--look', 'near')
    t.equal(result.frames, FRAMES)
    t.equal(length, math.floor(FRAMES / 25 * 48000 + 0.5) / 48000)
  end)
end)

local people, short = scratch.path 'people.mkv', nil

-- Cases that depend on all earlier frames: {name, further settings, voices, parts}.
local CASES = { { 'windows without a face', { duration = 1.2 } } }
if os.getenv 'CR_SLOW' then
  for _, case in ipairs {
    { "the video's own frames, windows that end with shots, two voices, and what follows the sound",
      { fps = 'source', cut_windows = true, tail = 'keep' }, { left = true, right = true } },
    { 'a video that ends before its sound', { duration = 2.2 } },
    { 'windows that end with shots', { cut_windows = true } },
    { 'what follows the sound', { tail = 'keep' } },
    { "the video's own frames, shown backward", { fps = 'source', duration = 2.2 } },
    { 'a person by number', { face = '2' } },
    { 'a person by place', { face = '300,120' } },
    { 'who speaks', { face = 'speaking', silence = 'keep' } },
    { 'places that are held, pauses that are muted', { no_face = 'hold', silence = 'close', start = 0.3 } },
    { 'noise in each step', { scheduler = 'euler_ancestral', rng = 'philox', steps = 2 } },
    { 'everybody', {}, { all = true } },
  } do CASES[#CASES + 1] = case end
end

for _, case in ipairs(CASES) do
  t.test('parts analyse all earlier frames: ' .. case[1], function()
    t.keeps_storages()
    cr.run(function()
      if not short then
        write_people(people)
        local sound = media.load_audio(SOUND, { rate = 16000, channels = 1 })
        short = scratch.write('short.wav', scratch.wav_of(sound:narrow(1, 1, 25600)))
        scratch.write('other.wav', scratch.wav_of(sound:narrow(1, 20001, 24000)))
        sound:free()
      end
      local body = film('.mkv', case[2])
      body.video = 'file://' .. people
      if not case[2].duration then body.settings.duration, body.audio = nil, 'file://' .. short end
      local voices = case[3]
      if voices then
        body.audio, body.voices = nil, {}
        for _, face in ipairs { 'all', 'left', 'right' } do
          if voices[face] then
            body.voices[#body.voices + 1] = { face = face, audio = 'file://' .. (face == 'right' and scratch.path 'other.wav' or short) }
          end
        end
      end
      compare(body, 2)
    end)
  end)
end

t.test('parts of a lossy film begin with key frames, and the sound is encoded once', function()
  cr.run(function()
    local body = film('.mp4', { duration = 0.8 })
    local whole = scratch.path 'whole.mp4'
    make(body, whole)
    local joined = in_parts(body, 2, '.mp4')
    local a, sound_a = decoded(whole)
    local b, sound_b = decoded(joined)
    t.equal(#b, #a)
    t.ok(sound_a:equal(sound_b))
    local worst = 0
    for i, frame in ipairs(a) do
      cr.scope(function() worst = math.max(worst, (frame:to 'f32' - b[i]:to 'f32'):square():mean():item()) end)
    end
    t.ok(worst < 10, worst) -- in levels of 255: H.264 decides differently after another key frame
    local info = media.probe(joined)
    t.near(info.duration, 0.8, 0.03)
    free(a, sound_a)
    free(b, sound_b)
  end)
end)

t.test('films that cannot be split or joined give one sentence, and nothing remains', function()
  local function refuses(r, pattern)
    t.equal(r.code, 1, r.err)
    t.ok(r.err:find(pattern), r.err)
  end
  refuses(split(film('.mkv', { match_colour = true }), '--parts', '2'), 'a film cannot be split with match%-colour %(colours are')
  refuses(split(film('.mkv', { face = '2' }), '--parts', '2', '--look', 'near'), 'split with face and %-%-look near %(the person can')
  local long = film '.mkv'
  long.audio, long.settings.duration = 'file://' .. scratch.write('long.wav', scratch.wav(('\0\1'):rep(16000 * 8))), nil
  refuses(split(long, '--seconds', '2', '--look', 'near'), 'the sound needs 8.00 s of video, but there are only')
  t.equal(split(film '.mkv').code, 2)
  local lines = {}
  for line in files.read(scratch.path 'parts.jsonl'):gmatch '[^\n]+' do lines[#lines + 1] = line end
  local out = scratch.path 'no.mp4'
  local function join(...)
    return child.run { 'join', scratch.write('some.jsonl', table.concat({ ... }, '\n')), '--out', out, '--root', '/' }
  end
  refuses(join(lines[2]), 'film: the part that contains frame 0 is missing')
  refuses(join(lines[1]), 'film: only 1 of 2 parts are given')
  refuses(join(lines[1], lines[1]), 'is missing or duplicated')
  refuses(join(json.encode(film '.mp4')), 'is not a part of a film')
  -- A part that another encoder made.
  local second = json.decode(lines[2]).out:gsub('^file://', '')
  local sink = media.writer(second, { fps = 25 })
  cr.scope(function()
    for _ = 1, 14 do sink:write { cr.zeros({ 32, 48, 3 }, { dtype = 'u8' }) } end
  end)
  sink:close()
  refuses(join(unpack(lines)), 'encoded differently from the first')
  t.ok(not files.read(out) and not files.read(scratch.path '.joined.no.mp4') and not files.read(scratch.path '.sound.no.mp4'))
end)

t.test('a part reads and writes its text exactly', function()
  local sounds = { { samples = 123456, frames = 771, top = 1 / 3 }, { samples = 1, frames = 2, top = -1e-5 } }
  local back = parts.kind.read(parts.kind.write { first = 32, frames = 16, near = true, sounds = sounds })
  t.equal(back.sounds[1].top, 1 / 3)
  t.equal(back.sounds[2].top, -1e-5)
  t.equal(back.first .. back.frames .. back.sounds[1].samples .. back.sounds[1].frames, '3216123456771')
  t.ok(back.near and not parts.kind.read '0:16:all:1:2:3'.near)
  for _, text in ipairs { '1:0:all:2:3:4', '1:2:all:3:4', '1:2:3:4:5', '1:2:some:3:4:5', '1:2:all', '1:2:all:3:4:5:6' } do
    t.equal(parts.kind.read(text), nil, text)
  end
end)

drawn.free()
child.clean()
t.done()
