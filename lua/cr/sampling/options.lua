--- Options of schedulers: how a scheduler's file declares them, and how values are checked.
--
-- A file lists its options as { name, default, help, ... }. The type is that of the default; `choices`, `min`, `max`,
-- `integer`, `items` and `kind` restrict it. This file has the groups of options that most methods share. Names of
-- diffusers are translated (cr.sampling.diffusers).

local diffusers = require 'cr.sampling.diffusers'
local errors = require 'cr.errors'
local ffi = require 'ffi'
local lists = require 'cr.sampling.lists'
local tables = require 'cr.sampling.tables'

local M = {}

-- A beta of 0 adds no noise and a beta of 1 leaves no signal, so the first noise level would be 0 and the last
-- infinite. Nichol and Dhariwal cap their betas at 0.999.
local LEAST_BETA, MOST_BETA = 1e-8, 0.999

-- Bounds of noise levels, far beyond those that networks are trained with.
local LEAST_SIGMA, MOST_SIGMA = 1e-5, 1e5

--- The noise schedule and the kind of prediction of the network. Every scheduler has these options.
M.schedule = {
  { 'steps', 20, 'number of steps', integer = true, min = 1 },
  { 'train_steps', 1000, 'number of timesteps that the network was trained with', integer = true, min = 2, max = 100000 },
  { 'beta_schedule', 'scaled_linear', 'how the betas increase', choices = { 'scaled_linear', 'linear', 'squaredcos_cap_v2' } },
  { 'beta_start', 0.00085, 'first beta', min = LEAST_BETA, max = MOST_BETA },
  { 'beta_end', 0.012, 'last beta', min = LEAST_BETA, max = MOST_BETA },
  { 'betas', nil, 'list of all betas, instead of a schedule', kind = 'table', items = { min = LEAST_BETA, max = MOST_BETA } },
  { 'prediction', 'epsilon', 'what the network predicts', choices = { 'epsilon', 'v', 'sample' } },
}

--- For methods whose steps follow a list of timesteps.
M.spacing = {
  { 'spacing', 'linspace', 'how the steps are spaced over the training timesteps', choices = { 'leading', 'trailing', 'linspace' } },
  { 'steps_offset', 0, "added to the timesteps of 'leading'", integer = true, min = 0 },
}

M.zero_snr = { { 'zero_snr', false, 'rescale the betas so that the first step is pure noise' } }

--- Explicit timesteps, and the first step to compute.
M.steps = {
  { 'timesteps', nil, 'list of decreasing timesteps: [999,700,400,100]', kind = 'table', items = { min = 0 } },
  { 'begin_index', 0, 'first steps to skip, for a sample that already contains some signal', integer = true, min = 0 },
}

--- The bounds of listed noise levels.
M.levels = { min = 0, max = MOST_SIGMA }

--- An explicit list of noise levels, for methods without formulas.
M.listed = {
  { 'sigmas', nil, 'decreasing noise levels, including the end of the last step: [14.6,3.9,0.9,0]', kind = 'table', items = M.levels },
}

--- Noise levels from a formula, a table or a list, instead of those of the timesteps.
M.sigmas = {
  { 'sigmas', 'timesteps', "noise levels: those of the timesteps, a formula between the highest and the lowest, a table that was "
    .. "optimized for Stable Diffusion 1 (ays, gits), or a list that includes the end of the last step: [14.6,3.9,0.9,0]",
    choices = { 'timesteps', 'karras', 'exponential', 'beta', 'ays', 'gits' }, list = M.levels },
  { 'sigma_min', nil, 'lowest noise level of the formula', kind = 'number', min = LEAST_SIGMA, max = MOST_SIGMA },
  { 'sigma_max', nil, 'highest noise level of the formula', kind = 'number', min = LEAST_SIGMA, max = MOST_SIGMA },
}

M.final_sigma = {
  { 'final_sigma', 'zero', 'noise left at the end: none, or the lowest training level', choices = { 'zero', 'sigma_min' } },
}

