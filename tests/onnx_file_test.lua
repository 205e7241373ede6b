--- ONNX files as weights files: data encodings, external data, the graph as metadata, damage.

local cr = require 'cr'
local onnx = require 'tests.support.onnx'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local path = scratch.path 'm.onnx'

local function open(model)
  scratch.write('m.onnx', type(model) == 'string' and model or onnx.model(model))
  return weights.open(path)
end

--- A model that contains only these tensors.
local function holding(...)
  return { tensors = { ... }, outputs = { { 'y' } }, nodes = { { 'Relu', { 'x' }, { 'y' } } }, inputs = { { 'x' } } }
end

local function numbers(file, name)
  return cr.scope(function()
    local x = file:get(name)
    local list = x:reshape(-1):tolist()
    return ('%s %s: %s'):format(x.dtype, table.concat(x.shape, ' '), table.concat(list, ' '))
  end)
end

t.test('data as raw bytes, packed and unpacked fields', function()
  local file = open(holding(
    { { 2, 2 }, { 1, -2, 0.5, 4 }, name = 'raw' },
    { { 3 }, { 1, -2, 0.5 }, name = 'floats', typed = true },
    { { 2, 1 }, { -5, 2 ^ 40 }, name = 'i64', type = onnx.INT64, typed = true },
    { { 3 }, { -5, 7, 300 }, name = 'i32', type = onnx.INT32, typed = true },
    { { 2 }, { 1, 0 }, name = 'bool', type = onnx.BOOL, typed = true },
    { { 2 }, { 200, 3 }, name = 'u8', type = onnx.UINT8, typed = true },
    { {}, { 2.5 }, name = 'scalar' },
    { { 0 }, {}, name = 'empty' }))
  t.equal(file.format, 'onnx', 'format')
  t.equal(numbers(file, 'raw'), 'f32 2 2: 1 -2 0.5 4', 'raw')
  t.equal(numbers(file, 'floats'), 'f32 3: 1 -2 0.5', 'floats')
  t.equal(numbers(file, 'i64'), 'i64 2 1: -5 1099511627776', 'i64')
  t.equal(numbers(file, 'i32'), 'i32 3: -5 7 300', 'i32')
  t.equal(numbers(file, 'bool'), 'bool 2: 1 0', 'bool')
  t.equal(numbers(file, 'u8'), 'u8 2: 200 3', 'u8')
  t.equal(numbers(file, 'scalar'), 'f32 : 2.5', 'scalar')
  t.equal(numbers(file, 'empty'), 'f32 0: ', 'empty')
  file:close()
end)

t.test('the graph is the metadata', function()
  local file = open {
    inputs = { { 'a b (1, 2)', { 1, 'N', 3 } } }, outputs = { { 'y', {}, type = onnx.INT64 } },
    nodes = { { 'Op', { 'a b (1, 2)', '' }, { 'y' }, {
      i = -3, s = 'text', ints = { 1, -1 }, f = { float = 0.5 }, floats = { floats = { 1, 1 / 0 } },
      tensor = { tensor = { { 2 }, { 1, 2 } } },
    }, name = 'the "node"', domain = 'own' } },
  }
  local m = file.metadata
  t.equal(m.opsets[''], 13, 'opset')
  t.equal(m.inputs[1].name .. m.inputs[1].shape[2], 'a b (1, 2)N', 'input')
  t.equal(m.outputs[1].type, onnx.INT64, 'type of the output')
  local n = m.nodes[1]
  t.equal(n.op .. ' ' .. n.name .. ' ' .. n.domain .. ' ' .. #n.inputs, 'Op the "node" own 2', 'node')
  local held = {}
  for _, a in ipairs(n.attributes) do held[a.name] = a end
  t.equal(held.i.i .. held.s.s .. held.ints.ints[2] .. held.f.f .. held.floats.floats[2], '-3text-10.5inf', 'attributes')
  t.equal(numbers(file, held.tensor.t), 'f32 2: 1 2', "an attribute's tensor")
  file:close()
end)

t.test("external data must be in the file's folder", function()
  local function external(place) return holding({ { 2 }, {}, name = 'e', more = onnx.external(place) }) end
  scratch.write('data.bin', scratch.floats(9, 1.5, -2, 8))
  local file = open(external { location = 'data.bin', offset = 4, length = 8 })
  t.equal(numbers(file, 'e'), 'f32 2: 1.5 -2', 'offset and length')
  file:close()
  file = open(external { location = 'data.bin', offset = 8 })
  t.equal(numbers(file, 'e'), 'f32 2: -2 8', 'without a length')
  file:close()
  for _, case in ipairs {
    { { location = '../data.bin' }, 'is outside its folder, which is not allowed' },
    { { location = 'sub/../../data.bin' }, 'is outside its folder, which is not allowed' },
    { { location = '/etc/passwd' }, 'is outside its folder, which is not allowed' },
    { { location = 'link.bin' }, 'leads outside its folder, which is not allowed' },
    { { location = 'missing.bin' }, 'external data missing.bin cannot be opened' },
    { { location = 'data.bin', offset = 12 }, 'reaches past the end of its external data data.bin' },
    { { location = 'data.bin', offset = 99 }, 'reaches past the end of its external data data.bin' },
    { { location = 'data.bin', length = 4 }, 'tensor e has 4 bytes, but its shape needs 8' },
    { { location = 'data.bin', offset = '-1' }, 'the location of external data cannot be read' },
    { { location = 'data.bin', offset = '99999999999999999999' }, 'the location of external data cannot be read' },
    { {}, 'external data has no location' },
  } do
    os.execute(("ln -sf /etc/passwd '%s'"):format(scratch.path 'link.bin'))
    t.raises(function() open(external(case[1])) end, 'm%.onnx: .*' .. case[2])
  end
end)

t.test('damage and unsupported data are reported', function()
  local function refused(model, pattern) t.raises(function() open(model) end, 'm%.onnx: .*' .. pattern) end
  refused(holding({ { 3 }, { 1, 2 }, name = 'a' }), 'tensor a has 8 bytes, but its shape needs 12')
  refused(holding({ { 3 }, { 1, 2 }, name = 'a', typed = true }), 'tensor a has 8 bytes, but its shape needs 12')
  refused(holding({ { -1 }, {}, name = 'a' }), 'tensor a')
  refused(holding({ { 2 ^ 40, 2 ^ 40 }, {}, name = 'a' }), 'tensor a')
  refused(holding({ { 1 }, { 1 }, name = 'a' }, { { 1 }, { 1 }, name = 'a' }), 'two tensors are named a')
  refused(onnx.int(1, 8) .. onnx.bytes(2, 'producer'), 'it has no graph')
  refused(onnx.int(1, 8) .. onnx.bytes(2, 'producer') .. onnx.bytes(7, '') .. onnx.bytes(7, ''), 'it has two graphs')
  refused(onnx.int(1, 8) .. onnx.bytes(2, 'producer') .. onnx.bytes(7, ''), 'it has no operator set')
  refused(onnx.model(holding()):sub(1, -2), 'truncated')
  local file = open(holding({ { 1 }, {}, name = 's', type = onnx.STRING, raw = '' }, { { 1 }, {}, name = 'q', type = 22, raw = '' }))
  t.raises(function() file:get 's' end, 'tensor s has data type string, which is not handled')
  t.raises(function() file:get 'q' end, 'tensor q has data type 22, which is not handled')
  file:close()
end)

t.done()
