--- Rotated square crops of a frame, which the networks take (image.cut_square), and the map from their coordinates to
--- the frame's.

local cr = require 'cr'
local finite = require 'models.networks.finite'

local crop = {}

local TOGETHER = 8 -- crops per run of a network, so that a GPU records runs of only one size

--- Runs a network on crops and reads one row of numbers for each of them. Several crops form a batch: on a GPU a
--- small network takes hardly longer for eight than for one, and its results are waited for only once.
--- @param net cr.tflite.net
--- @param cuts Tensor[] f32 [size size 3], at least one
--- @return Tensor[] for each output of the network its rows, f32 [n ...] on the CPU
function crop.run(net, cuts)
  local size, each = cuts[1].shape[1], #cuts > 1 and TOGETHER or 1
  local parts = {}
  for first = 1, #cuts, each do
    local some = {}
    for k = 1, each do some[k] = (cuts[first + k - 1] or cuts[#cuts]):view(1, size, size, 3) end
    for i, y in ipairs { net:run(each > 1 and cr.cat(some, 1) or some[1]) } do
      parts[i] = parts[i] or {}
      table.insert(parts[i], y)
    end
  end
  local rows = {}
  for i, list in ipairs(parts) do
    local all = #list > 1 and cr.cat(list, 1) or list[1]
    rows[i] = finite.result(all:to 'cpu', net.path)
  end
  return rows
end

--- A square of `side` pixels around (x, y), turned by `angle` (radians, clockwise as seen).
--- @class crescent.face.square
--- @field x number
--- @field y number
--- @field side number
--- @field angle number

--- Frame coordinates of the point (u, v) of a crop (0..1).
--- @param square crescent.face.square
--- @return number x, number y
function crop.to_frame(square, u, v)
  local cosine, sine = math.cos(square.angle), math.sin(square.angle)
  local du, dv = (u - 0.5) * square.side, (v - 0.5) * square.side
  return square.x + du * cosine - dv * sine, square.y + du * sine + dv * cosine
end

return crop
