--- UniPC, multistep, of order 1 to 5 (Zhao et al. 2023, arXiv 2302.04867): a predictor and a corrector in a unified
--- form. The corrector needs no further call of the network.
--
-- When the network has been called for the sample that the previous step predicted, the corrector improves that
-- sample. Both start from the same point, so the correction is a difference of coefficients, and predictor and
-- corrector together are one linear combination.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local M = solver.class {
  name = 'unipc', help = 'UniPC, predictor and corrector (Zhao et al. 2023)',
  least_steps = solver.least_steps,
  variants = { unipc = { order = 2 }, unipc_1 = { order = 1 }, unipc_3 = { order = 3 }, unipc_bh1 = { order = 2, solver = 'bh1' } },
  aliases = { unipc_2 = 'unipc' },
  known_as = { uni_pc = 'unipc', uni_pc_bh2 = 'unipc', uni_pc_bh1 = 'unipc_bh1' },
  diffusers = { class = 'UniPCMultistepScheduler',
    differs = "the last step of a formula changes nothing if final_sigma is sigma_min" },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.final_sigma, options.zero_snr,
    options.threshold, {
      { 'order', 2, 'number of predictions that a step combines', integer = true, min = 1, max = 5 },
      { 'solver', 'bh2', 'B(h): h, or exp(h) - 1', choices = { 'bh1', 'bh2' } },
      { 'predict_x0', true, 'expand the predicted sample instead of the noise' },
      { 'lower_order_final', true, 'lower the order of the last steps' },
      { 'disable_corrector', {}, 'list of steps, counted from 0, whose result is not corrected', items = { integer = true, min = 0 } },
    }),
  least_alpha = 2 ^ -24,
  formula_spreads = true,
}

function M:prepare(o)
  if o.final_sigma == 'zero' and o.order > 1 and not o.lower_order_final then
    error(self.name .. ': to end without noise the last step must have order 1; leave lower_order_final true', 0)
  end
  if o.final_sigma == 'zero' and not o.predict_x0 then
    error(self.name .. ': predict_x0 = false cannot end without noise; use final_sigma = "sigma_min"', 0)
  end
  self.timesteps, self.sigmas = self:spread(o, o.final_sigma)
  self.depth = o.order
  self.uncorrected = {}
  for _, step in ipairs(o.disable_corrector) do self.uncorrected[step] = true end
end

-- Solves a x = b for a small matrix, by elimination with pivots.
local function solve(a, b)
  local n = #b
  for k = 1, n do
    local best = k
    for r = k + 1, n do if math.abs(a[r][k]) > math.abs(a[best][k]) then best = r end end
    a[k], a[best], b[k], b[best] = a[best], a[k], b[best], b[k]
    for r = k + 1, n do
      local f = a[r][k] / a[k][k]
      for c = k, n do a[r][c] = a[r][c] - f * a[k][c] end
      b[r] = b[r] - f * b[k]
    end
  end
  local x = {}
  for k = n, 1, -1 do
    local sum = b[k]
    for c = k + 1, n do sum = sum - a[k][c] * x[c] end
    x[k] = sum / a[k][k]
  end
  return x
end

-- Solves the equations of theorem 3.1 of the paper for the first n points r.
local function shares(r, hh, scale, n)
  local a, b = {}, {}
  local phi, factorial = (math.exp(hh) - 1) / hh - 1, 1
  for i = 1, n do
    a[i] = {}
    for k = 1, n do a[i][k] = r[k] ^ (i - 1) end
    b[i] = phi * factorial / scale
    factorial = factorial * (i + 1)
    phi = phi / hh - 1 / factorial
  end
  return solve(a, b)
end

-- Returns as forms the terms that predictor and corrector add for a step of order p, from `from` (an index into the
-- history) to the level (alpha, sigma, lambda), without the terms that both share.
function M:parts(from, p, alpha, sigma, lambda)
  local o, history = self.options, self.history
  local start = history[from]
  local h = lambda - start.lambda
  local hh = o.predict_x0 and -h or h
  local scale = o.solver == 'bh1' and hh or math.exp(hh) - 1
  local outer = -(o.predict_x0 and alpha or sigma) * scale
  local function predicted(k) return o.predict_x0 and self:data(history[k]) or self:noise(history[k]) end

  local r, differences = {}, {}
  for k = 1, p - 1 do
    r[k] = (history[from + k].lambda - start.lambda) / h
    differences[k] = solver.form(predicted(from + k), 1 / r[k], predicted(from), -1 / r[k])
  end
  r[p] = 1
  local predictor = solver.form()
  local weights = p == 2 and { 0.5 } or p > 2 and shares(r, hh, scale, p - 1) or {}
  for k = 1, p - 1 do predictor:add(differences[k], outer * weights[k]) end
  if from == 1 then return predictor end

  local corrector = solver.form()
  weights = p == 1 and { 0.5 } or shares(r, hh, scale, p)
  for k = 1, p - 1 do corrector:add(differences[k], outer * weights[k]) end
  corrector:add(predicted(1), outer * weights[p]):add(predicted(from), -outer * weights[p])
  return predictor, corrector
end

function M:update(i, now)
  local o, history = self.options, self.history
  local sample = solver.form(now.x, 1)
  if history[2] and not self.uncorrected[i - 2] then
    local predictor, corrector = self:parts(2, history[2].order, now.alpha, now.sigma, now.lambda)
    sample:add(corrector, 1):add(predictor, -1)
  end

  local order = math.min(o.order, #history)
  if o.lower_order_final then order = math.min(order, #self.timesteps - i + 1) end
  now.order = order
  local alpha_t, sigma_t, lambda_t = self:level(self.sigmas[i + 1])
  local h = lambda_t - now.lambda
  local form = solver.form()
  if o.predict_x0 then
    form:add(sample, sigma_t / now.sigma):add(self:data(now), -alpha_t * (math.exp(-h) - 1))
  else
    form:add(sample, alpha_t / now.alpha):add(self:noise(now), -sigma_t * (math.exp(h) - 1))
  end
  if order == 1 or h == 0 then return form end
  return form:add(self:parts(1, order, alpha_t, sigma_t, lambda_t), 1)
end

return M
