-- Whisper's features and the audio tokens compared with the reference's values, and streaming compared with the whole
-- sound.

local cr = require 'cr'
local t = require 'tests.support.tap'
local golden = require 'tests.support.golden'
local given_mel = require 'tests.support.given_mel'
local audio = require 'models.latentsync.audio'
local whisper = require 'models.networks.whisper'
local weights = require 'cr.weights'

-- The sound of a file, mono at 16 kHz, as f32 samples that were rounded to 16 bits.
local function read_sound(path, seconds)
  local x = cr.media.load_audio(path, { rate = 16000, channels = 1, s16 = true })
  return seconds and x:narrow(1, 1, seconds * 16000) or x
end

local NANO = golden.folder .. 'whisper_nano.pt'

-- A source that returns the sound in pieces of odd sizes.
local function in_pieces(samples, size)
  return function()
    local at, n = 0, samples:size(1)
    return function()
      if at >= n then return nil end
      local take = math.min(size, n - at)
      at = at + take
      return samples:narrow(1, at - take + 1, take):clone()
    end
  end
end

-- A sound of any length: tones with pauses.
local function tones(seconds)
  local out = cr.empty(math.floor(seconds * 16000))
  local p = out:pointer()
  for i = 0, out:numel() - 1 do
    local s = i / 16000
    p[i] = 0.3 * math.sin(2 * math.pi * (200 + 90 * math.sin(s)) * s) * math.sin(3 * s) ^ 2
  end
  return out
end

-- A small replacement of Whisper, to test segments quickly: the features of a position are the means of its two mel
-- frames and the position within the segment.
local function listener(length)
  return {
    segment_frames = function() return length end,
    encode = function(_, mel)
      return cr.scope(function()
        local mean = mel:mean(2):view(length / 2, 2)
        local place = cr.arange(0, length / 2 - 1):view(length / 2, 1)
        return cr.cat({ mean, place }, 2):view(length / 2, 1, 3)
      end)
    end,
  }
end

