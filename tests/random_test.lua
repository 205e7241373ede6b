--- Random numbers compared with PyTorch's, and their statistical laws.
local t = require 'tests.support.tap'
local cr = require 'cr'
local flat = require 'tests.support.flat'
local references = require 'tests.support.golden'

local values = flat.values
local golden = require 'tests.golden.random'

local draws = {
  cpu = { { 1, 4, 1, 32, 32 }, { 7 }, { 3, 5 } },
  cuda = { { 1, 4, 1, 32, 32 }, { 16, 4, 32, 32 }, { 16, 4, 32, 32 }, { 1, 4, 1, 64, 64 } },
}

local function worst(got, want, dtype)
  local e = 0
  for i = 1, #want do
    -- f16 results may round to the neighbour.
    local allowed = dtype == 'f16' and math.abs(want[i]) * 2 ^ -10 or 0
    e = math.max(e, math.abs(got[i] - want[i]) - allowed)
    if got[i] ~= got[i] then e = math.huge end
  end
  return e
end

for _, device in ipairs { 'cpu', 'cuda' } do
  for _, dtype in ipairs { 'f32', 'f16' } do
    t.test(('torch.randn of a %s generator, %s'):format(device, dtype), function()
      local g = cr.generator(1247, 'torch-' .. device)
      for k, shape in ipairs(draws[device]) do
        local list = values(cr.randn(shape, { generator = g, dtype = dtype }))
        for _, piece in ipairs(golden[device][dtype][k]) do
          local got = {}
          for i = 2, #piece do got[i - 1] = list[piece[1] + i - 2] end
          local e = worst(got, { unpack(piece, 2) }, device == 'cuda' and dtype)
          t.ok(e <= 1e-6, ('draw %d from %d: off by %.3g'):format(k, piece[1], e))
        end
      end
    end)

    t.test(('samples spread over the %s numbers, %s'):format(device, dtype), function()
      local file = references.open 'networks'
      local g = cr.generator(1247, 'torch-' .. device)
      for k, shape in ipairs(draws[device]) do
        local key = ('torch_randn.%s.%s.%d'):format(device, dtype, k - 1)
        local want = values(file:get(key))
        local got = values(file:cut(cr.randn(shape, { generator = g, dtype = dtype }), key))
        t.equal(#got, #want)
        local e = worst(got, want, device == 'cuda' and dtype)
        t.ok(e <= (device == 'cpu' and 0 or 1e-6), ('draw %d: off by %.3g'):format(k, e))
      end
      file:close()
    end)
  end
end

t.test('torch.randn in f64 and torch.rand on a CPU', function()
  local g = cr.generator(1247, 'torch-cpu')
  for _, piece in ipairs(golden.f64) do
    local got = values(cr.randn(#piece - 1, { generator = g, dtype = 'f64' }))
    t.ok(worst(got, { unpack(piece, 2) }) <= 1e-14, 'f64')
  end
  g = cr.generator(1247, 'torch-cpu')
  t.ok(worst(values(cr.rand(6, { generator = g })), golden.rand.f32) <= 1e-9, 'rand f32')
  t.ok(worst(values(cr.rand(3, { generator = g, dtype = 'f64' })), golden.rand.f64) <= 1e-16, 'rand f64')
end)

t.test('seeds: torch-cpu takes the lower 32 bits, the others all 64', function()
  local function first(kind, seed)
    return table.concat(cr.randn(4, { generator = cr.generator(seed, kind) }):tolist(), ' ')
  end
  t.equal(first('torch-cpu', 5), first('torch-cpu', 2 ^ 32 + 5))
  t.ok(first('torch-cuda', 5) ~= first('torch-cuda', 2 ^ 32 + 5))
  t.ok(first('philox', 5) ~= first('philox', 2 ^ 32 + 5))
  t.ok(first('philox', 5) ~= first('philox', 6))
end)

-- Philox 4x32-10 in plain Lua, 16 bits at a time.
local function multiply(a, b)
  local al, ah, bl, bh = a % 65536, math.floor(a / 65536), b % 65536, math.floor(b / 65536)
  local low = al * bl
  local middle = ah * bl + math.floor(low / 65536)
  local middle2 = al * bh + middle % 65536
  local high = ah * bh + math.floor(middle / 65536) + math.floor(middle2 / 65536)
  return high % 4294967296, (middle2 % 65536) * 65536 + low % 65536
end

local function xor(...) return bit.bxor(...) % 4294967296 end

local function philox(counter, key)
  local c0, c1, c2, c3, k0, k1 = counter, 0, 0, 0, key, 0
  for _ = 1, 10 do
    local ah, al = multiply(0xD2511F53, c0)
    local bh, bl = multiply(0xCD9E8D57, c2)
    c0, c1, c2, c3 = xor(bh, c1, k0), bl, xor(ah, c3, k1), al
    k0, k1 = (k0 + 0x9E3779B9) % 4294967296, (k1 + 0xBB67AE85) % 4294967296
  end
  return { c0, c1, c2, c3 }
end

t.test('philox: element i is word i % 4 of counter i / 4', function()
  -- The published test vector for an all-zero counter and key.
  t.equal(('%08x %08x %08x %08x'):format(unpack(philox(0, 0))), '6627e8d5 e169c58d bc57ac4c 9b00dbd8')
  local uniform, normal = {}, {}
  for block = 0, 25 do
    local w = philox(block, 77)
    for k = 1, 4 do uniform[#uniform + 1] = math.floor(w[k] / 256) / 2 ^ 24 end
    for k = 1, 4, 2 do
      local u, v = (math.floor(w[k] / 256) + 1) / 2 ^ 24, math.floor(w[k + 1] / 256) / 2 ^ 24
      local r = math.sqrt(-2 * math.log(u))
      normal[#normal + 1] = r * math.cos(2 * math.pi * v)
      normal[#normal + 1] = r * math.sin(2 * math.pi * v)
    end
  end
  local function head(list, first, n) return { unpack(list, first, first + n - 1) } end
  local g = cr.generator(77, 'philox')
  t.ok(worst(values(cr.rand(2, 3, { generator = g })), head(uniform, 1, 6)) == 0, 'rand')
  t.ok(worst(values(cr.randn(93, { generator = g })), head(normal, 9, 93)) <= 1e-6, 'a draw begins at a multiple of 4')
  g = cr.generator(77, 'philox')
  t.ok(worst(values(cr.randn(104, { generator = g, dtype = 'f64' })), normal) <= 1e-6, 'f64')
end)

t.test('moments, range, and independence of the size of draws', function()
  for _, kind in ipairs { 'torch-cpu', 'torch-cuda', 'philox' } do
    for _, dtype in ipairs { 'f32', 'f64', 'f16', 'bf16' } do
      local g = cr.generator(os.time() % 100000, kind)
      local list = values(cr.randn(60000, { generator = g, dtype = dtype }))
      local mean, square, fourth = 0, 0, 0
      for _, v in ipairs(list) do mean, square, fourth = mean + v, square + v ^ 2, fourth + v ^ 4 end
      local n = #list
      t.ok(math.abs(mean / n) < 0.03 and math.abs(square / n - 1) < 0.04 and math.abs(fourth / n - 3) < 0.35,
        ('%s %s: %.3f %.3f %.3f'):format(kind, dtype, mean / n, square / n, fourth / n))
      local low, high, sum = 1, 0, 0
      for _, v in ipairs(values(cr.rand(40000, { generator = g, dtype = dtype }))) do
        low, high, sum = math.min(low, v), math.max(high, v), sum + v
      end
      t.ok(low >= 0 and high < 1 and math.abs(sum / 40000 - 0.5) < 0.01, kind .. ' ' .. dtype .. ' rand')
    end
  end
  local a, b = cr.generator(3, 'philox'), cr.generator(3, 'philox')
  local whole = values(cr.randn(5000, { generator = a }))
  local cut = values(cr.cat({ cr.randn(2000, { generator = b }), cr.randn(3000, { generator = b }) }, 1))
  t.equal(worst(cut, whole), 0)
end)

t.test('a generator can be copied, and advanced without drawing', function()
  for _, kind in ipairs { 'torch-cpu', 'torch-cuda', 'philox' } do
    for _, dtype in ipairs { 'f32', 'f16', 'f64' } do
      for _, n in ipairs { 1, 17, 1000, 300001 } do
        local drawn, skipped = cr.generator(7, kind), cr.generator(7, kind)
        cr.randn(n, { generator = drawn, dtype = dtype }):free()
        cr.skip_randn(skipped, n, dtype)
        local copy = cr.generator(skipped)
        local name = ('%s %s %d'):format(kind, dtype, n)
        local first = values(cr.randn(5, { generator = drawn }))
        t.equal(worst(values(cr.randn(5, { generator = skipped })), first), 0, name)
        t.equal(worst(values(cr.randn(5, { generator = copy })), first), 0, name .. ', a copy')
      end
    end
  end
  t.raises(function() cr.generator(cr.generator(1), 'philox') end, 'a copy has the kind of its original')
  t.raises(function() cr.skip_randn(cr.generator(1), 4, 'i32') end, 'a float dtype is needed')
end)

t.test('empty draws and messages', function()
  local g = cr.generator(1, 'torch-cuda')
  t.equal(cr.randn(0, 4, { generator = g }):numel(), 0)
  t.raises(function() cr.randn(3, { generator = g, dtype = 'i32' }) end, 'randn: a float dtype is needed, not i32')
  t.raises(function() cr.rand(-1, { generator = g }) end, 'rand')
  t.raises(function() cr.generator(1, 'dice') end, "generator: kind: there is no generator 'dice'")
end)

t.done()
