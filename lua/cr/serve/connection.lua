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

local HELD = 2 ^ 18       -- bytes that may wait to be read
local LINGER = 5          -- seconds in which a client may still send what nobody reads, so that it sees the answer

--- @class Connection
--- @field peer string its address
--- @field idle number? since when it waits for the next request
--- @field ended boolean the client sends no more
--- @field broken boolean nothing can be read or written any more
local Connection = {}
Connection.__index = Connection

--- @param tcp userdata luv's, accepted
--- @param limits table {header, idle} of http.listen
--- @param forget function called with it once, when it is closed
--- @return Connection
function M.new(tcp, limits, forget)
  local parser = ffi.new 'cr_http *[1]'
  library.check(lib.cr_http_new(parser, limits.header))
  local address = tcp:getpeername()
  local self = setmetatable({
    tcp = tcp, parser = ffi.gc(parser[0], lib.cr_http_free), limits = limits, forget = forget, peer = address and address.ip or '',
    inbox = {}, first = 1, last = 0, at = 0, held = 0, writing = 0, ended = false, broken = false, closers = {},
  }, Connection)
  tcp:nodelay(true)
  tcp:read_start(function(err, data) self:receive(err, data) end)
  return self
end

-- ---- reading ------------------------------------------------------------------------------------

-- Calls what was to be called when the client goes.
local function tell_closers(self)
  local closers = self.closers
  self.closers = {}
  for _, fn in ipairs(closers) do fn() end
end

-- luv's callback.
function Connection:receive(err, data)
  if self.lingering then
    if not data then self:close() end
  elseif data then
    self.last = self.last + 1
    self.inbox[self.last] = data
    self.held = self.held + #data
    if self.held > HELD and not self.stopped then
      self.stopped = true
      self.tcp:read_stop()
    end
    if self.reader then wake(self.reader, true, true) end
  elseif err then
    self:break_off()
  else
    self.ended = true
    if self.reader then wake(self.reader, true, true) end
    tell_closers(self)
  end
end

local function leave_reader(waiter) waiter.connection.reader = nil end

--- Waits for bytes until a moment of the clock; then there is `self:text()`.
--- @param deadline number
--- @return boolean there are some
--- @return 'ended'|'late'|nil why not
function Connection:await_bytes(deadline)
  while self.first > self.last do
    if self.broken then error(GONE, 0) end
    if self.ended then return false, 'ended' end
    if clock() >= deadline then return false, 'late' end
    local waiter = { what = "a client's bytes", connection = self, leave = leave_reader }
    self.reader, self.read_deadline = waiter, deadline
    suspend(waiter)
  end
  return true
end

-- The first `n` bytes of what waits have been read.
local function advance(self, n)
  self.at, self.held = self.at + n, self.held - n
  local text = self.inbox[self.first]
  if text and self.at >= #text then
    self.inbox[self.first] = nil
    self.first, self.at = self.first + 1, 0
    if self.first > self.last then self.first, self.last = 1, 0 end
  end
  if self.stopped and self.held <= HELD / 2 and not self.broken then
    self.stopped = false
    self.tcp:read_start(function(err, data) self:receive(err, data) end)
  end
end

--- All bytes that wait, which are taken.
--- @return string
function Connection:take()
  local text = self.inbox[self.first]
  if not text then return '' end
  text = text:sub(self.at + 1)
  advance(self, #text)
  return text
end

local event = ffi.new 'cr_http_event'

--- The next event of the request that is read. Raises a Problem where it cannot be understood.
--- @param deadline number
--- @return 'head'|'body'|'end'|nil
--- @return ... of a head the cr_http_event, of a body its bytes, of nil 'ended' or 'late'
function Connection:event(deadline)
  while true do
    local text = self.inbox[self.first] or ''
    if text == '' and not self.owed then
      local ok, why = self:await_bytes(deadline)
      if not ok then return nil, why end
      text = self.inbox[self.first]
    end
    -- (after a head or a piece, the end may come without further bytes)
    self.owed = false
    local kind = lib.cr_http_read(self.parser, ffi.cast('const char *', text) + self.at, #text - self.at, event)
    if kind < 0 then
      self.unsound = true
      problem.raise(event.status, library.message())
    end
    if kind == lib.CR_HTTP_BODY then
      self.owed = true
      local from = self.at + event.first
      local piece = from == 0 and event.bytes == #text and text or text:sub(from + 1, from + event.bytes)
      advance(self, event.used)
      return 'body', piece
    end
    advance(self, event.used)
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

-- Writes what the system does not take at once; waits for it unless `done` is to be called then.
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

--- Writes, and waits until the system took all of it.
--- @param text string
function Connection:write(text)
  if self.broken then error(GONE, 0) end
  local n = self.tcp:try_write(text) or 0
  if n == #text then return end
  local waiter = { what = 'a client that reads' }
  queue(self, n > 0 and text:sub(n + 1) or text, function(ok) wake(waiter, ok, not ok and GONE or nil) end)
  suspend(waiter)
end

-- ---- the end ------------------------------------------------------------------------------------

--- Looks whether what is waited for is late; called now and then.
--- @param now number of the clock
function Connection:look(now)
  if self.lingering then
    if now > self.lingering then self:close() end
    return
  end
  if self.reader and now >= self.read_deadline then wake(self.reader, true, false) end
  if self.writing > 0 then
    local queued = self.tcp:get_write_queue_size()
    if queued ~= self.queued then
      self.queued, self.write_deadline = queued, now + self.limits.idle
    elseif now > self.write_deadline then
      self:close()
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
  lib.cr_http_free(ffi.gc(self.parser, nil))
  self.parser, self.inbox = nil, {}
  self.forget(self)
end

--- Closes it so that the client sees what was written: bytes that it still sends are thrown away for a moment, since
--- the system would answer them by dropping the connection, and the answer with it.
function Connection:finish()
  if self.broken or self.ended then return self:close() end
  self.lingering = clock() + LINGER
  self.inbox, self.first, self.last, self.held = {}, 1, 0, 0
  if self.stopped then self.tcp:read_start(function(err, data) self:receive(err, data) end) end
  self.tcp:shutdown()
end

return M
