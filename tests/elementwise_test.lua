--- Elementwise operations against float64 references computed here.
local t = require 'tests.support.tap'
local cr = require 'cr'
local flat = require 'tests.support.flat'
local ffi = require 'ffi'

ffi.cdef 'double erf(double); double erfc(double); double log2(double); double log1p(double); double expm1(double);'

local randn, values, strided, distance = flat.randn, flat.values, flat.strided, flat.distance
local spread, promoted = flat.spread, flat.promoted
local floats = { 'f32', 'f16', 'bf16', 'f64' }
local integers = { 'u8', 'i8', 'i16', 'i32', 'i64' }

local function map(fn, ...)
  local lists, out = { ... }, {}
  local a, b = lists[1], lists[2]
  for i = 1, #a do
    if b then out[i] = fn(a[i], b[i]) else out[i] = fn(a[i]) end -- C functions count arguments
  end
  return out
end

local function round_even(x)
  local f = math.floor(x)
  local d = x - f
  if d > 0.5 or (d == 0.5 and f % 2 == 1) then return f + 1 end
  return f
end

local unary = {
  neg = function(x) return -x end, abs = math.abs, exp = math.exp,
  sin = math.sin, cos = math.cos, tanh = math.tanh, erf = ffi.C.erf,
  sigmoid = function(x) return 1 / (1 + math.exp(-x)) end,
  silu = function(x) return x / (1 + math.exp(-x)) end,
  gelu = function(x) return 0.5 * x * ffi.C.erfc(-x / math.sqrt(2)) end,
  relu = function(x) return math.max(x, 0) end,
  floor = math.floor, ceil = math.ceil, round = round_even,
  trunc = function(x) return x < 0 and math.ceil(x) or math.floor(x) end,
  square = function(x) return x * x end, reciprocal = function(x) return 1 / x end,
  sign = function(x) return x > 0 and 1 or x < 0 and -1 or x end, expm1 = ffi.C.expm1,
}
local positive = {
  log = math.log, log10 = math.log10, log2 = ffi.C.log2,
  log1p = ffi.C.log1p, sqrt = math.sqrt, rsqrt = function(x) return 1 / math.sqrt(x) end,
}

t.test("each unary operation of the core's table has a reference here", function()
  for op = 0, tonumber(cr.C.CR_UNARY_OPS) - 1 do
    local name = require 'cr.ffi'.unary[op]
    t.ok(unary[name] or positive[name] or name == 'logical_not', name .. ' has none: add it to `unary` or `positive` of this file')
  end
end)

-- Unary float functions compared with float64's, in each form.
local function check_unary(functions, input)
  local dtype = input.dtype
  for name, fn in pairs(functions) do
    local expected = map(fn, values(input))
    if dtype == 'f16' then -- the reciprocal of a number near 0 may exceed f16's range
      for i, v in ipairs(expected) do
        if math.abs(v) >= 65520 then expected[i] = v > 0 and math.huge or -math.huge end
      end
    end
    for _, view in ipairs { input, strided(input) } do
      local y = view[name](view)
      local e = distance(values(y), expected)
      t.ok(y.dtype == dtype and e <= flat.tolerance[dtype], ('%s %s: error %.3g'):format(name, dtype, e))
    end
  end
end

for _, dtype in ipairs(floats) do
  t.test('unary operations, ' .. dtype, function()
    t.each({ { 1 }, { 17 }, { 3, 5, 7 }, { 2, 2100 } }, function(shape)
      -- Below -4, GELU is smaller than the normal numbers of f16.
      check_unary(unary, (randn(shape) * 3):clamp(dtype == 'f16' and -4 or -9, 9):to(dtype))
      check_unary(positive, (randn(shape):square() + 0.01):to(dtype))
    end)
  end)
end

