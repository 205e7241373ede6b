--- ONNX's pooling, over one, two or three dimensions.

local nn = require 'cr.nn'
local tensor = require 'cr.tensor'
local window = require 'cr.graphs.onnx.window'

local rows = {}

-- Applies a two-dimensional pooling to x [N ... C] with one, two or three spatial dimensions. Three are pooled over
-- the last two, then over the first. In pool(x, a, b), x is [N H W C], and a and b are the indices of its two
-- dimensions in the lists of the window.
local function by_two(w, pool)
  local rank = #w.kernel
  return function(x, ...)
    if rank == 2 then return pool(x, 1, 2, ...) end
    local s = x.shape
    if rank == 1 then
      local y = pool(window.as_pictures(x), nil, 1, ...)
      return y:view(s[1], w.out[1], s[3])
    end
    local y = pool(window.as_pictures(x), 2, 3, ...)
    y = pool(y:view(s[1], s[2], w.out[2] * w.out[3], s[5]), 1, nil, ...)
    return y:view(s[1], w.out[1], w.out[2], w.out[3], s[5])
  end
end

local function kernel_of(n, sizes)
  local kernel = n:list 'kernel_shape'
  if not kernel or #kernel ~= #sizes then n:fail('kernel_shape has %d numbers for %d dimensions', kernel and #kernel or 0, #sizes) end
  kernel = window.filled(n, 'kernel_shape', #sizes)
  n:room { n:shape(1)[2] or 1, unpack(kernel) }
  return kernel
end

-- Returns entry k of a window's list, or `none` where there is no such entry.
local function at(list, k, none) return k and list[k] or none end

local MOST_PLACES = 4096

-- The maximum of dilated windows: the maximum over strided slices, one for each position of the kernel.
local function with_holes(x, w, a, b)
  local before, after = { 0, at(w.before, a, 0), at(w.before, b, 0) }, { 0, at(w.after, a, 0), at(w.after, b, 0) }
  x = nn.pad(x, before, after, -math.huge)
  local y
  for i = 0, at(w.kernel, a, 1) - 1 do
    for j = 0, at(w.kernel, b, 1) - 1 do
      local part = x
      for dim, k in pairs { [2] = a or false, [3] = b or false } do
        if k then
          local first = (dim == 2 and i or j) * w.dilation[k] + 1
          part = part:slice(dim, first, first + (w.out[k] - 1) * w.stride[k], w.stride[k])
        end
      end
      y = y and y:maximum(part) or part
    end
  end
  return y:contiguous()
end

rows.MaxPool = { make = function(n)
  if n.node.outputs[2] then n:fail("the indices of the maxima, a second output, are not handled") end
  local sizes = window.sizes(n, 1)
  local w = window.of(n, sizes, kernel_of(n, sizes))
  local holes = false
  for k = 1, #sizes do holes = holes or w.dilation[k] > 1 or w.after[k] >= w.kernel[k] or w.before[k] >= w.kernel[k] end
  if holes and at(w.kernel, 1, 1) * at(w.kernel, 2, 1) * at(w.kernel, 3, 1) > MOST_PLACES then n:fail 'its dilated window is too large' end
  n:last(1)
  local dtype = n:dtype(1)
  local exact = dtype == 'f32' or dtype == 'f16' or dtype == 'bf16' or dtype == 'f64'
  local run = by_two(w, function(x, a, b)
    if holes then return with_holes(x, w, a, b) end
    return nn.max_pool2d(x, { kernel = { at(w.kernel, a, 1), at(w.kernel, b, 1) }, stride = { at(w.stride, a, 1), at(w.stride, b, 1) },
      padding = { at(w.before, a, 0), at(w.after, a, 0), at(w.before, b, 0), at(w.after, b, 0) } })
  end)
  if exact then return run end
  return function(x) return run(x:to 'f32'):to(dtype) end
end }

-- Feeds the weights that sum over windows: a depthwise convolution by ones (or by `value`).
local function feed_ones(n, w, channels, value)
  local rank = #w.kernel
  local kernels = rank == 3 and { { w.kernel[2], w.kernel[3] }, { w.kernel[1], 1 } } or
    rank == 2 and { { w.kernel[1], w.kernel[2] } } or { { 1, w.kernel[1] } }
  for i, k in ipairs(kernels) do
    n:once('ones' .. i, {}, function() return tensor.full({ channels, k[1], k[2], 1 }, i == 1 and value or 1) end)
  end
  return by_two(w, function(x, a, b, ones, more)
    return nn.conv2d({ weight = (rank == 3 and not b) and more or ones }, x, { groups = x.shape[4],
      stride = { at(w.stride, a, 1), at(w.stride, b, 1) }, dilation = { at(w.dilation, a, 1), at(w.dilation, b, 1) },
      padding = { at(w.before, a, 0), at(w.after, a, 0), at(w.before, b, 0), at(w.after, b, 0) } })
  end)
end

-- Returns how many elements the window of each result covers along dimension k, and whether that number is the same everywhere.
local function counts(w, sizes, k, with_padding)
  local list, even = {}, true
  local low = with_padding and -w.before[k] or 0
  local high = sizes[k] + (with_padding and w.declared[k] or 0)
  for o = 0, w.out[k] - 1 do
    local first = o * w.stride[k] - w.before[k]
    local from = math.max(math.ceil((low - first) / w.dilation[k]), 0)
    local count = math.max(math.min(math.ceil((high - first) / w.dilation[k]), w.kernel[k]) - from, 0)
    list[o + 1] = count
    even = even and count == list[1]
  end
  return list, even
end

rows.AveragePool = { make = function(n)
  local sizes = window.sizes(n, 1)
  local w = window.of(n, sizes, kernel_of(n, sizes))
  local with_padding = n:attribute('count_include_pad', 0) ~= 0
  local lists, even, whole = {}, true, 1
  for k = 1, #sizes do
    local same
    lists[k], same = counts(w, sizes, k, with_padding)
    even, whole = even and same, whole * lists[k][1]
  end
  n:last(1)
  local sum = feed_ones(n, w, n:shape(1)[2], even and 1 / whole or 1)
  if even then return sum end
  n:sized('counts', function()
    local y = tensor.ones(1)
    for k, list in ipairs(lists) do
      local shape = {}
      for i = 1, #sizes + 2 do shape[i] = i == k + 1 and #list or 1 end
      y = y * (1 / tensor.tensor(list)):view(shape)
    end
    return y:contiguous()
  end)
  local place = #sizes == 3 and 3 or 2
  return function(x, ...) return sum(x, ...) * select(place, ...) end
end }

rows.LpPool = { make = function(n)
  local p = n:attribute('p', 2)
  local sizes = window.sizes(n, 1)
  local w = window.of(n, sizes, kernel_of(n, sizes))
  n:last(1)
  local sum = feed_ones(n, w, n:shape(1)[2], 1)
  return function(x, ...) return sum(x:abs() ^ p, ...) ^ (1 / p) end
end }

--- Makes the row of a reduction over all spatial dimensions.
local function global(reduce)
  return { make = function(n)
    local dims = {}
    for k = 3, n:rank(1) do dims[#dims + 1] = k - 1 end
    local fn = reduce(n)
    if #dims == 0 then
      n:plain(1)
      return function(x) return x end
    end
    n:last(1)
    return function(x) return fn(x, dims) end
  end }
end

rows.GlobalAveragePool = global(function() return function(x, dims) return x:mean(dims, true) end end)
rows.GlobalMaxPool = global(function() return function(x, dims) return x:max(dims, true) end end)
rows.GlobalLpPool = global(function(n)
  local p = n:attribute('p', 2)
  return function(x, dims) return (x:abs() ^ p):sum(dims, true) ^ (1 / p) end
end)

return rows
