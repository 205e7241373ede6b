--- The face finder: cropping, merging, choosing and tracking, then the trained networks on real clips.

local cr = require 'cr'
local detector = require 'models.networks.face_detector'
local face = require 'models.latentsync.face'
local ffi = require 'ffi'
local mesh = require 'models.networks.face_mesh'
local t = require 'tests.support.tap'

--- A frame u8 [h w 3] whose pixel (x, y) is fn(x, y).
local function picture(h, w, fn)
  local frame = cr.empty({ h, w, 3 }, { dtype = 'u8' })
  local p = frame:pointer()
  for y = 0, h - 1 do
    for x = 0, w - 1 do
      for c = 0, 2 do p[(y * w + x) * 3 + c] = fn(x, y, c) end
    end
  end
  return frame
end

local function sample(frame, size, square, scale, shift)
  return require 'cr.image'.cut_square(frame, square, size, scale, shift)
end

t.test('a crop of the whole frame equals the frame; outside is black; values are scaled', function()
  cr.scope(function()
    local frame = picture(8, 8, function(x, y, c) return 20 * x + 7 * y + c end)
    local out = sample(frame, 8, { x = 4, y = 4, side = 8, angle = 0 })
    t.near(out, frame:to 'f32', 1e-6, 'the same')
    out = sample(frame, 8, { x = 8, y = 4, side = 8, angle = 0 }, 2, -1)
    local p = out:pointer()
    t.near(p[0], 2 * 20 * 4 - 1, 1e-4, 'left edge')
    t.near(p[7 * 3], -1, 1e-4, 'outside')
    out = sample(frame, 4, { x = 100, y = 100, side = 4, angle = 0.3 })
    t.equal(out:abs():max():item(), 0, 'wholly outside')
  end)
end)

t.test('a rotated crop samples the pixels that to_frame returns', function()
  cr.scope(function()
    local frame = picture(60, 80, function(x, y, c) return c == 0 and 2 * x or c == 1 and 3 * y or 50 end)
    local square = { x = 41.3, y = 28.9, side = 30, angle = 0.7 }
    local n = 20
    local p = sample(frame, n, square):pointer()
    local worst = 0
    for v = 0, n - 1 do
      for u = 0, n - 1 do
        local x, y = require 'models.networks.face_crop'.to_frame(square, (u + 0.5) / n, (v + 0.5) / n)
        local o = p + 3 * (v * n + u)
        worst = math.max(worst, math.abs(o[0] - 2 * (x - 0.5)), math.abs(o[1] - 3 * (y - 0.5)))
      end
    end
    t.ok(worst < 1e-3, 'off by ' .. worst)
  end)
end)

t.test('a large upright square is averaged, letterboxed in the middle', function()
  cr.scope(function()
    local frame = picture(100, 200, function(x) return x % 2 == 0 and 100 or 200 end)
    local p = sample(frame, 10, { x = 100, y = 50, side = 200, angle = 0 }):pointer()
    t.equal(p[(1 * 10 + 4) * 3], 0, 'above the picture')
    local turned = sample(frame, 10, { x = 100, y = 50, side = 200, angle = 1e-9 }):pointer()
    for _, place in ipairs { 5 * 10 + 4, 3 * 10, 6 * 10 + 9 } do
      local v = p[place * 3]
      t.ok(v >= 100 and v <= 200, 'inside')
      t.near(turned[place * 3], 150, 8, 'the other sampler')
    end
    local ramp = picture(960, 960, function(x, y, c) return c == 0 and x / 4 or c == 1 and y / 4 or 9 end)
    p = sample(ramp, 96, { x = 480, y = 480, side = 960, angle = 0 }):pointer()
    for _, i in ipairs { 0, 50, 95 } do
      t.near(p[(50 * 96 + i) * 3], (10 * i + 4.5) / 4 - 0.4, 0.6, 'column ' .. i)
      t.near(p[(i * 96 + 50) * 3 + 1], (10 * i + 4.5) / 4 - 0.4, 0.6, 'row ' .. i)
    end
  end)
end)

local function detection(x1, y1, x2, y2, score)
  local keypoints = {}
  for k = 1, 6 do keypoints[k] = { x1 + k, y1 } end
  return { box = { x1, y1, x2, y2 }, score = score or 0.9, keypoints = keypoints }
end

