-- The parts of a server that need no server: requests, access, file types, numbers, names, the store.

local t = require 'tests.support.tap'
local access = require 'cr.serve.access'
local cjson = require 'cjson'
local cr = require 'cr'
local metrics = require 'cr.serve.metrics'
local names = require 'models.service.names'
local problem = require 'cr.serve.problem'
local requests = require 'models.service.request'
local scratch = require 'tests.support.scratch'
local shape = require 'cr.serve.shape'
local sniff = require 'cr.serve.sniff'
local words = require 'models.service.words'

-- The result for a body: status, field and message; or the request.
local function check(text)
  local ok, result = pcall(requests.check, cjson.decode(text))
  if ok then return result end
  if not problem.is(result) then error(result, 0) end
  return nil, result.status, result.fields and result.fields.field, result.detail
end

local function refused(text, field, pattern)
  local request, status, at, detail = check(text)
  t.equal(request, nil, text .. ' was taken')
  t.equal(status, 400, text)
  t.equal(at, field, text)
  t.ok(detail and detail:find(pattern), ('%s: "%s", expected %s'):format(text, tostring(detail), pattern))
end

local both = '"video":"v","audio":"a"'

t.test('requests are checked by the rows of the settings', function()
  local r = check('{' .. both .. ',"settings":{"steps":8,"guidance_interval":"100:800","fps":"source","smooth":false,"face":"left"}}')
  t.equal(r.kind, 'lipsync')
  t.equal(r.settings.steps, 8)
  t.equal(r.settings.guidance_interval[2], 800, 'a text is read as on the command line')
  t.equal(r.settings.smooth, false)
  local s = requests.settings(r, function(name) return '/files/' .. name end)
  t.equal(s.video .. ' ' .. s.audio, '/files/v /files/a')
  r = check '{"kind":"upscale","video":"v","settings":{"scale":2,"model":"animevideov3"}}'
  t.equal(r.settings.scale, 2)
  r = check '{"video":"v","voices":[{"face":"1","audio":"a"},{"face":"640,360","audio":"b"}]}'
  s = requests.settings(r, function(name) return '/files/' .. name end)
  t.equal(table.concat(s.voice, ' '), '1=/files/a 640,360=/files/b')
end)

t.test('refusals name their field', function()
  refused('{"audio":"a"}', 'video', 'video is missing')
  refused('{"video":"v"}', 'audio', 'audio is missing')
  refused('{' .. both .. ',"voices":[{"face":"1","audio":"a"}]}', 'voices', 'leave one of them out')
  refused('{"video":"v","voices":[]}', 'voices', 'at least 1')
  refused('{"video":"v","voices":[{"face":"middle","audio":"a"}]}', 'voices/0/face', 'not one of')
  refused('{"video":"v","voices":[{"face":"1","audio":"a","x":1}]}', 'voices/0/x', 'no field')
  refused('{' .. both .. ',"settings":{"stps":8}}', 'stps', "did you mean 'steps'")
  refused('{' .. both .. ',"settings":{"steps":0}}', 'steps', 'less than 1')
  refused('{' .. both .. ',"settings":{"steps":1.5}}', 'steps', 'not a whole number')
  refused('{' .. both .. ',"settings":{"steps":"8"}}', 'steps', 'not a whole number')
  refused('{' .. both .. ',"settings":{"strength":0}}', 'strength', 'not more than 0')
  refused('{' .. both .. ',"settings":{"fps":"30"}}', 'fps', 'not one of 25, source')
  refused('{' .. both .. ',"settings":{"face":"middle"}}', 'face', 'is not largest')
  refused('{' .. both .. ',"settings":{"guidance_interval":"1-2"}}', 'guidance_interval', 'A:B')
  refused('{' .. both .. ',"colour":1}', 'colour', 'no field')
  refused('{' .. both .. ',"preset":"best"}', 'preset', 'not one of draft')
  refused('{"kind":"upscale",' .. both .. '}', 'audio', 'no field')
  refused('{"kind":"film","video":"v"}', 'kind', 'not one of lipsync, upscale')
  refused('[1]', nil, 'not an object')
  refused('{"video":7,"audio":"a"}', 'video', 'not a text')
end)

