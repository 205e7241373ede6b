--- An example of a custom guidance method, to copy and change: frequency-decoupled guidance (Sadat et al. 2025, arXiv
--- 2506.19713), which uses a smaller scale for low frequencies than for high ones.
---
---     build/crescent lipsync --guidance 3 --guidance-method scripts/examples/my_guidance.lua:low=1.2 ...
--
-- lua/cr/guidance/init.lua describes what else a method can have and receives: noise levels, a state, another network
-- call, and influence on the scheduler's step.

local cr = require 'cr'
local nn = require 'cr.nn'

-- The low frequencies of images [1 F h w C]: downscaled by 2 and upscaled again.
local function coarse(x)
  local F, h, w, C = x:size(2), x:size(3), x:size(4), x:size(5)
  local small = nn.resize(x:reshape(F, h, w, C), math.ceil(h / 2), math.ceil(w / 2), 'bilinear')
  return nn.resize(small, h, w, 'bilinear'):view(1, F, h, w, C)
end

return {
  help = 'frequency-decoupled guidance: an example to copy',
  options = { { 'low', 1.2, 'guidance scale for low frequencies; --guidance is the scale for high ones', min = 0 } },
  -- self.scale is the guidance scale, self.options holds the checked options.
  combine = function(self, uncond, cond)
    local change = cond - uncond
    local low = coarse(change)
    return cr.lincomb({ uncond, change, low }, { 1, self.scale, self.options.low - self.scale })
  end,
}
