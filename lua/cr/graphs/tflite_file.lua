--- Reads a TFLite file as a checked graph: parses the FlatBuffer and infers the shapes of every operator.
--
-- Invariants:
--   * Every offset and length that comes from the file is checked against the file's size before it is followed. A damaged
--     file raises one sentence, and nothing of it is used.
--   * The inferred shape of every result must equal the one in the file, and each tensor is produced once, before its first
--     use, so a graph that is returned can run.
-- cr.graphs.tflite makes tensors of the graph and runs it.

local ffi = require 'ffi'
local bit = require 'bit'

local graph = {}

local MAX_BYTES = 2 ^ 28 -- of a file
local MAX_ELEMENTS = 2 ^ 26 -- of a tensor
local MAX_RANK = 6

-- ---- the FlatBuffer -------------------------------------------------------------------------

local reader = {}
reader.__index = reader

function reader:fail(format, ...)
  error(('%s: damaged TFLite file: ' .. format):format(self.path, ...), 0)
end

function reader:check(offset, bytes)
  if offset < 0 or bytes < 0 or offset + bytes > self.size then
    self:fail('%d bytes at %d lie outside its %d bytes', bytes, offset, self.size)
  end
end

function reader:u8(offset)
  self:check(offset, 1)
  return self.base[offset]
end

function reader:i8(offset)
  local v = self:u8(offset)
  return v < 128 and v or v - 256
end

function reader:u16(offset)
  self:check(offset, 2)
  return self.base[offset] + 256 * self.base[offset + 1]
end

function reader:u32(offset)
  self:check(offset, 4)
  local b = self.base
  return b[offset] + 256 * b[offset + 1] + 65536 * b[offset + 2] + 16777216 * b[offset + 3]
end

function reader:i32(offset)
  return bit.tobit(self:u32(offset))
end

--- Returns the table at `offset` with its position, vtable and sizes, after checking them.
function reader:table_at(offset)
  local vtable = offset - self:i32(offset)
  local vsize, tsize = self:u16(vtable), self:u16(vtable + 2)
  if vsize < 4 or vsize % 2 == 1 or tsize < 4 then
    self:fail('the table at %d has an invalid vtable', offset)
  end
  self:check(vtable, vsize)
  self:check(offset, tsize)
  return { offset = offset, vtable = vtable, vsize = vsize, tsize = tsize }
end

--- Returns the offset of field `id` (of `bytes` bytes), or nil if the table omits it.
function reader:field(t, id, bytes)
  local slot = 4 + 2 * id
  if slot + 2 > t.vsize then return nil end
  local at = self:u16(t.vtable + slot)
  if at == 0 then return nil end
  if at + bytes > t.tsize then self:fail('field %d of the table at %d overruns it', id, t.offset) end
  return t.offset + at
end

function reader:number(t, id, kind, bytes, default)
  local at = self:field(t, id, bytes)
  if not at then return default end
  return self[kind](self, at)
end

--- Returns the offset of the first element and the number of elements of a vector field, or nil and 0 if it is absent.
function reader:vector(t, id, bytes)
  local at = self:field(t, id, 4)
  if not at then return nil, 0 end
  local start = at + self:u32(at)
  local count = self:u32(start)
  self:check(start + 4, count * bytes)
  return start + 4, count
end

function reader:string(t, id)
  local at, n = self:vector(t, id, 1)
  if not at then return '' end
  -- Names appear in messages, so they are made printable and short.
  return (ffi.string(self.base + at, math.min(n, 80)):gsub('[^%g]', '?'))
end

function reader:tables(t, id)
  local at, n = self:vector(t, id, 4)
  local list = {}
  for i = 1, n do
    local p = at + 4 * (i - 1)
    list[i] = self:table_at(p + self:u32(p))
  end
  return list
end

function reader:ints(t, id)
  local at, n = self:vector(t, id, 4)
  if not at then return nil end
  local list = {}
  for i = 1, n do list[i] = self:i32(at + 4 * (i - 1)) end
  return list
end

-- ---- from the file's tables to a list of nodes ------------------------------------------------

local OPERATORS = {
  [0] = 'ADD', [2] = 'CONCATENATION', [3] = 'CONV_2D', [4] = 'DEPTHWISE_CONV_2D',
  [6] = 'DEQUANTIZE', [14] = 'LOGISTIC', [17] = 'MAX_POOL_2D', [19] = 'RELU', [21] = 'RELU6',
  [22] = 'RESHAPE', [23] = 'RESIZE_BILINEAR', [34] = 'PAD', [54] = 'PRELU',
}
local ACTIVATIONS = { [0] = 'none', [1] = 'relu', [3] = 'relu6' }
local TYPES = { [0] = 'f32', [1] = 'f16', [2] = 'i32' }
local TYPE_BYTES = { f32 = 4, f16 = 2, i32 = 4 }

