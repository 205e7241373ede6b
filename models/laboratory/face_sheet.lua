--- Draws a contact sheet of talking faces: one row of frames per video, and below it a strip of mouths over time.
--
--     local input = sheet.row('input', 125)                  -- frames in all
--     for i, frame in ... do
--       if input:wants(i) then input:add(frame, finder:find(frame), i) end
--     end
--     sheet.write('sheet.png', { { title = 'a face', rows = { input, output } } })

local cr = require 'cr'
local draw = require 'cr.tools.draw'
local media = require 'cr.media'
local nn = require 'cr.nn'

local M = {}

local FRAMES, FACE, MOUTHS, MOUTH_W, MOUTH_H, LABEL = 6, 176, 24, 44, 36, 64

--- Crops a box of a frame to the given size; pixels outside the frame stay black.
local function cut(frame, box, width, height)
  local H, W = frame:size(1), frame:size(2)
  local x0, y0 = math.max(0, math.floor(box[1])), math.max(0, math.floor(box[2]))
  local x1, y1 = math.min(W, math.ceil(box[3])), math.min(H, math.ceil(box[4]))
  if x1 - x0 < 2 or y1 - y0 < 2 then x0, y0, x1, y1 = 0, 0, W, H end
  local part = frame:narrow(1, y0 + 1, y1 - y0):narrow(2, x0 + 1, x1 - x0):contiguous()
  return nn.resize(part, height, width, 'bilinear')
end

--- Collects images of one video: faces and mouths at evenly spaced frames i (from 1) of n. `add` takes the result of
--- a finder for the frame; nil leaves the place empty.
function M.row(label, n)
  local row = { label = label, faces = {}, mouths = {} }
  local face_step, mouth_step = math.max(1, math.floor(n / FRAMES)), math.max(1, math.floor(n / MOUTHS))
  function row:wants(i) -- luacheck: no self
    return (i - 1) % face_step == 0 or (i - 1) % mouth_step == 0
  end
  function row:add(frame, found, i)
    if not found then return end
    local b, mesh = found.box, found.mesh
    local column = (i - 1) / face_step + 1 -- a frame without a face leaves its place empty
    if column <= FRAMES and column == math.floor(column) then
      local half = 0.75 * math.max(b[3] - b[1], b[4] - b[2])
      local x, y = (b[1] + b[3]) / 2, (b[2] + b[4]) / 2
      self.faces[column] = cr.keep(cut(frame, { x - half, y - half, x + half, y + half }, FACE, FACE))
    end
    column = (i - 1) / mouth_step + 1
    if column <= MOUTHS and column == math.floor(column) then
      local l, r = mesh[62], mesh[292]
      local x, y, w = (l[1] + r[1]) / 2, (l[2] + r[2]) / 2, 0.85 * math.abs(r[1] - l[1])
      local h = w * MOUTH_H / MOUTH_W
      self.mouths[column] = cr.keep(cut(frame, { x - w, y - h, x + w, y + h }, MOUTH_W, MOUTH_H))
    end
  end
  return row
end

--- Writes the sheet.
--- @param path string path of a PNG
--- @param groups table[] { {title = string, rows = {row ...}} ... }
function M.write(path, groups)
  local width = LABEL + math.max(FRAMES * (FACE + 2), MOUTHS * (MOUTH_W + 2))
  local height = 0
  for _, g in ipairs(groups) do height = height + 24 + #g.rows * (FACE + MOUTH_H + 8) end
  local canvas = draw.canvas(width, math.max(height, 24))
  local y = 0
  for _, g in ipairs(groups) do
    canvas:text(6, y + 17, 13, g.title, { width = width - 12 })
    y = y + 24
    for _, row in ipairs(g.rows) do
      canvas:text(6, y + 16, 12, row.label)
      for k, picture in pairs(row.faces) do canvas:picture(picture, LABEL + (k - 1) * (FACE + 2), y) end
      y = y + FACE + 2
    end
    for _, row in ipairs(g.rows) do
      canvas:text(6, y + 22, 12, row.label)
      for k, picture in pairs(row.mouths) do canvas:picture(picture, LABEL + (k - 1) * (MOUTH_W + 2), y) end
      y = y + MOUTH_H + 2
    end
    y = y + 4 * #g.rows
  end
  media.write_picture(path, canvas:finish())
end

return M
