--- Completes the word before the cursor at the prompt.
--
-- Completion calls no functions: a path such as `run.model.vae` is followed through tables only, and an expression
-- that cannot be followed (the result of a call) is assumed to be a tensor if a colon follows.

local arguments = require 'cr.arguments'
local tensor = require 'cr.tensor'
local dtypes = require 'cr.ffi'.dtypes

local M = {}

local keywords = {
  'and', 'break', 'do', 'else', 'elseif', 'end', 'false', 'for', 'function', 'if', 'in', 'local',
  'nil', 'not', 'or', 'repeat', 'return', 'then', 'true', 'until', 'while',
}

-- ---- sources of names ---------------------------------------------------------------------------

local function set_of(names)
  local set = {}
  for _, name in ipairs(names) do set[name] = true end
  return set
end

--- Returns the names of all schedulers.
--- @return string[]
function M.scheduler_names() return require 'cr.schedulers'.names() end

local function device_names()
  local names = { cpu = true, cuda = true, auto = true }
  for entry in require 'lfs'.dir '/dev' do
    local card = entry:match '^nvidia(%d+)$'
    if card then names['cuda:' .. card] = true end
  end
  return names
end

local function dtype_names()
  local names = {}
  for name in pairs(dtypes) do
    if type(name) == 'string' then names[name] = true end
  end
  return names
end

local function module_names()
  local names = {}
  for _, name in ipairs(require 'cr.tools.help'.modules()) do names[name] = true end
  for name in pairs(package.loaded) do names[name] = true end
  for name in pairs(package.preload) do names[name] = true end
  return names
end

-- Returns all names that have help.
local function help_names()
  local names = set_of(require 'cr.tools.help'.names())
  for _, name in ipairs(M.scheduler_names()) do names[name] = true end
  return names
end

-- Collects the names in a table, in its __index tables, and those that are loaded on first use.
local function keys_of(value, into)
  for _ = 1, 8 do
    if type(value) ~= 'table' then break end
    for key in pairs(value) do
      if type(key) == 'string' then into[key] = rawget(value, key) end
    end
    local meta = debug.getmetatable(value)
    if type(meta) ~= 'table' then break end
    for name in pairs(type(meta.__names) == 'table' and meta.__names or {}) do
      if into[name] == nil then into[name] = true end
    end
    value = rawget(meta, '__index')
  end
  return into
end

--- Returns the names of a value's methods, sorted.
--- @param value any
--- @return string[]
function M.methods(value)
  local names = {}
  for name, of in pairs(keys_of(value, {})) do
    if type(of) == 'function' and not name:find '^_' then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

local tensor_fields = { shape = true, dtype = true, device = true }
local function tensor_names(methods_only)
  local names = keys_of(tensor.methods, {})
  if not methods_only then
    for name in pairs(tensor_fields) do names[name] = true end
  end
  return names
end

-- ---- candidates ---------------------------------------------------------------------------------

