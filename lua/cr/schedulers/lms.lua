--- Linear multistep (Adams-Bashforth) in sigma, of order 1 to 4 (k-diffusion's "lms").

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'lms', help = 'Linear multistep in sigma (Adams-Bashforth)',
  variants = { lms = {} }, least_steps = solver.least_steps,
  diffusers = { class = 'LMSDiscreteScheduler',
    differs = "a single step of 'linspace' begins at the lowest noise level" },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, {
    { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
    { 'order', 4, 'number of predictions that a step combines', integer = true, min = 1, max = 4 },
  }),
}

local prepare = M.prepare
function M:prepare(o)
  prepare(self, o)
  self.depth = o.order - 1
end

-- Returns the integral of the Lagrange polynomial of prediction k over the step. Its degree is at most 3, for which
-- Gauss quadrature with two points is exact.
function M:share(i, k, order)
  local s, from, to = self.sigmas, self.sigmas[i], self.sigmas[i + 1]
  local middle, half = (from + to) / 2, (to - from) / 2
  local sum = 0
  for _, sign in ipairs { -1, 1 } do
    local tau, product = middle + sign * half / math.sqrt(3), 1
    for j = 0, order - 1 do
      if j ~= k then product = product * (tau - s[i - j]) / (s[i - k] - s[i - j]) end
    end
    sum = sum + product
  end
  return sum * half
end

function M:update(i, now)
  local order = math.min(i, self.options.order)
  local alpha_t = self:level(self.sigmas[i + 1])
  local form = solver.form(now.x, alpha_t / now.alpha)
  for k = 0, order - 1 do form:add(self:noise(self.history[k + 1]), alpha_t * self:share(i, k, order)) end
  return form
end

return M
