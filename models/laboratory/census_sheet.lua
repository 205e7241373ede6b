--- Draws the people of a video: portraits with their times, and frames with numbered boxes.

local draw = require 'cr.tools.draw'
local media = require 'cr.media'

local M = {}

local WIDTH, ROW, TEXT, GAP = 1200, 136, 15, 6
local COLOURS = { 0xd62728, 0x2ca02c, 0x1f77b4, 0xff7f0e, 0x9467bd, 0x17becf, 0xe377c2, 0xbcbd22 }

local function colour_of(number) return COLOURS[(number - 1) % #COLOURS + 1] end

local function frame_of(canvas, x, y, b, colour)
  local w, h = b[3] - b[1], b[4] - b[2]
  for _, side in ipairs { { 0, 0, w, 2 }, { 0, h - 2, w, 2 }, { 0, 0, 2, h }, { w - 2, 0, 2, h } } do
    canvas:rectangle(x + b[1] + side[1], y + b[2] + side[2], side[3], side[4], colour)
  end
end

-- Arranges images in lines of at most WIDTH pixels; returns their positions and the total height.
local function lines_of(views)
  local places, x, y, height = {}, 0, 0, 0
  for i, view in ipairs(views) do
    local h, w = view.picture:size(1), view.picture:size(2)
    if x > 0 and x + w > WIDTH then x, y, height = 0, y + height + GAP, 0 end
    places[i] = { x, y }
    x, height = x + w + GAP, math.max(height, h)
  end
  return places, y + height
end

--- Writes the sheet.
--- @param path string path of an image file
--- @param result table from models/latentsync/census.lua, with portraits
--- @param lines string[][] the text beside each person
function M.write(path, result, lines)
  local places, below = lines_of(result.views)
  local top = #result.people * ROW
  local canvas = draw.canvas(WIDTH, math.max(40, math.min(32000, top + GAP + below)))
  if #result.people == 0 then canvas:text(10, 24, TEXT, 'no face was found') end
  for i, p in ipairs(result.people) do
    local y = (i - 1) * ROW
    canvas:picture(p.portrait, 4, y + 4)
    canvas:text(148, y + 28, 24, tostring(p.number), { color = colour_of(p.number), bold = true })
    for k, line in ipairs(lines[i]) do
      if k <= 6 then canvas:text(190, y + 8 + k * (TEXT + 4), TEXT, line, { width = WIDTH - 200 }) end
    end
  end
  for i, view in ipairs(result.views) do
    local x, y = places[i][1], top + GAP + places[i][2]
    canvas:picture(view.picture, x, y)
    for _, box in ipairs(view.boxes) do
      frame_of(canvas, x, y, box, colour_of(box.number))
      canvas:text(x + box[1] + 4, y + box[2] + 18, 16, tostring(box.number), { color = colour_of(box.number), bold = true })
    end
    canvas:text(x + 4, y + view.picture:size(1) - 6, 12, ('%.2f s'):format(view.frame / 25), { color = 0xffffff })
  end
  media.write_picture(path, canvas:finish())
end

return M
