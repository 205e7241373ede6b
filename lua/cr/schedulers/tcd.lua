--- TCD, trajectory consistency distillation (Zheng et al. 2024, arXiv 2402.19159): each step goes to a level below
--- that of the next timestep and adds fresh noise up to it. It is for networks that were distilled for it.

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
    { 'original_inference_steps', 50, 'number of steps of the distillation; the sampling steps are a subset', integer = true, min = 1 },
    { 'eta', 0.3, 'amount of fresh noise in each step (gamma in the paper); 0 adds none', min = 0, max = 1 },
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
