--- Pictures with more than 8 bits per value: 16-bit numbers as tensors, and conversion between decoded planes and RGB.
--
-- Tensors have no unsigned 16-bit dtype, so such values are stored bit for bit in i16. Chroma is resampled by
-- cr_warp_bicubic, with each sample centred among the luma samples that share it, as libswscale does.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local C, scope = base.C, tensor.scope
local matrix_type = ffi.typeof 'double[6]'

local M = {}

--- Converts an i16 tensor, read as unsigned numbers, to floats.
--- @param x Tensor i16
--- @param bits integer? how many bits the numbers have at most (16)
--- @return Tensor f32
function M.float(x, bits)
  return scope(function()
    local f = x:to 'f32'
    if bits and bits < 16 then return f end
    return tensor.where(f:lt(0), f + 65536, f)
  end)
end

--- Converts back to i16, rounding half to even.
--- @param x Tensor f32, in 0..65535
--- @return Tensor i16
function M.whole(x)
  return scope(function()
    local f = x:round()
    return tensor.where(f:ge(32768), f - 65536, f):to 'i16'
  end)
end

--- @class DeepPicture a picture as the file stores it: planes of luma and chroma, or of G, B and R
--- @field values Tensor i16 [n], of all planes
--- @field format ffi.cdata* cr_yuv, the layout of the planes
--- @field device string
local Deep = {}
Deep.__index = Deep

--- @param values Tensor i16 [n]
--- @param format ffi.cdata* cr_yuv, whose bits are not 0
--- @return DeepPicture
function M.picture(values, format) return setmetatable({ values = values, format = format, device = values.device }, Deep) end

--- Returns whether x is a DeepPicture.
function M.is(x) return getmetatable(x) == Deep end

--- Sizes as of a tensor [H W 3].
function Deep:size(d) return d == 1 and self.format.height or d == 2 and self.format.width or 3 end
function Deep.dim(_) return 3 end

function Deep:clone() return M.picture(self.values:clone(), self.format) end
function Deep:free() self.values:free() end

-- Returns the horizontal and vertical subsampling of plane k, and the offset of its samples from those of luma, in luma pixels.
local function steps(f, k)
  if k == 1 then return 1, 1, 0, 0 end
  return 2 ^ f.shift_x, 2 ^ f.shift_y, f.shift_x / 2, f.shift_y / 2
end

-- Returns plane k (1 to 3) as a view, i16 [h w].
local function plane(self, k)
  local f = self.format
  local sx, sy = steps(f, k)
  local w, h = math.ceil(f.width / sx), math.ceil(f.height / sy)
  local at = k == 1 and 0 or f.width * f.height + (k - 2) * w * h
  return self.values:narrow(1, at + 1, w * h):view(h, w)
end

-- Returns the zero and the range of plane k: level = zero + range * number.
local function levels(f, k)
  local unit = 2 ^ (f.bits - 8)
  if f.matrix[0] == 0 then return 0, 2 ^ f.bits - 1 end
  if f.full_range ~= 0 then return k == 1 and 0 or 128 * unit, 2 ^ f.bits - 1 end
  if k == 1 then return 16 * unit, 219 * unit end
  return 128 * unit, 224 * unit
end

-- Returns the weights of red and blue in luma.
local function shares(f)
  local function share(i) return 1 - f.matrix[i] * 224 / (65536 * 2 * 255) end
  return share(0), share(1)
end

-- Resamples x [h w c] by two scale factors and two offsets, for a rectangle of the result.
local function moved(x, across, right, down, below, left, top, width, height)
  local out = tensor.new()
  return tensor.filled(out, C.cr_warp_bicubic(out.c, x.c, matrix_type(across, 0, right, 0, down, below), left, top, height, width))
end

--- Converts the picture to RGB.
--- @return Tensor f32 [H W 3] in [0, 1], on the planes' device
function Deep:rgb()
  local f = self.format
  return scope(function()
    local parts = {}
    for k = 1, 3 do
      local zero, range = levels(f, k)
      parts[k] = (M.float(plane(self, k), f.bits) - zero) / range
    end
    if f.matrix[0] == 0 then return tensor.stack({ parts[3], parts[1], parts[2] }, 3) end
    local sx, sy, right, below = steps(f, 2)
    local chroma = tensor.stack({ parts[2], parts[3] }, 3)
    if sx > 1 or sy > 1 then chroma = moved(chroma, sx, right, sy, below, 0, 0, f.width, f.height) end
    local y, u, v = parts[1], chroma:select(3, 1), chroma:select(3, 2)
    local kr, kb = shares(f)
    local kg = 1 - kr - kb
    return tensor.stack({
      tensor.lincomb({ y, v }, { 1, 2 * (1 - kr) }),
      tensor.lincomb({ y, u, v }, { 1, -2 * (1 - kb) * kb / kg, -2 * (1 - kr) * kr / kg }),
      tensor.lincomb({ y, u }, { 1, 2 * (1 - kb) }),
    }, 3):clamp(0, 1)
  end)
end

