--- LCM, sampling of latent consistency models (Luo et al. 2023, arXiv 2310.04378): each step takes the predicted
--- sample and adds fresh noise up to the level of the next timestep. It is for networks that were distilled for it.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'
local tables = require 'cr.sampling.tables'

local M = solver.class {
  name = 'lcm', help = 'Latent consistency models, few steps (Luo et al. 2023)',
  variants = { lcm = {} },
  diffusers = { class = 'LCMScheduler',
    defaults = { beta_start = 0.00085, beta_end = 0.012, beta_schedule = 'scaled_linear', set_alpha_to_one = true } },
  options = options.join(options.schedule, options.steps, options.listed, options.zero_snr, options.threshold, options.clip,
    options.noise, {
    { 'steps', 4, 'number of steps', integer = true, min = 1 },
    { 'original_inference_steps', 50, 'number of steps of the distillation; the sampling steps are a subset', integer = true, min = 1 },
    { 'timestep_scaling', 10, 'how fast the weight of the sample in the boundary condition decays', min = 0 },
  }),
  depth = 0,
}

--- Returns the timesteps of a distilled network: a subset of those of the distillation, from the last one on.
--- @param self Solver
--- @param o table {steps, train_steps, original_inference_steps}
function M.distilled(self, o)
  local whole = o.original_inference_steps
  if whole > o.train_steps then
    error(('%s: original_inference_steps is %d, but the network was trained with only %d'):format(self.name, whole,
      o.train_steps), 0)
  end
  if o.steps > whole then
    error(('%s: steps is %d, but only %d were distilled (original_inference_steps)'):format(self.name, o.steps, whole), 0)
  end
  local listed = tables.listed_whole(self.name, o, self.alphas)
  if listed then return listed end
  local stride, list = math.floor(o.train_steps / whole), {}
  for i = 1, o.steps do
    -- As NumPy's linspace without the end point.
    local skipped = math.floor((i - 1) * (whole / o.steps))
    list[i] = (whole - skipped) * stride - 1
  end
  return list
end

function M:prepare(o) self.timesteps = self:cut(M.distilled(self, o)) end

local SIGMA_DATA = 0.5

function M:update(i, now)
  local scaled = now.t * self.options.timestep_scaling
  local keeps = SIGMA_DATA ^ 2 / (scaled ^ 2 + SIGMA_DATA ^ 2)
  local takes = scaled / math.sqrt(scaled ^ 2 + SIGMA_DATA ^ 2)
  local clean = solver.form(self:data(now), takes, now.x, keeps)
  if i == #self.timesteps then return clean end
  local a = self.alphas[self.timesteps[i + 1]]
  return solver.form(clean, math.sqrt(a), self:fresh(now), math.sqrt(1 - a))
end

return M
