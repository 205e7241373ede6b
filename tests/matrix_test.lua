--- Products, linear layers, softmax and GEGLU against float64 references computed here in Lua.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local lists = require 'tests.support.flat'

local randn, values = lists.randn, lists.values

math.randomseed(os.time())

-- f64 [m n] = a [m k] b [k n], flat tables.
local function product(a, b, m, k, n)
  local out = {}
  for i = 0, m - 1 do
    for j = 0, n - 1 do
      local sum = 0
      for l = 0, k - 1 do sum = sum + a[i * k + l + 1] * b[l * n + j + 1] end
      out[i * n + j + 1] = sum
    end
  end
  return out
end

local function tensor(flat, ...) return cr.tensor(flat, { dtype = 'f64' }):view(...) end

-- Rounding of storage: a half type's relative error, else that of float32.
local tolerance = { f32 = 5e-7, f16 = 6e-4, bf16 = 5e-3, f64 = 1e-14 }

for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
  t.test('matmul ' .. dtype .. ', odd sizes', function()
    for _, s in ipairs { { 1, 1, 1 }, { 2, 3, 2 }, { 7, 13, 5 }, { 1, 64, 33 }, { 33, 64, 1 }, { 65, 1, 17 }, { 31, 129, 67 } } do
      local m, k, n = s[1], s[2], s[3]
      local a, b = randn { m, k }:to(dtype), randn { k, n }:to(dtype)
      local c = a:matmul(b)
      t.equal(c.dtype, dtype)
      t.near(c, tensor(product(values(a), values(b), m, k, n), m, n), tolerance[dtype],
        ('[%d %d] x [%d %d]'):format(m, k, k, n))
    end
  end)
end

for _, dtype in ipairs { 'f32', 'f64' } do
  t.test('matmul of views, ' .. dtype, function()
    local m, k, n = 9, 21, 11
    local a, b = randn { m, k }:to(dtype), randn { k, n }:to(dtype)
    local expected = tensor(product(values(a), values(b), m, k, n), m, n)
    local tol = tolerance[dtype]
    t.near(a:t():contiguous():t():matmul(b), expected, tol, 'a transposed')
    t.near(a:matmul(b:t():contiguous():t()), expected, tol, 'b transposed')
    local wide = randn { 2 * m, 3 * k }:to(dtype)
    wide:slice(1, 1, 2 * m, 2):slice(2, k + 1, 2 * k):copy_(a)
    t.near(wide:slice(1, 1, 2 * m, 2):slice(2, k + 1, 2 * k):matmul(b), expected, tol, 'a with gaps between rows')
    local sparse = randn { k, 2 * n }:to(dtype)
    sparse:slice(2, 1, 2 * n, 2):copy_(b)
    t.near(a:matmul(sparse:slice(2, 1, 2 * n, 2)), expected, tol, 'b with gaps between columns')
    local row = randn { 1, k }:to(dtype)
    t.near(row:expand(m, k):matmul(b), tensor(product(values(row:expand(m, k)), values(b), m, k, n), m, n), tol,
      'repeated rows')
    local column = randn { k, 1 }:to(dtype)
    t.near(a:matmul(column:expand(k, n)),
      tensor(product(values(a), values(column:expand(k, n)), m, k, n), m, n), tol, 'repeated columns')
  end)
end

