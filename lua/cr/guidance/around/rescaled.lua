--- Rescaled guidance (Lin et al. 2023, arXiv 2305.08891, section 3.4): a large weight raises the standard deviation
--- of the prediction, so the prediction is blended with one that is rescaled to the standard deviation of the
--- conditional half.

local guidances = require 'cr.sampling.guidances'
local lists = require 'cr.sampling.lists'

local Rescaled = guidances.around()

-- The standard deviation over all dimensions but the batch, which are kept with size 1.
local function deviation(x)
  local dims = {}
  for d = 2, x:dim() do dims[d - 1] = d end
  return x:to 'f32':std(dims, true)
end

function Rescaled:combine(uncond, cond, step)
  local y = self.inner:combine(uncond, cond, step)
  -- The clamp avoids a division by zero for a constant prediction.
  local ratio = deviation(cond) / deviation(y):clamp(2 ^ -100, math.huge)
  return (y:to 'f32' * (ratio * self.share + (1 - self.share))):to(y.dtype)
end

guidances.guard(Rescaled)

--- @param inner table the guidance whose result is rescaled
--- @param share number weight of the rescaled prediction, 0 to 1 (0.7 in the paper)
local function new(inner, share)
  if type(share) ~= 'number' or not (share >= 0 and share <= 1) then
    error(('guidance rescale: %s is not from 0 to 1'):format(lists.shown(share)), 0)
  end
  return setmetatable({ inner = inner, share = share }, Rescaled)
end

return { new = new }
