--- Tensors: the Lua class around C's cr_tensor.
--
-- A tensor is one FFI object around the C struct. Its finalizer releases the storage, so a forgotten tensor is not a
-- leak, and freeing one twice is safe. Dimensions and indices count from 1, and ranges include both ends. All
-- temporaries that are made while a scope is open are freed when it ends. Scopes are in scope.lua, functions that
-- make tensors in creation.lua, methods in the files of METHODS below. Only these files convert to C's 0-based
-- dimensions, by operands.lua.

local common = require 'cr.tensor.common'
local creation = require 'cr.tensor.creation'
local indexing = require 'cr.tensor.indexing'
local matrices = require 'cr.tensor.matrices'
local operands = require 'cr.tensor.operands'

local ffi, arguments, kinds, scope = common.ffi, common.arguments, common.kinds, common.scope
local C, fail, dtypes = common.C, common.fail, common.base.dtypes
local new, filled = common.new, common.filled
local shape_text = operands.shape_text

local element_pointer = {
  f32 = ffi.typeof 'float *', f16 = ffi.typeof 'uint16_t *', bf16 = ffi.typeof 'uint16_t *',
  f64 = ffi.typeof 'double *', u8 = ffi.typeof 'uint8_t *', i8 = ffi.typeof 'int8_t *',
  i16 = ffi.typeof 'int16_t *', i32 = ffi.typeof 'int32_t *', i64 = ffi.typeof 'int64_t *',
  bool = ffi.typeof 'uint8_t *',
}

--- @class Tensor
--- @field shape integer[] sizes
--- @field dtype string 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64' or 'bool'
--- @field device string 'cpu' or 'cuda:N'
--- @field ndim integer number of dimensions
--- @field T Tensor the transpose, as t() makes it
--- @field c any the cr_tensor of crescent.h, for the files of lua/cr/
--- @field ended integer the scope that freed it (lua/cr/tensor/scope.lua)
--- @operator add(Tensor|number): Tensor
--- @operator sub(Tensor|number): Tensor
--- @operator mul(Tensor|number): Tensor
--- @operator div(Tensor|number): Tensor
--- @operator mod(Tensor|number): Tensor
--- @operator pow(Tensor|number): Tensor
--- @operator unm: Tensor
--- @operator len: integer
local methods = {}
local M = {
  methods = methods, kinds = kinds,
  is_tensor = scope.is_tensor, new = new, filled = filled, on_new = scope.on_new,
  scope = scope.scope, keep = scope.keep, tensors_of = scope.tensors_of,
  dtype_code = operands.dtype_code, device_code = operands.device_code,
  want_tensor = operands.want_tensor, shape_text = shape_text,
}

--- The functions that `cr` exports.
M.functions = { einsum = matrices.einsum, cdist = matrices.cdist }
for _, part in ipairs { creation, require 'cr.tensor.fourier' } do
  for name, value in pairs(part) do
    if type(value) == 'function' then M[name], M.functions[name] = value, value end
  end
end

--- Returns the address of a tensor's storage, which views share, and how many bytes of it the tensor covers.
--- @param t Tensor alive
--- @return number
--- @return number
function M.storage_of(t)
  local bytes = C.cr_dtype_size(t.c.dtype)
  for i = 0, t.c.rank - 1 do
    if t.c.stride[i] ~= 0 or t.c.shape[i] == 0 then bytes = bytes * t.c.shape[i] end
  end
  return tonumber(ffi.cast('intptr_t', t.c.storage)), bytes
end

-- ---- properties ----------------------------------------------------------------------------

local properties = {
  shape = function(t)
    local shape = {}
    for i = 1, t.c.rank do shape[i] = t.c.shape[i - 1] end
    return shape
  end,
  dtype = function(t) return dtypes[t.c.dtype] end,
  device = function(t) return t.c.device == 0 and 'cpu' or 'cuda:' .. t.c.device - 1 end,
  ndim = function(t) return t.c.rank end,
  T = function(t) return methods.t(t) end,
}

--- Returns the number of dimensions.
function methods:dim() return self.c.rank end

--- Returns the size of dimension d, or all sizes without d.
--- @return integer|integer[]
function methods:size(d)
  if d == nil then return self.shape end
  return self.c.shape[operands.dim_of('size', self, d)]
end

--- Returns the number of elements.
function methods:numel()
  return tonumber(C.cr_numel(self.c))
end

--- Returns whether the tensor is contiguous: dense, in row-major order.
function methods:is_contiguous() return C.cr_is_contiguous(self.c) == 1 end

