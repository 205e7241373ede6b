--- ONNX's Resize and Upsample. Nearest-neighbour and plain bilinear resizing of pictures use cr's operations. All
--- other modes multiply by a
-- matrix for each dimension that changes, which is made once.

local nn = require 'cr.nn'
local node = require 'cr.graphs.node'
local tensor = require 'cr.tensor'

local rows = {}

-- ---- where a result's element lies in the input -----------------------------------------------

-- The coordinate in the input of result i, by coordinate_transformation_mode. o is {size, out, scale, first, last (of
-- a region)}.
local PLACES = {
  half_pixel = function(i, o) return (i + 0.5) / o.scale - 0.5 end,
  half_pixel_symmetric = function(i, o)
    local adjust = o.out / (o.scale * o.size)
    return o.size / 2 * (1 - adjust) + (i + 0.5) / o.scale - 0.5
  end,
  pytorch_half_pixel = function(i, o) return o.out > 1 and (i + 0.5) / o.scale - 0.5 or 0 end,
  align_corners = function(i, o) return o.out > 1 and i * (o.size - 1) / (o.scale * o.size - 1) or 0 end,
  asymmetric = function(i, o) return i / o.scale end,
  tf_crop_and_resize = function(i, o)
    if o.out == 1 then return 0.5 * (o.first + o.last) * (o.size - 1) end
    return o.first * (o.size - 1) + i * (o.last - o.first) * (o.size - 1) / (o.out - 1)
  end,
}

local ROUNDINGS = {
  round_prefer_floor = function(x) return math.ceil(x - 0.5) end,
  round_prefer_ceil = function(x) return math.floor(x + 0.5) end,
  floor = math.floor, ceil = math.ceil,
}

-- Before operator set 11, onnxruntime rounds down where a dimension grows and up where it shrinks.
local function simple(scale) return scale < 1 and math.ceil or math.floor end

local function linear(d) return math.max(1 - math.abs(d), 0) end
local function cubic(a)
  return function(d)
    d = math.abs(d)
    if d <= 1 then return ((a + 2) * d - (a + 3)) * d * d + 1 end
    return d < 2 and ((a * d - 5 * a) * d + 8 * a) * d - 4 * a or 0
  end
end

