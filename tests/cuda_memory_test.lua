-- Memory of a GPU: blocks are reused at the same address, split and merged, and counted by purpose; and what happens
-- when it is exhausted. Rules that need no GPU are tested everywhere.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local ffi = require 'ffi'
local t = require 'tests.support.tap'

local device = cuda.device
local MiB = 2 ^ 20

-- cr_storage of core/base/internal.h, as far as needed here.
ffi.cdef [[
typedef struct { int32_t refs, device; char *data; int64_t bytes, allocated; } test_storage;
]]
local function storage(x) return ffi.cast('test_storage *', x.c.storage) end
local function address(x) return tonumber(ffi.cast('uintptr_t', storage(x).data)) end
local function bytes(n) return cr.empty(n, { dtype = 'u8', device = device }) end

-- A test that begins and ends without cached memory.
local function test(name, fn)
  cuda.test(name, function()
    collectgarbage()
    collectgarbage()
    cr.trim(device)
    local before = cr.memory(device)
    local ok, err = pcall(fn)
    cr.cuda.limit(0, device)
    if not ok then error(err, 0) end
    collectgarbage()
    collectgarbage()
    t.equal(cr.memory(device).live, before.live, 'live bytes after the test')
    t.equal(cr.memory(device).count, before.count, 'storages after the test')
  end)
end

-- ---- everywhere ------------------------------------------------------------------------------

t.test('a failing allocation collects garbage and retries', function()
  local C = cr.C
  local x = cr.ones(1)
  local collected = 0
  for _ = 1, 3 do ffi.gc(ffi.new 'int[1]', function() collected = collected + 1 end) end
  t.raises(function() cr.empty(2 ^ 31 - 1, 2 ^ 20) end, 'out of memory: .* asked for')
  t.ok(collected == 3, 'what Lua had forgotten was freed')
  t.raises(function() x:expand(2 ^ 31 - 1, 2 ^ 22):clone() end, 'copy: out of memory: .* asked for')
  t.equal(C.cr_memory_pressure(), 0)
end)

