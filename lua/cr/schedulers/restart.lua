--- Restart (Xu et al. 2023, arXiv 2306.14878): Heun's method, which at one level adds noise up to a higher level and
--- denoises again. This reduces the errors that were made at higher levels.

local heun = require 'cr.schedulers.heun'
local pairs_of = require 'cr.sampling.pairs'
local solver = require 'cr.sampling.solver'
local tables = require 'cr.sampling.tables'

local M = solver.extend(heun, {
  name = 'restart', help = "Restart: Heun's method, part of which is repeated from fresh noise (Xu et al. 2023)",
  options = {
    { 'generator', nil, 'generator of the fresh noise (the default generator)', kind = 'generator' },
    { 'restarts', 1, 'number of restarts', integer = true, min = 0, max = 100 },
    { 'restart_min', 0.1, 'noise level at which a restart begins; the nearest level of a step is used', min = 0.001 },
    { 'restart_max', 2, 'noise level to which a restart adds noise', min = 0.001 },
    { 'restart_steps', 5, 'number of steps of a restart', integer = true, min = 1 },
    { 's_noise', 1, 'standard deviation of the fresh noise', min = 0, max = 10 },
  },
})

-- Returns the index of the nearest level among those where steps begin.
local function nearest(sigmas, level)
  local best = 1
  for i = 1, #sigmas - 1 do if math.abs(sigmas[i] - level) < math.abs(sigmas[best] - level) then best = i end end
  return best
end

function M:prepare(o)
  if o.restart_min >= o.restart_max then
    error(('%s: restart_min = %g must be below restart_max = %g'):format(self.name, o.restart_min, o.restart_max), 0)
  end
  local timesteps, sigmas = self:spread_sigma(o)
  self.sigmas = sigmas
  self.init_noise_sigma = self:first_scale(o)
  local low, high = nearest(sigmas, o.restart_min), nearest(sigmas, o.restart_max)
  local plan = {}
  for i, step in ipairs(pairs_of.plan(timesteps, sigmas)) do
    plan[#plan + 1] = step
    if i + 1 == low and high < low then
      local levels = tables.formula('karras', sigmas[high], sigmas[low], o.restart_steps + 1)
      for _ = 1, o.restarts do
        plan[#plan].up = sigmas[high]
        for k = 1, o.restart_steps do plan[#plan + 1] = { from = levels[k], to = levels[k + 1] } end
      end
    end
  end
  pairs_of.set(self, plan, heun.second)
end

return M
