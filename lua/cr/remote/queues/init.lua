--- Job queues of external services: sqs://NAME, redis://HOST/DB?stream=NAME&group=NAME. A new kind is a file in this
--- folder, named as its URL scheme, that returns open(url, options) -> Queue, and its name in KINDS.
--
-- A queue hands a message to one worker for a limited time, the lease, which the worker extends while it works. A
-- message whose lease has expired goes to another worker. No message is lost, but one may be delivered twice.

local errors = require 'cr.errors'
local url = require 'cr.remote.url'

local M = {}

--- @class Message
--- @field id string the same for every delivery
--- @field body string
--- @field receipt string? SQS's receipt handle
--- @field tries integer number of deliveries, including this one

--- @class Queue its functions wait, retry temporary failures, and raise one sentence if the queue cannot be reached
--- @field name string for messages
--- @field receive fun(self, seconds: number): Message? waits at most this long for the next message
--- @field extend fun(self, message: Message, seconds: number): boolean sets the lease to expire in so many seconds;
---   false if the lease is lost
--- @field done fun(self, message: Message) removes the message from the queue
--- @field fail fun(self, message: Message, o: table) {delay = seconds until it is delivered again, at most the lease;
---   blameless = true: this delivery does not count as a try, if the queue supports that}, or {dead = sentence}:
---   moves it to the dead letters, with the sentence
--- @field count fun(self): integer approximate number of messages that wait or are being processed
--- @field close fun(self)

local KINDS = { 'redis', 'sqs' }

--- Opens a queue, or fails with a sentence about the URL or the queue.
--- @param address string
--- @param o table {lease = seconds, name = name of the worker}
--- @return Queue
function M.open(address, o)
  local parts = url.parse(address)
  local known = {}
  for _, kind in ipairs(KINDS) do known[kind] = true end
  if not parts or not known[parts.scheme] then
    errors.fail(('--queue: %s is not a queue: use sqs://NAME?region=… or redis://HOST:PORT/DB?stream=NAME&group=NAME')
      :format(url.shown(address)))
  end
  return require('cr.remote.queues.' .. parts.scheme).open(parts, o)
end

return M
