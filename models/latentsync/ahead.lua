--- Bounds how many steps are queued on a GPU before the first of them is done.
--
-- The GPU stays busy while the thread does something else. But CUDA blocks the thread when too much is queued, and
-- while it is blocked, other GPUs and tasks get nothing. How much is too much depends on the recording: on an H200 ten
-- steps of 256 px are free (18 ms each), but the fourth of 512 px (74 ms) blocks the thread for two steps, and the third
-- for a third of one.

local cr = require 'cr'
local clock = require 'cr.clock'

local M = {}

local MOST = 3 -- steps
local LONG = 0.01 -- seconds: queueing a step takes a fifth of this, unless CUDA blocks the thread

--- @class Ahead
--- @field idle number seconds for which the GPU had nothing to do between two steps
local Ahead = {}
Ahead.__index = Ahead

--- @return Ahead for one GPU
function M.new() return setmetatable({ queue = {}, most = MOST, blocked = 0, idle = 0 }, Ahead) end

--- Records that a step was queued, and lets other tasks run until only a few steps are left. If the GPU had finished
--- everything when the thread began to queue this step, it was idle since then.
--- @param done fun(): number? waits for the step, and returns the time of its end (LatentSync:mark); nil on a CPU
--- @param began number the time (cr.clock) at which the thread began to queue it
--- @param more boolean? other work was queued since then, too, so the time says nothing about blocking
function Ahead:give(done, began, more)
  -- A step that takes long once may have another reason.
  if not more and self.last and clock() - began > LONG then self.blocked = self.blocked + 1 end
  if self.blocked == 2 then self.most, self.blocked = math.max(1, self.most - 1), 0 end
  table.insert(self.queue, { done = done, began = began })
  cr.yield()
  while #self.queue > self.most do
    local step = table.remove(self.queue, 1)
    local ended = step.done()
    if not ended then return end
    self.idle = self.idle + math.max(0, step.began - (self.last or step.began))
    self.last = ended
  end
end

return M
