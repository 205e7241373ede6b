--- ONNX networks: operators and folding compared with onnxruntime's results, files as exporters write them, damage.

local cr = require 'cr'
local onnx_cases = require 'tests.support.onnx_cases'
local format = require 'tests.support.onnx'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'

local TRIES = tonumber(os.getenv 'CR_FUZZ') or 600

local list, cases = onnx_cases.all()

t.test('models with every operator, and folding into convolutions, agree with onnxruntime', function()
  local tried = 0
  for _, case in ipairs(list) do
    if case.model then
      tried = tried + 1
      local net = cr.onnx.open(case.model)
      local off = {}
      cr.scope(function()
        local inputs = {}
        for i, v in ipairs(net.inputs) do inputs[v.name] = case.inputs[i] end
        for run = 1, 2 do off[run] = onnx_cases.off(case, { net:run(inputs) }) end -- the second run follows the recorded plan
      end)
      net:free()
      for run = 1, 2 do
        t.ok(type(off[run]) == 'number' and off[run] <= 2e-6, ('%s, run %d: %s'):format(case.name, run, tostring(off[run])))
      end
    end
  end
  t.ok(tried > 40, 'there are models')
end)

local function twin(name, path, shape, scale)
  local net = cr.onnx.open(path)
  cr.scope(function()
    local off = onnx_cases.off(cases[name], { net:run(onnx_cases.ramp(shape, scale)) })
    t.ok(type(off) == 'number' and off <= 1e-5, name .. ': ' .. tostring(off))
  end)
  net:free()
end

t.with_shared("the twins of InsightFace's networks: as onnxruntime", function(shared)
  twin('twin.det_nano', shared 'golden/insightface/det_nano.onnx', { 1, 3, 64, 96 })
  twin('twin.det_nano_raw', shared 'golden/insightface/det_nano_raw.onnx', { 1, 3, 72, 56 })
  twin('twin.lmk_nano', shared 'golden/insightface/lmk_nano.onnx', { 2, 3, 192, 192 }, 127.5)
end)

t.test('CenterFace, a trained detector, agrees with onnxruntime', function()
  twin('centerface', t.fetched 'tests/centerface.onnx', { 1, 3, 64, 96 }, 127.5)
end)

-- ---- files from exporters ----------------------------------------------------------------------------------

local function open(model, options)
  scratch.write('m.onnx', type(model) == 'string' and model or format.model(model))
  return cr.onnx.open(scratch.path 'm.onnx', options)
end

local function flat(x) return table.concat(x:reshape(-1):tolist(), ' ') end

--- A convolution by 1, plus a constant, in a file with wrong shapes.
local function simple()
  return {
    ir = 3,
    inputs = { { 'in (8, 8)', { 10, 3, 32, 32 } }, { 'w', { 1, 1, 1, 1 } }, { 'unused.count', {}, type = format.INT64 } },
    outputs = { { 'out', { 7, 7 } } },
    tensors = { { { 1, 1, 1, 1 }, { 2 }, name = 'w' }, { {}, { 3 }, name = 'unused.count', type = format.INT64 } },
    nodes = { { 'Constant', {}, { 'k' }, { value = { tensor = { {}, { 0.5 } } } } }, { 'Identity', { 'k' }, { 'k2' } },
      { 'Conv', { 'in (8, 8)', 'w' }, { 'c' } }, { 'Add', { 'c', 'k2' }, { 'out' } } },
  }
end

