--- Declares settings once: their names, types, ranges, defaults and help.
--
--     local settings = schema.new {
--       { 'video', 'input', required = true, stage = 'input', help = 'video with the face' },
--       { 'steps', 'int', default = 20, min = 1, max = 1000, stage = 'sample', help = 'denoising steps' },
--       { 'dtype', 'choice', choices = { 'f32', 'f16' }, stage = 'load', help = 'of the weights',
--         default = function(s) return s.device == 'cpu' and 'f32' or 'f16' end, default_text = 'f16 on a GPU' },
--       { 'label', 'flag', default = true, off = 'leave the label out', stage = 'encode' },   -- --no-label
--     }
--     settings:check('session', { steps = 8 })   -- a checked copy, or one sentence
--     settings:complete(given)                    -- with the defaults
--     settings:options()                          -- for cr.tools.cli
--     settings:markdown()                         -- for the documentation
--
-- A row is {name, type, ...}; its fields:
--   stage         the part of a job that uses it
--   default       a value, or a function of the settings before it; default_text describes it
--   min, max      the inclusive range of numbers; above, below: exclusive bounds
--   choices       the values of type 'choice'
--   examples      some valid values of an open type, which pages offer
--   unit, metavar, help, doc (longer text for the documentation)
--   per_person    the value may be a list, one for each person; on the command line the option is repeated
--   off           for a flag that is on by default: help of its negation, the only option on the command line
--   negatable     for a flag: the flag and its negation are both options
--   also          another name that scripts may use
--   script        a function (value) that returns whether a script may pass this instead (an object, a table)
--   within        a function (name): where an option of that name belongs if it is an option of this setting's values
--   report        false: left out of reports
--   client        'simple' or 'advanced': a server's clients may set it, and pages show it in this group
--
-- A type is a name in `schema.types`, a table of the same form, or only its function `read`, which may return nil and
-- a description of valid values.

local errors = require 'cr.errors'

local schema = {}

-- Exit statuses of the command line.
local WRONG_TYPE, OUT_OF_RANGE = 2, 1

local function is_number(value) return type(value) == 'number' and value == value and math.abs(value) < math.huge end
local function is_text(value) return type(value) == 'string' end
local function is_name(value) return type(value) == 'string' and value ~= '' end
local function file_type(metavar)
  return { metavar = metavar, wanted = 'the name of a file', holds = is_name, read = function(text) return text end }
end

--- The types. `read` converts a word of a command line to a value (nil if it is invalid), `holds` returns whether a
--- script's value is valid, `wanted` describes valid values, `write` formats a value as a word, `code` is the exit
--- status for an invalid word (2).
schema.types = {
  int = {
    metavar = 'N', wanted = 'a whole number',
    holds = function(value) return is_number(value) and value % 1 == 0 and math.abs(value) <= 2 ^ 53 end,
    read = function(text) return text:match '^[+-]?%d+$' and tonumber((text:gsub('^%+', ''))) end,
    write = function(value) return ('%.0f'):format(value) end,
  },
  number = {
    metavar = 'X', wanted = 'a number', holds = is_number,
    -- tonumber alone would also accept hexadecimal, nan and inf.
    read = function(text) return text:match '^[+-]?[%d.]+[eE]?[+-]?%d*$' and tonumber((text:gsub('^%+', ''))) end,
    write = function(value) return ('%.17g'):format(value) end,
  },
  string = { metavar = 'TEXT', wanted = 'a text', holds = is_text, read = function(text) return text end },
  flag = { wanted = 'true or false', holds = function(value) return type(value) == 'boolean' end },
  choice = { metavar = 'NAME', holds = is_text, read = function(text) return text end },
  file = file_type 'FILE',
  input = file_type 'FILE',  -- must exist before anything starts
  output = file_type 'FILE', -- its folder must exist
  folder = file_type 'DIR',
}

local function either(choices) return table.concat(choices, ', '):gsub(', ([^,]*)$', ' or %1') end

