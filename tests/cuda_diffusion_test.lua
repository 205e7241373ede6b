--- Timestep embedding and posterior sampling on the card against the CPU's.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local cuda = require 'tests.support.cuda'
local views = require 'tests.support.cuda_views'

cuda.test('timestep embedding: sizes and dtypes', function()
  local steps = { 0, 1, math.random(2, 998), 999, math.random() * 1000, -7.5 }
  for _, dim in ipairs { 1, 2, 7, 64, 320, 2051 } do
    for _, dtype in ipairs(views.floats) do
      cr.scope(function()
        local got = nn.timestep_embedding(steps, dim, { dtype = dtype, device = cuda.device })
        views.check(got, nn.timestep_embedding(steps, dim, { dtype = dtype }), dim .. ' wide', dtype == 'f64' and 1e-12 or nil)
      end)
    end
  end
  t.equal(nn.timestep_embedding({}, 8, { device = cuda.device }):numel(), 0)
end)

cuda.test('timestep embedding: steps of every dtype and layout, into any place', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64' } do
    cr.scope(function()
      local steps = views.random({ 9 }, dtype, 100)
      local want = nn.timestep_embedding(steps, 33)
      for layout, view in pairs(views.layouts(steps)) do
        views.check(nn.timestep_embedding(view, 33), want, ('steps of %s, %s'):format(dtype, layout))
      end
    end)
  end
  for _, dtype in ipairs(views.floats) do
    cr.scope(function()
      local steps = cuda.randn({ 5 }) * 300
      local out, whole = views.holes({ 5, 31 }, dtype)
      cr.check(cr.C.cr_timestep_embedding(out.c, steps:to(cuda.device).c, 31, out.c.dtype))
      views.check(out, nn.timestep_embedding(steps, 31, { dtype = dtype }), 'with gaps', dtype == 'f64' and 1e-12 or nil)
      views.untouched(whole, out:numel(), 'with gaps')
    end)
  end
end)

local function draw(shape, dtype)
  return cuda.randn(shape):to(dtype), (cuda.randn(shape) * 3 - 2):to(dtype), cuda.randn(shape):to(dtype)
end

for _, dtype in ipairs(views.floats) do
  cuda.test('posterior sample: shapes and layouts, ' .. dtype, function()
    t.each({ {}, { 1 }, { 17 }, { 3, 5, 7 }, { 2, 32, 32, 4 }, { 5, 4096 } }, function(shape)
      local mean, logvar, noise = draw(shape, dtype)
      local want = nn.posterior_sample(mean, logvar, noise, 0.18215)
      local plain = nn.posterior_sample(mean, logvar, nil, 0.18215)
      local m, v, e = views.layouts(mean), views.layouts(logvar), views.layouts(noise)
      for layout in pairs(m) do
        views.check(nn.posterior_sample(m[layout], v[layout], e[layout], 0.18215), want, layout)
        views.check(nn.posterior_sample(m[layout], v.dense, e.dense, 0.18215), want, 'mean ' .. layout)
        views.check(nn.posterior_sample(m[layout], v.dense, nil, 0.18215), plain, layout .. ' without noise')
        local place = views.layouts(mean:clone())[layout]
        cr.check(cr.C.cr_posterior_sample(place.c, place.c, v.dense.c, e.dense.c, 0.18215))
        views.check(place, want, layout .. ' over the mean')
      end
      local out, whole = views.holes(shape, dtype)
      cr.check(cr.C.cr_posterior_sample(out.c, mean:to(cuda.device).c, logvar:to(cuda.device).c, noise:to(cuda.device).c,
        0.18215))
      views.check(out, want, 'into gaps')
      views.untouched(whole, out:numel(), 'into gaps')
    end)
  end)
end

cuda.test('posterior sample: halves of one tensor, as an encoder gives them', function()
  for _, dtype in ipairs(views.floats) do
    cr.scope(function()
      local moments, noise = (cuda.randn { 3, 5, 6, 8 } * 2):to(dtype), cuda.randn({ 3, 5, 6, 4 }):to(dtype)
      local up = moments:to(cuda.device)
      views.check(nn.posterior_sample(up:narrow(4, 1, 4), up:narrow(4, 5, 4), noise:to(cuda.device), 0.5),
        nn.posterior_sample(moments:narrow(4, 1, 4), moments:narrow(4, 5, 4), noise, 0.5), dtype)
    end)
  end
end)

cuda.test('posterior sample: dtypes mix, limits hold, nan passes', function()
  for _, a in ipairs(views.floats) do
    for _, b in ipairs(views.floats) do
      cr.scope(function()
        local mean, logvar, noise = draw({ 3, 37 }, 'f32')
        mean, logvar, noise = mean:to(a), logvar:to(b), noise:to(b)
        views.check(nn.posterior_sample(mean:to(cuda.device), logvar:to(cuda.device), noise:to(cuda.device)),
          nn.posterior_sample(mean, logvar, noise), a .. ' with ' .. b)
      end)
    end
  end
  local mean, noise = cr.tensor { 1, 2, 3 }, cr.tensor { 1, 1, 1 }
  local logvar = cr.tensor { -1000, 1000, 0 / 0 }
  local got = nn.posterior_sample(mean:to(cuda.device), logvar:to(cuda.device), noise:to(cuda.device)):to 'cpu':tolist()
  local want = nn.posterior_sample(mean, logvar, noise):tolist()
  for i = 1, 2 do t.near(got[i] / want[i], 1, 1e-6) end
  t.ok(got[3] ~= got[3], 'nan')
end)

cuda.test('both can be recorded', function()
  local steps = cr.tensor({ 7, 400 }, { device = cuda.device })
  local x = cuda.randn { 4, 6 }
  local graph = cr.graph(function(s, y) return nn.timestep_embedding(s, 12), nn.posterior_sample(y, y, y, 2) end)
  local up = cuda.up(x)
  for _ = 1, 3 do
    local a, b = graph(steps, up)
    views.check(a, nn.timestep_embedding({ 7, 400 }, 12), 'embedding')
    views.check(b, nn.posterior_sample(x, x, x, 2), 'draw')
  end
  t.equal(graph:why(), nil)
  graph:free()
end)

t.done()
