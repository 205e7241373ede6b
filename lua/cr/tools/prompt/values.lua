--- Formats values for the prompt: tensors as tostring does, tables abridged, sorted and indented.

local arguments = require 'cr.arguments'
local M = {}

local DEPTH = 3       -- nested tables
local ARRAY = 10      -- values shown of an array
local NAMES = 40      -- named values shown of a table
local WIDTH = 96      -- a longer table takes one line for each value

local function key_order(a, b)
  local ta, tb = type(a), type(b)
  if ta ~= tb then return ta < tb end
  if ta == 'number' or ta == 'string' then return a < b end
  return tostring(a) < tostring(b)
end

local function own_text(value)
  local meta = getmetatable(value)
  return type(meta) == 'table' and meta.__tostring ~= nil
end

local short

local function key_text(key)
  if type(key) == 'string' and key:find '^[%a_][%w_]*$' then return key end
  return '[' .. short(key, 0, '') .. ']'
end

local function table_text(value, depth, indent)
  if next(value) == nil then return '{}' end
  if depth == 0 then return '{...}' end
  local inner, parts, keys, n = indent .. '  ', {}, {}, #value
  for i = 1, math.min(n, ARRAY) do parts[i] = short(value[i], depth - 1, inner) end
  if n > ARRAY then parts[#parts + 1] = ('... %d in all'):format(n) end
  for key in pairs(value) do
    local in_array = type(key) == 'number' and key >= 1 and key <= n and key % 1 == 0
    if not in_array then keys[#keys + 1] = key end
  end
  table.sort(keys, key_order)
  for i, key in ipairs(keys) do
    if i > NAMES then
      parts[#parts + 1] = ('... %d names in all'):format(#keys)
      break
    end
    parts[#parts + 1] = key_text(key) .. ' = ' .. short(rawget(value, key), depth - 1, inner)
  end
  local line = '{ ' .. table.concat(parts, ', ') .. ' }'
  if #indent + #line <= WIDTH and not line:find '\n' then return line end
  return '{\n' .. inner .. table.concat(parts, ',\n' .. inner) .. '\n' .. indent .. '}'
end

function short(value, depth, indent)
  local kind = type(value)
  if kind == 'string' then
    local text = ('%q'):format(value):gsub('\\\n', '\\n')
    return #text <= 200 and text or text:sub(1, 196) .. '..."'
  end
  if kind == 'function' then return 'function' end
  -- For a tensor in a table the head line is enough.
  if kind ~= 'table' or own_text(value) then return (tostring(value):gsub('\n.*', ' ...')) end
  return table_text(value, depth, indent)
end

--- Formats a value for the prompt.
--- @param value any
--- @return string
function M.text(value)
  if type(value) == 'table' and not own_text(value) then return table_text(value, DEPTH, '') end
  if type(value) == 'string' then return (short(value, 0, '')) end
  if type(value) == 'function' then
    local info = debug.getinfo(arguments.behind(value), 'S')
    local where = info.what == 'C' and 'built in' or ('%s:%d'):format(info.short_src, info.linedefined)
    return 'function (' .. where .. ')'
  end
  return tostring(value)
end

--- Formats a number of bytes: '1.5 GiB'.
--- @param n number
--- @return string
function M.bytes(n)
  if n >= 2 ^ 30 then return ('%.2f GiB'):format(n / 2 ^ 30) end
  if n >= 2 ^ 20 then return ('%.1f MiB'):format(n / 2 ^ 20) end
  if n >= 2 ^ 10 then return ('%.1f KiB'):format(n / 2 ^ 10) end
  return ('%d B'):format(n)
end

--- Formats seconds: '1.23 s', '4.56 ms', '7.89 us'.
--- @param s number
--- @return string
function M.seconds(s)
  if s >= 1 then return ('%.2f s'):format(s) end
  if s >= 1e-3 then return ('%.2f ms'):format(s * 1e3) end
  return ('%.2f us'):format(s * 1e6)
end

return M
