--- Servers and clients for the tests of lua/cr/serve, on the same event loop.
--
-- The clients are sockets, so that any bytes can be sent, at once or in pieces. WebSocket frames are composed here,
-- not by the library with which the server reads them.

local t = require 'tests.support.tap'
local bit = require 'bit'
local cr = require 'cr'
local uv = require 'cr.loop'.uv

local M = { HOST = 'Host: x\r\n' }

local built, http = pcall(function()
  local http = require 'cr.serve.http'
  cr.run(function() http.listen { handler = print }:close() end)
  return http
end)
M.http = built and http

local sockets = {} -- the clients' sockets in the current test

--- Runs a test as a task and closes its clients at the end; skipped if crescent_http.so is missing.
function M.test(name, fn)
  t.test(name, function()
    if not built then t.skip(tostring(http):match '[^\n]*') end
    local ok, err = pcall(cr.run, fn)
    for _, tcp in ipairs(sockets) do
      if not tcp:is_closing() then tcp:close() end
    end
    sockets = {}
    if not ok then error(err, 0) end
  end)
end

--- A server for one test, which collects errors in .reports. The test must close it.
--- @param handler function
--- @param limits table?
--- @param more table? further options of http.listen
function M.serve(handler, limits, more)
  local reports = {}
  local options = { handler = handler, limits = limits, report = function(text) reports[#reports + 1] = text end }
  for name, value in pairs(more or {}) do options[name] = value end
  local server = http.listen(options)
  server.reports = reports
  return server
end

-- ---- a client -----------------------------------------------------------------------------------

--- @class TestClient
--- @field got string received bytes that were not taken
--- @field ended boolean the connection has ended
local Client = {}
Client.__index = Client

--- @return TestClient
function M.connect(server)
  local tcp, done = uv.new_tcp(), cr.channel(1)
  sockets[#sockets + 1] = tcp
  local self = setmetatable({ tcp = tcp, got = '', ended = false }, Client)
  tcp:connect('127.0.0.1', server.port, function(err) done:put(err or true) end)
  assert(done:get() == true)
  self:listen()
  return self
end

--- Starts receiving.
function Client:listen()
  self.tcp:read_start(function(_, data)
    if data then self.got = self.got .. data else self.ended = true end
  end)
end

--- Sends texts one by one, running the loop between them, so that they are received separately.
function Client:send(...)
  for _, text in ipairs { ... } do
    self.tcp:write(text)
    for _ = 1, 3 do cr.sleep(0.001) end
  end
  return self
end

--- Shuts down the sending side.
function Client:finish()
  self.tcp:shutdown()
  return self
end

--- Waits until the received bytes match, and removes them up to the match's end; at the end of the connection,
--- returns the rest.
--- @param pattern string? default: everything
--- @return string
function Client:take(pattern)
  t.wait(function() return self.ended or pattern and self.got:find(pattern) end)
  local _, last = self.got:find(pattern or '$')
  local text = self.got:sub(1, last or #self.got)
  self.got = self.got:sub((last or #self.got) + 1)
  return text
end

function Client:close() self.tcp:close() end

--- Resets the connection, as after a crash.
function Client:reset() self.tcp:close_reset() end

--- The answer to a client that sends these texts and then shuts down its sending side.
function M.raw(server, ...)
  local client = M.connect(server)
  local text = client:send(...):finish():take()
  client:close()
  return text
end

-- ---- a WebSocket --------------------------------------------------------------------------------

local MASK = { 0x12, 0xfe, 0x00, 0x7b }

--- A frame as a client sends it.
--- @param opcode integer 1 text, 2 binary, 8 close, 9 ping, 10 pong, 0 continuation
--- @param data string
--- @param options table? {more = a continuation follows, plain = not masked, length = the length in its header}
function M.frame(opcode, data, options)
  options = options or {}
  local n, mask = options.length or #data, options.plain and 0 or 128
  local size = n < 126 and string.char(n + mask) or n < 65536 and string.char(126 + mask, math.floor(n / 256), n % 256) or
    string.char(127 + mask, 0, 0, 0, 0, math.floor(n / 2 ^ 24), math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256)
  local head = string.char(opcode + (options.more and 0 or 128)) .. size
  if options.plain then return head .. data end
  local masked = {}
  for i = 1, #data do masked[i] = string.char(bit.bxor(data:byte(i), MASK[(i - 1) % 4 + 1])) end
  return head .. string.char(unpack(MASK)) .. table.concat(masked)
end

--- The next frame from the server: its opcode and data; nil at the end.
function Client:frame()
  local function bytes(n)
    t.wait(function() return self.ended or #self.got >= n end)
    if #self.got < n then return nil end
    local text = self.got:sub(1, n)
    self.got = self.got:sub(n + 1)
    return text
  end
  local head = bytes(2)
  if not head then return nil end
  local opcode, n = head:byte(1, 2)
  if n >= 126 then
    local size = bytes(n == 126 and 2 or 8)
    n = 0
    for i = 1, #size do n = n * 256 + size:byte(i) end
  end
  return bit.band(opcode, 15), bytes(n)
end

M.UPGRADE = 'GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n' ..
  'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n'

--- A client with an open WebSocket.
--- @return TestClient
function M.websocket(server)
  local client = M.connect(server)
  client:send(M.UPGRADE)
  client.answer = client:take '\r\n\r\n'
  return client
end

return M
