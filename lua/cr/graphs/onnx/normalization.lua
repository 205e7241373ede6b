--- ONNX's normalizations.

local nn = require 'cr.nn'

local rows = {}

-- Returns the scale and the shift [C], in f64, of a normalization by given means and variances.
local function scale_and_shift(gain, bias, mean, variance, eps)
  local scale = gain:to 'f64' / (variance:to 'f64' + eps):sqrt()
  return scale, bias:to 'f64' - mean:to 'f64' * scale
end

rows.BatchNormalization = { kind = 'affine', make = function(n)
  if n:attribute('training_mode', 0) ~= 0 then n:fail('training is not handled') end
  for i = 2, 5 do
    local v = n.node.outputs[i]
    if v and n.plan.net.uses[v] then n:fail('statistics as outputs are not handled') end
  end
  local eps, rank = n:attribute('epsilon', 1e-5), n:rank(1)
  local channels = { n:shape(1)[2] or 1 }
  local constant = true
  for i = 2, 5 do constant = constant and n:is_constant(i) end
  if rank > 2 then
    n:last(1)
  else
    n:plain(1)
  end
  if not constant then
    for i = 2, 5 do n:feed(n:state(i)) end
    return function(x, gain, bias, mean, variance)
      return (x - mean) * (gain / (variance + eps):sqrt()) + bias
    end
  end
  local function both() return scale_and_shift(n:constant(2), n:constant(3), n:constant(4), n:constant(5), eps) end
  n:once('scale', { 2, 3, 4, 5 }, function() return (both()):to 'f32':view(channels):clone() end)
  n:once('shift', { 2, 3, 4, 5 }, function() return (select(2, both())):to 'f32':view(channels):clone() end)
  return function(x, scale, shift)
    local y = x * scale
    return y:add(shift, y)
  end
end, constant = function(node, net)
  for i = 2, 5 do
    if not node.inputs[i] or not node.inputs[i].load then return nil end
  end
  if (node.attributes.training_mode or 0) ~= 0 then return nil end
  if not net then return true end
  local t = {}
  for i = 2, 5 do t[i] = net:constant(node.inputs[i]) end
  return scale_and_shift(t[2], t[3], t[4], t[5], node.attributes.epsilon or 1e-5)
end }

rows.InstanceNormalization = { make = function(n)
  local eps, channels = n:attribute('epsilon', 1e-5), n:shape(1)[2]
  n:last(1)
  n:feed(n:state(2))
  n:feed(n:state(3))
  return function(x, weight, bias) return nn.group_norm({ weight = weight, bias = bias }, x, channels, eps) end
end }

rows.GroupNormalization = { make = function(n)
  local eps, groups, channels = n:attribute('epsilon', 1e-5), n:attribute('num_groups', 1), n:shape(1)[2]
  n:last(1)
  n:feed(n:state(2))
  n:feed(n:state(3))
  -- Before operator set 21 there is one scale and one bias for each group.
  local function each(t)
    if #t ~= groups or groups == channels then return t end
    return t:view(groups, 1):expand(groups, channels / groups):reshape(-1)
  end
  return function(x, weight, bias) return nn.group_norm({ weight = each(weight), bias = each(bias) }, x, groups, eps) end
end }

-- Returns the axes from `first` to the last one.
local function axes_from(n, first, rank)
  local dims = {}
  for k = n:axis(first, rank), rank - 1 do dims[#dims + 1] = k + 1 end
  return dims
end

rows.LayerNormalization = { make = function(n)
  local eps, rank = n:attribute('epsilon', 1e-5), n:rank(1)
  local dims = axes_from(n, n:attribute('axis', -1), rank)
  n:plain(1)
  n:plain(2)
  if n:has(3) then n:plain(3) end
  return function(x, weight, bias)
    local mean = x:mean(dims, true)
    local inverse = (x:var(dims, true) + eps):rsqrt()
    local y = (x - mean) * inverse * weight
    return bias and y + bias or y, mean, inverse
  end
end }

rows.MeanVarianceNormalization = { make = function(n)
  local rank, dims = n:rank(1), {}
  for _, a in ipairs(n:list 'axes' or { 0, 2, 3 }) do dims[#dims + 1] = n:axis(a, rank) + 1 end
  n:plain(1)
  return function(x) return (x - x:mean(dims, true)) / (x:var(dims, true):sqrt() + 1e-9) end
end }

rows.LpNormalization = { make = function(n)
  local p, rank = n:attribute('p', 2), n:rank(1)
  local dim = n:axis(n:attribute('axis', -1), rank) + 1
  n:plain(1)
  return function(x)
    local size = p == 1 and x:abs():sum(dim, true) or (x * x):sum(dim, true):sqrt()
    return x / size
  end
end }

-- Local response normalization: each element is divided by a power of the sum of squares of neighbouring channels.
rows.LRN = { make = function(n)
  local alpha, beta, bias, size = n:attribute('alpha', 1e-4), n:attribute('beta', 0.75), n:attribute('bias', 1), n:attribute 'size'
  if not size or size < 1 or size > 2 * n:shape(1)[2] then n:fail('the size %s is not possible', tostring(size)) end
  n:last(1)
  local before = math.floor((size - 1) / 2)
  return function(x)
    local rank, channels = x:dim(), x.shape[x:dim()]
    local pad, after = {}, {}
    for k = 1, rank do pad[k], after[k] = k == rank and before or 0, k == rank and size - 1 - before or 0 end
    local squares, sum = nn.pad(x * x, pad, after), nil
    for i = 1, size do
      local part = squares:narrow(rank, i, channels)
      sum = sum and sum + part or part
    end
    return x / (sum * (alpha / size) + bias) ^ beta
  end
end }

return rows
