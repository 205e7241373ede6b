--- The interactive prompt of `crescent` on a terminal: reads input, runs it, prints the results.
--
-- line.lua reads lines, run.lua runs them, values.lua prints values, complete.lua completes words. The commands
-- (:time, :mem, ...) are in separate files, each a table of {usage, help, run, complete}, which this file joins.

local line = require 'cr.tools.prompt.line'
local run = require 'cr.tools.prompt.run'

local M = {}

local registry = debug.getregistry()

local SIGHUP, SIGTERM = 1, 15
local GRACE_MS = 10000 -- if an operation cannot be interrupted within this time, the process ends

-- ---- commands -----------------------------------------------------------------------------------

local groups = { 'cr.tools.prompt.general', 'cr.tools.prompt.measure', 'cr.tools.prompt.display' }

--- Returns all commands by name: {usage, help, run = fn(session, rest of the line), complete = the kind of the rest:
--- 'lua', 'file', 'module', 'device', 'name'}.
--- @return table<string, table>
function M.commands()
  if M.all then return M.all end
  M.all = {}
  for _, group in ipairs(groups) do
    for name, command in pairs(require(group)) do M.all[name] = command end
  end
  return M.all
end

-- Words that people type first at a prompt, unless they have defined them as variables.
local plain = { help = ':help', quit = ':quit', exit = ':quit' }

-- Splits a command into name and rest, or returns nil.
local function as_command(text)
  if text:sub(1, 2) == '??' then return 'search', text:sub(3):match '^%s*(.*)$' end
  if text:sub(1, 1) == '?' then return 'help', text:sub(2):match '^%s*(.*)$' end
  local word, topic = text:match '^(%a+)%s*%(?%)?$', text:match '^help%s+([%w_.:?]+)$'
  if topic then word = 'help' end
  if word and plain[word] and rawget(_G, word) == nil then text = plain[word] .. ' ' .. (topic or '') end
  if text:sub(1, 1) ~= ':' or text:sub(1, 2) == '::' then return nil end -- :: begins a label in Lua
  local name, rest = text:match '^:([%w_]*)%s*(.*)$'
  return name, rest
end

local function run_command(session, name, rest)
  local all = session.commands
  local command = all[name == 'q' and 'quit' or name]
  if command then
    run.call(session.host, command.run, session, rest)
    return
  end
  run.complain(run.no_command(all, name))
end

-- ---- the session --------------------------------------------------------------------------------

-- Returns the card's name from its driver, because asking CUDA would initialize it, which takes a second.
local function card_name()
  local lfs = require 'lfs'
  local folder = '/proc/driver/nvidia/gpus'
  if lfs.attributes(folder, 'mode') ~= 'directory' then return nil end
  local first, count = nil, 0
  for entry in lfs.dir(folder) do
    local file = io.open(folder .. '/' .. entry .. '/information', 'rb')
    local text = file and file:read '*a' or ''
    if file then file:close() end
    local name = text:match 'Model:%s*([^\n]+)'
    if name then first, count = first or name, count + 1 end
  end
  return first and (count > 1 and ('%d x %s'):format(count, first) or first)
end

local function banner()
  local cr = require 'cr'
  local threads = cr.threads()
  local card = card_name()
  print(('crescent %s  LuaJIT 2.1  %scpu: %d thread%s    ? for help'):format(cr.version:match '^%d+%.%d+',
    card and 'cuda: ' .. card .. '  ' or '', threads, threads == 1 and '' or 's'))
end

local function loaded_loop()
  local loop = package.loaded['cr.loop']
  return type(loop) == 'table' and loop or nil
end

-- Reports failed callbacks, and failed tasks that nobody awaits.
local function tell_failures(reader)
  local loop = loaded_loop()
  if not loop then return end
  while true do
    local failed, err, what = loop.failed()
    if not failed then return end
    reader.aside(function() run.complain(err, nil, 'error in a ' .. what) end)
  end
end

local function stop_tasks()
  local loop = loaded_loop()
  if not loop or loop.count() == 0 then return end
  local n = loop.count()
  loop.cancel_all 'interrupted'
  print(('%d task%s stopped'):format(n - loop.count(), n - loop.count() == 1 and '' or 's'))
end

-- Handles a chunk, a command or an empty line. Returns true if more lines are needed.
local function take(session, text)
  local trimmed = text:match '^%s*(.-)%s*$'
  if trimmed == '' then return false end
  local name, rest = as_command(trimmed)
  if name then
    session.reader.remember(trimmed)
    run_command(session, name, rest)
    return false
  end
  local chunk, problem = run.compile(text)
  if not chunk and run.is_incomplete(problem) then return true end
  session.reader.remember(trimmed)
  run.typed = text
  if chunk then
    local hint = run.show(session.host, chunk) and run.hint(text)
    if hint then print(hint) end
  else
    run.complain(problem)
  end
  return false
end

-- Lets tasks print while a line is being edited: the line is hidden and redrawn.
local function print_beside(reader)
  local print_plain = print
  function _G.print(...)
    local n, list = select('#', ...), { ... }
    reader.aside(function() print_plain(unpack(list, 1, n)) end)
  end
end

--- Reads, runs and prints until Ctrl-D, :quit or SIGTERM.
--- @param host table see lua/cr/tools/program.lua
function M.run(host)
  registry.cr_hold = true
  host.set_grace(GRACE_MS)
  banner()
  local session = { host = host, commands = M.commands() }
  session.reader = line.reader(host, {
    complete = function(before) return require 'cr.tools.prompt.complete'.complete(before, M.commands()) end,
    waiting = function(waits)
      local loop = loaded_loop()
      if loop then loop.on_failure = waits and function() tell_failures(session.reader) end or nil end
    end,
    interrupt = stop_tasks,
  })
  print_beside(session.reader)
  require 'cr.tools.prompt.origins'.start()
  local text
  while not session.over and host.signal() ~= SIGTERM and host.signal() ~= SIGHUP do
    local more, why = session.reader.read(text and '      ..> ' or 'crescent> ')
    if why == 'interrupted' then
      host.clear_interrupt()
      text = nil
    elseif why == 'end' then
      print ''
      if not text then break end
      text = nil -- drops the unfinished chunk, not the session
    else
      text = text and text .. '\n' .. more or more
      if not take(session, text) then text = nil end
      tell_failures(session.reader)
    end
  end
  registry.cr_hold = false
end

return M
