--- Runs input of the prompt: expressions return their values, errors show their message and origin, and Ctrl-C ends
--- the run but never the session.

local terminal = require 'cr.tools.terminal'
local values = require 'cr.tools.prompt.values'
local base = require 'cr.ffi'
local errors = require 'cr.errors'

local M = {}

local registry = debug.getregistry()
local tracing = os.getenv 'CR_TRACEBACK' == '1'

local MOST_PLACES = 4

--- The text that is being run, for advice.
M.typed = nil

--- Compiles a typed chunk, in which '=x' and expressions return their values.
--- @param text string
--- @param name string? '=prompt'
--- @return function? chunk
--- @return string? problem
function M.compile(text, name)
  name = name or '=prompt'
  local expression = text:match '^%s*=(.*)$'
  local chunk, problem = loadstring('return ' .. (expression or text), name)
  if not chunk and not expression then
    -- What is before it must be whole, since a semicolon may be in a string.
    local function with_value_of(before, last)
      return before and loadstring(before) and loadstring(before .. 'return ' .. last, name)
    end
    -- The last of several statements on a line, or the last line of pasted input, may be an expression.
    chunk = not text:find '\n' and with_value_of(text:match '^(.*;)([^;]*[^;%s][^;]*)$')
    if not chunk then chunk, problem = loadstring(text, name) end
    chunk = chunk or with_value_of(text:match '^(.*\n)([^\n]*%S[^\n]*)%s*$') or nil
  end
  -- Compiled code does not check hooks, so an endless loop could not be stopped.
  if chunk then jit.off(chunk, true) end
  return chunk, problem
end

