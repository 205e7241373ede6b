--- Reads an ONNX file as a graph of values and nodes, assembled and checked from what cr.weights reads.
--
-- Invariants: each value is produced once, by an input, a constant or a node before its first user. Every node has a
-- row in cr.graphs.onnx.rows or is listed in `missing`. Shapes that the file declares are shown but never trusted.

local base = require 'cr.ffi'
local rows = require 'cr.graphs.onnx.rows'
local weights = require 'cr.weights'

local file = {}

-- The dtype that a graph's input must have; the index is the number of TensorProto's DataType.
local TYPES = { 'f32', 'u8', 'i8', 'i32', 'i16', 'i32', 'i64', 'string', 'bool', 'f16', 'f64', 'i64', 'i64', 'complex64', 'complex128',
  'bf16' }
file.TYPES = TYPES

file.OLDEST, file.NEWEST = 7, 25 -- operator sets

local function fail(path, format, ...) error(path .. ': ' .. format:format(...), 0) end

local FLOATS = { inf = math.huge, ['-inf'] = -math.huge, nan = 0 / 0 }
local function float(v) return FLOATS[v] or v end

--- Returns the value of an attribute: a number, a string, a list, {tensor = name} or {graph = true}.
local function value_of(a)
  local kind = a.type or (a.t and 4) or (a.ints and 7) or (a.floats and 6) or (a.strings and 8) or (a.s and 3) or (a.i and 2) or 1
  if kind == 1 then return float(a.f) or 0 end
  if kind == 2 then return a.i or 0 end
  if kind == 3 then return a.s or '' end
  if kind == 4 then return { tensor = a.t } end
  if kind == 6 then
    local list = {}
    for i, v in ipairs(a.floats or {}) do list[i] = float(v) end
    return list
  end
  if kind == 7 then return a.ints or {} end
  if kind == 8 then return a.strings or {} end
  return { graph = true }
end

local function described(values)
  local list = {}
  for i, v in ipairs(values) do
    local shape
    for k, size in ipairs(v.shape or {}) do
      shape = shape or {}
      shape[k] = type(size) == 'userdata' and '?' or size
    end
    list[i] = { name = v.name, dtype = TYPES[v.type] or 'other', shape = shape or (v.shape and {}) or nil }
  end
  return list
end

-- Names a node in messages: 'Conv "conv 1"'.
local function node_name(i, n)
  local name = n.name ~= '' and n.name or n.outputs[1] or ''
  return ("node %d '%s' (%s)"):format(i - 1, base.printable(name), base.printable(n.op))
end

--- Reads a file: {path, opset, producer, inputs and outputs {name, dtype, shape}, values by name, nodes, missing}.
--- @param path string
--- @return table graph
--- @return WeightsFile file that holds the constants
function file.read(path)
  local held = weights.open(path)
  if held.format ~= 'onnx' then
    held:close()
    fail(path, 'this is not an ONNX file, but %s', held.format)
  end
  local m = held.metadata
  local g = { path = path, producer = m.producer, ir_version = m.ir_version, opset = m.opsets[''] or m.opsets['ai.onnx'] or 0,
    values = {}, nodes = {}, missing = {}, inputs = {}, results = {} }
  local function once(name, what)
    if g.values[name] then fail(path, "damaged ONNX file: %s produces '%s' a second time", what, base.printable(name)) end
    g.values[name] = { name = name }
    return g.values[name]
  end
  local function constant(v, entry)
    v.load = function() return held:get(entry) end
    v.shape = held:info(entry).shape
  end
  for _, name in ipairs(held.names) do
    if name:sub(1, 1) ~= '@' then constant(once(name, 'a constant'), name) end
  end
  local shown = {}
  for _, v in ipairs(m.inputs) do
    if not g.values[v.name] then -- older files list their constants among the inputs
      shown[#shown + 1] = v
      g.inputs[#g.inputs + 1] = once(v.name, 'an input')
    end
  end
  g.inputs_shown, g.outputs_shown = described(shown), described(m.outputs)
  for i, n in ipairs(m.nodes) do
    local what = node_name(i, n)
    local node = { op = n.op, what = what, opset = g.opset, attributes = {}, inputs = {}, outputs = {} }
    for _, a in ipairs(n.attributes) do node.attributes[a.name] = value_of(a) end
    for k, name in ipairs(n.inputs) do
      node.inputs[k] = name ~= '' and g.values[name] or false
      if name ~= '' and not g.values[name] then
        fail(path, "damaged ONNX file: %s uses '%s', which nothing before it produces", what, base.printable(name))
      end
    end
    for k, name in ipairs(n.outputs) do node.outputs[k] = name ~= '' and once(name, what) or false end
    local own = n.domain == '' or n.domain == 'ai.onnx'
    node.row = own and rows[n.op] or {}
    local tensor = node.attributes.value
    if own and n.op == 'Constant' and type(tensor) == 'table' and tensor.tensor and #node.outputs == 1 and node.outputs[1] then
      constant(node.outputs[1], tensor.tensor)
    elseif own and n.op == 'Identity' and node.inputs[1] and node.inputs[1].load and node.outputs[1] then
      node.outputs[1].load, node.outputs[1].shape = node.inputs[1].load, node.inputs[1].shape
    else
      if not node.row.make then
        local name = own and n.op or n.domain .. '.' .. n.op
        g.missing[#g.missing + 1] = { op = name, what = what }
      end
      g.nodes[#g.nodes + 1] = node
    end
    g.count = i
    g.operators = g.operators or {}
    g.operators[n.op] = (g.operators[n.op] or 0) + 1
  end
  for i, v in ipairs(m.outputs) do
    g.results[i] = g.values[v.name] or fail(path, "damaged ONNX file: nothing produces the output '%s'", base.printable(v.name))
  end
  if #g.results == 0 then fail(path, 'damaged ONNX file: the graph has no outputs') end
  function g.constant(name) return held:get(name) end
  return g, held
end

return file
