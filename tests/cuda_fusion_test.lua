--- Fused operations: each switch leaves the result unchanged, and selects another implementation.
--
-- A recording shows the implementation: how many kernels, copies and fills it contains.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local nn = require 'cr.nn'
local t = require 'tests.support.tap'

local names = { 'linear_bias', 'linear_activation', 'linear_residual', 'linear_geglu', 'conv_bias', 'conv_activation', 'conv_residual',
  'conv_upsample', 'norm_bias', 'norm_silu', 'norm_after' }

--- The nodes of a recording of fn, which is run three times: directly, while recording, as a replay.
local function size_of(fn, inputs)
  local g = cr.graph(fn)
  for _ = 1, 3 do cr.scope(function() g(unpack(inputs)) end) end
  t.equal(g:why(), nil)
  local n = g:size()
  g:free()
  return n
end

--- Numbers on the CPU and on the card.
local function drawn(dtype, shapes)
  local here, there = {}, {}
  for name, shape in pairs(shapes) do
    local scale = name == 'weight' and #shape > 1 and (shape[2] * (shape[3] or 1) * (shape[4] or 1)) ^ -0.5 or nil
    here[name] = cuda.randn(shape, dtype, scale)
    there[name] = cuda.up(here[name], dtype)
  end
  return here, there
end

