--- What schedulers with a history share: steps in order, a window's state, linear combinations.
--
-- A scheduler's file makes a class of its options (`solver.class`) and gives it two methods:
-- `prepare(o)` sets self.timesteps and the noise levels, `update(i, now)` returns the i-th
-- step's result as a form. A form is a linear combination of tensors that is still to be computed:
-- the sample and the network's predictions of this step and earlier ones, with the coefficients
-- added up in float64. So a step is one fused operation, whatever the method. scripts/examples/my_solver.lua
-- is one to copy.
--
--   forms    solver.form(a, 0.5, b, 2) is 0.5 a + 2 b; form:add(what, c) adds a tensor or another form
--   now      this step: x, m (what the network gave), t, alpha, sigma, lambda; self:data(now) and self:noise(now) are
--            the predicted sample and noise as forms, whatever the network predicts
--   orders   self.history is this step and the `depth` ones before it, newest first, each as `now` is; at a
--            window's beginning there are fewer, so a step's order is math.min(order, #self.history)
--   levels   self.sigmas[i] is where step i begins and self.sigmas[i + 1] where it ends, as noise by signal;
--            self:level(sigma) gives alpha, sigma, lambda there
--   spread   without a prepare() of its own a class has the steps of the methods in sigma (options.spacing, options.sigmas,
--            options.steps: lists and begin_index), whose 'linspace' asks last about training step 0, which has hardly any
--            noise; self:spread(o, o.final_sigma) are those of the DPM-Solver family, which end a step before. A method that
--            needs another number of levels than of calls asks with setmetatable({ steps = 2 * o.steps }, { __index = o })
--   noise    self:fresh(now) is normal noise (options.noise has its generator, options.sde eta and s_noise);
--            solver.ancestral(from, to, eta) says how far a step goes down, and how much noise leads up again
--   calls    a network that is asked twice a step: cr.sampling.pairs, as heun.lua and kdpm2.lua use it
--   others   solver.extend(base, ...) is another class with some of it changed
--
-- Samples are variance-preserving everywhere: x = alpha x0 + sigma noise with alpha^2 + sigma^2 = 1.
-- The methods that are written for x / alpha (Euler, Heun, LMS) are scaled inside their
-- coefficients, so the network's input is never scaled by a separate operation.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local hold = require 'cr.sampling.held'.hold
local options = require 'cr.sampling.options'
local tables = require 'cr.sampling.tables'

local M = {}

-- ---- forms -----------------------------------------------------------------------------------

local Form = {}
Form.__index = Form

--- A form without terms, or with the pairs (term, coefficient) that are given.
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

--- The tensor: one operation.
function Form:value() return cr.lincomb(self.tensors, self.weights) end

-- ---- a window's state ------------------------------------------------------------------------

local function drop(entry)
  for _, t in pairs(entry.held) do t:free() end
end

--- Refuses what no step can take, before noise is drawn and anything is kept.
--- @param name string the scheduler's
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

--- Refuses shapes and devices that differ within a step, or from the window's earlier steps.
--- @param name string the scheduler's
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

-- The value below which a share q of the numbers lies, linear between two of them; nil with a nan.
local function quantile(x, q)
  local values = x:to 'f64':to 'cpu':contiguous()
  local n, p, list = values:numel(), values:pointer(), {}
  for i = 1, n do
    list[i] = math.abs(p[i - 1])
    if list[i] ~= list[i] then return nil end -- a nan has no place in an order
  end
  table.sort(list)
  local at = q * (n - 1)
  local low = math.floor(at)
  local a, b = list[low + 1], list[math.min(low + 2, n)]
  return a + (at - low) * (b - a)
end

-- Saharia et al. 2022, section 2.3, each sample of the batch by itself.
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

--- Whether the predicted sample is changed before it is used, which is no longer linear.
function M.bounded(o) return o.thresholding or o.clip_sample or false end

--- The predicted sample held within bounds, as the options ask.
function M.bound(x0, o)
  if o.thresholding then return dynamic_threshold(x0, o) end
  return x0:clamp(-o.clip_range, o.clip_range)
end

--- Normal draws for a channels-last x, in the order in which torch draws for channels-first.
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

--- The predicted sample as coefficients of x and of what the network gave.
--- @return number of_x, number of_m
function M.data_weights(prediction, alpha, sigma)
  if prediction == 'epsilon' then return 1 / alpha, -sigma / alpha end
  if prediction == 'v' then return alpha, -sigma end
  return 0, 1
end

--- The predicted noise as coefficients of x and of what the network gave.
--- @return number of_x, number of_m
function M.noise_weights(prediction, alpha, sigma)
  if prediction == 'epsilon' then return 0, 1 end
  if prediction == 'v' then return sigma, alpha end
  return 1 / sigma, -alpha / sigma
end

--- A step from one noise level to another by way of one below it, from which fresh noise leads up again (k-diffusion's
--- "ancestral").
--- @param from number
--- @param to number
--- @param eta number share of the noise that is DDPM's: 0 none
--- @return number down the level below
--- @return number up the fresh noise's deviation
function M.ancestral(from, to, eta)
  local up = math.min(to, eta * math.sqrt(math.max(0, to * to * (from * from - to * to) / (from * from))))
  return math.sqrt(to * to - up * up), up
end

--- The fewest steps that give a picture without patches, on the small model: a formula's first steps are
--- longer than those of the timesteps. Four of dpmpp_2m_karras end at 20 dB, five at 36 dB.
--- @param o table
--- @return integer
function M.least_steps(o) return (o.sigmas or 'timesteps') == 'timesteps' and 3 or 5 end

-- ---- the class -------------------------------------------------------------------------------

--- @class Solver
--- @field timesteps number[]
--- @field sigmas number[] noise levels, one more than steps
--- @field init_noise_sigma number what the first noise is multiplied by
--- @field history table[] newest first; an entry is one step: x, m, alpha, sigma, lambda
--- @field depth integer how many earlier steps update() looks at
--- @field name string as it was asked for
--- @field options table all options with their values
--- @field alphas number[] the cumulated product of the schedule, by training steps
--- @field as_diffusers boolean whether it computes as diffusers does
--- @field generator Generator? that draws its noise
--- @field cosine_unrounded boolean?
--- @field plan table? of the methods with two calls a step
--- @field calls table? of those
--- @field levels table? of those
--- @field update function its step
local Solver = {}

--- alpha, sigma and lambda (half the logarithm of the signal-to-noise ratio) at a noise level.
function Solver:level(sigma)
  local alpha = 1 / math.sqrt(sigma * sigma + 1)
  return alpha, sigma * alpha, -math.log(sigma)
end

--- The level at which the network is asked in step i: alpha, sigma, lambda.
function Solver:begins_at(i)
  if self.sigmas then return self:level(self.sigmas[i]) end
  local a = self.alphas[self.timesteps[i]]
  return math.sqrt(a), math.sqrt(1 - a), math.log(a / (1 - a)) / 2
end

--- The predicted sample of a step, as a form.
function Solver:data(entry)
  if entry.held.data then return M.form(entry.held.data, 1) end
  local of_x, of_m = M.data_weights(self.options.prediction, entry.alpha, entry.sigma)
  local form = M.form(entry.x, of_x, entry.m, of_m)
  if not M.bounded(self.options) then return form end
  entry.held.data = cr.keep(cr.scope(function() return M.bound(form:value(), self.options) end))
  return M.form(entry.held.data, 1)
end

--- The predicted noise of a step, as a form.
function Solver:noise(entry)
  if M.bounded(self.options) then
    return M.form(entry.x, 1 / entry.sigma, self:data(entry), -entry.alpha / entry.sigma)
  end
  local of_x, of_m = M.noise_weights(self.options.prediction, entry.alpha, entry.sigma)
  return M.form(entry.x, of_x, entry.m, of_m)
end

--- A tensor that an entry is to hold as long as it is in the history.
function Solver:keep(entry, name, tensor)
  entry.held[name] = hold(tensor)
  return entry.held[name]
end

--- Fresh noise of x's shape: the step's own argument if it was given.
function Solver:fresh(entry) return entry.fresh or M.draw_like(entry.x, self.generator) end

--- One step: x at the next timestep.
--- @param prediction Tensor what the network gave for x at t
--- @param t number the next of self.timesteps
--- @param x Tensor
--- @param noise Tensor? normal draws for methods that add noise, instead of drawing them
--- @return Tensor
function Solver:step(prediction, t, x, noise)
  local i = self.index + 1
  if t ~= self.timesteps[i] then
    error(('%s: step %d is at timestep %s, not %s; call reset() to begin a window anew'):format(self.name, i,
      tostring(self.timesteps[i]), tostring(t)), 0)
  end
  M.check_step(self.name, prediction, x, noise)
  local before = self.history
  M.check_alike(self.name, x, { { 'the prediction', prediction }, noise and { 'the noise', noise } })
  if before[1] then M.check_alike(self.name, x, { { 'that of the step before (call reset() to begin anew)', before[1].x } }) end
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
  if not ok then -- the window stays as it was, so that the step can be made again
    self.history = before
    drop(entry)
    error(y, 0)
  end
  while #self.history > self.depth do drop(table.remove(self.history)) end
  self.index = i
  if i == #self.timesteps then self:reset() end
  return y
end

--- Forgets the window; needed only if its steps were not all made.
function Solver:reset()
  for _, entry in ipairs(self.history) do drop(entry) end
  self.history, self.index = {}, 0
end

--- What the network gets for x: x itself.
function Solver:scale_input(x) return x end

-- ---- noise levels ----------------------------------------------------------------------------

-- The levels of a formula, and the one where the last step ends. A formula's last level is where the
-- last step ends if that is the least; in diffusers it also begins there, and changes nothing.
function Solver:formula(o, high, low, ends)
  -- One step begins at the highest, and the lowest matters only if it is given.
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

-- The formula's limits, and training's where the options have none.
local function limits(o, high, low) return o.sigma_max or high, o.sigma_min or low end

--- Steps without the first ones, if the options ask for that: of a run of its own that begins later.
--- @param timesteps number[]
--- @param sigmas number[]?
--- @return number[] timesteps
--- @return number[]? sigmas
function Solver:cut(timesteps, sigmas)
  local o = self.options
  local left_out = o.begin_index or 0
  if left_out == 0 then return timesteps, sigmas end
  if left_out >= #timesteps then
    error(('%s: begin_index = %d leaves no step of %d'):format(self.name, left_out, #timesteps), 0)
  end
  o.steps = #timesteps - left_out
  return { unpack(timesteps, left_out + 1) }, sigmas and { unpack(sigmas, left_out + 1) }
end

--- Timesteps and noise levels of the DPM-Solver family, from the options; the last level is where the
--- last step ends.
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
  -- diffusers cuts off the fraction where it does not round.
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

--- Timesteps and noise levels of the methods in sigma (Euler, Heun, LMS); the last level is where the
--- last step ends.
function Solver:spread_sigma(o)
  local alphas, last, steps = self.alphas, o.train_steps - 1, o.steps
  local ends = o.final_sigma or 'zero'
  local listed, listed_levels = tables.listed(self.name, o, alphas, ends)
  if listed then return self:cut(listed, listed_levels) end
  local least, levels, sigmas = tables.sigma_of(alphas[0]), {}, {}
  -- 'linspace' reaches training step 0, which is the least level: there the last step ends.
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

--- What the first noise is multiplied by so that it has the first level's variance: diffusers'
--- init_noise_sigma, scaled as samples are here.
function Solver:first_scale(o)
  if o.spacing == 'leading' then return 1 end
  local _, sigma = self:level(self.sigmas[1])
  return sigma
end

--- Refuses a first step that nothing can be said about, and a step that ends where it begins.
function Solver:check_levels(o)
  local first = self.timesteps[1]
  local share = first >= o.train_steps - 1 and self.alphas[o.train_steps - 1]
  if o.zero_snr and o.prediction == 'epsilon' and share and (share == 0 or not self.as_diffusers) then
    error(self.name .. ': with zero_snr the first step is pure noise, from which epsilon says nothing; '
      .. 'use prediction "v" or "sample"', 0)
  end
  local sigmas = self.sigmas or {}
  for i = 2, #sigmas do
    -- The last one of diffusers' may end where it begins.
    local level = sigmas[i] < sigmas[i - 1] or self.as_diffusers and i == #sigmas and sigmas[i] == sigmas[i - 1]
    if not level then
      error(('%s: %d steps are too many: step %d would end at the noise level at which it begins'):format(self.name, o.steps,
        i - 1), 0)
    end
  end
end

--- The prepare() of the methods in sigma; others have their own.
function Solver:prepare(o)
  self.timesteps, self.sigmas = self:spread_sigma(o)
  self.init_noise_sigma = self:first_scale(o)
end

local any = arguments.any
arguments.methods(Solver, 'scheduler', { step = { any, any, any, any }, reset = {}, scale_input = { any } }, 'any')

--- Makes a scheduler's class: a table with `new(options)`, to which its file adds update(), and
--- prepare() unless it works in sigma.
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
  --- @param given table? options, by our names or diffusers'
  --- @param as table? {name = in errors, diffusers = true: its numbers where they are not the method's}
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

--- A scheduler's class that goes on from another one: it has that one's methods and options where it has none of its
--- own. What belongs to names (variants, aliases, diffusers) is not taken over.
---
---     local heun = require 'cr.schedulers.heun'
---     local M = solver.extend(heun, { name = 'mine', help = '...', options = { { 'gain', 1, '...' } } })
---     function M:update(i, now) return solver.form(heun.update(self, i, now), self.options.gain) end
--- @param base table a class
--- @param declared table as of class(); `options` are added to those of `base`, or replace them by name
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
