--- Elementwise operations on the card against the CPU's.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local cuda = require 'tests.support.cuda'
local views = require 'tests.support.cuda_views'

local C = cr.C
local positive = { 'log', 'log10', 'log2', 'log1p', 'sqrt', 'rsqrt', 'reciprocal' }
-- All others of the core's table, so that a new operation is compared, too; the last three have tests below.
local any, elsewhere = {}, { logical_not = true, sign = true, expm1 = true }
for _, name in ipairs(positive) do elsewhere[name] = true end
for op = 0, tonumber(C.CR_UNARY_OPS) - 1 do
  local name = require 'cr.ffi'.unary[op]
  if not elsewhere[name] then any[#any + 1] = name end
end

for _, dtype in ipairs(views.floats) do
  cuda.test('unary operations, ' .. dtype, function()
    t.each({ {}, { 1 }, { 17 }, { 3, 5, 7 }, { 4, 40 }, { 3, 2051 }, { 5, 4096 } }, function(shape)
      local x = (cuda.randn(shape) * 3):clamp(-9, 9):to(dtype)
      local p = (cuda.randn(shape):square() + 0.01):to(dtype)
      for _, set in ipairs { { any, x }, { positive, p } } do
        local layouts = views.layouts(set[2])
        for _, name in ipairs(set[1]) do
          local expected = set[2][name](set[2])
          for layout, view in pairs(layouts) do
            if layout == 'dense' or layout == 'rows' or math.random() < 0.3 then
              cr.scope(function() views.check(view[name](view), expected, name .. ' ' .. layout) end)
            end
          end
        end
      end
    end)
  end)
end

cuda.test('unary operations of integers and bool', function()
  for _, dtype in ipairs(views.integers) do
    local x = views.random({ 3, 37 }, dtype)
    for _, name in ipairs { 'neg', 'abs', 'square', 'relu' } do
      for layout, view in pairs(views.layouts(x)) do
        views.same(view[name](view), x[name](x), name .. ' ' .. dtype .. ' ' .. layout)
      end
    end
  end
  local b = views.random({ 70 }, 'bool')
  views.same(b:to(cuda.device):logical_not(), b:logical_not())
end)

cuda.test('special values', function()
  local inf, nan = math.huge, 0 / 0
  for _, dtype in ipairs(views.floats) do
    local x = cr.tensor({ inf, -inf, nan, 0, 0.5, 1.5, 2.5, -0.5, -1.5, 60000, -60000, 1e-7, 20, -20, 100, -100 }, { dtype = dtype })
    local y, units = x:to(cuda.device), (dtype == 'f32' or dtype == 'f64') and 8 or 2
    for _, name in ipairs { 'exp', 'log', 'log10', 'log2', 'log1p',
      'expm1', 'sign', 'sigmoid', 'silu', 'gelu', 'tanh', 'erf', 'relu', 'sin', 'cos', 'sqrt',
      'reciprocal', 'round', 'floor', 'ceil', 'trunc', 'neg', 'abs' } do
      local got, want = y[name](y):to 'cpu':to 'f64':tolist(), x[name](x):to 'f64':tolist()
      for i = 1, #want do
        local a, b = got[i], want[i]
        local near = a == b or a ~= a and b ~= b or math.abs(a - b) <= units * cuda.eps[dtype] * math.max(math.abs(b), 1e-30)
        if name == 'gelu' and math.abs(b) < 1e-6 then near = math.abs(a - b) < 1e-7 end
        t.ok(near, ('%s %s of %g: %g, expected %g'):format(name, dtype, x:to 'f64':tolist()[i], a, b))
      end
    end
  end
  local big = cr.tensor { 1e7, -3e8 }
  cuda.near(big:to(cuda.device):sin(), big:sin())
end)

local arithmetic = { 'add', 'sub', 'mul', 'div', 'maximum', 'minimum' }
local compare = { 'eq', 'ne', 'lt', 'le', 'gt', 'ge' }
local pairs_of_shapes = {
  { { 5, 7 }, { 5, 7 } }, { { 5, 8 }, { 8 } }, { { 4, 1, 6 }, { 3, 1 } }, { { 1 }, { 3, 2 } }, { { 40, 3, 33 }, { 33 } },
  { { 40, 1, 32 }, { 1, 9, 1 } }, { { 2500 }, { 1 } }, { { 2, 3, 16 }, { 2, 1, 16 } }, { { 6, 48 }, { 6, 1 } },
  { { 2, 1, 3, 64 }, { 2, 5, 1, 64 } }, { {}, { 7 } },
}

cuda.test('binary operations: broadcasting, layouts, pairs of dtypes', function()
  for n, shapes in ipairs(pairs_of_shapes) do
    for i, da in ipairs(views.all) do
      for j, db in ipairs(views.all) do
        -- Every float dtype with itself, and each other pair somewhere.
        if (i == j and i <= 4) or (i + 3 * j + n) % 5 == 0 then
          cr.scope(function()
            local a, b = views.random(shapes[1], da), views.random(shapes[2], db)
            if db ~= 'bool' then b = cr.where(b:abs():lt(0.1), cr.ones(1):to(db), b) end
            local la, lb = views.layouts(a), views.layouts(b)
            local ka, kb = next(la, math.random() < 0.5 and 'dense' or nil), next(lb, nil)
            if i == j and math.random() < 0.5 then ka, kb = 'dense', 'dense' end
            local x, y = la[ka] or la.dense, lb[kb] or lb.dense
            local text = ('%%s of %s %s and %s %s'):format(da, ka, db, kb)
            for _, name in ipairs(arithmetic) do
              if name ~= 'div' or db ~= 'bool' then
                views.check(x[name](x, y), a[name](a, b), text:format(name))
              end
            end
            local name = compare[math.random(#compare)]
            views.same(x[name](x, y), a[name](a, b), text:format(name))
          end)
        end
      end
    end
  end
end)

cuda.test('powers', function()
  for _, dtype in ipairs(views.floats) do
    local a, b = (cuda.randn { 6, 40 }:abs() + 0.1):to(dtype), cuda.randn { 40 }:to(dtype)
    local x, y = a:to(cuda.device), b:to(cuda.device)
    views.check(x:pow(y), a:pow(b), 'tensor')
    for _, power in ipairs { 2, 3, 0.5, -0.5, -1, 1.7 } do views.check(x ^ power, a ^ power, 'power ' .. power) end
    views.check(2 ^ y, 2 ^ b, 'of 2')
  end
  for _, dtype in ipairs(views.integers) do
    local a = cr.tensor({ -3, -1, 0, 1, 2, 5 }, { dtype = dtype })
    local b = cr.tensor({ 3, -2, 2, -1, 7, 0 }, { dtype = dtype })
    views.same(a:to(cuda.device):pow(b:to(cuda.device)), a:pow(b), dtype)
  end
end)

cuda.test('numbers', function()
  for _, dtype in ipairs(views.all) do
    for _, shape in ipairs { { 3, 700 }, { 13 } } do
      local x = views.random(shape, dtype)
      for layout, y in pairs(views.layouts(x)) do
        cr.scope(function()
          for _, number in ipairs { 2, 2.5, -3, 0 } do
            for _, name in ipairs { 'add', 'sub', 'mul', 'maximum', 'minimum', 'eq', 'lt', 'ge' } do
              views.check(y[name](y, number), x[name](x, number), ('%s %s %g %s'):format(dtype, name, number, layout))
            end
          end
          views.check(y / 4, x / 4, 'div')
          views.check(1 - y, 1 - x, 'reversed sub')
          views.check(2.5 / (y * 0 + 1.25), 2.5 / (x * 0 + 1.25), 'reversed div')
        end)
      end
    end
  end
  local nan = cr.tensor { 0 / 0, 1 }
  views.same(nan:to(cuda.device):maximum(2), nan:maximum(2), 'maximum passes nan on')
  views.same(cr.tensor({ 250 }, { dtype = 'u8' }):to(cuda.device) + 10, cr.tensor({ 4 }, { dtype = 'u8' }), 'u8 wraps')
end)

cuda.test('clamp, where, lincomb', function()
  for _, dtype in ipairs(views.all) do
    local x = views.random({ 4, 72 }, dtype)
    for layout, y in pairs(views.layouts(x)) do
      views.check(y:clamp(-0.5, 0.75), x:clamp(-0.5, 0.75), 'clamp ' .. layout)
      local condition, other = views.random({ 4, 1 }, 'bool'), views.random({ 72 }, dtype)
      views.check(cr.where(condition:to(cuda.device), y, other:to(cuda.device)), cr.where(condition, x, other), 'where ' .. layout)
    end
  end
  for _, dtype in ipairs(views.floats) do
    t.each({ 1, 2, 3, 4, 7, 16 }, { { 3, 80 }, { 5, 13 } }, function(n, shape)
      local cpu, card, coefficients = {}, {}, {}
      for k = 1, n do
        local mixed = n == 3 and k == 2 and dtype ~= 'f64' and 'f32' or dtype
        cpu[k] = views.random(shape, mixed)
        local layouts = views.layouts(cpu[k])
        card[k] = math.random() < 0.3 and layouts.gaps or layouts.dense
        if n == 4 then card[k] = layouts.dense end
        coefficients[k] = math.random() * 2 - 1
      end
      views.check(cr.lincomb(card, coefficients), cr.lincomb(cpu, coefficients), ('lincomb of %d'):format(n))
    end)
  end
end)

cuda.test('geglu', function()
  for _, dtype in ipairs(views.floats) do
    for _, shape in ipairs { { 3, 2 }, { 5, 26 }, { 2, 3, 64 }, { 7, 2560 } } do
      local x = (cuda.randn(shape) * 2):to(dtype)
      for layout, y in pairs(views.layouts(x)) do views.check(nn.geglu(y), nn.geglu(x), 'geglu ' .. layout) end
    end
  end
  local x = cr.tensor { { 2, 3, 5, 7, -math.huge, -1e20, 1e20, -6 } }
  views.check(nn.geglu(x:to(cuda.device)), nn.geglu(x), 'far')
end)

cuda.test('given outputs: with gaps, and in place', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
    for _, shape in ipairs { { 6, 64 }, { 3, 5, 7 } } do
      local a, b = views.random(shape, dtype), views.random({ shape[#shape] }, dtype)
      local x, y = a:to(cuda.device), b:to(cuda.device)
      local function into(fn, expected, name)
        local out, whole = views.holes(shape, dtype)
        cr.check(fn(out.c))
        views.check(out, expected, name .. ' into gaps')
        views.untouched(whole, out:numel(), name)
        out = views.poisoned(shape, dtype)
        cr.check(fn(out.c))
        views.check(out, expected, name .. ' into nan')
      end
      into(function(out) return C.cr_unary(out, C.CR_SILU, x.c) end, a:silu(), 'silu')
      into(function(out) return C.cr_binary(out, C.CR_ADD, x.c, y.c) end, a + b, 'add')
      into(function(out) return C.cr_binary_scalar(out, C.CR_SUB, x.c, 1.5, 1) end, 1.5 - a, 'sub')
      into(function(out) return C.cr_clamp(out, x.c, -1, 0.5) end, a:clamp(-1, 0.5), 'clamp')
      local over = x:clone()
      cr.check(C.cr_binary(over.c, C.CR_MUL, over.c, y.c))
      views.check(over, a * b, 'mul over a')
      over = views.layouts(a).gaps
      cr.check(C.cr_unary(over.c, C.CR_SQUARE, over.c))
      views.check(over, a:square(), 'square over itself')
    end
  end
end)

cuda.test('fill and arange', function()
  for _, dtype in ipairs(views.all) do
    for _, value in ipairs { 0, 1, 2.7, -3 } do
      local x = cr.empty({ 33, 70 }, { dtype = dtype })
      local y = cr.empty({ 33, 70 }, { dtype = dtype, device = cuda.device })
      views.same(y:fill_(value), x:fill_(value), 'fill ' .. dtype)
      x:slice(2, 2, 70, 3):fill_(0.25)
      y:slice(2, 2, 70, 3):fill_(0.25)
      x:slice(2, 9, 40):fill_(7)
      y:slice(2, 9, 40):fill_(7)
      views.same(y, x, 'fill with gaps ' .. dtype)
    end
    if dtype ~= 'bool' then
      views.same(cr.arange(2, 11, 3, { dtype = dtype, device = cuda.device }), cr.arange(2, 11, 3, { dtype = dtype }), dtype)
    end
  end
  for _, dtype in ipairs { 'u8', 'i8', 'i32', 'i64' } do
    for _, value in ipairs { 0 / 0, math.huge, -math.huge, 1e20, -1e20, 300.9 } do
      local x, y = cr.empty({ 3 }, { dtype = dtype }), cr.empty({ 3 }, { dtype = dtype, device = cuda.device })
      views.same(y:fill_(value), x:fill_(value), ('fill %s %g'):format(dtype, value))
    end
  end
  views.same(cr.arange(0, 1, 1 / 3000, { device = cuda.device }), cr.arange(0, 1, 1 / 3000))
end)

cuda.test('empty tensors', function()
  local e = cr.empty({ 0, 3 }, { device = cuda.device })
  t.equal((e + 1):numel(), 0)
  t.equal((e * e):numel(), 0)
  t.equal(e:silu():numel(), 0)
  t.equal(cr.lincomb({ e, e }, { 1, 1 }):numel(), 0)
  t.equal(nn.geglu(cr.empty({ 0, 4 }, { device = cuda.device })):numel(), 0)
  t.raises(function() return cr.ones(3, { device = cuda.device }) + cr.ones(3) end, 'different devices')
end)

t.done()
