--- Composes small TFLite files for tests: `flatbuffer.graph(spec)` returns the bytes.
--
-- spec.tensors: {shape, data = numbers | nil, dtype = 'f32'|'f16'|'i32', raw = bytes | nil}; spec.nodes: {code,
-- inputs, outputs (tensor numbers from 0), options = {field id = {kind, value}}}; spec.inputs, spec.outputs: tensor
-- numbers. A parent is written before its children, because offsets are unsigned; its offset fields are filled in
-- when the children are written.

local ffi = require 'ffi'
local bit = require 'bit'

local flatbuffer = {}

local function u8(v) return string.char(v % 256) end
local function u16(v) return string.char(v % 256, math.floor(v / 256) % 256) end
local function u32(v)
  v = v % 4294967296
  return u16(v % 65536) .. u16(math.floor(v / 65536))
end

local SIZES = { i8 = 1, i32 = 4, child = 4 }

local writer = {}
writer.__index = writer

function writer:put(bytes)
  self.parts[#self.parts + 1] = bytes
  self.size = self.size + #bytes
end

--- Remembers an object's offset field at `slot`, which is filled in when its child is written.
function writer:patch(slot) self.patches[slot] = u32(self.size - slot) end

local write

--- fields: {[id] = {kind, value}}; a child's value is another object.
local function write_table(w, fields)
  local ids = 0
  for id in pairs(fields) do ids = math.max(ids, id + 1) end
  local at, offset = {}, 4
  for _, size in ipairs { 4, 1 } do
    for id = 0, ids - 1 do
      local f = fields[id]
      if f and SIZES[f[1]] == size then at[id], offset = offset, offset + size end
    end
  end
  local vtable = { u16(4 + 2 * ids), u16(offset) }
  for id = 0, ids - 1 do vtable[#vtable + 1] = u16(at[id] or 0) end
  local start = w.size
  w:put(table.concat(vtable))
  return start, at, offset
end

function write(w, object)
  while w.size % 4 ~= 0 do w:put '\0' end
  if object.vector then
    if object.slot then w:patch(object.slot) end
    w:put(u32(object.count) .. object.vector)
  elseif object.list then
    if object.slot then w:patch(object.slot) end
    w:put(u32(#object.list))
    local first = w.size
    for _ = 1, #object.list do w:put '\0\0\0\0' end
    for i, child in ipairs(object.list) do
      child.slot = first + 4 * (i - 1)
      write(w, child)
    end
  else
    local vtable, at, size = write_table(w, object.fields)
    while w.size % 4 ~= 0 do w:put '\0' end
    if object.slot then w:patch(object.slot) end
    local start = w.size
    local bytes, children = { u32(start - vtable) }, {}
    local used = 4
    local order = {}
    for id, offset in pairs(at) do order[#order + 1] = { offset, id } end
    table.sort(order, function(a, b) return a[1] < b[1] end)
    for _, o in ipairs(order) do
      local f = object.fields[o[2]]
      if f[1] == 'child' then
        children[#children + 1] = f[2]
        f[2].slot = start + o[1]
        bytes[#bytes + 1] = '\0\0\0\0'
      else
        bytes[#bytes + 1] = f[1] == 'i8' and u8(f[2]) or u32(f[2])
      end
      used = used + SIZES[f[1]]
    end
    assert(used == size)
    w:put(table.concat(bytes))
    for _, child in ipairs(children) do write(w, child) end
  end
end

local function ints(list)
  local out = {}
  for i, v in ipairs(list) do out[i] = u32(v) end
  return { vector = table.concat(out), count = #list }
end

local function text(s) return { vector = s .. '\0', count = #s } end

local function elements(data, dtype)
  if dtype == 'i32' then return ints(data).vector end
  if dtype == 'f32' then
    return ffi.string(ffi.new('float[?]', #data, data), 4 * #data)
  end
  local out = {}
  local f = ffi.new 'union { float f; uint32_t u; }'
  for i, v in ipairs(data) do
    -- Only for numbers that float16 represents exactly.
    f.f = v
    local u = f.u
    local e = bit.band(bit.rshift(u, 23), 255)
    local h = e == 0 and 0 or bit.bor(bit.lshift(e - 112, 10), bit.band(bit.rshift(u, 13), 1023))
    out[i] = u16(bit.bor(bit.lshift(bit.rshift(u, 31), 15), h))
  end
  return table.concat(out)
end

local TYPES = { f32 = 0, f16 = 1, i32 = 2, u8 = 3 }

--- The bytes of a TFLite file.
function flatbuffer.graph(spec)
  local buffers = { { fields = {} } }
  local tensors, operators, codes = {}, {}, {}
  for i, t in ipairs(spec.tensors) do
    local dtype, buffer = t.dtype or 'f32', 0
    if t.data or t.raw then
      local bytes = t.raw or elements(t.data, dtype)
      buffer = #buffers
      buffers[#buffers + 1] = { fields = { [0] = { 'child', { vector = bytes, count = #bytes } } } }
    end
    tensors[i] = { fields = { [0] = { 'child', ints(t.shape) }, [1] = { 'i8', TYPES[dtype] },
      [2] = { 'i32', buffer }, [3] = { 'child', text('t' .. i - 1) } } }
  end
  for i, n in ipairs(spec.nodes) do
    codes[i] = { fields = { [0] = { 'i8', n.code }, [3] = { 'i32', n.code } } }
    local fields = { [0] = { 'i32', i - 1 }, [1] = { 'child', ints(n.inputs) },
      [2] = { 'child', ints(n.outputs) } }
    if n.options then
      fields[3] = { 'i8', 1 }
      fields[4] = { 'child', { fields = n.options } }
    end
    operators[i] = { fields = fields }
  end
  local sub = { fields = { [0] = { 'child', { list = tensors } }, [1] = { 'child', ints(spec.inputs) },
    [2] = { 'child', ints(spec.outputs) }, [3] = { 'child', { list = operators } } } }
  local model = { slot = 0, fields = { [0] = { 'i32', 3 }, [1] = { 'child', { list = codes } },
    [2] = { 'child', { list = { sub } } }, [4] = { 'child', { list = buffers } } } }
  local w = setmetatable({ parts = {}, size = 0, patches = {} }, writer)
  w:put '\0\0\0\0TFL3'
  write(w, model)
  local data = table.concat(w.parts)
  local out = ffi.new('char[?]', #data)
  ffi.copy(out, data, #data)
  for slot, bytes in pairs(w.patches) do ffi.copy(out + slot, bytes, 4) end
  return ffi.string(out, #data)
end

return flatbuffer
