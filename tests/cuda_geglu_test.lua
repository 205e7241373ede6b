--- A matrix product with GEGLU as its epilogue on a GPU: the kernel of linear_geglu compared with the CPU's float64.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local environment = require 'tests.support.environment'
local nn = require 'cr.nn'
local t = require 'tests.support.tap'

local halves = { 'f16', 'bf16' }
-- Relative L2 error of the kernel: rounding the result gives 1.85 of the 3, and for few elements up to ROUNDED.
-- Unfused, values and gates are rounded too, and each algorithm search may choose that.
local LIMIT, ROUNDED = { f16 = 3e-4, bf16 = 2.4e-3 }, { f16 = 2 ^ -11, bf16 = 2 ^ -8 }
local FEW = 1000

--- Calls fn with linear_geglu set to the fused kernel (1: wherever it applies) or to separate product and GEGLU (0).
local function by_way(way, fn) environment.with('CR_GEGLU', way, fn) end
local function by_kernel(fn) by_way(1, fn) end

local poisoned = cuda.poisoned

--- Numbers of dtype on the CPU as f64, and on the card.
local function drawn(shape, dtype, scale)
  return cr.scope(function()
    local x = cuda.randn(shape, dtype, scale)
    return x:to 'f64', cuda.up(x, dtype)
  end)
end

local function near(y, reference, message, maybe_apart)
  cr.scope(function()
    cuda.near(y, reference, { message = message })
    if maybe_apart then return end
    local off = y:to 'cpu':to 'f64' - reference
    local error2 = ((off * off):sum():item() / (reference * reference):sum():item()) ^ 0.5
    local limit = y:numel() < FEW and ROUNDED[y.dtype] or LIMIT[y.dtype]
    t.ok(error2 <= limit, ('%s %s: relative L2 error %.3g (CR_SEED=%d)'):format(message, y.dtype, error2, cuda.seed))
  end)
end

--- The kernel for x [m k], weight [2 width, k]; rows of the reference: the first and the last few of many.
local function check(m, k, width, dtype, with_bias)
  cr.scope(function()
    local x, xc = drawn({ m, k }, dtype)
    local weight, wc = drawn({ 2 * width, k }, dtype, k ^ -0.5)
    local bias, bc
    if with_bias then bias, bc = drawn({ 2 * width }, dtype) end
    local few = math.min(m, 33)
    local w, card = { weight = weight, bias = bias }, { weight = wc, bias = bc }
    local first = nn.linear_geglu(w, x:narrow(1, 1, few))
    local last = nn.linear_geglu(w, x:narrow(1, m - few + 1, few))
    local message = ('[%d %d] -> %d%s'):format(m, k, width, with_bias and '' or ' without bias')
    local out, apart = poisoned({ m, width }, dtype), nil
    by_way(0, function() apart = nn.linear_geglu(card, xc) end)
    by_kernel(function() nn.linear_geglu(card, xc, { out = out }) end)
    near(out:narrow(1, 1, few), first, message .. ', first rows')
    near(out:narrow(1, m - few + 1, few), last, message .. ', last rows')
    -- All elements: none differs from the other implementation by more than both roundings.
    local off = (out:to 'f32' - apart:to 'f32'):abs() - apart:to 'f32':abs() * (4 * cuda.eps[dtype])
    local worst = off:max():item()
    t.ok(worst <= 8 * cuda.eps[dtype], ('%s: %.3g from apart (CR_SEED=%d)'):format(message, worst, cuda.seed))
  end)
end

for _, dtype in ipairs(halves) do
  cuda.test('the widths of the UNet, odd numbers of rows, ' .. dtype, function()
    for _, s in ipairs(cuda.cases { { 1, 320 }, { 127, 320 }, { 1025, 320 }, { 77, 640 }, { 513, 640 }, { 65, 1280 }, { 333, 1280 } }) do
      check(s[1], s[2], 4 * s[2], dtype, true)
    end
    check(131, 320, 1280, dtype, false)
  end)
  cuda.test('sizes that fill no tile, ' .. dtype, function()
    for _, s in ipairs(cuda.cases { { 3, 64, 8 }, { 70, 72, 24 }, { 129, 136, 200 }, { 200, 648, 120 }, { 64, 320, 136 } }) do
      check(s[1], s[2], s[3], dtype, s[1] % 2 == 1)
    end
  end)
end

-- Many tiles per thread block: pipeline stages are reused, and warpgroups overtake each other.
cuda.library_test('many rows', function()
  check(30011, 320, 1280, 'f16', true)
  check(9001, 640, 2560, 'f16', true)
  check(9001, 128, 5120, 'f16', true)
  check(4099, 1280, 5120, 'bf16', true)
  check(64, 64, 40960, 'f16', false) -- one row of tiles, columns one after another
  check(70, 128, 40960, 'f16', false)
end)