-- The product of every pair of matrices of a [B1 B2 m k] and b (broadcast), by select.
local function by_pairs(a, b)
  local b1, b2, m, k, n = a:size(1), a:size(2), a:size(3), a:size(4), b:size(-1)
  local flat = {}
  for i = 1, b1 do
    for j = 1, b2 do
      local x = a:select(1, i):select(1, j)
      local y = b:expand(b1, b2, k, n):select(1, i):select(1, j)
      for _, v in ipairs(product(values(x), values(y), m, k, n)) do flat[#flat + 1] = v end
    end
  end
  return tensor(flat, b1, b2, m, n)
end

t.test('matmul over leading dimensions', function()
  for _, dtype in ipairs { 'f32', 'f16', 'f64' } do
    local tol = tolerance[dtype]
    local a = randn { 3, 2, 5, 7 }:to(dtype)
    for _, shape in ipairs { { 7, 4 }, { 2, 7, 4 }, { 3, 2, 7, 4 }, { 3, 1, 7, 4 }, { 1, 2, 7, 4 } } do
      local b = randn(shape):to(dtype)
      t.near(a:matmul(b), by_pairs(a, b), tol, dtype .. ' b [' .. table.concat(shape, ' ') .. ']')
    end
    local swapped = randn { 2, 3, 5, 7 }:to(dtype):transpose(1, 2)
    local b = randn { 3, 2, 7, 4 }:to(dtype)
    t.near(swapped:matmul(b), by_pairs(swapped, b), tol, dtype .. ' leading dimensions swapped')
    local heads = randn { 3, 5, 2, 7 }:to(dtype):permute(1, 3, 2, 4) -- as in attention [B T h d]
    t.near(heads:matmul(b), by_pairs(heads, b), tol, dtype .. ' heads behind tokens')
  end
end)

t.test('matmul with empty sizes', function()
  t.equal(cr.empty(0, 3):matmul(cr.empty(3, 2)):numel(), 0)
  t.near(cr.empty(2, 0):matmul(cr.empty(0, 3)), cr.zeros(2, 3, { dtype = 'f64' }), 0)
end)

t.test('matmul reports wrong arguments', function()
  local a = cr.ones(2, 3)
  t.raises(function() a:matmul(a) end, 'matmul: inner sizes differ: %[2 3%] x %[2 3%]')
  t.raises(function() cr.ones(3):matmul(a) end, 'matmul: inner sizes differ: %[1 3%] x %[2 3%]') -- a vector is a row
  t.raises(function() a:matmul(cr.ones(3, 2, { dtype = 'f16' })) end, 'matmul: dtypes differ: f32 %[2 3%] x f16 %[3 2%]')
  t.raises(function() cr.ones(2, 2, 3):matmul(cr.ones(3, 3, 2)) end, 'matmul: leading sizes differ: %[2 2 3%] x %[3 3 2%]')
  t.raises(function() a:to 'i32':matmul(a) end, 'matmul: a float tensor is needed')
  local freed = cr.ones(3, 2)
  freed:free()
  t.raises(function() a:matmul(freed) end, 'matmul: the tensor has been freed')
end)

-- Our own erf in float64, by its series and its continued fraction.
local function erf(x)
  local a = math.abs(x)
  if a < 2.5 then
    local sum, term, n = a, a, 0
    while math.abs(term) > 1e-18 * math.abs(sum) do
      n = n + 1
      term = -term * a * a / n
      sum = sum + term / (2 * n + 1)
    end
    return (x < 0 and -1 or 1) * sum * 2 / math.sqrt(math.pi)
  end
  local f = 0
  for k = 80, 1, -1 do f = k / 2 / (a + f) end
  return (x < 0 and -1 or 1) * (1 - math.exp(-a * a) / (a + f) / math.sqrt(math.pi))
end

local acts = {
  none = function(x) return x end,
  silu = function(x) return x / (1 + math.exp(-x)) end,
  gelu = function(x) return 0.5 * x * (1 + erf(x / math.sqrt(2))) end,
  relu = function(x) return math.max(x, 0) end,
  relu6 = function(x) return math.min(math.max(x, 0), 6) end,
}

local function linear_reference(w, x, act, residual)
  local n, k = w.weight:size(1), w.weight:size(2)
  local m = x:numel() / k
  local flat = product(values(x), values(w.weight:t()), m, k, n)
  local bias, rest = w.bias and values(w.bias), residual and values(residual)
  for i = 0, m - 1 do
    for j = 1, n do
      local at = i * n + j
      flat[at] = acts[act or 'none'](flat[at] + (bias and bias[j] or 0)) + (rest and rest[at] or 0)
    end
  end
  local shape = x.shape
  shape[#shape] = n
  return tensor(flat, shape)
end

for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
  t.test('linear ' .. dtype .. ' with bias, activations and residual', function()
    -- GELU's tail is the difference of nearly equal numbers, both in oneDNN and in the reference.
    local tol = math.max(tolerance[dtype], dtype == 'f64' and 1e-12 or 3e-6)
    for _, s in ipairs { { 9, 1, 7 }, { 1, 32, 24 }, { 37, 19, 45 } } do
      local m, k, n = s[1], s[2], s[3]
      local w = { weight = randn { n, k }:to(dtype), bias = randn { n }:to(dtype) }
      local x, residual = randn { m, k }:to(dtype) * 2, randn { m, n }:to(dtype)
      t.near(nn.linear({ weight = w.weight }, x), linear_reference({ weight = w.weight }, x), tol, 'no bias')
      for act in pairs(acts) do
        t.near(nn.linear(w, x, { act = act }), linear_reference(w, x, act), tol, act)
        t.near(nn.linear(w, x, { act = act, residual = residual }), linear_reference(w, x, act, residual), tol,
          act .. ' and residual')
      end
    end
  end)
end

t.test('linear of more dimensions, views and mixed dtypes', function()
  local w = { weight = randn { 10, 12 }, bias = randn { 10 } }
  local x = randn { 2, 3, 5, 12 }
  local expected = linear_reference(w, x)
  t.near(nn.linear(w, x), expected, 5e-7, '4-D')
  local packed = randn { 2, 3, 5, 36 }
  packed:slice(4, 13, 24):copy_(x)
  t.near(nn.linear(w, packed:slice(4, 13, 24)), expected, 5e-7, 'a slice of packed rows')
  local turned = x:permute(1, 3, 2, 4)
  t.near(nn.linear(w, turned), linear_reference(w, turned), 5e-7, 'swapped tokens')
  local half = { weight = w.weight:to 'f16', bias = w.bias:to 'bf16' }
  local out = nn.linear(half, x)
  t.equal(out.dtype, 'f32', 'the result has x\'s dtype')
  t.near(out, linear_reference(half, x), 5e-7, 'f16 weight, bf16 bias, f32 x')
  local transposed = { weight = randn { 12, 10 }:t(), bias = w.bias }
  t.near(nn.linear(transposed, x), linear_reference(transposed, x), 5e-7, 'a transposed weight')
  t.near(nn.linear(w, randn { 12 }:copy_(x:view(30, 12):select(1, 1))), expected:view(30, 10):select(1, 1), 5e-7, '1-D')
end)

-- The same numbers in views of all kinds, surrounded by NaN.
local function layouts(x)
  local n, shape = x:dim(), x.shape
  local function empty(sizes) return cr.full(sizes, 0 / 0, { dtype = x.dtype }) end
  local wide, turned, gaps = x.shape, x.shape, {}
  wide[n] = wide[n] + 3
  turned[n], turned[n - 1] = turned[n - 1], turned[n]
  for i = 1, n do gaps[i] = 2 * shape[i] + 1 end
  local apart = empty(gaps)
  for i = 1, n do apart = apart:slice(i, 2, 2 * shape[i] + 1, 2) end
  return {
    dense = x, wide = empty(wide):narrow(n, 2, shape[n]):copy_(x), turned = empty(turned):transpose(-1, -2):copy_(x),
    gaps = apart:copy_(x), shifted = empty { x:numel() + 1 }:slice(1, 2, x:numel() + 1):view(shape):copy_(x),
  }
end

-- oneDNN adds the residual in one of two ways, with kernels that depend on sizes and strides; some of conv2d's were
-- wrong.
t.test('linear with a residual: random sizes, layouts, dtypes and alignments', function()
  local sizes, names = { 1, 2, 3, 5, 8, 13, 16, 17, 31, 32, 33, 48, 64, 65 }, { 'dense', 'wide', 'turned', 'gaps', 'shifted' }
  local act_names, dtypes = { 'none', 'silu', 'gelu', 'relu', 'relu6' }, { 'f32', 'f32', 'f16', 'bf16', 'f64' }
  local function pick(list) return list[math.random(#list)] end
  for _ = 1, 150 do
    cr.scope(function()
      local dtype, act, m, k, n = pick(dtypes), pick(act_names), pick(sizes), pick(sizes), pick(sizes)
      local lead = pick { {}, { 2 }, { 3, 2 } }
      local function shape(last)
        local list = { unpack(lead) }
        list[#list + 1], list[#list + 2] = m, last
        return list
      end
      local w = { weight = (randn { n, k } * k ^ -0.5):to(dtype), bias = math.random(2) == 1 and randn { n }:to(dtype) or nil }
      local x, residual = randn(shape(k)):to(dtype), randn(shape(n)):to(dtype)
      local want = linear_reference(w, x, act, residual)
      local way, on_x, on_w, on_r, on_out = pick { 'new', 'given', 'in place' }, pick(names), pick(names), pick(names), pick(names)
      local place = layouts(residual)[on_r]
      local out = way == 'in place' and place or way == 'given' and layouts(residual:clone():fill_(0 / 0))[on_out] or nil
      local got = nn.linear({ weight = layouts(w.weight)[on_w], bias = w.bias }, layouts(x)[on_x],
        { act = act, residual = place, out = out })
      local off = (got:to 'f64' - want):abs():max():item()
      local allowed = math.max(tolerance[dtype], 3e-6 * (dtype == 'f64' and 0 or 1), 1e-12) * (want:abs():max():item() + 1)
      t.ok(off <= allowed, ('%s [%s] -> %d %s%s: x %s, weight %s, residual %s, %s %s: off by %.3g'):format(dtype,
        table.concat(x.shape, ' '), n, act, w.bias and ', bias' or '', on_x, on_w, on_r, way, on_out, off))
    end)
  end
end)

t.test('linear uses a weight that was changed in place', function()
  local w, x = { weight = randn { 16, 16 } }, randn { 4, 16 }
  t.near(nn.linear(w, x), linear_reference(w, x), 5e-7)
  w.weight:fill_(0.5)
  t.near(nn.linear(w, x), linear_reference(w, x), 1e-6)
end)

t.test('linear reports wrong arguments', function()
  local w = { weight = cr.ones(4, 3), bias = cr.ones(4) }
  t.raises(function() nn.linear(w, cr.ones(2, 5)) end, 'linear: inner sizes differ: %[2 5%] x weight %[4 3%]')
  t.raises(function() nn.linear({ weight = w.weight, bias = cr.ones(3) }, cr.ones(2, 3)) end,
    'linear: the bias %[3%] does not fit weight %[4 3%]')
  t.raises(function() nn.linear(w, cr.ones(2, 3), { residual = cr.ones(2, 3) }) end,
    'linear: the residual %[2 3%] does not fit %[2 3%] x weight %[4 3%]')
  t.raises(function() nn.linear({ weight = cr.ones(4) }, cr.ones(2, 4)) end, 'linear: x %[... K%] and weight %[N K%]')
end)

t.test('softmax', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
    for _, shape in ipairs { { 1 }, { 3, 7 }, { 2, 5, 129 } } do
      local x = (randn(shape) * 8):to(dtype)
      local flat, n = values(x), shape[#shape]
      for i = 0, #flat / n - 1 do
        local high, sum = -math.huge, 0
        for j = 1, n do high = math.max(high, flat[i * n + j]) end
        for j = 1, n do sum = sum + math.exp(flat[i * n + j] - high) end
        for j = 1, n do flat[i * n + j] = math.exp(flat[i * n + j] - high) / sum end
      end
      t.near(x:softmax(), tensor(flat, shape), math.max(tolerance[dtype], dtype == 'f64' and 0 or 1e-6), dtype)
    end
  end
  local x = randn { 6, 5 }
  t.near(x:t():softmax(), x:t():contiguous():softmax(), 0, 'a transposed view')
  local masked = cr.tensor { { 0, -math.huge, 0 } }
  t.near(masked:softmax(), { { 0.5, 0, 0.5 } }, 1e-7, '-inf gets nothing')
  t.near(cr.tensor { 1000, 1000 }:softmax(), { 0.5, 0.5 }, 1e-7, 'large numbers')
end)

t.test('geglu', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
    for _, shape in ipairs { { 5, 6 }, { 30, 2 }, { 3, 7, 66 } } do
      local x = (randn(shape) * 3):to(dtype)
      local flat, n, out = values(x), shape[#shape] / 2, {}
      for i = 0, #flat / (2 * n) - 1 do
        for j = 1, n do out[#out + 1] = flat[i * 2 * n + j] * acts.gelu(flat[i * 2 * n + n + j]) end
      end
      local result_shape = { unpack(shape) }
      result_shape[#shape] = n
      t.near(nn.geglu(x), tensor(out, result_shape), math.max(tolerance[dtype], 1e-6), dtype)
    end
  end
  local far = nn.geglu(cr.tensor { { 2, 3, 5, 7, -math.huge, -1e20, 1e20, -6 } })
  t.near(far, { { 0, 0, 5e20, 0 } }, 1e-6, 'far from 0')
  t.raises(function() nn.geglu(cr.ones(2, 3)) end, 'geglu: the last dimension of %[2 3%] is not even')
end)

t.test('linear_geglu', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
    for _, shape in ipairs { { 5, 6 }, { 1 }, { 3, 7, 66 } } do
      local k = shape[#shape]
      local w = { weight = randn({ 10, k }):to(dtype), bias = randn({ 10 }):to(dtype) }
      local x = randn(shape):to(dtype)
      t.near(nn.linear_geglu(w, x), nn.geglu(nn.linear(w, x)), 0, dtype)
      w.bias = nil
      if #shape == 2 then
        local out = cr.full({ shape[1], 5 }, 7, { dtype = dtype })
        t.near(nn.linear_geglu(w, x, { out = out }), nn.geglu(nn.linear(w, x)), 0, dtype .. ' without bias')
      end
    end
  end
  t.equal(nn.linear_geglu({ weight = cr.ones(4, 3) }, cr.empty(0, 3)):numel(), 0)
  local x = cr.ones(2, 3)
  t.raises(function() nn.linear_geglu({ weight = cr.ones(5, 3) }, x) end,
    'linear_geglu: x %[... K%] and weight %[2D K%] are needed, not %[2 3%] and %[5 3%]')
  t.raises(function() nn.linear_geglu({ weight = cr.ones(4, 2) }, x) end,
    'linear_geglu: inner sizes differ: %[2 3%] x weight %[4 2%]')
  t.raises(function() nn.linear_geglu({ weight = cr.ones(4, 3), bias = cr.ones(2) }, x) end,
    'linear_geglu: the bias %[2%] does not fit weight %[4 3%]')
end)

t.test('an interruption stops the operations', function()
  local a = cr.ones(2, 2)
  cr.C.cr_interrupt()
  t.raises(function() a:matmul(a) end, 'matmul: interrupted')
  t.raises(function() nn.linear({ weight = a }, a) end, 'linear: interrupted')
  cr.C.cr_interrupt_clear()
  t.near(a:matmul(a), { { 2, 2 }, { 2, 2 } }, 0)
end)

t.test('a missing oneDNN is reported', function()
  local child = require 'tests.support.child'
  child.file('libdnnl.so.2', '') -- is found first, and is not a library
  local r = child.run({ '-e', 'cr.ones(2, 3):matmul(cr.ones(3, 2))' }, { env = { LD_LIBRARY_PATH = child.folder } })
  child.clean()
  t.equal(r.code, 1)
  t.equal(r.lines, 1, 'lines on stderr')
  t.ok(r.err:find 'matmul: matrix products on the CPU need oneDNN, which cannot be loaded %(.*libdnnl.so.2: .*%): install', r.err)
end)

t.done()