--- Returns whether a text that does not compile may be completed by more lines. A method without its call ('x:mean', or
--- Python's 'for i in range(3):') might be, too, but nobody goes on with it on another line.
function M.is_incomplete(problem)
  return problem ~= nil and problem:find "near '<eof>'" ~= nil and not problem:find 'function arguments expected' and
    not problem:find "'<name>' expected"
end

-- Sources of chunks for display, relative to our folder; false for the library's own files.
local shown_sources = {}
local function shown_source(source)
  local known = shown_sources[source]
  if known ~= nil then return known end
  local file = source:gsub('^[@=]', '')
  if file:sub(1, #base.root + 1) == base.root .. '/' then file = file:sub(#base.root + 2) end
  if file:find '^lua/cr/' or file:find('/lua/cr/', 1, true) then file = false end
  if file and not source:find '^[@=]' then file = file:match '^[^\n]*':sub(1, 40) end
  shown_sources[source] = file
  return file
end

-- Formats a position in a script or network: 'models/networks/vae.lua:120'.
local function place(info)
  local file = info.what ~= 'C' and info.currentline > 0 and shown_source(info.source)
  return file and file .. ':' .. info.currentline or nil
end

--- Returns the positions outside the library in the call stack of the function at `level`, the innermost first.
--- @param level integer as for debug.getinfo in the caller
--- @param most integer
--- @return string[]
function M.places(level, most)
  local list = {}
  level = level + 1
  while #list < most do
    local info = debug.getinfo(level, 'Sl')
    if not info then break end
    local p = place(info)
    if p ~= list[#list] then list[#list + 1] = p end -- a recursion counts as one position
    level = level + 1
  end
  return list
end

-- The handler of xpcall records the stack of an error, which is gone afterwards.
local function noted(err)
  local trace = tracing and debug.traceback(type(err) == 'string' and err or nil, 2) or nil
  return { err = err, places = M.places(2, MOST_PLACES), trace = trace }
end

--- Formats an error: its message (with the path of the failing layer), and on the next line where it arose.
--- @param err any
--- @param places string[]?
--- @return string
function M.explain(err, places)
  -- A failure is meant for the user, so its message is enough.
  if type(err) == 'table' and rawget(err, 'message') then return tostring(err.message) end
  if type(err) == 'table' and not (getmetatable(err) or {}).__tostring then return values.text(err) end
  local text = tostring(err)
  -- The list of folders that were searched for a module does not help the user.
  text = text:gsub("(module '[^']*' not found):\n.*", '%1')
  local file, line, rest = text:match '^([^\n:]+):(%d+): (.*)$'
  local at = {}
  for _, p in ipairs(places or {}) do at[#at + 1] = p end
  if file then
    if file:sub(1, #base.root + 1) == base.root .. '/' then file = file:sub(#base.root + 2) end
    local position = file .. ':' .. line
    text = rest
    local known = at[1] == position or file:sub(1, 3) == '...'
    if not known then table.insert(at, 1, position) end
  end
  local lines = { text }
  -- An error in a single line of the prompt needs no position.
  if not (#at == 0 or #at == 1 and at[1] == 'prompt:1') then
    lines[2] = '  at ' .. table.concat(at, ', ')
  end
  return table.concat(lines, '\n')
end

--- Prints an error, and advice on what was typed.
--- @param err any
--- @param places string[]?
--- @param head string? 'error'
function M.complain(err, places, head)
  local advice = not head and type(err) == 'string' and require 'cr.tools.prompt.advice'.of(M.typed or '', err)
  head = (head or 'error') .. ':'
  if terminal.is_terminal() and terminal.colors() ~= 'none' then head = '\27[31m' .. head .. '\27[0m' end
  print(head .. ' ' .. M.explain(err, places))
  if advice then print('  ' .. advice) end
end

--- Returns the message about an unknown command.
--- @param all table<string, table> the commands by name
--- @param name string without its colon
--- @return string
function M.no_command(all, name)
  local names = {}
  for known in pairs(all) do names[#names + 1] = ':' .. known end
  table.sort(names)
  return ('there is no command :%s: %s (%s)'):format(name, errors.did_you_mean(':' .. name, names, ''), table.concat(names, ' '))
end

-- Returns the names that a text declares from `at` to its end, if that is a single statement: 'a, b' of "local a, b = 2".
local function declared_at(text, at)
  if not loadstring(text:sub(1, at - 1)) then return nil end
  local fn, body = text:match('^local%s+function%s+([%a_][%w_]*)%s*(%(.*)$', at)
  if fn then return loadstring('return function' .. body) and fn end
  local names, rest = text:match('^local%s+([%a_][%w_]*[%w_%s,]*)(.-)[%s;]*$', at)
  if not names then return nil end
  local list = rest:match '^=(.*)$'
  if rest ~= '' and not (list and loadstring('return ' .. list)) then return nil end
  return names:match '^(.-)%s*$'
end

--- Returns a hint for a chunk that ends with a declaration of locals, which cannot be used afterwards; nil for other chunks.
--- @param text string as typed
--- @return string?
function M.hint(text)
  local names
  for at in text:gmatch '%f[%w_]()local%f[^%w_]' do names = declared_at(text, at) or names end
  if not names then return nil end
  local several = names:find ',' ~= nil
  return ('  %s: a local is visible only in the input that declares it, so %s gone: write %s without `local`'):format(names,
    several and 'these are' or 'it is', several and 'them' or 'it')
end

local function packed(...) return { n = select('#', ...), ... } end

--- Calls fn(...) and returns its results, or prints its error. Ctrl-C ends it with 'interrupted'.
--- @param host table of lua/cr/tools/program.lua
--- @param fn function
--- @return boolean ok
--- @return ... results
function M.call(host, fn, ...)
  local arguments = packed(...)
  registry.cr_hold = false
  local result = packed(xpcall(function() return fn(unpack(arguments, 1, arguments.n)) end, noted))
  registry.cr_hold = true
  local failure = not result[1] and result[2] or nil
  -- After a stack overflow the handler cannot run, and the error arrives as it is.
  if failure and type(failure) ~= 'table' then failure = { err = failure } end
  if host.interrupted() then
    local loop = package.loaded['cr.loop']
    if type(loop) == 'table' then pcall(loop.cancel_all, 'interrupted') end
    host.clear_interrupt()
    io.write '\n' -- after the terminal's ^C
    if failure then failure = { err = 'interrupted' } end
  end
  if not failure then return true, unpack(result, 2, result.n) end
  errors.uncaught = errors.uncaught + 1
  M.complain(failure.err, failure.places)
  if failure.trace then print(failure.trace) end
  return false
end

--- Prints values, each on its own line.
function M.print_values(n, ...)
  for i = 1, n do print(values.text((select(i, ...)))) end
end

--- Runs a chunk and prints its results; `_` is then the first of them.
--- @param host table
--- @param chunk function
--- @return boolean
function M.show(host, chunk)
  local results = packed(M.call(host, chunk))
  if not results[1] then return false end
  if results.n > 1 and results[2] ~= nil then rawset(_G, '_', results[2]) end
  -- Printing runs code, too: that of tensors, or a script's own __tostring.
  return (M.call(host, M.print_values, results.n - 1, unpack(results, 2, results.n)))
end

return M
