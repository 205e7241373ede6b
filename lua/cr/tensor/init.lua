--- Tensors: what C's cr_tensor looks like from Lua.
--
-- A tensor is one FFI object around the C struct; its finalizer drops the storage, so forgetting
-- one is never a leak, and freeing one twice never a crash. Dimensions and indices count from 1 and
-- ranges include both ends. All temporaries made while a scope is open are freed when it ends (see
-- `scope`). Scopes stand in scope.lua, what makes tensors in creation.lua, methods in the files of METHODS below; these
-- files alone convert to C's 0-based dimensions, by operands.lua.

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

--- The functions that `cr` hands out.
M.functions = { einsum = matrices.einsum, cdist = matrices.cdist }
for _, part in ipairs { creation, require 'cr.tensor.fourier' } do
  for name, value in pairs(part) do
    if type(value) == 'function' then M[name], M.functions[name] = value, value end
  end
end

--- Which memory a tensor lies in (views share it), and how many bytes of it are its own.
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

--- Number of dimensions.
function methods:dim() return self.c.rank end

--- Size of dimension d; without d all sizes.
--- @return integer|integer[]
function methods:size(d)
  if d == nil then return self.shape end
  return self.c.shape[operands.dim_of('size', self, d)]
end

--- Number of elements.
function methods:numel()
  return tonumber(C.cr_numel(self.c))
end

--- Whether rows lie one after another without gaps.
function methods:is_contiguous() return C.cr_is_contiguous(self.c) == 1 end

--- Whether the tensor has been freed.
function methods:is_freed() return self.c.storage == nil end

--- Gives the memory back now; twice is fine.
function methods:free()
  C.cr_free(self.c)
  self.ended = -1
  creation.anchors[self] = nil
end

--- Typed FFI pointer to the first element of a contiguous CPU tensor (f16, bf16 and bool as bits).
--- LuaJIT cannot hold a nan that carries bits of its own: of data from outside read such numbers with
--- item or tolist.
function methods:pointer()
  local p = C.cr_data(self.c)
  if p == nil then fail('pointer: the tensor is on ' .. self.device .. ": copy it with :to('cpu') first") end
  if not self:is_contiguous() then fail 'pointer: the tensor has gaps: use :contiguous() first' end
  return ffi.cast(element_pointer[self.dtype], p)
end

local bits_type = ffi.typeof 'const uint32_t *'

--- Element i of doubles. LuaJIT keeps the types of its values in the bits of nans, and reads a double
--- through a pointer as it stands: a nan with bits of its own (files may hold any) would become a
--- broken value of another type. So nans are told by their bits and never read.
local function number_at(p, bits, i)
  local high = bit.band(bits[2 * i + 1], 0x7fffffff)
  if high > 0x7ff00000 or high == 0x7ff00000 and bits[2 * i] ~= 0 then return 0 / 0 end
  return p[i]
end

--- The number in a tensor of one element; i64 beyond 2^53 comes as a boxed integer.
function methods:item()
  if self:numel() ~= 1 then fail('item: ' .. shape_text(self) .. ' has more than one element, or none: tolist gives all') end
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

--- The numbers as nested tables (a number for a scalar).
function methods:tolist()
  return scope.scope(function()
    local wide = self:to('cpu'):to 'f64':contiguous()
    local p = wide:pointer()
    return (nested(p, ffi.cast(bits_type, p), self.shape, 1, 0))
  end)
end

-- ---- copies --------------------------------------------------------------------------------

--- The tensor itself if it has no gaps, else a dense copy.
--- @return Tensor
function methods:contiguous() return self:is_contiguous() and self or self:clone() end

--- A dense copy.
--- @return Tensor
function methods:clone()
  local out = new()
  return filled(out, C.cr_copy(out.c, self.c))
end

local before_read -- see M.on_read

--- Has fn(tensor) called before a card's numbers are copied to the main memory, which waits for the card.
--- @param fn fun(t: Tensor)
function M.on_read(fn) before_read = fn end

local function read_from(self, device)
  if before_read and device == C.CR_CPU and self.c.device ~= C.CR_CPU then before_read(self) end
end

--- As another dtype, or on another device; the tensor itself if it is so already.
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

--- As f32: x:to 'f32'.
--- @return Tensor
function methods:float() return self:to 'f32' end

--- As f16: x:to 'f16'.
--- @return Tensor
function methods:half() return self:to 'f16' end

--- As bf16: x:to 'bf16'.
--- @return Tensor
function methods:bfloat16() return self:to 'bf16' end

--- As i64: x:to 'i64'.
--- @return Tensor
function methods:long() return self:to 'i64' end

--- As bool, true where an element is not 0: x:to 'bool'.
--- @return Tensor
function methods:bool() return self:to 'bool' end

--- On the CPU: x:to 'cpu'.
--- @return Tensor
function methods:cpu() return self:to 'cpu' end

--- On a card (0): x:to 'cuda:N'.
--- @param n integer?
--- @return Tensor
function methods:cuda(n) return self:to(n and 'cuda:' .. n or 'cuda') end

--- Overwrites this tensor with another's elements, converted.
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

local function no_order() fail "tensors have no order: compare their elements, as in a:lt(b), a:le(b), a:gt(b) or a:ge(b)" end

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
    local errors = require 'cr.errors'
    local near, distance = errors.nearest(key, names)
    local hint = distance <= math.max(2, #key / 3) and ("did you mean '%s'?"):format(near) or '`crescent help tensor` lists what there is'
    fail(('a tensor has no field or method %s: %s'):format(common.base.printable(key), hint))
  end,
  __newindex = function(t, key, value)
    if type(key) == 'string' then fail(('%s cannot be set in a tensor'):format(arguments.shown(key))) end
    operands.want_alive('x[...] = y', t)
    indexing.set(t, key, value)
  end,
  __gc = function(t) C.cr_free(t.c) end,
  __add = methods.add, __sub = methods.sub, __mul = methods.mul, __div = methods.div, __pow = methods.pow,
  __unm = function(t) return methods.neg(t) end, -- Lua passes the operand twice
  __mod = methods.remainder,
  __lt = no_order, __le = no_order,
  __concat = function() fail 'a tensor is no text: tostring(x) is; cr.cat joins tensors' end,
  __call = function() fail 'a tensor is no function: a method is called as x:name(...), and x[{ 1, 2 }] is an element' end,
  __ipairs = function(t)
    return function(x, i)
      if i < #x then return i + 1, x:select(1, i + 1) end
    end, t, 0
  end,
  __len = function(t) return t.c.rank > 0 and t.c.shape[0] or 0 end,
  __tostring = function(t) return require 'cr.tensor.format'.tensor(t, scope.scope) end,
})

return M
