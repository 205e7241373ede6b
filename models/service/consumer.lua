--- Takes jobs from a queue and runs them: `crescent worker`.
--
--     local consumer = consumers.new { queue =, store =, pool =, ... }
--     consumer:run()        consumer:stop()
--
-- Each device runs one job at a time. The job's files are downloaded, a worker process runs it
-- (models/service/pool.lua), the result is uploaded unless it exists, and only then the message is removed from the
-- queue.
--
-- Invariants: while a job runs its lease is extended. A message leaves the queue when its result exists, or as a dead
-- letter: after `tries` attempts, or at once if it is not a valid request. A job whose result exists is not run again.
-- If a queue or bucket is unreachable the worker waits; at most the current attempt is lost.

local clock = require 'cr.clock'
local disk = require 'cr.serve.disk'
local errors = require 'cr.errors'
local files = require 'cr.files'
local growing = require 'models.service.growing'
local loop = require 'cr.loop'
local orders = require 'models.service.order'
local retry = require 'cr.remote.retry'
local url = require 'cr.remote.url'
local words = require 'models.service.words'

local uv = loop.uv
local M = {}

local WAIT = 20 -- seconds of long polling for a message
local SPARE = 5 -- seconds of the grace period that are reserved for returning a job
local COUNT_PAUSE = 15 -- seconds between two queries of the queue's length

--- @class Consumer
--- @field running table<string, table> running jobs, by message id
local Consumer = {}
Consumer.__index = Consumer

local function sentence_of(err)
  return errors.is_failure(err) and err.message or tostring(err)
end

-- ---- a job -----------------------------------------------------------------------------------------

-- Extends the lease until the work ends; if the lease is lost, the work is cancelled.
local function keep_lease(self, work)
  while not work.ended do
    loop.sleep(self.lease / 3)
    if work.ended then return end
    local ok, kept = pcall(self.queue.extend, self.queue, work.message, self.lease)
    if work.ended then return end -- (it was cancelled)
    if ok then self.queue_ok(true) else self.queue_ok(false, sentence_of(kept)) end
    if ok and not kept then
      self.log('warning', 'the lease was lost', { job = work.id })
      work.lost = true
      work.cancel()
      return
    end
  end
end

-- Calls a method of the store. While the store is unavailable, which is not the job's fault, it waits, as long as the job
-- belongs to this worker.
local function reach(self, work, method, ...)
  local n = 0
  while true do
    local ok, result = pcall(method, self.store, ...)
    if ok then
      self.store_ok(true)
      return result
    end
    if not errors.is_unavailable(result) or work.lost or work.leaving or self.leaving then error(result, 0) end
    self.store_ok(false, sentence_of(result))
    n = n + 1
    loop.sleep(retry.pause(n, 1, 30))
  end
end

