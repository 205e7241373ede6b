--- The kinds of arguments of caches' methods and of the denoisers that they wrap.

local arguments = require 'cr.arguments'
local cr = require 'cr'

local M = {}

local maybe, x = arguments.maybe, cr.kinds.alive

--- How a step is predicted: DeepCache's branch, and whether the unconditional half is needed.
M.how = maybe(arguments.options {
  guided = maybe(arguments.boolean), branch = maybe(arguments.any), deep = maybe(x), hook = maybe(arguments.any),
})

--- Wraps the functions of a cache and the methods of its objects with checks.
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
