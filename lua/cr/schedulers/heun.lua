--- Heun's method in sigma (Karras et al. 2022, arXiv 2206.00364, algorithm 1): two calls of the
--- network a step, so N steps make 2 N - 1 calls.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'heun', help = "Heun's method in sigma, two calls a step (Karras et al. 2022)",
  variants = { heun = {} }, least_steps = 8,
  known_as = { heunpp2 = 'heun', k_heun = 'heun' },
  diffusers = { class = 'HeunDiscreteScheduler', differs = "a single step of 'linspace' begins at the least noise",
    defaults = { beta_start = 0.00085, beta_end = 0.012 } },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.clip, {
    { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
  }),
  depth = 1,
}

function M:prepare(o)
  local timesteps, sigmas = self:spread_sigma(o)
  self.sigmas, self.timesteps, self.levels = sigmas, {}, {}
  self.init_noise_sigma = self:first_scale(o)
  -- The second half of a step is at the level where the first ended.
  for i, t in ipairs(timesteps) do
    for _ = 1, i == 1 and 1 or 2 do
      self.timesteps[#self.timesteps + 1] = t
      self.levels[#self.levels + 1] = sigmas[i]
    end
  end
end

function M:begins_at(i) return self:level(self.levels[i]) end

function M:update(i, now)
  if i % 2 == 1 then
    local from, to = self.sigmas[(i + 1) / 2], self.sigmas[(i + 3) / 2]
    local alpha_t = self:level(to)
    return solver.form(now.x, alpha_t / now.alpha, self:noise(now), alpha_t * (to - from))
  end
  local first = self.history[2]
  local from, to = self.sigmas[i / 2], self.sigmas[i / 2 + 1]
  local half = now.alpha * (to - from) / 2
  return solver.form(first.x, now.alpha / first.alpha, self:noise(first), half, self:noise(now), half)
end

return M
