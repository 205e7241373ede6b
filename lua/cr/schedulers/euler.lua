--- Euler's method in sigma (Karras et al. 2022, arXiv 2206.00364, algorithm 2), with churn if asked.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'euler',
  help = "Euler's method in sigma (Karras et al. 2022)",
  variants = { euler = {} },
  diffusers = { class = 'EulerDiscreteScheduler' },
  options = options.join(options.schedule, options.spacing, options.sigmas, options.final_sigma, options.zero_snr, options.noise, {
    { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
    { 's_churn', 0, 'noise added before the steps, all together', min = 0 },
    { 's_tmin', 0, 'no noise is added below this sigma', min = 0 },
    { 's_tmax', math.huge, 'no noise is added above this sigma', min = 0, infinite = true },
    { 's_noise', 1, "that noise's standard deviation", min = 0 },
  }),
  least_alpha = 2 ^ -24,
  depth = 0,
}

-- With z = x / alpha: dz / dsigma is the predicted noise.
function M:update(i, now)
  local o, steps = self.options, #self.timesteps
  local from, to = self.sigmas[i], self.sigmas[i + 1]
  local alpha_t = i == steps and 1 or (self:level(to))
  local churned = o.s_churn > 0 and from >= o.s_tmin and from <= o.s_tmax
  local above = churned and from * (1 + math.min(o.s_churn / steps, math.sqrt(2) - 1)) or from
  local z = solver.form(now.x, 1 / now.alpha)
  local slope = self:noise(now)
  if above > from then
    local fresh = self:fresh(now)
    z:add(fresh, o.s_noise * math.sqrt(above * above - from * from))
    if o.prediction ~= 'epsilon' then
      -- The predicted sample as diffusers takes it: the network's answer for x, with the churned z.
      local of_x, of_m = solver.data_weights(o.prediction, now.alpha, now.sigma)
      local data = solver.form(z, now.alpha * of_x, now.m, of_m)
      slope = solver.form(z, 1 / above, data, -1 / above)
    end
  end
  return solver.form(z, alpha_t, slope, alpha_t * (to - above))
end

return M
