--- Custom steps: listed timesteps and noise levels, tables, sigma formulas for all methods, a start at a later step,
--- and the amount of fresh noise.

local cr = require 'cr'
local t = require 'tests.support.tap'
local known_noise = require 'tests.support.known_noise'
local gaussian = require 'tests.support.gaussian'
local schedulers = require 'cr.schedulers'
local scratch = require 'tests.support.scratch'

local start = t.formula('input:sched', { 1, 4, 4 }):to 'f64'

-- A network that ignores the timestep, so that only noise levels matter.
local function predict(x) return (x * 1.7):sin() * 0.8 + x * 0.1 end

local function run(s, x)
  return known_noise.fixed(function()
    x = x or s:start(start)
    for _, at in ipairs(s.timesteps) do x = cr.scope(function() return s:step(predict(x), at, x) end) end
    return x
  end)
end

local function refused(what, ...)
  local ok, message = pcall(schedulers.load, ...)
  t.equal(ok or message, what)
end

t.test("listing a method's own levels gives its own steps", function()
  local seen = 0
  for _, name in ipairs(schedulers.names()) do
    local s = schedulers.load(name, { steps = 6 })
    if s.sigmas then
      local list = {}
      for i, sigma in ipairs(s.sigmas) do list[i] = ('%.17g'):format(sigma) end
      local listed = schedulers.load(('%s:sigmas=[%s]'):format(name, table.concat(list, ',')))
      t.equal(#listed.timesteps, #s.timesteps, name)
      listed.init_noise_sigma = s.init_noise_sigma
      t.near(run(listed), run(s), 1e-12, name)
      seen = seen + 1
    end
  end
  t.ok(seen >= 20, seen .. ' methods have levels')
end)

t.test('every method accepts timesteps, from a spec, a script and a file', function()
  local list = { 990, 700, 500, 260, 100, 20 }
  for _, name in ipairs(schedulers.names()) do
    if not name:find 'trailing' and not name:find 'zsnr' then
      local s = schedulers.load(name .. ':timesteps=[990,700,500,260,100,20]')
      local at = {}
      for _, ts in ipairs(s.timesteps) do at[ts] = true end
      for _, ts in ipairs(list) do t.ok(at[ts], ('%s asks at %d'):format(name, ts)) end
      t.equal(s.options.steps, 6, name)
      t.near(run(schedulers.load(name, { timesteps = list, steps = 6 })), run(s), 0, name)
    end
  end
  local path = scratch.write('scheduler_config.json', [[{ "_class_name": "EulerDiscreteScheduler", "timesteps": [990, 700, 20] }]])
  t.equal(table.concat(schedulers.load(path).timesteps, ' '), '990 700 20', "beside diffusers' own keys")
  -- A list that ends at the smallest noise level of training: DDIM and Euler's method are then equal.
  local listed = ':timesteps=[990,700,500,260,100,20]'
  t.near(run(schedulers.load('ddim' .. listed), start),
    run(schedulers.load('euler:final_sigma=sigma_min' .. listed:gsub('^:', ',')), start), 1e-12)
end)

t.test('optimized tables of steps', function()
  -- The timesteps of the paper, which diffusers also uses.
  local found = schedulers.load('dpmpp_2m_ays', { steps = 10 }).timesteps
  for i, at in ipairs { 999, 850, 736, 645, 545, 455, 343, 233, 124, 24 } do
    t.ok(math.abs(found[i] - at) <= 1, ('step %d at %d, not %d'):format(i, found[i], at)) -- the levels have three digits
  end
  local s = schedulers.load('euler_gits', { steps = 10 })
  t.near(s.sigmas[3], 7.49, 1e-4)
  t.equal(s.sigmas[11], 0)
  t.near(schedulers.load('euler_gits:final_sigma=sigma_min', { steps = 10 }).sigmas[11], 0.02917, 1e-4)
  -- Each table decreases, and has its number of steps and both ends; beyond the largest table every second level is
  -- taken from it.
  local known = require 'cr.sampling.searched'
  for steps = 2, 20 do
    local levels = known.gits[steps]
    t.equal(#levels, steps + 1)
    t.ok(levels[1] == 14.61464 and levels[steps + 1] == 0.02917, steps .. ' steps')
    for i = 1, steps do t.ok(levels[i] > levels[i + 1], ('%d steps: level %d'):format(steps, i)) end
    local s4 = schedulers.load('ddim_gits', { steps = steps })
    t.equal(#s4.timesteps, steps)
  end
  t.near(schedulers.load('euler_gits', { steps = 4 }).sigmas[3], 2.36326, 1e-5)
  t.near(schedulers.load('euler_gits', { steps = 40 }).sigmas[3], 12.2309, 1e-4)
  -- With twice as many steps each second level is the table's; those between are geometric means.
  local twice, once = schedulers.load('heun_ays', { steps = 20 }).sigmas, schedulers.load('heun_ays', { steps = 10 }).sigmas
  for i = 1, 9 do
    t.near(twice[2 * i - 1], once[i], 1e-9)
    t.near(twice[2 * i], math.sqrt(once[i] * once[i + 1]), 1e-9)
  end
  for _, name in ipairs { 'ddim_ays', 'euler_ancestral_ays', 'unipc_gits', 'dpm_single_2_ays', 'lms_gits', 'deis_ays' } do
    local off = gaussian.error_of(name, { steps = 20 })
    t.ok(off < 0.35, ('%s: off by %.3g'):format(name, off))
  end
end)

t.test('formulas for DDIM and Euler ancestral', function()
  t.near(run(schedulers.load('ddim_karras', { steps = 7 }), start),
    run(schedulers.load('euler_karras:final_sigma=sigma_min', { steps = 7 }), start), 1e-12, 'DDIM is Euler at the same levels')
  t.near(run(schedulers.load('euler_ancestral_karras:eta=0', { steps = 7 })), run(schedulers.load('euler_karras', { steps = 7 })), 1e-12)
  for _, case in ipairs { { 'ddim_karras', 0.03, 5 }, { 'ddim_exponential:eta=1', 0.05, 3 }, { 'euler_ancestral_karras', 0.05, 3 },
    { 'euler_ancestral_beta', 0.13, 3 } } do
    local spec, most, factor = unpack(case)
    local few, many = gaussian.error_of(spec, { steps = 12 }), gaussian.error_of(spec, { steps = 96 })
    t.ok(many < most and many * factor < few, ('%s: off by %.3g with 12 steps, by %.3g with 96'):format(spec, few, many))
  end
end)

t.test('fresh noise: with none the method is deterministic, and with any amount it reaches the data', function()
  for plain, noisy in pairs {
    dpmpp_2m = 'dpmpp_2m_sde', dpmpp_3m = 'dpmpp_3m_sde', dpm_single_2 = 'dpm_single_2_sde', dpm_2m = 'dpm_2m_sde',
  } do
    t.near(run(schedulers.load(noisy .. ':eta=0', { steps = 8 })), run(schedulers.load(plain, { steps = 8 })), 1e-12, noisy)
  end
  for _, spec in ipairs { 'dpmpp_2m_sde:eta=0.5', 'dpmpp_3m_sde:eta=1.5', 'dpm_2m_sde:eta=0.4', 'dpm_single_2_sde:eta=0.5',
    'euler_ancestral:eta=0.5' } do
    local few, many = gaussian.error_of(spec, { steps = 12 }), gaussian.error_of(spec, { steps = 96 })
    t.ok(many < 0.08 and many * 2 < few, ('%s: off by %.3g with 12 steps, by %.3g with 96'):format(spec, few, many))
  end
  for _, spec in ipairs { 'dpmpp_2m_sde', 'euler_ancestral', 'ddim:eta=1', 'dpm_single_2_sde' } do
    local mark = spec:find ':' and ',' or ':'
    local function with(s_noise) return schedulers.load(('%s%ss_noise=%g'):format(spec, mark, s_noise), { steps = 5 }) end
    local one, other = run(with(1), start), run(with(0.5), start)
    t.near(run(schedulers.load(spec, { steps = 5 }), start), one, 0, spec)
    t.ok(t.relative_error(one, other) > 1e-3, spec .. ' takes s_noise')
  end
  refused('dpmpp_2m: eta is for algorithms that add noise: use one with _sde in its name', 'dpmpp_2m:eta=0.5')
end)

t.test('a start at a later step: the remaining steps are those of the full run', function()
  for _, name in ipairs { 'ddim', 'ddim_karras', 'euler', 'dpmpp_1m', 'euler_ancestral', 'dpm_1m', 'deis_1' } do
    local whole, late = schedulers.load(name, { steps = 8 }), schedulers.load(name, { steps = 8, begin_index = 3 })
    t.equal(#late.timesteps, 5, name)
    known_noise.fixed(function()
      local x, from = start, nil
      for i, at in ipairs(whole.timesteps) do
        if i == 4 then from = x end
        x = whole:step(predict(x), at, x, start)
      end
      local y = from
      for _, at in ipairs(late.timesteps) do y = late:step(predict(y), at, y, start) end
      t.near(y, x, 0, name)
    end)
  end
  for _, name in ipairs(schedulers.names()) do
    local s = schedulers.load(name, { steps = 8, begin_index = 5 })
    t.ok(s.timesteps[1] < 620, ('%s begins at %g'):format(name, s.timesteps[1]))
    -- A sample of the data, with noise of the first level.
    local source, noise = cr.full({ 64 }, 0.7, { dtype = 'f64' }), cr.randn({ 64 }, { generator = cr.generator(1), dtype = 'f64' })
    local alpha = s:start(source, noise * 0):mean():item() / 0.7
    t.near(s:start(source * 0, noise):std():item() / noise:std():item(), math.sqrt(1 - alpha * alpha), 1e-9, name)
    t.ok(alpha > 0.5 and alpha < 1, ('%s: a share of %g of the signal'):format(name, alpha))
  end
  -- A file that does not support it.
  local example = cr.root .. '/scripts/examples/my_scheduler.lua'
  t.equal(table.concat(schedulers.load(example, { steps = 5, begin_index = 3 }).timesteps, ' '), '201 1')
end)

t.test('refusals', function()
  refused('euler: sigmas must decrease: number 2 is 7, after 5', 'euler:sigmas=[5,7]')
  refused('euler: sigmas is a list of 1, but it needs at least 2', 'euler:sigmas=[5]')
  refused('euler: sigmas[2] must be a number, not string', 'euler:sigmas=[5,x]')
  refused('euler: sigmas cannot be "even": timesteps, karras, exponential, beta, ays, gits, or a list such as [14.6,3.9,0.9,0]',
    'euler:sigmas=even')
  refused('pndm: sigmas must be a table, not string', 'pndm:sigmas=karras')
  refused('ddim: timesteps must decrease: number 2 is 7, after 5', 'ddim:timesteps=[5,7]')
  refused('dpmpp_2m: timesteps begin at 1000, past the last training step 999', 'dpmpp_2m:timesteps=[1000,5]')
  refused('ddim: timesteps is a list of 0, but it needs at least 1', 'ddim:timesteps=[]')
  refused('unipc: steps = 3 and a list of 2 contradict each other: leave steps out', 'unipc:timesteps=[7,5],steps=3')
  refused('unipc: steps = 3 and a list of 2 contradict each other: leave steps out', 'unipc', { timesteps = { 7, 5 }, steps = 3 })
  refused('euler: timesteps and sigmas contradict each other: leave one out', 'euler:timesteps=[7,5],sigmas=karras')
  refused('euler_trailing: spacing = trailing and listed steps contradict each other: leave one out', 'euler_trailing:timesteps=[7,5]')
  refused("euler_ays: sigma_min belongs to a formula, but the noise levels are a table's: add sigmas=karras, exponential or beta",
    'euler_ays:sigma_min=0.1')
  refused('euler: begin_index = 8 skips all 8 steps', 'euler:steps=8,begin_index=8')
  refused('euler: begin_index cannot be -1: it is a whole number from 0 on', 'euler', { begin_index = -1 })
  refused("scheduler 'euler:sigmas=[5,2],sigmas=[4,1]': sigmas is given twice", 'euler:sigmas=[5,2],sigmas=[4,1]')
end)

t.done()
