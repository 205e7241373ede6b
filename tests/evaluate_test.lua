-- `crescent evaluate`: tracking and cropping of faces, known offsets measured from files, the command's output, and
-- its errors.
--
-- The SyncNet of these tests is hand-made (tests/support/audiovisual.lua): bright images are close to loud sound. A
-- finder that knows the faces replaces the detector, so that no fetched file is needed.

local t = require 'tests.support.tap'
local bright = require 'tests.support.audiovisual'
local cr = require 'cr'
local child = require 'tests.support.child'
local evaluate = require 'models.laboratory.evaluate'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local tracks = require 'models.laboratory.tracks'

local SIDE = bright.side
local brightness, face_at, finder_of, whole = bright.brightness, bright.face_at, bright.finder, bright.whole
local write_network, write_sound, write_video = bright.write_network, bright.write_sound, bright.write_video

local network, aligned, video, sound
cr.run(function()
  cr.scope(function()
    network = write_network('hand', { height = 96, width = 96 }, { 2, 2 })
    aligned = write_network('hand_aligned', { crop = 'aligned', size = 128, rows = { 64, 128 }, channels = 'rgb' }, { 1, 3 })
    video = write_video('plain.mkv', 80)
    sound = write_sound('plain.wav', 80)
  end)
end)

--- Evaluates the plain video and sound, unless options differ.
local function run(options)
  local all = { syncnet = network, video = video, audio = sound }
  for key, value in pairs(options) do all[key] = value end
  return bright.run(all)
end

-- ---- known shifts ------------------------------------------------------------------------------

