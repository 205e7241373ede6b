--- Finds faces with InsightFace's networks, with the reference's exact arithmetic: box, 106 points, and the three
--- points used for alignment. Its finder has the same methods as that of models/latentsync/face.lua.
--
--     local finder = require 'models.latentsync.insight'.load { dir = 'DIR/auxiliary/models/buffalo_l' }
--     local found = finder:find(frame)          -- frame u8 [H W 3], RGB; nil: there is no face
--
-- These networks cannot tell whether there is a face where the detector finds none. To track a person through such
-- frames, `follow` uses MediaPipe's mesh. The reference does not do this, and `find` never does.

local lfs = require 'lfs'
local round_even = require 'models.latentsync.align'.round_even
local detector = require 'models.networks.insight_detector'
local face = require 'models.latentsync.face'
local landmarks = require 'models.networks.insight_landmarks'
local mesh = require 'models.networks.face_mesh'

local insight = {}
insight.__index = insight

-- The reference's minimum size of a usable face, in whole pixels.
local MIN_WIDTH, MIN_HEIGHT = 50, 80
local MIN_ASPECT, MAX_ASPECT = 0.2, 1.5

-- The points, by InsightFace's indices, whose means are used for alignment: left brow, right brow, nose.
local ALIGNED_BY = { { 43, 48, 49, 51, 50 }, { 101, 102, 103, 104, 105 }, { 74, 77, 83, 86 } }

-- Eye corners in the mesh, by MediaPipe's indices: of the eye on the left of the image, then of the one on the right.
local EYES = { { 33, 133 }, { 362, 263 } }

--- @class crescent.insight.found
--- @field box number[] x1, y1, x2, y2 in pixels, as the detector returns them
--- @field score number
--- @field keypoints number[][] five points
--- @field landmarks number[][] 106 of {x, y}
--- @field points number[][] left brow, right brow, nose (as seen in the picture), in whole pixels
--- @field watched number[][]? MediaPipe's mesh, if the face was tracked by it; the key points are then the eyes only

--- The folder of InsightFace's pack in a checkpoint's folder.
--- @param dir string
--- @return string
function insight.folder(dir) return dir .. '/auxiliary/models/buffalo_l' end

--- Which of the pack's two files are in a checkpoint's folder.
--- @param dir string
--- @return string? missing the missing file; nil if both are there
--- @return boolean any whether at least one is there
function insight.missing(dir)
  local missing, any
  for _, name in ipairs { detector.FILE, landmarks.FILE } do
    local path = insight.folder(dir) .. '/' .. name
    if lfs.attributes(path, 'mode') == 'file' then any = true else missing = missing or path end
  end
  return missing, any or false
end

--- The pack's two files in a checkpoint's folder.
--- @param dir string
--- @return table<string, string> paths by role
function insight.files(dir)
  local folder = insight.folder(dir)
  return { detector = folder .. '/' .. detector.FILE, landmarks = folder .. '/' .. landmarks.FILE }
end

--- Loads both networks.
--- @param options {dir: string, device: string?} the pack's folder; the device of networks and frames ('cpu')
function insight.load(options)
  local self = setmetatable({ device = options.device or 'cpu' }, insight)
  self.detector = detector.load(options.dir .. '/' .. detector.FILE, options.device)
  local ok, result = pcall(landmarks.load, options.dir .. '/' .. landmarks.FILE, options.device)
  if not ok then
    self.detector:free()
    error(result, 0)
  end
  self.landmarks = result
  return self
end

local function toward_0(x) return x < 0 and math.ceil(x) or math.floor(x) end

--- The area by which the reference chooses, or nil if the reference ignores the face.
--- @param box number[]
--- @return number? square pixels
function insight.area(box)
  local w = toward_0(box[3]) - toward_0(box[1])
  local h = toward_0(box[4]) - toward_0(box[2])
  if not (w >= MIN_WIDTH and h >= MIN_HEIGHT and w * h < math.huge) or w / h > MAX_ASPECT or w / h < MIN_ASPECT then return nil end
  return w * h
end

