--- Peak resident memory of lipsync on 20 s and on 120 s of 1080p video: it must not grow with the length.
--
--     build/crescent tests/bench/memory.lua [--short 20] [--long 120]      seconds
--
-- Tiny: --short 1 --long 2 --bar 10
--
-- The network is tiny and its windows have 64 pixels, so that the run is short; the frames are 1080p. The video lasts
-- 9/10 of the sound, so that decoding backward is measured, too.

local cr = require 'cr'
local child = require 'tests.support.child'
local scratch = require 'tests.support.scratch'
local cjson = require 'cjson'

io.stdout:setvbuf 'line'
local o = require 'tests.bench.options'.read('Memory of a short run and a long run.', {
  { '--short', 'int', default = 20, min = 1, unit = 'seconds', help = 'of the first video' },
  { '--long', 'int', default = 120, min = 1, unit = 'seconds', help = 'of the second' },
  { '--bar', 'number', default = 1.05, help = 'largest allowed ratio of their memory' },
})
local dir = child.folder
local checkpoint = dir .. '/checkpoint'

local function measure(seconds)
  local video, voice = dir .. '/face.mp4', dir .. '/voice.wav'
  local n = math.floor(seconds * 25 * 0.9)
  cr.scope(function()
    local base = cr.rand(1080 / 40, 1920 / 40, 3)
    local frame = require 'cr.nn'.resize(base * 255, 1080, 1920, 'bilinear'):to 'u8'
    local sink = cr.media.writer(video, { fps = 25, crf = 30 })
    for _ = 1, n do sink:write(frame) end
    sink:close()
  end)
  local data = ('\1\0\2\0\255\255\254\255'):rep(seconds * 16000 / 4)
  child.file('voice.wav', scratch.wav(data))
  local points = {}
  for i = 1, n do points[i] = { { 800 + i % 7, 400 }, { 1000, 402 }, { 900, 530 } } end
  child.file('points.json', cjson.encode(points))
  local r = child.run({ 'lipsync', '--video', video, '--audio', voice, '--out', dir .. '/out.mp4', '--checkpoint', checkpoint,
    '--size', '64', '--steps', '1', '--points', dir .. '/points.json', '--report', dir .. '/report.json', '--quiet' }, { limit = 3000 })
  if r.code ~= 0 then error(r.err, 0) end
  local f = io.open(dir .. '/report.json')
  local report = cjson.decode(f:read '*a')
  f:close()
  print(('%4d s of 1080p: %5d frames in %6.1f s, peak resident %7.1f MiB, tensors at most %6.1f MiB'):format(seconds,
    report.frames, report.seconds, report.peak_resident_bytes / 2 ^ 20, report.tensors_peak_bytes / 2 ^ 20))
  return report.peak_resident_bytes
end

local ok, err = pcall(function()
  require 'tests.support.checkpoint'.write(checkpoint)
  local a = measure(o.short)
  local b = measure(o.long)
  print(('ratio %.3f (bar %g)'):format(b / a, o.bar))
  if b / a > o.bar then error('memory grows with the length of the video', 0) end
end)
child.clean()
if not ok then error(err, 0) end
