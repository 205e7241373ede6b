--- MediaPipe's face detector (BlazeFace), for short range (faces within 2 m) or full range (5 m).
--
-- The frame is scaled to fit the network's square input, padded with black. For each anchor on one or two grids, the
-- network returns a score and 16 numbers: box centre and size, and six points, in input pixels relative to the
-- anchor. Overlapping boxes are merged, weighted by their scores. Bazarevsky et al. 2019.

local cr = require 'cr'
local image = require 'cr.image'
local crop = require 'models.networks.face_crop'
local tflite = require 'cr.graphs.tflite'

local detector = {}
detector.__index = detector

--- Anchor grids as {cells per side, anchors per cell}; anchors are in the centre of the cell.
local KINDS = {
  full = { file = 'face_detection_full_range.tflite', grids = { { 48, 1 } } },
  short = { file = 'face_detection_short_range.tflite', grids = { { 16, 2 }, { 8, 6 } } },
}
--- The model file of each range.
detector.FILES = { full = KINDS.full.file, short = KINDS.short.file }

local MERGE_OVERLAP = 0.3 -- boxes with a larger IoU are merged into one face

--- A face in frame pixels.
--- @class crescent.face.detection
--- @field box number[] x1, y1, x2, y2
--- @field score number 0..1
--- @field keypoints number[][] right eye (on the image's left), left eye, nose, mouth, right ear, left ear
--- @field first crescent.face.mesh? the mesh in its square, if several frames were analysed together

--- The centres of all anchors, 0..1, in the order of the network's output rows.
local function make_anchors(grids)
  local list = {}
  for _, grid in ipairs(grids) do
    local cells, each = grid[1], grid[2]
    for y = 0, cells - 1 do
      for x = 0, cells - 1 do
        for _ = 1, each do list[#list + 1] = { (x + 0.5) / cells, (y + 0.5) / cells } end
      end
    end
  end
  return list
end

--- Loads the detector. dir: the folder of the model files.
--- @param range 'full'|'short'
--- @param dir string
--- @param device string? device of the network and the frames ('cpu')
function detector.load(range, dir, device)
  local kind = KINDS[range]
  if not kind then
    error(("face detector: the range must be 'full' or 'short', not %s"):format(tostring(range)), 2)
  end
  -- One thread, because its convolutions are so small that threads would mostly wait for each other.
  local net = tflite.open(dir .. '/' .. kind.file, { threads = 1, device = device, record = true })
  local anchors = make_anchors(kind.grids)
  local self = setmetatable({ net = net, anchors = anchors, size = net.input.shape[2] }, detector)
  for i, out in ipairs(net.outputs) do
    if out.shape[2] == #anchors and out.shape[3] == 16 then self.box_output = i end
    if out.shape[2] == #anchors and out.shape[3] == 1 then self.score_output = i end
  end
  net:expect('a face detector of this range', self.box_output and self.score_output)
  return self
end

--- The square of the frame that is the network's input.
local function whole_frame(width, height)
  return { x = width / 2, y = height / 2, side = math.max(width, height), angle = 0 }
end

local function overlap(a, b)
  local w = math.min(a[3], b[3]) - math.max(a[1], b[1])
  local h = math.min(a[4], b[4]) - math.max(a[2], b[2])
  if w <= 0 or h <= 0 then return 0 end
  local both = w * h
  return both / ((a[3] - a[1]) * (a[4] - a[2]) + (b[3] - b[1]) * (b[4] - b[2]) - both)
end
detector.overlap = overlap

--- Boxes and points of the anchors whose score is at least `least`, by descending score.
local function decode(self, boxes, scores, square, least)
  local found = {}
  local scale = square.side / self.size
  local left, top = square.x - square.side / 2, square.y - square.side / 2
  for i, anchor in ipairs(self.anchors) do
    local score = 1 / (1 + math.exp(-math.max(-80, math.min(80, scores[i - 1]))))
    if score >= least then
      local p = boxes + 16 * (i - 1)
      local ax, ay = left + anchor[1] * square.side, top + anchor[2] * square.side
      local x, y, w, h = ax + p[0] * scale, ay + p[1] * scale, p[2] * scale, p[3] * scale
      if w > 0 and h > 0 then
        local keypoints = {}
        for k = 1, 6 do
          keypoints[k] = { ax + p[2 + 2 * k] * scale, ay + p[3 + 2 * k] * scale }
        end
        found[#found + 1] = { box = { x - w / 2, y - h / 2, x + w / 2, y + h / 2 }, score = score,
          keypoints = keypoints, order = i }
      end
    end
  end
  table.sort(found, require 'cr.order'.most_first('score', 'order'))
  return found
end

--- The score-weighted mean of several detections of one face, with the best one's score.
local function merge(group)
  local total = 0
  local out = { box = { 0, 0, 0, 0 }, score = group[1].score, keypoints = {} }
  for k = 1, 6 do out.keypoints[k] = { 0, 0 } end
  for _, d in ipairs(group) do
    total = total + d.score
    for k = 1, 4 do out.box[k] = out.box[k] + d.score * d.box[k] end
    for k = 1, 6 do
      local o, p = out.keypoints[k], d.keypoints[k]
      o[1], o[2] = o[1] + d.score * p[1], o[2] + d.score * p[2]
    end
  end
  for k = 1, 4 do out.box[k] = out.box[k] / total end
  for k = 1, 6 do
    local o = out.keypoints[k]
    o[1], o[2] = o[1] / total, o[2] / total
  end
  return out
end

--- Merges overlapping detections (weighted non-maximum suppression); `found` is sorted by descending score.
--- @param found crescent.face.detection[]
--- @return crescent.face.detection[]
function detector.suppress(found)
  local faces = {}
  while #found > 0 do
    local group, rest = {}, {}
    for _, d in ipairs(found) do
      local near = overlap(d.box, found[1].box) > MERGE_OVERLAP or d == found[1]
      table.insert(near and group or rest, d)
    end
    faces[#faces + 1] = merge(group)
    found = rest
  end
  return faces
end

--- All faces of several frames, by descending score.
--- @param frames Tensor[] u8 [H W 3], RGB, at least one, all of the same size
--- @param least number? minimum score (0.5)
--- @return crescent.face.detection[][]
function detector:detect_each(frames, least)
  return cr.scope(function()
    local square, cuts = whole_frame(frames[1].shape[2], frames[1].shape[1]), {}
    for i, frame in ipairs(frames) do cuts[i] = image.cut_square(frame, square, self.size, 1 / 127.5, -1) end
    local out, found = crop.run(self.net, cuts), {}
    local boxes, scores = out[self.box_output]:pointer(), out[self.score_output]:pointer()
    for i = 1, #frames do
      local first = (i - 1) * #self.anchors
      found[i] = detector.suppress(decode(self, boxes + 16 * first, scores + first, square, least or 0.5))
    end
    return found
  end)
end

--- All faces of a frame, by descending score.
--- @param frame Tensor u8 [H W 3], RGB
--- @param least number? minimum score (0.5)
--- @return crescent.face.detection[]
function detector:detect(frame, least) return self:detect_each({ frame }, least)[1] end

--- Frees the weights. May be called twice.
function detector:free() self.net:free() end

return detector
