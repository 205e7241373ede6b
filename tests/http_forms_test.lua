--- The HTTP server's larger features: multipart uploads, files, WebSockets, TLS.

local t = require 'tests.support.tap'
local child = require 'tests.support.child'
local cr = require 'cr'
local scratch = require 'tests.support.scratch'
local support = require 'tests.support.http'

local HOST, http, test, serve, raw, connect = support.HOST, support.http, support.test, support.serve, support.raw, support.connect

local function status(answer) return tonumber(answer:match '^HTTP/1.1 (%d+) ') end
local function body(answer) return answer:match '\r\n\r\n(.*)$' end

local function curl(...) return child.run({ '-s', '--max-time', '60', ... }, { program = '/usr/bin/curl' }) end
local function address(server, path) return ('http://127.0.0.1:%d%s'):format(server.port, path) end

-- ---- multipart ----------------------------------------------------------------------------------

-- The parts of a body that is read in pieces of a given size; or the error.
local function parts_of(text, step, kind)
  local at = 1
  local request = { headers = { ['content-type'] = kind or 'multipart/form-data; boundary=XX' } }
  function request.read()
    if at > #text then return nil end
    at = at + step
    return text:sub(at - step, at - 1)
  end
  local list = {}
  local ok, err = pcall(function()
    for part in require 'cr.serve.multipart'.parts(request) do
      local pieces = {}
      for piece in part.read do pieces[#pieces + 1] = piece end
      list[#list + 1] = ('%s/%s=%s'):format(part.name, part.filename or '', table.concat(pieces))
    end
  end)
  return ok and table.concat(list, '|') or tostring(err)
end

local function part(text, name, more)
  return ('--XX\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'):format(name, more or '', text)
end

test('parts are separated correctly for every chunking', function()
  local text = 'before\r\n' .. part('a\r\n--XXy\r\n-', 'one') ..
    '--XX \t\r\nContent-Type: a/b\r\ncontent-disposition:form-data;name=two\r\n\r\n\r\n' ..
    part('\r\n', 'three', '; filename="a\\"b%22.mp4"') .. part('', 'four', "; filename*=UTF-8''%c3%bc") .. '--XX--\r\nafter --XX'
  for step = 1, #text do
    t.equal(parts_of(text, step), 'one/=a\r\n--XXy\r\n-|two/=|three/a"b".mp4=\r\n|four/ü=', 'pieces of ' .. step)
  end
  t.equal(parts_of(part('x', 'a'):gsub('XX', 'a b') .. '--a b--', 7, 'Multipart/Form-Data; charset=x; boundary="a b"'), 'a/=x')
  t.equal(parts_of('--XX--', 3), '')
end)

test('bodies that are not multipart are refused', function()
  for text, why in pairs {
    [''] = 'ends inside', ['--XX'] = 'ends inside', ['--XX\r\n'] = 'ends inside', [part('x', 'a')] = 'ends inside',
    ['--XX\r\n\r\nx\r\n--XX--'] = 'no name', ['--XX\r\nA b\r\n\r\nx\r\n--XX--'] = 'not a header',
    ['--XX\r\nA: ' .. ('b'):rep(20000) .. '\r\n\r\n'] = 'too long', ['--XX\r\n' .. ('b'):rep(20000)] = 'too long',
    ['--XX\r\nContent-Disposition: form-data; name="a\r\n\r\nx\r\n--XX--'] = 'has no end',
    [part('', 'a'):rep(1001) .. '--XX--'] = 'more than 1000',
    ['--XX\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--XX--'] = 'no name',
  } do
    for _, step in ipairs { 1000, #text + 1 } do
      t.ok(parts_of(text, step):find(why), ('%q: %s'):format(text:sub(1, 60), parts_of(text, step)))
    end
  end
  t.ok(parts_of('', 1, 'application/json'):find 'must be multipart/form%-data')
  t.ok(parts_of('', 1, 'multipart/form-data'):find 'must be multipart/form%-data')
  t.ok(parts_of('', 1, 'multipart/form-data; boundary="' .. ('x'):rep(71) .. '"'):find 'boundary')
end)

test('damaged parts are read or refused, independent of the chunking', function()
  local seed = part('hello', 'one') .. part('\r\n\r\n--XX', 'two', '; filename="x"') .. '--XX--\r\n'
  local pieces = { '\r\n', '--XX', '--XX--', '"', '\0', '\\', ';', '%', 'name', '\r', '-', ':' }
  math.randomseed(tonumber(os.getenv 'CR_SEED') or 22)
  for _ = 1, tonumber(os.getenv 'CR_FUZZ') or 1000 do
    local text = seed
    for _ = 1, math.random(4) do
      local at = math.random(0, #text)
      text = text:sub(1, at) .. (math.random(2) == 1 and pieces[math.random(#pieces)] or '') .. text:sub(at + 1 + math.random(0, 3))
    end
    local whole = parts_of(text, #text + 1)
    t.equal(parts_of(text, math.random(1, 40)), whole, ('%q'):format(text))
    t.ok(whole:find '^multipart: ' or not whole:find '%.lua:', whole)
  end
end)

test('an upload arrives unchanged', function()
  local sum
  local server = serve(function(request, response)
    local names = {}
    for one in request:multipart() do
      names[#names + 1] = one.name .. '=' .. tostring(one.filename)
      if one.name == 'file' then
        local path = scratch.path 'got'
        local file = io.open(path, 'wb')
        for piece in one.read do file:write(piece) end
        file:close()
        sum = path
      end
    end
    response:send(201, {}, table.concat(names, ' '))
  end, { body = 2 ^ 30 })
  local bytes = {}
  math.randomseed(1)
  for i = 1, 40 do bytes[i] = ('\r\n--' .. string.char(math.random(0, 255), math.random(0, 255))):rep(20000 + i) end
  local path = scratch.write('sent', table.concat(bytes))
  for _, expect in ipairs { 'Expect:', 'Expect: 100-continue' } do
    local r = curl('-H', expect, '-F', 'note=hello', '-F', 'file=@' .. path .. ';filename="a;b.mp4"', '-F', 'skipped=@' .. path,
      address(server, '/'))
    t.equal(r.out, 'note=nil file=a;b.mp4 skipped=sent')
    t.ok(scratch.read(sum) == scratch.read(path), 'other bytes')
  end
  server:close()
end)

-- ---- files --------------------------------------------------------------------------------------

test('files are sent completely, in ranges, or not (304)', function()
  local text = {}
  for i = 1, 100000 do text[i] = ('%06d\n'):format(i) end
  text = table.concat(text)
  local path = scratch.write('film.mp4', text)
  local server = serve(function(request, response)
    if request.path == '/none' then return response:file(path .. '.none') end
    if request.path == '/folder' then return response:file(scratch.folder) end
    if request.path == '/empty' then return response:file(scratch.write('empty', '')) end
    response:file(path, { type = 'video/mp4', name = 'ü "x".mp4', download = request.query.download == '1' })
  end)
  local function get(target, headers, method)
    return raw(server, ('%s %s HTTP/1.1\r\n%s%s\r\n'):format(method or 'GET', target, HOST, headers or ''))
  end
  local answer = get '/'
  t.ok(body(answer) == text, 'the whole')
  local tag, changed = answer:match 'ETag: (%b"")', answer:match 'Last%-Modified: ([^\r]*)'
  t.ok(answer:find 'Content%-Type: video/mp4' and answer:find 'Accept%-Ranges: bytes' and answer:find 'nosniff', answer:sub(1, 500))
  t.ok(answer:find("inline; filename=\"__ _x_.mp4\"; filename*=UTF-8''%C3%BC%20%22x%22.mp4", 1, true), answer:sub(1, 500))
  t.ok(get '/?download=1':find 'attachment')
  answer = get('/', '', 'HEAD')
  t.equal(body(answer), '')
  t.ok(answer:find('Content-Length: ' .. #text, 1, true), answer)
  for range, part_of in pairs {
    ['0-0'] = { 0, 0 }, ['10-19'] = { 10, 19 }, ['699990-'] = { 699990, 699999 }, ['-5'] = { 699995, 699999 }, ['-9999999'] = { 0, 699999 },
    ['699999-9999999999'] = { 699999, 699999 },
  } do
    answer = get('/', 'Range: bytes=' .. range .. '\r\n')
    t.equal(status(answer), 206, range)
    t.ok(answer:find(('Content-Range: bytes %d-%d/%d\r\n'):format(part_of[1], part_of[2], #text), 1, true), answer:sub(1, 400))
    t.ok(body(answer) == text:sub(part_of[1] + 1, part_of[2] + 1), range)
  end
  for _, range in ipairs { '700000-', '-0', '800000-900000' } do
    answer = get('/', 'Range: bytes=' .. range .. '\r\n')
    t.equal(status(answer), 416, range)
    t.ok(answer:find('Content-Range: bytes */700000', 1, true), answer)
  end
  for _, range in ipairs { '5-4', '-', 'a-b', '0-1,5-6', '1', '0-1x' } do
    t.equal(status(get('/', 'Range: bytes=' .. range .. '\r\n')), 200, range)
  end
  t.equal(status(get('/', 'Range: lines=1-2\r\n')), 200)
  local range = 'Range: bytes=1-2\r\n'
  t.equal(status(get('/', range .. 'If-Range: ' .. tag .. '\r\n')), 206)
  t.equal(status(get('/', range .. 'If-Range: ' .. changed .. '\r\n')), 206)
  t.equal(status(get('/', range .. 'If-Range: "other"\r\n')), 200)
  for headers, expected in pairs { ['If-None-Match: ' .. tag] = 304, ['If-None-Match: "a", W/' .. tag] = 304, ['If-None-Match: *'] = 304,
    ['If-None-Match: "a"'] = 200, ['If-Modified-Since: ' .. changed] = 304, ['If-None-Match: "a"\r\nIf-Modified-Since: ' .. changed] = 200,
    ['If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT'] = 200 } do
    answer = get('/', headers .. '\r\n')
    t.equal(status(answer), expected, headers)
    if expected == 304 then t.equal(body(answer), '') end
  end
  t.equal(status(get '/none'), 404)
  t.equal(status(get '/folder'), 404)
  t.equal(body(get '/empty'), '')
  t.equal(status(get('/empty', range)), 416)
  -- The same with another program.
  local part_path = scratch.write('part', text:sub(1, 123456))
  curl('-C', '-', '-o', part_path, address(server, '/'))
  t.ok(scratch.read(part_path) == text, 'curl goes on with half a file')
  t.equal(#server.reports, 0, server.reports[1])
  server:close()
end)

test('a file that is truncated while it is sent ends the connection', function()
  local path = scratch.write('shrinking', ('x'):rep(2 ^ 25))
  local server = serve(function(_, response) response:file(path) end)
  local client = connect(server)
  client.tcp:read_stop()
  client:send('GET / HTTP/1.1\r\n' .. HOST .. '\r\nGET / HTTP/1.1\r\n' .. HOST .. '\r\n')
  scratch.write('shrinking', 'x')
  client:listen()
  local answer = client:take()
  t.ok(#answer < 2 ^ 25 and not answer:find '.HTTP/1.1', #answer .. ' bytes')
  t.ok(server.reports[1]:find 'became shorter', server.reports[1])
  server:close()
end)

-- ---- WebSockets ---------------------------------------------------------------------------------

local frame, websocket = support.frame, support.websocket
local function closing(code, reason) return frame(8, string.char(math.floor(code / 256), code % 256) .. (reason or '')) end
local function code_of(data) return #data >= 2 and data:byte(1) * 256 + data:byte(2) or nil end

-- Echoes messages, and records how the socket ended.
local function echo_server(limits, options)
  local server
  server = serve(function(request)
    local ws = request:websocket(options or { max = 100000 })
    for data, kind in ws.read, ws do ws:write(data, kind) end
    server.code, server.reason, server.ended = ws.code, ws.reason, true
  end, limits)
  return server
end

test('messages go both ways, complete or fragmented', function()
  local server = echo_server()
  local client = websocket(server)
  t.equal(status(client.answer), 101)
  t.ok(client.answer:find('Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=', 1, true), client.answer)
  for _, size in ipairs { 0, 1, 125, 126, 65535, 65536, 100000 } do
    client.tcp:write(frame(2, ('x'):rep(size)))
    local kind, data = client:frame()
    t.equal(kind, 2)
    t.ok(data == ('x'):rep(size), size .. ' bytes')
  end
  client:send(frame(1, 'gr', { more = true }), frame(9, 'ping'), frame(0, '\195', { more = true }), frame(0, '\188'))
  local kind, data = client:frame()
  t.equal(kind .. data, '10ping')
  kind, data = client:frame()
  t.equal(kind .. data, '1grü')
  local many = {}
  for i = 1, 100 do many[i] = frame(1, tostring(i)) end
  client:send(table.concat(many))
  for i = 1, 100 do t.equal(select(2, client:frame()), tostring(i)) end
  client:send(closing(4000, 'bye'))
  kind, data = client:frame()
  t.equal(kind, 8)
  t.equal(code_of(data), 4000)
  t.equal(client:frame(), nil)
  t.equal(server.code .. server.reason, '4000bye')
  client:close()
  server:close()
  t.equal(#server.reports, 0, server.reports[1])
end)

test('protocol violations close the WebSocket with their code', function()
  local server = echo_server()
  for what, case in pairs {
    ['too large'] = { 1009, frame(2, ('x'):rep(100001)) },
    ['says that it is too large'] = { 1009, frame(2, 'x', { length = 2 ^ 31 }) },
    ['too large in pieces'] = { 1009, frame(2, ('x'):rep(60000), { more = true }) .. frame(0, ('x'):rep(60000)) },
    ['not masked'] = { 1002, frame(2, 'x', { plain = true }) }, ['no UTF-8'] = { 1007, frame(1, '\255') },
    ['an unknown kind'] = { 1002, frame(3, 'x') },
    ['a piece of nothing'] = { 1002, frame(0, 'x') }, ['a ping in pieces'] = { nil, frame(9, 'x', { more = true }) },
    ['a long ping'] = { nil, frame(9, ('x'):rep(126)) }, ['a reserved code'] = { 1002, closing(1005) },
    ['half a code'] = { nil, frame(8, 'x') },
  } do
    local client = websocket(server)
    server.ended = false
    client.tcp:write(case[2])
    local kind, data = client:frame()
    t.equal(kind, 8, what)
    if kind == 8 then t.equal(code_of(data), case[1], what) end
    client:close()
    t.wait(function() return server.ended end)
  end
  -- Endless empty fragments take no memory.
  local client = websocket(server)
  client.tcp:write(frame(2, 'x', { more = true }) .. frame(0, '', { more = true }):rep(200000) .. frame(0, 'y'))
  t.equal(select(2, client:frame()), 'xy')
  client:close()
  server:close()
  t.equal(#server.reports, 0, server.reports[1])
end)

test('a request that is not a WebSocket upgrade is refused', function()
  local server = echo_server()
  for _, case in ipairs {
    { 426, support.UPGRADE:gsub('Upgrade: websocket\r\n', '') }, { 426, support.UPGRADE:gsub('Connection: [^\r]*\r\n', '') },
    { 426, support.UPGRADE:gsub('Version: 13', 'Version: 8') }, { 400, support.UPGRADE:gsub('dGhl', 'x') },
    { 400, support.UPGRADE:gsub('^GET', 'PUT') },
    { 400, support.UPGRADE:gsub('Host', 'Content-Length: 1\r\nHost') .. 'x' }, { 426, 'GET / HTTP/1.1\r\nHost: x\r\n\r\n' },
  } do
    local answer = raw(server, case[2])
    t.equal(status(answer), case[1], case[2])
    if case[1] == 426 then t.ok(answer:find 'Sec%-WebSocket%-Version: 13', answer) end
  end
  server:close()
end)

test('a client that disconnects or does not answer pings ends the WebSocket', function()
  local server = echo_server { idle = 1 }
  for _, how in ipairs { 'close', 'reset' } do
    server.ended = false
    local client = websocket(server)
    client[how](client)
    t.wait(function() return server.ended end)
    t.equal(server.code, nil)
  end
  server.ended = false
  local client = websocket(server)
  t.equal(client:frame(), 9)
  client:send(frame(10, ''))
  t.equal(client:frame(), 9)
  t.equal(server.ended, false, 'it was closed though the client answered')
  t.wait(function() return server.ended end)
  server:close()
  t.equal(#server.reports, 0, server.reports[1])
end)

test('messages to a slow client are delayed, or dropped', function()
  local refused, why, done = 0, nil, false
  local server = serve(function(request)
    local ws = request:websocket { pending = 2 ^ 18 }
    local piece = ('x'):rep(2 ^ 16)
    for _ = 1, 1000 do
      if not ws:try_write(piece) then refused = refused + 1 end
    end
    why = select(2, pcall(function() while true do ws:write(piece, 'text') end end))
    t.equal(ws.closed, true)
    t.equal(ws:try_write 'x', false)
    done = true
  end, { idle = 0.5 })
  local client = websocket(server)
  client.tcp:read_stop()
  t.wait(function() return done end)
 -- the system's socket buffers take a few of the 62 MB
  t.ok(refused > 500, refused .. ' were left out')
  t.equal(why, http.GONE)
  server:close()
end)

test('a closing server sends a close frame', function()
  local server = echo_server()
  local client = websocket(server)
  cr.go(function()
    local kind, data = client:frame()
    client.code = kind == 8 and code_of(data)
    client:send(closing(1001))
  end)
  server:close()
  t.equal(client.code, 1001)
  t.equal(server.count, 0)
end)

test('a client that floods an unread WebSocket leaves no memory in use', function()
  local loop = require 'cr.loop'
  local before = loop.count()
  local server = serve(function(request) request:websocket():close() end)
  local client, many = websocket(server), frame(2, ('x'):rep(1000)):rep(1000)
  while not client.ended do
    client.tcp:write(many)
    cr.sleep(0.01)
  end
  client:close()
  server:close()
  t.wait(function() return loop.count() == before end)
  t.equal(loop.count(), before)
end)

test('a handler that fails closes the WebSocket with 1011', function()
  local server = serve(function(request)
    request:websocket():read()
    error 'oops'
  end)
  local client = websocket(server)
  client:send(frame(1, 'x'))
  local kind, data = client:frame()
  t.equal(kind == 8 and code_of(data), 1011)
  client:close()
  server:close()
  t.ok(#server.reports == 1 and server.reports[1]:find 'oops', server.reports[1])
end)

-- ---- TLS ----------------------------------------------------------------------------------------

test('TLS: a file is transferred, plain connections are refused', function()
  local key, cert = scratch.path 'key.pem', scratch.path 'cert.pem'
  local made, code = scratch.command(("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost " ..
    "-addext subjectAltName=DNS:localhost -keyout %s -out %s"):format(key, cert))
  if code ~= 0 then t.skip('openssl makes no certificate: ' .. made) end
  local bytes = ('0123456789\n'):rep(300000)
  local path = scratch.write('large', bytes)
  local server = serve(function(request, response)
    if request.method == 'PUT' then return response:send(200, {}, tostring(#request:text())) end
    t.equal(request.secure, true)
    response:file(path)
  end, { body = 2 ^ 24 }, { cert = cert, key = key })
  local at = ('https://localhost:%d/'):format(server.port)
  local secure = { '--cacert', cert, '--resolve', ('localhost:%d:127.0.0.1'):format(server.port) }
  local r = curl(secure[1], secure[2], secure[3], secure[4], at, at)
  t.ok(r.out == bytes .. bytes, r.code .. ': ' .. #r.out .. ' bytes')
  r = curl(secure[1], secure[2], secure[3], secure[4], '-T', path, at)
  t.equal(r.out, tostring(#bytes))
  t.ok(not raw(server, 'GET / HTTP/1.1\r\n' .. HOST .. '\r\n'):find 'HTTP/1', 'plain text is answered')
  t.equal(raw(server, ''), '')
  server:close()
  t.equal(#server.reports, 0, server.reports[1])
  local function listen(more) return function() serve(print, nil, more) end end
  t.raises(listen { cert = cert }, 'needs both cert and key')
  t.raises(listen { cert = cert .. 'x', key = key }, '^tls: .*cert.pemx: No such file')
  t.raises(listen { cert = cert, key = cert }, '^tls: .*cert.pem: ')
  local other = scratch.path 'other.pem'
  scratch.command('openssl genpkey -algorithm ed25519 -out ' .. other)
  t.raises(listen { cert = cert, key = other }, '^tls: .*other.pem: ')
  scratch.command(('openssl ec -aes128 -passout pass:x -in %s -out %s'):format(key, other))
  t.raises(listen { cert = cert, key = other }, '^tls: .*other.pem: ')
end)

t.done()
