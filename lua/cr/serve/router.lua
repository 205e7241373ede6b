--- Handles HTTP requests by a table of operations.
--
-- An operation is a row
--
--     { id = 'getJob', method = 'GET', path = '/v1/jobs/{id}', summary = 'A job.', params = { id = schema },
--       query = { limit = schema }, header = { ['Idempotency-Key'] = schema },      -- other query parameters are refused,
--       any_query = false,                                                          -- or ignored if this is true
--       body = { ['application/json'] = schema },        -- JSON is parsed and checked by this schema
--       answers = { [200] = { schema = schema } }, problems = { 404 }, public = false,
--       run = function(call) return 200, { ... }, { ['header'] = 'value' } end }
--
-- `call` is {request, response, params, query, header, body, operation} plus the fields of the router's `context`.
-- `run` returns a status and a value that is sent as JSON (a string is sent as it is, with a content-type among the
-- headers), or nothing if it has answered itself. An error that it raises is answered as a problem
-- (lua/cr/serve/problem.lua). The OpenAPI document is made from the same rows (lua/cr/serve/openapi.lua), so that it
-- describes what is checked. Invariant: every request is answered.

local cjson = require 'cjson'
local errors = require 'cr.errors'
local json = require 'cr.json'
local problems = require 'cr.serve.problem'
local shape = require 'cr.serve.shape'
local text_of = require 'cr.serve.text'

local M = {}

local MOST_JSON = 1e6 -- largest JSON body in bytes
local MOST_DEPTH = 20

local decoder = cjson.new()
decoder.decode_invalid_numbers(false)
decoder.decode_max_depth(MOST_DEPTH)

--- @class Router
--- @field operations table[]
--- @field on_answer function?
local Router = {}
Router.__index = Router

