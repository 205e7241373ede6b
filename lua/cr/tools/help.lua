--- Help on the library, read from the comments above its functions on request.
--
-- A function is known by its file (`nn.conv2d` in lua/cr/nn/init.lua; lua/cr/init.lua is `cr`) and by its name alone.
-- The files are read on the first request, and their comments are kept in memory.

local errors = require 'cr.errors'
local base = require 'cr.ffi'
local elsewhere = require 'cr.tools.help_names'

local M = {}

-- The class or module of files whose functions belong together.
local class_of = {
  ['tensor.arithmetic'] = 'tensor', ['tensor.views'] = 'tensor', ['tensor.indexing'] = 'tensor', ['tensor.matrices'] = 'tensor',
  ['tensor.moves'] = 'tensor', ['tensor.mathematics'] = 'tensor', ['tensor.statistics'] = 'tensor', ['nn.layers'] = 'nn',
  ['nn.resampling'] = 'nn', ['nn.diffusion'] = 'nn', ['loop.tasks'] = 'loop',
  ['graphs.onnx'] = 'onnx', ['media.audio'] = 'media', ['media.video'] = 'media', ['media.writer'] = 'media', ['media.mix'] = 'media',
}

local classes = {} -- fields of '@class NAME' comments: name -> list
local index -- list of {module, name, owner, args, text}; owner is the class of a method, such as 'reader'

local function module_of(path)
  local name = path:match 'lua/cr/(.*)%.lua$' or path:match '(models/.*)%.lua$' or path:match 'scripts/(examples/.*)%.lua$'
  if name == 'init' then return 'cr' end
  return (name:gsub('/init$', ''):gsub('/', '.'))
end

-- `function M.name(a, b)`, `function Class:method(a)`, `M.name = function(a)`, `local name = ...`
-- -> name, (arguments), owner of a method, whether it is local
local function declared(line)
  local name, args = line:match '^%s*l?o?c?a?l? ?function ([%w_.:]+)%s*(%b())'
  if not name then name, args = line:match '^%s*l?o?c?a?l? ?([%w_.]+)%s*=%s*function%s*(%b())' end
  if not name then
    args = line:match '^%s*return function%s*(%b())'
    return args and 'new', args
  end
  local owner = name:match '^([%w_]+):'
  return (name:gsub('^.*[.:]', '')), args, owner and owner:lower(), line:find '^%s*local ' ~= nil
end

-- Returns whether a file exports a local function: `M.new = new`, `{ new = new }`, `M.scope = scope,`.
local function is_given(text, name)
  return text:find('=%s*' .. name .. '%s*[,}\n]') ~= nil or text:find('\nreturn ' .. name .. '%s') ~= nil
end

local function scan_class(comment)
  local class
  for _, line in ipairs(comment) do
    class = class or line:match '^@class ([%w_.]+)'
    local field = class and line:match '^@field ([%w_]+)'
    if field then
      classes[class] = classes[class] or {}
      table.insert(classes[class], field)
    end
  end
end

