--- Serves jobs over HTTP: an API, and a page for people.
--
-- models/service is the server. Its jobs run in worker processes, one per device, with the engine
-- models/latentsync/job.lua. The token comes from --token, --token-file, or the variable CRESCENT_TOKEN, which other
-- users of the machine cannot see.

local cr = require 'cr'
local access = require 'cr.serve.access'
local cli = require 'cr.tools.cli'
local errors = require 'cr.errors'
local log = require 'models.service.log'
local settings = require 'models.latentsync.settings'

local uv = require 'cr.loop'.uv

local function data_folder()
  local home = os.getenv 'XDG_DATA_HOME'
  if not home or home == '' then home = (os.getenv 'HOME' or '') .. '/.local/share' end
  return home .. '/crescent/serve'
end

local of_model = {}
for _, option in ipairs(settings.schema:only { 'checkpoint', 'vae', 'size', 'dtype', 'quant', 'card' }:options()) do
  of_model[#of_model + 1] = option
end

local args = cli.parse(arg, {
  name = 'serve', summary = 'Serves lip-sync, upscaling and faces over HTTP, with a page for people.',
  options = cli.join(of_model, {
    { '--device', 'string', default = 'auto', metavar = 'LIST', help = 'one worker per device: cpu, cuda:0,cuda:1, cuda:all' },
    { '--host', 'string', default = '127.0.0.1', metavar = 'ADDRESS', help = 'address to listen on' },
    { '--port', 'int', default = 7860, min = 0, max = 65535, help = 'port to listen on; 0: any free port' },
    { '--token', 'string', metavar = 'T', help = 'token that clients must send (see also CRESCENT_TOKEN)' },
    { '--token-file', 'file', help = 'a file with the token' },
    { '--insecure', 'flag', help = 'allow access without a token to everybody who can reach the address' },
    { '--cert', 'file', help = 'certificate chain for TLS (PEM)' },
    { '--key', 'file', help = 'private key for TLS (PEM)' },
    { '--data', 'folder', help = 'folder for files, jobs and results', default_text = '~/.local/share/crescent/serve' },
    { '--keep-days', 'number', above = 0, unit = 'days', default_text = 'for ever',
      help = 'retention of ended jobs and unused files' },
    { '--allow-urls', 'string', metavar = 'HOST,...', help = 'hosts whose https URLs jobs may use', default_text = 'none' },
    { '--max-upload', 'number', default = 2048, above = 0, unit = 'MB', help = 'maximum size of an uploaded file' },
    { '--max-seconds', 'number', default = 600, above = 0, unit = 'seconds', help = 'maximum length of a result' },
    { '--max-pixels', 'number', default = 10, above = 0, unit = 'megapixels', help = 'maximum size of an image, input or result' },
    { '--max-jobs', 'int', default = 100, min = 1, help = 'maximum number of waiting jobs' },
    { '--max-connections', 'int', default = 4096, min = 1, help = 'maximum number of open connections' },
    { '--job-timeout', 'number', default = 7200, above = 0, unit = 'seconds', help = 'maximum duration of a job' },
    { '--live', 'int', min = 0, help = 'maximum number of live sessions', default_text = 'one for each device' },
    { '--idle', 'file', help = 'idle clip of a listening person, for live sessions that do not name one' },
    { '--say', 'choice', choices = require 'models.latentsync.live.say'.speakers, help = 'program that speaks the texts of live clients',
      default_text = 'nothing' },
    { '--quiet', 'flag', help = 'print neither the address nor the log of jobs' },
  }),
})

local token = access.token(args)
if not token and not args.insecure and not access.is_local(args.host) then
  errors.failf('--host: other machines can reach %s: set a token (--token, --token-file or CRESCENT_TOKEN), or --insecure', args.host)
end
if (args.cert == nil) ~= (args.key == nil) then
  errors.failf('--%s is missing: TLS needs --cert and --key', args.cert and 'key' or 'cert')
end

-- The comma-separated names.
local function names(text)
  local list = {}
  for name in (text or ''):gmatch '[^,%s]+' do
    if not name:find '^[%w.-]+:?%d*$' then errors.failf("--allow-urls: '%s' is not a host name", name) end
    list[#list + 1] = name
  end
  return list
end

cr.run(function()
  if args.idle then cli.check_readable('--idle', args.idle) end
  require 'models.latentsync.checkpoint'.unet(args.checkpoint) -- reports a missing checkpoint before the server starts
  local ended = cr.channel(64) -- {problem = a sentence?}
  local list = require 'cr.cuda'.choose_all(args.device, '--device')
  local service = require 'models.service'.open {
    checkpoint = args.checkpoint, devices = list, host = args.host, port = args.port, token = token, cert = args.cert, key = args.key,
    data = args.data or data_folder(), hosts = names(args.allow_urls), connections = args.max_connections,
    keep_days = args.keep_days,
    model = { vae = args.vae, size = args.size, dtype = args.dtype, quant = args.quant, card = args.card },
    limits = { upload = args.max_upload * 1e6, seconds = args.max_seconds, pixels = args.max_pixels * 1e6, jobs = args.max_jobs,
      job_timeout = args.job_timeout },
    live = args.live ~= 0 and { sessions = args.live, devices = list, idle = args.idle, say = args.say } or nil,
    log = not args.quiet and log or nil,
    refused = function(sentence)
      if ended:count() == 0 then ended:put { problem = sentence } end
    end,
  }
  local signals = {}
  for i, name in ipairs { 'sigterm', 'sigint' } do
    signals[i] = uv.new_signal()
    signals[i]:start(name, function()
      if ended:count() == 0 then ended:put {} end
    end)
  end
  if not args.quiet then
    io.stderr:write(('http%s://%s:%d/  (%s)\n'):format(args.cert and 's' or '', args.host:find ':' and '[' .. args.host .. ']' or args.host,
      service.port, token and 'with a token' or args.insecure and 'without a token' or 'for this machine only; Ctrl-C ends it'))
  end
  -- An error in a callback is caught here and does not end the server.
  local ok, what
  repeat
    ok, what = pcall(ended.get, ended)
    if not ok and not cr.interrupted() then io.stderr:write('crescent: ', tostring(what), '\n') end
  until ok or cr.interrupted()
  for _, signal in ipairs(signals) do signal:close() end
  local waiting = service:close()
  if ok and what.problem then errors.fail(what.problem) end
  if not args.quiet then log('info', 'ended', { waiting = waiting }) end
end)
