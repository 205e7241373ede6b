--- An example of a custom scheduler, to copy and change:
---
---     build/crescent lipsync --scheduler scripts/examples/my_scheduler.lua:lookahead=0.3 --steps 12 ...
--
-- It is DDIM with noise that is extrapolated from the predictions of this step and the previous one.

local cr = require 'cr'
local options = require 'cr.sampling.options'
local tables = require 'cr.sampling.tables'

local M = {
  help = 'DDIM with extrapolated noise: an example to copy',
  -- The network's noise schedule (steps, betas, ...), and an option of our own: name, default, help.
  options = options.join(options.schedule, {
    { 'lookahead', 0.5, "how far the noise is extrapolated beyond this step's prediction", min = 0, max = 1 },
  }),
}

--- Creates a scheduler; `o` has a checked value for each option.
function M.new(o)
  local scheduler = { options = o, timesteps = {} }
  local alphas = tables.alphas(o) -- alphas[t]: the signal's share of the variance at training step t
  local stride = math.floor(o.train_steps / o.steps)
  for i = 1, o.steps do scheduler.timesteps[i] = math.min((o.steps - i) * stride + 1, o.train_steps - 1) end

  -- x = sqrt(a) x0 + sqrt(1 - a) noise. eps is the network's prediction of the noise in x at timestep t [1 F h w 4];
  -- the result is x at the next timestep, with the same shape.
  function scheduler:step(eps, t, x)
    local a, b = alphas[t], alphas[math.max(0, t - stride)]
    local of_x = math.sqrt(b / a)
    local of_noise = math.sqrt(1 - b) - of_x * math.sqrt(1 - a)
    -- The whole step is one linear combination: one operation on any device, with coefficients that are plain Lua
    -- numbers. noise = eps + w (eps - last).
    local w = self.last and o.lookahead or 0
    local y = cr.lincomb({ x, eps, self.last or eps }, { of_x, of_noise * (1 + w), -of_noise * w })
    -- Tensors live until the end of the scope in which they were created; cr.keep lets one live longer.
    local last = cr.keep(eps:clone())
    self:reset()
    self.last = last
    return y
  end

  --- Is called before each window, so that windows do not affect each other.
  function scheduler:reset()
    if self.last then self.last:free() end
    self.last = nil
  end

  return scheduler
end

return M
