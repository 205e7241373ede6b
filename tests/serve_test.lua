-- `crescent serve` from a client's view: files, jobs, refusals, and what survives. tests/bench/serve.lua does the
-- same many times.

local t = require 'tests.support.tap'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local cr = require 'cr'
local lfs = require 'lfs'
local media = require 'cr.media'
local service = require 'tests.support.service'

clip.needs_whisper(t, 'serve')

local function names_in(folder)
  local list = {}
  for name in lfs.dir(folder) do
    if name ~= '.' and name ~= '..' then list[#list + 1] = name end
  end
  return list
end

-- Child processes of a process.
local function children_of(pid)
  local list = {}
  local f = io.open(('/proc/%d/task/%d/children'):format(pid, pid))
  for number in (f and f:read '*a' or ''):gmatch '%d+' do list[#list + 1] = tonumber(number) end
  if f then f:close() end
  return list
end

local function problem_of(answer, status, pattern)
  t.equal(answer.status, status, answer.body)
  t.equal(answer.headers['content-type'], 'application/problem+json')
  t.equal(answer.json and answer.json.status, status)
  t.ok(answer.json and answer.json.detail:find(pattern), ('"%s", expected %s'):format(answer.json and answer.json.detail or '', pattern))
end

local server

t.test('files: uploading in two ways, listing, ranges, deleting', function()
  server = service.start { '--max-upload', '1', '--max-seconds', '6', '--max-jobs', '4' }
  local id = server:upload(service.video)
  local file = server:ask('GET', '/v1/files/' .. id).json
  t.equal(file.name, 'demo.mp4')
  t.equal(file.type, 'video/mp4')
  t.equal(file.bytes, lfs.attributes(service.video, 'size'))
  t.equal(file.sha256, require 'cr.weights'.sha256(service.video))
  t.equal(file.video.width .. ' ' .. file.video.frames .. ' ' .. file.video.frames_per_second .. ' ' .. file.audio.channels, '400 125 25 1')
  local whole = server:ask('GET', '/v1/files/' .. id .. '/content')
  t.equal(whole.headers['content-type'], 'video/mp4')
  t.equal(#whole.body, file.bytes)
  local range = server:ask('GET', '/v1/files/' .. id .. '/content', { headers = { Range = 'bytes=10-19' } })
  t.equal(range.status, 206)
  t.equal(range.body, whole.body:sub(11, 20))
  local sound = io.open(service.sound, 'rb'):read '*a'
  local form = server:ask('POST', '/v1/files', { headers = { ['Content-Type'] = 'multipart/form-data; boundary=b' },
    body = '--b\r\nContent-Disposition: form-data; name="file"; filename="../voice.flac"\r\n\r\n' .. sound .. '\r\n--b--\r\n' })
  t.equal(form.status, 201, form.body)
  t.equal(form.json.name, 'voice.flac')
  t.equal(form.json.type, 'audio/flac')
  local list = server:ask('GET', '/v1/files').json.files
  t.equal(#list, 2)
  t.equal(list[1].id, form.json.id, 'the newest first')
  t.equal(server:ask('DELETE', '/v1/files/' .. form.json.id).status, 204)
  t.equal(server:ask('GET', '/v1/files/' .. form.json.id).status, 404)
  t.equal(#names_in(server.data .. '/files'), 1)
end)

t.test('a job: creation, events, result; a repeated request gives the same job', function()
  local key = { ['Idempotency-Key'] = 'k-1' }
  local body = server:request { duration = 0.4, steps = 2, seed = 7 }
  local answer = server:ask('POST', '/v1/jobs', { json = body, headers = key })
  t.equal(answer.status, 201, answer.body)
  local id = answer.json.id
  t.equal(answer.headers.location, '/v1/jobs/' .. id)
  local again = server:ask('POST', '/v1/jobs', { json = body, headers = key })
  t.equal(again.status .. ' ' .. again.json.id, '200 ' .. id)
  body.settings.seed = 8
  problem_of(server:ask('POST', '/v1/jobs', { json = body, headers = key }), 409, 'Idempotency%-Key')
  local events = server:ask('GET', '/v1/jobs/' .. id .. '/events')
  t.equal(events.headers['content-type'], 'text/event-stream; charset=utf-8')
  local kinds, states, last = {}, {}, nil
  for kind, data in events.body:gmatch 'event: (%w+)\ndata: ([^\n]*)\n\n' do
    kinds[kind] = true
    if kind == 'job' then
      last = require 'cr.json'.decode(data)
      states[last.state] = true
    else
      t.equal(data, '{"url":"/v1/jobs/' .. id .. '/preview?n=1"}')
    end
  end
  t.ok(kinds.preview, 'a picture was told of')
  t.ok(states.done and last.state == 'done', 'the last state ends it')
  t.equal(last.progress.frames, 10)
  t.equal(last.progress.steps, 2)
  local job = server:ask('GET', '/v1/jobs/' .. id).json
  t.equal(job.attempts, 1)
  t.equal(job.result.frames .. ' ' .. job.result.width .. ' ' .. job.result.type, '10 400 video/mp4')
  local result = server:ask('GET', job.result.url .. '?download=1')
  t.equal(#result.body, job.result.bytes)
  t.ok(result.headers['content-disposition']:find 'attachment; filename="demo%-lipsync.mp4"', result.headers['content-disposition'])
  local path = child.file('result.mp4', result.body)
  t.equal(media.probe(path).frames, 10)
  local report = server:ask('GET', '/v1/jobs/' .. id .. '/report')
  t.equal(report.json.settings.seed, 7)
  t.ok(not report.body:find(child.folder, 1, true) and not report.body:find(cr.root, 1, true), 'no path in ' .. report.body)
  local picture = server:ask('GET', '/v1/jobs/' .. id .. '/preview?n=1')
  t.equal(picture.headers['content-type'] .. picture.body:sub(2, 4), 'image/pngPNG')
  t.equal(server:ask('GET', '/v1/jobs?state=done').json.jobs[1].id, id)
  -- The command makes the same frames with the same settings.
  local out = child.folder .. '/command.mp4'
  local r = child.run { 'lipsync', '--video', service.video, '--audio', service.sound, '--out', out, '--checkpoint', service.checkpoint,
    '--size', '64', '--device', 'cpu', '--duration', '0.4', '--steps', '2', '--seed', '7', '--quiet' }
  t.equal(r.code, 0, r.err)
  t.ok(io.open(out, 'rb'):read '*a' == result.body, 'byte for byte what the command writes')
end)

t.test('invalid requests are reported, and leave nothing', function()
  local function job(more, settings) return server:ask('POST', '/v1/jobs', { json = server:request(settings, more) }) end
  problem_of(job { colour = 1 }, 400, "no field 'colour'")
  problem_of(job({}, { steps = 0 }), 400, 'steps: 0 is less than 1')
  problem_of(job { video = ('a'):rep(20) }, 422, 'video: there is no file')
  problem_of(job { video = 'https://example.org/a.mp4' }, 422, 'video: ')
  problem_of(job { video = server.demo_sound }, 422, 'video: demo.flac has no picture')
  for field, value in pairs { scheduler = 'dimm', cache = 'foo', guidance_method = 'x', guidance_interval = '9:1', upscale = 'mouth:x5' } do
    local answer = job({}, { [field] = value })
    problem_of(answer, 422, '.')
    t.equal(answer.json.field, field, answer.json.detail)
  end
  problem_of(job({}, { upscale = 'frame:16' }), 422, 'megapixels')
  local json = { ['Content-Type'] = 'application/json' }
  problem_of(server:ask('POST', '/v1/jobs', { body = '{"video":', headers = json }), 400, 'not JSON')
  problem_of(server:ask('POST', '/v1/jobs', { body = '{"video":"\255","audio":"a"}', headers = json }), 400, 'UTF%-8')
  problem_of(server:ask('POST', '/v1/jobs', { body = ('['):rep(1000), headers = json }), 400, 'not JSON')
  problem_of(server:ask('POST', '/v1/jobs', { body = '{}' }), 415, 'application/json')
  problem_of(server:ask('GET', '/v1/jobs?stat=done'), 400, "no parameter 'stat': did you mean 'state'%?")
  problem_of(server:ask('GET', '/v1/jobs?limit=x'), 400, 'limit')
  problem_of(server:ask('GET', '/v1/jobs/..%2f..%2fetc%2fpasswd'), 404, 'nothing at this path')
  problem_of(server:ask('GET', '/v1/jobs/' .. ('a'):rep(20)), 404, 'no such job')
  problem_of(server:ask('GET', '/v2'), 404, 'openapi.json')
  local put = server:ask('PUT', '/v1/jobs')
  problem_of(put, 405, 'GET')
  t.ok(put.headers.allow:find 'POST' and put.headers.allow:find 'GET', put.headers.allow)
  for _, method in ipairs { 'QUERY', 'PROPFIND', 'A-METHOD-OF-SOMEBODY' } do
    local answer = server:ask(method, '/v1/jobs')
    problem_of(answer, 405, method:gsub('%p', '%%%0'))
    t.equal(answer.headers.allow, 'POST, GET, HEAD')
    problem_of(server:ask(method, '/v3'), 404, '.')
  end
  problem_of(server:ask('GET', '/healthz', { host = 'rebound.example' }), 403, 'answers only for 127.0.0.1')
  local function upload(bytes, headers) return server:ask('PUT', '/v1/files', { body = bytes, headers = headers }) end
  problem_of(upload '#EXTM3U\nfile:///etc/passwd\n', 415, 'not a video, sound or image')
  problem_of(upload '', 422, 'empty')
  problem_of(upload(('x'):rep(1000001)), 413, '.')
  local damaged = io.open(service.video, 'rb'):read '*a':sub(1, 2000)
  local answer = upload(damaged, { ['Content-Type'] = 'video/mp4' })
  problem_of(answer, 415, 'file.mp4')
  t.ok(not answer.body:find(server.data, 1, true), answer.body)
  -- A client that disconnects in the middle.
  local connection = service.connect(server.port)
  connection.write(server:text('PUT', '/v1/files', { body = damaged, length = 100000 }))
  t.ok(t.wait(function() return #names_in(server.data .. '/incoming') == 1 end), 'it is on its way')
  connection.close()
  t.ok(t.wait(function() return #names_in(server.data .. '/incoming') == 0 end), 'nothing is left')
  t.equal(#names_in(server.data .. '/files'), 2 + 1, 'files of the tests before')
  t.equal(#server:ask('GET', '/v1/jobs').json.jobs, 1)
end)

t.test('the page is one document', function()
  local page = server:ask('GET', '/?utm_source=letter')
  t.equal(page.status, 200)
  t.equal(page.headers['content-type'], 'text/html; charset=utf-8')
  t.ok(not page.body:find '<link rel="stylesheet"' and not page.body:find '<script[^>]* src=', 'nothing is elsewhere')
  t.ok(not page.body:find '\nimport ' and not page.body:find '\nexport ', 'scripts are joined')
  local policy = page.headers['content-security-policy']
  for kind, tag in pairs { style = '<style>(.*)</style>', script = '<script type="module">(.*)</script>' } do
    local text = page.body:match(tag)
    t.ok(#text > 10000, kind)
    local hash = require 'cr.base64'.encode(require 'cr.digest'.bytes(require 'cr.digest'.of_text('SHA256', text)))
    t.ok(policy:find(("%s%%-src [^;]*'sha256%%-%s'"):format(kind, hash:gsub('%p', '%%%0'))), policy)
  end
  t.equal(server:ask('GET', '/', { headers = { ['If-None-Match'] = page.headers.etag } }).status, 304)
  t.equal(server:ask('GET', '/index.html').body, page.body)
  t.ok(server:ask('GET', '/live.html').body:find 'WebSocket')
  t.ok(server:ask('GET', '/recorder.js').body:find '^class' or server:ask('GET', '/recorder.js').body:find 'registerProcessor')
  for _, name in ipairs { '/app.js', '/style.css', '/README.md', '/..%2fserve.lua' } do
    t.equal(server:ask('GET', name).status, 404, name)
  end
end)

t.test('jobs wait in order, are cancelled, and only ended ones are deleted', function()
  local slow = server:begin { steps = 900 }
  local waiting = { server:begin(), server:begin(), server:begin(), server:begin() }
  server:wait(slow, function(job) return (job.progress.step or 0) >= 1 end)
  problem_of(server:ask('POST', '/v1/jobs', { json = server:request() }), 429, 'the queue is full, with 4 jobs')
  local now = server:ask('GET', '/v1/jobs/' .. slow .. '/events?seconds=0')
  t.equal(now.status, 200)
  t.equal(select(2, now.body:gsub('event: job\n', '')), 1, 'the job as it is, and no more')
  t.ok(server:ask('GET', '/v1/jobs/' .. slow .. '/events?seconds=0.3').body:find '"running"', 'for a while')
  t.equal(server:ask('GET', '/v1/jobs/' .. waiting[3]).json.position, 3)
  t.equal(server:ask('POST', '/v1/jobs/' .. waiting[1] .. '/cancel').json.state, 'cancelled')
  t.equal(server:ask('GET', '/v1/jobs/' .. waiting[3]).json.position, 2)
  problem_of(server:ask('POST', '/v1/jobs/' .. waiting[1] .. '/cancel'), 409, 'cancelled already')
  problem_of(server:ask('GET', '/v1/jobs/' .. slow .. '/result'), 409, 'running')
  problem_of(server:ask('DELETE', '/v1/jobs/' .. slow), 409, 'cancel it first')
  problem_of(server:ask('DELETE', '/v1/files/' .. server.demo_video), 409, 'uses the file')
  t.equal(server:ask('POST', '/v1/jobs/' .. slow .. '/cancel').status, 200)
  t.equal(server:wait(slow).state, 'cancelled')
  t.equal(server:ask('POST', '/v1/jobs/' .. waiting[4] .. '/cancel').status, 200)
  for i = 2, 3 do t.equal(server:wait(waiting[i]).state, 'done') end
  t.equal(server:ask('DELETE', '/v1/jobs/' .. waiting[2]).status, 204)
  t.equal(server:ask('GET', '/v1/jobs/' .. waiting[2]).status, 404)
  t.ok(not lfs.attributes(server.data .. '/jobs/' .. waiting[2]), 'its result is gone')
  local page = server:ask('GET', '/v1/jobs?limit=2').json
  t.equal(#page.jobs, 2)
  t.equal(server:ask('GET', '/v1/jobs?after=' .. page.next).json.jobs[1].number, nil)
end)

t.test('a worker that dies fails only its job', function()
  local id = server:begin { steps = 900 }
  server:wait(id, function(job) return (job.progress.step or 0) >= 1 end)
  for _, pid in ipairs(children_of(server.pid)) do os.execute('kill -9 ' .. pid .. ' 2>/dev/null') end
  local job = server:wait(id)
  t.equal(job.state, 'failed')
  t.equal(job.error.status, 500)
  t.ok(job.error.detail:find 'was ended by signal 9', job.error.detail)
  t.equal(server:wait(server:begin()).state, 'done', 'the next one is made')
  t.ok(server:upload(service.sound), 'and files are looked into')
  local metrics = server:ask('GET', '/metrics').body
  t.ok(metrics:find 'crescent_job_errors_total{kind="crash"} 1\n', metrics)
  t.ok(metrics:find 'crescent_frames_total %d+\n')
  t.ok(metrics:find 'crescent_stage_seconds_total{stage="denoise"} %d')
end)

t.test('a killed server continues its jobs: once, then they fail', function()
  local first, second = server:begin { steps = 900 }, server:begin()
  server:wait(first, function(job) return (job.progress.step or 0) >= 1 end)
  local workers = children_of(server.pid)
  server:stop 'sigkill'
  t.ok(t.wait(function()
    for _, pid in ipairs(workers) do
      if lfs.attributes('/proc/' .. pid, 'mode') then return false end
    end
    return true
  end), 'its workers die with it')
  server = service.start({}, { data = server.data })
  local job = server:wait(first, function(job) return (job.progress.step or 0) >= 1 end)
  t.equal(job.attempts, 2)
  server:stop 'sigkill'
  server = service.start({}, { data = server.data })
  job = server:wait(first)
  t.equal(job.state, 'failed')
  t.ok(job.error.detail:find 'not tried again', job.error.detail)
  t.equal(server:wait(second).state, 'done')
  t.equal(#names_in(server.data .. '/work'), 0)
end)

t.test('an orderly shutdown does not count as an attempt', function()
  local id = server:begin { steps = 900 }
  server:wait(id, function(job) return (job.progress.step or 0) >= 1 end)
  local other = service.start({}, { data = server.data, fails = true })
  t.equal(other.code, 1)
  t.ok(other:said():find 'is in use by another server: choose another %-%-data', other:said())
  server:stop()
  t.equal(server.code, 0, server:said())
  local lines = {} -- after the address, the log: what happened to this job, and how many jobs wait for the next server
  for line in server:said():gmatch '{[^\n]*}' do
    local entry = require 'cr.json'.decode(line)
    if entry.job == id or entry.event == 'ended' then lines[#lines + 1] = entry.event .. (entry.waiting and ' ' .. entry.waiting or '') end
  end
  t.equal(table.concat(lines, ', '), 'accepted, begun, ended 1')
  server = service.start({}, { data = server.data })
  t.equal(server:wait(id, function(job) return (job.progress.step or 0) >= 1 end).attempts, 1)
  server:ask('POST', '/v1/jobs/' .. id .. '/cancel')
  server:wait(id)
end)

t.test('the people in a video, with portraits', function()
  t.face_models()
  server:request()
  local answer = server:ask('POST', '/v1/files/' .. server.demo_video .. '/faces', { json = { duration = 0.4 } })
  t.equal(answer.status, 201, answer.body)
  local job = server:wait(answer.json.id)
  t.equal(job.state, 'done', job.error and job.error.detail)
  t.equal(#job.people, 1)
  local one = job.people[1]
  t.equal(one.number .. ' ' .. one.first .. ' ' .. one.last .. ' ' .. one.share, '1 0 0.4 1')
  t.ok(#one.box == 4 and one.box[3] > 50 and one.box[3] < 400, 'a box as x, y, width, height')
  local picture = server:ask('GET', '/v1/jobs/' .. job.id .. '/people/1')
  t.equal(picture.headers['content-type'] .. picture.body:sub(2, 4), 'image/pngPNG')
  t.equal(server:ask('GET', '/v1/jobs/' .. job.id .. '/people/2').status, 404)
  job = server:wait(server:ask('POST', '/v1/files/' .. server.demo_video .. '/faces', { json = { start = 1000 } }).json.id)
  t.equal(job.error and job.error.status, 422, 'behind the end')
  t.equal(job.error and job.error.detail, 'demo.mp4: there is no frame 25000: the video has 125')
  problem_of(server:ask('POST', '/v1/files/' .. server.demo_sound .. '/faces', { json = {} }), 422, 'no picture')
end)

t.test('the API examples of scripts/README.md', function()
  if child.run({ '-c', 'command -v curl' }, { program = '/bin/sh' }).code ~= 0 then t.skip 'curl is missing' end
  local ids, names, count = {}, { 'VIDEO', 'AUDIO', 'JOB' }, 0
  child.file('face.mp4', io.open(service.video, 'rb'):read '*a')
  clip.voice('voice.wav', 0.2)
  local page = io.open(cr.root .. '/scripts/README.md'):read '*a'
  for line in page:gmatch '\n    (curl [^\n]*)' do
    count = count + 1
    local command = line:gsub('%s+# .*$', ''):gsub('%u%u%u+', ids):gsub('"seed": 7', '"steps": 3')
    local r = child.run({ '-c', command:gsub('^curl', 'curl -sS --fail-with-body') }, { program = '/bin/sh', cwd = child.folder,
      env = { at = 'http://127.0.0.1:' .. server.port } })
    t.equal(r.code, 0, command .. ': ' .. r.out .. r.err)
    local id = r.out:match '^{.*"id":"(%w+)"'
    if id and names[count] then ids[names[count]] = id end
  end
  t.ok(count >= 5 and ids.JOB, count .. ' commands')
  t.equal(media.probe(child.folder .. '/out.mp4').frames, 5)
end)

t.test("the server's description", function()
  local document = server:ask('GET', '/openapi.json').json
  t.equal(document.openapi, '3.1.0')
  local ids = {}
  for _, path in pairs(document.paths) do
    for _, operation in pairs(path) do ids[operation.operationId] = operation end
  end
  for _, id in ipairs { 'uploadFile', 'putFile', 'createJob', 'listJobs', 'getJob', 'cancelJob', 'deleteJob', 'jobEvents', 'jobResult',
    'jobReport', 'jobPreview', 'findFaces', 'personPicture', 'settings', 'presets', 'system', 'healthz', 'readyz', 'metrics' } do
    t.ok(ids[id], id)
  end
  local rows = server:ask('GET', '/v1/settings').json.kinds
  t.ok(#rows.lipsync > 15 and #rows.upscale > 3)
  t.equal(rows.lipsync[1].name .. rows.lipsync[1].group, 'stepssimple')
  local preset = server:ask('GET', '/v1/presets').json.presets[1]
  local job = server:wait(server:begin({ steps = 3 }, { preset = preset.name }))
  t.equal(job.state, 'done', job.error and job.error.detail)
  local report = server:ask('GET', '/v1/jobs/' .. job.id .. '/report').json
  t.equal(report.settings.steps, 3, 'what is set wins')
  t.equal(report.settings.scheduler, preset.settings.scheduler)
  local system = server:ask('GET', '/v1/system').json
  t.equal(system.version .. ' ' .. system.devices[1].name .. ' ' .. system.checkpoint.size, cr.version .. ' cpu 64')
  t.equal(system.token_required, false)
  server:stop()
end)

t.test('a token is required, and without one other machines are refused', function()
  server = service.start({}, { token = 'secret-1' })
  t.equal(server:ask('GET', '/v1/jobs', { token = false }).status, 401)
  t.equal(server:ask('GET', '/v1/jobs', { token = 'secret-2' }).status, 401)
  t.equal(server:ask('GET', '/metrics', { token = false }).status, 401)
  t.equal(server:ask('GET', '/v1/jobs').status, 200)
  t.equal(server:ask('GET', '/v1/jobs', { token = false, headers = { Cookie = 'crescent_token=secret-1' } }).status, 200)
  t.equal(server:ask('GET', '/healthz', { token = false }).status, 200)
  t.ok(not io.open('/proc/' .. server.pid .. '/cmdline'):read '*a':find 'secret')
  server:stop()
  local function refused(pattern, ...)
    local r = child.run { 'serve', '--checkpoint', service.checkpoint, '--data', child.folder .. '/none', '--port', '0', ... }
    t.equal(r.code, 1, r.err)
    t.ok(r.err:find(pattern) and r.lines == 1, r.err)
  end
  refused('%-%-host: other machines can reach 0.0.0.0', '--host', '0.0.0.0')
  refused('a token consists of', '--token', 'a b')
  refused('%-%-key is missing', '--cert', service.sound)
  refused('%-%-device cpu,cpu: ', '--device', 'cpu,cpu')
  refused('/nowhere is not a folder', '--checkpoint', '/nowhere')
  t.ok(not lfs.attributes(child.folder .. '/none'), 'nothing was made')
end)

t.test('files by URL: only from allowed hosts', function()
  local made = child.run({ 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=localhost', '-addext',
    'subjectAltName=DNS:localhost', '-keyout', child.folder .. '/key.pem', '-out', child.folder .. '/cert.pem' }, { program = 'openssl' })
  if made.code ~= 0 then t.skip('openssl makes no certificate: ' .. made.err) end
  local asked = {}
  local web = require 'cr.serve.http'.listen {
    port = 0, cert = child.folder .. '/cert.pem', key = child.folder .. '/key.pem',
    handler = function(request, response)
      asked[#asked + 1] = request.path
      if request.path == '/film.mp4' then return response:file(service.video) end
      if request.path == '/voice' then return response:send(302, { Location = '/voice.flac' }) end
      if request.path == '/voice.flac' then return response:file(service.sound) end
      if request.path == '/away' then return response:send(302, { Location = 'https://127.0.0.1:1/secret' }) end
      if request.path == '/text' then return response:send(200, {}, 'no film') end
      response:start(200)
      for _ = 1, 1000 do
        response:write(('\0'):rep(65536))
        cr.sleep(0.005)
      end
    end,
  }
  local at = ('https://localhost:%d'):format(web.port)
  server = service.start({ '--allow-urls', 'localhost:' .. web.port, '--max-upload', '1' },
    { env = 'SSL_CERT_FILE=' .. child.folder .. '/cert.pem' })
  local function ask(video, audio)
    return server:ask('POST', '/v1/jobs', { json = { video = video, audio = audio, settings = service.short } })
  end
  problem_of(ask('https://elsewhere.example/a.mp4', at .. '/voice'), 422, 'video: this server does not fetch files from elsewhere.example')
  problem_of(ask('http://localhost/a.mp4', at .. '/voice'), 422, 'only https')
  problem_of(ask('file:///etc/passwd', at .. '/voice'), 422, 'only https')
  problem_of(ask('https://me@localhost/a.mp4', at .. '/voice'), 422, 'not fetched')
  t.equal(#asked, 0)
  local answer = ask(at .. '/film.mp4?signature=x', at .. '/voice')
  t.equal(answer.status, 201, answer.body)
  local job = server:wait(answer.json.id)
  t.equal(job.state, 'done', job.error and job.error.detail)
  t.equal(job.video, at .. '/film.mp4?signature=x')
  t.ok(server:ask('GET', job.result.url).headers['content-disposition']:find 'film%-lipsync.mp4')
  local wrong = { ['/away'] = 'does not fetch files from 127.0.0.1:1', ['/text'] = 'not a video, sound or image', ['/endless'] = 'larger' }
  for path, sentence in pairs(wrong) do
    job = server:wait(ask(at .. path, at .. '/voice.flac').json.id)
    t.equal(job.state, 'failed', path)
    t.ok(job.error.detail:find(sentence), path .. ': ' .. job.error.detail)
  end
  t.equal(#names_in(server.data .. '/incoming'), 0)
  server:stop()
  web:close()
end)

if os.getenv 'CR_SLOW' == '1' then
  t.test('what a server bears: tests/bench/serve.lua', function()
    local args = { cr.root .. '/tests/bench/serve.lua' }
    local st = child.run({ '-c', 'command -v st' }, { program = '/bin/sh' }).out:match '%S+'
    if st then args[2], args[3] = '--st', st end
    local r = child.run(args)
    t.equal(r.code, 0, r.out .. r.err)
  end)
end

child.clean()
t.done()
