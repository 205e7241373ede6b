-- Recordings (CUDA graphs), streams, waiting in tasks, faults and resets.

local cr = require 'cr'
local child = require 'tests.support.child'
local now = require 'cr.clock'
local cuda = require 'tests.support.cuda'
local t = require 'tests.support.tap'

local up, randn = cuda.up, cuda.randn

cuda.test("a recording returns the function's result for every new input", function()
  local w = up(randn { 7, 5 })
  local function fn(x, k) return cr.scope(function() return (x:matmul(w) * k):silu(), x:sum() end) end
  local g = cr.graph(fn)
  for i = 1, 5 do
    cr.scope(function()
      local x = up(randn { 3, 7 })
      local y, s = g(x, 2)
      local y2, s2 = fn(x, 2)
      cuda.near(y, y2:to 'cpu', { message = 'call ' .. i, limit = 1e-7 })
      cuda.near(s, s2:to 'cpu', { limit = 1e-7 })
    end)
  end
  t.equal(g:why(), nil)
  t.equal(g:count(), 1)
  g:free()
  t.equal(g:count(), 0)
end)

cuda.test('results may be arguments, or tensors that the function did not make', function()
  local other = up(randn { 4 })
  local g = cr.graph(function(x) return x, other, { x * 2, deep = { { x * 3 } } }, 'word' end)
  for _ = 1, 4 do
    cr.scope(function()
      local x = up(randn { 3 })
      local a, b, list, word = g(x)
      t.near(a:to 'cpu', x:to 'cpu', 0)
      t.near(b:to 'cpu', other:to 'cpu', 0)
      t.near(list[1]:to 'cpu', (x * 2):to 'cpu', 0)
      t.near(list.deep[1][1]:to 'cpu', (x * 3):to 'cpu', 0)
      t.equal(word, 'word')
    end)
  end
  g:free()
  t.ok(not other:is_freed(), 'a tensor of others stays theirs')
end)

cuda.test('a graph inside another is part of it', function()
  local inner = cr.graph(function(x) return (x * 3):exp():log() end)
  local outer = cr.graph(function(x)
    local kept = x + 1
    return inner(x) + kept
  end)
  for i = 1, 6 do
    cr.scope(function()
      local x = up(randn { 1000 })
      if i % 2 == 0 then inner(x) end
      cuda.near(outer(x), (x * 4 + 1):to 'cpu', { limit = 1e-5 })
    end)
  end
  inner:free()
  outer:free()
end)

cuda.test('each combination of shapes and plain arguments has its own recording', function()
  local g = cr.graph(function(x, k) return x * k end, { limit = 3 })
  for _ = 1, 3 do
    for n = 1, 2 do
      for k = 2, 3 do
        cr.scope(function()
          local x = up(randn { n, 4 })
          cuda.near(g(x, k), (x * k):to 'cpu', { limit = 0 })
        end)
      end
    end
  end
  t.ok(g:count() <= 3, g:count() .. ' recordings')
  g:free()
end)

cuda.test('a recording keeps the weights that it reads alive', function()
  local w = up(randn { 64, 64 })
  local g = cr.graph(function(x) return x:matmul(w) end)
  local x = up(randn { 2, 64 })
  local before = g(x):to 'cpu'
  g(x)
  w:free()
  local junk = {} -- luacheck: ignore 241
  for i = 1, 8 do junk[i] = cr.full({ 64, 64 }, 7, { device = cuda.device }) end
  t.near(g(x):to 'cpu', before, 0)
  g:free()
end)

cuda.test('what cannot be recorded runs directly and reports the reason', function()
  local g = cr.graph(function(x) return x * x:sum():item() end)
  for _ = 1, 3 do
    cr.scope(function()
      local x = up(randn { 5 })
      cuda.near(g(x), (x * x:sum():item()):to 'cpu', { limit = 1e-7 })
    end)
  end
  t.ok(g:why() and g:why():find 'copy', 'why: ' .. tostring(g:why()))
  t.raises(function() cr.graph(function(x) return x:matmul(x) end)(up(randn { 2, 3 })) end, 'inner sizes differ')
end)

