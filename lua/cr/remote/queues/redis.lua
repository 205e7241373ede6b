--- Redis Streams with consumer groups (Redis 6.2 and later): redis://HOST:PORT/DB?stream=NAME&group=NAME.
--
-- The field `job` of an entry holds the job. Dead letters go to the stream NAME:dead, with the fields job, error, id,
-- tries. The password comes from the environment variable REDISCLI_AUTH, as for redis-cli; the URL may contain a user
-- name.
--
-- A lease has expired when the entry has been idle for so long, so all workers of a group must use the same lease.
-- Steps that must be atomic are scripts: no worker takes, extends or returns an entry that has become another's
-- meanwhile.

local errors = require 'cr.errors'
local redis = require 'cr.remote.redis'
local retry = require 'cr.remote.retry'
local url = require 'cr.remote.url'

local M = { example = 'redis://HOST:PORT/DB?stream=NAME&group=NAME' }

local LONGEST_WAIT = 5 -- seconds; expired leases of other workers are searched as often

-- Takes over an entry whose lease has expired and returns {id, fields, deliveries}. Redis 6.2 returns empty places
-- for deleted entries.
local TAKE_OVER = [[
  local at = '0-0'
  repeat
    local answer = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], at, 'COUNT', 1)
    local entry = answer[2][1]
    at = answer[1]
    if entry and entry[2] then
      local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)
      return { entry[1], entry[2], pending[1][4] }
    end
  until at == '0-0'
  return false
]]

-- Sets the idle time and the number of deliveries of this worker's entry. Returns 0 if the entry is not this worker's.
local SET_IDLE = [[
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
  if not pending or pending[2] ~= ARGV[2] then return 0 end
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', ARGV[4], 'RETRYCOUNT', pending[4] - ARGV[5], 'JUSTID')
  return 1
]]

local DONE = [[
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  return redis.call('XDEL', KEYS[1], ARGV[2])
]]

-- If the entry is gone, another worker has finished it.
local BURY = [[
  if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
  redis.call('XADD', KEYS[2], '*', 'job', ARGV[3], 'error', ARGV[4], 'id', ARGV[2], 'tries', ARGV[5])
  redis.call('XDEL', KEYS[1], ARGV[2])
  return 1
]]

-- Removes this worker from the group, and all workers without entries that have been idle for a day.
local SWEEP = [[
  for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local name, pending, idle = row[2], row[4], row[6]
    if pending == 0 and (idle > 86400000 or name == ARGV[2]) then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name) end
  end
  return 1
]]

local PASSWORD = ': the environment variable REDISCLI_AUTH holds the password'
local ADVICE = { NOAUTH = PASSWORD, WRONGPASS = PASSWORD }

-- Temporary refusals: Redis is loading, busy, or not the master at the moment.
local PASS = { LOADING = true, BUSY = true, READONLY = true, TRYAGAIN = true, CLUSTERDOWN = true, MASTERDOWN = true, NOREPLICAS = true }

--- @class RedisQueue: Queue
--- @field redis Redis for requests
--- @field listener Redis for the blocking request
--- @field stream string
--- @field group string
--- @field worker string
--- @field dead string the stream of dead letters
--- @field lease number seconds
local Queue = {}
Queue.__index = Queue

local function make_group(self)
  local ok, problem = pcall(self.redis.ask, self.redis, 'XGROUP', 'CREATE', self.stream, self.group, '0', 'MKSTREAM')
  if not ok and not (redis.is_refusal(problem) and problem.code == 'BUSYGROUP') then error(problem, 0) end
end

local function sentence_of(failure) return failure.message:gsub('%.$', '') .. (ADVICE[failure.code] or '') end

