--- Linear algebra for quantization, on tensors: the Cholesky factor and its inverse, orthonormal columns, and
--- low-rank approximation by subspace iteration. All in f64 on the CPU.

local arguments = require 'cr.arguments'
local cr = require 'cr'

local M = {}

local SMALL = 48 -- up to this many rows it loops over elements; larger matrices are split in halves, which leaves products

-- The factor and its inverse, by loops.
local function factor_small(a, n)
  local lower, inverse = cr.zeros(n, n, { dtype = 'f64' }), cr.zeros(n, n, { dtype = 'f64' })
  local p, l, v = a:contiguous():pointer(), lower:pointer(), inverse:pointer()
  for j = 0, n - 1 do
    for i = j, n - 1 do
      local sum = p[i * n + j]
      for k = 0, j - 1 do sum = sum - l[i * n + k] * l[j * n + k] end
      if i == j then
        if sum <= 0 or sum ~= sum then error(('a matrix of %d rows is not positive definite'):format(n), 0) end
        l[i * n + j] = math.sqrt(sum)
      else
        l[i * n + j] = sum / l[j * n + j]
      end
    end
  end
  for j = 0, n - 1 do
    v[j * n + j] = 1 / l[j * n + j]
    for i = j + 1, n - 1 do
      local sum = 0
      for k = j, i - 1 do sum = sum - l[i * n + k] * v[k * n + j] end
      v[i * n + j] = sum / l[i * n + i]
    end
  end
  return lower, inverse
end

local function factor(a)
  local n = a:size(1)
  if n <= SMALL then return factor_small(a, n) end
  return cr.scope(function()
    local h = math.floor(n / 2)
    local function part(x, i, j)
      return x:narrow(1, i == 1 and 1 or h + 1, i == 1 and h or n - h):narrow(2, j == 1 and 1 or h + 1, j == 1 and h or n - h)
    end
    local lower, inverse = cr.zeros(n, n, { dtype = 'f64' }), cr.zeros(n, n, { dtype = 'f64' })
    local l11, v11 = factor(part(a, 1, 1):contiguous())
    local l21 = part(a, 2, 1):matmul(v11:t())
    local l22, v22 = factor(part(a, 2, 2) - l21:matmul(l21:t()))
    part(lower, 1, 1):copy_(l11)
    part(lower, 2, 1):copy_(l21)
    part(lower, 2, 2):copy_(l22)
    part(inverse, 1, 1):copy_(v11)
    part(inverse, 2, 1):copy_(v22:matmul(l21):matmul(v11):neg())
    part(inverse, 2, 2):copy_(v22)
    return lower, inverse
  end)
end

--- The Cholesky factor of a symmetric positive definite matrix, A = L L', and the inverse of L. Only A's lower
--- triangle is read.
--- @param a Tensor [n n]
--- @return Tensor lower f64 [n n]
--- @return Tensor inverse f64 [n n], the inverse of `lower`
function M.cholesky(a)
  if a:dim() ~= 2 or a:size(1) ~= a:size(2) then
    error(('linalg.cholesky: expected a square matrix, not [%s]'):format(table.concat(a.shape, ' ')), 2)
  end
  return cr.scope(function() return factor(a:to 'cpu':to 'f64') end)
end

--- An orthonormal basis of the span of a matrix's columns. If they are linearly dependent, noise directions complete
--- it.
--- @param y Tensor [n r], r at most n
--- @return Tensor f64 [n r]
function M.orthonormal(y)
  return cr.scope(function()
    local q = y:to 'cpu':to 'f64'
    local r = q:size(2)
    local eye = cr.zeros(r, r, { dtype = 'f64' })
    for i = 0, r - 1 do eye:pointer()[i * r + i] = 1 end
    -- Three passes, because the first one squares the condition number (shifted CholeskyQR3; Fukaya et al. 2020,
    -- arXiv 1809.11085).
    for _, shift in ipairs { 1e-13, 1e-13, 1e-30 } do
      local gram = q:t():matmul(q)
      local _, inverse = factor(gram + eye * (gram:max():item() * shift + 1e-300))
      q = q:matmul(inverse:t())
    end
    return q
  end)
end

--- The best approximation of rank r in squared error, as the product `up` x `down`, by subspace iteration.
--- @param w Tensor [n k]
--- @param r integer rank; limited to min(n, k)
--- @param rounds integer? 4
--- @return Tensor up f64 [n r']
--- @return Tensor down f64 [r' k], r' = min(r, n, k)
function M.low_rank(w, r, rounds)
  return cr.scope(function()
    local x = w:to 'cpu':to 'f64'
    r = math.min(r, x:size(1), x:size(2))
    local q = cr.randn({ x:size(2), r }, { generator = cr.generator(1, 'philox') }):to 'f64'
    local up
    for _ = 1, rounds or 4 do
      up = M.orthonormal(x:matmul(q))
      q = x:t():matmul(up)
    end
    return up, q:t():contiguous()
  end)
end

local matrix = cr.kinds.alive
return arguments.guard('linalg.', M, {
  cholesky = { matrix }, orthonormal = { matrix },
  low_rank = { matrix, arguments.positive, arguments.maybe(arguments.positive) },
})
