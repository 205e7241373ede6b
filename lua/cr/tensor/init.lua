--- Tensors: what C's cr_tensor looks like from Lua.
--
-- A tensor is one FFI object around the C struct; its finalizer drops the storage, so forgetting
-- one is never a leak, and freeing one twice never a crash. Dimensions and indices count from 1 and
-- ranges include both ends. All temporaries made while a scope is open are freed when it ends (see
-- `scope`). What makes tensors stands in cr/tensor_creation.lua, what computes with them in
-- cr/tensor_arithmetic.lua; these three files alone convert to C's 0-based dimensions.

local ffi = require 'ffi'
local base = require 'cr.ffi'

local C, raise, fail, dtypes = base.C, base.raise, base.fail, base.dtypes

ffi.cdef 'typedef struct { cr_tensor c; } cr_lua_tensor;'
local tensor_type = ffi.typeof 'cr_lua_tensor'
local shape_type = ffi.typeof 'int32_t[8]'
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
local methods = {}
local M = { methods = methods }

local istype = ffi.istype
local function is_tensor(x) return istype(tensor_type, x) end
M.is_tensor = is_tensor

-- ---- scopes --------------------------------------------------------------------------------

-- One stack of scopes per coroutine, since tasks take turns inside their scopes.
local scopes = setmetatable({}, { __mode = 'k' })
local MAIN = {}

local made -- see M.on_new

--- Has fn(tensor) called for each tensor that is made, while it is still empty.
--- @param fn function?
function M.on_new(fn) made = fn end

