--- A guidance of one's own, to copy and change: frequency-decoupled guidance (Sadat et al. 2025, arXiv 2506.19713), which
--- guides what is coarse less than what is fine.
---
---     build/crescent lipsync --guidance 3 --guidance-method scripts/examples/my_guidance.lua:low=1.2 ...
--
-- lua/cr/guidance/init.lua says what else a method may have and is told: levels, a state, the network once more, a say in
-- how the scheduler steps.

local cr = require 'cr'
local nn = require 'cr.nn'

-- The coarse part of pictures [1 F h w C]: half as large, and as large again.
local function coarse(x)
  local F, h, w, C = x:size(2), x:size(3), x:size(4), x:size(5)
  local small = nn.resize(x:reshape(F, h, w, C), math.ceil(h / 2), math.ceil(w / 2), 'bilinear')
  return nn.resize(small, h, w, 'bilinear'):view(1, F, h, w, C)
end

return {
  help = 'frequency-decoupled guidance: an example to copy',
  options = { { 'low', 1.2, 'weight of what is coarse; the weight itself is for what is fine', min = 0 } },
  -- self.scale is the weight, self.options holds the checked options.
  combine = function(self, uncond, cond)
    local change = cond - uncond
    local low = coarse(change)
    return cr.lincomb({ uncond, change, low }, { 1, self.scale, self.options.low - self.scale })
  end,
}
