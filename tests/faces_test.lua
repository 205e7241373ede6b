--- `crescent faces`: the people in a video, the image, the JSON file, and who speaks.

local census = require 'models.latentsync.census'
local child = require 'tests.support.child'
local film = require 'tests.support.film'
local media = require 'cr.media'
local t = require 'tests.support.tap'

local function path(name) return child.folder .. '/' .. name end

-- Writes a film; scene(i), from 0, gives its layers.
local function write(name, frames, height, width, scene)
  local sink = media.writer(path(name), { fps = 25, lossless = true })
  for i = 0, frames - 1 do
    local frame = film.frame(height, width, scene(i), i)
    sink:write(frame)
    frame:free()
  end
  sink:close()
  return path(name)
end

local function faces(...) return child.run { 'faces', '--quiet', '--device', 'cpu', ... } end
local function read(name)
  local f = io.open(path(name))
  local text = f and f:read '*a'
  if f then f:close() end
  return text and require 'cr.json'.decode(text)
end

t.test('everybody is numbered by first appearance and from left to right', function()
  t.face_models()
  t.keeps_storages() -- the film's people
  local video = write('three.mkv', 20, 240, 640, function(i)
    return { { film.person 'anna', x = 10, y = 20 }, { film.person 'bert', x = 220, y = 20 },
      i >= 8 and { film.person 'carl', x = 430, y = 20 } or nil }
  end)
  local r = faces(video, '--json', path 'three.json', '--out', path 'three.png')
  t.equal(r.code, 0, r.err)
  local found = read 'three.json'
  t.equal(found.frames, 20)
  t.equal(#found.people, 3)
  for k, x in ipairs { 110, 320, 530 } do
    local p = found.people[k]
    t.equal(p.number, k)
    t.near((p.box[1] + p.box[3]) / 2, x, 40, 'where ' .. k .. ' is')
    t.near(p.first, k == 3 and 0.32 or 0, 1e-9, 'first')
    t.near(p.last, 0.8, 1e-9, 'last')
    t.near(p.share, k == 3 and 0.6 or 1, 1e-9, 'share')
    t.equal(#p.segments, 1)
    t.ok(r.out:find(('%4d  %.2f to 0.80 s'):format(k, p.first), 1, true), r.out)
  end
  local sheet = media.read_picture(path 'three.png')
  t.ok(sheet:size(2) > 600 and sheet:size(1) > 3 * 128, 'a sheet of ' .. table.concat(sheet.shape, ' x '))
  sheet:free()
  r = faces(video, '--start', '0.4', '--duration', '0.2', '--json', path 'piece.json')
  t.equal(r.code, 0, r.err)
  t.equal(read 'piece.json'.frames, 5)
  film.free()
end)

t.test('a video without people is not an error', function()
  t.face_models()
  local video = write('empty.mkv', 5, 120, 160, function() return {} end)
  local r = faces(video, '--json', path 'empty.json', '--out', path 'empty.png')
  t.equal(r.code, 0, r.err)
  t.ok(r.out:find('no face was found in any of the 5 frames', 1, true), r.out)
  local f = io.open(path 'empty.json')
  t.ok(f:read '*a':find('"people": []', 1, true), 'an empty list')
  f:close()
end)

t.test('two people take turns: the lips of each agree with their own segment', function()
  t.face_models()
  film.turns(path 'turns.mkv', 70)
  local finder = require 'models.latentsync.face'.load()
  local within = census.of(path 'turns.mkv', { finder = finder, sound = film.turns_sound })
  t.equal(#within.turns, 2)
  t.near(within.turns[2].first, 70, 2, 'a turn within words')
  local turn = film.turns(path 'turns.mkv')
  local result = census.of(path 'turns.mkv', { finder = finder, sound = film.turns_sound })
  -- The choice `speaking` uses the result.
  local choice = require 'models.latentsync.choice'.new 'speaking'
  choice:speak(result.turns)
  local crowd = require 'models.latentsync.people'.open { finder = finder, choices = { choice } }
  local reader = media.reader(path 'turns.mkv', { fps = 25 })
  local picks = {}
  reader:seek(turn - 12)
  for k, frame in ipairs(reader:read(24)) do
    picks[k] = table.concat(crowd:push(frame, (turn - 13 + k) / 25).picks[1])
    frame:free()
  end
  reader:close()
  t.ok(table.concat(picks):find '^1+2+$' and picks[5] == '1' and picks[20] == '2', table.concat(picks))
  finder:free()
  require 'models.networks.mfcc'.free()
  t.equal(#result.people, 2)
  t.equal(#result.turns, 2, 'turns')
  t.equal(result.turns[1].number, 1)
  t.equal(result.turns[2].number, 2)
  t.near(result.turns[2].first, turn, 5, 'the second turn')
  for k, p in ipairs(result.people) do
    for _, s in ipairs(p.segments) do
      local own = (s.first < turn - 5) == (k == 1)
      if own then
        t.ok(s.confidence > 0.25 and math.abs(s.offset) <= 1, ('%d says it: %.2f, %d'):format(k, s.confidence, s.offset))
      else
        t.ok(s.confidence < 0.2, ('%d is silent: %.2f'):format(k, s.confidence))
      end
    end
  end
end)

t.test('wrong arguments are one sentence', function()
  local video = write('short.mkv', 2, 64, 64, function() return {} end)
  for _, case in ipairs {
    { { '/nowhere.mp4' }, 'nowhere' }, { { video, '--out', path 'x.jpg' }, '%.png' }, { { video, '--audio', video }, 'no audio' },
    { { video, '--json', video }, 'video' }, { { video, '--start', '-1' }, 'less than 0' },
    { { video, '--out', path 'no/x.png' }, 'does not exist' },
    { { video, '--start', '100' }, '' },
  } do
    local r = faces(unpack(case[1]))
    t.ok(r.code ~= 0 and r.lines == 1 and r.err:find(case[2]), r.err .. r.code)
  end
  t.equal(faces(video, '--faces', '1').code, 2, 'an unknown option')
end)

child.clean()
t.done()