--- A tensor to be filled by C, registered in the open scope of this coroutine.
local function new()
  if C.cr_memory_pressure() ~= 0 then
    collectgarbage()
    C.cr_memory_collected()
  end
  local t = tensor_type()
  local scope = scopes[coroutine.running() or MAIN]
  if scope then scope[#scope + 1] = t end
  if made then made(t) end
  return t
end

--- The tensor that C has filled, or C's message raised.
--- @param out Tensor
--- @param rc integer what the function of C returned
--- @return Tensor
local function filled(out, rc)
  if rc < 0 then raise() end
  return out
end
M.new, M.filled = new, filled

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

--- Every tensor among values and one level inside tables of theirs.
--- @return Tensor[]
function M.tensors_of(...)
  local list = {}
  for i = 1, select('#', ...) do
    local v = select(i, ...)
    if is_tensor(v) then
      list[#list + 1] = v
    elseif type(v) == 'table' then
      for _, w in pairs(v) do
        if is_tensor(w) then list[#list + 1] = w end
      end
    end
  end
  return list
end

local function close_scope(key, scope, ok, ...)
  local outer = scope.outer
  scopes[key] = outer
  local kept = {}
  if ok then
    for _, t in ipairs(M.tensors_of(...)) do kept[t] = true end
  end
  for i = 1, #scope do
    local t = scope[i]
    if not kept[t] then
      C.cr_free(t.c)
    elseif outer then
      outer[#outer + 1] = t
    end
  end
  if not ok then error((...), 0) end
  return ...
end

--- Runs fn(...) and frees every tensor made inside it, except those that it returns (alone, or in
--- a returned table). Scopes nest; what is returned belongs to the scope around.
---
---     local y = cr.scope(function() return (x * 2 + 1):sum() end)
--- @param fn fun(...): ...
function M.scope(fn, ...)
  local key = coroutine.running() or MAIN
  local scope = { outer = scopes[key] }
  scopes[key] = scope
  return close_scope(key, scope, pcall(fn, ...))
end

--- Takes tensors out of the scopes that are open: they live until they are freed or forgotten. For
--- caches that outlive the scope they are filled in.
--- @param ... Tensor
--- @return Tensor ... the same
function M.keep(...)
  for i = 1, select('#', ...) do
    local t = select(i, ...)
    local scope = scopes[coroutine.running() or MAIN]
    while scope do
      for k = #scope, 1, -1 do
        if rawequal(scope[k], t) then table.remove(scope, k) end
      end
      scope = scope.outer
    end
  end
  return ...
end

-- ---- arguments -----------------------------------------------------------------------------

--- Shape and options from (2, 3, {...}) or ({2, 3}, {...}); the shape as C wants it.
local function shape_of(name, ...)
  local n = select('#', ...)
  local first, options = ..., nil
  local sizes
  if type(first) == 'table' and (first[1] ~= nil or n == 2) then
    sizes, options = first, select(2, ...)
  else
    sizes = { ... }
    if type(sizes[n]) == 'table' then options = table.remove(sizes) end
  end
  if #sizes > 8 then fail(name .. ': a tensor has at most 8 dimensions') end
  local shape = shape_type()
  for i, size in ipairs(sizes) do
    if type(size) ~= 'number' or size ~= math.floor(size) then
      fail(('%s: size %d is %s, not a whole number'):format(name, i, tostring(size)))
    end
    shape[i - 1] = size
  end
  return shape, #sizes, options or {}
end

local function dtype_code(name, dtype)
  local code = dtypes[dtype or 'f32']
  if type(code) ~= 'number' then
    fail(('%s: unknown dtype %s: f32, f16, bf16, f64, u8, i8, i16, i32, i64 or bool')
      :format(name, tostring(dtype)))
  end
  return code
end
M.dtype_code = dtype_code

--- 'cpu' -> 0, 'cuda' and 'cuda:0' -> 1, 'cuda:1' -> 2.
local function device_code(name, device)
  if device == nil or device == 'cpu' then return C.CR_CPU end
  local card = tostring(device):match '^cuda:?(%d*)$'
  if not card then fail(('%s: unknown device %s: cpu, cuda or cuda:N'):format(name, tostring(device))) end
  return C.CR_CUDA + (tonumber(card) or 0)
end
M.device_code = device_code

local function want_tensor(name, x)
  if not is_tensor(x) then
    fail(('%s: a tensor is needed, not %s'):format(name, x == nil and 'nil' or type(x) .. ' ' .. tostring(x)))
  end
  return x
end
M.want_tensor = want_tensor

local function want_alive(name, t)
  if t.c.storage == nil then fail(name .. ': the tensor has been freed') end
end

--- Dimension d (1-based, negative from the end) of a tensor of `rank` as C counts it.
local function dim_of(name, t, d)
  want_alive(name, t)
  local rank = t.c.rank
  if type(d) ~= 'number' then fail(name .. ': a dimension is needed, not ' .. tostring(d)) end
  if d < 0 then d = rank + 1 + d end
  if d < 1 or d > rank or d ~= math.floor(d) then
    fail(('%s: %s has no dimension %s'):format(name, M.shape_text(t), tostring(d)))
  end
  return d - 1
end

function M.shape_text(t)
  local parts = {}
  for i = 1, t.c.rank do parts[i] = t.c.shape[i - 1] end
  return '[' .. table.concat(parts, ' ') .. ']'
end

require 'cr.tensor.creation'(M, shape_of, dim_of)

-- ---- properties ----------------------------------------------------------------------------

local properties = {
  shape = function(t)
    local shape = {}
    for i = 1, t.c.rank do shape[i] = t.c.shape[i - 1] end
    return shape
  end,
  dtype = function(t) return dtypes[t.c.dtype] end,
  device = function(t) return t.c.device == 0 and 'cpu' or 'cuda:' .. t.c.device - 1 end,
}

--- Number of dimensions.
function methods:dim() return self.c.rank end

--- Size of dimension d.
function methods:size(d) return self.c.shape[dim_of('size', self, d)] end

--- Number of elements.
function methods:numel()
  want_alive('numel', self)
  return tonumber(C.cr_numel(self.c))
end

--- Whether rows lie one after another without gaps.
function methods:is_contiguous() return C.cr_is_contiguous(self.c) == 1 end

--- Whether the tensor has been freed.
function methods:is_freed() return self.c.storage == nil end

--- Gives the memory back now; twice is fine.
function methods:free()
  C.cr_free(self.c)
  M.anchors[self] = nil
end

--- Typed FFI pointer to the first element of a contiguous CPU tensor (f16, bf16 and bool as bits).
--- LuaJIT cannot hold a nan that carries bits of its own: of data from outside read such numbers with
--- item or tolist.
function methods:pointer()
  want_alive('pointer', self)
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
  if self:numel() ~= 1 then fail('item: ' .. M.shape_text(self) .. ' has more than one element, or none') end
  return M.scope(function()
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
  return M.scope(function()
    local wide = self:to('cpu'):to 'f64':contiguous()
    local p = wide:pointer()
    return (nested(p, ffi.cast(bits_type, p), self.shape, 1, 0))
  end)
end

-- ---- views ---------------------------------------------------------------------------------

--- The same elements in another shape, one size may be -1; never copies.
--- @return Tensor
function methods:view(...)
  local shape, rank = shape_of('view', ...)
  local out = new()
  return filled(out, C.cr_view(out.c, self.c, rank, shape))
end

--- Like view, but copies if the layout asks for it.
--- @return Tensor
function methods:reshape(...)
  local shape, rank = shape_of('reshape', ...)
  local out = new()
  if C.cr_view(out.c, self.c, rank, shape) < 0 then
    local dense = self:contiguous()
    if C.cr_view(out.c, dense.c, rank, shape) < 0 then raise() end
  end
  return out
end

--- Dimensions in another order: x:permute(1, 3, 4, 2).
--- @return Tensor
function methods:permute(...)
  want_alive('permute', self)
  local dims, rank = shape_of('permute', ...)
  if rank ~= self.c.rank then
    fail(('permute: %s has %d dimensions, %d are named'):format(M.shape_text(self), self.c.rank, rank))
  end
  for i = 0, rank - 1 do dims[i] = dim_of('permute', self, dims[i]) end
  local out = new()
  if C.cr_permute(out.c, self.c, dims) < 0 then raise() end
  return out
end

--- Swaps two dimensions.
--- @return Tensor
function methods:transpose(a, b)
  a, b = dim_of('transpose', self, a), dim_of('transpose', self, b)
  local dims = shape_type()
  for i = 0, self.c.rank - 1 do dims[i] = i == a and b or i == b and a or i end
  local out = new()
  return filled(out, C.cr_permute(out.c, self.c, dims))
end

--- Swaps the last two dimensions: a matrix's transpose.
--- @return Tensor
function methods:t() return self:transpose(-2, -1) end

--- Indices first..last of dimension d, in steps.
--- @return Tensor
function methods:slice(d, first, last, step)
  local dim = dim_of('slice', self, d)
  local size = self.c.shape[dim]
  first, last = first or 1, last or size
  if first < 0 then first = size + 1 + first end
  if last < 0 then last = size + 1 + last end
  local out = new()
  return filled(out, C.cr_slice(out.c, self.c, dim, first - 1, last, step or 1))
end

--- `length` indices of dimension d from `first` on.
--- @return Tensor
function methods:narrow(d, first, length) return self:slice(d, first, first + length - 1) end

--- One index of dimension d, which goes away.
--- @return Tensor
function methods:select(d, index)
  local dim = dim_of('select', self, d)
  if index < 0 then index = self.c.shape[dim] + 1 + index end
  local out = new()
  return filled(out, C.cr_select(out.c, self.c, dim, index - 1))
end

--- Without dimension d, which must have size 1; without d: without all of size 1.
--- @return Tensor
function methods:squeeze(d)
  local only = d and dim_of('squeeze', self, d) + 1
  local shape = {}
  for i, size in ipairs(self.shape) do
    if only == i and size ~= 1 then fail(('squeeze: dimension %d of %s is not 1'):format(i, M.shape_text(self))) end
    if not (size == 1 and (not only or only == i)) then shape[#shape + 1] = size end
  end
  return self:view(shape, {})
end

--- With a new dimension of size 1 at place d.
--- @return Tensor
function methods:unsqueeze(d)
  local shape = self.shape
  if d < 0 then d = #shape + 2 + d end
  if d < 1 or d > #shape + 1 then fail(('unsqueeze: %s has no place %d'):format(M.shape_text(self), d)) end
  table.insert(shape, d, 1)
  return self:view(shape, {})
end

--- Dimensions a..b as one.
--- @return Tensor
function methods:flatten(a, b)
  a, b = dim_of('flatten', self, a or 1) + 1, dim_of('flatten', self, b or -1) + 1
  local shape, joined = {}, 1
  for i, size in ipairs(self.shape) do
    if i < a or i > b then
      shape[#shape + 1] = size
    else
      joined = joined * size
      if i == b then shape[#shape + 1] = joined end
    end
  end
  return self:reshape(shape, {})
end

--- Sizes of 1 repeated to a shape, without copying; -1 keeps a size.
--- @return Tensor
function methods:expand(...)
  local shape, rank = shape_of('expand', ...)
  local out = new()
  return filled(out, C.cr_expand(out.c, self.c, rank, shape))
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

--- As another dtype, or on another device; the tensor itself if it is so already.
--- @param what string 'f16', 'cpu', 'cuda:0', ...
--- @return Tensor
function methods:to(what)
  local code = dtypes[what]
  local out
  if type(code) == 'number' then
    if code == self.c.dtype then return self end
    out = new()
    return filled(out, C.cr_cast(out.c, self.c, code))
  end
  local device = device_code('to', what)
  if device == self.c.device then return self end
  out = new()
  return filled(out, C.cr_empty(out.c, self.c.rank, self.c.shape, self.c.dtype, device) < 0
      or C.cr_copy(out.c, self.c))
end

--- Overwrites this tensor with another's elements, converted.
function methods:copy_(source)
  source = want_tensor('copy_', source)
  if source.c.rank ~= self.c.rank or M.shape_text(source) ~= M.shape_text(self) then
    source = source:expand(self.shape, {})
  end
  return filled(self, C.cr_copy(self.c, source.c))
end

--- Overwrites every element with a number.
function methods:fill_(value)
  return filled(self, C.cr_fill(self.c, value))
end

require 'cr.tensor.arithmetic'(M, dim_of)

-- ---- the type ------------------------------------------------------------------------------

ffi.metatype(tensor_type, {
  __index = function(t, key)
    local method = methods[key]
    if method then return method end
    local property = properties[key]
    if property then
      want_alive(key, t)
      return property(t)
    end
    fail(('a tensor has no field or method %s'):format(tostring(key)))
  end,
  __gc = function(t) C.cr_free(t.c) end,
  __add = methods.add, __sub = methods.sub, __mul = methods.mul, __div = methods.div,
  __pow = methods.pow, __unm = methods.neg,
  __len = function(t) return t.c.rank > 0 and t.c.shape[0] or 0 end,
  __tostring = function(t) return require 'cr.tensor.format'.tensor(t, M.scope) end,
})

return M
