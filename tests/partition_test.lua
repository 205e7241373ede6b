-- A worker that loses the connection to its queue for longer than the lease, during a job (CR_SLOW=1, as root): each
-- worker has its own network namespace, and the link of one of them is taken down and up again. With Redis, results
-- go to a folder, which stays available; with SQS, the bucket is also unreachable.

local t = require 'tests.support.tap'
local cr = require 'cr'
local checkpoint = require 'tests.support.checkpoint'
local child = require 'tests.support.child'
local cjson = require 'cjson'
local clouds = require 'tests.support.cloud'
local environment = require 'tests.support.environment'
local files = require 'cr.files'
local json = require 'cr.json'
local now = require 'cr.clock'
local redis = require 'cr.remote.redis'
local scratch = require 'tests.support.scratch'

local uv = require 'cr.loop'.uv
local LEASE = 2 -- seconds
local LONG, SHORT = { duration = 0.64, steps = 120 }, { duration = 0.2, steps = 1 }
local VIDEO, SOUND = cr.root .. '/models/mini/demo.mp4', cr.root .. '/models/mini/demo.flac'

local function shell(line)
  if os.execute(line) ~= 0 then error(line .. ' failed', 0) end
end

-- ---- namespaces ------------------------------------------------------------------------------------

local Space = {}
Space.__index = Space

-- Creates a network namespace with one link to this machine, whose name there is `host`.
local function make_space(number)
  local pid = uv.os_getpid()
  local self = setmetatable({ name = ('crescent-%d-%d'):format(pid, number), link = ('cr%d.%d'):format(pid % 2 ^ 22, number) }, Space)
  local net = ('10.213.%d.%%d'):format((pid + number) % 250)
  self.host = net:format(1)
  shell(('ip netns add %s && ip link add %s type veth peer name inner netns %s'):format(self.name, self.link, self.name))
  shell(('ip addr add %s/30 dev %s && ip link set %s up'):format(self.host, self.link, self.link))
  shell(('ip -n %s addr add %s/30 dev inner && ip -n %s link set inner up && ip -n %s link set lo up'):format(self.name, net:format(2),
    self.name, self.name))
  return self
end

function Space:cut() shell(('ip link set %s down'):format(self.link)) end
function Space:heal() shell(('ip link set %s up'):format(self.link)) end
function Space:remove() os.execute(('ip netns del %s; ip link del %s 2>/dev/null'):format(self.name, self.link)) end

local lacks = not os.getenv 'CR_SLOW' and 'takes a minute: CR_SLOW=1'
    or uv.getuid() ~= 0 and 'only root may make network namespaces'
    or os.execute 'ip netns list >/dev/null 2>&1' ~= 0 and 'ip is absent: apt-get install iproute2'
    or clouds.lacks_redis() or clouds.lacks_cloud()
local first, second
if not lacks then
  local ok
  ok, first = pcall(make_space, 1)
  if ok then second = make_space(2) else lacks = 'this machine makes no network namespaces: ' .. tostring(first) end
end
if lacks then
  t.test('a partition', function() t.skip(lacks) end)
  t.done()
end

-- ---- shared by both tests ----------------------------------------------------------------------------

local root, tiny = scratch.path 'root', scratch.path 'tiny'
files.make_folder(root .. '/out')
checkpoint.write(tiny)
scratch.write('root/v.mp4', files.read(VIDEO))
scratch.write('root/a.flac', files.read(SOUND))
local cloud = clouds.cloud '--everywhere'
cloud:enter()
environment.set('no_proxy', '*')
environment.set('CR_THREADS', '1')

local function start(space, queue)
  local words = { 'env', 'AWS_ENDPOINT_URL=' .. cloud.url:gsub('127.0.0.1', space.host), 'ip', 'netns', 'exec', space.name,
    child.program, 'worker', '--queue', queue:gsub('HOST', space.host), '--checkpoint', tiny, '--size', '64', '--device', 'cpu',
    '--lease', tostring(LEASE), '--root', root, '--scratch', scratch.folder }
  for i, word in ipairs(words) do words[i] = "'" .. word .. "'" end
  return clouds.start(table.concat(words, ' '))
end

-- The number of events that a worker logged for a job (nil: for any job).
local function count(worker, event, job)
  local n = 0
  for line in scratch.read(worker.log):gmatch '[^\n]+' do
    local said = line:find '^{.*}$' and cjson.decode(line) or {}
    if said.event == event and (not job or said.job == job) then n = n + 1 end
  end
  return n
end