t.test("no setting can name a file, and the server's own settings cannot be set", function()
  for _, row in ipairs { 'scheduler', 'cache', 'guidance_method', 'upscale', 'face' } do
    for _, path in ipairs { './mine.lua', '/etc/passwd', 'mine.lua', 'a.json', 'mouth:x.pth', 'x\\\\y', '..' } do
      refused('{' .. both .. (',"settings":{"%s":"%s"}}'):format(row, path), row, '.')
    end
  end
  refused('{"kind":"upscale","video":"v","settings":{"model":"/tmp/x.pth"}}', 'model', 'is a file name')
  for _, row in ipairs { 'checkpoint', 'out', 'device', 'dtype', 'dump_latents', 'report', 'points', 'mask', 'sound', 'vae', 'quant' } do
    refused('{' .. both .. (',"settings":{"%s":"x"}}'):format(row), row, 'no field')
  end
  t.equal(check('{' .. both .. ',"settings":{"scheduler":"euler:final_sigma=0.2","cache":"tea:0.1"}}').settings.cache, 'tea:0.1')
end)

t.test('errors of sampling methods are reported before a job starts', function()
  local function sampling(text)
    local ok, raised = pcall(requests.check_sampling, check(text), cr.root .. '/models/mini')
    return ok or raised.status .. ' ' .. raised.detail
  end
  t.equal(sampling('{' .. both .. '}'), true)
  for _, preset in ipairs(require 'models.service.presets') do
    t.equal(sampling('{' .. both .. ',"preset":"' .. preset.name .. '"}'), true)
  end
  t.ok(sampling('{' .. both .. ',"settings":{"scheduler":"dimm"}}'):find "^422 there is no scheduler 'dimm'")
  t.ok(sampling('{' .. both .. ',"settings":{"strength":0.01}}'):find '^422 strength')
  t.ok(sampling('{' .. both .. ',"settings":{"cache":"none_such:3"}}'):find '^422 there is no cache')
end)

t.test('every client setting has a JSON Schema type and a valid default', function()
  for kind, schema in pairs(requests.schemas) do
    local count = 0
    for name, property in pairs(schema.properties.settings.properties) do
      count = count + 1
      t.ok(property.type and property.description, name)
      if property.default ~= nil then t.equal(shape.check(property, property.default), nil, kind .. ' ' .. name) end
    end
    t.ok(count >= 5, kind .. ' has settings')
  end
end)

t.test("limits of a result's length and size", function()
  local video = { video = { width = 100, height = 50, seconds = 20 } }
  local function extent(text, ...)
    local seconds, times = requests.extent(check(text), video, { ... })
    return seconds .. ' ' .. times
  end
  local sound = { audio = { seconds = 12 } }
  t.equal(extent('{' .. both .. '}', sound), '12 1')
  t.equal(extent('{' .. both .. ',"settings":{"start":2}}', sound), '10 1')
  t.equal(extent('{' .. both .. ',"settings":{"start":2,"duration":3}}', sound), '3 1')
  t.equal(extent('{' .. both .. ',"settings":{"tail":"keep","upscale":"frame:2"}}', sound), '20 2')
  t.equal(extent '{"kind":"upscale","video":"v","settings":{"scale":3}}', '20 3')
end)

