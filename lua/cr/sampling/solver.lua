--- The base class of schedulers with a history: it keeps steps in order, holds the state of a window, and computes
--- linear combinations.
--
-- A scheduler's file makes a class of its options (`solver.class`) and gives it two methods: `prepare(o)` sets
-- self.timesteps and the noise levels, `update(i, now)` returns the i-th step's result as a form. A form is an
-- unevaluated linear combination of tensors: the sample and the predictions of this step and earlier ones, with
-- coefficients that are summed in float64. So each step is one fused operation, whatever the method.
-- scripts/examples/my_solver.lua is an example to copy.
--
--   forms    solver.form(a, 0.5, b, 2) is 0.5 a + 2 b; form:add(what, c) adds a tensor or another form
--   now      this step: x, m (the network's output), t, alpha, sigma, lambda; self:data(now) and self:noise(now) are the
--            predicted sample and noise as forms, whatever the network predicts
--   history  self.history holds this step and the `depth` steps before it, newest first, each like `now`. At the beginning of
--            a window there are fewer, so the order of a step is math.min(order, #self.history)
--   levels   step i goes from self.sigmas[i] to self.sigmas[i + 1], as the ratio of noise to signal; self:level(sigma) returns
--            alpha, sigma, lambda for a level
--   spacing  by default, without its own prepare(), a class has the steps of the methods in sigma (options.spacing,
--            options.sigmas, options.steps: lists and begin_index), whose 'linspace' ends with training step 0, which has
--            hardly any noise. self:spread(o, o.final_sigma) gives the steps of the DPM-Solver family, which end one step
--            earlier. A method with another number of levels than of calls passes
--            setmetatable({ steps = 2 * o.steps }, { __index = o })
--   noise    self:fresh(now) is normal noise (options.noise has its generator, options.sde eta and s_noise);
--            solver.ancestral(from, to, eta) returns the lower level of an ancestral step and the amount of fresh noise
--   calls    cr.sampling.pairs is for methods with two network calls in a step, such as heun.lua and kdpm2.lua
--   derived  solver.extend(base, ...) is another class with some parts changed
--
-- Samples are variance-preserving everywhere: x = alpha x0 + sigma noise with alpha^2 + sigma^2 = 1. Methods that are
-- formulated for x / alpha (Euler, Heun, LMS) include that scale in their coefficients, so the network's input is
-- never scaled by a separate operation.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local hold = require 'cr.sampling.held'.hold
local options = require 'cr.sampling.options'
local tables = require 'cr.sampling.tables'

local M = {}

-- ---- forms -----------------------------------------------------------------------------------

local Form = {}
Form.__index = Form

--- Makes a form from pairs (term, coefficient), or an empty one.
function M.form(...)
  local form = setmetatable({ tensors = {}, weights = {} }, Form)
  for i = 1, select('#', ...), 2 do form:add((select(i, ...)), (select(i + 1, ...))) end
  return form
end

--- Adds c times a tensor, or c times another form.
--- @param what Tensor|table
--- @param c number
function Form:add(what, c)
  if c == 0 then return self end
  if getmetatable(what) == Form then
    for i, t in ipairs(what.tensors) do self:add(t, c * what.weights[i]) end
    return self
  end
  for i, t in ipairs(self.tensors) do
    if rawequal(t, what) then
      self.weights[i] = self.weights[i] + c
      return self
    end
  end
  self.tensors[#self.tensors + 1], self.weights[#self.weights + 1] = what, c
  return self
end

--- Evaluates the form in one operation.
function Form:value() return cr.lincomb(self.tensors, self.weights) end

-- ---- a window's state ------------------------------------------------------------------------

local function drop(entry)
  for _, t in pairs(entry.held) do t:free() end
end

--- Fails for invalid arguments of a step, before noise is drawn or any state changes.
--- @param name string names the scheduler in messages
--- @param prediction any
--- @param x any
--- @param noise any
function M.check_step(name, prediction, x, noise)
  local function want(what, v)
    if not cr.is_tensor(v) then
      error(('%s: step needs %s as a tensor, not %s: s:step(prediction, t, x)'):format(name, what,
        v == nil and 'nil' or 'a ' .. type(v)), 0)
    end
  end
  want("the network's prediction", prediction)
  want('the sample', x)
  if noise ~= nil then want('the noise', noise) end
end

local function shape_of(t) return '[' .. table.concat(t.shape, ' ') .. ']' end

--- Fails if shapes or devices differ within a step, or from earlier steps of the window.
--- @param name string names the scheduler in messages
--- @param x Tensor
--- @param others table {name = Tensor} in order: { 'the prediction', prediction }, ...
function M.check_alike(name, x, others)
  for _, other in ipairs(others) do
    local what, t = other[1], other[2]
    if shape_of(t) ~= shape_of(x) or t.device ~= x.device then
      error(('%s: the sample is %s on %s, but %s is %s on %s'):format(name, shape_of(x), x.device, what, shape_of(t),
        t.device), 0)
    end
  end
end

-- Returns the quantile q of the elements with linear interpolation, or nil if one is nan.
local function quantile(x, q)
  local values = x:to 'f64':to 'cpu':contiguous()
  local n, p, list = values:numel(), values:pointer(), {}
  for i = 1, n do
    list[i] = math.abs(p[i - 1])
    if list[i] ~= list[i] then return nil end -- a nan cannot be sorted
  end
  table.sort(list)
  local at = q * (n - 1)
  local low = math.floor(at)
  local a, b = list[low + 1], list[math.min(low + 2, n)]
  return a + (at - low) * (b - a)
end

-- Dynamic thresholding (Saharia et al. 2022, section 2.3), separately for each sample of the batch.
local function dynamic_threshold(x0, o)
  local parts = {}
  for b = 1, x0:size(1) do
    local part = x0:narrow(1, b, 1)
    local s = quantile(part, o.threshold_ratio)
    s = s and math.min(math.max(1, s), o.sample_max_value)
    parts[b] = s and part:clamp(-s, s) / s or part
  end
  return #parts > 1 and cr.cat(parts, 1) or parts[1]
end

--- Returns whether the predicted sample is clamped before it is used, which makes a step non-linear.
function M.bounded(o) return o.thresholding or o.clip_sample or false end

--- Clamps the predicted sample as the options say.
function M.bound(x0, o)
  if o.thresholding then return dynamic_threshold(x0, o) end
  return x0:clamp(-o.clip_range, o.clip_range)
end

--- Draws normal noise for a channels-last x, in the order in which torch draws it for channels-first.
function M.draw_like(x, generator)
  local shape = x.shape
  local n = #shape
  local how = { generator = generator, dtype = x.dtype, device = x.device }
  if n < 4 then return cr.randn(shape, how) end
  local order = { shape[1], shape[n] }
  local back = { 1 }
  for i = 2, n - 1 do
    order[i + 1] = shape[i]
    back[i] = i + 1
  end
  back[n] = 2
  return cr.randn(order, how):permute(unpack(back)):contiguous()
end

--- Returns the coefficients of x and of the network's output that give the predicted sample.
--- @return number of_x, number of_m
function M.data_weights(prediction, alpha, sigma)
  if prediction == 'epsilon' then return 1 / alpha, -sigma / alpha end
  if prediction == 'v' then return alpha, -sigma end
  return 0, 1
end

--- Returns the coefficients of x and of the network's output that give the predicted noise.
--- @return number of_x, number of_m
function M.noise_weights(prediction, alpha, sigma)
  if prediction == 'epsilon' then return 0, 1 end
  if prediction == 'v' then return sigma, alpha end
  return 1 / sigma, -alpha / sigma
end

--- Splits a step into one to a lower noise level and fresh noise that raises it to the target level (k-diffusion's
--- "ancestral" step).
--- @param from number
--- @param to number
--- @param eta number 0 adds no noise, 1 adds as much as DDPM
--- @return number down the lower level
--- @return number up the standard deviation of the fresh noise
function M.ancestral(from, to, eta)
  local up = math.min(to, eta * math.sqrt(math.max(0, to * to * (from * from - to * to) / (from * from))))
  return math.sqrt(to * to - up * up), up
end

--- Returns the smallest number of steps that gives a picture without patches, as measured on the small model.
--- Formulas have longer first steps than the timesteps: four steps of dpmpp_2m_karras reach 20 dB, five reach 36 dB.
--- @param o table
--- @return integer
function M.least_steps(o) return (o.sigmas or 'timesteps') == 'timesteps' and 3 or 5 end

-- ---- the class -------------------------------------------------------------------------------

--- @class Solver
--- @field timesteps number[]
--- @field sigmas number[] noise levels, one more than steps
--- @field init_noise_sigma number factor of the initial noise
--- @field history table[] newest first; each entry is one step: x, m, alpha, sigma, lambda
--- @field depth integer number of earlier steps that update() uses
--- @field name string as the user wrote it
--- @field options table all options with their values
--- @field alphas number[] alphas_cumprod by training step
--- @field as_diffusers boolean whether it reproduces diffusers' numbers
--- @field generator Generator? generator of its noise
--- @field cosine_unrounded boolean?
--- @field plan table? for methods with two calls in a step (cr.sampling.pairs)
--- @field calls table? of those
--- @field levels table? of those
--- @field update function its step
local Solver = {}

--- Returns alpha, sigma and lambda (half the logarithm of the signal-to-noise ratio) at a noise level.
function Solver:level(sigma)
  local alpha = 1 / math.sqrt(sigma * sigma + 1)
  return alpha, sigma * alpha, -math.log(sigma)
end

--- Returns alpha, sigma and lambda of the level at which the network is called in step i.
function Solver:begins_at(i)
  if self.sigmas then return self:level(self.sigmas[i]) end
  local a = self.alphas[self.timesteps[i]]
  return math.sqrt(a), math.sqrt(1 - a), math.log(a / (1 - a)) / 2
end

--- Returns the predicted sample of a step as a form.
function Solver:data(entry)
  if entry.held.data then return M.form(entry.held.data, 1) end
  local of_x, of_m = M.data_weights(self.options.prediction, entry.alpha, entry.sigma)
  local form = M.form(entry.x, of_x, entry.m, of_m)
  if not M.bounded(self.options) then return form end
  entry.held.data = cr.keep(cr.scope(function() return M.bound(form:value(), self.options) end))
  return M.form(entry.held.data, 1)
end

--- Returns the predicted noise of a step as a form.
function Solver:noise(entry)
  if M.bounded(self.options) then
    return M.form(entry.x, 1 / entry.sigma, self:data(entry), -entry.alpha / entry.sigma)
  end
  local of_x, of_m = M.noise_weights(self.options.prediction, entry.alpha, entry.sigma)
  return M.form(entry.x, of_x, entry.m, of_m)
end

--- Stores a tensor in an entry as long as the entry is in the history.
function Solver:keep(entry, name, tensor)
  entry.held[name] = hold(tensor)
  return entry.held[name]
end

--- Returns fresh noise of x's shape, or the noise that was given to the step.
function Solver:fresh(entry) return entry.fresh or M.draw_like(entry.x, self.generator) end

--- Makes one step and returns x at the next timestep.
--- @param prediction Tensor what the network gave for x at t
--- @param t number the next of self.timesteps
--- @param x Tensor
--- @param noise Tensor? standard normal noise for methods that add noise, instead of drawing it
--- @return Tensor
function Solver:step(prediction, t, x, noise)
  local i = self.index + 1
  if t ~= self.timesteps[i] then
    error(('%s: step %d is at timestep %s, not %s; call reset() to start a new window'):format(self.name, i,
      tostring(self.timesteps[i]), tostring(t)), 0)
  end
  M.check_step(self.name, prediction, x, noise)
  local before = self.history
  M.check_alike(self.name, x, { { 'the prediction', prediction }, noise and { 'the noise', noise } })
  if before[1] then M.check_alike(self.name, x, { { 'that of the previous step (call reset() to start a new window)', before[1].x } }) end
  local entry = { t = t, fresh = noise, held = {} }
  local ok, y = pcall(cr.scope, function()
    entry.x = hold(x)
    entry.held[1] = entry.x
    entry.m = hold(prediction)
    entry.held[2] = entry.m
    entry.alpha, entry.sigma, entry.lambda = self:begins_at(i)
    self.history = { entry, unpack(before) }
    return self:update(i, entry):value()
  end)
  entry.fresh = nil
  if not ok then -- the state is restored, so that the step can be repeated
    self.history = before
    drop(entry)
    error(y, 0)
  end
  while #self.history > self.depth do drop(table.remove(self.history)) end
  self.index = i
  if i == #self.timesteps then self:reset() end
  return y
end

--- Drops the state of the window. It is needed only if the window was not finished.
function Solver:reset()
  for _, entry in ipairs(self.history) do drop(entry) end
  self.history, self.index = {}, 0
end

--- Returns the network's input for x, which is x itself.
function Solver:scale_input(x) return x end

-- ---- noise levels ----------------------------------------------------------------------------

-- Returns the levels of a formula and the final level. If the final level is the lowest one, the last step ends at
-- the last level of the formula. In diffusers that step also begins there and so changes nothing.
function Solver:formula(o, high, low, ends)
  -- A single step begins at the highest level, and the lowest matters only if it is given.
  if not tables.searched[o.sigmas] and high <= low and (o.steps > 1 or o.sigma_min) then
    error(('%s: the highest noise level %g is not above the lowest, %g: see sigma_min and sigma_max'):format(self.name, high,
      low), 0)
  end
  local least = ends == 'sigma_min'
  if tables.searched[o.sigmas] then
    local sigmas = tables.from_table(o.sigmas, o.steps)
    if not least then sigmas[o.steps + 1] = 0 end
    return sigmas
  end
  local sigmas = tables.formula(o.sigmas, high, low, o.steps + (least and not self.as_diffusers and 1 or 0))
  sigmas[o.steps + 1] = sigmas[o.steps + 1] or least and sigmas[o.steps] or 0
  return sigmas
end

-- Returns the limits of the formula from the options, or those of training.
local function limits(o, high, low) return o.sigma_max or high, o.sigma_min or low end

--- Removes the first steps if the option begin_index says so.
--- @param timesteps number[]
--- @param sigmas number[]?
--- @return number[] timesteps
--- @return number[]? sigmas
function Solver:cut(timesteps, sigmas)
  local o = self.options
  local left_out = o.begin_index or 0
  if left_out == 0 then return timesteps, sigmas end
  if left_out >= #timesteps then
    error(('%s: begin_index = %d skips all %d steps'):format(self.name, left_out, #timesteps), 0)
  end
  o.steps = #timesteps - left_out
  return { unpack(timesteps, left_out + 1) }, sigmas and { unpack(sigmas, left_out + 1) }
end

--- Returns timesteps and noise levels of the DPM-Solver family from the options. The last level is the end of the
--- last step.
--- @param o table
--- @param ends 'zero'|'sigma_min'
function Solver:spread(o, ends)
  local alphas, last = self.alphas, o.train_steps - 1
  local listed, levels = tables.listed(self.name, o, alphas, ends)
  if listed then return self:cut(listed, levels) end
  local least = tables.sigma_of(alphas[0])
  local count = o.train_steps
  if o.lambda_min_clipped then
    for t = last, 0, -1 do
      if -math.log(tables.sigma_of(alphas[t])) >= o.lambda_min_clipped then break end
      count = count - 1
    end
  end
  if o.sigmas == 'timesteps' then
    local timesteps, sigmas = tables.check(self.name, o, tables.timesteps_but_last(o, count)), {}
    for i, t in ipairs(timesteps) do sigmas[i] = tables.sigma_of(alphas[t]) end
    sigmas[o.steps + 1] = ends == 'sigma_min' and least or 0
    return self:cut(timesteps, sigmas)
  end
  -- diffusers truncates where it does not round.
  local rounded = (o.sigmas == 'karras' or o.sigmas == 'lu' or tables.searched[o.sigmas] ~= nil)
    and not (self.cosine_unrounded and o.beta_schedule == 'squaredcos_cap_v2')
  local high, low = limits(o, tables.sigma_of(alphas[last]), least)
  local timesteps, sigmas = {}, self:formula(o, high, low, ends)
  for i = 1, o.steps do
    local t = tables.timestep_of(sigmas[i], alphas, last)
    timesteps[i] = rounded and tables.round(t) or math.floor(t)
  end
  return self:cut(timesteps, sigmas)
end

--- Returns timesteps and noise levels of the methods in sigma (Euler, Heun, LMS). The last level is the end of the
--- last step.
function Solver:spread_sigma(o)
  local alphas, last, steps = self.alphas, o.train_steps - 1, o.steps
  local ends = o.final_sigma or 'zero'
  local listed, listed_levels = tables.listed(self.name, o, alphas, ends)
  if listed then return self:cut(listed, listed_levels) end
  local least, levels, sigmas = tables.sigma_of(alphas[0]), {}, {}
  -- 'linspace' includes training step 0, the lowest level, so the last step ends there.
  local shared = ends == 'sigma_min' and o.spacing == 'linspace' and not self.as_diffusers
  local spread = shared and setmetatable({ steps = steps + 1 }, { __index = o }) or o
  local timesteps = tables.check(self.name, spread, tables.timesteps(spread, false, self.as_diffusers))
  for t = 0, last do levels[t] = tables.sigma_of(alphas[t]) end
  for i, t in ipairs(timesteps) do sigmas[i] = tables.interpolate(levels, last, t) end
  if o.sigmas and o.sigmas ~= 'timesteps' then
    local high, low = limits(o, sigmas[1], ends == 'sigma_min' and not self.as_diffusers and least or sigmas[#sigmas])
    sigmas = self:formula(o, high, low, ends)
    for i = 1, steps do timesteps[i] = tables.timestep_of(sigmas[i], alphas, last) end
  end
  timesteps[steps + 1] = nil
  sigmas[steps + 1] = sigmas[steps + 1] or ends == 'sigma_min' and least or 0
  return self:cut(timesteps, sigmas)
end

--- Returns the factor that gives the initial noise the variance of the first level: diffusers' init_noise_sigma,
--- scaled as samples are scaled here.
function Solver:first_scale(o)
  if o.spacing == 'leading' then return 1 end
  local _, sigma = self:level(self.sigmas[1])
  return sigma
end

--- Fails if the first step is undefined, or if a step ends at the level where it begins.
function Solver:check_levels(o)
  local first = self.timesteps[1]
  local share = first >= o.train_steps - 1 and self.alphas[o.train_steps - 1]
  if o.zero_snr and o.prediction == 'epsilon' and share and (share == 0 or not self.as_diffusers) then
    error(self.name .. ': with zero_snr the first step is pure noise, where a prediction of epsilon carries no information; '
      .. 'use prediction "v" or "sample"', 0)
  end
  local sigmas = self.sigmas or {}
  for i = 2, #sigmas do
    -- In diffusers the last step may end where it begins.
    local level = sigmas[i] < sigmas[i - 1] or self.as_diffusers and i == #sigmas and sigmas[i] == sigmas[i - 1]
    if not level then
      error(('%s: %d steps are too many: step %d would end at the noise level at which it begins'):format(self.name, o.steps,
        i - 1), 0)
    end
  end
end

--- The default prepare(), for methods in sigma. Other methods define their own.
function Solver:prepare(o)
  self.timesteps, self.sigmas = self:spread_sigma(o)
  self.init_noise_sigma = self:first_scale(o)
end

local any = arguments.any
arguments.methods(Solver, 'scheduler', { step = { any, any, any, any }, reset = {}, scale_input = { any } }, 'any')

--- Makes the class of a scheduler: a table with `new(options)`. Its file adds update(), and prepare() unless the
--- method works in sigma.
---
---     local M = solver.class { name = 'mine', help = 'Euler', options = options.join(options.schedule, options.spacing), depth = 0 }
---     function M:update(i, now) return solver.form(self:data(now), 1, self:noise(now), self.sigmas[i + 1]) end
--- @param declared table {name, help, options, variants, diffusers = {class, defaults, name, differs}, depth,
---   least_alpha, least_steps}
--- @return table
function M.class(declared)
  local class = declared
  class.__index = class
  for key, method in pairs(Solver) do if class[key] == nil then class[key] = method end end

  --- Makes a scheduler.
  --- @param given table? options by our names or diffusers'
  --- @param as table? {name = the name in messages, diffusers = true: reproduce diffusers' numbers where they differ
  ---   from the method}
  function class.new(given, as)
    local name = as and as.name or declared.name
    local o = options.parse(name, declared.options, given)
    local self = setmetatable({ name = name, options = o, history = {}, index = 0, init_noise_sigma = 1 }, class)
    self.as_diffusers = as and as.diffusers or false
    if not self.as_diffusers then options.check_together(name, o) end
    self.generator = o.generator
    o.generator = nil
    local ok, err = pcall(function() self.alphas = tables.alphas(o, declared.least_alpha) end)
    if not ok then error(('%s: %s'):format(name, err), 0) end
    self:prepare(o)
    self:check_levels(o)
    return self
  end

  return arguments.guard((declared.name or 'scheduler') .. '.', class, { new = { any, any } })
end

--- Derives the class of a scheduler from another. It inherits methods and options that it does not define. Names
--- (variants, aliases, diffusers) are not inherited.
---
---     local heun = require 'cr.schedulers.heun'
---     local M = solver.extend(heun, { name = 'mine', help = '...', options = { { 'gain', 1, '...' } } })
---     function M:update(i, now) return solver.form(heun.update(self, i, now), self.options.gain) end
--- @param base table a class
--- @param declared table as for class(); `options` are added to those of `base` or replace them by name
--- @return table
function M.extend(base, declared)
  local own = { variants = true, aliases = true, known_as = true, diffusers = true, new = true, __index = true, help = true }
  local class = {}
  for key, value in pairs(base) do if not own[key] then class[key] = value end end
  for key, value in pairs(declared) do class[key] = value end
  class.options = options.join(base.options, declared.options or {})
  class.variants = declared.variants or { [declared.name] = {} }
  return M.class(class)
end

return M
