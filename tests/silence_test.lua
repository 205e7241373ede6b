--- Pauses: detection, transitions, the sound that the model gets, and windows that are skipped.

local child = require 'tests.support.child'
local cjson = require 'cjson'
local cr = require 'cr'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local silences = require 'models.latentsync.silence'
local smooth = require 'tests.support.formula_image'
local t = require 'tests.support.tap'

for _, name in ipairs { 'whisper/tiny.en.safetensors', 'vad/silero_vad_16k.safetensors' } do
  if not t.has_fetched(name) then
    t.test('silence', function() t.skip(name .. ' is not fetched: run `make models`') end)
    t.done()
  end
end

-- The start of the demonstration's voice, a pause, and the same again; 16 kHz.
local WORDS, PAUSE = 16000 * 0.8, 16000 * 1.2
local FRAMES, WIDTH, HEIGHT, WINDOW = 6, 128, 96, 8
local dir = child.folder
local function path(name) return dir .. '/' .. name end

local function demo() return media.load_audio(cr.root .. '/models/mini/demo.flac', { rate = 16000, channels = 1, s16 = true }) end

local function with_pause()
  local x = demo()
  local words = x:reshape(x:numel()):narrow(1, 5601, WORDS)
  return cr.cat({ words, cr.zeros(PAUSE), words }, 1)
end

local function wav(name, x) return child.file(name, scratch.wav_of(x)) end

-- A sound in pieces, as windows.lua opens it.
local function opened(x, piece)
  return function()
    local at = 0
    return function()
      local n = math.min(piece, x:numel() - at)
      if n <= 0 then return nil end
      at = at + n
      return x:narrow(1, at - n + 1, n)
    end
  end
end

