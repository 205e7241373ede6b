--- AWS SQS and compatible services: sqs://NAME?region=…&endpoint=…&dead=NAME.
--
-- Dead letters go to the queue `dead`, or to the one in the queue's redrive policy, with the attributes error, id, tries.

local aws = require 'cr.remote.aws'
local digest = require 'cr.digest'
local errors = require 'cr.errors'
local json = require 'cr.json'
local url = require 'cr.remote.url'

local M = { example = 'sqs://NAME?region=…' }

local LONGEST_WAIT = 20 -- seconds, SQS's limit
local IDLE = 15         -- seconds without a byte, since a network that was cut gives no other sign
local LONGEST_ERROR = 1000 -- bytes

local REFUSED = { [400] = true, [404] = true } -- statuses of answers that contain an error code

-- Error codes of a receipt that is no longer valid.
local LOST = {
  ReceiptHandleIsInvalid = true, MessageNotInflight = true, InvalidParameterValue = true, InvalidParameterValueException = true,
}

--- @class SqsQueue: Queue
--- @field client AwsClient
--- @field url string
--- @field dead string the URL of the queue of dead letters
--- @field ordered boolean whether it is a FIFO queue
--- @field lease number seconds
local Sqs = {}
Sqs.__index = Sqs

--- @return any
--- @return any code
--- @return any answer
local function ask(self, action, values, o)
  o = o or {}
  o.method, o.body, o.idle = 'POST', json.encode(values), o.idle or IDLE
  o.headers = { ['Content-Type'] = 'application/x-amz-json-1.0', ['X-Amz-Target'] = 'AmazonSQS.' .. action }
  local answer, problem = self.client:request(self.name, o)
  if not answer then errors.fail(problem) end
  return answer.status < 300 and (answer.body:find '%S' and json.decode(answer.body) or {}) or nil, answer.code, answer
end

local function url_of(self, name)
  local value, code, answer = ask(self, 'GetQueueUrl', { QueueName = name }, { accept = REFUSED })
  if value then return value.QueueUrl end
  local absent = code:find 'DoesNotExist' or code:find 'NonExistent'
  errors.fail(('sqs://%s: %s'):format(name, absent and 'there is no such queue' or ('%s (status %d)'):format(code, answer.status)))
end

-- Returns the URL of the queue of dead letters.
local function dead_url(self, name)
  if name then return url_of(self, name) end
  local value = ask(self, 'GetQueueAttributes', { QueueUrl = self.url, AttributeNames = { 'RedrivePolicy' } })
  local policy = value.Attributes and json.decode(value.Attributes.RedrivePolicy or '')
  local arn = type(policy) == 'table' and policy.deadLetterTargetArn
  if not arn then
    errors.fail(self.name .. ': there is no queue for dead letters: give the queue a redrive policy, or write dead=NAME in the URL')
  end
  return url_of(self, tostring(arn):match '[^:]*$')
end

--- @param parts Url
--- @param o table {lease}
--- @return SqsQueue
function M.open(parts, o)
  local options = url.options('--queue', parts, { 'region', 'endpoint', 'dead' })
  if parts.user or parts.password then errors.fail '--queue: keys do not belong in a URL: use AWS_ACCESS_KEY_ID, AWS_PROFILE or a role' end
  local name = parts.host
  local self = setmetatable({
    name = 'sqs://' .. name, lease = o.lease, client = aws.new { service = 'sqs', region = options.region, endpoint = options.endpoint },
  }, Sqs)
  self.url = url_of(self, name)
  self.dead, self.ordered = dead_url(self, options.dead), name:find '%.fifo$' ~= nil
  return self
end

function Sqs:receive(seconds)
  local wait = math.max(0, math.min(LONGEST_WAIT, math.floor(seconds)))
  local value = ask(self, 'ReceiveMessage', {
    QueueUrl = self.url, MaxNumberOfMessages = 1, WaitTimeSeconds = wait, VisibilityTimeout = math.ceil(self.lease),
    AttributeNames = { 'ApproximateReceiveCount' }, MessageSystemAttributeNames = { 'ApproximateReceiveCount' },
  }, { idle = wait + 30, tries = 2 })
  local got = (value.Messages or {})[1]
  if not got then return nil end
  if got.MD5OfBody and got.MD5OfBody ~= digest.of_text('MD5', got.Body) then
    errors.fail(self.name .. ': a message arrived damaged; it will be delivered again')
  end
  return {
    id = got.MessageId, body = got.Body, receipt = got.ReceiptHandle, tries = tonumber((got.Attributes or {}).ApproximateReceiveCount) or 1,
  }
end

local function set_visibility(self, message, seconds)
  local value, code = ask(self, 'ChangeMessageVisibility',
    { QueueUrl = self.url, ReceiptHandle = message.receipt, VisibilityTimeout = math.ceil(seconds) }, { accept = REFUSED })
  if value then return true end
  return LOST[code] == nil and errors.fail(('%s: the lease cannot be set: %s'):format(self.name, code)) or false
end

function Sqs:extend(message, seconds) return set_visibility(self, message, seconds) end

function Sqs:done(message)
  ask(self, 'DeleteMessage', { QueueUrl = self.url, ReceiptHandle = message.receipt }, { accept = REFUSED })
end

function Sqs:fail(message, o)
  -- A message whose lease was lost already belongs to another worker.
  if not o.dead then return set_visibility(self, message, o.delay or 0) end
  local function text(value) return { DataType = 'String', StringValue = tostring(value) } end
  ask(self, 'SendMessage', {
    QueueUrl = self.dead, MessageBody = message.body, MessageGroupId = self.ordered and message.id or nil,
    MessageDeduplicationId = self.ordered and message.id or nil,
    MessageAttributes = { error = text(o.dead:sub(1, LONGEST_ERROR)), id = text(message.id), tries = text(message.tries) },
  })
  self:done(message)
end

function Sqs:count()
  local names = { 'ApproximateNumberOfMessages', 'ApproximateNumberOfMessagesNotVisible', 'ApproximateNumberOfMessagesDelayed' }
  local value, n = ask(self, 'GetQueueAttributes', { QueueUrl = self.url, AttributeNames = names }), 0
  for _, name in ipairs(names) do n = n + (tonumber((value.Attributes or {})[name]) or 0) end
  return n
end

function Sqs:close() end -- luacheck: ignore self

return M