local function numel(shape)
  local n = 1
  for _, s in ipairs(shape) do n = n * s end
  return n
end

local function same(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do if a[i] ~= b[i] then return false end end
  return true
end

local function show(shape) return '[' .. table.concat(shape, ' ') .. ']' end

local function read_tensor(r, t, index, buffers)
  local v = { index = index, name = r:string(t, 3), shape = r:ints(t, 0) or {} }
  local what = ('tensor %d (%s)'):format(index, v.name)
  if #v.shape > MAX_RANK then r:fail('%s has %d dimensions', what, #v.shape) end
  local n = 1
  for _, s in ipairs(v.shape) do
    n = n * s
    if s < 1 or n > MAX_ELEMENTS then r:fail('%s has the impossible shape %s', what, show(v.shape)) end
  end
  local kind = r:number(t, 1, 'i8', 1, 0)
  v.dtype = TYPES[kind]
  if not v.dtype then
    error(('%s: %s has type %d; only float32, float16 and int32 tensors are read')
      :format(r.path, what, kind), 0)
  end
  local buffer = r:number(t, 2, 'u32', 4, 0)
  local b = buffers[buffer + 1]
  if not b then r:fail('%s has the buffer %d of %d', what, buffer, #buffers) end
  local at, bytes = r:vector(b, 0, 1)
  if buffer > 0 and at and bytes > 0 then
    if bytes ~= n * TYPE_BYTES[v.dtype] then
      r:fail('%s %s of %s has %d bytes', what, show(v.shape), v.dtype, bytes)
    end
    v.at, v.bytes = at, bytes
  end
  return v
end

local function read_options(r, op, t)
  local at = r:field(t, 4, 4)
  -- An operator without options has the default of every option.
  local o = at and r:table_at(at + r:u32(at))
  local function int(id, default) return o and r:number(o, id, 'i32', 4, default) or default end
  local function byte(id) return o and r:number(o, id, 'i8', 1, 0) or 0 end
  local function act(id)
    local a = byte(id)
    if not ACTIVATIONS[a] then
      error(('%s: fused activation %d of %s is not handled'):format(r.path, a, op), 0)
    end
    return ACTIVATIONS[a]
  end
  local function window(stride, fused)
    return { valid = byte(0) == 1, stride_w = int(stride, 0), stride_h = int(stride + 1, 0),
      act = act(fused) }
  end
  local p = { act = 'none' }
  if op == 'CONV_2D' then
    p = window(1, 3)
    p.dilation_w, p.dilation_h = int(4, 1), int(5, 1)
  elseif op == 'DEPTHWISE_CONV_2D' then
    p = window(1, 4)
    p.dilation_w, p.dilation_h = int(5, 1), int(6, 1)
  elseif op == 'MAX_POOL_2D' then
    p = window(1, 5)
    p.kernel_w, p.kernel_h = int(3, 0), int(4, 0)
  elseif op == 'ADD' then
    p.act = act(0)
  elseif op == 'CONCATENATION' then
    p.axis, p.act = int(0, 0), act(1)
  elseif op == 'RESIZE_BILINEAR' then
    p.align_corners, p.half_pixel = byte(2) ~= 0, byte(3) ~= 0
  end
  return p
end

--- Reads the file's first subgraph: values, nodes, inputs and outputs; no tensors are made yet.
local function read_graph(r)
  if r.size < 8 or ffi.string(r.base + 4, 4) ~= 'TFL3' then
    error(('%s: not a TFLite file (no TFL3 mark)'):format(r.path), 0)
  end
  local model = r:table_at(r:u32(0))
  local codes = {}
  for i, t in ipairs(r:tables(model, 1)) do
    codes[i] = math.max(r:number(t, 0, 'i8', 1, 0), r:number(t, 3, 'i32', 4, 0))
  end
  local sub = r:tables(model, 2)[1]
  if not sub then r:fail('it holds no graph') end
  local buffers = r:tables(model, 4)
  local g = { values = {}, nodes = {} }
  for i, t in ipairs(r:tables(sub, 0)) do g.values[i - 1] = read_tensor(r, t, i - 1, buffers) end

  local function pick(list, what, optional)
    local out = {}
    for i, index in ipairs(list or {}) do
      local v = g.values[index]
      if not v and not (optional and index == -1) then
        r:fail('%s names the tensor %d of %d', what, index, #g.values + 1)
      end
      out[i] = v or false
    end
    return out
  end
  g.inputs = pick(r:ints(sub, 1), 'the list of inputs')
  g.outputs = pick(r:ints(sub, 2), 'the list of outputs')
  if #g.inputs ~= 1 or #g.outputs < 1 then
    error(('%s: a graph with %d inputs and %d outputs is not handled')
      :format(r.path, #g.inputs, #g.outputs), 0)
  end
  for i, t in ipairs(r:tables(sub, 3)) do
    local code = codes[r:number(t, 0, 'u32', 4, 0) + 1]
    if not code then r:fail('operator %d has no code', i - 1) end
    local op = OPERATORS[code]
    if not op then
      error(('%s: operator %d has code %d, which is not handled'):format(r.path, i - 1, code), 0)
    end
    local what = ('operator %d (%s)'):format(i - 1, op)
    local node = { op = op, what = what, inputs = pick(r:ints(t, 1), what, true),
      outputs = pick(r:ints(t, 2), what), options = read_options(r, op, t) }
    if not node.inputs[1] or #node.outputs ~= 1 then
      r:fail('%s has %d inputs and %d outputs', what, #node.inputs, #node.outputs)
    end
    g.nodes[i] = node
  end
  return g
end

-- ---- shapes: what each operator must give -----------------------------------------------------

--- Returns the size of a window operator's result, and its padding before and after. TFLite's SAME puts the odd
--- element after.
local function span(size, kernel, stride, dilation, valid)
  local reach = (kernel - 1) * dilation + 1
  if valid then return math.floor((size - reach) / stride) + 1, 0, 0 end
  local out = math.ceil(size / stride)
  local pad = math.max((out - 1) * stride + reach - size, 0)
  return out, math.floor(pad / 2), math.ceil(pad / 2)
end

local shapes = {}

local function window_shape(node, x, kh, kw, channels, fail)
  local o = node.options
  local dh, dw = o.dilation_h or 1, o.dilation_w or 1
  for _, n in ipairs { o.stride_h, o.stride_w, dh, dw, kh, kw } do
    if n < 1 or n > 1024 then fail('has a stride, dilation or window of %d', n) end
  end
  local top, bottom, left, right, h, w
  h, top, bottom = span(x.shape[2], kh, o.stride_h, dh, o.valid)
  w, left, right = span(x.shape[3], kw, o.stride_w, dw, o.valid)
  o.padding = { top, bottom, left, right }
  return { x.shape[1], h, w, channels }
end

local function conv_shape(node, fail)
  local x, w, b = node.inputs[1], node.inputs[2], node.inputs[3]
  if not w or #x.shape ~= 4 or #w.shape ~= 4 or not w.at or w.dtype == 'i32' then
    fail('needs a 4-D input and constant float weights')
  end
  local channels
  if node.op == 'CONV_2D' then
    channels = w.shape[1]
    node.groups = x.shape[4] / w.shape[4]
  else
    channels = w.shape[4]
    node.groups = x.shape[4]
    if w.shape[1] ~= 1 then fail('has weights of the shape %s', show(w.shape)) end
  end
  if node.groups % 1 ~= 0 or channels % node.groups ~= 0 then
    fail('has weights %s for the input %s', show(w.shape), show(x.shape))
  end
  if b and (not b.at or b.dtype == 'i32' or numel(b.shape) ~= channels) then
    fail('has a bias of the shape %s', show(b.shape))
  end
  return window_shape(node, x, w.shape[2], w.shape[3], channels, fail)
end
shapes.CONV_2D, shapes.DEPTHWISE_CONV_2D = conv_shape, conv_shape

function shapes.MAX_POOL_2D(node, fail)
  local x, o = node.inputs[1], node.options
  if #x.shape ~= 4 then fail('needs a 4-D input') end
  return window_shape(node, x, o.kernel_h, o.kernel_w, x.shape[4], fail)
end

function shapes.ADD(node, fail)
  local a, b = node.inputs[1], node.inputs[2]
  if not b or not same(a.shape, b.shape) then fail('adds different shapes') end
  return a.shape
end

function shapes.PRELU(node, fail)
  local x, slope = node.inputs[1], node.inputs[2]
  if not slope or not slope.at or slope.dtype == 'i32'
    or numel(slope.shape) ~= x.shape[#x.shape] or slope.shape[#slope.shape] ~= x.shape[#x.shape] then
    fail('needs one constant slope for each channel')
  end
  return x.shape
end

local function unchanged(node) return node.inputs[1].shape end
shapes.RELU, shapes.RELU6, shapes.LOGISTIC = unchanged, unchanged, unchanged
shapes.DEQUANTIZE = unchanged

function shapes.RESHAPE(node, fail)
  local out = node.outputs[1].shape
  if numel(out) ~= numel(node.inputs[1].shape) then
    fail('reshapes %s to %s, which has another number of elements', show(node.inputs[1].shape), show(out))
  end
  return out
end

function shapes.PAD(node, fail)
  local x, pads = node.inputs[1], node.inputs[2]
  if not pads or not pads.ints or #pads.ints ~= 2 * #x.shape then fail('has no paddings') end
  local out = {}
  node.before, node.after = {}, {}
  for k, s in ipairs(x.shape) do
    local before, after = pads.ints[2 * k - 1], pads.ints[2 * k]
    if before < 0 or after < 0 then fail('pads by %d and %d', before, after) end
    node.before[k], node.after[k], out[k] = before, after, s + before + after
  end
  return out
end

function shapes.CONCATENATION(node, fail)
  local first, rank = node.inputs[1], #node.inputs[1].shape
  local axis = node.options.axis
  if axis < 0 then axis = axis + rank end
  if axis < 0 or axis >= rank then fail('joins along dimension %d', node.options.axis) end
  local out = { unpack(first.shape) }
  for i = 2, #node.inputs do
    local s = node.inputs[i] and node.inputs[i].shape
    if not s or #s ~= rank then fail('joins different shapes') end
    for k = 1, rank do
      if k == axis + 1 then out[k] = out[k] + s[k] elseif s[k] ~= out[k] then
        fail('joins different shapes')
      end
    end
  end
  node.dim = axis + 1
  return out
end

function shapes.RESIZE_BILINEAR(node, fail)
  local x, size = node.inputs[1], node.inputs[2]
  if #x.shape ~= 4 or not size or not size.ints or #size.ints ~= 2 then fail('has no size') end
  if node.options.align_corners then fail('wants align_corners, which is not handled') end
  return { x.shape[1], size.ints[1], size.ints[2], x.shape[4] }
end

--- Checks the shapes of every node, and that each value is produced once and before it is used.
local function check_graph(r, g)
  local ready = { [g.inputs[1]] = true }
  for _, v in pairs(g.values) do
    if v.at then
      ready[v] = true
      if v.dtype == 'i32' then
        v.ints = {}
        for i = 1, v.bytes / 4 do v.ints[i] = r:i32(v.at + 4 * (i - 1)) end
      end
    end
  end
  if g.inputs[1].at then r:fail('its input is a constant') end
  for _, node in ipairs(g.nodes) do
    local function fail(format, ...) r:fail('%s ' .. format, node.what, ...) end
    for _, v in ipairs(node.inputs) do
      if v and not ready[v] then fail('uses the tensor %d before it is made', v.index) end
    end
    local out = node.outputs[1]
    if ready[out] then fail('makes the tensor %d again', out.index) end
    local shape = shapes[node.op](node, fail)
    if not same(shape, out.shape) then
      fail('gives %s, but the file says %s', show(shape), show(out.shape))
    end
    for i = 1, #node.inputs do
      local v = node.inputs[i]
      local constant_only = (node.op ~= 'DEQUANTIZE')
      if i == 1 and constant_only and v.at then fail('works on a constant') end
    end
    ready[out] = true
    if node.op == 'DEQUANTIZE' then
      local v = node.inputs[1]
      if not v.at or v.dtype ~= 'f16' or out.dtype ~= 'f32' then
        fail('converts something other than float16 weights')
      end
      -- The result refers to the same bytes, which are widened on loading.
      out.at, out.bytes, out.dtype = v.at, v.bytes, 'f16'
    end
  end
  for _, v in ipairs(g.outputs) do
    if not ready[v] or v.at then r:fail('the output %d is never made', v.index) end
  end
end

--- Parses a graph: `values` (numbered from 0), `nodes` in topological order, `inputs`, `outputs`. A value is {index,
--- name, shape, dtype}; a constant also has `at` and `bytes`, its position in the file. Returns the graph and the
--- reader {path, base, size}, from whose memory the caller copies constants.
--- @param path string names the file in messages
--- @param data string the file's bytes
function graph.parse(path, data)
  local r = setmetatable({ path = path, data = data, size = #data,
    base = ffi.cast('const uint8_t *', data) }, reader)
  local g = read_graph(r)
  check_graph(r, g)
  return g, r
end

--- Reads the bytes of a file that may be a graph.
--- @param path string
--- @return string
function graph.load(path)
  local file, reason = io.open(path, 'rb')
  if not file then error('cannot open ' .. reason, 0) end
  local size = file:seek('end')
  if not size or size > MAX_BYTES then
    file:close()
    error(('%s: not a TFLite file, or larger than %d MiB'):format(path, MAX_BYTES / 2 ^ 20), 0)
  end
  file:seek('set')
  local data = file:read('*a')
  file:close()
  if not data then error(path .. ': cannot be read', 0) end
  return data
end

graph.numel, graph.same, graph.show = numel, same, show

return graph
