--- Ctrl-C: prompt reaction, exit status 130, one line on stderr, closers run, half-written files are removed.

local t = require 'tests.support.tap'
local cr = require 'cr'
local ffi = require 'ffi'
local child = require 'tests.support.child'

-- CPU seconds after the signal: half a second for each thread. The interrupted work would take minutes, or never end.
local SECONDS = 20

local function interrupted(name, text, more)
  t.test(name, function()
    more = more or {}
    local path = child.file('child.lua', text)
    local r = child.run({ path, child.folder }, {
      signal = more.signal or 'sigint', after = 'ready', keep_stdin = more.keep_stdin,
    })
    t.equal(r.code, more.code or 130, 'exit code')
    t.equal(r.signal, 0, 'killed by a signal')
    t.equal(r.err, 'crescent: interrupted\n')
    t.ok(r.processor < SECONDS, ('took %.2f s of the processor'):format(r.processor))
    t.equal(r.out, more.out or 'ready\n')
    if more.check then more.check() end
  end)
end

local ready = [[
  local cr, folder = require 'cr', ...
  local function ready() io.write 'ready\n' io.flush() end
]]

interrupted('a loop of tensor operations', ready .. [[
  local a = cr.rand(64, 64)
  ready()
  while true do a = (a + 1):clamp(0, 1) end
]])

interrupted('a loop of tensor operations in a task, SIGTERM', ready .. [[
  local a = cr.rand(64, 64)
  ready()
  cr.run(function() while true do a = a:matmul(a):clamp(0, 1) end end)
]], { signal = 'sigterm', code = 143 })

-- 4 * 64 * 2^34 flop in one call: the watchdog must interrupt it.
interrupted('one long operation, with a file to delete', ready .. [[
  local ffi = require 'ffi'
  local name = folder .. '/.half'
  io.open(name, 'w'):close()
  assert(cr.C.cr_cleanup_add(name) == 0)
  local kept = folder .. '/kept'
  io.open(kept, 'w'):close()
  assert(cr.C.cr_cleanup_add(kept) == 0 and cr.C.cr_cleanup_remove(kept) == 1)
  local a = cr.ones(1, 2 ^ 17, 64)
  ready()
  cr.nn.attention(a, a, a, { heads = 1 })
]], {
  check = function()
    t.ok(not child.exists(child.folder .. '/.half'), 'the half-written file is still there')
    t.ok(child.exists(child.folder .. '/kept'), 'a file taken off the list was deleted')
  end,
})

interrupted('Lua that calls nothing', ready .. [[
  ready()
  local x = 0
  while true do x = x + 1 end
]])

interrupted('a task that waits; its closer runs', ready .. [[
  cr.run(function()
    ready()
    local ok, err = pcall(cr.sleep, 100)
    print('closer', err)
    error(err, 0)
  end)
]], { out = 'ready\ncloser\tinterrupted\n' })

interrupted('tasks on channels while the main program computes', ready .. [[
  local channel = cr.channel(1)
  cr.go(function()
    local ok, err = pcall(channel.get, channel)
    print('closer', err)
  end)
  cr.yield()
  ready()
  local a = cr.rand(16)
  while true do a = a + 1 end
]], { out = 'ready\ncloser\tinterrupted\n' })

interrupted('a blocking read', ready .. [[
  ready()
  print(io.read '*a')
]], { keep_stdin = true })

interrupted('a script that catches every error', ready .. [[
  ready()
  while true do pcall(function() local a = cr.rand(8) while true do a = a + 1 end end) end
]])

-- The watchdog ends it, without repeating the message.
interrupted('an end that takes longer than the grace', ready .. [[
  kept = newproxy(true)
  getmetatable(kept).__gc = function() while true do end end
  ready()
  cr.sleep(100)
]])

t.test('a signal after Lua has ended', function()
  for _, number in ipairs { 1, 2, 15 } do
    -- A hook at the very end gets the exit status.
    local r = child.run { '-e', ([[
      local ffi = require 'ffi'
      ffi.cdef 'int on_exit(void (*)(int, void *), void *); int raise(int);'
      ffi.C.on_exit(ffi.cast('void (*)(int, void *)', ffi.C.raise), nil)
      os.exit(%d, true)
    ]]):format(number) }
    t.equal(r.code, number)
    t.equal(r.err, '')
  end
end)

t.test('clearing the interruption stops the watchdog', function()
  -- The program interrupts itself, so that no scheduling delay lies between the signal and the clear.
  local path = child.file('clear.lua', [[
    local cr, uv = require 'cr', require 'cr.loop'.uv
    local ok, err = pcall(function()
      uv.kill(uv.os_getpid(), 'sigint')
      while true do end
    end)
    cr.C.cr_interrupt_clear()
    cr.sleep(1)
    print('went on', err)
  ]])
  local r = child.run { path }
  t.equal(r.code, 0, r.err)
  t.equal(r.out, 'went on\tinterrupted\n')
  t.equal(r.err, '')
end)

t.test('the interruption flag', function()
  local C = cr.C
  local a = cr.ones(3)
  C.cr_interrupt_clear()
  t.ok(not cr.interrupted())
  C.cr_interrupt()
  t.ok(cr.interrupted())
  t.raises(function() return a + a end, 'interrupted')
  C.cr_interrupt_clear()
  t.equal((a + a):sum():item(), 6)
  t.equal(C.cr_cleanup_remove '/no/such/file', 0)
  t.equal(ffi.string(C.cr_last_error()):find 'interrupted' ~= nil, true)
end)

child.clean()
t.done()
