--- The robustness of the server: interrupted uploads, idle connections, SIGKILL at random times, and generated
--- requests. Each row is checked; a failed row gives exit status 1.
--
--     build/crescent tests/bench/serve.lua --only kills --kills 50
--     build/crescent tests/bench/serve.lua --only requests --st /path/of/schemathesis/st      (pip install schemathesis)
--
--     build/crescent tests/bench/serve.lua --only devices --device cuda:0,cuda:1 --checkpoint DIR
--
-- The model is a tiny one on the CPU, because the server is measured.
--
-- Tiny: --only uploads --uploads 4

local cr = require 'cr'
local child = require 'tests.support.child'
local lfs = require 'lfs'
local options = require 'tests.bench.options'
local service = require 'tests.support.service'
local uv = require 'cr.loop'.uv

local args = options.read('What a server bears.', {
  options.only,
  { '--uploads', 'int', default = 200, min = 1, help = 'that are cut in the middle' },
  { '--connections', 'int', default = 1000, min = 1, help = 'that do nothing' },
  { '--jobs', 'int', default = 50, min = 1, help = 'that wait meanwhile' },
  { '--kills', 'int', default = 50, min = 1, help = 'of the server by SIGKILL' },
  { '--st', 'string', help = "schemathesis's program; without it its row is left out" },
  { '--seed', 'int', default = 1, help = 'of the moments' },
  { '--device', 'string', help = 'cuda:0,cuda:1: as many jobs at once as there are; without it this row is left out' },
  { '--checkpoint', 'folder', help = 'of the jobs on devices', default_text = 'a tiny one' },
  { '--seconds', 'number', default = 5, max = 5, help = 'of the clip that these jobs make' },
})
math.randomseed(args.seed)

local failed = false
local function check(ok, text, ...)
  if ok then return end
  failed = true
  print('FAILED: ' .. text:format(...))
end

