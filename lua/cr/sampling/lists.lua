--- Iterates tables in a fixed order, and formats values for messages.

local M = {}

--- Returns the keys of a table, sorted as strings, so that nothing depends on the order of a hash table.
--- @param t table
--- @return table
function M.keys(t)
  local list = {}
  for key in pairs(t) do list[#list + 1] = key end
  table.sort(list, function(a, b) return tostring(a) < tostring(b) end)
  return list
end

--- Finds the entry with a name in a list of options, or returns nil.
--- @param spec table {{name, ...}, ...}
--- @param name any
--- @return table?
function M.find(spec, name)
  for _, option in ipairs(spec) do if option[1] == name then return option end end
end

--- Returns whether a list contains a value.
--- @param list table?
--- @param value any
--- @return boolean
function M.has(list, value)
  for _, item in ipairs(list or {}) do if item == value then return true end end
  return false
end

--- Formats a value for a message: text in quotes, a table as 'a table'.
--- @param v any
--- @return string
function M.shown(v)
  if type(v) == 'string' then return ('"%s"'):format(v) end
  if type(v) == 'table' or type(v) == 'function' then return 'a ' .. type(v) end
  return tostring(v)
end

return M
