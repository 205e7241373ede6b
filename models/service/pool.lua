--- The worker processes of a server: one per device, which holds the model, and two auxiliary ones.
--
-- The `makers`, one per device, run lip-sync and upscale jobs. The `finder` finds people in a video, so that this
-- never waits for a long job; it starts at the first request and ends after IDLE seconds without one. The `prober`
-- examines uploaded files. A worker that ends is restarted after a pause, which grows while it keeps failing; only
-- the job that it worked on has failed. Invariant: whoever gave a task to a worker is told of its end exactly once.

local clock = require 'cr.clock'
local loop = require 'cr.loop'
local process = require 'cr.serve.process'
local text = require 'cr.serve.text'

local uv = loop.uv
local M = {}

local IDLE = 60 -- seconds after which an idle finder is ended
local GRACE = 20 -- seconds in which a cancelled job may end by itself
local PROBE_LIMIT = 60 -- maximum seconds for probing a file
local LONGEST_PAUSE = 60

--- @class Worker
--- @field device string
--- @field role 'maker'|'finder'|'prober'
--- @field state 'down'|'starting'|'idle'|'busy'
--- @field busy_seconds number total duration of ended jobs
--- @field description table? its device, once the model is loaded
--- @field refused string? why the model cannot be loaded
local Worker = {}
Worker.__index = Worker

local function timer(seconds, fn)
  local t = assert(uv.new_timer())
  t:start(math.ceil(seconds * 1000), 0, function()
    t:close()
    fn()
  end)
  return t
end

local function stop(t)
  if t and not t:is_closing() then t:close() end
end

-- Reports the end of its task to whoever gave it.
local function settle(self, message)
  local task = self.task
  if not task then return end
  self.task = nil
  stop(self.limit)
  stop(self.grace)
  self.busy_seconds = self.busy_seconds + clock() - task.began
  task.ended(message)
end

local function on_message(self, m)
  if m.ready then
    self.state, self.failures, self.description, self.refused = 'idle', 0, m.ready, nil
    self.memory = m.memory
    self.pool.changed(self)
  elseif m.refused then
    self.refused = m.refused
    self.pool.refused()
  elseif m.probe then
    self.state = 'idle'
    settle(self, m)
  elseif m.done or m.failed or m.cancelled then
    self.state, self.memory = m.broken and 'starting' or 'idle', m.memory
    if m.broken then self.child:kill() end
    settle(self, m)
    self.pool.changed(self)
  elseif self.task and self.task.id == m.job then
    self.task.told(m)
  end
end

local function on_end(self, why)
  local child, quiet = self.child, self.state == 'down'
  self.child = nil
  if self.pool.closing then return end
  if quiet then return self.pool.changed(self) end -- it is restarted when it is needed
  self.failures = self.failures + (self.state == 'starting' and 1 or 0)
  self.state = 'down'
  settle(self, { crashed = ('the worker process on %s %s%s'):format(self.device, why,
    child and child.last and (' (%s)'):format(text.cut(child.last, 300)) or '') })
  self.crashes = self.crashes + 1
  local pause = self.failures > 0 and math.min(LONGEST_PAUSE, 2 ^ (self.failures - 1)) or 0
  self.again = timer(pause, function()
    self.again = nil
    if not self.pool.closing then self:start() end
  end)
end

--- Starts the process, if it is not running.
function Worker:start()
  if self.child or self.again then return end
  self.state = 'starting'
  self.child = process.spawn('models.service.worker', {
    name = self.name, on_message = function(m) on_message(self, m) end, on_end = function(why) on_end(self, why) end,
    on_line = self.pool.on_line and function(line) self.pool.on_line(self, line) end,
  })
  local start = { op = 'start', device = self.device, loads = self.role == 'maker' }
  for key, value in pairs(self.pool.model) do start[key] = value end
  self.child:send(start)
end

--- Ends the process at once.
function Worker:stop()
  self.state = 'down'
  stop(self.again)
  self.again = nil
  if self.child then self.child:kill() end
end

--- Gives it a task.
--- @param task table {id, message, seconds = its time limit, told = function(message), ended = function(message)}
function Worker:give(task)
  self.task, self.state, task.began = task, 'busy', clock()
  stop(self.idle)
  if task.seconds < math.huge then
    self.limit = timer(task.seconds, function()
      task.late = true
      if self.role == 'prober' then self.child:kill() else self:cancel(task.id) end
    end)
  end
  self.child.last = nil
  self.child:send(task.message)
