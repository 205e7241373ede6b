--- A program on a pseudo-terminal: its output, and typed input.

local ffi = require 'ffi'
local uv = require 'cr.loop'.uv

local time_limit = require 'tests.support.time_limit'

local M = {}

ffi.cdef [[
int posix_openpt(int flags);
int grantpt(int fd);
int unlockpt(int fd);
char *ptsname(int fd);
int open(const char *path, int flags, ...);
long read(int fd, void *out, size_t bytes);
long write(int fd, const void *x, size_t bytes);
int close(int fd);
typedef struct { int fd; short events, revents; } cr_test_pollfd;
int poll(cr_test_pollfd *fds, unsigned long n, int timeout_ms);
]]

local RDWR, NOCTTY, POLLIN = 0x2, 0x100, 1

local Terminal = {}
Terminal.__index = Terminal

--- Starts a program.
--- @param program string
--- @param env table<string, string>? overrides of our own environment
--- @return table terminal
function M.start(program, env)
  local variables = {}
  for name, value in pairs(uv.os_environ()) do
    if not env or env[name] == nil then variables[#variables + 1] = name .. '=' .. value end
  end
  for name, value in pairs(env or {}) do variables[#variables + 1] = name .. '=' .. value end
  local master = ffi.C.posix_openpt(RDWR + NOCTTY)
  if master < 0 or ffi.C.grantpt(master) ~= 0 or ffi.C.unlockpt(master) ~= 0 then error 'no terminal can be made' end
  local slave = ffi.C.open(ffi.C.ptsname(master), RDWR + NOCTTY)
  local self = setmetatable({ master = master, slave = slave, text = '' }, Terminal)
  self.process = assert(uv.spawn(program, { stdio = { slave, slave, slave }, env = variables, args = {} }, function(code)
    self.code = code
  end))
  return self
end

--- Reads until `wanted` has arrived, as long as the program lives.
--- @param wanted string|string[] one text or another
--- @return boolean
function Terminal:wait(wanted)
  local limit = uv.hrtime() + time_limit * 1e9
  local buffer, fds = ffi.new 'char[4096]', ffi.new('cr_test_pollfd[1]', { { self.master, POLLIN, 0 } })
  local function come()
    for _, text in ipairs(type(wanted) == 'table' and wanted or { wanted }) do
      if self.text:find(text, 1, true) then return true end
    end
  end
  while not come() do
    if uv.hrtime() > limit then return false end
    uv.run 'nowait' -- to notice its end
    if ffi.C.poll(fds, 1, 50) <= 0 then
      if self.code then return false end
    else
      local n = tonumber(ffi.C.read(self.master, buffer, 4096))
      if n <= 0 then return false end
      self.text = self.text .. ffi.string(buffer, n)
    end
  end
  return true
end

-- The prompt switches the terminal's mode with each line. Input that arrives earlier is processed by the terminal's own editing, which
-- swallows a Ctrl-D.
function Terminal:ready() return self:wait 'crescent> ' end

--- Types a line once the prompt is shown, and discards earlier output.
function Terminal:line(text)
  self:ready()
  self.text = ''
  text = text .. '\n'
  ffi.C.write(self.master, text, #text)
end

--- Ends the prompt by Ctrl-D, if it has not ended.
--- @return integer exit status
function Terminal:close()
  if self:ready() then ffi.C.write(self.master, '\4', 1) end
  if not self:wait '\0' and not self.code then self.process:kill 'sigkill' end -- its remaining output must not block it
  while not self.code do uv.run 'once' end
  self.process:close()
  uv.run 'nowait'
  ffi.C.close(self.slave)
  ffi.C.close(self.master)
  return self.code
end

return M
