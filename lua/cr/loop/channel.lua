--- Channels: bounded queues between tasks, built on the waiters of tasks.
--
-- Values leave in the order in which they were put. The size bounds the memory in flight: a put into a full channel
-- waits for a get.

local arguments = require 'cr.arguments'
local fail = require 'cr.ffi'.fail
local tasks = require 'cr.loop.tasks'

local suspend, wake = tasks.suspend, tasks.wake

local M = {}

--- @class Channel
--- @field items table queue of the values
--- @field getters table queue of the waiters for a value
--- @field putters table queue of the waiters for room
--- @field size integer how many values it can hold
--- @field closed boolean
local Channel = {}
Channel.__index = Channel

local function push(queue, value)
  queue.last = queue.last + 1
  queue[queue.last] = value
end

local function pop(queue)
  local value = queue[queue.first]
  queue[queue.first] = nil
  queue.first = queue.first + 1
  return value
end

local function queue_new() return { first = 1, last = 0 } end
local function length(queue) return queue.last - queue.first + 1 end

-- Takes the first waiter that was not cancelled meanwhile.
local function pop_waiter(queue)
  while length(queue) > 0 do
    local waiter = pop(queue)
    if not waiter.done then return waiter end
  end
end

--- Waits for room, then appends a value (not nil). Putting into a closed channel is an error.
function Channel:put(value)
  if self.closed then fail 'channel: put after close' end
  local getter = pop_waiter(self.getters)
  if getter then
    wake(getter, true, value)
  elseif length(self.items) < self.size then
    push(self.items, value)
  else
    local waiter = { what = 'channel put', value = value }
    push(self.putters, waiter)
    suspend(waiter)
  end
end

--- Waits for a value and returns it, or returns nil once the channel is closed and empty. If the channel was closed
--- with an error, raises that error instead.
--- @return any ...
function Channel:get()
  if length(self.items) > 0 then
    local value = pop(self.items)
    local putter = pop_waiter(self.putters)
    if putter then
      push(self.items, putter.value)
      wake(putter, true)
    end
    return value
  end
  local putter = pop_waiter(self.putters)
  if putter then
    wake(putter, true)
    return putter.value
  end
  if self.closed then
    if self.error ~= nil then error(self.error, 0) end
    return nil
  end
  local waiter = { what = 'channel get' }
  push(self.getters, waiter)
  return suspend(waiter)
end

--- Closes the channel. Values inside can still be taken; a waiting put raises an error.
--- @param err any? error that get() raises after the last value
function Channel:close(err)
  if self.closed then return end
  self.closed, self.error = true, err
  for waiter in pop_waiter, self.putters do wake(waiter, false, 'channel: closed while putting') end
  for waiter in pop_waiter, self.getters do
    if err ~= nil then
      wake(waiter, false, err)
    else
      wake(waiter, true, nil)
    end
  end
end

--- `for value in channel do`: gets until the channel is closed and empty.
function Channel:__call() return self:get() end

--- Returns the number of values that were put and not yet taken.
--- @return integer
function Channel:count() return length(self.items) end

--- Makes a queue of at most n values between tasks. With 0, each put waits for its get.
--- @param n integer? 1
--- @return Channel
function M.new(n)
  return setmetatable({
    size = n or 1, items = queue_new(), getters = queue_new(), putters = queue_new(), closed = false,
  }, Channel)
end

arguments.methods(Channel, 'channel', {
  put = { arguments.kind('a value other than nil', function(v) return v ~= nil end) },
  get = {}, close = { arguments.any }, count = {},
})

return M
