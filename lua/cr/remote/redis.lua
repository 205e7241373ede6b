--- A connection to Redis: a luv socket on the loop, and hiredis to read and write the protocol.
--
-- hiredis is used through FFI. Its own asynchronous functions are not used, because they would call back from C into
-- Lua. Its structures are those of version 0.14 in Debian 12, so only that version is opened. It has no TLS: a server
-- that requires TLS is reached through a proxy on this machine.
--
-- Invariants: commands are answered in order, so many tasks may share a connection. After a connection has broken, or
-- does not answer (a network that was cut gives no other sign), the waiting commands raise an error, and the next command
-- connects again. Nothing is retried here.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local errors = require 'cr.errors'
local tasks = require 'cr.loop.tasks'

local uv, suspend, wake = tasks.M.uv, tasks.suspend, tasks.wake

ffi.cdef [[
typedef struct cr_redis_reply {
  int type;
  long long integer;
  size_t len;
  char *str;
  size_t elements;
  struct cr_redis_reply **element;
} cr_redis_reply;
typedef struct cr_redis_reader { int err; char errstr[128]; } cr_redis_reader;
cr_redis_reader *redisReaderCreate(void);
void redisReaderFree(cr_redis_reader *reader);
int redisReaderFeed(cr_redis_reader *reader, const char *bytes, size_t n);
int redisReaderGetReply(cr_redis_reader *reader, void **reply);
void freeReplyObject(void *reply);
int redisFormatCommandArgv(char **out, int count, const char **words, const size_t *lengths);
void redisFreeCommand(char *command);
]]
local STRING, ARRAY, INTEGER, NIL, STATUS, ERROR = 1, 2, 3, 4, 5, 6
local CONNECT, ANSWER = 10, 15 -- seconds; a blocking command uses up some of them (queues/redis.lua)

local hiredis

local function library()
  hiredis = hiredis or base.system_library 'libhiredis.so.0.14' or
      errors.fail 'redis: libhiredis.so.0.14 is missing (apt-get install libhiredis0.14)'
  return hiredis
end

local M = {}

--- Redis's nil reply.
M.NIL = setmetatable({}, { __tostring = function() return 'nil' end })

--- @class RedisError
--- @field message string
--- @field code string? the code of a refusal by Redis, such as 'NOGROUP'; nil if Redis could not be reached
local Failure = {}
Failure.__index = Failure
function Failure:__tostring() return self.message end

local function failure(message, code) return setmetatable({ message = message, code = code }, Failure) end

--- Returns whether an error comes from the connection or from Redis, and not from a cancelled task.
--- @return boolean
function M.is_failure(value) return getmetatable(value) == Failure end

--- Returns whether an error is a refusal by Redis, and not a failed connection.
--- @return boolean
function M.is_refusal(value) return M.is_failure(value) and value.code ~= nil end

-- Converts a reply to a value: a string, a number, a list, NIL or a RedisError.
local function value_of(reply)
  local kind = reply.type
  if kind == INTEGER then return tonumber(reply.integer) end
  if kind == NIL then return M.NIL end
  if kind == ARRAY then
    local list = {}
    for i = 1, tonumber(reply.elements) do list[i] = value_of(reply.element[i - 1]) end
    return list
  end
  local text = ffi.string(reply.str, reply.len)
  if kind == ERROR then return failure('redis: ' .. base.printable(text), text:match '^%S*') end
  assert(kind == STRING or kind == STATUS)
  return text
end

local function command_of(words)
  local n = #words
  local texts, lengths, kept = ffi.new('const char *[?]', n), ffi.new('size_t[?]', n), {}
  for i, word in ipairs(words) do
    kept[i] = tostring(word)
    texts[i - 1], lengths[i - 1] = kept[i], #kept[i]
  end
  local out = ffi.new 'char *[1]'
  local size = library().redisFormatCommandArgv(out, n, texts, lengths)
  if size < 0 then errors.fail 'redis: out of memory' end
  local text = ffi.string(out[0], size)
  hiredis.redisFreeCommand(out[0])
  return text
end

--- @class Redis
--- @field socket table the TCP handle
local Redis = {}
Redis.__index = Redis

--- Returns a connection, which is opened by its first command.
--- @param o table {host, port = 6379, user, password, database = 0}
--- @return Redis
function M.new(o)
  library()
  return setmetatable({ o = o, waiting = {}, first = 1, last = 0 }, Redis)
end

-- Closes the connection and raises the sentence in every waiting command.
local function broken(self, problem)
  local socket = self.socket
  self.socket, self.reader = nil, nil
  if socket and not socket:is_closing() then socket:close() end
  local list, first, last = self.waiting, self.first, self.last
  self.waiting, self.first, self.last = {}, 1, 0
  problem = M.is_failure(problem) and problem or failure(problem)
  for i = first, last do wake(list[i], false, problem) end
