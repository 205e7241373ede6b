--- Bounds how many steps are queued on a GPU before the first of them is done.
--
-- The GPU stays busy while the thread does something else. But CUDA blocks the thread when too much is queued, and
-- while it is blocked, other GPUs and tasks get nothing: on an H200 ten steps of 256 px are free (769 kernels, 18 ms),
-- but of 512 px (1,014 kernels, 74 ms) the third blocks the thread for 20 ms and the fourth for two steps. With one
-- step less than FEW a GPU is idle whenever the thread is busy for the time of a step.

local cr = require 'cr'

local M = {}

local FEW, MANY = 2, 3 -- steps
local SHORT = 0.025 -- seconds: of steps that take less, MANY are queued

--- @class Ahead
--- @field idle number seconds for which the GPU had nothing to do between two steps
local Ahead = {}
Ahead.__index = Ahead

--- @return Ahead for one GPU
function M.new() return setmetatable({ queue = {}, most = FEW, idle = 0 }, Ahead) end

--- Records that a step was queued, and lets other tasks run until only a few steps are left. If the GPU had finished
--- everything when the thread began to queue this step, it was idle since then.
--- @param done fun(): number? waits for the step, and returns the time of its end (LatentSync:mark); nil on a CPU
--- @param began number the time (cr.clock) at which the thread began to queue it
function Ahead:give(done, began)
  table.insert(self.queue, { done = done, began = began })
  cr.yield()
  while #self.queue > self.most do
    local step = table.remove(self.queue, 1)
    local ended = step.done()
    if not ended then return end
    if self.last then
      local idle = math.max(0, step.began - self.last)
      self.idle = self.idle + idle
      if idle == 0 then self.most = ended - self.last < SHORT and MANY or FEW end
    end
    self.last = ended
  end
end

return M
