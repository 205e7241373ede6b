--- Live sessions of `crescent serve` over a WebSocket, from a client's view (scripts/README.md, "Live").

local t = require 'tests.support.tap'
local child = require 'tests.support.child'
local cjson = require 'cjson'
local clip = require 'tests.support.clip'
local cr = require 'cr'
local http = require 'tests.support.http'
local lfs = require 'lfs'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local service = require 'tests.support.service'

clip.needs_whisper(t, 'live sessions')

-- Settings of a cheap session: a fifth of a second of clip, one step, two mouths per window of twelve frames.
local CHEAP = { duration = 0.2, steps = 1, every = 12, frames_per_window = 2, silence = 'model' }

local server

-- A client with an open WebSocket; `messages` collects what arrives: tables, and videos as strings.
local function connect()
  local socket = http.connect(server)
  socket:send((http.UPGRADE:gsub('^GET / ', 'GET /v1/live '):gsub('Host: x', 'Host: 127.0.0.1:' .. server.port)))
  t.ok(socket:take '\r\n\r\n':find '^HTTP/1.1 101', 'the WebSocket is open')
  return socket
end

local function say(socket, message) socket.tcp:write(http.frame(1, cjson.encode(message))) end

-- The next message for which `wanted` returns true: its kind of frame and content. Video that arrives is appended to
-- `video`.
local function await(socket, video, wanted)
  while true do
    local kind, data = socket:frame()
    if not kind then return nil end
    if kind == 2 and video then video[#video + 1] = data end
    local message = kind == 1 and cjson.decode(data) or nil
    if kind == 8 then message = { type = 'close', code = data:byte(1) * 256 + data:byte(2), reason = data:sub(3) } end
    if message and (message.type == wanted or message.type == 'error' or message.type == 'close') then return message end
  end
end

local function start(socket, more)
  local message = { type = 'start', settings = CHEAP }
  for key, value in pairs(more or {}) do message[key] = value end
  say(socket, message)
end

local function hum(seconds, rate)
  local bytes = {}
  for i = 0, seconds * rate - 1 do bytes[#bytes + 1] = scratch.le(math.floor(9000 * math.sin(i * 800 / rate)) % 65536, 2) end
  return table.concat(bytes)
end

t.test('sound goes in, video comes out, and the end is announced', function()
  server = service.start { '--idle', service.video }
  cr.run(function()
    local socket, video = connect(), {}
    start(socket, { rate = 8000 })
    local ready = await(socket, video, 'ready')
    t.equal(ready.type, 'ready', ready.detail)
    t.equal(ready.width .. ' ' .. ready.height .. ' ' .. ready.frames_per_second, '400 400 25')
    t.ok(ready.mime:find '^video/mp4; codecs="avc1%.%x%x%x%x%x%x, mp4a%.40%.2"$', ready.mime)
    local sound = hum(0.5, 8000)
    socket.tcp:write(http.frame(2, sound:sub(1, 3000)))
    socket.tcp:write(http.frame(2, sound:sub(3001)))
    say(socket, { type = 'sound', rate = 16000 })
    socket.tcp:write(http.frame(2, hum(0.5, 16000)))
    say(socket, { type = 'end' })
    local ended = await(socket, video, 'ended')
    t.equal(ended.type, 'ended', ended.detail)
    t.ok(ended.metrics.frames >= 25 and ended.metrics.seconds.latency.n >= 25, 'a second of sound was shown')
    t.equal(await(socket, video, 'close').code, 1000)
    socket:close()
    local path = scratch.write('live.mp4', table.concat(video))
    local info = media.probe(path)
    t.equal(info.video_codec .. ' ' .. info.audio_codec, 'h264 aac')
    local heard = cr.scope(function() return media.load_audio(path, { rate = 16000, channels = 1 }):abs():max():item() end)
    t.ok(heard > 0.1, 'the sound is in it')
  end)
end)

t.test('a flush is answered, and waiting sound is dropped', function()
  cr.run(function()
    local socket = connect()
    start(socket)
    await(socket, nil, 'ready')
    socket.tcp:write(http.frame(2, hum(20, 8000))) -- 10 s at 16 kHz
    await(socket, nil, 'metrics')
    say(socket, { type = 'flush' })
    local flushed = await(socket, nil, 'flushed')
    t.equal(flushed.type, 'flushed', flushed.detail)
    t.ok(flushed.seconds >= 0)
    say(socket, { type = 'end' })
    local ended = await(socket, nil, 'ended')
    t.equal(ended.metrics.flushes, 1)
    t.ok(ended.metrics.seconds.latency == nil or ended.metrics.seconds.latency.n < 200, 'ten seconds were not shown')
    socket:close()
  end)
end)

t.test('errors have a sentence and a code, and the session is free again', function()
  cr.run(function()
    for _, case in ipairs {
      { function(socket) socket.tcp:write(http.frame(2, 'xx')) end, 'sound arrived before the message start' },
      { function(socket) socket.tcp:write(http.frame(1, 'hello')) end, 'a text message must be a JSON object' },
      { function(socket) say(socket, { type = 'sing' }) end, "there is no message of the type 'sing'" },
      { function(socket) say(socket, { type = 'flush' }) end, 'flush: the session has not begun' },
      { function(socket) start(socket, { settings = { checkpoint = '/etc' } }) end, "settings: .*checkpoint" },
      { function(socket) start(socket, { settings = { steps = 0 } }) end, 'steps: 0 is less than 1' },
      { function(socket) start(socket, { idle = '../../etc/passwd' }) end, 'there is no file' },
      { function(socket) start(socket, { speed = 2 }) end, "start: there is no field 'speed'" },
      { function(socket)
        start(socket)
        socket.tcp:write(http.frame(2, 'odd'))
      end, '3 bytes are not a whole number of samples' },
      { function(socket)
        start(socket)
        say(socket, { type = 'say', text = 'hello' })
      end, 'this server has no text to speech' },
    } do
      local socket = connect()
      case[1](socket)
      local message = await(socket, nil, 'nothing')
      t.equal(message.type, 'error', tostring(message.reason))
      t.ok((message.detail or ''):find(case[2]), tostring(message.detail))
      t.equal(await(socket, nil, 'close').code, 1008)
      socket:close()
    end
  end)
end)

t.test('a clip without a face ends the session with a sentence', function()
  cr.run(function()
    local path = scratch.path 'grey.mp4'
    local sink = media.writer(path, { width = 64, height = 64 })
    for _ = 1, 3 do cr.scope(function() sink:write(cr.full({ 64, 64, 3 }, 120, { dtype = 'u8' })) end) end
    sink:close()
    local id = server:upload(path)
    local socket = connect()
    start(socket, { idle = id })
    local message = await(socket, nil, 'ready')
    t.ok(message.type == 'error' and message.detail:find 'no face was found', message.detail)
    t.equal(await(socket, nil, 'close').code, 1011)
    socket:close()
  end)
end)

t.test('a client is refused while all sessions are in use; a disconnection frees one; metrics are reported', function()
  cr.run(function()
    local first = connect()
    start(first)
    await(first, nil, 'metrics')
    local second = connect()
    local message = await(second, nil, 'nothing')
    t.ok(message.detail:find 'all live sessions %(1%) are in use', message.detail)
    t.equal(await(second, nil, 'close').code, 1013)
    second:close()
    local text = server:ask('GET', '/metrics').body
    t.ok(text:find 'crescent_live_frames{session="1"} %d', 'frames')
    first:reset()
    t.wait(function() return not server:ask('GET', '/metrics').body:find 'crescent_live_frames{' end)
    local third = connect()
    start(third)
    t.equal(await(third, nil, 'ready').type, 'ready')
    third:close()
  end)
end)

t.test('sessions are shared out over the devices: those with fewest sessions, first those without a job', function()
  local process, opened, sockets = require 'cr.serve.process', {}, {}
  local spawn, spawned = process.spawn, 0
  process.spawn = function(_, o)
    spawned = spawned + 1
    local function send(_, message)
      if message.op == 'open' then opened[#opened + 1] = message.settings.device end
      if message.op == 'stop' then o.on_end 'was stopped' end
    end
    return { kill = function() end, send = send }
  end
  local ok, problem = pcall(cr.run, function()
    local lives = require 'models.latentsync.live.server'.open { settings = { checkpoint = 'x', idle = 'y' },
      devices = { 'a', 'b', 'c' }, busy = function(device) return device == 'a' end, sessions = 5 }
    local function begin()
      local first, closed = true, cr.channel()
      local socket = { try_write = function() return true end, close = function() closed:close() end, gone = closed }
      function socket.read()
        if not first then return closed:get() end
        first = false
        return '{"type":"start"}', 'text'
      end
      sockets[#sockets + 1] = socket
      socket.task = cr.go(lives.handle, lives, socket)
      cr.yield()
      cr.yield()
    end
    for _ = 1, 5 do begin() end
    t.equal(table.concat(opened, ' '), 'b c a b c')
    lives.figures = {} -- (nobody is asked to stop)
    for _, socket in ipairs(sockets) do
      socket.task:cancel()
      pcall(cr.await, socket.task)
    end
  end)
  process.spawn = spawn
  if not ok then error(problem, 0) end
  t.equal(spawned, 5)
end)

t.test('texts are spoken if the server has a text-to-speech program', function()
  local voice
  for folder in (os.getenv 'PATH' or ''):gmatch '[^:]+' do
    for _, name in ipairs { 'espeak-ng', 'flite' } do
      if lfs.attributes(folder .. '/' .. name, 'mode') then voice = voice or name end
    end
  end
  if not voice then t.skip 'neither espeak-ng nor flite is installed' end
  server:stop()
  server = service.start { '--idle', service.video, '--say', voice }
  cr.run(function()
    local socket, video = connect(), {}
    start(socket)
    await(socket, video, 'ready')
    say(socket, { type = 'say', text = "Good morning; `it's` $5." })
    say(socket, { type = 'end' })
    local ended = await(socket, video, 'ended')
    t.equal(ended.type, 'ended', ended.detail)
    t.ok(ended.metrics.seconds.latency.n > 20, 'a sentence was shown')
    socket:close()
  end)
end)

if server then server:stop() end
child.clean()
t.done()
