-- Times whole runs of lipsync on one GPU and on several, with full-size networks and formula weights: a short clip,
-- and a long one that repeats it. For each run it prints the seconds that the Lua thread was busy, by stage, the time
-- to submit a step, and the idle time of each GPU between its first and its last step. A table follows: the speedup
-- of several GPUs, for the whole run and from the end of the first step on, and whether their latents are
-- bit-identical to those of one GPU. The last lines say whether each required speedup is reached.
--
--     build/crescent tests/bench/cuda_cards.lua --checkpoint DIR [--devices cuda:0/cuda:all] [--frames 1000] [--size 512]
--         [--steps 20] [--short 256,512] [--video FILE --audio FILE] [--out DIR]
--
-- The required speedups of two H200 over one, with 20 steps: 1.85 for 1,000 frames at 512 px, 1.65 for the
-- demonstration's clip. full_checkpoint.lua fills DIR if it contains no network. The first run of each size
-- is not counted, because it searches for algorithms, which are cached in OUT/cache. With the defaults everything
-- takes about 6 minutes on two H200.
--
-- Tiny: --checkpoint OUT/none --out OUT

local cr = require 'cr'
local files = require 'cr.files'
local lfs = require 'lfs'
local media = require 'cr.media'
local uv = require 'luv'

local options = require 'tests.bench.options'
local clip = cr.root .. '/models/mini/demo'
local o = options.read('Whole runs on one GPU and on several.', {
  { '--checkpoint', 'file', required = true, help = 'a checkpoint folder; an empty one is filled' },
  { '--devices', default = 'cuda:0/cuda:all', help = 'values of --device, separated by /; all are compared with the first' },
  { '--frames', 'int', default = 1000, min = 0, help = 'frames of the long clip; 0: no long clip' },
  { '--size', 'int', default = 512, min = 16, help = 'size in pixels for the long clip' },
  { '--short', default = '256,512', help = 'sizes in pixels for the short clip; none: no short clip' },
  { '--steps', 'int', default = 20, min = 1, help = 'denoising steps' },
  { '--video', 'file', default = clip .. '.mp4', help = 'the face' },
  { '--audio', 'file', default = clip .. '.flac', help = 'the sound' },
  { '--out', 'file', default = '/tmp', help = 'folder for results and the cache of algorithms' },
  { '--more', default = '', help = "options of lipsync, as --more='--rng torch-cpu'" },
})
local info = require 'tests.bench.card' ()
local program = uv.exepath()

if not lfs.attributes(o.checkpoint .. '/latentsync_unet.safetensors') then
  if os.execute(("'%s' '%s/tests/bench/full_checkpoint.lua' '%s'"):format(program, cr.root, o.checkpoint)) ~= 0 then os.exit(1) end
end

-- A video and a sound of this many frames, made by repeating the given ones.
local function repeated(frames)
  local video, audio = o.out .. '/long.mkv', o.out .. '/long.wav'
  local sink, left = media.writer(video, { like = o.video, fps = 25, crf = 12 }), frames
  while left > 0 do
    for frame in media.frames(o.video) do
      if left > 0 then sink:write { frame } end
      frame:free()
      left = left - 1
    end
  end
  sink:close()
  cr.scope(function()
    local once = media.load_audio(o.audio, { rate = 16000, channels = 1, s16 = true })
    local n = frames * 640
    local sound = once:reshape(once:numel()):repeat_(math.ceil(n / once:numel())):narrow(1, 1, n)
    files.write(audio, require 'tests.support.scratch'.wav_of(sound))
  end)
  return video, audio
end

-- Does one run; returns its report, whose `latents` is the path of the dumped latents.
local function run(name, device, video, audio, size, steps)
  local path = ('%s/cards-%s'):format(o.out, name)
  local words = ("CR_CACHE='%s/cache' '%s' lipsync --device '%s' --dtype f16 --video '%s' --audio '%s' --checkpoint '%s' --size %d " ..
    "--steps %d --out '%s.mp4' --report '%s.json' --dump-latents '%s.safetensors' --quiet %s"):format(o.out, program, device, video,
    audio, o.checkpoint, size, steps, path, path, path, o.more)
  if os.execute(words) ~= 0 then
    print(name .. ': failed')
    return nil
  end
  local report = require 'cr.json'.decode(files.read(path .. '.json'))
  report.latents = path .. '.safetensors'
  local parts = {}
  for _, card in ipairs(report.cards or {}) do
    parts[#parts + 1] = ('%s made %d windows%s, was idle for %.2f s, %.2f GB reserved'):format(card.device, card.windows,
      card.left_out and ' and was not used: ' .. card.left_out or '', card.idle_seconds or 0, (card.peak_reserved_bytes or 0) / 1e9)
  end
  if #parts == 0 then parts[1] = ('%s was idle for %.2f s'):format(device, report.card and report.card.idle_seconds or 0) end
  print(('%s: %d frames in %.2f s, first step after %.2f s; %s'):format(name, report.frames, report.seconds,
    report.first_step_seconds, table.concat(parts, '; ')))
  local stages, sum = {}, 0
  for stage, s in pairs(report.stages) do
    stages[#stages + 1] = ('%s %.2f'):format(stage, s.working_seconds)
    sum = sum + s.working_seconds
  end
  table.sort(stages)
  local given = report.frames / 16 * steps
  print(('    the thread worked for %.2f s: %s; %.2f ms to give a step'):format(sum, table.concat(stages, ', '),
    1e3 * report.stages.denoise.working_seconds / given))
  return report
end

local function same_latents(a, b)
  return cr.scope(function()
    local x, y = cr.load(a.latents).latents, cr.load(b.latents).latents
    return x:equal(y) and 'the same' or ('%.1e off'):format((x - y):abs():max():item())
  end)
end

local rows, bars = {}, {}
local BARS = { short = 1.65, long = 1.85 }

-- Runs the devices one after the other, each after an uncounted run of two steps of the short clip.
local function compare(what, video, audio, size)
  local first
  for device in o.devices:gmatch '[^/]+' do run('warm', device, o.video, o.audio, size, 2) end
  for device in o.devices:gmatch '[^/]+' do
    local report = run(('%s-%d-%s'):format(what, size, (device:gsub('[:,]', '-'))), device, video, audio, size, o.steps)
    if report then
      first = first or report
      rows[#rows + 1] = ('%-6s %5d %7d %6d  %-14s %9.2f %9.2f %10.2f %10.2f   %s'):format(what, size, report.frames, o.steps,
        report.settings.device, report.seconds, report.frames / report.seconds, first.seconds / report.seconds,
        (first.seconds - first.first_step_seconds) / (report.seconds - report.first_step_seconds), same_latents(first, report))
      local bar, times = BARS[what], first.seconds / report.seconds
      if report ~= first and (what == 'short' or size == 512) then
        bars[#bars + 1] = ('%s clip at %d px: %s is %.2f times as fast as %s; the bar for two is %.2f: %s'):format(what, size, device,
          times, first.settings.device, bar, times >= bar and 'held' or 'missed')
      end
    end
  end
end

for size in o.short:gmatch '%d+' do compare('short', o.video, o.audio, tonumber(size)) end
if o.frames > 0 then
  local video, audio = repeated(o.frames)
  compare('long', video, audio, o.size)
end

print(('%s, %d in this machine, crescent %s; times as fast as the first of each clip'):format(info.name, cr.cuda.count(), cr.version))
print 'clip      px  frames  steps  devices          seconds  frames/s  whole run after step 1   latents'
for _, row in ipairs(rows) do print(row) end
for _, line in ipairs(bars) do print(line) end
