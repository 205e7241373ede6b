--- ONNX's reductions.

local node = require 'cr.graphs.node'
local tensor = require 'cr.tensor'

local rows = {}

local FLOATS = { f32 = true, f16 = true, bf16 = true, f64 = true }

-- Computes reductions of integers in f64, so that nothing is lost, and converts the result back.
local function exact(fn)
  return function(x, dims, keep)
    if FLOATS[x.dtype] then return fn(x, dims, keep) end
    return fn(x:to 'f64', dims, keep):to(x.dtype)
  end
end

local function sum(x, dims, keep) return x:sum(dims, keep) end

-- The product over dimensions, slice by slice.
local function product(x, dims, keep)
  table.sort(dims, function(a, b) return a > b end)
  for _, dim in ipairs(dims) do
    local y
    for i = 1, x.shape[dim] do
      local part = x:narrow(dim, i, 1)
      y = y and y * part or part
    end
    if not y then
      local shape = x.shape
      shape[dim] = 1
      y = tensor.ones(shape, { dtype = x.dtype, device = x.device })
    end
    x = keep and y or y:contiguous():squeeze(dim)
  end
  return x
end

-- The maximum or minimum. For no elements it is `none`, the neutral element.
local function extreme(method, none)
  return function(x, dims, keep)
    if x:numel() > 0 then return x[method](x, dims, keep) end
    return x:sum(dims, keep):to(x.dtype) + none
  end
end

--- Makes the row of a reduction, whose `axes` are an attribute or input 2.
local function reduction(fn)
  return { make = function(n)
    local rank, keep = n:rank(1), n:attribute('keepdims', 1) ~= 0
    local axes = n:list_or('axes', 2)
    if (not axes or #axes == 0) and n:attribute('noop_with_empty_axes', 0) ~= 0 then
      n:plain(1)
      return function(x) return fn(x, {}, true) end
    end
    if not axes or #axes == 0 then
      axes = {}
      for k = 0, rank - 1 do axes[#axes + 1] = k end
    end
    local last = n:is_last(1) and keep
    if last then n:last(1) else n:plain(1) end
    local dims = {}
    for i, a in ipairs(axes) do dims[i] = node.dim(n:axis(a, rank), rank, last) end
    return function(x) return fn(x, { unpack(dims) }, keep) end
  end }
end

-- An empty list of axes means no reduction here, while cr's reductions would reduce all dimensions.
local function none_is_none(fn)
  return function(x, dims, keep)
    if #dims == 0 then return fn(x:unsqueeze(1), { 1 }, false) end
    return fn(x, dims, keep)
  end
end

for name, fn in pairs {
  ReduceSum = exact(sum),
  ReduceMean = exact(function(x, dims, keep) return x:mean(dims, keep) end),
  ReduceMax = extreme('max', -math.huge), ReduceMin = extreme('min', math.huge),
  ReduceProd = exact(product),
  ReduceL1 = exact(function(x, dims, keep) return x:abs():sum(dims, keep) end),
  ReduceL2 = exact(function(x, dims, keep) return (x * x):sum(dims, keep):sqrt() end),
  ReduceSumSquare = exact(function(x, dims, keep) return (x * x):sum(dims, keep) end),
  ReduceLogSum = exact(function(x, dims, keep) return x:sum(dims, keep):log() end),
  ReduceLogSumExp = exact(function(x, dims, keep)
    if x:numel() == 0 then return x:sum(dims, keep):log() end
    local top = x:max(dims, true)
    local y = (x - top):exp():sum(dims, true):log() + top
    return keep and y or y:sum(dims, false)
  end),
} do
  rows[name] = reduction(none_is_none(fn))
end

--- Makes the row of ArgMax or ArgMin, which count from 0.
local function place(method)
  return { make = function(n)
    local rank, keep = n:rank(1), n:attribute('keepdims', 1) ~= 0
    local from_end = n:attribute('select_last_index', 0) ~= 0
    local dim = n:axis(n:attribute('axis', 0), rank) + 1
    n:plain(1)
    return function(x)
      if not from_end then return x[method](x, dim, keep) - 1 end
      local parts, size = {}, x.shape[dim]
      for i = 1, size do parts[i] = x:narrow(dim, size + 1 - i, 1) end
      local y = tensor.cat(parts, dim)
      return y[method](y, dim, keep) * -1 + size
    end
  end }
end

rows.ArgMax, rows.ArgMin = place 'argmax', place 'argmin'

return rows
