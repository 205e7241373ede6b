--- Job queues of external services: sqs://NAME, redis://HOST/DB?stream=NAME&group=NAME. A new kind is a file in this
--- folder, named as its URL scheme, that returns { example = a URL, open = function(parts, o) ... end -> Queue }; no list
--- names them.
--
-- A queue hands a message to one worker for a limited time, the lease, which the worker extends while it works. A
-- message whose lease has expired goes to another worker. No message is lost, but one may be delivered twice.

local base = require 'cr.ffi'
local errors = require 'cr.errors'
local files = require 'cr.files'
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
--- @field done fun(self, message: Message) removes the message from the queue, also if its lease has gone to another worker
--- @field fail fun(self, message: Message, o: table) {delay = seconds until it is delivered again, at most the lease;
---   blameless = true: this delivery does not count as a try, if the queue supports that}, or {dead = sentence}:
---   moves it to the dead letters, with the sentence
--- @field count fun(self): integer approximate number of messages that wait or are being processed
--- @field close fun(self)

local FOLDER = base.root .. '/lua/cr/remote/queues'

--- Opens a queue, or fails with a sentence about the URL or the queue.
--- @param address string
--- @param o table {lease = seconds, name = name of the worker}
--- @return Queue
function M.open(address, o)
  local parts, examples = url.parse(address), {}
  for i, kind in ipairs(files.modules(FOLDER)) do
    local module = require('cr.remote.queues.' .. kind)
    if parts and parts.scheme == kind then return module.open(parts, o) end
    examples[i] = module.example
  end
  errors.fail(('--queue: %s is not a queue: use %s'):format(url.shown(address), table.concat(examples, ' or ')))
end

return M
