--- A server of jobs: what `crescent serve` runs.
--
--     local service = require 'models.service'.open { checkpoint = DIR, data = DIR, devices = { 'cuda:0' }, port = 7860 }
--     service.port       service:close()
--
-- Parts: request.lua (what may be asked for), uploads.lua, jobs.lua and store.lua (what is remembered), pool.lua and worker.lua
-- (the processes that hold the model), operations.lua (the API), page.lua. What is not about lip-sync is in lua/cr/serve.

local access = require 'cr.serve.access'
local cr = require 'cr'
local disk = require 'cr.serve.disk'
local errors = require 'cr.errors'
local fetching = require 'models.service.fetching'
local files = require 'cr.files'
local http = require 'cr.serve.http'
local json = require 'cr.json'
local lives_of = require 'models.latentsync.live.server'
local jobs_of = require 'models.service.jobs'
local metrics_of = require 'cr.serve.metrics'
local names = require 'models.service.names'
local openapi = require 'cr.serve.openapi'
local operations = require 'models.service.operations'
local pages = require 'models.service.page'
local pools = require 'models.service.pool'
local routers = require 'cr.serve.router'
local schemas = require 'models.service.schemas'
local stores = require 'models.service.store'
local uploads_of = require 'models.service.uploads'
local words = require 'models.service.words'

local uv = require 'cr.loop'.uv
local M = {}

local DAY, SWEEP = 86400, 3600 -- seconds

--- @class Service
--- @field port integer
--- @field refused string? why the model cannot be loaded
local Service = {}
Service.__index = Service

