--- Tensor methods: cumulative sums, sorting and statistics.

local common = require 'cr.tensor.common'
local creation = require 'cr.tensor.creation'
local operands = require 'cr.tensor.operands'
local arithmetic = require 'cr.tensor.arithmetic'

local C, fail, raise, arguments, kinds, scope = common.C, common.fail, common.raise, common.arguments, common.kinds, common.scope
local new, filled = common.new, common.filled
local dim_of, shape_text, in_reals = operands.dim_of, operands.shape_text, operands.in_reals
local alive, maybe = common.alive, common.maybe

--- @class Tensor
local methods = {}

-- Applies fn to x with dimension d moved to the end and moves it back in the result. Without d, x is flattened.
local function along(name, x, d, fn)
  if not d then return fn(x:reshape(-1)) end
  local dim = dim_of(name, x, d) + 1
  if dim == x:dim() then return fn(x) end
  return scope.scope(function()
    local list = { fn(x:transpose(dim, -1)) }
    for i, y in ipairs(list) do list[i] = y:transpose(dim, -1):contiguous() end
    return unpack(list)
  end)
end

-- ---- running sums -----------------------------------------------------------------------------------

local function scan(product)
  return function(x)
    local out = new()
    return filled(out, C.cr_scan(out.c, x.c, product))
  end
end

--- Cumulative sum along dimension d, or over all elements in row-major order.
--- @param d integer?
--- @return Tensor
function methods:cumsum(d) return along('cumsum', self, d, scan(0)) end

--- Cumulative product along dimension d, or over all elements in row-major order.
--- @param d integer?
--- @return Tensor
function methods:cumprod(d) return along('cumprod', self, d, scan(1)) end

--- The product of all elements, or along dimension d, which stays with size 1 if `keep` is true.
--- @param d integer?
--- @param keep boolean?
--- @return Tensor
function methods:prod(d, keep)
  return scope.scope(function()
    local n = d and self:size(d) or self:numel()
    if n == 0 then return (d and self:sum(d, keep) or self:sum()) + 1 end
    local all = self:cumprod(d):narrow(d or 1, n, 1)
    if keep and not d then
      local shape = self.shape
      for k = 1, #shape do shape[k] = 1 end
      return all:reshape(shape, {})
    end
    return keep and all:contiguous() or all:squeeze(d or 1):contiguous()
  end)
end

--- Differences of neighbours along dimension d (the last).
--- @param d integer?
--- @return Tensor
function methods:diff(d)
  d = d or -1
  local n = self:size(d)
  if n == 0 then return self:clone() end
  return scope.scope(function() return self:narrow(d, 2, n - 1) - self:narrow(d, 1, n - 1) end)
end

-- ---- order ------------------------------------------------------------------------------------------

local function sorted(name, x, d, descending)
  return along(name, x, d or x:dim() > 0 and -1 or nil, function(row)
    local out, index = new(), new()
    if C.cr_sort(out.c, index.c, row.c, descending and 1 or 0) < 0 then raise() end
    return out, index
  end)
end

--- Sorts along dimension d (the last) in ascending or descending order. Returns the sorted elements and their
--- original indices, from 1. The sort is stable, and a nan is greater than every number.
--- @param d integer?
--- @param descending boolean?
--- @return Tensor
--- @return Tensor i64
function methods:sort(d, descending) return sorted('sort', self, d, descending) end

--- Returns the indices, from 1, that sort dimension d (the last) in ascending or descending order.
--- @return Tensor i64
function methods:argsort(d, descending)
  local _, index = sorted('argsort', self, d, descending)
  return index
end

--- Returns the k largest (or, with largest = false, smallest) elements along dimension d (the last), and their indices, from 1.
--- @param k integer
--- @param d integer?
--- @param largest boolean? true
--- @return Tensor
--- @return Tensor i64
function methods:topk(k, d, largest)
  d = d or -1
  if k > self:size(d) then fail(('topk: dimension %d of %s has no %d elements'):format(d, shape_text(self), k)) end
  return along('topk', self, d, function(rows)
    local out, index = new(), new()
    if C.cr_topk(out.c, index.c, rows.c, k, largest == false and 0 or 1) < 0 then raise() end
    return out, index
  end)
