--- Resizing and grid sampling as torch computes them, and distances between pictures.

local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local shape_text, kinds, maybe = tensor.shape_text, tensor.kinds, arguments.maybe
--- @class cr.nn
local nn = {}

-- ---- other sizes ----------------------------------------------------------------------------------------

-- Filter weights by distance. `a` is the parameter of Keys' cubic: -0.75 in torch, but -0.5 for antialiased resizing.
local function triangle(t) return math.max(0, 1 - math.abs(t)) end
local function cubic(a)
  return function(t)
    t = math.abs(t)
    if t < 1 then return ((a + 2) * t - (a + 3)) * t * t + 1 end
    if t < 2 then return a * (((t - 5) * t + 8) * t - 4) end
    return 0
  end
end

-- The rows of a matrix [out in] that resamples one dimension. Each is {index = weight}, with indices from 0.
local ROWS = {}

function ROWS.nearest(i, n, _, scale) return { [math.min(n - 1, math.floor(i * scale))] = 1 } end

-- The mean of the pixels that a pixel of the result covers, each counted whole.
function ROWS.area(i, n, m)
  local first, last = math.floor(i * n / m), math.ceil((i + 1) * n / m)
  local row = {}
  for k = first, last - 1 do row[k] = 1 / (last - first) end
  return row
end

local function by_kernel(kernel, width, antialiased)
  return function(i, n, m, scale, o)
    local row, sum = {}, 0
    local at = o.align_corners and (m > 1 and i * (n - 1) / (m - 1) or 0) or (i + 0.5) * scale - 0.5
    local stretch = o.antialias and math.max(1, scale) or 1
    local k = o.antialias and antialiased or kernel
    for p = math.ceil(at - width * stretch), math.floor(at + width * stretch) do
      local weight = k((p - at) / stretch)
      if o.antialias then
        if p >= 0 and p < n then row[p], sum = weight, sum + weight end
      else
        local q = math.max(0, math.min(n - 1, p)) -- repeats the edge
        row[q], sum = (row[q] or 0) + weight, sum + weight
      end
    end
    for p, weight in pairs(row) do row[p] = weight / sum end
    return row
  end
end
ROWS.bilinear = by_kernel(triangle, 1, triangle)
ROWS.bicubic = by_kernel(cubic(-0.75), 2, cubic(-0.5))

local function matrix(n, m, o, like)
  local out = tensor.zeros({ m, n }, { dtype = 'f64' })
  local p, scale = out:pointer(), o.scale and 1 / o.scale or n / m
  for i = 0, m - 1 do
    for k, weight in pairs(ROWS[o.mode or 'nearest'](i, n, m, scale, o)) do p[i * n + k] = weight end
  end
  return out:to(like.dtype):to(like.device)
end

--- Resizes a picture as torch.nn.functional.interpolate does, by a matrix product for each dimension.
--- @param x Tensor [N H W C]
--- @param options table {size = integer[] (height, width), scale = number (instead of `size`), mode =
---   'nearest'|'bilinear'|'bicubic'|'area', align_corners = false, antialias = false}
--- @return Tensor [N H' W' C] of x's dtype
function nn.interpolate(x, options)
  if x:dim() ~= 4 then base.fail(('interpolate: a picture [N H W C] is needed, not %s'):format(shape_text(x))) end
  local N, H, W, C = unpack(x.shape)
  local o = options
  if (o.size == nil) == (o.scale == nil) then base.fail 'interpolate: give size = {height, width} or scale = number' end
  local h, w = math.floor(H * (o.scale or 1)), math.floor(W * (o.scale or 1))
  if o.size then h, w = o.size[1], o.size[2] or o.size[1] end
  if h < 1 or w < 1 then base.fail(('interpolate: a picture cannot have %d x %d pixels'):format(h, w)) end
  return tensor.scope(function()
    local dtype = x.dtype
    local y = (dtype == 'f32' or dtype == 'f64') and x or x:to 'f32'
    y = matrix(H, h, o, y):matmul(y:reshape(N, H, W * C)) -- [N h W*C]
    y = matrix(W, w, o, y):matmul(y:view(N, h, W, C))
    if y.dtype == dtype then return y end
    return (dtype == 'f16' or dtype == 'bf16') and y:to(dtype) or y:round():to(dtype) -- the conversion saturates
  end)
end

-- ---- grids of points ------------------------------------------------------------------------------------

-- Returns the pixels of x at integer columns and rows [N H' W']. Outside they are 0, or clamped to the edge: [N H' W' C].
local function pixels(x, column, row, to_edge)
  local N, H, W, C = unpack(x.shape)
  local inside = not to_edge and column:ge(0):logical_and(column:le(W - 1)):logical_and(row:ge(0)):logical_and(row:le(H - 1))
  local number = tensor.arange(0, N - 1, 1, { dtype = 'f64', device = x.device }):view(N, 1, 1)
  local at = number * (H * W) + row:clamp(0, H - 1) * W + column:clamp(0, W - 1)
  local y = x:reshape(N * H * W, C):gather_rows(at:reshape(-1):to 'i64' + 1)
  local s = column.shape
  y = y:view(s[1], s[2], s[3], C)
  return inside and y:masked_fill(inside:logical_not():unsqueeze(4), 0) or y
end

