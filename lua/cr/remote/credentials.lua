--- AWS credentials, searched in the same order as by AWS's tools: the environment, a profile's role, a web identity
--- (IRSA), the shared files, a container's endpoint (Pod Identity, ECS), instance metadata (IMDSv2).
--
-- Invariants: credentials are renewed some minutes before they expire, by one task at a time. If renewal fails, the
-- current ones are used until they expire. No key or token appears in a message or in a file that we write.

local errors = require 'cr.errors'
local files = require 'cr.files'
local http = require 'cr.remote.http'
local json = require 'cr.json'
local loop = require 'cr.loop'
local profiles = require 'cr.remote.profiles'
local retry = require 'cr.remote.retry'
local url = require 'cr.remote.url'
local digest = require 'cr.digest'

local M = {}

local EARLY = 300 -- seconds before they expire

--- @class Credentials
--- @field id string
--- @field key string
--- @field token string?
--- @field expires number? seconds since 1970

-- Converts 2026-11-30T15:00:00Z to seconds since 1970.
local function seconds_of(text)
  local y, m, d, hour, minute, second = tostring(text):match '^(%d+)-(%d+)-(%d+)T(%d+):(%d+):(%d+)'
  if not y then return nil end
  y, m, d = tonumber(y), tonumber(m), tonumber(d)
  if m <= 2 then y, m = y - 1, m + 12 end
  local days = 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400) + math.floor((153 * (m - 3) + 2) / 5) + d - 719469
  return ((days * 24 + tonumber(hour)) * 60 + tonumber(minute)) * 60 + tonumber(second)
end
M.seconds_of = seconds_of

local function variable(name)
  local value = os.getenv(name)
  return value ~= '' and value or nil
end

local function credentials(id, key, token, expires)
  if not id or not key or id == '' or key == '' then return nil end
  return { id = id, key = key, token = token ~= '' and token or nil, expires = expires }
end

-- Sends a request and fails unless the status is 200.
local function ask(what, o, tries)
  o.limit, o.idle = 2 ^ 20, 10
  local answer, problem = retry.call(function()
    local got, why = http.request(o)
    if got and got.status == 200 then return got end
    if not got then return nil, why, true end
    return nil, ('status %d%s'):format(got.status, got.body:match '<Code>(%w+)' and ', ' .. got.body:match '<Code>(%w+)' or ''),
      got.status >= 500 or got.status == 429
  end, { tries = tries or 4 })
  if not answer then errors.fail(('%s gives no credentials: %s'):format(what, problem)) end
  return answer.body
end

-- Parses the answer of a container's endpoint or of instance metadata.
local function from_json(what, text)
  local value = json.decode(text)
  local found = type(value) == 'table' and credentials(value.AccessKeyId, value.SecretAccessKey, value.Token, seconds_of(value.Expiration))
  return found or errors.fail(what .. ' answers with something other than credentials')
end

local function read_token(path, what)
  local text = files.read(path)
  return text and text:match '^%s*(.-)%s*$' or errors.fail(('%s: %s cannot be read'):format(what, path))
end

-- ---- roles ---------------------------------------------------------------------------------------

-- Assumes a role: `form` is the request, `by` are the credentials that sign it.
local function assume(region, form, by)
  form.Version, form.RoleSessionName = '2011-06-15', form.RoleSessionName or 'crescent'
  region = region or 'us-east-1'
  local body = url.query(form):sub(2)
  local headers = { ['Content-Type'] = 'application/x-www-form-urlencoded' }
  if by then
    headers['x-amz-content-sha256'] = digest.of_text('SHA256', body)
    headers['x-amz-security-token'] = by.token
  end
  local endpoint = variable 'AWS_ENDPOINT_URL_STS' or variable 'AWS_ENDPOINT_URL'
  local text = ask('the role ' .. form.RoleArn, {
    method = 'POST', url = endpoint or ('https://sts.%s.amazonaws.com/'):format(region),
    headers = headers, body = body, sign = by and { service = 'sts', region = region, id = by.id, key = by.key },
  })
  local function field(name) return text:match('<' .. name .. '>([^<]*)</' .. name .. '>') end
  return credentials(field 'AccessKeyId', field 'SecretAccessKey', field 'SessionToken', seconds_of(field 'Expiration'))
      or errors.fail(('the role %s gives no credentials: the answer contains none'):format(form.RoleArn))
end

local function by_web_identity(region, role, token_file, session)
  return assume(region, {
    Action = 'AssumeRoleWithWebIdentity', RoleArn = role, RoleSessionName = session,
    WebIdentityToken = read_token(token_file, 'the web identity of ' .. role),
  })
end

local static -- declared here, defined below

local function by_profile(region, name, seen)
  local profile = profiles.read(name)
  if not profile then return nil end
  if not profile.role_arn then return nil end
  if profile.web_identity_token_file then
    return by_web_identity(profile.region or region, profile.role_arn, profile.web_identity_token_file, profile.role_session_name)
  end
  local from = profile.source_profile
  if not from then return nil end
  if seen[from] then errors.fail(('AWS profile %s: its source profiles form a cycle'):format(name)) end
  seen[from] = true
  local by = from ~= name and by_profile(region, from, seen) or static(from)
  if not by then errors.fail(('AWS profile %s: its source profile %s has no keys'):format(name, from)) end
  return assume(profile.region or region, {
    Action = 'AssumeRole', RoleArn = profile.role_arn, RoleSessionName = profile.role_session_name, ExternalId = profile.external_id,
  }, by)
