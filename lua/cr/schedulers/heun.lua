--- Heun's method in sigma (Karras et al. 2022, arXiv 2206.00364, algorithm 1): two calls of the network in each step,
--- so N steps take 2 N - 1 calls.

local options = require 'cr.sampling.options'
local pairs_of = require 'cr.sampling.pairs'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'heun', help = "Heun's method in sigma, two calls per step (Karras et al. 2022)",
  variants = { heun = {} }, least_steps = 8,
  known_as = { heunpp2 = 'heun', k_heun = 'heun' },
  diffusers = { class = 'HeunDiscreteScheduler', differs = "a single step of 'linspace' begins at the lowest noise level",
    defaults = { beta_start = 0.00085, beta_end = 0.012 } },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.clip, {
    { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
  }),
  depth = 1,
}

-- A step that ends with some noise has a second call at its end.
function M.second(step, following)
  if step.to > 0 then return step.to, not step.up and following and following.t or nil end
end

function M:prepare(o)
  local timesteps, sigmas = self:spread_sigma(o)
  self.sigmas = sigmas
  self.init_noise_sigma = self:first_scale(o)
  pairs_of.set(self, pairs_of.plan(timesteps, sigmas), M.second)
end

M.begins_at = pairs_of.begins_at

function M:update(i, now)
  local call = self.calls[i]
  local step = self.plan[call.step]
  local form
  if not call.second then
    local alpha_t = self:level(step.to)
    form = solver.form(now.x, alpha_t / now.alpha, self:noise(now), alpha_t * (step.to - step.from))
  else
    local first = self.history[2]
    local half = now.alpha * (step.to - step.from) / 2
    form = solver.form(first.x, now.alpha / first.alpha, self:noise(first), half, self:noise(now), half)
  end
  if not step.up or step.middle and not call.second then return form end
  -- Adds fresh noise to z = x / alpha at the end of the step.
  local alpha_t, alpha_up = self:level(step.to), self:level(step.up)
  return solver.form(form, alpha_up / alpha_t, self:fresh(now),
    alpha_up * self.options.s_noise * math.sqrt(step.up ^ 2 - step.to ^ 2))
end

return M
