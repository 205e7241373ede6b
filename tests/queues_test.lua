-- Queues: the same expectations for SQS (moto behind the gate of tests/support/remote/cloud.py) and Redis Streams (a
-- redis-server that the test starts).

local t = require 'tests.support.tap'
local cr = require 'cr'
local environment = require 'tests.support.environment'
local queues = require 'cr.remote.queues'
local redis = require 'cr.remote.redis'
local scratch = require 'tests.support.scratch'
local service = require 'tests.support.cloud'

local LEASE = 1 -- seconds, the minimum of SQS

t.test('invalid queues give one sentence, without secrets', function()
  local function refuses(address, pattern)
    t.raises(function() queues.open(address, { lease = 1, name = 'x' }) end, pattern)
  end
  refuses('amqp://me:secret@host/x?token=y', '^%-%-queue: amqp://host/x is not a queue: use redis://HOST[^ ]+ or sqs://NAME')
  refuses('redis://host/0?stream=a', 'a Redis queue is redis://HOST:PORT/DB%?stream=NAME&group=NAME$')
  refuses('redis://host/x?stream=a&group=b', 'a Redis queue is')
  refuses('redis://host/0?stream=a&grup=b', "there is no option 'grup': did you mean 'group'%?")
  refuses('redis://me:secret@host/0?stream=a&group=b', '^[^@]*password does not belong in a URL[^@]*$')
  refuses('sqs://AKIA:secret@q', '^[^@]*keys do not belong in a URL[^@]*$')
end)

