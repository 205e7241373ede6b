--- Makes the OpenAPI 3.1 document of a table of operations (lua/cr/serve/router.lua).

local json = require 'cr.json'
local problems = require 'cr.serve.problem'
local shape = require 'cr.serve.shape'

local M = {}

local PROBLEM = {
  type = 'object', required = { 'type', 'title', 'status', 'detail' },
  properties = {
    type = { type = 'string' }, title = { type = 'string' }, status = { type = 'integer' },
    detail = { type = 'string', description = 'one sentence: what, where, what to do' },
    field = { type = 'string', description = 'the part of the request that has the problem' },
  },
}

-- Statuses that every operation may return.
local ALWAYS = { 400, 403, 408, 413, 429, 500, 503 }

local function problem_answer(status)
  return {
    description = problems.reasons[status],
    content = { ['application/problem+json'] = { schema = { ['$ref'] = '#/components/schemas/Problem' } } },
  }
end

local function answers_of(operation)
  local list = {}
  for _, status in ipairs(ALWAYS) do list[tostring(status)] = problem_answer(status) end
  if not operation.public then list['401'] = problem_answer(401) end
  for _, status in ipairs(operation.problems or {}) do list[tostring(status)] = problem_answer(status) end
  for status, answer in pairs(operation.answers) do
    local content
    if answer.schema or answer.types then
      content = {}
      for _, kind in ipairs(answer.types or { 'application/json' }) do
        content[kind] = { schema = shape.document(answer.schema or { type = 'string', contentMediaType = kind }) }
      end
    end
    list[tostring(status)] = { description = answer.description or operation.summary, content = content }
  end
  return list
end

local function parameters_of(operation)
  local list = {}
  for name in operation.path:gmatch '{(%w+)}' do
    list[#list + 1] = { name = name, ['in'] = 'path', required = true, schema = operation.params[name] }
  end
  for _, where in ipairs { 'query', 'header' } do
    local names = {}
    for name in pairs(operation[where] or {}) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
      local schema = operation[where][name]
      list[#list + 1] = { name = name, ['in'] = where, description = schema.description, schema = shape.document(schema) }
    end
  end
  return #list > 0 and json.list(list) or nil
end

local function body_of(operation)
  if not operation.body then return nil end
  local content = {}
  for kind, schema in pairs(operation.body) do content[kind] = { schema = shape.document(schema) } end
  return { required = true, content = content }
end

local function describe(paths, operation)
  local path = paths[operation.path] or {}
  paths[operation.path] = path
  path[operation.method:lower()] = {
    operationId = operation.id, summary = operation.summary, description = operation.description,
    parameters = parameters_of(operation), requestBody = body_of(operation), responses = answers_of(operation),
    security = operation.public and json.list {} or nil,
  }
end

--- @param o table {title, version, description, operations, schemas = schemas by name, token = whether a token is required}
--- @return table
function M.document(o)
  local paths, schemas = {}, { Problem = PROBLEM }
  for name, schema in pairs(o.schemas) do schemas[name] = shape.document(schema) end
  for _, operation in ipairs(o.operations) do
    if not operation.hidden then describe(paths, operation) end
  end
  return {
    openapi = '3.1.0', info = { title = o.title, version = o.version, description = o.description }, paths = paths,
    components = { schemas = schemas, securitySchemes = { token = { type = 'http', scheme = 'bearer' } } },
    security = o.token and json.list { { token = json.list {} } } or nil,
  }
end

return M
