--- The HTTP API: the table of operations (lua/cr/serve/router.lua), from which the OpenAPI document is generated.
--
-- A call has the fields jobs, uploads, store, pool, metrics, page, limits and others that models/service/init.lua
-- gives to the router.

local events = require 'cr.serve.events'
local id = require 'models.service.names'.id_schema
local json = require 'cr.json'
local loop = require 'cr.loop'
local null = require 'cjson'.null
local presets = require 'models.service.presets'
local problems = require 'cr.serve.problem'
local requests = require 'models.service.request'
local schemas = require 'models.service.schemas'
local shown = require 'cr.serve.text'.shown
local uploads = require 'models.service.uploads'

local uv = loop.uv
local EVENT_PAUSE = 0.2 -- minimum seconds between two events

local function ref(name) return { ['$ref'] = '#/components/schemas/' .. name } end
local function list_of(name, key, more)
  local properties = { [key] = { type = 'array', items = ref(name) } }
  for other, schema in pairs(more or {}) do properties[other] = schema end
  return { type = 'object', required = { key }, properties = properties }
end

-- A file name as a quoted string of an HTTP header.
local function quoted_name(name) return (name:gsub('[%c"\\\127-\255]', '_')) end

local function send_file(call, path, kind, name)
  local attached = call.query.download
  call.response:file(path, { type = kind, name = name and quoted_name(name), download = attached or nil })
end

local function file_of(call)
  local file = call.store:file(call.params.id)
  if not file then problems.fail(404, 'there is no such file') end
  return file
end

-- A job that must be done.
local function done_job(call)
  local job = call.jobs:get(call.params.id)
  if job.state ~= 'done' then problems.fail(409, ('the job is %s: there is no result'):format(job.state)) end
  return job
end

-- ---- files -------------------------------------------------------------------------------------------

local bytes = { ['*/*'] = { type = 'string', contentMediaType = 'application/octet-stream' } }
local download = { type = 'boolean', description = '1: download instead of displaying it' }

local function receive(call, name, read)
  return 201, uploads.view(call.uploads:receive(name, read))
end

local function upload_part(call)
  local request = call.request
  request.limit = call.limits.upload + 65536 -- the form's own bytes around the part
  local status, file
  for part in request:multipart() do
    if part.name ~= 'file' then
      problems.fail(400, ("there is a part '%s': the form has one part, `file`"):format(shown(part.name)), 'file')
    elseif file then
      problems.fail(400, 'there are several files: send one at a time', 'file')
    end
    status, file = receive(call, part.filename, function() return part:read() end)
  end
  if not file then problems.fail(400, 'the form has no part `file`', 'file') end
  return status, file
end

local function upload_bytes(call)
  call.request.limit = call.limits.upload
  return receive(call, call.query.name, function() return call.request:read() end)
end

-- ---- jobs --------------------------------------------------------------------------------------------

local function follow(call)
  local job_id, jobs = call.params.id, call.jobs
  local job, live = jobs:get(job_id), jobs.live[call.params.id]
  local seconds, clock, enough = call.query.seconds, nil, call.query.seconds == 0
  local listener = live and not enough and live.bell:listen() or nil
  if listener and seconds then
    clock = uv.new_timer()
    clock:start(math.ceil(seconds * 1000), 0, function()
      enough = true
      listener:close()
    end)
  end
  if listener then call.response:on_close(function() listener:close() end) end
  local ok, problem = pcall(function()
    local stream = events.open(call.response)
    local version, preview, told = live and live.version, live and live.preview, nil
    local function tell()
      local view = jobs:view(job)
      local text = json.encode(view)
      if text ~= told then stream:send('job', view) end
      told = text
    end
    tell()
    while listener and call.request.method == 'GET' do
      local what = listener:wait()
      if enough then break elseif what == 'closed' then return end
      if what == 'beat' and live.version == version then
        stream:beat()
      elseif live.version ~= version then
        version = live.version
        if live.preview ~= preview then
          preview = live.preview
          stream:send('preview', { url = ('/v1/jobs/%s/preview?n=%d'):format(job_id, preview) })
        end
        job = jobs:get(job_id)
        tell()
        if not jobs.live[job_id] then break end
        loop.sleep(EVENT_PAUSE)
      end
    end
    call.response:finish()
  end)
  if clock then clock:close() end
  if listener then listener:close() end
  if not ok then error(problem, 0) end
