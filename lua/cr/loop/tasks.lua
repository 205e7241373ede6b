--- Tasks and what they wait for.
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
local now = require 'cr.clock'
local luv = require 'cr.loop.luv'

local C, uv = require 'cr.ffi'.C, luv.uv
local registry = debug.getregistry()

--- on_switch: called with each task before it goes on, nil for the main program (lua/cr/cuda.lua: streams belong to tasks).
--- on_failure: called when a task failed that nobody awaits so far, or a callback of luv's (the prompt tells at once).
local M = { uv = luv.uv, on_switch = nil, on_failure = nil }

-- ---- tasks and waiters --------------------------------------------------------------------------

--- @class Task
--- @field status 'waiting'|'ready'|'running'|'done'|'failed'
--- @field await fun(self): ... waits for its end, as cr.await does
--- @field waiter table? what it waits for
--- @field waiters table? those who wait for its end
--- @field result table? what its function returned or raised
--- @field args table? what its function is called with
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

-- An error in a callback of luv's is nobody's: it is told where somebody tells errors at once, else
-- whoever turns the loop gets it in place of what it waits for. A second one comes with the next turn.
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

--- What the other files of the loop need: see their uses.
return {
  M = M, Task = Task, INTERRUPTED = INTERRUPTED, suspend = suspend, wake = wake, rest = rest, drain = drain, end_all = end_all,
  alive = alive, jobs = jobs, early = early, unobserved = unobserved,
}
