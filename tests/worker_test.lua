-- crescent worker: jobs from both kinds of queue, with files in a folder, on a web server and in a bucket. The queue
-- servers and the bucket are real (tests/support/cloud.lua), the networks a tiny checkpoint.

local t = require 'tests.support.tap'
local cr = require 'cr'
local checkpoint = require 'tests.support.checkpoint'
local child = require 'tests.support.child'
local cjson = require 'cjson'
local clouds = require 'tests.support.cloud'
local environment = require 'tests.support.environment'
local files = require 'cr.files'
local http = require 'cr.remote.http'
local json = require 'cr.json'
local redis = require 'cr.remote.redis'
local scratch = require 'tests.support.scratch'

local VIDEO, SOUND = cr.root .. '/models/mini/demo.mp4', cr.root .. '/models/mini/demo.flac'
local SETTINGS = { duration = 0.2, steps = 1 }
local SECRET = 'a-secret-of-redis'

local function run(fn) cr.run(fn) end

t.test('the schema of a job is printed, and jobs are checked by it', function()
  local orders = require 'models.service.order'
  local r = child.run { 'worker', '--schema' }
  t.equal(r.code, 0, r.err)
  local document = cjson.decode(r.out)
  t.equal(document.oneOf[1].properties.settings.properties.steps.type, 'integer')
  t.equal(table.concat(document.oneOf[1].required, ' '), 'out video')
  local function refuses(body, pattern)
    t.raises(function() orders.read(type(body) == 'string' and body or json.encode(body), 'm1') end, pattern)
  end
  local function job(more)
    local all = { video = 's3://b/v.mp4', audio = 's3://b/a.wav', out = 's3://b/out/' }
    for key, value in pairs(more or {}) do all[key] = value end
    return all
  end
  refuses('no json', '^it is not a JSON object')
  refuses({ video = 'x', audio = 'y' }, '^out is missing$')
  refuses(job { kind = 'dance' }, "^kind: 'dance' is not one of lipsync, upscale$")
  refuses(job { id = '../x' }, '^id: it may only hold letters, digits')
  refuses(job { vidio = 'x' }, "vidio: there is no field 'vidio': did you mean 'video'%?")
  refuses(job { settings = { steps = 'many' } }, 'steps: ')
  refuses(job { settings = { checkpoint = '/etc' } }, 'checkpoint')
  local order = orders.read(json.encode(job { id = 'a1', settings = { lossless = true } }), 'm1')
  t.equal(order.out, 's3://b/out/a1.mkv')
  t.equal(orders.read(json.encode(job()), '17-0').out, 's3://b/out/17-0.mp4')
  t.equal(orders.read(json.encode(job { out = 's3://b/x.mp4' }), '17-0').out, 's3://b/x.mp4')
end)

t.test('wrong options are one sentence', function()
  local function refuses(args, code, pattern)
    local r = child.run { 'worker', unpack(args) }
    t.equal(r.code, code, r.err)
    t.ok(r.err:find(pattern), r.err)
  end
  refuses({ '--checkpoint', 'x' }, 2, '^crescent: %-%-queue is missing\n$')
  refuses({ '--queue', 'sqs://x' }, 2, '^crescent: %-%-checkpoint is missing\n$')
  refuses({ '--qeue', 'x' }, 2, "unknown option '%-%-qeue': did you mean '%-%-queue'")
  refuses({ '--queue', 'redis://x:pw@h/0?stream=a&group=b', '--checkpoint', cr.root .. '/models/mini', '--device', 'cpu' }, 1,
    'password does not belong in a URL')
end)

if clouds.lacks_redis() then
  t.test('jobs from queues', function() t.skip(clouds.lacks_redis()) end)
  t.done()
end

-- ---- set-up --------------------------------------------------------------------------

local root = scratch.path 'root'
files.make_folder(root .. '/out')
local tiny = scratch.path 'tiny'
checkpoint.write(tiny)
for from, to in pairs { [VIDEO] = 'v.mp4', [SOUND] = 'a.flac' } do scratch.write('root/' .. to, files.read(from)) end

