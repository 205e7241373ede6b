--- Matches the colour of the generated region to the face around it (`--match-colour`).
--
-- The networks generate a whole face image, of which only the mouth region is used. The difference between the
-- generated and the original ring around that region, in the mean of each of R, G and B, estimates the region's
-- colour error. The region is shifted back by this difference, smoothed over time.
--
-- Invariants: on one GPU no data is copied to the host. Frames must come in presentation order. On several GPUs a
-- match takes effect when it is settled, and its state lies in host memory.

local cr = require 'cr'
local errors = require 'cr.errors'
local image = require 'cr.image'

local M = {}

local RING = 1 / 32 -- width of the ring, relative to the image's side
local RATE = 1 / 12 -- weight of a frame's own shift in the running average
local JUMP = 24 / 127.5 -- change of the ring's colour between frames that counts as a new scene, which starts a new average

--- @class Colour
--- @field ring Tensor f32 [S S 1], weights that sum to 1
local Colour = {}
Colour.__index = Colour

--- @param mask Tensor f32 [S S 1]: 1 keeps, 0 regenerates
--- @param device string the faces' device
--- @param settles boolean? the caller calls settle() after each window, and may match the window again before that
--- @return Colour
function M.new(mask, device, settles)
  local ring = cr.scope(function()
    local kept, width = mask:to 'cpu':ge(0.9):to 'f32', math.max(1, math.floor(mask:size(1) * RING))
    local around = kept - image.erode(kept, width, width)
    local sum = around:sum():item()
    if sum == 0 then errors.fail 'match_colour: the mask leaves no ring around the regenerated region, so there is no colour to match' end
    return cr.keep((around / sum):to(device))
  end)
  return setmetatable({ ring = ring, settles = settles }, Colour)
end

-- The mean colour of the ring: [F 3].
function Colour:mean(faces) return (faces * self.ring:to(faces.device)):sum(3):sum(2):reshape(faces:size(1), 3) end

--- Shifts the colours of generated faces.
--- @param made Tensor f32 [F S S 3]
--- @param pixels Tensor f32 [F S S 3]: the video's own
--- @param items FrameItem[]? consecutive frames of the video; without them, each image is shifted independently
--- @return Tensor f32 [F S S 3]
function Colour:match(made, pixels, items)
  return cr.scope(function()
    local around = self:mean(pixels)
    local off = around - self:mean(made)
    if not items then return made + off:view(made:size(1), 1, 1, 3) end
    local shift, last, list = self.shift and self.shift:to(made.device), self.last and self.last:to(made.device), {}
    for i, item in ipairs(items) do
      local now, own = around:narrow(1, i, 1), off:narrow(1, i, 1)
      if not shift then
        shift, last = own, now
      elseif item.matrix then -- without a matrix, the image does not show a face
        local steady = shift + (own - shift) * RATE
        local jumped = (now - last):abs():max(2, true):gt(JUMP)
        shift, last = cr.where(jumped:expand(1, 3), own, steady), now
      end
      list[i] = shift
    end
    local shifted = made + cr.cat(list, 1):view(made:size(1), 1, 1, 3)
    for _, t in ipairs(self.next or {}) do t:free() end
    self.next = { cr.keep(shift:clone(), last:clone()) }
    if not self.settles then self:settle() end
    return shifted
  end)
end

--- Makes the last match permanent: later matches continue from it.
function Colour:settle()
  if not self.next then return end
  for i, name in ipairs { 'shift', 'last' } do
    local matched, before = self.next[i], self[name]
    self[name] = self.settles and cr.keep(cr.scope(function() return matched:to('cpu'):clone() end)) or matched
    if self.settles then matched:free() end
    if before then before:free() end
  end
  self.next = nil
end

function Colour:free()
  for _, name in ipairs { 'ring', 'shift', 'last' } do
    if self[name] then self[name]:free() end
  end
end

return M
