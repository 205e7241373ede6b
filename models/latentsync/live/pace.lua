--- Timing of a live session: when frames are due, and how many steps fit before that. It computes with times that are
--- passed in.
--
-- Frame k (from 0) is due k / 25 s after the start. The duration of a window is modelled as a constant plus a time
-- per step, both estimated from recent windows. The largest of the last few values counts, because a late frame is
-- visible.

local M = { fps = 25 }

local LAST = 8 -- windows
local BUSY = 0.95 -- largest share of the time for which a window's frames are shown that generating it may take

--- @class Pace
--- @field steps integer steps per window, if there is enough time
--- @field least integer minimum number of steps
local Pace = {}
Pace.__index = Pace

--- @param o {steps: integer, least: integer, margin: number, span: number, makers: integer?} margin: seconds by which a window
---   must be ready before its first frame is due; span: seconds for which its frames are shown; makers: number of parallel makers
--- @return Pace
function M.new(o)
  return setmetatable({ steps = o.steps, least = math.min(o.least, o.steps), margin = o.margin, span = o.span, began = 0, noted = {},
    budget = o.span * (o.makers or 1) * BUSY }, Pace)
end

--- Starts the presentation clock.
function Pace:begin(now) self.began = now end

--- The time at which frame k is due.
function Pace:due(k) return self.began + k / M.fps end

--- The first frame that is due at this time or later.
function Pace:frame_at(time) return math.max(0, math.ceil((time - self.began) * M.fps - 1e-6)) end

--- Delays all later frames, after the presentation fell behind for good.
function Pace:shift(seconds) self.began = self.began + seconds end

--- Records a window's duration.
--- @param steps integer
--- @param sampling number seconds duration of the steps
--- @param rest number seconds duration of everything else
function Pace:note(steps, sampling, rest)
  table.insert(self.noted, { step = sampling / steps, rest = rest })
  if #self.noted > LAST then table.remove(self.noted, 1) end
end

local function longest(self, name)
  local most = 0
  for _, noted in ipairs(self.noted) do most = math.max(most, noted[name]) end
  return most
end

--- The expected duration of a window with this number of steps, in seconds.
function Pace:takes(steps) return longest(self, 'rest') + steps * longest(self, 'step') end

--- How many steps fit into this many seconds without falling behind; between the minimum and the setting.
--- @param seconds number? default: the time for which a window is shown
function Pace:fitting(seconds)
  local step = longest(self, 'step')
  if step == 0 then return self.steps end
  seconds = math.min(seconds or math.huge, self.budget)
  local fit = math.floor((seconds - longest(self, 'rest')) / step + 1e-6)
  return math.max(self.least, math.min(self.steps, fit))
end

--- By how many frames the window that begins with frame k is shown later than necessary.
--- @param k integer
--- @param came number the time at which its first sample arrived
--- @param look number look-ahead of the audio in seconds
--- @return integer may be negative
function Pace:late(k, came, look)
  local needed = self.span + look + self:takes(self:fitting()) + self.margin
  return math.floor((self:due(k) - came - needed) * M.fps + 1e-6)
end

--- The first frame at which a window can be shown.
--- @param now number
--- @param follows integer? the frame after the last one shown or planned of the same speech
--- @param shown integer the first frame that has not been shown yet
--- @return integer the frame number
--- @return integer length in frames of the gap in the speech, if the frame that should follow is already past
function Pace:place(now, follows, shown)
  if follows and follows >= shown then return follows, 0 end
  local first = math.max(shown, self:frame_at(now + self:takes(self:fitting()) + self.margin))
  return first, follows and first - follows or 0
end

return M
