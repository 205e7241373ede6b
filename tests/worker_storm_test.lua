-- crescent worker under stress (CR_SLOW=1): many jobs, workers that are killed every few seconds, a queue server that
-- is restarted twice, a bucket that fails 5 % of the requests. CR_JOBS=N: number of jobs (200); CR_KIND=sqs|redis:
-- only this queue.
--
-- Redis is killed and restarts with its data (appendonly). moto stores nothing, so its "restart" is that it closes
-- every connection for five seconds.

local t = require 'tests.support.tap'
local cr = require 'cr'
local checkpoint = require 'tests.support.checkpoint'
local child = require 'tests.support.child'
local clouds = require 'tests.support.cloud'
local digest = require 'cr.digest'
local environment = require 'tests.support.environment'
local json = require 'cr.json'
local now = require 'cr.clock'
local redis = require 'cr.remote.redis'
local scratch = require 'tests.support.scratch'

local JOBS, WORKERS, POISONED = tonumber(os.getenv 'CR_JOBS' or '200'), 4, 5
local EVERY, AWAY = 4, 5 -- seconds between two kills, seconds without a queue

local lacks = not os.getenv 'CR_SLOW' and 'takes minutes: CR_SLOW=1' or clouds.lacks_cloud() or clouds.lacks_redis()
if lacks then
  t.test('a storm', function() t.skip(lacks) end)
  t.done()
end

local VIDEO, SOUND = cr.root .. '/models/mini/demo.mp4', cr.root .. '/models/mini/demo.flac'
local tiny = scratch.path 'tiny'
checkpoint.write(tiny)
local cloud = clouds.cloud '--seed 5'
cloud:enter()
environment.set('CR_THREADS', '1')

local function bare()
  local out, began = scratch.path 'bare.mp4', now()
  local r = child.run { 'lipsync', '--video', VIDEO, '--audio', SOUND, '--out', out, '--checkpoint', tiny, '--size', '64', '--device',
    'cpu', '--duration', '0.2', '--steps', '1', '--quiet' }
  if r.code ~= 0 then error(r.err) end
  print(('# the bare command: %.2f s of the processor, %.2f s'):format(r.processor, now() - began))
  return digest.of_file('SHA256', out)
end

local sqs = clouds.sqs
local kinds = {}

function kinds.redis()
  local port, folder = clouds.free_port(), scratch.path 'redis'
  local server = clouds.redis(port, folder)
  local client = redis.new { host = '127.0.0.1', port = port }
  return {
    address = ('redis://127.0.0.1:%d/0?stream=films&group=g'):format(port),
    send = function(body) client:ask('XADD', 'films', '*', 'job', body) end,
    restart = function()
      server:stop 'sigkill'
      cr.sleep(AWAY)
      server = clouds.redis(port, folder)
    end,
    left = function()
      local ok, n = pcall(client.ask, client, 'XLEN', 'films')
      return ok and n or -1
    end,
    dead = function()
      local bodies = {}
      for i, entry in ipairs(client:ask('XRANGE', 'films:dead', '-', '+')) do bodies[i] = entry[2][2] end
      return bodies
    end,
    close = function()
      client:close()
      server:stop()
    end,
  }
end