--- Dynamic thresholding (Saharia et al. 2022): the predicted sample is clamped to a quantile of its own values.
M.threshold = {
  { 'thresholding', false, 'clamp the predicted sample to a quantile of its values' },
  { 'threshold_ratio', 0.995, 'the quantile for thresholding', min = 0, max = 1 },
  { 'sample_max_value', 1, 'upper bound of the thresholding limit', min = 1 },
}

M.clip = {
  { 'clip_sample', false, 'clamp the predicted sample to a fixed range' },
  { 'clip_range', 1, 'limit of clip_sample: the range is from minus to plus this', min = 0 },
}

--- For methods that add noise.
M.sde = {
  { 'eta', 1, 'amount of fresh noise; 0 adds none, 1 is the full stochastic method', min = 0, max = 10 },
  { 's_noise', 1, 'standard deviation of the fresh noise', min = 0, max = 10 },
}

M.noise = { { 'generator', nil, 'generator of the fresh noise (the default generator)', kind = 'generator' } }

--- Joins groups of options to one list. A later option replaces an earlier one of the same name in place.
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

-- Describes the numbers that an option accepts, for messages: 'a whole number from 1 on'.
local function range_of(option)
  local what = option.integer and 'a whole number' or 'a finite number'
  if not option.min then return what end
  return option.max and ('%s from %g to %g'):format(what, option.min, option.max) or ('%s from %g on'):format(what, option.min)
end

local function check_number(name, key, option, v)
  local bad = v ~= v or math.abs(v) == math.huge and not option.infinite or option.integer and v ~= math.floor(v)
  if not bad and option.min and option.max and (v < option.min or v > option.max) then
    error(('%s: %s must be from %g to %g, not %s'):format(name, key, option.min, option.max, lists.shown(v)), 0)
  end
  if bad or option.min and v < option.min or option.max and v > option.max then
    error(('%s: %s cannot be %s: it is %s'):format(name, key, lists.shown(v), range_of(option)), 0)
  end
end

--- Fails if an option cannot have a value.
--- @param name string names the scheduler in messages
--- @param key string the option's name, as the user wrote it
--- @param option table
--- @param v any
function M.check(name, key, option, v)
  local kind = option.kind or type(option[2])
  if kind == 'generator' then
    if not ffi.istype('cr_generator *', v) then
      error(('%s: %s must be a generator, as from cr.generator(seed), not a %s'):format(name, key, type(v)), 0)
    end
    return
  end
  if option.list and type(v) == 'table' then
    option, kind = { items = option.list }, 'table'
  end
  if kind ~= 'any' and kind ~= 'nil' and type(v) ~= kind then
    error(('%s: %s must be a %s, not %s'):format(name, key, kind, type(v)), 0)
  end
  if option.choices and not lists.has(option.choices, v) then
    error(('%s: %s cannot be %s: %s%s'):format(name, key, lists.shown(v), table.concat(option.choices, ', '),
      option.list and ', or a list such as [14.6,3.9,0.9,0]' or ''), 0)
  end
  if kind == 'number' then check_number(name, key, option, v) end
  if option.items then
    local count = 0
    for _ in pairs(v) do count = count + 1 end
    if count ~= #v then error(('%s: %s must be a list of numbers'):format(name, key), 0) end
    for i, item in ipairs(v) do
      local place = ('%s[%d]'):format(key, i)
      if type(item) ~= 'number' then error(('%s: %s must be a number, not %s'):format(name, place, type(item)), 0) end
      check_number(name, place, option.items, item)
    end
  end
end

-- The types of the optional fields of an option.
local FIELD_TYPES = { choices = 'table', items = 'table', list = 'table', kind = 'string', max = 'number', min = 'number' }

