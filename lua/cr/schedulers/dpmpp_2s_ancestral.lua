--- DPM-Solver++ of order 2, singlestep, down to a level below the next one and up to it with fresh noise (k-diffusion's
--- "dpmpp_2s_ancestral"; Lu et al. 2022, arXiv 2211.01095): two calls a step, so N steps make 2 N - 1 calls.

local options = require 'cr.sampling.options'
local pairs_of = require 'cr.sampling.pairs'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'dpmpp_2s_ancestral', help = 'DPM-Solver++ of order 2 with fresh noise after every step, two calls a step (Lu et al. 2022)',
  variants = { dpmpp_2s_ancestral = {} }, least_steps = 5,
  aliases = { dpmpp_2s_a = 'dpmpp_2s_ancestral' },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.threshold, options.noise,
    options.sde),
  depth = 1,
}

M.begins_at = pairs_of.begins_at

function M:prepare(o)
  local timesteps, sigmas = self:spread_sigma(o)
  self.sigmas = sigmas
  self.init_noise_sigma = self:first_scale(o)
  pairs_of.set(self, pairs_of.plan(timesteps, sigmas), function(step)
    step.down, step.rise = solver.ancestral(step.from, step.to, o.eta)
    return step.down > 0 and math.sqrt(step.from * step.down) or nil
  end)
end

-- With z = x / alpha a step of the first order is z times a ratio of levels, and the data's share is the rest.
function M:update(i, now)
  local call = self.calls[i]
  local step = self.plan[call.step]
  local start = call.second and self.history[2] or now
  local whole = call.second or not step.middle
  local to = whole and step.down or step.middle
  local alpha_t = self:level(whole and step.to or step.middle)
  local ratio = to / step.from
  local form = solver.form(start.x, alpha_t * ratio / start.alpha, self:data(now), alpha_t * (1 - ratio))
  if whole and step.rise > 0 then form:add(self:fresh(now), alpha_t * step.rise * self.options.s_noise) end
  return form
end

return M