function kinds.sqs()
  local buried = sqs('CreateQueue', { QueueName = 'buried' }).QueueUrl
  local place = sqs('CreateQueue', { QueueName = 'storm' }).QueueUrl
  local function count(queue)
    local ok, value = pcall(sqs, 'GetQueueAttributes', { QueueUrl = queue, AttributeNames = { 'All' } })
    if not ok then return -1 end
    return tonumber(value.Attributes.ApproximateNumberOfMessages) + tonumber(value.Attributes.ApproximateNumberOfMessagesNotVisible)
  end
  return {
    address = 'sqs://storm?dead=buried',
    send = function(body) sqs('SendMessage', { QueueUrl = place, MessageBody = body }) end,
    restart = function()
      cloud:set { away = 1 }
      cr.sleep(AWAY)
      cloud:set { away = 0 }
    end,
    left = function() return count(place) end,
    dead = function()
      local bodies = {}
      repeat
        local list = sqs('ReceiveMessage', { QueueUrl = buried, MaxNumberOfMessages = 10, VisibilityTimeout = 600 }).Messages or {}
        for _, m in ipairs(list) do bodies[#bodies + 1] = m.Body end
      until #list == 0
      return bodies
    end,
    close = function() end,
  }
end

for _, kind in ipairs { 'redis', 'sqs' } do
  if (os.getenv 'CR_KIND' or kind) == kind then
    t.test(('%d jobs by %s, and every result exists once'):format(JOBS, kind), function()
      cr.run(function()
        local expected, s3 = bare(), require 'cr.remote.s3'
        clouds.make_bucket(kind)
        local bucket, queue = ('s3://%s/'):format(kind), kinds[kind]()
        s3.put(VIDEO, bucket .. 'v.mp4')
        s3.put(SOUND, bucket .. 'a.flac')
        s3.put(scratch.write('noise', ('no sound '):rep(100)), bucket .. 'noise')
        for i = 1, JOBS + POISONED do
          local poisoned = i % (JOBS / POISONED) == 1 and i <= JOBS
          queue.send(json.encode {
            id = poisoned and 'poison' .. i or 'job' .. i, video = bucket .. 'v.mp4',
            audio = bucket .. (not poisoned and 'a.flac' or i % 80 == 1 and 'noise' or 'absent'),
            out = bucket .. 'out/', settings = { duration = 0.2, steps = 1 },
          })
        end
        cloud:set { fail = 0.05 }

        local began, kills, logs = now(), 0, {}
        local workers = {}
        local function start(i)
          workers[i] = clouds.start(("'%s' worker --queue '%s' --checkpoint '%s' --size 64 --device cpu --lease 15 --tries 8")
            :format(child.program, queue.address, tiny) .. (" --scratch '%s'"):format(scratch.folder))
          logs[#logs + 1] = workers[i].log
        end
        for i = 1, WORKERS do start(i) end
        local storm = cr.go(function()
          while true do
            cr.sleep(EVERY)
            local i = math.random(WORKERS)
            workers[i]:stop 'sigkill'
            kills = kills + 1
            start(i)
          end
        end)
        local restarts = cr.go(function()
          for _ = 1, 2 do
            cr.sleep(25)
            queue.restart()
          end
        end)
        t.ok(t.wait(function()
          cr.sleep(1)
          return queue.left() == 0
        end))
        cr.await(restarts)
        storm:cancel()
        for i = 1, WORKERS do workers[i]:stop() end
        cloud:set { fail = 0 }

        local wrong, made, repeated = 0, 0, 0
        for i = 1, JOBS + POISONED do
          if not (i % (JOBS / POISONED) == 1 and i <= JOBS) then
            local ok = pcall(s3.get, ('%sout/job%d.mp4'):format(bucket, i), scratch.path 'got')
            if not ok or digest.of_file('SHA256', scratch.path 'got') ~= expected then wrong = wrong + 1 end
            made = made + 1
          end
        end
        t.equal(made, JOBS)
        t.equal(wrong, 0)
        -- Whom the answer to a letter does not reach sends it again: in SQS a job may lie there twice.
        local dead, buried = {}, queue.dead()
        for _, body in ipairs(buried) do
          local id = json.decode(body).id
          t.ok(id:find '^poison', id)
          dead[#dead + 1], dead[id] = not dead[id] and id or nil, true
        end
        t.equal(#dead, POISONED)
        t.ok(kind == 'sqs' or #buried == POISONED, #buried)
        for _, log in ipairs(logs) do
          for line in scratch.read(log):gmatch '[^\n]+' do
            repeated = repeated + (line:find('"event":"repeated"', 1, true) and 1 or 0)
            t.ok(not line:find('secret/of+tests', 1, true), line)
          end
        end
        local seen = cloud:seen()
        t.equal(#seen.bad, 0, table.concat(seen.bad, ', '))
        print(('# %d jobs, %d kills, %d found made already, %d of %d requests failed, %.0f s'):format(JOBS, kills, repeated, seen.failed,
          seen.requests, now() - began))
        queue.close()
      end)
    end)
  end
end

t.done()