local function candidates(names, word, prefix, keep)
  local list = {}
  for name, value in pairs(names) do
    if name:sub(1, #word) == word and (not keep or keep(name, value)) then
      list[#list + 1] = {
        text = prefix .. name, shown = name, after = type(value) == 'function' and '(' or nil,
      }
    end
  end
  table.sort(list, function(a, b) return a.text < b.text end)
  return list
end

local function is_name(name) return name:find '^[%a_][%w_]*$' ~= nil end

--- Follows a.b.c through tables; nil if it cannot be followed.
--- @param path string
--- @return any
function M.follow(path)
  local value = _G
  for part in path:gmatch '[^.:]+' do
    if type(value) ~= 'table' then return nil end
    -- A global such as nn loads its module here.
    local ok, next_value = pcall(function() return value[part] end)
    if not ok or next_value == nil then return nil end
    value = next_value
  end
  return value
end

local function lua_path(path, chained)
  local base, separator, word = path:match '^(.-)([.:])([%w_]*)$'
  if not base then
    local names = keys_of(_G, {})
    for _, k in ipairs(keywords) do names[k] = true end
    -- Names that begin with an underscore are rarely wanted.
    return candidates(names, path, '', is_name)
  end
  local prefix = base .. separator
  local value = not chained and base ~= '' and M.follow(base) or nil
  if tensor.is_tensor(value) then return candidates(tensor_names(separator == ':'), word, prefix) end
  if type(value) == 'string' then value = string end
  if type(value) == 'table' then
    return candidates(keys_of(value, {}), word, prefix, function(name, v)
      return is_name(name) and (separator == '.' or type(v) == 'function') and
          (name:sub(1, 2) ~= '__' or word ~= '')
    end)
  end
  if separator == ':' then return candidates(tensor_names(true), word, prefix) end
  return {}
end

--- Returns files and folders that begin with `word`.
function M.files(word)
  local lfs = require 'lfs'
  local folder, start = word:match '^(.*/)([^/]*)$'
  folder, start = folder or '', start or word
  local place = folder == '' and '.' or folder:gsub('^~/', (os.getenv 'HOME' or '~') .. '/')
  local list = {}
  local ok, iterator, state = pcall(lfs.dir, place)
  if not ok then return list end
  for entry in iterator, state do
    local hidden = entry:sub(1, 1) == '.' and start:sub(1, 1) ~= '.'
    if entry:sub(1, #start) == start and entry ~= '.' and entry ~= '..' and not hidden then
      local is_folder = lfs.attributes(place .. '/' .. entry, 'mode') == 'directory'
      local tail = is_folder and '/' or ''
      list[#list + 1] = { text = folder .. entry .. tail, shown = entry .. tail }
    end
  end
  table.sort(list, function(a, b) return a.text < b.text end)
  return list
end

-- Returns the text inside an unfinished string, and the text before its quotation mark.
local function open_string(before)
  local quote, first
  local i = 1
  while i <= #before do
    local c = before:sub(i, i)
    if quote then
      if c == '\\' then i = i + 1 elseif c == quote then quote = nil end
    elseif c == '"' or c == "'" then
      quote, first = c, i
    elseif before:sub(i, i + 1) == '--' then
      return nil
    end
    i = i + 1
  end
  if quote then return before:sub(first + 1), before:sub(1, first - 1), quote end
end

-- Finds the call whose argument begins after `lead`: the path of the function, the number of the argument, and the
-- name of the option inside a table: 'nn.linear', 3, 'act' of "nn.linear(w, x, { act = ".
local function call_around(lead)
  local direct = lead:match '([%a_][%w_.:]*)%s*$'
  if direct then return direct, 1 end
  local option = lead:match '([%a_][%w_]*)%s*=%s*$'
  local depth, commas = 0, 0
  for i = #lead, 1, -1 do
    local c = lead:sub(i, i)
    if c == ')' or c == '}' or c == ']' then
      depth = depth + 1
    elseif depth > 0 then
      if c == '(' or c == '{' or c == '[' then depth = depth - 1 end
    elseif c == ',' then
      commas = commas + 1
    elseif c == '(' then
      return lead:sub(1, i - 1):match '([%a_][%w_.:]*)%s*$', commas + 1, option
    elseif c == '{' then
      commas = 0
      local called = lead:sub(1, i - 1):match '([%a_][%w_.:]*)%s*$'
      if called then return called, 1, option end
    end
  end
end

-- Returns the strings that are valid there, according to the function's row of arguments.
local function names_for(lead)
  local path, place, option = call_around(lead)
  local fn = path and M.follow(path)
  local row = type(fn) == 'function' and arguments.row(fn)
  local kind = row and row[place + (path:find(':', 1, true) and 1 or 0)]
  if kind and option then kind = kind.fields and kind.fields[option] end
  local names = kind and kind.names
  if type(names) == 'function' then names = names() end
  return names
end

local function in_string(text, lead, quote)
  local list
  local names = not text:find '/' and names_for(lead)
  if lead:find 'require%s*%(?%s*$' then
    list = candidates(module_names(), text, '')
  elseif names then
    list = candidates(set_of(names), text, '')
  elseif lead:find 'scheduler%w*%s*=%s*$' and not text:find '/' then
    list = candidates(set_of(M.scheduler_names()), text, '')
  elseif lead:find 'cache%s*=%s*$' and not text:find '/' then
    list = candidates(set_of(require 'cr.cache'.names()), text, '')
  elseif lead:find 'device%s*=%s*$' or lead:find ':to%s*%(?%s*$' then
    list = candidates(device_names(), text, '')
    if lead:find 'to%s*%(?%s*$' then
      for _, c in ipairs(candidates(dtype_names(), text, '')) do list[#list + 1] = c end
    end
  elseif lead:find 'dtype%s*=%s*$' then
    list = candidates(dtype_names(), text, '')
  else
    return M.files(text)
  end
  for _, c in ipairs(list) do c.after = quote end
  return list
end

-- Returns the function in whose table of options a word stands: 'sample' of "run:sample { steps = 4, ".
local function options_of(head)
  local depth = 0
  for i = #head, 1, -1 do
    local c = head:sub(i, i)
    if c == '}' or c == ')' then
      depth = depth + 1
    elseif c == '(' then
      depth = depth - 1
      if depth < 0 then return nil end
    elseif c == '{' then
      depth = depth - 1
      if depth < 0 then
        local call = head:sub(1, i - 1)
        return call:match '([%w_]+)%s*$' or call:match '([%w_]+)%s*%([^()]*,?%s*$'
      end
    end
  end
end

local function lua_code(before)
  local text, lead, quote = open_string(before)
  if text then return #before - #text + 1, in_string(text, lead, quote) end
  local path = before:match '[%w_.:]*$'
  -- In "x[1]:su" and "f(x):su" only the last part is a path.
  local head = before:sub(1, #before - #path)
  local chained = path:find '^[.:]' ~= nil and head:find '[%])"\'}]$' ~= nil
  local called = path:find '^[%w_]*$' and head:find '[{,]%s*$' and options_of(head)
  local options = called and require 'cr.tools.help'.options(called) or {}
  if next(options) then
    local list = candidates(options, path, '')
    for _, c in ipairs(list) do c.after = ' = ' end
    if #list > 0 then return #before - #path + 1, list end
  end
  if path == '' or path:find '^%d' then return #before + 1, {} end
  return #before - #path + 1, lua_path(path, chained)
end

--- Returns the completions of the end of a line.
--- @param before string the line up to the cursor
--- @param commands table<string, table> the prompt's commands by name
--- @return integer first start of the text that a candidate replaces, from 1
--- @return table[] candidates {text, shown = the name in a list, after = the text to append if it is the only candidate}
function M.complete(before, commands)
  local lead, name, space, rest = before:match '^(%s*):([%w_]*)(%s*)(.*)$'
  if lead and space == '' and rest == '' then
    local names = {}
    for known in pairs(commands) do names[known] = true end
    local list = candidates(names, name, ':')
    for _, c in ipairs(list) do c.after = ' ' end
    return #lead + 1, list
  end
  local help = before:match '^%s*%?%?*%s*(.*)$'
  if help and before:find '^%s*%?' then
    return #before - #help + 1, candidates(help_names(), help, '')
  end
  if not lead then return lua_code(before) end
  local command = commands[name]
  local kind = command and command.complete or 'lua'
  local word = rest:match '%S*$'
  local first = #before - #word + 1
  if kind == 'file' then return first, M.files(word) end
  if kind == 'module' then return first, candidates(module_names(), word, '') end
  if kind == 'device' then return first, candidates(device_names(), word, '') end
  if kind == 'name' then return first, candidates(help_names(), word, '') end
  return lua_code(before)
end

return M