--- Fails if a user's file declares an invalid list of options.
--- @param where string names the file in messages
--- @param spec any
function M.check_spec(where, spec)
  if type(spec) ~= 'table' then
    error(('%s: options must be a list of { name, default, help }, not a %s'):format(where, type(spec)), 0)
  end
  for i, option in ipairs(spec) do
    if type(option) ~= 'table' or type(option[1]) ~= 'string' then
      error(('%s: option %d must be { name, default, help }, not %s'):format(where, i,
        type(option) == 'table' and 'a table without a name' or 'a ' .. type(option)), 0)
    end
    for _, key in ipairs(lists.keys(FIELD_TYPES)) do
      local kind = FIELD_TYPES[key]
      if option[key] ~= nil and type(option[key]) ~= kind then
        error(('%s: %s of option %s must be a %s, not a %s'):format(where, key, option[1], kind, type(option[key])), 0)
      end
    end
    if option[2] ~= nil then M.check(where, 'the default of ' .. option[1], option, option[2]) end
  end
end

--- Returns the values of all options: the given ones after checking them, and the defaults.
--- @param name string names the scheduler in messages
--- @param spec table its options
--- @param given table? values by our names or diffusers'
--- @param whole_file boolean? as for diffusers.translate
--- @return table
function M.parse(name, spec, given, whole_file)
  if given ~= nil and type(given) ~= 'table' then
    error(('%s: options must be a table such as { steps = 20 }, not a %s'):format(name, type(given)), 0)
  end
  local ok, values, key_of = pcall(diffusers.translate, spec, given or {}, whole_file)
  if not ok then error(('%s: %s'):format(name, values), 0) end
  local o = {}
  for _, option in ipairs(spec) do o[option[1]] = option[2] end
  for _, key in ipairs(lists.keys(values)) do
    local option = lists.find(spec, key)
    if not option then
      local names = {}
      for i, other in ipairs(spec) do names[i] = other[1] end
      if type(key) ~= 'string' then error(('%s: options have names, not %s'):format(name, lists.shown(key)), 0) end
      error(('%s: no option "%s": %s'):format(name, key, errors.did_you_mean(key, names, '"')), 0)
    end
    M.check(name, key_of[key], option, values[key])
    o[key] = values[key]
  end
  local function written(key) return key_of[key] or key end
  if o.train_steps and o.steps and o.steps > o.train_steps then
    error(('%s: steps is %d, but the network was trained with only %d'):format(name, o.steps, o.train_steps), 0)
  end
  if o.beta_start and o.beta_end and o.beta_start > o.beta_end then
    error(('%s: %s = %g is above %s = %g: noise grows with the timestep'):format(name, written 'beta_start', o.beta_start,
      written 'beta_end', o.beta_end), 0)
  end
  if o.sigma_min and o.sigma_max and o.sigma_min >= o.sigma_max then
    error(('%s: %s = %g must be below %s = %g'):format(name, written 'sigma_min', o.sigma_min, written 'sigma_max',
      o.sigma_max), 0)
  end
  return o
end

--- Fails for values that contradict each other or that the method would ignore. It is not used for diffusers' files,
--- which list every option and where diffusers' own precedence applies.
--- @param name string
--- @param o table the result of `parse`
function M.check_together(name, o)
  for _, key in ipairs { 'sigma_min', 'sigma_max' } do
    if o[key] and (o.sigmas == 'timesteps' or type(o.sigmas) == 'table' or tables.searched[o.sigmas]) then
      error(('%s: %s belongs to a formula, but the noise levels are %s: add sigmas=karras, '
        .. 'exponential or beta'):format(name, key, type(o.sigmas) == 'table' and 'listed'
        or o.sigmas == 'timesteps' and 'those of the timesteps' or "a table's"), 0)
    end
  end
  if o.timesteps and o.sigmas and o.sigmas ~= 'timesteps' then
    error(name .. ': timesteps and sigmas contradict each other: leave one out', 0)
  end
  if o.thresholding and o.clip_sample then
    error(name .. ': thresholding and clip_sample contradict each other: leave one out', 0)
  end
  if o.s_tmin and o.s_tmin > o.s_tmax then
    error(('%s: s_tmin = %g is above s_tmax = %g'):format(name, o.s_tmin, o.s_tmax), 0)
  end
end

--- Formats options as lines of help.
--- @param spec table
--- @param set table? values to show instead of the defaults
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