t.test('overlapping boxes are merged, weighted by their scores', function()
  t.near(detector.overlap({ 0, 0, 2, 2 }, { 1, 0, 3, 2 }), 1 / 3, 1e-12, 'overlap')
  t.equal(detector.overlap({ 0, 0, 2, 2 }, { 2, 0, 3, 2 }), 0, 'side by side')
  local faces = detector.suppress { detection(0, 0, 100, 100, 0.9), detection(20, 0, 120, 100, 0.6),
    detection(300, 0, 400, 100, 0.55) }
  t.equal(#faces, 2, 'faces')
  t.near(faces[1].box[1], 20 * 0.6 / 1.5, 1e-9, 'left')
  t.near(faces[1].box[3], (100 * 0.9 + 120 * 0.6) / 1.5, 1e-9, 'right')
  t.near(faces[1].keypoints[2][1], 2 + 20 * 0.6 / 1.5, 1e-9, 'point')
  t.equal(faces[1].score, 0.9, 'score')
  t.equal(#detector.suppress {}, 0, 'none')
end)

--- A finder with a scripted detector and mesh. mesh.find returns a mesh that fills the middle of its square,
--- confident unless `doubt` is set.
local function scripted(frames, options)
  options = options or {}
  local finder = setmetatable({ track = options.track or false, alone = options.alone, cuts = 0, detections = 0 }, face)
  finder.detector = { detect = function()
    finder.detections = finder.detections + 1
    return frames[finder.detections] or {}
  end }
  finder.mesh = { find = function(_, _, square)
    finder.cuts = finder.cuts + 1
    local points = {}
    for i = 1, 468 do points[i] = { square.x, square.y } end
    local half = square.side / 3
    local cosine, sine = math.cos(square.angle), math.sin(square.angle)
    points[1], points[2] = { square.x - half, square.y - half }, { square.x + half, square.y + half }
    points[34] = { square.x - half / 2 * cosine, square.y - half / 2 * sine }
    points[264] = { square.x + half / 2 * cosine, square.y + half / 2 * sine }
    local evidence = options.evidence and options.evidence(finder.cuts, square) or 50
    return points, 1 / (1 + math.exp(-evidence)), evidence
  end }
  return finder
end

local blank = cr.zeros({ 4, 4, 3 }, { dtype = 'u8' })

t.test('the largest usable face is chosen', function()
  local finder = scripted { {
    detection(0, 0, 49, 300), detection(0, 0, 300, 79), detection(0, 0, 300, 190),
    detection(0, 0, 60, 400), detection(0, 0, 500, 500, 0.49), detection(10, 0, 110, 100),
    detection(500, 0, 640, 150), detection(1000, 0, 1100, 110, 0.99),
  } }
  local found = finder:find(blank)
  t.equal(found.box[1], 500, 'the largest')
  t.equal(#found.mesh, 468, 'mesh')
  t.equal(#found.points, 3, 'points')
  t.equal(scripted { { detection(0, 0, 49, 300) } }:find(blank), nil, 'none usable')
  t.equal(scripted { {} }:find(blank), nil, 'none')
end)

t.test('the finder tracks its face until it is reset', function()
  local a, b = detection(0, 0, 100, 100), detection(500, 0, 650, 150)
  local finder = scripted { { a }, { b, detection(5, 0, 105, 100) }, { b } , { b, a } }
  t.equal(finder:find(blank).box[1], 0, 'the only one')
  t.equal(finder:find(blank).box[1], 5, 'the same face, though another is larger')
  t.equal(finder:find(blank).box[1], 500, 'the other one, once it is gone')
  finder:reset()
  t.equal(finder:find(blank).box[1], 500, 'the largest')
end)

t.test('with `alone`, each frame gives its largest face, without tracking', function()
  local a, b = detection(0, 0, 100, 100), detection(500, 0, 650, 150)
  local finder = scripted({ { a }, { b, detection(5, 0, 105, 100) }, {}, { a, b } }, { alone = true })
  for i, want in ipairs { 0, 500, false, 500 } do
    local found = finder:find(blank)
    t.equal(found and found.box[1] or false, want, 'frame ' .. i)
  end
end)

t.test('a frame that the detector misses is bridged by the last mesh, if it is confident', function()
  local finder = scripted { { detection(0, 0, 100, 100) }, {}, {}, {} }
  local first = finder:find(blank)
  t.ok(first.keypoints, 'detected')
  local second = finder:find(blank)
  t.ok(second and not second.keypoints, 'followed')
  finder = scripted({ { detection(0, 0, 100, 100) } }, { evidence = function(cut) return cut == 1 and 50 or 1 end })
  t.ok(finder:find(blank), 'detected')
  t.equal(finder:find(blank), nil, 'not sure enough')
  t.equal(finder:find(blank), nil, 'and then forgotten')
  t.equal(finder.cuts, 2, 'cuts')
  finder = scripted({ { detection(0, 0, 100, 100), detection(500, 0, 650, 150) } },
    { evidence = function(_, square) return square.x > 400 and -3 or 50 end })
  t.equal(finder:find(blank).box[1], 0, 'a box in which the mesh sees no face is passed over')
end)

t.test('tracking skips the detector while the mesh is confident', function()
  local finder = scripted({ { detection(0, 0, 100, 100) }, { detection(300, 0, 400, 100) } },
    { track = true, evidence = function(cut) return cut == 4 and 0 or 50 end })
  for _ = 1, 3 do t.ok(finder:find(blank), 'found') end
  t.equal(finder.detections, 1, 'detections')
  t.equal(finder:find(blank).box[1], 300, 'detected again')
end)

t.test('a misplaced crop is corrected', function()
  -- The detection's eyes are rotated by half a radian, and the mesh here keeps that: only the evidence triggers a
  -- correction.
  local finder = scripted({ { detection(0, 0, 100, 100) } },
    { evidence = function(cut) return cut <= 2 and 10 or 45 end })
  finder:find(blank)
  t.equal(finder.cuts, 3, 'until it is clear')
  finder = scripted({ { detection(0, 0, 100, 100) } }, { evidence = function() return 10 end })
  t.ok(finder:find(blank), 'found')
  t.equal(finder.cuts, 4, 'at most three times more')
end)

t.test('wrong arguments and missing files', function()
  t.raises(function() scripted {}:find(cr.zeros(4, 4, 3)) end, 'frame must be u8 %[H W 3%], not f32 %[4 4 3%]')
  t.raises(function() face.load { dir = '/nowhere', range = 'full' } end,
    '^face_detection_full_range%.tflite does not exist: run `make models`$')
  t.raises(function() face.load { dir = '/nowhere', range = 'far' } end, "range must be 'full' or 'short', not far")
  local dir = require 'tests.support.scratch'.folder
  local scratch = require 'tests.support.scratch'
  scratch.write('face_detection_short_range.tflite', 'nonsense')
  t.raises(function() face.load { dir = dir, range = 'short' } end, '^face_landmark%.tflite does not exist')
  scratch.write('face_landmark.tflite', 'nonsense')
  t.raises(function() face.load { dir = dir, range = 'short' } end,
    'face_detection_short_range%.tflite: not a TFLite file')
end)

-- ---- the trained models ------------------------------------------------------------------------

t.test('another network in place of the detector or the mesh is refused', function()
  local dir = t.face_models()
  local scratch = require 'tests.support.scratch'
  local function copy(from, to)
    local f = assert(io.open(dir .. '/' .. from, 'rb'))
    scratch.write(to, f:read '*a')
    f:close()
  end
  copy('face_detection_short_range.tflite', 'face_detection_full_range.tflite')
  t.raises(function() detector.load('full', scratch.folder) end, 'not a face detector of this range')
  copy('face_detection_short_range.tflite', 'face_landmark.tflite')
  t.raises(function() mesh.load(scratch.folder) end, 'not a face mesh of 468 points')
end)

t.test('a detector that returns NaN is an error, not an absent face', function()
  local net = detector.load('short', t.face_models())
  local run = net.net.run
  function net.net.run(...)
    local out = { run(...) }
    out[net.score_output] = out[net.score_output] * (0 / 0)
    return unpack(out)
  end
  local frame = cr.zeros({ 64, 64, 3 }, { dtype = 'u8' })
  t.raises(function() net:detect(frame) end, 'face_detection_short_range.tflite produces values that are not finite')
  frame:free()
  net:free()
end)

t.test('no face in noise, in black and in tiny frames', function()
  local finder = face.load { dir = t.face_models() }
  local state = 1
  local noise = picture(240, 320, function()
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 65536) % 256
  end)
  t.equal(finder:find(noise), nil, 'noise')
  noise:free()
  for _, size in ipairs { { 1, 1 }, { 1, 500 }, { 300, 2 }, { 240, 320 } } do
    local frame = cr.zeros({ size[1], size[2], 3 }, { dtype = 'u8' })
    t.equal(finder:find(frame), nil, size[1] .. ' x ' .. size[2])
    frame:free()
  end
  finder:free()
  finder:free()
end)

--- Every `step`-th of a clip's first frames, decoded by ffmpeg, as fn(number, frame u8 [H W 3]).
local function each_frame(path, step, last, width, height, fn)
  local pipe = io.popen(("ffmpeg -v error -threads 2 -i '%s' -vf \"select='not(mod(n,%d))*lte(n,%d)'\" "
    .. '-vsync 0 -frames:v %d -f rawvideo -pix_fmt rgb24 - 2>/dev/null'):format(path, step, last,
    math.floor(last / step) + 1))
  local frame = cr.empty({ height, width, 3 }, { dtype = 'u8' })
  local bytes, n = width * height * 3, 0
  while true do
    local data = pipe:read(bytes)
    if not data or #data < bytes then break end
    ffi.copy(frame:pointer(), data, bytes)
    fn(n, frame)
    n = n + step
  end
  pipe:close()
  frame:free()
  return n / step
end

for clip = 1, 2 do
  t.with_shared(('demo%d: boxes and meshes of another program; found in every frame'):format(clip), function(shared)
    local video = shared(('demo/demo%d_video.mp4'):format(clip))
    local golden = cr.load(shared 'golden/golden_real.safetensors')
    if os.execute 'ffmpeg -version >/dev/null 2>&1' ~= 0 then t.skip 'ffmpeg is absent' end
    local finder = face.load { dir = t.face_models() }
    local before, missed, jumped, turned = nil, 0, 0, 0
    local frames = each_frame(video, 10, 120, 1080, 1920, function(n, frame)
      local found = finder:find(frame)
      if not found then
        missed = missed + 1
        return
      end
      if before and detector.overlap(before, found.box) < 0.5 then jumped = jumped + 1 end
      before = found.box
      local p = found.points
      -- The brows are above the nose, and the left one is on the left.
      if not (p[1][1] < p[3][1] and p[3][1] < p[2][1] and p[1][2] < p[3][2]) then turned = turned + 1 end
      local box, want = golden[('face.demo%d.%d.box'):format(clip, n)], golden[('face.demo%d.%d.mesh'):format(clip, n)]
      if not box then return end
      local b, m = box:tolist(), want:tolist()
      local off, apart = 0, 0
      for k = 1, 4 do off = off + math.abs(b[k] - found.box[k]) / 4 end
      for k = 1, 468 do
        apart = apart + math.sqrt((m[k][1] - found.mesh[k][1]) ^ 2 + (m[k][2] - found.mesh[k][2]) ^ 2) / 468
      end
      t.ok(off <= 2, ('frame %d: box %.2f pixels off on average'):format(n, off))
      t.ok(apart <= 2, ('frame %d: mesh %.2f pixels off on average'):format(n, apart))
      print(('# demo%d frame %d: box %.2f, mesh %.2f pixels from the golden'):format(clip, n, off, apart))
    end)
    t.equal(frames, 13, 'frames decoded')
    t.equal(missed, 0, 'frames without a face')
    t.equal(jumped, 0, 'jumps')
    t.equal(turned, 0, 'points out of order')
    finder:free()
    for _, x in pairs(golden) do x:free() end
  end)
end

t.with_shared('short range refines its cuts: near the full-range mesh on a small face', function(shared)
  local video = shared 'demo/demo1_video.mp4'
  local golden = cr.load(shared 'golden/golden_real.safetensors')
  if os.execute 'ffmpeg -version >/dev/null 2>&1' ~= 0 then t.skip 'ffmpeg is absent' end
  local finder = face.load { dir = t.face_models(), range = 'short' }
  each_frame(video, 60, 60, 1080, 1920, function(n, frame)
    local found = finder:find(frame)
    local m, apart = golden[('face.demo1.%d.mesh'):format(n)]:tolist(), 0
    for k = 1, 468 do
      apart = apart + math.sqrt((m[k][1] - found.mesh[k][1]) ^ 2 + (m[k][2] - found.mesh[k][2]) ^ 2) / 468
    end
    t.ok(apart <= 6, ('frame %d: mesh %.2f pixels off on average'):format(n, apart))
  end)
  finder:free()
  for _, x in pairs(golden) do x:free() end
end)

t.done()
