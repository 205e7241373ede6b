--- Films of people with known positions: images of talking people, moved over a wall.
--
--     local film = require 'tests.support.film'
--     local anna = film.person 'anna'
--     film.frames(20, 400, 640, function(i) return { { anna, x = 10 + 3 * i, y = 100 } } end)
--
-- anna and bert are rendered people (models/mini/train), carl is the demonstration's. Later layers are in front.

local cr = require 'cr'
local media = require 'cr.media'

local M = {}

local FILES = {
  anna = cr.root .. '/tests/support/faces/3.mp4', bert = cr.root .. '/tests/support/faces/1.mp4',
  carl = cr.root .. '/models/mini/demo.mp4',
}
local SIDE = 200

local known = {}

--- The images of a talking person, u8 [200 200 3], forward and backward endlessly: who(i), from 0.
--- @param name 'anna'|'bert'|'carl'
function M.person(name)
  if not known[name] then
    local reader, list = media.reader(FILES[name], { fps = 25 }), {}
    for i, frame in ipairs(reader:read(30)) do
      list[i] = cr.keep(cr.scope(function() return cr.nn.resize(frame, SIDE, SIDE, 'bilinear'):clone() end))
      frame:free()
    end
    reader:close()
    known[name] = list
  end
  local list = known[name]
  return function(i)
    local k = i % (2 * #list)
    return list[k < #list and k + 1 or 2 * #list - k]
  end
end

--- Frees the images.
function M.free()
  for _, list in pairs(known) do
    for _, picture in ipairs(list) do picture:free() end
  end
  known = {}
end

-- Copies an image into a frame with its upper left corner at (x, y); parts outside of the frame are cut off.
local function put(frame, picture, x, y)
  local left, top = math.max(0, x), math.max(0, y)
  local w = math.min(frame:size(2), x + picture:size(2)) - left
  local h = math.min(frame:size(1), y + picture:size(1)) - top
  if w <= 0 or h <= 0 then return end
  frame:narrow(1, top + 1, h):narrow(2, left + 1, w):copy_(picture:narrow(1, top - y + 1, h):narrow(2, left - x + 1, w))
end

--- Composes a frame: layers {image or who, x =, y = (upper left corner)} on a wall of one colour.
--- @param i integer index of the frame, which selects a person's image
--- @return Tensor u8 [height width 3], to be freed
function M.frame(height, width, layers, i, colour)
  local frame = cr.full({ height, width, 3 }, colour or 128, { dtype = 'u8' })
  cr.scope(function()
    for _, layer in ipairs(layers) do
      local picture = layer[1]
      put(frame, type(picture) == 'function' and picture(i) or picture, math.floor(layer.x + 0.5), math.floor(layer.y + 0.5))
    end
  end)
  return frame
end

--- Writes a video of two people who take turns, left and right: the demonstration's person, to whose sound
--- (M.turns_sound) it fits, and the same person in other colours.
--- @param path string
--- @param turn integer? frame at which the second person begins (52, in a pause)
--- @return integer turn
function M.turns(path, turn)
  local reader, list = media.reader(FILES.carl, { fps = 25 }), {}
  for i, frame in ipairs(reader:read(125)) do
    list[i] = cr.keep(cr.scope(function() return cr.nn.resize(frame, SIDE, SIDE, 'bilinear'):clone() end))
    frame:free()
  end
  reader:close()
  local sink = media.writer(path, { fps = 25, lossless = true })
  turn = turn or 52
  for i = 1, #list do
    cr.scope(function()
      local left, right = list[math.min(i, turn)], list[math.max(i, turn)]
      local others = cr.cat({ right:narrow(3, 2, 1), right:narrow(3, 1, 1), right:narrow(3, 3, 1) }, 3)
      sink:write(cr.cat({ left, others }, 2))
    end)
  end
  sink:close()
  for _, frame in ipairs(list) do frame:free() end
  return turn
end
M.turns_sound = FILES.carl

return M
