--- Options of schedulers: what a scheduler's file declares, checked values, and diffusers' names.
--
-- A file lists its options as { name, default, help, ... }; the type is that of the default, and
-- `choices`, `min`, `max`, `integer` and `kind` narrow it. Groups that most methods share are here.
-- Everything that diffusers calls otherwise is translated, so that its scheduler_config.json serves.

local errors = require 'cr.errors'

local M = {}

--- The network's noise schedule and what it predicts: every scheduler has these.
M.schedule = {
  { 'steps', 20, 'number of steps', integer = true, min = 1 },
  { 'train_steps', 1000, 'timesteps that the network was trained with', integer = true, min = 1 },
  { 'beta_schedule', 'scaled_linear', 'how the betas grow', choices = { 'scaled_linear', 'linear', 'squaredcos_cap_v2' } },
  { 'beta_start', 0.00085, 'first beta', min = 0, max = 1 },
  { 'beta_end', 0.012, 'last beta', min = 0, max = 1 },
  { 'betas', nil, 'all betas, in place of a schedule', kind = 'table' },
  { 'prediction', 'epsilon', 'what the network predicts', choices = { 'epsilon', 'v', 'sample' } },
}

--- Only for methods whose steps follow a list of timesteps.
M.spacing = {
  { 'spacing', 'linspace', "how the steps are spread over training's", choices = { 'leading', 'trailing', 'linspace' } },
  { 'steps_offset', 0, "added to the timesteps of 'leading'", integer = true, min = 0 },
}

M.zero_snr = { { 'zero_snr', false, 'rescale the betas so that the first step is pure noise' } }

--- Noise levels from a formula in place of the timesteps' own.
M.sigmas = {
  { 'sigmas', 'timesteps', 'noise levels: those of the timesteps, or a formula between the highest and the lowest',
    choices = { 'timesteps', 'karras', 'exponential', 'beta' } },
  { 'sigma_min', nil, 'lowest noise level of the formula', kind = 'number', min = 0 },
  { 'sigma_max', nil, 'highest noise level of the formula', kind = 'number', min = 0 },
}

M.final_sigma = {
  { 'final_sigma', 'zero', "noise left at the end: none, or the training's least", choices = { 'zero', 'sigma_min' } },
}

--- Saharia et al. 2022: the predicted sample is held within a quantile of its own values.
M.threshold = {
  { 'thresholding', false, 'hold the predicted sample within a quantile of its values' },
  { 'threshold_ratio', 0.995, 'that quantile', min = 0, max = 1 },
  { 'sample_max_value', 1, 'the most that the quantile may be', min = 1 },
}

M.clip = {
  { 'clip_sample', false, 'hold the predicted sample within a range' },
  { 'clip_range', 1, 'that range: from minus to plus this', min = 0 },
}

M.noise = { { 'generator', nil, 'draws the fresh noise (the default generator)', kind = 'any' } }