local port = clouds.free_port()
local server = clouds.redis(port, scratch.path 'redis', '--requirepass ' .. SECRET)
environment.set('REDISCLI_AUTH', SECRET)
local address = ('redis://127.0.0.1:%d/0?stream=films&group=g'):format(port)

-- Starts a worker with additional options.
local function start(queue, ...)
  local words = { child.program, 'worker', '--queue', queue, '--checkpoint', tiny, '--size', '64', '--device', 'cpu', '--root', root,
    '--scratch', scratch.folder, '--metrics', '0', '--metrics-host', '127.0.0.1', ... }
  for i, word in ipairs(words) do words[i] = "'" .. word .. "'" end
  return clouds.start(table.concat(words, ' '))
end

local function said(worker) return scratch.read(worker.log) end
-- How often a worker has logged an outcome of a job.
local function count(worker, event)
  local n = 0
  for line in said(worker):gmatch '[^\n]+' do
    if line:find '^{' and cjson.decode(line).event == event then n = n + 1 end
  end
  return n
end

local client
local function with_client(fn)
  run(function()
    client = redis.new { host = '127.0.0.1', port = port, password = SECRET }
    local ok, problem = pcall(fn)
    client:close()
    if not ok then error(problem, 0) end
  end)
end
local function job(more)
  local all = { video = 'file://' .. root .. '/v.mp4', audio = 'file://' .. root .. '/a.flac', out = 'file://' .. root .. '/out/',
    settings = SETTINGS }
  for key, value in pairs(more or {}) do all[key] = value end
  return json.encode(all)
end
local function send(body) client:ask('XADD', 'films', '*', 'job', body) end
local function empty() return client:ask('XLEN', 'films') == 0 end

-- The result of the plain command for the same job.
local function bare()
  local out = scratch.path 'bare.mp4'
  local r = child.run { 'lipsync', '--video', VIDEO, '--audio', SOUND, '--out', out, '--checkpoint', tiny, '--size', '64', '--device',
    'cpu', '--duration', '0.2', '--steps', '1', '--quiet' }
  if r.code ~= 0 then error(r.err) end
  return scratch.read(out)
end
local expected = bare()

-- ---- Redis, and a folder ---------------------------------------------------------------------------

