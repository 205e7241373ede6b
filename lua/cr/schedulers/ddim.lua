-- DDIM (Song et al. 2021), as LatentSync samples: diffusers' tables and arithmetic, in doubles.
--
-- A scheduler is { timesteps = {...}, step = function(self, eps, t, x) ... end }. It works on tensors
-- of any float type; each step is one cr.lincomb whose coefficients are computed here, in Lua
-- numbers. DDIM keeps nothing between steps, so one scheduler serves every window.

local cr = require 'cr'

local ddim = {}

---@class cr.DdimOptions
---@field steps? integer number of steps (20)
---@field spacing? 'leading'|'trailing'|'linspace' how the steps are spread over training's ('leading')
---@field prediction? 'epsilon'|'v'|'sample' what the network predicts ('epsilon')
---@field zero_snr? boolean rescale the betas so that the first step is pure noise (false)
---@field eta? number 0: deterministic, 1: as much noise as DDPM (0)
---@field set_alpha_to_one? boolean the last step goes to alpha 1, not to that of training step 0 (false)
---@field steps_offset? integer added to the timesteps of 'leading' (1)
---@field generator? any draws the noise that eta > 0 asks for
---@field train_steps? integer (1000)
---@field beta_start? number (0.00085)
---@field beta_end? number (0.012)
---@field beta_schedule? 'scaled_linear'|'linear' ('scaled_linear')

-- Ready-made settings by name: ddim.new(ddim.variants.ddim_trailing).
ddim.variants = {
  ddim = {},
  ddim_trailing = { spacing = 'trailing' },
  ddim_zsnr_v = { spacing = 'trailing', zero_snr = true, prediction = 'v' },
}

local known = {
  steps = 'number', spacing = 'string', prediction = 'string', zero_snr = 'boolean', eta = 'number',
  set_alpha_to_one = 'boolean', steps_offset = 'number', generator = 'any', train_steps = 'number',
  beta_start = 'number', beta_end = 'number', beta_schedule = 'string',
}

local function round_half_even(v)
  local low = math.floor(v)
  local rest = v - low
  if rest < 0.5 or (rest == 0.5 and low % 2 == 0) then return low end
  return low + 1
end

-- alphas_cumprod[0 .. n-1]: the share of the signal's power left at each training step.
local function alpha_table(o)
  local n, first, last = o.train_steps, o.beta_start, o.beta_end
  if o.beta_schedule == 'scaled_linear' then first, last = math.sqrt(first), math.sqrt(last) end
  local alphas, product = {}, 1
  for i = 0, n - 1 do
    local beta = n > 1 and first + (last - first) * (i / (n - 1)) or first
    if o.beta_schedule == 'scaled_linear' then beta = beta * beta end
    product = product * (1 - beta)
    alphas[i] = product
  end
  if o.zero_snr then
    -- Lin et al. 2023, algorithm 1: the square roots are moved so that the last is 0 and stretched
    -- so that the first stays.
    local head, tail = math.sqrt(alphas[0]), math.sqrt(alphas[n - 1])
    for i = 0, n - 1 do
      local root = (math.sqrt(alphas[i]) - tail) * (head / (head - tail))
      alphas[i] = root * root
    end
    alphas[n - 1] = 0
  end
  return alphas
end

local function timestep_table(o)
  local steps, n, list = o.steps, o.train_steps, {}
  if o.spacing == 'leading' then
    local ratio = math.floor(n / steps)
    for i = 1, steps do list[i] = (steps - i) * ratio + o.steps_offset end
  elseif o.spacing == 'trailing' then
    for i = 1, steps do list[i] = round_half_even(n - (i - 1) * (n / steps)) - 1 end
  else
    for i = 1, steps do
      list[i] = steps > 1 and round_half_even((n - 1) * (steps - i) / (steps - 1)) or 0
    end
  end
  return list
end

local scheduler = {}
scheduler.__index = scheduler

