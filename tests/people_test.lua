--- People who are followed: neighbours, hands, walks, cuts. Films of known places (tests/support/film.lua), seen by the
--- trained detector and mesh.

local cr = require 'cr'
local choice = require 'models.latentsync.choice'
local face = require 'models.latentsync.face'
local film = require 'tests.support.film'
local people = require 'models.latentsync.people'
local t = require 'tests.support.tap'

local finder -- of all tests
if t.has_fetched 'face/face_landmark.tflite' then
  finder = face.load()
  for _, name in ipairs { 'anna', 'bert', 'carl' } do finder:find_all(film.person(name)(0)) end
end

-- Goes over a film; scene(i), from 0, gives its layers, of which those with a name are people. Returns of each frame who
-- was picked (names, or '-'), which are cuts, and the crowd.
local function go(frames, size, scene, options)
  local o = options or {}
  t.face_models()
  local crowd = people.open { finder = finder, choices = { choice.new(o.choice or 'largest') } }
  local picked, cuts, numbers, errors = {}, {}, {}, 0
  for i = 0, frames - 1 do
    local layers, colour = scene(i)
    local frame = film.frame(size[1], size[2], layers, i, colour)
    if o.effect then frame = o.effect(frame, i) end
    local seen = crowd:push(frame)
    if seen.cut then cuts[#cuts + 1] = i end
    local name_of = {}
    for _, p in ipairs(seen.people) do
      local x, y = (p.box[1] + p.box[3]) / 2, (p.box[2] + p.box[4]) / 2
      for _, layer in ipairs(layers) do -- the last one lies in front
        local s = layer.side or 200
        if layer.name and x >= layer.x and x < layer.x + s and y >= layer.y and y < layer.y + s then name_of[p.number] = layer.name end
      end
      local name = name_of[p.number]
      if name and (numbers[p.number] or name) ~= name then errors = errors + 1 end
      numbers[p.number] = numbers[p.number] or name
    end
    local names = {}
    for _, number in ipairs(seen.picks[1]) do names[#names + 1] = name_of[number] or '?' end
    picked[i + 1] = #names > 0 and table.concat(names, '+') or '-'
    if o.watch then o.watch(i, frame, seen) end
    frame:free()
  end
  return { picked = picked, cuts = cuts, errors = errors, known = crowd:known(), numbers = numbers }
end

-- The picks as runs: 'anna 20, - 4, anna 16'.
local function runs(result)
  local list = {}
  for i, name in ipairs(result.picked) do
    local last = list[#list]
    if last and last[1] == name then last[2] = last[2] + 1 else list[#list + 1] = { name, 1 } end
    result.picked[i] = name
  end
  for i, run in ipairs(list) do list[i] = run[1] .. ' ' .. run[2] end
  return table.concat(list, ', ')
end

local function check(result, want, faces)
  t.equal(result.errors, 0, 'numbers that went to somebody else')
  t.equal(runs(result), want, 'picked')
  t.equal(#result.known, faces, 'people')
end

local function like(result, pattern) t.ok(runs(result):find(pattern), runs(result)) end

local function of(name, x, y) return { film.person(name), name = name, x = x, y = y } end
local function plain(height, width, colour) return cr.full({ height, width, 3 }, colour, { dtype = 'u8' }) end

t.test('a neighbour does not take the place of who is lost for a frame', function()
  local gray = plain(200, 200, 128)
  check(go(12, { 240, 460 }, function(i)
    return { of('carl', 10, 20), of('anna', 240, 20), i == 5 and { gray, x = 10, y = 20 } or nil }
  end, { choice = 'left' }), 'carl 5, - 1, carl 6', 2)
  gray:free()
end)

t.test('a hand over the mouth for four frames: whose it is stays', function()
  local hand = plain(60, 80, 180)
  check(go(16, { 240, 460 }, function(i)
    return { of('carl', 10, 20), of('bert', 240, 20), i >= 6 and i < 10 and { hand, x = 70, y = 125 } or nil }
  end, { choice = 'left' }), 'carl 16', 2)
  hand:free()
end)

t.test('two cross, and each keeps the number: before the other, and behind', function()
  local function scene(front)
    return function(i)
      local a, b = of('anna', 10 + 10 * i, 20), of('bert', 430 - 10 * i, 20)
      if front then return { b, a } end
      return { a, b }
    end
  end
  check(go(40, { 240, 640 }, scene(true), { choice = 'left' }), 'anna 40', 2)
  local result = go(40, { 240, 640 }, scene(false), { choice = 'left' })
  t.equal(result.errors, 0)
  t.equal(#result.known, 2, 'people')
  -- Hidden for more than half of the face from the 17th frame to the 27th.
  like(result, '^anna 1[5-7], %- 1[0-3], anna 1[2-4]$')
end)

t.test('who walks out of the picture and back has the number again; the mouth is made while it is in the picture', function()
  local result = go(44, { 240, 640 }, function(i)
    local x = i < 22 and 440 + 10 * i or 440 + 10 * (44 - i)
    return { of('bert', 10, 20), of('anna', x, 20) }
  end, { choice = 'right' })
  t.equal(result.errors, 0)
  t.equal(#result.known, 2, 'people')
  like(result, '^anna 1[01], %- 2[3-5], anna [89]$')
end)

t.test('somebody else in the old place is a cut, and another person', function()
  local function scene(i) return { of(i < 12 and 'carl' or 'anna', 110, 20) } end
  local first = go(24, { 240, 460 }, scene, { choice = '1' })
  check(first, 'carl 12, - 12', 2)
  t.equal(table.concat(first.cuts, ' '), '12', 'cuts')
  check(go(24, { 240, 460 }, scene), 'carl 12, anna 12', 2)
  -- With a witness it is none: whoever was followed stays whom they were.
  local witness = go(24, { 240, 460 }, function(i) return { of(i < 12 and 'carl' or 'anna', 10, 20), of('bert', 240, 20) } end,
    { choice = 'left' })
  check(witness, 'carl 12, - 12', 3)
  t.equal(#witness.cuts, 0, 'cuts')
end)

t.test('somebody else in another light is somebody else', function()
  local result = go(20, { 240, 460 }, function(i)
    return { of(i < 10 and 'carl' or 'anna', 10, 20), of('bert', 240, 20) }
  end, { choice = '1', effect = function(frame, i)
    local out = cr.scope(function() return (frame:to 'f32' + (i < 10 and 0 or 25)):clamp(0, 255):to 'u8' end)
    frame:free()
    return out
  end })
  t.equal(result.errors, 0)
  t.equal(runs(result), 'carl 10, - 10')
end)

t.test('shot and reverse shot: who comes back is known again', function()
  local wall = require 'tests.support.formula_image'.image('wall', 240, 460)
  local function scene(i)
    if math.floor(i / 12) % 2 == 0 then return { of('carl', 110, 20) } end
    return { { wall, x = 0, y = 0 }, of('anna', 150, 30) }, 60
  end
  local result = go(48, { 240, 460 }, scene, { choice = 'first' })
  check(result, 'carl 12, - 12, carl 12, - 12', 2)
  t.equal(table.concat(result.cuts, ' '), '12 24 36', 'cuts')
  check(go(48, { 240, 460 }, scene), 'carl 12, anna 12, carl 12, anna 12', 2)
  check(go(48, { 240, 460 }, scene, { choice = '200,110' }), 'carl 12, - 12, carl 12, - 12', 2)
  wall:free()
end)

t.test('a dissolve ends a shot, and no mouth goes from one to the other', function()
  local wall = require 'tests.support.formula_image'.image('wall', 240, 460)
  local function mixed(i)
    local share = math.max(0, math.min(1, (i - 11) / 12))
    local a = film.frame(240, 460, { of('carl', 20, 20) }, i)
    local b = film.frame(240, 460, { { wall, x = 0, y = 0 }, of('anna', 220, 20) }, i)
    local mix = cr.scope(function() return (a:to 'f32' * (1 - share) + b:to 'f32' * share):to 'u8' end)
    a:free()
    b:free()
    return mix
  end
  local result = go(40, { 240, 460 }, function() return { of('carl', 20, 20), of('anna', 220, 20) } end,
    { effect = function(frame, i)
      frame:free()
      return mixed(i)
    end })
  t.equal(result.errors, 0)
  t.equal(#result.cuts, 1, 'cuts')
  t.ok(result.cuts[1] and math.abs(result.cuts[1] - 24) <= 2, 'at ' .. tostring(result.cuts[1]))
  like(result, '^carl [12]%d, %- %d+, anna 1[4-7]$')
  wall:free()
end)

t.test('a flash, a shaking camera and a fade end no shot', function()
  local wall = require 'tests.support.formula_image'.image('wall', 300, 520)
  local function brighter(by)
    return function(frame, i)
      local add = by(i)
      local out = cr.scope(function() return (frame:to 'f32' + add):clamp(0, 255):to 'u8' end)
      frame:free()
      return out
    end
  end
  local function still() return { { wall, x = 0, y = 0 }, of('carl', 120, 20) } end
  for name, effect in pairs {
    flash = brighter(function(i) return (i == 6 or i == 7) and 255 or i == 8 and 90 or 0 end),
    fade = brighter(function(i) return -8 * i end),
  } do
    local result = go(14, { 240, 460 }, still, { effect = effect })
    t.equal(table.concat(result.cuts, ' '), '', name)
    t.equal(#result.known, 1, name .. ': people')
  end
  local result = go(14, { 240, 460 }, function(i)
    local x, y = 25 * math.sin(2.1 * i), 15 * math.cos(2.9 * i)
    return { { wall, x = -30 + x, y = -30 + y }, of('carl', 120 + x, 20 + y) }
  end)
  t.equal(#result.cuts, 0, 'shake')
  check(result, 'carl 14', 1)
  wall:free()
end)

-- Frames of a real person, u8 [390 390 3] each, of 25 a second from a frame on.
local function real(shared, clip, first, count)
  local reader, list = require 'cr.media'.reader(shared(('demo/demo%d_video.mp4'):format(clip)), { fps = 25 }), {}
  reader:seek(first)
  for i, frame in ipairs(reader:read(count)) do
    list[i] = cr.keep(cr.scope(function()
      return cr.nn.resize(frame:narrow(1, 151, 780):narrow(2, 191, 780), 390, 390, 'bilinear'):clone()
    end))
    frame:free()
  end
  reader:close()
  return list
end

t.with_shared('real people: a neighbour and a lost frame, a cut there and back, a dissolve, out of the picture', function(shared)
  local ann, ben = real(shared, 1, 0, 12), real(shared, 2, 0, 12)
  local function her(i) return ann[i % 24 < 12 and i % 24 + 1 or 24 - i % 24] end
  local function him(i) return ben[i % 24 < 12 and i % 24 + 1 or 24 - i % 24] end
  local function at(who, name, x) return { who, name = name, x = x, y = 0, side = 390 } end
  local gray = plain(390, 390, 128)
  check(go(10, { 390, 780 }, function(i)
    return { at(her, 'ann', 0), at(him, 'ben', 390), i == 5 and { gray, x = 0, y = 0 } or nil }
  end, { choice = 'left' }), 'ann 5, - 1, ann 4', 2)
  local there = go(24, { 390, 390 }, function(i)
    local first = math.floor(i / 8) % 2 == 0
    return { at(first and her or him, first and 'ann' or 'ben', 0) }
  end, { choice = 'first' })
  check(there, 'ann 8, - 8, ann 8', 2)
  t.equal(table.concat(there.cuts, ' '), '8 16', 'cuts')
  local dissolve = go(32, { 390, 390 }, function(i) return { at(i < 14 and her or him, i < 14 and 'ann' or 'ben', 0) } end,
    { effect = function(frame, i)
      frame:free()
      local share = math.max(0, math.min(1, (i - 8) / 12))
      return cr.scope(function() return (her(i):to 'f32' * (1 - share) + him(i):to 'f32' * share):to 'u8' end)
    end })
  t.equal(#dissolve.cuts, 1, 'cuts of a dissolve')
  t.ok(math.abs(dissolve.cuts[1] - 20) <= 2, 'at ' .. dissolve.cuts[1])
  t.equal(dissolve.picked[8], 'ann')
  t.equal(dissolve.picked[26], 'ben')
  local out = go(16, { 390, 780 }, function(i) return { at(him, 'ben', 0), at(her, 'ann', 390 + 20 * i) } end, { choice = 'right' })
  t.equal(out.errors, 0)
  like(out, '^ann %d+, %- %d+$')
  gray:free()
  for _, list in ipairs { ann, ben } do
    for _, frame in ipairs(list) do frame:free() end
  end
end)

t.test('with cuts = false none is looked for', function()
  local crowd = people.open { finder = { detect = function() return {} end }, cuts = false }
  for i = 0, 3 do
    local frame = plain(120, 160, 200 * (i % 2))
    t.ok(not crowd:push(frame).cut, 'frame ' .. i)
    frame:free()
  end
end)

t.test('a choice that is none is refused', function()
  for _, text in ipairs { '0', '-1', 'biggest', '12,', '3,4,5', '' } do t.ok(not choice.holds(text), text) end
  for _, text in ipairs { '1', '12', 'largest', 'first', 'left', 'right', 'speaking', 'all', '640,360' } do
    t.ok(choice.holds(text), text)
  end
end)

if finder then finder:free() end
film.free()
t.done()
