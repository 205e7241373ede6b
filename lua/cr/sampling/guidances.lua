--- What the methods of guidances take.

local arguments = require 'cr.arguments'
local cr = require 'cr'

local M = {}

--- Puts checks before a guidance's methods.
--- @param class table
function M.methods(class)
  local x, step = cr.kinds.alive, arguments.table
  arguments.methods(class, 'guidance', { applies = { step }, combine = { x, x, arguments.maybe(step) } })
end

return M