--- The three points used for alignment.
--- @param points number[][] 106 of {x, y}
--- @return number[][] three, in whole pixels
function insight.aligned_by(points)
  local means = {}
  for i, numbers in ipairs(ALIGNED_BY) do
    local x, y = 0, 0
    for _, k in ipairs(numbers) do
      x, y = x + round_even(points[k + 1][1]), y + round_even(points[k + 1][2])
    end
    means[i] = { round_even(x / #numbers), round_even(y / #numbers) }
  end
  return means
end

--- The usable faces of a frame, by descending score, as the detector returns them.
--- @param frame Tensor u8 [H W 3], RGB, on the finder's device
--- @return crescent.insight.detection[]
function insight:detect(frame)
  local list = {}
  for _, f in ipairs(self.detector:detect(frame)) do
    if insight.area(f.box) then list[#list + 1] = f end
  end
  return list
end

--- A detection's face with its points.
--- @param frame Tensor u8 [H W 3], RGB, on the finder's device
--- @param f crescent.insight.detection
--- @return crescent.insight.found?
function insight:place(frame, f)
  local points = self.landmarks:find(frame, f.box)
  return points and { box = f.box, score = f.score, keypoints = f.keypoints, landmarks = points,
    points = insight.aligned_by(points), watched = f.watched }
end

-- The centres of both eyes of a mesh.
local function eyes_of(points)
  local eyes = {}
  for i, corners in ipairs(EYES) do
    local a, b = points[corners[1] + 1], points[corners[2] + 1]
    eyes[i] = { (a[1] + b[1]) / 2, (a[2] + b[2]) / 2 }
  end
  return eyes
end

local function between(eyes) return (eyes[1][1] + eyes[2][1]) / 2, (eyes[1][2] + eyes[2][2]) / 2 end
local function apart(eyes) return math.sqrt((eyes[1][1] - eyes[2][1]) ^ 2 + (eyes[1][2] - eyes[2][2]) ^ 2) end

--- The face near the place where another frame had it, displaced by (dx, dy); nil if MediaPipe's mesh is not
--- confident or not fetched. Its box moves and scales with the eyes.
--- @param frame Tensor u8 [H W 3], RGB, on the finder's device
--- @param before crescent.insight.found|crescent.insight.detection
--- @param dx number? displacement in pixels (0)
--- @param dy number?
--- @return crescent.insight.found?
function insight:follow(frame, before, dx, dy)
  if self.mesh == nil then
    local there = lfs.attributes(face.folder() .. '/face_landmark.tflite', 'mode') == 'file'
    self.mesh = there and mesh.load(face.folder(), self.device)
  end
  if not self.mesh then return nil end
  local square = before.watched and mesh.square_of_mesh(before.watched) or mesh.square_of_detection(before)
  square.x, square.y = square.x + (dx or 0), square.y + (dy or 0)
  local watched, presence = self.mesh:find(frame, square)
  if presence < face.KEEP_PRESENCE then return nil end
  local eyes, box = eyes_of(watched), before.box
  local x0, y0 = between(before.keypoints)
  local x1, y1 = between(eyes)
  local scale = apart(eyes) / math.max(1, apart(before.keypoints))
  box = { x1 + (box[1] - x0) * scale, y1 + (box[2] - y0) * scale, x1 + (box[3] - x0) * scale, y1 + (box[4] - y0) * scale }
  return self:place(frame, { box = box, score = presence, keypoints = eyes, watched = watched })
end

local function with_frame(self, frame, fn)
  if frame.dtype ~= 'u8' or frame:dim() ~= 3 or frame.shape[3] ~= 3 then
    error(('insight: the frame must be u8 [H W 3], not %s [%s]'):format(frame.dtype, table.concat(frame.shape, ' ')), 3)
  end
  local there = frame:to(self.device)
  local result = fn(there)
  if not rawequal(there, frame) then there:free() end
  return result
end

--- All usable faces of a frame, by descending score.
--- @param frame Tensor u8 [H W 3], RGB
--- @return crescent.insight.found[]
function insight:find_all(frame)
  return with_frame(self, frame, function(there)
    local list = {}
    for _, f in ipairs(self:detect(there)) do list[#list + 1] = self:place(there, f) end
    return list
  end)
end

--- The face that the reference takes: the largest usable one; of equal ones, the one with the higher score.
--- @param frame Tensor u8 [H W 3], RGB
--- @return crescent.insight.found?
function insight:find(frame)
  return with_frame(self, frame, function(there)
    local best, most = nil, 0
    for _, f in ipairs(self:detect(there)) do
      local area = insight.area(f.box)
      if area > most then best, most = f, area end
    end
    return best and self:place(there, best)
  end)
end

--- Does nothing: frames are independent.
function insight.reset() end

--- Frees the networks' weights. May be called twice.
function insight:free()
  self.detector:free()
  self.landmarks:free()
  if self.mesh then self.mesh:free() end
end

return insight
