--- Measures fine detail: the sharpness of a region in a frame, and how much its flat parts shimmer from frame to
--- frame.
--
-- Sharpness is the variance of the Laplacian (4 neighbours) of the luma. Shimmer is the mean change of luma between
-- frames, in levels of 255, where the image has neither edges nor texture, so that motion contributes little. Results
-- stay on the device until they are read.

local cr = require 'cr'
local align = require 'models.latentsync.align'
local image = require 'cr.image'

local M = {}

local FLAT_REACH, FLAT_RANGE = 2, 6 -- a pixel is flat if the blurred luma within this radius varies by at most so many levels
local ALIKE = 15 -- maximum colour difference between skin and the mouth region, in levels

--- A map of flat regions: 1 where the image is flat, else 0.
--- @param luma Tensor f32 [H W 1]
--- @return Tensor f32 [H W 1]
function M.flat(luma)
  return cr.scope(function()
    local soft = image.gaussian_blur(luma:contiguous(), 5, 1.2)
    local least, most = image.erode(soft, FLAT_REACH, FLAT_REACH), image.erode(soft * -1, FLAT_REACH, FLAT_REACH) * -1
    return (most - least):le(FLAT_RANGE):to 'f32'
  end)
end

-- ---- sums over frames ----------------------------------------------------------------------------

-- Adds a [n] tensor to the sums.
local function add(all, name, values)
  local now = cr.stack(values, 1)
  if all[name] then
    now = all[name] + now
    all[name]:free()
  end
  all[name] = cr.keep(now)
end

local function numbers(all, name, count)
  local list = {}
  for i = 1, count do list[i] = all[name] and all[name]:narrow(1, i, 1):item() or 0 end
  return unpack(list)
end

--- Adds the sharpness statistics of a region of a frame.
--- @param all table the sums
--- @param name string name of the region
--- @param luma Tensor f32 [H W 1]
--- @param share Tensor f32 [H W 1]: 1 inside of the region
function M.add_sharpness(all, name, luma, share)
  cr.scope(function()
    local h, w = luma:size(1) - 2, luma:size(2) - 2
    if h < 1 or w < 1 then return end
    local function moved(x, dy, dx) return x:narrow(1, 2 + dy, h):narrow(2, 2 + dx, w) end
    local laplacian = cr.lincomb({ moved(luma, 0, 0), moved(luma, -1, 0), moved(luma, 1, 0), moved(luma, 0, -1), moved(luma, 0, 1) },
      { -4, 1, 1, 1, 1 })
    local part = moved(share, 0, 0)
    local weighted = laplacian * part
    add(all, name, { part:sum(), weighted:sum(), (weighted * laplacian):sum() })
  end)
end

--- The variance of the Laplacian over all frames; nil if the region was empty.
function M.sharpness(all, name)
  local n, sum, squares = numbers(all, name, 3)
  return n > 0 and squares / n - (sum / n) ^ 2 or nil
end

--- Adds the change from one frame to the next.
--- @param all table the sums
--- @param name string
--- @param before Tensor f32 [H W 1] luma
--- @param after Tensor f32 [H W 1] luma of the next frame
--- @param flat Tensor f32 [H W 1]: 1 where the change counts
function M.add_shimmer(all, name, before, after, flat)
  cr.scope(function() add(all, name, { flat:sum(), ((after - before):abs() * flat):sum() }) end)
end

--- The mean change in levels; nil if nothing is flat.
function M.shimmer(all, name)
  local n, sum = numbers(all, name, 2)
  return n > 0 and sum / n or nil
end

--- Frees the sums.
function M.free(all)
  for name, sums in pairs(all) do
    sums:free()
    all[name] = nil
  end
end

-- ---- a lip-synced video -----------------------------------------------------------------------

--- @class MouthDetail sums over the mouth region and the surrounding skin, before and after generation
local MouthDetail = {}
MouthDetail.__index = MouthDetail

--- @param mask Tensor f32 [S S 1]: 1 keeps a pixel, 0 regenerates it
--- @param device string the frames' device
--- @return MouthDetail
function M.of_mouth(mask, device)
  local self = setmetatable({ sums = {} }, MouthDetail)
  cr.scope(function()
    local size = mask:size(1)
    local kept = mask:to('cpu'):to('f32'):contiguous()
    local soft, band = math.max(1, math.floor(size / 32)), math.max(3, math.floor(size / 10))
    local function grown(by) return image.erode(kept, by, by) * -1 + 1 end
    -- Neither region includes the soft edge between them.
    self.inside = cr.keep(image.erode(kept * -1 + 1, soft, soft):to(device):clone())
    self.around = cr.keep((grown(band) - grown(soft)):to(device):clone())
  end)
  return self
end

-- 1 where an image has a similar colour to the mean colour of a region.
local function alike(picture, luma, part)
  local x, same = picture:to 'f32', nil
  for _, channel in ipairs { 1, 3 } do
    local chroma = x:narrow(3, channel, 1) - luma
    local mean = (chroma * part):sum() / part:sum():clamp(1, math.huge)
    local here = (chroma - mean):abs():le(ALIKE):to 'f32'
    same = same and same * here or here
  end
  return same
end

--- Adds a frame; frames without a face are ignored.
--- @param item FrameItem
--- @param frame Tensor u8 [H W 3] the frame with the generated mouth, in the video's size
function MouthDetail:add(item, frame)
  local before = self.before
  self.before = nil
  if item.matrix then
    cr.scope(function()
      local own = item.frame:rgb():to(frame.device)
      local inside, area = align.place(frame, item.matrix, self.inside)
      if not inside then return end
      local around = align.place(frame, item.matrix, self.around)
      local function cut(x) return x:narrow(1, area.top + 1, area.height):narrow(2, area.left + 1, area.width) end
      local old, new = image.luma(cut(own)), image.luma(cut(frame))
      local skin = around * alike(cut(own), old, inside)
      local sums = self.sums
      M.add_sharpness(sums, 'skin', old, skin)
      M.add_sharpness(sums, 'own', old, inside)
      M.add_sharpness(sums, 'mouth', new, inside)
      if before then
        local own_before = image.luma(cut(before.own))
        local flat = inside * M.flat(old) * M.flat(own_before)
        M.add_shimmer(sums, 'own shimmer', own_before, old, flat)
        M.add_shimmer(sums, 'shimmer', image.luma(cut(before.frame)), new, flat)
      end
      self.before = { own = cr.keep(own:clone()), frame = cr.keep(frame:clone()) }
    end)
  end
  if before then
    before.own:free()
    before.frame:free()
  end
end

--- @return table {sharpness = the mouth's divided by that of the skin around it, own_sharpness = the same in the original video,
---   shimmer, own_shimmer = levels}; nil if a region is empty
function MouthDetail:result()
  local skin = M.sharpness(self.sums, 'skin')
  local function by_skin(name)
    local value = M.sharpness(self.sums, name)
    return value and skin and skin > 0 and value / skin or nil
  end
  return {
    sharpness = by_skin 'mouth', own_sharpness = by_skin 'own', shimmer = M.shimmer(self.sums, 'shimmer'),
    own_shimmer = M.shimmer(self.sums, 'own shimmer'),
  }
end

function MouthDetail:free()
  M.free(self.sums)
  self.inside:free()
  self.around:free()
  if self.before then
    self.before.own:free()
    self.before.frame:free()
  end
end

return M
