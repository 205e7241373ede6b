--- Samplers of k-diffusion and ComfyUI, and Restart: those programs' results, the order of each method, refusals.

local cr = require 'cr'
local t = require 'tests.support.tap'
local known_noise = require 'tests.support.known_noise'
local gaussian = require 'tests.support.gaussian'
local schedulers = require 'cr.schedulers'
local solver = require 'cr.sampling.solver'
local scratch = require 'tests.support.scratch'

local function predict(x, at) return (x * 1.7 + at / 250):sin() * 0.8 + x * 0.1 end

local function walk(s, x)
  return known_noise.fixed(function()
    for _, at in ipairs(s.timesteps) do x = cr.scope(function() return s:step(predict(x, at), at, x) end) end
    return x
  end)
end

t.test("results of k-diffusion's and ComfyUI's samplers", function()
  local fixture = require 'cjson'.decode(scratch.read(require 'tests.support.golden'.folder .. 'samplers.json'))
  local start = t.formula('input:sched', { 1, 4, 4 }):to 'f64'
  local first = fixture.sigmas[1]
  for _, case in ipairs(fixture.cases) do
    local s = schedulers.load(('%s%ssigmas=[%s]'):format(case.spec, case.spec:find ':' and ',' or ':', table.concat(fixture.sigmas, ',')))
    -- Their samplers begin with z = x / alpha = start sigma.
    local x = walk(s, start * (first / math.sqrt(first * first + 1)))
    t.near(x:view(16), cr.tensor(case.final, { dtype = 'f64' }), 1e-9, case.spec)
  end
  t.equal(#fixture.cases, 17)
end)

t.test('the order of each method, on data with a known exact solution', function()
  for _, case in ipairs {
    { 'euler', 1 }, { 'heun', 2 }, { 'ddim', 1 }, { 'dpmpp_2m', 2 }, { 'unipc', 2 }, { 'lms', 3 }, { 'deis_3', 2 },
    { 'dpmpp_2s_ancestral', 2 }, { 'dpmpp_2s_ancestral:eta=0', 2 }, { 'dpmpp_sde', 2 }, { 'dpmpp_sde:eta=0.5', 2 }, { 'kdpm2', 2 },
    { 'kdpm2_ancestral', 2 }, { 'gradient_estimation', 1 }, { 'res_multistep', 2 }, { 'er_sde', 2 }, { 'er_sde_2', 2 }, { 'er_sde_1', 1 },
    { 'sa_solver', 2 }, { 'sa_solver_3', 2 }, { 'sa_solver:tau=0', 2 }, { 'sa_solver_3:tau=0,corrector_order=0', 2 },
    { 'sa_solver:tau_from=0,tau_to=1000', 2 }, { 'sa_solver:predictor_order=1,corrector_order=0', 1 }, { 'euler_ancestral', 1 },
    { 'dpmpp_2m_sde', 2 }, { 'ddim:eta=1', 1 }, { 'restart:restart_min=0.5,restart_max=1,restart_steps=60', 2 },
  } do
    local spec, order = unpack(case)
    local few, many = gaussian.error_between(spec, 16), gaussian.error_between(spec, 64)
    local found = math.log(few / many) / math.log(4)
    t.ok(found > order - 0.25 and many < (order == 1 and 0.025 or 0.004),
      ('%s: order %.2f, off by %.3g with 16 steps, by %.3g with 64'):format(spec, found, few, many))
  end
end)

t.test('Restart goes up from the given level, and down again', function()
  local s = schedulers.load('restart', { steps = 20 })
  local up, first = 0, nil
  for i = 2, #s.timesteps do
    if s.timesteps[i] > s.timesteps[i - 1] then up, first = up + 1, first or i end
  end
  t.equal(up, 1)
  t.near(s.levels[first], 2, 0.2, 'up to')
  t.near(s.levels[first - 1], 0.1, 0.08, 'from')
  t.equal(#schedulers.load('restart:restarts=3', { steps = 20 }).timesteps, 39 + 3 * 10, 'two calls per step')
  local start = t.formula('input:sched', { 1, 4, 4 }):to 'f64'
  t.near(walk(schedulers.load('restart:restarts=0', { steps = 9 }), start), walk(schedulers.load('heun', { steps = 9 }), start), 0,
    "without restarts it is Heun's method")
  -- Restarting corrects earlier errors: first Heun with few steps, then the same with restarts after it.
  local plain, again = gaussian.error_of('heun', { steps = 6 }), gaussian.error_of('restart:restarts=2,restart_steps=12', { steps = 6 })
  t.ok(again < plain, ('off by %.3g, and by %.3g without'):format(again, plain))
end)

t.test("diffusers' names and files, and refusals", function()
  local path = scratch.write('scheduler_config.json', [[{ "_class_name": "SASolverScheduler", "algorithm_type": "noise_prediction" }]])
  t.raises(function() schedulers.load(path) end, 'algorithm_type cannot be "noise_prediction": data_prediction')
  t.raises(function() schedulers.load 'sa_solver:corrector_order=1' end, 'a corrector_order of 1 corrects nothing')
  t.raises(function() schedulers.load 'restart:restart_min=3' end, 'restart_min = 3 must be below restart_max = 2')
  t.raises(function() schedulers.load 'kdpm3' end, "no scheduler 'kdpm3': did you mean kdpm2")
  for word, ours in pairs { ['DPM++ SDE Karras'] = 'dpmpp_sde_karras', ['DPM2 a'] = 'kdpm2_ancestral', SASolverScheduler = 'sa_solver',
    KDPM2AncestralDiscreteScheduler = 'kdpm2_ancestral', ['DPM++ 2S a'] = 'dpmpp_2s_a', res_2m = 'res_multistep' } do
    t.raises(function() schedulers.load(word) end, 'did you mean ' .. ours:gsub('%p', '%%%0') .. '%?$')
    t.ok(schedulers.load(ours), ours)
  end
end)

t.test('extending a built-in method: name, options and step are replaced, the rest is inherited', function()
  local heun = require 'cr.schedulers.heun'
  local M = solver.extend(heun, { name = 'halved', help = 'half of it', options = { { 'gain', 0.5, 'how much' } } })
  function M:update(i, now) return solver.form(heun.update(self, i, now), self.options.gain) end
  t.equal(M.variants.halved and M.aliases == nil and M.diffusers == nil, true)
  local x = t.formula('input:sched', { 1, 4, 4 }):to 'f64'
  local mine, theirs = M.new { steps = 3, gain = 0.25 }, heun.new { steps = 3 }
  t.near(mine:step(x, mine.timesteps[1], x), theirs:step(x, theirs.timesteps[1], x) * 0.25, 1e-12)
  mine:reset()
  theirs:reset()
  t.raises(function() M.new { gian = 1 } end, 'no option "gian": did you mean "gain"')
  t.raises(function() heun.new { gain = 1 } end, 'no option "gain"')
end)

t.done()
