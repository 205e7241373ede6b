--- Coroutines over the core's event loop: tasks, waiting, channels. The functions are in `cr` too.
--
-- Everything that waits comes down to a waiter: a table that is woken once, with values or an
-- error. A task (a coroutine made by go) yields its waiter; anybody else (the main program, an
-- iterator's coroutine) turns the loop until its waiter is done. Tasks are resumed between turns of
-- libuv's loop, never from inside one of its callbacks, so that an error in one meets no C frames
-- and a wait inside a wait is possible.
--
-- While the loop itself runs the registry's cr_hold is true, and Ctrl-C is noticed here instead of
-- by the program's hook: every waiting task gets the error 'interrupted'.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local errors = require 'cr.errors'
local now = require 'cr.clock'

local C = base.C
local registry = debug.getregistry()

-- ---- luv on the core's loop ---------------------------------------------------------------------

ffi.cdef [[
typedef struct { const char *file; void *base; const char *symbol; void *address; } cr_dl_info;
int dladdr(const void *address, cr_dl_info *info);
int cr_luaopen_loop(void *L);
int32_t cr__loop_handles(void);
]]

local function load_luv()
  local path, tried = package.searchpath('luv', package.cpath)
  if not path then
    base.fail('loop: luv is missing (apt-get install lua-luv):' .. tried:gsub('\n%s*', ' '))
  end
  local info = ffi.new 'cr_dl_info'
  local ours = ffi.C.dladdr(ffi.cast('void *', C.cr_luaopen_loop), info) ~= 0 and ffi.string(info.file)
  local set_loop, problem = package.loadlib(ours or '', 'cr_luaopen_loop')
  if not set_loop then base.fail('loop: ' .. tostring(problem)) end
  problem = set_loop(path)
  if problem then base.fail('loop: luv in ' .. path .. ' cannot be used: ' .. problem) end
  -- Not by require: the program makes require 'luv' come here, so that luv is never without our loop.
  if type(package.loaded.luv) ~= 'table' then
    local open
    open, problem = package.loadlib(path, 'luaopen_luv')
    if not open then base.fail('loop: ' .. tostring(problem)) end
    package.loaded.luv = open 'luv'
  end
  return package.loaded.luv
end

local uv = load_luv()

-- A script may turn the loop by itself; the hook must not raise inside a callback of luv's, which
-- would end the process.
local uv_run = uv.run
function uv.run(...)
  local held = registry.cr_hold
  registry.cr_hold = true
  local result = uv_run(...)
  registry.cr_hold = held
  return result
end

-- It would abort at the core's own handle, which luv did not make.
function uv.walk() base.fail 'uv.walk: not possible on this loop; cr.loop.handles() counts open handles' end

--- on_switch: called with each task before it goes on, nil for the main program (lua/cr/cuda.lua: streams belong to tasks).
--- on_failure: called when a task failed that nobody awaits so far (the prompt tells at once).
local M = { uv = uv, on_switch = nil, on_failure = nil }

-- ---- tasks and waiters --------------------------------------------------------------------------

--- @class Task
--- @field status 'waiting'|'ready'|'running'|'done'|'failed'
local Task = {}
Task.__index = Task
function Task:__tostring() return 'task (' .. self.status .. ')' end

local ready, ready_first, ready_last = {}, 1, 0
local by_coroutine = setmetatable({}, { __mode = 'k' }) -- running coroutine -> task
local alive = {}                                        -- tasks that have not ended
local alive_count = 0
local unobserved = {}                                   -- failed tasks that nobody awaited, in order
local jobs = {}                                         -- job number -> waiter
local early = {}                                        -- job number -> completion nobody waits for yet
local outer = {}                                        -- waiters of those who turn the loop
local tracebacks = setmetatable({}, { __mode = 'k' })   -- error object -> traceback
local last_error, last_traceback

local INTERRUPTED = 'interrupted'

local function make_ready(task)
  task.status = 'ready'
  ready_last = ready_last + 1
  ready[ready_last] = task
end

-- Wakes a waiter once; what comes later finds it done.
local function wake(waiter, ok, ...)
  if waiter.done then return end
  waiter.done, waiter.ok = true, ok
  waiter.n, waiter[1], waiter[2], waiter[3] = select('#', ...), ...
  if waiter.leave then waiter:leave() end
  local task = waiter.task
  -- A task that an error took out of this wait is somewhere else by now.
  if task and alive[task] and task.waiter == waiter then make_ready(task) end
end

local function outcome(waiter)
  if waiter.ok then return unpack(waiter, 1, waiter.n) end
  error(waiter[1], 0)
end

local pump, end_all

local waited = setmetatable({}, { __mode = 'k' }) -- coroutine -> seconds that it has waited

-- Calls what lets the others go on, and counts the time until it returns.
local function rest(fn, ...)
  local key, start = coroutine.running() or M, now()
  local function back(...)
    waited[key] = (waited[key] or 0) + (now() - start)
    return ...
  end
  return back(fn(...))
end

--- Seconds that the task that asks (the main program outside of one) has waited since it began: for its turn,
--- other tasks, files, or a card by cr.cuda.synchronize. All else is its own time, of which there is one
--- second a second for all tasks together.
--- @return number
function M.waited() return waited[coroutine.running() or M] or 0 end

-- Waits until somebody calls wake(waiter).
local function suspend(waiter)
  if not waiter.done then
    local task = by_coroutine[coroutine.running()]
    if C.cr_interrupted() ~= 0 then
      if not task then end_all(INTERRUPTED) end
      wake(waiter, false, INTERRUPTED)
    elseif task then
      waiter.task, task.waiter, task.status = task, waiter, 'waiting'
      registry.cr_hold = true
      rest(coroutine.yield)
      task.waiter = nil
    else
      rest(pump, waiter)
      if M.on_switch then M.on_switch(nil) end
    end
  end
  return outcome(waiter)
end

local function finish_task(task, ok, ...)
  alive[task], alive_count = nil, alive_count - 1
  task.status = ok and 'done' or 'failed'
  task.result = { n = select('#', ...), ... }
  task.co = nil
  local waiters = task.waiters
  task.waiters = nil
  for _, waiter in ipairs(waiters) do wake(waiter, ok, ...) end
  if not ok and not task.observed then
    unobserved[#unobserved + 1] = task
    if M.on_failure then M.on_failure() end
  end
end

local function resumed(task, ok, ...)
  registry.cr_hold = true
  if coroutine.status(task.co) == 'dead' then
    if not ok then
      local err = ...
      last_error, last_traceback = err, debug.traceback(task.co, type(err) == 'string' and err or nil)
      if type(err) == 'table' then tracebacks[err] = last_traceback end
    end
    by_coroutine[task.co] = nil
    finish_task(task, ok, ...)
  elseif task.status == 'running' then
    -- A plain coroutine.yield, which nobody would ever answer.
    make_ready(task)
  end
end

local function resume(task)
  task.status = 'running'
  if M.on_switch then M.on_switch(task) end
  registry.cr_hold = false
  if task.cancelled_before then
    by_coroutine[task.co] = nil
    registry.cr_hold = true
    finish_task(task, false, task.cancelled_before)
  elseif task.args then
    local args = task.args
    task.args = nil
    resumed(task, coroutine.resume(task.co, unpack(args, 1, args.n)))
  else
    resumed(task, coroutine.resume(task.co))
  end
end

--- Starts fn(...) as a task, which runs when the loop next turns. Its error goes to whoever awaits
--- it, or is reported when the loop ends if nobody does.
---
---     local task = cr.go(function() return media.load_audio 'voice.wav' end)
---     local sound = cr.await(task)
--- @param fn function
--- @return Task
function M.go(fn, ...)
  if type(fn) ~= 'function' then base.fail('go: wants a function, got ' .. type(fn)) end
  local task = setmetatable({
    co = coroutine.create(fn), args = { n = select('#', ...), ... }, waiters = {}, observed = false,
  }, Task)
  by_coroutine[task.co] = task
  alive[task], alive_count = true, alive_count + 1
  make_ready(task)
  return task
end

--- Makes a waiting task's wait raise `reason`, so that it can close what it opened. A task that has
--- ended stays as it is. Whoever cancels a task is taken to know that it fails.
--- @param reason any? 'cancelled'
function Task:cancel(reason)
  reason = reason == nil and 'cancelled' or reason
  if not alive[self] then return end
  self.observed = true
  if self.args then
    self.cancelled_before = reason
  elseif self.waiter and self.waiter.done then
    -- It was woken and has not run since: it gets the reason in place of what it waited for.
    local waiter = self.waiter
    if waiter.ok then waiter.ok, waiter.n, waiter[1] = false, 1, reason end
  elseif self.waiter then
    wake(self.waiter, false, reason)
  end
end

-- ---- the loop -----------------------------------------------------------------------------------

local completions = ffi.new 'cr_completion[16]'

local function drain()
  repeat
    local n = C.cr_loop_drain(completions, 16)
    for i = 0, n - 1 do
      local c = completions[i]
      local job, status = tonumber(c.job), c.status
      local message = status < 0 and ffi.string(c.message) or nil
      local waiter = jobs[job]
      if waiter then
        jobs[job] = nil
        if waiter.abandoned then
          early[job] = nil
        elseif message then
          wake(waiter, false, message)
        else
          wake(waiter, true, status)
        end
      else
        early[job] = { status = status, message = message }
      end
    end
  until n < 16
end

-- "script.lua:12: channel get" of a task that waits.
local function where(task)
  local what = task.waiter and task.waiter.what or 'wait'
  if not task.co then return what end
  local level, info = errors.caller(0, task.co)
  return level and ('%s:%d (%s)'):format(info.short_src, info.currentline, what) or what
end

local function deadlock(waiter)
  local failed = table.remove(unobserved, 1)
  if failed then return failed.result[1] end
  local places = {}
  for task in pairs(alive) do places[#places + 1] = where(task) end
  table.sort(places)
  if waiter.what then places[#places + 1] = 'the main program (' .. waiter.what .. ')' end
  return 'deadlock: everything waits and nothing can wake it: ' .. table.concat(places, ', ')
end

local function run_ready()
  local last = ready_last
  while ready_first <= last do
    local task = ready[ready_first]
    ready[ready_first] = nil
    ready_first = ready_first + 1
    if alive[task] and task.status == 'ready' then resume(task) end
  end
  if ready_first > ready_last then ready_first, ready_last = 1, 0 end
end

-- Ends every waiting task by an error at the place where it waits, and lets its closers run; then
-- the same for those who turn the loop.
function end_all(reason)
  local held = registry.cr_hold
  registry.cr_hold = true
  for _ = 1, 1000 do
    for task in pairs(alive) do
      task.observed = true
      if task.args then
        task.cancelled_before = reason
      elseif task.waiter then
        wake(task.waiter, false, reason)
      end
    end
    if ready_first > ready_last then break end
    run_ready()
  end
  for _, waiter in ipairs(outer) do wake(waiter, false, reason) end
  registry.cr_hold = held
end

local function turn(waiter)
  while not waiter.done do
    if C.cr_interrupted() ~= 0 then end_all(INTERRUPTED) end
    run_ready()
    drain()
    if waiter.done then break end
    if ready_first <= ready_last then
      uv.run 'nowait'
      drain()
    elseif tonumber(C.cr_loop_pending()) == 0 and not uv.loop_alive() then
      end_all(deadlock(waiter))
    else
      uv.run 'once'
      drain()
    end
  end
  if C.cr_interrupted() ~= 0 then end_all(INTERRUPTED) end
end

-- Turns the loop until the waiter is woken.
function pump(waiter)
  local held = registry.cr_hold
  registry.cr_hold = true
  outer[#outer + 1] = waiter
  local ok, err = pcall(turn, waiter)
  for i = #outer, 1, -1 do
    if outer[i] == waiter then table.remove(outer, i) end
  end
  registry.cr_hold = held
  if not ok then error(err, 0) end
end

-- ---- waiting ------------------------------------------------------------------------------------

local function leave_job(waiter)
  -- Its completion is still to come, and nobody will ask for it.
  if jobs[waiter.job] == waiter then waiter.abandoned = true end
end

local function await_job(number)
  local job = tonumber(number)
  if job == 0 then base.fail 'await: 0 is no job' end
  if job < 0 then error(ffi.string(C.cr_last_error()), 0) end
  drain()
  local done = early[job]
  if done then
    early[job] = nil
    if done.message then error(done.message, 0) end
    return done.status
  end
  local waiter = { what = 'await a job', job = job, leave = leave_job }
  jobs[job] = waiter
  return suspend(waiter)
end

--- Waits for a task and returns what its function returned, or raises what it raised; or for a job
--- number from the core, and returns its status.
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
    if by_coroutine[coroutine.running()] == what then base.fail('await: a task cannot wait for itself') end
    local waiter = { what = 'await a task' }
    table.insert(what.waiters, waiter)
    local function results(...)
      -- wake() keeps three values; a task may return more.
      if what.result and what.result.n > 3 then return unpack(what.result, 1, what.result.n) end
      return ...
    end
    return results(suspend(waiter))
  elseif type(what) == 'number' or ffi.istype('int64_t', what) then
    return await_job(what)
  end
  base.fail('await: wants a task or a job, got ' .. type(what))
end
Task.await = M.await

local function leave_timer(waiter)
  if not waiter.timer:is_closing() then waiter.timer:close() end
end

--- Lets other tasks run for this long: cr.sleep(0.5).
--- @param seconds number
function M.sleep(seconds)
  if type(seconds) ~= 'number' or seconds ~= seconds then base.fail 'sleep: wants a number of seconds' end
  local timer = assert(uv.new_timer())
  local waiter = { what = 'sleep', timer = timer, leave = leave_timer }
  -- The loop's clock stands still while Lua computes.
  uv.update_time()
  timer:start(math.max(0, math.ceil(seconds * 1000)), 0, function() wake(waiter, true) end)
  suspend(waiter)
end

local function leave_poll(waiter)
  if not waiter.poll:is_closing() then waiter.poll:close() end
end

--- Waits until a terminal, pipe or socket has something to read; other tasks run meanwhile.
--- @param fd integer its file descriptor, which becomes non-blocking
function M.readable(fd)
  local poll = assert(uv.new_poll(fd))
  local waiter = { what = 'readable', poll = poll, leave = leave_poll }
  poll:start('r', function() wake(waiter, true) end)
  suspend(waiter)
end

--- Lets every task that is ready run once, then goes on.
function M.yield()
  local task = by_coroutine[coroutine.running()]
  if not task then return M.await(M.go(function() end)) end
  local waiter = { what = 'yield', task = task }
  task.waiter = waiter
  wake(waiter, true)
  rest(coroutine.yield)
  task.waiter = nil
  if C.cr_interrupted() ~= 0 then error(INTERRUPTED, 0) end
end

--- Waits until all tasks have ended and returns their first results in order. When one fails, the
--- others are cancelled, and once they have ended its error is raised.
--- @param tasks (Task|function|integer)[] functions are started, numbers are jobs
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
      -- A waiter that is nobody's own: waking it counts.
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

local function report_unobserved()
  local failed = table.remove(unobserved, 1)
  if failed then
    failed.observed = true
    unobserved = {}
    error(failed.result[1], 0)
  end
end

--- Runs fn as a task and the loop until it ends; returns its results. If a task that nobody awaited
--- failed meanwhile, its error is raised.
--- @param fn function
function M.run(fn, ...)
  local function results(...)
    report_unobserved()
    return ...
  end
  return results(M.await(M.go(fn, ...)))
end

--- Whether a task has failed that nobody awaited, and its error: each is told once.
--- @return boolean
--- @return any
function M.failed()
  local task = table.remove(unobserved, 1)
  if not task then return false end
  task.observed = true
  return true, task.result[1]
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

--- Ends every task by an error at the place where it waits, and runs their closers.
--- @param reason any
function M.cancel_all(reason)
  end_all(reason)
  unobserved = {}
end

--- The traceback of the task in which an error arose.
function M.traceback_of(err)
  if type(err) == 'table' then return tracebacks[err] end
  return err == last_error and last_traceback or nil
end

--- The task that runs now, nil outside one.
--- @return Task?
function M.current() return by_coroutine[coroutine.running()] end

--- How many tasks have not ended.
function M.count() return alive_count end

--- How many of luv's handles (timers, pipes, processes) are open.
function M.handles() return C.cr__loop_handles() end

-- Channels are built from the same waiters.
M.channel = require 'cr.loop.channel' { suspend = suspend, wake = wake, fail = base.fail }

return M
