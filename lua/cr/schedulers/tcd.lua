--- TCD, trajectory consistency distillation (Zheng et al. 2024, arXiv 2402.19159): down to a level
--- below the next timestep's, and up to it with fresh noise. For networks distilled for it.

local lcm = require 'cr.schedulers.lcm'
local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local sqrt = math.sqrt

local M = solver.class {
  name = 'tcd', help = 'Trajectory consistency distillation, few steps (Zheng et al. 2024)',
  variants = { tcd = {} },
  diffusers = { class = 'TCDScheduler',
    defaults = { beta_start = 0.00085, beta_end = 0.012, beta_schedule = 'scaled_linear', set_alpha_to_one = true } },
  options = options.join(options.schedule, options.steps, options.listed, options.zero_snr, options.noise, {
    { 'steps', 4, 'number of steps', integer = true, min = 1 },
    { 'original_inference_steps', 50, 'steps of the distillation, of which these are some', integer = true, min = 1 },
    { 'eta', 0.3, 'share of the way down that fresh noise brings back (gamma in the paper)', min = 0, max = 1 },
  }),
  depth = 0,
}

function M:prepare(o) self.timesteps = self:cut(lcm.distilled(self, o)) end

function M:update(i, now)
  local o, last = self.options, i == #self.timesteps
  local next_t = last and 0 or self.timesteps[i + 1]
  local low = self.alphas[math.floor((1 - o.eta) * next_t)]
  local down = solver.form(self:data(now), sqrt(low), self:noise(now), sqrt(1 - low))
  if last or o.eta == 0 then return down end
  local up = self.alphas[next_t] / low
  return solver.form(down, sqrt(up), self:fresh(now), sqrt(1 - up))
end

return M
