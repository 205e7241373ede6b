--- Converts arguments of tensor functions (shapes, dtypes, devices, dimensions) to what C takes.

local common = require 'cr.tensor.common'

local C, fail, dtypes, arguments = common.C, common.fail, common.base.dtypes, common.arguments
local is_tensor, shape_type = common.is_tensor, common.shape_type
local is_integer, alive = arguments.integer.test, common.alive.test
local none, no_options = {}, arguments.options {}

local M = {}

local TOO_MANY = '%s: a tensor has at most 8 dimensions'

local function size_of(name, i, size)
  if is_integer(size) then return size end
  local option = type(size) == 'string' and (dtypes[size] or M.code_of_device(size)) and
    (': options are a table, { %s = %s }'):format(dtypes[size] and 'dtype' or 'device', arguments.shown(size)) or ''
  fail(('%s: size %d is %s, not a whole number below 2^31%s'):format(name, i, arguments.shown(size), option))
end

local function refuse_names(name, sizes)
  for key in pairs(sizes) do
    if type(key) ~= 'number' then
      fail(('%s: a list of sizes has no %s: options are a separate table after it'):format(name, tostring(key)))
    end
  end
end

--- Returns shape and options from (2, 3, {...}) or ({2, 3}, {...}), the shape in C's form.
--- @param name string
--- @param kind Kind? the kind of the options; nil if there are none
function M.shape_of(name, kind, ...)
  local n = select('#', ...)
  while n > 1 and select(n, ...) == nil do n = n - 1 end
  local first, options = ..., nil
  local shape = shape_type()
  if type(first) == 'table' and (first[1] ~= nil or next(first) == nil or n == 2) then
    if n > 2 then fail(('%s: %s is an argument too many'):format(name, arguments.shown((select(3, ...))))) end
    options, n = select(2, ...), #first
    if n > 8 then fail(TOO_MANY:format(name)) end
    for i = 1, n do shape[i - 1] = size_of(name, i, first[i]) end
    if next(first, n > 0 and n or nil) ~= nil then refuse_names(name, first) end
  else
    if n > 0 and type((select(n, ...))) == 'table' then options, n = select(n, ...), n - 1 end
    if n > 8 then fail(TOO_MANY:format(name)) end
    for i = 1, n do shape[i - 1] = size_of(name, i, (select(i, ...))) end
  end
  if options == nil then return shape, n, none end
  return shape, n, arguments.want(name, kind or no_options, options)
end

--- The same for the arguments of a method: shape_of with a check of the tensor.
function M.sizes_of(name, x, ...)
  if not alive(x) then arguments.want(('%s: call it as x:%s(...)'):format(name, name), common.alive, x) end
  return M.shape_of(name, nil, ...)
end

-- Names of dtypes in other programs.
local dtype_aliases = {
  float = 'f32', float32 = 'f32', float16 = 'f16', half = 'f16', bfloat16 = 'bf16', float64 = 'f64', double = 'f64',
  uint8 = 'u8', byte = 'u8', int8 = 'i8', char = 'i8', int16 = 'i16', short = 'i16', int = 'i32', int32 = 'i32',
  long = 'i64', int64 = 'i64', boolean = 'bool',
}
local dtype_names = { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64', 'bool' }
M.DTYPES = 'f32, f16, bf16, f64, u8, i8, i16, i32, i64 or bool'

--- Suggests a dtype for a name of another program: "did you mean 'f32'?" for torch.float32.
function M.meant(name)
  local alias = dtype_aliases[name:gsub('^torch%.', ''):lower()]
  if alias then return ("did you mean '%s'?"):format(alias) end
  if name:find '^fp?8' or name:find 'float8' then return '8-bit floats exist only as codes of quantized layers: see cr.quant.' end
  if name:find '^c' and name:find 'complex' or name:find '^cfloat' then return 'complex numbers are not supported.' end
  return require 'cr.errors'.did_you_mean(name, dtype_names)
end

--- Returns the code of a dtype, by default of f32.
--- @param name string names the calling function in messages
function M.dtype_code(name, dtype)
  if dtype == nil then dtype = 'f32' end
  local code = type(dtype) == 'string' and dtypes[dtype]
  if not code then
    local hint = type(dtype) == 'string' and M.meant(dtype) .. ' ' or ''
    fail(('%s: unknown dtype %s: %s(%s)'):format(name, arguments.shown(dtype), hint, M.DTYPES))
  end
  return code
end

--- Returns the code of a device's name, or nil.
function M.code_of_device(device)
  if device == nil or device == 'cpu' then return C.CR_CPU end
  local card = type(device) == 'string' and device:match '^cuda:?(%d?%d?%d?)$'
  return card and C.CR_CUDA + (tonumber(card) or 0)
end

--- Returns the code of a device's name, or fails: 'cpu' -> 0, 'cuda' and 'cuda:0' -> 1, 'cuda:1' -> 2.
function M.device_code(name, device)
  local code = M.code_of_device(device)
  if not code then fail(('%s: unknown device %s: cpu, cuda or cuda:N'):format(name, arguments.shown(device))) end
  return code
end

--- Fails unless x is a tensor.
--- @return Tensor x
function M.want_tensor(name, x)
  if not is_tensor(x) then fail(('%s: a tensor is needed, not %s'):format(name, arguments.shown(x))) end
  return x
end

--- Fails if a tensor has been freed, and says why.
function M.want_alive(name, t)
  local why = common.scope.why_freed(t)
  if why then fail(name .. ': ' .. why) end
end

--- Converts dimension d of a tensor (from 1, negative from the end) to C's number.
function M.dim_of(name, t, d)
  local rank = t.c.rank
  local k = d
  if type(d) ~= 'number' then fail(name .. ': a dimension is needed, not ' .. arguments.shown(d)) end
  if k < 0 then k = rank + 1 + k end
  if not (k >= 1 and k <= rank and k % 1 == 0) then
    fail(('%s: %s has no dimension %s'):format(name, M.shape_text(t), tostring(d)))
  end
  return k - 1
end

--- Calls fn(x, ...) with x in f32 (f64 stays), because in a chain of operations half floats would accumulate rounding
--- errors, and whole numbers cannot hold fractions. For a half float the result is converted back.
--- @param x Tensor
--- @return Tensor
function M.in_reals(x, fn, ...)
  local dtype = x.dtype
  if dtype == 'f32' or dtype == 'f64' then return common.scope.scope(fn, x, ...) end
  return common.scope.scope(function(...)
    local y = fn(x:to 'f32', ...)
    return (dtype == 'f16' or dtype == 'bf16') and y.dtype == 'f32' and y:to(dtype) or y
  end, ...)
end

--- '[2 3]'.
function M.shape_text(t)
  local parts = {}
  for i = 1, t.c.rank do parts[i] = t.c.shape[i - 1] end
  return '[' .. table.concat(parts, ' ') .. ']'
end

return M
