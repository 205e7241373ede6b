--- The colour of what is made anew, matched to the face around it (`--match-colour`).
--
-- The networks make a whole face picture, of which the mouth's region is kept. How much their picture of the ring around
-- that region is off the ring itself, in the mean of each of red, green and blue, is by how much the region is off
-- too: it is shifted back by that, steadily over time.
--
-- Invariants: of one card nothing is fetched; frames are to come in the order in which they are shown. Of several what was
-- matched counts once it is settled, and lies in the main memory then.

local cr = require 'cr'
local errors = require 'cr.errors'
local image = require 'cr.image'

local M = {}

local RING = 1 / 32  -- its width, by the picture's side
local RATE = 1 / 12  -- share of a frame's own shift in the one that is used
local JUMP = 24 / 127.5 -- of the ring's colour from frame to frame: another scene, which begins with its own shift

--- @class Colour
--- @field ring Tensor f32 [S S 1], its weights, which sum to 1
local Colour = {}
Colour.__index = Colour

--- @param mask Tensor f32 [S S 1]: 1 keeps, 0 is made anew
--- @param device string where the faces lie
--- @param settles boolean? settle() is called after each window, and before that it may be matched again
--- @return Colour
function M.new(mask, device, settles)
  local ring = cr.scope(function()
    local kept, width = mask:to 'cpu':ge(0.9):to 'f32', math.max(1, math.floor(mask:size(1) * RING))
    local around = kept - image.erode(kept, width, width)
    local sum = around:sum():item()
    if sum == 0 then errors.fail 'match_colour: the mask leaves nothing around what is made anew, so there is no colour to match' end
    return cr.keep((around / sum):to(device))
  end)
  return setmetatable({ ring = ring, settles = settles }, Colour)
end

-- The mean colour of the ring: [F 3].
function Colour:mean(faces) return (faces * self.ring:to(faces.device)):sum(3):sum(2):reshape(faces:size(1), 3) end

--- Faces as the networks made them, shifted.
--- @param made Tensor f32 [F S S 3]
--- @param pixels Tensor f32 [F S S 3]: the video's own
--- @param items FrameItem[]? frames of the video, one after the other; without them each stands for itself
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
      elseif item.matrix then -- without it the picture is not of a face
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

--- Goes on from what was matched last.
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
