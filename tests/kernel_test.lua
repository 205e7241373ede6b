--- Custom kernels on the CPU: formulas, recorded functions, refusals.
local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local scratch = require 'tests.support.scratch'

require 'tests.support.kernels'(t.test, 'cpu')

t.test('errors are one sentence', function()
  for _, case in ipairs {
    { { 'y = x +', x = 'in', y = 'out' }, "an operand is missing at the end in 'y = x %+'" },
    { { 'y = foo(x)', x = 'in', y = 'out' }, 'there is no function foo: did you mean' },
    { { 'y = x * z', x = 'in', y = 'out' }, "z in 'y = x %* z' is neither declared nor assigned before" },
    { { 'y = x', x = 'inn', y = 'out' }, "x is 'inn': 'in', 'in broadcast', 'out'" },
    { { 'y = x', x = 'in', y = 'out f8' }, "unknown dtype 'f8'" },
    { { 'y = sum(x) + 1', x = 'in', y = 'out' }, 'sum%(...%) of one value must be the whole right side' },
    { { 'y = x $ 2', x = 'in', y = 'out' }, "unexpected '%$'" },
    { { 'y = x', x = 'in', y = 'out', z = 'in' }, "z is declared, but 'y = x' has no such name" },
    { { 'y = exp(x, 2)', x = 'in', y = 'out' }, 'exp takes 1 argument, not 2' },
    { { 'x = y', x = 'in', y = 'in' }, "x is assigned in 'x = y', but declared as 'in'" },
    { { 'a = x', x = 'in' }, "nothing in 'a = x' is declared as 'out'" },
    { { 'y = sum(x); z = x', x = 'in', y = 'out', z = 'out' }, 'either all results are reduced or none' },
    { { x = 'in' }, 'a formula is needed first' },
    { { 'y = x > 0 ? x : 0', x = 'in', y = 'out' }, "unexpected '%?': use where%(condition, a, b%)" },
    { { 'y = x; y = y + 1', x = 'in', y = 'out' }, "y is assigned twice in 'y = x; y = y %+ 1'" },
    { { 'm = sum(x)', x = 'in', m = 'out', dims = 1 }, 'dims: reductions are over the last dimension' },
    { { 'y = (x', x = 'in', y = 'out' }, "'%)' is missing before 'the end'" },
  } do
    t.raises(function() cr.kernel(case[1]) end, '^tests/kernel_test.lua:%d+: kernel: .*' .. case[2])
  end
  local k = cr.kernel { 'y = x * s', x = 'in', y = 'out', s = 'number' }
  local x = cr.ones(2, 3)
  t.raises(function() k(x) end, 'kernel: s: a number is needed, not nil')
  t.raises(function() k(x, x) end, 'kernel: s: a number is needed, not a tensor')
  t.raises(function() k(x, 1, 2) end, "kernel: 3 values for 'y = x %* s', which takes 2")
  t.raises(function() k(x, { s = 1, t = 2 }) end, "kernel: there is no 't' in 'y = x %* s'")
  t.raises(function() k(x, 1, { s = 1 }) end, 'kernel: s is given twice')
  t.raises(function() k(x, { s = 1, y = cr.ones(3) }) end, 'the result y is f32 %[2 3%] on cpu')
  local sum = cr.kernel { 'z = a + b', a = 'in', b = 'in', z = 'out' }
  t.raises(function() sum(x, cr.ones(2)) end, 'kernel: shapes do not broadcast: %[2 3%], %[2%]')
  t.raises(function() cr.fuse(function(v) return v:sort() end)(x) end, 'fuse: x:sort is not elementwise')
  t.raises(function() cr.fuse(function(v) return v:sorrt() end)(x) end, "fuse: x:sorrt is not elementwise, .* did you mean 'sqrt'")
  t.raises(function() cr.fuse(function(v) return cr.cat({ v, v }, 1) end)(x) end, 'fuse: cat is not elementwise')
  t.raises(function() cr.fuse(function() end)(x) end, 'fuse: the function returns nothing')
  t.raises(function() cr.fuse(function(v) return v .. 'a' end)(x) end, 'fuse: this is not an elementwise operation')
  t.raises(function() cr.cuda.source 'int x;' end, 'cuda.source: there is no __global__ function')
  t.raises(function() cr.cuda.source('__global__ void f(float *p, thing t) {}') end, "the parameter 'thing t' is neither a pointer")
  local code = cr.cuda.source '__global__ void __launch_bounds__(256) scale(float *y, const float *x, float s, int n) {}'
  t.raises(function() code.scales({}, x) end, 'there is no __global__ function scales: did you mean .scale')
  t.raises(function() code.scale({ grid = 1, block = 1 }, x, x, 2, 6) end, 'scale: y is on the CPU')
  t.raises(function() code.scale({ grid = 1, block = 1 }, x, x) end, 'scale: it takes 4 arguments, not 2')
end)