-- Downloads a job's files; returns {[address] = {path, shown, still}}.
local function bring(self, work, order, folder)
  local paths, tasks = {}, {}
  for i, file in ipairs(order.files) do
    if not paths[file.name] then
      local ending = file.name:gsub('[?#].*$', ''):match '%.%w+$' or ''
      paths[file.name] = { shown = url.shown(file.name) }
      tasks[#tasks + 1] = function()
        local found = paths[file.name]
        found.path = reach(self, work, self.store.fetch, file.name, ('%s/in%d%s'):format(folder, i, ending))
        if order.kind == 'upscale' then found.still = self.pool:probe(found.path).still end
      end
    end
  end
  loop.all(tasks)
  return paths
end

-- Runs the job in the worker process; returns its last message.
local function make(work, order, paths, folder)
  local ended = loop.channel(1)
  work.cancel = function() work.maker:cancel(order.id) end
  work.maker:give {
    id = order.id, seconds = math.huge,
    message = { op = 'run', id = order.id, kind = order.kind, request = order.body, paths = paths, folder = folder },
    told = function(m) work.progress = m.progress or work.progress end,
    ended = function(m) ended:put(m) end,
  }
  if work.lost or work.leaving then work.cancel() end
  return ended:get()
end

-- The engine's message with the files' URLs instead of local paths.
local function in_words(self, paths, text)
  local shown = {}
  for _, file in pairs(paths) do
    if file.path then shown[file.path] = file.shown end
  end
  return words.new({ self.scratch, self.checkpoint }):of(text, shown)
end

-- Returns 'done' or 'repeated'; raises one sentence.
local function carry_out(self, work, order, folder)
  if reach(self, work, self.store.exists, order.out) then return 'repeated' end
  local paths, grown = {}, nil
  local ok, outcome = pcall(function()
    assert(disk.make_folder(folder))
    local began = clock()
    paths = bring(self, work, order, folder)
    self.counts.seconds:add(clock() - began, 'bring')
    grown = growing.start(self.store, order.out, folder)
    local m = make(work, order, paths, folder)
    if m.stages then
      self.counts.frames:add(m.frames or 0)
      for name, stage in pairs(m.stages) do self.counts.seconds:add(stage.working_seconds, name) end
    end
    if m.crashed then errors.fail(m.crashed) end
    if m.cancelled then errors.fail 'it was cancelled' end
    if m.failed then errors.fail(m.failed.detail) end
    began = clock()
    local file = m.done.result.file
    local kind = ({ mkv = 'video/x-matroska', mp4 = 'video/mp4', png = 'image/png' })[file:match '%w+$']
    local new = reach(self, work, self.store.put, folder .. '/' .. file, order.out, kind, grown:stop())
    self.counts.seconds:add(clock() - began, 'put')
    return new and 'done' or 'repeated'
  end)
  if not ok and grown then grown:abort() end
  disk.remove(folder)
  if not ok then
    local raise = errors.is_unavailable(outcome) and errors.unavailable or errors.fail
    raise(in_words(self, paths, sentence_of(outcome)))
  end
  return outcome
end

-- Handles the message of a failed job. A job that is not a valid request would fail each time.
local function give_up(self, work, problem, passes)
  local m = work.message
  if work.lost then return 'lost' end
  if work.leaving or passes then
    self.queue:fail(m, { blameless = true })
    return 'given_back'
  end
  if work.refused or m.tries >= self.tries then
    self.queue:fail(m, { dead = problem })
    return 'dead'
  end
  self.queue:fail(m, { delay = math.min(self.lease, retry.pause(m.tries, 1, 60)) })
  return 'failed'
end

-- Retries a queue operation until it succeeds. If that never happens, the queue delivers the message again, which
-- only costs time.
local function tell_queue(self, fn)
  local ok, result
  for _ = 1, 5 do
    ok, result = pcall(fn)
    if ok or self.leaving then break end
    self.queue_ok(false, sentence_of(result))
    loop.sleep(retry.pause(3))
  end
  if not ok then return nil, sentence_of(result) end
  self.queue_ok(true)
  return result
end

local function handle(self, maker, message)
  local began = clock()
  local work = { message = message, id = message.id, maker = maker, cancel = function() end }
  self.running[message.id] = work
  local keeper = loop.go(keep_lease, self, work)
  local ok, outcome = pcall(function()
    if message.tries > self.tries then errors.failf('it was started %d times, but no worker finished it', message.tries - 1) end
    work.id = orders.id(message.body, message.id)
    local read, order = pcall(orders.read, message.body, message.id)
    if not read then
      work.refused = true
      error(order, 0)
    end
    self.log('info', 'begun', { job = order.id, try = message.tries, worker = maker.name })
    return carry_out(self, work, order, ('%s/%s'):format(self.scratch, message.id:gsub('[^%w-]', '_')))
  end)
  if not ok and outcome == 'interrupted' then error(outcome, 0) end
  local problem = not ok and sentence_of(outcome) or nil
  local told, why = tell_queue(self, function()
    if problem then return give_up(self, work, problem, errors.is_unavailable(outcome)) end
    self.queue:done(message)
    return outcome
  end)
  work.ended = true
  keeper:cancel()
  self.running[message.id] = nil
  outcome = told or 'untold'
  self.counts.jobs:add(1, outcome)
  local bad = outcome ~= 'done' and outcome ~= 'repeated'
  self.log(outcome == 'dead' and 'error' or bad and 'warning' or 'info', outcome, {
    job = work.id, try = message.tries, seconds = math.floor((clock() - began) * 1000 + 0.5) / 1000, error = problem or why,
  })
end

-- ---- main loop --------------------------------------------------------------------------------------

-- Runs one device's jobs, one after another.
local function serve(self, maker)
  local failures = 0
  while not self.leaving do
    if maker.state ~= 'idle' then
      loop.sleep(0.05)
    else
      local waiting = loop.go(self.queue.receive, self.queue, WAIT)
      self.waiting[maker] = waiting
      local ok, message = pcall(loop.await, waiting)
      self.waiting[maker] = nil
      if message == 'interrupted' then error(message, 0) end
      if not ok and self.leaving then break end
      self.queue_ok(ok, not ok and sentence_of(message) or nil)
      if not ok then
        failures = failures + 1
        loop.sleep(retry.pause(failures, 0.5, 30))
      else
        failures = 0
        if message then handle(self, maker, message) end
      end
    end
  end
end

local function count(self)
  while not self.leaving do
    local ok, n = pcall(self.queue.count, self.queue)
    if ok then self.counts.queue:set(n) end
    loop.sleep(COUNT_PAUSE)
  end
end

local function count_in(self)
  local m = self.metrics
  self.counts = {
    jobs = m:counter('crescent_jobs_total', 'Messages by outcome.', { 'outcome' }),
    frames = m:counter('crescent_frames_total', 'Frames generated by jobs.'),
    seconds = m:counter('crescent_stage_seconds_total', 'Seconds of work in jobs, by stage.', { 'stage' }),
    retries = m:counter('crescent_retries_total', 'Retried requests to queues and stores.'),
    queue = m:gauge('crescent_queue_length', 'Approximate number of waiting and running messages.'),
    reachable = m:gauge('crescent_queue_reachable', 'Whether the last request to the queue succeeded.'),
    store = m:gauge('crescent_store_reachable', 'Whether the last request for a file was answered.'),
  }
  m:gauge('crescent_worker_busy', 'Whether a device is running a job.', { 'worker' }, function(set)
    for _, maker in ipairs(self.pool.makers) do set(maker.state == 'busy' and 1 or 0, maker.name) end
  end)
  m:gauge('crescent_worker_restarts', 'Number of restarts of the process of a device.', { 'worker' }, function(set)
    for _, maker in ipairs(self.pool.makers) do set(maker.crashes, maker.name) end
  end)
  function retry.watch(problem)
    self.counts.retries:add(1)
    self.log('debug', 'tried again', { error = problem })
  end
end

--- @param o table {queue, store, pool, metrics, lease = seconds, tries, scratch = folder, checkpoint,
---   log = function(level, event, fields)}
--- @return Consumer
function M.new(o)
  local self = setmetatable({ running = {}, waiting = {} }, Consumer)
  for key, value in pairs(o) do self[key] = value end
  count_in(self)
  local reachable
  function self.queue_ok(ok, problem)
    if ok ~= reachable then
      self.log(ok and 'info' or 'error', ok and 'the queue answers' or 'the queue cannot be reached', { error = problem })
    end
    reachable = ok
    self.counts.reachable:set(ok and 1 or 0)
  end
  self.is_reachable = function() return reachable ~= false end
  self.counts.store:set(1)
  local store
  function self.store_ok(ok, problem)
    if not ok and store ~= false or ok and store == false then
      self.log(ok and 'info' or 'error', ok and 'the store answers' or 'the store cannot be reached', { error = problem })
    end
    store = ok
    self.counts.store:set(ok and 1 or 0)
  end
  return self
end

--- Runs jobs until stop() is called and all started jobs have ended.
function Consumer:run()
  files.make_folder(self.scratch)
  local counting = loop.go(count, self)
  local tasks = {}
  for i, maker in ipairs(self.pool.makers) do tasks[i] = function() serve(self, maker) end end
  local ok, problem = pcall(loop.all, tasks)
  counting:cancel()
  disk.remove(self.scratch)
  if not ok then error(problem, 0) end
end

--- Takes no more jobs. Jobs that finish within the grace period are completed; the others are returned to the queue.
--- @param grace number seconds
function Consumer:stop(grace)
  if self.leaving then grace = 0 end
  self.leaving = true
  local left = math.max(0, grace - SPARE)
  for _, waiting in pairs(self.waiting) do waiting:cancel() end
  for _, work in pairs(self.running) do
    local needed = work.progress and work.progress.seconds_left
    local function leave()
      if work.ended then return end
      work.leaving = true
      work.cancel()
    end
    if grace == 0 or needed and needed > left then
      leave()
    else
      local timer = assert(uv.new_timer())
      timer:start(math.ceil(left * 1000), 0, function()
        timer:close()
        leave()
      end)
      timer:unref()
    end
  end
end

return M
