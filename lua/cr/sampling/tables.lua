--- Tables that schedulers share: alphas_cumprod, lists of timesteps, and noise levels.
--
-- They are computed in float64, with the rounding of diffusers' NumPy code so that timesteps agree exactly. alphas[t]
-- is alphas_cumprod, the signal's share of the power at training step t (from 0). sigma is the ratio of noise to
-- signal, sqrt((1 - alphas) / alphas).

local incomplete_beta = require 'cr.sampling.incomplete_beta'

local M = {}

local floor, sqrt, exp, log = math.floor, math.sqrt, math.exp, math.log

--- Rounds half to even.
function M.round(v)
  local low = floor(v)
  local rest = v - low
  if rest < 0.5 or (rest == 0.5 and low % 2 == 0) then return low end
  return low + 1
end

-- A smaller share of the signal's power counts as none, since the noise level would exceed a million.
local LEAST_ALPHA = 1e-12

local function betas_of(o)
  local n, list = o.train_steps, {}
  if o.betas then
    if #o.betas ~= n then error(('%d betas for %d training steps'):format(#o.betas, n), 0) end
    for i = 0, n - 1 do list[i] = o.betas[i + 1] end
  elseif o.beta_schedule == 'squaredcos_cap_v2' then
    -- The cosine schedule of Nichol and Dhariwal 2021, with betas capped at 0.999.
    local function share(t) return math.cos((t + 0.008) / 1.008 * math.pi / 2) ^ 2 end
    for i = 0, n - 1 do list[i] = math.min(1 - share((i + 1) / n) / share(i / n), 0.999) end
  else
    local first, last = o.beta_start, o.beta_end
    local square = o.beta_schedule == 'scaled_linear'
    if square then first, last = sqrt(first), sqrt(last) end
    for i = 0, n - 1 do
      local beta = n > 1 and first + (last - first) * (i / (n - 1)) or first
      list[i] = square and beta * beta or beta
    end
  end
  return list
end

--- Returns alphas_cumprod[0 .. train_steps - 1].
--- @param o table options of cr.sampling.options.schedule, and zero_snr
--- @param least number? the last value with zero_snr (0)
function M.alphas(o, least)
  local n, betas = o.train_steps, betas_of(o)
  local alphas, product = {}, 1
  for i = 0, n - 1 do
    product = product * (1 - betas[i])
    alphas[i] = product
  end
  if o.zero_snr then
    -- Lin et al. 2023, algorithm 1: the square roots are shifted so that the last is 0, and scaled so that the first
    -- is unchanged.
    local head, tail = sqrt(alphas[0]), sqrt(alphas[n - 1])
    for i = 0, n - 1 do
      local root = (sqrt(alphas[i]) - tail) * (head / (head - tail))
      alphas[i] = root * root
    end
    alphas[n - 1] = least or 0
  end
  for i = 0, n - 1 do
    if not (alphas[i] >= LEAST_ALPHA or o.zero_snr and i == n - 1) then
      error(('the betas leave no signal at training step %d of %d: a smaller beta_end or fewer training steps would'):format(i,
        n), 0)
    end
  end
  return alphas
end

function M.sigma_of(alpha) return sqrt((1 - alpha) / alpha) end

local function trailing(n, steps)
  -- Rounds as NumPy's arange(n, 0, -n / steps), which uses the difference of its first two elements.
  local list, delta = {}, (n - n / steps) - n
  for i = 1, steps do list[i] = M.round(n + (i - 1) * delta) - 1 end
  return list
end

