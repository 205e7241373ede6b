--- Answers with a file: all of it, the requested range, or nothing if the client has it already (RFC 9110).
--
-- One piece at a time is read on luv's threads, so that memory is bounded and the loop is not blocked.

local problem = require 'cr.serve.problem'
local tasks = require 'cr.loop.tasks'

local uv, suspend, wake = tasks.M.uv, tasks.suspend, tasks.wake

local M = {}

local PIECE = 2 ^ 18

-- Reads bytes at an offset. If the waiting task is cancelled meanwhile, the file is closed when the read has finished.
local function read_at(file, n, at)
  local waiter = { what = 'a file' }
  file.busy = true
  assert(uv.fs_read(file.fd, n, at, function(err, text)
    file.busy = false
    if file.left then uv.fs_close(file.fd) end
    wake(waiter, not err, err or text)
  end))
  return suspend(waiter)
end

local function close(file)
  file.left = true
  if not file.busy then uv.fs_close(file.fd) end
end

local function open(path)
  local stat = uv.fs_stat(path)
  if not stat or stat.type ~= 'file' then problem.raise(404, 'there is no such file') end
  local fd, why = uv.fs_open(path, 'r', 0)
  if not fd then error(why, 0) end
  return { fd = fd }, assert(uv.fs_fstat(fd))
end

-- Parses a Range header to the first and last byte, counted from 0. Returns nil if the whole file is to be sent, and
-- false if the range lies outside the file.
local function range_of(text, size)
  local first, last = text:match '^bytes=%s*(%d*)%-(%d*)%s*$'
  if not first or first == '' and last == '' then return nil end
  first, last = tonumber(first), tonumber(last)
  if not first then
    if last == 0 or size == 0 then return false end
    return math.max(0, size - last), size - 1
  end
  if last and last < first then return nil end
  if first >= size then return false end
  return first, math.min(last or size - 1, size - 1)
end

-- Returns whether a list of entity tags contains this one, by weak comparison.
local function has_tag(list, tag)
  if list:match '^%s*%*%s*$' then return true end
  for one in list:gmatch '"[^"]*"' do
    if one == tag then return true end
  end
  return false
end

-- Formats a Content-Disposition with `name` in ASCII and, if that loses characters, also in the form of RFC 8187.
local function disposition(kind, name)
  local plain = name:gsub('[^ -~]', '_'):gsub('["\\%%]', '_')
  local text = ('%s; filename="%s"'):format(kind, plain)
  if plain == name then return text end
  return text .. "; filename*=UTF-8''" .. name:gsub('[^%w._-]', function(c) return ('%%%02X'):format(c:byte()) end)
end

local function pour(response, file, first, last)
  while first <= last do
    local text = read_at(file, math.min(PIECE, last - first + 1), first)
    if text == '' then error('the file became shorter while it was sent', 0) end
    response:write(text)
    first = first + #text
  end
end

--- Answers a request with a file, or with 404 if it does not exist.
--- @param response Response
--- @param path string
--- @param options table? {type = 'application/octet-stream', name = the name under which a client saves it (that of
---   the file), download = boolean, headers = further headers}
function M.send(response, path, options)
  options = options or {}
  local request = response.request
  local file, stat = open(path)
  local ok, err = pcall(function()
    local size, asked = stat.size, request.headers
    local tag = ('"%x-%x-%x-%x"'):format(size, stat.mtime.sec, stat.mtime.nsec, stat.ino)
    local changed = os.date('!%a, %d %b %Y %H:%M:%S GMT', stat.mtime.sec)
    local headers = {
      ETag = tag, ['Last-Modified'] = changed, ['Accept-Ranges'] = 'bytes', ['Cache-Control'] = 'private, no-cache',
      ['Content-Type'] = options.type or 'application/octet-stream', ['X-Content-Type-Options'] = 'nosniff',
      ['Content-Disposition'] = disposition(options.download and 'attachment' or 'inline', options.name or path:match '[^/]*$'),
    }
    for name, value in pairs(options.headers or {}) do headers[name] = value end
    local has = asked['if-none-match'] and has_tag(asked['if-none-match'], tag) or
      not asked['if-none-match'] and asked['if-modified-since'] == changed
    if has then return response:send(304, headers) end
    local first, last
    local same = not asked['if-range'] or asked['if-range'] == tag or asked['if-range'] == changed
    if asked.range and same and request.method == 'GET' then first, last = range_of(asked.range, size) end
    if first == false then
      local none = problem.new(416, ('the file has %d bytes'):format(size))
      none.headers = { ['Content-Range'] = ('bytes */%d'):format(size) }
      error(none, 0)
    end
    local status = first and 206 or 200
    if first then headers['Content-Range'] = ('bytes %d-%d/%d'):format(first, last, size) end
    first, last = first or 0, last or size - 1
    headers['Content-Length'] = last - first + 1
    response:start(status, headers)
    if request.method ~= 'HEAD' then pour(response, file, first, last) end
    response:finish()
  end)
  close(file)
  if not ok then error(err, 0) end
end

return M
