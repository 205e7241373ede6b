--- A job of a queue: a JobRequest (models/service/request.lua) whose files are URLs, with its id and the URL of the
--- result. `crescent worker --schema` prints the schema that is checked here.

local errors = require 'cr.errors'
local json = require 'cr.json'
local names = require 'models.service.names'
local problems = require 'cr.serve.problem'
local requests = require 'models.service.request'
local shape = require 'cr.serve.shape'

local M = {}

local OWN = {
  id = {
    type = 'string', minLength = 1, maxLength = 100, pattern = '^[A-Za-z0-9][A-Za-z0-9._-]*$',
    description = "the job's id, also used in the result's name; two jobs with the same id are one job (default: the queue's message id)",
    holds = function(text)
      return not text:find '^%w[%w._-]*$' and 'it may only hold letters, digits, dots, dashes and _, and not begin with ._-' or nil
    end,
  },
  out = {
    type = 'string', minLength = 1, maxLength = 2000,
    description = "URL of the result: s3://BUCKET/KEY, https://HOST/…, file:///PATH; if it ends with a slash, the job's id is appended",
  },
}

--- The JSON Schemas of a job, by kind.
M.schemas = {}
for kind, schema in pairs(requests.schemas) do
  local all = {}
  for key, value in pairs(schema) do all[key] = value end
  all.properties, all.required = {}, { 'out', unpack(schema.required) }
  for _, part in ipairs { schema.properties, OWN } do
    for name, value in pairs(part) do all.properties[name] = value end
  end
  M.schemas[kind] = all
end

local FILE = 's3://BUCKET/KEY, https://HOST/… of a host that the worker allows (with #sha256=HEX its hash is checked), or file:///PATH'

-- Describes file fields as URLs.
local function told(value)
  if type(value) ~= 'table' then return value end
  if value.description == requests.file.description then value.description = FILE end
  for _, inner in pairs(value) do told(inner) end
  return value
end

--- The schema of all jobs, as one document.
--- @return table
function M.document()
  return {
    ['$schema'] = 'https://json-schema.org/draft/2020-12/schema', title = 'A job of crescent worker',
    oneOf = { told(shape.document(M.schemas.lipsync)), told(shape.document(M.schemas.upscale)) },
  }
end

--- @class Order
--- @field id string
--- @field out string the result's full URL
--- @field kind string
--- @field body table the JobRequest, for a worker process
--- @field files table[] a list of {name = URL, field} of its input files

-- The extension of a result if `out` ends with a slash.
local function ending_of(request)
  return request.settings.lossless and '.mkv' or '.mp4'
end

--- The id of a job, also of one that is not valid, for its log.
--- @param text string?
--- @param message_id string
--- @return string
function M.id(text, message_id)
  local body = text and json.decode(text)
  local id = type(body) == 'table' and body.id
  return type(id) == 'string' and shape.check(OWN.id, id) == nil and id or message_id
end

--- Parses and checks a job's text; raises one sentence.
--- @param text string? nil: the message holds none
--- @param message_id string
--- @return Order
function M.read(text, message_id)
  if not text then errors.fail "the entry has no field 'job', which holds the job" end
  local body, wrong = json.decode(text)
  if type(body) ~= 'table' then errors.fail('it is not a JSON object' .. (wrong and ': ' .. wrong or '')) end
  local schema = M.schemas[body.kind or 'lipsync']
  if not schema then errors.failf("kind: '%s' is not one of lipsync, upscale", tostring(body.kind):sub(1, 60)) end
  local problem, where = shape.check(schema, body)
  if problem then errors.fail(where and not problem:find ' is missing$' and where .. ': ' .. problem or problem) end
  local order = { id = body.id or message_id, out = body.out, body = body }
  body.id, body.out = nil, nil
  local ok, request = pcall(requests.check, body)
  if not ok then errors.fail(problems.is(request) and request.detail or tostring(request)) end
  order.kind, order.files = request.kind, requests.files(request)
  if order.out:find '/$' then order.out = order.out .. order.id .. ending_of(request) end
  return order
end

--- A worker's default name: the host name and some letters.
--- @return string
function M.worker_name() return ('%s-%s'):format(require 'cr.loop'.uv.os_gethostname(), names.id():sub(1, 6)) end

return M