--- Returns timesteps of DDIM and the methods in sigma, for which 'linspace' includes both ends.
--- @param o table {steps, train_steps, spacing, steps_offset}
--- @param whole boolean round the timesteps of 'linspace'
--- @param as_diffusers boolean? a single step of 'linspace' begins at timestep 0, as NumPy's does, instead of at the noisiest
--- @return number[]
function M.timesteps(o, whole, as_diffusers)
  local steps, n, list = o.steps, o.train_steps, {}
  if o.spacing == 'trailing' then return trailing(n, steps) end
  if o.spacing == 'leading' then
    local ratio = floor(n / steps)
    for i = 1, steps do list[i] = (steps - i) * ratio + o.steps_offset end
  else
    local step = steps > 1 and (n - 1) / (steps - 1) or 0
    for i = 1, steps do
      local t = i == 1 and (steps > 1 or not as_diffusers) and n - 1 or (steps - i) * step
      list[i] = whole and M.round(t) or t
    end
  end
  return list
end

--- Returns timesteps of the DPM-Solver family: one more than the steps is spaced, and the last is dropped.
--- @param o table {steps, train_steps, spacing, steps_offset}
--- @param count integer? how many training steps are used, from the first on
--- @return integer[]
function M.timesteps_but_last(o, count)
  local steps, n, list = o.steps, count or o.train_steps, {}
  if o.spacing == 'trailing' then
    local ratio = o.train_steps / steps
    local delta = (n - ratio) - n
    for i = 1, steps do list[i] = M.round(n + (i - 1) * delta) - 1 end
  elseif o.spacing == 'leading' then
    local ratio = floor(n / (steps + 1))
    for i = 1, steps do list[i] = (steps + 1 - i) * ratio + o.steps_offset end
  else
    local step = (n - 1) / steps
    for i = 1, steps do list[i] = i == 1 and n - 1 or M.round((steps + 1 - i) * step) end
  end
  return list
end

--- Interpolates a table at a fractional timestep.
function M.interpolate(values, last, t)
  if t <= 0 then return values[0] end
  if t >= last then return values[last] end
  local low = floor(t)
  return values[low] + (t - low) * (values[low + 1] - values[low])
end

--- Returns the coefficients of signal and noise at a fractional timestep.
--- @param alphas table
--- @param t number
--- @return number alpha
--- @return number sigma
function M.level_at(alphas, t)
  local last = #alphas
  t = math.max(0, math.min(t, last))
  if t == floor(t) then return sqrt(alphas[t]), sqrt(1 - alphas[t]) end
  local low = floor(t)
  local a, b = M.sigma_of(alphas[low]), M.sigma_of(alphas[low + 1])
  local sigma = a + (t - low) * (b - a)
  local alpha = 1 / sqrt(sigma * sigma + 1)
  return alpha, sigma * alpha
end

--- Returns the timestep with the noise level sigma, by linear interpolation of the logarithm.
--- @param alphas table
--- @param last integer the last training step
function M.timestep_of(sigma, alphas, last)
  local wanted = log(math.max(sigma, 1e-10))
  local function level(i) return log(M.sigma_of(alphas[i])) end
  local low, high = 0, last
  -- Finds the last level at or below sigma by bisection; levels increase with t.
  while high > low do
    local middle = math.ceil((low + high) / 2)
    if level(middle) <= wanted then low = middle else high = middle - 1 end
  end
  low = math.min(low, last - 1)
  local a, b = level(low), level(low + 1)
  local w = math.max(0, math.min(1, (a - wanted) / (a - b)))
  return (1 - w) * low + w * (low + 1)
end

local RHO = 7 -- Karras et al. 2022

local formulas = {}

-- Karras et al. 2022, equation 5.
function formulas.karras(high, low, at)
  local a, b = high ^ (1 / RHO), low ^ (1 / RHO)
  return (a + at * (b - a)) ^ RHO
end

function formulas.exponential(high, low, at) return exp(log(high) + at * (log(low) - log(high))) end

-- Lee et al. 2024 ("Beta Sampling is All You Need").
function formulas.beta(high, low, at) return low + incomplete_beta.inverse(1 - at, 0.6, 0.6) * (high - low) end

-- Lu et al. 2022: uniform in lambda.
function formulas.lu(high, low, at)
  local a, b = log(high), log(low)
  return exp(a + at * (b - a))
end

