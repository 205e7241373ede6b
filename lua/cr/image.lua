--- Operations on pictures [H W C]: affine warps into a rectangle, erosion, blur, blending.
--
-- A matrix is a table of six numbers {a, b, c, d, e, f}, row by row. It maps (x, y) to (a x + b y + c, d x + e y +
-- f), with pixel centres at whole numbers. `cr.nn` has resize.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local C, new, filled = base.C, tensor.new, tensor.filled

local image = {}

local matrix_type = ffi.typeof 'double[6]'
local theta_type = ffi.typeof 'float[6]'

--- Warps x by a matrix with bilinear sampling, for a rectangle of the result.
--- @param x Tensor u8 or f32 [H W C]
--- @param matrix number[] from x's pixels to the result's
--- @param area table {left = 0, top = 0, width =, height =} in the result
--- @param options table? {fill = 0 (value outside x), dtype = x's ('u8' truncates)}
--- @return Tensor [height width C]
function image.warp_affine(x, matrix, area, options)
  options = options or {}
  local out = new()
  local dtype = options.dtype and tensor.dtype_code('warp_affine', options.dtype) or
    x.c.dtype
  return filled(out, C.cr_warp_affine(out.c, x.c, matrix_type(matrix), area.left or 0,
      area.top or 0, area.height, area.width, options.fill or 0, dtype))
end

--- Samples x bilinearly at the affine grid `theta`, where both pictures span -1..1. It equals torch's affine_grid and
--- grid_sample (align_corners) bit for bit.
--- @param x Tensor u8 or f32 [H W C]
--- @param theta number[] six numbers, from the result's -1..1 to x's
--- @param height integer
--- @param width integer
--- @param fill number? value outside x (0)
--- @return Tensor x's dtype [height width C]
function image.grid_sample(x, theta, height, width, fill)
  local out = new()
  return filled(out, C.cr_grid_sample(out.c, x.c, theta_type(theta), height, width, fill or 0))
end

--- Warps x by a matrix, black outside, bit for bit as OpenCV 4's warpAffine on bytes, which rounds coordinates to
--- 1/32 pixel.
--- @param x Tensor u8 [H W C]
--- @param matrix number[] from x's pixels to the result's
--- @param height integer
--- @param width integer
--- @return Tensor u8 [height width C]
function image.warp_fixed(x, matrix, height, width)
  local out = new()
  return filled(out, C.cr_warp_fixed(out.c, x.c, matrix_type(matrix), height, width))
end

--- Warps x by a matrix with a bicubic kernel that widens as the map shrinks x, which avoids aliasing. Outside x the
--- nearest edge pixels are repeated.
--- @param x Tensor f32 [H W C]
--- @param matrix number[] from x's pixels to the result's
--- @param area table {left = 0, top = 0, width =, height =} in the result
--- @return Tensor f32 [height width C]
function image.warp_bicubic(x, matrix, area)
  local out = new()
  return filled(out, C.cr_warp_bicubic(out.c, x.c, matrix_type(matrix),
      area.left or 0, area.top or 0, area.height, area.width))
end

--- The luma of a picture: 0.299 red + 0.587 green + 0.114 blue, the weights of BT.601.
--- @param x Tensor u8 or floats [H W 3]
--- @return Tensor [H W 1] of x's dtype; f32 where x is u8
function image.luma(x)
  return tensor.scope(function()
    if x.dtype == 'u8' then x = x:to 'f32' end
    return tensor.lincomb({ x:narrow(3, 1, 1), x:narrow(3, 2, 1), x:narrow(3, 3, 1) }, { 0.299, 0.587, 0.114 })
  end)
end

--- Erosion: the minimum over `before` pixels before and `after` pixels after, in both directions.
--- @param x Tensor f32 [H W C]
--- @param before integer
--- @param after integer
--- @return Tensor
function image.erode(x, before, after)
  local out = new()
  return filled(out, C.cr_erode(out.c, x.c, before, after))
end

--- A Gaussian blur of `size` (odd) taps, reflected at the border.
--- @param x Tensor f32 [H W C]
--- @param size integer
--- @param sigma number
--- @return Tensor
function image.gaussian_blur(x, size, sigma)
  local out = new()
  return filled(out, C.cr_gaussian_blur(out.c, x.c, size, sigma))
end

--- weight * face + (1 - weight) * frame, truncated to u8. Where the weight is 0, the result is exactly the frame.
--- @param frame Tensor u8 [H W C]
--- @param face Tensor f32 [H W C], 0..255
--- @param weight Tensor f32 [H W 1]
--- @param out Tensor? tensor to fill (may be `frame`)
--- @return Tensor u8 [H W C]
function image.blend(frame, face, weight, out)
  out = out or new()
  return filled(out, C.cr_blend(out.c, frame.c, face.c, weight.c))
end

local square_type = ffi.typeof 'double[4]'

--- Crops a rotated square from a frame and resizes it to a network's input size, averaging where it shrinks.
--- @param frame Tensor u8 [H W C]
--- @param square table {x, y (its centre), side, angle = radians, clockwise as seen}, in pixels
--- @param size integer
--- @param scale number? 1
--- @param shift number? 0
--- @return Tensor f32 [size size C]: scale * pixel + shift, outside the frame shift
function image.cut_square(frame, square, size, scale, shift)
  local out = new()
  return filled(out, C.cr_cut_square(out.c, frame.c,
      square_type(square.x, square.y, square.side, square.angle or 0), size, scale or 1, shift or 0))
end

local maybe, integer, number, finite = arguments.maybe, arguments.integer, arguments.number, arguments.finite
local x, out = tensor.kinds.alive, maybe(tensor.kinds.result)
local matrix = arguments.list('a matrix of six numbers', number, 6, 6)
local area = arguments.options { left = maybe(integer), top = maybe(integer), width = integer, height = integer }

return arguments.guard('', image, {
  luma = { x },
  warp_affine = { x, matrix, area, maybe(arguments.options { fill = maybe(finite), dtype = maybe(arguments.string) }) },
  grid_sample = { x, matrix, integer, integer, maybe(finite) },
  warp_fixed = { x, matrix, integer, integer },
  warp_bicubic = { x, matrix, area },
  erode = { x, integer, integer },
  gaussian_blur = { x, integer, finite },
  blend = { x, x, x, out },
  cut_square = { x, arguments.options { x = finite, y = finite, side = finite, angle = maybe(finite) }, integer,
    maybe(finite), maybe(finite) },
})
