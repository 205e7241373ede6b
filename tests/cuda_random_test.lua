-- Random numbers on a GPU: bit-exact with torch's, and equal to those of the CPU.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local flat = require 'tests.support.flat'
local references = require 'tests.support.golden'
local golden = require 'tests.golden.random'
local t = require 'tests.support.tap'

local values = flat.values
local draws = { { 1, 4, 1, 32, 32 }, { 16, 4, 32, 32 }, { 16, 4, 32, 32 }, { 1, 4, 1, 64, 64 } }

local function down(x) return values(x:to 'cpu') end

for _, dtype in ipairs { 'f32', 'f16' } do
  cuda.test('torch.randn on CUDA, bit for bit, ' .. dtype, function()
    local g = cr.generator(1247, 'torch-cuda')
    for k, shape in ipairs(draws) do
      local list = down(cr.randn(shape, { generator = g, dtype = dtype, device = cuda.device }))
      for _, piece in ipairs(golden.cuda[dtype][k]) do
        for i = 2, #piece do
          -- The reference values are written with 9 digits.
          local e = math.abs(list[piece[1] + i - 2] - piece[i])
          t.ok(e <= math.abs(piece[i]) * 1e-8, ('draw %d, element %d: off by %.3g'):format(k, piece[1] + i - 2, e))
        end
      end
    end
  end)

  cuda.test('samples spread over torch.randn on CUDA, ' .. dtype, function()
    local file = references.open 'networks'
    local g = cr.generator(1247, 'torch-cuda')
    for k, shape in ipairs(draws) do
      local key = ('torch_randn.cuda.%s.%d'):format(dtype, k - 1)
      local want = values(file:get(key))
      local got = down(file:cut(cr.randn(shape, { generator = g, dtype = dtype, device = cuda.device }), key))
      local different = 0
      for i = 1, #want do different = different + (got[i] == want[i] and 0 or 1) end
      t.ok(#got == #want and different == 0, ('draw %d: %d of %d differ'):format(k, different, #want))
    end
    file:close()
  end)
end

for _, kind in ipairs { 'torch-cuda', 'philox', 'torch-cpu' } do
  cuda.test(kind .. ': GPU and CPU draw the same numbers, in any order', function()
    t.each({ 'f32', 'f16', 'bf16', 'f64' }, function(dtype)
      local seed = math.random(2 ^ 40)
      local a, b = cr.generator(seed, kind), cr.generator(seed, kind)
      local function check(which, n, device)
        local x = cr[which](n, { generator = a, dtype = dtype, device = device })
        local y = cr[which](n, { generator = b, dtype = dtype })
        local e = (x:to 'cpu':to 'f64' - y:to 'f64'):abs()
        -- f16 results may round to the neighbour; above 4, the last place of f32 is 5e-7.
        local step = dtype == 'f64' and 0 or dtype == 'f32' and 2 ^ -22 or cuda.eps[dtype]
        local allowed = y:to 'f64':abs() * step
        local over = (e - allowed):max():item()
        t.ok(over <= 1e-6, ('%s %s of %d, seed %d: off by %.3g'):format(which, dtype, n, seed, over))
      end
      for turn, n in ipairs { 1, 5, 16, 1000, 270337, 3, 1100001 } do
        local device = turn % 3 == 0 and 'cpu' or cuda.device -- which one draws has no effect on the generator
        if n <= 1000 or dtype ~= 'f64' then check('randn', n, device) end
        if n <= 1000 then check('rand', n, device) end
      end
    end)
  end)
end

cuda.test('draws into strided tensors, and empty ones', function()
  for _, kind in ipairs { 'torch-cuda', 'philox' } do
    local a, b = cr.generator(5, kind), cr.generator(5, kind)
    local out = cr.zeros({ 7, 3, 5 }, { device = cuda.device }):permute(3, 1, 2)
    cr.check(cr.C.cr_randn(out.c, 3, require 'ffi'.new('int32_t[3]', { 5, 7, 3 }), out.c.dtype, out.c.device, a))
    cuda.near(out, cr.randn({ 5, 7, 3 }, { generator = b }), { limit = 1e-6, message = kind })
    t.equal(cr.randn(0, 4, { generator = a, device = cuda.device }):numel(), 0)
  end
end)

t.done()