--- Samples x at a grid of points, as torch.nn.functional.grid_sample does.
--- @param x Tensor [N H W C]
--- @param grid Tensor [N H' W' 2]: column and row, -1 to 1 over the picture
--- @param options table? {mode = 'bilinear'|'nearest', padding = 'zeros'|'border', align_corners = false}
--- @return Tensor [N H' W' C]
function nn.grid_sample(x, grid, options)
  local o = options or {}
  if x:dim() ~= 4 or grid:dim() ~= 4 or grid:size(4) ~= 2 or grid:size(1) ~= x:size(1) then
    base.fail(("grid_sample: x [N H W C] and grid [N H' W' 2] are needed, not %s and %s"):format(shape_text(x), shape_text(grid)))
  end
  if x.dtype == 'f16' or x.dtype == 'bf16' then
    return tensor.scope(function() return nn.grid_sample(x:to 'f32', grid, options):to(x.dtype) end)
  end
  return tensor.scope(function()
    local _, H, W = unpack(x.shape)
    local g = grid:to 'f64'
    local function place(d, n)
      local v = g:select(4, d)
      if o.align_corners then v = (v + 1) * ((n - 1) / 2) else v = ((v + 1) * n - 1) * 0.5 end
      return o.padding == 'border' and v:clamp(0, n - 1) or v
    end
    local column, row, edge = place(1, W), place(2, H), o.padding == 'border'
    if o.mode == 'nearest' then return pixels(x, column:round(), row:round(), edge) end
    local left, top = column:floor(), row:floor()
    local function weight(v) return v:to(x.dtype):unsqueeze(4) end
    local a, b = weight(column - left), weight(row - top)
    return (pixels(x, left, top, edge) * (1 - a) + pixels(x, left + 1, top, edge) * a) * (1 - b) +
      (pixels(x, left, top + 1, edge) * (1 - a) + pixels(x, left + 1, top + 1, edge) * a) * b
  end)
end

-- ---- distances ------------------------------------------------------------------------------------------

--- The mean of the squared differences.
--- @param a Tensor
--- @param b Tensor
--- @return Tensor a scalar
function nn.mse_loss(a, b) return tensor.scope(function() return (a - b):square():mean() end) end

--- The mean of the absolute differences.
--- @param a Tensor
--- @param b Tensor
--- @return Tensor a scalar
function nn.l1_loss(a, b) return tensor.scope(function() return (a - b):abs():mean() end) end

local TAPS, SIGMA = 11, 1.5

-- Averages over all Gaussian windows inside the picture: [B H W] to [B H-10 W-10].
local function averages(x, down, across) return down:matmul(x):matmul(across) end

local function gaussian(n, like)
  local out, sum = tensor.zeros(n - TAPS + 1, n), 0
  local p = out:pointer()
  for k = 0, TAPS - 1 do sum = sum + math.exp(-(k - 5) ^ 2 / (2 * SIGMA ^ 2)) end
  for i = 0, n - TAPS do
    for k = 0, TAPS - 1 do p[i * n + i + k] = math.exp(-(k - 5) ^ 2 / (2 * SIGMA ^ 2)) / sum end
  end
  return out:to(like.device)
end

--- The mean structural similarity (SSIM) of pictures, by channel, with a Gaussian window of 11 x 11 pixels and
--- standard deviation 1.5. Wang, Bovik, Sheikh, Simoncelli 2004.
--- @param a Tensor [N H W C]
--- @param b Tensor like a
--- @param options table? {range = 1 (the largest minus the smallest possible value of a pixel; 255 for u8)}
--- @return Tensor a scalar, 1 for equal pictures
function nn.ssim(a, b, options)
  local s = a.shape
  if #s ~= 4 or shape_text(a) ~= shape_text(b) or s[2] < TAPS or s[3] < TAPS then
    base.fail(('ssim: two pictures [N H W C] of %d x %d pixels at least are needed, not %s and %s'):format(TAPS, TAPS, shape_text(a),
      shape_text(b)))
  end
  local range = options and options.range or a.dtype == 'u8' and 255 or 1
  local c1, c2 = (0.01 * range) ^ 2, (0.03 * range) ^ 2
  return tensor.scope(function()
    local function planes(x) return x:to 'f32':permute(1, 4, 2, 3):contiguous():view(s[1] * s[4], s[2], s[3]) end
    local x, y = planes(a), planes(b)
    local down, across = gaussian(s[2], x), gaussian(s[3], x):t()
    local mx, my = averages(x, down, across), averages(y, down, across)
    local xx, yy = averages(x * x, down, across) - mx * mx, averages(y * y, down, across) - my * my
    local xy = averages(x * y, down, across) - mx * my
    return (((mx * my * 2 + c1) * (xy * 2 + c2)) / ((mx * mx + my * my + c1) * (xx + yy + c2))):mean()
  end)
end

local x = kinds.alive
local flag = maybe(arguments.boolean)
local rows = {
  interpolate = { x, arguments.options { size = maybe(arguments.list('', arguments.positive, 1, 2)), scale = maybe(arguments.finite),
    mode = maybe(arguments.choice('mode', { 'nearest', 'bilinear', 'bicubic', 'area' })), align_corners = flag, antialias = flag } },
  grid_sample = { x, x, maybe(arguments.options { mode = maybe(arguments.choice('mode', { 'bilinear', 'nearest' })),
    padding = maybe(arguments.choice('padding', { 'zeros', 'border' })), align_corners = flag }) },
  mse_loss = { x, x }, l1_loss = { x, x }, ssim = { x, x, maybe(arguments.options { range = maybe(arguments.finite) }) },
}
return { functions = nn, rows = rows }
