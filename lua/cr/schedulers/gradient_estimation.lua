--- Gradient estimation (Permenter and Yuan 2023, arXiv 2306.04848): Euler's method in sigma with the noise extrapolated
--- from the last two predictions.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'gradient_estimation', help = 'Euler\'s method with extrapolated noise (Permenter and Yuan 2023)',
  variants = { gradient_estimation = {} }, least_steps = solver.least_steps,
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.final_sigma, {
    { 'gamma', 2, "weight of this step's noise; that of the last step has the weight 1 - gamma", min = 1, max = 10 },
  }),
  depth = 1,
}

function M:update(i, now)
  local to = self.sigmas[i + 1]
  local alpha_t, before = self:level(to), self.history[2]
  local by = alpha_t * (to - self.sigmas[i])
  local form = solver.form(now.x, alpha_t / now.alpha)
  if not before or to == 0 then return form:add(self:noise(now), by) end
  local gamma = self.options.gamma
  return form:add(self:noise(now), by * gamma):add(self:noise(before), by * (1 - gamma))
end

return M