--- Returns whether the tensor has been freed.
function methods:is_freed() return self.c.storage == nil end

--- Frees the memory now. Calling it twice is allowed.
function methods:free()
  C.cr_free(self.c)
  self.ended = -1
  creation.anchors[self] = nil
end

--- Returns a typed FFI pointer to the first element of a contiguous CPU tensor (f16, bf16 and bool as bits). LuaJIT
--- cannot represent a nan with payload bits, so read numbers of unknown origin with item or tolist.
function methods:pointer()
  local p = C.cr_data(self.c)
  if p == nil then fail('pointer: the tensor is on ' .. self.device .. ": copy it with :to('cpu') first") end
  if not self:is_contiguous() then fail 'pointer: the tensor is not contiguous: use :contiguous() first' end
  return ffi.cast(element_pointer[self.dtype], p)
end

local bits_type = ffi.typeof 'const uint32_t *'

--- Reads element i of doubles. LuaJIT encodes the types of its values in nan bits, and reads a double through a
--- pointer unchanged: a nan with payload bits (files may contain any) would become a broken value of another type. So
--- nans are recognized by their bits and never read as doubles.
local function number_at(p, bits, i)
  local high = bit.band(bits[2 * i + 1], 0x7fffffff)
  if high > 0x7ff00000 or high == 0x7ff00000 and bits[2 * i] ~= 0 then return 0 / 0 end
  return p[i]
end

--- Returns the number in a tensor with one element. An i64 beyond 2^53 is returned as a boxed integer.
function methods:item()
  if self:numel() ~= 1 then fail('item: ' .. shape_text(self) .. ' has more than one element, or none: use tolist for all elements') end
  return scope.scope(function()
    local wide = self.dtype == 'i64' and self:to('cpu'):contiguous() or self:to('cpu'):to 'f64'
    local p = wide:pointer()
    local v
    if self.dtype == 'i64' then v = p[0] else v = number_at(p, ffi.cast(bits_type, p), 0) end
    if self.dtype == 'i64' and v > -2LL ^ 53 and v < 2LL ^ 53 then v = tonumber(v) end
    if self.dtype == 'bool' then v = v ~= 0 end
    return v
  end)
end

local function nested(p, bits, shape, depth, at)
  if depth > #shape then return number_at(p, bits, at), at + 1 end
  local list = {}
  for i = 1, shape[depth] do list[i], at = nested(p, bits, shape, depth + 1, at) end
  return list, at
end

--- Returns the numbers as nested tables, or a number for a scalar.
function methods:tolist()
  return scope.scope(function()
    local wide = self:to('cpu'):to 'f64':contiguous()
    local p = wide:pointer()
    return (nested(p, ffi.cast(bits_type, p), self.shape, 1, 0))
  end)
end

-- ---- copies --------------------------------------------------------------------------------

--- Returns the tensor itself if it is contiguous, else a contiguous copy.
--- @return Tensor
function methods:contiguous() return self:is_contiguous() and self or self:clone() end

--- Returns a contiguous copy.
--- @return Tensor
function methods:clone()
  local out = new()
  return filled(out, C.cr_copy(out.c, self.c))
end

local before_read -- see M.on_read

--- Installs fn(tensor), which is called before a card's numbers are copied to main memory, which waits for the card.
--- @param fn fun(t: Tensor)
function M.on_read(fn) before_read = fn end

local function read_from(self, device)
  if before_read and device == C.CR_CPU and self.c.device ~= C.CR_CPU then before_read(self) end
end

--- Converts to another dtype, or copies to another device. Returns the tensor itself if nothing changes.
--- @param what string 'f16', 'cpu', 'cuda:0', ...
--- @return Tensor
function methods:to(what)
  local code = dtypes[what]
  local out
  if code then
    if code == self.c.dtype then return self end
    out = new()
    return filled(out, C.cr_cast(out.c, self.c, code))
  end
  local device = operands.code_of_device(what)
  if not device then
    fail(('to: there is no dtype or device %s: %s (%s; cpu, cuda or cuda:N)')
      :format(arguments.shown(what), operands.meant(what), operands.DTYPES))
  end
  if device == self.c.device then return self end
  read_from(self, device)
  out = new()
  filled(out, C.cr_empty(out.c, self.c.rank, self.c.shape, self.c.dtype, device))
  return filled(out, C.cr_copy(out.c, self.c))
end

--- Converts to f32: x:to 'f32'.
--- @return Tensor
function methods:float() return self:to 'f32' end

--- Converts to f16: x:to 'f16'.
--- @return Tensor
function methods:half() return self:to 'f16' end

