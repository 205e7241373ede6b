--- InsightFace's 106 points of a face (2d106det.onnx) in a detected box, bit-exact with release 0.7.3 of the Python
--- package. The upright crop has 1.5 times the box's size.

local cr = require 'cr'
local image = require 'cr.image'
local file = require 'models.networks.insight_file'
local finite = require 'models.networks.finite'

local single = file.single

local landmarks = {}
landmarks.__index = landmarks

landmarks.FILE = '2d106det.onnx'

local SIZE = 192
local POINTS = 106
local MARGIN = 1.5 -- side of the crop relative to the box

local WHAT = "InsightFace's network of 106 points"

-- Whether the graph begins with its own normalization; like the package, it decides by the names of the first nodes.
local function scales_itself(nodes)
  local shifts, scales = false, false
  for i = 1, math.min(8, #nodes) do
    local name = nodes[i].name
    shifts = shifts or name:find '^Sub' ~= nil or name:find '^_minus' ~= nil
    scales = scales or name:find '^Mul' ~= nil or name:find '^_mul' ~= nil
    if i <= 3 and name == 'bn_data' then shifts, scales = true, true end
  end
  return shifts and scales
end

--- Loads the network.
--- @param path string
--- @param device string? device of the network and the frames ('cpu')
function landmarks.load(path, device)
  -- One thread, because its convolutions are so small that threads would mostly wait for each other.
  local net = file.open(path, WHAT, SIZE, 1, { threads = 1, device = device })
  local plain = scales_itself(net.file.metadata.nodes)
  local all = cr.graph(function(cut)
    local x = file.planes(cut)
    return file.expect(net, WHAT, net:run(plain and x or (x - 127.5) / 128), 2 * POINTS)
  end, { limit = 2, direct = true })
  return setmetatable({ net = net, all = all }, landmarks)
end

--- The matrix from the frame to the crop around a box.
--- @param box number[] x1, y1, x2, y2, single precision
--- @return number[]? six numbers, row by row; nil if the box is empty or invalid
function landmarks.matrix(box)
  local side = math.max(single(box[3] - box[1]), single(box[4] - box[2])) * MARGIN
  local s = SIZE / side
  local x, y = single(box[3] + box[1]) / 2, single(box[4] + box[2]) / 2
  local m = { s, 0, SIZE / 2 - x * s, 0, s, SIZE / 2 - y * s }
  local usable = side > 0 and math.abs(m[3]) < 1e9 and math.abs(m[6]) < 1e9
  return usable and m or nil
end

--- The inverse matrix, computed as in OpenCV.
--- @param m number[]
--- @return number[]
function landmarks.inverse(m)
  local d = 1 / (m[1] * m[5] - m[2] * m[4])
  local a, b, e, f = m[5] * d, -m[2] * d, -m[4] * d, m[1] * d
  return { a, b, -a * m[3] - b * m[6], e, f, -e * m[3] - f * m[6] }
end

--- The crop that is the network's input.
--- @param frame Tensor u8 [H W 3]
--- @param matrix number[]
--- @return Tensor u8 [192 192 3]
function landmarks.cut(frame, matrix) return image.warp_fixed(frame, matrix, SIZE, SIZE) end

--- The network's output for a crop.
--- @param cut Tensor u8 [192 192 3], RGB
--- @return Tensor f32 [212], on the CPU: x and y of each point, with the crop spanning -1 to 1
function landmarks:places(cut) return finite.result(self.all(cut):to 'cpu', self.net.path) end

--- Maps points of a crop to the frame.
--- @param places ffi.cdata* 212 floats
--- @param matrix number[] the crop's matrix
--- @return number[][] 106 of {x, y}, single precision; the package's point k is element k + 1
function landmarks.in_frame(places, matrix)
  local back, points = landmarks.inverse(matrix), {}
  local function of_cut(v) return single(single(v + 1) * (SIZE / 2)) end
  for i = 0, POINTS - 1 do
    local x, y = of_cut(places[2 * i]), of_cut(places[2 * i + 1])
    points[i + 1] = { single(back[1] * x + back[2] * y + back[3]), single(back[4] * x + back[5] * y + back[6]) }
  end
  return points
end

--- The points of the face in a box, or nil if the box is empty.
--- @param frame Tensor u8 [H W 3], RGB
--- @param box number[] x1, y1, x2, y2 in pixels
--- @return number[][]? 106 of {x, y}
function landmarks:find(frame, box)
  local matrix = landmarks.matrix(box)
  if not matrix then return nil end
  return cr.scope(function() return landmarks.in_frame(self:places(landmarks.cut(frame, matrix)):pointer(), matrix) end)
end

--- Frees the weights. May be called twice.
function landmarks:free()
  self.all:free()
  self.net:free()
end

return landmarks
