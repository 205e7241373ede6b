--- Measures how well lips and sound agree: SyncNet's confidence and the offset between video and sound, with
--- LatentSync's method.
--
--     local evaluate = require 'models.laboratory.evaluate'
--     local judge = evaluate.open { syncnet = 'syncnet_v2.model', s3fd = 'sfd_face.pth', device = 'cuda' }
--     local result = judge:run('out.mp4')   -- { confidence, offset, distances, tracks, ... }
--     judge:free()
--
-- A video is read twice: once to find faces, once to crop the mouths of faces that are visible for more than 50
-- frames. Memory holds one batch of frames and a few numbers per frame, whatever the video's length. Figures are
-- comparable with published ones only if both networks are the reference's; the remaining difference is that the
-- reference compresses frames and sound on the way, and we do not.

local cr = require 'cr'
local media = require 'cr.media'
local align = require 'models.latentsync.align'
local sound_windows = require 'models.latentsync.sound_windows'
local syncnet = require 'models.networks.syncnet'
local tracks = require 'models.laboratory.tracks'

local evaluate = {}

local BATCH = 8 -- frames decoded at once; also windows computed at once
local FPS = 25
local SPARE = sound_windows.SPARE
local LONGER_THAN = 50 -- minimum length of a track, in frames
local LARGER_THAN = { s3fd = 100, mediapipe = 80 } -- minimum face size in pixels: the reference's; the smallest that lipsync accepts
local MIN_LENGTH = 1 + SPARE -- frames

--- The path of the project's own SyncNet.
function evaluate.own_syncnet() return cr.root .. '/models/mini/syncnet.safetensors' end

local function exists(path)
  local f = io.open(path, 'rb')
  if f then f:close() end
  return f ~= nil
end

-- ---- the judge -------------------------------------------------------------------------------

--- @class crescent.judge
--- @field net table the SyncNet
--- @field detector string 's3fd' or 'mediapipe'
--- @field comparable boolean whether figures are comparable with published ones
local Judge = {}
Judge.__index = Judge

