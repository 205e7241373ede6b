--- Server-Sent Events, and what their senders wait for.
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

--- Seconds after which a listener that nobody has rung for is told to send a sign of life.
M.BEAT = 15

--- @class Stream
--- @field response Response
local Stream = {}
Stream.__index = Stream

--- Begins an answer of events.
--- @param response table
--- @return Stream
function M.open(response)
  response:start(200, { ['content-type'] = 'text/event-stream; charset=utf-8', ['cache-control'] = 'no-store',
    ['x-accel-buffering'] = 'no', ['x-content-type-options'] = 'nosniff' })
  return setmetatable({ response = response }, Stream)
end

--- Sends an event; waits until the client takes it.
--- @param event string
--- @param data table
function Stream:send(event, data) self.response:write(('event: %s\ndata: %s\n\n'):format(event, json.encode(data))) end

--- Sends a comment, so that neither a proxy nor the client thinks the connection dead.
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

--- Somebody who wants to know: wait(), and close() when that is over.
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

--- Wakes all who listen.
function Bell:ring()
  for listener in pairs(self.listeners) do tell(listener, 'rung') end
end

--- Waits for what comes.
--- @return 'rung'|'beat'|'closed'
function Listener:wait()
  if self.closed then return 'closed' end
  return self.channel:get() or 'closed'
end

--- Ends it; who waits gets 'closed'.
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