--- Converts to bf16: x:to 'bf16'.
--- @return Tensor
function methods:bfloat16() return self:to 'bf16' end

--- Converts to i64: x:to 'i64'.
--- @return Tensor
function methods:long() return self:to 'i64' end

--- Converts to bool, true where an element is not 0: x:to 'bool'.
--- @return Tensor
function methods:bool() return self:to 'bool' end

--- Copies to the CPU: x:to 'cpu'.
--- @return Tensor
function methods:cpu() return self:to 'cpu' end

--- Copies to a card (by default the first): x:to 'cuda:N'.
--- @param n integer?
--- @return Tensor
function methods:cuda(n) return self:to(n and 'cuda:' .. n or 'cuda') end

--- Overwrites this tensor with the converted elements of another.
function methods:copy_(source)
  if source.c.rank ~= self.c.rank or shape_text(source) ~= shape_text(self) then
    source = source:expand(self.shape, {})
  end
  read_from(source, self.c.device)
  return filled(self, C.cr_copy(self.c, source.c))
end

--- Overwrites every element with a number.
function methods:fill_(value)
  return filled(self, C.cr_fill(self.c, value))
end

local alive, any_tensor = kinds.alive, kinds.result
arguments.guard('', methods, {
  dim = { alive }, numel = { alive }, is_contiguous = { alive }, size = { alive, arguments.maybe(arguments.integer) },
  is_freed = { any_tensor }, free = { any_tensor },
  pointer = { alive }, item = { alive }, tolist = { alive },
  contiguous = { alive }, clone = { alive }, to = { alive, arguments.kind("a dtype or a device, as in x:to 'f16' or x:to(y.dtype),",
    arguments.string.test) },
  copy_ = { alive, alive }, fill_ = { alive, arguments.number },
  float = { alive }, half = { alive }, bfloat16 = { alive }, long = { alive }, bool = { alive }, cpu = { alive },
  cuda = { alive, arguments.maybe(arguments.natural) },
}, 'x')
local METHODS = { require 'cr.tensor.views', require 'cr.tensor.arithmetic', indexing.methods, matrices.methods,
  require 'cr.tensor.moves', require 'cr.tensor.mathematics', require 'cr.tensor.statistics' }
for _, more in ipairs(METHODS) do
  for name, method in pairs(more) do methods[name] = method end
end

-- ---- the type ------------------------------------------------------------------------------

local function no_order() fail "tensors cannot be ordered: compare their elements, as in a:lt(b), a:le(b), a:gt(b) or a:ge(b)" end

ffi.metatype(scope.type, {
  __index = function(t, key)
    local method = methods[key]
    if method then return method end
    local property = properties[key]
    if property then
      operands.want_alive(key, t)
      return property(t)
    end
    if type(key) ~= 'string' then
      operands.want_alive('x[...]', t)
      return indexing.get(t, key)
    end
    local instead = require 'cr.tensor.absent'.methods[key]
    if instead then fail(('a tensor has no %s: %s'):format(key, instead)) end
    local names = {}
    for name in pairs(methods) do names[#names + 1] = name end
    for name in pairs(properties) do names[#names + 1] = name end
    fail(('a tensor has no field or method %s: %s'):format(common.base.printable(key), require 'cr.errors'.did_you_mean_close(key, names,
      math.max(2, #key / 3), '`crescent help tensor` lists all methods')))
  end,
  __newindex = function(t, key, value)
    if type(key) == 'string' then fail(('the field %s of a tensor cannot be set'):format(arguments.shown(key))) end
    operands.want_alive('x[...] = y', t)
    indexing.set(t, key, value)
  end,
  __gc = function(t) C.cr_free(t.c) end,
  __add = methods.add, __sub = methods.sub, __mul = methods.mul, __div = methods.div, __pow = methods.pow,
  __unm = function(t) return methods.neg(t) end, -- Lua passes the operand twice
  __mod = methods.remainder,
  __lt = no_order, __le = no_order,
  __concat = function() fail 'a tensor is not a string: use tostring(x), or cr.cat to join tensors' end,
  __call = function() fail 'a tensor is not a function: call a method as x:name(...), and read an element as x[{ 1, 2 }]' end,
  __ipairs = function(t)
    return function(x, i)
      if i < #x then return i + 1, x:select(1, i + 1) end
    end, t, 0
  end,
  __len = function(t) return t.c.rank > 0 and t.c.shape[0] or 0 end,
  __tostring = function(t) return require 'cr.tensor.format'.tensor(t, scope.scope) end,
})

return M