t.test('values in messages are shortened, in valid UTF-8', function()
  local text = require 'cr.serve.text'
  t.equal(text.cut('a\195\164b', 2), 'a')
  t.equal(text.cut('a\195\164b', 3), 'a\195\164')
  t.equal(text.cut(('\240\159\152\128'):rep(20), 60), ('\240\159\152\128'):rep(15))
  t.equal(text.shown 'a\nb\0\255', 'a?b??')
  t.equal(text.shown(7), '7')
  for _, odd in ipairs { ('\195\164'):rep(100), ('x'):rep(59) .. '\226\130\172', '\255\254', '\237\160\128', 'a\27[2Jb' } do
    t.ok(text.is_text(text.shown(odd)) and #text.shown(odd) <= 60 and not text.shown(odd):find '%c', odd)
    t.ok(text.is_text(problem.new(422, odd):document().detail), odd)
  end
  local _, status, _, detail = check('{"kind":"' .. ('\240\159\152\128'):rep(40) .. '"}')
  t.ok(status == 400 and text.is_text(detail), detail)
end)

t.test('access control', function()
  local function ask(headers, o, method, public)
    headers.host = headers.host or '127.0.0.1:7860'
    local refusal = access.refuse({ method = method or 'GET', headers = headers }, o, public or false)
    return refusal and refusal.status
  end
  local open, closed = { only_local = true }, { token = 'secret-1' }
  t.equal(ask({}, open), nil)
  t.equal(ask({ host = 'localhost:7860' }, open), nil)
  t.equal(ask({ host = '[::1]:7860' }, open), nil)
  t.equal(ask({ host = 'rebound.example:7860' }, open), 403, 'a name that means 127.0.0.1 now')
  t.equal(ask({ host = '' }, open), 403)
  t.equal(ask({ origin = 'http://127.0.0.1:7860' }, open), nil)
  t.equal(ask({ origin = 'https://elsewhere.example' }, open), 403, 'a form of another site')
  t.equal(ask({ origin = 'null' }, open), 403)
  t.equal(ask({ host = 'rebound.example' }, {}), nil, '--insecure')
  t.equal(ask({}, closed), 401)
  t.equal(ask({}, closed, 'GET', true), nil, 'public')
  t.equal(ask({ authorization = 'Bearer secret-1' }, closed), nil)
  t.equal(ask({ authorization = 'Bearer secret-2' }, closed), 401)
  t.equal(ask({ authorization = 'Bearer secret-11' }, closed), 401)
  t.equal(ask({ authorization = 'Basic secret-1' }, closed), 401)
  t.equal(ask({ cookie = 'a=b; crescent_token=secret%2D1' }, closed), nil)
  t.equal(ask({ cookie = 'crescent_token=secret-1' }, closed, 'POST'), 401, 'a cookie changes nothing')
  t.equal(ask({ cookie = 'xcrescent_token=secret-1' }, closed), 401)
  for _, pair in ipairs { { 'a', 'a', true }, { '', 'a', false }, { 'ab', 'a', false }, { 'a', 'ab', false }, { 'a\0', 'a', false } } do
    t.equal(access.same(pair[1], pair[2]), pair[3], pair[1] .. ' and ' .. pair[2])
  end
end)

t.test("a file's type is detected from its bytes", function()
  local function kind(path)
    local f = assert(io.open(path, 'rb'))
    local head = f:read(sniff.BYTES)
    f:close()
    return (sniff.kind(head))
  end
  t.equal(kind(cr.root .. '/models/mini/demo.mp4'), 'video/mp4')
  t.equal(kind(cr.root .. '/models/mini/demo.flac'), 'audio/flac')
  t.equal(kind(cr.root .. '/.github/pictures/demo.png'), 'image/png')
  t.equal(kind(scratch.write('a.mp4', scratch.wav(('x'):rep(100)))), 'audio/wav', 'its name says nothing')
  for _, text in ipairs { '#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n', 'ffconcat version 1.0\nfile /etc/passwd\n',
    '<?xml version="1.0"?><MPD>', 'v=0\r\no=- 0', '#!/bin/sh\n', '<svg xmlns="http://www.w3.org/2000/svg"/>', 'PK\3\4', '', 'x' } do
    t.equal(sniff.kind(text), nil, text)
  end
end)

t.test('ids, times and the names of files', function()
  local seen = {}
  for _ = 1, 1000 do
    local id = names.id()
    t.ok(not seen[id] and id:find(names.id_schema.match), id)
    seen[id] = true
  end
  t.ok(names.now():find '^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%dZ$', names.now())
  t.equal(names.shown('../../etc/pass\nwd', 'x'), 'passwd')
  t.equal(names.shown('C:\\films\\a.mp4', 'x'), 'a.mp4')
  t.equal(names.shown('a\255', 'x'), 'x', 'no UTF-8')
  t.equal(names.shown(nil, 'x'), 'x')
  t.equal(names.shown('..', 'x'), 'x')
  t.equal(#names.shown(('\195\164'):rep(150), 'x'), 200, 'cut between characters')
end)

t.test('messages of the engine contain no local paths', function()
  local w = words.new { '/srv/data', '/srv', '/models/mini' }
  t.equal(w:of('/srv/data/files/q.mp4: no face; /srv/data/files/q.mp4', { ['/srv/data/files/q.mp4'] = 'me.mp4' }),
    'me.mp4: no face; me.mp4')
  t.equal(w:of '/models/mini/vae/config.json is wrong', 'vae/config.json is wrong')
  t.equal(w:all({ a = { '/srv/data/x', 3 } }).a[1], 'x')
end)

t.test('a job that is cancelled before it starts is reported', function()
  local messages, said = {
    { op = 'start', checkpoint = 'none', device = 'cpu' },
    { op = 'run', id = 'j', kind = 'upscale', request = { kind = 'upscale', video = 'v' }, paths = {}, folder = 'none' },
    { op = 'cancel', id = 'j' },
  }, cr.channel(8)
  local last
  cr.run(function()
    pcall(require 'models.service.worker', {
      messages = function()
        if #messages > 0 then return table.remove(messages, 1) end
        repeat last = said:get() until last.job and not last.progress
        error('enough', 0) -- otherwise the end of its messages would end the process
      end,
      tell = function(m) said:put(m) end,
    })
  end)
  t.equal(last.job, 'j')
  t.equal(last.cancelled, true)
end)

t.test("metrics in Prometheus' format", function()
  local m = metrics.new()
  local asked = m:counter('asked_total', 'Requests.', { 'what', 'status' })
  asked:add(1, 'a"\n\\', 200)
  asked:add(2, 'a"\n\\', 200)
  m:counter('frames_total', 'Frames.'):add(1.5)
  m:gauge('waiting', 'Jobs.', {}, function(set) set(7) end)
  t.equal(m:text(), '# HELP asked_total Requests.\n# TYPE asked_total counter\nasked_total{what="a\\"\\n\\\\",status="200"} 3\n' ..
    '# HELP frames_total Frames.\n# TYPE frames_total counter\nframes_total 1.5\n# HELP waiting Jobs.\n# TYPE waiting gauge\nwaiting 7\n')
end)

t.test('the store: jobs are unique, state changes are conditional, and only one process has it', function()
  local stores = require 'models.service.store'
  local path = scratch.path 'state.sqlite'
  local store = stores.open(path)
  for i, id in ipairs { 'one', 'two', 'three' } do
    store:add_job { id = id, kind = 'lipsync', state = 'queued', body = '{"x":"\195\164\\u0000"}', key = i == 1 and 'k' or nil,
      attempts = 0 }
  end
  t.raises(function() store:add_job { id = 'four', kind = 'x', state = 'queued', body = '{}', key = 'k' } end, 'UNIQUE')
  t.equal(store:job 'four', nil)
  local job = store:job_by_key 'k'
  t.equal(job.id .. job.body, 'one{"x":"\195\164\\u0000"}')
  job.state, job.attempts = 'running', 1
  t.equal(store:change_job(job, 'queued'), true)
  t.equal(store:change_job(job, 'queued'), false, 'it is not queued any more')
  t.equal(#store:unfinished(), 3)
  t.equal(store:counts().queued, 2)
  local list = store:jobs { limit = 2 }
  t.equal(list[1].id .. ' ' .. list[2].id, 'three two')
  t.equal(store:jobs({ limit = 9, after = 'two' })[1].id, 'one')
  t.equal(#store:jobs { limit = 9, state = 'running', kind = 'lipsync' }, 1)
  t.raises(function() stores.open(path) end, 'in use by another server')
  store:drop_job 'three'
  store:close()
  store = stores.open(path)
  t.equal(store:job 'one'.attempts, 1)
  t.equal(store:job 'three', nil)
  store:close()
end)

t.test('the store: expired jobs and files', function()
  local store = require 'models.service.store'.open(scratch.path 'old.sqlite')
  local function job(id, state, finished, video)
    store:add_job { id = id, kind = 'lipsync', state = state, body = '{"video":"' .. video .. '"}', attempts = 1, finished = finished }
  end
  for _, id in ipairs { 'old-alone', 'old-of-new', 'old-of-old', 'old-waiting' } do
    store:add_file { id = id, created = '2026-01-01T00:00:00.000Z', path = 'x' }
  end
  store:add_file { id = 'new-alone', created = '2026-03-01T00:00:00.000Z', path = 'x' }
  job('old', 'done', '2026-01-02T00:00:00.000Z', 'old-of-old')
  job('new', 'failed', '2026-03-02T00:00:00.000Z', 'old-of-new')
  job('waits', 'queued', nil, 'old-waiting')
  local jobs, files = store:older '2026-02-01T00:00:00.000Z'
  t.equal(table.concat(jobs, ' '), 'old')
  t.equal(table.concat(files, ' '), 'old-alone old-of-old')
  store:close()
end)

t.done()
