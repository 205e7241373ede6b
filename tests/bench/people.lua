-- The accuracy of face selection in videos with known people (tests/support/people_cases.lua): the number of frames
-- in which the right person's mouth is generated, another person's, or none although the face is visible.
--
--     build/crescent tests/bench/people.lua [--clips ../shared] [--only cross] [--show]
--
-- Tiny: --only lost

local cases = require 'tests.support.people_cases'
local o = require 'tests.bench.options'.read('People of films whose truth is known.', {
  { '--clips', 'folder', help = "folder with demo/demo1_video.mp4 and demo2_video.mp4, clips of two real people" },
  { '--only', default = '', help = 'films whose names contain this text' },
  { '--show', 'flag', help = 'who is made, as runs of frames' },
})

local film = require 'tests.support.film'

-- Whether a frame of a sound is silent.
local function silent_in(path)
  local media = require 'cr.media'
  local sound = media.load_audio(path, { rate = 16000, channels = 1 })
  local loudest = sound:abs():max():item()
  return function(i)
    return (i + 1) * 640 > sound:size(1) or sound:narrow(1, i * 640 + 1, 640):abs():max():item() < 0.05 * loudest
  end
end

-- Two people who take turns, selected by their lips: the frames in which the speaking one is generated; in silence
-- either is right.
local function turns(finder, turn)
  local path, silent = os.tmpname() .. '.mkv', silent_in(film.turns_sound)
  film.turns(path, turn)
  local chosen = require 'models.latentsync.choice'.new 'speaking'
  chosen:speak(require 'models.latentsync.census'.of(path, { finder = finder, sound = film.turns_sound }).turns)
  local crowd = require 'models.latentsync.people'.open { finder = finder, choices = { chosen } }
  local reader, i = require 'cr.media'.reader(path, { fps = 25 }), 0
  local r = { frames = 0, right = 0, wrong = 0, errors = 0, visible = 0, passed = 0 }
  for frame in function() return reader:read(1)[1] end do
    local seen = crowd:push(frame, i / 25)
    r.frames, r.visible = i + 1, i + 1
    for _, p in ipairs(seen.people) do
      if p.number == seen.picks[1][1] then
        local key = ((p.box[1] < 200) == (i < turn) or silent(i)) and 'right' or 'wrong'
        r[key] = r[key] + 1
      end
    end
    if #seen.picks[1] == 0 then r.passed = r.passed + 1 end
    frame:free()
    i = i + 1
  end
  reader:close()
  os.remove(path)
  return r
end

local finder = require 'models.latentsync.face'.load()
local list = cases.list()
if o.clips then
  for _, case in ipairs(cases.real(function(name) return o.clips .. '/' .. name end)) do list[#list + 1] = case end
end
local sum = { frames = 0, right = 0, wrong = 0, errors = 0, visible = 0, passed = 0 }
print(('%-50s %7s %7s %7s %9s %9s %9s'):format('film', 'frames', 'right', 'wrong', 'visible', 'passed on', 'cuts'))
local function line(name, r, found)
  print(('%-50s %7d %7d %7d %9d %3d %4.1f%% %9s'):format(name, r.frames, r.right, r.wrong + r.errors, r.visible, r.passed,
    100 * r.passed / math.max(1, r.visible), found))
end
for _, case in ipairs(list) do
  if case.name:find(o.only, 1, true) then
    local r = cases.go(finder, case)
    for key, value in pairs(sum) do sum[key] = value + r[key] end
    line(case.name, r, table.concat(r.cuts, ' '))
    if o.show then print('    ' .. cases.runs(r)) end
  end
end
if ('two people take turns'):find(o.only, 1, true) then
  for _, turn in ipairs { 52, 70 } do
    local r = turns(finder, turn)
    for key, value in pairs(sum) do sum[key] = value + r[key] end
    line(('two people take turns, frame %d'):format(turn), r, '')
  end
end
line('all', sum, '')
