--- The HTTP server: what clients send, complete, damaged or slowly, and the answers.

local t = require 'tests.support.tap'
local cr = require 'cr'
local ffi = require 'ffi'
local support = require 'tests.support.http'

local HOST, http, test, serve, raw, connect = support.HOST, support.http, support.test, support.serve, support.raw, support.connect

local function get(path) return ('GET %s HTTP/1.1\r\n%s\r\n'):format(path, HOST) end
local function post(path, body) return ('POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s'):format(path, HOST, #body, body) end
local CHUNKED = 'POST /c HTTP/1.1\r\n' .. HOST .. 'Transfer-Encoding: chunked\r\n\r\n'

local function echo(request, response)
  response:send(200, {}, request.method .. ' ' .. request.path .. ' ' .. request:text())
end

-- The requests in a text, for a parser that gets it in pieces of a given size: heads, bodies, and the error.
local function parsed(text, step)
  local library = require 'cr.serve.library'
  local lib, parser, event = library.lib, library.new('cr_http', 1000), ffi.new 'cr_http_event'
  local list, at = {}, 0
  repeat
    local n = math.min(step, #text - at)
    local kind = lib.cr_http_read(parser, ffi.cast('const char *', text) + at, n, event)
    if kind == lib.CR_HTTP_HEAD then
      list[#list + 1] = ('\n%s %s %d\n'):format(ffi.string(event.head, event.bytes), tostring(event.length), event.keep_alive)
    elseif kind == lib.CR_HTTP_BODY then
      list[#list + 1] = text:sub(at + event.first + 1, at + event.first + event.bytes)
    elseif kind == lib.CR_HTTP_END then
      list[#list + 1] = '\nend\n'
    elseif kind < 0 then
      list[#list + 1] = ('\nfailed\n')
      break
    end
    at = at + event.used
  until kind == lib.CR_HTTP_MORE and at == #text
  return table.concat(list)
end

local function status(answer) return tonumber(answer:match '^HTTP/1.1 (%d+) ') end

-- ---- requests -----------------------------------------------------------------------------------

test('several requests over a connection, with every chunking', function()
  local server = serve(echo)
  local answer = raw(server, get '/a' .. post('/b', 'hello') .. CHUNKED .. '3\r\nabc\r\n0\r\n\r\n')
  t.ok(answer:find('GET /a .*POST /b hello.*POST /c abc$'), answer)
  local whole = CHUNKED .. '3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nTrailer: 1\r\n\r\n' .. post('/d', 'e')
  for at = 1, #whole - 1, 5 do
    answer = raw(server, whole:sub(1, at), whole:sub(at + 1))
    t.ok(answer:find('POST /c abcd.*POST /d e$'), ('cut after %d: %s'):format(at, answer))
  end
  server:close()
end)

test('the target is decoded, the headers are collected', function()
  local seen
  local server = serve(function(request, response)
    seen = request
    response:send(204)
  end)
  raw(server, 'GET http://y/a%20b/%c3%bc?x=1&y=a+b%26&x=2&z HTTP/1.1\r\nHost:x\r\nAccept: a\r\nACCEPT:  b \r\n\r\n')
  t.equal(seen.path, '/a b/ü')
  t.equal(seen.query.x .. '|' .. seen.query.y .. '|' .. seen.query.z, '2|a b&|')
  t.equal(seen.headers.accept .. '|' .. seen.headers.host, 'a, b|x')
  t.equal(seen.peer .. tostring(seen.secure), '127.0.0.1false')
  for _, target in ipairs { '/%ff', '/%c0%80', '/%ed%a0%80', '/%', '/%4', '/%g0', '/a?x=%00', '/a#b' } do
    t.equal(status(raw(server, get(target))), 400, target)
  end
  server:close()
end)

test('ambiguous requests (request smuggling) are refused', function()
  local called = 0
  local server = serve(function(_, response)
    called = called + 1
    response:send(200)
  end, { header = 4000 })
  local function case(expected, text)
    local answer = raw(server, text .. get '/smuggled')
    t.equal(status(answer), expected, text:sub(1, 200))
    t.ok(answer:find 'Connection: close', 'it goes on after: ' .. text:sub(1, 200))
    t.ok(not answer:find('.HTTP/1.1 %d'), 'two answers to: ' .. text:sub(1, 200))
  end
  local LENGTH, CODING = 'Content-Length: 5\r\n', 'Transfer-Encoding: chunked\r\n'
  for headers, expected in pairs {
    [LENGTH .. CODING] = 400, [CODING .. LENGTH] = 400, [LENGTH .. LENGTH] = 400, [LENGTH .. 'Content-Length: 6\r\n'] = 400,
    [CODING .. CODING] = 400, ['Transfer-Encoding: gzip, chunked\r\n'] = 501, ['Transfer-Encoding: chunked, identity\r\n'] = 400,
    ['Transfer-Encoding: xchunked\r\n'] = 501, ['Transfer-Encoding : chunked\r\n'] = 400, ['Transfer-Encoding:\r\n chunked\r\n'] = 400,
    ['Content-Length: +5\r\n'] = 400, ['Content-Length: 5,5\r\n'] = 400, ['Content-Length: 5a\r\n'] = 400, ['Content-Length:\r\n'] = 400,
    ['Content-Length: -1\r\n'] = 400, ['Content-Length: 9223372036854775808\r\n'] = 400, ['A: b\rTransfer-Encoding: chunked\r\n'] = 400,
    ['A: b\nC: d\r\n'] = 400, ['A: b\r\n c\r\n'] = 400, [' A: b\r\n'] = 400, ['A: b\0\r\n'] = 400, ['A\0: b\r\n'] = 400, [': b\r\n'] = 400,
    ['A b\r\n'] = 400, ['(A): b\r\n'] = 400, ['Host: y\r\n'] = 400, ['A: ' .. ('b'):rep(4000) .. '\r\n'] = 431, [('A:\r\n'):rep(201)] = 431,
  } do
    case(expected, 'POST / HTTP/1.1\r\n' .. HOST .. headers .. '\r\n0\r\n\r\n')
  end
  for text, expected in pairs {
    ['GET / HTTP/1.1\r\n\r\n'] = 400, ['GET / HTTP/2.0\r\n' .. HOST .. '\r\n'] = 505, ['GET /\r\n\r\n'] = 505,
    ['get / HTTP/1.1\r\n' .. HOST .. '\r\n'] = 400, ['GET /a b HTTP/1.1\r\n' .. HOST .. '\r\n'] = 400,
    ['CONNECT x:1 HTTP/1.1\r\n' .. HOST .. '\r\n'] = 501, ['SOURCE / ICE/1.0\r\n' .. HOST .. '\r\n'] = 501,
    ['PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'] = 505, ['\22\3\1\2\0\1\0\1\252\3\3'] = 400,
    ['GET /' .. ('a'):rep(4000) .. ' HTTP/1.1\r\n' .. HOST .. '\r\n'] = 431,
    [('\r\n'):rep(2001)] = 431,
    ['POST / HTTP/1.0\r\n' .. HOST .. CODING .. '\r\n0\r\n\r\n'] = 400,
  } do
    case(expected, text)
  end
  t.equal(called, 0, 'the handler was called')
  t.equal(#server.reports, 0, server.reports[1])
  server:close()
end)

test('invalid chunks are refused', function()
  local why = {}
  local server = serve(function(request, response)
    local ok, err = pcall(request.text, request)
    why[#why + 1] = not ok and err
    if not ok then error(err, 0) end
    response:send(200)
  end, { header = 4000 })
  for _, body in ipairs { '5\nhello\r\n0\r\n\r\n', '5\r\nhello0\r\n\r\n', '5 \r\nhello\r\n0\r\n\r\n', '0x5\r\nhello\r\n0\r\n\r\n',
    '-5\r\nhello\r\n0\r\n\r\n', '+5\r\nhello\r\n0\r\n\r\n', 'fffffffffffffffff\r\n', '5\r\nhello\rX0\r\n\r\n',
    '5;' .. ('x'):rep(4000) .. '\r\nhello\r\n0\r\n\r\n', '\r\n',
    '1\r\na\r\n0\r\n' .. ('A: b\r\n'):rep(1000) .. '\r\n', '5;a\nb\r\nhello\r\n0\r\n\r\n', '5\r\rhello\r\n0\r\n\r\n' } do
    local answer = raw(server, CHUNKED .. body .. get '/smuggled')
    t.equal(status(answer), 400, body:sub(1, 40))
    t.ok(not answer:find('.HTTP/1.1 %d'), 'two answers to ' .. body:sub(1, 40))
    t.equal(why[#why] and why[#why].status, 400)
  end
  server:close()
end)

test('a body is read only up to its limit, and the client gets the answer', function()
  local server = serve(function(request, response)
    if request.path == '/more' then request.limit = 100 end
    response:send(200, {}, request:text())
  end, { body = 10 })
  t.equal(status(raw(server, post('/', ('x'):rep(10)))), 200)
  local refused = raw(server, post('/', ('x'):rep(11)) .. get '/')
  t.equal(status(refused), 413)
  t.ok(not refused:find '.HTTP/1.1 %d', 'two answers: ' .. refused)
  t.equal(status(raw(server, CHUNKED .. '8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n')), 413)
  t.equal(status(raw(server, post('/more', ('x'):rep(100)))), 200)
  -- Much more than the system's buffers hold is in transit while the answer is sent.
  local client = connect(server)
  client:send(post('/', ('x'):rep(2 ^ 24)))
  local answer = client:finish():take()
  t.equal(status(answer), 413)
  t.ok(answer:find 'larger than the limit of 10 bytes', answer)
  t.equal(#server.reports, 0, server.reports[1])
  server:close()
end)

test('100 Continue is sent when the body is read', function()
  local server = serve(function(request, response)
    if request.path == '/refuse' then return response:send(403, {}, 'no') end
    response:send(200, {}, request:text())
  end)
  local head = 'POST %s HTTP/1.1\r\n' .. HOST .. 'Content-Length: 5\r\nExpect: 100-continue\r\n\r\n'
  local client = connect(server):send(head:format '/')
  t.equal(client:take '\r\n\r\n', 'HTTP/1.1 100 Continue\r\n\r\n')
  local answer = client:send('hello'):take 'hello$'
  t.equal(status(answer), 200)
  -- A refused body may arrive or not, so no other request can follow.
  answer = client:send(head:format '/refuse'):take()
  t.equal(status(answer), 403)
  t.ok(answer:find 'Connection: close', answer)
  server:close()
end)

-- ---- answers ------------------------------------------------------------------------------------

test('an error in a handler is answered with a problem, and the server continues', function()
  local server = serve(function(request, response)
    if request.path == '/raise' then error 'oops' end
    if request.path == '/problem' then http.problem(409, 'not now', { field = 'x' }) end
    if request.path == '/inject' then response:send(200, { A = 'b\r\nC: d' }) end
    if request.path == '/late' then
      response:start(200)
      response:write 'half'
      error 'oops'
    end
    if request.path ~= '/none' then response:send(200, {}, 'fine') end
  end)
  local answer = raw(server, get '/raise' .. get '/problem' .. get '/inject' .. get '/none' .. get '/')
  t.ok(answer:find('^HTTP/1.1 500 .*application/problem%+json.*HTTP/1.1 409 .*"field":"x".*HTTP/1.1 500 .*HTTP/1.1 500 .*fine$'), answer)
  t.ok(not answer:find 'oops' and not answer:find 'C: d', 'the error is told to the client')
  t.equal(#server.reports, 3)
  t.ok(server.reports[1]:find 'GET /raise: .*oops.*http_test', server.reports[1])
  answer = raw(server, get '/late' .. get '/')
  t.ok(answer:find '4\r\nhalf\r\n$', 'an answer that was begun does not look whole: ' .. answer)
  t.equal(raw(server, get '/'):match '[^\n]*$', 'fine')
  server:close()
end)

test('bodies are framed as the request allows', function()
  local server = serve(function(request, response)
    if request.path == '/empty' then return response:send(204) end
    if request.path == '/same' then return response:send(304, { ETag = '"a"' }) end
    response:start(200, request.query.length and { ['Content-Length'] = request.query.length } or nil)
    response:write 'one'
    response:write 'two'
    response:finish()
  end)
  local function body(text) return raw(server, text):match '\r\n\r\n(.*)$' end
  t.equal(body(get '/'), '3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n')
  t.equal(body(get '/?length=6'), 'onetwo')
  t.equal(body 'GET / HTTP/1.0\r\n\r\n', 'onetwo')
  t.equal(body('HEAD / HTTP/1.1\r\n' .. HOST .. '\r\n'), '')
  t.equal(body(get '/empty'), '')
  t.equal(body(get '/same'), '')
  t.ok(not raw(server, get '/empty'):find 'Content%-Length')
  t.ok(raw(server, 'GET /?length=6 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n'):find 'Connection: keep%-alive')
  -- After a wrong Content-Length, no further answer can follow.
  t.ok(not raw(server, get '/?length=7' .. get '/'):find('HTTP/1.1', 2, true))
  t.ok(not raw(server, get '/?length=5' .. get '/'):find('HTTP/1.1', 2, true))
  server:close()
end)

test('a client that does not read delays only its own answer, and is disconnected', function()
  local sent, why, done = 0, nil, cr.channel(1)
  local server = serve(function(request, response)
    if request.path == '/' then return response:send(200, {}, 'fine') end
    response:start(200)
    local piece = ('x'):rep(2 ^ 16)
    why = select(2, pcall(function()
      while true do
        response:write(piece)
        sent = sent + #piece
      end
    end))
    t.ok(response.closed)
    done:put(true)
    error(why, 0)
  end, { idle = 0.5 })
  local client = connect(server)
  client.tcp:read_stop()
  client:send(get '/endless')
  t.equal(raw(server, get '/'):match '[^\n]*$', 'fine')
  done:get()
  t.equal(why, http.GONE)
 -- capacity of the system's buffers
  t.ok(sent < 2 ^ 24, sent .. ' bytes were taken')
  t.equal(#server.reports, 0, server.reports[1])
  server:close()
end)

test('a handler that does not read delays its client', function()
  local go = cr.channel(1)
  local server = serve(function(request, response)
    go:get()
    local n = 0
    for piece in request.read, request do n = n + #piece end
    response:send(200, {}, tostring(n))
  end, { body = 2 ^ 30 })
  local client = connect(server)
  local size = 2 ^ 25
  client:send(post('/', ('x'):rep(size)))
  cr.sleep(0.2)
  local connection = next(server.connections)
  t.ok(connection.held < 2 ^ 19, connection.held .. ' bytes wait')
  t.ok(client.tcp:get_write_queue_size() > 0, 'the client sent all of it')
  go:put(true)
  t.equal(client:take '\n%d+$':match '%d+$', tostring(size))
  server:close()
end)

test('tasks that write to one answer at the same time do not interleave', function()
  local server = serve(function(_, response)
    response:start(200)
    local function writer(letter)
      return function()
        for _ = 1, 20 do response:write(letter:rep(2 ^ 16)) end
      end
    end
    cr.all { writer 'a', writer 'b' }
    response:finish()
  end)
  local client = connect(server)
  client:send(get '/')
  local body, count = client:take '0\r\n\r\n$':match '^.-\r\n\r\n(.*)$', 0
  while not body:find '^0\r\n' do
    local letter = body:match '^10000\r\n(%a)'
    t.equal(body:sub(8, 7 + 2 ^ 16) == letter:rep(2 ^ 16), true, 'piece ' .. count)
    body, count = body:sub(10 + 2 ^ 16), count + 1
  end
  t.equal(count, 40)
  server:close()
end)

-- ---- clients that go, or wait -------------------------------------------------------------------

test('reading a truncated body raises an error, and leaves nothing', function()
  local why = {}
  local server = serve(function(request, response)
    local ok, err = pcall(request.text, request)
    why[#why + 1] = ok and 'whole' or err
    t.equal(pcall(request.read, request), false)
    response:send(200)
  end)
  for i = 1, 20 do
    local client = connect(server)
    client:send(i % 4 < 2 and post('/', ('x'):rep(1000)):sub(1, -1 - i) or CHUNKED .. '8\r\nabcd')
    if i % 2 == 0 then client:reset() else client:close() end
    t.wait(function() return #why == i end)
    t.ok(http.is_problem(why[i]) or why[i] == http.GONE, tostring(why[i]))
  end
  t.wait(function() return server.count == 0 end)
  t.equal(server.count, 0)
  server:close()
end)

test('slow clients get 408, silent ones are disconnected', function()
  local server = serve(echo, { idle = 0.4, request = 0.3 })
  t.equal(connect(server):take(), '')
  local client = connect(server):send 'GET / HT'
  t.equal(status(client:take()), 408)
  client:close()
  client = connect(server):send 'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc'
  t.equal(status(client:take()), 408)
  client:close()
  -- A byte from time to time counts as slow.
  client = connect(server)
  local count = 0
  while not client.ended and count < 1000 do
    client:send 'G'
    count = count + 1
  end
  t.ok(client.ended)
  client:close()
  -- After an answer, the server waits as long as before.
  client = connect(server):send(get '/')
  t.equal(status(client:take()), 200)
  t.wait(function() return server.count == 0 end)
  server:close(0)
end)

test('a handler is notified when its client disconnects', function()
  local told, begun, gone = cr.channel(2), cr.channel(2), nil
  local server = serve(function(request, response)
    response:start(200)
    response:on_close(function() gone = request.path end)
    begun:put(true)
    t.wait(function() return response.closed end)
    told:put(gone)
  end)
  for _, how in ipairs { 'close', 'reset' } do
    local client = connect(server):send(get('/' .. how))
    begun:get()
    client[how](client)
    t.equal(told:get(), '/' .. how)
  end
  server:close()
end)

test('an error in such a notification is reported', function()
  local server = serve(function(_, response)
    response:on_close(function() error 'oops' end)
    t.wait(function() return response.closed end)
    response:send(200)
  end)
  connect(server):send(get '/'):close()
  t.wait(function() return server.count == 0 end)
  t.ok(#server.reports == 1 and server.reports[1]:find 'on_close: .*oops', server.reports[1])
  server:close()
end)

test('above the connection limit, idle connections are closed, active ones stay', function()
  local go = cr.channel(0)
  local server = serve(function(_, response)
    go:get()
    response:send(200)
  end, { connections = 3 })
  local first = connect(server)
  local second, third = connect(server), connect(server)
  second:send(get '/')
  third:send(get '/')
  t.wait(function() return server.busy == 2 end)
  local fourth = connect(server):send(get '/')
  t.equal(first:take(), '', 'the one that waits is still there')
  t.wait(function() return server.busy == 3 end)
  t.equal(status(connect(server):take()), 503)
  for _, client in ipairs { second, third, fourth } do
    go:put(true)
    t.wait(function() return client.got ~= '' end)
    t.equal(status(client.got), 200)
  end
  server:close()
end)

test('closing waits for active requests, and disconnects those that do not end', function()
  local begun = cr.channel(2)
  local server = serve(function(request, response)
    response:start(200)
    begun:put(true)
    if request.path == '/ends' then cr.sleep(0.1) end
    while request.path ~= '/ends' do
      response:write 'x'
      cr.sleep(0.01)
    end
    response:finish()
  end)
  local idle, ends, endless = connect(server), connect(server):send(get '/ends'), connect(server):send(get '/endless')
  begun:get()
  begun:get()
  server:close(2)
  t.equal(server.count, 0)
  t.equal(idle:take(), '')
  t.ok(ends:take():find '0\r\n\r\n$', 'the one that ends was cut')
  t.ok(endless:take():find 'x\r\n$', 'the endless one ended')
  t.equal(#server.reports, 0, server.reports[1])
  local again = serve(echo, nil, { port = server.port })
  t.equal(again.port, server.port)
  again:close()
end)

test('a handler that continues after a disconnection gets GONE', function()
  local go, why = cr.channel(0), {}
  local server = serve(function(request, response)
    go:get()
    for i, try in ipairs { function() request:read() end, function() response:send(200) end } do why[i] = select(2, pcall(try)) end
    go:get()
  end)
  connect(server):send(post('/', 'hello'))
  t.wait(function() return server.busy == 1 end)
  server:close(0)
  go:put(true)
  go:put(true)
  t.equal(why[1], http.GONE)
  t.equal(why[2], http.GONE)
end)

test('a wrong address gives one sentence', function()
  local server = serve(echo)
  t.raises(function() serve(echo, nil, { port = server.port }) end, '^http: 127.0.0.1:%d+: EADDRINUSE')
  t.raises(function() serve(echo, nil, { host = '203.0.113.1' }) end, '^http: 203.0.113.1:0: EADDRNOTAVAIL')
  t.raises(function() serve(echo, nil, { host = 'nowhere.invalid' }) end, '^http: nowhere.invalid: there is no such host')
  t.raises(function() serve(echo, { size = 1 }) end, "there is no option 'size'")
  server:close()
  local named = serve(echo, nil, { host = 'localhost' })
  t.ok(named.port > 0)
  named:close()
end)

test('damaged requests are answered or closed, independent of the chunking', function()
  local server = serve(echo, { body = 1000, header = 2000, idle = 5, request = 5 })
  local seeds = { get '/a?b=c', post('/', 'hello'), (post('/', 'hello'):gsub('^POST', 'QUERY')),
    CHUNKED .. '3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nA: b\r\n\r\n', get '/' .. get '/' }
  local pieces = { '\r\n', '\n', '\0', ' ', ':', 'chunked', 'Content-Length: 3\r\n', 'ffffffff', '\255', ('a'):rep(500),
    '0\r\n\r\n', ';', '%' }
  math.randomseed(tonumber(os.getenv 'CR_SEED') or 22)
  local random = math.random
  for i = 1, tonumber(os.getenv 'CR_FUZZ') or 300 do
    local text = seeds[random(#seeds)]
    for _ = 1, random(4) do
      local at = random(0, #text)
      local cut = random(0, 3)
      text = text:sub(1, at) .. (random(2) == 1 and pieces[random(#pieces)] or '') .. text:sub(at + 1 + cut)
    end
    t.equal(parsed(text, 1), parsed(text, #text + 1), ('%q'):format(text))
    local at = random(0, #text)
    local answer = raw(server, text:sub(1, at), text:sub(at + 1))
    t.ok(answer == '' or answer:find '^HTTP/1.1 %d%d%d ', ('%d: %q: %s'):format(i, text, answer))
  end
  t.equal(#server.reports, 0, server.reports[1])
  t.equal(status(raw(server, get '/')), 200)
  server:close()
end)

t.done()
