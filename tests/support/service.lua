--- A `crescent serve` for a test, on a free port, with a tiny checkpoint; and a client for it.

local cr = require 'cr'
local checkpoint = require 'tests.support.checkpoint'
local child = require 'tests.support.child'
local cjson = require 'cjson'
local json = require 'cr.json'
local time_limit = require 'tests.support.time_limit'
local uv = require 'cr.loop'.uv

local M = {}

M.video, M.sound = cr.root .. '/models/mini/demo.mp4', cr.root .. '/models/mini/demo.flac'

--- Settings of a short job: a fifth of a second, one step.
M.short = { duration = 0.2, steps = 1 }

-- ---- the client --------------------------------------------------------------------------------------

local read_file = require 'cr.files'.read

local function parse(text)
  local head, body = text:match '^(.-\r\n)\r\n(.*)$'
  if not head then return { status = 0, headers = {}, body = text } end
  local answer = { status = tonumber(head:match '^HTTP/1.1 (%d+)'), headers = {} }
  for name, value in head:gmatch '\r\n([^:]+): ([^\r\n]*)' do answer.headers[name:lower()] = value end
  if answer.headers['transfer-encoding'] == 'chunked' then
    local parts, at = {}, 1
    while true do
      local size, from = body:match('^(%x+)\r\n()', at)
      if not size or tonumber(size, 16) == 0 then break end
      parts[#parts + 1] = body:sub(from, from + tonumber(size, 16) - 1)
      at = from + tonumber(size, 16) + 2
    end
    body = table.concat(parts)
  end
  answer.body = body
  if (answer.headers['content-type'] or ''):find 'json' then answer.json = cjson.decode(body) end
  return answer
end

--- Connects; returns {write(text), read() -> bytes or nil at the end, close()}.
function M.connect(port)
  local tcp, got = uv.new_tcp(), cr.channel(10000)
  local connected = cr.channel(1)
  tcp:connect('127.0.0.1', port, function(err) connected:put(err or 'connected') end)
  local outcome = connected:get()
  if outcome ~= 'connected' then
    tcp:close()
    error(outcome, 0)
  end
  tcp:read_start(function(_, data)
    if data then got:put(data) else got:close() end
  end)
  return {
    write = function(text) tcp:write(text) end,
    read = function() return got:get() end,
    close = function() if not tcp:is_closing() then tcp:close() end end,
  }
end

-- ---- the server --------------------------------------------------------------------------------------

local running = {} -- pids

-- The servers end with the test, however it ends.
M.guard = newproxy(true)
getmetatable(M.guard).__gc = function()
  for pid in pairs(running) do os.execute('kill -9 ' .. pid .. ' 2>/dev/null') end
end

--- @class TestServer
local Server = {}
Server.__index = Server

--- The text of a request.
function Server:text(method, path, o)
  o = o or {}
  local body = o.json and json.encode(o.json) or o.body
  local lines = { ('%s %s HTTP/1.1'):format(method, path), 'Host: ' .. (o.host or '127.0.0.1:' .. self.port), 'Connection: close' }
  if body then lines[#lines + 1] = 'Content-Length: ' .. (o.length or #body) end
  if o.json then lines[#lines + 1] = 'Content-Type: application/json' end
  if self.token and o.token ~= false then lines[#lines + 1] = 'Authorization: Bearer ' .. (o.token or self.token) end
  for name, value in pairs(o.headers or {}) do lines[#lines + 1] = name .. ': ' .. value end
  return table.concat(lines, '\r\n') .. '\r\n\r\n' .. (body or '')
end

--- Sends a request; returns {status, headers, body, json}.
--- @param o table? {json = body as a table, body = bytes, headers =, host =, token = (false: none)}
function Server:ask(method, path, o)
  local connection = M.connect(self.port)
  connection.write(self:text(method, path, o))
  local parts = {}
  for data in connection.read do parts[#parts + 1] = data end
  connection.close()
  return parse(table.concat(parts))
end

--- Uploads a file; returns its id.
function Server:upload(path)
  local answer = self:ask('PUT', '/v1/files?name=' .. path:match '[^/]*$', { body = read_file(path),
    headers = { ['Content-Type'] = 'application/octet-stream' } })
  if answer.status ~= 201 then error('upload: ' .. answer.body) end
  return answer.json.id
end

--- A job request for the two demonstration files.
function Server:request(settings, more)
  self.demo_video = self.demo_video or self:upload(M.video)
  self.demo_sound = self.demo_sound or self:upload(M.sound)
  local all = { video = self.demo_video, audio = self.demo_sound, settings = {} }
  for _, list in ipairs { M.short, settings or {} } do
    for name, value in pairs(list) do all.settings[name] = value end
  end
  for name, value in pairs(more or {}) do all[name] = value end
  return all
end

--- Creates a job; returns its id.
function Server:begin(settings, more)
  local answer = self:ask('POST', '/v1/jobs', { json = self:request(settings, more) })
  if answer.status ~= 201 then error('job: ' .. answer.body) end
  return answer.json.id
end

--- Waits until a job is as wanted; returns the job.
--- @param wanted (fun(job: table): boolean)? default: it has ended
function Server:wait(id, wanted)
  local limit = uv.hrtime() + time_limit * 1e9
  while true do
    local job = self:ask('GET', '/v1/jobs/' .. id).json
    if wanted and wanted(job) or job.state ~= 'queued' and job.state ~= 'running' then return job end
    if uv.hrtime() > limit then error('job ' .. id .. ' stays ' .. job.state) end
    cr.sleep(0.05)
  end
end

-- Whether the process has ended, and how; its shell writes the status to a file.
local function look(self)
  local text = not self.code and read_file(self.base .. '.code')
  if text and text:find '%d' then self.code = tonumber(text:match '%d+') end
  return self.code ~= nil
end

--- Ends the process and waits until it has ended.
--- @param signal string? 'sigterm'
function Server:stop(signal)
  if not look(self) then uv.kill(self.pid, signal or 'sigterm') end
  while not look(self) do cr.sleep(0.01) end
  running[self.pid] = nil
end

--- Waits until the worker has loaded the model.
function Server:ready()
  while self:ask('GET', '/readyz').status ~= 200 do cr.sleep(0.05) end
  return self
end

--- Its output on stderr.
function Server:said() return read_file(self.base .. '.log') or '' end

local count = 0

--- Starts a server.
--- @param args string[]? more options
--- @param o table? {data = a folder, token =, checkpoint =, device = 'cpu', env = 'NAME=value', fails = true: it need not start}
--- @return TestServer
function M.start(args, o)
  o, count = o or {}, count + 1
  if not M.checkpoint then
    M.checkpoint = child.folder .. '/tiny'
    checkpoint.write(M.checkpoint)
  end
  local self = setmetatable({
    data = o.data or ('%s/data%d'):format(child.folder, count), token = o.token, base = ('%s/server%d'):format(child.folder, count),
  }, Server)
  local words = { child.program, 'serve', '--checkpoint', o.checkpoint or M.checkpoint, '--device', o.device or 'cpu', '--port', '0',
    '--data', self.data }
  if not o.checkpoint then
    words[#words + 1] = '--size'
    words[#words + 1] = '64'
  end
  for _, word in ipairs(args or {}) do words[#words + 1] = word end
  for i, word in ipairs(words) do words[i] = "'" .. word .. "'" end
  -- Not started by luv: a test must not leave a handle open, and a server is shared by several tests.
  os.execute(("(%s %s 2>'%s.log' & echo $! >'%s.pid'; wait $!; echo $? >'%s.code') </dev/null >/dev/null 2>&1 &"):format(
    (o.token and "CRESCENT_TOKEN='" .. o.token .. "' " or '') .. (o.env or ''), table.concat(words, ' '), self.base, self.base, self.base))
  while not self.port and not look(self) do
    self.port = tonumber(self:said():match 'https?://[^\n]-:(%d+)/')
    cr.sleep(0.01)
  end
  self.pid = tonumber(read_file(self.base .. '.pid'))
  if not self.port and not o.fails then error('the server has not started: ' .. self:said(), 0) end
  running[self.pid] = true
  return self
end

return M
