--- Timestep embedding and posterior sampling against float64 references computed here.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local flat = require 'tests.support.flat'

local randn = flat.randn

local floats = { 'f32', 'f16', 'bf16', 'f64' }

--- The embedding by its formula, flat.
local function embedding(timesteps, dim)
  local out, half = {}, math.floor(dim / 2)
  for i, step in ipairs(timesteps) do
    for k = 0, dim - 1 do
      local angle = step * 10000 ^ (-(k % half) / half)
      out[(i - 1) * dim + k + 1] = k < half and math.cos(angle) or k < 2 * half and math.sin(angle) or 0
    end
  end
  return out
end

t.test('timestep embedding: sizes and dtypes', function()
  local steps = { 0, 1, 481, 999.5, -3 }
  for _, dim in ipairs { 1, 2, 7, 64, 320, 2051 } do
    local want = embedding(steps, dim)
    for _, dtype in ipairs(floats) do
      local got = nn.timestep_embedding(steps, dim, { dtype = dtype })
      t.equal(got.dtype, dtype)
      t.equal(table.concat(got.shape, ' '), '5 ' .. dim)
      local e = flat.distance(flat.values(got), want)
      t.ok(e <= math.max(flat.tolerance[dtype], 1e-12), ('%s, %d wide: error %.3g'):format(dtype, dim, e))
    end
  end
end)

t.test('timestep embedding: steps of every dtype, with gaps, into any place', function()
  local steps = { 3, 77, 120, 9 }
  local want = embedding(steps, 33)
  for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64' } do
    local x = cr.tensor(steps, { dtype = dtype })
    for _, view in ipairs { x, flat.strided(x) } do
      local e = flat.distance(flat.values(nn.timestep_embedding(view, 33)), want)
      t.ok(e <= flat.tolerance.f32, ('steps of %s: error %.3g'):format(dtype, e))
    end
  end
  local out = cr.zeros(33, 8):transpose(1, 2):slice(1, 1, 8, 2)
  cr.check(cr.C.cr_timestep_embedding(out.c, cr.tensor(steps).c, 33, cr.C.CR_F32))
  t.ok(flat.distance(flat.values(out), want) <= flat.tolerance.f32, 'turned and with gaps')
  t.equal(nn.timestep_embedding({}, 4):numel(), 0)
end)

--- A draw by its formula, flat; and by how much its two terms are longer than their sum, since few numbers may cancel.
local function draw(mean, logvar, noise, scale)
  local out, terms, sums = {}, 0, 0
  for i = 1, #mean do
    local spread = noise and math.exp(math.min(math.max(logvar[i], -30), 20) / 2) * noise[i] or 0
    out[i] = (mean[i] + spread) * scale
    terms, sums = terms + (math.abs(mean[i]) + math.abs(spread)) ^ 2, sums + (mean[i] + spread) ^ 2
  end
  return out, math.sqrt(terms / sums)
end

local function laid(x, how)
  if how == 'dense' then return x end
  return flat.strided(x)
end

t.test('posterior sample: shapes, strides and dtypes', function()
  for _, shape in ipairs { { 1 }, { 7 }, { 3, 5, 7 }, { 2, 3, 4, 4 }, { 5, 2049 } } do
    for _, dtype in ipairs(floats) do
      local x = { mean = randn(shape):to(dtype), logvar = (randn(shape) * 2 - 2):to(dtype), noise = randn(shape):to(dtype) }
      local want, longer = draw(flat.values(x.mean), flat.values(x.logvar), flat.values(x.noise), 0.18215)
      local plain = draw(flat.values(x.mean), nil, nil, 0.18215)
      for _, how in ipairs { 'dense', 'strided' } do
        local mean, logvar, noise = laid(x.mean, how), laid(x.logvar, how), laid(x.noise:clone(), how)
        local got = nn.posterior_sample(mean, logvar, noise, 0.18215)
        t.equal(got.dtype, dtype)
        local e = flat.distance(flat.values(got), want)
        t.ok(e <= flat.tolerance[dtype] * longer, ('%s %s [%s]: error %.3g'):format(dtype, how, table.concat(shape, ' '), e))
        e = flat.distance(flat.values(nn.posterior_sample(mean, logvar, nil, 0.18215)), plain)
        t.ok(e <= flat.tolerance[dtype], ('%s %s without noise: error %.3g'):format(dtype, how, e))
        cr.check(cr.C.cr_posterior_sample(noise.c, mean.c, logvar.c, noise.c, 0.18215))
        e = flat.distance(flat.values(noise), want)
        t.ok(e <= flat.tolerance[dtype] * longer, ('%s %s over the noise: error %.3g'):format(dtype, how, e))
      end
    end
  end
end)

t.test('posterior sample: the logarithm of the variance is limited, nan passes, scale 1 is the default', function()
  local mean, noise = cr.tensor { 1, 2, 3, 4 }, cr.tensor { 1, 1, 1, 1 }
  local got = nn.posterior_sample(mean, cr.tensor { -1000, 1000, 0 / 0, 0 }, noise):tolist()
  t.near(got[1], 1 + math.exp(-15), 1e-6)
  t.near(got[2] / (2 + math.exp(10)), 1, 1e-6)
  t.ok(got[3] ~= got[3], 'nan')
  t.near(got[4], 5, 1e-6)
end)

t.test('posterior sample: float32 is bit for bit what the plain operations give', function()
  local mean, logvar, noise = randn { 3, 1111 }, randn { 3, 1111 } * 12, randn { 3, 1111 }
  local plain = (mean + (logvar:clamp(-30, 20) * 0.5):exp() * noise) * 0.18215
  t.equal(nn.posterior_sample(mean, logvar, noise, 0.18215):eq(plain):sum():item(), plain:numel())
end)

t.test('posterior sample: dtypes mix as in a sum', function()
  local mean, logvar, noise = randn { 5, 3 }, randn { 5, 3 }, randn { 5, 3 }
  t.equal(nn.posterior_sample(mean:to 'f16', logvar:to 'f16', noise).dtype, 'f32')
  t.equal(nn.posterior_sample(mean, logvar:to 'bf16', noise:to 'f64').dtype, 'f64')
end)

t.test('both say what is wrong', function()
  t.raises(function() nn.timestep_embedding(cr.zeros(2, 2), 8) end, 'timesteps must be numbers %[T%], not f32 %[2 2%]')
  t.raises(function() nn.timestep_embedding({ 1 }, 0) end, 'width is 0, but must be at least 1')
  t.raises(function() nn.timestep_embedding({ 1 }, 8, { dtype = 'i32' }) end, 'float dtype, not i32')
  local a, b = cr.zeros(2, 3), cr.zeros(3, 2)
  t.raises(function() nn.posterior_sample(a, b, a) end, 'shapes differ: mean %[2 3%], logvar %[3 2%]')
  t.raises(function() nn.posterior_sample(a, a, b) end, 'noise %[3 2%]')
  t.raises(function() nn.posterior_sample(a:to 'i32', a, a) end, 'posterior_sample: a float tensor')
end)

t.done()