cuda.test('recordings share memory for temporaries', function()
  local function big(x)
    return cr.scope(function()
      local y = x
      for _ = 1, 4 do y = y:exp():sigmoid() end
      return y:sum()
    end)
  end
  local a, b = cr.graph(function(x) return big(x) end), cr.graph(function(x) return big(x) * 2 end)
  local x = up(randn { 1024, 1024 })
  local one = big(x):item()
  for _ = 1, 3 do
    t.near(a(x):item(), one, math.abs(one) * 1e-6)
    t.near(b(x):item(), 2 * one, math.abs(one) * 2e-6)
  end
  t.equal(a:why() or b:why(), nil)
  a:free()
  b:free()
end)

cuda.library_test('a task that waits lets others run; timers go on', function()
  cr.run(function()
    local x = up(randn { 2048, 2048 })
    local ticks, waiting = 0, true
    local clock = cr.go(function()
      while waiting do
        ticks = ticks + 1
        cr.sleep(0.001)
      end
    end)
    for _ = 1, 200 do cr.scope(function() return nil, x:matmul(x) end) end
    cr.cuda.synchronize()
    waiting = false
    cr.await(clock)
    t.ok(ticks > 1, ticks .. ' ticks')
  end)
end)

cuda.test('a tensor made on one stream is waited for on another', function()
  cr.run(function()
    local n = cuda.slow and 150 or 1500
    local x = up(randn { n, n })
    local y = x
    local result
    local made = cr.channel(1)
    cr.all {
      function()
        for _ = 1, 30 do y = y:matmul(x) * n ^ -0.5 end
        made:put(y)
      end,
      function()
        cr.cuda.stream(1)
        result = (made:get() + 1):to 'cpu'
      end,
    }
    t.near(result, (y + 1):to 'cpu', 0)
    t.equal(cr.C.cr_device_stream(-1), 0, 'the main program keeps its stream')
  end)
end)

cuda.library_test('a patient task lets others run while it waits for what it reads', function()
  cr.run(function()
    local x = up(randn { 2500, 2500 })
    local wanted = (x:matmul(x):narrow(1, 1, 1) + 1):to 'cpu'
    local turns, during, got = 0, nil, nil
    cr.all {
      function()
        cr.cuda.be_patient()
        for _ = 1, 30 do cr.scope(function() x:matmul(x) end) end
        local y = x:matmul(x):narrow(1, 1, 1) + 1
        local before = turns
        got = y:to 'cpu'
        during = turns - before
      end,
      function()
        while not got do
          turns = turns + 1
          cr.yield()
        end
      end,
    }
    t.near(got, wanted, 0)
    t.ok(during > 2, ('%d turns of the other task meanwhile'):format(during))
  end)
end)

cuda.test('a function is recorded again on another stream', function()
  local g = cr.graph(function(x) return x * 2 + 1 end)
  cr.run(function()
    for stream = 0, 1 do
      cr.await(cr.go(function()
        cr.cuda.stream(stream)
        for i = 1, 4 do cr.scope(function() t.near(g(up(cr.full({ 3 }, i))):to 'cpu', cr.full({ 3 }, 2 * i + 1), 0) end) end
      end))
    end
  end)
  t.equal(g:why(), nil)
  t.equal(g:count(), 2)
  g:free()
end)

cuda.library_test('hand_over and marks wait for earlier work only', function()
  cr.run(function()
    local x = up(randn { 2500, 2500 })
    local y = x:matmul(x)
    local wanted = (y:narrow(1, 1, 1) + 1):to 'cpu'
    local done = cr.channel(1)
    local first, last, read
    cr.all {
      function()
        local z = y * 1
        cr.cuda.hand_over(z, 1)
        local given = now()
        local mark = cr.cuda.mark()
        -- After both, at least as much work as fills the launch queue: some tenths of a second.
        for _ = 1, 1500 do cr.scope(function() x:matmul(x) end) end
        done:put(z)
        local reached = cr.await(mark)
        local heard = now()
        local ago = (math.floor(heard * 1e6) - reached) % 2 ^ 31 * 1e-6
        t.ok(ago < heard - given + 1e-5, ('it was reached %.3f s ago, and given %.3f s ago'):format(ago, heard - given))
        first = heard - ago
        cr.cuda.synchronize()
        last = now()
      end,
      function()
        cr.cuda.stream(1)
        local z = done:get()
        t.near((z:narrow(1, 1, 1) + 1):to 'cpu', wanted, 0)
        read = now()
      end,
    }
    t.ok(last - first > 0.1, ('the mark was reached %.3f s before the end'):format(last - first))
    t.ok(read < last, ('the other stream read %.3f s after the end'):format(read - last))
    cr.cuda.hand_over(cr.zeros(3), 1) -- on a CPU: nothing
  end)
end)

