--- Turned squares of a frame, which the networks see (image.cut_square): from their places back into
--- the frame's.

local crop = {}

--- A square of `side` pixels around (x, y), turned by `angle` (radians, clockwise as seen).
---@class crescent.face.square
---@field x number
---@field y number
---@field side number
---@field angle number

--- Where the point (u, v) of the cut-out (0..1) lies in the frame.
---@param square crescent.face.square
---@return number x, number y
function crop.to_frame(square, u, v)
  local cosine, sine = math.cos(square.angle), math.sin(square.angle)
  local du, dv = (u - 0.5) * square.side, (v - 0.5) * square.side
  return square.x + du * cosine - dv * sine, square.y + du * sine + dv * cosine
end

return crop
