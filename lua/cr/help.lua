--- Help on the library, read from the comments above its functions when somebody asks.
--
-- A function is known by its file (`nn.conv2d` in lua/cr/nn.lua; lua/cr/init.lua is `cr`) and by
-- its bare name. Nothing is kept in memory but what was read on the first question.

local errors = require 'cr.errors'
local root = require 'cr.ffi'.root

local M = {}

local index -- list of {module, name, owner, args, text}; owner: of a method, 'reader'

local function module_of(path)
  local name = path:match 'lua/cr/(.*)%.lua$' or path:match '(models/.*)%.lua$'
  if name == 'init' then return 'cr' end
  return (name:gsub('/init$', ''):gsub('/', '.'))
end

-- `function M.name(a, b)`, `function Class:method(a)`, `M.name = function(a)`, `local name = ...`
local function declared(line)
  local name, args = line:match '^%s*l?o?c?a?l? ?function ([%w_.:]+)%s*(%b())'
  if not name then name, args = line:match '^%s*l?o?c?a?l? ?([%w_.]+)%s*=%s*function%s*(%b())' end
  if not name then
    args = line:match '^%s*return function%s*(%b())'
    return args and 'new', args
  end
  local owner = name:match '^([%w_]+):'
  return (name:gsub('^.*[.:]', '')), args, owner and owner:lower()
end

local function scan(path)
  local file = io.open(path, 'rb')
  if not file then return end
  local module, comment, first = module_of(path), {}, true
  for line in file:lines() do
    local text = line:match '^%s*%-%-%-?%s?(.*)$'
    -- A file's own comment may begin with two dashes.
    if text and (first or line:match '^%s*%-%-%-' or #comment > 0) then
      comment[#comment + 1] = text
    else
      local name, args, owner = declared(line)
      if first then
        index[#index + 1] = { module = module, name = nil, text = comment }
      elseif name and #comment > 0 then
        if owner == 'methods' then owner = module end
        index[#index + 1] = { module = module, name = name, owner = owner, args = args, text = comment }
      end
      first, comment = false, {}
    end
  end
  file:close()
end

local function scan_folder(folder)
  local lfs = require 'lfs'
  if lfs.attributes(folder, 'mode') ~= 'directory' then return end
  local entries = {}
  for entry in lfs.dir(folder) do entries[#entries + 1] = entry end
  table.sort(entries)
  for _, entry in ipairs(entries) do
    local path = folder .. '/' .. entry
    if entry:find '%.lua$' then
      scan(path)
    elseif entry:sub(1, 1) ~= '.' and lfs.attributes(path, 'mode') == 'directory' then
      scan_folder(path)
    end
  end
end

local function build()
  if index then return end
  index = {}
  scan_folder(root .. '/lua/cr')
  scan_folder(root .. '/models')
end

-- What `cr` itself holds is written cr.zeros, whichever file defines it.
local parts_of_cr = { cr = true, tensor = true, loop = true }
local function in_cr(entry)
  return not entry.owner and entry.name and parts_of_cr[entry.module] and require 'cr'[entry.name] ~= nil
end

local function format(entry)
  local lines, tags = {}, {}
  for _, line in ipairs(entry.text) do
    local tag, rest = line:match '^@(%w+)%s*(.*)$'
    if tag == 'param' then
      local name, kind = rest:match '^(%S+)%s*(.*)$'
      tags[#tags + 1] = ('  %-12s %s'):format(name, kind)
    elseif tag == 'return' then
      tags[#tags + 1] = ('  %-12s %s'):format('returns', rest)
    elseif not tag and #tags > 0 then
      tags[#tags] = tags[#tags] .. ' ' .. line:match '^%s*(.*)$'
    elseif not tag then
      lines[#lines + 1] = line
    end
  end
  local head = entry.module
  if entry.owner then
    head = ('%s:%s%s'):format(entry.owner, entry.name, entry.args)
  elseif entry.name then
    head = ('%s.%s%s'):format(in_cr(entry) and 'cr' or entry.module, entry.name, entry.args)
  end
  local text = head .. '\n  ' .. table.concat(lines, '\n  ')
  return #tags > 0 and text .. '\n' .. table.concat(tags, '\n') or text
end

-- For lists; what does not fit ends in dots.
local function first_sentence(text, width)
  local plain = {}
  for _, line in ipairs(text) do
    if line:find '^@' or line == '' then break end
    plain[#plain + 1] = line
  end
  local whole = table.concat(plain, ' ')
  local sentence = whole:match '^(.-%.)%s+[%u`]' or whole
  return #sentence <= width and sentence or sentence:sub(1, width - 4):gsub('%s*%S*$', '') .. ' ...'
end

local start = [[
Type Lua. An expression prints its value; cr, nn, weights and media load when first named.
  ? NAME         help on a function (? conv2d, ? nn.linear) or a module (? cr.nn, ? loop)
  ? modules      what there is
  :time CODE     runs CODE and says how long it took
  :mem           what tensors hold
  :quit          or Ctrl-D
Ctrl-C stops what runs, or clears the line.]]

--- Help as text: of a function (`conv2d`, `nn.conv2d`, `x:matmul`), of a module (all its functions),
--- or without a name how to use the prompt.
--- @param name string?
--- @return string text, boolean found
function M.text(name)
  name = name and name:match '^%s*(.-)%s*$' or ''
  if name == '' then return start, true end
  build()
  name = name:gsub(':', '.'):gsub('%(.*', '')
  local wanted_module, wanted = name:match '^(.*)%.([%w_]+)$'
  wanted = wanted or name
  if wanted_module then wanted_module = wanted_module:gsub('^cr%.', '') end
  local found, others, modules, exact = {}, {}, {}, false
  local whole = name:gsub('^cr%.', '')
  for _, entry in ipairs(index) do
    if entry.module == whole or entry.module == name then
      modules[#modules + 1] = entry
      exact = exact or entry.module == name
    elseif name == 'cr' and in_cr(entry) then
      modules[#modules + 1] = entry
    end
    if entry.name == wanted then
      -- x:matmul: x is a variable; cr.go: defined in another file than its name says.
      local here = not wanted_module or entry.module == wanted_module or
          (wanted_module == 'cr' and in_cr(entry))
      table.insert(here and found or others, format(entry))
    end
  end
  if name == 'modules' then
    local lines = {}
    for _, entry in ipairs(index) do
      if not entry.name then
        lines[#lines + 1] = ('  %-26s %s'):format(entry.module, first_sentence(entry.text, 71))
      end
    end
    return table.concat(lines, '\n'), true
  end
  if exact or (#found == 0 and #modules > 0) then
    local lines = {}
    for _, entry in ipairs(modules) do
      if entry.name then
        local head = (entry.owner and entry.owner .. ':' or '') .. entry.name .. entry.args
        local width = math.max(20, 98 - math.max(36, #head + 2))
        lines[#lines + 1] = ('  %-34s %s'):format(head, first_sentence(entry.text, width))
      else
        table.insert(lines, 1, format(entry) .. '\n')
      end
    end
    return table.concat(lines, '\n'), true
  end
  if #found == 0 then found = others end
  if #found > 0 then return table.concat(found, '\n\n'), true end
  local names, seen = {}, {}
  for _, entry in ipairs(index) do
    local known = entry.name or entry.module
    if not seen[known] then names[#names + 1] = known end
    seen[known] = true
  end
  return ("no help on '%s': did you mean '%s'?"):format(name, errors.nearest(wanted, names) or 'cr'), false
end

return M
