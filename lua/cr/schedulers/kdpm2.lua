--- DPM-Solver of order 2 as in k-diffusion ("dpm_2", "dpm_2_ancestral"; Karras et al. 2022, arXiv 2206.00364). It
--- uses the slope at the geometric mean of the levels and makes two calls in each step, so N steps take 2 N - 1
--- calls.

local options = require 'cr.sampling.options'
local pairs_of = require 'cr.sampling.pairs'
local solver = require 'cr.sampling.solver'
local tables = require 'cr.sampling.tables'

local M = solver.class {
  name = 'kdpm2', help = 'Midpoint method in the logarithm of sigma, two calls per step; optional fresh noise (Karras et al. 2022)',
  variants = { kdpm2 = { eta = 0 }, kdpm2_ancestral = { eta = 1 } }, least_steps = 5,
  aliases = { kdpm2_a = 'kdpm2_ancestral' },
  known_as = { dpm2 = 'kdpm2', dpm2_a = 'kdpm2_ancestral', dpm_2_ancestral = 'kdpm2_ancestral',
    kdpm2ancestraldiscrete = 'kdpm2_ancestral' },
  diffusers = { class = 'KDPM2DiscreteScheduler', name = 'kdpm2', differs = "a single step of 'linspace' begins at the lowest noise level",
    defaults = { beta_start = 0.00085, beta_end = 0.012 } },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.noise, options.sde, {
    { 'eta', 0, 'amount of fresh noise; 0 adds none', min = 0, max = 10 },
  }),
  depth = 1,
}

M.begins_at = pairs_of.begins_at

function M:prepare(o)
  local timesteps, sigmas = self:spread_sigma(o)
  self.sigmas = sigmas
  self.init_noise_sigma = self:first_scale(o)
  -- diffusers rounds the timesteps of 'karras', but not those of the second calls.
  if self.as_diffusers and o.sigmas == 'karras' then
    for i, t in ipairs(timesteps) do timesteps[i] = tables.round(t) end
  end
  pairs_of.set_ancestral(self, timesteps, sigmas)
end

function M:update(i, now)
  return pairs_of.update_ancestral(self, i, now, function(start, from, to, alpha)
    return solver.form(start.x, alpha / start.alpha, self:noise(now), alpha * (to - from))
  end)
end

return M