t.test('declared shapes are not trusted, constants may be listed as inputs, other sizes get other plans', function()
  local net = open(simple())
  t.equal(#net.inputs, 1, 'inputs')
  t.equal(net.inputs[1].name, 'in (8, 8)', 'name')
  cr.scope(function()
    t.equal(flat(net:run(cr.tensor({ 1, 2 }, { shape = { 1, 1, 1, 2 } }))), '2.5 4.5', 'wide')
    t.equal(flat(net:run { ['in (8, 8)'] = cr.tensor({ 1, 2, 3 }, { shape = { 1, 1, 3, 1 } }) }), '2.5 4.5 6.5', 'high')
    t.equal(flat(net:run(cr.tensor({ 1, 2 }, { shape = { 2, 1, 1, 1 } }))), '2.5 4.5', 'a batch')
    for n = 1, 20 do
      t.equal(net:run(cr.ones(1, 1, 1, n)):numel(), n, 'width')
    end
  end)
  t.ok(#net.order <= 8, 'plans are forgotten')
  net:free()
  net:free()
  t.raises(function() net:run(cr.ones(1, 1, 1, 1)) end, 'm%.onnx: this network was freed')
end)

t.test("one-dimensional slopes apply to channels, alone and after a convolution", function()
  local function run(nodes)
    local net = open { inputs = { { 'x', { 1, 2, 1, 3 } } }, outputs = { { 'y' } }, nodes = nodes,
      tensors = { { { 2 }, { 0.5, 2 }, name = 's' }, { { 2, 1, 1, 1 }, { 1, 1 }, name = 'w' } } }
    local x = cr.tensor({ -1, 2, -3, -1, 2, -3 }, { shape = { 1, 2, 1, 3 } })
    local text = cr.scope(function() return flat(net:run(x)) end)
    x:free()
    net:free()
    return text
  end
  local want = '-0.5 2 -1.5 -2 2 -6'
  t.equal(run { { 'PRelu', { 'x', 's' }, { 'y' } } }, want, 'alone')
  t.equal(run { { 'Conv', { 'x', 'w' }, { 'c' }, { group = 2 } }, { 'PRelu', { 'c', 's' }, { 'y' } } }, want, 'folded')
end)

t.test('half-precision weights and inputs, single-precision results; a separate number of threads', function()
  local before = cr.threads()
  local net = open(simple(), { dtype = 'f16', threads = 1 })
  cr.scope(function()
    local y = net:run(cr.tensor({ 1, 2 }, { shape = { 1, 1, 1, 2 } }))
    t.equal(y.dtype .. ' ' .. flat(y), 'f32 2.5 4.5', 'result')
  end)
  net:free()
  t.equal(cr.threads(), before, 'threads')
end)

t.test('unsupported models give one sentence', function()
  local function refused(change, pattern, input)
    local model = simple()
    change(model)
    local net
    t.raises(function()
      net = open(model)
      net:run(input or cr.ones(1, 1, 2, 2))
    end, 'm%.onnx: .*' .. pattern .. '$')
    if net then net:free() end
  end
  refused(function(m) m.nodes[3][1] = 'Einsum' end, "the operator Einsum of node 2 'c' %(Einsum%), operator set 13, is not handled")
  refused(function(m)
    m.nodes[3][1], m.nodes[3].name, m.nodes[4][1] = 'LSTM', 'rnn 1', 'If'
  end, "the operator LSTM of node 2 'rnn 1' %(LSTM%), operator set 13, is not handled, and 1 more nodes are not handled")
  refused(function(m) m.nodes[3][1] = 'Sum\n' end, "the operator Sum\\n of node 2 'c' %(Sum\\n%), operator set 13, is not handled")
  refused(function(m) m.nodes[4].domain = 'com.microsoft' end, 'the operator com%.microsoft%.Add of node 3 .* is not handled')
  refused(function(m) m.opset = 6 end, 'operator set 6 is not handled: 7 to 25 are handled')
  refused(function(m) m.nodes[3][2][1] = 'other' end, "node 2 'c' %(Conv%) uses 'other', which nothing before it produces")
  refused(function(m) m.nodes[4][3][1] = 'c' end, "node 3 'c' %(Add%) produces 'c' a second time")
  refused(function(m) m.outputs[1][1] = 'nowhere' end, "nothing produces the output 'nowhere'")
  refused(function(m) m.nodes[3][4] = { group = 2 } end, "node 2 'c' %(Conv%): conv2d: .*")
  refused(function(m) m.nodes[3][4] = { strides = { 0, 1 } } end, "node 2 'c' %(Conv%): strides holds 0")
  refused(function(m) m.nodes[3][4] = { pads = { 1, 1 } } end, 'pads has 2 numbers for 2 dimensions')
  refused(function(m) m.nodes[3][4] = { pads = { 2 ^ 40, 0, 0, 0 } } end, 'is too large for these inputs')
  refused(function(m) m.nodes[3][4] = { auto_pad = 7 } end, 'attribute auto_pad is number, not a string')
  refused(function(m) m.inputs[1].type = format.STRING end, "input 'in %(8, 8%)' is string, which is not handled")
  refused(function() end, 'but a picture has at least 3', cr.ones(2, 2))
  refused(function() end, "input 'in %(8, 8%)' is f32, and a tensor of i64 was given", cr.ones({ 1, 1, 2, 2 }, { dtype = 'i64' }))
  refused(function() end, "input 'in %(8, 8%)' is missing: the inputs are 'in %(8, 8%)'", {})
  refused(function() end, "there is no input 'x': the inputs are 'in %(8, 8%)'", { x = cr.ones(1), ['in (8, 8)'] = cr.ones(1, 1, 2, 2) })
  -- A shape that depends on the input's values.
  refused(function(m)
    m.nodes[4] = { 'Reshape', { 'c', 's' }, { 'out' } }
    table.insert(m.nodes, 4, { 'Cast', { 'in (8, 8)' }, { 's' }, { to = 7 } })
  end, "must be known before the run, but the graph computes it", cr.ones(1, 1, 80, 80))
  t.raises(function() cr.onnx.open(scratch.path 'nowhere.onnx') end, 'nowhere%.onnx: No such file')
  cr.save(scratch.path 'x.npy', cr.ones(2))
  t.raises(function() cr.onnx.open(scratch.path 'x.npy') end, 'x%.npy: this is not an ONNX file, but npy')
  t.raises(function() cr.onnx.open(scratch.path 'x.npy', { dtyp = 'f16' }) end, "there is no option 'dtyp'")
end)

t.test('a small file cannot allocate huge memory', function()
  local function bomb(nodes, tensors)
    local net = open { inputs = { { 'x', { 1, 1024 } } }, outputs = { { 'y' } }, nodes = nodes, tensors = tensors or {} }
    local before = cr.memory().count
    t.raises(function() net:run(cr.ones(1, 1024)) end, 'too large for these inputs')
    net:free()
    collectgarbage()
    t.ok(cr.memory().count <= before, 'nothing is left behind')
  end
  local grow = {}
  for i = 1, 40 do
    local from = i == 1 and 'x' or 'v' .. i - 1
    grow[i] = { 'Concat', { from, from }, { i == 40 and 'y' or 'v' .. i }, { axis = 0 } }
  end
  bomb(grow)
  bomb({
    { 'Transpose', { 'x' }, { 'a' } }, { 'Concat', { 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a' }, { 'b' }, { axis = 0 } },
    { 'Transpose', { 'b' }, { 'c' } }, { 'Mul', { 'b', 'c' }, { 'd' } }, { 'Unsqueeze', { 'd', 'k' }, { 'e' } },
    { 'Transpose', { 'e' }, { 'f' } }, { 'Unsqueeze', { 'b', 'k' }, { 'g' } }, { 'Mul', { 'f', 'g' }, { 'y' } },
  }, { { { 1 }, { 2 }, name = 'k', type = format.INT64 } })
  local k = { { 1 }, { 2 ^ 30 }, name = 'k', type = format.INT64 }
  bomb({ { 'ConstantOfShape', { 'k' }, { 'y' } } }, { k })
  bomb({ { 'Expand', { 'x', 'e' }, { 'y' } } }, { { { 3 }, { 2 ^ 20, 1, 1024 }, name = 'e', type = format.INT64 } })
  bomb({ { 'Tile', { 'x', 'e' }, { 'y' } } }, { { { 2 }, { 2 ^ 20, 2 ^ 20 }, name = 'e', type = format.INT64 } })
  bomb({ { 'Pad', { 'x', 'e' }, { 'y' } } }, { { { 4 }, { 0, 0, 2 ^ 40, 5 }, name = 'e', type = format.INT64 } })
end)

-- ---- damage ------------------------------------------------------------------------------------------------

--- Opens damaged bytes and, if that works, runs them; refusals must be one sentence.
local function survive(bytes)
  local ok, err = pcall(open, bytes)
  if ok then
    local net = err
    ok, err = pcall(function()
      cr.scope(function()
        local inputs = {}
        for _, v in ipairs(net.inputs) do inputs[v.name] = cr.full({ 1, 2, 6, 6 }, 0.5) end
        net:run(inputs)
      end)
    end)
    net:free()
  end
  if ok then return true end
  return false, type(err) ~= 'string' and type(err) or (not err:find('m.onnx: ', 1, true) or err:find '\n') and err or nil
end

t.test('a truncated or randomly changed model is refused in one sentence, or runs', function()
  local whole = format.model {
    inputs = { { 'x', { 1, 2, 6, 6 } } }, outputs = { { 'y' }, { 'z' } },
    tensors = { { { 2, 2, 3, 3 }, {}, name = 'w', raw = ('\0\0\0\63'):rep(36) }, { { 2 }, { 1, 0.5 }, name = 'b' },
      { { 4 }, { 1, 2, 12, 3 }, name = 's', type = format.INT64 }, { { 2, 1, 1 }, { 0.25, 0.5 }, name = 'p' },
      { { 8 }, { 0, 0, 1, 1, 0, 0, 1, 1 }, name = 'pads', type = format.INT64, typed = true } },
    nodes = {
      { 'Conv', { 'x', 'w', 'b' }, { 'c' }, { pads = { 1, 1, 1, 1 }, strides = { 1, 1 }, group = 1 } },
      { 'PRelu', { 'c', 'p' }, { 'd' } }, { 'Add', { 'd', 'x' }, { 'e' } }, { 'Relu', { 'e' }, { 'f' } },
      { 'Pad', { 'f', 'pads' }, { 'g' }, { mode = 'reflect' } },
      { 'MaxPool', { 'g' }, { 'h' }, { kernel_shape = { 3, 3 }, ceil_mode = 1 } },
      { 'ConvTranspose', { 'h', 'w' }, { 'i' }, { strides = { 2, 2 }, output_padding = { 1, 1 } } },
      { 'AveragePool', { 'i' }, { 'j' }, { kernel_shape = { 2, 2 }, strides = { 2, 2 }, pads = { 1, 1, 0, 0 } } },
      { 'Transpose', { 'f' }, { 'k' }, { perm = { 0, 2, 3, 1 } } },
      { 'Reshape', { 'k', 's' }, { 'y' } }, { 'Softmax', { 'j' }, { 'z' }, { axis = 1 } },
    },
  }
  local fine, problem = survive(whole)
  t.ok(fine, 'the whole file runs: ' .. tostring(problem))
  local bad, ran
  for n = 0, #whole - 1, 1 do
    local ok, wrong = survive(whole:sub(1, n))
    if ok then ran = n end
    bad = bad or wrong
  end
  t.ok(not ran, ('a file cut at byte %s was taken for whole'):format(tostring(ran)))
  math.randomseed(1247)
  local refused, taken = 0, 0
  for _ = 1, TRIES do
    local changed = whole
    for _ = 1, math.random(1, 3) do
      local at, kind = math.random(1, #whole), math.random(1, 4)
      local byte = kind == 1 and 255 or kind == 2 and 0 or kind == 3 and math.random(0, 255) or (whole:byte(at) + 1) % 256
      changed = changed:sub(1, at - 1) .. string.char(byte) .. changed:sub(at + 1)
    end
    local ok, wrong = survive(changed)
    if ok then taken = taken + 1 else refused = refused + 1 end
    bad = bad or wrong
  end
  t.ok(not bad, tostring(bad))
  t.ok(refused > 0 and taken > 0, ('%d refused, %d taken'):format(refused, taken))
end)

t.done()
