--- Tasks, waiting, channels, and how errors and cancellation travel.

local t = require 'tests.support.tap'
local cr = require 'cr'
local ffi = require 'ffi'
local loop = require 'cr.loop'
local uv = loop.uv

-- No test may leave a task, a job or an open handle.
local function settled(name, fn)
  t.test(name, function()
    fn()
    uv.run 'nowait'
    t.equal(loop.count(), 0, 'tasks left')
    t.equal(tonumber(cr.C.cr_loop_pending()), 0, 'jobs left')
    t.equal(loop.handles(), 0, 'handles left')
  end)
end

settled('results and errors of a task reach who awaits it', function()
  local task = cr.go(function(a, b) return a + b, 'x', nil, nil, 5 end, 1, 2)
  local a, b, c, d, e = cr.await(task)
  t.equal(a, 3)
  t.equal(b, 'x')
  t.ok(c == nil and d == nil)
  t.equal(e, 5)
  t.equal(cr.await(task), 3, 'a second await')
  local failing = cr.go(function() error 'boom' end)
  t.raises(function() cr.await(failing) end, '^.*loop_test.lua:%d+: boom$')
  t.raises(function() cr.await(failing) end, 'boom')
  local object = {}
  local ok, err = pcall(cr.await, cr.go(function() error(object) end))
  t.ok(not ok and err == object, 'an error object stays itself')
end)

settled('an error in a callback of luv comes to whoever turns the loop, and the loop goes on', function()
  local function failing_timer(err)
    local timer = uv.new_timer()
    timer:start(1, 0, function()
      timer:close()
      error(err)
    end)
  end
  failing_timer 'boom'
  t.raises(function() cr.sleep(1000) end, '^[^\n]*loop_test.lua:%d+: boom$')
  failing_timer 'boom'
  t.raises(function() cr.run(cr.sleep, 1000) end, '^[^\n]*loop_test.lua:%d+: boom$')
  loop.cancel_all()
  local object = {}
  failing_timer(object)
  local ok, err = pcall(uv.run)
  t.ok(not ok and err == object, 'an error object stays itself')
  for _ = 1, 2 do failing_timer 'of two' end
  t.raises(function() cr.sleep(0.1) end, 'of two')
  t.raises(function() cr.sleep(0.1) end, 'of two')
  cr.sleep(0.01)
  local function deep() return 1 + deep() end
  local timer = uv.new_timer()
  timer:start(1, 0, function()
    timer:close()
    deep()
  end)
  t.raises(function() cr.sleep(1000) end, 'stack overflow')
  uv.new_thread(function() error 'far away' end):join()
  t.raises(function() cr.sleep(0.01) end, ': far away$')
  t.equal(select('#', loop.failed()), 1, 'each is told once')
end)