t.test('synchronous lips and sound have offset 0', function()
  local result = run {}
  t.equal(result.offset, 0)
  t.ok(result.confidence > 0.5, ('confidence %.2f'):format(result.confidence))
  t.ok(result.minimum < 0.15, ('distance %.2f'):format(result.minimum))
  t.equal(#result.tracks, 1)
  t.equal(result.tracks[1].windows, 75)
  t.equal(result.tracks[1].frames, 80)
  t.equal(result.frames, 80)
  t.equal(result.frames_with_face, 80)
  t.equal(#result.distances, 31)
  t.equal(result.offsets[1], 15)
  t.equal(result.offsets[31], -15)
  t.equal(result.comparable, false)
  t.near(result.distances[16], result.minimum, 0)
end)

t.test('a sound that is early by k frames has offset k', function()
  for _, k in ipairs { -11, -1, 4 } do
    local result = run { audio = write_sound('shifted.wav', 80, k) }
    t.equal(result.offset, k)
    t.ok(result.confidence > 0.4, ('confidence %.2f'):format(result.confidence))
  end
end)

t.test('an aligned network gets the aligned face', function()
  local result = run { syncnet = aligned }
  t.equal(result.offset, 0)
  t.ok(result.minimum < 0.15, ('distance %.2f'):format(result.minimum))
  -- If points are missing in some frames, they are interpolated.
  local some = run { syncnet = aligned, faces = function(i)
    local face = face_at(64, 60, 90)
    if i % 7 ~= 3 then face.points = nil end
    return { face }
  end }
  t.near(cr.tensor(some.distances), cr.tensor(result.distances), 1e-6)
end)

t.test('a track that begins later is compared with the sound from there on', function()
  local late = run { faces = function(i) return i >= 21 and whole() or {} end }
  t.equal(late.tracks[1].first, 21)
  t.equal(late.tracks[1].windows, 54)
  t.equal(late.offset, 0)
  t.ok(late.minimum < 0.2, ('distance %.2f'):format(late.minimum))
end)

t.test('several faces: results for each, and their means', function()
  cr.run(function() write_video('two.mkv', 80, 7) end)
  local result = run { video = scratch.path 'two.mkv', faces = function()
    return { face_at(64, 60, 82), face_at(192, 60, 82) }
  end }
  t.equal(#result.tracks, 2)
  t.equal(result.tracks[1].offset, 0)
  t.equal(result.tracks[2].offset, 7)
  t.equal(result.offset, 3, 'cut to a whole number')
  t.near(result.confidence, (result.tracks[1].confidence + result.tracks[2].confidence) / 2, 1e-12)
  for k = 1, 31 do
    t.near(result.distances[k], (result.tracks[1].distances[k] + result.tracks[2].distances[k]) / 2, 1e-12)
  end
end)

t.test('each face by a voice of its own', function()
  cr.run(function() write_video('two.mkv', 80, 7) end)
  local function judged(voices)
    return run { video = scratch.path 'two.mkv', voices = voices, faces = function()
      return { face_at(64, 60, 82), face_at(192, 60, 82) }
    end }
  end
  local late = write_sound('late.wav', 80, -7)
  local result = judged { [2] = late }
  t.equal(result.tracks[1].offset, 0)
  t.equal(result.tracks[2].offset, 0, 'as late as its picture')
  t.equal(result.tracks[2].audio, late)
  t.near(result.tracks[2].face.x, 192, 1e-9)
  t.raises(function() judged { [3] = late } end,
    'two.mkv has no face 3: there are 1 %(0%.0 to 3%.2 s, at 64,60%), 2 %(0%.0 to 3%.2 s, at 192,60%)')
end)

t.test("the video's own sound, also if it begins late", function()
  local own = scratch.path 'own.mp4'
  cr.run(function()
    local sink = media.writer(own, { width = SIDE, height = SIDE, fps = bright.fps, crf = 10, audio = sound })
    for i = 0, 79 do cr.scope(function() sink:write(cr.full({ SIDE, SIDE, 3 }, brightness(i), { dtype = 'u8' })) end) end
    sink:close()
  end)
  local result = run { video = own, audio = own }
  t.equal(result.offset, 0)
  t.ok(result.confidence > 0.5, ('confidence %.2f'):format(result.confidence))
  local late = scratch.path 'late.mkv'
  local text, status = scratch.command(("ffmpeg -v error -y -i '%s' -itsoffset 0.2 -i '%s' -map 0:v -map 1:a -c copy '%s'")
    :format(own, sound, late))
  if status == 127 then return end -- ffmpeg is missing
  t.equal(status, 0, text)
  result = run { video = late, audio = late }
  t.equal(result.offset, -5)
  t.equal(result.tracks[1].windows, 75)
end)

t.test('a sound that ends early ends the comparison', function()
  local result = run { audio = write_sound('short.wav', 40) }
  t.equal(result.tracks[1].windows, 35)
  t.equal(result.offset, 0)
end)

t.test('memory does not grow with the video', function()
  local function peak(frames)
    cr.run(function() write_video('long.mkv', frames) end)
    local audio = write_sound('long.wav', frames)
    collectgarbage()
    collectgarbage()
    cr.reset_peak()
    local before = cr.memory().live
    run { video = scratch.path 'long.mkv', audio = audio }
    return cr.memory().peak - before
  end
  local short, long = peak(80), peak(320)
  t.ok(long < 1.2 * short, ('%.1f MB for 80 frames, %.1f for 320'):format(short / 1e6, long / 1e6))
end)

-- ---- tracks ------------------------------------------------------------------------------------

local RULES = { longer_than = 50, larger_than = 60 }

local function scene_of(n, faces)
  local scene = {}
  for i = 1, n do
    scene[i] = {}
    for _, box in ipairs(faces(i - 1)) do table.insert(scene[i], { frame = i - 1, box = box }) end
  end
  return scene
end

t.test('tracks: length, gaps, size, and identity', function()
  local function one(i) return { { i, 10, 100 + i, 90 } } end
  t.equal(#tracks.of_scene(scene_of(50, one), RULES), 0)
  local found = tracks.of_scene(scene_of(51, one), RULES)
  t.equal(#found, 1)
  t.equal(found[1].count, 51)
  t.near(found[1].width, 100, 1e-9)
  t.near(found[1].height, 80, 1e-9)
  t.equal(#tracks.of_scene(scene_of(60, function() return { { 0, 0, 60, 60 } } end), RULES), 0, 'too small')
  -- 24 frames without a face are bridged, 25 are not.
  local function gap(from, to)
    return function(i) return (i < from or i > to) and { { 2 * i, 0, 2 * i + 200, 100 } } or {} end
  end
  local bridged = tracks.of_scene(scene_of(120, gap(55, 78)), RULES)
  t.equal(#bridged, 1)
  t.equal(bridged[1].count, 120)
  t.equal(bridged[1].found, 96)
  t.near(bridged[1].data[10 * 66], 132, 1e-9, 'along a line')
  local cut = tracks.of_scene(scene_of(140, gap(55, 79)), RULES)
  t.equal(#cut, 2)
  t.equal(cut[1].count, 55)
  t.equal(cut[2].first, 80)
  -- Two people.
  local both = tracks.of_scene(scene_of(60, function(i) return { { i, 0, 100 + i, 100 }, { 300 - i, 0, 400 - i, 100 } } end), RULES)
  t.equal(#both, 2)
  t.near(both[1].data[10 * 59], 59, 0)
  t.near(both[2].data[10 * 59], 241, 0)
  -- A face that jumps away starts a new track.
  t.equal(#tracks.of_scene(scene_of(80, function(i) return { i < 40 and { 0, 0, 100, 100 } or { 60, 0, 160, 100 } } end), RULES), 0)
end)

t.test('positions are medians of 13, with zeros beyond the ends', function()
  local scene = scene_of(60, function(i)
    local x = i == 30 and 40 or 0
    return { { x, 10, x + 100, 90 } }
  end)
  local places = tracks.steady_boxes(tracks.of_scene(scene, RULES)[1])
  t.equal(places.x[30], 50)
  t.equal(places.y[30], 50)
  t.equal(places.side[30], 50)
  t.equal(places.x[0], 50)
  local rising = scene_of(60, function(i) return { { i, 10, 100 + i, 90 } } end)
  places = tracks.steady_boxes(tracks.of_scene(rising, RULES)[1])
  t.equal(places.x[20], 70)
  t.equal(places.x[0], 50, 'the least of seven')
  t.equal(places.x[59], 103, 'the least of seven')
end)

t.test('the crop is 2.8 half sides, shifted down, grey outside of the frame', function()
  local frame = cr.zeros(200, 240, 3, { dtype = 'u8' })
  for y = 0, 199 do frame:narrow(1, y + 1, 1):fill_(y) end
  for x = 0, 239 do frame:narrow(2, x + 1, 1):narrow(3, 1, 1):fill_(x) end
  local inside = tracks.cut_box(frame, 100.6, 80.4, 40, 112, 112) -- rows 40..151, columns 44..155 as they are
  t.equal(table.concat(inside.shape, ' '), '112 112 3')
  t.near(inside, frame:narrow(1, 41, 112):narrow(2, 45, 112), 0)
  local corner = tracks.cut_box(frame, 10, 20, 40, 112, 112)      -- rows -20..91, columns -46..65
  t.near(corner:narrow(1, 1, 20), cr.full({ 20, 112, 3 }, 110), 0)
  t.near(corner:narrow(2, 1, 46), cr.full({ 112, 46, 3 }, 110), 0)
  t.near(corner:narrow(1, 21, 92):narrow(2, 47, 66), frame:narrow(1, 1, 92):narrow(2, 1, 66), 0)
  local below = tracks.cut_box(frame, 230, 190, 40, 112, 112)
  t.near(below:narrow(1, 1, 50):narrow(2, 1, 66), frame:narrow(1, 151, 50):narrow(2, 175, 66), 0)
  t.near(below:narrow(1, 51, 62), cr.full({ 62, 112, 3 }, 110), 0)
end)

t.test('scenes begin where hue, saturation and value jump, and have at least 15 frames', function()
  local function cuts(color_of, n)
    local scenes, list = tracks.scenes(), {}
    for i = 0, n - 1 do
      cr.scope(function()
        local frame = cr.zeros(60, 80, 3, { dtype = 'u8' })
        local color = color_of(i)
        for c = 1, 3 do frame:narrow(3, c, 1):fill_(color[c]) end
        if scenes:push(frame) then list[#list + 1] = i end
      end)
    end
    return table.concat(list, ' ')
  end
  local red, blue, black, white = { 200, 20, 20 }, { 20, 20, 200 }, { 0, 0, 0 }, { 255, 255, 255 }
  t.equal(cuts(function(i) return i < 20 and red or blue end, 40), '20', 'another hue alone')
  t.equal(cuts(function(i) return i < 20 and black or white end, 40), '20')
  t.equal(cuts(function(i) return { 40 + 4 * i, 40 + 4 * i, 40 + 4 * i } end, 40), '', 'slowly brighter')
  t.equal(cuts(function(i) return i % 10 < 5 and black or white end, 60), '15 30 45')
end)

-- ---- bad input -----------------------------------------------------------------------------------

t.test('videos that cannot be evaluated give one sentence', function()
  t.raises(function() run { faces = function() return {} end } end, 'for more than 50 frames: no face was found')
  t.raises(function() run { faces = function(i) return i % 2 == 0 and whole() or { face_at(500, 500, 90) } end, longer_than = 60 } end,
    'for more than 60 frames: faces were found in 80 of 80 frames')
  t.raises(function() run { faces = function() return { face_at(64, 64, 80) } end } end, 'largest face is 80 pixels high, but must be more')
  t.raises(function() run { longer_than = 80 } end, 'it has 80 frames')
  t.raises(function() run { audio = write_sound('tiny.wav', 5) } end, 'tiny.wav is too short: each face needs at least 6 frames of sound')
  t.raises(function() run { audio = video } end, 'plain.mkv has no audio stream')
  t.raises(function() run { video = sound } end, 'plain.wav has no video stream')
  t.raises(function() run { syncnet = scratch.path 'none.model' } end, 'none.model')
  t.raises(function() cr.run(function() evaluate.open { syncnet = network, finder = finder_of(whole), s3fd = network } end) end,
    'tensor vgg.0.weight is missing')
end)

local function command(...) return child.run { 'evaluate', '--quiet', '--device', 'cpu', ... } end

t.test('the command refuses bad options', function()
  local function refused(pattern, code, ...)
    local r = command(...)
    t.equal(r.code, code, r.err)
    t.equal(r.lines, 1)
    t.equal(r.out, '')
    t.ok(r.err:find(pattern), r.err)
  end
  refused("missing argument 'video'", 1)
  refused('No such file', 1, 'missing.mp4')
  refused('empty, or a folder', 1, scratch.folder)
  refused('%-%-audio: .*No such file', 1, video, '--audio', 'missing.wav')
  refused("%-%-voice: 'two=x.wav' is not FACE=FILE", 1, video, '--voice', 'two=x.wav')
  refused('%-%-voice: .*No such file', 1, video, '--voice', '1=missing.wav')
  refused('face 1 has two voices', 1, video, '--voice', '1=' .. sound, '--voice', '1=' .. sound)
  refused('%-%-syncnet: .*No such file', 1, video, '--syncnet', 'missing.model')
  refused('%-%-s3fd: .*No such file', 1, video, '--s3fd', 'missing.pth')
  refused('must end in .svg', 1, video, '--plot', 'plot.jpg')
  refused('folder /nowhere does not exist', 1, video, '--plot', '/nowhere/plot.svg')
  refused("unknown option '%-%-sycnet'.*%-%-syncnet", 2, video, '--sycnet', network)
  refused('is not auto, cpu, cuda', 1, video, '--device', 'gpu')
  if not child.exists(evaluate.own_syncnet()) then
    refused('syncnet.safetensors, the project\'s own SyncNet, is not there', 1, video)
  end
end)

-- ---- the command -----------------------------------------------------------------------------------

--- The portrait's face, 256 x 256.
local function portrait()
  local path = t.fetched 'demo/astronaut.png'
  t.fetched 'face/face_landmark.tflite'
  return cr.scope(function() return media.read_picture(path):narrow(1, 1, 256):narrow(2, 97, 256):contiguous() end)
end

local function write_portrait(name, frames)
  cr.run(function()
    local face = portrait()
    local sink = media.writer(scratch.path(name), { width = 256, height = 256, fps = bright.fps, lossless = true })
    for _ = 1, frames do sink:write(face) end
    sink:close()
  end)
  return scratch.path(name)
end

t.test('all faces of a frame, and the one in a box', function()
  local frame, finder = portrait(), require 'models.latentsync.face'.load()
  local all, found = finder:find_all(frame), finder:find(frame)
  t.equal(#all, 1)
  for k = 1, 3 do
    for d = 1, 2 do t.near(all[1].points[k][d], found.points[k][d], 1e-9, 'the same mesh') end
  end
  local b = all[1].box
  t.ok(b[1] < found.points[1][1] and b[3] > found.points[2][1] and b[2] < found.points[1][2] and b[4] > found.points[3][2],
    'the box is around the points')
  local w, h = b[3] - b[1], b[4] - b[2]
  local inside = finder:find_in(frame, { b[1] - 0.1 * w, b[2] - 0.15 * h, b[3] + 0.05 * w, b[4] + 0.02 * h })
  if t.ok(inside, 'a face in a box around it') then
    for k = 1, 3 do
      for d = 1, 2 do t.near(inside.points[k][d], found.points[k][d], 2, 'about the same mesh') end
    end
  end
  t.equal(finder:find_in(frame, { 0, 190, 50, 250 }), nil)
  t.raises(function() finder:find_all(cr.zeros(64, 64, 3)) end, 'u8 %[H W 3%], not f32')
  t.raises(function() finder:find_in(cr.zeros(64, 64), { 0, 0, 9, 9 }) end, 'u8 %[H W 3%]')
  finder:free()
end)

t.test('boxes of S3FD for an aligned network: points by the mesh', function()
  local face = write_portrait('face.mkv', 53)
  local judge = evaluate.open { syncnet = aligned }
  judge.s3fd = { find = function() return { { box = { 80, 40, 180, 170 } }, { box = { 0, 190, 50, 250 } } } end, free = function() end }
  judge.detector = 's3fd'
  local result
  cr.run(function() result = judge:run(face, { audio = sound }) end)
  t.equal(#result.tracks, 1, 'where no mesh is seen is no face')
  t.equal(result.detector, 's3fd')
  t.equal(result.tracks[1].windows, 48)
  t.near(result.tracks[1].face.height, 130, 1e-9, 'the detector\'s box')
  judge:free()
  require 'models.networks.mfcc'.free()
end)

t.test('table, JSON and plot of a face', function()
  local face, plot = write_portrait('face <1>.mkv', 54), scratch.path 'plot.svg'
  local r = command(face, '--audio', sound, '--syncnet', network, '--plot', plot)
  t.equal(r.code, 0, r.err)
  t.equal(r.err, '')
  t.ok(r.out:find 'confidence %d+%.%d%d, offset %-?%d+', r.out)
  t.ok(r.out:find 'For published figures use both %-%-syncnet syncnet_v2.model and %-%-s3fd sfd_face.pth', r.out)
  t.ok(r.out:find "MediaPipe's detector", r.out)
  local svg = scratch.read(plot)
  t.ok(svg:find '^<svg ' and svg:find '</svg>\n$', 'an SVG')
  t.ok(svg:find('face &lt;1&gt;.mkv', 1, true), 'its name, escaped')
  t.equal(select(2, svg:gsub('<circle', '')), 31)

  r = command(face, '--audio', sound, '--syncnet', network, '--json')
  t.equal(r.code, 0, r.err)
  local told = require 'cjson'.decode(r.out)
  t.equal(told.video, face)
  t.equal(told.audio, sound)
  t.equal(told.frames, 54)
  t.equal(told.comparable, false)
  t.equal(#told.distances, 31)
  t.equal(told.offsets[16], 0)
  t.equal(told.tracks[1].first_frame, 0)
  t.equal(told.tracks[1].windows, 49)
  t.ok(told.tracks[1].face_height > 80 and told.tracks[1].face_height < 200, 'face ' .. told.tracks[1].face_height)
  t.ok(type(told.confidence) == 'number' and told.note:find 'published', 'confidence and note')
end)

child.clean()
t.done()
