--- Checks values of configuration files. A value out of bounds raises one sentence that names the file and the key.

local base = require 'cr.ffi'

local M = {}

--- Escapes a key or value from a file so that it fits on one line of a message.
M.printable = base.printable

--- Raises one sentence about a configuration.
--- @param where string the file, or what is configured
--- @param format string for string.format; string values come from the file and are escaped
function M.fail(where, format, ...)
  local values = { ... }
  for i, v in ipairs(values) do values[i] = type(v) == 'string' and base.printable(v) or v end
  error(where .. ': ' .. format:format(unpack(values)), 0)
end

--- Formats a value for a message.
local function shown(value)
  if value == nil or type(value) == 'userdata' or type(value) == 'cdata' then return 'null' end -- as the JSON and YAML readers return it
  if type(value) == 'table' then return #value > 0 and 'a list' or 'a table' end
  if type(value) == 'string' then return '"' .. base.printable(value) .. '"' end
  return type(value) == 'number' and ('%.15g'):format(value) or tostring(value)
end
M.shown = shown

--- Checks that a value is a finite number within bounds, and returns it.
--- @param where string the file, or what is configured
--- @param key string
--- @param value any
--- @param min number
--- @param max number
--- @param integer boolean? whole numbers only
--- @return number
function M.number(where, key, value, min, max, integer)
  if type(value) ~= 'number' or not (value >= min and value <= max) or integer and value ~= math.floor(value) then
    error(('%s: %s must be a %s from %.15g to %.15g, not %s'):format(where, base.printable(key),
      integer and 'whole number' or 'number', min, max, shown(value)), 0)
  end
  return value
end

--- Checks that a value is a list of `least` to `most` whole numbers within bounds.
--- @param where string
--- @param key string
--- @param list any
--- @param min number
--- @param max number
--- @param least integer
--- @param most integer
function M.integers(where, key, list, min, max, least, most)
  if type(list) ~= 'table' or #list < least or #list > most then
    error(('%s: %s must be a list of %d to %d whole numbers, not %s'):format(where, key, least, most,
      type(list) == 'table' and #list .. ' entries' or shown(list)), 0)
  end
  for i, value in ipairs(list) do M.number(where, ('entry %d of %s'):format(i, key), value, min, max, true) end
end

return M
