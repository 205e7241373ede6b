--- A scheduler by `solver.class`, to copy and change: iPNDM (Zhang and Chen 2022, arXiv 2204.13902), Adams and Bashforth's
--- weights on the noise, with fresh noise if asked.
---
---     build/crescent lipsync --scheduler scripts/examples/my_solver.lua:order=4,eta=0.2 --steps 12 ...
--
-- solver.class brings the options' checks, the steps, the window's state and one fused operation a step. What it asks for
-- is update(); `depth` says how many earlier steps that looks at. lua/cr/sampling/solver.lua has the forms.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'my_solver', help = 'iPNDM: an example to copy',
  -- Groups of options: the network's schedule, how steps are spread, lists, levels by a formula, the noise's generator; and
  -- our own: name, default, help.
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.final_sigma, options.noise, {
    { 'order', 3, 'predictions that a step combines', integer = true, min = 1, max = 4 },
    { 'eta', 0, 'how much of the way fresh noise has', min = 0, max = 1 },
  }),
  depth = 3,
}

-- Adams and Bashforth's weights, newest first, by order.
local WEIGHTS = { { 1 }, { 3 / 2, -1 / 2 }, { 23 / 12, -16 / 12, 5 / 12 }, { 55 / 24, -59 / 24, 37 / 24, -9 / 24 } }

--- The i-th step as a form: a linear combination that is still to be computed. With z = x / alpha, dz / dsigma is the
--- predicted noise, so z goes on by the noise times the way in sigma.
function M:update(i, now)
  local from, to = self.sigmas[i], self.sigmas[i + 1]
  local alpha_t = self:level(to) -- the signal's share where the step ends
  local down, up = solver.ancestral(from, to, self.options.eta)
  local form = solver.form(now.x, alpha_t / now.alpha)
  -- history[1] is this step, history[2] the one before it: fewer at the beginning, so the order grows.
  for k, weight in ipairs(WEIGHTS[math.min(self.options.order, #self.history)]) do
    form:add(self:noise(self.history[k]), alpha_t * (down - from) * weight)
  end
  if up > 0 then form:add(self:fresh(now), alpha_t * up) end
  return form
end

return M