t.test('memory is counted by purpose', function()
  t.equal(cr.tagged('a', function(x, y) return x + y end, 1, 2), 3)
  t.raises(function() cr.tagged('a', error, 'as it was', 0) end, '^as it was$')
  t.raises(function() cr.tagged(nil, error) end, 'tagged: name: a name is needed, not nil')
  t.equal(#cr.memory().tags, 0, 'the CPU counts no purposes')
  t.raises(function() cr.cuda.limit(1e6, 'cpu') end, 'cuda.limit: a card is needed, not the CPU')
end)

-- ---- on a card -------------------------------------------------------------------------------

test('a freed block is used again', function()
  for _, size in ipairs { 1, 255, 256, 257, 5000, MiB - 1, MiB, MiB + 1, 3 * MiB + 7, 50 * MiB } do
    local x = bytes(size)
    local at = address(x)
    t.equal(at % 256, 0, 'alignment')
    x:free()
    local y = bytes(size)
    t.equal(address(y), at, 'the same block for ' .. size)
    y:free()
  end
end)

test('blocks split, and merge again', function()
  local whole = bytes(40 * MiB)
  local at = address(whole)
  whole:free()
  local reserved = cr.memory(device).cached
  local parts = {}
  for i = 1, 4 do parts[i] = bytes(10 * MiB) end
  for i = 1, 4 do
    t.ok(address(parts[i]) >= at and address(parts[i]) < at + 40 * MiB, 'part ' .. i .. ' is of the old block')
  end
  t.equal(cr.memory(device).live + cr.memory(device).cached, reserved, 'nothing new was taken')
  parts[2]:free()
  parts[4]:free()
  parts[1]:free()
  parts[3]:free()
  local again = bytes(40 * MiB)
  t.equal(address(again), at, 'the parts are one block again')
  again:free()
end)

test('the pool grows only by what is missing', function()
  if os.getenv 'CR_CUDA_MALLOC' == '1' then t.skip 'ranges do not grow' end
  local x = bytes(40 * MiB)
  x:free()
  local y = bytes(48 * MiB)
  local m = cr.memory(device)
  t.ok(m.live + m.cached <= 52 * MiB, ('%.1f MiB are taken for 48'):format((m.live + m.cached) / MiB))
  y:free()
end)

test('live, cached and peak bytes', function()
  cr.reset_peak(device)
  local base = cr.memory(device)
  t.equal(base.peak, base.live)
  local x = bytes(3 * MiB)
  local y = bytes(5 * MiB)
  local m = cr.memory(device)
  t.equal(m.live - base.live, 8 * MiB)
  t.equal(m.count - base.count, 2)
  x:free()
  y:free()
  m = cr.memory(device)
  t.equal(m.live, base.live)
  t.equal(m.peak - base.live, 8 * MiB)
  t.ok(m.cached >= 8 * MiB)
  t.ok(m.peak_reserved >= m.peak)
  cr.trim(device)
  t.ok(cr.memory(device).cached < MiB * 4, 'trimmed')
  cr.reset_peak(device)
  t.equal(cr.memory(device).peak, base.live)
  t.equal(cr.memory(device).peak_reserved, cr.memory(device).cached + cr.memory(device).live)
end)

test('memory by purpose', function()
  local function of(name)
    for _, tag in ipairs(cr.memory(device).tags) do
      if tag.name == name then return tag end
    end
    return { live = 0, peak = 0 }
  end
  local before = of('').live
  local x = cr.tagged('test weights', bytes, 3000)
  local y = cr.tagged('test weights', function() return { bytes(2 * MiB), cr.tagged('test latents', bytes, 100) } end)
  local z = bytes(7)
  t.equal(of 'test weights'.live, 3000 + 2 * MiB)
  t.equal(of 'test latents'.live, 100)
  t.equal(of('').live - before, 7)
  local tags = cr.memory(device).tags
  for i = 2, #tags do t.ok(tags[i - 1].live >= tags[i].live, 'most live first') end
  y[1]:free()
  t.equal(of 'test weights'.live, 3000)
  t.equal(of 'test weights'.peak, 3000 + 2 * MiB)
  y[2]:free()
  x:free()
  z:free()
  t.equal(of 'test weights'.live, 0)
end)

test('out of memory is one sentence', function()
  local live = cr.memory(device).live
  cr.cuda.limit(live + 100 * MiB, device)
  local weights = cr.tagged('test weights', bytes, 60 * MiB)
  t.raises(function() bytes(50 * MiB) end, '^[^\n]*out of memory on cuda:0: 50.0 MiB asked for, [%d.]+ MiB in use ' ..
    'of the [%d.]+ MiB it is limited to: .*test weights 60.0 MiB.*; a smaller %-%-size, 8%-bit weights ' ..
    '%(%-%-quant fp8%) or decoding picture by picture %(vae.slice = 1%) would help$')
  local x = bytes(30 * MiB):view(30 * MiB)
  t.raises(function() return x + x end, 'add: out of memory on cuda:0: 30.0 MiB asked for')
  weights:free()
  local y = bytes(50 * MiB)
  y:free()
  x:free()
end)

test('unreachable tensors are collected before an operation fails', function()
  local live = cr.memory(device).live
  cr.cuda.limit(live + 100 * MiB, device)
  collectgarbage 'stop'
  for _ = 1, 20 do bytes(30 * MiB) end -- 600 MiB in total, which nobody references
  collectgarbage 'restart'
  t.ok(cr.memory(device).live <= live + 100 * MiB)
end)

test('cached memory is released when more is needed', function()
  local live = cr.memory(device).live
  cr.cuda.limit(live + 100 * MiB, device)
  local list = {}
  for i = 1, 9 do list[i] = bytes(10 * MiB) end
  for i = 1, 9, 2 do list[i]:free() end -- five holes of 10 MiB
  local x = bytes(40 * MiB)
  t.ok(address(x) ~= 0)
  local m = cr.memory(device)
  t.ok(m.live + m.cached <= live + 110 * MiB, ('%.1f MiB taken'):format((m.live + m.cached) / MiB))
  x:free()
  for i = 2, 8, 2 do list[i]:free() end
end)

test('random sizes keep their contents', function()
  local random = math.random
  local held, count, stamp = {}, 0, 0
  for step = 1, 1500 do
    if count > 0 and (random() < 0.48 or count > 150) then
      local i = random(count)
      local h = held[i]
      local list = h.x:to 'cpu'
      local p = list:pointer()
      t.ok(p[0] == h.stamp and p[h.n - 1] == h.stamp and p[math.floor(h.n / 2)] == h.stamp,
        ('block %d of %d bytes (CR_SEED=%d)'):format(h.stamp, h.n, cuda.seed))
      list:free()
      h.x:free()
      -- In this order, because the last one may be released.
      held[i] = held[count]
      held[count], count = nil, count - 1
    else
      local n = random() < 0.7 and random(4000) or random(math.floor(1.5 * MiB))
      stamp = (stamp + 1) % 251
      local x = bytes(n)
      cr.C.cr_fill(x.c, stamp)
      count = count + 1
      held[count] = { x = x, n = n, stamp = stamp }
    end
    if step % 400 == 0 then cr.trim(device) end
  end
  table.sort(held, function(a, b) return address(a.x) < address(b.x) end)
  for i = 2, count do
    t.ok(address(held[i - 1].x) + held[i - 1].n <= address(held[i].x), 'blocks do not overlap')
  end
  for i = 1, count do held[i].x:free() end
end)

test('allocations of zero bytes', function()
  local x = cr.empty(0, 3, { device = device })
  t.equal(x:to 'cpu':numel(), 0)
  x:free()
  x:free()
end)

test('recordings have their own memory, which persists', function()
  local g = cr.graph(function(x) return (x * 2 + 1) * 3 end)
  local x = cr.ones(300000, { device = device })
  for _ = 1, 3 do g(x):free() end -- directly, recording, replay
  t.equal(g:why(), nil)
  cr.trim(device)
  local other = {}
  for i = 1, 20 do other[i] = cr.full({ 300000 }, 7, { device = device }) end
  local y = g(x)
  t.equal(y:to 'cpu':max():item(), 9)
  for i = 1, 20 do
    t.equal(other[i]:to 'cpu':min():item(), 7, 'a tensor from outside is not written to')
    other[i]:free()
  end
  x:free()
  y:free()
  g:free()
end)

test('a block that another stream used is not reused too early', function()
  local C = cr.C
  local n = 8 * MiB
  for _ = 1, 20 do
    local x = cr.full({ n }, 1, { device = device })
    C.cr_device_stream(1)
    local y = x * 3 -- on the other stream, which keeps x alive
    x:free()
    C.cr_device_stream(0)
    local z = cr.full({ n }, 9, { device = device }) -- must not overlap x, which is still read
    t.equal(y:to 'cpu':max():item(), 3)
    t.equal(z:min():item(), 9)
    y:free()
    z:free()
  end
end)

-- This test is the last one, because it invalidates everything on the device.
cuda.test('a reset invalidates tensors, and freeing them is harmless', function()
  local x, y = bytes(100), bytes(30 * MiB)
  cr.cuda.reset(device)
  t.raises(function() return x:to 'cpu' end, 'the tensor was lost when its device was reset')
  t.equal(cr.memory(device).live, 0)
  local z = cr.full({ 10 }, 4, { device = device })
  x:free()
  t.equal(cr.memory(device).count, 1)
  t.equal(z:to 'cpu':max():item(), 4)
  z:free()
  y:free()
  t.equal(cr.memory(device).count, 0)
end)

t.done()