-- Adds the methods that are made from the table of operations. Their comments are in crescent.h.
local function add_operations(home)
  local function add(names, count, args, in_place)
    local comments = base.comments_of(names, count)
    for op = 0, tonumber(base.C[count]) - 1 do
      local name, text = names[op], comments[names[op]] or ''
      index[#index + 1] = { module = home, name = name, owner = home, args = args, text = { text, '@return Tensor' } }
      if in_place then
        index[#index + 1] = { module = home, name = name .. '_', owner = home, args = args,
          text = { 'In place: ' .. text, '@return Tensor itself' } }
      end
    end
  end
  add(base.binary, 'CR_BINARY_OPS', '(b)', true)
  add(base.unary, 'CR_UNARY_OPS', '()', true)
  add(base.reduce, 'CR_REDUCE_OPS', '(dims, keep)')
end

local function scan(path)
  local file = io.open(path, 'rb')
  if not file then return end
  local whole = file:read '*a'
  file:close()
  local module, comment, first = module_of(path), {}, true
  local home = class_of[module] or module
  for line in whole:gmatch '([^\n]*)\n' do
    local text = line:match '^%s*%-%-%-?%s?(.*)$'
    -- The comment of a file may begin with two dashes.
    if text and (first or line:match '^%s*%-%-%-' or #comment > 0) then
      comment[#comment + 1] = text
    else
      local name, args, owner, is_local = declared(line)
      if #comment > 0 then scan_class(comment) end
      if first then
        index[#index + 1] = { module = module, name = nil, text = comment }
        if module == 'tensor.arithmetic' then add_operations(home) end
      elseif name and #comment > 0 and (not is_local or is_given(whole, name)) then
        if owner == 'methods' then owner = home end
        index[#index + 1] = { module = home, name = name, owner = owner, args = args, text = comment }
      end
      first, comment = false, {}
    end
  end
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
    elseif entry ~= 'prompt' and entry:sub(1, 1) ~= '.' and lfs.attributes(path, 'mode') == 'directory' then
      scan_folder(path)
    end
  end
end

local function build()
  if index then return end
  index = {}
  scan_folder(base.root .. '/lua/cr')
  scan_folder(base.root .. '/models')
  scan_folder(base.root .. '/scripts/examples')
end

-- Functions of `cr` itself are written cr.zeros, whichever file defines them.
local parts_of_cr = {
  cr = true, tensor = true, ['tensor.creation'] = true, ['tensor.fourier'] = true, loop = true, ['tensor.memory'] = true,
  kernel = true, graph = true,
}
local function in_cr(entry)
  if entry.owner or not entry.name or not parts_of_cr[entry.module] then return false end
  local cr = require 'cr'
  if entry.name == 'new' then return cr ~= nil and getmetatable(cr).__names[entry.module] ~= nil end
  return rawget(cr, entry.name) ~= nil or getmetatable(cr).__names[entry.name] ~= nil
end

-- ---- examples -----------------------------------------------------------------------------------

local function own_example(entry)
  for _, line in ipairs(entry.text) do
    if line:find '^    %S' then return true end
  end
end

local TEXT_COLUMN, LINE = 15, 100

-- "  name         text", continued below the text.
local function row(name, text)
  local lines, line = {}, ('  %-12s'):format(name)
  for word in text:gmatch '%S+' do
    if #line + #word >= LINE and #line > TEXT_COLUMN then
      lines[#lines + 1] = line
      line = (' '):rep(TEXT_COLUMN - 1)
    end
    line = line .. ' ' .. word
  end
  lines[#lines + 1] = line
  return table.concat(lines, '\n')
end

-- Returns whether `x:add(...)` may also be a method of another class.
local function is_ambiguous(entry)
  for _, other in ipairs(index) do
    if other.name == entry.name and other.owner and other.owner ~= entry.owner then return true end
  end
  return false
end

-- Returns the example line of an operation from help_lines.lua.
local function line_of(entry)
  local prefix = entry.owner == 'tensor' and '' or in_cr(entry) and 'cr.' or entry.module == 'nn' and 'nn.'
  local text = prefix and entry.name and require 'cr.tools.help_lines'.text(prefix .. entry.name)
  return text and row('example', text)
end

local function example(entry)
  local line = line_of(entry)
  if line then return line end
  if not entry.name or own_example(entry) then return nil end
  local plain = entry.owner == 'tensor' and ('  %-12s y = x:%s%s'):format('example', entry.name, entry.args) or nil
  if plain and is_ambiguous(entry) then return plain end
  local calls
  if entry.owner then
    -- A tensor may be any variable; an object of another class is found by the name of the class.
    calls = { (entry.owner == 'tensor' and '' or entry.owner) .. ':' .. entry.name .. '(' }
  else
    local name = (in_cr(entry) and 'cr' or entry.module:match '[^.]*$') .. '.' .. entry.name
    calls = { name .. '(', name .. ' ' }
  end
  local find, best = require 'cr.tools.help_examples'.find, nil
  for _, call in ipairs(calls) do best = best or find(call) end
  return best and row('example', best.text) .. ('\n  %-12s (%s)'):format('', best.place) or plain
end

-- ---- text ---------------------------------------------------------------------------------------

local function signature(entry)
  if entry.owner then return ('%s:%s%s'):format(entry.owner, entry.name, entry.args) end
  if not entry.name then return entry.module end
  if entry.name == 'new' and in_cr(entry) then return 'cr.' .. entry.module .. entry.args end
  return ('%s.%s%s'):format(in_cr(entry) and 'cr' or entry.module, entry.name, entry.args)
end

-- How a script reaches a module: cr.media, require 'cr.json', a file of the examples.
local function way_to(module)
  if module:find '^models' then return ("require '%s'"):format(module) end
  if module:find '^examples' then return ('scripts/%s.lua'):format((module:gsub('%.', '/'))) end
  local lazy = getmetatable(require 'cr').__names[module] ~= nil
  return module == 'cr' and "require 'cr'" or lazy and 'cr.' .. module or ("require 'cr.%s'"):format(module)
end

local function format(entry)
  local lines, tags = {}, {}
  for _, line in ipairs(entry.text) do
    local tag, rest = line:match '^@(%w+)%s*(.*)$'
    if tag == 'param' then
      local name, kind = rest:match '^(%S+)%s*(.*)$'
      tags[#tags + 1] = { name, kind }
    elseif tag == 'return' then
      tags[#tags + 1] = { 'returns', rest }
    elseif tag == 'class' or tag == 'field' then
      tags[#tags + 1] = { tag, rest }
    elseif not tag and #tags > 0 then
      tags[#tags][2] = tags[#tags][2] .. ' ' .. line:match '^%s*(.*)$'
    elseif not tag then
      lines[#lines + 1] = line
    end
  end
  while lines[#lines] == '' do lines[#lines] = nil end
  for i, tag in ipairs(tags) do tags[i] = row(tag[1], tag[2]) end
  tags[#tags + 1] = example(entry)
  local text = signature(entry) .. (entry.name and '' or (' (%s)'):format(way_to(entry.module))) .. '\n  ' .. table.concat(lines, '\n  ')
  return #tags > 0 and text .. '\n' .. table.concat(tags, '\n') or text
end

-- Returns the first sentence for a list, cut with dots if it is too long.
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

-- "  head    first sentence" within 98 columns.
local function list_line(entry, head)
  return ('  %-34s %s'):format(head, first_sentence(entry.text, math.max(20, 98 - math.max(36, #head + 2))))
end

local start = [[
  crescent help NAME   a command, a setting (--cache), a function (conv2d, torch.cat), a module (cr.nn)
  crescent help modules
At the prompt: ? NAME for help, ?? WORD to search.]]

--- Returns all names that have help: 'nn.conv2d', 'cr.randn', 'cr.nn', ...
--- @return string[]
function M.names()
  build()
  local list, seen = {}, {}
  local function add(name)
    if not seen[name] then list[#list + 1] = name end
    seen[name] = true
  end
  for _, entry in ipairs(index) do
    add((signature(entry):gsub('%(.*', '')))
    if not entry.name and not entry.module:find '^models' and entry.module ~= 'cr' then add('cr.' .. entry.module) end
  end
  return list
end

-- 'a' and 'b' of "table? {a = 1, b (what it is)}".
local function names_within(text, into)
  for list in text:gmatch '%b{}' do
    local flat = list:sub(2, -2):gsub('%b()', ''):gsub('%b{}', '')
    for item in (flat .. ','):gmatch '(.-)[,;]' do
      local name = item:match '^%s*([%a_][%w_]*)%s*$' or item:match '^%s*([%a_][%w_]*)%s*='
      if name then into[name] = true end
    end
  end
end

--- Returns the options of functions with this name, as listed in their comments.
--- @param name string 'conv2d'
--- @return table<string, boolean>
function M.options(name)
  build()
  local names = {}
  for _, entry in ipairs(index) do
    if entry.name == name then
      local text = table.concat(entry.text, ' ')
      for param in text:gmatch '@param%s+[%w_]+%s+([^@]*)' do
        names_within(param, names)
        for _, field in ipairs(classes[param:match '^([%w_.]*Options)'] or {}) do names[field] = true end
      end
    end
  end
  return names
end

--- Returns the names of all modules, as for `require`.
--- @return string[]
function M.modules()
  build()
  local list = {}
  for _, entry in ipairs(index) do
    if not entry.name then
      local ours = entry.module == 'cr' or entry.module:find '^models'
      list[#list + 1] = ours and entry.module or 'cr.' .. entry.module
    end
  end
  return list
end

local MOST_FOUND = 30

-- Returns the entries with a word in their names, and those with the word only in their text.
local function mentioning(word)
  local wanted = word:lower()
  local by_name, by_text = {}, {}
  for _, entry in ipairs(index) do
    if signature(entry):lower():find(wanted, 1, true) then
      by_name[#by_name + 1] = entry
    elseif table.concat(entry.text, ' '):lower():find(wanted, 1, true) then
      by_text[#by_text + 1] = entry
    end
  end
  return by_name, by_text
end

-- Formats one line for each entry of both lists, up to a limit.
local function list_of(first, second)
  local lines, total = {}, #first + #second
  for _, list in ipairs { first, second } do
    for _, entry in ipairs(list) do
      if #lines < MOST_FOUND then lines[#lines + 1] = list_line(entry, signature(entry)) end
    end
  end
  if total > #lines then lines[#lines + 1] = ('  ... %d in all'):format(total) end
  return table.concat(lines, '\n')
end

--- Searches names, then texts, for a word. Returns one line for each entry found.
--- @param word string
--- @return string text
--- @return boolean found
function M.search(word)
  build()
  local by_name, by_text = mentioning(word)
  if #by_name + #by_text == 0 then return ("nothing mentions '%s'"):format(word), false end
  return list_of(by_name, by_text), true
end

local function list_of_modules()
  local lines = {}
  for _, entry in ipairs(index) do
    if not entry.name then lines[#lines + 1] = ('  %-26s %s'):format(entry.module, first_sentence(entry.text, 71)) end
  end
  return table.concat(lines, '\n')
end

local function module_text(entries)
  local lines = {}
  for _, entry in ipairs(entries) do
    if entry.name == 'new' and in_cr(entry) then -- functions that are called by the module's name
      table.insert(lines, math.min(2, #lines + 1), format(entry) .. '\n')
    elseif entry.name then
      lines[#lines + 1] = list_line(entry, (entry.owner and entry.owner .. ':' or '') .. entry.name .. entry.args)
    else
      table.insert(lines, 1, format(entry) .. '\n')
    end
  end
  return table.concat(lines, '\n')
end

local FULL = 3 -- up to so many functions with the same name are shown in full

local function is_first(entry) return in_cr(entry) or entry.owner == 'tensor' or entry.module == 'nn' end

-- Shows functions of `cr`, tensors and layers in full, and one line for each other. A few others are shown in full, too, if
-- there is none of these, unless `brief`.
local function functions_text(entries, brief)
  local whole, lines, first = {}, {}, false
  for _, entry in ipairs(entries) do first = first or is_first(entry) end
  for _, entry in ipairs(entries) do
    if is_first(entry) or not first and not brief and #entries <= FULL then
      whole[#whole + 1] = format(entry)
    else
      lines[#lines + 1] = list_line(entry, signature(entry))
    end
  end
  if #lines > 0 then whole[#whole + 1] = table.concat(lines, '\n') end
  return table.concat(whole, '\n\n'), first
end

-- Finds what a name may mean: modules, functions of the named module, and other functions with that name.
local function candidates(name)
  local wanted_module, wanted = name:match '^(.*)%.([%w_]+)$'
  wanted = wanted or name
  if wanted_module then wanted_module = wanted_module:gsub('^cr%.', '') end
  local c = { word = wanted, modules = {}, found = {}, others = {}, of_tensors = {} }
  local whole = name:gsub('^cr%.', '')
  for _, entry in ipairs(index) do
    if entry.module == whole or entry.module == name or name == 'cr' and in_cr(entry) then
      c.modules[#c.modules + 1] = entry
      c.exact = c.exact or entry.module == name
    end
    if entry.name == wanted then
      -- In x:matmul, x is a variable; cr.go is defined in another file than its name says.
      local here = not wanted_module or entry.module == wanted_module or entry.owner == wanted_module or
        (wanted_module == 'cr' and in_cr(entry))
      table.insert(here and c.found or c.others, entry)
      if entry.owner == 'tensor' then c.of_tensors[#c.of_tensors + 1] = entry end
    end
  end
  if #c.modules == 0 then -- unipc: schedulers.unipc
    for _, entry in ipairs(index) do
      if entry.module:match '[^.]*$' == wanted and (#c.found == 0 or not entry.name and not wanted_module) then
        table.insert(#c.found > 0 and c.found or c.modules, entry)
      end
    end
  end
  return c
end

-- Returns help on names that are similar to an unknown one. First parts of names are tried, then words in texts, and
-- then similar spellings.
local function similar(name, word)
  local by_name, by_text = mentioning(name)
  if #by_name > 0 then
    local first, others = {}, {} -- what scripts use most comes first
    for _, entry in ipairs(by_name) do table.insert(is_first(entry) and first or others, entry) end
    local text = ("'%s' is part of these names:\n%s"):format(name, list_of(first, others))
    if #by_name <= FULL and #by_text > 0 then text = text .. '\nThese mention it:\n' .. list_of({}, by_text) end
    return text, true, true
  end
  if #by_text > 0 then return ("there is no function '%s'; these mention it:\n%s"):format(name, list_of({}, by_text)), true, true end
  local known, seen = {}, {}
  for _, entry in ipairs(index) do
    local one = entry.name or entry.module
    if not seen[one] then known[#known + 1] = one end
    seen[one] = true
  end
  return ("no help on '%s': %s"):format(name, errors.did_you_mean_close(word, known, math.max(1, #word / 3),
    '`crescent help modules` lists the modules')), false
end

local function has(name) return #candidates(name).found > 0 end

-- Returns help on functions and modules, and whether some are of `cr`, tensors or layers; nil if there are none.
local function functions_of(name, o)
  local c = candidates(name)
  -- A variable counts as a tensor, unless its name is that of a class, as in sample:diff.
  if o.of_variable and #c.found == 0 and #c.of_tensors > 0 then return functions_text(c.of_tensors) end
  if c.exact or #c.found == 0 and #c.modules > 0 and not (o.foreign and elsewhere.absent(name)) then return module_text(c.modules) end
  if #c.found > 0 then return functions_text(c.found, o.brief) end
  if #c.others > 0 then return functions_text(c.others) end
end

--- Returns help on a function (`conv2d`, `nn.conv2d`, `x:matmul`), a module and its functions, a sampling method, a
--- command, a setting or a user's file, or without a name on help itself.
--- @param name string?
--- @param settings table[]? the settings of lipsync, as schema:describe() returns them
--- @return string text
--- @return boolean found
--- @return boolean? near whether there was no exact match
function M.text(name, settings)
  name = name and name:match '^%s*(.-)%s*$' or ''
  if name == '' then return start, true end
  build()
  if name == 'modules' then return list_of_modules(), true end
  if name:find '%.lua$' then return elsewhere.file(name) end
  local method = elsewhere.scheduler(name)
  if method then return method, true end
  local said = elsewhere.said(name, settings or {})
  local typed, foreign = name
  name, foreign = elsewhere.spelled(name)
  local of_variable = name:find(':', 1, true) ~= nil
  name = name:gsub(':', '.'):gsub('%(.*', '')
  local text, first = functions_of(name, { of_variable = of_variable, foreign = foreign, brief = said ~= nil })
  if not first and name:find '^[%w_]+$' and not of_variable then
    local option = elsewhere.option(name)
    said = said and option and said .. '\n\n' .. option or said or option
  end
  if text and said then return first and text .. '\n\n' .. said or said .. '\n\n' .. text, true end
  if text or said then return text or said, true end
  local word = name:match '[^.]*$'
  local ours = elsewhere.renamed(word, has)
  if ours then return ('%s is %s here.\n\n%s'):format(word, ours, functions_of(ours, {})), true, true end
  local instead = elsewhere.absent(name)
  if instead then return instead, true, true end
  return similar(foreign and typed or name, word)
end

return M
