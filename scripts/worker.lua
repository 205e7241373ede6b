--- Runs jobs from a queue: AWS SQS or Redis Streams.
--
-- Files come from S3, from the hosts in --allow-urls and from the folder --root, and results go there.
-- models/service/consumer.lua takes the jobs; models/latentsync/job.lua runs them in worker processes, one per
-- device. Credentials are read from environment variables, which other users cannot see: the usual AWS ones, and
-- REDISCLI_AUTH.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local consumers = require 'models.service.consumer'
local errors = require 'cr.errors'
local json = require 'cr.json'
local log = require 'models.service.log'
local orders = require 'models.service.order'
local settings = require 'models.latentsync.settings'

local uv = require 'cr.loop'.uv

-- --schema needs none of these.
local needed = {}
for _, option in ipairs(settings.schema:only { 'checkpoint', 'vae', 'size', 'dtype', 'quant', 'card' }:options()) do
  option.required = nil
  needed[#needed + 1] = option
end

local args = cli.parse(arg, {
  name = 'worker', summary = 'Runs jobs from a queue, with files in S3, on web servers or in a folder.',
  options = cli.join({
    { '--queue', 'string', metavar = 'URL',
      help = 'sqs://NAME?region=R&endpoint=URL&dead=NAME, or redis://HOST:PORT/DB?stream=NAME&group=NAME' },
  }, needed, {
    { '--device', 'string', default = 'auto', metavar = 'LIST', help = 'one job at a time on each: cpu, cuda:0,cuda:1 ...' },
    { '--root', 'folder', help = 'root folder for file:///PATH; without it such URLs are refused' },
    { '--allow-urls', 'string', metavar = 'HOSTS', help = 'allowed hosts of https://HOST/..., with commas; http://HOST:PORT: without TLS' },
    { '--lease', 'number', default = 120, min = 1, max = 43200, unit = 'seconds',
      help = "time after which the job of a dead worker is given to another one" },
    { '--tries', 'int', default = 5, min = 1, max = 1000, help = 'number of attempts before a job becomes a dead letter' },
    { '--grace', 'number', default = 25, min = 0, unit = 'seconds',
      help = 'grace period after SIGTERM; unfinished jobs are then returned to the queue' },
    { '--name', 'string', metavar = 'X', help = 'name of this worker in the queue', default_text = 'the host and some letters' },
    { '--metrics', 'int', min = 0, max = 65535, metavar = 'PORT', help = 'port for /metrics, /healthz and /readyz; 0: any free port' },
    { '--metrics-host', 'string', default = '0.0.0.0', metavar = 'ADDRESS', help = 'address for these' },
    { '--scratch', 'folder', help = 'folder for files of running jobs', default_text = 'TMPDIR, or /tmp' },
    { '--schema', 'flag', help = 'print the JSON Schema of a job, and exit' },
  }),
})

if args.schema then
  print(json.encode(orders.document(), true))
  return
end
if not args.queue then errors.fail('--queue is missing', 2) end
if not args.checkpoint then errors.fail('--checkpoint is missing', 2) end

local function devices()
  local list, seen = {}, {}
  for name in args.device:gmatch '[^,]+' do
    local device = cli.device(name)
    if seen[device] then errors.failf('--device: %s is named twice', device) end
    list[#list + 1], seen[device] = device, true
  end
  return #list > 0 and list or errors.fail '--device: the list is empty'
end

-- A folder of this process's own; removes folders of processes that have died.
local function scratch_folder()
  local parent = args.scratch or os.getenv 'TMPDIR' or '/tmp'
  for name in require 'lfs'.dir(parent) do
    local pid = name:match '^crescent%-worker%-(%d+)$'
    if pid and uv.kill(tonumber(pid), 0) ~= 0 then require 'cr.serve.disk'.remove(parent .. '/' .. name) end
  end
  return ('%s/crescent-worker-%d'):format(parent, uv.os_getpid())
end

-- Serves metrics and health over HTTP.
local function listen(metrics, ready)
  local server
  server = require 'cr.serve.http'.listen {
    host = args.metrics_host, port = args.metrics,
    handler = function(request, response)
      local path, text = request.path, { ['Content-Type'] = 'text/plain; charset=utf-8' }
      if path == '/healthz' then return response:send(200, text, 'ok\n') end
      if path == '/metrics' then return response:send(200, { ['Content-Type'] = 'text/plain; version=0.0.4' }, metrics:text()) end
      if path ~= '/readyz' then return response:send(404, text, 'there is /metrics, /healthz, /readyz\n') end
      local problem = ready()
      response:send(problem and 503 or 200, text, (problem or 'ready') .. '\n')
    end,
  }
  log('info', 'listening', { port = server.port })
  return server
end

cr.run(function()
  require 'models.latentsync.checkpoint'.unet(args.checkpoint) -- reports a missing checkpoint before the worker starts
  local store = require 'cr.remote.store'.of(args)
  local list = devices()
  local name = args.name or orders.worker_name()
  local queue = require 'cr.remote.queues'.open(args.queue, { lease = args.lease, name = name })
  local metrics, ended = require 'cr.serve.metrics'.new(), cr.channel(8)
  local pool, consumer
  pool = require 'models.service.pool'.new {
    devices = list, model = { checkpoint = args.checkpoint, vae = args.vae, size = args.size, dtype = args.dtype, quant = args.quant,
      card = args.card },
    changed = function() end,
    refused = function()
      local why = pool:refusal()
      if why then ended:put(why) end
    end,
    on_line = function(worker, line) log('info', 'said', { worker = worker.name, text = line }) end,
  }
  consumer = consumers.new {
    queue = queue, store = store, pool = pool, metrics = metrics, lease = args.lease, tries = args.tries, scratch = scratch_folder(),
    checkpoint = args.checkpoint, log = log,
  }
  local server = args.metrics and listen(metrics, function()
    if not pool:ready() then return 'the model is being loaded' end
    return not consumer.is_reachable() and 'the queue cannot be reached' or nil
  end)
  local signals = {}
  for i, signal in ipairs { 'sigterm', 'sigint' } do
    signals[i] = uv.new_signal()
    signals[i]:start(signal, function()
      log('info', 'asked to end', { signal = signal })
      consumer:stop(args.grace)
    end)
  end
  log('info', 'started', { name = name, queue = queue.name, devices = table.concat(list, ',') })
  cr.go(function()
    consumer:run()
    ended:put(false)
  end)
  local problem = ended:get()
  for _, signal in ipairs(signals) do signal:close() end
  if server then server:close() end
  pool:close()
  if problem then errors.fail(problem) end
  queue:close()
  log('info', 'ended', { name = name })
end)
