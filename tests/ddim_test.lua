-- DDIM compared with diffusers' in double precision, and its options with their definitions.

local cr = require 'cr'
local t = require 'tests.support.tap'
local golden = require 'tests.support.golden'
local ddim = require 'cr.schedulers.ddim'

local function copy(a, extra)
  local b = {}
  for k, v in pairs(a) do b[k] = v end
  for k, v in pairs(extra) do b[k] = v end
  return b
end

-- The goldens' model: eps = 0.8 sin(1.7 x + t / 250) + 0.1 x.
local function run(options)
  local scheduler = ddim.new(options)
  local x = t.formula('input:sched', { 64 }):to 'f64' * scheduler.init_noise_sigma
  for _, step in ipairs(scheduler.timesteps) do
    x = cr.scope(function()
      local eps = (x * 1.7 + step / 250):sin() * 0.8 + x * 0.1
      return scheduler:step(eps, step, x)
    end)
  end
  return scheduler, x
end

local function compare(file, prefix, name, steps, tolerance)
  local scheduler, x = run(copy(ddim.variants[name], { steps = steps }))
  local key = ('%s.%s.%d.'):format(prefix, name, steps)
  t.equal(table.concat(scheduler.timesteps, ' '),
    table.concat(file:get(key .. 'timesteps'):tolist(), ' '), key .. 'timesteps')
  t.near(x, file:get(key .. 'final'), tolerance, key .. 'final')
end

for _, name in ipairs { 'ddim', 'ddim_trailing', 'ddim_zsnr_v' } do
  t.test(name .. ' agrees with diffusers in float64', function()
    local file = golden.open 'schedulers'
    for _, steps in ipairs { 4, 17, 20 } do compare(file, 'sched64', name, steps, 1e-9) end
    file:close()
  end)
end

t.test('diffusers\' float32 tables differ only by rounding', function()
  local file = golden.open 'networks'
  for _, name in ipairs { 'ddim', 'ddim_trailing' } do
    for _, steps in ipairs { 4, 17, 20 } do compare(file, 'sched', name, steps, 1e-6) end
  end
  file:close()
end)

t.test('each step is the DDIM formula, whatever the network predicts', function()
  local x = t.formula('input:x', { 5 }, { dtype = 'f64' })
  local noise = t.formula('input:noise', { 5 }, { dtype = 'f64' })
  local fresh = t.formula('input:fresh', { 5 }, { dtype = 'f64' })
  for _, eta in ipairs { 0, 0.3, 1 } do
    for _, prediction in ipairs { 'epsilon', 'v', 'sample' } do
      local s = ddim.new { steps = 10, prediction = prediction, eta = eta }
      local step = s.timesteps[3]
      local a, b = s.alphas[step], s.alphas[step - 100]
      local x0 = (x - noise * math.sqrt(1 - a)) / math.sqrt(a)
      local m = noise
      if prediction == 'v' then m = noise * math.sqrt(a) - x0 * math.sqrt(1 - a) end
      if prediction == 'sample' then m = x0 end
      local sigma = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
      local want = x0 * math.sqrt(b) + noise * math.sqrt(1 - b - sigma ^ 2) + fresh * sigma
      t.near(s:step(m, step, x, fresh), want, 1e-12, prediction .. ' with eta ' .. eta)
    end
  end
end)

t.test('the last step ends at the table\'s first alpha, or at one', function()
  local s = ddim.new { steps = 20 }
  local last = s.timesteps[20]
  local c_x = s:coefficients(last)
  t.near(c_x, math.sqrt(s.alphas[0] / s.alphas[last]), 1e-15)
  local one = ddim.new { steps = 20, set_alpha_to_one = true }
  t.near((one:coefficients(last)), 1 / math.sqrt(s.alphas[last]), 1e-15)
end)

t.test('spacings', function()
  t.equal(table.concat(ddim.new { steps = 5, spacing = 'linspace' }.timesteps, ' '), '999 749 500 250 0')
  t.equal(table.concat(ddim.new { steps = 4, spacing = 'trailing' }.timesteps, ' '), '999 749 499 249')
  t.equal(table.concat(ddim.new { steps = 4, steps_offset = 0 }.timesteps, ' '), '750 500 250 0')
  t.equal(ddim.new { steps = 1, spacing = 'linspace' }.timesteps[1], 999, 'one step begins where all is noise')
end)

t.test('a step of linspace ends where the next one begins; the last one ends without noise', function()
  local s = ddim.new { steps = 7, spacing = 'linspace' }
  for i, at in ipairs(s.timesteps) do
    local a, b = s.alphas[at], s.alphas[s.timesteps[i + 1]] or 1
    local of_x, of_eps = s:coefficients(at)
    t.near(of_x, math.sqrt(b / a), 1e-14)
    t.near(of_eps, math.sqrt(1 - b) - math.sqrt(b / a) * math.sqrt(1 - a), 1e-14)
  end
  -- diffusers uses a fixed stride, and 0 from training step 0.
  local theirs = ddim.new({ steps = 7, spacing = 'linspace' }, { diffusers = true })
  t.near((theirs:coefficients(999)), math.sqrt(s.alphas[999 - 142] / s.alphas[999]), 1e-14)
  t.equal((theirs:coefficients(0)), 1)
end)

t.test('noise for eta comes in the order of torch for channels-first data', function()
  local s = ddim.new { steps = 4, eta = 1, generator = cr.generator(7, 'torch-cpu') }
  local x = cr.zeros(1, 2, 3, 3, 4)
  local step = s.timesteps[2]
  local _, _, sigma = s:coefficients(step)
  local got = s:step(x, step, x)
  local draw = cr.randn({ 1, 4, 2, 3, 3 }, { generator = cr.generator(7, 'torch-cpu') })
  t.near(got, draw:permute(1, 3, 4, 5, 2) * sigma, 1e-6)
end)

t.test('half precision stays half precision', function()
  local s = ddim.new { steps = 4 }
  local x = t.formula('input:x', { 2, 8 }):to 'f16'
  local y = s:step(x, s.timesteps[1], x)
  t.equal(y.dtype, 'f16')
end)

t.test('wrong options are refused', function()
  t.raises(function() ddim.new { step = 3 } end, 'no option "step"')
  t.raises(function() ddim.new { steps = '3' } end, 'steps must be a number')
  t.raises(function() ddim.new { steps = 0 } end, 'steps cannot be 0')
  t.raises(function() ddim.new { steps = 2.5 } end, 'steps cannot be 2.5')
  t.raises(function() ddim.new { steps = 1001 } end, 'trained with only 1000')
  t.raises(function() ddim.new { steps = 1000 } end, 'past the last training step')
  t.raises(function() ddim.new { spacing = 'even' } end, 'leading, trailing, linspace')
  t.raises(function() ddim.new { eta = 2 } end, 'eta must be from 0 to 1')
  t.raises(function() ddim.new { spacing = 'trailing', zero_snr = true } end, 'pure noise')
  t.raises(function() ddim.new():step(cr.zeros(1), 5000, cr.zeros(1)) end, 'no training step 5000')
end)

t.done()
