-- Group norm and layer norm on a GPU compared with the CPU's.

local cr = require 'cr'
local nn = require 'cr.nn'
local cuda = require 'tests.support.cuda'
local t = require 'tests.support.tap'

local dtypes = { 'f32', 'f16', 'bf16' }
local nan = 0 / 0

-- Parameters in f32 on the CPU and in `dtype` on the card.
local function parameters(c, dtype)
  local w = { weight = cuda.randn({ c }, dtype) + 1, bias = cuda.randn({ c }, dtype) }
  w.weight = w.weight:to(dtype):to 'f32'
  return w, { weight = cuda.up(w.weight, dtype), bias = cuda.up(w.bias, dtype) }
end

-- The GPU's group norm with a given output (any strides), which is filled with NaN before.
local function group_into(out, w, x, groups, eps, silu, before)
  out:fill_(nan)
  cr.check(cr.C.cr_group_norm(out.c, x.c, groups, w.weight and w.weight.c, w.bias and w.bias.c, eps, silu and 1 or 0,
    before and before.c))
  return out
end

-- x on the GPU with gaps between rows (of a wider tensor), or with dimensions in another order.
local function wider(x, dtype)
  return cr.scope(function()
    local shape = { unpack(x.shape) }
    shape[#shape] = 2 * shape[#shape] + 8
    local big = cr.zeros(shape, { dtype = dtype, device = cuda.device })
    local view = big:narrow(#shape, 8 + 1, x:size(-1))
    view:copy_(cuda.up(x, dtype))
    return view
  end)
end

local function reversed(x, dtype)
  return cr.scope(function()
    local shape, order = {}, {}
    for k = 1, #x.shape do shape[k], order[k] = x:size(#x.shape + 1 - k), #x.shape + 1 - k end
    local view = cr.zeros(shape, { dtype = dtype, device = cuda.device }):permute(unpack(order))
    view:copy_(cuda.up(x, dtype))
    return view
  end)
end

local function name(shape, ...) return ('[%s] %s'):format(table.concat(shape, ' '), table.concat({ ... }, ' ')) end

local shapes = {
  { { 2, 5, 32 }, 4 }, { { 1, 3, 4, 5, 96 }, 32 }, { { 3, 70, 33 }, 3 }, { { 2, 33, 17, 40 }, 8 }, { { 2, 3 }, 3 },
  { { 1, 1, 6 }, 2 }, { { 5, 1, 7 }, 1 }, { { 3, 64, 64 }, 32 }, { { 2, 1000, 320 }, 32 }, { { 3, 257, 640 }, 32 },
  { { 2, 16, 16, 960 }, 32 }, { { 4, 8, 8, 1280 }, 32 }, { { 2, 61, 2560 }, 32 }, { { 1, 40, 1600 }, 1 },
  { { 2, 9000, 48 }, 4 }, { { 1, 3, 1, 2560 }, 2560 }, { { 1, 30001, 24 }, 3 }, { { 2, 200, 1030 }, 5 },
}

for _, dtype in ipairs(dtypes) do
  cuda.test('group norm, ' .. dtype, function()
    for n, case in ipairs(shapes) do
      cr.scope(function()
        local shape, groups = case[1], case[2]
        local c = shape[#shape]
        local x = cuda.randn(shape, dtype, 1.7)
        local w, up = parameters(c, dtype)
        local before = cuda.randn({ shape[1], c }, dtype)
        for k = 0, 3 do
          local silu, with = k % 2 == 1, k >= 2
          local expected = nn.group_norm(w, x, groups, 1e-5, { silu = silu, bias_before = with and before or nil })
          local add = with and cuda.up(before, dtype) or nil
          local what = name(shape, groups, silu and 'silu' or '', with and 'before' or '')
          cuda.near(nn.group_norm(up, cuda.up(x, dtype), groups, 1e-5, { silu = silu, bias_before = add }), expected,
            { message = what })
          local out = wider(x, dtype)
          cuda.near(group_into(out, up, wider(x, dtype), groups, 1e-5, silu, add), expected,
            { message = what .. ' rows apart' })
          if n < 8 then
            cuda.near(group_into(reversed(x, dtype), up, reversed(x, dtype), groups, 1e-5, silu, add), expected,
              { message = what .. ' reversed' })
          end
        end
      end)
    end
  end)
end

cuda.test('group norm of large samples, kept on chip or read twice', function()
  for _, case in ipairs { { { 1, 4096, 320 }, 32 }, { { 2, 1024, 640 }, 32 }, { { 1, 60000, 64 }, 32 }, { { 2, 20001, 72 }, 3 } } do
    for _, dtype in ipairs(dtypes) do
      cr.scope(function()
        local shape, groups = case[1], case[2]
        local x = cuda.randn(shape, dtype) + 0.5
        x = x:to(dtype):to 'f32'
        local w, up = parameters(shape[3], dtype)
        local before = cuda.randn({ shape[1], shape[3] }, dtype)
        local expected = nn.group_norm(w, x, groups, 1e-6, { silu = true, bias_before = before })
        cuda.near(nn.group_norm(up, cuda.up(x, dtype), groups, 1e-6, { silu = true, bias_before = cuda.up(before, dtype) }),
          expected, { message = name(shape, groups) })
      end)
    end
  end
end)

cuda.test('group norm with a mean far larger than the deviation', function()
  for _, shape in ipairs { { 2, 900, 64 }, { 1, 50001, 33 } } do
    for _, mean in ipairs { 100, 3000 } do
      cr.scope(function()
        -- Each channel has its own mean, which bias_before compensates.
        local own = cuda.randn({ 1, shape[3] }, 'f32', 20)
        local x = cuda.randn(shape) + own:view(1, 1, shape[3]) + mean
        local before = own:neg():expand(shape[1], shape[3]):contiguous()
        local w, up = parameters(shape[3], 'f32')
        local groups = shape[3] == 64 and 8 or 3
        local expected = nn.group_norm(w, x:to 'f64', groups, 1e-6, { bias_before = before:to 'f64' })
        local y = nn.group_norm(up, cuda.up(x), groups, 1e-6, { bias_before = cuda.up(before) })
        cuda.near(y, expected, { message = name(shape, 'mean', mean) })
        cuda.near(nn.group_norm(up, cuda.up(x), groups, 1e-6), nn.group_norm(w, x:to 'f64', groups, 1e-6),
          { message = name(shape, 'mean', mean, 'own') })
      end)
    end
  end
end)

cuda.test('group norm in place, of constants, without parameters, with parameters of other types', function()
  for _, shape in ipairs { { 2, 9, 16 }, { 1, 40000, 64 }, { 1, 2100, 320 }, { 3, 11, 15 } } do
    local groups = shape[3] == 15 and 5 or 4
    local x = cuda.randn(shape, 'f16')
    local expected = nn.group_norm({}, x, groups, 1e-5)
    local up = cuda.up(x, 'f16')
    cr.check(cr.C.cr_group_norm(up.c, up.c, groups, nil, nil, 1e-5, 0, nil))
    cuda.near(up, expected, { message = name(shape, 'in place') })
    local w = { weight = cuda.randn { shape[3] }, bias = cuda.randn { shape[3] } }
    local before = cuda.randn { shape[1], shape[3] }
    expected = nn.group_norm(w, x, groups, 1e-5, { bias_before = before })
    for _, other in ipairs { 'f32', 'f64' } do
      local mixed = { weight = cuda.up(w.weight, other), bias = cuda.up(w.bias, other) }
      cuda.near(nn.group_norm(mixed, cuda.up(x, 'f16'), groups, 1e-5, { bias_before = cuda.up(before, other) }), expected,
        { message = name(shape, other, 'parameters') })
    end
  end
  local flat = nn.group_norm({ weight = cuda.up(cr.ones(8)), bias = cuda.up(cr.full({ 8 }, 3)) },
    cuda.up(cr.full({ 1, 5, 8 }, 7)), 2, 1e-5)
  cuda.near(flat, cr.full({ 1, 5, 8 }, 3))
  t.equal(nn.group_norm({}, cr.empty(0, 4, 8, { device = cuda.device }), 2, 1e-5):numel(), 0)
end)

cuda.test('group norm with a mean larger than the deviation, in half precision', function()
  for _, dtype in ipairs { 'f16', 'bf16' } do
    for _, shape in ipairs { { 2, 900, 64 }, { 2, 16384, 320 }, { 1, 50001, 33 } } do
      cr.scope(function()
        local x = (cuda.randn(shape, dtype) + (dtype == 'f16' and 40 or 6)):to(dtype):to 'f32'
        local w, up = parameters(shape[3], dtype)
        local groups = shape[3] == 33 and 3 or 8
        cuda.near(nn.group_norm(up, cuda.up(x, dtype), groups, 1e-6, { silu = true }),
          nn.group_norm(w, x, groups, 1e-6, { silu = true }), { message = name(shape) })
      end)
    end
  end
end)

for _, dtype in ipairs(dtypes) do
  cuda.test('layer norm, ' .. dtype, function()
    for n, shape in ipairs { { 40 }, { 3, 1 }, { 5, 7, 33 }, { 2, 3, 4, 64 }, { 4, 2504 }, { 300, 48 }, { 7, 11, 320 },
      { 2, 3, 5, 640 }, { 65, 1280 }, { 33, 384 }, { 9, 1288 }, { 3, 5000 } } do
      for _, mean in ipairs { 0, dtype == 'f32' and 1000 or 6 } do
        cr.scope(function()
          local c = shape[#shape]
          local x = (cuda.randn(shape, dtype) + mean):to(dtype):to 'f32'
          local w, up = parameters(c, dtype)
          local expected = nn.layer_norm(w, x:to 'f64', 1e-5)
          cuda.near(nn.layer_norm(up, cuda.up(x, dtype), 1e-5), expected, { message = name(shape) })
          cuda.near(nn.layer_norm(up, wider(x, dtype), 1e-5), expected, { message = name(shape, 'rows apart') })
          if n < 5 then
            cuda.near(nn.layer_norm(up, reversed(x, dtype), 1e-5), expected, { message = name(shape, 'reversed') })
          end
          if #shape > 1 then
            local after = cuda.randn({ shape[#shape - 1], c }, dtype)
            expected = nn.layer_norm(w, x:to 'f64', 1e-5, { after = after:to 'f64' })
            cuda.near(nn.layer_norm(up, cuda.up(x, dtype), 1e-5, { after = cuda.up(after, dtype) }), expected,
              { message = name(shape, 'after') })
            local column = cuda.randn({ shape[#shape - 1], 1 }, dtype)
            expected = nn.layer_norm(w, x:to 'f64', 1e-5, { after = column:to 'f64' })
            cuda.near(nn.layer_norm(up, wider(x, dtype), 1e-5, { after = cuda.up(column, dtype) }), expected,
              { message = name(shape, 'after, a column') })
          end
        end)
      end
    end
  end)
end

cuda.test('layer norm: position encoding of frames, in place, odd outputs, other types', function()
  local B, F, T, C = 2, 5, 9, 320
  local x, position = cuda.randn({ B, F, T, C }, 'f16'), cuda.randn({ 1, 8, C }, 'f16')
  local w, up = parameters(C, 'f16')
  local function encoded(p) return p:narrow(2, 1, F):view(F, 1, C) end
  local expected = nn.layer_norm(w, x, 1e-5, { after = encoded(position) })
  cuda.near(nn.layer_norm(up, cuda.up(x, 'f16'), 1e-5, { after = encoded(cuda.up(position, 'f16')) }), expected)
  cuda.near(nn.layer_norm(up, cuda.up(x, 'f16'), 1e-5, { after = encoded(cuda.up(position, 'f32')) }), expected,
    { message = 'f32 position' })
  local out = reversed(x, 'f16')
  out:fill_(nan)
  cr.check(cr.C.cr_layer_norm(out.c, cuda.up(x, 'f16').c, up.weight.c, up.bias.c, 1e-5, encoded(cuda.up(position, 'f16')).c))
  cuda.near(out, expected, { message = 'into a permuted tensor' })
  local own = cuda.up(x, 'f16')
  cr.check(cr.C.cr_layer_norm(own.c, own.c, nil, nil, 1e-5, nil))
  cuda.near(own, nn.layer_norm({}, x, 1e-5), { message = 'in place, no parameters' })
  t.equal(nn.layer_norm({}, cr.empty(0, 8, { device = cuda.device }), 1e-5):numel(), 0)
end)

t.done()