end

local function preview(call)
  local job = call.jobs:get(call.params.id)
  local path = call.jobs:preview_of(job)
  if not require 'lfs'.attributes(path, 'mode') then problems.fail(404, 'the job has no preview yet') end
  send_file(call, path, 'image/png')
end

local function person(call)
  local job = done_job(call)
  for _, one in ipairs(job.people or {}) do
    if one.number == call.params.number then
      return send_file(call, ('%s/person-%d.png'):format(call.jobs:folder_of(job), one.number), 'image/png')
    end
  end
  problems.fail(404, 'there is no person with this number')
end

local function result(call)
  local job = done_job(call)
  if not job.result then problems.fail(404, 'a job of kind faces has no result file: see its field people') end
  local video = call.jobs:video_of(job)
  local name = ('%s-%s.%s'):format(video and video.name:gsub('%.[^.]*$', '') or 'result', job.kind, job.result.file:match '%.(%w+)$')
  send_file(call, call.jobs:folder_of(job) .. '/' .. job.result.file, job.result.type, name)
end

-- ---- the table ---------------------------------------------------------------------------------------

local by_id = { id = id }
local image = { types = { 'image/png' } }

return {
  { id = 'uploadFile', method = 'POST', path = '/v1/files', summary = 'Uploads a video, a sound or an image.',
    body = { ['multipart/form-data'] = { type = 'object', required = { 'file' }, additionalProperties = false,
      properties = { file = { type = 'string', format = 'binary' } } } },
    answers = { [201] = { schema = ref 'File' } }, problems = { 415, 422, 507 }, run = upload_part },
  { id = 'putFile', method = 'PUT', path = '/v1/files', summary = "Uploads a file as the request's body.", body = bytes,
    query = { name = { type = 'string', maxLength = 1000, description = 'name of the file' } },
    answers = { [201] = { schema = ref 'File' } }, problems = { 415, 422, 507 }, run = upload_bytes },
  { id = 'listFiles', method = 'GET', path = '/v1/files', summary = 'Lists all files, newest first.',
    answers = { [200] = { schema = list_of('File', 'files') } },
    run = function(call)
      local list = call.store:files()
      for i, file in ipairs(list) do list[i] = uploads.view(file) end
      return 200, { files = json.list(list) }
    end },
  { id = 'getFile', method = 'GET', path = '/v1/files/{id}', params = by_id, summary = 'Describes a file.',
    answers = { [200] = { schema = ref 'File' } }, problems = { 404 },
    run = function(call) return 200, uploads.view(file_of(call)) end },
  { id = 'deleteFile', method = 'DELETE', path = '/v1/files/{id}', params = by_id, summary = 'Deletes a file that no unfinished job uses.',
    answers = { [204] = {} }, problems = { 404, 409 },
    run = function(call)
      local file = file_of(call)
      if call.jobs:uses(file.id) then problems.fail(409, 'an unfinished job uses the file: cancel it first') end
      call.uploads:drop(file)
      return 204
    end },
  { id = 'fileContent', method = 'GET', path = '/v1/files/{id}/content', params = by_id, query = { download = download },
    summary = "Returns a file's bytes, or a range of them.",
    answers = { [200] = { types = { '*/*' } }, [206] = { types = { '*/*' } } }, problems = { 404, 416 },
    run = function(call)
      local file = file_of(call)
      send_file(call, call.uploads:path(file), file.type, file.name)
    end },
  { id = 'findFaces', method = 'POST', path = '/v1/files/{id}/faces', params = by_id, summary = 'Starts finding the people in a video.',
    body = { ['application/json'] = schemas.FacesRequest }, answers = { [201] = { schema = ref 'Job' } },
    problems = { 404, 415, 422 },
    run = function(call)
      local file, asked = file_of(call), call.body
      local job = call.jobs:faces { video = file.id, audio = asked.audio, start = asked.start, duration = asked.duration }
      return 201, call.jobs:view(job), { location = '/v1/jobs/' .. job.id }
    end },
  { id = 'createJob', method = 'POST', path = '/v1/jobs', summary = 'Begins a job.',
    description = 'A repeated request with the same Idempotency-Key returns the same job, with status 200.',
    header = { ['Idempotency-Key'] = { type = 'string', minLength = 1, maxLength = 200, pattern = '^[!-~]+$' } },
    body = { ['application/json'] = { ['$ref'] = '#/components/schemas/JobRequest', type = nil } },
    answers = { [200] = { schema = ref 'Job' }, [201] = { schema = ref 'Job' } }, problems = { 409, 415, 422 },
    run = function(call)
      local job, new = call.jobs:create(call.body, call.header['idempotency-key'])
      return new and 201 or 200, call.jobs:view(job), { location = '/v1/jobs/' .. job.id }
    end },
  { id = 'listJobs', method = 'GET', path = '/v1/jobs', summary = 'Lists jobs, newest first.',
    query = {
      state = { type = 'string', enum = schemas.states }, kind = { type = 'string', enum = schemas.kinds },
      limit = { type = 'integer', minimum = 1, maximum = 200, default = 50 },
      after = { type = 'string', maxLength = 40, description = 'a job id: only older jobs are listed; see `next` of an answer' },
    },
    answers = { [200] = { schema = list_of('Job', 'jobs', { next = { type = { 'string', 'null' } } }) } },
    run = function(call)
      local q = call.query
      local limit = q.limit or 50
      local list = call.store:jobs { state = q.state, kind = q.kind, limit = limit + 1, after = q.after }
      local more = table.remove(list, limit + 1)
      for i, job in ipairs(list) do list[i] = call.jobs:view(job) end
      return 200, { jobs = json.list(list), next = more and list[limit].id or null }
    end },
  { id = 'getJob', method = 'GET', path = '/v1/jobs/{id}', params = by_id, summary = 'Returns the current state of a job.',
    answers = { [200] = { schema = ref 'Job' } }, problems = { 404 },
    run = function(call) return 200, call.jobs:view(call.jobs:get(call.params.id)) end },
  { id = 'deleteJob', method = 'DELETE', path = '/v1/jobs/{id}', params = by_id,
    summary = 'Deletes a job that has ended, and its result.', answers = { [204] = {} }, problems = { 404, 409 },
    run = function(call)
      call.jobs:delete(call.params.id)
      return 204
    end },
  { id = 'cancelJob', method = 'POST', path = '/v1/jobs/{id}/cancel', params = by_id, summary = 'Cancels a queued or running job.',
    answers = { [200] = { schema = ref 'Job' } }, problems = { 404, 409 },
    run = function(call) return 200, call.jobs:view(call.jobs:cancel(call.params.id)) end },
  { id = 'jobEvents', method = 'GET', path = '/v1/jobs/{id}/events', params = by_id,
    query = { seconds = { type = 'number', minimum = 0, maximum = 86400,
      description = 'duration of the stream, whatever the state of the job; 0: only the current state' } },
    summary = 'Streams the events of a job until it has ended.',
    description = 'Server-Sent Events: `job` (data: a Job) at each change, at most five per second; `preview` (data: ' ..
      '{"url": the newest preview}).',
    answers = { [200] = { types = { 'text/event-stream' }, schema = { type = 'object', required = { 'event', 'data' },
      description = 'one event', properties = { event = { type = 'string', enum = { 'job', 'preview' } },
        data = { type = 'string', contentMediaType = 'application/json' } } } } }, problems = { 404 }, run = follow },
  { id = 'jobResult', method = 'GET', path = '/v1/jobs/{id}/result', params = by_id, query = { download = download },
    summary = 'Returns the resulting video or image of a job, or a range of its bytes.',
    answers = { [200] = { types = { 'video/mp4', 'video/x-matroska', 'image/png' } },
      [206] = { types = { 'video/mp4', 'video/x-matroska', 'image/png' } } },
    problems = { 404, 409, 416 }, run = result },
  { id = 'jobReport', method = 'GET', path = '/v1/jobs/{id}/report', params = by_id,
    summary = 'Returns the report of a finished job: seconds per stage, settings, versions.',
    answers = { [200] = { schema = { type = 'object' } } }, problems = { 404, 409 },
    run = function(call) return 200, call.jobs:report(done_job(call)) end },
  { id = 'jobPreview', method = 'GET', path = '/v1/jobs/{id}/preview', params = by_id, summary = 'Returns the newest frame of a job.',
    query = { n = { type = 'integer', minimum = 0, description = 'ignored; a new value makes a browser load the image again' } },
    answers = { [200] = image, [206] = image }, problems = { 404, 416 }, run = preview },
  { id = 'personPicture', method = 'GET', path = '/v1/jobs/{id}/people/{number}',
    params = { id = id, number = { type = 'integer', minimum = 1, maximum = 9999 } },
    summary = 'Returns the portrait of a person that a job of kind faces found.',
    answers = { [200] = image, [206] = image }, problems = { 404, 409, 416 }, run = person },
  { id = 'live', method = 'GET', path = '/v1/live', summary = 'A live session over a WebSocket: sound in, frames out.',
    description = 'The messages: "Live" in scripts/README.md.',
    answers = { [101] = { description = 'the WebSocket' } }, problems = { 404, 426 },
    run = function(call)
      if not call.lives then problems.fail(404, 'this server has no live sessions, because it was started with --live 0') end
      call.lives:handle(call.request:websocket { max = call.lives.max })
    end },
  { id = 'settings', method = 'GET', path = '/v1/settings', summary = 'Lists the settings of jobs.',
    answers = { [200] = { schema = schemas.Settings } },
    run = function()
      local kinds = {}
      for kind, rows in pairs(requests.kinds) do kinds[kind] = json.list(rows:describe()) end
      return 200, { kinds = kinds }
    end },
  { id = 'presets', method = 'GET', path = '/v1/presets', summary = 'Lists presets: named groups of settings.',
    answers = { [200] = { schema = schemas.Presets } }, run = function() return 200, { presets = presets } end },
  { id = 'system', method = 'GET', path = '/v1/system', summary = 'Describes the server: version, devices, checkpoint, limits.',
    answers = { [200] = { schema = schemas.System } }, run = function(call) return 200, call.describe() end },
  { id = 'healthz', method = 'GET', path = '/healthz', public = true, summary = 'Says whether the server is alive.',
    answers = { [200] = { schema = { type = 'object' } } }, run = function() return 200, { status = 'alive' } end },
  { id = 'readyz', method = 'GET', path = '/readyz', public = true, summary = 'Says whether a device has loaded the model and takes jobs.',
    answers = { [200] = { schema = { type = 'object' } } },
    run = function(call)
      -- Not raised as an error, because the log would report it at every request.
      if not call.pool:ready() then return call.response:problem(problems.new(503, call.not_ready())) end
      return 200, { status = 'ready' }
    end },
  { id = 'metrics', method = 'GET', path = '/metrics', summary = 'Returns metrics in the Prometheus format.',
    answers = { [200] = { types = { 'text/plain' } } },
    run = function(call) return 200, call.metrics:text(), { ['content-type'] = 'text/plain; version=0.0.4; charset=utf-8' } end },
  { id = 'openapi', method = 'GET', path = '/openapi.json', summary = 'This document.',
    answers = { [200] = { schema = { type = 'object' } } }, run = function(call) return 200, call.document() end },
}
