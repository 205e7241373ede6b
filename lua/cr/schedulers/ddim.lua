-- DDIM (Song et al. 2021), which LatentSync uses, with diffusers' tables and arithmetic in float64.
--
-- It keeps no state between steps, so unlike with other methods a single step can be made from any timestep.

local cr = require 'cr'
local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'
local tables = require 'cr.sampling.tables'

-- The final level by set_alpha_to_one, which other methods call final_sigma.
local function ends_of(o) return o.set_alpha_to_one and 'zero' or 'sigma_min' end

local M = solver.class {
  name = 'ddim', help = "DDIM (Song et al. 2021), LatentSync's default",
  least_steps = solver.least_steps,
  variants = {
    ddim = {},
    ddim_trailing = { spacing = 'trailing' },
    ddim_zsnr_v = { spacing = 'trailing', zero_snr = true, prediction = 'v' },
  },
  known_as = { ddpm = 'ddim:eta=1', ddimparallel = 'ddim', ddpmparallel = 'ddim:eta=1' },
  diffusers = { class = 'DDIMScheduler',
    differs = "with 'linspace' a step does not end where the next begins, and a single step begins at the lowest noise level",
    defaults = { clip_sample = true, set_alpha_to_one = true, timestep_spacing = 'leading' } },
  formula_spreads = true,
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.zero_snr, options.threshold,
    options.clip, options.noise, {
    { 'spacing', 'leading', 'how the steps are spaced over the training timesteps', choices = { 'leading', 'trailing', 'linspace' } },
    { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
    { 'eta', 0, '0: deterministic, 1: as much noise as DDPM', min = 0, max = 1 },
    { 's_noise', 1, 'standard deviation of the fresh noise', min = 0, max = 10 },
    { 'set_alpha_to_one', false, 'the last step ends at alpha 1, not at that of training step 0 (unless it begins there)' },
  }),
}

function M:prepare(o)
  if o.timesteps or o.sigmas ~= 'timesteps' then return self:prepare_levels(o) end
  self.timesteps = self:cut(tables.check(self.name, o, tables.timesteps(o, true, self.as_diffusers)))
  self.stride = math.floor(o.train_steps / (o.steps + o.begin_index))
  -- A step that begins at training step 0 must end clean, since otherwise it would change nothing.
  local ends_clean = o.set_alpha_to_one or self.timesteps[#self.timesteps] == 0 and not self.as_diffusers
  self.final_alpha = ends_clean and 1 or self.alphas[0]
  -- The ends of steps, by timestep, if the stride is not constant.
  self.ends_at = {}
  if o.spacing == 'linspace' and not self.as_diffusers then
    for i, t in ipairs(self.timesteps) do self.ends_at[t] = self.timesteps[i + 1] or -1 end
  end
end

-- Prepares steps from a formula or a list: between[t] = {first, last noise level of the step from t}.
function M:prepare_levels(o)
  if o.zero_snr then
    error(self.name .. ': zero_snr begins with pure noise, an infinite noise level: leave out zero_snr, or sigmas and timesteps', 0)
  end
  self.timesteps, self.sigmas = self:spread_sigma(setmetatable({ spacing = 'linspace', final_sigma = ends_of(o) }, { __index = o }))
  self.between = {}
  for i, t in ipairs(self.timesteps) do self.between[t] = { self.sigmas[i], self.sigmas[i + 1] } end
end

-- Returns the signal's power at t and at the end of the step.
function M:powers(t)
  local o, known = self.options, self.between
  if known then
    if t == nil or not known[t] then error(('%s: there is no step at %s among its own'):format(self.name, tostring(t)), 0) end
    return 1 / (1 + known[t][1] ^ 2), 1 / (1 + known[t][2] ^ 2)
  end
  local a = self.alphas[t]
  if not a then
    error(('%s: there is no training step %s (0 to %d)'):format(self.name, tostring(t), o.train_steps - 1), 0)
  end
  local before = self.ends_at[t] or t - self.stride
  return a, before >= 0 and self.alphas[before] or self.final_alpha
end

-- Returns signal and noise at t and at the end of the step, and the standard deviation of the fresh noise.
function M:levels(t)
  local o, sigma = self.options, 0
  local a, a_before = self:powers(t)
  if o.eta > 0 then sigma = o.eta * math.sqrt((1 - a_before) / (1 - a) * (1 - a / a_before)) end
  return math.sqrt(a), math.sqrt(1 - a), math.sqrt(a_before), math.sqrt(math.max(0, 1 - a_before - sigma * sigma)), sigma
end

--- Returns the coefficients of x, of the prediction and of fresh noise in the step from t.
--- @param t integer
--- @return number, number, number
function M:coefficients(t)
  local alpha, noise, to_signal, to_noise, sigma = self:levels(t)
  local x0_x, x0_m = solver.data_weights(self.options.prediction, alpha, noise)
  local e_x, e_m = solver.noise_weights(self.options.prediction, alpha, noise)
  return to_signal * x0_x + to_noise * e_x, to_signal * x0_m + to_noise * e_m, sigma
end

--- Makes one step and returns x at the next lower timestep.
--- @param prediction any the network's output for x at t
--- @param t integer one of self.timesteps
--- @param x any
--- @param noise? any standard normal noise for eta > 0, instead of drawing it
function M:step(prediction, t, x, noise)
  solver.check_step(self.name, prediction, x, noise)
  solver.check_alike(self.name, x, { { 'the prediction', prediction }, noise and { 'the noise', noise } })
  local o = self.options
  local c_x, c_m, sigma = self:coefficients(t)
  local form = solver.form(x, c_x, prediction, c_m)
  if solver.bounded(o) then
    -- As in diffusers, the noise is not recomputed from the clamped sample.
    local alpha, deviation, to_signal, to_noise = self:levels(t)
    local x0_x, x0_m = solver.data_weights(o.prediction, alpha, deviation)
    local e_x, e_m = solver.noise_weights(o.prediction, alpha, deviation)
    local x0 = solver.bound(cr.lincomb({ x, prediction }, { x0_x, x0_m }), o)
    form = solver.form(x0, to_signal, x, to_noise * e_x, prediction, to_noise * e_m)
  end
  if sigma > 0 then form:add(noise or solver.draw_like(x, self.generator), sigma * o.s_noise) end
  return form:value()
end

return M
