--- Queues of jobs on other servers: sqs://NAME, redis://HOST/DB?stream=NAME&group=NAME. Another one is a file here, named
--- like its scheme, whose open(url, options) returns a Queue; its name also stands in KINDS.
--
-- A queue hands a message to one worker for a time, the lease; who works on extends it. A message whose lease has ended
-- goes to somebody else. Nothing is lost, and a message may come twice.

local errors = require 'cr.errors'
local url = require 'cr.remote.url'

local M = {}

--- @class Message
--- @field id string the same however often it comes
--- @field body string
--- @field receipt string? of SQS
--- @field tries integer how often it has been handed out, this time too

--- @class Queue its functions wait, try again what may pass, and raise one sentence where the queue cannot be reached
--- @field name string for people
--- @field receive fun(self, seconds: number): Message? waits so long at most for the next message
--- @field extend fun(self, message: Message, seconds: number): boolean has the lease end so many seconds from now; false: it is lost
--- @field done fun(self, message: Message) takes it off the queue
--- @field fail fun(self, message: Message, o: table) {delay = seconds after which it comes again, at most the lease; blameless =
---   this time is not to count as a try, where the queue can do that}, or {dead = sentence}: to the dead letters, with the sentence
--- @field count fun(self): integer messages that wait or are worked on, about
--- @field close fun(self)

local KINDS = { 'redis', 'sqs' }

--- Opens a queue; what is wrong with the URL, or with the queue, is one sentence.
--- @param address string
--- @param o table {lease = seconds, name = of the worker}
--- @return Queue
function M.open(address, o)
  local parts = url.parse(address)
  local known = {}
  for _, kind in ipairs(KINDS) do known[kind] = true end
  if not parts or not known[parts.scheme] then
    errors.fail(('--queue: %s is no queue: use sqs://NAME?region=… or redis://HOST:PORT/DB?stream=NAME&group=NAME')
      :format(url.shown(address)))
  end
  return require('cr.remote.queues.' .. parts.scheme).open(parts, o)
end

return M
