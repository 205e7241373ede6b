--- Upscaling in the pipeline: the effect of `--upscale` on frames.

local align = require 'models.latentsync.align'
local child = require 'tests.support.child'
local cr = require 'cr'
local detail = require 'models.laboratory.detail'
local enlargers = require 'models.upscale.enlarger'
local formula = require 'tests.support.formula'
local media = require 'cr.media'
local picture = require 'tests.support.formula_image'
local scratch = require 'tests.support.scratch'
local settings = require 'models.latentsync.settings'
local stage_of = require 'models.latentsync.stages.upscale'
local t = require 'tests.support.tap'
local upscaler = require 'models.networks.upscaler'

local network = require 'tests.support.checkpoint'.upscaler(scratch.path 'small.safetensors')

-- A job as a stage sees it; its messages go to `told`.
local function job_of(value, told)
  return {
    settings = { upscale = value, device = 'cpu', dtype = 'f32' },
    progress = {
      note = function(_, text) told[#told + 1] = text end,
      measure = function(_, _, _, fn, ...) return fn(...) end,
    },
  }
end

-- A position in which the square of a face with 32 pixels is `side` pixels wide.
local function matrix(side, size)
  local scale = align.side_in_frame({ 1, 0, 0, 0, 1, 0 }, size or 32) / side
  return { scale, 0, 0, 0, scale, 0 }
end

t.test('mouth upscales pasted faces, only as far as the frame shows them', function()
  local told = {}
  local stage = stage_of(job_of('mouth:' .. network, told))
  local clip = { n = 2, first = 1, items = { { matrix = matrix(60) }, {} } }
  cr.scope(function()
    local faces = formula.tensor('faces', { 2, 32, 32, 3 }, { kind = 'raw' })
    local large = stage:window(clip, faces)
    t.equal(table.concat(large.shape, ' '), '2 64 64 3')
    local enlarger = enlargers.new(upscaler.load(network))
    t.near(large:select(1, 1), enlarger:enlarge((faces:select(1, 1) + 1) / 2) * 2 - 1, 1e-6)
    enlarger:free()
    t.equal(stage:window({ n = 1, items = { {} } }, nil), nil, 'a window without a face')
  end)
  stage:close()
  t.equal(told[1], '--upscale mouth: on a processor this takes some seconds for each frame')
  t.equal(#told, 1)
end)

t.test('mouth does nothing, with one message, if the face in the frame is not larger', function()
  local told = {}
  local stage = stage_of(job_of('mouth:' .. network, told))
  cr.scope(function()
    local faces = cr.zeros(1, 32, 32, 3)
    for _ = 1, 2 do t.equal(stage:window({ n = 1, first = 1, items = { { matrix = matrix(31) } } }, faces), nil) end
  end)
  stage:close()
  t.equal(#told, 1)
  t.ok(told[1]:find 'upscaling gains nothing', told[1])
end)

t.test('mouth uses the median of all faces so far, not the first window', function()
  local told = {}
  local stage = stage_of(job_of('mouth:' .. network, told))
  local shown = 0
  -- The resulting side for a window of four faces with these widths in the frame.
  local function side(...)
    local clip = { n = 4, first = shown + 1, items = {} }
    for i = 1, 4 do clip.items[i] = { matrix = matrix((select(math.min(i, select('#', ...)), ...))) } end
    shown = shown + 4
    return cr.scope(function()
      local large = stage:window(clip, cr.zeros(4, 32, 32, 3))
      return large and large:size(2) or 32
    end)
  end
  t.equal(side(20), 32, 'it begins far away')
  t.equal(side(50, 33, 33, 33), 32, 'no majority yet')
  t.equal(side(60), 32, 'the median is 33: not firmly wider')
  t.equal(side(60), 64, 'near for most of the time')
  t.equal(side(20), 64, 'a cut back does not change it')
  for _ = 1, 4 do side(20) end
  t.equal(side(20), 32, 'far for most of the time')
  stage:close()
  t.equal(#told, 3)
  t.ok(told[1]:find '^%-%-upscale mouth: the faces are 20 pixels wide in the frame and generated at 32, so', told[1])
  t.ok(told[2]:find '^%-%-upscale mouth: from 0.48 s on the faces are 50 pixels wide in the frame and are upscaled$', told[2])
  t.ok(told[3]:find '^%-%-upscale mouth: from %d.%d+ s on the faces are 20 pixels wide .* upscaling gains nothing$', told[3])
end)

t.test('frame upscales finished frames', function()
  local stage = stage_of(job_of('frame:3:' .. network, {}))
  cr.scope(function()
    local frame = picture.image('stage', 12, 18)
    t.equal(table.concat(stage:frame({}, frame).shape, ' '), '36 54 3')
  end)
  stage:close()
end)

t.test('an upscaled face is pasted into the same place', function()
  cr.scope(function()
    local frame, mask = picture.image('frame', 120, 120), align.mask(64)
    local face = formula.tensor('smooth', { 4, 4, 3 }, { kind = 'raw' })
    local nn = require 'cr.nn'
    local small = nn.resize(face, 64, 64, 'bilinear')
    local large = nn.resize(face, 128, 128, 'bilinear')
    local m = matrix(100, 64)
    local one, two = align.paste_region(frame, small, m, mask), align.paste_region(frame, large, m, mask)
    t.ok(picture.compare(one, frame) > 0.01, 'something is pasted')
    local share, most = picture.compare(one, two, 2)
    t.ok(share < 0.005, ('%g, by up to %d'):format(share, most))
  end)
end)

t.test('a restorer as a script: scripts/examples/sharpen_mouth.lua', function()
  for _, name in ipairs { 'face/face_detection_full_range.tflite', 'face/face_landmark.tflite', 'whisper/tiny.en.safetensors' } do
    t.fetched(name)
  end
  local script = cr.root .. '/scripts/examples/sharpen_mouth.lua'
  t.equal(child.run({ script }).code, 2, 'usage')
  local samples = {}
  for i = 1, 16000 * 0.08 do samples[i] = scratch.le(math.floor(3000 * math.sin(i * 0.2)) % 65536, 2) end
  local voice = scratch.write('voice.wav', scratch.wav(table.concat(samples)))
  local video, mini = cr.root .. '/models/mini/demo.mp4', cr.root .. '/models/mini'
  local function sharpness(strength)
    local out = scratch.path('sharp' .. strength .. '.mp4')
    local r = child.run { script, video, voice, out, mini, strength }
    t.equal(r.code, 0, r.err)
    return cr.scope(function()
      local reader, sums = media.reader(out, { fps = 25 }), {}
      local frames = reader:read(10)
      reader:close()
      t.equal(#frames, 2)
      local luma = require 'cr.image'.luma(frames[1])
      detail.add_sharpness(sums, 'all', luma, cr.ones(luma.shape))
      local value = detail.sharpness(sums, 'all')
      detail.free(sums)
      return value
    end)
  end
  local plain, sharp = sharpness '0', sharpness '3'
  t.ok(sharp > 1.02 * plain, ('%g, sharpened %g'):format(plain, sharp))
end)

t.test('the setting', function()
  t.equal(settings.check('job', { upscale = 'frame:2' }).upscale, 'frame:2')
  t.raises(function() settings.check('job', { upscale = 'frame' }) end, "upscale: 'frame' is not mouth, or frame:N")
  t.raises(function() settings.check('session', { upscale = 'mouth' }, { 'find', 'paste' }) end, "there is no option 'upscale'")
  t.equal(stage_of(job_of('none', {})), nil)
end)

t.done()
