--- A request: its head, and its body as it arrives.

local arguments = require 'cr.arguments'
local clock = require 'cr.clock'
local problem = require 'cr.serve.problem'
local text_of = require 'cr.serve.text'

local M = {}

local STEP = 2 ^ 16 -- bytes of a body that must arrive within limits.request seconds

--- @class Request
--- @field method string 'GET'
--- @field target string as it was sent
--- @field path string decoded, without the query
--- @field query table<string, string> decoded names and values; the last one if a name is repeated
--- @field headers table<string, string> by names in lower case; values of repeated names are joined by commas
--- @field peer string the client's address
--- @field secure boolean whether it came over TLS
--- @field length integer? bytes of the body; nil if it is chunked
--- @field limit number largest accepted body in bytes; may be set before the body is read
--- @field response Response?
--- @field head string
--- @field bytes integer
--- @field minor integer the minor version of HTTP 1
--- @field connection Connection
--- @field keep_alive boolean
local Request = {}
Request.__index = Request

local function decode(text)
  if text:find '%%' then
    if text:gsub('%%%x%x', ''):find('%', 1, true) then return nil end
    text = text:gsub('%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end)
  end
  return text
end

local function decoded(text, what)
  local plain = decode(text)
  if not plain or not text_of.is_text(plain) then problem.raise(400, what .. ' is not percent-encoded UTF-8') end
  return plain
end

-- Splits the target of a request into path and query.
local function parse_target(target)
  if target == '*' then return '*', {} end
  local rest = target:match '^%a[%w+.-]*://[^/?#]*(.*)$' or target
  if rest == '' or rest:sub(1, 1) == '?' then rest = '/' .. rest end
  if rest:find '#' then problem.raise(400, 'the target of the request has a fragment') end
  local path, text = rest:match '^([^?]*)%??(.*)$'
  local query = {}
  for pair in text:gmatch '[^&]+' do
    local name, value = pair:gsub('%+', ' '):match '^([^=]*)=?(.*)$'
    query[decoded(name, 'the query')] = decoded(value, 'the query')
  end
  return decoded(path, 'the path'), query
end

--- @param connection Connection
--- @param head ffi.cdata* cr_http_event, read only during this call
--- @param limits table
--- @return Request
function M.new(connection, head, limits)
  local text = require 'ffi'.string(head.head, head.bytes)
  local length = tonumber(head.length)
  local self = setmetatable({
    connection = connection, limits = limits, limit = limits.body, length = length >= 0 and length or nil, taken = 0,
    read_all = false, minor = head.minor, keep_alive = head.keep_alive == 1, peer = connection.peer,
    secure = connection.secure or false, headers = {}, patience = limits.request, stepped = 0,
  }, Request)
  local next_part = text:gmatch '([^%z]*)%z'
  self.method, self.target = next_part(), next_part()
  for name in next_part do
    local value, before = next_part(), self.headers[name]
    -- The pairs of repeated Cookie headers are joined by semicolons.
    self.headers[name] = before and before .. (name == 'cookie' and '; ' or ', ') .. value or value
  end
  self.expects = self.headers.expect ~= nil and self.headers.expect:lower() == '100-continue' and self.minor == 1
  return self
end

--- Parses path and query. This is a separate step, because a malformed one can only be answered once the request exists.
function Request:parse()
  self.path, self.query = parse_target(self.target)
end

-- Returns the next event. STEP bytes must arrive within limits.request seconds of waiting.
local function next_event(self)
  local start = clock()
  local kind, text = self.connection:event(start + self.patience)
  self.patience = self.patience - (clock() - start)
  if kind == 'body' then
    self.stepped = self.stepped + #text
    if self.stepped >= STEP then self.patience, self.stepped = self.limits.request, 0 end
  end
  return kind, text
end

local function too_large(limit) problem.raise(413, 'the body is larger than the limit of ' .. text_of.size(limit)) end

--- Returns the next piece of the body, or nil at its end. Raises a Problem if the client is too slow, disconnects
--- before the end, or sends more than `limit`.
--- @return string?
function Request:read()
  if self.read_all then return nil end
  if self.failed then error(self.failed, 0) end
  if self.length and self.length > self.limit then too_large(self.limit) end
  if self.expects and (self.length or 1) > 0 then
    -- A client that has already sent part of the body does not wait for "100 Continue".
    if self.connection.first > self.connection.last then self.connection:write 'HTTP/1.1 100 Continue\r\n\r\n' end
  end
  self.expects = false
  local ok, kind, text = pcall(next_event, self)
  if ok and kind == nil then
    ok = false
    kind = text == 'late' and problem.new(408, 'the body of the request arrives too slowly') or
      problem.new(400, 'the connection ended before the body did')
  end
  if not ok then
    self.failed = kind
    error(kind, 0)
  end
  if kind == 'end' then
    self.read_all = true
    return nil
  end
  self.taken = self.taken + #text
  if self.taken > self.limit then too_large(self.limit) end
  return text
end

--- Returns the whole body.
--- @param max integer? largest accepted body in bytes (`limit`)
--- @return string
function Request:text(max)
  if max then self.limit = math.min(max, self.limit) end
  local parts = {}
  for part in self.read, self do parts[#parts + 1] = part end
  return table.concat(parts)
end

--- Iterates over the parts of a multipart/form-data body as they arrive: {name, filename or nil, headers, read =
--- function that returns the next piece of the content, nil at its end}. The unread rest of a part is skipped.
--- @return function
function Request:multipart() return require 'cr.serve.multipart'.parts(self) end

--- Answers with a WebSocket. Raises a Problem if the request does not ask for one.
--- @param options table? {max = largest received message in bytes (2^20), pending = bytes that try_write may queue (2^20)}
--- @return WebSocket
function Request:websocket(options) return require 'cr.serve.websocket'.accept(self.response, options) end

--- Returns whether the unread rest of the body is short enough to read it and keep the connection.
--- @return boolean
function Request:is_short()
  if self.read_all then return true end
  if self.failed or self.connection.unsound or not self.length or self.length > self.limit then return false end
  return self.length - self.taken <= STEP and not (self.expects and self.length > 0)
end

--- Reads and discards the rest of a short body.
function Request:skip()
  while self:read() do end
end

local maybe = arguments.maybe
arguments.methods(Request, 'request', {
  -- A for loop passes the previous piece to `read`.
  parse = {}, read = { arguments.any }, text = { maybe(arguments.number) }, multipart = {}, is_short = {}, skip = {},
  websocket = { maybe(arguments.options { max = maybe(arguments.number), pending = maybe(arguments.number) }) },
})

return M