local function bare(settings)
  local out = scratch.path 'bare.mp4'
  local r = child.run { 'lipsync', '--video', VIDEO, '--audio', SOUND, '--out', out, '--checkpoint', tiny, '--size', '64', '--device',
    'cpu', '--duration', tostring(settings.duration), '--steps', tostring(settings.steps), '--quiet' }
  if r.code ~= 0 then error(r.err) end
  return scratch.read(out)
end
local expected = { cut = bare(LONG), other = bare(SHORT) }
expected.after = expected.other

-- One worker starts a long job and is disconnected until another one has done it; then the first one is connected
-- again. `place` is the folder for files: 'file:///ROOT' or 's3://BUCKET'; queue: {address, send(body), left(),
-- dead()}; result(id) reads one.
local function storm(place, queue, result)
  local function send(id, settings)
    queue.send(json.encode { id = id, video = place .. '/v.mp4', audio = place .. '/a.flac', out = place .. '/out/', settings = settings })
  end
  send('cut', LONG)
  local lonely = start(first, queue.address)
  lonely:line '"event":"begun"'
  first:cut()
  local began = now()
  send('other', SHORT)
  local helper = start(second, queue.address)
  t.ok(t.wait(function() return count(helper, 'done', 'cut') + count(helper, 'repeated', 'cut') > 0 and now() - began > 4 * LEASE end),
    scratch.read(helper.log))
  t.ok(t.wait(function() return count(lonely, 'the queue cannot be reached') > 0 end), scratch.read(lonely.log))
  local cut_for = now() - began
  first:heal()
  t.ok(t.wait(function() return queue.left() == 0 end), 'a job remains in the queue')
  helper:stop()
  -- The disconnected worker works again.
  send('after', SHORT)
  t.ok(t.wait(function() return count(lonely, 'done', 'after') == 1 end), scratch.read(lonely.log))
  t.ok(t.wait(function() return queue.left() == 0 end))
  lonely:stop()
  for id, bytes in pairs(expected) do
    t.ok(result(id) == bytes, id .. ' is damaged')
    t.equal(count(lonely, 'done', id) + count(helper, 'done', id), 1, id)
  end
  t.equal(queue.dead(), 0)
  print(('# disconnected for %.0f s with a lease of %d s; events of the first worker for its job: %s'):format(cut_for, LEASE,
    count(lonely, 'lost', 'cut') > 0 and 'lost' or count(lonely, 'done', 'cut') > 0 and 'done' or count(lonely, 'repeated', 'cut') > 0 and
    'repeated' or 'untold'))
end

t.test('Redis is unreachable for a busy worker: one result, none damaged, none lost', function()
  cr.run(function()
    local port = clouds.free_port()
    local server = clouds.redis(port, scratch.path 'redis', ('--bind 127.0.0.1 %s %s --protected-mode no'):format(first.host, second.host))
    local client = redis.new { host = '127.0.0.1', port = port }
    storm('file://' .. root, {
      address = ('redis://HOST:%d/0?stream=films&group=g'):format(port),
      send = function(body) client:ask('XADD', 'films', '*', 'job', body) end,
      left = function() return client:ask('XLEN', 'films') end,
      dead = function() return client:ask('XLEN', 'films:dead') end,
    }, function(id) return files.read(('%s/out/%s.mp4'):format(root, id)) end)
    for name in require 'lfs'.dir(root .. '/out') do t.ok(not name:find 'part', name) end
    client:close()
    server:stop()
  end)
end)

t.test('SQS and the bucket are unreachable for a busy worker: one result, none damaged, none lost', function()
  cr.run(function()
    local sqs, s3 = clouds.sqs, require 'cr.remote.s3'
    clouds.make_bucket 'films'
    s3.put(VIDEO, 's3://films/v.mp4')
    s3.put(SOUND, 's3://films/a.flac')
    local buried = sqs('CreateQueue', { QueueName = 'buried' }).QueueUrl
    local queue = sqs('CreateQueue', { QueueName = 'films' }).QueueUrl
    local function length(of)
      local a = sqs('GetQueueAttributes', { QueueUrl = of, AttributeNames = { 'All' } }).Attributes
      return a.ApproximateNumberOfMessages + a.ApproximateNumberOfMessagesNotVisible
    end
    storm('s3://films', {
      address = 'sqs://films?dead=buried',
      send = function(body) sqs('SendMessage', { QueueUrl = queue, MessageBody = body }) end,
      left = function() return length(queue) end,
      dead = function() return length(buried) end,
    }, function(id)
      s3.get(('s3://films/out/%s.mp4'):format(id), scratch.path 'got')
      return scratch.read(scratch.path 'got')
    end)
    t.equal(#cloud:seen().bad, 0, table.concat(cloud:seen().bad, ', '))
  end)
end)

first:remove()
second:remove()
child.clean()
t.done()
