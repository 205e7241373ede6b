--- A client's connection: bytes in and out, by tasks, with limits on the time that either takes.
--
-- Memory is bounded: where nobody takes what came in, reading stops, and who writes waits until the system took it.
-- Whatever waits is woken when the connection ends: with false where the other side said that it ended, with the error
-- GONE where it broke, was too slow to take an answer, or was closed here.

local ffi = require 'ffi'
local clock = require 'cr.clock'
local library = require 'cr.serve.library'
local problem = require 'cr.serve.problem'
local tasks = require 'cr.loop.tasks'

local lib, wake, suspend = library.lib, tasks.wake, tasks.suspend
local GONE = problem.GONE

local M = {}

local HELD = 2 ^ 17       -- bytes that may wait to be read
local RECORD = 2 ^ 14     -- bytes of a record of TLS
local LINGER = 5          -- seconds in which a client may still send what nobody reads, so that it sees the answer

--- @class Connection
--- @field peer string its address
--- @field secure boolean by TLS
--- @field goodbye function? says to the client, as a task, that the server closes
--- @field idle number? since when it waits for the next request, or for its end
--- @field ended boolean the client sends no more
--- @field broken boolean nothing can be read or written any more
--- @field tcp any the socket of luv
--- @field limits table
--- @field received function that luv calls with what came
--- @field writing integer bytes that are still to be sent
--- @field forget function
local Connection = {}
Connection.__index = Connection

--- @param tcp any the socket of luv, accepted
--- @param server table {limits = {header, idle}, keys = of TLS or nil, report = function told of errors}
--- @param forget function called with it once, when it is closed
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

-- Calls what was to be called when the client goes.
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

-- Takes what came by TLS; whether the other side said that it ends. Raises what is wrong.
local function decrypt(self, data)
  library.check(lib.cr_tls_receive(self.tls, data, #data))
  local n
  repeat
    n = lib.cr_tls_read(self.tls, plain, RECORD)
    if n > 0 then put(self, ffi.string(plain, n)) end
  until n <= 0
  -- (its own part of the handshake, or what it says to a client that it does not understand)
  local text = library.output(lib.cr_tls_output, self.tls)
  if text ~= '' then self:send(text) end
  return n == lib.CR_ECLOSED or library.check(n) < 0
end

-- luv's callback.
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

--- Waits for bytes until a moment of the clock.
--- @param deadline number
--- @return boolean there are some
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

--- No wait for bytes lasts longer than until this moment of the clock, from now on.
function Connection:hurry(moment)
  self.last_moment = moment
  if self.reader then self.read_deadline = math.min(self.read_deadline, moment) end
end

--- The first bytes of those that wait: a string, '' where there are none, and how many of it were read already.
--- @return string, integer
function Connection:peek() return self.inbox[self.first] or '', self.at end

--- The first n bytes of what waits were read.
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

--- The next event of the request that is read. Raises a Problem where it cannot be understood.
--- @param deadline number
--- @return 'head'|'body'|'end'|nil
--- @return ... of a head the cr_http_event, of a body its bytes, of nil 'ended' or 'late'
function Connection:event(deadline)
  while true do
    if not self.parser then error(GONE, 0) end
    -- (after a head or a piece, the end may come without further bytes)
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

--- Calls fn, which must not wait, when the client goes, or is found to have gone.
function Connection:on_close(fn) self.closers[#self.closers + 1] = fn end

--- What was to be called is forgotten.
function Connection:forget_closers() self.closers = {} end

-- ---- writing ------------------------------------------------------------------------------------

-- Writes what the system does not take at once; calls done(whether it took it) then.
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

--- Writes bytes of the protocol below; does not wait unless `done` is called later.
--- @param done function? called with whether the system took them
--- @return boolean it took them at once
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

--- Writes, and waits until the system took all of it.
--- @param text string
function Connection:write(text)
  if self.broken then error(GONE, 0) end
  local waiter = { what = 'a client that reads' }
  if self:send(encrypted(self, text), function(ok) wake(waiter, ok, not ok and GONE or nil) end) then return end
  suspend(waiter)
end

--- Writes without waiting.
--- @param text string
function Connection:post(text)
  if not self.broken then self:send(encrypted(self, text)) end
end

--- How many bytes wait until the client takes them.
--- @return integer
function Connection:waiting() return self.broken and 0 or self.tcp:get_write_queue_size() end

-- ---- the end ------------------------------------------------------------------------------------

--- Looks whether what is waited for is late; called now and then. It is late when a second look finds it so: after a pause of
--- the whole process, what came meanwhile is received between two looks.
--- @param now number of the clock
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

--- Nothing more can be read or written: who waits gets GONE.
function Connection:break_off()
  if self.broken then return end
  self.broken = true
  if self.reader then wake(self.reader, false, GONE) end
  tell_closers(self)
end

--- Closes it at once. Twice is fine.
function Connection:close()
  if self.tcp:is_closing() then return end
  self:break_off()
  self.tcp:close()
  library.free('cr_http', self.parser)
  if self.tls then library.free('cr_tls', self.tls) end
  self.parser, self.tls, self.inbox = nil, nil, {}
  self.forget(self)
end

--- Closes it so that the client sees what was written: bytes that it still sends are thrown away for a moment, since
--- the system would answer them by dropping the connection, and the answer with it.
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
