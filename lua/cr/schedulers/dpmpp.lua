--- DPM-Solver++ and DPM-Solver, multistep, of order 1 to 3, and their SDE forms (Lu et al. 2022,
--- arXiv 2211.01095 and 2206.00927).
--
-- x satisfies a linear differential equation in lambda = log(alpha / sigma), whose inhomogeneous part is the
-- predicted sample ("++") or the predicted noise. That part is expanded around the current step with finite
-- differences of earlier predictions, and its integral over lambda is exact.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local exp, sqrt, expm1 = math.exp, math.sqrt, function(v) return math.exp(v) - 1 end

local variants = {}
for order = 1, 3 do
  variants[('dpmpp_%dm'):format(order)] = { order = order }
  variants[('dpmpp_%dm_sde'):format(order)] = { order = order, algorithm = 'sde-dpmsolver++' }
  variants[('dpm_%dm'):format(order)] = { order = order, algorithm = 'dpmsolver', final_sigma = 'sigma_min' }
  if order < 3 then
    variants[('dpm_%dm_sde'):format(order)] = { order = order, algorithm = 'sde-dpmsolver', final_sigma = 'sigma_min' }
  end
end

-- RES (Zhang et al. 2023, arXiv 2308.02157): the second order with the weights of the exact integral in every step.
variants.res_multistep = { order = 2, solver = 'heun', lower_order_final = false }

local M = solver.class {
  name = 'dpmpp', help = 'DPM-Solver++ and DPM-Solver, multistep (Lu et al. 2022)',
  variants = variants, least_steps = solver.least_steps,
  aliases = { dpmpp_1 = 'dpmpp_1m', dpmpp_2 = 'dpmpp_2m', dpmpp_3 = 'dpmpp_3m', dpm_1 = 'dpm_1m', dpm_2 = 'dpm_2m',
    dpm_3 = 'dpm_3m' },
  known_as = { dpm_solver = 'dpmpp_2m', edmdpmsolvermultistep = 'dpmpp_2m_karras',
    cosinedpmsolvermultistep = 'dpmpp_2m_sde', res_2m = 'res_multistep' },
  diffusers = { class = 'DPMSolverMultistepScheduler', name = 'dpmpp_2m',
    differs = "the third order of sde-dpmsolver++ has a term of the wrong sign; the last step of a formula changes nothing "
      .. 'if final_sigma is sigma_min' },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.final_sigma, options.zero_snr,
    options.threshold, options.noise, options.sde, {
      { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
      { 'sigmas', 'timesteps', 'noise levels: those of the timesteps, or a formula between the highest and the lowest',
        choices = { 'timesteps', 'karras', 'exponential', 'beta', 'lu', 'ays', 'gits' }, list = options.levels },
      { 'order', 2, 'number of predictions that a step combines', integer = true, min = 1, max = 3 },
      { 'algorithm', 'dpmsolver++', 'expands the predicted sample (++) or noise; sde adds fresh noise',
        choices = { 'dpmsolver++', 'dpmsolver', 'sde-dpmsolver++', 'sde-dpmsolver' } },
      { 'solver', 'midpoint', 'variant of the second order', choices = { 'midpoint', 'heun' } },
      { 'lower_order_final', true, 'lower the order of the last steps if there are fewer than 15 steps' },
      { 'euler_at_final', false, 'the last step has order 1' },
      { 'lambda_min_clipped', nil, 'leave out timesteps below this lambda', kind = 'number', infinite = true },
    }),
  least_alpha = 2 ^ -24,
  formula_spreads = true,
  cosine_unrounded = true,
}

function M:prepare(o)
  local data = o.algorithm:find '++' ~= nil
  if not data and o.final_sigma == 'zero' then
    error(('%s: algorithm %s cannot end without noise; use final_sigma = "sigma_min"'):format(self.name, o.algorithm), 0)
  end
  if o.algorithm == 'sde-dpmsolver' and o.order == 3 then
    error(self.name .. ': algorithm sde-dpmsolver has orders 1 and 2', 0)
  end
  M.check_noise(self, o)
  self.timesteps, self.sigmas = self:spread(o, o.final_sigma)
  if o.algorithm == 'sde-dpmsolver' and not self.as_diffusers then self:check_growth(o) end
  -- Order 3 uses two earlier steps, order 1 none.
  self.depth = o.order - 1
end

--- Fails for options of fresh noise in an algorithm without it. Singlestep methods use this check, too.
function M.check_noise(self, o)
  for _, key in ipairs { 'eta', 's_noise' } do
    if o[key] ~= 1 and not o.algorithm:find '^sde' then
      error(('%s: %s is for algorithms that add noise: use one with _sde in its name'):format(self.name, key), 0)
    end
  end
