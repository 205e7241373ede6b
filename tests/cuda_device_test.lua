-- The device itself: it starts, waits, and reports its properties.

local child = require 'tests.support.child'
local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local t = require 'tests.support.tap'

cuda.test('memory is allocated and freed', function()
  local before = cr.memory(cuda.device).live
  local x = cr.empty(1000, 3, { device = cuda.device })
  t.ok(cr.memory(cuda.device).live >= before + 12000)
  x:free()
  t.equal(cr.memory(cuda.device).live, before)
end)

cuda.test('an environment switch with an invalid value is an error', function()
  local script = "print(require 'cr'.ones(2, { device = 'cuda' }):sum():item())"
  local r = child.run({ '-e', script }, { env = { CR_ATTENTION = 'flash' } })
  t.ok(r.code ~= 0, r.out)
  t.ok(r.err:find('CR_ATTENTION=flash, which takes one of: wgmma, mma', 1, true), r.err)
  t.equal(child.run({ '-e', script }, { env = { CR_ATTENTION = 'mma', CR_GEGLU = '' } }).out, '2\n')
end)

-- In separate processes, because a library is initialized once per process.
local PREPARED = [[
  local cr = require 'cr'
  local nn = require 'cr.nn'
  local weight, x = cr.ones(16, 3, 3, 16, { device = 'cuda', dtype = 'f16' }), cr.ones(1, 9, 9, 16, { device = 'cuda', dtype = 'f16' })
  %s
  local y = nn.linear({ weight = weight:view(16, 144) }, nn.conv2d({ weight = weight }, x, { padding = 1 }):view(9, 144))
  %s
  io.write(y:to 'f32':sum():item())
]]

cuda.library_test('libraries are initialized while other work goes on', function()
  local function run(...)
    local r = child.run({ '-e', PREPARED:format(...) })
    t.equal(r.code, 0, r.err)
    return r.out
  end
  local plain = run('', '')
  t.ok(tonumber(plain) > 0, plain)
  t.equal(run('cr.cuda.prepare()', 'assert(cr.cuda.device.prepare)'), plain)
  t.equal(run('cr.cuda.prepare() cr.cuda.prepare() x = x * 1', ''), plain)
  t.equal(run('cr.cuda.prepare() cr.cuda.reset() weight = cr.ones(16, 3, 3, 16, { device = \'cuda\', dtype = \'f16\' }) ' ..
    'x = cr.ones(1, 9, 9, 16, { device = \'cuda\', dtype = \'f16\' })', ''), plain)
  -- The end of the program waits for it.
  local r = child.run({ '-e', "require 'cr'.cuda.prepare()" })
  t.equal(r.code, 0, r.err)
  r = child.run({ '-e', "require 'cr'.cuda.prepare() error 'stop'" })
  t.equal(r.code, 1)
  t.ok(r.err:find 'stop', r.err)
end)

child.clean()
t.done()
