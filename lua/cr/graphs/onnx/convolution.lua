--- ONNX's convolutions, with the nodes that are fused into them.

local layers = require 'cr.graphs.layers'
local nn = require 'cr.nn'
local window = require 'cr.graphs.onnx.window'

local rows = {}

-- Returns the scale and the shift [C] of a normalization by constants, in f64.
local function scale_and_shift(n)
  local affine = n.fused.affine
  if not affine then return nil end
  return affine.row.constant(affine, n.plan.net)
end

-- Returns the weight [O ...] times a scale by output channel, f32.
local function scaled(n, w, channels)
  local scale = scale_and_shift(n)
  if not scale then return w end
  local shape = { channels }
  for k = 2, w:dim() do shape[k] = 1 end
  return (w:to 'f64' * scale:view(shape)):to 'f32'
end

-- Returns the bias with the normalization folded in, or nil if there is none.
local function bias_of(n, channels)
  local scale, shift = scale_and_shift(n)
  if not scale then
    return n:has(3) and function() return n:constant(3):reshape(channels):clone() end or nil
  end
  return function()
    if n:has(3) then shift = n:constant(3):to 'f64' * scale + shift end
    return shift:to 'f32'
  end
end

local function result_shape(n, channels, out)
  local shape = { n:shape(1)[1], channels }
  for _, size in ipairs(out) do shape[#shape + 1] = size end
  return n:room(shape)
end

local function lie_last(n, i) n:last(i) end

-- A convolution whose weights the graph computes: nothing can be folded into the weights, so the fused nodes run as
-- separate steps.
local function of_computed_weights(n, w, groups)
  if n.fused.affine then n:after(n.fused.affine) end
  if n.fused.act then n:after(n.fused.act.node) end
  if n.fused.sum then n:after(n.fused.sum) end
  n:plain(2)
  if n:has(3) then n:plain(3) end
  n.lasts = true
  local options = { stride = w.stride, padding = { w.before[1], w.after[1], w.before[2], w.after[2] }, dilation = w.dilation,
    groups = groups }
  return function(x, weight, bias)
    return nn.conv2d({ weight = weight:permute(1, 3, 4, 2):contiguous(), bias = bias }, x, options)
  end
end

-- Sums the two-dimensional convolutions by each slice of the kernel [kd O kh kw C]. slice(k) returns the part of x
-- that slice k is applied to.
local function summed(weight, bias, options, slice)
  local y
  for k = 1, weight.shape[1] do
    options.residual = y
    y = nn.conv2d({ weight = weight:select(1, k), bias = k == 1 and bias or nil }, window.as_pictures(slice(k):contiguous()), options)
  end
  options.residual = nil
  return y
end

-- A three-dimensional convolution.
local function in_three(n, w, channels, groups)
  if n.fused.act then n:after(n.fused.act.node) end
  if n.fused.sum then n:after(n.fused.sum) end
  n:once('weight', { 2 }, function()
    return scaled(n, n:constant(2), channels):permute(3, 1, 4, 5, 2):contiguous() -- [kd O kh kw C/g]
  end)
  local bias = bias_of(n, channels)
  if not (bias and n:once('bias', { 2, 3 }, bias)) then n:nothing() end
  local options = { stride = { w.stride[2], w.stride[3] }, dilation = { w.dilation[2], w.dilation[3] }, groups = groups,
    padding = { w.before[2], w.after[2], w.before[3], w.after[3] } }
  return function(x, weight, b)
    local s = x.shape
    if w.before[1] + w.after[1] > 0 then x = nn.pad(x, { 0, w.before[1] }, { 0, w.after[1] }) end
    local y = summed(weight, b, options, function(k)
      local first = (k - 1) * w.dilation[1] + 1
      return x:slice(2, first, first + (w.out[1] - 1) * w.stride[1], w.stride[1])
    end)
    local o = y.shape
    return y:view(s[1], w.out[1], o[2], o[3], o[4])
  end
end

-- Returns the sizes of x, the shape of the weight, the sizes of the kernel, and the number of groups.
local function operands(n)
  local sizes, shape, kernel = window.sizes(n, 1), n:shape(2), {}
  if #shape ~= #sizes + 2 then n:fail('the weight has %d dimensions for an input of %d', #shape, #sizes + 2) end
  for k = 3, #shape do kernel[k - 2] = shape[k] end
  return sizes, shape, kernel, n:attribute('group', 1)
end

rows.Conv = { kind = 'conv', make = function(n)
  local sizes, shape, kernel, groups = operands(n)
  local channels = shape[1]
  local w = window.of(n, sizes, kernel)
  local result = result_shape(n, channels, w.out)
  n:last(1)
  if not n:is_constant(2) and #sizes == 2 then return of_computed_weights(n, w, groups) end
  if #sizes == 3 then return in_three(n, w, channels, groups) end
  local flat = #sizes == 1
  local run = layers.convolution(n, { sources = { 2, 3 }, shape = result, channels = channels, lie = lie_last,
    stride = flat and { 1, w.stride[1] } or w.stride, dilation = flat and { 1, w.dilation[1] } or w.dilation, groups = groups,
    padding = flat and { 0, 0, w.before[1], w.after[1] } or { w.before[1], w.after[1], w.before[2], w.after[2] },
    weight = function()
      local t = scaled(n, n:constant(2), channels)
      if flat then return t:permute(1, 3, 2):contiguous():view(channels, 1, kernel[1], shape[2]) end
      t = t:permute(1, 3, 4, 2)
      return t:is_contiguous() and t:clone() or t:contiguous()
    end,
    bias = bias_of(n, channels) })
  if not flat then return run end
  n.bare = false
  return function(x, weight, bias, slope, residual)
    local y = run(window.as_pictures(x), weight, bias, slope, residual and window.as_pictures(residual))
    return y:view(y.shape[1], y.shape[3], y.shape[4])
  end
end }

-- ---- transposed -------------------------------------------------------------------------------

-- Reverses a dimension.
local function flipped(t, dim)
  local parts = {}
  for i = t.shape[dim], 1, -1 do parts[#parts + 1] = t:narrow(dim, i, 1) end
  return require 'cr.tensor'.cat(parts, dim)
end

-- Computes from the attributes of a transposed convolution the sizes of its result, and how much of the sum of all
-- windows is cropped before and after (negative: padded with zeros).
local function transposed_window(n, sizes, kernel)
  local rank = #sizes
  local w = { stride = window.filled(n, 'strides', rank, 1), dilation = window.filled(n, 'dilations', rank, 1), out = {}, before = {},
    after = {}, kernel = kernel }
  local extra, pads, wanted = n:list 'output_padding', n:list 'pads', n:list 'output_shape'
  local auto = n:text('auto_pad', 'NOTSET')
  local spread = { n:shape(1)[1], n:shape(1)[2] } -- shape of the intermediate tensor
  for k, size in ipairs(sizes) do
    local more = extra and extra[k] or 0
    local full = (size - 1) * w.stride[k] + (kernel[k] - 1) * w.dilation[k] + 1
    local before, after = pads and pads[k] or 0, pads and pads[k + rank] or 0
    local target = wanted and wanted[#wanted - rank + k]
    if auto == 'SAME_UPPER' or auto == 'SAME_LOWER' then target = target or size * w.stride[k] end
    if target then
      local total = full + more - target
      local half = math.floor(total / 2)
      before = auto == 'SAME_UPPER' and half or total - half
      after = total - before
    elseif auto == 'VALID' then
      before, after = 0, 0
    end
    w.before[k], w.after[k], w.out[k] = before, after - more, full - before - after + more
    if w.out[k] < 1 then n:fail('the result would have the size %d', w.out[k]) end
    spread[k + 2] = size * w.stride[k] + 2 * (kernel[k] - 1) * w.dilation[k] + math.max(-before, 0) + math.max(more - after, 0)
  end
  n:room(spread)
  return w
end

-- Windows that do not overlap: one matrix product for each pixel, written to its place.
local function side_by_side(n, w, channels)
  local kh, kw = w.kernel[1], w.kernel[2]
  n:once('weight', { 2 }, function()
    local t = n:constant(2):permute(3, 4, 2, 1) -- [kh kw O C]
    local scale = scale_and_shift(n)
    if scale then t = (t:to 'f64' * scale:view(1, 1, channels, 1)):to 'f32' end
    return t:contiguous():view(kh * kw * channels, t.shape[4]):clone()
  end)
  local bias = bias_of(n, channels)
  if not (bias and n:once('bias', { 2, 3 }, function()
    return bias():view(1, channels):expand(kh * kw, channels):contiguous():view(-1)
  end)) then n:nothing() end
  local act = n.fused.act
  if act and act.act == 'prelu' then
    n:after(act.node)
    act = nil
  end
  if n.fused.sum then n:after(n.fused.sum) end
  local options = { act = act and act.act }
  return function(x, weight, b)
    local s = x.shape
    local y = nn.linear({ weight = weight, bias = b }, x, options):view(s[1], s[2], s[3], kh, kw, channels)
    return y:permute(1, 2, 4, 3, 5, 6):contiguous():view(s[1], s[2] * kh, s[3] * kw, channels)
  end
end

-- Inserts zeros between the elements of dimension `dim`.
local function spread(x, dim, stride)
  if stride == 1 then return x end
  local shape, size = x.shape, x.shape[dim]
  table.insert(shape, dim + 1, 1)
  local after = {}
  for k = 1, #shape do after[k] = k == dim + 1 and stride - 1 or 0 end
  local y = nn.pad(x:reshape(shape), {}, after)
  shape = x.shape
  shape[dim] = size * stride
  return y:view(shape):slice(dim, 1, (size - 1) * stride + 1)
end

-- The general case: zeros are inserted between the pixels, then a convolution by the flipped kernel follows.
local function spread_out(n, w, channels, groups)
  local rank = #w.kernel
  if n.fused.act then n:after(n.fused.act.node) end
  if n.fused.sum then n:after(n.fused.sum) end
  n:once('weight', { 2 }, function()
    local t = n:constant(2)
    local s = t.shape -- [C O/g ...]
    for dim = 3, rank + 2 do t = flipped(t, dim) end
    while t:dim() < 5 do t = t:unsqueeze(3) end
    local k = t.shape
    t = t:contiguous():view(groups, s[1] / groups, s[2], k[3], k[4], k[5]):permute(4, 1, 3, 5, 6, 2)
    t = t:contiguous():view(k[3], groups * s[2], k[4], k[5], s[1] / groups) -- [kd O kh kw C/g]
    local scale = scale_and_shift(n)
    if scale then t = (t:to 'f64' * scale:view(1, channels, 1, 1, 1)):to 'f32' end
    return t:clone()
  end)
  local bias = bias_of(n, channels)
  if not (bias and n:once('bias', { 2, 3 }, bias)) then n:nothing() end
  local before, after, dilation = { 0, 0, 0 }, { 0, 0, 0 }, { 1, 1, 1 }
  for k = 1, rank do
    local reach, at = (w.kernel[k] - 1) * w.dilation[k], 3 - rank + k
    before[at], after[at], dilation[at] = reach - w.before[k], reach - w.after[k], w.dilation[k]
  end
  local options = { dilation = { dilation[2], dilation[3] }, groups = groups }
  return function(x, weight, b)
    for k = 1, rank do x = spread(x, k + 1, w.stride[k]) end
    local s, shape = x.shape, { x.shape[1] }
    for k = 1, 3 do shape[k + 1] = k <= 3 - rank and 1 or s[k - 3 + rank + 1] end
    shape[5] = s[#s]
    x = x:reshape(shape)
    -- Negative paddings crop.
    local add, more = { 0 }, { 0 }
    for k = 1, 3 do
      add[k + 1], more[k + 1] = math.max(before[k], 0), math.max(after[k], 0)
      if before[k] < 0 or after[k] < 0 then
        x = x:slice(k + 1, 1 + math.max(-before[k], 0), x.shape[k + 1] - math.max(-after[k], 0))
      end
    end
    x = nn.pad(x, add, more)
    local depth = x.shape[2] - (weight.shape[1] - 1) * dilation[1]
    local y = summed(weight, b, options, function(k) return x:narrow(2, (k - 1) * dilation[1] + 1, depth) end)
    local out = { s[1] }
    for _, size in ipairs(w.out) do out[#out + 1] = size end
    out[#out + 1] = channels
    return y:view(out)
  end
end

rows.ConvTranspose = { kind = 'conv', make = function(n)
  local sizes, shape, kernel, groups = operands(n)
  local given = n:shape(1)[2]
  if shape[1] ~= given or given % groups ~= 0 then n:fail('the weight has %d channels for an input of %d', shape[1], given) end
  local channels = shape[2] * groups
  local w = transposed_window(n, sizes, kernel)
  result_shape(n, channels, w.out)
  local plain = #sizes == 2 and groups == 1
  for k = 1, #sizes do
    plain = plain and kernel[k] == w.stride[k] and w.dilation[k] == 1 and w.before[k] == 0 and w.after[k] == 0
  end
  n:last(1)
  if plain then return side_by_side(n, w, channels) end
  return spread_out(n, w, channels, groups)
end }

return rows