-- Converts RGB to the levels of the three planes at every pixel: three f32 [h w 1].
local function separated(rgb, f)
  local r, g, b = rgb:narrow(3, 1, 1), rgb:narrow(3, 2, 1), rgb:narrow(3, 3, 1)
  local parts = { g, b, r }
  if f.matrix[0] ~= 0 then
    local kr, kb = shares(f)
    local kg, u, v = 1 - kr - kb, 0.5 / (1 - kb), 0.5 / (1 - kr)
    parts = {
      tensor.lincomb({ r, g, b }, { kr, kg, kb }),
      tensor.lincomb({ r, g, b }, { -kr * u, -kg * u, (1 - kb) * u }),
      tensor.lincomb({ r, g, b }, { (1 - kr) * v, -kg * v, -kb * v }),
    }
  end
  for k = 1, 3 do
    local zero, range = levels(f, k)
    parts[k] = parts[k] * range + zero
  end
  return parts
end

-- Returns the rectangle of plane k that an area of the picture covers, enlarged by one sample on each side for the filter.
local function area_in(f, k, area)
  local sx, sy = steps(f, k)
  if sx == 1 and sy == 1 then return area end
  local w, h = math.ceil(f.width / sx), math.ceil(f.height / sy)
  local left, top = math.max(0, math.floor(area.left / sx) - 1), math.max(0, math.floor(area.top / sy) - 1)
  local right = math.min(w, math.ceil((area.left + area.width) / sx) + 1)
  local bottom = math.min(h, math.ceil((area.top + area.height) / sy) + 1)
  return { left = left, top = top, width = right - left, height = bottom - top }
end

--- Blends another picture into an area of the planes: level = weight * paint + (1 - weight) * level. Levels do not
--- change where the weight is 0 within reach of the chroma filter.
--- @param paint Tensor f32 [h w 3] in [0, 1], RGB
--- @param weight Tensor f32 [h w 1]
--- @param area table {left = 0, top = 0, width =, height =} in the picture
function Deep:mix(paint, weight, area)
  local f = self.format
  area = { left = area.left or 0, top = area.top or 0, width = area.width, height = area.height }
  scope(function()
    for k, level in ipairs(separated(paint, f)) do
      local sx, sy, right, below = steps(f, k)
      local part, both = area_in(f, k, area), tensor.cat({ level * weight, weight }, 3)
      if sx > 1 or sy > 1 then
        both = moved(both, 1 / sx, (area.left - right) / sx - part.left, 1 / sy, (area.top - below) / sy - part.top, 0, 0,
          part.width, part.height)
      end
      local place = plane(self, k):narrow(1, part.top + 1, part.height):narrow(2, part.left + 1, part.width)
      local old = M.float(place, f.bits)
      local new = old - old * both:select(3, 2) + both:select(3, 1)
      place:copy_(M.whole(new:clamp(0, 2 ^ f.bits - 1)))
    end
  end)
end

--- Converts RGB to planes.
--- @param rgb Tensor f32 [H W 3] in [0, 1]
--- @param format ffi.cdata* cr_yuv of this size, whose bits are not 0
--- @return DeepPicture on its device
function M.planes(rgb, format)
  local values = scope(function()
    local parts = {}
    for k, level in ipairs(separated(rgb, format)) do
      local sx, sy, right, below = steps(format, k)
      if sx > 1 or sy > 1 then
        local w, h = math.ceil(format.width / sx), math.ceil(format.height / sy)
        level = moved(level, 1 / sx, -right / sx, 1 / sy, -below / sy, 0, 0, w, h)
      end
      parts[k] = M.whole(level:clamp(0, 2 ^ format.bits - 1)):view(level:numel())
    end
    return tensor.cat(parts, 1)
  end)
  return M.picture(values, format)
end

--- Converts a picture of any depth to 8 bits.
--- @param x Tensor|DeepPicture u8 [H W 3], or f32 in [0, 1]
--- @return Tensor u8 [H W 3]
function M.eight_bits(x)
  return scope(function()
    local rgb = M.is(x) and x:rgb() or x
    if rgb.dtype == 'u8' then return rgb end
    return (rgb:clamp(0, 1) * 255):round():to 'u8'
  end)
end

--- Converts a picture of any depth to floats.
--- @param x Tensor|DeepPicture u8 [H W C], or f32 in [0, 1]
--- @return Tensor f32 [H W C] in [0, 1]
function M.floats(x)
  return scope(function()
    if M.is(x) then return x:rgb() end
    if x.dtype == 'f32' then return x end
    return x:to 'f32' / 255
  end)
end

local alive, integer, maybe = tensor.kinds.alive, arguments.integer, arguments.maybe
arguments.methods(Deep, 'picture', {
  size = { integer }, dim = {}, clone = {}, free = {}, rgb = {},
  mix = { alive, alive, arguments.options { left = maybe(integer), top = maybe(integer), width = integer, height = integer } },
})

--- The kind of argument for frames and pictures of any depth.
M.kind = arguments.either('a tensor', alive, arguments.kind('a picture of more than 8 bits', M.is))

return M
