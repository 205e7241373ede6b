--- Every operation of the table on the card, against float64 arithmetic.
local t = require 'tests.support.tap'
local cuda = require 'tests.support.cuda'

require 'tests.support.operations'.run(cuda.test, cuda.device)

t.done()
