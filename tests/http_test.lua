--- The HTTP server: what clients send, whole and broken, and what they get.

local t = require 'tests.support.tap'
local cr = require 'cr'
local uv = require 'cr.loop'.uv

local built, http = pcall(function()
  local http = require 'cr.serve.http'
  http.listen { handler = print }:close()
  return http
end)

local function test(name, fn)
  t.test(name, function()
    if not built then t.skip('crescent_http.so is not there: ' .. tostring(http):match '[^\n]*') end
    cr.run(fn)
  end)
end

-- A server for one test, whose errors are gathered in .reports.
local function serve(handler, limits)
  local reports = {}
  local server = http.listen { handler = handler, limits = limits, report = function(text) reports[#reports + 1] = text end }
  server.reports = reports
  return server
end

--- What a client gets that sends these pieces one after another and reads until the end; nil as a piece ends its side.
--- @param server Server
--- @param pieces string|string[]
--- @param keep boolean? it does not say that it ends
local function raw(server, pieces, keep)
  local got, tcp, done = {}, uv.new_tcp(), cr.channel(1)
  tcp:connect('127.0.0.1', server.port, function(err) done:put(err or true) end)
  t.equal(done:get(), true)
  local finished = cr.channel(1)
  tcp:read_start(function(err, data)
    if data then got[#got + 1] = data else finished:close(err) end
  end)
  for _, piece in ipairs(type(pieces) == 'table' and pieces or { pieces }) do
    tcp:write(piece)
    cr.sleep(0.01)
  end
  if not keep then tcp:shutdown() end
  pcall(finished.get, finished)
  tcp:close()
  return table.concat(got)
end

local HOST = 'Host: x\r\n'

local function echo(request, response)
  response:send(200, {}, request.method .. ' ' .. request.path .. ' ' .. request:text())
end

test('requests one after another over a connection', function()
  local server = serve(echo)
  local answer = raw(server, 'GET /a HTTP/1.1\r\n' .. HOST .. '\r\nPOST /b HTTP/1.1\r\n' .. HOST ..
    'Content-Length: 5\r\n\r\nhelloPOST /c HTTP/1.1\r\n' .. HOST .. 'Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n')
  t.ok(answer:find('GET /a .*POST /b hello.*POST /c abc$'), answer)
  -- Cut anywhere, it is the same.
  local whole = 'POST /d HTTP/1.1\r\n' .. HOST .. 'Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n'
  for at = 1, #whole - 1, 7 do
    local parts = raw(server, { whole:sub(1, at), whole:sub(at + 1) })
    t.ok(parts:find('POST /d abc$'), ('cut after %d: %s'):format(at, parts))
  end
  server:close()
end)

test('a handler that raises is answered with a problem, and the server goes on', function()
  local server = serve(function(request, response)
    if request.path == '/raise' then error 'oops' end
    if request.path == '/problem' then http.problem(409, 'not now', { field = 'x' }) end
    response:send(200, {}, 'fine')
  end)
  local answer = raw(server, 'GET /raise HTTP/1.1\r\n' .. HOST .. '\r\nGET /problem HTTP/1.1\r\n' .. HOST .. '\r\nGET / HTTP/1.1\r\n' ..
    HOST .. '\r\n')
  t.ok(answer:find('^HTTP/1.1 500 .*application/problem%+json.*HTTP/1.1 409 .*"field":"x".*fine$'), answer)
  t.ok(not answer:find 'oops', 'the error is told to the client')
  t.equal(#server.reports, 1)
  t.ok(server.reports[1]:find 'GET /raise: .*oops.*http_test', server.reports[1])
  server:close()
end)

t.done()
