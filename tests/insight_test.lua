--- InsightFace's detector and points: the package's own results for synthetic images, ties, rules of choice, damaged
--- packs.

local cr = require 'cr'
local detector = require 'models.networks.insight_detector'
local ffi = require 'ffi'
local formula = require 'tests.support.formula'
local image = require 'cr.image'
local insight = require 'models.latentsync.insight'
local landmarks = require 'models.networks.insight_landmarks'
local nn = require 'cr.nn'
local scratch = require 'tests.support.scratch'
local smooth = require 'tests.support.formula_image'
local support = require 'tests.support.insight'
local t = require 'tests.support.tap'

local file, picture = support.numbers(), support.picture
local function pack(change) return support.pack(scratch.path 'checkpoint', change) end

local function each_number(a, b, fn)
  if type(a) ~= 'table' then return fn(a, b) end
  t.equal(#a, #b, 'how many')
  for i = 1, math.min(#a, #b) do each_number(a[i], b[i], fn) end
end

--- The largest difference of two nested lists.
local function most(a, b)
  local worst = 0
  each_number(a, b, function(x, y) worst = math.max(worst, math.abs(x - y)) end)
  return worst
end

t.test("resizing and warping give OpenCV's bytes", function()
  local seen = 0
  for key, want in pairs(file) do
    local h, w, nh, nw = key:match '^linear%.(%d+)x(%d+)%.(%d+)x(%d+)$'
    local k = key:match '^warp%.(%d)%.cut$'
    if h then
      h, w = tonumber(h), tonumber(w)
      cr.scope(function() t.near(nn.resize(picture(h, w, 1), tonumber(nh), tonumber(nw), 'linear'), want, 0, key) end)
    elseif k then
      cr.scope(function()
        t.near(image.warp_fixed(picture(41, 53, 2), file['warp.' .. k .. '.matrix']:tolist(), 40, 40), want, 0, key)
      end)
    end
    seen = seen + ((h or k) and 1 or 0)
  end
  t.equal(seen, 8, 'pictures')
end)

t.test("small networks give the package's faces, points and choice", function()
  local finder = insight.load { dir = pack() }
  for _, name in ipairs { '600x340.1', '360x640.2', '203x151.4', '512x512.3' } do
    local h, w, seed = name:match '(%d+)x(%d+)%.(%d)'
    cr.scope(function()
      local frame = picture(tonumber(h), tonumber(w), tonumber(seed))
      local det, kps, points = file[name .. '.det']:tolist(), file[name .. '.kps']:tolist(), file[name .. '.points']:tolist()
      local found, own = finder.detector:detect(frame), { det = {}, kps = {}, points = {} }
      for i, f in ipairs(found) do
        own.det[i] = { f.box[1], f.box[2], f.box[3], f.box[4], f.score }
        own.kps[i] = f.keypoints
        own.points[i] = finder.landmarks:find(frame, { unpack(det[i], 1, 4) })
      end
      t.ok(most(own.det, det) <= 2e-3, name .. ': boxes')
      t.ok(most(own.kps, kps) <= 2e-3, name .. ': five points')
      t.ok(most(own.points, points) <= 2e-3, name .. ': 106 points')
      local chosen = file[name .. '.chosen']:tolist()
      local face = finder:find(frame)
      t.ok(most({ unpack(det[chosen[1] + 1], 1, 4) }, face.box) <= 2e-3, name .. ': the chosen face')
      t.equal(table.concat({ unpack(chosen, 2) }, ' '), ('%d %d %d %d %d %d'):format(face.points[1][1], face.points[1][2],
        face.points[2][1], face.points[2][2], face.points[3][1], face.points[3][2]), name .. ': three points')
      for _, f in ipairs(finder:find_all(frame)) do t.equal(#f.points, 3, 'points of every face') end
    end)
  end
  cr.scope(function()
    t.equal(finder:find(cr.zeros({ 1, 600, 3 }, { dtype = 'u8' })), nil, 'a frame of which nothing is left')
    t.raises(function() finder:find(cr.zeros(4, 4, 3)) end, 'the frame must be u8 %[H W 3%], not f32 %[4 4 3%]')
  end)
  finder:free()
  finder:free()
end)

local BEFORE = { 0, 8192, 10240 } -- anchors before each grid

--- Scores and rows of zeros, and pointers to the score and the row of an anchor: its grid from 1, its number from 0.
local function blank_anchors()
  local scores, rows = cr.zeros(10752), cr.zeros(10752, 14)
  local function score(grid, i) return scores:pointer() + BEFORE[grid] + i end
  local function row(grid, i) return rows:pointer() + 14 * (BEFORE[grid] + i) end
  return scores, rows, score, row
end

local function rows_of(found)
  local rows = {}
  for i, f in ipairs(found) do rows[i] = { f.box[1], f.box[2], f.box[3], f.box[4], f.score } end
  return rows
end

t.test('of overlapping boxes the better one is kept, of equal ones the first, bit for bit', function()
  local dropped, ties = 0, 0
  for k = 0, 11 do
    cr.scope(function()
      local scores, rows, score, row = blank_anchors()
      local anchors, seen = file['ties.' .. k .. '.anchors']:tolist(), {}
      for _, a in ipairs(anchors) do
        score(a[1] + 1, a[2])[0] = a[3]
        for j = 0, 13 do row(a[1] + 1, a[2])[j] = a[4 + j] end
        if a[3] >= 0.5 and seen[a[3]] then ties = ties + 1 end
        seen[a[3]] = true
      end
      local found = detector.decode(scores, rows, math.floor(512 * 411 / 733) / 411)
      t.equal(#found, #anchors, 'all of them count')
      local kept = detector.suppress(found)
      t.equal(most(rows_of(kept), file['ties.' .. k .. '.det']:tolist()), 0, 'case ' .. k)
      dropped = dropped + #anchors - #kept
    end)
  end
  t.ok(dropped > 10 and ties > 10, ('%d dropped, %d ties'):format(dropped, ties))
end)

t.test('scores below one half and NaN are not faces', function()
  cr.scope(function()
    local scores, rows, score, row = blank_anchors()
    score(1, 0)[0], score(2, 5)[0], score(3, 7)[0] = 0.49999997, 0 / 0, 0.5
    for j = 0, 3 do row(3, 7)[j] = 2 end
    local found = detector.suppress(detector.decode(scores, rows, 1))
    t.equal(#found, 1, 'one')
    t.equal(table.concat(found[1].box, ' '), '32 -64 160 64', 'its box, beyond the frame')
    score(3, 7)[0], row(3, 7)[0] = 0.75, 0 / 0
    score(3, 9)[0] = 0.6
    for j = 0, 3 do row(3, 9)[j] = 2 end
    t.equal(#detector.suppress(detector.decode(scores, rows, 1)), 1, 'a box that is no number drops all behind it, as in the package')
  end)
end)

t.test("a face's size in whole pixels decides whether it is usable", function()
  local area = insight.area
  t.equal(area { 10.9, 20.9, 60.1, 100.2 }, 50 * 80, 'cut toward 0')
  t.equal(area { -0.9, -0.9, 50.9, 80.9 }, 50 * 80, 'on both sides of it')
  t.equal(area { 0, 0, 49.99, 100 }, nil, 'too narrow')
  t.equal(area { 0, 0, 60, 79.99 }, nil, 'too low')
  t.equal(area { 0, 0, 150, 100 }, 15000, 'as broad as may be')
  t.equal(area { 0, 0, 151, 100 }, nil, 'broader')
  t.equal(area { 0, 0, 60, 300 }, 18000, 'as high as may be')
  t.equal(area { 0, 0, 60, 301 }, nil, 'higher')
  for _, box in ipairs { { 0, 0, 0 / 0, 100 }, { 0 / 0, 0, 100, 100 }, { -math.huge, 0, 100, 100 }, { -math.huge, -math.huge, math.huge,
    math.huge } } do
    t.equal(area(box), nil, 'no box')
  end
end)

t.test('the largest usable face is chosen; of equal ones, the one with the higher score', function()
  local finder = setmetatable({ device = 'cpu' }, insight)
  local placed
  finder.landmarks = { find = function(_, _, box)
    placed = box
    local points = {}
    for k = 1, 106 do points[k] = { k, 2 * k } end
    return points
  end }
  finder.detector = { detect = function()
    return { { box = { 0, 0, 40, 400 }, score = 0.9 }, { box = { 0, 0, 60, 100 }, score = 0.8 },
      { box = { 9, 0, 109, 100 }, score = 0.7 }, { box = { 5, 0, 105, 100.5 }, score = 0.6 } }
  end }
  cr.scope(function()
    local found = finder:find(cr.zeros({ 4, 4, 3 }, { dtype = 'u8' }))
    t.equal(placed[1], 9, 'the first of the largest')
    t.equal(found.score, 0.7, 'its score')
    t.equal(#finder:detect(cr.zeros({ 4, 4, 3 }, { dtype = 'u8' })), 3, 'usable')
  end)
end)

t.test('the three points are means of rounded points, rounded half to even', function()
  local points = {}
  for k = 1, 106 do points[k] = { 0, 0 } end
  local function set(k, x, y) points[k + 1] = { x, y } end
  for _, k in ipairs { 43, 48, 49, 51, 50 } do set(k, 10.5, 11.5) end
  for i, k in ipairs { 74, 77, 83, 86 } do set(k, 20 + i % 2, -20 - i % 2) end
  for i, k in ipairs { 101, 102, 103, 104, 105 } do set(k, 30 + i, 40.4999) end
  local three = insight.aligned_by(points)
  t.equal(table.concat(three[1], ' '), '10 12', 'left brow')
  t.equal(table.concat(three[2], ' '), '33 40', 'right brow')
  t.equal(table.concat(three[3], ' '), '20 -20', 'nose: 20.5 and -20.5')
end)

t.test('other, damaged and missing networks in the pack are refused in one sentence', function()
  local function says(change, pattern)
    local ok, err = pcall(insight.load, { dir = pack(change) })
    if ok then err:free() end
    t.ok(not ok and err:find(pattern) and not err:find '\n', tostring(err))
  end
  local first, second = support.bytes(detector.FILE), support.bytes(landmarks.FILE)
  says({ [detector.FILE] = second }, "det_10g%.onnx: not a face detector of InsightFace's: it has 1 inputs and 1 outputs, not 1 and 9$")
  says({ [landmarks.FILE] = first }, "2d106det%.onnx: not InsightFace's network of 106 points: it has 1 inputs and 9 outputs, not")
  says({ [detector.FILE] = first:sub(1, 9000) }, 'det_10g%.onnx: ')
  says({ [landmarks.FILE] = 'nonsense' }, '2d106det%.onnx: ')
  says({ [landmarks.FILE] = false }, '2d106det%.onnx: No such file')
end)

-- ---- the package's numbers for real frames ---------------------------------------------------------------------

local function sha(x)
  local f = io.open(scratch.path 'bytes', 'wb')
  f:write(ffi.string(x:contiguous():pointer(), x:numel() * (x.dtype == 'u8' and 1 or 4)))
  f:close()
  return (cr.weights.sha256(scratch.path 'bytes'))
end

local function shared_golden(shared)
  return cr.load(shared 'golden/insightface/insight.safetensors'),
    require 'cjson'.decode(assert(io.open(shared 'golden/insightface/insight.json')):read '*a')
end

--- Scores and rows of a case without a network.
local function drawn_anchors(name)
  local drawn = {}
  for m, what in ipairs { 'score', 'bbox', 'kps' } do
    local parts = {}
    for k, stride in ipairs { 8, 16, 32 } do
      local shape = { (512 / stride) ^ 2 * 2, ({ 1, 4, 10 })[m] }
      local v = formula.tensor(('input:decode2.%s.%s.%d'):format(name, what, stride), shape, { kind = 'raw', dtype = 'f64' })
      parts[k] = (m == 1 and ((v - 0.97) * 4 + 0.5):clamp(0, 1) or m == 2 and v * 1.5 + 2.5 or v * 2):to 'f32'
    end
    drawn[m] = cr.cat(parts, 1)
  end
  return drawn[1]:reshape(-1), cr.cat({ drawn[2], drawn[3] }, 2)
end

--- The `count` faces that the package keeps: large ones near the centre of the frame.
local function best_of(found, count, height, width)
  local value = {}
  for _, f in ipairs(found) do
    local b = f.box
    value[f] = (b[3] - b[1]) * (b[4] - b[2]) -
      2 * (((b[1] + b[3]) / 2 - math.floor(width / 2)) ^ 2 + ((b[2] + b[4]) / 2 - math.floor(height / 2)) ^ 2)
  end
  table.sort(found, function(a, b) return value[a] > value[b] end)
  return { unpack(found, 1, count) }
end

t.test('a person whom the detector misses is followed while the face is visible', function()
  t.face_models()
  t.keeps_storages() -- the film's people
  local finder, other = insight.load { dir = pack() }, require 'models.latentsync.face'.load()
  finder.detector:free()
  finder.landmarks:free()
  -- The small networks find no faces; MediaPipe's detector replaces theirs, and misses frames.
  local frame_number, missed = 0, {}
  finder.detector = { free = function() end, detect = function(_, frame)
    local list = {}
    for _, f in ipairs(missed[frame_number] and {} or other.detector:detect(frame, 0.5)) do
      list[#list + 1] = { box = f.box, score = f.score, keypoints = { f.keypoints[1], f.keypoints[2] } }
    end
    return list
  end }
  finder.landmarks = { free = function() end, find = function(_, _, box)
    local points = {}
    for k = 1, 106 do points[k] = { (box[1] + box[3]) / 2, (box[2] + box[4]) / 2 } end
    return points
  end }
  local film, choice = require 'tests.support.film', require 'models.latentsync.choice'
  local gray = cr.full({ 200, 200, 3 }, 128, { dtype = 'u8' })
  for _, case in ipairs { { 'followed', nil }, { '-', { gray, x = 40, y = 20 } } } do
    local crowd = require 'models.latentsync.people'.open { finder = finder, choices = { choice.new 'largest' } }
    local places = {}
    for i = 0, 11 do
      frame_number = i
      missed = { [5] = true, [6] = true, [7] = true }
      local frame = film.frame(240, 460, { { film.person 'carl', x = 10 + 6 * i, y = 20 }, missed[i] and case[2] or nil }, i)
      local seen = crowd:push(frame)
      frame:free()
      local p = seen.people[1]
      t.equal(p and p.state or '-', missed[i] and case[1] or 'seen', 'frame ' .. i)
      t.equal(table.concat(seen.picks[1]), (missed[i] and case[2]) and '' or '1', 'frame ' .. i)
      if p then places[i] = { (p.box[1] + p.box[3]) / 2 - 6 * i, p.box[3] - p.box[1], p.points[3][1] - 6 * i } end
    end
    for i, place in pairs(places) do
      for k, name in ipairs { 'place', 'width', 'point' } do t.near(place[k], places[0][k], 8, name .. ' in frame ' .. i) end
    end
    t.equal(#crowd:known(), 1)
  end
  gray:free()
  film.free()
  other:free()
  finder:free()
end)

t.with_shared('maps without a network, letterboxes and cuts: to the last bit', function(shared)
  local numbers, list = shared_golden(shared)
  for name, case in pairs(list.cases) do
    local kind, h, w = name:match '^(%a+)%.(%d+)x(%d+)'
    h, w = tonumber(h), tonumber(w)
    cr.scope(function()
      if kind == 'decode' then
        local scores, rows = drawn_anchors(h .. 'x' .. w)
        local new_height = h > w and 512 or math.floor(512 * h / w)
        local found = detector.suppress(detector.decode(scores, rows, new_height / h))
        if case.max_num > 0 then found = best_of(found, case.max_num, h, w) end
        t.equal(#found, case.detections, name .. ': faces')
        t.equal(sha(cr.tensor(rows_of(found))), case.det_sha256, name)
        local kps = {}
        for i = 1, math.min(60, #found) do kps[i] = found[i].keypoints end
        t.equal(most(kps, numbers[name .. '.kps']:tolist()), 0, name .. ': five points')
        if case.letterbox_sha256 then
          t.equal(sha((detector.letterbox(smooth.image('pic' .. h .. 'x' .. w, h, w)))), case.letterbox_sha256, name .. ': letterbox')
        end
      elseif kind == 'warp' then
        local box = cr.tensor(case.box):tolist() -- single precision
        local matrix = landmarks.matrix(box)
        t.equal(most(matrix, numbers[name .. '.matrix']:reshape(-1):tolist()), 0, name .. ': matrix')
        t.equal(most(landmarks.inverse(matrix), numbers[name .. '.inverse']:reshape(-1):tolist()), 0, name .. ': inverse')
        t.equal(sha(landmarks.cut(smooth.image('pic' .. h .. 'x' .. w, h, w), matrix)), case.crop_sha256, name .. ': cut')
      end
    end)
  end
  for _, x in pairs(numbers) do x:free() end
end)

--- A frame of a clip, decoded by ffmpeg, or a part of it.
local function frame_of(shared, case, frames)
  local clip, n = case.frame:match '^(%w+)_(%d+)$'
  local info = frames[case.frame]
  local pipe = io.popen(([[ffmpeg -v error -nostdin -i '%s' -vf 'select=eq(n\,%d)' -vsync 0 -frames:v 1 -f rawvideo -pix_fmt rgb24 - 2>&1]])
    :format(shared('demo/' .. clip .. '_video.mp4'), n))
  local data = pipe:read '*a'
  pipe:close()
  if #data ~= info.height * info.width * 3 then t.skip 'ffmpeg is absent' end
  local frame = cr.empty({ info.height, info.width, 3 }, { dtype = 'u8' })
  ffi.copy(frame:pointer(), data, #data)
  local part = type(case.rows_cols) == 'table' and case.rows_cols
  return part and frame:narrow(1, part[1] + 1, part[2] - part[1]):narrow(2, part[3] + 1, part[4] - part[3]) or frame
end

t.with_shared('real frames: letterbox and cut to the last bit, the chosen face and its three points', function(shared)
  local numbers, list = shared_golden(shared)
  local finder = insight.load { dir = pack() }
  local seen = 0
  for name, case in pairs(list.cases) do
    if name:find '^nano' then
      seen = seen + 1
      cr.scope(function()
        local frame = frame_of(shared, case, list.frames)
        t.equal(sha((detector.letterbox(frame))), case.letterbox_sha256, name .. ': letterbox')
        local det, found = numbers[name .. '.det']:tolist(), finder.detector:detect(frame)
        t.ok(most(rows_of(found), det) <= 0.02, name .. ': boxes')
        for i, k in ipairs(numbers[name .. '.lmk_index']:tolist()) do
          local box = { unpack(det[k + 1], 1, 4) }
          local cut = landmarks.cut(frame, landmarks.matrix(box))
          if k == case.lmk_crop_of then t.equal(sha(cut), case.lmk_crop_sha256, name .. ': cut') end
          t.ok(most(finder.landmarks:places(cut):tolist(), numbers[name .. '.fc1']:select(1, i):tolist()) <= 1e-5, name .. ': outputs')
          t.ok(most(finder.landmarks:find(frame, box), numbers[name .. '.lmk']:select(1, i):tolist()) <= 0.02, name .. ': points')
        end
        local face = finder:find(frame)
        t.ok(most(face.box, { unpack(det[case.picked + 1], 1, 4) }) <= 0.02, name .. ': the chosen face')
        t.equal(most(face.points, case.points3), 0, name .. ': three points')
      end)
    end
  end
  t.equal(seen, 4, 'frames')
  finder:free()
  for _, x in pairs(numbers) do x:free() end
end)

for _, x in pairs(file) do x:free() end
t.done()