--- Returns n noise levels by a formula from `high` to `low`, in decreasing order.
--- @param kind 'karras'|'exponential'|'beta'|'lu'
--- @param n integer
--- @return number[]
function M.formula(kind, high, low, n)
  local list = {}
  for i = 1, n do list[i] = formulas[kind](high, low, n > 1 and (i - 1) / (n - 1) or 0) end
  return list
end

M.searched = require 'cr.sampling.searched'

--- Returns optimized noise levels for n steps in decreasing order, including the end of the last step. For a number
--- of steps without a table they are interpolated from the largest table, linearly in the logarithm, as the tables'
--- authors do.
--- @param kind string
--- @param n integer
--- @return number[] n + 1
function M.from_table(kind, n)
  local own, list = M.searched[kind], {}
  local most = 0
  for steps in pairs(own) do most = math.max(most, steps) end
  local known = own[n] or own[most]
  for i = 0, n do
    local at = i / n * (#known - 1)
    local low = math.min(floor(at), #known - 2)
    local a, b = log(known[low + 1]), log(known[low + 2])
    list[i + 1] = exp(a + (at - low) * (b - a))
  end
  return list
end

--- Returns listed steps: their timesteps, and their noise levels including the end of the last step. Returns nothing
--- if the options have no list.
--- @param name string names the scheduler in messages
--- @param o table {timesteps or sigmas}
--- @param alphas table
--- @param ends 'zero'|'sigma_min' the final level of listed timesteps
--- @return number[]? timesteps
--- @return number[]? sigmas
function M.listed(name, o, alphas, ends)
  local last = o.train_steps - 1
  local function falls(what, list, least)
    if #list < least then error(('%s: %s is a list of %d, but it needs at least %d'):format(name, what, #list, least), 0) end
    for i = 2, #list do
      if list[i] >= list[i - 1] then
        error(('%s: %s must decrease: number %d is %g, after %g'):format(name, what, i, list[i], list[i - 1]), 0)
      end
    end
  end
  local timesteps, sigmas = {}, {}
  if o.timesteps then
    falls('timesteps', o.timesteps, 1)
    if o.timesteps[1] > last then
      error(('%s: timesteps begin at %g, past the last training step %d'):format(name, o.timesteps[1], last), 0)
    end
    for i, t in ipairs(o.timesteps) do
      local alpha, sigma = M.level_at(alphas, t)
      timesteps[i], sigmas[i] = t, sigma / alpha
    end
    sigmas[#sigmas + 1] = ends == 'sigma_min' and M.sigma_of(alphas[0]) or 0
    return timesteps, sigmas
  end
  if type(o.sigmas) ~= 'table' then return end
  falls('sigmas', o.sigmas, 2)
  for i, sigma in ipairs(o.sigmas) do
    sigmas[i] = sigma
    if i < #o.sigmas then timesteps[i] = M.timestep_of(sigma, alphas, last) end
  end
  return timesteps, sigmas
end

--- The same for methods whose steps are training steps: timesteps are rounded to the nearest one.
--- @return integer[]? timesteps
function M.listed_whole(name, o, alphas)
  local timesteps = M.listed(name, o, alphas, 'zero')
  if not timesteps then return end
  for i, t in ipairs(timesteps) do timesteps[i] = M.round(t) end
  return M.check(name, o, timesteps)
end

--- Fails if timesteps are not distinct training steps.
function M.check(name, o, timesteps)
  local last = o.train_steps - 1
  if timesteps[1] > last then
    error(('%s: %d steps with offset %d begin at %d, past the last training step %d'):format(name, o.steps,
      o.steps_offset or 0, timesteps[1], last), 0)
  end
  for i, t in ipairs(timesteps) do
    if t < 0 then
      error(('%s: %d steps do not fit into the training steps: step %d would be at %d'):format(name, o.steps,
        i, t), 0)
    elseif i > 1 and t >= timesteps[i - 1] then
      error(('%s: %d steps are too many for this spacing: steps %d and %d are both at timestep %d'):format(name, o.steps,
        i - 1, i, t), 0)
    end
  end
  return timesteps
end

return M