settled('tasks take turns', function()
  local log = {}
  local function worker(name)
    return function()
      for i = 1, 3 do
        log[#log + 1] = name .. i
        cr.yield()
      end
    end
  end
  cr.all { worker 'a', worker 'b' }
  t.equal(table.concat(log, ' '), 'a1 b1 a2 b2 a3 b3')
end)

settled('a task is told how long it has waited, for timers, turns and others, and no one else\'s time', function()
  local now = require 'cr.clock'
  local function work(seconds)
    local start = now()
    while now() - start < seconds do end
  end
  local before = loop.waited()
  local own, turns, tasks, outside
  cr.all {
    function()
      local start, waited = now(), loop.waited()
      cr.sleep(0.05)
      work(0.03)
      own = loop.waited()
      outside = now() - start - (own - waited)
    end,
    function()
      cr.yield() -- the others work meanwhile
      turns = loop.waited()
      tasks = { cr.await(cr.go(function() work(0.02) end)), loop.waited() - turns }
    end,
    function() work(0.04) end,
  }
  t.ok(own >= 0.05, 'a sleep counts: ' .. own)
  t.ok(outside >= 0.03, 'work does not: ' .. outside)
  t.ok(turns >= 0.04, 'a turn: ' .. turns)
  t.ok(tasks[#tasks] >= 0.02, 'another task')
  t.ok(loop.waited() - before >= 0.09, 'the main program waited for all of it')
  local since, start = loop.waited(), now()
  work(0.02)
  t.equal(loop.waited(), since, 'work is no waiting')
  t.ok(now() - start >= 0.02)
end)

settled('sleep lets others run and wakes in order', function()
  local log = {}
  local begin = uv.hrtime()
  cr.all {
    function() cr.sleep(0.2) log[#log + 1] = 'late' end,
    function() cr.sleep(0.01) log[#log + 1] = 'early' end,
  }
  t.equal(table.concat(log, ' '), 'early late')
  local seconds = (uv.hrtime() - begin) * 1e-9
  t.ok(seconds >= 0.19 and seconds < 20, 'slept together, not one after another: ' .. seconds)
  t.raises(function() cr.sleep 'x' end, "sleep: seconds: a number of seconds is needed, not 'x'")
end)

settled('all returns results in order', function()
  local results = cr.all {
    function() cr.sleep(0.005) return 'slow' end, cr.go(function() return 'fast' end), function() end,
  }
  t.equal(results[1], 'slow')
  t.equal(results[2], 'fast')
  t.equal(results[3], nil)
  t.equal(#cr.all {}, 0)
end)

settled('all cancels the others when one fails, and waits for their closers', function()
  local closed
  t.raises(function()
    cr.all {
      function()
        local ok, err = pcall(cr.sleep, 100)
        closed = not ok and err
        error(err, 0)
      end,
      function() error 'first' end,
      function() cr.sleep(50) end,
    }
  end, 'first')
  t.equal(closed, 'cancelled')
end)

settled('all with a task that has failed before', function()
  local failed = cr.go(function() error 'before' end)
  cr.yield()
  t.raises(function() cr.all { failed, function() cr.sleep(100) end } end, 'before')
end)

settled('cancel', function()
  local task = cr.go(function() cr.sleep(100) end)
  cr.yield()
  task:cancel()
  t.raises(function() cr.await(task) end, '^cancelled$')
  task:cancel()
  local never = cr.go(function() error 'must not run' end)
  never:cancel 'enough'
  t.raises(function() never:await() end, '^enough$')
end)

settled('a channel keeps order and bounds what is in flight', function()
  local channel, most, made = cr.channel(2), 0, 0
  local got = {}
  cr.all {
    function()
      for i = 1, 20 do
        channel:put(i)
        made = i
        most = math.max(most, made - #got)
      end
      channel:close()
    end,
    function()
      for value in channel do
        got[#got + 1] = value
        cr.yield()
      end
    end,
  }
  t.equal(table.concat(got, ' '), '1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20')
  t.ok(most <= 4, 'in flight: ' .. most)
  t.equal(channel:get(), nil)
  t.raises(function() channel:put(1) end, 'put after close')
  t.raises(function() cr.channel(1):put(nil) end, 'nil')
  t.raises(function() cr.channel(-1) end, 'whole number')
end)

settled('a channel of size 0 hands over', function()
  local channel, log = cr.channel(0), {}
  cr.all {
    function()
      for i = 1, 3 do
        channel:put(i)
        log[#log + 1] = 'put' .. i
      end
      channel:close()
    end,
    function()
      for value in channel do log[#log + 1] = 'got' .. value end
    end,
  }
  t.equal(#log, 6)
  t.equal(log[1]:sub(1, 3) .. log[6]:sub(-1), 'got3', table.concat(log, ' '))
end)

settled('a channel closed with an error raises it after the last value', function()
  local channel = cr.channel(3)
  t.equal(channel:count(), 0)
  channel:put 'a'
  t.equal(channel:count(), 1)
  channel:close 'decoder failed'
  t.equal(channel:count(), 1)
  t.equal(channel:get(), 'a')
  t.equal(channel:count(), 0)
  t.raises(function() channel:get() end, 'decoder failed')
  local full = cr.channel(1)
  full:put(1)
  local putter = cr.go(function() full:put(2) end)
  cr.yield()
  full:close()
  t.raises(function() cr.await(putter) end, 'closed while putting')
end)

settled('a task that was woken and has not run since is cancelled too', function()
  local channel, after = cr.channel(0), false
  local task = cr.go(function()
    channel:put(1)
    after = true
  end)
  cr.yield()
  t.equal(channel:get(), 1) -- wakes the waiting sender
  task:cancel 'enough'
  t.raises(function() cr.await(task) end, '^enough$')
  t.ok(not after, 'it went on')
end)

settled('so is one that gives others their turn', function()
  local turns = 0
  local task = cr.go(function()
    while turns < 100 do
      turns = turns + 1
      cr.yield()
    end
  end)
  cr.yield()
  task:cancel 'enough'
  t.raises(function() cr.await(task) end, '^enough$')
  t.ok(turns < 100, 'it went on')
end)

settled('a cancelled getter does not swallow a value', function()
  local channel = cr.channel(1)
  local first = cr.go(function() return channel:get() end)
  cr.yield()
  first:cancel()
  local second = cr.go(function() return channel:get() end)
  cr.yield()
  channel:put 'value'
  t.equal(cr.await(second), 'value')
end)

settled('waiting for nothing is an error that says where', function()
  t.raises(function()
    cr.run(function() cr.channel(1):get() end)
  end, 'deadlock: .*loop_test.lua:%d+ %(channel get%)')
  t.raises(function() cr.channel(1):get() end, 'deadlock: .*the main program')
  -- The error that left the others waiting is the better message.
  t.raises(function()
    local channel = cr.channel(1)
    cr.go(function() error 'the cause' end)
    channel:get()
  end, 'the cause')
end)

settled('a failure that nobody awaits is reported at the end', function()
  t.raises(function()
    cr.run(function()
      cr.go(function() error 'lost' end)
      cr.sleep(0.005)
    end)
  end, 'lost')
  cr.go(function() error 'later' end)
  t.raises(loop.finish, 'later')
  loop.finish()
end)

settled('waits inside an iterator of a task', function()
  local others = 0
  local sum = cr.run(function()
    local ticker = cr.go(function()
      for _ = 1, 5 do
        cr.sleep(0.001)
        others = others + 1
      end
    end)
    local total = 0
    for v in coroutine.wrap(function()
      for i = 1, 4 do
        cr.sleep(0.003)
        coroutine.yield(i)
      end
    end) do total = total + v end
    cr.await(ticker)
    return total
  end)
  t.equal(sum, 10)
  t.equal(others, 5, 'others ran meanwhile')
end)

settled('thousands of tasks', function()
  local channel, sum = cr.channel(7), 0
  local tasks = {}
  for i = 1, 3000 do tasks[i] = cr.go(function() channel:put(i) end) end
  tasks[#tasks + 1] = cr.go(function()
    for _ = 1, 3000 do sum = sum + channel:get() end
  end)
  cr.all(tasks)
  t.equal(sum, 3000 * 3001 / 2)
end)

settled('await refuses what cannot be awaited', function()
  t.raises(function() cr.await 'x' end, "await: what: a task, as from cr.go, or a job is needed, not 'x'")
  t.raises(function() cr.go(3) end, 'go: fn: a function is needed, not 3')
  t.raises(function() cr.run(function() cr.await(loop.current()) end) end, 'cannot wait for itself')
  t.raises(function() cr.await(3e15) end, 'await: there is no job 3e%+15')
end)

-- The core's side of jobs, as media uses it; usleep stands for slow work.
ffi.cdef [[
int64_t cr__job_new(void);
void cr__job_finish(int64_t job, int32_t status, const char *message);
int64_t cr__job_run(int (*work)(void *), void *arg);
int usleep(unsigned microseconds);
int atoi(const char *text);
]]
local C = cr.C
local function on_pool(f, arg)
  return C.cr__job_run(ffi.cast('int (*)(void *)', f), ffi.cast('void *', arg))
end

settled('jobs on the thread pool', function()
  local begin = uv.hrtime()
  local jobs = {}
  for i = 1, 4 do jobs[i] = on_pool(ffi.C.usleep, 20000) end
  t.equal(tonumber(C.cr_loop_pending()), 4)
  local ticks = 0
  local ticker = cr.go(function()
    for _ = 1, 3 do
      cr.sleep(0.002)
      ticks = ticks + 1
    end
  end)
  for i, status in ipairs(cr.all(jobs)) do t.equal(status, 0, 'job ' .. i) end
  cr.await(ticker)
  t.equal(ticks, 3)
  t.ok((uv.hrtime() - begin) * 1e-9 >= 0.018, 'the jobs took their time')
  t.equal(cr.await(on_pool(ffi.C.atoi, '42')), 42, 'the status is what the work returned')
  t.ok(not pcall(cr.await, on_pool(ffi.C.atoi, '-3')), 'a negative status is an error')
  t.ok(not pcall(cr.await, -1LL), 'a job that could not be started')
end)

settled('jobs that end before anybody waits, and after nobody does any more', function()
  local job = C.cr__job_new()
  C.cr__job_finish(job, 7, '')
  t.equal(cr.await(job), 7)
  t.raises(function() cr.await(job) end, 'await: there is no job %d+: await takes a task from cr.go, or a pending job')
  local bad = C.cr__job_new()
  C.cr__job_finish(bad, -4, 'clip.mp4: it is damaged')
  t.raises(function() cr.await(bad) end, 'clip.mp4: it is damaged')
  local slow = C.cr__job_new()
  local task = cr.go(function() cr.await(slow) end)
  cr.yield()
  task:cancel()
  t.raises(function() cr.await(task) end, 'cancelled')
  local first = cr.go(function() return cr.await(slow) end)
  cr.yield()
  t.raises(function() cr.await(slow) end, 'await: job %d+ is awaited already')
  C.cr__job_finish(slow, 0, '')
  t.equal(cr.await(first), 0)
  cr.sleep(0.001)
end)

settled('many jobs at once outgrow the ring', function()
  local jobs = {}
  for i = 1, 100 do jobs[i] = C.cr__job_new() end
  for i = 100, 1, -1 do C.cr__job_finish(jobs[i], i, '') end
  local results = cr.all(jobs)
  for i = 1, 100 do t.equal(results[i], i) end
end)

settled('tensors made by a task belong to its own scope', function()
  local function square_sum(value, seconds)
    return cr.scope(function()
      local x = cr.full({ 4 }, value)
      cr.sleep(seconds)
      return (x * x):sum()
    end)
  end
  local a, b = unpack(cr.all {
    function() return square_sum(2, 0.004) end, function() return square_sum(3, 0.002) end,
  })
  t.equal(a:item(), 16)
  t.equal(b:item(), 36)
  a:free()
  b:free()
end)

settled('an interruption raises in every waiting task, and closers run', function()
  local closed = 0
  local function waiter(wait)
    return function()
      local ok, err = pcall(wait)
      if not ok and err == 'interrupted' then closed = closed + 1 end
      error(err, 0)
    end
  end
  local channel = cr.channel(1)
  t.raises(function()
    cr.all {
      waiter(function() cr.sleep(100) end), waiter(function() channel:get() end),
      function()
        cr.sleep(0.005)
        cr.C.cr_interrupt()
        cr.sleep(1)
      end,
    }
  end, '^interrupted$')
  t.equal(closed, 2)
  t.raises(function() cr.sleep(0.001) end, 'interrupted')
  t.raises(function() cr.zeros(2):add(1) end, 'interrupted')
  cr.C.cr_interrupt_clear()
  cr.sleep(0.001)
  collectgarbage()
end)

t.done()