t.test('a pause, its frames and the sound without it', function()
  cr.scope(function()
    local x = with_pause()
    local found = silences.find(opened(x, 5000))
    t.equal(#found.pauses, 1)
    local first, last = found.pauses[1][1] / 16000, found.pauses[1][2] / 16000
    t.ok(first > 0.6 and first < 1.1 and last > 1.7 and last < 2.3, ('%g to %g s'):format(first, last))
    t.ok(math.abs(found:seconds(9) - (last - first)) < 1e-9, 'seconds')
    t.ok(math.abs(found:seconds(1.5) - (1.5 - first)) < 1e-9, 'of a part')
    -- Around the pause, the weight of the new mouth changes by fifths.
    local shares = {}
    for i = 1, 100 do shares[i] = found:share(i) end
    local low, high
    for i, share in ipairs(shares) do
      if share == 0 then low, high = low or i, i end
    end
    t.ok(low and low > first * 25 + 3 and high < last * 25 - 3, 'inside of the pause')
    for k = 1, 4 do
      t.ok(math.abs(shares[low - k] - k / 5) < 1e-9, 'before ' .. k)
      t.ok(math.abs(shares[high + k] - k / 5) < 1e-9, 'after ' .. k)
    end
    for i, share in ipairs(shares) do
      t.equal(share, i >= low and i <= high and 0 or (i > low - 5 and i < high + 5) and share or 1, 'frame ' .. i)
    end
    local louder = x + 0.01
    local parts, next_piece = {}, found:muted(opened(louder, 3333))()
    for piece in next_piece do parts[#parts + 1] = piece end
    local muted = cr.cat(parts, 1)
    local a, b = found.pauses[1][1], found.pauses[1][2]
    t.equal(muted:narrow(1, a + 1, b - a):abs():max():item(), 0, 'nothing in the pause')
    t.near(muted:narrow(1, 1, a), louder:narrow(1, 1, a), 0)
    t.near(muted:narrow(1, b + 1, x:numel() - b), louder:narrow(1, b + 1, x:numel() - b), 0)
  end)
end)

t.test('short silences are not pauses; before and after the sound nobody speaks', function()
  cr.scope(function()
    local none = silences.find(opened(cr.zeros(16000), 16000))
    t.equal(#none.pauses, 1)
    for _, i in ipairs { 1, 10, 25, 40 } do t.equal(none:share(i), 0, 'a sound without speech, frame ' .. i) end
    local x = demo()
    local words = x:reshape(x:numel()):narrow(1, 5601, WORDS)
    t.equal(#silences.find(opened(words, 4000)).pauses, 0)
    local late = silences.find(opened(cr.cat({ cr.zeros(16000), words }, 1), 4000))
    t.equal(#late.pauses, 1)
    t.equal(late:share(1), 0, 'from the first frame on')
    t.equal(late:share(40), 1)
  end)
end)

local points, voice

local function prepare()
  cr.scope(function()
    require 'tests.support.checkpoint'.write(path 'checkpoint')
    local sink = media.writer(path 'face.mkv', { lossless = true, fps = 25 })
    for k = 0, FRAMES - 1 do cr.scope(function() sink:write(smooth.image('frame' .. k, HEIGHT, WIDTH)) end) end
    sink:close()
    voice = wav('voice.wav', with_pause())
    points = {}
    for i = 1, FRAMES do points[i] = { { 45 + i, 32 }, { 80 + i, 33 }, { 62 + i, 54 } } end
    child.file('points.json', cjson.encode(points))
  end)
end

prepare()

-- Frames [n], and the report. A stochastic scheduler is used, so that each window continues the random sequence.
local function lipsync(silence, extra)
  local args = { 'lipsync', '--video', path 'face.mkv', '--audio', voice, '--out', path(silence .. '.mkv'), '--checkpoint',
    path 'checkpoint', '--size', '64', '--steps', '2', '--scheduler', 'euler_ancestral', '--points', path 'points.json', '--lossless',
    '--frames-per-window', tostring(WINDOW), '--report', path 'report.json', '--silence', silence, '--quiet' }
  for _, word in ipairs(extra or {}) do args[#args + 1] = word end
  local r = child.run(args)
  t.equal(r.code, 0, r.err)
  local reader = media.reader(path(silence .. '.mkv'), { fps = 25 })
  local list = reader:read(1000)
  reader:close()
  return list, cjson.decode(scratch.read(path 'report.json'))
end

local function source_frame(i)
  local turn, within = math.floor((i - 1) / FRAMES), (i - 1) % FRAMES
  return smooth.image('frame' .. (turn % 2 == 0 and within or FRAMES - 1 - within), HEIGHT, WIDTH)
end

t.test('keep leaves pauses unchanged, skips their windows, and does not affect other pixels', function()
  cr.scope(function()
    local found = silences.find(opened(with_pause(), 16000))
    local all, model_report = lipsync 'model'
    local kept, report = lipsync 'keep'
    t.equal(#kept, #all)
    local own, skipped = 0, 0
    for i, frame in ipairs(kept) do
      local share = found:share(i)
      if share == 0 then
        own = own + 1
        t.equal(smooth.compare(frame, source_frame(i)), 0, ('frame %d is the source\'s'):format(i))
      elseif share == 1 then
        t.equal(smooth.compare(frame, all[i]), 0, ('frame %d is as without'):format(i))
      else
        t.ok(smooth.compare(frame, all[i]) > 0 and smooth.compare(frame, source_frame(i)) > 0, ('frame %d is between'):format(i))
      end
    end
    for first = 1, #kept, WINDOW do
      local silent = true
      for i = first, math.min(first + WINDOW - 1, #kept) do silent = silent and found:share(i) == 0 end
      skipped = skipped + (silent and 1 or 0)
    end
    t.ok(skipped > 0 and own > 0 and own < #kept, 'there are such frames')
    t.equal(report.windows_in_silence, skipped)
    t.equal(report.frames_in_silence, own)
    t.equal(report.settings.silence, 'keep')
    t.equal(model_report.windows_in_silence, 0)
    -- A session gives the same result.
    local run = require 'models.latentsync'.session { video = path 'face.mkv', audio = voice, checkpoint = path 'checkpoint',
      size = 64, points = points, frames = WINDOW, device = 'cpu', silence = 'keep', quiet = true }
    local sample = run:sample { scheduler = 'ddim', steps = 1, quiet = true }
    local windows = 0
    for _, latents in ipairs(sample.latents) do windows = windows + (latents and 1 or 0) end
    t.equal(windows, #run.windows - skipped)
    sample:save(path 'session.mkv', { lossless = true, quiet = true })
    local reader = media.reader(path 'session.mkv', { fps = 25 })
    for i, frame in ipairs(reader:read(1000)) do
      local same = smooth.compare(frame, source_frame(i)) == 0
      t.equal(same, found:share(i) == 0, 'session, frame ' .. i)
    end
    reader:close()
    run:free()
  end)
end)

t.test('close gives the model silence, and skips nothing', function()
  cr.scope(function()
    local noise = t.formula('noise', { PAUSE + 2 * WORDS }) * 0.003
    wav('noisy.wav', with_pause() + noise)
    local extra = { '--audio', path 'noisy.wav', '--duration', '1.6', '--steps', '1' }
    local open = lipsync('model', extra)
    local closed, report = lipsync('close', extra)
    t.equal(report.windows_in_silence, 0)
    t.equal(#open, #closed)
    local other = 0
    for i, frame in ipairs(closed) do
      if smooth.compare(frame, open[i]) > 0 then other = other + 1 end
      t.ok(smooth.compare(frame, source_frame(i)) > 0, 'made anew, frame ' .. i)
    end
    t.ok(other > 0, 'the mouth is another')
  end)
end)

child.clean()
t.done()