--- Makes a DDIM scheduler; without options LatentSync's own: 20 steps, leading spacing, offset 1.
---@param options? cr.DdimOptions
function ddim.new(options)
  local o = {
    steps = 20, spacing = 'leading', prediction = 'epsilon', zero_snr = false, eta = 0,
    set_alpha_to_one = false, steps_offset = 1, train_steps = 1000, beta_start = 0.00085,
    beta_end = 0.012, beta_schedule = 'scaled_linear',
  }
  for k, v in pairs(options or {}) do
    if not known[k] then error(('ddim: no option "%s"'):format(tostring(k)), 2) end
    if known[k] ~= 'any' and type(v) ~= known[k] then
      error(('ddim: %s must be a %s, not %s'):format(k, known[k], type(v)), 2)
    end
    o[k] = v
  end
  local function one_of(key, ...)
    for _, v in ipairs { ... } do if o[key] == v then return end end
    error(('ddim: %s cannot be "%s": %s'):format(key, o[key], table.concat({ ... }, ', ')), 3)
  end
  one_of('spacing', 'leading', 'trailing', 'linspace')
  one_of('prediction', 'epsilon', 'v', 'sample')
  one_of('beta_schedule', 'scaled_linear', 'linear')
  for _, key in ipairs { 'train_steps', 'steps', 'steps_offset' } do
    if o[key] ~= math.floor(o[key]) or o[key] < (key == 'steps_offset' and 0 or 1) then
      error(('ddim: %s cannot be %s'):format(key, o[key]), 2)
    end
  end
  if o.steps > o.train_steps then
    error(('ddim: steps is %d, but the network was trained with only %d'):format(o.steps,
      o.train_steps), 2)
  end
  if not (o.eta >= 0 and o.eta <= 1) then error('ddim: eta must be from 0 to 1', 2) end

  local self = setmetatable({ options = o, init_noise_sigma = 1 }, scheduler)
  self.alphas = alpha_table(o)
  self.final_alpha = o.set_alpha_to_one and 1 or self.alphas[0]
  self.timesteps = timestep_table(o)
  if self.timesteps[1] >= o.train_steps then
    error(('ddim: %d steps with offset %d begin at %d, past the last training step %d'):format(
      o.steps, o.steps_offset, self.timesteps[1], o.train_steps - 1), 2)
  end
  if o.prediction == 'epsilon' and self.alphas[self.timesteps[1]] == 0 then
    error('ddim: with zero_snr the first step is pure noise, from which epsilon says nothing; '
      .. 'use prediction "v" or "sample"', 2)
  end
  return self
end

--- What the network gets for x at step t; DDIM does not scale it.
function scheduler:scale_input(x) return x end

--- The coefficients of x, of the prediction and of fresh noise in the step from t.
---@param t integer
---@return number, number, number
function scheduler:coefficients(t)
  local o = self.options
  local a = self.alphas[t]
  if not a then
    error(('ddim: there is no training step %s (0 to %d)'):format(tostring(t), o.train_steps - 1), 2)
  end
  local before = t - math.floor(o.train_steps / o.steps)
  local a_before = before >= 0 and self.alphas[before] or self.final_alpha
  local b = 1 - a
  local sigma = 0
  if o.eta > 0 then
    sigma = o.eta * math.sqrt((1 - a_before) / b * (1 - a / a_before))
  end
  local to_signal = math.sqrt(a_before)
  local to_noise = math.sqrt(math.max(0, 1 - a_before - sigma * sigma))
  local root_a, root_b = math.sqrt(a), math.sqrt(b)
  -- x0 = x0_x x + x0_m m and noise = e_x x + e_m m, m being what the network predicts.
  local x0_x, x0_m, e_x, e_m
  if o.prediction == 'epsilon' then
    x0_x, x0_m, e_x, e_m = 1 / root_a, -root_b / root_a, 0, 1
  elseif o.prediction == 'v' then
    x0_x, x0_m, e_x, e_m = root_a, -root_b, root_b, root_a
  else
    x0_x, x0_m, e_x, e_m = 0, 1, 1 / root_b, -root_a / root_b
  end
  return to_signal * x0_x + to_noise * e_x, to_signal * x0_m + to_noise * e_m, sigma
end

-- Normal draws for a channels-last x, in the order in which torch draws for channels-first.
local function draw_like(x, generator)
  local shape = x.shape
  local n = #shape
  local options = { generator = generator, dtype = x.dtype, device = x.device }
  if n < 4 then return cr.randn(shape, options) end
  local order = { shape[1], shape[n] }
  local back = { 1 }
  for i = 2, n - 1 do
    order[i + 1] = shape[i]
    back[i] = i + 1
  end
  back[n] = 2
  return cr.randn(order, options):permute(unpack(back)):contiguous()
end

--- One step: x at the next lower timestep.
---@param prediction any what the network gave for x at t
---@param t integer one of self.timesteps
---@param x any
---@param noise? any normal draws for eta > 0, instead of drawing them
function scheduler:step(prediction, t, x, noise)
  local c_x, c_m, sigma = self:coefficients(t)
  if sigma == 0 then return cr.lincomb({ x, prediction }, { c_x, c_m }) end
  noise = noise or draw_like(x, self.options.generator)
  return cr.lincomb({ x, prediction, noise }, { c_x, c_m, sigma })
end

--- Nothing to forget between windows; other schedulers have a history here.
function scheduler:reset() end -- luacheck: ignore self

return ddim