local function names_in(folder)
  local list = {}
  for name in lfs.dir(folder) do
    if name ~= '.' and name ~= '..' then list[#list + 1] = name end
  end
  return list
end

local function status_of(pid, name)
  local f = io.open('/proc/' .. pid .. '/status')
  local text = f and f:read '*a' or ''
  if f then f:close() end
  return tonumber(text:match(name .. ':%s*(%d+)')) or 0
end
-- CPU seconds of a process.
local function processor_of(pid)
  local f = io.open('/proc/' .. pid .. '/stat')
  local user, system = f:read '*a':match('%) %S' .. (' %-?%d+'):rep(10) .. ' (%d+) (%d+)')
  f:close()
  return (user + system) / 100
end
local function memory_of(pid) return status_of(pid, 'VmRSS') / 1024 end
local function open_files(pid) return #names_in('/proc/' .. pid .. '/fd') end

-- ---- interrupted uploads -----------------------------------------------------------------------------

local function uploads()
  local server = service.start():ready()
  server:request()
  local bytes = require 'cr.files'.read(service.video)
  local form = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
  local function cut(i)
    local connection = service.connect(server.port)
    local sent = bytes:sub(1, math.random(1, #bytes - 1))
    if i % 2 == 0 then
      connection.write(server:text('PUT', '/v1/files?name=a.mp4', { body = sent, length = #bytes }))
    else
      connection.write(server:text('POST', '/v1/files', { body = form .. sent, length = #form + #bytes + 8,
        headers = { ['Content-Type'] = 'multipart/form-data; boundary=b' } }))
    end
    cr.sleep(0.001 * math.random(0, 30))
    connection.close()
  end
  for i = 1, 10 do cut(i) end -- one-time allocations
  cr.sleep(0.5)
  local memory, files = memory_of(server.pid), open_files(server.pid)
  for i = 1, args.uploads do cut(i) end
  local limit = uv.hrtime() + 30e9
  while #names_in(server.data .. '/incoming') > 0 and uv.hrtime() < limit do cr.sleep(0.05) end
  check(#names_in(server.data .. '/incoming') == 0, '%d files are left on their way', #names_in(server.data .. '/incoming'))
  check(#names_in(server.data .. '/files') == 2, '%d files, not 2', #names_in(server.data .. '/files'))
  check(#server:ask('GET', '/v1/files').json.files == 2, 'files are told of that are not whole')
  while open_files(server.pid) > files and uv.hrtime() < limit do cr.sleep(0.05) end
  check(open_files(server.pid) <= files, 'open files: %d before, %d after', files, open_files(server.pid))
  print(('uploads: %d cut off, nothing left; memory %.1f MiB before, %.1f after; open files %d, %d'):format(args.uploads, memory,
    memory_of(server.pid), files, open_files(server.pid)))
  server:stop()
end

-- ---- idle connections --------------------------------------------------------------------------------

local TURNS = 8

-- Seconds from a job's start to its end.
local function seconds_of_job(server, seed)
  local job = server:wait(server:begin { steps = 4, seed = seed })
  check(job.state == 'done', 'a job is %s', job.state)
  local function seconds(text) return tonumber(text:match ':(%d+%.%d+)Z') + 60 * tonumber(text:match ':(%d+):') end
  return (seconds(job.finished) - seconds(job.started)) % 3600
end

local function connections()
  local server = service.start({ '--max-jobs', '100000' }):ready()
  server:request()
  seconds_of_job(server, 0)
  local memory, alone, beside, share = memory_of(server.pid), math.huge, math.huge, 0
  local idle, connected
  local function connect()
    idle = {}
    for i = 1, args.connections do
      idle[i] = service.connect(server.port)
      if i % 3 == 0 then idle[i].write 'GET /v1/jobs HTTP/1.1\r\nHost: ' end -- half-open requests, too
    end
  end
  -- They run alternately, and the fastest of each counts, because the machine may have other load.
  for i = 1, TURNS do
    alone = math.min(alone, seconds_of_job(server, i))
    connect()
    connected = memory_of(server.pid)
    local began, spent = uv.hrtime(), processor_of(server.pid)
    beside = math.min(beside, seconds_of_job(server, i))
    share = math.max(share, (processor_of(server.pid) - spent) / ((uv.hrtime() - began) * 1e-9))
    if i < TURNS then
      for _, connection in ipairs(idle) do connection.close() end
    end
  end
  check(share < 0.05, 'with %d idle connections the server takes %.1f %% of a processor', args.connections, 100 * share)
  -- A long job keeps the others in the queue.
  local long, waiting = server:begin { steps = 900 }, {}
  for i = 1, args.jobs do waiting[i] = server:begin() end
  local first = memory_of(server.pid)
  for _ = 1, 200 do server:ask('GET', '/v1/jobs?limit=10') end
  local last = memory_of(server.pid)
  check(#server:ask('GET', '/v1/jobs?state=queued&limit=200').json.jobs == args.jobs, 'not all jobs wait')
  for _, id in ipairs(waiting) do server:ask('POST', '/v1/jobs/' .. id .. '/cancel') end
  server:ask('POST', '/v1/jobs/' .. long .. '/cancel')
  check(server:wait(long).state == 'cancelled', 'the long job was not cancelled')
  check(last - first < 8, 'memory grows while jobs wait: %.1f MiB, then %.1f', first, last)
  print(('connections: %d idle: a job takes %.3f s, %.3f s without (%+.1f %%), the server %.1f %% of a processor; memory %.1f MiB ' ..
    'before, %.1f with them, %.1f with %d jobs that wait, %.1f after 200 requests'):format(args.connections, beside, alone,
    100 * (beside / alone - 1), 100 * share, memory, connected, first,
    args.jobs, last))
  for _, connection in ipairs(idle) do connection.close() end
  server:stop()
end

-- ---- SIGKILL at random times -------------------------------------------------------------------------

-- Repeats a request until there is an answer: the server may be down in between.
local function asked(server, ...)
  local ok, answer = pcall(server.ask, server, ...)
  return ok and answer.status > 0 and answer or nil
end

local LONGEST_LIFE = 3 -- in multiples of the time from a server's start to the end of its first job
local OPEN_JOBS = 3

local function kills()
  local data = child.folder .. '/kills'
  local began = uv.hrtime()
  local server = service.start({}, { data = data })
  server:wait(server:begin())
  local life = LONGEST_LIFE * (uv.hrtime() - began)
  local video, sound = server.demo_video, server.demo_sound
  local accepted, order, done = {}, {}, {} -- by key; keys; by id: the answer for a finished job
  local count = 0
  -- Finished jobs must not change; returns the number of unfinished jobs.
  local function look()
    local answer, open = asked(server, 'GET', '/v1/jobs?limit=200'), 0
    for _, job in ipairs(answer and answer.json.jobs or {}) do
      local told = job.state == 'done' and job.finished .. ' ' .. job.result.bytes
      check(not done[job.id] or done[job.id] == told, 'job %s was %s and is %s %s', job.id, tostring(done[job.id]), job.state,
        tostring(told))
      if told then done[job.id] = told end
      if job.state == 'queued' or job.state == 'running' then open = open + 1 end
    end
    return open
  end
  local function ask_for_one()
    local key = 'key-' .. count
    local answer = asked(server, 'POST', '/v1/jobs', { headers = { ['Idempotency-Key'] = key }, json = {
      video = video, audio = sound, settings = { duration = 0.2, steps = 1 + count % 3, seed = count },
    } })
    if answer and (answer.status == 201 or answer.status == 200) then
      accepted[key], order[#order + 1] = answer.json.id, key
      count = count + 1
    end
  end
  for _ = 1, args.kills do
    local until_when = uv.hrtime() + math.random() * life
    while uv.hrtime() < until_when do
      if look() < OPEN_JOBS then ask_for_one() end
      cr.sleep(0.1)
    end
    server:stop 'sigkill'
    server = service.start({}, { data = data })
  end
  local states = { done = 0, failed = 0 }
  for _, key in ipairs(order) do
    local job = server:wait(accepted[key])
    states[job.state] = (states[job.state] or 0) + 1
    if job.state == 'done' then
      local result = server:ask('GET', job.result.url)
      check(#result.body == job.result.bytes and job.attempts <= 2, 'job %s: %d bytes of %d', job.id, #result.body, job.result.bytes)
      check(server:ask('GET', '/v1/jobs/' .. job.id .. '/report').status == 200, 'job %s has no report', job.id)
    else
      check(job.state == 'failed' and job.error.detail:find 'not tried again', 'job %s is %s: %s', job.id, job.state,
        job.error and job.error.detail or '')
    end
  end
  look()
  local all = #server:ask('GET', '/v1/jobs?limit=200').json.jobs
  check(all == math.min(200, #order + 1), '%d jobs are told of, %d were accepted', all, #order + 1)
  check(#names_in(data .. '/work') == 0, 'work is left')
  check(#names_in(data .. '/jobs') == states.done + 1, '%d results of %d jobs', #names_in(data .. '/jobs'), states.done + 1)
  print(('kills: %d by SIGKILL; %d jobs accepted, %d done once each, %d failed at their second attempt, none lost'):format(args.kills,
    #order, states.done, states.failed))
  server:stop()
end

-- ---- generated requests ------------------------------------------------------------------------------

local function requests()
  if not args.st then return print 'requests: left out: --st names no schemathesis' end
  local server = service.start({ '--max-upload', '5', '--max-jobs', '20' }):ready()
  server:wait(server:begin())
  local log = child.folder .. '/schemathesis.log'
  -- (otherwise the events continue until a job ends)
  require 'cr.files'.write(child.folder .. '/schemathesis.toml',
    '[[operations]]\ninclude-operation-id = "jobEvents"\nparameters = { seconds = 0.2 }\n')
  local line = ("cd '%s' && '%s' run http://127.0.0.1:%d/openapi.json --max-examples 50 " ..
    '--request-timeout 30 --checks not_a_server_error,status_code_conformance,content_type_conformance,' ..
    "response_schema_conformance,response_headers_conformance,unsupported_method,use_after_free " ..
    ">'%s' 2>&1"):format(child.folder, args.st, server.port, log)
  local status = os.execute(line)
  local text = require 'cr.files'.read(log)
  check(status == 0 or status == true, 'schemathesis:\n%s', text)
  print('requests: ' .. (text:match '(%d+ generated, [^\n]*)' or text))
  check(not server:said():find 'stack traceback', 'the server met an error of its own:\n%s', server:said())
  server:stop()
end

-- ---- two jobs on two devices --------------------------------------------------------------------------

local function devices()
  if not args.device then return print 'devices: left out: --device names none' end
  local server = service.start({}, { checkpoint = args.checkpoint, device = args.device }):ready()
  local function seconds_of(n)
    local began, ids = uv.hrtime(), {}
    for i = 1, n do ids[i] = server:begin { duration = args.seconds, steps = 20, seed = i } end
    for i = 1, n do
      local job = server:wait(ids[i])
      check(job.state == 'done', 'a job is %s: %s', job.state, job.error and job.error.detail)
    end
    return (uv.hrtime() - began) * 1e-9
  end
  local n = select(2, args.device:gsub(',', '')) + 1
  local function loaded()
    for _, device in ipairs(server:ask('GET', '/v1/system').json.devices) do
      if device.state ~= 'idle' then return false end
    end
    return true
  end
  while not loaded() do cr.sleep(0.1) end
  seconds_of(n) -- one-time searches
  local one, all = seconds_of(1), seconds_of(n)
  print(('devices: %s: a job takes %.2f s, %d at once %.2f s: %.2f times as fast'):format(args.device, one, n, all, n * one / all))
  server:stop()
end

local ROWS = {
  { 'devices', devices }, { 'uploads', uploads }, { 'connections', connections }, { 'kills', kills }, { 'requests', requests },
}
for _, row in ipairs(ROWS) do
  if row[1]:find(args.only) then row[2]() end
end
child.clean()
os.exit(failed and 1 or 0)
