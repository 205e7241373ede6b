--- HTTP requests. libcurl makes them on a thread of its own (core/remote/transfer.c); the calling task waits while
--- other tasks run.
--
-- Nothing is retried here, no redirection is followed, and no status is an error. retry.lua and the callers handle these.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local loop = require 'cr.loop'

local lib = base.part('remote', 'install libcurl with `make deps`, then run `make`')

local M = {}

local LIMIT = 16 * 2 ^ 20 -- bytes of an answer in memory
local CONNECT, IDLE = 10, 60 -- seconds

--- @class HttpRequest
--- @field url string
--- @field method string? 'GET'
--- @field headers table<string, string|number>?
--- @field body string?
--- @field file table? {path, offset = 0, bytes}: the body is this part of a file
--- @field out table? {path, offset = 0, status = 200}: if the answer has this status, its body is written to this
---   existing file; with another 2xx status the body is dropped
--- @field sign table? {service, region, id, key}: AWS Signature 4 by libcurl. The caller supplies the body's digest as a header
--- @field limit integer? largest body of an answer in memory, in bytes
--- @field connect number? seconds within which the connection must be made (10)
--- @field idle number? seconds without data after which the request ends (60)
--- @field direct boolean? use no proxy

--- @class HttpAnswer
--- @field status integer
--- @field headers table<string, string> by lower-case names
--- @field body string
--- @field code string? of an error of AWS (aws.lua)

local function headers_of(handle, bytes)
  local text = ffi.string(lib.cr_transfer_headers(handle, bytes), bytes[0])
  local headers = {}
  for name, value in text:gmatch '([^:\r\n]+):[ \t]*([^\r\n]*)' do headers[name:lower()] = value end
  return headers
end

local function lines_of(headers)
  local lines = {}
  for name, value in pairs(headers or {}) do
    value = tostring(value)
    -- A line break would inject another header.
    if (name .. value):find '[\r\n%z]' then base.fail(('http: the header %s cannot hold a line break'):format(base.printable(name))) end
    lines[#lines + 1] = value == '' and name .. ';' or name .. ': ' .. value
  end
  return lines
end

local function start(o)
  local lines = lines_of(o.headers)
  local list = ffi.new('const char *[?]', #lines + 1)
  for i, line in ipairs(lines) do list[i - 1] = line end
  local c = ffi.new 'cr_transfer_options'
  local sign, file, out = o.sign, o.file, o.out
  local signed = sign and ('aws:amz:%s:%s'):format(sign.region, sign.service)
  c.method, c.url, c.headers, c.header_count = o.method or 'GET', o.url, list, #lines
  if sign then c.sign, c.user, c.secret = signed, sign.id, sign.key end
  c.body_bytes = -1
  if file then
    c.body_path, c.body_offset, c.body_bytes = file.path, file.offset or 0, file.bytes
  elseif o.body then
    c.body, c.body_bytes = o.body, #o.body
  end
  if out then c.out_path, c.out_offset, c.out_status = out.path, out.offset or 0, out.status or 200 end
  c.limit, c.connect_seconds, c.idle_seconds = o.limit or LIMIT, o.connect or CONNECT, o.idle or IDLE
  c.direct = o.direct and 1 or 0
  local handle = ffi.new 'cr_transfer *[1]'
  local job = lib.cr_transfer_start(handle, c)
  if job < 0 then base.raise() end
  return ffi.gc(handle[0], lib.cr_transfer_close), job
end

-- Returns the result of a request whose job has ended with a status.
local function result_of(handle, status)
  local bytes = ffi.new 'int64_t[1]'
  if status == 0 then return nil, ffi.string(lib.cr_transfer_problem(handle)), tonumber(lib.cr_transfer_received(handle)) end
  local body = lib.cr_transfer_body(handle, bytes)
  return { status = status, body = ffi.string(body, bytes[0]), headers = headers_of(handle, bytes) }
end

--- Sends a request and waits for the answer. Cancelling the task ends the request.
--- @param o HttpRequest
--- @return HttpAnswer? nil if no complete answer arrived
--- @return string? problem
--- @return integer? received bytes of the body that were written all the same
function M.request(o)
  local handle, job = start(o)
  local ok, status = pcall(loop.await, job)
  local answer, problem, received
  if ok then answer, problem, received = result_of(handle, status) end
  lib.cr_transfer_close(ffi.gc(handle, nil))
  if not ok then error(status, 0) end
  return answer, problem, received
end

return M
