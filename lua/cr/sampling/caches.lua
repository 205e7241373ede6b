--- What the methods of caches take, and of what they stand around.

local arguments = require 'cr.arguments'
local cr = require 'cr'

local M = {}

local maybe, x = arguments.maybe, cr.kinds.alive

--- How a step is predicted: DeepCache's branch, and whether the unconditional half is wanted.
M.how = maybe(arguments.options {
  guided = maybe(arguments.boolean), branch = maybe(arguments.any), deep = maybe(x), hook = maybe(arguments.any),
})

--- Puts checks before a cache's functions and its objects' methods.
--- @param module table new, parse
--- @param class table
--- @return table module
function M.guard(module, class)
  arguments.methods(class, 'predictor', { predict = { x, arguments.natural, M.how }, free = {} }, 'any')
  return arguments.guard('', module, {
    new = { arguments.table, arguments.table, maybe(arguments.callable) }, parse = { vararg = true },
  })
end

return M
