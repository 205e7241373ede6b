--- Errors around schedulers: failing steps, invalid and contradictory options, files with mistakes. Each gives one
--- sentence, and leaves nothing behind.

local cr = require 'cr'
local t = require 'tests.support.tap'
local child = require 'tests.support.child'
local schedulers = require 'cr.schedulers'
local scratch = require 'tests.support.scratch'

-- A call that must fail with one matching sentence, without Lua's own words.
local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  message = tostring(message)
  t.ok(not ok and message:find(pattern) ~= nil and not message:find '\n' and not message:find 'attempt to'
    and not message:find 'bad argument', ('%s: %s'):format(pattern, ok and 'passed' or message))
end
local function not_loaded(pattern, ...) refused(pattern, schedulers.load, ...) end

t.test('a failing step changes nothing: repeating it correctly gives the same results', function()
  local start = t.formula('input:sched', { 1, 2, 2, 4 }):to 'f64'
  local wrong = cr.zeros({ 1, 2, 2, 5 }, { dtype = 'f64' })
  for _, name in ipairs { 'ddim:eta=1', 'dpmpp_3m', 'dpmpp_3m_sde', 'dpm_single_3_sde', 'unipc_3', 'deis_3', 'euler_ancestral', 'heun',
    'lms', 'pndm', 'lcm', 'tcd', 'dpmpp_2m:thresholding=true' } do
    local function finish(disturb)
      local s = schedulers.load(name, { steps = 6 })
      if name:find 'eta' or name:find 'sde' or name:find 'anc' or name == 'lcm' or name == 'tcd' then s:use(cr.generator(3)) end
      local x = s:start(start)
      for _, at in ipairs(s.timesteps) do
        local m = x * 0.3
        if disturb then
          refused('the sample is %[1 2 2 4%] on cpu, but the prediction is %[1 2 2 5%]', s.step, s, wrong, at, x)
          refused("needs the network's prediction as a tensor, not nil", s.step, s, nil, at, x)
          refused('needs the sample as a tensor, not a number', s.step, s, m, at, 5)
          refused('needs the noise as a tensor, not a string', s.step, s, m, at, x, 'noise')
          refused('the noise is %[1 2 2 5%]', s.step, s, m, at, x, wrong)
          local when = name:find 'ddim' and 'there is no training step %a+ ' or 'is at timestep [%d.]+, not %a+; call reset'
          refused(when, s.step, s, m, 'soon', x)
          refused(when, s.step, s, m, nil, x)
        end
        x = cr.scope(function() return s:step(m, at, x) end)
      end
      return x
    end
    t.near(finish(true), finish(false), 0, name)
  end
  -- An error during the step, after all checks.
  local s, own = schedulers.load('dpmpp_2m', { steps = 3 }), cr.lincomb
  local x = s:step(start, s.timesteps[1], start)
  function cr.lincomb() error('out of memory', 0) end
  refused('^out of memory$', s.step, s, start, s.timesteps[2], x)
  cr.lincomb = own
  local y = s:step(start, s.timesteps[2], x)
  local plain = schedulers.load('dpmpp_2m', { steps = 3 })
  t.near(y, plain:step(start, plain.timesteps[2], plain:step(start, plain.timesteps[1], start)), 0)
  refused('the sample is %[1 2 2 5%].*that of the previous step', s.step, s, wrong, s.timesteps[3], wrong)
  s:reset()
  plain:reset()
end)

