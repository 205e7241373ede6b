--- Coroutines over the core's event loop: tasks, waiting, channels. The functions are in `cr` too.
--
-- luv.lua opens luv on the core's loop, tasks.lua runs the loop and resumes tasks, and channel.lua has the queues
-- between tasks.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local parts = require 'cr.loop.tasks'
local luv = require 'cr.loop.luv'

local C, fail, uv = base.C, base.fail, luv.uv
local M, Task, INTERRUPTED = parts.M, parts.Task, parts.INTERRUPTED
local suspend, wake, rest, drain, end_all = parts.suspend, parts.wake, parts.rest, parts.drain, parts.end_all
local alive, jobs, early, unobserved = parts.alive, parts.jobs, parts.early, parts.unobserved

-- ---- waiting ------------------------------------------------------------------------------------

local function leave_job(waiter)
  -- The job will still complete, but nobody will ask for its result.
  if jobs[waiter.job] == waiter then waiter.abandoned = true end
end

-- Returns whether some pending job may have no waiter.
local function has_unawaited()
  local awaited = 0
  for _ in pairs(jobs) do awaited = awaited + 1 end
  return tonumber(C.cr_loop_pending()) > awaited
end

local function await_job(number)
  local job = tonumber(number)
  if job < 0 then error(ffi.string(C.cr_last_error()), 0) end
  drain()
  local done = early[job]
  if done then
    early[job] = nil
    if done.message then error(done.message, 0) end
    return done.status
  end
  local other = jobs[job]
  if other and not other.abandoned then fail(('await: job %s is awaited already'):format(arguments.shown(job))) end
  if not other and not has_unawaited() then
    fail(('await: there is no job %s: await takes a task from cr.go, or a pending job (once); cr.sleep waits for seconds')
      :format(arguments.shown(job)))
  end
  local waiter = { what = 'await a job', job = job, leave = leave_job }
  jobs[job] = waiter
  return suspend(waiter)
end

--- Waits for a task and returns the results of its function, or raises its error. For a job number from the core it
--- returns the job's status.
--- @param what Task|integer
function M.await(what)
  if getmetatable(what) == Task then
    what.observed = true
    for i = #unobserved, 1, -1 do
      if unobserved[i] == what then table.remove(unobserved, i) end
    end
    if not alive[what] then
      if what.status == 'done' then return unpack(what.result, 1, what.result.n) end
      error(what.result[1], 0)
    end
    if M.current() == what then fail('await: a task cannot wait for itself') end
    local waiter = { what = 'await a task' }
    table.insert(what.waiters, waiter)
    local function results(...)
      -- wake() passes on three values only, but a task may return more.
      if what.result and what.result.n > 3 then return unpack(what.result, 1, what.result.n) end
      return ...
    end
    return results(suspend(waiter))
  end
  return await_job(what)
end
Task.await = M.await

local function leave_timer(waiter)
  if not waiter.timer:is_closing() then waiter.timer:close() end
end

--- Suspends this task for some seconds, while other tasks run: cr.sleep(0.5).
--- @param seconds number
function M.sleep(seconds)
  local timer = assert(uv.new_timer())
  local waiter = { what = 'sleep', timer = timer, leave = leave_timer }
  -- The loop's cached time does not advance while Lua computes.
  uv.update_time()
  timer:start(math.max(0, math.ceil(seconds * 1000)), 0, function() wake(waiter, true) end)
  suspend(waiter)
end

local function leave_poll(waiter)
  if not waiter.poll:is_closing() then waiter.poll:close() end
end

--- Waits until a terminal, pipe or socket is readable, while other tasks run.
--- @param fd integer its file descriptor, which becomes non-blocking
function M.readable(fd)
  local poll = assert(uv.new_poll(fd))
  local waiter = { what = 'readable', poll = poll, leave = leave_poll }
  poll:start('r', function() wake(waiter, true) end)
  suspend(waiter)
end

--- Lets every ready task run once, then continues.
function M.yield()
  local task = M.current()
  if not task then return M.await(M.go(function() end)) end
  local waiter = { what = 'yield', task = task }
  task.waiter = waiter
  wake(waiter, true)
  rest(coroutine.yield)
  task.waiter = nil
  if not waiter.ok then error(waiter[1], 0) end -- it was cancelled meanwhile
  if C.cr_interrupted() ~= 0 then error(INTERRUPTED, 0) end
end

