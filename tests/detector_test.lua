--- The setting `detector`: which networks find faces, what reports it, and incomplete packs of files.

local cr = require 'cr'
local child = require 'tests.support.child'
local cjson = require 'cjson'
local clip = require 'tests.support.clip'
local finder = require 'models.latentsync.finder'
local insight = require 'tests.support.insight'
local media = require 'cr.media'
local smooth = require 'tests.support.formula_image'
local t = require 'tests.support.tap'

clip.needs_whisper(t, 'lipsync')

local FRAMES = 3
local numbers = insight.numbers()
local checkpoint, voice, video = clip.checkpoint 'checkpoint', clip.voice('voice.wav', FRAMES / 25), clip.path 'drawn.mkv'

cr.scope(function()
  local sink = media.writer(video, { lossless = true, fps = 25 })
  for _ = 1, FRAMES do sink:write(insight.picture(512, 512, 3)) end
  sink:close()
end)

local function lipsync(extra)
  local args = { 'lipsync', '--video', video, '--audio', voice, '--out', clip.path 'out.mkv', '--checkpoint', checkpoint, '--size', '64',
    '--steps', '1', '--scheduler', 'ddim', '--lossless', '--report', clip.path 'report.json' }
  for _, word in ipairs(extra or {}) do args[#args + 1] = word end
  return child.run(args)
end

local function report() return cjson.decode(io.open(clip.path 'report.json'):read '*a') end

t.test("auto uses a complete pack, whatever is beside it; --face reference selects the package's face", function()
  insight.pack(checkpoint, { ['w600k_r50.onnx'] = 'nonsense', ['1k3d68.onnx'] = '' })
  local r = lipsync { '--face', 'reference' }
  t.equal(r.code, 0, r.err)
  t.ok(r.err:find '64 px, 3 frames, faces by InsightFace\n', r.err)
  t.equal(report().settings.detector, 'insightface', 'the report')
  for name, file in pairs { detector = 'det_10g.onnx', landmarks = '2d106det.onnx' } do
    local told = report().checkpoint[name]
    t.ok(told.path:find(file, 1, true) and told.sha256 == cr.weights.sha256(told.path), file .. ' in the report')
  end
  local found = clip.frames 'out.mkv'
  local p = numbers['512x512.3.chosen']:tolist()
  local points = { { p[2], p[3] }, { p[4], p[5] }, { p[6], p[7] } }
  r = lipsync { '--points', clip.points('points.json', { points, points, points }) }
  t.equal(r.code, 0, r.err)
  t.ok(r.err:find 'faces by the points given\n', r.err)
  t.equal(report().settings.detector, nil, 'no detector')
  t.equal(report().checkpoint.detector, nil, 'and no file of one')
  for i, frame in ipairs(clip.frames 'out.mkv') do
    t.equal(smooth.compare(frame, found[i]), 0, 'frame ' .. i)
    t.ok(smooth.compare(frame, insight.picture(512, 512, 3)) > 0, 'something is made')
  end
  t.equal(lipsync { '--detector', 'insightface' }.code, 0, 'asked for, and followed')
  r = lipsync { '--detector', 'mediapipe' }
  t.ok(r.code == 1 and r.err:find 'faces by MediaPipe\n' and r.err:find 'no face was found in any of the 3 frames', r.err)
  r = child.run { 'doctor', '--checkpoint', checkpoint }
  t.ok(r.out:find '\nok +faces +found by InsightFace: ', r.out)
end)

t.test('crescent faces uses the networks of a run', function()
  insight.pack(checkpoint)
  local function faces(...) return child.run { 'faces', '--quiet', '--device', 'cpu', video, ... } end
  local r = faces('--checkpoint', checkpoint)
  t.ok(r.code == 0 and r.out:find '^ +1  0%.00 to 0%.12 s, in 100 %%', r.out .. r.err)
  r = faces('--checkpoint', checkpoint, '--detector', 'mediapipe')
  t.ok(r.code == 0 and r.out:find '^no face was found in any of the 3 frames', r.out .. r.err)
  r = faces('--detector', 'insightface')
  t.ok(r.code == 1 and r.err:find "^crescent: %-%-detector insightface needs a checkpoint's folder that holds its networks\n$", r.err)
end)

t.test('an incomplete, damaged or missing pack gives one sentence, and nothing is written', function()
  local out = clip.path 'none.mkv'
  local function says(change, extra, pattern)
    insight.pack(checkpoint, change)
    local args = { '--out', out }
    for _, word in ipairs(extra) do args[#args + 1] = word end
    local r = lipsync(args)
    t.ok(r.code == 1 and r.lines == 1 and r.err:find('^crescent: [^\n]*' .. pattern), r.err)
    t.ok(not child.exists(out), 'no output')
  end
  local none = { ['det_10g.onnx'] = false, ['2d106det.onnx'] = false }
  local half = { ['2d106det.onnx'] = false }
  local put = " does not exist: put InsightFace's pack buffalo_l there, or choose %-%-detector mediapipe\n"
  says(half, {}, 'buffalo_l/2d106det%.onnx' .. put)
  local r = child.run { 'doctor', '--checkpoint', checkpoint }
  t.ok(r.code == 1 and r.out:find '\nMISSING +faces +[^\n]*2d106det%.onnx does not exist', r.out)
  says(none, { '--detector', 'insightface' }, 'buffalo_l/det_10g%.onnx' .. put)
  says({ ['det_10g.onnx'] = 'nonsense' }, {}, 'buffalo_l/det_10g%.onnx: ')
  r = child.run { 'doctor', '--checkpoint', checkpoint }
  t.ok(r.out:find '\nMISSING +faces +/[^\n:]*/det_10g%.onnx: ', r.out)
  insight.pack(checkpoint, none)
  t.equal(finder.choose('auto', checkpoint), 'mediapipe', 'without a pack')
  r = child.run { 'doctor', '--checkpoint', checkpoint }
  t.ok(r.out:find '\n%- +faces +found by MediaPipe', r.out)
  r = child.run { 'doctor', '--checkpoint', clip.path 'nowhere' }
  t.ok(r.code == 1 and r.out:find '\nMISSING +faces +[^\n]*nowhere is not a folder', r.out)
  r = lipsync { '--detector', 'retinaface' }
  t.ok(r.code == 2 and r.err:find "'retinaface' is not auto, insightface or mediapipe", r.err)
end)

for _, x in pairs(numbers) do x:free() end
child.clean()
t.done()
