--- Server-Sent Events, and bells by which their senders wait for changes.
--
--     local stream = events.open(response)
--     stream:send('job', { state = 'running' })
--
--     local bell = events.bell()
--     local mine = bell:listen()   while mine:wait() ~= 'closed' do ... end   -- in each sender's task
--     bell:ring()                                                             -- when something has changed

local json = require 'cr.json'
local loop = require 'cr.loop'

local uv = loop.uv
local M = {}

--- Seconds without a ring after which a listener's wait returns 'beat', so that it sends a keep-alive.
M.BEAT = 15

--- @class Stream
--- @field response Response
local Stream = {}
Stream.__index = Stream

--- Starts an answer that is a stream of events.
--- @param response table
--- @return Stream
function M.open(response)
  response:start(200, { ['content-type'] = 'text/event-stream; charset=utf-8', ['cache-control'] = 'no-store',
    ['x-accel-buffering'] = 'no', ['x-content-type-options'] = 'nosniff' })
  return setmetatable({ response = response }, Stream)
end

--- Sends an event and waits until the client accepts it.
--- @param event string
--- @param data table
function Stream:send(event, data) self.response:write(('event: %s\ndata: %s\n\n'):format(event, json.encode(data))) end

--- Sends a comment as a keep-alive for proxies and the client.
function Stream:beat() self.response:write ': alive\n\n' end

--- @class Bell
--- @field listeners table
local Bell = {}
Bell.__index = Bell

--- @class Listener
--- @field bell Bell
--- @field channel Channel
local Listener = {}
Listener.__index = Listener

--- @return Bell
function M.bell() return setmetatable({ listeners = {}, count = 0 }, Bell) end

local function tell(listener, what)
  if listener.channel:count() == 0 then listener.channel:put(what) end
end

--- Returns a new listener. Call its wait() repeatedly, and close() at the end.
--- @return Listener
function Bell:listen()
  local listener = setmetatable({ bell = self, channel = loop.channel(1) }, Listener)
  self.listeners[listener], self.count = true, self.count + 1
  if not self.timer then
    self.timer = assert(uv.new_timer())
    self.timer:start(M.BEAT * 1000, M.BEAT * 1000, function()
      for other in pairs(self.listeners) do tell(other, 'beat') end
    end)
  end
  return listener
end

--- Wakes all listeners.
function Bell:ring()
  for listener in pairs(self.listeners) do tell(listener, 'rung') end
end

--- Waits for a ring, a keep-alive or the end.
--- @return 'rung'|'beat'|'closed'
function Listener:wait()
  if self.closed then return 'closed' end
  return self.channel:get() or 'closed'
end

--- Closes the listener; a waiting task gets 'closed'.
function Listener:close()
  if self.closed then return end
  self.closed = true
  local bell = self.bell
  bell.listeners[self], bell.count = nil, bell.count - 1
  if bell.count == 0 then
    bell.timer:close()
    bell.timer = nil
  end
  self.channel:close()
end

return M
