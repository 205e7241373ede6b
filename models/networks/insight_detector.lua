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

--- Loads the detector.
--- @param path string
--- @param device string? device of the network and the frames ('cpu')
function detector.load(path, device)
  local net = file.open(path, WHAT, detector.SIZE, 3 * #STRIDES, { device = device })
  local all = cr.graph(function(picture)
    local out = { net:run((file.planes(picture) - 127.5) / 128) }
    for i, y in ipairs(out) do out[i] = file.expect(net, WHAT, y, detector.count(i)) end
    local all = cr.cat(out, 1)
    return cr.cat({ all, (all * 0):sum():reshape(1) }, 1) -- the last number is 0 if all others are finite
  end, { limit = 2, direct = true })
  return setmetatable({ net = net, all = all }, detector)
end

--- The number of elements of one of the nine outputs: one, four or ten numbers an anchor.
--- @param output integer 1..9
--- @return integer
function detector.count(output)
  local stride, each = STRIDES[(output - 1) % #STRIDES + 1], ({ 1, 4, 2 * POINTS })[math.ceil(output / #STRIDES)]
  return (detector.SIZE / stride) ^ 2 * EACH * each
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

--- The anchors with a score of at least 0.5, in the order of the grids.
--- @param outputs ffi.cdata*[] float pointers: three of scores, of distances and of points, for strides 8, 16, 32
--- @param scale number the scale returned by letterbox
--- @return crescent.insight.detection[]
function detector.decode(outputs, scale)
  local found = {}
  scale = single(scale)
  for k, stride in ipairs(STRIDES) do
    local scores, distances, points = outputs[k], outputs[3 + k], outputs[6 + k]
    local cells = detector.SIZE / stride
    for i = 0, cells * cells * EACH - 1 do
      if scores[i] >= LEAST then
        local at = math.floor(i / EACH)
        local x, y = at % cells * stride, math.floor(at / cells) * stride
        local function place(centre, distance) return single(single(centre + distance * stride) / scale) end
        local d, p = distances + 4 * i, points + 2 * POINTS * i
        local face = { score = scores[i], keypoints = {}, order = #found,
          box = { place(x, -d[0]), place(y, -d[1]), place(x, d[2]), place(y, d[3]) } }
        for j = 1, POINTS do face.keypoints[j] = { place(x, p[2 * j - 2]), place(y, p[2 * j - 1]) } end
        found[#found + 1] = face
      end
    end
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

--- The network's outputs for a letterboxed image.
--- @param picture Tensor u8 [512 512 3]
--- @return Tensor[] nine, on the CPU: f32 [n], one, four or ten numbers an anchor
function detector:maps(picture)
  -- One transfer, so that a GPU is waited for only once.
  local all, first, out = self.all(picture):to 'cpu', 1, {}
  finite.result(all:narrow(1, all:numel(), 1), self.net.path)
  for i = 1, 3 * #STRIDES do
    out[i] = all:narrow(1, first, detector.count(i))
    first = first + detector.count(i)
  end
  return out
end

--- All faces of a frame, by descending score.
--- @param frame Tensor u8 [H W 3], RGB
--- @return crescent.insight.detection[]
function detector:detect(frame)
  return cr.scope(function()
    local picture, scale = detector.letterbox(frame)
    if not picture then return {} end
    local outputs = self:maps(picture)
    local pointers = {}
    for i, y in ipairs(outputs) do pointers[i] = y:pointer() end
    return detector.suppress(detector.decode(pointers, scale))
  end)
end

--- Frees the weights. May be called twice.
function detector:free()
  self.all:free()
  self.net:free()
end

return detector
