--- Finds the face in a frame: box, mesh of 468 points, and the three points used for alignment.
--
--     local face = require 'models.latentsync.face'
--     local finder = face.load { range = 'full' }
--     local found = finder:find(frame)          -- frame u8 [H W 3]; nil: there is no face
--
-- A finder tracks one face from frame to frame. Of several faces it takes the one that overlaps the previous frame's
-- face, else the largest. Where the detector finds none (a turned head, a hand), it tries the crop around the last
-- mesh. `finder:reset()` forgets the tracked face.

local align = require 'models.latentsync.align'
local detector = require 'models.networks.face_detector'
local mesh = require 'models.networks.face_mesh'

local face = {}
face.__index = face

face.KEEP_PRESENCE = 0.9 -- minimum presence of a mesh in a crop that comes from tracking alone

-- The reference's minimum size of a usable face, in pixels of the frame.
local MIN_WIDTH, MIN_HEIGHT = 50, 80
local MIN_ASPECT, MAX_ASPECT = 0.2, 1.5
local MIN_SCORE = 0.5
local MIN_PRESENCE = 0.5 -- minimum presence of a mesh in a detected box
local SAME_FACE = 0.2 -- minimum overlap (IoU) of a face with itself one frame later
local REFINEMENTS = 3 -- maximum number of corrections of a crop that the mesh shows to be misplaced
local CLEAR = 38 -- presence as log-odds that a well placed crop reaches at least

--- @class crescent.face.found
--- @field box number[] x1, y1, x2, y2 in pixels; from the detector, or from the mesh if the detector found nothing
--- @field score number from the detector, or the mesh's presence if the detector found nothing
--- @field keypoints number[][]? the detector's six points; nil if it found nothing
--- @field presence number the mesh network's confidence that there is a face, 0..1
--- @field mesh number[][] 468 points {x, y}
--- @field points number[][] left brow, right brow, nose (as seen in the picture)

--- The folder into which `make models` puts the files.
--- @return string
function face.folder()
  local here = debug.getinfo(1, 'S').source:gsub('^@', ''):match('^(.*)/[^/]*$') or '.'
  return here .. '/../fetched/face'
end

local function need(dir, name)
  local file = io.open(dir .. '/' .. name, 'rb')
  if not file then error(('%s does not exist: run `make models`'):format(name), 0) end
  file:close()
end

--- Loads detector and mesh. range: 'full' (default) or 'short'; dir: the folder of the model files; track: after the
--- first frame, search only around the last face (faster, slightly less exact); alone: treat each frame independently and
--- take its largest face; device: the device of the networks and the frames ('cpu').
--- @param options {range: 'full'|'short', dir: string, track: boolean, alone: boolean, device: string}?
function face.load(options)
  options = options or {}
  local dir, range = options.dir or face.folder(), options.range or 'full'
  if not detector.FILES[range] then
    error(("face: the range must be 'full' or 'short', not %s"):format(tostring(range)), 2)
  end
  need(dir, detector.FILES[range])
  need(dir, 'face_landmark.tflite')
  local self = setmetatable({ track = options.track or false, alone = options.alone or false,
    device = options.device or 'cpu' }, face)
  self.detector = detector.load(range, dir, options.device)
  local ok, result = pcall(mesh.load, dir, options.device)
  if not ok then
    self.detector:free()
    error(result, 0)
  end
  self.mesh = result
  return self
end

--- Whether a detection is usable by the reference's rules.
local function usable(f)
  local w, h = f.box[3] - f.box[1], f.box[4] - f.box[2]
  local aspect = w / h
  return w >= MIN_WIDTH and h >= MIN_HEIGHT and aspect >= MIN_ASPECT and aspect <= MAX_ASPECT and f.score >= MIN_SCORE
end