end

-- The largest allowed standard deviation of the sample, by order; it is 1 at the start.
local MOST_DEVIATION = { 16, 8 }

-- sde-dpmsolver is unstable in long steps: it adds more noise than the level allows and relies on later steps to
-- remove it. The growth is computed for pure noise that the network predicts exactly.
function M:check_growth(o)
  local deviation = 1
  for i = 1, o.steps do
    local alpha, sigma, lambda = self:level(self.sigmas[i])
    local alpha_t, sigma_t, lambda_t = self:level(self.sigmas[i + 1])
    local of_x, of_eps, _, _, noise = M.weights(o, lambda_t - lambda, alpha, sigma, alpha_t, sigma_t)
    deviation = sqrt((of_x + of_eps / sigma) ^ 2 * deviation ^ 2 + (noise * o.s_noise) ^ 2)
    if deviation > MOST_DEVIATION[o.order] then
      error(('%s: steps = %d is too few for algorithm sde-dpmsolver: noise grows by a factor of %.0f up to step %d; use more '
        .. 'steps or sde-dpmsolver++ (dpmpp_%dm_sde)'):format(self.name, o.steps, deviation, i, o.order), 0)
    end
  end
end

-- Returns the order of step i: the history starts empty, and the last steps may have lower orders.
function M:order_at(i)
  local o, steps = self.options, #self.timesteps
  local few = o.lower_order_final and steps < 15
  local order = math.min(o.order, #self.history)
  if i == steps and (o.euler_at_final or few or o.final_sigma == 'zero') then return 1 end
  if i == steps - 1 and few then return math.min(order, 2) end
  return order
end

--- Returns the coefficients of x, of the expansion's terms D0, D1, D2 and of fresh noise for a step of length h in
--- lambda, from (alpha, sigma) to (alpha_t, sigma_t). Singlestep methods use the same.
--- @param o table {algorithm, eta}
--- @return number, number, number, number, number
function M.weights(o, h, alpha, sigma, alpha_t, sigma_t, as_diffusers)
  local sde = o.algorithm:find '^sde' ~= nil
  local eta = sde and o.eta or 0
  if o.algorithm:find '++' then
    local g = (1 + eta) * h -- exponent of the decay of the sample
    -- h is infinite if a step ends without noise.
    local scale = eta > 0 and sigma_t / sigma * exp(-eta * h) or sigma_t / sigma
    local a = -expm1(-g)
    local noise = eta > 0 and sigma_t * sqrt(-expm1(-2 * eta * h)) or 0
    -- In diffusers' SDE form this term has the opposite sign, which keeps too much noise.
    local half = sde and as_diffusers and -0.5 or 0.5
    return scale, alpha_t * a, alpha_t * (1 - a / g), alpha_t * ((a - g) / (g * g) + half), noise
  end
  local k = 1 + eta
  local b = expm1(h)
  local noise = eta > 0 and sigma_t * sqrt(eta * expm1(2 * h)) or 0
  return alpha_t / alpha, -k * sigma_t * b, -k * sigma_t * (b / h - 1), -k * sigma_t * ((b - h) / (h * h) - 0.5), noise
end

function M:update(i, now)
  local o, history = self.options, self.history
  local alpha_t, sigma_t, lambda_t = self:level(self.sigmas[i + 1])
  local h = lambda_t - now.lambda
  local order = h == 0 and 1 or self:order_at(i)
  local data = o.algorithm:find '++' ~= nil
  local function predicted(k) return data and self:data(history[k]) or self:noise(history[k]) end
  local of_x, d0, d1, d2, of_noise = M.weights(o, h, now.alpha, now.sigma, alpha_t, sigma_t, self.as_diffusers)
  if order == 2 and o.solver == 'midpoint' then d1 = d0 / 2 end

  local form = solver.form(now.x, of_x, predicted(1), d0)
  if order >= 2 then
    local r0 = (now.lambda - history[2].lambda) / h
    local slope = solver.form(predicted(1), 1 / r0, predicted(2), -1 / r0)
    if order == 2 then
      form:add(slope, d1)
    else
      local r1 = (history[2].lambda - history[3].lambda) / h
      local before = solver.form(predicted(2), 1 / r1, predicted(3), -1 / r1)
      local bend = solver.form(slope, 1 / (r0 + r1), before, -1 / (r0 + r1))
      form:add(slope, d1):add(bend, d1 * r0 + d2)
    end
  end
  if of_noise ~= 0 then form:add(self:fresh(now), of_noise * o.s_noise) end
  return form
end

return M
