--- Tests every operation of base/operations.h with random dtypes, shapes and views.
--
-- The expected results are computed here in float64: by a function in this file, else by the C library's function of
-- the same name. An operation with neither is compared with its own f64 result, and the test says so. CR_SEED=N
-- repeats a run.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local cr = require 'cr'
local t = require 'tests.support.tap'
local cuda = require 'tests.support.cuda'
local flat = require 'tests.support.flat'

local M = {}

local C = base.C
local all = { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64', 'bool' }

-- ---- expected results ----------------------------------------------------------------

local function library(name, declaration)
  pcall(ffi.cdef, declaration:format(name))
  local ok, fn = pcall(function() return ffi.C[name] end)
  return ok and fn or nil
end
local erfc, rint, pow = library('erfc', 'double %s(double);'), library('rint', 'double %s(double);'),
  library('pow', 'double %s(double, double);')

local function truth(b) return b and 1 or 0 end

local unary = {
  neg = function(x) return -x end, abs = math.abs, rsqrt = function(x) return 1 / math.sqrt(x) end,
  sigmoid = function(x) return 1 / (1 + math.exp(-x)) end,
  silu = function(x) return x < -700 and 0 or x / (1 + math.exp(-x)) end,
  gelu = function(x) return x < -40 and 0 or 0.5 * x * erfc(-x / math.sqrt(2)) end,
  relu = function(x) return x < 0 and 0 or x end, round = rint,
  square = function(x) return x * x end, reciprocal = function(x) return 1 / x end,
  logical_not = function(x) return truth(x == 0) end,
  sign = function(x) return x > 0 and 1 or x < 0 and -1 or x end,
}

-- The remainder of a floored division a / b.
local function remainder(a, b)
  local r = math.fmod(a, b)
  return r ~= 0 and (r < 0) ~= (b < 0) and r + b or r
end

local binary = {
  add = function(a, b) return a + b end, sub = function(a, b) return a - b end,
  mul = function(a, b) return a * b end, div = function(a, b) return a / b end, pow = pow,
  maximum = function(a, b) return (a > b or a ~= a) and a or b end,
  minimum = function(a, b) return (a < b or a ~= a) and a or b end,
  remainder = remainder, fmod = math.fmod, atan2 = math.atan2,
}
local compare = {
  eq = function(a, b) return truth(a == b) end, ne = function(a, b) return truth(a ~= b) end,
  lt = function(a, b) return truth(a < b) end, le = function(a, b) return truth(a <= b) end,
  gt = function(a, b) return truth(a > b) end, ge = function(a, b) return truth(a >= b) end,
}

local function total(g)
  local s = 0
  for _, v in ipairs(g) do s = s + v end
  return s
end

-- The position of the first best element; the first NaN is better than all.
local function position(better)
  return function(g)
    local at = 1
    for i = 2, #g do
      local v, best = g[i], g[at]
      if best == best and (v ~= v or better(v, best)) then at = i end
    end
    return at
  end
end
local greatest = position(function(a, b) return a > b end)
local least = position(function(a, b) return a < b end)

local reduce = {
  sum = total, mean = function(g) return total(g) / #g end,
  max = function(g) return g[greatest(g)] end, min = function(g) return g[least(g)] end,
  argmax = greatest, argmin = least,
  var = function(g)
    local mean, s = total(g) / #g, 0
    for _, v in ipairs(g) do s = s + (v - mean) ^ 2 end
    return s / #g
  end,
}

-- ---- inputs -------------------------------------------------------------------------------

local function one_of(list) return list[math.random(#list)] end

local function draw_shape()
  local shape = {}
  for k = 1, math.random(0, 4) do shape[k] = one_of { 1, 2, 3, 5, 8, 17 } end
  if math.random(6) == 1 then shape = { math.random(2000, 5000) } end -- more than one chunk
  if math.random(6) == 1 then shape = { math.random(2, 5), math.random(500, 1100) } end
  return shape
end

-- Random numbers in a shape: floats around zero with a few special values, integers within `most`.
local function draw(shape, dtype, most)
  return cr.scope(function()
    local x = cuda.randn(shape) * 3
    if dtype == 'bool' then return x:gt(0) end
    if not flat.tolerance[dtype] then
      local low = dtype:sub(1, 1) == 'u' and 0 or -most
      return (x * (most / 4)):round():clamp(low, most):to(dtype)
    end
    local special = { 0, -0.0, 1, -1, 0.5, math.huge, -math.huge, 0 / 0, 100, -100 }
    if math.random(2) == 1 then
      for _ = 1, 5 do
        local here = cr.rand(shape):lt(1 / (1 + x:numel()))
        x = cr.where(here, cr.full({}, one_of(special)), x)
      end
    end
    return x:to(dtype)
  end)
end

-- A view on a device with a tensor's numbers: dense, with gaps, transposed, a part, or one element repeated.
local function layout(x, device)
  local rank = x:dim()
  if device ~= 'cpu' then x = x:to(device) end
  local way = rank > 0 and math.random(5) or 1
  if way == 2 then return flat.strided(x) end
  if way == 3 then
    local a, b = math.random(rank), math.random(rank)
    return x:transpose(a, b):contiguous():transpose(a, b)
  end
  if way == 4 then
    local d = math.random(rank)
    return cr.cat({ x, x, x }, d):narrow(d, x:size(d), x:size(d))
  end
  if way == 5 then
    local d = math.random(rank)
    return x:narrow(d, 1, 1):expand(unpack(x.shape))
  end
  return x
end

-- The same on the CPU, which gives the reference's numbers, and on the device.
local function placed(x, device)
  local view = layout(x, device)
  return view:to 'cpu', view
end

-- ---- comparing ----------------------------------------------------------------------------------

-- Allowed relative errors for f32 arithmetic and rounding to the dtype.
local allowed = { f32 = 4e-6, f16 = 1e-3, bf16 = 5e-3, f64 = 1e-13 }
local largest = { f32 = 2 ^ 128, f16 = 65520, bf16 = 2 ^ 128, f64 = math.huge }
local bits = { u8 = 8, i8 = 8, i16 = 16, i32 = 32 } -- float64 cannot compute remainders modulo 2^64 for i64

-- Converts a number to a dtype: large ones become infinite, integers wrap, bool is "not 0".
local function stored(v, dtype)
  if dtype == 'bool' then return truth(v ~= 0) end
  if largest[dtype] then
    return math.abs(v) >= largest[dtype] * (1 - allowed[dtype]) and (v > 0 and math.huge or -math.huge) or v
  end
  v = v < 0 and math.ceil(v) or math.floor(v)
  if not bits[dtype] then return v end
  local period = 2 ^ bits[dtype]
  v = v % period
  return dtype ~= 'u8' and v >= period / 2 and v - period or v
end

local function check(y, expected, what, loose)
  y = y:to 'cpu'
  if flat.tolerance[y.dtype] then y = y:to 'f64' end -- with the canonical NaN, the only one that LuaJIT handles
  local dtype = what.dtype
  local tolerance = (allowed[dtype] or 0) * (loose or 1)
  local got = flat.values(y)
  if #got ~= #expected then return t.ok(false, ('%s: %d numbers, expected %d'):format(what.text, #got, #expected)) end
  for i = 1, #got do
    local a, b = got[i], stored(expected[i], dtype)
    if not largest[dtype] then a = tonumber(a) end
    if not (a == b or a ~= a and b ~= b or math.abs(b) == math.huge and math.abs(a) >= largest[dtype] * 0.99
        or math.abs(a - b) <= tolerance * math.max(math.abs(b), 1e-2)) then
      return t.ok(false, ('%s: element %d is %.9g, expected %.9g (CR_SEED=%d)'):format(what.text, i, a, b, cuda.seed))
    end
  end
  return t.ok(true)
end

local function text_of(x)
  local strides = {}
  for k = 1, x:dim() do strides[k] = tonumber(x.c.stride[k - 1]) end
  return ('%s [%s] strides [%s]'):format(x.dtype, table.concat(x.shape, ' '), table.concat(strides, ' '))
end

-- An output tensor: none, or one with gaps that is full of other values.
local function target(shape, dtype, device)
  if math.random(2) == 1 then return nil end
  local out = cr.full(shape, flat.tolerance[dtype] and 0 / 0 or 1, { dtype = dtype })
  return flat.strided(out:to(device))
end

local function filled(call, out, other)
  if out then
    base.check(call(out.c))
    return out
  end
  return other()
end

-- Applies fn to the elements of lists.
local function map(fn, a, b)
  local out = {}
  for i = 1, #a do
    if b then out[i] = fn(a[i], b[i]) else out[i] = fn(a[i]) end -- C functions count their arguments
  end
  return out
end

-- ---- the tests ----------------------------------------------------------------------------------

local DRAWS = 4

local function own_f64(name)
  print(('# %s has no float64 reference: it is held to its f64 form'):format(name))
end

-- Unary operations whose result for integers (and bool) stays an integer; other operations return f32.
local whole_under = { neg = true, abs = true, sign = true, relu = true, square = true, floor = true, ceil = true, trunc = true,
  round = true, logical_not = true }

local function test_unary(name, op, device)
  local fn = unary[name] or library(name, 'double %s(double);')
  if not fn then own_f64(name) end
  local taken = 0
  for _, dtype in ipairs(all) do
    for _ = 1, DRAWS do
      cr.scope(function()
        local x, given = placed(draw(draw_shape(), dtype, dtype == 'i32' and 1000 or 120), device)
        local float = not whole_under[name] and not flat.tolerance[dtype]
        local result = name == 'logical_not' and 'bool' or float and 'f32' or dtype
        local ok, y = pcall(function()
          return filled(function(out) return C.cr_unary(out, op, given.c) end, target(x.shape, result, device),
            function() return given[name](given) end)
        end)
        if not ok then
          t.ok(tostring(y):find(name .. ': bool is needed', 1, true), ('%s of %s: %s'):format(name, text_of(x), tostring(y)))
          return
        end
        taken = taken + 1
        local expected = fn and map(fn, flat.values(x)) or flat.values(x[name](x:to 'f64'))
        t.equal(y.dtype, result, name)
        check(y, expected, { dtype = result, text = ('%s of %s'):format(name, text_of(given)) })
      end)
    end
  end
  t.ok(taken > 0, name .. ' takes no dtype at all')
end

-- Shapes that broadcast to each other, and the resulting shape.
local function broadcast_pair()
  local shape = draw_shape()
  local a, b = { unpack(shape) }, { unpack(shape) }
  for k = 1, #shape do
    local which = math.random(5)
    if which == 1 then a[k] = 1 elseif which == 2 then b[k] = 1 end
  end
  while #b > 0 and math.random(4) == 1 do table.remove(b, 1) end
  local both = {}
  for k = 1, #shape do both[k] = math.max(a[k], b[k - (#shape - #b)] or 1) end
  if math.random(2) == 1 then a, b = b, a end
  return a, b, both
end

-- Integers for pow are chosen such that float64 holds the result; negative powers are truncated. An integer division
-- by 0 gives 0.
local divides = { remainder = true, fmod = true }
local function whole(name, fn)
  if divides[name] then return function(a, b) return b == 0 and 0 or fn(a, b) end end
  if name ~= 'pow' then return fn end
  return function(a, b)
    local v = pow(a, b)
    return math.abs(v) == math.huge and 0 or v
  end
end

local function binary_reference(name)
  local fn = compare[name] or binary[name] or library(name, 'double %s(double, double);')
  if not fn then own_f64(name) end
  return fn
end

local real = { div = true, atan2 = true } -- integers give floats
local function expected_dtype(name, dtype)
  if compare[name] then return 'bool' end
  return real[name] and not flat.tolerance[dtype] and 'f32' or dtype
end

local function test_binary(name, op, device)
  local fn = binary_reference(name)
  for _, da in ipairs(all) do
    for _ = 1, DRAWS do
      cr.scope(function()
        local db = one_of(all)
        local shape_a, shape_b, both = broadcast_pair()
        local most = name == 'pow' and 3 or 100
        local a, p = placed(draw(shape_a, da, most), device)
        local b, q = placed(draw(shape_b, db, most), device)
        local dtype = flat.promoted(da, db)
        local result = (compare[name] or binary[name]) and expected_dtype(name, dtype) or p[name](p, q).dtype
        local y = filled(function(out) return C.cr_binary(out, op, p.c, q.c) end, target(both, result, device),
          function() return p[name](p, q) end)
        local reference = flat.tolerance[dtype] and fn or whole(name, fn)
        local expected = fn and map(reference, flat.spread(a, both), flat.spread(b, both))
          or flat.values(a[name](a:to 'f64', b:to 'f64'))
        t.equal(y.dtype, result, name)
        t.equal(table.concat(y.shape, ' '), table.concat(both, ' '), name)
        check(y, expected, { dtype = result, text = ('%s of %s and %s'):format(name, text_of(p), text_of(q)) })
      end)
    end
  end
end

local function test_numbers(name, op, device)
  local fn = binary_reference(name)
  if not fn then return t.ok(true) end
  for _, dtype in ipairs(all) do
    for _ = 1, DRAWS do
      cr.scope(function()
        local x, given = placed(draw(draw_shape(), dtype, name == 'pow' and 3 or 100), device)
        local number, reversed = one_of { 2, 0.5, -0.5, -1, 3, -2.5, 0, 7, 1 }, math.random(2) == 1
        -- Integers with a fractional number, a quotient or a power are computed in f32.
        local float = flat.tolerance[dtype] ~= nil
        local result = dtype == 'bool' and 'i64' or dtype
        if not float and (number % 1 ~= 0 or real[name] or name == 'pow') then result = 'f32' end
        if compare[name] then result = 'bool' end
        local y = filled(function(out) return C.cr_binary_scalar(out, op, given.c, number, truth(reversed)) end,
          (compare[name] or binary[name]) and target(x.shape, result, device),
          function()
            if reversed then return given[name](number, given) end
            return given[name](given, number)
          end)
        if compare[name] or binary[name] then t.equal(y.dtype, result, name) end
        -- x ^ 0.5 is computed as sqrt(x), which differs from pow at -inf.
        local root = name == 'pow' and math.abs(number) == 0.5 and float and dtype ~= 'f64'
        local reference = divides[name] and not flat.tolerance[result] and whole(name, fn) or fn
        local expected = map(function(v)
          if reversed then return reference(number, v) end
          if root and v == -math.huge then return 0 / 0 end
          return reference(v, number)
        end, flat.values(x))
        check(y, expected, { dtype = y.dtype,
          text = ('%s of %s and %g%s'):format(name, text_of(given), number, reversed and ', reversed' or '') })
      end)
    end
  end
end

local function test_reduce(name, op, device)
  local fn = reduce[name]
  if not fn then own_f64(name) end
  for _, dtype in ipairs(all) do
    for _ = 1, DRAWS do
      cr.scope(function()
        local shape = draw_shape()
        local x, given = placed(draw(shape, dtype, 100), device)
        local keep = math.random(2) == 1
        local dims, mask, one = {}, {}, name:find '^arg'
        for k = 1, #shape do
          if math.random(2) == 1 and not (one and #dims > 0) then dims[#dims + 1] = k end
        end
        for _, k in ipairs(dims) do mask[k] = true end
        for k = 1, #shape do mask[k] = #dims == 0 or mask[k] or false end
        local y = given[name](given, #dims > 0 and dims or nil, keep)
        local expected = {}
        if fn then
          for i, g in ipairs(flat.groups(flat.values(x), shape, mask)) do expected[i] = fn(g) end
        else
          expected = flat.values(x[name](x:to 'f64', #dims > 0 and dims or nil, keep):to 'f64')
        end
        local kept = {}
        for k = 1, #shape do
          if keep or not mask[k] then kept[#kept + 1] = mask[k] and 1 or shape[k] end
        end
        t.equal(table.concat(y.shape, ' '), table.concat(kept, ' '), name)
        check(y, expected, { dtype = y.dtype, text = ('%s (%d) over [%s] of %s'):format(name, op, table.concat(dims, ' '),
          text_of(given)) }, 10)
      end)
    end
  end
end

--- Declares a test for each operation of the table.
--- @param test function t.test, or the GPU's
--- @param device string
function M.run(test, device)
  print(('# CR_SEED=%d'):format(cuda.seed))
  for op = 0, C.CR_UNARY_OPS - 1 do
    local name = base.unary[op]
    test(name, function() test_unary(name, op, device) end)
  end
  for op = 0, C.CR_BINARY_OPS - 1 do
    local name = base.binary[op]
    test(name, function() test_binary(name, op, device) end)
    test(name .. ' with a number', function() test_numbers(name, op, device) end)
  end
  for op = 0, C.CR_REDUCE_OPS - 1 do
    local name = base.reduce[op]
    test(name, function() test_reduce(name, op, device) end)
  end
end

return M