local function type_of(row)
  local kind = row[2] or 'string'
  local found = type(kind) == 'table' and kind or schema.types[kind]
  if type(kind) == 'function' then found = { read = kind, holds = function(value) return value ~= nil end } end
  if not found then error(('%s: unknown type %s'):format(row[1], tostring(kind))) end
  return found
end

--- Checks that a value is in a row's range and one of its choices. Returns the problem and the exit status, or nothing.
local function problem_of(row, value, text)
  if row.choices then
    for _, choice in ipairs(row.choices) do
      if value == choice then return nil end
    end
    return ("'%s' is not %s"):format(text, either(row.choices)), WRONG_TYPE
  end
  if type(value) ~= 'number' then return nil end
  local lowest, highest = row.min or row.above, row.max or row.below
  if lowest and (value < lowest or row.above and value == lowest) then
    return ('%s is %s'):format(text, row.above and 'not more than ' .. lowest or 'less than ' .. lowest), OUT_OF_RANGE
  elseif highest and (value > highest or row.below and value == highest) then
    return ('%s is %s'):format(text, row.below and 'not less than ' .. highest or 'more than ' .. highest), OUT_OF_RANGE
  end
end

--- Converts a word of a command line to the value of a row.
--- @param row table
--- @param text string
--- @return any value nil if the word is invalid
--- @return string? problem
--- @return integer? code
function schema.read(row, text)
  local kind = type_of(row)
  local value, wanted = kind.read(text)
  if value == nil or value == false or not kind.holds(value) then
    return nil, ("'%s' is not %s"):format(text, row.wanted or kind.wanted or wanted or 'a valid value'), kind.code or WRONG_TYPE
  end
  local problem, code = problem_of(row, value, text)
  if problem then return nil, problem, code end
  return value
end

local function shown(value)
  if type(value) == 'string' then return "'" .. value .. "'" end
  return type(value) == 'number' and tostring(value) or 'a ' .. type(value)
end

