--- The quantizer's arithmetic compared with float64: factorizations, low rank, rounding in groups, GPTQ.

local cr = require 'cr'
local gptq = require 'models.quantize.gptq'
local linalg = require 'models.quantize.linalg'
local rounding = require 'models.quantize.rounding'
local t = require 'tests.support.tap'

local generator = cr.generator(tonumber(os.getenv 'CR_SEED') or 11, 'philox')
local function randn(...) return cr.randn({ ... }, { generator = generator }):to 'f64' end

local function eye(n)
  local x = cr.zeros(n, n, { dtype = 'f64' })
  for i = 0, n - 1 do x:pointer()[i * n + i] = 1 end
  return x
end

-- x' x of correlated rows, like a layer's inputs.
local function gram_of(rows, n)
  local x = randn(rows, n):matmul(randn(n, n) * 0.3 + eye(n))
  return x:t():matmul(x) / rows, x
end

t.test("Cholesky's factor and its inverse, odd sizes", function()
  t.each({ 1, 2, 47, 48, 49, 97, 131 }, function(n)
    local a = gram_of(2 * n, n)
    local lower, inverse = linalg.cholesky(a)
    t.near(lower:matmul(lower:t()), a, 1e-13, n .. ' rows')
    t.near(lower:matmul(inverse), eye(n), 1e-9, n .. ' rows, inverse')
    local above = 0
    for i, row in ipairs(lower:tolist()) do
      for j = i + 1, n do above = above + math.abs(row[j]) end
    end
    t.equal(above, 0, 'nothing above the diagonal')
  end)
  cr.scope(function()
    local indefinite = eye(50)
    indefinite:pointer()[49 * 50 + 49] = -1
    t.raises(function() linalg.cholesky(indefinite) end, 'is not positive definite')
    t.raises(function() linalg.cholesky(eye(50) * (0 / 0)) end, 'is not positive definite')
    t.raises(function() linalg.cholesky(cr.zeros(3, 4)) end, 'expected a square matrix, not %[3 4%]')
  end)
end)

t.test('orthonormal columns, also from dependent ones', function()
  t.each({ { 5, 1 }, { 33, 7 }, { 131, 32 } }, function(size)
    local y = randn(size[1], size[2])
    local q = linalg.orthonormal(y)
    t.near(q:t():matmul(q), eye(size[2]), 1e-13)
    t.near(q:matmul(q:t():matmul(y)), y, 1e-12, 'they span the same')
  end)
  cr.scope(function()
    local twice = randn(40, 3)
    local q = linalg.orthonormal(cr.cat({ twice, twice * 2 }, 2))
    t.near(q:t():matmul(q), eye(6), 1e-9)
    t.near(q:matmul(q:t():matmul(twice)), twice, 1e-9)
  end)
end)

t.test('the best approximation of low rank', function()
  t.each({ { 37, 53, 5 }, { 70, 33, 32 }, { 3, 9, 5 } }, function(size)
    local n, k, r = unpack(size)
    local most = math.min(n, k)
    local left, right = linalg.orthonormal(randn(n, most)), linalg.orthonormal(randn(k, most))
    -- Singular values that decrease by a factor of 3; the error of a rank-r approximation is known.
    local values, tail = {}, 0
    for i = 1, most do
      values[i] = 0.66 ^ (i - 1)
      if i > r then tail = tail + values[i] ^ 2 end
    end
    local w = (left * cr.tensor(values, { dtype = 'f64' })):matmul(right:t())
    local up, down = linalg.low_rank(w, r, 12)
    t.equal(table.concat(up.shape, ' '), n .. ' ' .. math.min(r, most))
    local off = (w - up:matmul(down)):square():sum():item()
    t.ok(math.abs(math.sqrt(off) - math.sqrt(tail)) < 1e-6, ('off by %.3g, the least is %.3g'):format(math.sqrt(off), math.sqrt(tail)))
  end)
  cr.scope(function()
    local up, down = linalg.low_rank(cr.zeros(9, 7), 3)
    t.equal(up:matmul(down):abs():max():item(), 0, 'of nothing')
  end)
end)

