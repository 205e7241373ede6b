--- The HTTP server under load: idle connections, small requests, a large upload, a large file.
--
-- The server is a separate process, whose memory is printed; the clients are this process, so that each has its own
-- core.
--
-- Tiny: --connections 20 --requests 50 --megabytes 2

local child = require 'tests.support.child'
local cr = require 'cr'
local uv = require 'cr.loop'.uv

local o = require 'tests.bench.options'.read('Requests per second, MB per second and memory of the HTTP server.', {
  { '--connections', 'int', default = 1000, min = 1, help = 'idle connections; eight rounds' },
  { '--requests', 'int', default = 20000, min = 1, help = 'over 50 connections' },
  { '--megabytes', 'int', default = 1000, min = 1, help = 'size of the upload and the download' },
})

local SERVER = child.file('server.lua', [[
  local cr, http = require 'cr', require 'cr.serve.http'
  local path = ...
  cr.run(function()
    local server = http.listen { limits = { body = 2 ^ 40 }, handler = function(request, response)
      if request.path == '/file' then return response:file(path) end
      local n = 0
      for piece in request.read, request do n = n + #piece end
      response:send(200, {}, tostring(n))
    end }
    print(server.port)
    io.stdout:flush()
    while true do cr.sleep(1000) end
  end)
]])

local port, pid

local function memory()
  for line in io.lines('/proc/' .. pid .. '/status') do
    local kib = line:match '^VmRSS:%s*(%d+)'
    if kib then return tonumber(kib) / 1024 end
  end
end

-- A connection: :ask(text) sends a request and returns the answer up to `ending`; :count() reads a number of bytes.
local Client = {}
Client.__index = Client

local function connect()
  local self = setmetatable({ tcp = uv.new_tcp(), bell = cr.channel(1), got = 0, last = '' }, Client)
  self.tcp:connect('127.0.0.1', port, function(err) self.bell:put(err or true) end)
  assert(self.bell:get() == true)
  self.tcp:read_start(function(_, data)
    self.got, self.last = self.got + #(data or ''), data
    if self.bell:count() == 0 then self.bell:put(true) end
  end)
  return self
end

local SMALL = 'GET / HTTP/1.1\r\nHost: x\r\n\r\n'

function Client:ask(text)
  self.tcp:write(text)
  self.bell:get()
end

local function seconds(fn)
  local begin = uv.hrtime()
  fn()
  return (uv.hrtime() - begin) * 1e-9
end

local function waiting_connections()
  print(('memory: %.1f MiB at the start'):format(memory()))
  for _ = 1, 8 do
    local clients = {}
    for i = 1, o.connections do clients[i] = connect() end
    cr.sleep(0.2)
    local idle = memory()
    for _, client in ipairs(clients) do client:ask(SMALL) end
    print(('memory: %.1f MiB with %d connections, %.1f after a request of each'):format(idle, o.connections, memory()))
    for _, client in ipairs(clients) do client.tcp:close() end
    cr.sleep(0.2)
  end
end

local function small_requests()
  local left, tasks = o.requests, {}
  for i = 1, 50 do
    tasks[i] = function()
      local client = connect()
      while left > 0 do
        left = left - 1
        client:ask(SMALL)
      end
      client.tcp:close()
    end
  end
  print(('requests: %.0f per second over 50 connections'):format(o.requests / seconds(function() cr.all(tasks) end)))
end

local function large_bodies(path)
  local piece, client = ('x'):rep(2 ^ 20), connect()
  local bytes = o.megabytes * 2 ^ 20
  local up = seconds(function()
    client.tcp:write(('PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n'):format(bytes))
    local written = cr.channel(1)
    for _ = 1, o.megabytes do
      client.tcp:write(piece, function(err) written:put(err or true) end)
      assert(written:get() == true)
    end
    client.bell:get()
  end)
  if client.last:match '%d+$' ~= tostring(bytes) then error('the server counted ' .. client.last) end
  local head = client.got
  local down = seconds(function()
    client.tcp:write 'GET /file HTTP/1.1\r\nHost: x\r\n\r\n'
    while client.got - head < bytes do client.bell:get() end
  end)
  client.tcp:close()
  print(('bodies: %.0f MB/s up, %.0f MB/s down from a file of %d MiB; %.1f MiB of memory then'):format(
    bytes / up / 1e6, bytes / down / 1e6, require 'lfs'.attributes(path, 'size') / 2 ^ 20, memory()))
end

cr.run(function()
  local path = child.folder .. '/large'
  local file, piece = assert(io.open(path, 'wb')), ('x'):rep(2 ^ 20)
  for _ = 1, o.megabytes do file:write(piece) end
  file:close()
  local out, started = uv.new_pipe(false), cr.channel(1)
  local process
  process, pid = uv.spawn(child.program, { args = { SERVER, path }, stdio = { nil, out, 2 } }, function() end)
  out:read_start(function(_, data) if data then started:put(data) else started:close() end end)
  port = tonumber(started:get())
  local ok, err = pcall(function()
    waiting_connections()
    small_requests()
    large_bodies(path)
  end)
  process:kill 'sigkill'
  process:close()
  out:close()
  child.clean()
  if not ok then error(err, 0) end
end)
