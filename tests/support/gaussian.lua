--- Gaussian data, for which the optimal prediction, and therefore a sampler's ideal result, is known.
--
-- Every step and the prediction are linear in the initial noise, in each fresh noise and in the mean. So a sample is
-- a vector of these coefficients: [start, mean, noise 1, noise 2, ...], and its distribution is exact: nothing is
-- random.

local cr = require 'cr'
local known_noise = require 'tests.support.known_noise'
local schedulers = require 'cr.schedulers'

local M = { MEAN = 0.7, DEVIATION = 0.4 }

local WIDTH = 420 -- number of coefficients, more than any run here needs

-- alpha and sigma at a timestep that may be fractional.
local function level_at(alphas, t)
  local low = math.floor(t)
  if t == low then return math.sqrt(alphas[low]), math.sqrt(1 - alphas[low]) end
  local function ratio(i) return math.sqrt(1 / alphas[i] - 1) end
  local sigma = ratio(low) + (t - low) * (ratio(low + 1) - ratio(low))
  local alpha = 1 / math.sqrt(sigma * sigma + 1)
  return alpha, sigma * alpha
end

local function unit(place, value)
  local list = {}
  for i = 1, WIDTH do list[i] = i == place and value or 0 end
  return cr.tensor(list, { dtype = 'f64' })
end

local function with_unit_noise(fn)
  return known_noise.by(function(n) return unit(2 + n, 1) end, function() return cr.scope(fn) end)
end

local function deviation_at(alpha, sigma) return math.sqrt((alpha * M.DEVIATION) ^ 2 + sigma * sigma) end

-- The prediction of a network that knows the data; `mean` is the mean of the data, as a number or a tensor.
local function predict(x, mean, prediction, alpha, sigma)
  local off = (x - mean * alpha) * (1 / deviation_at(alpha, sigma) ^ 2)
  local eps, data = off * sigma, off * (alpha * M.DEVIATION ^ 2) + mean
  if prediction == 'epsilon' then return eps end
  return prediction == 'v' and eps * alpha - data * sigma or data
end

-- All steps. With `exact` the network gets noise levels instead of timesteps, which are rounded or interpolated.
local function walk(s, x, mean, exact)
  for i, t in ipairs(s.timesteps) do
    local alpha, sigma = level_at(s.alphas, t)
    if exact then alpha, sigma = s:begins_at(i) end
    x = cr.scope(function() return s:step(predict(x, mean, s.options.prediction, alpha, sigma), t, x) end)
  end
  return x
end

--- The samples that a scheduler produces from noise; they follow the data's distribution if the scheduler is good.
--- @param s Scheduler
--- @param noise Tensor
--- @return Tensor
function M.sample(s, noise) return walk(s, s:start(noise), M.MEAN) end

--- The mean and standard deviation of a scheduler's result, and the true ones at the noise level where it ends. It
--- starts with the distribution of the first level.
--- @param s Scheduler
--- @param ends_clean boolean whether it ends without noise, or else at the noise level of training step 0
--- @return number mean
--- @return number deviation
--- @return number true_mean
--- @return number true_deviation
function M.run(s, ends_clean)
  local x = with_unit_noise(function()
    local alpha, sigma = level_at(s.alphas, s.timesteps[1])
    local at_start = unit(1, deviation_at(alpha, sigma)) + unit(2, alpha * M.MEAN)
    return walk(s, at_start, unit(2, M.MEAN)):tolist()
  end)
  local variance = 0
  for i, c in ipairs(x) do if i ~= 2 then variance = variance + c * c end end
  local alpha, sigma = 1, 0
  if not ends_clean then alpha, sigma = level_at(s.alphas, 0) end
  return x[2], math.sqrt(variance), alpha * M.MEAN, deviation_at(alpha, sigma)
end

--- The error of mean and standard deviation, relative to the standard deviation.
--- @param spec string
--- @param options table
--- @return number
function M.error_of(spec, options)
  local s = schedulers.load(spec, options)
  local o = s.options
  local ends_clean = o.final_sigma == 'zero' or o.set_alpha_to_one or s.final_alpha == 1
    or (not o.final_sigma and s.sigmas ~= nil and s.sigmas[#s.sigmas] == 0)
  local mean, deviation, true_mean, true_deviation = M.run(s, ends_clean)
  return (math.abs(mean - true_mean) + math.abs(deviation - true_deviation)) / true_deviation
end

--- The same for levels from 8 to 0.2, evenly spaced in their logarithm. No quantity becomes small in such a run, so
--- that the error shows the method's order.
--- @param spec string without sigmas
--- @param steps integer
--- @return number
function M.error_between(spec, steps)
  local list = {}
  for i = 0, steps do list[i + 1] = ('%.17g'):format(8 * (0.2 / 8) ^ (i / steps)) end
  local s = schedulers.load(('%s%ssigmas=[%s]'):format(spec, spec:find ':' and ',' or ':', table.concat(list, ',')))
  local x = with_unit_noise(function()
    local alpha, sigma = s:begins_at(1)
    return walk(s, unit(1, deviation_at(alpha, sigma)) + unit(2, alpha * M.MEAN), unit(2, M.MEAN), true):tolist()
  end)
  local variance = 0
  for i, c in ipairs(x) do if i ~= 2 then variance = variance + c * c end end
  local alpha = 1 / math.sqrt(1 + 0.2 ^ 2)
  local deviation = deviation_at(alpha, 0.2 * alpha)
  return (math.abs(x[2] - alpha * M.MEAN) + math.abs(math.sqrt(variance) - deviation)) / deviation
end

return M
