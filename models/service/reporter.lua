--- A job's progress as messages: {stage, step, steps, window, windows, frames, total, seconds_left}.
--
-- It has the interface of cr.tools.progress but draws nothing. It sends a limited number of messages per second, and
-- always the last state.

local loop = require 'cr.loop'
local now = require 'cr.clock'
local progress_of = require 'cr.tools.progress'

local M = {}

local PAUSE = 0.2 -- minimum seconds between messages

local Reporter = setmetatable({}, { __index = progress_of })
Reporter.__index = Reporter

local function state_of(self)
  local left = self:left()
  local at = self.at or {}
  return {
    stage = self.current or 'start', step = at.step, steps = at.steps, window = at.window, windows = at.windows, frames = self.done,
    total = self.total, seconds_left = left and math.floor(left * 10 + 0.5) / 10,
  }
end

local function tell(self)
  self.told = now()
  self.send(state_of(self))
end

-- Called by the progress at every event.
function Reporter:draw(stage)
  self.current = stage or self.current
  if self.done > self.most then
    error(('the result has more frames than the limit of %d'):format(self.most), 0)
  end
  local wait = self.told + PAUSE - now()
  if wait <= 0 then return tell(self) end
  if self.timer:is_active() then return end
  self.timer:start(math.ceil(wait * 1000), 0, function() tell(self) end)
end

function Reporter:step(window, windows, step, steps, clips)
  self.at = { step = step, steps = steps, window = window, windows = windows }
  progress_of.step(self, window, windows, step, steps, clips)
end

--- Sends the last state; nothing is sent after that.
function Reporter:close()
  tell(self)
  if not self.timer:is_closing() then self.timer:close() end
  self.send = function() end
end

--- @param send fun(state: table)
--- @param most number? maximum number of frames
--- @return table a progress
function M.new(send, most)
  local self = setmetatable(progress_of.new { quiet = true }, Reporter)
  self.send, self.most, self.told, self.timer = send, most or math.huge, -math.huge, assert(loop.uv.new_timer())
  return self
end

return M
