--- The jobs of a server: their queue, their states, and the progress of running ones.
--
--     queued -> running -> done | failed | cancelled
--
-- A result appears at once (delivery.lua); after that a transaction sets `done`. Invariants: an accepted job is on
-- disk and stays until it is deleted. A job that was running when the server was killed is started once more; after a
-- second time it has failed. No job is completed twice. A state change is written before anybody is told of it.

local admission = require 'models.service.admission'
local clock = require 'cr.clock'
local delivery = require 'models.service.delivery'
local disk = require 'cr.serve.disk'
local events = require 'cr.serve.events'
local fetching = require 'models.service.fetching'
local json = require 'cr.json'
local loop = require 'cr.loop'
local names = require 'models.service.names'
local problems = require 'cr.serve.problem'
local requests = require 'models.service.request'

local M = {}

local ATTEMPTS = 2
local PATIENCE = 5 -- seconds until a state that could not be written is tried again
local FPS_MOST = 240 -- maximum frames per second of a result, for the limit of its frames

--- @class Jobs
local Jobs = {}
Jobs.__index = Jobs

-- ---- notifications -----------------------------------------------------------------------------------------

--- The live state of an unfinished job: {progress, preview = number of its newest preview, version, bell}.
local function live_of(self, job)
  local live = self.live[job.id]
  if not live then
    live = { progress = { stage = 'queued', frames = 0 }, version = 0, bell = events.bell(), preview = 0 }
    self.live[job.id] = live
  end
  return live
end

local function tell(self, job)
  local live = live_of(self, job)
  live.version = live.version + 1
  live.bell:ring()
end

-- Notifies queued jobs that their positions have changed.
local function tell_queue(self)
  for _, job in ipairs(self.queue) do tell(self, job) end
end

local function position_of(self, job)
  for i, other in ipairs(self.queue) do
    if other.id == job.id then return i end
  end
end

--- A job's description for clients.
--- @param job table
--- @return table
function Jobs:view(job)
  local live, asked = self.live[job.id], json.decode(job.body)
  local view = {
    id = job.id, kind = job.kind, state = job.state, created = job.created, started = job.started, finished = job.finished,
    attempts = job.attempts, video = asked.video, audio = asked.audio, voices = asked.voices and json.list(asked.voices),
    preset = asked.preset, settings = asked.settings or {}, start = asked.start, duration = asked.duration,
    position = job.state == 'queued' and position_of(self, job) or nil,
    progress = live and live.progress or job.progress or { stage = job.state, frames = 0 }, error = job.error, people = job.people,
  }
  if job.people then json.list(view.people) end
  if job.result then
    view.result = { url = ('/v1/jobs/%s/result'):format(job.id), type = job.result.type, bytes = job.result.bytes,
      seconds = job.result.seconds, width = job.result.width, height = job.result.height, frames = job.result.frames }
  end
  return view
end

-- ---- states ------------------------------------------------------------------------------------------

-- Changes a job's state, writes it, and notifies listeners.
local function change(self, job, state)
  local before = job.state
  job.state = state
  local ok, changed = pcall(self.store.change_job, self.store, job, before)
  if not ok then
    job.state = before
    error(changed, 0)
  end
  if not changed then error(('job %s was no longer %s'):format(job.id, before), 0) end
  tell(self, job)
end

--- The folder of a finished job's results.
--- @param job table
--- @return string
function Jobs:folder_of(job) return delivery.folder(self.folder, job) end

-- Ends a job; `err` is its problem and `kind` the problem's kind, if it failed.
local function finish(self, job, state, err, kind)
  job.finished, job.error = names.now(), err and err:document() or nil
  job.progress = live_of(self, job).progress
  change(self, job, state)
  if kind and self.on_error then self.on_error(kind) end
  local current = self.current[job.id]
  self.log(state == 'failed' and 'warning' or 'info', state, { job = job.id, kind = job.kind, try = job.attempts,
    seconds = current and math.floor((clock() - current.began) * 1000 + 0.5) / 1000, error = err and err.detail })
  self.current[job.id], self.live[job.id] = nil, nil -- current listeners still hold the last state
end

-- ---- the queue ---------------------------------------------------------------------------------------

-- Rewrites a message of the engine for clients.
local function in_words(self, job, text)
  local shown = {}
  for name, file in pairs(self.current[job.id].paths) do shown[file.path] = file.shown or name end
  return self.words:of(text, shown)
end

local function ended(self, job, task, m)
  if self.closing then return end
  if m.stages and self.on_work then self.on_work(m.frames or 0, m.stages) end
  local state, problem, kind = delivery.outcome(self.folder, job, task, m, self.limits, function(text) return in_words(self, job, text) end)
  while not self.closing do
    local ok, why = pcall(finish, self, job, state, problem, kind)
    if ok then break end
    io.stderr:write(('crescent: job %s has ended, but its state cannot be written: %s\n'):format(job.id, tostring(why)))
    loop.sleep(PATIENCE)
  end
  disk.remove(delivery.work_folder(self.folder, job))
