--- Colour matching: what `--match-colour` changes in generated faces.

local t = require 'tests.support.tap'
local colour = require 'models.latentsync.colour'
local cr = require 'cr'
local picture = require 'tests.support.formula_image'

local SIZE = 64
local mask = require 'models.latentsync.align'.mask(SIZE)

-- Faces of a video, f32 [n S S 3] in [-1, 1], brighter by `light`; and faces as a network generates them, with
-- another mouth, and each frame's colour shifted by its own {r, g, b}, in levels.
local function faces(offs, light)
  local list, made = {}, {}
  for i, off in ipairs(offs) do
    list[i] = picture.image('frame' .. i % 3, SIZE, SIZE):to 'f32' / 127.5 - 1 + (light or 0) / 127.5
    local mouth = cr.zeros(SIZE, SIZE, 3)
    mouth:narrow(1, 40, 6):narrow(2, 28, 8):copy_(cr.full({ 6, 8, 3 }, -0.7))
    made[i] = list[i] + mouth + cr.tensor(off) / 127.5
  end
  return cr.stack(list, 1), cr.stack(made, 1)
end

local function items(n)
  local list = {}
  for i = 1, n do list[i] = { matrix = true } end
  return list
end

-- The shift of each frame in levels: {{r, g, b}, ...}.
local function shifts(matched, made)
  local list = {}
  for i = 1, made:size(1) do
    local moved = (matched:select(1, i) - made:select(1, i)) * 127.5
    t.near(moved, moved:narrow(1, 1, 1):narrow(2, 1, 1):expand(SIZE, SIZE, 3), 1e-3, 'the whole picture alike')
    list[i] = moved:narrow(1, 1, 1):narrow(2, 1, 1):reshape(3):tolist()
  end
  return list
end

t.test('a constant colour cast is removed, whatever the mouth does', function()
  cr.scope(function()
    local offs = {}
    for i = 1, 5 do offs[i] = { -20, 3, 7 } end
    local pixels, made = faces(offs)
    local matcher = colour.new(mask, 'cpu')
    for _, shift in ipairs(shifts(matcher:match(made, pixels, items(5)), made)) do
      t.near(cr.tensor(shift), cr.tensor { 20, -3, -7 }, 1e-3)
    end
    matcher:free()
  end)
end)

t.test('the correction is smooth, also across windows, and pauses without a face', function()
  cr.scope(function()
    local offs = { { 0, 0, 0 } }
    for i = 2, 8 do offs[i] = { 12, 0, 0 } end
    local pixels, made = faces(offs)
    local matcher, list, with = colour.new(mask, 'cpu'), {}, items(8)
    with[3] = {}
    for _, piece in ipairs { { 1, 5 }, { 6, 3 } } do
      local first, n = unpack(piece)
      local part = { unpack(with, first, first + n - 1) }
      local m = made:narrow(1, first, n)
      for _, shift in ipairs(shifts(matcher:match(m, pixels:narrow(1, first, n), part), m)) do list[#list + 1] = shift[1] end
    end
    matcher:free()
    local want = 0
    for i = 1, 8 do
      if i > 1 and i ~= 3 then want = want + (-12 - want) / 12 end
      t.ok(math.abs(list[i] - want) < 1e-3, ('frame %d: %g, not %g'):format(i, list[i], want))
    end
  end)
end)

t.test('a new scene starts with its own shift', function()
  cr.scope(function()
    local matcher = colour.new(mask, 'cpu')
    for _, scene in ipairs { { 10, 0 }, { -6, 60 } } do
      local pixels, made = faces({ { scene[1], 0, 0 }, { scene[1], 0, 0 } }, scene[2])
      for _, shift in ipairs(shifts(matcher:match(made, pixels, items(2)), made)) do
        t.ok(math.abs(shift[1] + scene[1]) < 1e-3, tostring(shift[1]))
      end
    end
    matcher:free()
  end)
end)

t.test('unrelated images are corrected independently', function()
  cr.scope(function()
    local pixels, made = faces { { 1, 2, 3 }, { -10, 5, 0 } }
    local matcher = colour.new(mask, 'cpu')
    local list = shifts(matcher:match(made, pixels), made)
    t.near(cr.tensor(list), cr.tensor { { -1, -2, -3 }, { 10, -5, 0 } }, 1e-3)
    matcher:free()
  end)
end)

t.test('a mask without surroundings is refused', function()
  for _, value in ipairs { 0, 1 } do
    t.raises(function() colour.new(cr.full({ 16, 16, 1 }, value), 'cpu') end, 'no colour to match')
  end
end)

t.done()
