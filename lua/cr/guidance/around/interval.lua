--- Guidance only between two timesteps (Kynkaanniemi et al. 2024, arXiv 2404.07724). Outside that interval it helps
--- little, and a step without it costs half.

local guidances = require 'cr.sampling.guidances'
local lists = require 'cr.sampling.lists'

local Interval = guidances.around()

function Interval:applies(step)
  return step.t >= self.low and step.t <= self.high and self.inner:applies(step)
end

guidances.guard(Interval)

--- @param inner table the guidance between the two
--- @param low number lowest timestep, inclusive
--- @param high number
local function new(inner, low, high)
  if type(low) ~= 'number' or type(high) ~= 'number' or not (low <= high and low >= 0) then
    error(('guidance interval: from %s to %s is no interval of timesteps: two numbers from 0 on, the lower one first'):format(
      lists.shown(low), lists.shown(high)), 0)
  end
  return setmetatable({ inner = inner, low = low, high = high }, Interval)
end

--- The same with the interval as a pair.
--- @param inner table
--- @param pair table {low, high}
local function of(inner, pair)
  if type(pair) ~= 'table' or #pair ~= 2 then
    error(('guidance interval: %s is not { lowest, highest } timestep'):format(type(pair) == 'table'
      and ('a table of %d'):format(#pair) or lists.shown(pair)), 0)
  end
  return new(inner, pair[1], pair[2])
end

return { new = new, of = of }
