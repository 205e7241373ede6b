--- InsightFace's face detector SCRFD (det_10g.onnx), bit-exact with release 0.7.3 of the Python package.
--
-- The frame is scaled to fit the upper left of a square, padded with black. For two anchors per cell on three grids,
-- the network returns a score, the distances to the sides of a box, and five points, in units of the grid's stride.
-- Boxes that overlap a better one are dropped. Guo et al. 2021.
--
-- Invariant: what the package computes in single precision is rounded to it after each step, because the last bit can
-- decide which boxes are kept.

local cr = require 'cr'
local nn = require 'cr.nn'
local most_first = require 'cr.order'.most_first
local file = require 'models.networks.insight_file'
local finite = require 'models.networks.finite'

local single = file.single

local detector = {}
detector.__index = detector

detector.FILE = 'det_10g.onnx'
detector.SIZE = 512 -- side of the input, as in the reference

local STRIDES = { 8, 16, 32 }
local EACH = 2 -- anchors per cell
local POINTS = 5
local LEAST = 0.5 -- minimum score
local MOST_SHARED = single(0.4) -- maximum IoU of two boxes that are both kept

local WHAT = "a face detector of InsightFace's"

-- The anchors of each grid, those before it, and all.
local COUNTS, BEFORE, ANCHORS = {}, {}, 0
for k, stride in ipairs(STRIDES) do
  COUNTS[k], BEFORE[k] = EACH * (detector.SIZE / stride) ^ 2, ANCHORS
  ANCHORS = ANCHORS + COUNTS[k]
end

local ROW = 4 + 2 * POINTS -- numbers of an anchor: distances, points

--- Loads the detector.
--- @param path string
--- @param device string? device of the network and the frames ('cpu')
function detector.load(path, device)
  local net = file.open(path, WHAT, detector.SIZE, 3 * #STRIDES, { device = device })
  -- Returns the scores and, last, a number that is finite if all results are; and the rows of all anchors.
  local all = cr.graph(function(picture)
    local out = { net:run((file.planes(picture) - 127.5) / 128) }
    local function joined(kind, width)
      local parts = {}
      for k, count in ipairs(COUNTS) do
        parts[k] = file.expect(net, WHAT, out[(kind - 1) * #STRIDES + k], count * width):view(count, width)
      end
      return cr.cat(parts, 1)
    end
    local scores, rows = joined(1, 1):view(ANCHORS), cr.cat({ joined(2, 4), joined(3, 2 * POINTS) }, 2)
    return cr.cat({ scores, ((scores * 0):sum() + (rows * 0):sum()):view(1) }, 1), rows
  end, { limit = 2, direct = true })
  return setmetatable({ net = net, all = all }, detector)
end

--- Scales and pads a frame to the network's input.
--- @param frame Tensor u8 [H W 3]
--- @return Tensor? u8 [512 512 3]; nil if the frame is so narrow that a side would be scaled to 0
--- @return number? scale from frame pixels to input pixels
function detector.letterbox(frame)
  local size, height, width = detector.SIZE, frame:size(1), frame:size(2)
  local ratio, new_height, new_width = height / width, detector.SIZE, detector.SIZE
  if ratio > 1 then new_width = math.floor(size / ratio) else new_height = math.floor(size * ratio) end
  if new_width < 1 or new_height < 1 then return nil end
  local out = cr.zeros({ size, size, 3 }, { dtype = 'u8', device = frame.device })
  out:narrow(1, 1, new_height):narrow(2, 1, new_width):copy_(nn.resize(frame, new_height, new_width, 'linear'))
  return out, new_height / height
end

--- A face in frame pixels.
--- @class crescent.insight.detection
--- @field box number[] x1, y1, x2, y2
--- @field score number 0..1
--- @field keypoints number[][] left eye, right eye, nose, corners of the mouth, as seen in the picture

--- The anchors with a score of at least 0.5, in the order of the grids. Only their rows leave a GPU.
--- @param scores Tensor f32 [n], on the CPU
--- @param rows Tensor f32 [n 14]: distances to the box's sides and five points, in units of the grid's stride
--- @param scale number the scale returned by letterbox
--- @return crescent.insight.detection[]
function detector.decode(scores, rows, scale)
  local found, chosen, p = {}, {}, scores:pointer()
  for i = 0, ANCHORS - 1 do
    if p[i] >= LEAST then chosen[#chosen + 1] = i + 1 end
  end
  if #chosen == 0 then return found end
  local there = rows:index_select(1, cr.tensor(chosen, { dtype = 'i64', device = rows.device })):to 'cpu'
  local numbers, k = there:pointer(), 1
  scale = single(scale)
  for n, one in ipairs(chosen) do
    while BEFORE[k + 1] and one > BEFORE[k + 1] do k = k + 1 end
    local stride, at = STRIDES[k], math.floor((one - 1 - BEFORE[k]) / EACH)
    local cells = detector.SIZE / stride
    local x, y = at % cells * stride, math.floor(at / cells) * stride
    local function place(centre, distance) return single(single(centre + distance * stride) / scale) end
    local d = numbers + ROW * (n - 1)
    local face = { score = p[one - 1], keypoints = {}, order = n - 1,
      box = { place(x, -d[0]), place(y, -d[1]), place(x, d[2]), place(y, d[3]) } }
    for j = 1, POINTS do face.keypoints[j] = { place(x, d[2 * j + 2]), place(y, d[2 * j + 3]) } end
    found[n] = face
  end
  return found
end

-- The number of pixels from a to b, inclusive.
local function length(a, b) return single(single(b - a) + 1) end

local function overlap(a, b)
  local p, q = a.box, b.box
  local w = math.max(0, length(math.max(p[1], q[1]), math.min(p[3], q[3])))
  local h = math.max(0, length(math.max(p[2], q[2]), math.min(p[4], q[4])))
  local both = single(w * h)
  return single(both / single(single(a.area + b.area) - both))
end

--- Sorts by descending score and removes boxes that overlap a better one too much.
--- @param found crescent.insight.detection[] from decode; is sorted in place
--- @return crescent.insight.detection[]
function detector.suppress(found)
  table.sort(found, most_first('score', 'order'))
  for _, f in ipairs(found) do f.area = single(length(f.box[1], f.box[3]) * length(f.box[2], f.box[4])) end
  local kept = {}
  for _, f in ipairs(found) do
    local stays, i = true, 0
    while stays and i < #kept do
      i = i + 1
      stays = overlap(kept[i], f) <= MOST_SHARED -- NaN counts as overlapping
    end
    if stays then kept[#kept + 1] = f end
  end
  return kept
end

--- The network's results for a letterboxed image.
--- @param picture Tensor u8 [512 512 3]
--- @return Tensor scores f32 [n], on the CPU
--- @return Tensor rows f32 [n 14], on the network's device; the next call overwrites it there
function detector:anchors(picture)
  local scores, rows = self.all(picture)
  scores = scores:to 'cpu'
  finite.result(scores:narrow(1, ANCHORS + 1, 1), self.net.path)
  return scores:narrow(1, 1, ANCHORS), rows
end

--- All faces of a frame, by descending score.
--- @param frame Tensor u8 [H W 3], RGB
--- @return crescent.insight.detection[]
function detector:detect(frame)
  return cr.scope(function()
    local picture, scale = detector.letterbox(frame)
    if not picture then return {} end
    local scores, rows = self:anchors(picture)
    return detector.suppress(detector.decode(scores, rows, scale))
  end)
end

--- Frees the weights. May be called twice.
function detector:free()
  self.all:free()
  self.net:free()
end

return detector
