--- Runs the program under test as a child process: exit status, output, and resources.

local cr = require 'cr'
local ffi = require 'ffi'
local lfs = require 'lfs'
local uv = require 'cr.loop'.uv

local time_limit = require 'tests.support.time_limit'

local M = {}

ffi.cdef [[
typedef struct { long seconds, microseconds, system_seconds, system_microseconds, rest[14]; } cr_test_usage;
int getrusage(int who, cr_test_usage *out);
]]
local CHILDREN = -1

-- CPU seconds of all child processes that have ended.
local function spent()
  local u = ffi.new 'cr_test_usage'
  ffi.C.getrusage(CHILDREN, u)
  return tonumber(u.seconds + u.system_seconds) + 1e-6 * tonumber(u.microseconds + u.system_microseconds)
end

-- The same for a running process.
local function spent_by(pid)
  local file = io.open('/proc/' .. pid .. '/stat')
  if not file then return 0 end
  local user, system = file:read '*a':match('%) %S' .. (' %-?%d+'):rep(10) .. ' (%d+) (%d+)')
  file:close()
  return user and (user + system) / 100 or 0
end

-- The program under test is the one that runs this file, so that a sanitized build tests itself.
local self = lfs.symlinkattributes('/proc/self/exe', 'target') or ''
M.program = self:match '/crescent$' and self or cr.root .. '/build/crescent'

local function collect(pipe, into)
  pipe:read_start(function(_, data)
    if data then
      into[#into + 1] = data
    else
      into.ended = true
    end
  end)
end

--- @param args string[]
--- @param options table? {stdin = text, env = {NAME = value}, signal = 'sigint', after = send the signal once this text is on
--- stdout, delay = seconds before that, when = function that says whether to send it, program =}
--- @return table {code=, signal=, out=, err=, lines= of err, seconds= from the start, processor= CPU seconds from the signal or
--- the start, valid if no other child ran meanwhile}
function M.run(args, options)
  options = options or {}
  local stdin, out, err = uv.new_pipe(false), uv.new_pipe(false), uv.new_pipe(false)
  local result, out_parts, err_parts = {}, {}, {}
  local env
  if options.env then
    env = {}
    for name, value in pairs(uv.os_environ()) do
      if options.env[name] == nil then env[#env + 1] = name .. '=' .. value end
    end
    for name, value in pairs(options.env) do env[#env + 1] = name .. '=' .. value end
  end
  local begin, before = uv.hrtime(), spent()
  local process, pid = uv.spawn(options.program or M.program, {
    args = args, stdio = { stdin, out, err }, env = env, cwd = options.cwd,
  }, function(code, signal)
    -- libuv reports code 0 for a killed child, which would look like success.
    result.code, result.signal = signal ~= 0 and 128 + signal or code, signal
  end)
  if not process then error('cannot run ' .. M.program .. ': ' .. tostring(pid)) end
  collect(out, out_parts)
  collect(err, err_parts)
  if options.stdin then stdin:write(options.stdin) end
  if not options.keep_stdin then stdin:shutdown() end
  local limit = begin + time_limit * 1e9
  local sent = not options.signal
  local function due()
    if options.when then return options.when() end
    return table.concat(out_parts):find(options.after, 1, true)
  end
  while not (result.code and out_parts.ended and err_parts.ended) do
    if not sent and due() then
      cr.sleep(options.delay or 0.2)
      before = before + spent_by(pid)
      process:kill(options.signal)
      sent = true
    end
    if uv.hrtime() > limit and not result.timed_out then
      result.timed_out = true
      process:kill 'sigkill'
    end
    cr.sleep(0.005)
  end
  result.seconds, result.processor = (uv.hrtime() - begin) * 1e-9, spent() - before
  for _, handle in ipairs { process, stdin, out, err } do
    if not handle:is_closing() then handle:close() end
  end
  result.out, result.err = table.concat(out_parts), table.concat(err_parts)
  local _, lines = result.err:gsub('\n', '')
  result.lines = lines
  return result
end

--- Writes a temporary file and returns its path; M.clean removes the folder `M.folder`.
M.folder = os.tmpname()
os.remove(M.folder)
assert(lfs.mkdir(M.folder))
function M.file(name, text)
  local path = M.folder .. '/' .. name
  local file = assert(io.open(path, 'wb'))
  file:write(text)
  file:close()
  return path
end

function M.exists(path) return lfs.symlinkattributes(path, 'mode') ~= nil end

function M.clean() os.execute("rm -rf '" .. M.folder .. "'") end

return M
