--- Windows that end at cuts: --cut-windows.

local child = require 'tests.support.child'
local cr = require 'cr'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local settings = require 'models.latentsync.settings'
local smooth = require 'tests.support.formula_image'
local t = require 'tests.support.tap'
local windows = require 'models.latentsync.windows'

require 'tests.support.clip'.needs_whisper(t, 'windows and shots')

local function path(name) return child.folder .. '/' .. name end

-- A film of 8 frames, whose second shot has the last 5, and a sound of the same length; at a given rate.
local function film(name, fps)
  local sink = media.writer(path(name), { lossless = true, fps = fps })
  for k = 0, 7 do cr.scope(function() sink:write(smooth.image(k < 3 and 'frame0' or 'frame2', 96, 160)) end) end
  sink:close()
  return path(name)
end

local SHIFT = { 0, 1, 2, 20, 20, 20, 20, 20 } -- position of the face in each frame

local function finder_of(order)
  local count = 0
  return {
    detect = function() return { { box = { 30, 10, 100, 90 }, score = 1 } } end,
    place = function(_, _, d)
      count = count + 1
      local x = order[count]
      return { box = d.box, score = 1, presence = 1, points = { { x + 45, 32 }, { 1.2 * x + 80, 33 }, { x + 62, 54 } } }
    end,
    free = function() end,
  }
end

local model, voice
cr.scope(function()
  require 'tests.support.checkpoint'.write(path 'checkpoint')
  model = require 'models.latentsync'.load(path 'checkpoint', { size = 64 })
  local x, bytes = t.formula('voice', { 16000 }):tolist(), {}
  for i = 1, 16000 do bytes[i] = scratch.le(math.floor(math.max(-1, math.min(1, x[i])) * 16000) % 65536, 2) end
  voice = child.file('voice.wav', scratch.wav(table.concat(bytes)))
end)

-- The windows of a film as 'number:first+frames ...', and the matrix of each source frame.
local function go(video, options)
  local o = { frames = 4, finder = finder_of(SHIFT) }
  for key, value in pairs(options) do o[key] = value end
  local source, list, matrices = windows.open(model, video, voice, o), {}, {}
  for clip in function() return source:next() end do
    list[#list + 1] = ('%d:%d+%d'):format(source:index(clip), clip.first, clip.n)
    for _, item in ipairs(clip.shown or clip.items) do
      matrices[item.index] = item.matrix
      if clip.last then item.frame:free() end
    end
    if clip.faces then clip.faces:free() end
  end
  t.equal(source:count(), #list, 'windows')
  source:close()
  return table.concat(list, ' '), matrices
end

t.test('windows end at cuts, forward and backward', function()
  local video = film('film.mkv', 25)
  -- 25 frames: the film forward, backward, forward and its last frame again.
  t.equal(go(video, {}), '1:1+4 2:5+4 3:9+4 4:13+4 5:17+4 6:21+4 7:25+1')
  t.equal(go(video, { cut_windows = true }), '1:1+3 2:4+4 3:8+4 4:12+2 5:14+4 6:18+2 7:20+4 8:24+2')
end)

t.test('a shot begins without any earlier state', function()
  local video = film('film.mkv', 25)
  local _, linked = go(video, { duration = 0.32 })
  local _, apart = go(video, { duration = 0.32, cut_windows = true })
  for i = 1, 3 do
    for k = 1, 6 do t.equal(apart[i][k], linked[i][k], 'before the cut') end
  end
  local alone = require 'models.latentsync.align'.new { size = 64 }
  local want, moved = alone:matrix { { 65, 32 }, { 104, 33 }, { 82, 54 } }, 0
  for k = 1, 6 do
    t.equal(apart[4][k], want[k], 'the first of the shot')
    moved = math.max(moved, math.abs(linked[4][k] - want[k]))
  end
  t.ok(moved > 1e-3, 'without it the alignment goes on')
end)

t.test("at the video's own rate, too", function()
  t.equal(go(film('slow.mkv', 12.5), { cut_windows = true, fps = 'source', duration = 0.6 }), '1:1+4 2:5+2 3:7+4 4:11+4 5:15+1')
end)

t.test('cut_windows is refused where cuts are not detected', function()
  for _, given in ipairs { { face = 'reference' }, { points = { { { 1, 2 }, { 3, 4 }, { 5, 6 } } } } } do
    given.cut_windows = true
    t.raises(function() settings.resolve(given, '--', model) end, 'cuts are not detected')
  end
end)

child.clean()
t.done()