end

local function place(self) return ('redis at %s:%d'):format(self.o.host, self.o.port or 6379) end

-- Passes the received replies to the waiting commands, in order.
local function take_replies(self, bytes)
  local reader, reply = self.reader, ffi.new 'void *[1]'
  hiredis.redisReaderFeed(reader, bytes, #bytes)
  while self.reader == reader do
    if hiredis.redisReaderGetReply(reader, reply) ~= 0 then
      return broken(self, ('%s: the answer is not Redis protocol: %s'):format(place(self), base.printable(ffi.string(reader.errstr))))
    end
    if reply[0] == nil then return end
    local value = value_of(ffi.cast('cr_redis_reply *', reply[0]))
    hiredis.freeReplyObject(reply[0])
    local waiter = self.waiting[self.first]
    if not waiter then return broken(self, place(self) .. ': it sent an answer without a command') end
    self.waiting[self.first], self.first = nil, self.first + 1
    wake(waiter, true, value)
  end
end

-- Resolves a host name to addresses on libuv's threads.
local function addresses_of(self)
  local waiter = { what = 'a host name' }
  local request, problem = uv.getaddrinfo(self.o.host:gsub('[%[%]]', ''), nil, { socktype = 'stream' }, function(err, list)
    wake(waiter, true, list, err)
  end)
  if not request then return nil, problem end
  return suspend(waiter)
end

local function connect_to(self, address)
  local socket, timer = uv.new_tcp(), uv.new_timer()
  local waiter = { what = 'a connection' }
  function waiter.leave()
    timer:close()
    if not (waiter.ok and waiter[1]) and not socket:is_closing() then socket:close() end
  end
  timer:start(CONNECT * 1000, 0, function() wake(waiter, true, nil, 'no connection within 10 s') end)
  local ok, problem = socket:connect(address, self.o.port or 6379, function(err) wake(waiter, true, not err, err) end)
  if not ok then wake(waiter, true, nil, problem) end
  local made, why = suspend(waiter)
  return made and socket or nil, why
end

local function send(self, words)
  local socket, timer = self.socket, uv.new_timer()
  local waiter = { what = 'Redis', leave = function() timer:close() end }
  self.last = self.last + 1
  self.waiting[self.last] = waiter
  timer:start(ANSWER * 1000, 0, function()
    if self.socket == socket then broken(self, ('%s: no answer within %d s'):format(place(self), ANSWER)) end
  end)
  socket:write(command_of(words), function(err)
    if err and self.socket == socket then broken(self, ('%s: %s'):format(place(self), err)) end
  end)
  return suspend(waiter)
end

local function greet(self)
  local o = self.o
  local first = o.password and (o.user and { 'AUTH', o.user, o.password } or { 'AUTH', o.password }) or nil
  for _, words in pairs { first or false, (o.database or 0) ~= 0 and { 'SELECT', o.database } or false } do
    local answer = words and send(self, words)
    if M.is_refusal(answer) then
      broken(self, answer)
      error(answer, 0)
    end
  end
end

local function connect(self)
  local list, problem = addresses_of(self)
  for _, entry in ipairs(list or {}) do
    local socket, why = connect_to(self, entry.addr)
    if socket then
      socket:nodelay(true)
      socket:keepalive(true, 30)
      self.socket = socket
      self.reader = ffi.gc(hiredis.redisReaderCreate(), hiredis.redisReaderFree)
      socket:read_start(function(err, bytes)
        if self.socket ~= socket then return end
        if bytes then return take_replies(self, bytes) end
        broken(self, ('%s: %s'):format(place(self), err or 'it has closed the connection'))
      end)
      return greet(self)
    end
    problem = why == 'ECONNREFUSED' and 'ECONNREFUSED: no program listens there' or why
  end
  error(failure(('%s: %s'):format(place(self), problem or 'its host name has no address')), 0)
end

--- Sends a command and returns the reply. Raises a RedisError if Redis cannot be reached or refuses.
--- @param ... string|number the command's words
--- @return any
function Redis:ask(...)
  if not self.socket then
    -- Tasks that call meanwhile wait for the same connection.
    self.connecting = self.connecting or tasks.M.go(function()
      local ok, problem = pcall(connect, self)
      self.connecting = nil
      if not ok then error(problem, 0) end
    end)
    require 'cr.loop'.await(self.connecting)
  end
  local answer = send(self, { ... })
  if M.is_refusal(answer) then error(answer, 0) end
  return answer
end

--- Closes the connection. A later command opens it again.
function Redis:close() broken(self, place(self) .. ': the connection was closed') end

return M