--- Returns the end of a message about an unknown setting: where the name belongs, or the most similar setting.
--- @param rows table[] settings, or options of a command line
--- @param name string 'eta'
--- @param word string as the user wrote it: '--eta'
--- @param known string[]
--- @return string
function schema.unknown(rows, name, word, known)
  local places = {}
  for _, row in ipairs(rows) do places[#places + 1] = row.within and row.within(name) end
  return #places > 0 and table.concat(places, '; ') or errors.did_you_mean(word, known)
end

-- Checks one value of a script. Returns the problem, or nothing.
local function problem_with(row, value)
  local kind = type_of(row)
  if row.script and row.script(value) then return nil end
  if not kind.holds(value) then return ('%s is not %s'):format(shown(value), row.wanted or kind.wanted or either(row.choices)) end
  return (problem_of(row, value, tostring(value)))
end

--- @class Schema
--- @field rows table[] in the order of declaration
--- @field by_name table<string, table>
local Schema = {}
Schema.__index = Schema

--- @param rows table[]
--- @return Schema
function schema.new(rows)
  local self = setmetatable({ rows = rows, by_name = {} }, Schema)
  for _, row in ipairs(rows) do
    type_of(row)
    if self.by_name[row[1]] then error(row[1] .. ' is declared twice') end
    self.by_name[row[1]] = row
    if row.also then self.by_name[row.also] = row end
  end
  return self
end

--- Returns a schema of the rows with certain stages or names.
--- @param wanted string[] stages or names
--- @return Schema
function Schema:only(wanted)
  local set, rows = {}, {}
  for _, name in ipairs(wanted) do set[name] = true end
  for _, row in ipairs(self.rows) do
    if set[row[1]] or row.stage and set[row.stage] then rows[#rows + 1] = row end
  end
  return schema.new(rows)
end

--- Checks the settings of a script and returns a copy with each value under its row's name. An unknown name is
--- refused with the most similar one; a value of the wrong type or out of range is refused, too.
--- @param where string names the caller in messages: 'session'
--- @param given table<string, any>
--- @param extra string[]? further names, whose values are passed on unchecked
--- @return table
function Schema:check(where, given, extra)
  local passed, values, names = {}, {}, {}
  for _, name in ipairs(extra or {}) do passed[name] = true end
  for name in pairs(given) do names[#names + 1] = tostring(name) end
  table.sort(names) -- so that several mistakes always report the same one first
  for _, name in ipairs(names) do
    local value, row = given[name], self.by_name[name]
    if row then
      local list = row.per_person and type(value) == 'table' and not (row.script and row.script(value)) and value or { value }
      if #list == 0 then errors.fail(('%s: %s: the list is empty'):format(where, name)) end
      for _, one in ipairs(list) do
        local problem = problem_with(row, one)
        if problem then errors.fail(('%s: %s: %s'):format(where, name, problem)) end
      end
      values[row[1]] = value
    elseif passed[name] then
      values[name] = value
    else
      local known = {}
      for other in pairs(self.by_name) do known[#known + 1] = other end
      for other in pairs(passed) do known[#known + 1] = other end
      errors.failf("%s: there is no option '%s': %s", where, name, schema.unknown(self.rows, name, name, known))
    end
  end
  return values
end

--- Fills in the defaults in place, in the order of the rows.
--- @param values table<string, any>
--- @return table values
function Schema:complete(values)
  for _, row in ipairs(self.rows) do
    if values[row[1]] == nil then
      local default = row.default
      if type(default) == 'function' then default = default(values) end
      values[row[1]] = default
    end
  end
  return values
end

local function dashed(name) return '--' .. name:gsub('_', '-') end

local function default_text(row)
  if row.default_text then return row.default_text end
  if row.default == nil or type(row.default) == 'function' or row[2] == 'flag' then return nil end
  return tostring(row.default)
end

--- Returns the rows as options of cr.tools.cli. Their help states the defaults, but only complete() fills them in.
--- @return table[]
function Schema:options()
  local list = {}
  for _, row in ipairs(self.rows) do
    local option = {}
    for key, value in pairs(row) do option[key] = value end
    option.key, option[1] = row[1], dashed(row[1])
    option.default, option.default_text = nil, default_text(row)
    if row[2] == 'flag' then
      option.unset = true
      if row.off then option[1], option.help, option.store = dashed('no_' .. row[1]), row.off, false end
    end
    list[#list + 1] = option
  end
  return list
end

local function word_of(row, value)
  local kind = type_of(row)
  return kind.write and kind.write(value) or tostring(value)
end

--- Formats settings as words of a command line.
--- @param values table<string, any> the settings that differ from the defaults
--- @return string[]
function Schema:words(values)
  local words = {}
  for _, row in ipairs(self.rows) do
    local value = values[row[1]]
    if row[2] == 'flag' then
      if value == true and not row.off then words[#words + 1] = dashed(row[1]) end
      if value == false and (row.off or row.negatable) then words[#words + 1] = dashed('no_' .. row[1]) end
    elseif value ~= nil then
      for _, one in ipairs(row.per_person and type(value) == 'table' and value or { value }) do
        words[#words + 1] = dashed(row[1]) .. '=' .. word_of(row, one)
      end
    end
  end
  return words
end

--- Returns the settings for a report: those that are numbers, strings, booleans or lists of them.
--- @param values table<string, any>
--- @return table<string, any>
function Schema:report(values)
  local told = {}
  for _, row in ipairs(self.rows) do
    local value = values[row[1]]
    local plain = type(value) ~= 'table' or type(value[1]) == 'number' or type(value[1]) == 'string'
    if row.report ~= false and plain then told[row[1]] = type(value) == 'function' and 'own' or value end
  end
  return told
end

-- ---- for a server's clients ------------------------------------------------------------------------

-- A client's text never names a file: it contains no slash and no ending. In a number, a digit follows the dot.
local NO_FILE = [[^([^./\\]|\.[0-9])*$]]
local MOST = 500 -- characters

local function names_file(text)
  return text:find '[/\\%c]' ~= nil or text:gsub('%.%d', ''):find('.', 1, true) ~= nil
end

local JSON = { int = 'integer', number = 'number', flag = 'boolean' }

--- Returns a schema of the rows that a server's clients may set.
--- @return Schema
function Schema:for_clients()
  local rows = {}
  for _, row in ipairs(self.rows) do
    if row.client then rows[#rows + 1] = row end
  end
  return schema.new(rows)
end

--- Checks a client's values from JSON. Numbers and booleans are taken as they are, everything else as words of a command line.
--- @param given table<string, any>
--- @return table<string, any>? values nil if one is wrong
--- @return string? problem one sentence
--- @return string? name of the row with the problem
function Schema:read_json(given)
  local values, names = {}, {}
  for name in pairs(given) do names[#names + 1] = tostring(name) end
  table.sort(names) -- so that several mistakes always report the same one first
  for _, name in ipairs(names) do
    local row, value = self.by_name[name], given[name]
    if not row then
      local known = {}
      for _, other in ipairs(self.rows) do known[#known + 1] = other[1] end
      return nil, ("there is no setting '%s': %s"):format(name, errors.did_you_mean(name, known)), name
    end
    local problem
    if JSON[row[2]] then
      values[name], problem = value, problem_with(row, value)
    elseif type(value) ~= 'string' then
      problem = shown(value) .. ' is not a string'
    elseif #value > MOST or names_file(value) then
      problem = 'it is a file name, or too long: here only a name of the list is allowed'
    else
      values[name], problem = schema.read(row, value)
    end
    if problem then return nil, ('%s: %s'):format(name, problem), name end
  end
  return values
end

-- Returns a default that JSON can represent.
local function plain_default(row)
  if type(row.default) == 'function' or type(row.default) == 'table' then return nil end
  return row.default
end

--- Returns the rows as properties of a JSON Schema.
--- @return table<string, table>
function Schema:json_schema()
  local properties = {}
  for _, row in ipairs(self.rows) do
    local kind = JSON[row[2]] or 'string'
    local bounded = kind == 'integer' or kind == 'number'
    properties[row[1]] = {
      type = kind, description = row.help or row.off, default = plain_default(row), enum = row.choices, examples = row.examples,
      minimum = bounded and row.min or nil, maximum = bounded and row.max or nil,
      exclusiveMinimum = bounded and row.above or nil, exclusiveMaximum = bounded and row.below or nil,
      maxLength = kind == 'string' and not row.choices and MOST or nil,
      pattern = kind == 'string' and not row.choices and NO_FILE or nil,
    }
  end
  return properties
end

--- Returns the rows in a form for web pages.
--- @return table[] {name, type, default, default_text, minimum, maximum, choices, examples, unit, help, doc, group, stage}
function Schema:describe()
  local list = {}
  for i, row in ipairs(self.rows) do
    local kind = type(row[2]) == 'string' and row[2] or 'string'
    list[i] = {
      name = row[1], type = kind, default = plain_default(row), default_text = default_text(row), minimum = row.min or row.above,
      maximum = row.max or row.below, choices = row.choices, examples = row.examples, unit = row.unit, help = row.help or row.off,
      doc = row.doc or row.help or row.off, group = row.client, stage = row.stage,
    }
  end
  return list
end

--- Returns the rows as lines of a Markdown table: option, meaning.
--- @return string[]
function Schema:markdown()
  local lines = {}
  for _, option in ipairs(self:options()) do
    local name = option[1]
    local typed = name
    if option[2] ~= 'flag' then
      local kind = type_of(option)
      typed = name .. ' ' .. (option.metavar or option.choices and table.concat(option.choices, '|') or kind.metavar or 'VALUE')
    end
    local notes = {}
    if option.negatable then typed = typed .. '`, `--no-' .. name:sub(3) end
    if option.required then notes[1] = 'required' end
    if option.unit then notes[#notes + 1] = option.unit end
    if option.default_text and not option.required then notes[#notes + 1] = 'default: ' .. option.default_text end
    lines[#lines + 1] = ('| `%s` | %s%s |'):format((typed:gsub('|', '\\|')), option.doc or option.help,
      #notes > 0 and ' (' .. table.concat(notes, '; ') .. ')' or '')
  end
  return lines
end

return schema
