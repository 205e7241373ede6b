--- The settings of a live session, declared once: a job's (models/latentsync/settings.lua) where they mean the same, and its own.

local errors = require 'cr.errors'
local files = require 'cr.files'
local jobs = require 'models.latentsync.job'
local job = require 'models.latentsync.settings'
local schema = require 'cr.schema'

local M = {}

-- A job's rows that a live session has, too.
local TAKEN = { 'checkpoint', 'vae', 'size', 'frames_per_window', 'steps', 'guidance', 'guidance_interval', 'guidance_rescale',
  'guidance_off_last', 'guidance_method', 'cache', 'seed', 'scheduler', 'device', 'dtype', 'quant', 'card', 'rng', 'points', 'detector',
  'face', 'smooth', 'no_face', 'mask', 'paste', 'match_colour', 'start', 'duration', 'codec', 'crf', 'label', 'quiet' }

-- What stands differently in them.
local CHANGED = {
  frames_per_window = { default = function(s) return s.device == 'cpu' and 4 or 8 end, default_text = '8; on a CPU 4',
    help = 'mouths made together: 16, 8 or 4; fewer are sooner',
    doc = 'mouths that are made together: the fewer, the sooner a sound has its frame; `models/README.md` has figures' },
  face = { help = 'whose mouth, as of lipsync; one person', doc = 'whose mouth, as of `lipsync`, but for `all`' },
  start = { help = 'where to begin in the idle clip' },
  duration = { default = 10, help = 'how much of the idle clip', default_text = '10' },
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
  { 'idle', 'input', stage = 'input', required = true, help = 'video of somebody who listens: shown forward and backward',
    doc = 'a video of somebody who listens, mouth closed: shown forward and backward in turn while nobody speaks' },
  { 'audio', 'string', stage = 'input', default = '-', metavar = 'SOUND', help = 'what comes in: - is raw samples on standard input',
    doc = 'what comes in: `-`, raw samples on standard input (`--rate`, `--channels`, `--format`); a file, at its own pace; or what ' ..
      'FFmpeg opens: a URL, or, with `--audio-format alsa` and the like, a device' },
  { 'audio_format', 'string', stage = 'input', metavar = 'NAME', help = "FFmpeg's name of how the sound is read",
    default_text = 'found out' },
  { 'rate', 'int', stage = 'input', default = 16000, min = 1, max = 1000000, unit = 'Hz', help = 'of raw samples' },
  { 'channels', 'int', stage = 'input', default = 1, min = 1, max = 8, help = 'of raw samples, and of the sound that comes out' },
  { 'format', 'choice', stage = 'input', default = 's16', choices = { 's16', 'f32' }, help = 'of raw samples, little-endian' },
  { 'out', 'string', stage = 'output', required = true, metavar = 'VIDEO', help = 'file, URL, HLS playlist; - is standard output',
    doc = 'where it goes: a file, which grows, what FFmpeg writes to (`rtmp://...`, `udp://...`), an HLS playlist (`x.m3u8`), or `-`, ' ..
      'standard output' },
  { 'container', 'string', stage = 'output', metavar = 'NAME', help = "FFmpeg's name of the container",
    default_text = "the ending's; of - mp4, in fragments" },
  { 'look_ahead', 'int', stage = 'find', default = 100, min = 0, max = 2000, unit = 'milliseconds',
    help = 'of sound heard ahead of a frame' },
  { 'span', 'number', stage = 'find', default = 8, min = 1, max = 30, unit = 'seconds', help = 'that Whisper hears together' },
  { 'every', 'int', stage = 'find', min = 1, max = 25, help = 'frames that share a made mouth',
    default = function(s) return s.device == 'cpu' and 5 or 1 end, default_text = '1; on a CPU 5: 5 mouths a second',
    doc = 'frames that share a made mouth: with 5 there are 5 mouths a second; the head moves in all 25' },
  { 'least_steps', 'int', stage = 'sample', default = 4, min = 1, max = 1000, help = 'steps at least, when the device falls behind' },
  { 'silence', 'choice', stage = 'find', default = 'keep', choices = { 'keep', 'model' },
    help = 'where nobody speaks: keep the idle mouth, or make what the model hears' },
  { 'gap', 'int', stage = 'find', default = 150, min = 20, max = 10000, unit = 'milliseconds', help = 'without sound that end a speech' },
  { 'margin', 'int', stage = 'find', default = 40, min = 0, max = 5000, unit = 'milliseconds',
    help = 'by which a window is to be made before it is shown' },
  { 'queue', 'number', stage = 'input', default = 60, min = 1, max = 600, unit = 'seconds', help = 'of sound that may wait' },
  { 'report', 'output', stage = 'output', report = false, help = 'JSON with counts, latency by stage, settings' },
}

--- The rows that a job has not, or not so.
M.special = {}
for _, row in ipairs(own) do M.special[#M.special + 1] = row[1] end
for name in pairs(CHANGED) do M.special[#M.special + 1] = name end

M.schema = schema.new((function()
  local list = rows()
  for i, row in ipairs(own) do table.insert(list, i, row) end
  return list
end)())

--- The settings of a session, checked and complete: `given` from a command line or a script. Nothing is loaded.
--- @param given table
--- @param where string? '--': sentences name options of the command line
--- @return table
function M.complete(given, where)
  local dash = where == '--' and '--' or ''
  local s = M.schema:check('live', given)
  local model = type(s.checkpoint) == 'table' and s.checkpoint or nil
  local devices = model and { model.device } or require 'cr.cuda'.choose_all(s.device or 'auto', dash .. 'device')
  s.device = devices[1]
  M.schema:complete(s)
  if s.face == 'all' then errors.fail(dash .. 'face all: a live session makes one mouth: name one person') end
  files.check_readable(dash .. 'idle', s.idle)
  s = job.resolve(s, where, model)
  s.devices = devices
  if #devices > 1 and type(s.scheduler) == 'table' then
    errors.fail(dash .. 'scheduler: several cards need it by its name or file, to have one each')
  end
  jobs.of_checkpoint(s, dash)
  local info = require 'cr.media'.probe(s.idle)
  if not info.has_video then errors.fail(s.idle .. ' has no video stream') end
  s.video = s.idle
  return s
end

return M
