--- Films of people with known positions, and the evaluation of a tracker (models/latentsync/people.lua) on them:
--- whose mouth is selected in each frame, and whose should be.
--
--     local result = cases.go(finder, cases.list()[1])
--     result.right, result.wrong, result.passed, result.visible
--
-- A case has a name, frames, size {height, width}, scene(i) (from 0; layers of film.lua, of which those with a name
-- are people, and the wall's colour), choice, and want(i): a list of the people who may be selected, and must be
-- where they are visible. Some also have opacity(i, name), effect(frame, i), owner(x, y): whose face is there, cuts
-- (frames; or one, around a frame), people (their number), and late: the maximum number of frames until somebody is
-- recognized. A face is visible if nine tenths of its mesh lie in the image, not covered by anything, and if its
-- weight in a mixture is at least three quarters. Frames are counted per person.

local choice = require 'models.latentsync.choice'
local cr = require 'cr'
local film = require 'tests.support.film'
local people = require 'models.latentsync.people'

local M = {}

local VISIBLE, CLEAR = 0.9, 0.75

-- ---- who is visible -------------------------------------------------------------------------------

local meshes = {} -- by image

-- The mesh of a person's i-th image, in its pixels.
local function mesh_of(finder, layer, i)
  local picture = layer[1](i)
  local key = tostring(picture:pointer())
  if meshes[key] == nil then
    local found = finder:find_all(picture)
    table.sort(found, function(a, b) return a.box[3] - a.box[1] > b.box[3] - b.box[1] end)
    meshes[key] = found[1] and found[1].mesh or false
  end
  return meshes[key]
end

-- Whether a person's face is visible in a frame of these layers.
local function visible(finder, case, layers, name, i)
  if case.opacity and case.opacity(i, name) < CLEAR then return false end
  for k, layer in ipairs(layers) do
    local mesh = layer.name == name and mesh_of(finder, layer, i)
    if mesh then
      local seen = 0
      for _, p in ipairs(mesh) do
        local x, y = layer.x + p[1], layer.y + p[2]
        local there = x >= 0 and y >= 0 and x < case.size[2] and y < case.size[1]
        for above = k + 1, #layers do
          local other = layers[above]
          local picture = other[1]
          if type(picture) == 'function' then picture = picture(i) end
          there = there and not (x >= other.x and y >= other.y and x < other.x + picture:size(2) and y < other.y + picture:size(1))
        end
        if there then seen = seen + 1 end
      end
      return seen >= VISIBLE * #mesh
    end
  end
  return false
end

-- ---- a film -----------------------------------------------------------------------------------------

-- The name of the person to whom a box belongs: the one in front.
local function name_of(box, layers, case)
  local x, y, name = (box[1] + box[3]) / 2, (box[2] + box[4]) / 2, nil
  if case.owner then return case.owner(x, y) end
  for _, layer in ipairs(layers) do
    local s = layer.side or 200
    if layer.name and x >= layer.x and x < layer.x + s and y >= layer.y and y < layer.y + s then name = layer.name end
  end
  return name
end

--- Evaluates a film.
--- @param finder table a finder with MediaPipe's networks, for the ground truth
--- @param case table
--- @param looks table? the tracker's finder (default: finder)
--- @return table {picked = the names per frame, or '-'; cuts = frames; errors = frames in which a number belongs to another
---  person; known = crowd:known(); right, wrong, passed, visible = numbers of frames}
function M.go(finder, case, looks)
  local crowd = people.open { finder = looks or finder, choices = { choice.new(case.choice or 'largest') } }
  local numbers = {}
  local result = { picked = {}, cuts = {}, errors = 0, right = 0, wrong = 0, passed = 0, visible = 0, frames = case.frames }
  for i = 0, case.frames - 1 do
    local layers, colour = case.scene(i)
    local frame = film.frame(case.size[1], case.size[2], layers, i, colour)
    if case.effect then frame = case.effect(frame, i) end
    local seen = crowd:push(frame)
    if seen.cut then table.insert(result.cuts, i) end
    local names = {}
    for _, p in ipairs(seen.people) do
      local name = name_of(p.box, layers, case)
      names[p.number] = name
      if name and (numbers[p.number] or name) ~= name then result.errors = result.errors + 1 end
      numbers[p.number] = numbers[p.number] or name
    end
    local picks, made, wanted = {}, {}, {}
    for _, name in ipairs(case.want(i)) do wanted[name] = true end
    for k, number in ipairs(seen.picks[1]) do
      local name = names[number] or '?'
      picks[k], made[name] = name, true
      local kind = wanted[name] and 'right' or 'wrong'
      result[kind] = result[kind] + 1
    end
    for name in pairs(wanted) do
      if visible(finder, case, layers, name, i) then
        result.visible = result.visible + 1
        if not made[name] then result.passed = result.passed + 1 end
      end
    end
    result.picked[i + 1] = #picks > 0 and table.concat(picks, '+') or '-'
    frame:free()
  end
  result.known = crowd:known()
  return result
end

--- The selection as runs: 'anna 20, - 4, anna 16'.
function M.runs(result)
  local list = {}
  for _, name in ipairs(result.picked) do
    local last = list[#list]
    if last and last[1] == name then last[2] = last[2] + 1 else list[#list + 1] = { name, 1 } end
  end
  for i, run in ipairs(list) do list[i] = run[1] .. ' ' .. run[2] end
  return table.concat(list, ', ')
end

-- ---- the cases ----------------------------------------------------------------------------------------

local function of(name, x, y) return { film.person(name), name = name, x = x, y = y } end
local function always(...)
  local names = { ... }
  return function() return names end
end

-- A wall of one colour as a foreground layer, kept until free().
local kept = {}
local function keep(tensor)
  kept[#kept + 1] = tensor
  return tensor
end
local function plain(height, width, colour) return keep(cr.full({ height, width, 3 }, colour, { dtype = 'u8' })) end
local function wall(height, width) return keep(require 'tests.support.formula_image'.image('wall', height, width)) end

--- Frees the images of the films.
function M.free()
  for _, tensor in ipairs(kept) do tensor:free() end
  kept, meshes = {}, {}
  film.free()
end

-- Wraps fn(f32 frame, i) -> f32, which replaces a frame.
local function changed(fn)
  return function(frame, i)
    local out = cr.scope(function() return fn(frame:to 'f32', i):clamp(0, 255):to 'u8' end)
    frame:free()
    return out
  end
end

--- The weight of the second image in a transition that begins at frame `first` and has `length` frames.
function M.share(i, first, length) return math.max(0, math.min(1, (i - first + 1) / length)) end

-- A film that changes from one scene to another by mix(one, other, share); `a` and `b` return layers.
local function change(first, length, size, a, b, mix)
  return function(frame, i)
    frame:free()
    local one, other, share = film.frame(size[1], size[2], a(i), i), film.frame(size[1], size[2], b(i), i), M.share(i, first, length)
    local mixed = cr.scope(mix, one, other, share)
    one:free()
    other:free()
    return mixed
  end
end

local function dissolve(one, other, share) return (one:to 'f32' * (1 - share) + other:to 'f32' * share):to 'u8' end

local function wipe(one, other, share)
  local at = math.floor(share * one:size(2) + 0.5)
  if at == 0 or at == one:size(2) then return (at == 0 and one or other):clone() end
  return cr.cat({ other:narrow(2, 1, at), one:narrow(2, at + 1, one:size(2) - at) }, 2)
end

local function crossing(front)
  return function(i)
    local a, b = of('anna', 10 + 10 * i, 20), of('bert', 430 - 10 * i, 20)
    if front then return { b, a } end
    return { a, b }
  end
end

-- One person before a frame, another from it on; nil: nobody.
local function then_from(before, at, after) return function(i) return { i < at and before or i >= at and after or nil } end end

-- Who may be selected during a transition.
local function both(one, other, first, length)
  return function(i)
    local share = M.share(i, first, length)
    return share == 0 and { one } or share == 1 and { other } or { one, other }
  end
end

-- A person's images in varying sizes, one per frame.
local function zoomed(name, frames, scale)
  local who, list = film.person(name), {}
  for i = 0, frames - 1 do
    local side = math.floor(200 * scale(i))
    list[i] = keep(cr.keep(cr.scope(function() return cr.nn.resize(who(i), side, side, 'bilinear'):clone() end)))
  end
  return function(i) return list[i] end
end

--- The films of rendered people.
function M.list()
  local gray, hand, picture, large = plain(200, 200, 128), plain(60, 80, 180), wall(240, 460), wall(300, 520)
  local function there() return { of('carl', 20, 20) } end
  local function elsewhere() return { { picture, x = 0, y = 0 }, of('anna', 220, 20) } end
  local function shots(i)
    if math.floor(i / 12) % 2 == 0 then return { of('carl', 110, 20) } end
    return { { picture, x = 0, y = 0 }, of('anna', 150, 30) }, 60
  end
  local function in_shots(i) return { math.floor(i / 12) % 2 == 0 and 'carl' or 'anna' } end
  local function carls(i) return { math.floor(i / 12) % 2 == 0 and 'carl' or nil } end
  local function still() return { { large, x = 0, y = 0 }, of('carl', 120, 20) } end
  local replaced = then_from('carl', 12, 'anna')
  local function scale(i) return 0.9 + i / 30 end
  local larger = zoomed('carl', 30, scale)
  return {
    { name = 'a neighbour, and a lost frame', frames = 12, size = { 240, 460 }, choice = 'left', want = always 'carl', people = 2,
      scene = function(i)
        return { of('carl', 10, 20), of('anna', 240, 20), i == 5 and { gray, x = 10, y = 20 } or nil }
      end },
    { name = 'a hand over the mouth for 4 frames', frames = 16, size = { 240, 460 }, choice = 'left', want = always 'carl', people = 2,
      scene = function(i)
        return { of('carl', 10, 20), of('bert', 240, 20), i >= 6 and i < 10 and { hand, x = 70, y = 125 } or nil }
      end },
    { name = 'two cross, in front', frames = 40, size = { 240, 640 }, choice = 'left', want = always 'anna', people = 2,
      scene = crossing(true) },
    { name = 'two cross, behind', frames = 40, size = { 240, 640 }, choice = 'left', want = always 'anna', people = 2,
      scene = crossing(false) },
    { name = 'out of the picture and back', frames = 44, size = { 240, 640 }, choice = 'right', want = always 'anna', people = 2,
      scene = function(i) return { of('bert', 10, 20), of('anna', i < 22 and 440 + 10 * i or 440 + 10 * (44 - i), 20) } end },
    { name = 'somebody else in the old place, alone', frames = 24, size = { 240, 460 }, want = replaced, people = 2, cuts = { 12 },
      scene = function(i) return { of(replaced(i)[1], 110, 20) } end },
    { name = 'the same, of the first person', frames = 24, size = { 240, 460 }, choice = '1', people = 2, cuts = { 12 },
      want = then_from('carl', 12), scene = function(i) return { of(replaced(i)[1], 110, 20) } end },
    { name = 'somebody else in the old place, beside a witness', frames = 24, size = { 240, 460 }, choice = 'left', people = 3,
      cuts = {}, want = then_from('carl', 12), scene = function(i) return { of(replaced(i)[1], 10, 20), of('bert', 240, 20) } end },
    { name = 'the same in another light', frames = 20, size = { 240, 460 }, choice = '1', want = then_from('carl', 10),
      scene = function(i) return { of(i < 10 and 'carl' or 'anna', 10, 20), of('bert', 240, 20) } end,
      effect = changed(function(frame, i) return frame + (i < 10 and 0 or 25) end) },
    { name = 'shot and reverse shot', frames = 48, size = { 240, 460 }, want = in_shots, people = 2, cuts = { 12, 24, 36 },
      scene = shots },
    { name = 'the same, of the first person', frames = 48, size = { 240, 460 }, choice = 'first', people = 2, cuts = { 12, 24, 36 },
      want = carls, scene = shots },
    { name = 'the same, of a place', frames = 48, size = { 240, 460 }, choice = '200,110', people = 2, cuts = { 12, 24, 36 },
      want = carls, scene = shots },
    { name = 'a dissolve', frames = 40, size = { 240, 460 }, cuts = { 24, around = true }, want = both('carl', 'anna', 12, 12),
      opacity = function(i, name) return name == 'carl' and 1 - M.share(i, 12, 12) or M.share(i, 12, 12) end,
      scene = function() return { of('carl', 20, 20), of('anna', 220, 20) } end,
      effect = change(12, 12, { 240, 460 }, there, elsewhere, dissolve), late = 2 },
    { name = 'a wipe', frames = 40, size = { 240, 460 }, want = both('carl', 'anna', 12, 12), late = 2,
      opacity = function(i, name) -- where the seam is, beside a face
        local at = 460 * M.share(i, 12, 12)
        return (name == 'carl' and at < 65 or name == 'anna' and at > 365) and 1 or 0
      end,
      scene = function() return { of('carl', 20, 20), of('anna', 220, 20) } end,
      effect = change(12, 12, { 240, 460 }, there, elsewhere, wipe) },
    { name = 'a flash', late = 1, frames = 14, size = { 240, 460 }, want = always 'carl', people = 1, cuts = {}, scene = still,
      opacity = function(i) return (i == 6 or i == 7) and 0 or 1 end,
      effect = changed(function(frame, i) return frame + ((i == 6 or i == 7) and 255 or i == 8 and 90 or 0) end) },
    { name = 'a fade', frames = 14, size = { 240, 460 }, want = always 'carl', people = 1, cuts = {}, scene = still,
      effect = changed(function(frame, i) return frame - 8 * i end) },
    { name = 'a shaking camera', frames = 14, size = { 240, 460 }, want = always 'carl', people = 1, cuts = {},
      scene = function(i)
        local x, y = 25 * math.sin(2.1 * i), 15 * math.cos(2.9 * i)
        return { { large, x = -30 + x, y = -30 + y }, of('carl', 120 + x, 20 + y) }
      end },
    { name = 'somebody walks past in front', frames = 34, size = { 240, 460 }, want = always 'carl', people = 2, cuts = {},
      scene = function(i) return { of('carl', 130, 20), of('bert', -200 + 20 * i, 25) } end },
    { name = 'two cross fast, in front', frames = 22, size = { 240, 640 }, choice = 'right', want = always 'bert', people = 2,
      scene = function(i) return { of('anna', 10 + 20 * i, 20), of('bert', 430 - 20 * i, 20) } end },
    { name = 'a face that grows', frames = 30, size = { 400, 460 }, want = always 'carl', people = 1, cuts = {},
      scene = function(i)
        local half = 100 * scale(i)
        return { { larger, name = 'carl', x = 230 - half, y = 200 - half, side = 2 * half } }
      end },
    { name = 'everybody, one comes later', frames = 20, size = { 240, 640 }, choice = 'all', people = 3,
      want = function(i) return { 'anna', 'bert', i >= 8 and 'carl' or nil } end,
      scene = function(i) return { of('anna', 10, 20), of('bert', 220, 20), i >= 8 and of('carl', 430, 20) or nil } end },
  }
end

-- Frames of a real person, u8 [390 390 3], at 25 per second, forward and backward endlessly.
local function real(path)
  local reader, list = require 'cr.media'.reader(path, { fps = 25 }), {}
  for i, frame in ipairs(reader:read(12)) do
    list[i] = keep(cr.keep(cr.scope(function()
      return cr.nn.resize(frame:narrow(1, 151, 780):narrow(2, 191, 780), 390, 390, 'bilinear'):clone()
    end)))
    frame:free()
  end
  reader:close()
  return function(i) return list[i % 24 < 12 and i % 24 + 1 or 24 - i % 24] end
end

--- Films of two real people.
--- @param shared fun(name: string): string paths of the developers' clips
function M.real(shared)
  local her, him = real(shared 'demo/demo1_video.mp4'), real(shared 'demo/demo2_video.mp4')
  local gray = plain(390, 390, 128)
  local function at(name, x) return { name == 'ann' and her or him, name = name, x = x, y = 0, side = 390 } end
  local function turn(i) return math.floor(i / 8) % 2 == 0 and 'ann' or 'ben' end
  return {
    { name = 'real: a neighbour, and a lost frame', frames = 10, size = { 390, 780 }, choice = 'left', want = always 'ann', people = 2,
      scene = function(i) return { at('ann', 0), at('ben', 390), i == 5 and { gray, x = 0, y = 0 } or nil } end },
    { name = 'real: a cut there and back', frames = 24, size = { 390, 390 }, choice = 'first', people = 2, cuts = { 8, 16 },
      want = function(i) return { turn(i) == 'ann' and 'ann' or nil } end, scene = function(i) return { at(turn(i), 0) } end },
    { name = 'real: a dissolve', frames = 32, size = { 390, 390 }, cuts = { 20, around = true }, want = both('ann', 'ben', 9, 12), late = 2,
      owner = function(_, y) return y > 220 and 'ann' or 'ben' end,
      opacity = function(i, name) return name == 'ann' and 1 - M.share(i, 9, 12) or M.share(i, 9, 12) end,
      scene = function(i) return { at(M.share(i, 9, 12) < 0.5 and 'ann' or 'ben', 0) } end,
      effect = function(frame, i)
        frame:free()
        local share = M.share(i, 9, 12)
        return cr.scope(function() return (her(i):to 'f32' * (1 - share) + him(i):to 'f32' * share):to 'u8' end)
      end },
    { name = 'real: out of the picture', frames = 16, size = { 390, 780 }, choice = 'right', want = always 'ann',
      scene = function(i) return { at('ben', 0), at('ann', 390 + 20 * i) } end },
  }
end

return M
