--- Times InsightFace's finder on a frame of noise: its parts, and a frame with one face.
--
--     build/crescent tests/bench/insight.lua --pack DIR/auxiliary/models/buffalo_l [--size 720,1280] [--runs N] [--device cuda]
--
-- Tiny: --pack tests/golden => No such file

local cr = require 'cr'
local clock = require 'cr.clock'
local detector = require 'models.networks.insight_detector'
local insight = require 'models.latentsync.insight'
local landmarks = require 'models.networks.insight_landmarks'

local bench_options = require 'tests.bench.options'
local o = bench_options.read("Times InsightFace's detector.", {
  { '--pack', 'folder', required = true, help = 'folder with det_10g.onnx and 2d106det.onnx' },
  { '--size', default = '720,1280', help = 'height and width of the frame' },
  { '--runs', 'int', default = 100, min = 1, help = 'runs, after two that are not counted' },
  { '--device', 'string', default = 'cpu', metavar = 'NAME', help = 'cpu or cuda' },
})

local ok, finder = pcall(insight.load, { dir = o.pack, device = o.device })
if not ok then require 'cr.tools.cli'.fail((tostring(finder):gsub('^[^\n]-%.lua:%d+: ', ''))) end

local function wait()
  if o.device ~= 'cpu' then cr.cuda.synchronize() end
end

local function time(name, fn)
  local times = {}
  for run = -1, o.runs do
    cr.scope(function()
      wait()
      local start = clock()
      fn()
      wait()
      if run > 0 then times[run] = (clock() - start) * 1e3 end
    end)
  end
  table.sort(times)
  print(('%-20s minimum %.2f ms, median %.2f ms'):format(name, times[1], times[math.ceil(#times / 2)]))
end

cr.scope(function()
  local size = bench_options.numbers(o.size)
  local frame = (cr.rand(size[1], size[2], 3, { generator = cr.generator(1) }) * 255):to 'u8':to(o.device)
  local picture, scale = detector.letterbox(frame)
  local scores, rows = finder.detector:anchors(picture)
  scores, rows = scores:clone(), rows:clone()
  local side = math.min(size[1], size[2]) / 2
  local box = { size[2] / 2 - side / 2, size[1] / 2 - side / 2, size[2] / 2 + side / 2, size[1] / 2 + side / 2 }
  time('letterbox', function() detector.letterbox(frame) end)
  time('detector', function() finder.detector:anchors(picture) end)
  time('boxes', function() detector.suppress(detector.decode(scores, rows, scale)) end)
  time('cut', function() landmarks.cut(frame, landmarks.matrix(box)) end)
  time('106 points', function() finder.landmarks:find(frame, box) end)
  time('all, of one face', function()
    finder.detector:detect(frame)
    finder.landmarks:find(frame, box)
  end)
end)
