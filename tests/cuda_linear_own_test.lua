--- Matrix products of 16-bit rows with our own kernels (kernels/linear/gemm_hopper.h): exact on integers, at sizes
--- that fill no tile, in place, with pitches, in a recording. CR_LINEAR_OWN=1 selects them wherever they fit, 0 the
--- library.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local environment = require 'tests.support.environment'
local nn = require 'cr.nn'
local t = require 'tests.support.tap'

local function with_way(way, fn) environment.with('CR_LINEAR_OWN', way, fn) end

local own_test, large_test = cuda.on_hopper(cuda.test), cuda.on_hopper(cuda.library_test)
local whole, poisoned = cuda.whole, cuda.poisoned

-- Integers whose f32 sums are exact in any order: there is only one correct result, the exact one rounded once.
-- Reference: the GPU's f32 product, and the CPU's for its first and last rows.
local function check(m, k, n, dtype, with)
  cr.scope(function()
    local x, weight = whole(m, k), whole(n, k)
    local bias, residual = with.bias and whole(n) or nil, with.residual and whole(m, n) or nil
    local message = ('[%d %d] -> %d %s%s%s'):format(m, k, n, dtype, bias and ' bias' or '', residual and ' residual' or '')
    local exact = nn.linear({ weight = cuda.up(weight), bias = bias and cuda.up(bias) }, cuda.up(x),
      { residual = residual and cuda.up(residual) })
    local few = math.min(m, 3)
    for _, first in ipairs { 1, m - few + 1 } do
      local want = nn.linear({ weight = weight, bias = bias }, x:narrow(1, first, few),
        { residual = residual and residual:narrow(1, first, few) })
      t.near(exact:narrow(1, first, few):to 'cpu', want, 0, message .. ': reference')
    end
    local want = exact:to(dtype):to 'f32'
    local w, xc = { weight = cuda.up(weight, dtype), bias = bias and cuda.up(bias, dtype) }, cuda.up(x, dtype)
    local y, in_place = poisoned({ m, n }, dtype), residual and cuda.up(residual, dtype) or nil
    with_way(1, function()
      nn.linear(w, xc, { out = y, residual = residual and cuda.up(residual, dtype) })
      if residual then nn.linear(w, xc, { out = in_place, residual = in_place }) end
    end)
    local off = (y:to 'f32' - want):abs():max():item()
    t.ok(off == 0, ('%s: off by %g (CR_SEED=%d)'):format(message, off, cuda.seed)) -- false for a nan
    if in_place then
      off = (in_place:to 'f32' - want):abs():max():item()
      t.ok(off == 0, ('%s in place: off by %g (CR_SEED=%d)'):format(message, off, cuda.seed))
    end
  end)
end

for _, dtype in ipairs { 'f16', 'bf16' } do
  own_test('whole numbers, exactly, ' .. dtype, function()
    for i, s in ipairs(cuda.cases { { 1, 16, 8 }, { 1, 320, 320 }, { 3, 8, 160 }, { 3, 320, 320 }, { 77, 640, 328 },
      { 129, 72, 488 }, { 256, 64, 128 }, { 257, 336, 64 }, { 1000, 1288, 168 }, { 1000, 24, 1000 } }) do
      check(s[1], s[2], s[3], dtype, { bias = i % 2 == 1, residual = i % 3 ~= 2 })
    end
    check(131, 320, 328, dtype, {})
    check(131, 320, 328, dtype, { bias = true })
    check(300, 320, 328, dtype, { residual = true })
    check(300, 320, 328, dtype, { bias = true, residual = true })
  end)
end

-- Many tiles per thread block: pipeline stages and output buffers are reused, and warpgroups overtake each other.
large_test('many rows', function()
  check(30011, 320, 320, 'f16', { bias = true, residual = true })
  check(30011, 320, 328, 'bf16', { residual = true })
  check(16001, 320, 960, 'f16', {})
  check(8200, 2560, 640, 'bf16', { bias = true, residual = true })
  check(2047, 1280, 3840, 'f16', { bias = true })
  check(513, 5120, 1280, 'f16', { bias = true, residual = true })
end)

