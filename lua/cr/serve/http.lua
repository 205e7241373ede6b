--- An HTTP/1.1 server on the core's loop.
--
--     local server = http.listen { port = 7860, handler = function(request, response)
--       response:send(200, { ['Content-Type'] = 'text/plain' }, 'hello ' .. request.path)
--     end }
--
-- The handler runs in a task of the connection, may wait, and answers the requests of a connection one after another.
-- A Problem that it raises becomes the answer; any other error is passed to `report` and answered with 500. Nothing
-- that a client does ends the server, and memory depends only on the number of connections and their limits.

local arguments = require 'cr.arguments'
local clock = require 'cr.clock'
local connections = require 'cr.serve.connection'
local errors = require 'cr.errors'
local ffi = require 'ffi'
local library = require 'cr.serve.library'
local problem = require 'cr.serve.problem'
local requests = require 'cr.serve.request'
local responses = require 'cr.serve.response'
local tasks = require 'cr.loop.tasks'

local uv, wake, suspend = tasks.M.uv, tasks.wake, tasks.suspend

local http = { problem = problem.raise, is_problem = problem.is, GONE = problem.GONE }

local LIMITS = {
  body = 2 ^ 20,     -- largest body of a request, in bytes; a handler may change request.limit
  header = 2 ^ 15,   -- largest head of a request, in bytes
  idle = 60,         -- seconds between requests, or in which the client accepts no byte of an answer
  request = 30,      -- seconds in which a head, and each 64 KiB of a body, must arrive
  connections = 4096,
}
local BACKLOG = 512

--- @class Server
--- @field port integer
--- @field host string
--- @field listener table the socket of luv
--- @field timer table the timer of luv
--- @field count integer
--- @field connections table
--- @field keep number
local Server = {}
Server.__index = Server

-- ---- one connection -----------------------------------------------------------------------------

-- Errors that are not reported, since they are no mistakes of the server.
local function is_quiet(err) return err == problem.GONE or err == tasks.INTERRUPTED or problem.is(err) and err.status < 500 end

local function traced(err)
  if is_quiet(err) or problem.is(err) or errors.is_failure(err) or type(err) == 'table' and err.trace then return err end
  return { trace = debug.traceback(tostring(err), 2) }
end

-- Finishes the answer after the handler has returned or failed.
local function conclude(self, request, response, ok, err)
  if response.websocket then response.websocket:close(ok and 1000 or 1011) end
  if ok and response.websocket then return end
  if ok and response.status then return response:finish() end
  if ok then err = { trace = 'the handler did not answer' } end
  if not is_quiet(err) then
    self.report(('%s %s: %s'):format(request.method, request.target, tostring(type(err) == 'table' and err.trace or err)), request)
  end
  if response.status or err == problem.GONE or err == tasks.INTERRUPTED then return request.connection:close() end
  response:problem(problem.is(err) and err or problem.new(500, 'the server has failed; its log says why'))
end

-- Returns the next request, or nil at the end of the connection.
local function next_request(self, connection)
  connection.idle = clock()
  local there = connection:await_bytes(clock() + self.limits.idle)
  connection.idle = nil
  if not there then return nil end
  local kind, head = connection:event(clock() + self.limits.request)
  if kind == 'head' then return requests.new(connection, head, self.limits) end
  if head == 'late' then problem.raise(408, 'the head of the request arrives too slowly') end
end

local function handle(self, request, response)
  request:parse()
  self.handler(request, response)
end

-- Handles the requests of a connection one after another.
local function converse(self, connection)
  while not self.closing do
    local request = next_request(self, connection)
    if not request then return end
    local response = responses.new(request, function() return self.closing end)
    self.busy = self.busy + 1
    local ok, err = xpcall(handle, traced, self, request, response)
    ok, err = pcall(conclude, self, request, response, ok, err)
    self.busy = self.busy - 1
    connection:forget_closers()
    if not ok then error(err, 0) end
    if not response.keep or connection.broken or not pcall(request.skip, request) then return end
  end
end

