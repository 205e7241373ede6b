--- The face detector and the mesh on a GPU: they agree with the CPU.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local face = require 'models.latentsync.face'
local insight = require 'tests.support.insight'
local insight_finder = require 'models.latentsync.insight'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local tflite = require 'cr.graphs.tflite'

for _, name in ipairs { 'face_detection_full_range', 'face_detection_short_range', 'face_landmark' } do
  cuda.test(name .. ' gives the CPU\'s numbers', function()
    local path = t.face_model(name)
    local host, there = tflite.open(path, { threads = 4 }), tflite.open(path, { device = cuda.device })
    for _ = 1, 2 do
      cr.scope(function()
        local x = cuda.randn(host.input.shape, 'f32', 0.5):clamp(-1, 1)
        local expected, got = { host:run(x) }, { there:run(x:to(cuda.device)) }
        for i, y in ipairs(expected) do
          local z = got[i]
          t.ok(z.device ~= 'cpu', 'it stays on the card')
          local range = math.max(1e-6, y:max():item() - y:min():item(), y:numel() == 1 and y:abs():item() or 0)
          local off = (z:to 'cpu' - y):abs():max():item()
          t.ok(off <= 1e-3 * range, ('output %d: off by %g of a range of %g (CR_SEED=%d)'):format(i, off, range, cuda.seed))
        end
      end)
    end
    host:free()
    there:free()
  end)
end

cuda.test('a frame leaves the GPU, returns once, and its face is found as on the CPU', function()
  local video = cr.root .. '/models/mini/demo.mp4'
  local media = require 'cr.media'
  local ok, reader = pcall(media.reader, video, { device = cuda.device, wait = true })
  if not ok then t.skip(tostring(reader)) end
  local host, there = face.load { dir = t.face_models() }, face.load { dir = t.face_models(), device = cuda.device }
  local frame = reader:read(1)[1]
  local function held()
    for _, tag in ipairs(cr.memory(cuda.device).tags) do
      if tag.name == 'frames' then return tag.live end
    end
  end
  cr.scope(function()
    local wanted = frame:rgb():to 'cpu'
    local most = held()
    frame:leave_card()
    t.ok(held() <= most - frame.bytes, 'a frame leaves the card')
    t.near(frame:rgb():to 'cpu', wanted, 0, 'and comes back')
    t.ok(held() <= most - frame.bytes, 'for once')
    local a, b = host:find(wanted), there:find(frame:rgb())
    for k = 1, 4 do t.near(b.box[k], a.box[k], 0.1, 'box') end
    t.near(b.presence, a.presence, 1e-3, 'presence')
  end)
  frame:free()
  reader:close()
  host:free()
  there:free()
end)

cuda.test('a face is found where the CPU finds it', function()
  local video = cr.root .. '/models/mini/demo.mp4'
  local ok, reader = pcall(function() return require 'cr.media'.reader(video) end)
  if not ok then t.skip(tostring(reader)) end
  local host, there = face.load { dir = t.face_models() }, face.load { dir = t.face_models(), device = cuda.device }
  for _ = 1, 3 do
    local frame = reader:read(1)[1]
    local card = frame:to(cuda.device)
    local a, b = host:find(frame), there:find(card)
    for k = 1, 4 do t.near(b.box[k], a.box[k], 0.1, 'box') end
    for k = 1, 468 do
      t.near(b.mesh[k][1], a.mesh[k][1], 0.1, 'x of point ' .. k)
      t.near(b.mesh[k][2], a.mesh[k][2], 0.1, 'y of point ' .. k)
    end
    t.near(b.presence, a.presence, 1e-3, 'presence')
    t.near(there:find(frame).box[1], b.box[1], 0.05, 'a frame that is not on the card goes there')
    card:free()
    frame:free()
  end
  reader:close()
  host:free()
  there:free()
end)

cuda.test("frames that are analysed together give the CPU's faces", function()
  local people = require 'models.latentsync.people'
  local ok, reader = pcall(require 'cr.media'.reader, cr.root .. '/models/mini/demo.mp4')
  if not ok then t.skip(tostring(reader)) end
  local host, there = face.load { dir = t.face_models() }, face.load { dir = t.face_models(), device = cuda.device }
  local list, frames = reader:read(11), {}
  for _ = 1, 3 do
    cr.scope(function()
      for i, frame in ipairs(list) do frames[i] = frame:to(cuda.device) end
      local glances = people.open { finder = there }:glance(frames)
      for i, want in ipairs(people.open { finder = host }:glance(list)) do
        local got = glances[i]
        t.equal(#got.detections, #want.detections, 'faces of frame ' .. i)
        t.near(got.cells.mean, want.cells.mean, 1e-3, 'brightness')
        for k, d in ipairs(want.detections) do
          local e = got.detections[k]
          for j = 1, 4 do t.near(e.box[j], d.box[j], 0.1, 'box') end
          for j = 1, 468 do t.near(e.first.points[j][1], d.first.points[j][1], 0.1, 'x of point ' .. j) end
          t.near(require 'models.latentsync.face_similarity'.compare(e.look, d.look), 1, 0.02, 'look')
        end
      end
    end)
  end
  for _, frame in ipairs(list) do frame:free() end
  reader:close()
  host:free()
  there:free()
end)

cuda.test("InsightFace's networks give the CPU's faces and points", function()
  local dir = insight.pack(scratch.path 'checkpoint')
  local host, there = insight_finder.load { dir = dir }, insight_finder.load { dir = dir, device = cuda.device }
  for _, size in ipairs { { 600, 340, 1 }, { 360, 640, 2 }, { 512, 512, 3 } } do
    cr.scope(function()
      local frame = insight.picture(unpack(size))
      for run = 1, 3 do
        local a, b = host.detector:detect(frame), there.detector:detect(frame:to(cuda.device))
        t.equal(#b, #a, 'faces, run ' .. run)
        for i, f in ipairs(a) do
          for k = 1, 4 do t.near(b[i].box[k], f.box[k], 0.02, 'box') end
          t.near(b[i].score, f.score, 1e-5, 'score')
        end
        local p, q = host:find(frame).points, there:find(frame).points
        for k = 1, 3 do t.equal(table.concat(q[k], ' '), table.concat(p[k], ' '), 'point ' .. k) end
      end
    end)
  end
  host:free()
  there:free()
end)

t.done()