--- Waits until all tasks have ended and returns their first results in order. If one fails, the others are cancelled,
--- and its error is raised when they have ended.
--- @param tasks (Task|function|integer)[] tasks, functions to start as tasks, or numbers of jobs
--- @return table
function M.all(tasks)
  local list, n = {}, 0
  for i, task in ipairs(tasks) do
    n = i
    if type(task) == 'function' then
      task = M.go(task)
    elseif getmetatable(task) ~= Task then
      task = M.go(M.await, task)
    end
    task.observed = true
    list[i] = task
  end
  local left = 0
  local all = { what = 'all' }
  for _, task in ipairs(list) do
    if alive[task] then
      left = left + 1
      -- A waiter without a task: waking it counts as one end.
      local part = {}
      function part.leave(self)
        left = left - 1
        if not self.ok then
          wake(all, false, self[1])
        elseif left == 0 then
          wake(all, true)
        end
      end
      table.insert(task.waiters, part)
    elseif task.status == 'failed' then
      wake(all, false, task.result[1])
    end
  end
  if left == 0 then wake(all, true) end
  local ok, err = pcall(suspend, all)
  if not ok then
    for _, task in ipairs(list) do task:cancel(err == INTERRUPTED and err or nil) end
    for _, task in ipairs(list) do pcall(M.await, task) end
    error(err, 0)
  end
  local results = {}
  for i = 1, n do results[i] = list[i].result[1] end
  return results
end

-- ---- the ends -----------------------------------------------------------------------------------

local function forget_unobserved()
  for i = #unobserved, 1, -1 do unobserved[i] = nil end
end

local function report_unobserved()
  local failed = table.remove(unobserved, 1)
  if failed then
    failed.observed = true
    forget_unobserved()
    error(failed.result[1], 0)
  end
  failed = luv.take_failure()
  if failed then error(failed.err, 0) end
end

--- Runs fn as a task, runs the loop until the task ends, and returns its results. If a task that nobody awaited has
--- failed meanwhile, or a callback of luv, its error is raised.
--- @param fn function
function M.run(fn, ...)
  local function results(...)
    report_unobserved()
    return ...
  end
  return results(M.await(M.go(fn, ...)))
end

--- Returns whether a callback, or a task that nobody awaited, has failed, and its error. Each failure is reported once.
--- @return boolean
--- @return any?
--- @return ('task'|'callback')? what
function M.failed()
  local task = table.remove(unobserved, 1)
  if task then
    task.observed = true
    return true, task.result[1], task.what or 'task'
  end
  local failure = luv.take_failure()
  if not failure then return false end
  return true, failure.err, 'callback'
end

--- Runs the loop until no task is left.
function M.finish()
  while true do
    local task = next(alive)
    if not task then break end
    local observed = task.observed
    local waiter = { what = nil }
    table.insert(task.waiters, { leave = function() wake(waiter, true) end })
    task.observed = observed
    local ok, err = pcall(suspend, waiter)
    if not ok then error(err, 0) end
  end
  report_unobserved()
end

--- Raises an error in every task at the place where it waits, so that all tasks end and their closers run.
--- @param reason any
function M.cancel_all(reason)
  end_all(reason)
  forget_unobserved()
end

--- Returns the number of open handles of luv (timers, pipes, processes).
function M.handles() return C.cr__loop_handles() end

M.channel = require 'cr.loop.channel'.new

local any, callable = arguments.any, arguments.kind('a function', function(v) return type(v) == 'function' end)
local function is_job(v) return type(v) == 'number' and v % 1 == 0 or ffi.istype('int64_t', v) end
local function is_task(v) return getmetatable(v) == Task end
local jobs_and_tasks = arguments.list('a list of tasks, functions and jobs', arguments.kind('', function(v)
  return type(v) == 'function' or is_task(v) or is_job(v)
end))
-- The arguments of a task and its error may be anything.
arguments.methods(Task, 'task', { await = {}, cancel = { any } })
return arguments.guard('', M, {
  go = { callable, vararg = true }, run = { callable, vararg = true },
  await = { arguments.kind('a task, as from cr.go, or a job', function(v) return is_task(v) or is_job(v) end) },
  all = { jobs_and_tasks }, yield = {}, readable = { arguments.natural },
  sleep = { arguments.kind('a number of seconds', function(v) return type(v) == 'number' and v < 2 ^ 53 end) },
  channel = { arguments.maybe(arguments.natural) },
  failed = {}, finish = {}, cancel_all = { any }, handles = {}, current = {}, count = {}, waited = {}, traceback_of = { any },
})