local function count_in(self)
  local m = self.metrics
  self.counts = {
    requests = m:counter('crescent_http_requests_total', 'Answered requests; 499: the client left.', { 'operation', 'status' }),
    errors = m:counter('crescent_job_errors_total', 'Jobs that failed, by kind.', { 'kind' }),
    frames = m:counter('crescent_frames_total', 'Frames that jobs have made.'),
    seconds = m:counter('crescent_stage_seconds_total', 'Seconds that jobs have worked, by stage.', { 'stage' }),
  }
  m:gauge('crescent_jobs', 'Jobs by state.', { 'state' }, function(set)
    for state, n in pairs(self.store:counts()) do set(n, state) end
  end)
  m:gauge('crescent_queue_length', 'Jobs that wait.', {}, function(set) set(#self.jobs.queue) end)
  local function of_workers(name, help, value)
    m:gauge(name, help, { 'worker' }, function(set)
      for _, worker in ipairs(self.pool:workers()) do
        local v = value(worker)
        if v then set(v, worker.name) end
      end
    end)
  end
  local function of_live(name, help, labels, value)
    m:gauge('crescent_live_' .. name, help .. ' of the live sessions that run.', labels, function(set)
      for i, figures in ipairs(self.lives and self.lives:metrics() or {}) do value(figures, set, tostring(i)) end
    end)
  end
  of_live('frames', 'Frames shown', { 'session' }, function(f, set, i) set(f.frames, i) end)
  of_live('held_frames', 'Frames whose mouth was late', { 'session' }, function(f, set, i) set(f.held, i) end)
  of_live('seconds', 'Seconds by stage', { 'session', 'stage', 'quantile' }, function(f, set, i)
    for stage, seconds in pairs(f.seconds) do
      set(seconds.p50, i, stage, '0.5')
      set(seconds.p99, i, stage, '0.99')
    end
  end)
  of_workers('crescent_worker_busy', 'Whether a worker has a job.', function(w) return w.state == 'busy' and 1 or 0 end)
  of_workers('crescent_worker_busy_seconds', 'Seconds of its ended jobs.', function(w) return w.busy_seconds end)
  of_workers('crescent_worker_restarts', 'How often it was started anew.', function(w) return w.crashes end)
  for _, what in ipairs { { 'live', 'Bytes that tensors hold' }, { 'peak', 'The most that tensors have held, in bytes' },
    { 'total', "Bytes of a card's memory" }, { 'free', "Bytes of a card's memory that are free" } } do
    of_workers(('crescent_memory_%s_bytes'):format(what[1]), what[2] .. ', when the last job ended.',
      function(w) return w.memory and w.memory[what[1]] end)
  end
end

-- Makes the folder of all that is remembered.
local function open_folder(path)
  local above = path:match '^(.*)/[^/]+$'
  if above and above ~= '' then files.make_folder(above) end
  local ok, problem = disk.make_folder(path)
  if not ok then errors.failf('--data: %s cannot be made: %s', path, tostring(problem)) end
  return uv.fs_realpath(path)
end

-- What the API tells of the server.
local function describe(self)
  local devices = {}
  for i, worker in ipairs(self.pool.makers) do
    devices[i] = { name = worker.device, description = worker.description and worker.description.description, state = worker.state }
  end
  local function finite(x) return x < math.huge and x or nil end
  local l = self.limits
  return {
    version = cr.version, devices = json.list(devices), token_required = self.token ~= nil,
    live = self.lives and self.lives:describe() or nil,
    checkpoint = { name = self.checkpoint:match '([^/]+)/*$', size = self.model.size },
    limits = { upload_bytes = finite(l.upload), seconds = finite(l.seconds), pixels = finite(l.pixels), queued = finite(l.jobs) },
  }
end

local function not_ready(self)
  for _, worker in ipairs(self.pool.makers) do
    if worker.refused then return 'no device can take jobs: ' .. worker.refused end
  end
  return 'the model is being loaded'
end

local function start_http(self, o)
  local table_of_operations = {}
  for _, list in ipairs { operations, pages.operations(cr.root .. '/scripts/web') } do
    for _, operation in ipairs(list) do table_of_operations[#table_of_operations + 1] = operation end
  end
  local only_local = access.is_local(o.host)
  local document
  local router = routers.new {
    operations = table_of_operations,
    context = {
      jobs = self.jobs, lives = self.lives, uploads = self.uploads, store = self.store, pool = self.pool, metrics = self.metrics,
      limits = self.limits,
      describe = function() return describe(self) end, not_ready = function() return not_ready(self) end,
      document = function()
        document = document or openapi.document {
          title = 'Crescent', version = cr.version, description = 'Makes the lips of a video say what a voice says.',
          operations = table_of_operations, token = self.token ~= nil,
          schemas = { File = schemas.File, Job = schemas.Job, JobRequest = schemas.JobRequest },
        }
        return document
      end,
    },
    guard = function(request, public)
      return access.refuse(request, { token = self.token, only_local = only_local }, public)
    end,
    on_answer = function(operation, status) self.counts.requests:add(1, operation, status) end,
  }
  self.http = http.listen {
    host = o.host, port = o.port, cert = o.cert, key = o.key, limits = { connections = o.connections },
    handler = function(request, response) router:handle(request, response) end,
  }
  self.port = self.http.port
end

-- Live sessions; their clips are uploaded files, or the server's own.
local function open_live(self, o)
  local s = { device = o.device, idle = o.idle }
  for key, value in pairs(self.model) do s[key] = value end
  return lives_of.open { settings = s, sessions = o.sessions, say = o.say, idle = function(id)
    local file = type(id) == 'string' and self.store:file(id)
    return file and self.uploads:path(file) or nil
  end }
end

-- Deletes now and then what is older than it is to be kept.
local function keep_house(self, days)
  local function sweep()
    local old_jobs, old_files = self.store:older(names.now(days * DAY))
    for _, id in ipairs(old_jobs) do self.jobs:delete(id) end
    for _, id in ipairs(old_files) do self.uploads:drop(self.store:file(id)) end
  end
  sweep()
  self.sweeper = uv.new_timer()
  self.sweeper:start(SWEEP * 1000, SWEEP * 1000, sweep)
end

--- Opens a server; inside of a task. It takes requests when this returns.
--- @param o table {checkpoint, data = folder, hosts = of which URLs are fetched, devices = names, host, port, token, cert, key,
---   model = {dtype, vae, quant, card, size}, limits = {upload, seconds, pixels, jobs, job_timeout},
---   live = {sessions, device, idle = a clip's file?, say = a program?}?, connections = at once,
---   keep_days = for how long what has ended is kept (for ever), refused = function(sentence)?: no device can load the model}
--- @return Service
function M.open(o)
  local self = setmetatable({
    checkpoint = uv.fs_realpath(o.checkpoint) or o.checkpoint, token = o.token,
    limits = o.limits, metrics = metrics_of.new(), folder = open_folder(o.data), model = {},
  }, Service)
  for key, value in pairs(o.model) do self.model[key] = value end
  self.model.checkpoint = self.checkpoint
  self.store = stores.open(self.folder .. '/state.sqlite')
  count_in(self)
  local ok, problem = pcall(function()
    self.pool = pools.new {
      devices = o.devices, model = self.model,
      changed = function(worker)
        if worker.description and worker.description.size then self.model.size = worker.description.size end
        if self.jobs then self.jobs:dispatch() end
      end,
      refused = function()
        local why = self.pool:refusal()
        if why and o.refused then o.refused(why) end
      end,
    }
    self.uploads = uploads_of.new {
      folder = self.folder, store = self.store, limits = o.limits, probe = function(path) return self.pool:probe(path) end,
    }
    self.jobs = jobs_of.new {
      folder = self.folder, store = self.store, uploads = self.uploads, pool = self.pool, checkpoint = self.checkpoint,
      fetching = fetching.new { uploads = self.uploads, hosts = o.hosts or {} }, limits = o.limits,
      words = words.new { self.folder, self.checkpoint, cr.root, o.model.vae },
      on_error = function(kind) self.counts.errors:add(1, kind) end,
      on_work = function(frames, stages)
        self.counts.frames:add(frames)
        for name, stage in pairs(stages) do self.counts.seconds:add(stage.working_seconds, name) end
      end,
    }
    if o.live then self.lives = open_live(self, o.live) end
    if o.keep_days then keep_house(self, o.keep_days) end
    start_http(self, o)
    self.jobs:dispatch()
  end)
  if not ok then
    self:close()
    error(problem, 0)
  end
  return self
end

--- Ends it; what runs is taken up again by the next server on the same folder. Does not wait.
function Service:close()
  if self.sweeper then self.sweeper:close() end
  if self.lives then self.lives:close() end
  if self.jobs then self.jobs:close() end
  if self.pool then self.pool:close() end
  if self.store then self.store:close() end
end

return M
