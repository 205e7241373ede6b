--- Servers on loopback that tests start: each ends with the test, however the test ends.
--
-- They are started by a shell, not by the event loop, so that no handle is open between tests.

local cjson = require 'cjson'
local cr = require 'cr'
local environment = require 'tests.support.environment'
local scratch = require 'tests.support.scratch'
local now = require 'cr.clock'
local uv = require 'cr.loop'.uv

local time_limit = require 'tests.support.time_limit'

local M = {}

local started = 0

--- @class Service
--- @field pid integer
--- @field log string file with its output
local Service = {}
Service.__index = Service

--- Starts a program in the background.
--- @param command string shell command
--- @return Service
function M.start(command)
  started = started + 1
  local log, note = scratch.write('service' .. started .. '.log', ''), scratch.path('service' .. started .. '.pid')
  os.execute(([[
    (exec %s) >'%s' 2>&1 </dev/null & p=$!
    echo $p >'%s'
    (tail --pid=%d -f /dev/null; kill -9 $p 2>/dev/null) >/dev/null 2>&1 </dev/null &]]):format(command, log, note, uv.os_getpid()))
  return setmetatable({ log = log, pid = tonumber(scratch.read(note)) }, Service)
end

--- Whether the process runs.
function Service:alive() return uv.kill(self.pid, 0) == 0 end

--- Ends the process and waits until it has ended.
--- @param signal string? 'sigterm'
function Service:stop(signal)
  uv.kill(self.pid, signal or 'sigterm')
  while self:alive() do cr.sleep(0.02) end
end

--- Waits for an output line that matches; returns the pattern's captures.
function Service:line(pattern)
  local limit = now() + time_limit
  while true do
    local found = scratch.read(self.log):match(pattern)
    if found then return found end
    if not self:alive() or now() > limit then error('the service did not start: ' .. scratch.read(self.log), 0) end
    cr.sleep(0.02)
  end
end

-- ---- the cloud of tests/support/remote/cloud.py ---------------------------------------------------

local python = os.getenv 'CR_PYTHON' or 'python3'

--- The reason why the cloud cannot be started on this machine; nil if it can.
--- @return string?
function M.lacks_cloud()
  if os.execute(python .. ' -c "import moto.server, boto3" >/dev/null 2>&1') == 0 then return nil end
  return 'moto is absent: pip install "moto[server]" (CR_PYTHON names a Python that has it)'
end

--- @class Cloud: Service
--- @field url string
local Cloud = setmetatable({}, { __index = Service })
Cloud.__index = Cloud

--- Starts the cloud.
--- @param options string? '--no-moto'
--- @return Cloud
function M.cloud(options)
  local self = M.start(('%s %s/tests/support/remote/cloud.py %s'):format(python, cr.root, options or ''))
  self.url = 'http://127.0.0.1:' .. self:line '"port": (%d+)'
  return setmetatable(self, Cloud)
end

--- The environment variables by which Crescent finds the cloud, with valid keys.
--- @return table<string, string>
function Cloud:environment()
  return {
    AWS_ENDPOINT_URL = self.url, AWS_REGION = 'eu-west-1', AWS_ACCESS_KEY_ID = 'AKIATEST', AWS_SECRET_ACCESS_KEY = 'secret/of+tests',
    AWS_CONFIG_FILE = '/dev/null', AWS_SHARED_CREDENTIALS_FILE = '/dev/null', AWS_EC2_METADATA_DISABLED = 'true', no_proxy = '127.0.0.1',
  }
end

--- Sets these variables in this process.
function Cloud:enter()
  for name, value in pairs(self:environment()) do environment.set(name, value) end
end

local function ask(self, path)
  local answer, problem = require 'cr.remote.http'.request { url = self.url .. path, direct = true }
  return cjson.decode((answer or error(problem, 0)).body)
end

--- Configures the cloud: {fail = 0.05, away = 1, expires = seconds}.
function Cloud:set(values) ask(self, '/-/set' .. require 'cr.remote.url'.query(values)) end

--- The cloud's counters: {requests, failed, bad, credentials}.
function Cloud:seen() return ask(self, '/-/seen') end

--- Creates a bucket; must be called in a task, after the cloud's variables are set.
--- @param name string
function M.make_bucket(name)
  local answer, problem = require 'cr.remote.aws'.new { service = 's3' }:request(name, {
    method = 'PUT', path = '/' .. name, headers = { ['Content-Type'] = 'application/xml' },
    body = '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LocationConstraint>eu-west-1' ..
        '</LocationConstraint></CreateBucketConfiguration>',
  })
  if not answer then error(problem, 0) end
end

--- Sends an SQS request; must be called in a task.
--- @param action string 'SendMessage'
--- @param values table
--- @return table
function M.sqs(action, values)
  local json = require 'cr.json'
  local answer, problem = require 'cr.remote.aws'.new { service = 'sqs' }:request(action, {
    method = 'POST', body = json.encode(values),
    headers = { ['Content-Type'] = 'application/x-amz-json-1.0', ['X-Amz-Target'] = 'AmazonSQS.' .. action },
  })
  return json.decode((answer or error(problem, 0)).body)
end

-- ---- Redis ---------------------------------------------------------------------------------------

--- The reason why Redis cannot be started on this machine; nil if it can.
function M.lacks_redis()
  if os.execute 'command -v redis-server >/dev/null 2>&1' == 0 then return nil end
  return 'redis-server is absent: apt-get install redis-server'
end

--- A port on which nobody listens.
--- @return integer
function M.free_port()
  local socket = uv.new_tcp()
  socket:bind('127.0.0.1', 0)
  local port = socket:getsockname().port
  socket:close()
  uv.run 'nowait'
  return port
end

--- Starts Redis with its data in a folder, which a later one can reuse.
--- @param port integer
--- @param folder string
--- @param options string? of redis-server
--- @return Service
function M.redis(port, folder, options)
  require 'cr.files'.make_folder(folder)
  local self = M.start(('redis-server --port %d --bind 127.0.0.1 --dir %s --save "" --appendonly yes --appendfsync always %s')
    :format(port, folder, options or ''))
  self:line '(eady to accept connections)'
  return self
end

return M