end

--- Cancels its job: it may end by itself within GRACE seconds, then the process is killed.
--- @param id string
function Worker:cancel(id)
  if not self.task or self.task.id ~= id or self.task.cancelled then return end
  self.task.cancelled = true
  self.child:send { op = 'cancel', id = id }
  self.grace = timer(GRACE, function()
    if self.child then self.child:kill() end
  end)
end

--- @class Pool
--- @field makers Worker[]
--- @field finder Worker
--- @field prober Worker
local Pool = {}
Pool.__index = Pool

--- @param o table {devices = names, model = {checkpoint, dtype, vae, quant, card, size}, changed = function(worker): is called when
---   it can take a job, refused = function(): is called when a device cannot load the model,
---   on_line = function(worker, line)? takes its log lines instead of stderr}
--- @return Pool
function M.new(o)
  local self = setmetatable({
    model = o.model, changed = o.changed, refused = o.refused, on_line = o.on_line, makers = {}, closing = false,
  }, Pool)
  local function worker(role, device, name)
    return setmetatable({
      pool = self, role = role, device = device, name = name, state = 'down', failures = 0, crashes = 0, busy_seconds = 0,
    }, Worker)
  end
  for i, device in ipairs(o.devices) do self.makers[i] = worker('maker', device, 'worker ' .. device) end
  self.finder, self.prober = worker('finder', o.devices[1], 'faces'), worker('prober', 'cpu', 'files')
  self.probes, self.prober_free = 0, loop.channel(1)
  self.prober_free:put(true)
  for _, one in ipairs(self.makers) do one:start() end
  self.prober:start()
  return self
end

--- All workers.
--- @return Worker[]
function Pool:workers()
  local list = { unpack(self.makers) }
  list[#list + 1] = self.finder
  list[#list + 1] = self.prober
  return list
end

--- A worker that can take a job of this kind now, or nil. Starts the finder if it is needed.
--- @param kind string
--- @return Worker?
function Pool:free(kind)
  if kind == 'faces' then
    if self.finder.state == 'idle' then return self.finder end
    self.finder:start()
    return nil
  end
  for _, worker in ipairs(self.makers) do
    if worker.state == 'idle' then return worker end
  end
end

--- Whether jobs can be run.
--- @return boolean
function Pool:ready()
  for _, worker in ipairs(self.makers) do
    if worker.state == 'idle' or worker.state == 'busy' then return true end
  end
  return false
end

--- The reason why no device can take jobs, if this has been so on all devices from the start.
--- @return string?
function Pool:refusal()
  for _, worker in ipairs(self.makers) do
    if worker.description or not worker.refused then return nil end
  end
  return self.makers[1].refused
end

--- Ends the finder if it was idle for a while.
function Pool:rest()
  local finder = self.finder
  if finder.state ~= 'idle' then return end
  stop(finder.idle)
  finder.idle = timer(IDLE, function()
    if finder.state == 'idle' then finder:stop() end
  end)
end

--- Probes a file; raises one sentence if it cannot be read. Must be called in a task; calls run one after another.
--- @param path string
--- @return table
function Pool:probe(path)
  self.prober_free:get()
  local ok, answer = pcall(function()
    local until_when = clock() + PROBE_LIMIT
    while self.prober.state ~= 'idle' do
      if clock() > until_when then error('files cannot be examined: the server cannot start the process for it', 0) end
      loop.sleep(0.02)
    end
    local done = loop.channel(1)
    self.probes = self.probes + 1
    local task = { id = self.probes, seconds = PROBE_LIMIT, message = { op = 'probe', id = self.probes, path = path },
      told = function() end, ended = function(m) done:put(m) end }
    self.prober:give(task)
    local m = done:get()
    m.late = task.late
    return m
  end)
  self.prober_free:put(true)
  if not ok then error(answer, 0) end
  if answer.info then return answer.info end
  error(answer.problem or path .. (answer.late and ': it takes too long to examine' or ': it cannot be read as video or sound'), 0)
end

--- Ends all processes.
function Pool:close()
  self.closing = true
  for _, worker in ipairs(self:workers()) do
    stop(worker.idle)
    stop(worker.limit)
    stop(worker.grace)
    worker:stop()
  end
end

return M
