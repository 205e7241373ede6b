--- DPM-Solver of order 2 as k-diffusion has it ("dpm_2", "dpm_2_ancestral"; Karras et al. 2022, arXiv 2206.00364): the slope
--- at the geometric middle of the levels, two calls a step, so N steps make 2 N - 1 calls.

local options = require 'cr.sampling.options'
local pairs_of = require 'cr.sampling.pairs'
local solver = require 'cr.sampling.solver'
local tables = require 'cr.sampling.tables'

local M = solver.class {
  name = 'kdpm2', help = 'Midpoint method in the logarithm of sigma, two calls a step; with fresh noise (Karras et al. 2022)',
  variants = { kdpm2 = { eta = 0 }, kdpm2_ancestral = { eta = 1 } }, least_steps = 5,
  aliases = { kdpm2_a = 'kdpm2_ancestral' },
  known_as = { dpm2 = 'kdpm2', dpm2_a = 'kdpm2_ancestral', dpm_2_ancestral = 'kdpm2_ancestral',
    kdpm2ancestraldiscrete = 'kdpm2_ancestral' },
  diffusers = { class = 'KDPM2DiscreteScheduler', name = 'kdpm2', differs = "a single step of 'linspace' begins at the least noise",
    defaults = { beta_start = 0.00085, beta_end = 0.012 } },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.noise, options.sde, {
    { 'eta', 0, 'how much of the way fresh noise has: 0 none', min = 0, max = 10 },
  }),
  depth = 1,
}

M.begins_at = pairs_of.begins_at

function M:prepare(o)
  local timesteps, sigmas = self:spread_sigma(o)
  self.sigmas = sigmas
  self.init_noise_sigma = self:first_scale(o)
  -- diffusers rounds the timesteps of karras, but not those in the middle.
  if self.as_diffusers and o.sigmas == 'karras' then
    for i, t in ipairs(timesteps) do timesteps[i] = tables.round(t) end
  end
  pairs_of.set(self, pairs_of.plan(timesteps, sigmas), function(step)
    step.down, step.rise = solver.ancestral(step.from, step.to, o.eta)
    return step.down > 0 and math.sqrt(step.from * step.down) or nil
  end)
end

function M:update(i, now)
  local call = self.calls[i]
  local step = self.plan[call.step]
  local start = call.second and self.history[2] or now
  local whole = call.second or not step.middle
  local to = whole and step.down or step.middle
  local alpha_t = self:level(whole and step.to or step.middle)
  local form = solver.form(start.x, alpha_t / start.alpha, self:noise(now), alpha_t * (to - step.from))
  if whole and step.rise > 0 then form:add(self:fresh(now), alpha_t * step.rise * self.options.s_noise) end
  return form
end

return M
