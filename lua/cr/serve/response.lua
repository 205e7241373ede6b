--- The answer to a request: first its head, then its body, whole or in pieces.

local arguments = require 'cr.arguments'
local problem = require 'cr.serve.problem'

local M = {}

--- @class Response
--- @field status integer? nil until the answer is started
--- @field closed boolean the client has disconnected, or has closed its sending direction, which precedes a disconnect
--- @field connection Connection
--- @field keep boolean whether the connection stays open after it
--- @field request Request
--- @field silent boolean whether its body is left out
--- @field chunked boolean
--- @field length integer?
--- @field headers table
--- @field websocket WebSocket?
local Response = {}
function Response.__index(self, key)
  if key ~= 'closed' then return Response[key] end
  local connection = rawget(self, 'connection')
  return connection.ended or connection.broken
end

--- @param request Request
--- @param closing function returns whether the server is closing
--- @return Response
function M.new(request, closing)
  local self = setmetatable({ request = request, connection = request.connection, closing = closing, sent = 0 }, Response)
  request.response = self
  return self
end

local date, date_of

-- Returns the Date header's value, computed once per second.
local function now_text()
  local now = os.time()
  if now ~= date_of then date, date_of = os.date('!%a, %d %b %Y %H:%M:%S GMT', now), now end
  return date
end

local function field(lines, name, value)
  value = tostring(value)
  if name:find "[^%w!#$%%&'*+.^_`|~-]" or name == '' or value:find '[%z\1-\8\10-\31\127]' then
    error(('response: the header %q cannot be sent'):format(name .. ': ' .. value), 0)
  end
  lines[#lines + 1] = name .. ': ' .. value
end

-- Returns the text of the head, and decides how the body is framed: by its length, by chunks, or by the end of the connection.
local function head(self, status, headers)
  local lines, given = { ('HTTP/1.1 %d %s'):format(status, problem.reasons[status] or '') }, {}
  for name, value in pairs(headers or {}) do
    given[name:lower()] = value
    for _, one in ipairs(type(value) == 'table' and value or { value }) do field(lines, name, one) end
  end
  if given['transfer-encoding'] or given.connection then error('response: Transfer-Encoding and Connection are set by the server', 0) end
  local request = self.request
  local bare = status == 204 or status == 304
  self.length = tonumber(given['content-length'])
  self.silent = request.method == 'HEAD' or bare
  if not self.length and not bare then
    self.chunked = request.minor == 1
    if self.chunked then lines[#lines + 1] = 'Transfer-Encoding: chunked' end
  end
  local framed = self.length or bare or self.chunked or self.silent
  self.keep = request.keep_alive and framed and request:is_short() and not self.closing()
  if not given.date then lines[#lines + 1] = 'Date: ' .. now_text() end
  if not self.keep then
    lines[#lines + 1] = 'Connection: close'
  elseif request.minor == 0 then
    lines[#lines + 1] = 'Connection: keep-alive'
  end
  lines[#lines + 1] = '\r\n'
  return table.concat(lines, '\r\n')
end

-- Sends the head, unless one was sent.
local function begin(self, status, headers)
  if self.status then error(('response: it was already started, with status %d'):format(self.status), 0) end
  if type(status) ~= 'number' or status < 200 or status > 599 then
    error(('response: %s is not a status'):format(tostring(status)), 0)
  end
  local text = head(self, status, headers)
  self.status = status
  return text
end

--- Sends a complete answer.
--- @param status integer
--- @param headers table<string, string|string[]>?
--- @param body string? ''
function Response:send(status, headers, body)
  body = body or ''
  local all = {}
  for name, value in pairs(headers or {}) do
    if name:lower() ~= 'content-length' then all[name] = value end
  end
  if status ~= 204 and status ~= 304 then all['Content-Length'] = #body end
  local text = begin(self, status, all)
  self.ended, self.sent = true, #body
  self.connection:write(self.silent and text or text .. body)
end

--- Starts an answer, whose body follows by write().
--- @param status integer
--- @param headers table<string, string|string[]>? with Content-Length if the length is known
function Response:start(status, headers)
  self.connection:write(begin(self, status, headers))
end

--- Sends a piece of the body and waits until the system has accepted it. Raises an error if the client has disconnected.
--- @param piece string
function Response:write(piece)
  if not self.status then error('response: start it before writing', 0) end
  if self.ended then error('response: it has ended', 0) end
  self.sent = self.sent + #piece
  if self.length and self.sent > self.length then error('response: more is written than its Content-Length', 0) end
  if piece == '' or self.silent then return end
  self.connection:write(self.chunked and ('%x\r\n%s\r\n'):format(#piece, piece) or piece)
end

--- Ends the body.
function Response:finish()
  if not self.status then error('response: start it before finishing', 0) end
  if self.ended then return end
  self.ended = true
  if self.silent then return end
  if self.chunked then self.connection:write '0\r\n\r\n' end
  -- The body is too short, which only the end of the connection can signal.
  if self.length and self.sent < self.length then self.connection:close() end
end

--- Answers with a file: the requested range (206, 416), nothing if the client has the file (304), or 404 if it does
--- not exist. Only one piece is in memory at a time.
--- @param path string
--- @param options table? {type = 'application/octet-stream', name = the name under which a client saves it (that of
---   the file), download = true: save it instead of showing it, headers = further headers}
function Response:file(path, options) require 'cr.serve.file'.send(self, path, options) end

--- Answers with a problem.
--- @param what Problem
function Response:problem(what)
  local headers = { ['Content-Type'] = 'application/problem+json' }
  for name, value in pairs(what.headers or {}) do headers[name] = value end
  self:send(what.status, headers, what:text())
end

--- Calls fn, which must not wait, when the client disconnects, or at once if it has.
--- @param fn function
function Response:on_close(fn)
  if self.closed then fn() else self.connection:on_close(fn) end
end

local maybe, text = arguments.maybe, arguments.string
local problems = arguments.kind('a problem', problem.is)
arguments.methods(Response, 'response', {
  send = { arguments.integer, maybe(arguments.table), maybe(text) }, start = { arguments.integer, maybe(arguments.table) },
  write = { text }, finish = {}, problem = { problems }, on_close = { arguments.callable },
  file = { text, maybe(arguments.options {
    type = maybe(text), name = maybe(text), download = maybe(arguments.boolean), headers = maybe(arguments.table),
  }) },
})

return M
