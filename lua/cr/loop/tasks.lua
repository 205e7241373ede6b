--- Tasks and what they wait for.
--
-- Every wait uses a waiter, a table that is woken once, with values or an error. A task (a coroutine made by `go`)
-- yields its waiter. Any other code (the main program, the coroutine of an iterator) runs the loop until its waiter
-- is done. Tasks are resumed between turns of libuv's loop, never inside one of its callbacks, so an error in a task
-- does not cross C frames, and waits can be nested.
--
-- While the loop itself runs, the registry's cr_hold is true, and this file handles Ctrl-C instead of the program's
-- hook: every waiting task gets the error 'interrupted'.

local ffi = require 'ffi'
local now = require 'cr.clock'
local luv = require 'cr.loop.luv'

local C, uv = require 'cr.ffi'.C, luv.uv
local registry = debug.getregistry()

--- on_switch is called with each task before it is resumed, and with nil for the main program (lua/cr/cuda.lua needs
--- it, because streams belong to tasks). on_failure is called when a callback of luv fails, or a task that nobody
--- awaits so far (the prompt reports it at once).
local M = { uv = luv.uv, on_switch = nil, on_failure = nil }

-- ---- tasks and waiters --------------------------------------------------------------------------

--- @class Task
--- @field status 'waiting'|'ready'|'running'|'done'|'failed'
--- @field await fun(self): ... waits for its end, as cr.await does
--- @field waiter table? what it waits for
--- @field waiters table? waiters for its end
--- @field result table? the results or the error of its function
--- @field args table? the arguments of its function
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
local outer = {}                                        -- waiters of the code that runs the loop
local tracebacks = setmetatable({}, { __mode = 'k' })   -- error object -> traceback
local last_error, last_traceback

local INTERRUPTED = 'interrupted'

local function make_ready(task)
  task.status = 'ready'
  ready_last = ready_last + 1
  ready[ready_last] = task
end

-- Wakes a waiter. Only the first call has an effect.
local function wake(waiter, ok, ...)
  if waiter.done then return end
  waiter.done, waiter.ok = true, ok
  waiter.n, waiter[1], waiter[2], waiter[3] = select('#', ...), ...
  if waiter.leave then waiter:leave() end
  local task = waiter.task
  -- A task that an error has taken out of this wait is elsewhere by now.
  if task and alive[task] and task.waiter == waiter then make_ready(task) end
end

local function outcome(waiter)
  if waiter.ok then return unpack(waiter, 1, waiter.n) end
  error(waiter[1], 0)
end

local pump, end_all

local waited = setmetatable({}, { __mode = 'k' }) -- coroutine -> seconds that it has waited

-- Calls fn, which lets other tasks run, and counts the time until it returns as waiting.
local function rest(fn, ...)
  local key, start = coroutine.running() or M, now()
  local function back(...)
    waited[key] = (waited[key] or 0) + (now() - start)
    return ...
  end
  return back(fn(...))
end

--- Returns how many seconds the calling task, or the main program, has waited since it began: for its turn, other
--- tasks, files, or a card in cr.cuda.synchronize. The rest is its own running time. The running times of all tasks
--- add up to the elapsed time.
--- @return number
function M.waited() return waited[coroutine.running() or M] or 0 end

-- Suspends the caller until wake(waiter) is called.
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

local function note_traceback(err, trace)
  last_error, last_traceback = err, trace
  if type(err) == 'table' then tracebacks[err] = trace end
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
      note_traceback(err, debug.traceback(task.co, type(err) == 'string' and err or nil))
    end
    by_coroutine[task.co] = nil
    finish_task(task, ok, ...)
  elseif task.status == 'running' then
    -- The task called a plain coroutine.yield, which nothing would ever resume.
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

--- Starts fn(...) as a task, which first runs in the next turn of the loop. Its error is raised where the task is
--- awaited or, if nobody awaits it, reported when the loop ends.
---
---     local task = cr.go(function() return media.load_audio 'voice.wav' end)
---     local sound = cr.await(task)
--- @param fn function
--- @return Task
function M.go(fn, ...)
  local task = setmetatable({
    co = coroutine.create(fn), args = { n = select('#', ...), ... }, waiters = {}, observed = false,
  }, Task)
  by_coroutine[task.co] = task
  alive[task], alive_count = true, alive_count + 1
  make_ready(task)
  return task
end

--- Raises `reason` in a task at the place where it waits, so that it can close what it opened. A task that has ended
--- stays as it is. The failure of a cancelled task is not reported.
--- @param reason any? 'cancelled'
function Task:cancel(reason)
  reason = reason == nil and 'cancelled' or reason
  if not alive[self] then return end
  self.observed = true
  if self.args then
    self.cancelled_before = reason
  elseif self.waiter and self.waiter.done then
    -- The task was woken but has not run since, so it gets the reason instead of the value.
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

-- Describes where a task waits: "script.lua:12: channel get".
local function where(task)
  local what = task.waiter and task.waiter.what or 'wait'
  if not task.co then return what end
  local level, info = require 'cr.errors'.caller(0, task.co)
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

-- Raises an error in every waiting task, so that its closers run, then in the code that runs the loop.
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

-- An error in a callback of luv belongs to no task. If on_failure is set, it gets the error; otherwise it is raised
-- in the code that runs the loop. A second error follows in the next turn.
local function pass_failures(waiter)
  while not waiter.done do
    local failure = luv.take_failure()
    if not failure or C.cr_interrupted() ~= 0 then return end
    note_traceback(failure.err, failure.trace)
    if M.on_failure then
      unobserved[#unobserved + 1] = { result = { failure.err }, what = 'callback' }
      M.on_failure()
    else
      wake(waiter, false, failure.err)
    end
  end
end

local function turn_loop(waiter, mode)
  luv.turn(mode)
  drain()
  pass_failures(waiter)
end

local function turn(waiter)
  while not waiter.done do
    if C.cr_interrupted() ~= 0 then end_all(INTERRUPTED) end
    run_ready()
    drain()
    if waiter.done then break end
    if ready_first <= ready_last then
      turn_loop(waiter, 'nowait')
    elseif tonumber(C.cr_loop_pending()) == 0 and not uv.loop_alive() then
      end_all(deadlock(waiter))
    else
      turn_loop(waiter, 'once')
    end
  end
  if C.cr_interrupted() ~= 0 then end_all(INTERRUPTED) end
end

-- Runs the loop until the waiter is woken.
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

--- Returns the traceback of the task in which an error arose.
function M.traceback_of(err)
  if type(err) == 'table' then return tracebacks[err] end
  return err == last_error and last_traceback or nil
end

--- Returns the running task, or nil outside a task.
--- @return Task?
function M.current() return by_coroutine[coroutine.running()] end

--- Returns the number of tasks that have not ended.
function M.count() return alive_count end

--- Internals that the other files of loop/ use.
return {
  M = M, Task = Task, INTERRUPTED = INTERRUPTED, suspend = suspend, wake = wake, rest = rest, drain = drain, end_all = end_all,
  alive = alive, jobs = jobs, early = early, unobserved = unobserved,
}