-- Answers a malformed request, for which no Response exists.
local function refuse(connection, err)
  local text = err:text()
  connection:write(('HTTP/1.1 %d %s\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s')
    :format(err.status, problem.reasons[err.status], #text, text))
end

local function serve(self, connection)
  local ok, err = xpcall(converse, traced, self, connection)
  if not ok and problem.is(err) then ok, err = pcall(refuse, connection, err) end
  if ok then ok, err = pcall(connection.finish, connection) end
  if ok then return end
  connection:close()
  if not is_quiet(err) then self.report(tostring(type(err) == 'table' and err.trace or err)) end
end

-- ---- the server ---------------------------------------------------------------------------------

-- Makes room for another connection: of those that wait for a request or for their end, the one that waits longest is closed.
local function make_room(self)
  if self.count < self.limits.connections then return true end
  local oldest
  for connection in pairs(self.connections) do
    if connection.idle and (not oldest or connection.idle < oldest.idle) then oldest = connection end
  end
  if oldest then oldest:close() end
  return oldest ~= nil
end

local BUSY = 'HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'

local function accept(self)
  local client = assert(uv.new_tcp())
  if not self.listener:accept(client) then return client:close() end
  if not make_room(self) then
    client:try_write(BUSY)
    return client:close()
  end
  local ok, connection = pcall(connections.new, client, self, function(connection)
    self.connections[connection] = nil
    self.count = self.count - 1
    if self.waiter and self.count == 0 then wake(self.waiter, true) end
  end)
  if not ok then
    client:close()
    return self.report('cannot accept a connection: ' .. tostring(connection))
  end
  self.connections[connection] = true
  self.count = self.count + 1
  tasks.M.go(serve, self, connection)
end

local function look_around(self)
  local now = clock()
  for connection in pairs(self.connections) do connection:look(now) end
  if self.waiter and now >= self.deadline then
    for connection in pairs(self.connections) do connection:close() end
  end
end

--- Stops accepting connections, closes those without a request, waits for the others, and finally closes what is still open.
--- @param seconds number? how long it waits (5)
function Server:close(seconds)
  if self.closing then return end
  self.closing = true
  self.listener:close()
  for connection in pairs(self.connections) do
    if connection.idle then
      connection:close()
    elseif connection.goodbye then
      tasks.M.go(pcall, connection.goodbye)
    end
  end
  self.deadline = clock() + (seconds or 5)
  if seconds == 0 then look_around(self) end
  if self.count > 0 then
    self.waiter = { what = 'connections that end' }
    look_around(self)
    suspend(self.waiter)
  end
  self.timer:close()
end

local function fail(format, ...) errors.fail(format:format(...)) end

local ADVICE = {
  EADDRINUSE = ': choose another port, or end the program that listens there',
  EADDRNOTAVAIL = ': choose an address of this machine',
  EACCES = ': ports below 1024 are for privileged users',
}

-- Returns a listening socket.
local function bind(host, port)
  local address = host
  if not host:find '^[%d.]+$' and not host:find ':' then
    local list, why = uv.getaddrinfo(host, nil, { socktype = 'stream' })
    if not list or not list[1] then fail('http: %s: there is no such host (%s)', host, tostring(why)) end
    -- If the host has IPv4 and IPv6 addresses, the resolver's first one is used, as clients do.
    address = list[1].addr
    for _, one in ipairs(list) do
      if one.family == 'inet' then
        address = one.addr
        break
      end
    end
  end
  local listener = assert(uv.new_tcp())
  local ok, why = listener:bind(address, port)
  return listener, ok, why
end

-- Loads the certificate and key of TLS, or returns nil.
local function open_keys(cert, key)
  if not cert and not key then return nil end
  if not cert or not key then fail 'http: TLS needs both cert and key' end
  local keys = ffi.new 'cr_tls_keys *[1]'
  if library.lib.cr_tls_keys_open(keys, cert, key) < 0 then fail('%s', library.message()) end
  return ffi.gc(keys[0], library.lib.cr_tls_keys_close)
end

--- Starts a server. An invalid address raises an error, such as "http: 127.0.0.1:80: permission denied"; requests of
--- clients never do.
--- @param options table {host = '127.0.0.1', port = 0 (any free port), cert =, key = TLS files in PEM, handler =
---   function(request, response), limits = {body = bytes, header = bytes, idle = seconds, request = seconds,
---   connections = number}, report = function(text, request or nil) called with errors, which go to stderr otherwise}
--- @return Server
function http.listen(options)
  library.load()
  local limits = setmetatable({}, { __index = LIMITS })
  for name, value in pairs(options.limits or {}) do limits[name] = value end
  local host, port = options.host or '127.0.0.1', options.port or 0
  local self = setmetatable({
    handler = options.handler, limits = limits, connections = {}, count = 0, busy = 0, host = host,
    keys = open_keys(options.cert, options.key),
    report = options.report or function(text) io.stderr:write('crescent: serve: ', text, '\n') end,
  }, Server)
  local listener, ok, why = bind(host, port)
  if ok then
    ok, why = listener:listen(BACKLOG, function(err)
      if err then self.report('cannot accept a connection: ' .. err) else accept(self) end
    end)
  end
  if not ok then
    listener:close()
    fail('http: %s:%d: %s%s', host, port, why, ADVICE[why:match '^%u+'] or '')
  end
  self.listener, self.port = listener, listener:getsockname().port
  local tick = math.ceil(1000 * math.min(1, limits.idle / 4, limits.request / 4))
  self.timer = assert(uv.new_timer())
  self.timer:start(tick, tick, function() look_around(self) end)
  return self
end

local maybe, positive = arguments.maybe, arguments.kind('a number above 0', function(v) return type(v) == 'number' and v > 0 end)
arguments.methods(Server, 'server', { close = { maybe(arguments.number) } })
return arguments.guard('http.', http, {
  listen = { arguments.options {
    host = maybe(arguments.string), port = maybe(arguments.natural), cert = maybe(arguments.string),
    key = maybe(arguments.string), handler = arguments.callable, report = maybe(arguments.callable),
    limits = maybe(arguments.options { body = maybe(positive), header = maybe(arguments.positive), idle = maybe(positive),
      request = maybe(positive), connections = maybe(arguments.positive) }),
  } },
})