t.test('rounding errors match the step size', function()
  -- For normal numbers, by the largest integer.
  t.each({ { 127, 0.012 }, { 7, 0.13 } }, { { 5, 64 }, { 33, 192 }, { 3, 100 } }, function(kind, size)
    local most, bound = unpack(kind)
    local w = randn(size[1], size[2]):to 'f32'
    local codes, scale = rounding.nearest(w, most, { group = 64 })
    t.equal(table.concat(scale.shape, ' '), size[1] .. ' ' .. math.ceil(size[2] / 64))
    t.equal(codes:abs():max():item() <= most, true)
    t.near(codes, codes:round(), 0, 'whole numbers')
    local off = t.relative_error(rounding.numbers(codes, scale, 64), w)
    t.ok(off > 0 and off < bound, ('up to %d it is off by %.4f'):format(most, off))
  end)
  cr.scope(function()
    local codes, scale = rounding.nearest(cr.zeros(3, 64), 7)
    t.equal(rounding.numbers(codes, scale):abs():max():item(), 0, 'zeros')
    -- A single outlier reduces the precision of all others, unless its importance is low: then it is clipped.
    local w, importance = randn(1, 64):to 'f32':contiguous(), cr.ones(64)
    w:pointer()[3], importance:pointer()[3] = 9, 0
    local cut, less = rounding.nearest(w, 7, { importance = importance })
    t.ok(less:item() < select(2, rounding.nearest(w, 7)):item())
    t.equal(cut:abs():max():item(), 7)
  end)
end)

-- GPTQ as in the paper, on plain numbers, updating the inverse of the Gram matrix column by column.
local function plain_gptq(w, N, K, inverse_gram, most, scale_of)
  local h, codes = {}, {}
  for i = 1, K do h[i] = { unpack(inverse_gram[i]) } end
  for i = 1, K do
    for row = 1, N do
      codes[row] = codes[row] or {}
      local s = scale_of(row, i)
      local q = math.max(-most, math.min(most, math.floor(w[row][i] / s + 0.5)))
      codes[row][i] = q
      local e = (w[row][i] - q * s) / h[i][i]
      for j = i + 1, K do w[row][j] = w[row][j] - e * h[i][j] end
    end
    -- The inverse without input i: one step of Gauss-Jordan elimination.
    for a = i + 1, K do
      for b = i + 1, K do h[a][b] = h[a][b] - h[a][i] * h[i][b] / h[i][i] end
    end
  end
  return codes
end

t.test('GPTQ follows the paper', function()
  cr.scope(function()
    local N, K, group = 5, 32, 16
    local gram = gram_of(90, K)
    local w = randn(N, K):to 'f32'
    local codes, scale = gptq.round(w, gptq.prepare(gram), 7, { group = group })
    local damped, mean = gram:clone(), 0
    for i = 0, K - 1 do mean = mean + damped:pointer()[i * K + i] / K end
    for i = 0, K - 1 do damped:pointer()[i * K + i] = damped:pointer()[i * K + i] + 0.01 * mean end
    local _, inverse = linalg.cholesky(damped)
    local scales = scale:tolist()
    local expected = plain_gptq(w:to('f64'):tolist(), N, K, inverse:t():matmul(inverse):tolist(), 7, function(row, i)
      return scales[row][math.floor((i - 1) / group) + 1]
    end)
    t.near(codes, cr.tensor(expected), 0)
  end)
end)

t.test('GPTQ has a smaller error of the product than rounding', function()
  t.each({ { 17, 64, 64 }, { 33, 192, 64 }, { 9, 100, 64 } }, function(size)
    local N, K, group = unpack(size)
    local gram, x = gram_of(3 * K, K)
    local w = randn(N, K):to 'f32'
    local codes, scale = gptq.round(w, gptq.prepare(gram), 7, { group = group })
    local y = x:matmul(w:to('f64'):t())
    local function off(c, s) return t.relative_error(x:matmul(rounding.numbers(c, s, group):to('f64'):t()), y) end
    local before, after = off(rounding.nearest(w, 7, { group = group })), off(codes, scale)
    t.ok(after < 0.75 * before, ('%.4f, rounded %.4f'):format(after, before))
  end)
  t.raises(function() cr.scope(function() gptq.round(cr.ones(2, 64), cr.ones(3, 3), 7) end) end,
    'a Gram matrix of 3 inputs does not fit a weight of 64')
end)

t.done()
