--- Aligns a face of a frame into the square image that the networks take, and pastes it back into the frame.
--
-- Three points (left brow, right brow, nose) define a similarity transform that rotates the face upright into
-- a 3:4 crop, which is then resized to size x size. There are two ways back: `paste_reference` returns the
-- whole crop as the reference does, `paste_region` returns only the regenerated region. Images stay on the
-- frame's device; only one number, the width of the soft edge, is read back.
-- Invariants: a matrix maps frame pixels to crop pixels, is computed in double precision and stored as six
-- numbers, row by row. A frame is never written to: pasting returns a new one.

local cr = require 'cr'
local nn = require 'cr.nn'
local image = require 'cr.image'
local mask_rows = require 'models.latentsync.mask_rows'
local reference = require 'models.latentsync.reference_rounding'
local steady = require 'models.latentsync.smoothing'

local align = { smoother = steady.smoother }

-- Target positions of the three points in a crop of 75 x 100.
local TEMPLATE = { { 17, 20 }, { 58, 20 }, { 37.5, 40 } }

--- Written exactly as the reference writes it, so that the results agree to the last digit.
local function ratio_of(size) return size / 256 * 2.8 end

--- Width and height of the crop before it is resized to size x size.
--- @param size integer
--- @return integer width, integer height
function align.crop_size(size)
  local r = ratio_of(size)
  return math.floor(75 * r), math.floor(100 * r)
end

--- Rounds to the nearest integer, ties to even.
--- @param x number
--- @return integer
function align.round_even(x)
  local low = math.floor(x)
  local rest = x - low
  if rest > 0.5 or rest == 0.5 and low % 2 == 1 then return low + 1 end
  return low
end

--- @class crescent.align
--- @field size integer
--- @field smooth_bias boolean
--- @field bias number[]? the bias, smoothed over the previous frames
local Align = {}
Align.__index = Align

