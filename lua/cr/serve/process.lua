--- Child processes of this program, with which the parent exchanges JSON objects over standard streams, one on each line.
--
--     local child = process.spawn('models.service.worker', { on_message = function(m) end, on_end = function(why) end })
--     child:send { op = 'run' }          child:kill()
--
-- and in the child, whose module returns a function:
--
--     return function(parent)  for message in parent.messages do parent.tell { done = true } end  end
--
-- A child ends with its parent, however the parent ends: its stdin closes, and Linux kills it at once
-- (PR_SET_PDEATHSIG). It runs in its own session, so that Ctrl-C in a terminal reaches only the parent. Lines on its
-- stderr, and lines on its stdout that are not objects, are copied to the parent's stderr with the child's name.

local ffi = require 'ffi'
local errors = require 'cr.errors'
local json = require 'cr.json'
local loop = require 'cr.loop'

local uv = loop.uv

ffi.cdef 'int prctl(int option, ...); int getppid(void); void _exit(int status);'
local PR_SET_PDEATHSIG, SIGKILL = 1, 9

local M = {}

--- @class Child
--- @field pid integer
--- @field last string? the last line that it wrote to stderr
--- @field process table the handle of luv
--- @field input table the pipe
--- @field gone boolean
local Child = {}
Child.__index = Child

-- Calls take(line) for each line from a pipe, and take(nil) at its end.
local function read_lines(pipe, take)
  local rest = ''
  pipe:read_start(function(_, data)
    if not data then
      if rest ~= '' then take(rest) end
      if not pipe:is_closing() then pipe:close() end
      return take(nil)
    end
    rest = rest .. data
    local from = 1
    while true do
      local at = rest:find('\n', from, true)
      if not at then break end
      take(rest:sub(from, at - 1))
      from = at + 1
    end
    rest = rest:sub(from)
  end)
end

-- An error in a callback is reported and ends nothing else.
local function guarded(fn, ...)
  local ok, problem = xpcall(fn, debug.traceback, ...)
  if not ok then io.stderr:write('crescent: ', tostring(problem), '\n') end
end

-- ---- the parent's side -----------------------------------------------------------------------------

local LAUNCH = "require 'cr.serve.process'.become(require '%s', %d)"

--- Starts a process.
--- @param module string the module to run, which returns a function (parent)
--- @param options table {name = the name before its lines on stderr, on_message = function(table), on_end =
---   function(sentence) called once when it has ended, env = {NAME = value}? further environment variables, on_line =
---   function(line)? instead of writing a line to stderr}
--- @return Child
function M.spawn(module, options)
  local input, output, problems = uv.new_pipe(false), uv.new_pipe(false), uv.new_pipe(false)
  local self = setmetatable({ input = input, name = options.name or module }, Child)
  local open, status = 3, nil
  local function ended()
    open = open - 1
    if open > 0 then return end
    for _, handle in ipairs { self.process, input } do
      if not handle:is_closing() then handle:close() end
    end
    self.gone = true
    guarded(options.on_end, status)
  end
  local env
  if options.env then
    env = {}
    for name, value in pairs(uv.os_environ()) do
      if options.env[name] == nil then env[#env + 1] = name .. '=' .. value end
    end
    for name, value in pairs(options.env) do env[#env + 1] = name .. '=' .. value end
  end
  local process, pid = uv.spawn(uv.exepath(), {
    args = { '-e', LAUNCH:format(module, uv.os_getpid()) }, stdio = { input, output, problems }, detached = true, env = env,
  }, function(code, signal)
    status = signal ~= 0 and ('was ended by signal %d'):format(signal) or ('ended with status %d'):format(code)
    ended()
  end)
  if not process then
    for _, pipe in ipairs { input, output, problems } do pipe:close() end
    errors.failf('%s: the process cannot be started: %s', self.name, tostring(pid))
  end
  self.process, self.pid = process, pid
  local function note(line)
    self.last = line:match '%S' and line or self.last
    if options.on_line then return guarded(options.on_line, line) end
    io.stderr:write(self.name, ': ', line, '\n')
  end
  read_lines(output, function(line)
    if not line then return ended() end
    local message = line:sub(1, 1) == '{' and json.decode(line)
    if message then guarded(options.on_message, message) else note(line) end
  end)
  read_lines(problems, function(line)
    if line then note(line) else ended() end
  end)
  return self
end

--- Sends an object. A child that has ended ignores it.
--- @param message table
function Child:send(message)
  if not self.gone and not self.input:is_closing() then self.input:write(json.encode(message) .. '\n') end
end

--- Kills the child.
function Child:kill()
  if not self.gone then self.process:kill 'sigkill' end
end

--- Closes its stdin, so that it ends after processing what it was sent.
function Child:close()
  if not self.gone and not self.input:is_closing() then self.input:close() end
end

-- ---- the child's side ------------------------------------------------------------------------------

--- Runs in a started process.
--- @param run fun(parent: {messages: (fun(): table?), tell: fun(message: table)}) parent.messages waits for the next
---   message and returns nil at the end
--- @param parent_pid integer
function M.become(run, parent_pid)
  ffi.C.prctl(PR_SET_PDEATHSIG, ffi.new('unsigned long', SIGKILL))
  if ffi.C.getppid() ~= parent_pid then ffi.C._exit(1) end -- the parent ended before the call of prctl
  local queue = { first = 1, last = 0 }
  local waiting
  local input = uv.new_pipe(false)
  input:open(0)
  read_lines(input, function(line)
    queue.last = queue.last + 1
    queue[queue.last] = line and json.decode(line) or false
    if waiting then waiting:close() end
  end)
  local function next_message()
    while queue.first > queue.last do
      waiting = loop.channel(0)
      waiting:get()
      waiting = nil
    end
    local message = queue[queue.first]
    if message == false then return nil end
    queue[queue.first], queue.first = nil, queue.first + 1
    return message
  end
  local function tell(message)
    local ok = io.stdout:write(json.encode(message), '\n') and io.stdout:flush()
    if not ok then ffi.C._exit(1) end -- the parent has ended
  end
  loop.run(function() run { messages = next_message, tell = tell } end)
end

return M
