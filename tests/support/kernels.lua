--- Tests of custom kernels on a device, against the same computation by single operations.
local cr = require 'cr'
local t = require 'tests.support.tap'

local function near(got, want, tolerance, text)
  local a, b = got:to('cpu'):to 'f64', want:to('cpu'):to 'f64'
  t.equal(table.concat(got.shape, ' '), table.concat(want.shape, ' '), text)
  local e = a:numel() == 0 and 0 or (a - b):abs():max():item() / math.max(1, b:abs():max():item())
  t.ok(e <= tolerance, ('%s: error %.3g'):format(text, e))
end

--- @param test fun(name: string, fn: function) how a test is declared
--- @param device string
return function(test, device)
  local function randn(...) return cr.randn(...):to(device) end

  test('a formula: broadcasting, dtypes, sizes of all kinds', function()
    local k = cr.kernel { 'y = x * s + b', x = 'in', y = 'out', s = 'number', b = 'in broadcast' }
    local h = cr.kernel { 'y = x * s + b', x = 'in', y = 'out f16', s = 'number', b = 'in' }
    for _, shape in ipairs { { 1 }, { 7 }, { 3, 5 }, { 64, 96 }, { 3, 4, 5 }, { 2, 9001 }, { 0, 4 } } do
      local x, last = randn(shape), shape[#shape]
      local each = {} -- one value for each index of the first dimension
      for i = 1, #shape do each[i] = i == 1 and shape[1] or 1 end
      for _, b in ipairs { randn(last), randn(shape), cr.full({}, 3):to(device), randn(each) } do
        near(k(x, 2, b), x * 2 + b, 3e-7, ('[%s] and [%s]'):format(table.concat(shape, ' '), table.concat(b.shape, ' ')))
        local y = h(x, { s = 2, b = b })
        t.equal(y.dtype, 'f16')
        near(y, x * 2 + b, 1e-3, 'in f16')
      end
    end
    local middle = randn(2, 1, 6)
    near(k(randn(2, 5, 6) * 0 + 1, 2, middle), (middle + 2):expand(2, 5, 6), 3e-7, 'two parts apart')
    local x = randn(6, 4)
    near(k(x:t(), 2, randn(6) * 0), x:t() * 2, 3e-7, 'with gaps')
    for _, dtype in ipairs { 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64', 'bool' } do
      local v = (cr.rand(5, 17) * 5):to(dtype):to(device)
      local copy = cr.kernel { 'y = x', x = 'in', y = 'out ' .. dtype }
      t.ok(copy(v):equal(v), dtype .. ' there and back')
    end
    local bytes = cr.kernel { 'y = x', x = 'in', y = 'out u8' }
    near(bytes(cr.tensor({ -3, 0 / 0, 200.7, 999 }):to(device)), cr.tensor { 0, 0, 200, 255 }, 0, 'saturated')
  end)

  test('values in between, several results, every function', function()
    local k = cr.kernel { 'd = x - y\n a = d * d; b = where(d > 0, d, -d)', x = 'in', y = 'in', a = 'out', b = 'out' }
    local x, y = randn(33, 7), randn(33, 7)
    local a, b = k(x, y)
    near(a, (x - y):square(), 3e-7, 'squares')
    near(b, (x - y):abs(), 3e-7, 'magnitudes')
    local formula = require 'cr.kernel.formula'
    local z = randn(501):abs() + 0.1
    local w = randn(501) * 2 + 0.05
    for name, fn in pairs(formula.FUNCTIONS) do
      if fn[1] == 1 then
        near(cr.kernel { ('y = %s(x)'):format(name), x = 'in', y = 'out' }(z), z[name](z):to 'f32', 2e-6, name)
      elseif fn[1] == 2 and name ~= 'pow' then
        near(cr.kernel { ('y = %s(x, w)'):format(name), x = 'in', w = 'in', y = 'out' }(z, w), z[name](z, w):to 'f32', 2e-6, name)
      end
    end
    near(cr.kernel { 'y = -x ^ 2 + 3 * (x % 2) - x / 4', x = 'in', y = 'out' }(w), -(w ^ 2) + (w % 2) * 3 - w / 4, 2e-6, 'operators')
  end)

  test('reductions of the last dimension', function()
    local k = cr.kernel { 'm = mean(x * b); s = sum(abs(x)); h = max(x); l = min(x)', x = 'in', b = 'in', m = 'out', s = 'out f64',
      h = 'out', l = 'out' }
    for _, shape in ipairs { { 5 }, { 3, 1 }, { 4, 1000 }, { 2, 3, 257 } } do
      local x, b = randn(shape), randn(shape[#shape])
      local m, s, h, l = k(x, b)
      near(m, (x * b):mean(-1), 2e-6, 'mean')
      near(s, x:abs():sum(-1), 2e-6, 'sum')
      near(h, x:max(-1), 0, 'max')
      near(l, x:min(-1), 0, 'min')
    end
    local x = cr.tensor({ { 1, 0 / 0, 3 }, { 1, 2, 3 } }):to(device)
    local _, _, h = k(x, x[2])
    t.ok(h:isnan():to('cpu'):equal(cr.tensor({ 1, 0 }, { dtype = 'bool' })), 'a nan stays')
  end)

  test('fuse records elementwise operations', function()
    local step = cr.fuse(function(x, e, a, b) return ((x - e * b) / a):clamp(-2, 2), x:gt(e) end)
    local x, e = randn(3, 70), randn(70)
    local y, more = step(x, e, 0.9, 0.1)
    near(y, ((x - e * 0.1) / 0.9):clamp(-2, 2), 1e-6, 'a step')
    near(more, x:gt(e):to 'f32', 0, 'a comparison')
    near((step(x, 0.5, 0.9, 0.1)), ((x - 0.05) / 0.9):clamp(-2, 2), 1e-6, 'numbers in place of tensors')
    local out = cr.empty_like(x)
    local k = cr.kernel { 'y = x + 1', x = 'in', y = 'out' }
    t.ok(rawequal(k(x, { y = out }), out), 'a tensor to fill')
    near(out, x + 1, 0, 'filled')
  end)
end