-- Sends a command, with a few retries.
local function ask(self, connection, ...)
  local words = { ... }
  local answer, problem = retry.call(function()
    local ok, value = pcall(connection.ask, connection, unpack(words))
    if ok then return value end
    if not redis.is_failure(value) then error(value, 0) end
    if not redis.is_refusal(value) then return nil, value.message, true end
    -- Redis has lost its data, or the group was deleted, so the group is created again.
    if value.code == 'NOGROUP' and pcall(make_group, self) then return nil, value.message, true end
    return nil, sentence_of(value), PASS[value.code]
  end, { tries = 4 })
  if answer == nil then errors.fail(problem) end
  return answer
end

local function run(self, script, keys, ...)
  local words = { 'EVAL', script, #keys }
  for _, key in ipairs(keys) do words[#words + 1] = key end
  for i = 1, select('#', ...) do words[#words + 1] = (select(i, ...)) end
  return ask(self, self.redis, unpack(words))
end

--- @param parts Url
--- @param o table {lease, name}
--- @return RedisQueue
function M.open(parts, o)
  local options = url.options('--queue', parts, { 'stream', 'group' })
  local database = parts.path:match '^/?(%d*)$'
  if parts.password then
    errors.fail '--queue: a password does not belong in a URL, which other users can see: set REDISCLI_AUTH in the environment'
  end
  if parts.host == '' or not database or not options.stream or not options.group then
    errors.fail ('--queue: a Redis queue is ' .. M.example)
  end
  local place = {
    host = parts.host, port = parts.port, user = parts.user, password = os.getenv 'REDISCLI_AUTH', database = tonumber(database),
  }
  local self = setmetatable({
    name = ('redis://%s:%d/%s'):format(parts.host, parts.port or 6379, options.stream), stream = options.stream, group = options.group,
    dead = options.stream .. ':dead', lease = o.lease, worker = o.name,
    redis = redis.new(place), listener = redis.new(place), -- the listener waits for entries
  }, Queue)
  local ok, problem = pcall(make_group, self)
  if not ok then error(redis.is_failure(problem) and sentence_of(problem) or problem, 0) end
  run(self, SWEEP, { self.stream }, self.group, '')
  return self
end

local function message_of(id, fields, tries)
  local body
  for i = 1, #fields, 2 do
    if fields[i] == 'job' then body = fields[i + 1] end
  end
  return { id = id, body = body, tries = tries }
end

function Queue:receive(seconds)
  local old = run(self, TAKE_OVER, { self.stream }, self.group, self.worker, math.ceil(self.lease * 1000))
  if old ~= redis.NIL then return message_of(old[1], old[2], old[3]) end
  local wait = math.max(1, math.floor(1000 * math.min(seconds, LONGEST_WAIT, self.lease / 2)))
  local ok, answer = pcall(ask, self, self.listener, 'XREADGROUP', 'GROUP', self.group, self.worker, 'COUNT', 1, 'BLOCK', wait,
    'STREAMS', self.stream, '>')
  if not ok then
    self.listener:close() -- a cancelled worker must not receive another entry
    error(answer, 0)
  end
  if answer == redis.NIL then return nil end
  local entry = answer[1][2][1]
  return entry and message_of(entry[1], entry[2], 1) or nil
end

local function set_idle(self, message, seconds, less)
  local idle = math.floor(1000 * math.max(0, self.lease - seconds))
  return run(self, SET_IDLE, { self.stream }, self.group, self.worker, message.id, idle, less and 1 or 0) == 1
end

function Queue:extend(message, seconds) return set_idle(self, message, seconds) end

function Queue:done(message) run(self, DONE, { self.stream }, self.group, message.id) end

function Queue:fail(message, o)
  if o.dead then
    run(self, BURY, { self.stream, self.dead }, self.group, message.id, message.body or '', o.dead, message.tries)
  else
    set_idle(self, message, o.delay or 0, o.blameless)
  end
end

function Queue:count() return ask(self, self.redis, 'XLEN', self.stream) end

function Queue:close()
  pcall(self.redis.ask, self.redis, 'EVAL', SWEEP, 1, self.stream, self.group, self.worker)
  self.redis:close()
  self.listener:close()
end

return M
