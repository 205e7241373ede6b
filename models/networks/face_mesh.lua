--- MediaPipe's face mesh: 468 points of a face, from a rotated square crop around it.
--
-- The crop's side is 1.5 times the longer side of the face's box, rotated so that the eyes are level. Points are
-- returned in frame pixels, with the network's confidence that the crop shows a face. Kartynnik et al. 2019.

local cr = require 'cr'
local tflite = require 'cr.graphs.tflite'
local crop = require 'models.networks.face_crop'

local mesh = {}
mesh.__index = mesh

local FILE = 'face_landmark.tflite'
local POINTS = 468
local MARGIN = 1.5 -- side of the crop relative to the box
-- Outer eye corners, by MediaPipe's indices (from 0).
local RIGHT_EYE, LEFT_EYE = 33, 263

--- Loads the mesh. dir: the folder of the model files.
--- @param dir string
--- @param device string? device of the network and the frames ('cpu')
function mesh.load(dir, device)
  -- One thread, because its convolutions are so small that threads would mostly wait for each other.
  local net = tflite.open(dir .. '/' .. FILE, { threads = 1, device = device, record = true })
  local self = setmetatable({ net = net, size = net.input.shape[2] }, mesh)
  for i, out in ipairs(net.outputs) do
    local n = 1
    for _, s in ipairs(out.shape) do n = n * s end
    if n == 3 * POINTS then self.points_output = i elseif n == 1 then self.face_output = i end
  end
  net:expect('a face mesh of 468 points', self.points_output and self.face_output)
  return self
end

local function square_of(box, right_eye, left_eye)
  return { x = (box[1] + box[3]) / 2, y = (box[2] + box[4]) / 2,
    side = MARGIN * math.max(box[3] - box[1], box[4] - box[2]),
    angle = math.atan2(left_eye[2] - right_eye[2], left_eye[1] - right_eye[1]) }
end

--- The crop for a detected face.
--- @param face crescent.face.detection
--- @return crescent.face.square
function mesh.square_of_detection(face)
  return square_of(face.box, face.keypoints[1], face.keypoints[2])
end

--- The smallest upright box around mesh points.
--- @param points number[][]
--- @return number[] box x1, y1, x2, y2
function mesh.box_of(points)
  local box = { math.huge, math.huge, -math.huge, -math.huge }
  for _, p in ipairs(points) do
    box[1], box[2] = math.min(box[1], p[1]), math.min(box[2], p[2])
    box[3], box[4] = math.max(box[3], p[1]), math.max(box[4], p[2])
  end
  return box
end

--- The crop for a face whose mesh in the previous frame is known.
--- @param points number[][]
--- @return crescent.face.square
function mesh.square_of_mesh(points)
  return square_of(mesh.box_of(points), points[RIGHT_EYE + 1], points[LEFT_EYE + 1])
end

--- @class crescent.face.mesh
--- @field points number[][] 468 points {x, y} in pixels of the frame; MediaPipe's point k is element k + 1
--- @field presence number confidence that there is a face, 0..1
--- @field evidence number presence as log-odds

--- The meshes of several faces.
--- @param faces {frame: Tensor, square: crescent.face.square}[] at least one; frame u8 [H W 3], RGB
--- @return crescent.face.mesh[]
function mesh:find_each(faces)
  local found, size = {}, self.size
  cr.scope(function()
    local cuts = {}
    for i, f in ipairs(faces) do cuts[i] = require 'cr.image'.cut_square(f.frame, f.square, size, 1 / 255) end
    local out = crop.run(self.net, cuts)
    local p, evidence = out[self.points_output]:pointer(), out[self.face_output]:pointer()
    for i, f in ipairs(faces) do
      local points = {}
      for k = 0, POINTS - 1 do
        local at = p + 3 * (POINTS * (i - 1) + k)
        points[k + 1] = { crop.to_frame(f.square, at[0] / size, at[1] / size) }
      end
      found[i] = { points = points, presence = 1 / (1 + math.exp(-evidence[i - 1])), evidence = evidence[i - 1] }
    end
  end)
  return found
end

--- The mesh of the face in `square`.
--- @param frame Tensor u8 [H W 3], RGB
--- @param square crescent.face.square
--- @return number[][] points as in crescent.face.mesh, number presence, number evidence
function mesh:find(frame, square)
  local found = self:find_each({ { frame = frame, square = square } })[1]
  return found.points, found.presence, found.evidence
end

--- Frees the weights. May be called twice.
function mesh:free() self.net:free() end

return mesh
