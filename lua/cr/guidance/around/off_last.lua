--- Switches guidance off in the last steps, which add details that hardly depend on the condition.

local guidances = require 'cr.sampling.guidances'
local lists = require 'cr.sampling.lists'

local OffLast = guidances.around()

function OffLast:applies(step) return step.index <= step.count - self.steps and self.inner:applies(step) end

guidances.guard(OffLast)

--- @param inner table the guidance before them
--- @param steps integer how many last steps run without guidance
local function new(inner, steps)
  if type(steps) ~= 'number' or not (steps >= 0 and steps < math.huge) or steps ~= math.floor(steps) then
    error(('guidance off_last: %s is no number of steps'):format(lists.shown(steps)), 0)
  end
  return setmetatable({ inner = inner, steps = steps }, OffLast)
end

return { new = new }