t.test('the mel filter bank', function()
  local rows = audio.mel_filters()
  t.equal(#rows, 201)
  t.equal(#rows[1], 80)
  -- Known values of Slaney's bank: the first filter peaks at bin 1, areas are equal.
  t.near(rows[2][1], 0.02486259490251541, 1e-9)
  t.near(rows[3][2], 0.022871771827340126, 1e-9)
  t.near(rows[200][80], 0.0004487590049393475, 1e-9)
  t.near(rows[1][1], 0, 0)
end)

t.test('the log-mel spectrogram is its definition\'s in float64', function()
  -- 30 frames, of which the first and last extend beyond the ends, where the sound is mirrored.
  local samples = tones(0.307)
  local p, n = samples:pointer(), samples:numel()
  local filters, cosine, window = audio.mel_filters(), {}, {}
  for i = 0, 399 do
    cosine[i], window[i] = math.cos(2 * math.pi * i / 400), 0.5 - 0.5 * math.cos(2 * math.pi * i / 400)
  end
  local want, top = {}, -math.huge
  for frame = 0, math.floor(n / 160) - 1 do
    local piece, mel, row = {}, {}, {}
    for i = 0, 399 do
      local at = math.abs(frame * 160 + i - 200)
      piece[i] = window[i] * p[at < n and at or 2 * n - 2 - at]
    end
    for bin = 0, 200 do
      local re, im = 0, 0
      for i = 0, 399 do
        re, im = re + piece[i] * cosine[bin * i % 400], im + piece[i] * cosine[(bin * i + 100) % 400]
      end
      for k, share in ipairs(filters[bin + 1]) do mel[k] = (mel[k] or 0) + share * (re * re + im * im) end
    end
    for k = 1, 80 do row[k] = math.log10(math.max(mel[k], 1e-10)) end
    top = math.max(top, unpack(row))
    want[frame + 1] = row
  end
  for _, row in ipairs(want) do
    for k = 1, 80 do row[k] = (math.max(row[k], top - 8) + 4) / 4 end
  end
  t.near(audio.log_mel_spectrogram(samples), cr.tensor(want), 1e-5)
end)

t.with_shared('the log-mel spectrogram of a voice is the reference\'s', function(shared)
  local gold = golden.open 'networks'
  local mel = audio.log_mel_spectrogram(read_sound(shared 'demo/demo1_audio.wav', 4))
  gold:near(mel:t(), 'whisper.mel', 1e-5)
  gold:close()
end)

t.test('streaming gives the same spectrogram', function()
  local samples = tones(31.237)
  local want = audio.log_mel_spectrogram(samples)
  t.equal(want:size(1), 3123)
  for _, size in ipairs { 160, 997, 123456 } do
    t.near(audio.log_mel_spectrogram(in_pieces(samples, size)), want, 1e-12, 'pieces of ' .. size)
  end
  -- Every length ends at another point in a frame.
  for _, n in ipairs { 320, 321, 399, 400, 401, 479, 480, 1599, 1600, 240000, 240199, 240200, 240201 } do
    local mel = audio.log_mel_spectrogram(in_pieces(samples:narrow(1, 1, n), 1000))
    t.equal(mel:size(1), math.floor(n / 160), n .. ' samples')
  end
end)

t.test('the tokens of a clip are the reference\'s', function()
  local gold = golden.open 'networks'
  local model = whisper.load(NANO)
  t.equal(model.dims.n_audio_state, 64)
  local tokens = given_mel.tokens(model, gold:get 'whisper.mel')
  t.equal(tokens:count(), tonumber(gold:get('whisper.n_chunks'):item()), 'number of chunks')
  t.near(tokens:features(0):narrow(1, 1, 40), gold:get 'whisper.feat_first40', 1e-5, 'features')
  local n = tokens:count()
  local picked = {}
  for i, k in ipairs { 0, 1, 2, math.floor(n / 2), n - 2, n - 1 } do picked[i] = tokens:window(k + 1, 1) end
  t.near(cr.cat(picked, 1), gold:get 'whisper.chunks_sel', 1e-5, 'chunks')
  -- A window equals its frames, one after another.
  local window = tokens:window(1, n)
  t.near(window:narrow(1, n, 1), picked[6], 0)
  t.near(window:narrow(1, 2, 1), picked[2], 0)
  tokens:free()
  gold:close()
end)

t.with_shared('real weights: the tokens of the whole of demo1', function(shared)
  local gold = weights.open(shared 'golden/golden_real.safetensors')
  local path = t.fetched 'whisper/tiny.en.safetensors'
  t.equal(whisper.width(path), 384)
  local model = whisper.load(path, { state = 384 })
  local samples = read_sound(shared 'demo/demo1_audio.wav')
  local tokens = audio.tokens(model, in_pieces(samples, 4001))
  t.equal(tokens:count(), tonumber(gold:get('whisper_tiny_en.n_chunks'):item()))
  local want = gold:get 'whisper_tiny_en.chunks'
  for i, k in ipairs(gold:get('whisper_tiny_en.chunks_index'):tolist()) do
    local got = tokens:window(k + 1, 1)
    t.near(got, want:narrow(1, i, 1), 2e-4, 'frame ' .. k)
    print('# relative error ' .. t.relative_error(got, want:narrow(1, i, 1)))
  end
  tokens:free()
  gold:close()
end)

t.test('half precision runs and stays close', function()
  local path = NANO
  local mel = t.formula('input:mel', { 3000, 80 })
  local want = whisper.load(path):encode(mel)
  for dtype, tolerance in pairs { f16 = 5e-3, bf16 = 4e-2 } do
    local got = whisper.load(path, { dtype = dtype }):encode(mel)
    t.equal(got.dtype, dtype)
    t.near(got, want, tolerance, dtype)
  end
end)

t.test('safetensors with the dims beside it', function()
  local file = weights.open(NANO)
  local base = os.tmpname()
  local all = {}
  for _, name in ipairs(file.names) do
    local short = name:match '^model_state_dict%.(encoder.*)$'
    if short then all[short] = file:get(name) end
  end
  cr.save(base .. '.safetensors', all)
  t.raises(function() whisper.load(base .. '.safetensors') end, 'dims are missing in the file and in')
  local f = io.open(base .. '.json', 'wb')
  f:write(require 'cjson'.encode(file.metadata.dims))
  f:close()
  local mel = t.formula('input:mel', { 3000, 80 })
  t.near(whisper.load(base .. '.safetensors'):encode(mel), whisper.load(file.path):encode(mel), 0)
  t.raises(function() whisper.load(base .. '.safetensors', { state = 384 }) end, 'width 64, but the UNet needs width 384')
  all['encoder.blocks.0.attn.out.bias'] = nil
  cr.save(base .. '.safetensors', all)
  t.raises(function() whisper.load(base .. '.safetensors') end, 'encoder.blocks.0.attn.out.bias is missing')
  file:close()
  for _, ending in ipairs { '', '.json', '.safetensors' } do os.remove(base .. ending) end
end)

t.test('windows over the borders of segments', function()
  local samples = tones(7.015)
  local whole = audio.tokens(listener(1000), samples)
  t.equal(whole.segments, 1)
  t.equal(whole:count(), math.floor(350 / 2) + 2)
  local cut = audio.tokens(listener(200), in_pieces(samples, 777))
  t.equal(cut.segments, 4)
  local n = whole:count()
  -- The third feature is the position in the segment; the others must not depend on the segmentation.
  local a, b = whole:window(1, n), cut:window(1, n)
  t.near(b:narrow(3, 1, 2), a:narrow(3, 1, 2), 1e-6)
  t.near(b:narrow(3, 3, 1), a:narrow(3, 3, 1) - (a:narrow(3, 3, 1) / 100):floor() * 100, 0)
  -- Windows in order, and in reverse order, give the same.
  for _, first in ipairs { 1, 17, 100, 150, 40, n - 5, 2 } do
    local m = math.min(16, n - first + 1)
    t.near(cut:window(first, m), b:narrow(1, first, m), 0, 'window at ' .. first)
  end
  -- After the end the last position is repeated.
  local tail = cut:window(n + 3, 1)
  t.near(tail:narrow(2, 1, 1), tail:narrow(2, 10, 1), 0)
  whole:free()
  cut:free()
end)

t.test('overlapping segments fade into each other in the middle of their overlap', function()
  local samples = tones(7.015)
  local whole = audio.tokens(listener(1000), samples)
  local cut = audio.tokens(listener(200), in_pieces(samples, 777), { overlap = 0.4 })
  t.equal(cut.shared, 40)
  t.equal(cut.segments, math.ceil((701 - 40) / 160))
  local n = whole:count()
  local a, b = whole:window(1, n), cut:window(1, n)
  t.near(b:narrow(3, 1, 2), a:narrow(3, 1, 2), 1e-6)
  -- Segments begin 80 positions apart and share 20; the first 5 and the last 5 of these belong to one segment alone.
  local function place(p)
    p = math.max(0, math.min(p, cut.positions - 1))
    local s = math.min(math.floor((p - 5) / 80), cut.segments - 1)
    local within = p - 80 * s
    local share = s > 0 and within < 15 and 1 - (within - 5 + 0.5) / 10 or 0
    return math.max(p < 5 and p or 0, s < 0 and p or within + 80 * share)
  end
  local want = {}
  for i = 0, n - 1 do
    for k = -4, 5 do want[#want + 1] = place(2 * i + k) end
  end
  t.near(b:narrow(3, 3, 1):reshape(n * 10), cr.tensor(want), 1e-6, 'places in the segments')
  -- Windows in order, and in reverse order, give the same.
  for _, first in ipairs { 1, 40, 44, 120, 44, 2 } do
    t.near(cut:window(first, 7), b:narrow(1, first, 7), 0, 'window at ' .. first)
  end
  t.raises(function() audio.tokens(listener(200), samples, { overlap = 1.5 }) end, 'overlap of 1.5 s')
  whole:free()
  cut:free()
end)

t.test('an overlap removes the glitch at the borders of 30 s segments', function()
  local path = t.fetched 'whisper/tiny.en.safetensors'
  local model = whisper.load(path)
  -- A length that places the borders within speech.
  local once = read_sound(cr.root .. '/models/mini/demo.flac'):narrow(1, 1, 76543)
  local pieces = {}
  for i = 1, 15 do pieces[i] = once end
  local samples = cr.cat(pieces, 1):narrow(1, 1, 70 * 16000)
  -- Relative changes from one position to the next in five frames, ascending.
  local function steps(tokens, first)
    return cr.scope(function()
      local around = tokens:window(first, 5)
      local layers, list, found = around:size(2) / 10, {}, {}
      for frame = 1, 5 do
        for k = 1, 2 do list[#list + 1] = around:select(1, frame):narrow(1, (k - 1) * layers + 1, layers) end
      end
      for k = 2, #list do
        local a, b = list[k - 1], list[k]
        found[k - 1] = math.sqrt((b - a):square():sum():item() / a:square():sum():item())
      end
      table.sort(found)
      return found
    end)
  end
  -- With 10 s the segments' borders are elsewhere.
  local elsewhere = audio.tokens(model, samples, { overlap = 10 })
  -- The largest change at the two borders, and at the same places within a segment.
  local function borders(overlap)
    local tokens = audio.tokens(model, samples, { overlap = overlap })
    local at, inside = 0, 0
    for k = 1, 2 do
      local border = math.floor((k * tokens.stride / 2 + tokens.shared / 4) / 2) + 1
      at, inside = math.max(at, steps(tokens, border - 1)[9]), math.max(inside, steps(elsewhere, border - 1)[9])
    end
    tokens:free()
    return at, inside
  end
  local default = require 'models.latentsync.settings'.schema:complete({ device = 'cpu' }).audio_overlap
  for _, case in ipairs { { 0, 'is a glitch' }, { default, 'is none' } } do
    local at, inside = borders(case[1])
    print(('# overlap of %g s: largest step at a border %.2f, there inside of a segment %.2f'):format(case[1], at, inside))
    t.ok((at > 1.5 * inside) == (case[1] == 0), ('with an overlap of %g s there %s'):format(case[1], case[2]))
  end
  elsewhere:free()
end)

t.test('features survive the scopes they were made in', function()
  local calls = 0
  local model = listener(200)
  local encode = model.encode
  model.encode = function(...)
    calls = calls + 1
    return encode(...)
  end
  local tokens = audio.tokens(model, tones(4))
  for first = 1, 49, 8 do cr.scope(function() tokens:window(first, 8) end) end
  t.equal(calls, 2, 'segments encoded')
  tokens:free()
end)

t.test('sounds that are too short, and wrong arguments, get one sentence', function()
  local model = listener(200)
  for _, n in ipairs { 0, 1, 200, 201, 319 } do
    t.raises(function() audio.tokens(model, cr.zeros(n)) end, 'too short: ' .. n .. ' samples')
  end
  local tokens = audio.tokens(model, cr.zeros(320))
  t.equal(tokens:count(), 2)
  t.equal(tokens:window(1, 2):size(1), 2)
  t.raises(function() tokens:window(0, 1) end, 'no window')
  t.raises(function() audio.tokens(model, 'sound.wav') end, 'must be a tensor')
  t.raises(function() audio.tokens(model, cr.zeros(1000, 2)) end, 'mono sound must have shape %[n%]')
  tokens:free()
end)

t.done()
