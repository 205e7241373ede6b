--- Translates diffusers' names of options and their values, so that its scheduler_config.json can be used.

local errors = require 'cr.errors'
local lists = require 'cr.sampling.lists'

local M = {}

local function renamed(name, values)
  return function(v) return name, values and values[v] or v end
end

-- Accepts only the value with which the option has no effect.
local function only(plain, reason)
  return function(v, key)
    if v ~= plain then error(('%s = %s is not supported: %s'):format(key, type(v) == 'table' and 'a list' or tostring(v), reason), 0) end
  end
end

local FLOW = 'it belongs to flow matching, which is not supported'

-- A rule that is a function returns a name and a value, or nothing if the value is the default case. A rule that is a
-- pair is the option and the value that `true` chooses.
local rules = {
  num_train_timesteps = renamed 'train_steps', num_inference_steps = renamed 'steps',
  trained_betas = renamed 'betas', prediction_type = renamed('prediction', { v_prediction = 'v', original_sample = 'sample' }),
  timestep_spacing = renamed 'spacing', rescale_betas_zero_snr = renamed 'zero_snr',
  use_karras_sigmas = { 'sigmas', 'karras' }, use_exponential_sigmas = { 'sigmas', 'exponential' },
  use_beta_sigmas = { 'sigmas', 'beta' }, use_lu_lambdas = { 'sigmas', 'lu' },
  final_sigmas_type = renamed 'final_sigma', solver_order = renamed 'order', algorithm_type = renamed 'algorithm',
  solver_type = renamed 'solver', dynamic_thresholding_ratio = renamed 'threshold_ratio',
  clip_sample_range = renamed 'clip_range',
  use_flow_sigmas = only(false, FLOW), use_dynamic_shifting = only(false, FLOW), shift_terminal = only(nil, FLOW),
  variance_type = function(v, key)
    if tostring(v):find 'learned' then error(('%s = %s is not supported: the network predicts no variance'):format(key, v), 0) end
  end,
  solver_p = only(nil, 'the first steps cannot have a solver of their own'),
  interpolation_type = only('linear', 'noise levels are interpolated linearly'),
  timestep_type = only('discrete', 'the network takes timesteps, not noise levels'),
}

-- Further keys that diffusers' schedulers write to their files. A class ignores keys that belong to another class.
local of_other_classes = {}
for name in ([[beta_start beta_end beta_schedule clip_sample set_alpha_to_one steps_offset thresholding sample_max_value
  lower_order_final euler_at_final lambda_min_clipped predict_x0 disable_corrector skip_prk_steps sigma_min sigma_max
  original_inference_steps timestep_scaling flow_shift time_shift_type shift base_shift max_shift base_image_seq_len
  max_image_seq_len invert_sigmas stochastic_sampling rho sigma_data sigma_schedule s_noise snr_shift_scale
  noise_sampler_seed predictor_order corrector_order tau_func scale_factors upscale_mode scheduler_type gamma eta
  clip_denoised]]):gmatch '%S+' do of_other_classes[name] = true end

-- diffusers accepts the solver types of related classes and replaces them by its own default.
local foreign_solvers = { midpoint = true, heun = true, logrho = true, bh1 = true, bh2 = true }

local function refuse_unknown(key, spec)
  local names = lists.keys(rules)
  for name in pairs(of_other_classes) do names[#names + 1] = name end
  for _, option in ipairs(spec) do names[#names + 1] = option[1] end
  error(('diffusers has no option "%s": %s'):format(tostring(key), errors.did_you_mean(key, names, '"')), 0)
end

-- Returns the meaning of a key for a scheduler, {option's name, value, key}, or nothing if it has no effect. `denied`
-- collects the pairs that `false` excludes.
local function meaning(spec, key, value, whole_file, denied)
  local option = lists.find(spec, key)
  local rule = not option and rules[key]
  if not rule then
    if option or not whole_file then return key, value end
    if tostring(key):sub(1, 1) ~= '_' and not of_other_classes[key] then refuse_unknown(key, spec) end
    return
  end
  local name, v
  if type(rule) == 'function' then
    name, v = rule(value, key)
  elseif type(value) ~= 'boolean' then
    error(('%s must be true or false, not %s'):format(key, tostring(value)), 0)
  elseif value then
    name, v = rule[1], rule[2]
  else
    denied[#denied + 1] = { key = key, name = rule[1], value = rule[2] }
  end
  option = name and lists.find(spec, name)
  if not option then
    if name and not whole_file then return key, value end -- will be refused under the given name
    return
  end
  if name == 'solver' and foreign_solvers[v] and not lists.has(option.choices, v) then v = option[2] end
  return name, v
end

--- Translates values with our names or diffusers' names to our names. Two keys that contradict each other are an
--- error.
--- @param spec table a scheduler's options
--- @param given table
--- @param whole_file boolean? true ignores keys of other diffusers schedulers, as diffusers does
--- @return table values
--- @return table key_of the key by which each value was given
function M.translate(spec, given, whole_file)
  local out, key_of, denied = {}, {}, {}
  local function contradict(one, other)
    error(('%s and %s contradict each other: leave one out'):format(one, other), 0)
  end
  for _, key in ipairs(lists.keys(given)) do
    local name, v = meaning(spec, key, given[key], whole_file, denied)
    if name ~= nil then
      if key_of[name] and out[name] ~= v then contradict(key_of[name], key) end
      out[name], key_of[name] = v, key
    end
  end
  for _, no in ipairs(denied) do
    if out[no.name] == no.value then contradict(no.key .. ' = false', key_of[no.name]) end
  end
  return out, key_of
end

return M
