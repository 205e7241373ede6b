-- A live session on a GPU with full-size networks: the latency of frames, whether the GPU is fast enough, whether
-- memory grows, and whether sound and picture are in sync at the end. Sound arrives in pieces of 20 ms in real time,
-- and every mouth is generated, also during silence.
--
--     build/crescent tests/bench/cuda_live.lua --checkpoint DIR [--cases 256:20,256:8,512:8] [--windows 8] [--seconds 60]
--         [--quant 8bit] [--idle FILE] [--audio FILE] [--out DIR]
--
-- A case is pixels:steps. full_checkpoint.lua fills DIR if it contains no network. A case takes its seconds and about
-- twenty more before. The table is printed last.
--
-- Tiny: --checkpoint OUT/none --out OUT --seconds 2

local cr = require 'cr'
local lfs = require 'lfs'
local media = require 'cr.media'
local uv = require 'luv'
local live = require 'models.latentsync.live'
local options = require 'tests.bench.options'

local clip = cr.root .. '/models/mini/demo'
local o = options.read('A live session on a GPU.', {
  { '--checkpoint', 'file', required = true, help = 'a checkpoint folder; an empty one is filled' },
  { '--cases', default = '256:20,256:8,512:20', help = 'pixels:steps, one or more' },
  { '--windows', default = '8', help = 'frames per window, one or more' },
  { '--seconds', 'number', default = 60, above = 0, unit = 'seconds', help = 'of sound' },
  { '--quant', default = '8bit', help = 'as for `crescent live`' },
  { '--idle', 'file', default = clip .. '.mp4', help = 'the face' },
  { '--audio', 'file', default = clip .. '.flac', help = 'the sound, repeated' },
  { '--out', 'file', default = '/tmp', help = 'folder for the videos' },
  { '--device', default = 'cuda', help = 'as for `crescent live`; two GPUs: cuda:0,cuda:1' },
  { '--every', 'int', default = 1, min = 1, help = 'as for `crescent live`' },
  { '--run-in', 'int', min = 0, help = 'as for `crescent live`' },
})
if o.device ~= 'cpu' then require 'tests.bench.card' () end

if not lfs.attributes(o.checkpoint .. '/latentsync_unet.safetensors') and not lfs.attributes(o.checkpoint .. '/latentsync_unet.pt') then
  if os.execute(("'%s' '%s/tests/bench/full_checkpoint.lua' '%s'"):format(uv.exepath(), cr.root, o.checkpoint)) ~= 0 then os.exit(1) end
end

local RATE, PIECE = 48000, 960

local function resident()
  for line in io.lines '/proc/self/status' do
    local kib = line:match '^VmRSS:%s*(%d+)'
    if kib then return tonumber(kib) / 2 ^ 20 end
  end
end

local function held()
  collectgarbage()
  local card = 0
  for device in (o.device ~= 'cpu' and o.device or ''):gmatch '[^,]+' do card = card + cr.memory(device).live / 2 ^ 30 end
  return { card = card, host = resident() }
end

-- Feeds this many seconds of the repeated sound in pieces, in real time.
local function feed(engine, sound, seconds)
  engine:await_start()
  local began, n, at = require 'cr.clock'(), sound:size(1), 0
  local start
  for i = 1, seconds * RATE / PIECE do
    cr.sleep(math.max(0, began + i * PIECE / RATE - require 'cr.clock'()))
    engine:hear(sound:narrow(1, at + 1, PIECE), { rate = RATE })
    at = (at + PIECE) % (n - n % PIECE)
    if i == 250 then start = held() end -- all is recorded, and every buffer has its size
  end
  local stop = held()
  engine:stop()
  return start or stop, stop
end

-- Seconds by which a file's sound is behind the input, found by correlation over one second that ends `before` the
-- end.
local function lag_of(path, sound, seconds, expected)
  return cr.scope(function()
    local out = media.load_audio(path, { rate = 16000, channels = 1 })
    local input = media.pcm { rate = 16000 }
    input:push(sound, { rate = RATE })
    input:finish()
    local x = input:take()
    input:close()
    local p, q, n, period = x:pointer(), out:pointer(), out:numel(), math.floor(sound:size(1) / PIECE) * PIECE / 3
    local from = math.floor((seconds - 2) * 16000)
    local best, where = -math.huge, 0
    for shift = math.floor((expected - 0.25) * 16000), math.floor((expected + 0.25) * 16000) do
      local sum = 0
      for i = from, from + 16000, 5 do
        if i + shift >= 0 and i + shift < n then sum = sum + p[i % period] * q[i + shift] end
      end
      if sum > best then best, where = sum, shift end
    end
    return where / 16000
  end)
end

local rows = {}
local function run(size, steps, window)
  local path = ('%s/live-%d-%d-%d.mp4'):format(o.out, size, steps, window)
  local file = assert(io.open(path, 'wb'))
  local sound = media.load_audio(o.audio, { rate = RATE, channels = 1 })
  sound = sound:view(sound:numel(), 1)
  local session = live.open({ idle = o.idle, checkpoint = o.checkpoint, device = o.device, size = size, steps = steps, quant = o.quant,
    frames_per_window = window, silence = 'model', every = o.every, run_in = o.run_in, out = path, quiet = true, duration = 4 },
    { bytes = function(bytes) file:write(bytes) end })
  local engine, first, start, stop, report = session.engine, nil, nil, nil, nil
  local place = engine.pace.place
  engine.pace.place = function(...)
    local k, torn = place(...)
    first = first or k
    return k, torn
  end
  cr.all { function() report = session:run() end, function() start, stop = feed(engine, sound, o.seconds) end }
  file:close()
  local reader = media.probe(path)
  local lag = lag_of(path, sound, o.seconds, (first + report.torn) / 25) - (first + report.torn) / 25
  session:free()
  sound:free()
  local s = report.seconds
  for _, line in ipairs(engine.metrics:lines()) do print('    ' .. line) end
  rows[#rows + 1] = table.concat({
    ('%4d px %2d steps, windows of %2d'):format(size, steps, window),
    ('latency p50 %.3f p99 %.3f most %.3f s'):format(s.latency.p50, s.latency.p99, s.latency.most),
    ('%.1f steps, %d of %d windows short, %d skipped, %d frames held, %d torn'):format(report.steps_mean or 0, report.short,
      report.windows, report.skipped, report.held, report.torn),
    ('sound %+.0f ms off at the end of %.1f s'):format(lag * 1000, reader.duration),
    ('card %.3f to %.3f GiB, host %.3f to %.3f GiB'):format(start.card, stop.card, start.host, stop.host),
  }, ' | ')
  print(rows[#rows])
end

if o.device ~= 'cpu' then print(cr.cuda.info().name) end
for case in o.cases:gmatch '[^,]+' do
  local size, steps = case:match '^(%d+):(%d+)$'
  assert(size, '--cases: pixels:steps, as in 256:20')
  for _, window in ipairs(options.numbers(o.windows)) do
    cr.run(run, tonumber(size), tonumber(steps), window)
    collectgarbage()
    collectgarbage()
  end
end
print()
for _, row in ipairs(rows) do print(row) end
os.exit(0, true)
