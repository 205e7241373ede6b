--- Voice activity detection: the network's probabilities and the segmentation, compared with the package's.

local cjson = require 'cjson'
local cr = require 'cr'
local formula = require 'tests.support.formula'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local vad = require 'models.networks.vad'

local WEIGHTS = 'vad/silero_vad_16k.safetensors'
local gold = cjson.decode(scratch.read(cr.root .. '/tests/golden/vad.json'))

local function text(segments)
  local list = {}
  for i, s in ipairs(segments) do list[i] = ('%d-%d'):format(s[1], s[2]) end
  return table.concat(list, ' ')
end

local function check_rules(cases)
  for i, case in ipairs(cases) do
    case.options.samples = case.samples
    t.equal(text(vad.segments(case.probabilities or case.probs, case.options)), text(case.segments), ('track %d'):format(i))
  end
end

local function load() return vad.load(t.fetched(WEIGHTS)) end

-- All probabilities of a sound that arrives in pieces of a given size.
local function heard(net, sound, piece)
  local stream, all = net:stream(), {}
  local n = sound:numel()
  for at = 1, n, piece or n do
    local part = sound:narrow(1, at, math.min(piece or n, n - at + 1))
    for _, p in ipairs(stream:feed(part)) do all[#all + 1] = p end
  end
  for _, p in ipairs(stream:finish()) do all[#all + 1] = p end
  return all
end

local function check(got, want, tolerance, name)
  t.equal(#got, #want, name .. ': chunks')
  local worst = 0
  for i, p in ipairs(want) do worst = math.max(worst, math.abs(p - (got[i] or math.huge))) end
  t.ok(worst <= tolerance, ('%s: off by %g'):format(name, worst))
end

local function sounds()
  local demo = media.load_audio(cr.root .. '/models/mini/demo.flac', { rate = 16000, channels = 1, s16 = true })
  return { demo = demo:reshape(demo:numel()), noise = formula.tensor('vad.public.noise', { 20000 }, { kind = 'raw' }) * 0.3,
    silence = cr.zeros(16100) }
end

t.test('segments follow the package\'s rules', function() check_rules(gold.rules) end)

t.test('probabilities equal the package\'s, for every chunking of the sound', function()
  local net = load()
  cr.scope(function()
    for name, sound in pairs(sounds()) do
      t.equal(sound:numel(), gold[name].samples)
      local want = gold[name].probabilities
      check(heard(net, sound), want, 1e-5, name)
      check(heard(net, sound, 1777), want, 1e-5, name .. ' in pieces')
    end
    local demo = sounds().demo
    check(heard(net, demo:narrow(1, 1, 5000), 1), heard(net, demo:narrow(1, 1, 5000)), 1e-6, 'sample by sample')
  end)
  net:free()
end)

t.test('a stream returns nothing before a chunk is complete, and starts with a fresh state', function()
  local net = load()
  cr.scope(function()
    local demo = sounds().demo
    local stream = net:stream()
    t.equal(#stream:feed(demo:narrow(1, 1, 511)), 0)
    t.equal(#stream:feed(demo:narrow(1, 512, 1)), 1)
    t.equal(#stream:feed(demo:narrow(1, 513, 1023)), 1)
    t.equal(#stream:finish(), 1)
    local again = heard(net, demo)
    check(again, heard(net, demo), 0, 'again')
    t.equal(#net:stream():finish(), 0, 'nothing heard')
  end)
  net:free()
end)

t.test('the converted ONNX file is the same network; another file is refused', function()
  local onnx = require 'tests.support.onnx'
  local path, kept = scratch.path 'vad.onnx', scratch.path 'vad.safetensors'
  cr.scope(function()
    local tensors = { { { 1 }, { 7 }, name = '@19.value', type = onnx.INT64 } }
    for i, item in ipairs(vad.expected()) do
      local x = formula.tensor(item[1], item[2], { kind = 'weight' })
      tensors[i + 1] = { item[2], x:view(x:numel()):tolist(), name = item[1] }
    end
    local model = { nodes = { { 'Relu', { 'input' }, { 'output' } } }, tensors = tensors,
      inputs = { { 'input', { 1 } } }, outputs = { { 'output', { 1 } } } }
    scratch.write('vad.onnx', onnx.model(model))
    vad.convert(path, kept)
    local file = cr.weights.open(kept)
    t.equal(#file.names, 15)
    file:close()
    local a, b = vad.load(path), vad.load(kept)
    local demo = sounds().demo:narrow(1, 1, 8000)
    check(heard(b, demo), heard(a, demo), 0, 'converted')
    a:free()
    b:free()
    file = cr.weights.open(kept)
    local damaged = {}
    for _, name in ipairs(file.names) do damaged[name] = file:get(name) end
    file:close()
    damaged['model.decoder.rnn.bias_ih']:fill_(1 / 0)
    cr.save(scratch.path 'damaged.safetensors', damaged)
    t.raises(function() vad.load(scratch.path 'damaged.safetensors') end,
      'damaged.safetensors: tensor model.decoder.rnn.bias_ih is not finite')
    tensors[3] = nil
    model.tensors = { tensors[1], tensors[2] }
    scratch.write('part.onnx', onnx.model(model))
  end)
  t.raises(function() vad.convert(scratch.path 'part.onnx', scratch.path 'none.safetensors') end,
    'part.onnx: tensor model.encoder.0.reparam_conv.weight is missing')
  t.raises(function() vad.load(scratch.path 'part.onnx') end, 'tensor model.encoder.0.reparam_conv.weight is missing')
  t.raises(function() vad.segments({ 0.5 }, { treshold = 1 }) end, "did you mean 'threshold'")
end)

t.with_shared('the reference\'s clips, mixes and rules', function(shared)
  local function json(name) return cjson.decode(scratch.read(shared('golden/' .. name))) end
  check_rules(json 'vad_rules.json')
  local all, net = json 'golden_vad.json', load()
  local function voice(name)
    local x = media.load_audio(shared(('demo/%s_audio.wav'):format(name)), { rate = 16000, channels = 1, s16 = true })
    return x:reshape(x:numel())
  end
  cr.scope(function()
    local a = voice 'demo2'
    local function piece(from, to) return a:narrow(1, from + 1, to - from) end
    local noise = formula.tensor('vad.public.noise', { a:numel() }, { kind = 'raw' })
    local clips = {
      demo1 = voice 'demo1', demo2 = a, quiet = a * 0.02, noisy = (a + noise * 0.02):clamp(-1, 1),
      noise = noise:narrow(1, 1, 64000) * 0.3, silence = cr.zeros(48100), short = piece(16000, 16300),
      gaps = cr.cat({ piece(8000, 40000), cr.zeros(24000), piece(40000, 80000), cr.zeros(1600), piece(80000, 120000) }, 1),
    }
    for name, clip in pairs(clips) do
      local want = all[name]
      t.equal(clip:numel(), want.samples, name)
      local got = heard(net, clip)
      check(got, want.probs, 1e-4, name)
      local function segments(options)
        options.samples = clip:numel()
        return text(vad.segments(got, options))
      end
      t.equal(segments {}, text(want.segments), name)
      t.equal(segments { threshold = 0.7 }, text(want['segments.threshold_0.7']), name)
      t.equal(segments { speech_pad_ms = 200, min_silence_duration_ms = 400 }, text(want['segments.pad_200_silence_400']), name)
      t.equal(segments { max_speech_duration_s = 3 }, text(want['segments.max_speech_3']), name)
      t.equal(segments { max_speech_duration_s = 3, use_max_poss_sil_at_max_speech = false },
        text(want['segments.max_speech_3_last']), name)
    end
  end)
  net:free()
end)

t.done()
