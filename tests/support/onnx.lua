--- Composes ONNX files for tests, byte by byte: model { nodes = ..., inputs = ..., ... } returns a file's bytes.

local ffi = require 'ffi'

local M = {}

--- An integer as a Protocol Buffers varint; negative ones take ten bytes.
local function varint(n)
  local v = ffi.cast('uint64_t', ffi.cast('int64_t', n))
  local out = {}
  repeat
    local byte = tonumber(v % 128)
    v = v / 128
    out[#out + 1] = string.char(v > 0 and byte + 128 or byte)
  until v == 0
  return table.concat(out)
end

local function float(x) return ffi.string(ffi.new('float[1]', x), 4) end

--- Fields of a message: number and wire type, then the value.
local function int(number, value) return varint(number * 8) .. varint(value) end
local function bytes(number, value) return varint(number * 8 + 2) .. varint(#value) .. value end
M.int, M.bytes, M.varint, M.float = int, bytes, varint, float

M.FLOAT, M.UINT8, M.INT32, M.INT64, M.STRING, M.BOOL = 1, 2, 6, 7, 8, 9

local C_TYPES = { [M.FLOAT] = 'float', [M.UINT8] = 'uint8_t', [M.INT32] = 'int32_t', [M.INT64] = 'int64_t', [M.BOOL] = 'uint8_t' }

--- A TensorProto: {shape, data, type = FLOAT, name = ..., raw = bytes; typed = true: numbers one by one; more = other fields}.
function M.tensor(t)
  local parts, kind = {}, t.type or M.FLOAT
  for _, size in ipairs(t[1]) do parts[#parts + 1] = int(1, size) end
  parts[#parts + 1] = int(2, kind)
  if t.typed and kind == M.FLOAT then
    for _, v in ipairs(t[2]) do parts[#parts + 1] = varint(4 * 8 + 5) .. float(v) end
  elseif t.typed then
    local packed = {}
    for i, v in ipairs(t[2]) do packed[i] = varint(v) end
    parts[#parts + 1] = bytes(kind == M.INT64 and 7 or 5, table.concat(packed))
  elseif not t.more then
    local n = #t[2]
    parts[#parts + 1] = bytes(9, t.raw or ffi.string(ffi.new(C_TYPES[kind] .. '[?]', n, t[2]), n * ffi.sizeof(C_TYPES[kind])))
  end
  parts[#parts + 1] = bytes(8, t.name or '') .. (t.more or '')
  return table.concat(parts)
end

--- The location of a tensor's data in another file, for the field `more` of a tensor.
function M.external(place)
  local parts = { int(14, 1) }
  for _, key in ipairs { 'location', 'offset', 'length' } do
    if place[key] then parts[#parts + 1] = bytes(13, bytes(1, key) .. bytes(2, tostring(place[key]))) end
  end
  return table.concat(parts)
end

local function attribute(name, v)
  local out = bytes(1, name)
  if type(v) == 'string' then return out .. bytes(4, v) .. int(20, 3) end
  if type(v) == 'number' then return out .. int(3, v) .. int(20, 2) end
  if v.float then return out .. varint(2 * 8 + 5) .. float(v.float) .. int(20, 1) end
  if v.graph then return out .. bytes(6, v.graph) .. int(20, 5) end
  if v.tensor then return out .. bytes(5, M.tensor(v.tensor)) .. int(20, 4) end
  local floats = {}
  for i, x in ipairs(v.floats or {}) do floats[i] = float(x) end
  if v.floats then return out .. bytes(7, table.concat(floats)) .. int(20, 6) end
  for _, x in ipairs(v) do out = out .. int(8, x) end
  return out .. int(20, 7)
end

local function node(n)
  local parts = {}
  for _, name in ipairs(n.inputs or n[2]) do parts[#parts + 1] = bytes(1, name) end
  for _, name in ipairs(n.outputs or n[3]) do parts[#parts + 1] = bytes(2, name) end
  parts[#parts + 1] = bytes(3, n.name or '') .. bytes(4, n.op or n[1])
  local names = {}
  for name in pairs(n.attributes or n[4] or {}) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do parts[#parts + 1] = bytes(5, attribute(name, (n.attributes or n[4])[name])) end
  return table.concat(parts) .. (n.domain and bytes(7, n.domain) or '')
end

local function value(v)
  local dims = {}
  for i, size in ipairs(v[2] or {}) do
    dims[i] = bytes(1, type(size) == 'string' and bytes(2, size) or int(1, size))
  end
  return bytes(1, v[1]) .. bytes(2, bytes(1, int(1, v.type or M.FLOAT) .. bytes(2, table.concat(dims))))
end

--- A model: nodes {op, inputs, outputs, attributes, name=}, inputs and outputs {name, shape, type=}, tensors (as
--- M.tensor's, with names), opset = 13.
function M.model(m)
  local graph = {}
  for _, n in ipairs(m.nodes) do graph[#graph + 1] = bytes(1, node(n)) end
  graph[#graph + 1] = bytes(2, 'test')
  for _, t in ipairs(m.tensors or {}) do graph[#graph + 1] = bytes(5, M.tensor(t)) end
  for _, v in ipairs(m.inputs or {}) do graph[#graph + 1] = bytes(11, value(v)) end
  for _, v in ipairs(m.outputs) do graph[#graph + 1] = bytes(12, value(v)) end
  return int(1, m.ir or 8) .. bytes(2, 'test') .. bytes(7, table.concat(graph)) .. bytes(8, bytes(1, '') .. int(2, m.opset or 13))
end

return M
