--- When frames are due, and how many steps fit before that: arithmetic on times that are given.
--
-- Frame k, from 0, is due k / 25 s after the beginning. How long a window takes is known from those made last: something
-- that does not depend on the steps, and something for each of them; of both the longest of the last few counts, since what
-- is late is seen.

local M = { fps = 25 }

local LAST = 8    -- windows
local BUSY = 0.95 -- of the time that a window's frames are shown, in which it is made at most

--- @class Pace
--- @field steps integer of a window, where there is time for them
--- @field least integer steps at least
local Pace = {}
Pace.__index = Pace

--- @param o {steps: integer, least: integer, margin: number, span: number, makers: integer?} margin: seconds by which a window
---   shall be made before its first frame is due; span: seconds that its frames are shown; makers: how many are made side by side
--- @return Pace
function M.new(o)
  return setmetatable({ steps = o.steps, least = math.min(o.least, o.steps), margin = o.margin, span = o.span, began = 0, noted = {},
    budget = o.span * (o.makers or 1) * BUSY }, Pace)
end

--- The clock of what is shown begins.
function Pace:begin(now) self.began = now end

--- When frame k is due.
function Pace:due(k) return self.began + k / M.fps end

--- The first frame that is due at a time or later.
function Pace:frame_at(time) return math.max(0, math.ceil((time - self.began) * M.fps - 1e-6)) end

--- What is shown fell behind for good: everything is due so much later.
function Pace:shift(seconds) self.began = self.began + seconds end

--- A window was made.
--- @param steps integer
--- @param sampling number seconds that the steps took
--- @param rest number seconds that all else took
function Pace:note(steps, sampling, rest)
  table.insert(self.noted, { step = sampling / steps, rest = rest })
  if #self.noted > LAST then table.remove(self.noted, 1) end
end

local function longest(self, name)
  local most = 0
  for _, noted in ipairs(self.noted) do most = math.max(most, noted[name]) end
  return most
end

--- Seconds that a window of so many steps takes.
function Pace:takes(steps) return longest(self, 'rest') + steps * longest(self, 'step') end

--- How many steps fit into so many seconds, and into window after window: at least the least and at most all.
--- @param seconds number? as many as window after window
function Pace:fitting(seconds)
  local step = longest(self, 'step')
  if step == 0 then return self.steps end
  seconds = math.min(seconds or math.huge, self.budget)
  local fit = math.floor((seconds - longest(self, 'rest')) / step + 1e-6)
  return math.max(self.least, math.min(self.steps, fit))
end

--- How many frames later than it could a window is shown that begins with frame k.
--- @param k integer
--- @param came number when its first sample came
--- @param look number seconds that were heard ahead
--- @return integer perhaps less than 0
function Pace:late(k, came, look)
  local needed = self.span + look + self:takes(self:fitting()) + self.margin
  return math.floor((self:due(k) - came - needed) * M.fps + 1e-6)
end

--- From which frame on a window can be shown.
--- @param now number
--- @param follows integer? the frame behind what was shown or planned of the same speech
--- @param shown integer the first frame that has not been shown
--- @return integer the frame
--- @return integer frames by which the speech is torn: what was to follow is gone already
function Pace:place(now, follows, shown)
  if follows and follows >= shown then return follows, 0 end
  local first = math.max(shown, self:frame_at(now + self:takes(self:fitting()) + self.margin))
  return first, follows and first - follows or 0
end

return M