-- switch, dtypes, shapes, fn(p): the operation on the operands p
local cases = {}
local function case(switch, name, dtypes, shapes, fn)
  cases[#cases + 1] = { switch = switch, name = name, dtypes = dtypes, shapes = shapes, fn = fn }
end

local all, halves = { 'f32', 'f16', 'bf16' }, { 'f16', 'bf16' }
local dense = { x = { 256, 64 }, weight = { 128, 64 }, bias = { 128 }, residual = { 256, 128 } }
case('linear_bias', 'linear', all, dense, function(p) return nn.linear(p, p.x) end)
case('linear_activation', 'linear, relu', all, dense, function(p) return nn.linear(p, p.x, { act = 'relu' }) end)
case('linear_residual', 'linear', all, dense, function(p) return nn.linear(p, p.x, { residual = p.residual }) end)

-- cuDNN's kernels; its precompiled ones with two additions are in half precision.
local window = { x = { 2, 16, 18, 64 }, weight = { 72, 3, 3, 64 }, bias = { 72 }, residual = { 2, 16, 18, 72 } }
case('conv_bias', 'conv2d', halves, window, function(p) return nn.conv2d(p, p.x, { padding = 1 }) end)
case('conv_residual', 'conv2d', halves, window, function(p) return nn.conv2d(p, p.x, { padding = 1, residual = p.residual }) end)
-- Our own kernels: few output channels, and narrow groups.
local few = { x = { 2, 16, 18, 64 }, weight = { 4, 3, 3, 64 }, bias = { 4 }, residual = { 2, 16, 18, 4 } }
local deep = { x = { 1, 9, 11, 24 }, weight = { 24, 3, 3, 1 }, bias = { 24 }, residual = { 1, 9, 11, 24 } }
for _, step in ipairs { 'bias', 'activation', 'residual' } do
  local act = step == 'activation' and 'silu' or nil
  case('conv_' .. step, 'conv2d of few results', halves, few,
    function(p) return nn.conv2d(p, p.x, { padding = 1, act = act, residual = p.residual }) end)
  case('conv_' .. step, 'depthwise conv2d', all, deep,
    function(p) return nn.conv2d(p, p.x, { padding = 1, groups = 24, act = act, residual = p.residual }) end)
end

local groups = { x = { 2, 5, 7, 64 }, weight = { 64 }, bias = { 64 }, before = { 2, 64 } }
case('norm_bias', 'group norm', all, groups, function(p) return nn.group_norm(p, p.x, 8, 1e-5, { bias_before = p.before }) end)
case('norm_silu', 'group norm', all, groups, function(p) return nn.group_norm(p, p.x, 8, 1e-5, { silu = true }) end)
local layers = { x = { 3, 6, 80 }, weight = { 80 }, bias = { 80 }, after = { 6, 80 } }
case('norm_after', 'layer norm', all, layers, function(p) return nn.layer_norm(p, p.x, 1e-5, { after = p.after }) end)

for _, c in ipairs(cases) do
  -- Without the library, products fuse nothing.
  local test = c.switch:find '^linear' and cuda.library_test or cuda.test
  test(('%s: %s'):format(c.switch, c.name), function()
    for _, dtype in ipairs(c.dtypes) do
      -- The library's first choice is used, so that a recording does not depend on timings.
      cuda.with({ search = false }, function()
        local here, there = drawn(dtype, c.shapes)
        local want = c.fn(here)
        local function both(what)
          local n = size_of(function() return c.fn(there) end, { there.x })
          cuda.near(c.fn(there), want, { message = what .. ' ' .. dtype })
          return n
        end
        local on, off, none = both 'on'
        cuda.with({ [c.switch] = false }, function() off = both 'off' end)
        cuda.with({ fusion = false }, function() none = both 'all off' end)
        print(('# %s %s %s: %d nodes, off %d, all off %d'):format(c.switch, c.name, dtype, on, off, none))
        t.ok(off > on, ('%s: %d nodes when on, %d when off'):format(dtype, on, off))
        t.ok(none >= off, ('%s: %d nodes when off, %d when all are off'):format(dtype, off, none))
      end)
    end
  end)
end

cuda.test('ReLU in cuDNN\'s pass or after it gives the same', function()
  for _, dtype in ipairs(all) do
    local here, there = drawn(dtype, window)
    local function fn(p) return nn.conv2d(p, p.x, { padding = 1, act = 'relu' }) end
    local want = fn(here)
    for _, on in ipairs { true, false } do
      cuda.with({ conv_activation = on }, function() cuda.near(fn(there), want, { message = dtype .. ' ' .. tostring(on) }) end)
    end
  end
end)

cuda.test('an in-place residual, in separate steps', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
    for _, switch in ipairs { 'linear_bias', 'linear_activation', 'linear_residual' } do
      cr.scope(function()
        local here, there = {}, {}
        for name, shape in pairs { x = { 33, 17 }, weight = { 19, 17 }, bias = { 19 }, residual = { 33, 19 } } do
          here[name] = cuda.randn(shape, dtype ~= 'f64' and dtype or nil)
          there[name] = cuda.up(here[name], dtype)
          here[name] = here[name]:to 'f64'
        end
        cuda.with({ [switch] = false }, function()
          nn.linear(there, there.x, { act = 'relu', residual = there.residual, out = there.residual })
          cuda.near(there.residual, nn.linear(here, here.x, { act = 'relu', residual = here.residual }),
            { message = switch, limit = dtype == 'f64' and 1e-13 or nil })
        end)
      end)
    end
  end
end)

cuda.test('guidance, a posterior sample and a timestep embedding are one kernel each', function()
  for _, dtype in ipairs(all) do
    local y = cuda.up(cuda.randn({ 2, 3, 4, 5, 4 }, dtype), dtype)
    local moments = cuda.up(cuda.randn({ 2, 4, 5, 8 }, dtype), dtype)
    local steps = cuda.up(cuda.randn { 3 })
    local nothing = size_of(function(x) return x end, { y }) -- the result is copied
    t.equal(size_of(function(x) return cr.lincomb({ x:narrow(1, 1, 1), x:narrow(1, 2, 1) }, { -0.5, 1.5 }) end, { y }),
      nothing + 1, 'guidance ' .. dtype)
    t.equal(size_of(function(x)
      return nn.posterior_sample(x:narrow(4, 1, 4), x:narrow(4, 5, 4), x:narrow(4, 1, 4), 0.18215)
    end, { moments }), nothing + 1, 'posterior sample ' .. dtype)
    t.equal(size_of(function(x) return nn.timestep_embedding(x, 320, { dtype = dtype }) end, { steps }), nothing + 1,
      'timestep embedding ' .. dtype)
  end
end)

cuda.test('one option switches all fusions', function()
  local device = cr.cuda.device
  cuda.with({ fusion = true }, function()
    for _, name in ipairs(names) do t.equal(device[name], true, name) end
    device.norm_silu = false
    t.equal(device.fusion, false, 'one is off')
    t.equal(device.norm_bias, true, 'the others are not')
    device.fusion = true
    t.equal(device.norm_silu, true)
    device.fusion = false
    for _, name in ipairs(names) do t.equal(device[name], false, name) end
    device.conv_bias = true
    t.equal(device.fusion, false, 'one is on')
    t.equal(device.tf32, false)
    t.equal(device.search, true)
  end)
  t.raises(function() device.fuse = true end, "there is no 'fuse': tf32, search, blocking, fp8_fast, fusion, linear_bias,")
  t.raises(function() return device.linear end, "there is no 'linear'")
  t.raises(function() device.norm_silu = 1 end, 'true or false')
end)

t.done()
