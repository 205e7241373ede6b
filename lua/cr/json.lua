--- JSON with reproducible output: keys are sorted, and numbers read back exactly.
-- lua-cjson does the reading.

local M = {}

local escapes = { ['"'] = '\\"', ['\\'] = '\\\\', ['\n'] = '\\n', ['\t'] = '\\t', ['\r'] = '\\r' }

local function quote(text)
  return '"' .. text:gsub('[%c"\\\127]', function(c) return escapes[c] or ('\\u%04x'):format(c:byte()) end) .. '"'
end

--- Formats a number as the shortest text that reads back exactly; nan, infinities and nil become null.
--- @param x number?
--- @return string
function M.number(x)
  if type(x) ~= 'number' or x ~= x or x == math.huge or x == -math.huge then return 'null' end
  for digits = 15, 17 do
    local text = ('%.' .. digits .. 'g'):format(x)
    if digits == 17 or tonumber(text) == x then return text end
  end
end

local LIST = {}

--- Marks a table as a list, so that an empty one becomes [].
--- @param t table
--- @return table t
function M.list(t) return setmetatable(t, LIST) end

local encode

local function encode_table(value, indent)
  local parts, open, close = {}, '{', '}'
  local inner = indent and indent .. '  '
  if #value > 0 or getmetatable(value) == LIST then
    open, close = '[', ']'
    for i, item in ipairs(value) do parts[i] = encode(item, inner) end
  else
    local keys = {}
    for key in pairs(value) do keys[#keys + 1] = tostring(key) end
    table.sort(keys)
    for i, key in ipairs(keys) do
      local item = value[key]
      if item == nil then item = value[tonumber(key)] end
      parts[i] = quote(key) .. (indent and ': ' or ':') .. encode(item, inner)
    end
  end
  if not indent or #parts == 0 then return open .. table.concat(parts, ',') .. close end
  return open .. '\n' .. inner .. table.concat(parts, ',\n' .. inner) .. '\n' .. indent .. close
end

function encode(value, indent)
  local kind = type(value)
  if kind == 'table' then return encode_table(value, indent) end
  if kind == 'string' then return quote(value) end
  if kind == 'boolean' then return tostring(value) end
  return M.number(value)
end

--- Encodes a value as JSON. A table with a first element becomes an array, any other table an object.
--- @param value any
--- @param pretty boolean? whether to break and indent lines
--- @return string
function M.encode(value, pretty) return encode(value, pretty and '' or nil) end

--- Decodes JSON. Returns the value, or nil and a sentence about the problem.
--- @param text string
--- @return any value, string? problem
function M.decode(text)
  local ok, value = pcall(require 'cjson'.decode, text)
  if ok then return value end
  return nil, (tostring(value):gsub('^.-:%d+: ', ''))
end

return M