t.test('jobs run once, invalid ones become dead letters with their error, and everything is logged', function()
  with_client(function()
    for i = 1, 3 do send(job { id = 'job' .. i }) end
    send(job { id = 'job2' }) -- a second delivery
    send(job { id = 'absent', video = 'file://' .. root .. '/absent.mp4' })
    send(job { id = 'outside', video = 'file:///etc/passwd' })
    send(job { id = 'elsewhere', out = 'file:///no/such/folder/' })
    send 'no json'
    send(job { id = 'misspelt', setings = {} })
    client:ask('XADD', 'films', '*', 'jop', '{}')
    local worker = start(address, '--lease', '2', '--tries', '2')
    local at = worker:line '"event":"listening".-"port":(%d+)'
    t.ok(t.wait(empty))
    for i = 1, 3 do t.ok(files.read(('%s/out/job%d.mp4'):format(root, i)) == expected, 'job' .. i) end
    local dead = {}
    for i, entry in ipairs(client:ask('XRANGE', 'films:dead', '-', '+')) do dead[i] = entry[2][4] end
    t.equal(#dead, 6)
    local errors = '\n' .. table.concat(dead, '\n')
    for _, start_of in ipairs {
      'file://[^\n]*/absent.mp4: there is no such file', 'file:///etc/passwd: this is outside the folder of %-%-root',
      'file:///no/such/folder/elsewhere.mp4: this is outside the folder of %-%-root', 'it is not a JSON object',
      "setings: there is no field 'setings'", "the entry has no field 'job'",
    } do
      t.ok(errors:find('\n' .. start_of), start_of .. errors)
    end
    t.equal(count(worker, 'failed'), 3) -- a job that is not a valid request is not tried again
    t.ok(said(worker):find '"event":"dead","job":"misspelt"', said(worker))
    local text = http.request { url = 'http://127.0.0.1:' .. at .. '/metrics' }.body
    t.ok(text:find('crescent_jobs_total{outcome="done"} 3', 1, true), text)
    t.ok(text:find('crescent_jobs_total{outcome="repeated"} 1', 1, true), text)
    t.ok(text:find('crescent_jobs_total{outcome="dead"} 6', 1, true), text)
    t.ok(text:find('crescent_queue_reachable 1', 1, true), text)
    t.equal(http.request { url = 'http://127.0.0.1:' .. at .. '/readyz' }.status, 200)
    t.equal(http.request { url = 'http://127.0.0.1:' .. at .. '/healthz' }.status, 200)
    -- Neither its log nor its arguments contain a secret; each log line is JSON.
    local arguments = files.read(('/proc/%d/cmdline'):format(worker.pid))
    t.ok(not (said(worker) .. arguments .. text):find(SECRET, 1, true))
    for line in said(worker):gmatch '[^\n]+' do t.ok(pcall(cjson.decode, line), line) end
    worker:stop()
    t.equal(count(worker, 'ended'), 1)
    t.equal(#client:ask('XINFO', 'CONSUMERS', 'films', 'g'), 0)
    for name in require 'lfs'.dir(scratch.folder) do t.ok(not name:find '^crescent%-worker', name) end
  end)
end)

t.test('a killed worker loses nothing; an orderly shutdown returns its job', function()
  with_client(function()
    local long = job { id = 'long', settings = { duration = 0.64, steps = 400 } }
    send(long)
    local first = start(address, '--lease', '2')
    first:line '"event":"begun"'
    local second = start(address, '--lease', '2', '--grace', '6')
    second:line '"event":"started"'
    cr.sleep(4) -- twice the lease
    t.equal(count(second, 'begun'), 0) -- because the lease is extended
    first:stop 'sigkill'
    second:line '"event":"begun"'
    t.ok(second:line '"event":"begun".-"try":(%d)' == '2')
    local asked = require 'cr.clock'()
    second:stop()
    t.ok(require 'cr.clock'() - asked < 20, 'it should not wait for what takes longer than the grace time')
    t.equal(count(second, 'given_back'), 1, said(second))
    -- It waits again, and this attempt did not count.
    local pending = client:ask('XPENDING', 'films', 'g', '-', '+', 10)
    t.equal(#pending, 1)
    t.equal(pending[1][4], 1)
    client:ask('XDEL', 'films', pending[1][1])
    client:ask('XACK', 'films', 'g', pending[1][1])
  end)
end)

t.test('workers wait for a queue that is unavailable', function()
  with_client(function()
    local worker = start(address, '--lease', '5')
    worker:line '"event":"listening"'
    server:stop 'sigkill'
    worker:line '"event":"the queue cannot be reached"'
    server = clouds.redis(port, scratch.path 'redis', '--requirepass ' .. SECRET)
    os.remove(root .. '/out/again.mp4')
    send(job { id = 'again' })
    t.ok(t.wait(empty))
    t.ok(files.read(root .. '/out/again.mp4') == expected)
    worker:line '"event":"the queue answers"'
    worker:stop()
  end)
end)

-- ---- SQS, a bucket, a web server -------------------------------------------------------------------

local lacks = clouds.lacks_cloud()
if lacks then
  t.test('SQS and S3', function() t.skip(lacks) end)
  t.done()
end
local cloud = clouds.cloud()
cloud:enter()

t.test('SQS jobs with files in a failing bucket and on a web server', function()
  run(function()
    local s3, sqs = require 'cr.remote.s3', clouds.sqs
    clouds.make_bucket 'films'
    s3.put(VIDEO, 's3://films/in/v.mp4')
    s3.put(SOUND, 's3://films/in/a.flac')
    sqs('CreateQueue', { QueueName = 'buried' })
    local place = sqs('CreateQueue', { QueueName = 'jobs' }).QueueUrl
    cloud:set { fail = 0.2 }
    local function put(more)
      local all = { video = 's3://films/in/v.mp4', audio = 's3://films/in/a.flac', out = 's3://films/out/', settings = SETTINGS }
      for key, value in pairs(more) do all[key] = value end
      sqs('SendMessage', { QueueUrl = place, MessageBody = json.encode(all) })
    end
    put { id = 'one' }
    put { id = 'one' }
    put { id = 'poison', audio = cloud.url .. '/-/file?bytes=1000&X-Amz-Signature=hush' } -- no sound
    put { id = 'elsewhere', audio = 'https://example.org/a.wav?token=hush' }
    local worker = start('sqs://jobs?dead=buried', '--lease', '3', '--tries', '2', '--allow-urls', cloud.url)
    t.ok(t.wait(function() return count(worker, 'dead') == 2 and count(worker, 'done') + count(worker, 'repeated') == 2 end), said(worker))
    worker:stop()
    s3.get('s3://films/out/one.mp4', scratch.path 'one.mp4')
    t.ok(scratch.read(scratch.path 'one.mp4') == expected)
    local text = said(worker)
    t.ok(not text:find 'hush' and not text:find('secret/of+tests', 1, true) and not text:find 'Signature', text)
    t.ok(text:find 'https://example.org/a.wav: files of this host are not allowed', text)
    local left = sqs('GetQueueAttributes', { QueueUrl = place, AttributeNames = { 'All' } }).Attributes
    t.equal(left.ApproximateNumberOfMessages .. left.ApproximateNumberOfMessagesNotVisible, '00')
    t.equal(#cloud:seen().bad, 0, table.concat(cloud:seen().bad, ', '))
    cloud:set { fail = 0 }
  end)
end)

t.test('workers wait for a bucket that is unavailable, and count no attempt', function()
  with_client(function()
    cloud:set { away = 1 }
    send(json.encode { id = 'patient', video = 's3://films/in/v.mp4', audio = 's3://films/in/a.flac', out = 's3://films/out/',
      settings = SETTINGS })
    local worker = start(address, '--lease', '3', '--tries', '1')
    local at = worker:line '"event":"listening".-"port":(%d+)'
    worker:line '"event":"the store cannot be reached"'
    local text = http.request { url = 'http://127.0.0.1:' .. at .. '/metrics' }.body
    t.ok(text:find('crescent_store_reachable 0', 1, true), text)
    cloud:set { away = 0 }
    t.ok(t.wait(empty))
    -- The events may be logged after the queue is empty.
    t.ok(t.wait(function() return count(worker, 'done') == 1 end), said(worker))
    t.equal(count(worker, 'the store answers'), 1)
    worker:stop()
    require 'cr.remote.s3'.get('s3://films/out/patient.mp4', scratch.path 'patient.mp4')
    t.ok(scratch.read(scratch.path 'patient.mp4') == expected)
  end)
end)

t.test('a Matroska result is uploaded while it is written', function()
  run(function()
    local growing, s3, upload = require 'models.service.growing', require 'cr.remote.s3', require 'cr.remote.upload'
    upload.PART = 5 * 2 ^ 20 -- the minimum of S3
    local store, folder = require 'cr.remote.store'.new {}, scratch.path 'made'
    local place, whole = 's3://films/out/long.mkv', ('0123456789abcdef'):rep(2 ^ 20)
    files.make_folder(folder)
    t.equal(growing.start(store, 's3://films/out/long.mp4', folder):stop(), nil)
    local grown = growing.start(store, place, folder)
    scratch.write('made/.result.mkv.tmp-1', 'head' .. whole:sub(5, 12 * 2 ^ 20))
    t.ok(t.wait(function() return grown.upload.parts[2] end))
    t.equal(s3.head(place), nil)
    scratch.write('made/result.mkv', whole)
    os.remove(folder .. '/.result.mkv.tmp-1')
    t.equal(store:put(folder .. '/result.mkv', place, 'video/x-matroska', grown:stop()), true)
    s3.get(place, scratch.path 'long.mkv')
    t.ok(scratch.read(scratch.path 'long.mkv') == whole)
    -- A failed job leaves nothing, not even invisible parts.
    grown = growing.start(store, 's3://films/out/failed.mkv', folder)
    scratch.write('made/.result.mkv.tmp-2', whole)
    t.ok(t.wait(function() return grown.upload.parts[2] end))
    grown:abort()
    local list = require 'cr.remote.aws'.new { service = 's3' }:request('uploads', { path = '/films', query = { uploads = '' } })
    t.ok(not list.body:find '<Upload>', list.body)
    upload.PART = 16 * 2 ^ 20
  end)
end)

t.done()
