--- SA-Solver (Xue et al. 2023, arXiv 2309.05019): a stochastic Adams predictor-corrector method in lambda. The
--- corrector needs no call of the network.
--
-- tau sets the amount of noise in the equation; 0 is the deterministic one. The predicted sample is interpolated by a
-- polynomial in lambda through the last predictions, and for the corrector through the current one as well. The
-- integral with the exponential factor is exact. Predictor and corrector use the same noise and start, so a
-- correction is a difference of coefficients.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local exp, min = math.exp, math.min

local M = solver.class {
  name = 'sa_solver', help = 'SA-Solver: stochastic Adams, predictor and corrector (Xue et al. 2023)',
  variants = { sa_solver = {}, sa_solver_3 = { predictor_order = 3, corrector_order = 4 } }, least_steps = solver.least_steps,
  diffusers = { class = 'SASolverScheduler', name = 'sa_solver',
    differs = 'order 2 has an additional third-order term',
    defaults = { final_sigmas_type = 'sigma_min' } },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.final_sigma, options.threshold,
    options.noise, {
      { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
      { 'predictor_order', 2, 'number of predictions that the predictor combines', integer = true, min = 1, max = 3 },
      { 'corrector_order', 2, 'number of predictions that the corrector combines; 0 uses no corrector', integer = true, min = 0, max = 4 },
      { 'algorithm', 'data_prediction', 'interpolates the predicted sample', choices = { 'data_prediction' } },
      { 'tau', 1, 'amount of fresh noise; 0 adds none', min = 0, max = 3 },
      { 'tau_from', 200, 'lowest timestep with fresh noise', min = 0 },
      { 'tau_to', 800, 'highest timestep with fresh noise', min = 0 },
      { 's_noise', 1, 'standard deviation of the fresh noise', min = 0, max = 10 },
    }),
  formula_spreads = true,
}

function M:prepare(o)
  if o.corrector_order == 1 then error(self.name .. ': a corrector_order of 1 corrects nothing: use 0 for no corrector, or 2 to 4', 0) end
  self.timesteps, self.sigmas = self:spread(o, o.final_sigma)
  self.depth = math.max(o.predictor_order, o.corrector_order - 1)
end

-- Returns the weights of predictions at the points u (lambda relative to the beginning of the step) in the integral
-- of g exp(-g (h - u)) over the step.
local function shares(u, h, g)
  local moments = { 1 - exp(-g * h) }
  for k = 1, #u - 1 do moments[k + 1] = h ^ k - k / g * moments[k] end
  local list = {}
  for j = 1, #u do
    local polynomial = { 1 } -- coefficients, from the constant on
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

-- Adds the data term of the step that begins at history[start], interpolated through `order` predictions from
-- history[first] on.
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
    if self.as_diffusers then self:fresh(now) end -- diffusers draws noise in every step
    return form
  end
  return form:add(self:fresh(now), sigma_t * o.s_noise * math.sqrt(1 - exp(-2 * tau * tau * h)))
end

return M