-- Returns the weights of one element of the result as a list of {index, weight}, or nil if it lies outside the region.
local function weights_of(i, o)
  local x = o.place(i, o)
  if o.crop and (x < 0 or x > o.size - 1) then return nil end
  if o.round then return { { math.min(math.max(o.round(x), 0), o.size - 1), 1 } } end
  local wide = o.antialias and math.max(1 / o.scale, 1) or 1
  local list, sum = {}, 0
  for k = math.ceil(x - o.reach * wide), math.floor(x + o.reach * wide) do
    local w = o.kernel((k - x) / wide)
    local inside = k >= 0 and k < o.size
    if w ~= 0 and (inside or not o.exclude) then
      list[#list + 1] = { math.min(math.max(k, 0), o.size - 1), w }
      sum = sum + w
    end
  end
  for _, entry in ipairs(list) do entry[2] = entry[2] / sum end
  return list
end

-- ---- the operator -----------------------------------------------------------------------------

-- Adds to the options of one dimension `matrix` [out size] and, if some results lie outside the region, `outside` [out].
local function matrix_of(o, extrapolation)
  local data, outside = {}, nil
  for i = 0, o.out - 1 do
    local row, list = {}, weights_of(i, o)
    for k = 1, o.size do row[k] = 0 end
    for _, entry in ipairs(list or {}) do row[entry[1] + 1] = row[entry[1] + 1] + entry[2] end
    if not list then
      outside = outside or {}
      outside[i + 1] = extrapolation
    end
    data[i + 1] = row
  end
  return data, outside
end

-- Multiplies one dimension by a matrix.
local function along(x, dim, matrix)
  local rank = x:dim()
  local y = dim == rank and x or x:transpose(dim, rank)
  y = nn.linear({ weight = matrix }, y:contiguous())
  return dim == rank and y or y:transpose(dim, rank):contiguous()
end

local function apply(n, sizes, outs, scales, region)
  local rank = #sizes
  local mode, transform = n:text('mode', 'nearest'), n:text('coordinate_transformation_mode', 'half_pixel')
  local nearest = n:text('nearest_mode', 'round_prefer_floor')
  local old = n.opset < 11
  if old then transform, nearest = 'asymmetric', 'floor' end
  if not PLACES[transform] then n:fail('coordinate_transformation_mode %s is not handled', transform) end
  if mode == 'bilinear' then mode = 'linear' end
  if mode ~= 'nearest' and mode ~= 'linear' and mode ~= 'cubic' then n:fail('mode %s is not handled', mode) end
  if mode == 'nearest' and not ROUNDINGS[nearest] then n:fail('nearest_mode %s is not handled', nearest) end
  n:room(outs)
  local antialias = n:attribute('antialias', 0) ~= 0 and mode ~= 'nearest'
  local changed, only_picture = {}, rank == 4
  for k = 1, rank do
    if outs[k] < 1 then n:fail('the result would have the size %d', outs[k]) end
    if outs[k] ~= sizes[k] or transform == 'tf_crop_and_resize' and (region[k] ~= 0 or region[k + rank] ~= 1) then
      changed[#changed + 1] = k
      only_picture = only_picture and k > 2
    end
  end
  local function whole_scale(k) return math.abs(scales[k] * sizes[k] - outs[k]) < 1e-3 end
  if only_picture and whole_scale(3) and whole_scale(4) and not antialias then
    local shrinks = old and (scales[3] < 1 or scales[4] < 1)
    local centred = transform == 'half_pixel' or transform == 'pytorch_half_pixel' and outs[3] > 1 and outs[4] > 1
    local method = mode == 'linear' and centred and 'bilinear' or nil
    if mode == 'nearest' and not shrinks and transform == 'asymmetric' and nearest == 'floor' then method = 'nearest' end
    if method then
      n:last(1)
      return function(x) return nn.resize(x, outs[3], outs[4], method) end
    end
  end
  local last = n:any(1)
  local steps = {}
  for _, k in ipairs(changed) do
    local o = { size = sizes[k], out = outs[k], scale = scales[k], first = region[k], last = region[k + rank], place = PLACES[transform],
      crop = transform == 'tf_crop_and_resize', antialias = antialias,
      round = mode == 'nearest' and (old and simple(scales[k]) or ROUNDINGS[nearest]) or nil,
      exclude = n:attribute('exclude_outside', 0) ~= 0, reach = mode == 'cubic' and 2 or 1,
      kernel = mode == 'cubic' and cubic(n:attribute('cubic_coeff_a', -0.75)) or linear }
    if o.size * o.out > 2 ^ 24 then n:fail('resizing %d to %d in this mode is too large', o.size, o.out) end
    local data, outside = matrix_of(o, n:attribute('extrapolation_value', 0))
    local step = { dim = node.dim(k - 1, rank, last), outside = outside ~= nil }
    n:sized('matrix', function() return tensor.tensor(data) end)
    if outside then
      n:sized('outside', function()
        local list, shape = {}, {}
        for i = 1, outs[k] do list[i] = outside[i] and 1 or 0 end
        for d = 1, rank do shape[d] = d == step.dim and outs[k] or 1 end
        return tensor.tensor(list):view(shape):to 'bool'
      end)
    end
    steps[#steps + 1] = step
  end
  local extrapolation = n:attribute('extrapolation_value', 0)
  return function(x, ...)
    local i, dtype = 0, x.dtype
    local y = dtype:find '^[bf]' and dtype ~= 'bool' and x or x:to 'f32'
    for _, step in ipairs(steps) do
      y = along(y, step.dim, (select(i + 1, ...)))
      i = i + 1
      if step.outside then
        i = i + 1
        y = tensor.where((select(i, ...)), extrapolation, y)
      end
    end
    return y:to(dtype)
  end
end

-- Expands numbers for some axes to numbers for all dimensions.
local function spread(n, list, axes, rank, default)
  if not axes then
    if #list ~= rank then n:fail('%d scales or sizes for %d dimensions', #list, rank) end
    return list
  end
  local out = {}
  for k = 1, rank do out[k] = default[k] end
  for i, a in ipairs(axes) do out[n:axis(a, rank) + 1] = list[i] end
  return out
end

rows.Resize = { make = function(n)
  local sizes, rank = n:shape(1), n:rank(1)
  local axes, ones, region = n:list 'axes', {}, {}
  for k = 1, rank do ones[k], region[k], region[k + rank] = 1, 0, 1 end
  local roi = n.opset >= 11 and n:numbers(2)
  if roi and #roi > 0 and n:text('coordinate_transformation_mode', '') == 'tf_crop_and_resize' then
    local half, first, last = #roi / 2, {}, {}
    for k = 1, half do first[k], last[k] = roi[k], roi[k + half] end
    local zeros = {}
    for k = 1, rank do zeros[k] = 0 end
    first, last = spread(n, first, axes, rank, zeros), spread(n, last, axes, rank, ones)
    for k = 1, rank do region[k], region[k + rank] = first[k], last[k] end
  end
  local scales, wanted = n:numbers(n.opset >= 11 and 3 or 2), n.opset >= 11 and n:numbers(4) or nil
  local outs = {}
  if scales and #scales > 0 then
    scales = spread(n, scales, axes, rank, ones)
    for k = 1, rank do outs[k] = math.floor(sizes[k] * scales[k] * (region[k + rank] - region[k]) + 1e-6) end
  elseif wanted and #wanted > 0 then
    outs = spread(n, wanted, axes, rank, sizes)
    scales = {}
    for k = 1, rank do scales[k] = outs[k] / sizes[k] end
    local policy = n:text('keep_aspect_ratio_policy', 'stretch')
    if policy ~= 'stretch' then
      local chosen
      for _, a in ipairs(axes or { unpack({ 0, 1, 2, 3, 4, 5, 6, 7 }, 1, rank) }) do
        local s = scales[n:axis(a, rank) + 1]
        chosen = chosen and (policy == 'not_larger' and math.min or math.max)(chosen, s) or s
      end
      outs = { unpack(outs) }
      for _, a in ipairs(axes or { unpack({ 0, 1, 2, 3, 4, 5, 6, 7 }, 1, rank) }) do
        local k = n:axis(a, rank) + 1
        scales[k], outs[k] = chosen, math.floor(sizes[k] * chosen + 0.5)
      end
    end
  else
    n:fail 'neither scales nor sizes are given'
  end
  return apply(n, sizes, outs, scales, region)
end }

rows.Upsample = { make = function(n)
  local sizes, rank = n:shape(1), n:rank(1)
  local scales = n:list_or('scales', 2) or n:fail 'scales are missing'
  local outs, region = {}, {}
  scales = spread(n, scales, nil, rank)
  for k = 1, rank do outs[k], region[k], region[k + rank] = math.floor(sizes[k] * scales[k] + 1e-6), 0, 1 end
  return apply(n, sizes, outs, scales, region)
end }

return rows