cuda.test('views, and what no kernel takes', function()
  cr.scope(function()
    local x, xc = drawn({ 3, 50, 336 }, 'f16')
    local weight, wc = drawn({ 256, 320 }, 'f16', 0.05)
    local bias, bc = drawn({ 256 }, 'f16')
    local w, card = { weight = weight, bias = bias }, { weight = wc, bias = bc }
    by_kernel(function()
      for _, first in ipairs { 1, 9, 2 } do -- the last one is not at a multiple of 16 bytes
        local y = nn.linear_geglu(card, xc:narrow(3, first, 320))
        near(y, nn.linear_geglu(w, x:narrow(3, first, 320)), 'columns from ' .. first, first == 2)
      end
      local middle = nn.linear_geglu(card, xc:narrow(2, 11, 20):narrow(3, 1, 320)) -- rows with gaps: no single stride
      near(middle, nn.linear_geglu(w, x:narrow(2, 11, 20):narrow(3, 1, 320)), 'gaps', true)
      local wide = poisoned({ 3, 50, 144 }, 'f16')
      local out = wide:narrow(3, 9, 128)
      nn.linear_geglu(card, xc:narrow(3, 1, 320), { out = out })
      near(out, nn.linear_geglu(w, x:narrow(3, 1, 320)), 'out with gaps')
      local beside = wide:narrow(3, 1, 8):to 'f32'
      t.equal(beside:eq(beside):to 'f32':sum():item(), 0, 'nothing is written beside')
      near(nn.linear_geglu({ weight = card.weight, bias = cuda.up(bias, 'f32') }, xc:narrow(3, 1, 320)),
        nn.linear_geglu(w, x:narrow(3, 1, 320)), 'a bias of another dtype', true)
    end)
    local y = nn.linear_geglu({ weight = cuda.up(weight, 'f32') }, cuda.up(x:narrow(3, 1, 320), 'f32'))
    cuda.near(y, nn.linear_geglu({ weight = weight }, x:narrow(3, 1, 320)), { message = 'f32' })
  end)
end)

cuda.test('gates far from 0, infinities and NaN', function()
  cr.scope(function()
    local _, wc = drawn({ 256, 64 }, 'f16', 0.1)
    local gates = cr.full({ 256 }, 1):to 'f16'
    gates:narrow(1, 129, 64):fill_(-60000)
    gates:narrow(1, 193, 64):fill_(30)
    local x = cuda.randn({ 130, 64 }, 'f16')
    x:narrow(1, 77, 1):fill_(0 / 0)
    by_kernel(function()
      local y = nn.linear_geglu({ weight = wc, bias = gates:to(cuda.device) }, x:to(cuda.device):to 'f16'):to 'cpu':to 'f32'
      local there = y:eq(y):to 'f32'
      t.equal(there:sum():item(), 129 * 128, 'one row of nan')
      t.equal(there:narrow(1, 77, 1):sum():item(), 0, 'the row that had it')
      t.equal(y:narrow(1, 1, 76):narrow(2, 1, 64):abs():max():item(), 0, 'gates of -60000')
    end)
  end)
end)

--- Nodes of a recording of fn, and its result when it is replayed.
local function recorded(fn, input)
  local g, y = cr.graph(fn), nil
  for _ = 1, 3 do y = g(input) end
  t.equal(g:why(), nil)
  local n = g:size()
  g:free()
  return n, y
end

cuda.test('one kernel in a recording, with correct results when replayed', function()
  cr.scope(function()
    local x, xc = drawn({ 300, 320 }, 'f16')
    local weight, wc = drawn({ 2560, 320 }, 'f16', 0.05)
    local one = recorded(nn.geglu, xc) -- an operation of one kernel
    for way = 0, 1 do
      by_way(way, function()
        local n, y = recorded(function(input) return nn.linear_geglu({ weight = wc }, input) end, xc)
        if way == 1 then t.equal(n, one) else t.ok(n > one, 'apart') end
        cuda.near(y, nn.linear_geglu({ weight = weight }, x), { message = 'replayed' })
      end)
    end
  end)
end)

cuda.library_test('searched', function()
  cr.scope(function()
    local x, xc = drawn({ 2000, 320 }, 'f16')
    local weight, wc = drawn({ 2560, 320 }, 'f16', 0.05)
    for _ = 1, 2 do near(nn.linear_geglu({ weight = wc }, xc), nn.linear_geglu({ weight = weight }, x), 'searched', true) end
    cuda.with({ search = false }, function()
      near(nn.linear_geglu({ weight = wc }, xc), nn.linear_geglu({ weight = weight }, x), 'unsearched')
    end)
  end)
end)

t.done()
