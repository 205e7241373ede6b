--- The prompt: line editing and history by libedit, printing of values, errors that do not end it.
--
-- While a line is being edited the registry's cr_hold is true: Ctrl-C then clears the line, and the
-- program's hook leaves it to us.

local ffi = require 'ffi'

local M = {}

local registry = debug.getregistry()

ffi.cdef [[
char *readline(const char *prompt);
int add_history(const char *line);
int read_history(const char *path);
int write_history(const char *path);
int stifle_history(int n);
void free(void *p);
void *dlopen(const char *path, int flags);
int mkdir(const char *path, unsigned int mode);
]]

local HISTORY_LINES = 2000
local GRACE_MS = 10000 -- an operation that cannot be stopped sooner costs the session

-- ---- printing -----------------------------------------------------------------------------------

local function key_order(a, b)
  local ta, tb = type(a), type(b)
  if ta ~= tb then return ta < tb end
  if ta == 'number' or ta == 'string' then return a < b end
  return tostring(a) < tostring(b)
end

local function short(value, depth)
  if type(value) == 'string' then return ('%q'):format(value):gsub('\\\n', '\\n') end
  local meta = type(value) == 'table' and getmetatable(value)
  if type(value) ~= 'table' or (meta and meta.__tostring) then
    return type(value) == 'function' and 'function' or (tostring(value):gsub('\n.*', ' ...'))
  end
  if next(value) == nil then return '{}' end
  if depth == 0 then return '{...}' end
  local parts, keys, n = {}, {}, #value
  for i = 1, math.min(n, 10) do parts[i] = short(value[i], depth - 1) end
  if n > 10 then parts[#parts + 1] = ('... %d in all'):format(n) end
  for key in pairs(value) do
    local in_array = type(key) == 'number' and key >= 1 and key <= n and key % 1 == 0
    if not in_array then keys[#keys + 1] = key end
  end
  table.sort(keys, key_order)
  for i, key in ipairs(keys) do
    if i > 30 then
      parts[#parts + 1] = ('... %d names in all'):format(#keys)
      break
    end
    local name = type(key) == 'string' and key:find '^[%a_][%w_]*$' and key or
        '[' .. short(key, 0) .. ']'
    parts[#parts + 1] = name .. ' = ' .. short(value[key], depth - 1)
  end
  local line = '{ ' .. table.concat(parts, ', ') .. ' }'
  if #line <= 100 then return line end
  return '{\n  ' .. table.concat(parts, ',\n  '):gsub('\n', '\n') .. '\n}'
end

--- A value as the prompt shows it: tensors as they print, tables short and sorted.
--- @return string
function M.show(value)
  local meta = type(value) == 'table' and getmetatable(value)
  if type(value) == 'table' and not (meta and meta.__tostring) then return short(value, 2) end
  if type(value) == 'string' then return (short(value, 0)) end
  return tostring(value)
end

local function print_results(n, ...)
  for i = 1, n do print(M.show((select(i, ...)))) end
end

-- ---- reading ------------------------------------------------------------------------------------

local function history_path()
  local state = os.getenv 'XDG_STATE_HOME'
  if not state or state == '' then
    local home = os.getenv 'HOME'
    if not home or home == '' then return nil end
    state = home .. '/.local/state'
  end
  local folder = ''
  for part in (state .. '/crescent'):gmatch '[^/]+' do
    folder = folder .. '/' .. part
    ffi.C.mkdir(folder, tonumber('700', 8))
  end
  return folder .. '/history'
end

-- read(prompt) -> line, 'end' or 'interrupted'
local function line_reader(host)
  -- Held for good: Lua would unload it at the end, under its own exit handlers.
  local LAZY, NODELETE = 0x1, 0x1000
  local held = ffi.C.dlopen('libedit.so.2', LAZY + NODELETE) ~= nil
  local ok, edit = pcall(ffi.load, 'libedit.so.2')
  ok = held and ok
  if not ok then
    print '(no line editing: apt-get install libedit2)'
    return function(text)
      io.write(text)
      io.flush()
      local line = io.read '*l'
      if host.interrupted() then return nil, 'interrupted' end
      if not line then return nil, 'end' end
      return line
    end, function() end
  end
  local history = history_path()
  edit.stifle_history(HISTORY_LINES)
  if history then edit.read_history(history) end
  local last
  local function read(text)
    local line = edit.readline(text)
    if line == nil then
      if host.interrupted() then return nil, 'interrupted' end
      return nil, 'end'
    end
    local copy = ffi.string(line)
    ffi.C.free(line)
    if host.interrupted() then return nil, 'interrupted' end
    return copy
  end
  local function remember(text)
    text = text:gsub('%s*\n%s*', ' ')
    if text == '' or text == last then return end
    last = text
    edit.add_history(text)
    -- Each time, so that a crash or a closed terminal loses nothing.
    if history then edit.write_history(history) end
  end
  return read, remember
end

-- ---- running ------------------------------------------------------------------------------------

local function compile(text)
  local expression = text:match '^%s*=(.*)$'
  local chunk, problem = loadstring('return ' .. (expression or text), '=prompt')
  if not chunk and not expression then chunk, problem = loadstring(text, '=prompt') end
  -- Machine code looks at no hooks: a loop typed by mistake could not be stopped.
  if chunk then jit.off(chunk, true) end
  return chunk, problem
end

local function is_incomplete(problem) return problem and problem:find "'<eof>'" ~= nil end

local function explain(err)
  if type(err) == 'table' and rawget(err, 'message') then err = err.message end
  local text = type(err) == 'table' and M.show(err) or tostring(err):gsub('^prompt:1: ', '')
  return 'error: ' .. text
end

local function packed(...) return { n = select('#', ...), ... } end

local function call(host, chunk)
  registry.cr_hold = false
  local result = packed(xpcall(chunk, function(err)
    if os.getenv 'CR_TRACEBACK' == '1' and type(err) == 'string' then return debug.traceback(err, 2) end
    return err
  end))
  registry.cr_hold = true
  if host.interrupted() then
    local loop = package.loaded['cr.loop']
    if type(loop) == 'table' then pcall(loop.cancel_all, 'interrupted') end
    host.clear_interrupt()
    if not result[1] then result[2] = 'interrupted' end
  end
  if result[1] then return true, result.n - 1, unpack(result, 2, result.n) end
  print(explain(result[2]))
  return false
end

local function show_call(host, chunk)
  -- Printing runs code too: a tensor's, or the script's own __tostring.
  local results = packed(call(host, chunk))
  if results[1] then
    call(host, function() print_results(results[2], unpack(results, 3, results.n)) end)
  end
end

local function bytes(n)
  if n >= 2 ^ 30 then return ('%.2f GiB'):format(n / 2 ^ 30) end
  if n >= 2 ^ 20 then return ('%.1f MiB'):format(n / 2 ^ 20) end
  return ('%.1f KiB'):format(n / 2 ^ 10)
end

local commands = {}

function commands.mem()
  local m = require 'cr'.memory()
  print(('tensors %s in %d blocks, kept for reuse %s, peak %s; Lua %s'):format(bytes(m.live), m.count,
    bytes(m.cached), bytes(m.peak), bytes(collectgarbage 'count' * 1024)))
end

ffi.cdef [[
typedef struct { long seconds, nanoseconds; } cr_repl_time;
int clock_gettime(int clock, cr_repl_time *out);
]]
local function now()
  local t = ffi.new 'cr_repl_time'
  ffi.C.clock_gettime(1, t)
  return tonumber(t.seconds) + tonumber(t.nanoseconds) * 1e-9
end

function commands.time(host, code)
  local chunk, problem = compile(code)
  if not chunk then return print(explain(problem)) end
  local begin = now()
  local results = packed(call(host, chunk))
  local seconds = now() - begin
  if not results[1] then return end
  call(host, function() print_results(results[2], unpack(results, 3, results.n)) end)
  print(seconds >= 1 and ('%.2f s'):format(seconds) or ('%.3f ms'):format(seconds * 1e3))
end

function commands.help(host, topic)
  call(host, function() print((require 'cr.help'.text(topic))) end)
end

-- What people type first at a prompt, unless they have given the word a meaning.
local plain = { help = ':help', quit = ':quit', exit = ':quit' }
local function as_command(text)
  if text:sub(1, 1) == '?' then return ':help ' .. text:sub(2) end
  return text:sub(1, 1) == ':' and text or (rawget(_G, text) == nil and plain[text]) or nil
end

local function command(host, line)
  local name, rest = line:match '^:(%a*)%s*(.*)$'
  if name == 'q' or name == 'quit' then return 'quit' end
  if commands[name] then
    commands[name](host, rest)
  else
    print('error: there is no command :' .. (name or '') .. '; there are :help, :time, :mem and :quit')
  end
end

--- Reads, runs and prints until Ctrl-D.
--- @param host table of lua/cr/program.lua
function M.run(host)
  local cr = require 'cr'
  local threads = cr.threads()
  print(('crescent %s  LuaJIT 2.1  cpu: %d thread%s    ? for help'):format(cr.version:match '^%d+%.%d+',
    threads, threads == 1 and '' or 's'))
  registry.cr_hold = true
  host.set_grace(GRACE_MS)
  local read, remember = line_reader(host)
  local text
  while true do
    io.flush()
    local line, why = read(text and '      ..> ' or 'crescent> ')
    if why == 'interrupted' then
      host.clear_interrupt()
      io.write '\n'
      text = nil
    elseif why == 'end' then
      io.write '\n'
      break
    else
      text = text and text .. '\n' .. line or line
      local trimmed = text:match '^%s*(.-)%s*$'
      if trimmed == '' then
        text = nil
      elseif as_command(trimmed) then
        remember(trimmed)
        text = nil
        if command(host, as_command(trimmed)) == 'quit' then break end
      else
        local chunk, problem = compile(text)
        if not is_incomplete(problem) or chunk then
          remember(trimmed)
          text = nil
          if chunk then
            show_call(host, chunk)
          else
            print(explain(problem))
          end
        end
      end
    end
  end
  registry.cr_hold = false
end

return M