local function all_usable(detections)
  local list = {}
  for _, f in ipairs(detections) do
    if usable(f) then list[#list + 1] = f end
  end
  return list
end

--- The usable faces of a frame, by descending score, as the detector returns them.
--- @param frame Tensor u8 [H W 3], RGB, on the finder's device
--- @return crescent.face.detection[]
function face:detect(frame) return all_usable(self.detector:detect(frame, MIN_SCORE)) end

--- The same for several frames, and each face's first mesh, which place() then uses. A GPU is waited for only twice
--- in all.
--- @param frames Tensor[] u8 [H W 3], RGB, on the finder's device, at least one, all of the same size
--- @return crescent.face.detection[][]
function face:detect_each(frames)
  local lists, faces, all = self.detector:detect_each(frames, MIN_SCORE), {}, {}
  for i, list in ipairs(lists) do
    lists[i] = all_usable(list)
    for _, f in ipairs(lists[i]) do
      all[#all + 1] = f
      faces[#all] = { frame = frames[i], square = mesh.square_of_detection(f) }
    end
  end
  for i, found in ipairs(#all > 0 and self.mesh:find_each(faces) or {}) do all[i].first = found end
  return lists
end

--- Sorts detections: first the face of the previous frame, then by size.
local function rank(faces, before)
  local list = {}
  for _, f in ipairs(faces) do
    local shared = before and detector.overlap(f.box, before) or 0
    list[#list + 1] = { face = f, shared = shared >= SAME_FACE and shared or 0,
      area = (f.box[3] - f.box[1]) * (f.box[4] - f.box[2]) }
  end
  table.sort(list, function(a, b)
    if a.shared ~= b.shared then return a.shared > b.shared end
    return a.area > b.area
  end)
  return list
end

--- Forgets the face of the previous frame (at a scene cut, or for another video).
function face:reset() self.last = nil end

--- Whether the crop `a` differs from the box `b` of the mesh found in it by so much that the mesh gets worse. This
--- hardly ever happens with the full-range detector; it happens with the short-range one if faces are small.
local function is_off(a, b)
  local apart = math.sqrt((a.x - b.x) ^ 2 + (a.y - b.y) ^ 2) / b.side
  local turn = math.abs((a.angle - b.angle + math.pi) % (2 * math.pi) - math.pi)
  return apart > 0.075 or math.abs(math.log(a.side / b.side)) > 0.15 or turn > 0.16
end

--- The mesh of a detected face; if the detector's crop is misplaced, from a corrected crop.
local function settle(self, frame, detection)
  local square, first = mesh.square_of_detection(detection), detection.first
  local points, presence, evidence
  if first then
    points, presence, evidence = first.points, first.presence, first.evidence
  else
    points, presence, evidence = self.mesh:find(frame, square)
  end
  for _ = 1, REFINEMENTS do
    local better = mesh.square_of_mesh(points)
    if presence < MIN_PRESENCE or (evidence > CLEAR and not is_off(square, better)) then break end
    square = better
    points, presence, evidence = self.mesh:find(frame, square)
  end
  return points, presence
end

local function check_frame(frame)
  if frame.dtype ~= 'u8' or frame:dim() ~= 3 or frame.shape[3] ~= 3 then
    error(('face: the frame must be u8 [H W 3], not %s [%s]')
      :format(frame.dtype, table.concat(frame.shape, ' ')), 3)
  end
end

--- A detection's face with its mesh, or nil if the mesh network finds no face there.
--- @param frame Tensor u8 [H W 3], RGB, on the finder's device
--- @param f crescent.face.detection
--- @return crescent.face.found?
function face:place(frame, f)
  local points, presence = settle(self, frame, f)
  if presence < MIN_PRESENCE then return nil end
  return { box = f.box, score = f.score, keypoints = f.keypoints, presence = presence, mesh = points,
    points = align.points_from_mesh(points) }
end

--- The face near the place where another frame had it, displaced by (dx, dy); nil if the mesh is not confident.
--- @param frame Tensor u8 [H W 3], RGB, on the finder's device
--- @param before crescent.face.found|crescent.face.detection
--- @param dx number? displacement in pixels (0)
--- @param dy number?
--- @return crescent.face.found?
function face:follow(frame, before, dx, dy)
  local square = before.mesh and mesh.square_of_mesh(before.mesh) or mesh.square_of_detection(before)
  square.x, square.y = square.x + (dx or 0), square.y + (dy or 0)
  local points, presence = self.mesh:find(frame, square)
  if presence < face.KEEP_PRESENCE then return nil end
  return { box = mesh.box_of(points), score = presence, presence = presence, mesh = points,
    points = align.points_from_mesh(points) }
end

local function follow(self, frame) return self.last and self:follow(frame, self.last) end

local function detect(self, frame, detections)
  for _, candidate in ipairs(rank(detections or self:detect(frame), self.last and self.last.box)) do
    local found = self:place(frame, candidate.face)
    if found then return found end
  end
end

--- All faces of a frame, by descending score, independent of previous frames; `find` is not affected. The boxes are
--- those of the meshes, which reach from the forehead to the chin.
--- @param frame Tensor u8 [H W 3], RGB
--- @return crescent.face.found[]
function face:find_all(frame)
  check_frame(frame)
  local there, found = frame:to(self.device or frame.device), {}
  for _, f in ipairs(self.detector:detect(there, MIN_SCORE)) do
    local points, presence = settle(self, there, f)
    if presence >= MIN_PRESENCE then
      found[#found + 1] = { box = mesh.box_of(points), score = f.score, keypoints = f.keypoints,
        presence = presence, mesh = points, points = align.points_from_mesh(points) }
    end
  end
  if not rawequal(there, frame) then there:free() end
  return found
end

--- The face in a box that another detector returned, or nil if the mesh network finds none there.
--- @param frame Tensor u8 [H W 3], RGB
--- @param box number[] x1, y1, x2, y2 in pixels
--- @return crescent.face.found?
function face:find_in(frame, box)
  check_frame(frame)
  local there = frame:to(self.device or frame.device)
  -- The crop is upright at first: only a mesh shows how the face is rotated.
  local eye = { (box[1] + box[3]) / 2, (box[2] + box[4]) / 2 }
  local points, presence = settle(self, there, { box = box, keypoints = { eye, { eye[1] + 1, eye[2] } } })
  if presence >= MIN_PRESENCE then points, presence = self.mesh:find(there, mesh.square_of_mesh(points)) end
  if not rawequal(there, frame) then there:free() end
  if presence < MIN_PRESENCE then return nil end
  return { box = mesh.box_of(points), score = presence, presence = presence, mesh = points,
    points = align.points_from_mesh(points) }
end

--- Finds the face of the next frame.
--- @param frame Tensor u8 [H W 3], RGB
--- @param detections crescent.face.detection[]? its result of detect_each()
--- @return crescent.face.found?
function face:find(frame, detections)
  check_frame(frame)
  local there = frame:to(self.device or frame.device)
  local found
  if self.track then
    found = follow(self, there) or detect(self, there, detections)
  else
    found = detect(self, there, detections) or follow(self, there)
  end
  if not rawequal(there, frame) then there:free() end
  if not self.alone then self.last = found end
  return found
end

--- Frees the networks' weights. May be called twice.
function face:free()
  self.detector:free()
  self.mesh:free()
end

return face