end

-- The message that gives a job to a worker; creates the job's folder.
local function message_of(self, job)
  local request, paths, folder = json.decode(job.body), {}, delivery.work_folder(self.folder, job)
  for _, one in ipairs(requests.files(request)) do
    local file = self.store:file((job.fetched or {})[one.name] or one.name)
    if not file then problems.fail(422, ('%s: its file was deleted'):format(one.field), one.field) end
    paths[one.name] = { path = self.uploads:path(file), shown = file.name, still = file.still }
  end
  disk.remove(folder)
  assert(disk.make_folder(folder))
  return {
    op = 'run', id = job.id, kind = job.kind, request = request, paths = paths, folder = folder,
    frames = self.limits.seconds < math.huge and math.ceil(self.limits.seconds * FPS_MOST) or nil,
  }
end

local function start(self, job, worker)
  local attempts, current = job.attempts, { worker = worker, paths = {}, began = clock() }
  job.attempts, job.started = attempts + 1, names.now()
  self.current[job.id] = current
  live_of(self, job).progress = { stage = 'start', frames = 0 }
  local written, why = pcall(change, self, job, 'running')
  if not written then
    job.attempts, job.started = attempts, nil
    error(why, 0)
  end
  local ok, message = pcall(message_of, self, job)
  if not ok then
    local problem = problems.is(message) and message or problems.new(500, in_words(self, job, tostring(message)))
    return finish(self, job, 'failed', problem, 'refused')
  end
  current.paths = message.paths
  self.log('info', 'begun', { job = job.id, kind = job.kind, try = job.attempts, worker = worker.name })
  local task = { id = job.id, seconds = self.limits.job_timeout, message = message }
  function task.told(m)
    local live = live_of(self, job)
    live.progress, live.preview = m.progress or live.progress, m.preview or live.preview
    tell(self, job)
  end
  function task.ended(m)
    loop.go(function() -- waits for the disk
      ended(self, job, task, m)
      self:dispatch()
    end)
  end
  worker:give(task)
end

--- Gives queued jobs to free workers, in order. May be called outside of a task.
function Jobs:dispatch()
  if self.closing then return end
  local i, changed = 1, false
  while i <= #self.queue do
    local job = self.queue[i]
    local worker = not self.fetches[job.id] and self.pool:free(job.kind)
    if worker then
      table.remove(self.queue, i)
      changed = true
      local ok, why = pcall(start, self, job, worker)
      if not ok then
        -- The job stays queued; the next event tries it again.
        io.stderr:write(('crescent: job %s cannot be started: %s\n'):format(job.id, tostring(why)))
        table.insert(self.queue, i, job)
        self.current[job.id] = nil
        break
      end
    else
      i = i + 1
    end
  end
  if changed then tell_queue(self) end
  self.pool:rest()
end

-- ---- requests of clients ---------------------------------------------------------------------------------

-- The checked request of a job. (A search for faces has no JobRequest.)
local function request_of(job)
  local body = json.decode(job.body)
  if job.kind ~= 'faces' then return requests.check(body) end
  body.kind = 'faces'
  return body
end

-- Raises a problem about a request's files, as far as it is known before its URLs are fetched.
local function check_files(self, request)
  self.fetching:check(request)
  if #fetching.urls(request) == 0 then admission.check(request, self.store, self.limits, {}) end
end

-- Removes a job from the queue.
local function leave_queue(self, job)
  for i, other in ipairs(self.queue) do
    if other.id == job.id then table.remove(self.queue, i) end
  end
end

-- Fetches the files that a queued job names by URL.
local function fetch_files(self, job, addresses)
  live_of(self, job).progress = { stage = 'fetch', frames = 0 }
  tell(self, job)
  local ok, problem = pcall(function()
    job.fetched = self.fetching:all(addresses)
    admission.check(request_of(job), self.store, self.limits, job.fetched)
    self.store:change_job(job, 'queued')
  end)
  if self.closing then return end
  self.fetches[job.id] = nil
  if ok then
    live_of(self, job).progress = { stage = 'queued', frames = 0 }
    tell(self, job)
  elseif job.state == 'queued' then
    leave_queue(self, job)
    finish(self, job, 'failed', problems.is(problem) and problem or problems.new(422, self.words:of(tostring(problem))), 'fetch')
  end
  self:dispatch()
end