end

--- Returns the k-th smallest element along dimension d (the last), and its index, from 1.
--- @return Tensor
--- @return Tensor i64
function methods:kthvalue(k, d)
  d = d or -1
  if k > self:size(d) then fail(('kthvalue: dimension %d of %s has no %d elements'):format(d, shape_text(self), k)) end
  return scope.scope(function()
    local values, index = sorted('kthvalue', self, d)
    return values:select(d, k):contiguous(), index:select(d, k):contiguous()
  end)
end

--- Returns the maximum along dimension d and its index, from 1: x:max(d) and x:argmax(d) in one call.
--- @return Tensor
--- @return Tensor i64
function methods:max_at(d, keep) return self:max(d, keep), self:argmax(d, keep) end

--- Returns the minimum along dimension d and its index, from 1: x:min(d) and x:argmin(d) in one call.
--- @return Tensor
--- @return Tensor i64
function methods:min_at(d, keep) return self:min(d, keep), self:argmin(d, keep) end

--- Returns the distinct elements in ascending order. It synchronizes with a card.
--- @return Tensor [n]
function methods:unique()
  return scope.scope(function()
    local all = self:reshape(-1)
    if all:size(1) == 0 then return all:clone() end
    all = all:sort(1)
    local first = creation.ones({ 1 }, { dtype = 'bool', device = self.device })
    return all:masked_select(creation.cat { first, all:narrow(1, 2, all:size(1) - 1):ne(all:narrow(1, 1, all:size(1) - 1)) })
  end)
end

-- ---- statistics ---------------------------------------------------------------------------------------

-- Returns how many elements a reduction combines to one result.
local function count(name, x, dims)
  if dims == nil then return x:numel() end
  local n, seen = 1, {}
  for _, d in ipairs(type(dims) == 'table' and dims or { dims }) do
    local dim = dim_of(name, x, d) + 1
    if not seen[dim] then n = n * x:size(dim) end
    seen[dim] = true
  end
  return n
end

--- The variance over dimensions (all): of a population, or with correction = 1 the unbiased estimate from a sample.
--- @param dims integer|integer[]|nil
--- @param keep boolean?
--- @param correction number? subtracted from the number of elements in the divisor (0)
--- @return Tensor
function methods:var(dims, keep, correction)
  local v = arithmetic.var(self, dims, keep)
  if not correction or correction == 0 then return v end
  local n = count('var', self, dims)
  return scope.scope(function() return v * (n / math.max(0, n - correction)) end)
end

--- The standard deviation over dimensions (all); see var.
--- @param dims integer|integer[]|nil
--- @param keep boolean?
--- @param correction number? 0
--- @return Tensor
function methods:std(dims, keep, correction)
  return scope.scope(function() return self:var(dims, keep, correction):sqrt() end)
end

--- The p-norm (p = 2) over dimensions (all). With p = math.huge it is the largest magnitude.
--- @param p number?
--- @param dims integer|integer[]|nil
--- @param keep boolean?
--- @return Tensor
function methods:norm(p, dims, keep)
  p = p or 2
  return scope.scope(function()
    local x = self:abs()
    if p == math.huge then return x:max(dims, keep) end
    if p == -math.huge then return x:min(dims, keep) end
    if p == 0 then return x:ne(0):to(self.dtype):sum(dims, keep) end
    if p == 1 then return x:sum(dims, keep) end
    if p == 2 then return x:square():sum(dims, keep):sqrt() end
    return (x ^ p):sum(dims, keep) ^ (1 / p)
  end)
end

--- log(sum(e^x)) over dimensions (all), computed without overflow.
--- @param dims integer|integer[]|nil
--- @param keep boolean?
--- @return Tensor
function methods:logsumexp(dims, keep)
  return in_reals(self, function(x)
    local high = x:max(dims, true)
    high = high:masked_fill(high:isinf(), 0)
    local sum = (x - high):exp():sum(dims, true):log() + high
    return keep and sum or sum:reshape(x:max(dims).shape, {})
  end)
end

--- log(softmax(x)) over dimension d (the last).
--- @return Tensor
function methods:log_softmax(d)
  return in_reals(self, function(x)
    local shifted = x - x:max(d or -1, true)
    return shifted - shifted:exp():sum(d or -1, true):log()
  end)
