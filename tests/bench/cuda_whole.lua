-- Times whole runs on a GPU with full-size networks: frames per second, seconds to the first step, the report's times
-- by stage, peak memory, and GPU utilization after the first step.
--
--     build/crescent tests/bench/cuda_whole.lua --checkpoint DIR [--video FILE] [--audio FILE] [--size 256,512]
--         [--steps 20] [--runs 2] [--out DIR] [--sample 500] [--timeline 0] [--more='OPTIONS OF LIPSYNC']
--
-- With --timeline N, the last N runs of each size print a timeline with the idle times of the GPU, which costs them
-- about 20 ms (whole_timeline.lua).
--
-- Utilization is sampled with nvidia-smi every SAMPLE milliseconds: the share of its own last period (some tenths of
-- a second) in which a kernel ran. Sampling slows the run down; 0 disables it.
--
-- full_checkpoint.lua fills DIR if it contains no network. Algorithms are cached in OUT/cache: the first run of the
-- first size is a GPU's first run, the last run of each size finds them in the cache.
--
-- Tiny: --checkpoint OUT/none --out OUT

local cr = require 'cr'
local cjson = require 'cjson'
local uv = require 'luv'
local lfs = require 'lfs'

local clip = cr.root .. '/models/mini/demo'
local o = require 'tests.bench.options'.read('Whole runs on a card.', {
  { '--checkpoint', 'file', required = true, help = 'a checkpoint folder; an empty one is filled' },
  { '--video', 'file', default = clip .. '.mp4', help = 'the face' },
  { '--audio', 'file', default = clip .. '.flac', help = 'the sound' },
  { '--size', default = '256,512', help = 'pixels' },
  { '--steps', 'int', default = 20, min = 1, help = 'denoising steps' },
  { '--runs', 'int', default = 2, min = 1, help = 'runs of each size' },
  { '--out', 'file', default = '/tmp', help = 'folder for results and the cache of algorithms' },
  { '--sample', 'int', default = 500, min = 0, unit = 'milliseconds', help = 'interval of utilization samples; 0: none' },
  { '--timeline', 'int', default = 0, min = 0, help = 'the last N runs of each size print a timeline' },
  { '--more', default = '', help = "options of lipsync, as --more='--rng philox'" },
})
require 'tests.bench.card' ()
local program = uv.exepath()

if not lfs.attributes(o.checkpoint .. '/latentsync_unet.safetensors') then
  local start = uv.hrtime()
  if os.execute(("'%s' '%s/tests/bench/full_checkpoint.lua' '%s'"):format(program, cr.root, o.checkpoint)) ~= 0 then os.exit(1) end
  print(('checkpoint written in %.0f s'):format((uv.hrtime() - start) * 1e-9))
end

-- Seconds of the day, like nvidia-smi's timestamps.
local function time_of_day()
  local seconds, micro = uv.gettimeofday()
  local d = os.date('*t', seconds)
  return d.hour * 3600 + d.min * 60 + d.sec + micro * 1e-6
end

-- Percentage of time with a running kernel, between two times of the day.
local function busy(path, from, to)
  local sum, n = 0, 0
  for line in io.lines(path) do
    local h, m, s, used = line:match ' (%d+):(%d+):([%d.]+), (%d+)'
    local at = h and h * 3600 + m * 60 + tonumber(s)
    if at and at >= from and at <= to then sum, n = sum + used, n + 1 end
  end
  return n > 0 and sum / n or nil, n
end

for size in o.size:gmatch '%d+' do
  for run = 1, o.runs do
    local name = ('%s/whole-%s-%d'):format(o.out, size, run)
    local samples = os.tmpname()
    local pid
    if o.sample > 0 then
      local query = 'nvidia-smi --query-gpu=timestamp,utilization.gpu --format=csv,noheader,nounits -lms ' .. o.sample
      local sampler = io.popen(("%s >'%s' 2>/dev/null & echo $!"):format(query, samples))
      pid = sampler:read '*l'
      sampler:close()
    end
    local start, begin = time_of_day(), uv.hrtime()
    local timed = run > o.runs - o.timeline
    local script = timed and ("'%s/tests/bench/whole_timeline.lua' '%s.txt'"):format(cr.root, name) or 'lipsync'
    local status = os.execute(("CR_CACHE='%s/cache' '%s' %s --device cuda --dtype f16 --video '%s' --audio '%s' " ..
      "--checkpoint '%s' --size %s --steps %s --out '%s.mp4' --report '%s.json' --quiet %s"):format(o.out, program, script, o.video,
      o.audio, o.checkpoint, size, o.steps, name, name, o.more))
    local took = (uv.hrtime() - begin) * 1e-9
    if pid then os.execute('kill ' .. pid) end
    if status ~= 0 then
      print(('%s px, run %d: failed'):format(size, run))
    else
      local file = io.open(name .. '.json', 'rb')
      local report = cjson.decode(file:read '*a')
      file:close()
      local first = report.first_step_seconds or 0
      local used, n = busy(samples, start + first, start + report.seconds)
      print(('%s px, run %d: %d frames in %.2f s (%.2f with start and hashes), %.2f frames/s; first step after %.2f s; GPU busy %s')
        :format(size, run, report.frames, report.seconds, took, report.frames / report.seconds, first,
          used and ('%.0f %% of %d samples'):format(used, n) or 'unknown'))
      local card = report.card or {}
      print(('    peak %.3f GB in tensors, %.3f reserved; resident %.3f GB'):format((card.peak_bytes or 0) / 1e9,
        (card.peak_reserved_bytes or 0) / 1e9, report.peak_resident_bytes / 1e9))
      local tags = {}
      for _, tag in ipairs(card.tags or {}) do
        tags[#tags + 1] = ('%s %.3f'):format(tag.name == '' and 'all else' or tag.name, tag.peak_bytes / 1e9)
      end
      print('    most of each kind, GB, not all at once: ' .. table.concat(tags, ', '))
      local stages = {}
      for stage, s in pairs(report.stages) do stages[#stages + 1] = { stage, s.seconds, s.working_seconds } end
      table.sort(stages, function(a, b) return a[2] > b[2] end)
      print '    stage               start to end     at work'
      for _, s in ipairs(stages) do print(('    %-16s %11.2f s %9.2f s'):format(unpack(s))) end
      if timed then
        for line in io.lines(name .. '.txt') do print('    ' .. line) end
      end
    end
    os.remove(samples)
  end
end
