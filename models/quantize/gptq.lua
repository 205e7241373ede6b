--- GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds a matrix input by input, and compensates each rounding error
--- with the inputs that are still to be rounded. The correlations come from the Gram matrix of the layer's inputs. It
--- needs one Cholesky factor; the rest is matrix products.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local linalg = require 'models.quantize.linalg'
local rounding = require 'models.quantize.rounding'

local M = {}

local DAMPING = 0.01 -- times the mean of the diagonal is added to the diagonal

--- What `round` needs of a Gram matrix H: R, upper triangular, with inverse(damped H) = R' R.
--- @param gram Tensor [K K], x' x of the layer's inputs, up to a factor
--- @return Tensor f64 [K K]
function M.prepare(gram)
  return cr.scope(function()
    local K = gram:size(1)
    local h = gram:to 'cpu':to('f64'):clone()
    local diagonal = h:pointer()
    local mean = 0
    for i = 0, K - 1 do mean = mean + diagonal[i * K + i] / K end
    for i = 0, K - 1 do diagonal[i * K + i] = diagonal[i * K + i] + math.max(mean, 1e-30) * DAMPING end
    -- With rows and columns reversed, H = U U' becomes L L', and R is the inverse of U.
    local backwards = {}
    for i = 1, K do backwards[i] = K + 1 - i end
    local function turned(x) return x:gather_rows(backwards):t():contiguous():gather_rows(backwards):t():contiguous() end
    return turned(select(2, linalg.cholesky(turned(h))))
  end)
end

-- Rounds the inputs first .. first+n-1 of every row of w [N K]. Errors are compensated immediately within this block,
-- and returned in `errors` [N n] for the inputs after it.
local function round_group(w, N, K, first, n, r, most, scale, codes, errors)
  for row = 0, N - 1 do
    local at, s = row * K + first, scale[row]
    for i = 0, n - 1 do
      local x = w[at + i]
      local q = math.max(-most, math.min(most, math.floor(x / s + 0.5)))
      codes[at + i] = q
      local line = (first + i) * K + first
      local e = (x - q * s) / r[line + i]
      errors[row * n + i] = e
      for j = i + 1, n - 1 do w[at + j] = w[at + j] - e * r[line + j] end
    end
  end
end

--- Rounds a matrix in groups; returns the integers and their scales.
--- @param w Tensor f32 [N K]
--- @param prepared Tensor from `prepare`
--- @param most integer the largest integer
--- @param options table? {group = number of inputs that share a scale (all)}
--- @return Tensor codes f32 [N K], integers
--- @return Tensor scale f32 [N G]
function M.round(w, prepared, most, options)
  local group = options and options.group
  local N, K = w:size(1), w:size(2)
  if prepared:size(1) ~= K then
    error(('gptq.round: a Gram matrix of %d inputs does not fit a weight of %d'):format(prepared:size(1), K), 2)
  end
  return cr.scope(function()
    local left, codes = w:to 'cpu':to('f64'):clone(), cr.zeros(N, K, { dtype = 'f64' })
    local scales = cr.zeros(N, math.ceil(K / (group or K)))
    rounding.each_group(K, group, function(g, first, n)
      cr.scope(function()
        -- An input's own error is weighted by what later inputs cannot compensate.
        local own = cr.zeros(n)
        for i = 0, n - 1 do own:pointer()[i] = prepared:pointer()[(first - 1 + i) * (K + 1)] ^ -2 end
        local _, scale = rounding.nearest(left:narrow(2, first, n):to 'f32':contiguous(), most, { importance = own })
        scales:narrow(2, g, 1):copy_(scale)
        local errors = cr.zeros(N, n, { dtype = 'f64' })
        round_group(left:pointer(), N, K, first - 1, n, prepared:pointer(), most, scale:contiguous():pointer(), codes:pointer(),
          errors:pointer())
        local rest = K - first - n + 1
        if rest > 0 then
          local behind = left:narrow(2, first + n, rest)
          behind:copy_(behind - errors:matmul(prepared:narrow(1, first, n):narrow(2, first + n, rest)))
        end
      end)
    end)
    return codes:to 'f32', scales:clone()
  end)
end

local matrix, maybe, count = cr.kinds.alive, arguments.maybe, arguments.positive
return arguments.guard('gptq.', M, {
  prepare = { matrix }, round = { matrix, matrix, count, maybe(arguments.options { group = maybe(count) }) },
})
