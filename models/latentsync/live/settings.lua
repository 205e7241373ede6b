--- The settings of a live session: the rows of a job's settings (models/latentsync/settings.lua) that it shares, and
--- its own.

local errors = require 'cr.errors'
local files = require 'cr.files'
local jobs = require 'models.latentsync.job'
local job = require 'models.latentsync.settings'
local schema = require 'cr.schema'

local M = { groups = job.groups }

-- Rows that are shared with a job.
local TAKEN = { 'checkpoint', 'vae', 'size', 'frames_per_window', 'steps', 'guidance', 'guidance_interval', 'guidance_rescale',
  'guidance_off_last', 'guidance_method', 'cache', 'seed', 'scheduler', 'device', 'dtype', 'quant', 'card', 'rng', 'points', 'detector',
  'face', 'smooth', 'no_face', 'mask', 'paste', 'match_colour', 'start', 'duration', 'codec', 'crf', 'label', 'quiet' }

-- Fields of these rows that differ.
local CHANGED = {
  frames_per_window = { default = function(s) return s.device == 'cpu' and 4 or 8 end, default_text = '8; on a CPU 4',
    help = 'frames per window: 16, 8 or 4; smaller windows have less latency',
    doc = 'frames per window: the fewer, the lower the latency; `models/README.md` has figures' },
  face = { help = 'whose mouth, as for lipsync; one person', doc = 'whose mouth, as for `lipsync`, except `all`' },
  start = { help = 'start in the idle clip' },
  duration = { default = 10, help = 'length of the idle clip', default_text = '10' },
  crf = { default = 23 },
}

local function rows()
  local list, by_name = {}, {}
  for _, row in ipairs(job.schema.rows) do by_name[row[1]] = row end
  for _, name in ipairs(TAKEN) do
    local row = {}
    for key, value in pairs(by_name[name]) do row[key] = value end
    for key, value in pairs(CHANGED[name] or {}) do row[key] = value end
    list[#list + 1] = row
  end
  return list
end

local own = {
  { 'idle', 'input', stage = 'input', required = true, help = 'video of a listening person, shown forward and backward',
    doc = 'a video of a listening person with a closed mouth, shown forward and backward in turn while nobody speaks' },
  { 'audio', 'string', stage = 'input', default = '-', metavar = 'SOUND', help = 'input sound: - is raw samples on standard input',
    doc = 'input sound: `-`, raw samples on standard input (`--rate`, `--channels`, `--format`); a file, played in real time; or what ' ..
      'FFmpeg opens: a URL, or, with `--audio-format alsa` and the like, a device' },
  { 'audio_format', 'string', stage = 'input', metavar = 'NAME', help = "FFmpeg's name of the input format",
    default_text = 'found out' },
  { 'rate', 'int', stage = 'input', default = 16000, min = 1, max = 1000000, unit = 'Hz', help = 'rate of raw samples' },
  { 'channels', 'int', stage = 'input', default = 1, min = 1, max = 8, help = 'channels of raw samples, and of the output' },
  { 'format', 'choice', stage = 'input', default = 's16', choices = { 's16', 'f32' }, help = 'format of raw samples, little-endian' },
  { 'out', 'string', stage = 'output', required = true, metavar = 'VIDEO', help = 'output file, URL or HLS playlist; - is standard output',
    doc = 'output: a growing file, a URL that FFmpeg writes to (`rtmp://...`, `udp://...`), an HLS playlist (`x.m3u8`), or `-`, ' ..
      'standard output' },
  { 'container', 'string', stage = 'output', metavar = 'NAME', help = "FFmpeg's name of the container",
    default_text = "from the file's extension; fragmented mp4 for -" },
  { 'look_ahead', 'int', stage = 'find', default = 100, min = 0, max = 2000, unit = 'milliseconds',
    help = 'look-ahead of the audio' },
  { 'span', 'number', stage = 'find', default = 8, min = 1, max = 30, unit = 'seconds', help = 'audio that Whisper encodes together' },
  { 'every', 'int', stage = 'find', min = 1, max = 25, help = 'frames that share a generated mouth',
    default = function(s) return s.device == 'cpu' and 5 or 1 end, default_text = '1; on a CPU 5: 5 mouths a second',
    doc = 'frames that share a generated mouth: with 5 there are 5 mouths a second; the head moves in all 25' },
  { 'run_in', 'int', stage = 'find', min = 0, max = 64, help = 'frames before a window that are denoised with it as context',
    default = function(s) return s.device ~= 'cpu' and s.frames_per_window <= 4 and 4 or 0 end,
    default_text = '4 with windows of 4 or fewer on a GPU, else 0',
    doc = 'frames before a window that are denoised with it as context and not shown: a small window follows the sound better, and ' ..
      'takes longer; `models/README.md` has figures' },
  { 'least_steps', 'int', stage = 'sample', default = 4, min = 1, max = 1000, help = 'minimum steps, when the device falls behind' },
  { 'silence', 'choice', stage = 'find', default = 'keep', choices = { 'keep', 'model' },
    help = 'where nobody speaks: keep the idle mouth, or generate the mouth for the sound (model)' },
  { 'gap', 'int', stage = 'find', default = 150, min = 20, max = 10000, unit = 'milliseconds', help = 'silence that ends a speech' },
  { 'margin', 'int', stage = 'find', default = 40, min = 0, max = 5000, unit = 'milliseconds',
    help = 'safety margin between a finished window and its presentation' },
  { 'queue', 'number', stage = 'input', default = 60, min = 1, max = 600, unit = 'seconds', help = 'maximum length of queued sound' },
  { 'report', 'output', stage = 'output', report = false, help = 'JSON file with counters, latency by stage and settings' },
}

--- Settings that a job does not have, or that differ.
M.special = {}
for _, row in ipairs(own) do M.special[#M.special + 1] = row[1] end
for name in pairs(CHANGED) do M.special[#M.special + 1] = name end

M.schema = schema.new((function()
  local list = rows()
  for i, row in ipairs(own) do table.insert(list, i, row) end
  return list
end)())

--- The settings of a session, checked and completed, from a command line or a script. Nothing is loaded.
--- @param given table
--- @param where string? '--' if messages shall name options of the command line
--- @return table
function M.complete(given, where)
  local dash = where == '--' and '--' or ''
  local s = M.schema:check('live', given)
  local model = type(s.checkpoint) == 'table' and s.checkpoint or nil
  local devices = model and { model.device } or require 'cr.cuda'.choose_all(s.device or 'auto', dash .. 'device')
  s.device = devices[1]
  M.schema:complete(s)
  if s.face == 'all' then errors.fail(dash .. 'face all: a live session generates one mouth: name one person') end
  files.check_readable(dash .. 'idle', s.idle)
  s = job.resolve(s, where, model)
  s.devices = devices
  if #devices > 1 and type(s.scheduler) == 'table' then
    errors.fail(dash .. 'scheduler: several GPUs need the scheduler by name or file, so that each has its own')
  end
  jobs.of_checkpoint(s, dash)
  local info = require 'cr.media'.probe(s.idle)
  if not info.has_video then errors.fail(s.idle .. ' has no video stream') end
  s.video = s.idle
  return s
end

return M
