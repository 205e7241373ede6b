--- Checked values of configuration files: numbers within bounds, in one sentence with file and key.

local base = require 'cr.ffi'

local M = {}

--- A key or value from a file, fit for one line of a message.
M.printable = base.printable

--- Refuses a configuration, in one sentence.
--- @param where string the file, or what the configuration is of
--- @param format string of the sentence; strings among its values come from the file
function M.fail(where, format, ...)
  local values = { ... }
  for i, v in ipairs(values) do values[i] = type(v) == 'string' and base.printable(v) or v end
  error(where .. ': ' .. format:format(unpack(values)), 0)
end

--- A value as a message shows it.
local function shown(value)
  if value == nil or type(value) == 'userdata' or type(value) == 'cdata' then return 'null' end -- as JSON and YAML give it
  if type(value) == 'table' then return #value > 0 and 'a list' or 'a table' end
  if type(value) == 'string' then return '"' .. base.printable(value) .. '"' end
  return type(value) == 'number' and ('%.15g'):format(value) or tostring(value)
end
M.shown = shown

--- A number that is finite and within bounds; anything else is refused.
--- @param where string the file, or what the configuration is of
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

--- A list of whole numbers within bounds, of `least` to `most` entries.
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
