-- The card as such: it starts, waits, and tells what it is.

local cr = require 'cr'
local cuda = require 'tests.cuda'
local t = require 'tests.tap'

cuda.test('memory comes and goes', function()
  local before = cr.memory(cuda.device).live
  local x = cr.empty(1000, 3, { device = cuda.device })
  t.ok(cr.memory(cuda.device).live >= before + 12000)
  x:free()
  t.equal(cr.memory(cuda.device).live, before)
end)

t.done()