-- {'v1', 'jobs', '{id}'}
local function segments(path)
  local list = {}
  for part in path:gmatch '[^/]+' do list[#list + 1] = part end
  return list
end

local function match(pattern, path)
  if #pattern ~= #path then return nil end
  local params = {}
  for i, part in ipairs(pattern) do
    local name = part:match '^{(%w+)}$'
    if name then params[name] = path[i] elseif part ~= path[i] then return nil end
  end
  return params
end

-- Finds the requested operation and its parameters. If there is none, returns the methods that the path allows.
local function find(self, request)
  local path, allowed = segments(request.path), {}
  if request.path:find '//' or #request.path > 1 and request.path:find '/$' then return nil, nil, allowed end
  local method = request.method == 'HEAD' and 'GET' or request.method
  for i, operation in ipairs(self.operations) do
    local params = match(self.patterns[i], path)
    if params then
      if operation.method == method then return operation, params end
      allowed[#allowed + 1] = operation.method
      if operation.method == 'GET' then allowed[#allowed + 1] = 'HEAD' end
    end
  end
  return nil, nil, allowed
end

local function read_params(operation, given)
  local values = {}
  for name, text in pairs(given) do
    local schema = operation.params[name]
    local value = shape.read(schema, text)
    -- A value that cannot be a name of anything is answered with 404.
    if value == nil or shape.check(schema, value) or schema.pattern and not text:find(schema.match) then
      problems.fail(404, ('there is nothing with the name %s'):format(text_of.shown(text)))
    end
    values[name] = value
  end
  return values
end

-- Refuses a query parameter that the operation does not have.
local function refuse_parameter(schemas, name)
  local known, shown = {}, text_of.shown(name)
  for parameter in pairs(schemas) do known[#known + 1] = parameter end
  local hint = #known > 0 and ': ' .. errors.did_you_mean(name, known) or ''
  problems.fail(400, ("there is no parameter '%s'%s"):format(shown, hint), shown)
end

local function read_values(schemas, given, strict)
  local values = {}
  for name, text in pairs(given) do
    local schema = schemas[name]
    if not schema then
      if strict then refuse_parameter(schemas, name) end
    else
      local value = shape.read(schema, text)
      local problem = value == nil and ("'%s' is not of the right type"):format(text_of.shown(text)) or shape.check(schema, value)
      if problem then problems.fail(400, ('%s: %s'):format(name, problem), name) end
      values[name] = value
    end
  end
  return values
end

local function kind_of(request)
  return (request.headers['content-type'] or ''):lower():match '^%s*([^;%s]*)'
end

local function read_body(operation, request)
  if not operation.body then return nil end
  local kind = kind_of(request)
  local schema = operation.body[kind] or operation.body['*/*']
  if not schema then
    local kinds = {}
    for name in pairs(operation.body) do kinds[#kinds + 1] = name end
    table.sort(kinds)
    problems.fail(415, ("a body of the type '%s' is not accepted: send %s"):format(text_of.shown(kind), table.concat(kinds, ' or ')))
  end
  if kind ~= 'application/json' then return nil end
  local text = request:text(MOST_JSON)
  local ok, value = pcall(decoder.decode, text)
  if not ok or not text_of.is_text(text) then
    problems.fail(400, 'the body is not JSON in UTF-8' .. (ok and '' or ': ' .. tostring(value):gsub('^.-:%d+: ', '')))
  end
  local problem, where = shape.check(schema, value)
  if problem then problems.fail(400, where and where .. ': ' .. problem or problem, where) end
  return value
end

local function lower(headers)
  local names = {}
  for name, schema in pairs(headers or {}) do names[name:lower()] = schema end
  return names
end

-- ---- answering ---------------------------------------------------------------------------------------

local COMMON = { ['cache-control'] = 'no-store', ['x-content-type-options'] = 'nosniff' }

local function with(headers, more)
  local all = {}
  for _, list in ipairs { COMMON, headers, more or {} } do
    for name, value in pairs(list) do all[name] = value end
  end
  return all
end

local function serve(self, request, response, operation, given)
  local call = setmetatable({ request = request, response = response, operation = operation }, { __index = self.context })
  call.params = read_params(operation, given)
  call.query = read_values(operation.query or {}, request.query, not operation.any_query)
  call.header = read_values(lower(operation.header), request.headers)
  call.body = read_body(operation, request)
  local status, value, headers = operation.run(call)
  if not status then return response.status or 200 end
  if value == nil then
    response:send(status, with({}, headers), '')
  elseif type(value) == 'string' then
    response:send(status, with({}, headers), value)
  else
    response:send(status, with({ ['content-type'] = 'application/json' }, headers), json.encode(value) .. '\n')
  end
  return status
end

-- Returns the problem for which a request is refused, and headers of the answer, or nil.
local function refused(self, request, operation, allowed)
  local refusal = self.guard and self.guard(request, operation ~= nil and operation.public or false)
  if refusal then
    if refusal.status == 401 then refusal.headers = { ['WWW-Authenticate'] = 'Bearer' } end
  elseif not operation and #allowed > 0 then
    refusal = problems.new(405, ('%s is not allowed for this path; allowed: %s'):format(text_of.shown(request.method),
      table.concat(allowed, ', ')))
    refusal.headers = { Allow = table.concat(allowed, ', ') }
  elseif not operation then
    refusal = problems.new(404, 'there is nothing at this path: /openapi.json lists all operations')
  end
  return refusal
end

-- A failure of the command line (cr.errors) is answered as a problem, too.
local function as_problem(err)
  if errors.is_failure(err) then return problems.new(422, err.message) end
  if type(err) ~= 'string' then return err end
  return { trace = debug.traceback(err, 2) }
end

--- Answers a request, or raises an error that the server (lua/cr/serve/http.lua) answers.
--- @param request table
--- @param response table
function Router:handle(request, response)
  local operation, given, allowed = find(self, request)
  local err, status = refused(self, request, operation, allowed), nil
  if not err then
    local ok
    ok, status = xpcall(serve, as_problem, self, request, response, operation, given)
    if not ok then err, status = status, nil end
  end
  status = status or response.status or problems.is(err) and err.status or err == problems.GONE and 499 or 500
  if self.on_answer then self.on_answer(operation and operation.id or 'none', status) end
  if err then error(err, 0) end
end

--- @param o table {operations, context = further fields of every call, guard = function(request, public) -> Problem?,
---   on_answer = function(operation's id, status)?}: 499 means that the client has disconnected
--- @return Router
function M.new(o)
  local self = setmetatable({
    operations = o.operations, context = o.context or {}, guard = o.guard, on_answer = o.on_answer, patterns = {},
  }, Router)
  for i, operation in ipairs(o.operations) do self.patterns[i] = segments(operation.path) end
  return self
end

return M
