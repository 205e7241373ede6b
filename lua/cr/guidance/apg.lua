--- Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416): the guidance update of the predicted data is
--- split into a part parallel to that data and an orthogonal part. The parallel part, which oversaturates colours, is
--- removed; the rest is limited in norm, and a negative momentum subtracts a share of earlier updates.
--
-- Each frame of a video is treated as a separate picture.

local cr = require 'cr'

return {
  help = 'adaptive projected guidance (Sadat et al. 2024)',
  options = {
    { 'eta', 0, "how much of the parallel part of the update is kept; 1 keeps all of it", min = 0, max = 1 },
    { 'norm', 15, "largest norm of a frame's update; 0 sets no limit", min = 0 },
    { 'momentum', -0.5, "weight of the running average of earlier updates", min = -1, max = 1 },
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
    -- The parts parallel and orthogonal to the data.
    local along = data * ((change * data):sum(dims, true) / data:square():sum(dims, true):clamp(2 ^ -100, math.huge))
    local weight = (self.scale - 1) / of_m
    return cr.lincomb({ cond:to 'f32', change, along }, { 1, weight, weight * (o.eta - 1) }):to(cond.dtype)
  end,
}