t.test('every f32 function stays within a few ulp over the whole range', function()
  -- Random bits, so all magnitudes and subnormals, but no NaN: LuaJIT cannot hold all NaNs.
  local n = 20000
  local bits = ffi.new('uint16_t[?]', 2 * n)
  for i = 0, n - 1 do
    bits[2 * i] = math.random(0, 65535)
    bits[2 * i + 1] = math.random(0, 0x7f7f) + math.random(0, 1) * 0x8000
  end
  local x = cr.from_pointer(bits, { n }, 'f32', bits)
  local given = values(x)
  local limits = { exp = 2, log = 2, log10 = 2, log2 = 2,
    log1p = 3, expm1 = 3, tanh = 2, erf = 2, sigmoid = 3, silu = 3, gelu = 6, sin = 2, cos = 2 }
  for name, limit in pairs(limits) do
    local fn = unary[name] or positive[name]
    local got, worst, at = values(x[name](x)), 0, 0
    for i = 1, n do
      local want = fn(given[i])
      local size = math.abs(want)
      -- silu and gelu lose bits where their result nearly vanishes; sin of huge numbers is libm's.
      if size < 3.4e38 and size > 1e-36 and given[i] == given[i] then
        local _, exponent = math.frexp(want)
        local ulp = 2 ^ (math.max(exponent, -125) - 24)
        local e = math.abs(got[i] - want) / ulp
        if e > worst or e ~= e then worst, at = e, given[i] end
      end
    end
    t.ok(worst <= limit, ('%s: %.2f ulp at %.9g'):format(name, worst, at))
  end
end)

t.test('special values', function()
  local inf, nan = math.huge, 0 / 0
  local x = cr.tensor { inf, -inf, nan, 0 }
  local expected = {
    exp = { inf, 0, nan, 1 }, log = { inf, nan, nan, -inf }, log10 = { inf, nan, nan, -inf },
    log2 = { inf, nan, nan, -inf }, log1p = { inf, nan, nan, 0 }, expm1 = { inf, -1, nan, 0 }, sign = { 1, -1, nan, 0 },
    sigmoid = { 1, 0, nan, 0.5 }, silu = { inf, 0, nan, 0 }, gelu = { inf, 0, nan, 0 },
    tanh = { 1, -1, nan, 0 }, erf = { 1, -1, nan, 0 }, relu = { inf, 0, nan, 0 },
    sin = { nan, nan, nan, 0 }, cos = { nan, nan, nan, 1 }, sqrt = { inf, nan, nan, 0 },
    reciprocal = { 0, 0, nan, inf },
  }
  for name, want in pairs(expected) do
    local got = values(x[name](x))
    for i = 1, 4 do
      t.ok(got[i] == want[i] or (got[i] ~= got[i] and want[i] ~= want[i]),
        ('%s of %g: %g, expected %g'):format(name, values(x)[i], got[i], want[i]))
    end
  end
  local big = cr.tensor { 1e7, -3e8 }
  t.near(big:sin(), { math.sin(1e7), math.sin(-3e8) }, 1e-6)
end)

t.test('integers and bool', function()
  for _, dtype in ipairs { 'i8', 'i16', 'i32', 'i64' } do
    local x = cr.tensor({ -3, 0, 5 }, { dtype = dtype })
    t.equal(x:neg().dtype, dtype)
    t.equal(table.concat(x:neg():tolist(), ' '), '3 0 -5')
    t.equal(table.concat(x:abs():tolist(), ' '), '3 0 5')
    t.equal(table.concat(x:square():tolist(), ' '), '9 0 25')
    t.equal(table.concat(x:relu():tolist(), ' '), '0 0 5')
  end
  local b = cr.tensor({ 1, 0 }, { dtype = 'bool' })
  t.equal(table.concat(b:logical_not():tolist(), ' '), '0 1')
  t.equal(cr.tensor({ 1 }, { dtype = 'i32' }):exp().dtype, 'f32', 'what floats alone have, others get in f32')
  t.near(cr.tensor { 1, 0 }:logical_not():to 'f32', { 0, 1 }, 0)
  local u = cr.tensor({ 250 }, { dtype = 'u8' })
  t.equal((u + 10):item(), 4, 'u8 wraps')
end)