-- Adds a job to the queue; its URLs are fetched meanwhile.
local function enqueue(self, job)
  self.queue[#self.queue + 1] = job
  live_of(self, job)
  local addresses = fetching.urls(json.decode(job.body))
  if #addresses > 0 and not job.fetched then self.fetches[job.id] = loop.go(fetch_files, self, job, addresses) end
end

-- Accepts a checked request as a job.
local function accept(self, kind, body, key)
  if #self.queue >= self.limits.jobs then
    problems.fail(429, ('the queue is full, with %d jobs: try again later'):format(#self.queue))
  end
  local job = { id = names.id(), kind = kind, state = 'queued', key = key, body = json.encode(body), created = names.now(), attempts = 0 }
  self.store:add_job(job)
  self.log('info', 'accepted', { job = job.id, kind = kind })
  enqueue(self, job)
  self:dispatch()
  return job
end

--- Accepts a job.
--- @param body table a JobRequest
--- @param key string? idempotency key
--- @return table job
--- @return boolean whether the job is new
function Jobs:create(body, key)
  if key then
    local before = self.store:job_by_key(key)
    if before then
      if before.body ~= json.encode(body) then
        problems.fail(409, 'Idempotency-Key: it was used for another request: use a new one', 'Idempotency-Key')
      end
      return self:get(before.id), false
    end
  end
  local request = requests.check(body)
  check_files(self, request)
  requests.check_sampling(request, self.checkpoint)
  return accept(self, request.kind, body, key), true
end

--- Creates a job that finds the people in a video.
--- @param asked table {video = its file's id, audio, start, duration}
--- @return table job
function Jobs:faces(asked)
  check_files(self, request_of { kind = 'faces', body = json.encode(asked) })
  return accept(self, 'faces', asked)
end

--- A job in its current state.
--- @param id string
--- @return table
function Jobs:get(id)
  local job = self.store:job(id)
  if not job then problems.fail(404, 'there is no such job') end
  return job
end

--- Cancels a queued or running job.
--- @param id string
--- @return table job
function Jobs:cancel(id)
  local job = self:get(id)
  for _, other in ipairs(self.queue) do
    if other.id == id then
      leave_queue(self, other)
      finish(self, other, 'cancelled')
      if self.fetches[id] then self.fetches[id]:cancel() end
      tell_queue(self)
      return other
    end
  end
  local current = self.current[id]
  if not current then problems.fail(409, ('the job is %s already'):format(job.state)) end
  current.worker:cancel(id)
  return job
end

--- Deletes a job that has ended, and its results.
--- @param id string
function Jobs:delete(id)
  local job = self:get(id)
  if job.state == 'queued' or job.state == 'running' then
    problems.fail(409, ('the job is %s: cancel it first'):format(job.state))
  end
  self.store:drop_job(id)
  disk.remove(self:folder_of(job))
end

--- Whether an unfinished job uses a file.
--- @param id string the file's id
--- @return boolean
function Jobs:uses(id)
  for _, job in ipairs(self.store:unfinished()) do
    for _, one in ipairs(requests.files(json.decode(job.body))) do
      if one.name == id or (job.fetched or {})[one.name] == id then return true end
    end
  end
  return false
end

--- A finished job's report, without local paths.
--- @param job table
--- @return table
function Jobs:report(job) return delivery.report(self.folder, job, self.words) end

--- The file of a job's video, if it still exists.
--- @param job table
--- @return table?
function Jobs:video_of(job)
  local name = json.decode(job.body).video
  return self.store:file((job.fetched or {})[name] or name)
end

--- The path of a job's newest preview, which may not exist.
--- @param job table
--- @return string
function Jobs:preview_of(job)
  return (self.current[job.id] and delivery.work_folder(self.folder, job) or self:folder_of(job)) .. '/preview.png'
end

-- ---- start and end -----------------------------------------------------------------------

-- Takes over the jobs of the server that ran before on this folder.
local function take_up(self)
  for _, name in ipairs(disk.list(self.folder .. '/work')) do disk.remove(self.folder .. '/work/' .. name) end
  for _, job in ipairs(self.store:unfinished()) do
    if job.state == 'running' and job.attempts >= ATTEMPTS then
      finish(self, job, 'failed', problems.new(500, ('the server ended %d times while it worked on this job: it is not tried again')
        :format(job.attempts)), 'restart')
    else
      if job.state == 'running' then change(self, job, 'queued') end
      enqueue(self, job)
    end
  end
  for _, name in ipairs(disk.list(self.folder .. '/jobs')) do
    local job = self.store:job(name)
    if not job or job.state ~= 'done' then disk.remove(self.folder .. '/jobs/' .. name) end
  end
end

--- Stops all work. The next server continues running jobs, and this does not count as an attempt.
--- @return integer number of jobs that are left to it
function Jobs:close()
  self.closing = true
  for id in pairs(self.current) do
    local job = self.store:job(id)
    if job.state == 'running' then
      job.state, job.attempts = 'queued', job.attempts - 1
      self.store:change_job(job, 'running')
    end
  end
  return #self.store:unfinished()
end

--- @param o table {folder, store, uploads, fetching, pool, checkpoint, words, limits = {seconds, pixels, jobs, job_timeout},
---   log = function(level, event, fields), on_error = function(kind), on_work = function(frames, stages)}
--- @return Jobs
function M.new(o)
  local self = setmetatable(o, Jobs)
  self.queue, self.current, self.live, self.fetches, self.closing = {}, {}, {}, {}, false
  for _, name in ipairs { '/work', '/jobs' } do assert(disk.make_folder(o.folder .. name)) end
  take_up(self)
  return self
end

return M