-- What every queue must do: q and other are the views of two workers; send(body) adds a message; dead() lists the
-- dead letters' {body, error}. Some queues can do more: `blameless` deliveries do not count as tries, and a lost lease is
-- `refused` when it is extended.
local function expectations(kind, can, open, send, dead)
  local function test(name, fn)
    t.test(kind .. ': ' .. name, function()
      cr.run(function()
        local q, other = open 'one', open 'two'
        local ok, problem = pcall(fn, q, other)
        q:close()
        other:close()
        if not ok then error(problem, 0) end
      end)
    end)
  end

  test('a message goes to one worker, and is removed when it is done', function(q, other)
    t.equal(q:receive(0), nil)
    send '{"id":"ä"}'
    local m = q:receive(2)
    t.equal(m.body, '{"id":"ä"}')
    t.equal(m.tries, 1)
    t.equal(other:receive(0), nil)
    t.ok(q:count() == 1, q:count())
    q:done(m)
    cr.sleep(LEASE + 0.2)
    t.equal(other:receive(0), nil)
    t.equal(q:count(), 0)
  end)

  test('a waiting worker gets the next message', function(q)
    local task = cr.go(q.receive, q, 20)
    cr.sleep(0.1)
    send 'late'
    local m = cr.await(task) or q:receive(20)
    t.equal(m.body, 'late')
    q:done(m)
  end)

  test('a message is not delivered again while its lease is extended, but after it ends', function(q, other)
    send 'leased'
    local m = q:receive(2)
    for _ = 1, 3 do
      cr.sleep(LEASE * 0.6)
      t.equal(q:extend(m, LEASE), true)
      t.equal(other:receive(0), nil)
    end
    cr.sleep(LEASE + 0.2)
    local again = other:receive(2)
    t.ok(again and again.id == m.id and again.body == 'leased', 'it did not come again')
    t.equal(again.tries, 2)
    if can.refused then t.equal(q:extend(m, LEASE), false) end
    q:done(m) -- both have worked on it; either may complete it
    cr.sleep(LEASE + 0.2)
    t.equal(other:receive(0), nil)
    other:done(again)
  end)

  test('a returned message is delivered again at once, or after a delay', function(q, other)
    send 'back'
    local m = q:receive(2)
    q:fail(m, { blameless = true })
    m = other:receive(2)
    t.equal(m.body, 'back')
    t.equal(m.tries, can.blameless and 1 or 2)
    other:fail(m, { delay = LEASE })
    t.equal(q:receive(0), nil)
    cr.sleep(LEASE + 0.2)
    m = q:receive(2)
    t.equal(m and m.body, 'back')
    q:done(m)
  end)

  test('a dead letter contains the job and the error', function(q)
    send 'poison'
    local m = q:receive(2)
    q:fail(m, { dead = 'it is no job' })
    cr.sleep(LEASE + 0.2)
    t.equal(q:receive(0), nil)
    local list = dead()
    t.equal(#list, 1)
    t.equal(list[1].body .. ': ' .. list[1].error, 'poison: it is no job')
  end)
end

-- ---- SQS -----------------------------------------------------------------------------------------

local lacks = service.lacks_cloud()
if lacks then
  t.test('SQS', function() t.skip(lacks) end)
else
  local cloud = service.cloud()
  cloud:enter()
  local json, sqs = require 'cr.json', service.sqs
  local place, buried
  cr.run(function()
    buried = sqs('CreateQueue', { QueueName = 'buried' }).QueueUrl
    place = sqs('CreateQueue', { QueueName = 'films', Attributes = {
      RedrivePolicy = json.encode { deadLetterTargetArn = 'arn:aws:sqs:eu-west-1:123456789012:buried', maxReceiveCount = '100' },
    } }).QueueUrl
    sqs('CreateQueue', { QueueName = 'plain' })
  end)
  expectations('sqs', {}, function(name) return queues.open('sqs://films', { lease = LEASE, name = name }) end,
    function(body) sqs('SendMessage', { QueueUrl = place, MessageBody = body }) end,
    function()
      local list = {}
      for i, m in ipairs(sqs('ReceiveMessage', { QueueUrl = buried, MessageAttributeNames = { 'All' } }).Messages or {}) do
        list[i] = { body = m.Body, error = m.MessageAttributes.error.StringValue }
      end
      return list
    end)

  t.test('sqs: missing queues, and queues without dead letters', function()
    cr.run(function()
      t.raises(function() queues.open('sqs://absent', { lease = 1 }) end, 'sqs://absent: there is no such queue')
      t.raises(function() queues.open('sqs://plain', { lease = 1 }) end, 'no queue for dead letters: give the queue a redrive policy')
      queues.open('sqs://plain?dead=buried&region=eu-west-1&endpoint=' .. cloud.url, { lease = 1 }):close()
      environment.set('AWS_SECRET_ACCESS_KEY', 'wrong')
      require 'cr.remote.aws'.new { service = 'sqs' }.chain:forget()
      t.raises(function() queues.open('sqs://films', { lease = 1 }) end, '^sqs://films: SignatureDoesNotMatch')
      cloud:enter()
      require 'cr.remote.aws'.new { service = 'sqs' }.chain:forget()
      t.equal(#cloud:seen().bad, 1, table.concat(cloud:seen().bad, ', '))
    end)
  end)
end

-- ---- Redis ---------------------------------------------------------------------------------------

lacks = service.lacks_redis()
if lacks then
  t.test('Redis', function() t.skip(lacks) end)
  t.done()
end
local port, folder = service.free_port(), scratch.path 'redis'
local server = service.redis(port, folder, '--requirepass secret')
environment.set('REDISCLI_AUTH', 'secret')
local client
local function ask(...) return client:ask(...) end
local function with_client(fn)
  return function(...)
    client = redis.new { host = '127.0.0.1', port = port, password = 'secret', database = 3 }
    local ok, result = pcall(fn, ...)
    client:close()
    if not ok then error(result, 0) end
    return result
  end
end
local address = ('redis://127.0.0.1:%d/3?stream=films&group=workers'):format(port)
local function open(name, lease) return queues.open(address, { lease = lease or LEASE, name = name }) end

local function send(body) ask('XADD', 'films', '*', 'job', body) end

expectations('redis', { blameless = true, refused = true }, open, with_client(send), with_client(function()
  local list = {}
  for i, entry in ipairs(ask('XRANGE', 'films:dead', '-', '+')) do list[i] = { body = entry[2][2], error = entry[2][4] } end
  return list
end))

t.test('redis: answers of every kind, pipelining, and refusals', function()
  cr.run(with_client(function()
    t.equal(ask('SET', 'x', 'a\0b\r\n'), 'OK')
    t.equal(ask('GET', 'x'), 'a\0b\r\n')
    t.equal(ask('GET', 'absent'), redis.NIL)
    t.equal(ask('EVAL', 'return {1, {2, "x"}, false}', 0)[2][2], 'x')
    local tasks = {}
    for i = 1, 50 do tasks[i] = function() return ask('ECHO', 'n' .. i) end end
    for i, answer in ipairs(cr.all(tasks)) do t.equal(answer, 'n' .. i) end
    t.raises(function() ask('SET', 'x') end, '^redis: ERR wrong number of arguments')
    local long = ('0123456789'):rep(200000)
    ask('SET', 'long', long)
    t.ok(ask('GET', 'long') == long)
    local wrong = redis.new { host = '127.0.0.1', port = port, password = 'no' }
    t.raises(function() wrong:ask 'PING' end, '^redis: WRONGPASS')
    t.raises(function() redis.new { host = '127.0.0.1', port = 1 }:ask 'PING' end, '^redis at 127.0.0.1:1: ECONNREFUSED')
  end))
end)

t.test('redis: a restart of the server loses nothing, and workers wait for it', function()
  cr.run(with_client(function()
    local q = open('one', 30)
    ask('XADD', 'films', '*', 'job', 'kept')
    local m = q:receive(2)
    ask('XADD', 'films', '*', 'job', 'next')
    server:stop 'sigkill'
    local task = cr.go(q.receive, q, 20)
    t.raises(function() ask 'PING' end, '^redis at 127.0.0.1')
    server = service.redis(port, folder, '--requirepass secret')
    local ok, got = pcall(cr.await, task)
    if not ok or not got then got = q:receive(20) end
    t.equal(got.body, 'next')
    t.equal(q:extend(m, 30), true)
    q:done(m)
    q:done(got)
    t.equal(q:count(), 0)
    -- A missing group is created again; unacknowledged messages are delivered again.
    ask('XADD', 'films', '*', 'job', 'orphan')
    ask('XGROUP', 'DESTROY', 'films', 'workers')
    got = q:receive(2)
    t.equal(got.body, 'orphan')
    q:done(got)
    q:close()
    local left = ask('XINFO', 'CONSUMERS', 'films', 'workers')
    t.equal(#left, 0)
  end))
end)

t.test('redis: an expired message is claimed by only one worker', function()
  cr.run(with_client(function()
    local all = {}
    for i = 1, 4 do all[i] = open('w' .. i, 0.3) end
    for i = 1, 30 do ask('XADD', 'films', '*', 'job', 'n' .. i) end
    for _ = 1, 30 do all[1]:receive(1) end -- none of them is completed
    cr.sleep(0.5)
    local seen, twice = {}, 0
    local tasks = {}
    for i = 2, 4 do
      tasks[#tasks + 1] = function()
        for _ = 1, 10 do
          local m = all[i]:receive(0)
          if m then
            if seen[m.id] then twice = twice + 1 end
            seen[m.id] = true
            all[i]:done(m)
          end
        end
      end
    end
    cr.all(tasks)
    t.equal(twice, 0)
    t.equal(all[1]:count(), 0)
    for _, q in ipairs(all) do q:close() end
  end))
end)

t.done()
