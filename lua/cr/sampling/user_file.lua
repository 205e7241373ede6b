--- Loads a user's Lua file that defines a scheduler, a guidance or a cache. Every mistake in it raises one sentence.

local cr = require 'cr'
local errors = require 'cr.errors'

local M = {}

--- Returns an error's text on one line, without the list of places that `require` has searched.
--- @param err any
--- @return string
function M.sentence(err)
  if errors.is_failure(err) then return err.message end
  if type(err) == 'table' and not getmetatable(err) then return 'an error that is a table without a text' end
  return (tostring(err):gsub("(module '[^\n]*' not found):?\n.*", '%1'))
end

--- Runs a file and returns its value.
--- @param kind string what the file defines, for messages: 'scheduler'
--- @param path string
--- @return any
function M.run(kind, path)
  if not require 'lfs'.attributes(path) then error(('there is no %s file %s'):format(kind, path), 0) end
  local chunk, problem = loadfile(path)
  if not chunk then error(('%s file %s'):format(kind, problem), 0) end
  local ok, value = pcall(chunk)
  if not ok then error(('%s file %s'):format(kind, M.sentence(value)), 0) end
  return value
end

--- Describes a value that is not a tensor of x's shape, dtype and device, or returns nil if it is one.
--- @param y any
--- @param x Tensor
--- @return string?
function M.misfit(y, x)
  if not cr.is_tensor(y) then return y == nil and 'nothing' or 'a ' .. type(y) end
  local got = table.concat(y.shape, ' ')
  if got ~= table.concat(x.shape, ' ') then return ('[%s]'):format(got) end
  if y.dtype ~= x.dtype or y.device ~= x.device then return ('%s on %s'):format(y.dtype, y.device) end
end

return M
