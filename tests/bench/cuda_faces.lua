-- The cost of face detection in whole runs at 1080p on a GPU, with one person and with four: frames per second,
-- seconds to the first step, and the time of detection per frame.
--
--     build/crescent tests/bench/cuda_faces.lua [--checkpoint DIR] [--old PROGRAM] [--frames 125] [--steps 20] [--runs 2] [--out DIR]
--
-- Each round runs `each frame alone` (--face reference --smooth: the largest face of each frame, without tracking),
-- `followed` (the default), and, with --old, the default of another build's program, on the same videos.
--
-- Tiny: --out OUT

local cr = require 'cr'
local cjson = require 'cjson'
local film = require 'tests.support.film'
local media = require 'cr.media'
local uv = require 'luv'

local mini = cr.root .. '/models/mini'
local o = require 'tests.bench.options'.read("Faces' share of whole runs on a card.", {
  { '--checkpoint', 'file', default = mini, help = 'a checkpoint folder' },
  { '--old', 'file', help = "program of another build, run on the same videos" },
  { '--frames', 'int', default = 125, min = 16, help = 'of a film' },
  { '--steps', 'int', default = 20, min = 1, help = 'denoising steps' },
  { '--runs', 'int', default = 2, min = 1, help = 'rounds; the best is printed, after one that is not counted' },
  { '--out', 'file', default = '/tmp', help = 'folder for films and results' },
})
require 'tests.bench.card' ()

local HEIGHT, WIDTH, SIDE = 1080, 1920, 460
local names = { 'carl', 'anna', 'bert', 'carl' }

-- A video of the first n people; the fourth is the first one in other colours.
local function write(path, n)
  local sink = media.writer(path, { fps = 25 })
  for i = 0, o.frames - 1 do
    cr.scope(function()
      local layers = {}
      for k = 1, n do
        local picture = cr.nn.resize(film.person(names[k])(i), SIDE - 20 * k, SIDE - 20 * k, 'bilinear')
        if k == 4 then picture = cr.cat({ picture:narrow(3, 2, 1), picture:narrow(3, 1, 1), picture:narrow(3, 3, 1) }, 3) end
        layers[k] = { picture, x = 20 + 470 * (k - 1), y = 300 }
      end
      local frame = film.frame(HEIGHT, WIDTH, layers, i)
      sink:write(frame)
      frame:free()
    end)
  end
  sink:close()
  return path
end

local function run(program, video, more)
  local report = o.out .. '/faces.json'
  local status = os.execute(("CR_CACHE='%s/cache' '%s' lipsync --device cuda --dtype f16 --video '%s' --audio '%s/demo.flac' " ..
    "--duration %g --checkpoint '%s' --steps %d --out '%s/faces.mp4' --report '%s' --quiet %s"):format(o.out, program, video, mini,
    o.frames / 25, o.checkpoint, o.steps, o.out, report, more))
  if status ~= 0 then os.exit(1) end
  local file = assert(io.open(report, 'rb'))
  local r = cjson.decode(file:read '*a')
  file:close()
  return r
end

local program, ways = uv.exepath(), {}
ways[1] = { 'each frame alone', program, '--face reference --smooth' }
ways[2] = { 'followed', program, '' }
if o.old then ways[3] = { 'the old program', o.old, '' } end
print(('%-10s %-18s %15s %16s %22s'):format('people', 'faces', 'frames per second', 'first step, s', 'looking, ms a frame'))
for _, n in ipairs { 1, 4 } do
  local video = write(('%s/faces-%d.mp4'):format(o.out, n), n)
  local best = {}
  for round = 0, o.runs do
    for k, way in ipairs(ways) do
      local r = run(way[2], video, way[3])
      if round > 0 and (not best[k] or r.seconds < best[k].seconds) then best[k] = r end
    end
  end
  for k, way in ipairs(ways) do
    local r = best[k]
    print(('%-10d %-18s %15.2f %16.2f %22.2f'):format(n, way[1], r.frames / r.seconds, r.first_step_seconds,
      1e3 * r.stages.detect.working_seconds / r.frames))
  end
end
film.free()
