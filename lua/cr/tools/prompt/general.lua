--- Commands of the prompt: help, loading code, devices, the end.

local arguments = require 'cr.arguments'
local errors = require 'cr.errors'
local run = require 'cr.tools.prompt.run'
local values = require 'cr.tools.prompt.values'

local M = {}

M.quit = { usage = ':quit', help = 'leaves the prompt, as Ctrl-D does', run = function(session) session.over = true end }

M.restart = {
  usage = ':restart', help = 'starts a new process in the same terminal',
  more = [[Variables are lost, the history stays. After a fault some drivers accept a card only in a new process.]],
  run = function(session)
    session.host.restart()
    session.over = true
  end,
}

-- ---- help ---------------------------------------------------------------------------------------

local start = [[
Type Lua: an expression prints its value, and `_` is the last value. cr, nn, weights,
media, image, schedulers and latentsync are loaded on first use. Tab completes; an
unfinished line continues.

  ? NAME               help: ? conv2d, ? torch.cat, ? dpmpp_2m, ? --cache, ? modules
  ?? WORD              search help for a word
]]

-- Returns the comment above a function in a user's file, and the function's first line.
local function written_above(fn)
  local info = debug.getinfo(arguments.behind(fn), 'S')
  if info.what == 'C' or info.source:sub(1, 1) ~= '@' then return nil end
  local file = io.open(info.source:sub(2), 'rb')
  if not file then return nil end
  local lines, number = {}, 0
  for text in file:lines() do
    number = number + 1
    if number == info.linedefined then
      table.insert(lines, 1, text:match '^%s*(.-)%s*$')
      break
    end
    local comment = text:match '^%s*%-%-+%s?(.*)$'
    if comment then lines[#lines + 1] = '  ' .. comment else lines = {} end
  end
  file:close()
  lines[#lines + 1] = ('  (%s:%d)'):format(info.source:sub(2), info.linedefined)
  return table.concat(lines, '\n')
end

-- Returns help on the value of a variable.
local function help_on_value(topic)
  local value = topic:find '^[%a_][%w_.:]*$' and require 'cr.tools.prompt.complete'.follow(topic)
  if value == nil or value == false then return nil end
  if type(value) == 'function' then return written_above(value) end
  if require 'cr'.is_tensor(value) then
    return ('%s is a tensor, %s; ? tensor lists its methods'):format(topic, (tostring(value):gsub('\n.*', '')))
  end
  if type(value) == 'table' then return topic .. ' is a table:\n' .. values.text(value) end
  return ('%s is a %s: %s'):format(topic, type(value), values.text(value))
end

local function about(command) return command.usage .. '\n  ' .. (command.more or command.help) end

M.help = {
  usage = '? NAME', help = 'help on a function, module, scheduler or command', complete = 'name',
  run = function(session, topic)
    local all = session.commands
    local wanted = topic:match '^:(%w+)$'
    local command = all[wanted or '']
    if command then return print(about(command)) end
    if wanted then errors.fail(run.no_command(all, wanted)) end
    if topic ~= '' then
      -- A global of the user takes precedence over our name.
      local own = topic:find '^[%a_][%w_]*$' and rawget(_G, topic)
      if type(own) == 'function' and written_above(own) then return print(written_above(own)) end
      local text, found, near = require 'cr.tools.help'.text(topic, session.host.settings())
      if found and not near then return print(text .. (all[topic] and '\n\n' .. about(all[topic]) or '')) end
      return print(help_on_value(topic) or all[topic] and about(all[topic]) or text)
    end
    local names, lines = {}, {}
    for name in pairs(all) do
      if name ~= 'help' and name ~= 'search' then names[#names + 1] = name end
    end
    table.sort(names)
    for _, name in ipairs(names) do
      lines[#lines + 1] = ('  %-20s %s'):format(all[name].usage, all[name].help)
    end
    print(start .. table.concat(lines, '\n') .. '\n\nCtrl-C stops what runs, or clears the line; Ctrl-R searches the history.')
  end,
}

M.search = {
  usage = '?? WORD', help = 'searches help for a word', complete = 'name',
  run = function(_, word)
    if word == '' then errors.fail '?? needs a word to search for' end
    print((require 'cr.tools.help'.search(word)))
  end,
}

-- ---- code ---------------------------------------------------------------------------------------

local function read_file(path)
  path = path:gsub('^~/', (os.getenv 'HOME' or '~') .. '/')
  local file, reason = io.open(path, 'rb')
  if not file then return nil, 'load: ' .. reason end
  local text = file:read '*a'
  file:close()
  if not text then return nil, ('load: %s cannot be read'):format(path) end
  return text:gsub('^#[^\n]*', '')
end

M.load = {
  usage = ':load FILE', help = 'runs a Lua file; its globals stay', complete = 'file',
  run = function(session, path)
    if path == '' then errors.fail ':load needs a file' end
    local text, problem = read_file(path)
    if not text then errors.fail(problem) end
    local chunk
    chunk, problem = loadstring(text, '@' .. path)
    if not chunk then return run.complain(problem) end
    jit.off(chunk, true) -- so that Ctrl-C reaches its loops
    run.show(session.host, chunk)
  end,
}

-- The name 'vae' may mean cr.vae or models.vae.
local function full_name(name)
  for _, candidate in ipairs { name, 'cr.' .. name, 'models.' .. name, 'cr.schedulers.' .. name } do
    if package.loaded[candidate] ~= nil or package.searchpath(candidate, package.path) then return candidate end
  end
end

-- The old table gets the new fields, so that all references to it see them.
local function renew(old, new)
  for key in pairs(old) do
    if rawget(new, key) == nil then rawset(old, key, nil) end
  end
  for key, value in pairs(new) do rawset(old, key, value) end
  setmetatable(old, getmetatable(new))
end

M.reload = {
  usage = ':reload MODULE', help = 'reloads a module for everything that uses it',
  complete = 'module',
  run = function(_, name)
    if name == '' then errors.fail ":reload needs a module's name as for require: :reload cr.nn, :reload mine; Tab lists them" end
    local module = full_name(name)
    if not module then
      errors.fail(("there is no module '%s': %s"):format(name, errors.did_you_mean(name, require 'cr.tools.help'.modules())))
    end
    local old = package.loaded[module]
    package.loaded[module] = nil
    local ok, new = pcall(require, module)
    if not ok then
      package.loaded[module] = old
      error(new, 0)
    end
    if type(old) == 'table' and type(new) == 'table' then
      renew(old, new)
      package.loaded[module] = old
    end
    print(module .. (old == nil and ' loaded' or ' reloaded'))
  end,
}

-- ---- devices ------------------------------------------------------------------------------------

local makers = { 'tensor', 'empty', 'zeros', 'ones', 'full', 'arange', 'randn', 'rand' }
local chosen = 'cpu'

-- The `cr` of typed code, whose new tensors are on the chosen device unless their options name another.
local function cr_on(device)
  local cr = require 'cr'
  if device == 'cpu' then return cr end
  local own = {}
  for _, name in ipairs(makers) do
    own[name] = function(...)
      local n, given = select('#', ...), { ... }
      local last = given[n]
      local options = type(last) == 'table' and n > 0 and last[1] == nil and next(last) ~= nil and last or nil
      local with = { device = device }
      for key, value in pairs(options or {}) do with[key] = value end
      given[options and n or n + 1] = with
      return cr[name](unpack(given, 1, options and n or n + 1))
    end
  end
  return setmetatable(own, { __index = cr, __names = cr })
end

local function list_devices()
  local cr = require 'cr'
  local function mark(name) return name == chosen and '*' or ' ' end
  print(('%s cpu      %d thread%s, tensors %s'):format(mark 'cpu', cr.threads(), cr.threads() == 1 and '' or 's',
    values.bytes(cr.memory().live)))
  local available, why = cr.cuda.available()
  if not available then return print('  cuda     ' .. why) end
  for i = 0, cr.cuda.count() - 1 do
    local name = 'cuda:' .. i
    local info = cr.cuda.info(name)
    print(('%s %-8s %s, compute capability %s, %s free of %s, driver %s, CUDA %s, cuDNN %s'):format(mark(name), name,
      info.name, info.capability, values.bytes(info.memory_free), values.bytes(info.memory_total), info.driver,
      info.runtime, info.cudnn))
  end
  local options = cr.cuda.device
  print(('           tf32 %s, search %s, fusion %s (cr.cuda.device.tf32 = true)'):format(tostring(options.tf32),
    tostring(options.search), tostring(options.fusion)))
end

M.device = {
  usage = ':device [NAME]', help = 'lists devices, or chooses the device of new tensors',
  more = [[Without a name it lists the devices. With cpu, cuda or cuda:N, cr.randn, cr.zeros, ... make tensors there
  from now on, if you type them without a device. :device reset resets a card after a fault;
  if the driver does not allow it, use :restart.]],
  complete = 'device',
  run = function(_, name)
    local cr = require 'cr'
    if name == '' then return list_devices() end
    if name == 'reset' then
      cr.cuda.reset(chosen ~= 'cpu' and chosen or nil)
      return print 'the card was reset; tensors on it are lost'
    end
    if name ~= 'cpu' then
      if not name:find '^cuda:?%d*$' then errors.fail(("there is no device '%s': cpu, cuda or cuda:N"):format(name)) end
      local available, why = cr.cuda.available()
      if not available then errors.fail(why) end
      if name == 'cuda' then name = 'cuda:0' end
      cr.cuda.info(name)
    end
    chosen = name
    rawset(_G, 'cr', cr_on(name))
    list_devices()
  end,
}

return M
