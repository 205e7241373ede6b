--- People who are followed: neighbours, hands, walks, cuts. Films of known places (tests/support/film.lua), seen by the
--- trained detector and mesh.

local cases = require 'tests.support.people_cases'
local choice = require 'models.latentsync.choice'
local cr = require 'cr'
local face = require 'models.latentsync.face'
local film = require 'tests.support.film'
local people = require 'models.latentsync.people'
local t = require 'tests.support.tap'

local finder -- of all tests
if t.has_fetched 'face/face_landmark.tflite' then
  finder = face.load()
  for _, name in ipairs { 'anna', 'bert', 'carl' } do finder:find_all(film.person(name)(0)) end
end

-- Nobody else's mouth is made, and who can be seen is made, but for a few frames where it is not clear yet who they are.
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
  t.keeps_storages() -- their pictures
  for _, case in ipairs(cases.real(shared)) do check(case) end
end)

t.test('with cuts = false none is looked for', function()
  local crowd = people.open { finder = { detect = function() return {} end }, cuts = false }
  for i = 0, 3 do
    local frame = cr.full({ 120, 160, 3 }, 200 * (i % 2), { dtype = 'u8' })
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
cases.free()
t.done()
