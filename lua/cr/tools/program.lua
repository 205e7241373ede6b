--- The main function of the program `crescent`: handles the command line, and ends the program on errors.
--
-- core/main.c calls it once with a table `host`; it returns the exit status. It loads only what the command needs:
-- `cr` is loaded when a script or the prompt first uses it.

local host = ...

-- Modules in the current folder, for example beside a downloaded checkpoint, must not be loaded. So only absolute
-- paths are searched, even if Lua's defaults or LUA_PATH contain relative ones.
local function absolute_places(path)
  local kept = {}
  for place in path:gmatch '[^;]+' do
    if place:sub(1, 1) == '/' then kept[#kept + 1] = place end
  end
  return table.concat(kept, ';')
end
package.path = absolute_places(package.path)
package.cpath = absolute_places(package.cpath)

local errors = require 'cr.errors'

local registry = debug.getregistry()
local tracing = os.getenv 'CR_TRACEBACK' == '1'

-- The script in scripts/ was run by its name, so positions in our files mean nothing to the user.
local named_script = false

local function version_line() return 'crescent ' .. require 'cr'.version:match '^%d+%.%d+' end

local function script_names()
  local names = {}
  local lfs = require 'lfs'
  for entry in lfs.dir(host.root .. '/scripts') do
    local name = entry:match '^([%w_-]+)%.lua$'
    if name then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

-- Globals in -e, on standard input and at the prompt, which are loaded on first use.
local modules = {
  cr = 'cr', nn = 'cr.nn', weights = 'cr.weights', media = 'cr.media', image = 'cr.image', cli = 'cr.tools.cli',
  uv = 'luv', schedulers = 'cr.schedulers', latentsync = 'models.latentsync',
}
local function name_modules()
  setmetatable(_G, {
    __names = modules, -- for completion
    __index = function(_, name)
      local module = modules[name]
      if not module then return nil end
      local value = require(module)
      rawset(_G, name, value)
      return value
    end,
  })
end

-- require 'luv' returns luv on the core's loop, so that luv does not create its own loop.
package.preload.luv = function() return require 'cr.loop'.uv end

-- Returns the event loop if the script has loaded it. A module that failed to load leaves a value that is not a
-- table.
local function loaded_loop()
  local loop = package.loaded['cr.loop']
  return type(loop) == 'table' and loop or nil
end

local function finish_films()
  local writer = package.loaded['cr.media.writer']
  if type(writer) == 'table' then writer.finish_open() end
end

-- Returns whether a position is in a file of the program, not in one that its user wrote. Lua shortens long paths to
-- '...' and their end.
local function is_ours(position)
  for _, folder in ipairs { '/lua/', '/models/', '/scripts/' } do
    local at = position:find(folder, 1, true)
    local before, inside = position:sub(1, (at or 1) - 1), position:sub(at or 1)
    if at and (before == host.root or before:sub(1, 3) == '...') and not inside:find '^/scripts/examples/' then
      return require 'lfs'.attributes(host.root .. inside, 'mode') == 'file'
    end
  end
  return false
end

-- Formats any error as one line.
local function sentence(err)
  local text
  if errors.is_failure(err) then
    text = err.message
  elseif type(err) == 'string' then
    text = err
    -- Lua's own errors are bugs in a script, so their position is kept.
    local bug = text:find 'attempt to ' or text:find 'bad argument' or text:find 'stack overflow'
    if named_script and not bug then
      local position, rest = text:match '^([^\n]-%.lua):%d+: (.*)$'
      if position and is_ours(position) then text = rest end
    end
    -- Removes the list of searched places.
    text = text:gsub("(module '[^']*' not found):\n.*", '%1')
  elseif type(err) == 'table' and type(rawget(err, 'message')) == 'string' then
    text = err.message
  else
    text = tostring(err)
  end
  return (text:gsub('%s*\n%s*', ' '):gsub('%s+$', ''))
end

local function report(err, trace)
  io.stdout:flush()
  if err == 'interrupted' then host.interruption_told() end
  io.stderr:write('crescent: ', (sentence(err):gsub('^crescent: ', '')), '\n')
  if tracing and trace then io.stderr:write(trace, '\n') end
end

local function traced(err)
  local loop = loaded_loop()
  local text = type(err) == 'string' and err or sentence(err)
  return { err = err, trace = loop and loop.traceback_of(err) or debug.traceback(text, 2) }
end

-- An error handler would lose the message of a stack overflow, because it could not run then.
local function protected(fn)
  local ok, problem
  if tracing then
    ok, problem = xpcall(fn, traced)
    if not ok and type(problem) ~= 'table' then problem = { err = problem } end
  else
    ok, problem = pcall(fn)
    if not ok then problem = { err = problem } end
  end
  return ok, problem
end

-- Lua's own print ignores a failed write: `while true do print(1) end` into a closed pipe never ends.
function _G.print(...)
  local parts = { ... }
  for i = 1, select('#', ...) do parts[i] = tostring((select(i, ...))) end
  local ok, reason = io.stdout:write(table.concat(parts, '\t'), '\n')
  if not ok then error('cannot write to standard output: ' .. reason, 0) end
end
jit.off(_G.print) -- compiled code loses the failure of the write

-- A script may call os.exit. It must not report success if output could not be written.
local exit = os.exit
function os.exit(code, close) -- luacheck: ignore
  if code == nil or code == true or code == 0 then
    finish_films()
    local ok, reason = io.stdout:flush()
    if ok and host.output_failed() then ok, reason = nil, 'a write has failed' end
    if not ok then errors.fail('cannot write to standard output: ' .. reason) end
  else
    errors.uncaught = errors.uncaught + 1
  end
  exit(code, close)
end

-- Runs a chunk, then the tasks that it left on the loop. The closers of unfinished tasks run in any case.
local function run(chunk, ...)
  local args, n = { ... }, select('#', ...)
  local ok, problem = protected(function()
    chunk(unpack(args, 1, n))
    local loop = loaded_loop()
    if loop then loop.finish() end
    finish_films()
  end)
  if ok and not host.interrupted() then return 0 end
  errors.uncaught = errors.uncaught + 1
  registry.cr_hold = true
  local loop = loaded_loop()
  if loop then pcall(loop.cancel_all, host.interrupted() and 'interrupted' or 'cancelled') end
  if host.interrupted() then
    report('interrupted', problem and problem.trace)
    return 130
  end
  report(problem.err, problem.trace)
  return errors.is_failure(problem.err) and problem.err.code or 1
end

local function set_arguments(first, script)
  local arg = {}
  for i, value in pairs(host.argv) do arg[i - first] = value end
  arg[0] = script
  _G.arg = arg
  return unpack(arg, 1, #arg)
end

-- A script can load modules from its own folder, after those of the program.
local function search_beside(path)
  local folder = path:match '^(.*)/[^/]*$' or '.'
  if folder == '' then folder = '/' end
  if folder:sub(1, 1) ~= '/' then folder = require 'lfs'.currentdir() .. '/' .. folder end
  if folder:find '[;?]' then return end -- package.path cannot contain such a folder
  package.path = ('%s;%s/?.lua;%s/?/init.lua'):format(package.path, folder, folder)
  package.cpath = ('%s;%s/?.so'):format(package.cpath, folder)
end

local function run_file(path, first)
  if not named_script then search_beside(path) end
  local chunk, problem = loadfile(path)
  if not chunk then
    report(problem)
    return 1
  end
  return run(chunk, set_arguments(first, path))
end

local function run_text(text, name, first)
  name_modules()
  local chunk, problem = loadstring(text, name)
  if not chunk then
    report(problem)
    return 1
  end
  return run(chunk, set_arguments(first, name:sub(2)))
end

local function run_stdin(first)
  local text = io.read '*a'
  if host.interrupted() then
    report 'interrupted'
    return 130
  end
  return run_text((text or ''):gsub('^#[^\n]*', ''), '=stdin', first)
end

-- The settings of lipsync, for help at the prompt.
function host.settings() return require 'models.latentsync.settings'.schema:describe() end

local function prompt()
  name_modules()
  _G.arg = { [0] = 'crescent' }
  local ok, problem = protected(function() require 'cr.tools.prompt'.run(host) end)
  local loop = loaded_loop()
  if loop then pcall(loop.cancel_all, 'cancelled') end
  if ok then ok, problem = protected(finish_films) end
  if ok then return (host.signal() == 15 or host.signal() == 1) and 130 or 0 end -- core/main.c converts it to 128 + signal
  if host.interrupted() then -- interrupted before the script could handle it
    report 'interrupted'
    return 130
  end
  report(problem.err, problem.trace)
  return 1
end

local function run_named(name)
  local path = host.root .. '/scripts/' .. name .. '.lua'
  local file = name:match '^[%w_-]+$' and io.open(path, 'rb')
  if file then
    file:close()
    named_script = true
    return run_file(path, 1)
  end
  report(("there is no command '%s': %s `crescent help` lists all commands"):format(name,
    errors.did_you_mean(name, script_names(), "'", 'help')))
  return 2
end

local options = { '--help', '--version', '-e', '-', '-h', '-v' }

local function main(first)
  if not first then
    if host.interactive then return prompt() end
    return run_stdin(0)
  elseif first == '-' then
    return run_stdin(1)
  elseif first == '-e' then
    if not host.argv[2] then
      report '-e needs the code to run'
      return 1
    end
    return run_text(host.argv[2], '=(command line)', 2)
  elseif first == '--version' or first == '-v' then
    print(version_line() .. '  ' .. jit.version)
    return 0
  elseif first == '--help' or first == '-h' then
    return run_named 'help'
  elseif first:sub(1, 1) == '-' then
    report(("unknown option '%s': %s"):format(first, errors.did_you_mean(first, options)))
    return 2
  elseif first:find('/', 1, true) or first:find '%.lua$' then
    return run_file(first, 1)
  end
  return run_named(first)
end

local ok, status = pcall(main, host.argv[1])
if ok then return status end
if host.interrupted() then
  report 'interrupted'
  return 130
end
report(status)
return 1
