--- A WebSocket (RFC 6455): messages in both directions over the connection of an upgrade request.
--
-- A task reads from the connection, so that pings are answered and a disconnect is noticed even while nobody calls
-- read(). It buffers a few messages; after that the client has to wait. A silent client is pinged, and closed if it
-- does not answer.

local arguments = require 'cr.arguments'
local channel = require 'cr.loop.channel'
local clock = require 'cr.clock'
local ffi = require 'ffi'
local library = require 'cr.serve.library'
local problem = require 'cr.serve.problem'
local tasks = require 'cr.loop.tasks'

local lib = library.lib

local M = {}

local MESSAGES = 4  -- messages buffered for read()
local GOODBYE = 2   -- seconds in which the client may answer a close
local KINDS = { text = 'CR_WS_TEXT', binary = 'CR_WS_BINARY' }

--- @class WebSocket
--- @field closed boolean whether nothing can be sent any longer
--- @field code integer? the status with which the client closed it, nil if it gave none
--- @field reason string? the reason that the client gave
--- @field request Request
--- @field connection Connection
--- @field messages Channel
--- @field pending table
--- @field handle ffi.cdata*
local WebSocket = {}
WebSocket.__index = WebSocket

local function output(self) return library.output(lib.cr_ws_output, self.handle) end

-- Returns the bytes of a framed message.
local function framed(self, kind, data)
  if self.closed then error(problem.GONE, 0) end
  library.check(lib.cr_ws_send(self.handle, kind, data, #data))
  return output(self)
end

local function post(self, kind, data) self.connection:post(framed(self, kind, data)) end

local message = ffi.new 'cr_ws_message'

-- Returns the next message: its kind in C, its bytes, the status of a close. Returns nil if the connection ends or
-- does not answer a ping.
local function next_message(self)
  local connection, asked = self.connection, false
  while true do
    local text, at = connection:peek()
    local kind = lib.cr_ws_read(self.handle, ffi.cast('const char *', text) + at, #text - at, message)
    connection:advance(message.used)
    local data, status = kind > 0 and ffi.string(message.data, message.bytes), message.status
    local answers = output(self)
    if answers ~= '' then connection:write(answers) end
    if kind > 0 then return kind, data, status end
    if kind < 0 then return nil end
    if connection:peek() == '' then
      local there, why = connection:await_bytes(clock() + connection.limits.idle / 2)
      if not there and (why == 'ended' or asked or self.closed) then return nil end
      asked = not there
      if asked then post(self, lib.CR_WS_PING, '') end
    end
  end
end

-- The body of the reading task.
local function pump(self)
  while true do
    local kind, data, status = next_message(self)
    if not kind then return end
    if kind == lib.CR_WS_CLOSE then
      if status > 0 then self.code, self.reason = status, data end
      return
    end
    self.messages:put { data = data, kind = kind == lib.CR_WS_TEXT and 'text' or 'binary' }
  end
end

-- Frees the handle when neither the reading task nor the user of the WebSocket needs it any longer.
local function release(self)
  self.users = self.users - 1
  if self.users == 0 then library.free('cr_ws', self.handle) end
end

local function run(self)
  pcall(pump, self)
  self.closed = true
  self.messages:close()
  release(self)
end

--- Returns the next message, or nil once the WebSocket is closed.
--- @return string? data
--- @return 'text'|'binary'|nil kind
function WebSocket:read()
  local one = self.messages:get()
  if one then return one.data, one.kind end
end

--- Sends a message and waits until the system has accepted it. Raises an error if the WebSocket is closed.
--- @param data string
--- @param kind 'text'|'binary'|nil 'binary'; text must be UTF-8
function WebSocket:write(data, kind) self.connection:write(framed(self, lib[KINDS[kind or 'binary']], data)) end

--- Sends a message without waiting, unless too many bytes are already queued for the client.
--- @return boolean whether it was sent; false also if the WebSocket is closed
function WebSocket:try_write(data, kind)
  if self.closed or self.connection:waiting() > self.pending then return false end
  post(self, lib[KINDS[kind or 'binary']], data)
  return true
end

--- Closes the WebSocket. The client is notified and gets a moment to answer.
--- @param code integer? 1000
--- @param reason string? up to 123 bytes
function WebSocket:close(code, reason)
  if self.ending then return end
  self.ending = true
  if not self.closed and lib.cr_ws_close(self.handle, code or 1000, reason or '', #(reason or '')) == 0 then
    self.closed = true
    local deadline = clock() + GOODBYE
    self.connection:hurry(deadline)
    pcall(self.connection.write, self.connection, output(self))
    while self.messages:get() and clock() < deadline do end
  end
  self.closed = true
  self.messages:close() -- the reading task may be waiting to put another message
  self.connection:finish()
  release(self)
end

local function refuse(status, why)
  local what = problem.new(status, 'websocket: ' .. why)
  what.headers = { Upgrade = 'websocket', ['Sec-WebSocket-Version'] = '13' }
  error(what, 0)
end

local function has_word(text, word)
  for one in (text or ''):lower():gmatch '[^%s,]+' do
    if one == word then return true end
  end
  return false
end

--- Answers a request for a WebSocket. Raises a Problem if the request does not ask for one.
--- @param response Response
--- @param options table? {max = largest received message in bytes (2^20), pending = bytes that try_write may queue (2^20)}
--- @return WebSocket
function M.accept(response, options)
  options = options or {}
  local request, connection = response.request, response.connection
  local asked = request.headers
  if not has_word(asked.upgrade, 'websocket') or not has_word(asked.connection, 'upgrade') then
    refuse(426, 'the request does not ask for a WebSocket')
  end
  if asked['sec-websocket-version'] ~= '13' then refuse(426, 'this server supports WebSocket version 13') end
  local key = asked['sec-websocket-key'] or ''
  if request.method ~= 'GET' or request.length ~= 0 or #key ~= 24 or key:find '[^%w+/=]' then
    refuse(400, 'the request is not a handshake of RFC 6455')
  end
  request:text(0)
  local accept = ffi.new 'char[29]'
  library.check(lib.cr_ws_accept(key, accept))
  local self = setmetatable({
    connection = connection, messages = channel.new(MESSAGES), pending = options.pending or 2 ^ 20, closed = false,
    handle = library.new('cr_ws', options.max or 2 ^ 20), users = 2,
  }, WebSocket)
  response.status, response.websocket = 101, self
  connection:write(('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' ..
    'Sec-WebSocket-Accept: %s\r\n\r\n'):format(ffi.string(accept)))
  connection:on_close(function() self.closed = true end)
  connection.goodbye = function() self:close(1001) end
  tasks.M.go(run, self)
  return self
end

local maybe, kind = arguments.maybe, arguments.maybe(arguments.choice('kind', { 'text', 'binary' }))
arguments.methods(WebSocket, 'websocket', {
  -- A for loop passes the previous message to `read`.
  read = { arguments.any }, write = { arguments.string, kind }, try_write = { arguments.string, kind },
  close = { maybe(arguments.natural), maybe(arguments.string) },
})

return M