--- Aligns the frames of one clip, in the order of the source.
--- @param options table? {size = 256, smooth_bias = true (as the reference: each frame's bias depends on the previous frames)}
--- @return crescent.align
function align.new(options)
  options = options or {}
  local self = setmetatable({ size = options.size or 256 }, Align)
  self.smooth_bias = options.smooth_bias ~= false
  local r = ratio_of(self.size)
  self.template = {}
  for i, p in ipairs(TEMPLATE) do self.template[i] = { p[1] * r, p[2] * r } end
  return self
end

--- Forgets the previous frames, at a scene cut for example.
function Align:reset() self.bias = nil end

--- The matrix from a frame to its crop. The points are rounded to integer pixels (ties to even). With
--- smooth_bias, the translation is a running average over frames.
--- @param points number[][] {{x, y}, {x, y}, {x, y}}: left brow, right brow, nose
--- @return number[] six numbers, row by row
function Align:matrix(points)
  local rounded = {}
  for i = 1, 3 do
    local p = points[i]
    local x, y = p and tonumber(p[1]), p and tonumber(p[2])
    if not (x and y and math.abs(x) < 1e6 and math.abs(y) < 1e6) then
      error(('align: point %d has no finite coordinates'):format(i), 2)
    end
    rounded[i] = { align.round_even(x), align.round_even(y) }
  end
  local m, bias = reference.matrix(rounded, self.template, self.bias, self.smooth_bias)
  if not m then error('align: the three points fall together', 2) end
  if self.smooth_bias then self.bias = bias end
  return m
end

-- MediaPipe's point indices whose means lie where the reference's landmarks lie.
local MESH_POINTS = { { 70, 63, 105, 66, 107 }, { 300, 293, 334, 296, 336 }, { 5, 64, 294, 4 } }

--- The three alignment points of a face mesh.
--- @param mesh number[][] 468 points {x, y}; MediaPipe's point k is element k + 1
--- @return number[][] left brow, right brow, nose
function align.points_from_mesh(mesh)
  local points = {}
  for i, numbers in ipairs(MESH_POINTS) do
    local x, y = 0, 0
    for _, k in ipairs(numbers) do
      local p = mesh[k + 1]
      x, y = x + p[1], y + p[2]
    end
    points[i] = { x / #numbers, y / #numbers }
  end
  return points
end

-- ---- matrices --------------------------------------------------------------------------------

--- The inverse of a matrix.
local function inverse(m)
  local det = m[1] * m[5] - m[2] * m[4]
  local a, b, d, e = m[5] / det, -m[2] / det, -m[4] / det, m[1] / det
  return { a, b, -(a * m[3] + b * m[6]), d, e, -(d * m[3] + e * m[6]) }
end

--- The map from face-image pixels to frame pixels: it undoes the resizing, then the alignment. `pixels` is
--- the face image's side if it was upscaled.
local function face_to_frame(matrix, size, pixels)
  local width, height = align.crop_size(size)
  local sx, sy = width / (pixels or size), height / (pixels or size)
  local back = inverse(matrix)
  -- Resizing maps pixel centres: crop = (face + 0.5) s - 0.5
  local tx, ty = 0.5 * sx - 0.5, 0.5 * sy - 0.5
  return {
    back[1] * sx, back[2] * sy, back[1] * tx + back[2] * ty + back[3],
    back[4] * sx, back[5] * sy, back[4] * tx + back[5] * ty + back[6],
  }
end

--- The area of a frame that the rectangle x0..x1, y0..y1 maps to, with a border of two pixels; nil if it lies
--- outside of the frame.
local function area_of(m, x0, y0, x1, y1, frame)
  local height, width = frame:size(1), frame:size(2)
  local left, top, right, bottom = math.huge, math.huge, -math.huge, -math.huge
  for _, corner in ipairs { { x0, y0 }, { x1, y0 }, { x0, y1 }, { x1, y1 } } do
    local x = m[1] * corner[1] + m[2] * corner[2] + m[3]
    local y = m[4] * corner[1] + m[5] * corner[2] + m[6]
    left, right = math.min(left, x), math.max(right, x)
    top, bottom = math.min(top, y), math.max(bottom, y)
  end
  left, top = math.max(0, math.floor(left) - 2), math.max(0, math.floor(top) - 2)
  right, bottom = math.min(width - 1, math.ceil(right) + 2), math.min(height - 1, math.ceil(bottom) + 2)
  if not (left <= right and top <= bottom) then return nil end
  return { left = left, top = top, width = right - left + 1, height = bottom - top + 1 }
end

local function part_of(x, area)
  return x:narrow(1, area.top + 1, area.height):narrow(2, area.left + 1, area.width)
end

-- Blends `paint` [h w 3] (0 to 255, plus `half`) by `weight` [h w 1] into an area of `out`, a copy of
-- `frame`.
local function mix(out, frame, paint, weight, area, half)
  if type(out) == 'table' then return out:mix((paint - half) / 255, weight, area) end
  image.blend(part_of(frame, area), paint, weight, part_of(out, area))
end

local function weighted(weight, share) return share and share < 1 and weight * share or weight end

-- ---- from frame to face -----------------------------------------------------------------------------------

--- The face image of a frame, and the crop before resizing.
--- @param frame Tensor u8 [H W 3]
--- @param matrix number[]
--- @param size integer
--- @return Tensor face u8 [size size 3]
--- @return Tensor crop u8 [h w 3]
function align.warp(frame, matrix, size)
  local width, height = align.crop_size(size)
  local theta = reference.warp_theta(matrix, frame:size(2), frame:size(1), width, height)
  local crop = theta and image.grid_sample(frame, theta, height, width, 127) or
    image.warp_affine(frame, matrix, { width = width, height = height }, { fill = 127 })
  return nn.resize(crop, size, size, 'lanczos4'), crop
end

-- ---- from face to frame --------------------------------------------------------------------------------

local function check_face(name, face)
  local s = face.shape
  if #s ~= 3 or s[1] ~= s[2] or s[3] ~= 3 then
    error(('%s: expected a face of shape [size size 3], not [%s]'):format(name, table.concat(s, ' ')), 3)
  end
  return s[1]
end

--- The reference's edge width for a given sum of weights.
local function edge_width(weights) return math.floor(math.floor(math.sqrt(weights:sum():item())) / 20) end

--- The reference's blur for a given edge width.
local function feather(x, w)
  if w == 0 then return x end
  return image.gaussian_blur(x, 2 * w + 1, 0.3 * (w - 1) + 0.8)
end

--- Pastes a face back as LatentSync does: it replaces the whole crop, resampled, with a soft edge.
--- @param frame Tensor|DeepPicture u8 [H W 3], or a VideoFrame's planes of more than 8 bits
--- @param face Tensor f32 [s s 3] in [-1, 1]
--- @param matrix number[] the frame's
--- @param size integer? the face size that the matrix belongs to (default: the size of `face`)
--- @param share number? the face's weight in the blend (1)
--- @return Tensor|DeepPicture like frame
function align.paste_reference(frame, face, matrix, size, share)
  local own = check_face('paste_reference', face)
  size = size or own
  return cr.scope(function()
    local out = frame:clone()
    local width, height = align.crop_size(size)
    local back = inverse(matrix)
    -- Bilinear weights reach one pixel beyond the crop. All weights outside are 0, so a border of two zero
    -- pixels stands in for the rest of the frame in the erosions and the blur.
    local area = area_of(back, -1, -1, width, height, frame)
    if not area then return out end
    local resized = nn.resize(face:to 'f32', height, width, 'bicubic_aa')
    local warped = image.warp_affine(resized, back, area, { fill = 127 })
    local inside = image.warp_affine(cr.ones(height, width, 1, { device = frame.device }), back, area)
    local eroded = image.erode(inside, 1, 0)
    local w = edge_width(eroded)
    -- OpenCV treats an empty kernel as one of 3 x 3.
    local soft = w == 0 and image.erode(eroded, 1, 1) or feather(image.erode(eroded, w, w - 1), w)
    local paint = (warped / 2 + 0.5):clamp(0, 1) * 255 * eroded
    mix(out, frame, paint, weighted(soft, share), area, 0)
    return out
  end)
end

--- The smallest box that contains everything that the mask regenerates (0-based); nil if it regenerates
--- nothing.
local function regenerated_box(mask, size)
  local p = mask:pointer()
  local x0, y0, x1, y1 = size, size, -1, -1
  for y = 0, size - 1 do
    for x = 0, size - 1 do
      if p[y * size + x] < 1 then
        if x < x0 then x0 = x end
        if x > x1 then x1 = x end
        if y < y0 then y0 = y end
        y1 = y
      end
    end
  end
  if x1 < 0 then return nil end
  return { x0, y0, x1, y1 }
end

-- For each mask, its inverse on each device: it is copied there once.
local on_cards = setmetatable({}, { __mode = 'k' })

--- The inverted mask (1 regenerates) on the frame's device, and the box around its nonzero pixels.
--- @return Tensor? f32 [size size 1]
--- @return integer[]? box
local function regenerated(mask, device)
  if device == 'cpu' and mask.device == 'cpu' then
    local dense = mask:to 'f32':contiguous()
    local box = regenerated_box(dense, mask:size(1))
    if box then return 1 - dense, box end
    return nil
  end
  local known = on_cards[mask] or {}
  on_cards[mask] = known
  if not known[device] then
    known[device] = cr.scope(function()
      local dense = mask:to 'cpu':to 'f32':contiguous()
      local box = regenerated_box(dense, mask:size(1))
      return { box = box or false, share = box and cr.keep((1 - dense):to(device)) }
    end)
  end
  return known[device].share, known[device].box
end

--- The side of a face image's square, measured in the frame.
--- @param matrix number[] the frame's
--- @param size integer side of the face image
--- @return number in frame pixels
function align.side_in_frame(matrix, size)
  local m = face_to_frame(matrix, size)
  return size * math.sqrt(math.abs(m[1] * m[5] - m[2] * m[4]))
end

--- Warps a map of the face image to its place in the frame.
--- @param frame Tensor u8 [H W 3] (only its size counts)
--- @param matrix number[]
--- @param map Tensor f32 [size size 1], on the frame's device
--- @param box integer[]? the part {x0, y0, x1, y1} to warp (default: all)
--- @return Tensor? f32 [h w 1]; nil if it lies outside of the frame
--- @return table? area {left =, top =, width =, height =} of the frame that it covers
function align.place(frame, matrix, map, box)
  local size = map:size(1)
  box = box or { 0, 0, size - 1, size - 1 }
  local forth = face_to_frame(matrix, size)
  local area = area_of(forth, box[1] - 1, box[2] - 1, box[3] + 1, box[4] + 1, frame)
  if not area then return nil end
  return image.warp_affine(map, forth, area), area
end

--- The weight of the face at each pixel: 0 on and outside the border of the region that the mask regenerates,
--- rising smoothly to 1 inside, over the reference's edge width. It does not fall off at the frame's border.
--- @param frame Tensor|DeepPicture (only its size counts)
--- @param matrix number[]
--- @param mask Tensor f32 [size size 1]: 1 keeps, 0 regenerates
--- @return Tensor? weight f32 [h w 1]; nil if the region lies outside of the frame
--- @return table? area {left =, top =, width =, height =} of the frame that it covers
function align.region_weight(frame, matrix, mask)
  local weight, area
  weight = cr.scope(function()
    local share, box = regenerated(mask, frame.device)
    if not share then return nil end
    local inside
    inside, area = align.place(frame, matrix, share, box)
    if not inside then return nil end
    -- The window extends by the blur's radius to both sides, so no weight falls outside of the area.
    local w = edge_width(inside)
    return feather(image.erode(inside, w, w), w)
  end)
  return weight, area
end

--- Pastes back only the regenerated region, at the frame's own resolution and with one interpolation. Every
--- other pixel stays as it is; the soft edge lies inside the region.
--- @param frame Tensor|DeepPicture u8 [H W 3], or a VideoFrame's planes of more than 8 bits
--- @param face Tensor f32 [s s 3] in [-1, 1]: of the mask's size, or larger if it was upscaled
--- @param matrix number[] the frame's
--- @param mask Tensor f32 [size size 1]: 1 keeps, 0 regenerates
--- @param share number? the face's weight in the blend (1)
--- @param region {weight: Tensor, area: table}? the result of region_weight for a frame of this size
--- @return Tensor|DeepPicture like frame
function align.paste_region(frame, face, matrix, mask, share, region)
  local size = check_face('paste_region', face)
  if mask:numel() ~= mask:size(1) ^ 2 or mask:size(1) > size then
    error(('paste_region: expected a mask of shape [%d %d 1] or smaller, not [%s]'):format(size, size,
      table.concat(mask.shape, ' ')), 2)
  end
  return cr.scope(function()
    local out = frame:clone()
    local weight, area
    if region then weight, area = region.weight, region.area else weight, area = align.region_weight(frame, matrix, mask) end
    if not weight then return out end
    -- Adding a half turns the blend's truncation into rounding; where the weight is 0 the half has no effect.
    local bytes = face:to 'f32' * 127.5 + 128
    local paint = image.warp_bicubic(bytes, face_to_frame(matrix, mask:size(1), size), area):clamp(0.5, 255.5)
    mix(out, frame, paint, weighted(weight, share), area, 0.5)
    return out
  end)
end

-- ---- mask ------------------------------------------------------------------------------------

local function fixed_mask()
  local mask = cr.full({ 256, 256, 1 }, 255, { dtype = 'u8' })
  local p = mask:pointer()
  for i, entry in ipairs(mask_rows) do
    local next_row = mask_rows[i + 1] and mask_rows[i + 1][1] or 256
    for y = entry[1], next_row - 1 do
      for k = 2, #entry, 2 do
        for x = entry[k], entry[k + 1] do p[y * 256 + x] = 0 end
      end
    end
  end
  return mask
end

--- The mask at a size: the built-in one, or the first channel of an image file (white keeps, black
--- regenerates).
--- @param size integer
--- @param path string?
--- @return Tensor f32 [size size 1]
function align.mask(size, path)
  return cr.scope(function()
    local mask = path and require 'cr.media'.read_picture(path):narrow(3, 1, 1) or fixed_mask()
    return nn.resize(mask, size, size, 'lanczos4'):to 'f32' / 255
  end)
end

--- The mask at the latents' resolution: every `factor`-th pixel.
--- @param mask Tensor f32 [size size 1]
--- @param factor integer? 8
--- @return Tensor f32 [h w 1]
function align.mask_latent(mask, factor)
  factor = factor or 8
  local h, w = math.floor(mask:size(1) / factor), math.floor(mask:size(2) / factor)
  return cr.scope(function() return nn.resize(mask, h, w, 'nearest') end)
end

return align
