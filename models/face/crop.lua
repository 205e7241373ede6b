--- A turned square cut out of a frame and brought to a network's input size.
--
-- Bilinear, pixel centres at half integers; where the square is much larger than the result, several
-- samples per result pixel are averaged, so that a small input does not alias. Outside the frame is
-- black. Sampling writes straight into the network's float input: no copy of the frame is made.

local ffi = require 'ffi'

local crop = {}

--- A square of `side` pixels around (x, y), turned by `angle` (radians, clockwise as seen).
---@class crescent.face.square
---@field x number
---@field y number
---@field side number
---@field angle number

--- One row of samples added up in `sums` (3 a pixel); (x, y) is the first sample's place.
local function add_row(sums, n, per_pixel, frame, width, height, x, y, dx, dy)
  local floor = math.floor
  local stride = 3 * width
  for i = 0, n - 1 do
    local x0, y0 = floor(x), floor(y)
    if x0 >= -1 and y0 >= -1 and x0 < width and y0 < height then
      local fx, fy = x - x0, y - y0
      local a, b = (1 - fx) * (1 - fy), fx * (1 - fy)
      local c, d = (1 - fx) * fy, fx * fy
      local left, right, top, bottom = x0, x0 + 1, y0, y0 + 1
      -- a neighbour outside has no weight; its index is moved to one that may be read
      if left < 0 then a, c, left = 0, 0, 0 end
      if top < 0 then a, b, top = 0, 0, 0 end
      if right >= width then b, d, right = 0, 0, left end
      if bottom >= height then c, d, bottom = 0, 0, top end
      local p, q = top * stride + 3 * left, top * stride + 3 * right
      local r, s = bottom * stride + 3 * left, bottom * stride + 3 * right
      local o = 3 * floor(i / per_pixel)
      sums[o] = sums[o] + a * frame[p] + b * frame[q] + c * frame[r] + d * frame[s]
      sums[o + 1] = sums[o + 1] + a * frame[p + 1] + b * frame[q + 1] + c * frame[r + 1]
        + d * frame[s + 1]
      sums[o + 2] = sums[o + 2] + a * frame[p + 2] + b * frame[q + 2] + c * frame[r + 2]
        + d * frame[s + 2]
    end
    x, y = x + dx, y + dy
  end
end

--- The samples of an upright square much larger than the result: every second pixel or so (5 x 5 at
--- most a result pixel), which is as good there as bilinear samples and ten times as fast.
local function shrink(out, size, frame, width, height, square, scale, shift)
  local ratio = square.side / size
  local samples = math.floor(ratio / math.max(2, math.ceil(ratio / 5)) + 0.5)
  local n = size * samples
  local step = square.side / n
  local left, top = square.x - square.side / 2, square.y - square.side / 2
  local columns, targets = ffi.new('int32_t[?]', n), ffi.new('int32_t[?]', n)
  local count = 0
  for i = 0, n - 1 do
    local x = math.floor(left + (i + 0.5) * step)
    if x >= 0 and x < width then
      columns[count], targets[count] = 3 * x, 3 * math.floor(i / samples)
      count = count + 1
    end
  end
  local sums = ffi.new('int32_t[?]', 3 * size)
  local factor = scale / (samples * samples)
  for row = 0, size - 1 do
    ffi.fill(sums, 4 * 3 * size)
    for k = 0, samples - 1 do
      local y = math.floor(top + (row * samples + k + 0.5) * step)
      if y >= 0 and y < height then
        local line = frame + y * width * 3
        for i = 0, count - 1 do
          local p, o = line + columns[i], sums + targets[i]
          o[0], o[1], o[2] = o[0] + p[0], o[1] + p[1], o[2] + p[2]
        end
      end
    end
    local o = out + row * 3 * size
    for i = 0, 3 * size - 1 do o[i] = sums[i] * factor + shift end
  end
end

--- Fills `out`, float [size size 3], with the square's pixels times `scale` plus `shift`.
---@param out ffi.cdata* float *
---@param size integer
---@param frame ffi.cdata* uint8_t *, [height width 3]
---@param width integer
---@param height integer
---@param square crescent.face.square
---@param scale number
---@param shift number
function crop.sample(out, size, frame, width, height, square, scale, shift)
  local ratio = square.side / size
  if square.angle == 0 and ratio >= 4 then
    return shrink(out, size, frame, width, height, square, scale, shift)
  end
  local samples = math.max(1, math.min(4, math.ceil(ratio / 3)))
  local n = size * samples
  local step = square.side / n
  local cosine, sine = math.cos(square.angle) * step, math.sin(square.angle) * step
  local sums = ffi.new('double[?]', 3 * size)
  local factor = scale / (samples * samples)
  for row = 0, size - 1 do
    ffi.fill(sums, 8 * 3 * size)
    for k = 0, samples - 1 do
      -- the first sample of the row, measured in samples from the square's centre
      local u, v = 0.5 - n / 2, row * samples + k + 0.5 - n / 2
      add_row(sums, n, samples, frame, width, height, square.x + u * cosine - v * sine - 0.5,
        square.y + u * sine + v * cosine - 0.5, cosine, sine)
    end
    local o = out + row * 3 * size
    for i = 0, 3 * size - 1 do o[i] = sums[i] * factor + shift end
  end
end

--- Where the point (u, v) of the cut-out (0..1) lies in the frame.
---@param square crescent.face.square
---@return number x, number y
function crop.to_frame(square, u, v)
  local cosine, sine = math.cos(square.angle), math.sin(square.angle)
  local du, dv = (u - 0.5) * square.side, (v - 0.5) * square.side
  return square.x + du * cosine - dv * sine, square.y + du * sine + dv * cosine
end

return crop