local binary = {
  add = function(a, b) return a + b end, sub = function(a, b) return a - b end,
  mul = function(a, b) return a * b end, div = function(a, b) return a / b end,
  maximum = math.max, minimum = math.min,
}
local compare = {
  eq = function(a, b) return a == b and 1 or 0 end, ne = function(a, b) return a ~= b and 1 or 0 end,
  lt = function(a, b) return a < b and 1 or 0 end, le = function(a, b) return a <= b and 1 or 0 end,
  gt = function(a, b) return a > b and 1 or 0 end, ge = function(a, b) return a >= b and 1 or 0 end,
}

local pairs_of_shapes = {
  { { 5, 7 }, { 5, 7 }, { 5, 7 } }, { { 5, 7 }, { 7 }, { 5, 7 } }, { { 4, 1, 6 }, { 3, 1 }, { 4, 3, 6 } },
  { { 1 }, { 3, 2 }, { 3, 2 } }, { { 40, 3, 33 }, { 33 }, { 40, 3, 33 } }, { { 40, 1, 33 }, { 1, 9, 1 }, { 40, 9, 33 } },
  { { 2500 }, { 1 }, { 2500 } },
}

t.test('binary operations: broadcasting, strides, every pair of dtypes', function()
  local all = { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64' }
  for n, shapes in ipairs(pairs_of_shapes) do
    for _, da in ipairs(all) do
      for _, db in ipairs(all) do
        -- all pairs on the small shapes, every pair somewhere on the large ones
        if n < 5 or (da == 'f32' or db == 'f32') then
          cr.scope(function()
            local a = (randn(shapes[1]):abs() * 2 + 1):to(da)
            local b = (randn(shapes[2]):abs() * 2 + 1):to(db)
            if math.random() < 0.5 then a = strided(a) end
            if math.random() < 0.5 then b = strided(b) end
            local name, fn = 'add', binary.add
            local pick = math.random(6)
            for k, f in pairs(binary) do
              pick = pick - 1
              if pick == 0 then name, fn = k, f end
            end
            local result = promoted(da, db)
            local float = flat.tolerance[result] ~= nil
            local y = a[name](a, b)
            if not float and name == 'div' then result = 'f32' end
            local expected = map(fn, spread(a, shapes[3]), spread(b, shapes[3]))
            if result == 'u8' then
              for i = 1, #expected do expected[i] = expected[i] % 256 end -- wraps
            end
            local e = distance(values(y), expected)
            t.ok(y.dtype == result and e <= (flat.tolerance[result] or 0) * 2,
              ('%s of %s and %s gives %s, error %.3g'):format(name, da, db, y.dtype, e))
            for k, f in pairs(compare) do
              local c = a[k](a, b)
              t.ok(c.dtype == 'bool' and distance(values(c), map(f, spread(a, shapes[3]), spread(b, shapes[3]))) == 0,
                ('%s of %s and %s'):format(k, da, db))
            end
          end)
        end
      end
    end
  end
end)

t.test('numbers', function()
  local x = randn { 3, 700 }
  local v = values(x)
  t.ok(distance(values(x * 2.5), map(function(a) return a * 2.5 end, v)) < 1e-7)
  t.ok(distance(values(1 - x), map(function(a) return 1 - a end, v)) < 1e-7)
  t.ok(distance(values(2 / x), map(function(a) return 2 / a end, v)) < 1e-7)
  for _, power in ipairs { 2, 3, 0.5, -0.5, -1, 1.7 } do
    local a = x:abs() + 0.1
    t.ok(distance(values(a ^ power), map(function(e) return e ^ power end, values(a))) < 2e-7, 'power ' .. power)
  end
  t.ok(distance(values(2 ^ x), map(function(e) return 2 ^ e end, v)) < 2e-7)
  for _, dtype in ipairs(integers) do
    local k = cr.tensor({ 1, 2, 3 }, { dtype = dtype })
    t.equal((k + 1).dtype, dtype)
    t.equal((k * 0.5).dtype, 'f32')
    t.equal((k / 2).dtype, 'f32')
    t.equal((k ^ 2).dtype, 'f32')
    t.equal(table.concat((k * 0.5):tolist(), ' '), '0.5 1 1.5')
    t.equal(table.concat((k:gt(1.5)):tolist(), ' '), '0 1 1')
  end
  t.equal(table.concat((cr.tensor({ 2, -3 }, { dtype = 'i32' }) ^ cr.tensor({ 3, 3 }, { dtype = 'i32' })):tolist(), ' '), '8 -27')
  local nan = cr.tensor { 0 / 0, 1 }
  t.ok(nan:maximum(2):tolist()[1] ~= nan:maximum(2):tolist()[1], 'maximum passes nan on')
  local b = cr.tensor({ 1, 0, 1 }, { dtype = 'bool' })
  t.equal(table.concat((b * 3):tolist(), ' '), '3 0 3')
end)

t.test('clamp, where, lincomb', function()
  for _, dtype in ipairs(floats) do
    local x = randn { 4, 9 }:to(dtype)
    local c = strided(x):clamp(-0.5, 0.75)
    t.ok(distance(values(c), map(function(a) return math.min(math.max(a, -0.5), 0.75) end, values(x))) < flat.tolerance[dtype])
    local y = randn { 9 }:to(dtype)
    local w = cr.where(x:gt(0), x, y)
    t.ok(distance(values(w), map(function(a, b) return a > 0 and a or b end, values(x), spread(y, { 4, 9 }))) == 0)
    local z = randn { 4, 9 }:to(dtype)
    local l = cr.lincomb({ x, strided(z) }, { 0.3, -1.7 })
    t.ok(distance(values(l), map(function(a, b) return 0.3 * a - 1.7 * b end, values(x), values(z))) < flat.tolerance[dtype])
  end
  t.equal(table.concat(cr.tensor({ 1, 5, 9 }, { dtype = 'i32' }):clamp(1.5, 6.5):tolist(), ' '), '2 5 6')
  local wide = cr.lincomb({ cr.tensor { 1 }, cr.tensor({ 1e-12 }, { dtype = 'f64' }) }, { 1, 1 })
  t.equal(wide.dtype, 'f64')
  t.equal(wide:item(), 1 + 1e-12)
end)

t.test('in-place results', function()
  local x, y = randn { 50, 60 }, randn { 60 }
  local before, other = values(x), spread(y, { 50, 60 })
  cr.check(cr.C.cr_binary(x.c, cr.C.CR_MUL, x.c, y.c))
  t.ok(distance(values(x), map(binary.mul, before, other)) < 1e-7)
  before = values(x)
  cr.check(cr.C.cr_unary(x.c, cr.C.CR_SIGMOID, x.c))
  t.ok(distance(values(x), map(unary.sigmoid, before)) < 3e-7)
  local s = strided(x)
  before = values(s)
  cr.check(cr.C.cr_unary(s.c, cr.C.CR_SQUARE, s.c))
  t.ok(distance(values(s), map(unary.square, before)) < 3e-7)
end)

t.test('the result does not depend on the number of threads', function()
  local x = randn { 70, 1001 }
  local y = randn { 1001 }
  local was = cr.threads()
  cr.threads(1)
  local one = values(x:gelu() + y)
  cr.threads(3)
  local three = values(x:gelu() + y)
  cr.threads(was)
  t.equal(distance(one, three), 0)
end)

t.test('error messages', function()
  t.raises(function() return cr.ones(2, 3) + cr.ones(2, 2) end, 'add: shapes do not broadcast: %[2 3%] and %[2 2%]')
  t.raises(function() return cr.lincomb({ cr.ones(2), cr.ones(3) }, { 1, 1 }) end, 'lincomb: shapes differ: %[2%] and %[3%]')
  t.raises(function() return cr.where(cr.ones(2), cr.ones(2), cr.ones(2)) end, 'where: the condition must be bool or u8')
  t.raises(function() return cr.ones(2):clamp(0 / 0, 1) end, 'clamp: a limit is nan')
  t.raises(function() return cr.lincomb({ cr.ones(2):to 'i32' }, { 1 }) end, 'lincomb: a float tensor is needed')
  local freed = cr.ones(2)
  freed:free()
  t.raises(function() return freed + 1 end, 'add: the tensor has been freed')
end)

t.done()