cuda.test('memory that another stream still reads is not reused', function()
  cr.run(function()
    cr.all {
      function()
        cr.cuda.stream(1)
        for i = 1, 50 do
          cr.scope(function()
            local a = cr.full({ 300, 300 }, i, { device = cuda.device })
            cr.C.cr_device_stream(0)
            local b = a:matmul(a)
            cr.C.cr_device_stream(1)
            a:free()
            local c = cr.full({ 300, 300 }, -1, { device = cuda.device })
            t.equal(b:max():item(), 300 * i * i)
            t.equal(c:max():item(), -1)
          end)
        end
      end,
    }
  end)
end)

cuda.test('the denoising loop: new time steps and windows reuse the recording', function()
  local scale = cr.graph(function(x, time, share) return x * time + share end)
  local share = up(randn { 4, 4 })
  for step = 1, 6 do
    cr.scope(function()
      local x, time = up(randn { 4, 4 }), cr.full({ 1 }, step, { device = cuda.device })
      cuda.near(scale(x, time, share), (x * step + share):to 'cpu', { limit = 1e-6 })
    end)
  end
  t.equal(scale:count(), 1)
  scale:free()
end)

-- A fault makes the device unusable for the process, so it happens in a child process.
local FAULT = [[
  local cr = require 'cr'
  local kept = cr.ones(3, { device = 'cuda' })
  local x = cr.empty(1000, { device = 'cuda' })
  x.c.offset = 2 ^ 41
  print(pcall(function() x:fill_(1) cr.cuda.synchronize() end))
  print(pcall(function() return cr.ones(2, { device = 'cuda' }) end))
  print(pcall(cr.cuda.reset))
  print(pcall(function() return kept + 1 end))
  print(pcall(function() return (cr.ones(2, { device = 'cuda' }) + 1):sum():item() end))
  print((cr.ones(2) + 1):sum():item())
]]

cuda.test('a fault names its operation and persists; a reset recovers, or says how to', function()
  local script = child.file('fault.lua', FAULT)
  local r = child.run({ script }, { env = { CR_CUDA_BLOCKING = '1' } })
  local lines = {}
  for line in r.out:gmatch '[^\n]+' do lines[#lines + 1] = line end
  t.equal(r.code, 0, r.err)
  t.equal(#lines, 6, r.out)
  t.ok(lines[1]:find 'false.*fill.*illegal memory access', lines[1])
  t.ok(lines[2]:find 'false.*the card failed', lines[2])
  -- Not every driver lets a process use a device again that failed under it.
  if lines[3]:find '^true' then
    t.ok(lines[4]:find 'false.*lost when its device was reset', lines[4])
    t.ok(lines[5]:find 'true.*4', lines[5])
  else
    t.ok(lines[3]:find 'reset: the driver returns .* only to a new process: start the program again', lines[3])
    t.ok(lines[5]:find 'false.*only to a new process', lines[5])
  end
  t.equal(lines[6], '4', 'the CPU goes on')
  r = child.run({ script }, { env = { CR_CUDA_BLOCKING = '0' } })
  t.ok(r.out:find 'fill', 'without waiting the fault still tells the last operations: ' .. r.out)
end)

cuda.test('a reset without a fault gives a fresh device', function()
  local r = child.run { child.file('reset.lua', [[
    local cr = require 'cr'
    local kept = cr.ones(3, { device = 'cuda' })
    local g = cr.graph(function(x) return x:matmul(x):silu() end)
    local x = cr.ones(4, 4, { device = 'cuda' })
    for _ = 1, 3 do g(x) end
    cr.cuda.reset()
    print(pcall(function() return kept + 1 end))
    print(pcall(function() return g(x) end))
    local y = cr.ones(4, 4, { device = 'cuda' })
    print(y:matmul(y):sum():item())
    kept:free()
    g:free()
    for _ = 1, 3 do print(g(y):sum():item() > 60) end
  ]]) }
  t.equal(r.code, 0, r.err)
  t.ok(r.out:find 'false.-lost.-\nfalse.-lost.-\n64\ntrue\ntrue\ntrue\n$', r.out)
end)

child.clean()
t.done()
