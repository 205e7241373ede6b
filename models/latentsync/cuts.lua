--- Where shots of a video begin.

local steady = require 'models.latentsync.smoothing'

local cuts = {}

---@class crescent.cuts
local Cuts = {}
Cuts.__index = Cuts

--- Tells where shots begin. Of the frames before only a few hundred numbers are kept.
---@return crescent.cuts
function cuts.new() return setmetatable({}, Cuts) end

--- Takes the next frame.
---@param frame Tensor u8 [H W 3], RGB
---@return boolean whether a shot begins with it (the first frame's does not count)
function Cuts:push(frame)
  local look = steady.look(frame)
  local cut = self.look ~= nil and steady.scene_cut(self.look, look)
  self.look = look
  return cut
end

return cuts
