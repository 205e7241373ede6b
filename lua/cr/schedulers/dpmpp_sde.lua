--- DPM-Solver++ for the stochastic equation, of order 2, singlestep (k-diffusion's "dpmpp_sde"; Lu et al. 2022, arXiv
--- 2211.01095): fresh noise is added inside and at the end of each step. It makes two calls in each step, so N steps
--- take 2 N - 1 calls.
--
-- The noise of a whole step continues that of its first part: both belong to one Brownian path over the noise level.

local options = require 'cr.sampling.options'
local pairs_of = require 'cr.sampling.pairs'
local solver = require 'cr.sampling.solver'

local sqrt = math.sqrt

local M = solver.class {
  name = 'dpmpp_sde', help = 'DPM-Solver++ with fresh noise, two calls per step (Lu et al. 2022)',
  variants = { dpmpp_sde = {} }, least_steps = 5,
  known_as = { dpmsolversde = 'dpmpp_sde' },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.threshold, options.noise,
    options.sde),
  depth = 1,
}

M.begins_at = pairs_of.begins_at

function M:prepare(o)
  local timesteps, sigmas = self:spread_sigma(o)
  self.sigmas = sigmas
  self.init_noise_sigma = self:first_scale(o)
  pairs_of.set(self, pairs_of.plan(timesteps, sigmas), function(step) return step.to > 0 and sqrt(step.from * step.to) or nil end)
end

function M:update(i, now)
  local o, call = self.options, self.calls[i]
  local step = self.plan[call.step]
  local start = call.second and self.history[2] or now
  local to = call.second and step.to or step.middle or step.to
  local down, up = solver.ancestral(step.from, to, o.eta)
  local alpha_t, ratio = self:level(to), down / step.from
  local form = solver.form(start.x, alpha_t * ratio / start.alpha, self:data(now), alpha_t * (1 - ratio))
  if up == 0 then return form end
  local fresh, rise = self:keep(now, 'fresh', self:fresh(now)), alpha_t * up * o.s_noise
  if not call.second then return form:add(fresh, rise) end
  local share = (step.from - step.middle) / (step.from - step.to)
  return form:add(start.held.fresh, rise * sqrt(share)):add(fresh, rise * sqrt(1 - share))
end

return M
