--- Guidance only between two timesteps (Kynkaanniemi et al. 2024, arXiv 2404.07724): elsewhere it does
--- little good, and a step without it costs half.

local Interval = {}
Interval.__index = Interval

function Interval:applies(step)
  return step.t >= self.low and step.t <= self.high and self.inner:applies(step)
end

function Interval:combine(uncond, cond, step) return self.inner:combine(uncond, cond, step) end

--- @param inner table the guidance between the two
--- @param low number timestep, itself within
--- @param high number
local function new(inner, low, high)
  if type(low) ~= 'number' or type(high) ~= 'number' or low > high then
    error(('guidance interval: from %s to %s is no interval of timesteps: the lower one first'):format(tostring(low),
      tostring(high)), 0)
  end
  return setmetatable({ inner = inner, low = low, high = high }, Interval)
end

return { new = new }
