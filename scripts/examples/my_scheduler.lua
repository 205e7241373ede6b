--- A scheduler of one's own, to copy and change:
---
---     build/crescent lipsync --scheduler scripts/examples/my_scheduler.lua:lookahead=0.3 --steps 12 ...
--
-- It walks DDIM's path, but with the noise extrapolated from this step's prediction and the last one's.

local cr = require 'cr'
local options = require 'cr.sampling.options'
local tables = require 'cr.sampling.tables'

local M = {
  help = 'DDIM with extrapolated noise: an example to copy',
  -- The network's noise schedule (steps, betas, ...), and options of our own: name, default, help.
  options = options.join(options.schedule, {
    { 'lookahead', 0.5, "how far this step's noise goes on from the last one's", min = 0, max = 1 },
  }),
}

--- Makes a scheduler; `o` holds a checked value for each option.
function M.new(o)
  local scheduler = { options = o, timesteps = {} }
  local alphas = tables.alphas(o) -- alphas[t]: the signal's share of the power at training step t
  local stride = math.floor(o.train_steps / o.steps)
  for i = 1, o.steps do scheduler.timesteps[i] = math.min((o.steps - i) * stride + 1, o.train_steps - 1) end

  -- x = sqrt(a) x0 + sqrt(1 - a) noise. eps is what the network takes for the noise in x at timestep
  -- t [1 F h w 4]; the result is x at the next timestep, of the same shape.
  function scheduler:step(eps, t, x)
    local a, b = alphas[t], alphas[math.max(0, t - stride)]
    local of_x = math.sqrt(b / a)
    local of_noise = math.sqrt(1 - b) - of_x * math.sqrt(1 - a)
    -- All of a step is one linear combination: one operation on any device, and the coefficients are
    -- plain Lua numbers. noise = eps + w (eps - last).
    local w = self.last and o.lookahead or 0
    local y = cr.lincomb({ x, eps, self.last or eps }, { of_x, of_noise * (1 + w), -of_noise * w })
    -- Tensors live as long as the scope that they were made in; what must outlive it is kept.
    local last = cr.keep(eps:clone())
    self:reset()
    self.last = last
    return y
  end

  --- Called before each window: windows must not see each other's state.
  function scheduler:reset()
    if self.last then self.last:free() end
    self.last = nil
  end

  return scheduler
end

return M