t.test('invalid options', function()
  not_loaded('^dpmpp_2m_karras: sigma_min must be from 1e%-05 to 100000, not 0$', 'dpmpp_2m_karras:sigma_min=0')
  not_loaded('sigma_min = 20 must be below sigma_max = 3', 'euler_karras:sigma_min=20,sigma_max=3')
  not_loaded('highest noise level 14.* is not above the lowest, 20', 'euler_karras:sigma_min=20')
  not_loaded('sigma_max belongs to a formula', 'euler:sigma_max=10')
  not_loaded('sigma_min belongs to a formula', 'unipc', { sigma_min = 0.1 })
  not_loaded('beta_end must be from 1e%-08 to 0.999, not 1$', 'ddim:beta_end=1')
  not_loaded('beta_start must be from', 'ddim:beta_start=0')
  not_loaded('beta_start = 0.02 is above beta_end = 0.012', 'ddim:beta_start=0.02')
  not_loaded('betas leave no signal at training step', 'ddim:beta_start=0.5,beta_end=0.9')
  not_loaded('betas%[2%] must be from 1e%-08 to 0.999, not 2', 'ddim', { betas = { 0.1, 2 }, train_steps = 2, steps = 1 })
  not_loaded('betas%[1%] must be a number, not string', 'ddim', { betas = { 'a' } })
  not_loaded('betas must be a list of numbers', 'ddim', { betas = { a = 1 } })
  not_loaded('2 betas for 1000 training steps', 'ddim', { betas = { 0.1, 0.2 } })
  not_loaded('train_steps must be from 2 to 100000, not 1e%+18', 'ddim', { num_train_timesteps = 1e18 })
  not_loaded('disable_corrector%[1%] cannot be %-1: it is a whole number from 0 on', 'unipc', { disable_corrector = { -1 } })
  not_loaded('eta must be from 0 to 1', 'ddim:eta=-0.1')
  not_loaded('eta cannot be nan: it is a finite number', 'ddim', { eta = 0 / 0 })
  not_loaded('s_tmin = 5 is above s_tmax = 1', 'euler:s_churn=1,s_tmin=5,s_tmax=1')
  not_loaded('1000 steps are too many for this spacing: steps %d+ and %d+ are both at timestep %d+', 'dpmpp_2m', { steps = 1000 })
  not_loaded('20 steps are too many for this spacing', 'dpmpp_2m', { steps = 20, lambda_min_clipped = 3.5 })
  not_loaded('do not fit into the training steps', 'dpmpp_2m_trailing', { steps = 20, lambda_min_clipped = 2 })
  for _, name in ipairs { 'lcm', 'tcd', 'ddim_trailing', 'dpmpp_2m', 'unipc', 'euler', 'euler_ancestral' } do
    not_loaded('where a prediction of epsilon carries no information; use prediction "v"', name, { zero_snr = true, steps = 4 })
    t.equal(#schedulers.load(name, { zero_snr = true, steps = 4, prediction = 'v' }).timesteps, 4, name)
  end
  not_loaded('^ddim: generator must be a generator, as from cr.generator%(seed%), not a number$', 'ddim', { generator = 5 })
  local s = schedulers.load 'ddim'
  refused('must be a generator', s.use, s, 'torch')
  refused('must be a generator', s.use, s)
  s:use(cr.generator(1))
end)

t.test('contradictions', function()
  not_loaded('use_exponential_sigmas and use_karras_sigmas contradict each other: leave one out', 'euler',
    { use_karras_sigmas = true, use_exponential_sigmas = true })
  not_loaded('sigmas and use_karras_sigmas contradict', 'euler', { sigmas = 'beta', use_karras_sigmas = true })
  not_loaded('use_karras_sigmas = false and sigmas contradict', 'euler', { sigmas = 'karras', use_karras_sigmas = false })
  t.equal(schedulers.load('euler', { sigmas = 'beta', use_karras_sigmas = false }).options.sigmas, 'beta')
  not_loaded("'dpmpp_2m_karras' already has sigmas = karras, so '_exponential' contradicts it", 'dpmpp_2m_karras_exponential')
  not_loaded("already has spacing = trailing, so '_leading'", 'ddim_trailing_leading')
  not_loaded('the name sets sigmas = karras, but an option sets beta: leave one out', 'dpmpp_2m_karras:sigmas=beta')
  not_loaded('the name sets sigmas = karras, but an option sets exponential', 'dpmpp_2m_karras', { use_exponential_sigmas = true })
  not_loaded('spacing = trailing and sigmas = karras contradict each other', 'dpmpp_2m_karras_trailing')
  not_loaded('steps is given twice', 'ddim:steps=3,steps=4')
  not_loaded('the name sets sigmas = karras, but an option sets %[3,1,0%]: leave one out', 'euler_karras:sigmas=[3,1,0]')
  not_loaded('steps contradict', 'ddim', { steps = 3, num_inference_steps = 4 })
  not_loaded('thresholding and clip_sample contradict', 'ddim:thresholding=true,clip_sample=true')
  not_loaded('use_karras_sigmas must be true or false, not yes', 'euler', { use_karras_sigmas = 'yes' })
  local path = scratch.write('both.json', [[{ "_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": true,
    "use_beta_sigmas": true }]])
  not_loaded('both.json: use_beta_sigmas and use_karras_sigmas contradict', path)
end)

t.test('a wrong call and an unknown name', function()
  not_loaded("^schedulers.load needs a string, a name such as 'ddim' or the path of a file, not nil$", nil)
  not_loaded('not a table', {})
  not_loaded('^ddim: options must be a table such as { steps = 20 }, not a number$', 'ddim', 5)
  not_loaded('^ddim: options have names, not 1$', 'ddim', { 5 })
  not_loaded('^ddim: options have names, not a table$', 'ddim', { [{}] = 5 })
  not_loaded('the path of a file, not an empty string$', ' ')
  not_loaded("^scheduler 'ddim:steps': 'steps' is not of the form option=value$", 'ddim:steps')
  not_loaded("^scheduler 'ddim:': '' is not of the form option=value$", 'ddim:')
  refused('schedulers.help needs a name as text, not a number', schedulers.help, 5)
  refused("^there is no scheduler 'ddam': did you mean ddim%?$", schedulers.help, 'ddam')
  t.equal(select('#', schedulers.help()), 1)
  t.equal(select('#', schedulers.help 'ddim'), 1)
  for word, ours in pairs {
    ['DPM++ 2M Karras'] = 'dpmpp_2m_karras', ['DPM++ 2M SDE'] = 'dpmpp_2m_sde', ['Euler a'] = 'euler_a', ['UniPC'] = 'unipc',
    ['DPM++ SDE Karras'] = 'dpmpp_sde_karras', DPMSolverMultistepScheduler = 'dpmpp_2m', EulerDiscreteScheduler = 'euler',
    DPMSolverSinglestepScheduler = 'dpm_single_2', DDPMScheduler = 'ddim:eta=1', uni_pc_bh2 = 'unipc',
    dpmpp_2m_sde_gpu = 'dpmpp_2m_sde', KDPM2DiscreteScheduler = 'kdpm2', ['LMS Karras'] = 'lms_karras', TCDScheduler = 'tcd',
  } do
    not_loaded('did you mean ' .. ours:gsub('%p', '%%%0') .. '%?$', word)
    t.ok(schedulers.load(ours), ours)
  end
end)

t.test("a user's file with mistakes gives one line each", function()
  local function file(source, pattern, options)
    not_loaded(pattern, scratch.write('mine.lua', source), options)
  end
  file("require 'no.such.module'", "^scheduler file .*mine.lua:1: module 'no.such.module' not found$")
  file("return function() require 'no.such.module' end", "mine.lua:1: module 'no.such.module' not found$")
  local works = 'function() return { timesteps = { 5, 3 }, step = function(_, _, _, x) return x end%s } end'
  local function with(fields) return ('return { new = %s, %s }'):format(works:format '', fields) end
  file(with 'options = 5', 'mine.lua: options must be a list of { name, default, help }, not a number')
  file(with 'options = { 5 }', 'option 1 must be { name, default, help }, not a number')
  file(with "options = { { 'a', 1, choices = 5 } }", 'choices of option a must be a table, not a number')
  file(with "options = { { 'a', 5, min = 6 } }", 'the default of a cannot be 5: it is a finite number from 6 on')
  file(with 'help = 5', 'help must be a string, not a number')
  file(with 'least_steps = {}', 'least_steps must be a number or a function of the options, not a table')
  file('return ' .. works:format ', reset = 5', 'new%(%) returned a reset that must be a function, not a number')
  file('return ' .. works:format ', options = 5', 'returned options that must be a table, not a number')
  file('return ' .. works:format ', init_noise_sigma = "a"', 'init_noise_sigma that must be a number above 0, not a')
  file('return function() return { timesteps = { 3, 5 }, step = print } end', 'timesteps that increase: number 2 is 5, after 3')
  file('return function() return { timesteps = { 1000, 5 }, step = print } end',
    'number 1 is 1000, but the network was trained with 0 to 999')
  file('return function() return { timesteps = { 5, -1 }, step = print } end', 'number 2 is %-1, but the network')
  file('return ' .. works:format '', 'steps cannot be 0', { steps = 0 })
  -- A list of options without the group `steps` has it nevertheless.
  local path = scratch.write('mine.lua', with "options = { { 'a', 1, 'something' } }")
  t.equal(schedulers.load(path, { steps = 7 }).options.steps, 7)
  refused('no option "b": did you mean "a"', schedulers.load, path, { b = 3 })
  t.ok(schedulers.help(path):find 'something')
end)

t.test("diffusers' files: misspelt and wrong keys are named as written", function()
  local function file(fields, pattern)
    not_loaded(pattern, scratch.write('scheduler_config.json', ('{ "_class_name": "DDIMScheduler", "_note": 5, %s }'):format(fields)))
  end
  file('"beta_strat": 0.1', 'scheduler_config.json: diffusers has no option "beta_strat": did you mean "beta_start"%?$')
  file('"timestep_spaceing": "trailing"', 'no option "timestep_spaceing": did you mean "timestep_spacing"')
  file('"num_train_timesteps": 1e9', 'num_train_timesteps must be from 2 to 100000, not 1000000000')
  file('"num_train_timesteps": "many"', 'num_train_timesteps must be a number, not string')
  file('"prediction_type": "flow_prediction"', 'prediction_type cannot be "flow_prediction": epsilon, v, sample')
  file('"prediction_type": [1]', 'prediction_type must be a string, not table')
  file('"beta_start": 0.5', 'beta_start = 0.5 is above beta_end = 0.02')
  file('"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"', 'pure noise')
  not_loaded("the class DDPMScheduler is not supported; .*; the most similar scheduler is 'ddim:eta=1'",
    scratch.write('scheduler_config.json', '{ "_class_name": "DDPMScheduler" }'))
  -- Keys of another diffusers class are ignored.
  local path = scratch.write('scheduler_config.json', '{ "_class_name": "DDIMScheduler", "skip_prk_steps": true, "flow_shift": 1 }')
  t.equal(schedulers.load(path).options.clip_sample, true)
  t.ok(schedulers.help(path):find "the numbers are diffusers', mistakes included: with 'linspace' a step does not end")
  t.ok(schedulers.help 'dpmpp_3m_sde':find 'wrong sign')
end)

t.test('a minimum number of steps gives one sentence, which the engine prints', function()
  local function warning(spec, steps, least) return schedulers.load(spec, { steps = steps }):warning(least) end
  t.ok(warning('dpmpp_2m_karras', 4):find '^scheduler dpmpp_2m_karras: 4 steps are too few for this method', 'said')
  t.equal(warning('dpmpp_2m_karras', 5), nil)
  t.equal(warning('dpmpp_2m', 4), nil, 'its first steps are shorter')
  t.equal(warning('lcm', 1), nil, 'made for few steps')
  t.ok(warning('ddim', 10, 15):find '10 steps are too few .* at least 15', "the checkpoint's bound")
  t.ok(warning('ddim', 1):find '1 step is too few')
  refused('warning takes a number of steps, not a string', warning, 'ddim', 1, 'many')
  local path = scratch.write('mine.lua', 'return { least_steps = 9, new = function(o) return { timesteps = { 5 }, step = print } end }')
  t.ok(warning(path, 8):find '8 steps are too few' and not warning(path, 9))
end)

t.test('output is deterministic: keys are written in order', function()
  local function settings()
    local r = child.run { '-e', "print(require 'cr.json'.encode(require 'cr.schedulers'.load('euler', { steps = 3, "
      .. "use_karras_sigmas = true, s_churn = 1 }):settings()))" }
    t.equal(r.code, 0, r.err)
    return r.out
  end
  t.equal(settings(), settings())
  local trace = require 'cr.tools.trace'
  local event = { name = 'add', start = 0.5, seconds = 0.1, shape = '[2]', dtype = 'f32', device = 'cpu' }
  trace.write(scratch.path 'trace.json', { event })
  t.equal(scratch.read(scratch.path 'trace.json'), '{"displayTimeUnit":"ms","traceEvents":[{"args":{"name":"cpu"},'
    .. '"name":"thread_name","ph":"M","pid":1,"tid":1},{"args":{"dtype":"f32","result":"[2]"},"cat":"operation","dur":100000,'
    .. '"name":"add","ph":"X","pid":1,"tid":1,"ts":500000}]}\n')
end)

t.done()
