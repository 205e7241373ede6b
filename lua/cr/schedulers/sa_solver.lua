--- SA-Solver (Xue et al. 2023, arXiv 2309.05019): stochastic Adams, a predictor and a corrector in lambda; the corrector
--- costs no call of the network.
--
-- tau says how much of the equation is noise: 0 is the deterministic one. The predicted sample is interpolated by a polynomial
-- in lambda through the last predictions, the corrector's through this one as well; its integral with the exponential is
-- exact. Predictor and corrector have the same noise and start, so a correction is a difference of coefficients.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local exp, min = math.exp, math.min

local M = solver.class {
  name = 'sa_solver', help = 'SA-Solver: stochastic Adams, predictor and corrector (Xue et al. 2023)',
  variants = { sa_solver = {}, sa_solver_3 = { predictor_order = 3, corrector_order = 4 } }, least_steps = solver.least_steps,
  diffusers = { class = 'SASolverScheduler', name = 'sa_solver',
    differs = 'an order of 2 has a term of the third order more',
    defaults = { final_sigmas_type = 'sigma_min' } },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.final_sigma, options.threshold,
    options.noise, {
      { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
      { 'predictor_order', 2, 'predictions that the predictor combines', integer = true, min = 1, max = 3 },
      { 'corrector_order', 2, 'predictions that the corrector combines; 0: there is none', integer = true, min = 0, max = 4 },
      { 'algorithm', 'data_prediction', 'what is interpolated: the predicted sample', choices = { 'data_prediction' } },
      { 'tau', 1, 'how much fresh noise: 0 none', min = 0, max = 3 },
      { 'tau_from', 200, 'fresh noise from this timestep', min = 0 },
      { 'tau_to', 800, 'and up to this one', min = 0 },
      { 's_noise', 1, "the fresh noise's standard deviation", min = 0, max = 10 },
    }),
  formula_spreads = true,
}

function M:prepare(o)
  if o.corrector_order == 1 then error(self.name .. ': a corrector_order of 1 corrects nothing: 0 for none, or 2 to 4', 0) end
  self.timesteps, self.sigmas = self:spread(o, o.final_sigma)
  self.depth = math.max(o.predictor_order, o.corrector_order - 1)
end

-- The shares of predictions at the places u (lambda from the step's beginning) in the integral of g exp(-g (h - u)) over
-- the step.
local function shares(u, h, g)
  local moments = { 1 - exp(-g * h) }
  for k = 1, #u - 1 do moments[k + 1] = h ^ k - k / g * moments[k] end
  local list = {}
  for j = 1, #u do
    local polynomial = { 1 } -- coefficients, the constant first
    for m = 1, #u do
      if m ~= j then
        local by, next_one = u[j] - u[m], {}
        for k = 1, #polynomial + 1 do next_one[k] = ((polynomial[k - 1] or 0) - u[m] * (polynomial[k] or 0)) / by end
        polynomial = next_one
      end
    end
    list[j] = 0
    for k, c in ipairs(polynomial) do list[j] = list[j] + c * moments[k] end
  end
  return list
end

-- Adds the data's part of the step that begins at history[start]: through `order` predictions from history[first] on.
function M:add(form, start, first, order, alpha_t, h, g, sign)
  local history, u = self.history, {}
  for k = 1, order do u[k] = history[first + k - 1].lambda - history[start].lambda end
  local weights = shares(u, h, g)
  if self.as_diffusers and order == 2 then
    local more = (g * h * h / 2 - (h - (1 - exp(-g * h)) / g)) / (u[1] - u[2])
    weights[1], weights[2] = weights[1] + more, weights[2] - more
  end
  for k = 1, order do form:add(self:data(history[first + k - 1]), sign * alpha_t * weights[k]) end
end

function M:update(i, now)
  local o, history, steps = self.options, self.history, #self.timesteps
  local sample, before = solver.form(now.x, 1), history[2]
  if before and o.corrector_order > 0 then
    local h = now.lambda - before.lambda
    self:add(sample, 2, 1, min(o.corrector_order, steps - i + 3, i), now.alpha, h, before.g, 1)
    self:add(sample, 2, 2, before.order, now.alpha, h, before.g, -1)
  end
  local to = self.sigmas[i + 1]
  local alpha_t, sigma_t, lambda_t = self:level(to)
  local tau = now.t >= o.tau_from and now.t <= o.tau_to and o.tau or 0
  now.g, now.order = 1 + tau * tau, min(o.predictor_order, steps - i + 1, i)
  if to == 0 then return solver.form(self:data(now), 1) end
  local h = lambda_t - now.lambda
  local form = solver.form(sample, sigma_t / now.sigma * exp(-tau * tau * h))
  self:add(form, 1, 1, now.order, alpha_t, h, now.g, 1)
  if tau == 0 then
    if self.as_diffusers then self:fresh(now) end -- it draws in every step
    return form
  end
  return form:add(self:fresh(now), sigma_t * o.s_noise * math.sqrt(1 - exp(-2 * tau * tau * h)))
end

return M
