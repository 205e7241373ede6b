-- All schedulers against diffusers' numbers in float64, and what loading one by name or file promises.
--
-- tests/golden/schedulers.safetensors: the goldens by our names. schedulers.json: diffusers once more,
-- by its own configurations (tests/golden/schedulers.py made it).

local cr = require 'cr'
local cjson = require 'cjson'
local t = require 'tests.tap'
local schedulers = require 'cr.schedulers'
local solver = require 'cr.sampling.solver'
local scratch = require 'tests.scratch'

local FOLDER = cr.root .. '/tests/golden/'

-- The goldens' network.
local function predict(x, at) return (x * 1.7 + at / 250):sin() * 0.8 + x * 0.1 end

-- All steps from `start`.
local function run(s, start)
  local x = s:start(start)
  for _, at in ipairs(s.timesteps) do
    x = cr.scope(function() return s:step(predict(x, at), at, x) end)
  end
  return x
end

-- Runs fn with the fixture's numbers wherever a scheduler draws fresh noise.
local function with_fixed_noise(fn)
  local drawn, own = 0, solver.draw_like
  function solver.draw_like(x)
    drawn = drawn + 1
    return t.formula('input:fresh.' .. drawn, x.shape):to 'f64'
  end
  local ok, result = pcall(fn)
  solver.draw_like = own
  if not ok then error(result, 0) end
  return result
end

local function largest_difference(a, b)
  if #a ~= #b then return math.huge end
  local most = 0
  for i = 1, #a do most = math.max(most, math.abs(a[i] - b[i])) end
  return most
end

t.test('every golden of diffusers, by name', function()
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

t.test('the copy of the goldens is the shared one', function()
  local shared = cr.weights.open(t.shared 'golden/golden_sched64.safetensors')
  local copy = cr.weights.open(FOLDER .. 'schedulers.safetensors')
  for _, key in ipairs(shared.names) do t.near(copy:get(key), shared:get(key), 0, key) end
  shared:close()
  copy:close()
end)

t.test("every case of diffusers' own, from its configuration", function()
  local fixture = cjson.decode(scratch.read(FOLDER .. 'schedulers.json'))
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
        local x = with_fixed_noise(function() return run(s, start) end)
        t.near(x:view(16), cr.tensor(case.final, { dtype = 'f64' }), 1e-9, what)
      end
    end
  end
  local count = 0
  for _ in pairs(classes) do count = count + 1 end
  t.equal(count, 12, 'classes')
  t.ok(#fixture.cases > 150, 'cases')
end)

t.done()