end

function static(name)
  local profile = profiles.read(name) or {}
  return credentials(profile.aws_access_key_id, profile.aws_secret_access_key, profile.aws_session_token)
end

-- ---- where credentials come from, in order --------------------------------------------------------

local sources = {}

function sources.environment()
  return credentials(variable 'AWS_ACCESS_KEY_ID', variable 'AWS_SECRET_ACCESS_KEY', variable 'AWS_SESSION_TOKEN')
end

function sources.role(region) return by_profile(region, profiles.name(), {}) end

function sources.web_identity(region)
  local role, token = variable 'AWS_ROLE_ARN', variable 'AWS_WEB_IDENTITY_TOKEN_FILE'
  return role and token and by_web_identity(region, role, token, variable 'AWS_ROLE_SESSION_NAME') or nil
end

function sources.files()
  local name = profiles.name()
  if name ~= 'default' and not profiles.read(name) then
    errors.fail(('AWS profile %s, which AWS_PROFILE names, is in neither ~/.aws/credentials nor ~/.aws/config'):format(name))
  end
  return static(name)
end

-- Plain HTTP is allowed only to this machine.
local NEAR = { ['localhost'] = true, ['[::1]'] = true, ['169.254.170.2'] = true, ['169.254.170.23'] = true, ['[fd00:ec2::23]'] = true }

function sources.container()
  local relative, full = variable 'AWS_CONTAINER_CREDENTIALS_RELATIVE_URI', variable 'AWS_CONTAINER_CREDENTIALS_FULL_URI'
  local place = relative and 'http://169.254.170.2' .. relative or full
  if not place then return nil end
  local parts = url.parse(place)
  if not parts or parts.scheme ~= 'https' and not NEAR[parts.host] and not parts.host:find '^127%.' then
    errors.fail 'AWS_CONTAINER_CREDENTIALS_FULL_URI: plain http may only go to this machine'
  end
  local file = variable 'AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE'
  local token = file and read_token(file, 'AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE') or variable 'AWS_CONTAINER_AUTHORIZATION_TOKEN'
  return from_json("the container's endpoint", ask("the container's endpoint",
    { url = place, headers = { Authorization = token }, connect = 2, direct = true }))
end

function sources.instance()
  if (variable 'AWS_EC2_METADATA_DISABLED' or ''):lower() == 'true' then return nil end
  local place = (variable 'AWS_EC2_METADATA_SERVICE_ENDPOINT' or 'http://169.254.169.254'):gsub('/$', '')
  local token = http.request {
    method = 'PUT', url = place .. '/latest/api/token', body = '', connect = 1, idle = 2, direct = true, limit = 2 ^ 16,
    headers = { ['X-aws-ec2-metadata-token-ttl-seconds'] = 21600, ['Content-Type'] = 'text/plain' },
  }
  if not token or token.status ~= 200 then return nil end -- this machine is not an instance
  local headers = { ['X-aws-ec2-metadata-token'] = token.body }
  local list = place .. '/latest/meta-data/iam/security-credentials/'
  local role = http.request { url = list, headers = headers, connect = 1, direct = true, limit = 2 ^ 16 }
  if not role or role.status ~= 200 then return nil end -- the instance has no role
  local name = role.body:match '^%s*([^\r\n]+)'
  return from_json('instance metadata',
    ask('instance metadata', { url = list .. url.encode(name or ''), headers = headers, connect = 1, direct = true }))
end

local ORDER = { 'environment', 'role', 'web_identity', 'files', 'container', 'instance' }

-- ---- the chain -----------------------------------------------------------------------------------

--- @class Chain
local Chain = {}
Chain.__index = Chain

--- @param region string? of STS
--- @return Chain
function M.chain(region) return setmetatable({ region = region }, Chain) end

local function find(self)
  for _, name in ipairs(ORDER) do
    local found = sources[name](self.region)
    if found then return found, name end
  end
  errors.fail('there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, ' ..
    'or give the pod or instance a role')
end

local function lasts(found, early) return not found.expires or found.expires - os.time() > early end

-- Finds credentials again. Tasks that ask meanwhile wait for the same result.
local function renew(self)
  self.renewing = self.renewing or loop.go(function()
    local ok, found, source = pcall(find, self)
    self.renewing = nil
    if not ok then error(found, 0) end
    self.found, self.source = found, source
  end)
  return pcall(loop.await, self.renewing)
end

--- Returns valid credentials, and finds or renews them if necessary. It must be called in a task.
--- @return Credentials
function Chain:get()
  if not self.found or not lasts(self.found, EARLY) then
    local ok, problem = renew(self)
    if not ok and not (self.found and lasts(self.found, 0)) then error(problem, 0) end
  end
  return self.found
end

--- Drops the credentials, because a service has said that they have expired. The next get() finds new ones.
function Chain:forget() self.found = nil end

return M
