--- TFLite graphs: every operator compared with plain loops, folding, the trained networks' golden values, damage.

local cr = require 'cr'
local flatbuffer = require 'tests.support.flatbuffer'
local golden = require 'tests.support.golden'
local t = require 'tests.support.tap'
local tflite = require 'cr.graphs.tflite'

local ADD, CONCATENATION, CONV, DEPTHWISE, DEQUANTIZE, LOGISTIC, MAX_POOL = 0, 2, 3, 4, 6, 14, 17
local RELU, RELU6, RESHAPE, RESIZE, PAD, PRELU = 19, 21, 22, 23, 34, 54

--- n numbers in -1 .. 1, multiples of 1/64 (exact in float16), the same in each run.
local function numbers(n, seed)
  local out, state = {}, seed or 1
  for i = 1, n do
    state = (state * 1103515245 + 12345) % 2147483648
    out[i] = (math.floor(state / 65536) % 129 - 64) / 64
  end
  return out
end

local function count(shape)
  local n = 1
  for _, s in ipairs(shape) do n = n * s end
  return n
end

local function constant(shape, seed, dtype)
  return { shape = shape, data = numbers(count(shape), seed), dtype = dtype }
end

--- Runs a graph with one input on `numbers`; returns the first output as a flat list.
local function run(spec)
  local net = tflite.parse('test.tflite', flatbuffer.graph(spec))
  return cr.scope(function()
    local shape = net.input.shape
    local out = net:run(cr.tensor(numbers(count(shape), 7)):view(shape))
    t.equal(table.concat(out.shape, ' '), table.concat(net.outputs[1].shape, ' '), 'shape')
    local list = out:reshape(-1):tolist()
    net:free()
    return list
  end)
end