-- Rounding the result gives a relative L2 error of 2e-4 in f16 and 1.7e-3 in bf16; rounding twice would give 1.4
-- times as much.
own_test('any numbers', function()
  local LIMIT = { f16 = 2.5e-4, bf16 = 2e-3 }
  for _, dtype in ipairs { 'f16', 'bf16' } do
    for _, s in ipairs(cuda.cases { { 33, 320, 640 }, { 300, 1280, 168 }, { 70, 5120, 320 } }) do
      cr.scope(function()
        local m, k, n = unpack(s)
        local x, w = cuda.randn({ m, k }, dtype), { weight = cuda.randn({ n, k }, dtype, k ^ -0.5), bias = cuda.randn({ n }, dtype) }
        local residual = cuda.randn({ m, n }, dtype)
        local want = nn.linear({ weight = w.weight:to 'f64', bias = w.bias:to 'f64' }, x:to 'f64', { residual = residual:to 'f64' })
        local card = { weight = cuda.up(w.weight, dtype), bias = cuda.up(w.bias, dtype) }
        local y
        with_way(1, function() y = nn.linear(card, cuda.up(x, dtype), { residual = cuda.up(residual, dtype) }) end)
        local name = ('[%d %d] -> %d'):format(m, k, n)
        cuda.near(y, want, { message = name })
        local off = t.relative_error(y:to 'cpu':to 'f64', want)
        t.ok(off <= LIMIT[dtype], ('%s %s: relative L2 error %.3g (CR_SEED=%d)'):format(name, dtype, off, cuda.seed))
      end)
    end
  end
end)

own_test('rows with a pitch, and what does not fit', function()
  cr.scope(function()
    local m, k, n = 300, 320, 328
    local x, weight, bias, residual = whole(m, k), whole(n, k), whole(n), whole(m, n)
    local want = nn.linear({ weight = weight, bias = bias }, x, { residual = residual })
    local xs, rs = cuda.up(x, 'f16'), cuda.up(residual, 'f16')
    local w = { weight = cuda.up(weight, 'f16'), bias = cuda.up(bias, 'f16') }
    -- The columns of x, residual and result begin at `first` in lines that are longer by `line`.
    for _, pitch in ipairs { { 1, 8 }, { 9, 24 }, { 2, 8 }, { 1, 3 } } do
      local first, line = unpack(pitch)
      for way = 0, 1 do
        with_way(way, function()
          cr.scope(function()
            local function within(data, columns)
              local view = poisoned({ m, columns + line }, 'f16'):narrow(2, first, columns)
              if data then view:copy_(data) end
              return view
            end
            local all = poisoned({ m, n + line }, 'f16')
            local y = all:narrow(2, first, n)
            nn.linear(w, within(xs, k), { out = y, residual = within(rs, n) })
            local name = ('way %d, %d more, from %d'):format(way, line, first)
            t.near(y:contiguous():to 'cpu':to 'f32', want:to 'f16':to 'f32', 0, name)
            local rest = all:narrow(2, first + n, line - first + 1):contiguous():to 'cpu':to 'f32'
            t.equal(rest:ne(rest):to 'f32':mean():item(), 1, name .. ': what stands behind') -- still NaN
          end)
        end)
      end
    end
  end)
end)

--- Records fn in a graph; returns the number of nodes, and the result of a replay.
local function recorded(fn, ...)
  local g, y = cr.graph(fn), nil
  for _ = 1, 3 do y = g(...) end
  t.equal(g:why(), nil)
  local n = g:size()
  g:free()
  return n, y
end

-- Without the library, the plain kernel leaves bias and residual to a second kernel; a single kernel is ours.
own_test('one kernel in a recording, right when it is replayed', function()
  cr.scope(function()
    local x, weight, bias, residual = whole(200, 320), whole(640, 320), whole(640), whole(200, 640)
    local want = nn.linear({ weight = weight, bias = bias }, x, { residual = residual }):to 'f16':to 'f32'
    local w = { weight = cuda.up(weight, 'f16'), bias = cuda.up(bias, 'f16') }
    local xc, rc = cuda.up(x, 'f16'), cuda.up(residual, 'f16')
    local one = recorded(nn.geglu, rc) -- of one kernel, and a copy of its result
    environment.with('CR_LIBRARIES', 0, function()
      for way = 0, 1 do
        with_way(way, function()
          local nodes, y = recorded(function(a) return nn.linear(w, a, { residual = rc }) end, xc)
          if way == 0 then t.ok(nodes > one, 'plain: ' .. nodes) else t.equal(nodes, one, 'way ' .. way) end
          t.near(y:to 'cpu':to 'f32', want, 0, 'replayed, way ' .. way)
        end)
      end
    end)
  end)
end)

large_test('searched, and first proposals', function()
  check(200, 320, 320, 'f16', { bias = true, residual = true })
  cr.scope(function()
    local x, weight, residual = whole(512, 320), whole(640, 320), whole(512, 640)
    local want = nn.linear({ weight = weight }, x, { residual = residual }):to 'f16':to 'f32'
    local w, xc, rc = { weight = cuda.up(weight, 'f16') }, cuda.up(x, 'f16'), cuda.up(residual, 'f16')
    local function run(name) t.near(nn.linear(w, xc, { residual = rc }):to 'cpu':to 'f32', want, 0, name) end
    for _ = 1, 2 do run 'searched' end
    cuda.with({ search = false }, function() run 'first proposal' end)
    local y = cuda.up(residual, 'f16')
    nn.linear(w, xc, { out = y, residual = y })
    t.near(y:to 'cpu':to 'f32', want, 0, 'searched in place')
  end)
end)

t.done()
