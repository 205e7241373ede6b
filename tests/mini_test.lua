-- The small model (models/mini): it loads like LatentSync's, its lips follow the sound, and its SyncNet distinguishes
-- the demo's sound from others. The limits are low enough to tolerate rounding, and high enough that a model which
-- paints an average mouth fails; tests/bench/mini.lua measures the model thoroughly.

local t = require 'tests.support.tap'
local cr = require 'cr'
local lfs = require 'lfs'
local measure = require 'tests.bench.mini_measure'
local scratch = require 'tests.support.scratch'

local MINI = cr.root .. '/models/mini'
local VIDEO, SOUND = MINI .. '/demo.mp4', MINI .. '/demo.flac'
local WEIGHTS = { '/latentsync_unet.safetensors', '/vae/diffusion_pytorch_model.safetensors', '/syncnet.safetensors' }
local LARGEST = 12e6 -- bytes of everything in models/mini
local STEPS = 10 -- maximum by default

--- {path, bytes} of every committed file below a folder.
local function files_of(folder, list)
  list = list or {}
  for name in lfs.dir(folder) do
    local path = folder .. '/' .. name
    if name == '__pycache__' or name:sub(1, 1) == '.' then -- luacheck: ignore
    elseif lfs.attributes(path, 'mode') == 'directory' then
      files_of(path, list)
    else
      list[#list + 1] = { path = path, bytes = lfs.attributes(path, 'size') }
    end
  end
  return list
end

t.test('the folder is small, and its weights have 16 bits', function()
  t.fetched 'face/face_landmark.tflite'
  local total = 0
  for _, file in ipairs(files_of(MINI)) do total = total + file.bytes end
  t.ok(total <= LARGEST, ('%.2f MB in models/mini'):format(total / 1e6))
  for _, name in ipairs(WEIGHTS) do
    local file = require 'cr.weights'.open(MINI .. name)
    for _, tensor in ipairs(file.names) do
      if file:info(tensor).dtype ~= 'f16' then t.equal(file:info(tensor).dtype, 'f16', name .. ' ' .. tensor) end
    end
    t.ok(#file.names > 0)
    file:close()
  end
end)

t.test('it loads as any checkpoint does, and names its sampling', function()
  t.fetched 'face/face_landmark.tflite'
  cr.scope(function()
    local model = require 'models.latentsync'.load(MINI)
    t.equal(model.size, 128)
    t.ok(model.sampling.steps <= STEPS, ('%d steps'):format(model.sampling.steps))
    t.ok(model.sampling.guidance >= 1, 'guidance')
    t.equal(model.unet.config.in_channels, 3 * model.channels + 1)
    t.ok(model.files.whisper:find 'models/fetched/whisper', model.files.whisper)
  end)
end)

-- ---- lips ------------------------------------------------------------------------------------

local function mean(curve)
  local values = {}
  for i = 1, curve.n do values[#values + 1] = curve.opening[i] or nil end
  return measure.mean(values)
end

t.test('the demo: lips follow the sound, close in silence, and nothing else changes', function()
  t.fetched 'face/face_landmark.tflite'
  local truth = require 'cjson'.decode(scratch.read(MINI .. '/demo.json')).opening
  local quiet = scratch.write('quiet.wav', scratch.wav(('\0\0'):rep(2 * 16000)))
  cr.scope(function()
    local model = require 'models.latentsync'.load(MINI)
    local finder = require 'models.latentsync.face'.load { range = 'full' }
    local outside, seam = 0, {}
    local function openings(sound, start, windows)
      local curve = measure.curves(finder)
      measure.generate(model, VIDEO, sound, { start = start, duration = windows * 16 / 25, frame = function(before, after, item, mask)
        curve.read(after)
        seam[#seam + 1] = #seam < 4 and measure.seam(before, after, item.matrix, mask) or nil
        outside = outside + measure.changed_outside(before, after, item.matrix, mask)
      end })
      return curve
    end
    local FIRST = 8 -- frames that are ignored: words begin
    local speaking = openings(SOUND, FIRST / 25, 2)
    local silent = openings(quiet, 0, 1)
    finder:free()
    t.equal(speaking.n, 32)
    local wanted = {}
    for i = 1, speaking.n do wanted[i] = truth[FIRST + i] end
    local r = measure.correlation(speaking.opening, wanted) or 0
    print(('# opening against the truth: r %.2f; mean opening speaking %.3f, silent %.3f'):format(r, mean(speaking), mean(silent)))
    t.ok(r > 0.5, ('opening against the truth: r %.2f'):format(r))
    -- Only twice, because the mesh of closed lips is not at 0.
    t.ok(mean(speaking) > 2 * mean(silent), ('opening %.3f speaking, %.3f silent'):format(mean(speaking), mean(silent)))
    t.equal(outside, 0, 'pixels changed outside of the mask')
    print(('# colours jump by %.1f levels at the edge'):format(measure.mean(seam)))
    t.ok(measure.mean(seam) < 8, ('colours jump by %.1f levels at the edge'):format(measure.mean(seam)))
  end)
end)

-- ---- schedulers ------------------------------------------------------------------------------

t.test('DPM-Solver++ 2M (Karras) with 10 steps is about as near to 100 steps of DDIM as DDIM with 20', function()
  t.fetched 'face/face_landmark.tflite'
  local FRAMES = 4 -- with whole windows it is closer: see lua/README.md's table (tests/bench/methods.lua)
  cr.run(function()
    local run = require 'models.latentsync'.session {
      video = VIDEO, audio = SOUND, checkpoint = MINI, device = 'cpu', quiet = true, frames = FRAMES, start = 0.4, duration = FRAMES / 25,
    }
    local places, faces = {}, {}
    for i = 1, FRAMES do places[i] = { 1, i } end
    for k, method in ipairs { { 'ddim', 100 }, { 'ddim', 20 }, { 'dpmpp_2m_karras', 10 } } do
      local sample = run:sample { scheduler = method[1], steps = method[2], quiet = true }
      faces[k] = cr.keep(sample:faces(places))
      sample.latents[1]:free()
    end
    run:free()
    local ddim, dpmpp = t.relative_error(faces[2], faces[1]), t.relative_error(faces[3], faces[1])
    for _, x in ipairs(faces) do x:free() end
    print(('# pictures from those of 100 steps of DDIM: DDIM 20 %.4f, DPM-Solver++ 2M 10 %.4f'):format(ddim, dpmpp))
    t.ok(dpmpp <= 1.1 * ddim, ('%.4f, DDIM %.4f'):format(dpmpp, ddim))
    t.ok(ddim < 0.1, 'DDIM with 20 steps comes to another picture than with 100')
  end)
end)

-- ---- SyncNet ---------------------------------------------------------------------------------

t.test('its SyncNet: the demo clip and its sound are in sync, and have offset k after a shift by k', function()
  t.fetched 'face/face_landmark.tflite'
  local K = 4
  cr.run(function()
    cr.scope(function()
      local finder = measure.remembering(require 'models.latentsync.face'.load { range = 'full' })
      local judge = require 'models.laboratory.evaluate'.open { finder = finder }
      local function judged(sound)
        finder:of(VIDEO)
        return judge:run(VIDEO, { audio = sound })
      end
      measure.delay_sound(VIDEO, scratch.path 'late.wav', K / 25)
      local own, late, other = judged(), judged(scratch.path 'late.wav'), judged(SOUND)
      judge:free()
      require 'models.networks.mfcc'.free()
      print(('# confidence %.3f at %d, delayed %.3f at %d, another sentence %.3f at %d'):format(own.confidence, own.offset,
        late.confidence, late.offset, other.confidence, other.offset))
      t.ok(math.abs(own.offset) <= 1, ('offset %d'):format(own.offset))
      t.equal(own.offset - late.offset, K, 'a delay of 4 frames')
      t.ok(own.confidence > 2 * other.confidence, ('confidence %.3f, of another sentence %.3f'):format(own.confidence, other.confidence))
    end)
  end)
end)

t.test('the demo runs: video, contact sheet, confidence before and after', function()
  t.fetched 'face/face_landmark.tflite'
  local out = scratch.path 'demo'
  local result = require 'tests.support.child'.run({ 'demo', '--out', out, '--seconds', '1', '--steps', '1' })
  t.equal(result.code, 0, result.err)
  t.ok(result.out:find 'before: .-%d' and result.out:find 'after: .-%d', result.out)
  for _, name in ipairs { 'lipsync.mp4', 'contact.png', 'report.json' } do
    t.ok((lfs.attributes(out .. '/' .. name, 'size') or 0) > 0, name .. ' is missing')
  end
end)

t.done()
