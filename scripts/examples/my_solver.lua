--- An example of a scheduler based on `solver.class`, to copy and change: iPNDM (Zhang and Chen 2022, arXiv
--- 2204.13902), which applies Adams-Bashforth coefficients to the noise, with optional fresh noise.
---
---     build/crescent lipsync --scheduler scripts/examples/my_solver.lua:order=4,eta=0.2 --steps 12 ...
--
-- solver.class provides option checks, timesteps, per-window state, and one fused operation per step. The solver
-- implements update(); `depth` is the number of earlier steps that it uses. lua/cr/sampling/solver.lua describes the
-- forms.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'my_solver', help = 'iPNDM: an example to copy',
  -- Groups of options: noise schedule, spacing, explicit steps, sigma formulas, the noise generator; and our own:
  -- name, default, help.
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.final_sigma, options.noise, {
    { 'order', 3, 'number of predictions that a step combines', integer = true, min = 1, max = 4 },
    { 'eta', 0, 'share of the step that is fresh noise', min = 0, max = 1 },
  }),
  depth = 3,
}

-- Adams-Bashforth coefficients, newest first, by order.
local WEIGHTS = { { 1 }, { 3 / 2, -1 / 2 }, { 23 / 12, -16 / 12, 5 / 12 }, { 55 / 24, -59 / 24, 37 / 24, -9 / 24 } }

--- The i-th step as a form, a linear combination that is computed later. With z = x / alpha, dz / dsigma is the
--- predicted noise, so z advances by the noise times the change of sigma.
function M:update(i, now)
  local from, to = self.sigmas[i], self.sigmas[i + 1]
  local alpha_t = self:level(to) -- the signal level at the end of the step
  local down, up = solver.ancestral(from, to, self.options.eta)
  local form = solver.form(now.x, alpha_t / now.alpha)
  -- history[1] is this step, history[2] the previous one. At the start there are fewer, so the order grows.
  for k, weight in ipairs(WEIGHTS[math.min(self.options.order, #self.history)]) do
    form:add(self:noise(self.history[k]), alpha_t * (down - from) * weight)
  end
  if up > 0 then form:add(self:fresh(now), alpha_t * up) end
  return form
end

return M