--- Several groups as one list; later entries of a name replace earlier ones in place.
--- @param ... table lists of options
--- @return table
function M.join(...)
  local list, at = {}, {}
  for _, group in ipairs { ... } do
    for _, option in ipairs(group) do
      local name = option[1]
      if not at[name] then
        list[#list + 1] = name
        at[name] = #list
      end
      list[at[name]] = option
    end
  end
  return list
end

-- diffusers' names of options and of their values. A function gives name and value, or nothing
-- where the value is the plain case that needs no option.
local function switch(name, value)
  return function(v) if v then return name, value end end
end
local function renamed(name, values)
  return function(v) return name, values and values[v] or v end
end
-- Only the value with which it does nothing is understood.
local function only(plain)
  return function(v, key)
    if v ~= plain and v ~= nil then error(('%s = %s is not supported'):format(key, tostring(v)), 0) end
  end
end

local from_diffusers = {
  num_train_timesteps = renamed 'train_steps', num_inference_steps = renamed 'steps',
  trained_betas = renamed 'betas', prediction_type = renamed('prediction', { v_prediction = 'v', original_sample = 'sample' }),
  timestep_spacing = renamed 'spacing', rescale_betas_zero_snr = renamed 'zero_snr',
  use_karras_sigmas = switch('sigmas', 'karras'), use_exponential_sigmas = switch('sigmas', 'exponential'),
  use_beta_sigmas = switch('sigmas', 'beta'), use_lu_lambdas = switch('sigmas', 'lu'),
  final_sigmas_type = renamed 'final_sigma', solver_order = renamed 'order', algorithm_type = renamed 'algorithm',
  solver_type = renamed 'solver', lower_order_final = renamed 'lower_order_final', euler_at_final = renamed 'euler_at_final',
  dynamic_thresholding_ratio = renamed 'threshold_ratio', clip_sample_range = renamed 'clip_range',
  use_flow_sigmas = only(false), use_dynamic_shifting = only(false), variance_type = only(nil), solver_p = only(nil),
  interpolation_type = only 'linear', timestep_type = only 'discrete', shift_terminal = only(nil),
}

-- diffusers accepts the solver types of related classes and takes its own default for them.
local foreign_solvers = { midpoint = true, heun = true, logrho = true, bh1 = true, bh2 = true }

local function find(spec, name)
  for _, option in ipairs(spec) do if option[1] == name then return option end end
end

--- Values by our names or diffusers' as values by ours.
--- @param spec table a scheduler's options
--- @param given table
--- @param whole_file boolean? what the scheduler has no option for is left out, as diffusers does
--- @return table
function M.translate(spec, given, whole_file)
  local out = {}
  for key, value in pairs(given) do
    local rule = not find(spec, key) and from_diffusers[key]
    local name, v = key, value
    if rule then name, v = rule(value, key) end
    local option = name and find(spec, name)
    if option and rule and name == 'solver' and foreign_solvers[v] then
      local own = false
      for _, choice in ipairs(option.choices) do own = own or choice == v end
      if not own then v = option[2] end
    end
    if option then
      out[name] = v
    elseif name and not whole_file then
      out[key] = value -- to be refused by the name that was given
    end
  end
  return out
end

local function text_of(v) return type(v) == 'table' and 'a table' or tostring(v) end

local function check(name, option, v)
  local key = option[1]
  local kind = option.kind or type(option[2])
  if kind ~= 'any' and type(v) ~= kind then
    error(('%s: %s must be a %s, not %s'):format(name, key, kind, type(v)), 0)
  end
  if option.choices then
    for _, choice in ipairs(option.choices) do if v == choice then return end end
    error(('%s: %s cannot be "%s": %s'):format(name, key, v, table.concat(option.choices, ', ')), 0)
  end
  if kind == 'number' then
    local bad = v ~= v or math.abs(v) == math.huge and not option.infinite or option.integer and v ~= math.floor(v)
    if not bad and option.min and option.max and (v < option.min or v > option.max) then
      error(('%s: %s must be from %g to %g, not %s'):format(name, key, option.min, option.max, text_of(v)), 0)
    end
    if bad or option.min and v < option.min or option.max and v > option.max then
      error(('%s: %s cannot be %s'):format(name, key, text_of(v)), 0)
    end
  end
end

--- The values of all options: those given, checked, and the defaults.
--- @param name string of the scheduler, for errors
--- @param spec table its options
--- @param given table? by our names or diffusers'
--- @param whole_file boolean? as of translate
--- @return table
function M.parse(name, spec, given, whole_file)
  local ok, values = pcall(M.translate, spec, given or {}, whole_file)
  if not ok then error(('%s: %s'):format(name, values), 0) end
  local o = {}
  for _, option in ipairs(spec) do o[option[1]] = option[2] end
  for key, v in pairs(values) do
    local option = find(spec, key)
    if not option then
      local names = {}
      for i, other in ipairs(spec) do names[i] = other[1] end
      error(('%s: no option "%s": did you mean "%s"?'):format(name, tostring(key), errors.nearest(tostring(key), names)), 0)
    end
    check(name, option, v)
    o[key] = v
  end
  if o.train_steps and o.steps > o.train_steps then
    error(('%s: steps is %d, but the network was trained with only %d'):format(name, o.steps, o.train_steps), 0)
  end
  return o
end

--- The options as lines of help.
--- @param spec table
--- @param set table? values in place of the defaults
--- @return string
function M.text(spec, set)
  local lines = {}
  for _, option in ipairs(spec) do
    local default = set and set[option[1]]
    if default == nil then default = option[2] end
    local shown = default ~= nil and type(default) ~= 'table' and (' (%s)'):format(tostring(default)) or ''
    lines[#lines + 1] = ('  %-18s %s%s'):format(option[1], option[3], shown)
    if option.choices then lines[#lines + 1] = (' '):rep(21) .. table.concat(option.choices, ', ') end
  end
  return table.concat(lines, '\n')
end

return M
