--- Checks values against the part of JSON Schema that describes a server's requests, so that the OpenAPI document
--- states what is checked.
--
-- The supported keywords are type, properties, required, additionalProperties (true or false), items, minItems,
-- maxItems, enum, minimum, maximum, exclusiveMinimum, exclusiveMaximum, minLength, maxLength; `pattern` is only for
-- the document, `holds` (a function that returns the problem of a value) only for the check. lua-cjson reads [] and
-- {} as the same table, so each is accepted for the other.

local errors = require 'cr.errors'
local null = require 'cjson'.null
local text_of = require 'cr.serve.text'

local M = {}

local function length_of(text) return select(2, text:gsub('[^\128-\191]', '')) end

local function keys(t)
  local list = {}
  for key in pairs(t) do list[#list + 1] = tostring(key) end
  table.sort(list)
  return list
end

local function is_list(value)
  if type(value) ~= 'table' then return false end
  for key in pairs(value) do
    if type(key) ~= 'number' then return false end
  end
  return true
end

local kinds = {
  string = { 'a text', function(v) return type(v) == 'string' end },
  boolean = { 'true or false', function(v) return type(v) == 'boolean' end },
  number = { 'a number', function(v) return type(v) == 'number' end },
  integer = { 'a whole number', function(v) return type(v) == 'number' and v % 1 == 0 and math.abs(v) <= 2 ^ 53 end },
  array = { 'a list', is_list },
  object = { 'an object', function(v) return type(v) == 'table' and (next(v) == nil or not is_list(v)) end },
}

local function shown(value)
  if value == null then return 'null' end
  if type(value) == 'table' then return is_list(value) and 'a list' or 'an object' end
  return type(value) == 'string' and "'" .. text_of.shown(value) .. "'" or tostring(value)
end

local check

local function check_object(schema, value, path)
  for _, name in ipairs(schema.required or {}) do
    if value[name] == nil then return ('%s is missing'):format(name), path and path .. '/' .. name or name end
  end
  for _, name in ipairs(keys(value)) do
    local inner = (schema.properties or {})[name]
    local at = path and path .. '/' .. name or name
    if inner then
      local problem, where = check(inner, value[name], at)
      if problem then return problem, where end
    elseif schema.additionalProperties == false then
      local known = keys(schema.properties or {})
      return ("there is no field '%s'%s"):format(text_of.shown(name), #known > 0 and ': ' .. errors.did_you_mean(name, known) or ''), at
    end
  end
end

local function check_list(schema, value, path)
  if #value < (schema.minItems or 0) then return ('at least %d are needed'):format(schema.minItems), path end
  if #value > (schema.maxItems or math.huge) then
    return ('there are %d, but at most %d are allowed'):format(#value, schema.maxItems), path
  end
  for i, item in ipairs(value) do
    local problem, where = check(schema.items or {}, item, ('%s/%d'):format(path or '', i - 1))
    if problem then return problem, where end
  end
end

local function check_number(schema, value)
  local least, most = schema.minimum or schema.exclusiveMinimum, schema.maximum or schema.exclusiveMaximum
  if least and (value < least or schema.exclusiveMinimum and value == least) then
    return ('%g is %s %g'):format(value, schema.exclusiveMinimum and 'not more than' or 'less than', least)
  elseif most and (value > most or schema.exclusiveMaximum and value == most) then
    return ('%g is %s %g'):format(value, schema.exclusiveMaximum and 'not less than' or 'more than', most)
  end
end

local function check_text(schema, value)
  local n = length_of(value)
  if n < (schema.minLength or 0) then
    return n == 0 and 'it is empty' or ('it has fewer than %d characters'):format(schema.minLength)
  end
  if n > (schema.maxLength or math.huge) then return ('it has more than %d characters'):format(schema.maxLength) end
end

function check(schema, value, path)
  local kind = kinds[schema.type]
  if kind and not kind[2](value) then return ('%s is not %s'):format(shown(value), kind[1]), path end
  if schema.enum then
    local found
    for _, choice in ipairs(schema.enum) do found = found or choice == value end
    if not found then return ('%s is not one of %s'):format(shown(value), table.concat(schema.enum, ', ')), path end
  end
  local problem, where
  if schema.type == 'object' then
    problem, where = check_object(schema, value, path)
  elseif schema.type == 'array' then
    problem, where = check_list(schema, value, path)
  elseif type(value) == 'number' then
    problem = check_number(schema, value)
  elseif type(value) == 'string' then
    problem = check_text(schema, value)
  end
  problem = problem or schema.holds and schema.holds(value)
  if problem then return problem, where or path end
end

--- Checks a value. Returns the problem and its place, or nil.
--- @param schema table
--- @param value any as lua-cjson returns it
--- @return string? problem the end of a sentence: '7 is more than 5'
--- @return string? where the path in the value, such as 'settings/steps' or 'voices/0/face'; nil for the value itself
function M.check(schema, value) return check(schema, value) end

--- Converts a string, as from a query, to a value of the schema's type, or returns nil.
--- @param schema table
--- @param text string
--- @return any
function M.read(schema, text)
  if schema.type == 'integer' or schema.type == 'number' then return text:find '^-?%d+%.?%d*$' and tonumber(text) or nil end
  if schema.type == 'boolean' then return ({ ['1'] = true, ['true'] = true, ['0'] = false, ['false'] = false })[text] end
  return text
end

--- Returns a schema for a document, without the fields that are only for the check.
--- @param schema table
--- @return table
function M.document(schema)
  local copy = setmetatable({}, getmetatable(schema))
  for key, value in pairs(schema) do
    if type(value) == 'table' then copy[key] = M.document(value) elseif type(value) ~= 'function' then copy[key] = value end
  end
  return copy
end

return M
