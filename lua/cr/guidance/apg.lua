--- Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416): of the change of the predicted data
--- the part along that data, which makes colours glaring, is left out; what is left is bounded, and
--- earlier steps are taken back a little.
--
-- Of a video each frame is a picture by itself.

local cr = require 'cr'

return {
  help = 'adaptive projected guidance (Sadat et al. 2024)',
  options = {
    { 'eta', 0, "share of the change along the data that stays; 1: all of it", min = 0, max = 1 },
    { 'norm', 15, "the most that a frame's change may measure; 0: as much as it likes", min = 0 },
    { 'momentum', -0.5, "weight of the changes before this step's", min = -1, max = 1 },
  },
  combine = function(self, uncond, cond, step)
    local o, x = self.options, step.x:to 'f32'
    local of_x, of_m = step:data_weights()
    local data = cr.lincomb({ x, cond:to 'f32' }, { of_x, of_m })
    local change = cr.lincomb({ cond:to 'f32', uncond:to 'f32' }, { of_m, -of_m })
    local dims = {}
    for d = 3, x:dim() do dims[#dims + 1] = d end
    if o.momentum ~= 0 then
      if step.held.change then change = cr.lincomb({ change, step.held.change }, { 1, o.momentum }) end
      step:keep('change', change)
    end
    if o.norm > 0 then
      local length = change:square():sum(dims, true):sqrt()
      change = change * (length:clamp(2 ^ -100, math.huge):reciprocal() * o.norm):clamp(0, 1)
    end
    -- Along the data, and across it.
    local along = data * ((change * data):sum(dims, true) / data:square():sum(dims, true):clamp(2 ^ -100, math.huge))
    local weight = (self.scale - 1) / of_m
    return cr.lincomb({ cond:to 'f32', change, along }, { 1, weight, weight * (o.eta - 1) }):to(cond.dtype)
  end,
}
