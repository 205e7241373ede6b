--- Euler's method in sigma (Karras et al. 2022, arXiv 2206.00364, algorithm 2), with optional churn.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'
local tables = require 'cr.sampling.tables'

local M = solver.class {
  name = 'euler', help = "Euler's method in sigma (Karras et al. 2022)",
  variants = { euler = {} }, least_steps = solver.least_steps,
  known_as = { k_euler = 'euler', edmeuler = 'euler_karras' },
  diffusers = { class = 'EulerDiscreteScheduler',
    differs = "a single step of 'linspace' begins at the lowest noise level; with final_sigma=sigma_min the last step changes "
      .. 'nothing or leaves the scale; s_churn adds noise that the network has not seen' },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.final_sigma, options.zero_snr,
    options.noise, {
    { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
    { 's_churn', 0, 'total amount of noise that is added before steps', min = 0 },
    { 's_tmin', 0, 'no noise is added below this sigma', min = 0 },
    { 's_tmax', math.huge, 'no noise is added above this sigma', min = 0, infinite = true },
    { 's_noise', 1, 'standard deviation of the added noise', min = 0 },
  }),
  least_alpha = 2 ^ -24,
  depth = 0,
}

local prepare = M.prepare
function M:prepare(o)
  prepare(self, o)
  -- The levels at which the network is called. Churn adds noise before a step; here that is at the end of the
  -- previous step, so that the network sees it. The first level is pure noise already.
  self.asked = {}
  for i, sigma in ipairs(self.sigmas) do
    local churned = not self.as_diffusers and i > 1 and i <= o.steps and self:churns(sigma)
    self.asked[i] = churned and sigma * self:growth() or sigma
    if churned then self.timesteps[i] = tables.timestep_of(self.asked[i], self.alphas, o.train_steps - 1) end
  end
end

function M:churns(sigma)
  local o = self.options
  return o.s_churn > 0 and sigma >= o.s_tmin and sigma <= o.s_tmax
end

function M:growth() return 1 + math.min(self.options.s_churn / #self.timesteps, math.sqrt(2) - 1) end

function M:begins_at(i) return self:level(self.asked[i]) end

-- With z = x / alpha: dz / dsigma is the predicted noise.
function M:update(i, now)
  if self.as_diffusers then return self:update_as_diffusers(i, now) end
  local from, to, next_asked = self.asked[i], self.sigmas[i + 1], self.asked[i + 1]
  local alpha_t = self:level(next_asked)
  local form = solver.form(now.x, alpha_t / now.alpha, self:noise(now), alpha_t * (to - from))
  if next_asked > to then
    form:add(self:fresh(now), alpha_t * self.options.s_noise * math.sqrt(next_asked ^ 2 - to ^ 2))
  end
  return form
end

-- diffusers adds churn after the prediction, and returns z itself at the end.
function M:update_as_diffusers(i, now)
  local o, steps = self.options, #self.timesteps
  local from, to = self.sigmas[i], self.sigmas[i + 1]
  local alpha_t = i == steps and 1 or (self:level(to))
  local above = self:churns(from) and from * self:growth() or from
  local z = solver.form(now.x, 1 / now.alpha)
  local slope = self:noise(now)
  if above > from then
    local fresh = self:fresh(now)
    z:add(fresh, o.s_noise * math.sqrt(above * above - from * from))
    if o.prediction ~= 'epsilon' then
      -- The predicted sample as in diffusers: the network's output for x, combined with the churned z.
      local of_x, of_m = solver.data_weights(o.prediction, now.alpha, now.sigma)
      local data = solver.form(z, now.alpha * of_x, now.m, of_m)
      slope = solver.form(z, 1 / above, data, -1 / above)
    end
  end
  return solver.form(z, alpha_t, slope, alpha_t * (to - above))
end

return M