t.test("formulas know each elementwise operation of the core's tables", function()
  local base, known = require 'cr.ffi', require 'cr.kernel.formula'.FUNCTIONS
  for names, count in pairs { [base.unary] = 'CR_UNARY_OPS', [base.binary] = 'CR_BINARY_OPS' } do
    for op = 0, tonumber(cr.C[count]) - 1 do
      t.ok(known[names[op]], names[op] .. ' has no row in FUNCTIONS of lua/cr/kernel/formula.lua')
    end
  end
end)

t.test('functions of cr and nn are recorded as methods are', function()
  local nn = require 'cr.nn'
  local x, y = cr.randn(3, 5), cr.randn(3, 5)
  t.near(cr.fuse(function(a, b) return cr.where(a:gt(0), a, b) end)(x, y), cr.where(x:gt(0), x, y), 0)
  t.near(cr.fuse(function(a, b) return cr.lincomb({ a, b }, { 2, -0.5 }) end)(x, y), cr.lincomb({ x, y }, { 2, -0.5 }), 1e-6)
  t.near(cr.fuse(function(a) return nn.silu(a) + 1 end)(x), nn.silu(x) + 1, 1e-6)
  t.near(cr.fuse(function(a, b) return nn.silu(a):atan2(b) end)(x, y), nn.silu(x):atan2(y), 1e-5)
end)

t.test('help has the kernel, the function and the examples', function()
  local help = require 'cr.tools.help'
  t.ok(help.text 'cr.kernel':find "cr.kernel { 'y = where", 1, true)
  t.ok(help.text 'cr.fuse':find '^cr%.fuse%(fn%)' and help.text 'cr.kernel':find 'last dimension')
  for _, word in ipairs { 'custom activation', 'thresholding', 'attention variant' } do
    t.ok(help.search(word):find('examples.kernels', 1, true) or help.search(word):find 'kernel', word)
  end
  t.ok(help.text 'custom activation':find 'kernel', 'words of the text')
end)

t.test('the example runs', function()
  local r = child.run { cr.root .. '/scripts/examples/kernels.lua' }
  local seen = 0
  for name, error in r.out:gmatch '([^\n]-)%s+largest difference (%S+)' do
    seen = seen + 1
    t.ok(tonumber(error) < 1e-4, name .. ': ' .. error)
  end
  t.ok(r.code == 0 and seen >= 3, r.err)
end)

t.test('compiled kernels are cached on disk, and nothing remains without a compiler', function()
  local folder = scratch.folder
  local script = scratch.write('k.lua', [[
    local k = require 'cr'.kernel { 'y = x + 41.5', x = 'in', y = 'out' }
    print(k(require 'cr'.ones(1)):item())
  ]])
  local environment = { CR_CACHE = folder .. '/cache' }
  local first = child.run({ script }, { env = environment })
  t.ok(first.code == 0 and first.out:find '42.5', first.err)
  environment.PATH = '/nonexistent'
  local again = child.run({ script }, { env = environment })
  t.ok(again.code == 0 and again.out:find '42.5', 'without a compiler from the disk: ' .. again.err)
  environment.CR_CACHE = folder .. '/other'
  local none = child.run({ script }, { env = environment })
  t.ok(none.code == 1 and none.err:find 'there is no C compiler', none.err)
  for file in require 'lfs'.dir(folder .. '/other/kernels') do t.ok(file:find '^%.', 'left behind: ' .. file) end
end)

t.done()
