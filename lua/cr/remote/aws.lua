--- Signed requests to AWS's services and compatible ones, retried where that may help.
--
-- Invariant: an error is one sentence with the service's own code and message. It contains no key, token or signature.

local credentials = require 'cr.remote.credentials'
local digest = require 'cr.digest'
local errors = require 'cr.errors'
local http = require 'cr.remote.http'
local json = require 'cr.json'
local printable = require 'cr.config'.printable
local profiles = require 'cr.remote.profiles'
local retry = require 'cr.remote.retry'
local url = require 'cr.remote.url'

local M = {}

-- Error codes that may be temporary although their HTTP status does not say so.
local PASS = {
  RequestTimeout = true, RequestTimeoutException = true, SlowDown = true, Throttling = true, ThrottlingException = true,
  ThrottledException = true, RequestThrottled = true, TooManyRequestsException = true, ConditionalRequestConflict = true,
  OperationAborted = true, BadDigest = true, XAmzContentSHA256Mismatch = true,
}
local ENDED = { ExpiredToken = true, ExpiredTokenException = true, RequestExpired = true, TokenRefreshRequired = true }

--- @class AwsClient
--- @field service string
--- @field region string
--- @field endpoint string without a slash at its end
--- @field own boolean whether the endpoint is not AWS's
local Client = {}
Client.__index = Client

--- Returns the region that the environment or the profile names.
--- @return string?
function M.region()
  local region = os.getenv 'AWS_REGION' or os.getenv 'AWS_DEFAULT_REGION'
  if region and region ~= '' then return region end
  return (profiles.read() or {}).region
end

local chains = {} -- one chain for each region, shared by all services

--- @param o table {service = 'sqs', region, endpoint = instead of AWS's own}
--- @return AwsClient
function M.new(o)
  local region = o.region or M.region()
  local endpoint = o.endpoint or os.getenv('AWS_ENDPOINT_URL_' .. o.service:upper()) or os.getenv 'AWS_ENDPOINT_URL'
  if not region then
    errors.fail(('%s: no region is given: set AWS_REGION, or write region=… in the URL'):format(o.service:upper()))
  end
  chains[region] = chains[region] or credentials.chain(region)
  return setmetatable({
    service = o.service, region = region, own = endpoint ~= nil, chain = chains[region],
    endpoint = (endpoint or ('https://%s.%s.amazonaws.com'):format(o.service, region)):gsub('/$', ''),
  }, Client)
end

-- Returns the code and message in the body of an error, in JSON or XML.
local function explained(answer)
  local body = answer.body
  local value = body:find '^%s*{' and json.decode(body)
  if type(value) == 'table' then
    return tostring(value.__type or value.code or ''):gsub('^.*#', ''), value.message or value.Message
  end
  return body:match '<Code>([^<]*)</Code>' or '', body:match '<Message>([^<]*)</Message>'
end

local function sentence(what, answer, code, message)
  local text = code ~= '' and code or 'status ' .. answer.status
  if message and message ~= '' then text = text .. ': ' .. printable(message) end
  return ('%s: %s'):format(what, text)
end

-- Makes one attempt. The headers for the signature are added to the caller's.
local function try(self, what, o)
  local keys = self.chain:get()
  local headers = {}
  for name, value in pairs(o.headers or {}) do headers[name] = value end
  headers['x-amz-content-sha256'] = o.sha256 or digest.of_text('SHA256', o.body or '')
  headers['x-amz-security-token'] = keys.token
  --- @type HttpAnswer?, string?, integer?
  local answer, problem, received = http.request {
    method = o.method, url = (o.endpoint or self.endpoint) .. (o.path or '/') .. url.query(o.query or {}), headers = headers,
    body = o.body, file = o.file, out = o.out, limit = o.limit, idle = o.idle,
    sign = { service = self.service, region = o.region or self.region, id = keys.id, key = keys.key },
  }
  if not answer then return nil, ('%s: %s'):format(what, problem), true, received end
  -- S3 may answer with status 200 before an operation fails.
  if answer.status < 300 and not answer.body:find '^%s*<%?xml[^>]*>%s*<Error>' then return answer end
  local code, message = explained(answer)
  answer.code = code
  if o.accept and o.accept[answer.status] then return answer end
  if ENDED[code] then self.chain:forget() end
  local passes = answer.status < 300 or answer.status >= 500 or answer.status == 429 or PASS[code] or ENDED[code]
  return nil, sentence(what, answer, code, message), passes, 0, answer
end

--- Sends a request to a service.
--- @param what string names the request in messages: 's3://bucket/key'
--- @param o table {method, path, query, headers, body, file, out, limit, idle (see http.request); sha256 = the digest
---   of a body that is a file; accept = {[404] = true}: statuses that are not errors; tries; endpoint, region (the
---   client's); again = fun(received: integer, answer: HttpAnswer?): boolean?, called after each failure; true means
---   that the next attempt resumes where this one ended}
--- @return HttpAnswer? nil if all attempts failed
--- @return string? problem
--- @return boolean? whether the failure may be temporary
function Client:request(what, o)
  return retry.call(function()
    local answer, problem, passes, received, failed = try(self, what, o)
    if not answer and o.again and o.again(received or 0, failed) then passes = 'anew' end
    return answer, problem, passes
  end, { tries = o.tries })
end

return M
