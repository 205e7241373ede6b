--- Euler's method in sigma with fresh noise after every step (k-diffusion's "euler a").

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'euler_ancestral', help = "Euler's method in sigma, with fresh noise after every step",
  variants = { euler_ancestral = {} }, least_steps = solver.least_steps,
  aliases = { euler_a = 'euler_ancestral' }, known_as = { k_euler_a = 'euler_ancestral', k_euler_ancestral = 'euler_ancestral' },
  diffusers = { class = 'EulerAncestralDiscreteScheduler',
    differs = "a single step of 'linspace' begins at the lowest noise level" },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.zero_snr, options.noise,
    options.sde, {
    { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
  }),
  least_alpha = 2 ^ -24,
  depth = 0,
}

function M:update(i, now)
  local from, to = self.sigmas[i], self.sigmas[i + 1]
  -- Steps below the next level, then adds noise to reach it.
  local down, up = solver.ancestral(from, to, self.options.eta)
  local alpha_t = self:level(to)
  local form = solver.form(now.x, alpha_t / now.alpha, self:noise(now), alpha_t * (down - from))
  if up > 0 then form:add(self:fresh(now), alpha_t * self.options.s_noise * up) end
  return form
end

return M
