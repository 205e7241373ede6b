-- All schedulers compared with diffusers' results in float64, and loading by name or file.
--
-- tests/golden/schedulers.safetensors: golden values by our names. schedulers.json: diffusers with its own
-- configurations (created by tests/golden/schedulers.py).

local cr = require 'cr'
local t = require 'tests.support.tap'
local known_noise = require 'tests.support.known_noise'
local schedulers = require 'cr.schedulers'
local scratch = require 'tests.support.scratch'

local FOLDER = require 'tests.support.golden'.folder

-- The network of the golden values.
local function predict(x, at) return (x * 1.7 + at / 250):sin() * 0.8 + x * 0.1 end

-- All steps from `start`.
local function run(s, start)
  local x = s:start(start)
  for _, at in ipairs(s.timesteps) do
    x = cr.scope(function() return s:step(predict(x, at), at, x) end)
  end
  return x
end

local function largest_difference(a, b)
  if #a ~= #b then return math.huge end
  local most = 0
  for i = 1, #a do most = math.max(most, math.abs(a[i] - b[i])) end
  return most
end

t.test('every golden value of diffusers, by name', function()
  local file = cr.weights.open(FOLDER .. 'schedulers.safetensors')
  local names = {}
  for _, key in ipairs(file.names) do
    local name, steps = key:match '^sched64%.([%w_]+)%.(%d+)%.final$'
    if name then names[#names + 1] = { name, tonumber(steps) } end
  end
  local start = t.formula('input:sched', { 64 }):to 'f64'
  for _, case in ipairs(names) do
    local name, steps = unpack(case)
    local key = ('sched64.%s.%d.'):format(name, steps)
    local s = schedulers.load(name, { steps = steps })
    local expected = file:get(key .. 'timesteps'):tolist()
    local difference = largest_difference(s.timesteps, expected)
    t.ok(difference <= 1e-6, ('%stimesteps: off by %g'):format(key, difference))
    for i, v in ipairs(expected) do
      if v == math.floor(v) then t.equal(s.timesteps[i], v, key .. 'timesteps') end
    end
    t.near(run(s, start), file:get(key .. 'final'), 1e-9, key .. 'final')
  end
  file:close()
  t.equal(#names, 54, 'goldens')
end)

t.test("every case of diffusers, from its configuration", function()
  local fixture = require 'cjson'.decode(scratch.read(FOLDER .. 'schedulers.json'))
  local start = t.formula('input:sched', { 1, 4, 4 }):to 'f64'
  local classes = {}
  for n, case in ipairs(fixture.cases) do
    local path = scratch.write('scheduler_config.json', case.config)
    local options = { steps = case.steps }
    for k, v in pairs(case.options) do options[k] = v end
    local ok, s = pcall(schedulers.load, path, options)
    local what = ('case %d, %d steps, %s'):format(n, case.steps, case.config)
    if t.ok(ok, ('%s: %s'):format(what, tostring(s))) then
      classes[case.config:match '"_class_name": "(%w+)"'] = true
      local difference = largest_difference(s.timesteps, case.timesteps)
      t.ok(difference <= 1e-6, ('%s: timesteps off by %g'):format(what, difference))
      if difference <= 1e-6 then
        local x = known_noise.fixed(function() return run(s, start) end)
        t.near(x:view(16), cr.tensor(case.final, { dtype = 'f64' }), 1e-9, what)
      end
    end
  end
  local count = 0
  for _ in pairs(classes) do count = count + 1 end
  t.equal(count, 14, 'classes')
  t.ok(#fixture.cases > 150, 'cases')
end)

t.test('each file of the folder is a scheduler, and each name runs: one operation per step, no state left', function()
  local start, other = t.formula('input:sched', { 1, 2, 3, 4 }):to 'f64', t.formula('input:other', { 1, 2, 3, 4 }):to 'f64'
  local in_names = {}
  for _, name in ipairs(schedulers.names()) do
    in_names[require 'cr.schedulers'.help(name):match ': ([^\n]*)'] = true
    local s = schedulers.load(name, { steps = 7 })
    local own, combined = cr.lincomb, 0
    function cr.lincomb(...)
      combined = combined + 1
      return own(...)
    end
    local ok, first = pcall(known_noise.fixed, function() return run(s, start) end)
    cr.lincomb = own
    t.ok(ok, ('%s: %s'):format(name, tostring(first)))
    t.equal(combined, #s.timesteps, name .. ': one combination a step')
    known_noise.fixed(function() return run(s, other) end)
    -- A window that ends early, then a reset.
    for i = 1, 3 do
      cr.scope(function() s:step(other, s.timesteps[i], other, start) end)
    end
    s:reset()
    t.near(known_noise.fixed(function() return run(s, start) end), first, 0, name .. ': the window before changes nothing')
    t.near(known_noise.fixed(function() return run(schedulers.load(name, { steps = 7 }), start) end), first, 0, name .. ': as fresh')
    t.equal(s:settings().options.steps, 7, name)
    local half = schedulers.load(name, { steps = 3 })
    local x = start:to 'f16'
    for _, at in ipairs(half.timesteps) do x = half:step(x * 0.5, at, x) end
    t.equal(x.dtype, 'f16', name)
  end
  for entry in require 'lfs'.dir(cr.root .. '/lua/cr/schedulers') do
    local file = entry:match '^(.*)%.lua$'
    if file and file ~= 'init' then t.ok(in_names[require('cr.schedulers.' .. file).help], file .. ' is among the names') end
  end
end)

t.test('each method converges to the exact solution for Gaussian data, by its order', function()
  -- Data with mean 0.7 and deviation 0.4 in every element: the optimal prediction is known, and so is the exact
  -- result.
  local MEAN, DEVIATION = 0.7, 0.4
  local z = t.formula('input:sched', { 64 }):to 'f64'
  local function path_at(alpha, sigma)
    return z * math.sqrt((alpha * DEVIATION) ^ 2 + sigma ^ 2) + alpha * MEAN
  end
  local alphas = schedulers.load('ddim').alphas
  local function distance(name, steps)
    local s = schedulers.load(name, { steps = steps })
    local function level(at)
      local low = math.floor(at)
      local sigma = math.sqrt(1 / alphas[low] - 1)
      if at > low then sigma = sigma + (at - low) * (math.sqrt(1 / alphas[low + 1] - 1) - sigma) end
      local alpha = 1 / math.sqrt(sigma * sigma + 1)
      return alpha, sigma * alpha
    end
    local x = path_at(level(s.timesteps[1]))
    for _, at in ipairs(s.timesteps) do
      local alpha, sigma = level(at)
      x = cr.scope(function()
        local variance = (alpha * DEVIATION) ^ 2 + sigma ^ 2
        local eps = (x - alpha * MEAN) * (sigma / variance)
        return s:step(eps, at, x)
      end)
    end
    local ends_clean = s.options.final_sigma == 'zero' or name == 'lms' or name == 'heun'
    local a = ends_clean and 1 or alphas[0]
    return t.relative_error(x, path_at(math.sqrt(a), math.sqrt(1 - a)))
  end
  -- With eight times as many steps, the error of a first-order method (or of one whose last step is of order 1)
  -- decreases 8 times; that of a higher-order method much more.
  local high = { dpm_3m = true, deis_3 = true, heun = true, lms = true, pndm = true }
  for _, name in ipairs { 'ddim', 'dpmpp_1m', 'dpmpp_2m', 'dpmpp_3m', 'dpm_2m', 'dpm_3m', 'dpm_single_2', 'dpm_single_3',
    'unipc', 'unipc_3', 'deis', 'deis_3', 'euler', 'heun', 'lms', 'pndm' } do
    local few, many = distance(name, 10), distance(name, 80)
    t.ok(few < 0.2 and many < few / (high[name] and 30 or 4), ('%s: off by %.3g with 10 steps, by %.3g with 80'):format(name, few, many))
  end
end)

t.test('steps must be called in order', function()
  local s = schedulers.load('dpmpp_2m', { steps = 4 })
  local x = cr.zeros(1, 4)
  t.raises(function() s:step(x, s.timesteps[2], x) end, 'step 1 is at timestep 999, not 749; call reset')
  s:step(x, s.timesteps[1], x)
  t.raises(function() s:step(x, s.timesteps[1], x) end, 'step 2 is at timestep 749, not 999')
  s:reset()
  s:step(x, s.timesteps[1], x)
  s:reset()
end)

t.test('names, suffixes, options in a name', function()
  local function same(a, b)
    t.equal(table.concat(schedulers.load(a, { steps = 6 }).timesteps, ' '),
      table.concat(schedulers.load(b, { steps = 6 }).timesteps, ' '), a .. ' and ' .. b)
  end
  same('euler_karras', 'euler:sigmas=karras')
  same('unipc_2_trailing', 'unipc:spacing=trailing')
  same('dpmpp_2', 'dpmpp_2m')
  same('dpmpp_2m:order=3:spacing=trailing', 'dpmpp_3m:spacing=trailing')
  same('euler_a', 'euler_ancestral')
  t.equal(#schedulers.load('dpmpp_2m:steps=5', { steps = 9 }).timesteps, 5)
  t.equal(#schedulers.load('heun', { num_inference_steps = 5 }).timesteps, 9)
  t.equal(schedulers.load 'dpmpp_3m_karras'.options.sigmas, 'karras')
  t.equal(schedulers.load('ddim_trailing', { timestep_spacing = 'leading' }).options.spacing, 'leading')
  t.equal(schedulers.load 'dpmpp_2m_sde_karras'.options.algorithm, 'sde-dpmsolver++')
  t.equal(schedulers.load('ddim:set_alpha_to_one=true').options.set_alpha_to_one, true)
  t.ok(schedulers.help():find('dpmpp_2m', 1, true) and schedulers.help 'lcm':find 'original_inference_steps')
end)

t.test('refusals are one sentence', function()
  local function refused(pattern, ...)
    local ok, message = pcall(schedulers.load, ...)
    t.ok(not ok and tostring(message):find(pattern) ~= nil and not tostring(message):find '\n',
      ('%s: %s'):format(pattern, tostring(message)))
  end
  refused("^there is no scheduler 'ddam': did you mean ddim%?$", 'ddam')
  refused('did you mean euler_karras', 'euler_karas')
  refused("no option sigmas = karras, so there is no 'pndm_karras'", 'pndm_karras')
  refused('^ddim: steps cannot be 0: it is a whole number from 1 on$', 'ddim', { steps = 0 })
  refused('^dpmpp_2m: steps is 2000, but the network was trained with only 1000$', 'dpmpp_2m', { steps = 2000 })
  refused('^pndm: steps cannot be 2.5: it is a whole number from 1 on$', 'pndm', { steps = 2.5 })
  refused('^euler: no option "ordr": did you mean', 'euler:ordr=2')
  refused('order must be from 1 to 3, not 4', 'deis:order=4')
  refused('spacing cannot be "even": leading, trailing, linspace', 'lms', { spacing = 'even' })
  refused("'order' is not of the form option=value", 'deis:steps=3,order')
  refused('dpmsolver cannot end without noise', 'dpmpp:algorithm=dpmsolver')
  refused('past the last training step', 'euler_leading', { steps = 1000 })
  refused('only 50 were distilled', 'tcd', { steps = 51 })
  refused('^unipc: use_flow_sigmas = true is not supported: it belongs to flow matching', 'unipc', { use_flow_sigmas = true })
  refused('there is no scheduler file ./none.lua', './none.lua')
end)

t.test("diffusers' configurations: LatentSync's is ddim; unreadable ones are reported", function()
  local path = scratch.write('scheduler_config.json', [[{
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.6.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false,
    "num_train_timesteps": 1000, "set_alpha_to_one": false, "steps_offset": 1, "trained_betas": null,
    "skip_prk_steps": true }]])
  local a, b = schedulers.load(path, { steps = 9 }), schedulers.load('ddim', { steps = 9 })
  for key, value in pairs(b.options) do t.equal(a.options[key], value, key) end
  t.equal(a.name, ('ddim (%s)'):format(path))
  t.equal(a:settings().file, path)
  t.equal(schedulers.load(scratch.folder).name, a.name, 'its folder')
  local function refused(text, pattern)
    local other = scratch.write('other.json', text)
    t.raises(function() schedulers.load(other) end, pattern)
  end
  refused('{', 'is not a scheduler configuration')
  refused('[1, 2]', 'is not a scheduler configuration')
  refused('{"_class_name": "FlowMatchEulerDiscreteScheduler"}', 'FlowMatchEulerDiscreteScheduler is not supported; .*DDIMScheduler')
  refused('{"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}', 'use_flow_sigmas = true is not supported')
  refused('{"_class_name": "DDIMScheduler", "beta_schedule": "round"}', 'beta_schedule cannot be "round"')
  t.raises(function() schedulers.load '/nowhere/scheduler_config.json' end, '/nowhere/scheduler_config.json')
end)

t.test("a user's own file", function()
  local start = t.formula('input:sched', { 1, 4, 4 }):to 'f64'
  local example = cr.root .. '/scripts/examples/my_scheduler.lua'
  -- Without lookahead the example equals DDIM, with it the result differs.
  local s = schedulers.load(example .. ':lookahead=0', { steps = 6 })
  local ddim = run(schedulers.load('ddim', { steps = 6 }), start)
  t.near(run(s, start), ddim, 1e-12)
  s:reset()
  s = schedulers.load(example, { steps = 6 })
  local first = run(s, start)
  t.ok(t.relative_error(first, ddim) > 1e-3, 'lookahead does something')
  s:reset()
  t.near(run(s, start), first, 0)
  s:reset()
  t.equal(s.name, example)
  t.equal(s:settings().options.lookahead, 0.5)

  local function refused(source, pattern)
    local path = scratch.write('mine.lua', source)
    local ok, message = pcall(function()
      local mine = schedulers.load(path, { steps = 2 })
      mine:step(start, mine.timesteps[1], start)
    end)
    t.ok(not ok and tostring(message):find(pattern) ~= nil, ('%s: %s'):format(pattern, tostring(message)))
  end
  refused('local a =\nreturn a +* 2', 'scheduler file .*mine.lua:2: unexpected symbol')
  refused('local cr = nil\ncr.x()', 'scheduler file .*mine.lua:2: attempt to index')
  refused('return 5', 'mine.lua must return a table with a function new%(options%), not number')
  refused('return {}', 'not a table without it')
  refused('return function() return 1 end', 'must return a table with timesteps and step, not number')
  refused('return function() return { timesteps = {} , step = print } end', 'without timesteps')
  refused('return function() return { timesteps = { 1, 0/0 }, step = print } end', 'timesteps of which number 2 is %-?nan')
  refused('return function() return { timesteps = { 1 } } end', 'without a function step')
  local body = 'return function() return { timesteps = { 5 }, step = function(self, m, t, x) %s end } end'
  refused(body:format '', 'mine.lua: step returned nothing at timestep 5; it must return the next sample, f64 on cpu %[1 4 4%]')
  refused(body:format 'return 3', 'step returned a number at')
  refused(body:format 'return x:view(16)', 'step returned %[16%] at')
  refused(body:format "return x:to 'f32'", 'step returned f32 on cpu at')
  refused('return { new = function(o) return { timesteps = { o.steps }, step = function() error "mine" end } end }', 'mine.lua:1: mine')
end)

t.done()
