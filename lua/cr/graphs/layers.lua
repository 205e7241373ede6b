--- Convolutions as steps of a graph, with the nodes that are fused into them (cr.graphs.fuse).

local nn = require 'cr.nn'
local tensor = require 'cr.tensor'

local layers = {}

local function same(a, b)
  for i = 1, math.max(#a, #b) do
    if a[i] ~= b[i] then return false end
  end
  return true
end
layers.same = same

-- Returns whether a slope is by channel, [C], [C 1 1], [1 C 1 1] or a single number, for a result [N C ...].
local function is_by_channel(slope, shape)
  local n = 1
  for _, size in ipairs(slope) do n = n * size end
  if n == 1 then return true end
  if n ~= shape[2] then return false end
  -- By the rules of broadcasting a single dimension aligns with the last one, but old exporters mean the channels.
  if #slope == 1 then return #shape == 2 or shape[#shape] ~= n end
  return slope[#slope - #shape + 2] == n
end
layers.is_by_channel = is_by_channel

--- Expands a slope to [C], as PReLU takes it.
function layers.slope_vector(slope, channels)
  return slope:reshape(-1):expand(channels):contiguous()
end

--- act(convolution + bias) + residual of an input that is channels-last.
--- @param n table the node
--- @param o table {weight, bias = functions that compute them from the inputs `sources` (bias may be nil); stride,
---   padding, dilation, groups as for nn.conv2d; shape and channels of the result, the shape as n:shape returns it;
---   lie = function(n, i) that feeds input i, a residual, in the layout of the result}
--- @return function run(x, weight, bias, slope, residual)
function layers.convolution(n, o)
  local fused = n.fused
  local options = { stride = o.stride, padding = o.padding, dilation = o.dilation, groups = o.groups }
  local act, fits = fused.act, true
  n:once('weight', o.sources, o.weight)
  if not (o.bias and n:once('bias', o.sources, o.bias)) then n:nothing() end
  if act and act.act == 'prelu' then
    local value, number = type(act.slope) == 'table' and act.slope, tonumber(act.slope)
    local slope = number and tensor.full({ 1 }, number) or n.plan.net:constant(value)
    fits = act.by_channel or is_by_channel(slope.shape, o.shape)
    if fits then
      n:once('slope', {}, function() return layers.slope_vector(slope, o.channels):clone() end)
      options.act = 'prelu'
    else
      n:nothing()
      n:after(act.node)
    end
  else
    options.act = act and act.act
    n:nothing()
  end
  if fused.residual then
    if fits and same(n:shape(fused.residual), o.shape) then
      o.lie(n, fused.residual)
    else
      n:nothing()
      n:after(fused.sum)
    end
  end
  n.bare = true
  return function(x, weight, bias, slope, residual)
    options.slope, options.residual = slope, residual
    local y = nn.conv2d({ weight = weight, bias = bias }, x, options)
    options.slope, options.residual = nil, nil
    return y
  end
end

--- PReLU: x where x > 0, else slope * x. `steep` says whether all slopes are in (0, 1]; then the result is the
--- maximum of x and slope * x. A slope of 0 is excluded because infinity * 0 is nan.
function layers.prelu(x, slope, steep)
  if not steep then
    local below, y = x:minimum(0), x:relu()
    return y:add(below:mul(slope, type(slope) ~= 'number' and below or nil), y)
  end
  local y = x * slope
  return x:maximum(y, y)
end

--- Returns whether all slopes, of a number or a constant, are in (0, 1], so that layers.prelu may use a maximum.
function layers.is_steep(slope)
  if type(slope) == 'number' then return slope ~= 0 and slope <= 1 end
  return tensor.scope(function() return slope:max():item() <= 1 and not slope:eq(0):max():item() end)
end

--- Feeds input i of a node, slopes by channel, for x with the last dimensions [W C]. The slopes are repeated for a
--- row of pixels, so that the inner loops are long.
--- @return function run(x, slopes)
function layers.feed_prelu(n, i, width, channels)
  local steep = layers.is_steep(n:constant(i))
  n:once('slopes', { i }, function()
    return layers.slope_vector(n:constant(i), channels):expand(width, channels):reshape(-1):clone()
  end)
  return function(x, slopes)
    return layers.prelu(x:reshape(-1, slopes:numel()), slopes, steep):view(x.shape)
  end
end

return layers
