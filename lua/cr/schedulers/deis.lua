--- DEIS multistep in log rho, of order 1 to 3 (Zhang and Chen 2022, arXiv 2204.13902).
--
-- With rho = sigma / alpha, x / alpha changes by the integral of the predicted noise over rho. The noise is
-- interpolated by a polynomial in log rho through the last predictions, and the weight of each prediction is the
-- integral of its Lagrange polynomial.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local log = math.log

local M = solver.class {
  name = 'deis', help = 'DEIS, multistep in log rho (Zhang and Chen 2022)',
  variants = { deis = { order = 2 }, deis_1 = { order = 1 }, deis_3 = { order = 3 } }, least_steps = solver.least_steps,
  aliases = { deis_2 = 'deis' },
  formula_spreads = true,
  diffusers = { class = 'DEISMultistepScheduler', differs = "the last step of a formula changes nothing" },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.threshold, {
    { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
    { 'order', 2, 'number of predictions that a step combines', integer = true, min = 1, max = 3 },
    { 'lower_order_final', true, 'lower the order of the last steps if there are fewer than 15 steps' },
  }),
}

function M:prepare(o)
  self.timesteps, self.sigmas = self:spread(o, 'sigma_min') -- log rho is infinite without noise
  self.depth = o.order - 1
end

-- The integral of (log t - log c) / (log b - log c).
local function linear(t, b, c) return t * (log(t) - log(c) - 1) / (log(b) - log(c)) end

-- The integral of (log t - log c) (log t - log d) / ((log b - log c) (log b - log d)).
local function quadratic(t, b, c, d)
  local l, lc, ld = log(t), log(c), log(d)
  return t * (lc * (ld - l + 1) - ld * l + ld + l * l - 2 * l + 2) / ((log(b) - lc) * (log(b) - ld))
end

function M:update(i, now)
  local o, history, steps = self.options, self.history, #self.timesteps
  local few = o.lower_order_final and steps < 15
  local order = math.min(o.order, #history)
  if i == steps and few then order = 1 end
  if i == steps - 1 and few then order = math.min(order, 2) end

  local alpha_t = self:level(self.sigmas[i + 1])
  local to, from = self.sigmas[i + 1], self.sigmas[i]
  local form = solver.form(now.x, alpha_t / now.alpha)
  if order == 1 then return form:add(self:noise(now), alpha_t * (to - from)) end
  local function share(integral, ...) return alpha_t * (integral(to, ...) - integral(from, ...)) end
  local one = self.sigmas[i - 1]
  if order == 2 then
    return form:add(self:noise(now), share(linear, from, one)):add(self:noise(history[2]), share(linear, one, from))
  end
  local two = self.sigmas[i - 2]
  return form:add(self:noise(now), share(quadratic, from, one, two))
    :add(self:noise(history[2]), share(quadratic, one, two, from))
    :add(self:noise(history[3]), share(quadratic, two, from, one))
end

return M
