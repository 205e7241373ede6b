--- Tracking of people: neighbours, hands, walks, cuts. Films with known positions (tests/support/film.lua), seen by
--- the trained detector and mesh.

local cases = require 'tests.support.people_cases'
local choice = require 'models.latentsync.choice'
local cr = require 'cr'
local face = require 'models.latentsync.face'
local film = require 'tests.support.film'
local people = require 'models.latentsync.people'
local t = require 'tests.support.tap'

local finder -- shared by all tests
if t.has_fetched 'face/face_landmark.tflite' then
  finder = face.load()
  for _, name in ipairs { 'anna', 'bert', 'carl' } do finder:find_all(film.person(name)(0)) end
end

-- Nobody else's mouth is generated, and visible people are, except for a few frames in which their identity is not
-- clear yet.
local function check(case)
  local result = cases.go(finder, case)
  local shown = cases.runs(result)
  t.equal(result.errors, 0, 'numbers that went to somebody else')
  t.equal(result.wrong, 0, 'mouths of somebody else: ' .. shown)
  t.ok(result.passed <= (case.late or 0), ('%d frames passed on: %s'):format(result.passed, shown))
  t.ok(result.right >= result.visible - result.passed and result.visible > 0, shown)
  if case.people then t.equal(#result.known, case.people, 'people') end
  if case.cuts and case.cuts.around then
    t.ok(#result.cuts == 1 and math.abs(result.cuts[1] - case.cuts[1]) <= 2, 'cuts: ' .. table.concat(result.cuts, ' '))
  elseif case.cuts then
    t.equal(table.concat(result.cuts, ' '), table.concat(case.cuts, ' '), 'cuts')
  end
end

local list = cases.list()
for _, case in ipairs(list) do
  t.test(case.name, function()
    t.face_models()
    check(case)
  end)
end

t.with_shared('real people', function(shared)
  t.keeps_storages() -- the people's images
  for _, case in ipairs(cases.real(shared)) do check(case) end
end)

t.test('frames that are analysed together give the same results as one by one', function()
  t.face_models()
  local function scene(i)
    local layers = { { film.person 'anna'(i), x = 4 + 3 * i, y = 30 }, { film.person 'bert'(i), x = 260, y = 20 } }
    if i >= 6 then table.remove(layers, 1) end
    return film.frame(240, 480, layers, i < 9 and i or 40)
  end
  local function crowd() return people.open { finder = finder, choices = { choice.new 'all' } } end
  local alone, together, n = crowd(), crowd(), 11
  cr.scope(function()
    local frames = {}
    for i = 1, n do frames[i] = scene(i - 1) end
    local glances = together:glance(frames)
    t.equal(#glances, n, 'glances')
    for i, frame in ipairs(frames) do
      local a, b = alone:push(frame), together:push(frame, nil, glances[i])
      t.equal(b.cut, a.cut, 'cut')
      t.equal(#b.people, #a.people, 'people of frame ' .. i)
      for k, p in ipairs(a.people) do
        t.equal(b.people[k].number, p.number, 'number')
        for j = 1, 3 do
          for axis = 1, 2 do t.near(b.people[k].points[j][axis], p.points[j][axis], 1e-3, 'point') end
        end
      end
    end
    local reference, other = people.reference(finder), people.reference(finder)
    local a, b = reference:push(frames[2]), other:push(frames[2], nil, other:glance({ frames[1], frames[2] })[2])
    for j = 1, 3 do t.near(b.people[1].points[j][1], a.people[1].points[j][1], 1e-3, "the reference's point") end
  end)
  finder:reset()
end)

t.test('with cuts = false, cuts are not detected', function()
  local crowd = people.open { finder = { detect = function() return {} end }, cuts = false }
  for i = 0, 3 do
    local frame = cr.full({ 120, 160, 3 }, 200 * (i % 2), { dtype = 'u8' })
    t.ok(not crowd:push(frame).cut, 'frame ' .. i)
    frame:free()
  end
end)

t.test('an invalid choice is refused', function()
  for _, text in ipairs { '0', '-1', 'biggest', '12,', '3,4,5', '' } do t.ok(not choice.holds(text), text) end
  for _, text in ipairs { '1', '12', 'largest', 'first', 'left', 'right', 'speaking', 'all', '640,360' } do
    t.ok(choice.holds(text), text)
  end
end)

if finder then finder:free() end
cases.free()
t.done()
