--- The connection of a client: tasks read and write bytes, with time limits for both.
--
-- Memory is bounded: reading stops while received bytes are not consumed, and a write waits until the system has
-- accepted the bytes. When the connection ends, all waiting tasks are woken: with false if the other side has closed
-- its direction, with the error GONE if the connection broke, was too slow to take an answer, or was closed here.

local ffi = require 'ffi'
local clock = require 'cr.clock'
local library = require 'cr.serve.library'
local problem = require 'cr.serve.problem'
local tasks = require 'cr.loop.tasks'

local lib, wake, suspend = library.lib, tasks.wake, tasks.suspend
local GONE = problem.GONE

local M = {}

local HELD = 2 ^ 17       -- bytes that may be received and not yet read
local RECORD = 2 ^ 14     -- bytes of a TLS record
local LINGER = 5          -- seconds in which further bytes of a client are discarded, so that it sees the answer

--- @class Connection
--- @field peer string its address
--- @field secure boolean whether it uses TLS
--- @field goodbye function? runs as a task and tells the client that the server closes
--- @field idle number? the time since when it waits for the next request, or for its end
--- @field ended boolean the client has finished sending
--- @field broken boolean nothing can be read or written any longer
--- @field tcp any the socket of luv
--- @field limits table
--- @field received function the callback of luv for received bytes
--- @field writing integer number of writes in progress
--- @field forget function
local Connection = {}
Connection.__index = Connection

--- @param tcp any the socket of luv, accepted
--- @param server table {limits = {header, idle}, keys = TLS keys or nil, report = function called with errors}
--- @param forget function called once with the connection when it is closed
--- @return Connection
function M.new(tcp, server, forget)
  local address = tcp:getpeername()
  local self = setmetatable({
    tcp = tcp, parser = library.new('cr_http', server.limits.header), tls = server.keys and library.new('cr_tls', server.keys),
    limits = server.limits, report = server.report, forget = forget, peer = address and address.ip or '', secure = server.keys ~= nil,
    inbox = {}, first = 1, last = 0, at = 0, held = 0, writing = 0, ended = false, broken = false, closers = {},
  }, Connection)
  tcp:nodelay(true)
  self.received = function(err, data) self:receive(err, data) end
  tcp:read_start(self.received)
  return self
end

-- ---- reading ------------------------------------------------------------------------------------

-- Calls the functions that were registered for the end of the client.
local function tell_closers(self)
  local closers = self.closers
  self.closers = {}
  for _, fn in ipairs(closers) do
    local ok, err = pcall(fn)
    if not ok then self.report('on_close: ' .. tostring(err)) end
  end
end

local function put(self, data)
  self.last = self.last + 1
  self.inbox[self.last] = data
  self.held = self.held + #data
  if self.held > HELD and not self.stopped then
    self.stopped = true
    self.tcp:read_stop()
  end
  if self.reader then wake(self.reader, true, true) end
end

local plain = ffi.new('char[?]', RECORD)