--- Loads the networks.
--- @param options table? {syncnet = path (default: the project's own), s3fd = path (default: MediaPipe's detector and mesh),
---  device = 'cpu', finder = instead of models.face's: find_all(frame), find_in(frame, box), free()}
--- @return crescent.judge
function evaluate.open(options)
  options = options or {}
  local device, path = options.device or 'cpu', options.syncnet
  if not path then
    path = evaluate.own_syncnet()
    if not exists(path) then
      error("models/mini/syncnet.safetensors, the project's own SyncNet, does not exist: name another one with --syncnet, " ..
        "such as LatentSync's syncnet_v2.model", 0)
    end
  end
  local self = setmetatable({ device = device, detector = options.s3fd and 's3fd' or 'mediapipe' }, Judge)
  local ok, reason = pcall(function()
    self.net = syncnet.load(path, { device = device })
    if options.s3fd then self.s3fd = require 'models.networks.s3fd'.load(options.s3fd, { device = device }) end
    if not options.s3fd or self.net.settings.crop == 'aligned' then
      self.finder = options.finder or require 'models.latentsync.face'.load { range = 'full', device = device }
    end
  end)
  if not ok then
    self:free()
    error(reason, 0)
  end
  self.comparable = options.s3fd ~= nil and self.net.full and self.net.settings.crop == 'box'
  self.files = { syncnet = path, s3fd = options.s3fd }
  return self
end

--- Frees the networks. May be called twice.
function Judge:free()
  for _, part in ipairs { 'net', 's3fd', 'finder' } do
    if self[part] then self[part]:free() end
  end
end

-- ---- faces -----------------------------------------------------------------------------------

--- The faces of a frame, as a list of {frame, box, points}.
local function faces_of(self, frame, index)
  local faces = {}
  if self.s3fd then
    for _, face in ipairs(self.s3fd:find(frame)) do
      local found = self.finder and self.finder:find_in(frame, face.box)
      faces[#faces + 1] = { frame = index, box = face.box, points = found and found.points }
    end
  else
    for _, face in ipairs(self.finder:find_all(frame)) do
      faces[#faces + 1] = { frame = index, box = face.box, points = face.points }
    end
  end
  return faces
end

--- All tracks of a video, and statistics about the search.
local function find_tracks(self, video, o)
  local reader = media.reader(video, { fps = FPS, device = self.device })
  local found, seen = {}, { frames = 0, with_face = 0, largest = 0 }
  local ok, reason = pcall(function()
    local scenes, scene = tracks.scenes(), {}
    local rules = { longer_than = o.longer_than or LONGER_THAN, larger_than = LARGER_THAN[self.detector] }
    local function end_scene()
      if #scene >= rules.longer_than then
        for _, track in ipairs(tracks.of_scene(scene, rules)) do found[#found + 1] = track end
      end
      scene = {}
    end
    while true do
      local frames = o.measure('decode', 0, function() return reader:read(BATCH) end)
      for _, frame in ipairs(frames) do
        if scenes:push(frame) then end_scene() end
        local faces = o.measure('find faces', 1, faces_of, self, frame, seen.frames)
        frame:free()
        scene[#scene + 1] = faces
        seen.frames = seen.frames + 1
        if #faces > 0 then seen.with_face = seen.with_face + 1 end
        for _, face in ipairs(faces) do
          seen.largest = math.max(seen.largest, face.box[3] - face.box[1], face.box[4] - face.box[2])
        end
        o.advance(1)
      end
      if #frames < BATCH then break end
    end
    end_scene()
  end)
  reader:close()
  if not ok then error(reason, 0) end
  return found, seen
end

--- A function that returns the crop of frame i (from 0) of a track.
local function cutter(self, track)
  local s = self.net.settings
  if s.crop == 'box' then
    local places = tracks.steady_boxes(track)
    return function(frame, i) return tracks.cut_box(frame, places.x[i], places.y[i], places.side[i], s.height, s.width) end
  end
  local aligner, points = align.new { size = s.size }, tracks.steady_points(track)
  return function(frame, i)
    local matrix = aligner:matrix(points[i + 1])
    return cr.scope(function()
      return align.warp(frame, matrix, s.size):narrow(1, s.rows[1] + 1, s.height):narrow(2, s.columns[1] + 1, s.width)
        :contiguous()
    end)
  end
end

--- Offset and confidence of a track; nil if the sound is too short for one window.
local function judge_track(self, track, reader, sound, o)
  local metric, cut = syncnet.metric(), cutter(self, track)
  local carried -- the last four images, because windows overlap
  reader:seek(track.first)
  local i, windows, left = 0, 0, track.count - SPARE
  local ok, reason = pcall(function()
    while left > 0 do
      -- The first window needs five frames, each further window one more.
      local wanted = math.min(BATCH, left)
      local frames = o.measure('decode', 0, function()
        return reader:read(carried and wanted or wanted + syncnet.FRAMES - 1)
      end)
      local rows, n = o.measure('listen', 0, function() return sound:windows(wanted) end)
      local pictures = o.measure('cut', #frames, function()
        return cr.scope(function()
          local list = { carried }
          for _, frame in ipairs(frames) do
            list[#list + 1] = cut(frame, i):unsqueeze(1)
            i = i + 1
          end
          return #list > 0 and cr.cat(list, 1) or nil
        end)
      end)
      for _, frame in ipairs(frames) do frame:free() end
      if carried then carried:free() end
      carried = nil
      n = math.min(n, pictures and pictures:size(1) - syncnet.FRAMES + 1 or 0)
      if n >= 1 then
        o.measure('syncnet', n, function()
          cr.scope(function()
            metric:add(self.net:mouth(pictures:narrow(1, 1, n + syncnet.FRAMES - 1)),
              self.net:sound(rows:narrow(1, 1, 4 * (n - 1) + syncnet.ROWS)))
          end)
        end)
        if n == wanted then
          carried = cr.keep(cr.scope(function() return pictures:narrow(1, n + 1, syncnet.FRAMES - 1):clone() end))
        end
      end
      if rows then rows:free() end
      if pictures then pictures:free() end
      o.advance(#frames)
      windows, left = windows + math.max(n, 0), left - wanted
      if n < wanted then break end
    end
  end)
  if carried then carried:free() end
  local result = ok and metric:result()
  metric:free()
  if not ok then error(reason, 0) end
  if not result then return nil end
  result.first, result.frames = track.first, track.count
  result.face = { width = track.width, height = track.height, x = track.x, y = track.y, found = track.found }
  return result
end

--- Raises the reason why there is no track.
local function nothing_tracked(self, video, seen, o)
  local longer = o.longer_than or LONGER_THAN
  local reason
  if seen.frames <= longer then
    reason = ('it has %d frame%s at 25 frames per second'):format(seen.frames, seen.frames == 1 and '' or 's')
  elseif seen.with_face == 0 then
    reason = 'no face was found'
  elseif seen.largest <= LARGER_THAN[self.detector] then
    reason = ('the largest face is %.0f pixels high, but must be more than %d'):format(seen.largest, LARGER_THAN[self.detector])
  else
    reason = ('faces were found in %d of %d frames'):format(seen.with_face, seen.frames)
  end
  error(('%s: no face can be followed for more than %d frames: %s'):format(video, longer, reason), 0)
end

-- Fails if a voice names a track that does not exist, and lists the tracks.
local function check_voices(video, voices, results)
  local most = 0
  for number in pairs(voices) do most = math.max(most, number) end
  if most <= #results then return end
  local list = {}
  for i, track in ipairs(results) do
    local from, to = track.first / FPS, (track.first + track.frames) / FPS
    list[i] = ('%d (%.1f to %.1f s, at %.0f,%.0f)'):format(i, from, to, track.face.x, track.face.y)
  end
  error(('%s has no face %d: there %s %s'):format(video, most, #list == 1 and 'is' or 'are', table.concat(list, ', ')), 0)
end

local function mean(list, key)
  local sum = 0
  for _, item in ipairs(list) do sum = sum + item[key] end
  return sum / #list
end

--- Evaluates a video. May be called in a task or outside.
--- @param video string path
--- @param options table? {audio = path of the sound (default: the video's own), voices = {[2] = path, ...}: the sound of a single
---  track, by number, longer_than = 50 (minimum frames of a track),
---  measure = fun(stage, frames, fn, ...): times a stage, advance = fun(n): n frames were processed (each frame counts twice),
---  expect = fun(n): the total number of frames}
--- @return table result {confidence, offset = frames by which the sound precedes the video (with several tracks their mean,
---  truncated to an integer), minimum = smallest distance, offsets = {15 ... -15}, distances = mean distance at each offset,
---  tracks = a list of {offset, confidence, minimum, distances, windows, first (frame, from 0), frames, audio,
---  face = {width, height, x, y (of its centre)}}, frames, frames_with_face, detector, comparable, video, audio}
function Judge:run(video, options)
  local o = {}
  for key, value in pairs(options or {}) do o[key] = value end
  o.measure = o.measure or function(_, _, fn, ...) return fn(...) end
  o.advance, o.expect = o.advance or function() end, o.expect or function() end
  local info = media.probe(video)
  if not info.has_video then error(video .. ' has no video stream', 0) end
  local audio, voices = o.audio or video, o.voices or {}
  for _, path in pairs(voices) do
    if not media.probe(path).has_audio then error(path .. ' has no audio stream', 0) end
  end
  if not (o.audio and media.probe(audio) or info).has_audio then
    error(o.audio and audio .. ' has no audio stream' or video .. ' has no sound: name one with --audio', 0)
  end
  if info.frames > 0 then o.expect(2 * info.frames) end
  local found, seen = find_tracks(self, video, o)
  if #found == 0 then nothing_tracked(self, video, seen, o) end
  local total = seen.frames
  for _, track in ipairs(found) do total = total + track.count end
  o.expect(total)

  local results = {}
  local reader = media.reader(video, { fps = FPS, device = self.device })
  local ok, reason = pcall(function()
    for _, track in ipairs(found) do
      if self.net.settings.crop == 'box' or track.has_points then
        local path = voices[#results + 1] or audio
        local sound = sound_windows.open(path, track.first, track.count)
        local done, result = pcall(judge_track, self, track, reader, sound, o)
        sound:close()
        if not done then error(result, 0) end
        if result then result.audio = path end
        results[#results + 1] = result
      end
    end
  end)
  reader:close()
  if not ok then error(reason, 0) end
  if #results == 0 then
    error(('%s is too short: each face needs at least %d frames of sound'):format(audio, MIN_LENGTH), 0)
  end
  check_voices(video, voices, results)

  local offsets, distances = {}, {}
  for k = 1, 2 * syncnet.SHIFT + 1 do
    local sum = 0
    for _, track in ipairs(results) do sum = sum + track.distances[k] end
    offsets[k], distances[k] = syncnet.SHIFT + 1 - k, sum / #results
  end
  local offset = mean(results, 'offset')
  return {
    confidence = mean(results, 'confidence'), minimum = mean(results, 'minimum'),
    offset = offset < 0 and -math.floor(-offset) or math.floor(offset), offsets = offsets, distances = distances,
    tracks = results, frames = seen.frames, frames_with_face = seen.with_face, detector = self.detector,
    comparable = self.comparable, video = video, audio = audio,
  }
end

--- Loads the networks, evaluates a video and frees them: evaluate.run(video, { syncnet =, s3fd =, device =, audio =,
--- ... }).
--- @param video string
--- @param options table? options of evaluate.open and of Judge:run
function evaluate.run(video, options)
  local judge = evaluate.open(options)
  local ok, result = pcall(judge.run, judge, video, options)
  judge:free()
  if not ok then error(result, 0) end
  return result
end

return evaluate