end

-- Returns whether a row contains a nan, which makes its statistics nan.
local function nan_of(x, d) return x:isnan():max(d) end

--- The median along dimension d or of all elements; for an even number of elements the lower of the two middle ones.
--- @param d integer?
--- @return Tensor
function methods:median(d)
  return scope.scope(function()
    local x = d and self or self:reshape(-1)
    local dim = d or 1
    local n = x:size(dim)
    if n == 0 then fail(('median: %s has no elements'):format(shape_text(self))) end
    local middle = x:sort(dim):select(dim, math.floor((n + 1) / 2))
    return middle:masked_fill(nan_of(x, dim), 0 / 0)
  end)
end

--- Quantile q (0 to 1) along dimension d or of all elements, with linear interpolation.
--- @param q number
--- @param d integer?
--- @return Tensor
function methods:quantile(q, d)
  if q < 0 or q > 1 then fail(('quantile: q must be from 0 to 1, not %g'):format(q)) end
  return scope.scope(function()
    local x = d and self or self:reshape(-1)
    local dim = d or 1
    local n = x:size(dim)
    if n == 0 then fail(('quantile: %s has no elements'):format(shape_text(self))) end
    local rows, at = x:sort(dim), q * (n - 1) + 1
    local low = rows:select(dim, math.floor(at))
    return low:lerp(rows:select(dim, math.ceil(at)), at - math.floor(at)):masked_fill(nan_of(x, dim), 0 / 0)
  end)
end

--- Counts the elements in each of `bins` (100) equal intervals from low to high (the minimum and the maximum).
--- @param bins integer?
--- @param low number?
--- @param high number?
--- @return Tensor f32 [bins]
function methods:histc(bins, low, high)
  bins = bins or 100
  return scope.scope(function()
    local x = self:reshape(-1):to 'f64'
    if not low or low == 0 and high == 0 then low, high = x:min():item(), x:max():item() end
    if low == high then low, high = low - 1, high + 1 end
    if low > high or low ~= low or high ~= high then fail(('histc: low = %g must not be above high = %g'):format(low, high)) end
    local inside = x:ge(low):logical_and(x:le(high))
    local bin = ((x - low) * (bins / (high - low))):floor():clamp(0, bins - 1):to 'i64'
    local out = creation.zeros({ bins }, { device = self.device })
    return out:index_add_(1, bin + 1, inside:to 'f32')
  end)
end

--- Counts how often each whole number from 0 on occurs.
--- @param least integer? minimum length of the result
--- @return Tensor i64 [n]
function methods:bincount(least)
  return scope.scope(function()
    local x = self:reshape(-1):to 'i64'
    local n = x:numel() > 0 and x:max():item() + 1 or 0
    if n > 0 and x:min():item() < 0 then fail 'bincount: negative numbers cannot be counted' end
    local out = creation.zeros({ math.max(n, least or 0) }, { dtype = 'i64', device = self.device })
    return x:numel() > 0 and out:index_add_(1, x + 1, creation.ones({ x:numel() }, { dtype = 'i64', device = self.device })) or out
  end)
end

local integer, number, keep = arguments.integer, maybe(arguments.number), maybe(arguments.boolean)
local d = maybe(integer)
local dims = maybe(kinds.dimensions)
return arguments.guard('', methods, {
  cumsum = { alive, d }, cumprod = { alive, d }, prod = { alive, d, keep }, diff = { alive, d },
  sort = { alive, d, keep }, argsort = { alive, d, keep }, topk = { alive, arguments.positive, d, keep },
  kthvalue = { alive, arguments.positive, d }, max_at = { alive, integer, keep }, min_at = { alive, integer, keep },
  unique = { alive }, var = { alive, dims, keep, number }, std = { alive, dims, keep, number },
  norm = { alive, number, dims, keep }, logsumexp = { alive, dims, keep }, log_softmax = { alive, d },
  median = { alive, d }, quantile = { alive, arguments.number, d },
  histc = { alive, maybe(arguments.positive), number, number }, bincount = { alive, maybe(arguments.natural) },
}, 'x')