-- Decrypts received TLS bytes and returns whether the other side has ended the connection. Raises TLS errors.
local function decrypt(self, data)
  library.check(lib.cr_tls_receive(self.tls, data, #data))
  local n
  repeat
    n = lib.cr_tls_read(self.tls, plain, RECORD)
    if n > 0 then put(self, ffi.string(plain, n)) end
  until n <= 0
  -- Output of TLS itself: a part of the handshake, or an alert.
  local text = library.output(lib.cr_tls_output, self.tls)
  if text ~= '' then self:send(text) end
  return n == lib.CR_ECLOSED or library.check(n) < 0
end

-- The callback of luv for received bytes.
function Connection:receive(err, data)
  if self.lingering then
    if not data then self:close() end
    return
  end
  if data and not self.tls then return put(self, data) end
  local ok, ended = true, not data
  if data then ok, ended = pcall(decrypt, self, data) end
  if err or not ok then
    self:break_off()
  elseif ended then
    self.ended = true
    if self.reader then wake(self.reader, true, true) end
    tell_closers(self)
  end
end

local function leave_reader(waiter) waiter.connection.reader = nil end

--- Waits for bytes until a deadline of cr.clock.
--- @param deadline number
--- @return boolean whether there are bytes
--- @return 'ended'|'late'|nil why not
function Connection:await_bytes(deadline)
  deadline = math.min(deadline, self.last_moment or deadline)
  while self.first > self.last do
    if self.broken then error(GONE, 0) end
    if self.ended then return false, 'ended' end
    if self.overdue == deadline and clock() >= deadline then return false, 'late' end
    local waiter = { what = "a client's bytes", connection = self, leave = leave_reader }
    self.reader, self.read_deadline = waiter, deadline
    suspend(waiter)
  end
  return true
end

--- Sets a deadline for all waits for bytes from now on.
function Connection:hurry(moment)
  self.last_moment = moment
  if self.reader then self.read_deadline = math.min(self.read_deadline, moment) end
end

--- Returns the first received piece of bytes ('' if there is none), and how many of its bytes were read already.
--- @return string, integer
function Connection:peek() return self.inbox[self.first] or '', self.at end

--- Marks the next n received bytes as read.
function Connection:advance(n)
  self.at, self.held = self.at + n, self.held - n
  local text = self.inbox[self.first]
  if text and self.at >= #text then
    self.inbox[self.first] = nil
    self.first, self.at = self.first + 1, 0
    if self.first > self.last then self.first, self.last = 1, 0 end
  end
  if self.stopped and self.held <= HELD / 2 and not self.broken then
    self.stopped = false
    self.tcp:read_start(self.received)
  end
end

local event = ffi.new 'cr_http_event'

--- Returns the next event of the current request. Raises a Problem if the request is malformed.
--- @param deadline number
--- @return 'head'|'body'|'end'|nil
--- @return ... for a head the cr_http_event, for a body its bytes, for nil 'ended' or 'late'
function Connection:event(deadline)
  while true do
    if not self.parser then error(GONE, 0) end
    -- After a head or a piece, the end may follow without further bytes.
    if self:peek() == '' and not self.owed then
      local ok, why = self:await_bytes(deadline)
      if not ok then return nil, why end
    end
    self.owed = false
    local text, at = self:peek()
    local kind = lib.cr_http_read(self.parser, ffi.cast('const char *', text) + at, #text - at, event)
    if kind < 0 then
      self.unsound = true
      problem.raise(event.status, library.message())
    end
    if kind == lib.CR_HTTP_BODY then
      self.owed = true
      self:advance(event.used)
      return 'body', text:sub(at + event.first + 1, at + event.first + event.bytes)
    end
    self:advance(event.used)
    if kind == lib.CR_HTTP_HEAD then
      self.owed = true
      return 'head', event
    end
    if kind == lib.CR_HTTP_END then return 'end' end
  end
end

--- Registers fn, which must not wait, to be called when the client has disconnected.
function Connection:on_close(fn) self.closers[#self.closers + 1] = fn end

--- Removes all registered functions.
function Connection:forget_closers() self.closers = {} end

-- ---- writing ------------------------------------------------------------------------------------

-- Queues bytes that the system does not accept at once, and calls done(whether it accepted them) later.
local function queue(self, text, done)
  if self.writing == 0 then self.write_deadline, self.queued = clock() + self.limits.idle, nil end
  self.writing = self.writing + 1
  local ok = self.tcp:write(text, function(err)
    self.writing = self.writing - 1
    done(not err and not self.broken)
  end)
  if not ok then
    self.writing = self.writing - 1
    self:break_off()
    done(false)
  end
end

local function nothing() end

--- Writes raw bytes without waiting.
--- @param done function? called later with whether the system accepted them
--- @return boolean whether the system accepted them at once; then `done` is not called
function Connection:send(text, done)
  local n = self.tcp:try_write(text) or 0
  if n == #text then return true end
  queue(self, n > 0 and text:sub(n + 1) or text, done or nothing)
  return false
end

local function encrypted(self, text)
  if not self.tls then return text end
  if lib.cr_tls_write(self.tls, text, #text) < 0 then
    self:break_off()
    error(GONE, 0)
  end
  return library.output(lib.cr_tls_output, self.tls)
end

--- Writes bytes and waits until the system has accepted all of them.
--- @param text string
function Connection:write(text)
  if self.broken then error(GONE, 0) end
  local waiter = { what = 'a client that reads' }
  if self:send(encrypted(self, text), function(ok) wake(waiter, ok, not ok and GONE or nil) end) then return end
  suspend(waiter)
end

--- Writes bytes without waiting.
--- @param text string
function Connection:post(text)
  if not self.broken then self:send(encrypted(self, text)) end
end

--- Returns how many bytes wait for the client to read them.
--- @return integer
function Connection:waiting() return self.broken and 0 or self.tcp:get_write_queue_size() end

-- ---- the end ------------------------------------------------------------------------------------

--- Checks deadlines; it is called periodically. A wait counts as late only when a second check finds it late, because
--- after a pause of the whole process the bytes that arrived meanwhile are received between two checks.
--- @param now number the time of cr.clock
function Connection:look(now)
  if self.lingering then
    if now > self.lingering then self:close() end
    return
  end
  if self.reader and now >= self.read_deadline then
    if self.overdue == self.read_deadline then wake(self.reader, true, false) end
    self.overdue = self.read_deadline
  end
  if self.writing > 0 then
    local queued = self.tcp:get_write_queue_size()
    if queued ~= self.queued then
      self.queued, self.write_deadline, self.stuck = queued, now + self.limits.idle, false
    elseif now > self.write_deadline then
      if self.stuck then return self:close() end
      self.stuck = true
    end
  end
end

--- Ends all reading and writing: waiting tasks get the error GONE.
function Connection:break_off()
  if self.broken then return end
  self.broken = true
  if self.reader then wake(self.reader, false, GONE) end
  tell_closers(self)
end

--- Closes the connection at once. Calling it twice is allowed.
function Connection:close()
  if self.tcp:is_closing() then return end
  self:break_off()
  self.tcp:close()
  library.free('cr_http', self.parser)
  if self.tls then library.free('cr_tls', self.tls) end
  self.parser, self.tls, self.inbox = nil, nil, {}
  self.forget(self)
end

--- Closes the connection so that the client can read the answer. For a moment further bytes of the client are
--- discarded, since otherwise the system would reset the connection and drop the answer.
function Connection:finish()
  if self.lingering then return end
  if self.broken or self.ended then return self:close() end
  if self.tls then
    lib.cr_tls_end(self.tls)
    self:send(library.output(lib.cr_tls_output, self.tls))
  end
  self.idle, self.lingering = clock(), clock() + LINGER
  self.inbox, self.first, self.last, self.held = {}, 1, 0, 0
  if self.stopped then self.tcp:read_start(self.received) end
  self.tcp:shutdown()
end

return M
