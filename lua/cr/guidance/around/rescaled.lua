--- Rescaled guidance (Lin et al. 2023, arXiv 2305.08891, section 3.4): a strong weight makes the
--- prediction's deviation too large; a share of it is brought back to that of the conditional half.

local guidances = require 'cr.sampling.guidances'
local lists = require 'cr.sampling.lists'

local Rescaled = guidances.around()

-- Over all but the batch, kept as dimensions of size 1.
local function deviation(x)
  local dims = {}
  for d = 2, x:dim() do dims[d - 1] = d end
  return x:to 'f32':std(dims, true)
end

function Rescaled:combine(uncond, cond, step)
  local y = self.inner:combine(uncond, cond, step)
  -- A constant prediction has no deviation to be rescaled: no division by zero.
  local ratio = deviation(cond) / deviation(y):clamp(2 ^ -100, math.huge)
  return (y:to 'f32' * (ratio * self.share + (1 - self.share))):to(y.dtype)
end

guidances.guard(Rescaled)

--- @param inner table the guidance whose result is rescaled
--- @param share number 0 leaves it, 1 gives it all of the conditional half's deviation (0.7 in the paper)
local function new(inner, share)
  if type(share) ~= 'number' or not (share >= 0 and share <= 1) then
    error(('guidance rescale: %s is not from 0 to 1'):format(lists.shown(share)), 0)
  end
  return setmetatable({ inner = inner, share = share }, Rescaled)
end

return { new = new }
