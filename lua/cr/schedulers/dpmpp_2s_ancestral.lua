--- DPM-Solver++ of order 2, singlestep, with ancestral steps: each goes to a lower level than the next one and is
--- raised to it by fresh noise (k-diffusion's "dpmpp_2s_ancestral"; Lu et al. 2022, arXiv 2211.01095). It makes two
--- calls in each step, so N steps take 2 N - 1 calls.

local options = require 'cr.sampling.options'
local pairs_of = require 'cr.sampling.pairs'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'dpmpp_2s_ancestral', help = 'DPM-Solver++ of order 2 with fresh noise after every step, two calls per step (Lu et al. 2022)',
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
  pairs_of.set_ancestral(self, timesteps, sigmas)
end

-- With z = x / alpha, a first-order step multiplies z by a ratio of levels and adds the predicted data with the rest
-- of the weight.
function M:update(i, now)
  return pairs_of.update_ancestral(self, i, now, function(start, from, to, alpha)
    local ratio = to / from
    return solver.form(start.x, alpha * ratio / start.alpha, self:data(now), alpha * (1 - ratio))
  end)
end

return M