local function same(a, b, message)
  local worst = #a == #b and 0 or math.huge
  for i = 1, math.min(#a, #b) do worst = math.max(worst, math.abs(a[i] - b[i])) end
  t.ok(worst <= 1e-5, ('%s: off by %g'):format(message, worst))
end

local function window(padding, sw, sh, act, more)
  local options = { [0] = { 'i8', padding }, [1] = { 'i32', sw }, [2] = { 'i32', sh } }
  for id, v in pairs(more or {}) do options[id] = v end
  options[act[1]] = { 'i8', act[2] }
  return options
end

--- A convolution in plain loops; `at(o, ky, kx, k)` returns a weight, `reads(o)` its first channel.
local function plain_conv(x, xs, os, kernel, o, at, first, channels, bias)
  local out = {}
  local function pad(size, n, k, s, d)
    return o.valid and 0 or math.floor(math.max((n - 1) * s + (k - 1) * d + 1 - size, 0) / 2)
  end
  local top = pad(xs[2], os[2], kernel[1], o.sh, o.dh or 1)
  local left = pad(xs[3], os[3], kernel[2], o.sw, o.dw or 1)
  for y = 0, os[2] - 1 do
    for z = 0, os[3] - 1 do
      for c = 0, os[4] - 1 do
        local sum = bias and bias[c + 1] or 0
        for ky = 0, kernel[1] - 1 do
          for kx = 0, kernel[2] - 1 do
            local i, j = y * o.sh - top + ky * (o.dh or 1), z * o.sw - left + kx * (o.dw or 1)
            if i >= 0 and j >= 0 and i < xs[2] and j < xs[3] then
              for k = 0, channels - 1 do
                sum = sum + x[(i * xs[3] + j) * xs[4] + first(c) + k + 1] * at(c, ky, kx, k)
              end
            end
          end
        end
        out[#out + 1] = sum
      end
    end
  end
  return out
end

t.test('CONV_2D: asymmetric SAME at stride 2, VALID, dilation, no bias, groups, fused activation', function()
  local xs = { 1, 6, 7, 4 }
  local x = numbers(count(xs), 7)
  for i, c in ipairs {
    { os = { 1, 3, 4, 3 }, k = { 3, 3, 4 }, sh = 2, sw = 2, bias = true },
    { os = { 1, 4, 3, 3 }, k = { 3, 3, 4 }, sh = 1, sw = 2, valid = true, bias = true },
    { os = { 1, 6, 7, 3 }, k = { 3, 2, 4 }, sh = 1, sw = 1, dh = 2, dw = 3 },
    { os = { 1, 6, 7, 4 }, k = { 1, 1, 2 }, sh = 1, sw = 1, bias = true, act = 1 },
    { os = { 1, 2, 3, 2 }, k = { 5, 5, 4 }, sh = 3, sw = 3, bias = true, act = 3, gain = 3 },
  } do
    local oc, kh, kw, ic = c.os[4], c.k[1], c.k[2], c.k[3]
    local w, b = constant({ oc, kh, kw, ic }, 3), c.bias and constant({ oc }, 4)
    for k, v in ipairs(w.data) do w.data[k] = v * (c.gain or 1) end
    local got = run { tensors = { { shape = xs }, w, b or { shape = { 1 } }, { shape = c.os } },
      inputs = { 0 }, outputs = { 3 }, nodes = { { code = CONV, inputs = { 0, 1, b and 2 or -1 },
        outputs = { 3 }, options = window(c.valid and 1 or 0, c.sw, c.sh, { 3, c.act or 0 },
          { [4] = { 'i32', c.dw or 1 }, [5] = { 'i32', c.dh or 1 } }) } } }
    local per_group = oc / (xs[4] / ic)
    local want = plain_conv(x, xs, c.os, { kh, kw }, c, function(o, ky, kx, k)
      return w.data[((o * kh + ky) * kw + kx) * ic + k + 1]
    end, function(o) return math.floor(o / per_group) * ic end, ic, b and b.data)
    for k, v in ipairs(want) do
      if c.act then want[k] = math.max(v, 0) end
      if c.act == 3 then want[k] = math.min(want[k], 6) end
    end
    same(got, want, 'case ' .. i)
  end
end)

t.test('DEPTHWISE_CONV_2D: one and two outputs per channel', function()
  local xs = { 1, 5, 6, 3 }
  local x = numbers(count(xs), 7)
  for _, many in ipairs { 1, 2 } do
    local c = 3 * many
    local w, b = constant({ 1, 3, 3, c }, 5), constant({ c }, 6)
    local os = { 1, 3, 3, c }
    local got = run { tensors = { { shape = xs }, w, b, { shape = os } }, inputs = { 0 },
      outputs = { 3 }, nodes = { { code = DEPTHWISE, inputs = { 0, 1, 2 }, outputs = { 3 },
        options = window(0, 2, 2, { 4, 0 }, { [3] = { 'i32', many } }) } } }
    local want = plain_conv(x, xs, os, { 3, 3 }, { sh = 2, sw = 2 }, function(o, ky, kx)
      return w.data[(ky * 3 + kx) * c + o + 1]
    end, function(o) return math.floor(o / many) end, 1, b.data)
    same(got, want, many .. ' a channel')
  end
end)

t.test('float16 weights by DEQUANTIZE', function()
  local function spec(dtype)
    return { tensors = { { shape = { 1, 2, 2, 3 } }, constant({ 4, 1, 1, 3 }, 2, dtype),
      { shape = { 4, 1, 1, 3 } }, { shape = { 1, 2, 2, 4 } } }, inputs = { 0 }, outputs = { 3 },
      nodes = { { code = DEQUANTIZE, inputs = { 1 }, outputs = { 2 } },
        { code = CONV, inputs = { 0, dtype == 'f16' and 2 or 1 }, outputs = { 3 },
          options = window(0, 1, 1, { 3, 0 }) } } }
  end
  local half, full = spec 'f16', spec 'f32'
  table.remove(full.nodes, 1)
  same(run(half), run(full), 'float16')
end)

t.test('elementwise operators, one after another and alone', function()
  local shape = { 1, 3, 2, 4 }
  local x = numbers(24, 7)
  local slope = { 0.5, 2, -1, 0 }
  local plain = {
    [RELU] = function(v) return math.max(v, 0) end,
    [RELU6] = function(v) return math.min(math.max(v, 0), 6) end,
    [LOGISTIC] = function(v) return 1 / (1 + math.exp(-v)) end,
    [PRELU] = function(v, k) return v < 0 and v * slope[(k - 1) % 4 + 1] or v end,
  }
  for code, fn in pairs(plain) do
    local got = run { tensors = { { shape = shape }, { shape = { 1, 1, 4 }, data = slope },
      { shape = shape }, { shape = shape } }, inputs = { 0 }, outputs = { 3 },
      nodes = { { code = ADD, inputs = { 0, 0 }, outputs = { 2 }, options = { [0] = { 'i8', 0 } } },
        { code = code, inputs = code == PRELU and { 2, 1 } or { 2 }, outputs = { 3 } } } }
    local alone = run { tensors = { { shape = shape }, { shape = { 1, 1, 4 }, data = slope },
      { shape = shape } }, inputs = { 0 }, outputs = { 2 },
      nodes = { { code = code, inputs = code == PRELU and { 0, 1 } or { 0 }, outputs = { 2 } } } }
    local want, want_alone = {}, {}
    for k, v in ipairs(x) do want[k], want_alone[k] = fn(2 * v, k), fn(v, k) end
    same(got, want, 'after a sum, code ' .. code)
    same(alone, want_alone, 'alone, code ' .. code)
  end
end)

t.test('PAD, MAX_POOL_2D, CONCATENATION, RESHAPE', function()
  local x = numbers(2 * 3 * 2, 7)
  local got = run { tensors = { { shape = { 1, 2, 3, 2 } },
    { shape = { 4, 2 }, data = { 0, 0, 1, 0, 0, 0, 0, 1 }, dtype = 'i32' }, { shape = { 1, 3, 3, 3 } } },
    inputs = { 0 }, outputs = { 2 }, nodes = { { code = PAD, inputs = { 0, 1 }, outputs = { 2 } } } }
  local want = { 0, 0, 0, 0, 0, 0, 0, 0, 0 }
  for i = 1, 6 do
    want[#want + 1], want[#want + 2], want[#want + 3] = x[2 * i - 1], x[2 * i], 0
  end
  same(got, want, 'PAD')
  got = run { tensors = { { shape = { 1, 3, 3, 1 } }, { shape = { 1, 2, 2, 1 } }, { shape = { 1, 4 } },
    { shape = { 1, 8 } } }, inputs = { 0 }, outputs = { 3 }, nodes = {
    { code = MAX_POOL, inputs = { 0 }, outputs = { 1 },
      options = window(0, 2, 2, { 5, 0 }, { [3] = { 'i32', 2 }, [4] = { 'i32', 2 } }) },
    { code = RESHAPE, inputs = { 1 }, outputs = { 2 } },
    { code = CONCATENATION, inputs = { 2, 2 }, outputs = { 3 },
      options = { [0] = { 'i32', -1 }, [1] = { 'i8', 1 } } } } }
  x = numbers(9, 7)
  want = { math.max(x[1], x[2], x[4], x[5]), math.max(x[3], x[6]), math.max(x[7], x[8]), x[9] }
  for i = 1, 4 do
    want[i] = math.max(want[i], 0)
    want[i + 4] = want[i]
  end
  same(got, want, 'pool, reshape, join')
end)

t.test('batches: several independent inputs in one run', function()
  local function net_of(shapes, nodes)
    local list = {}
    for i, s in ipairs(shapes) do list[i] = { shape = s } end
    return tflite.parse('test.tflite', flatbuffer.graph { tensors = list, inputs = { 0 }, outputs = { #shapes - 1 }, nodes = nodes })
  end
  local pool = { code = MAX_POOL, inputs = { 0 }, outputs = { 1 },
    options = window(0, 2, 2, { 5, 0 }, { [3] = { 'i32', 2 }, [4] = { 'i32', 2 } }) }
  local net = net_of({ { 1, 5, 3, 2 }, { 1, 3, 2, 2 }, { 1, 12 }, { 1, 24 } }, { pool,
    { code = RESHAPE, inputs = { 1 }, outputs = { 2 } },
    { code = CONCATENATION, inputs = { 2, 2 }, outputs = { 3 }, options = { [0] = { 'i32', -1 }, [1] = { 'i8', 1 } } } })
  cr.scope(function()
    local x = cr.randn(3, 5, 3, 2)
    local all = net:run(x)
    t.equal(table.concat(all.shape, ' '), '3 24', 'shape')
    for i = 1, 3 do t.near(all[i], net:run(x:narrow(1, i, 1))[1], 0, 'input ' .. i) end
    t.raises(function() net:run(cr.randn(3, 5, 4, 2)) end, 'must be %[1 5 3 2%]')
  end)
  net:free()
  -- Values that are shared by all inputs are not split.
  net = net_of({ { 1, 3, 2 }, { 3, 2 } }, { { code = RESHAPE, inputs = { 0 }, outputs = { 1 } } })
  cr.scope(function() t.raises(function() net:run(cr.randn(2, 3, 2)) end, 'must be %[1 3 2%]') end)
  net:free()
end)

t.test('RESIZE_BILINEAR: half-pixel centres and corners', function()
  local x = numbers(2 * 2, 7)
  for _, half in ipairs { 0, 1 } do
    local got = run { tensors = { { shape = { 1, 2, 2, 1 } }, { shape = { 2 }, data = { 4, 4 }, dtype = 'i32' },
      { shape = { 1, 4, 4, 1 } } }, inputs = { 0 }, outputs = { 2 }, nodes = { { code = RESIZE,
        inputs = { 0, 1 }, outputs = { 2 }, options = { [2] = { 'i8', 0 }, [3] = { 'i8', half } } } } }
    local places = half == 1 and { 0, 0.25, 0.75, 1 } or { 0, 0.5, 1, 1 }
    local want = {}
    for _, v in ipairs(places) do
      for _, u in ipairs(places) do
        want[#want + 1] = (1 - v) * ((1 - u) * x[1] + u * x[2]) + v * ((1 - u) * x[3] + u * x[4])
      end
    end
    same(got, want, 'half ' .. half)
  end
end)

--- input -> conv A -> act 1 -> (+ other) -> act 2, as in the networks.
local function residual_graph(first, second, swapped, both)
  local s = { 1, 3, 3, 4 }
  local tensors = { { shape = s }, constant({ 4, 1, 1, 4 }, 2), constant({ 4, 1, 1, 4 }, 9),
    { shape = { 1, 1, 4 }, data = { 0.5, 2, -1, 0 } } }
  local nodes = {}
  local function add(code, inputs, options)
    tensors[#tensors + 1] = { shape = s }
    nodes[#nodes + 1] = { code = code, inputs = inputs, outputs = { #tensors - 1 }, options = options }
    return #tensors - 1
  end
  local function act(code, v) return code and add(code, code == PRELU and { v, 3 } or { v }) or v end
  local conv = window(0, 1, 1, { 3, 0 })
  local a = act(first, add(CONV, { 0, 1, -1 }, conv))
  local b = both and add(CONV, { 0, 2, -1 }, conv) or 0
  local sum = add(ADD, swapped and { b, a } or { a, b }, { [0] = { 'i8', 0 } })
  local out = act(second, sum)
  return { tensors = tensors, nodes = nodes, inputs = { 0 }, outputs = { out } }
end

t.test('folding into a convolution does not change the result', function()
  for _, first in ipairs { false, RELU, RELU6, PRELU } do
    for _, second in ipairs { false, RELU, PRELU } do
      for case = 0, 3 do
        local spec = residual_graph(first, second, case % 2 == 1, case >= 2)
        local folded = run(spec)
        -- A second user of every intermediate result prevents folding.
        local plain = residual_graph(first, second, case % 2 == 1, case >= 2)
        for _, n in ipairs(plain.nodes) do
          if n.outputs[1] ~= plain.outputs[1] then plain.outputs[#plain.outputs + 1] = n.outputs[1] end
        end
        same(folded, run(plain), ('%s %s case %d'):format(tostring(first), tostring(second), case))
      end
    end
  end
end)

t.test('a graph that cannot be run is refused in one sentence', function()
  local s = { 1, 2, 2, 3 }
  local function relu() return { tensors = { { shape = s }, { shape = s } }, inputs = { 0 },
    outputs = { 1 }, nodes = { { code = RELU, inputs = { 0 }, outputs = { 1 } } } } end
  local function refused(change, pattern)
    local spec = relu()
    change(spec)
    t.raises(function() tflite.parse('x.tflite', flatbuffer.graph(spec)) end, '^x%.tflite: .*' .. pattern)
  end
  refused(function(g) g.nodes[1].code = 93 end, 'operator 0 has code 93, which is not handled$')
  refused(function(g) g.tensors[2].shape = { 1, 2, 2, 4 } end, 'gives %[1 2 2 3%], but the file says')
  refused(function(g) g.tensors[2].shape = { 1, -2, 2, 4 } end, 'has the impossible shape')
  refused(function(g) g.tensors[2].shape = { 65536, 65536, 65536, 65536 } end, 'has the impossible shape')
  refused(function(g) g.tensors[1].dtype = 'u8' end, 'has type 3; only float32')
  refused(function(g) g.nodes[1].inputs = { 1 } end, 'uses the tensor 1 before it is made')
  refused(function(g) g.nodes[1].inputs = { 7 } end, 'names the tensor 7 of 2')
  refused(function(g) g.nodes[1].inputs = {} end, 'has 0 inputs')
  refused(function(g) g.outputs = { 0, 1 }; g.nodes[1].outputs = { 0 } end, 'makes the tensor 0 again')
  refused(function(g) g.tensors[1].raw = 'abc' end, 'of f32 has 3 bytes')
  refused(function(g) g.inputs = { 0, 1 } end, '2 inputs and 1 outputs is not handled')
  refused(function(g) g.nodes = {} end, 'the output 1 is never made')
  t.raises(function() tflite.parse('x.tflite', 'hello, world') end, 'x%.tflite: not a TFLite file')
  t.raises(function() tflite.parse('x.tflite', '') end, 'x%.tflite: not a TFLite file')
  t.raises(function() tflite.open('/nowhere/x.tflite') end, '^cannot open /nowhere/x%.tflite: No such file')
  local net = tflite.parse('x.tflite', flatbuffer.graph(relu()))
  t.raises(function() net:run(cr.zeros(1, 2)) end, 'x%.tflite: the input is %[1 2%], but it must be %[1 2 2 3%]')
  net:free()
  net:free()
  t.raises(function() net:run(cr.zeros(1, 2, 2, 3)) end, 'was freed')
  local threads = cr.threads(3)
  net = tflite.parse('x.tflite', flatbuffer.graph(relu()), { threads = 1 })
  net:run(cr.zeros(1, 2, 2, 3)):free()
  t.equal(cr.threads(), threads, 'threads after a run with a count of its own')
  cr.threads(0)
  net:free()
end)

--- Opens damaged bytes; what opens must also run. Returns how many opened.
local function survive(data, what)
  local before = cr.memory().count
  local ok, err = pcall(tflite.parse, 'bad.tflite', data)
  if ok then
    local ran, why = pcall(function()
      cr.scope(function() err:run(cr.zeros(err.input.shape, {})) end)
    end)
    err:free()
    if not ran then t.ok(false, what .. ': opened, but: ' .. tostring(why)) end
    return 1
  end
  if type(err) ~= 'string' or not err:find '^bad%.tflite: ' or err:find '\n' then
    t.ok(false, what .. ': ' .. tostring(err))
  end
  if cr.memory().count > before then t.ok(false, what .. ': storages left behind') end
  return 0
end

t.test('a small file truncated anywhere, or with any byte changed', function()
  local data = flatbuffer.graph(residual_graph(RELU, PRELU, false, true))
  for n = 0, #data - 1 do survive(data:sub(1, n), 'cut to ' .. n) end
  local opened, tried = 0, 0
  for i = 1, #data do
    for _, v in ipairs { 255 - data:byte(i), 31 * i % 256 } do
      opened = opened + survive(data:sub(1, i - 1) .. string.char(v) .. data:sub(i + 1),
        ('byte %d = %d'):format(i - 1, v))
      tried = tried + 1
    end
  end
  t.ok(opened > 0 and opened < tried, ('%d of %d opened'):format(opened, tried))
end)

local function read(path)
  local f = assert(io.open(path, 'rb'))
  local data = f:read '*a'
  f:close()
  return data
end

t.test('a trained file truncated, or with random changes', function()
  local data = read(t.face_model 'face_detection_short_range')
  local step = math.ceil(#data / 200)
  for n = 0, #data - 1, step do
    t.ok(survive(data:sub(1, n), 'cut to ' .. n) == 0, 'cut to ' .. n .. ' opened')
  end
  local state = 12345
  local function random(n)
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 2147483648 * n)
  end
  for k = 1, 40 do
    local parts, at, places = {}, 1, {}
    for i = 1, 1 + random(20) do places[i] = 1 + random(#data) end
    table.sort(places)
    for _, p in ipairs(places) do
      if p >= at then
        parts[#parts + 1] = data:sub(at, p - 1) .. string.char(random(256))
        at = p + 1
      end
    end
    parts[#parts + 1] = data:sub(at)
    survive(table.concat(parts), 'damage ' .. k)
  end
end)

for _, name in ipairs { 'face_detection_full_range', 'face_detection_short_range', 'face_landmark' } do
  t.test(name .. ' against the reference interpreter', function()
    local gold = golden.open 'mediapipe'
    local net = tflite.open(t.face_model(name))
    cr.scope(function()
      local outputs = { net:run(t.formula('input:' .. name, net.input.shape, { kind = 'raw' })) }
      t.equal(#outputs, 2, 'outputs')
      for _, out in ipairs(outputs) do
        local key = ('mediapipe.%s.%d'):format(name, out:numel())
        local want = gold:get(key)
        local range = want:numel() > 1 and want:max():item() - want:min():item() or math.abs(want:item())
        local off = (gold:cut(out, key):reshape(want.shape) - want):abs():max():item()
        t.ok(off <= 1e-5 * range, ('%d outputs: off by %g of the range %g'):format(out:numel(), off, range))
      end
    end)
    net:free()
    gold:close()
  end)
end

t.done()
