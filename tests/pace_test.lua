--- The timing of a live session: when frames are due, and how many steps fit (models/latentsync/live/pace.lua). It
--- uses no clock.

local t = require 'tests.support.tap'
local paces = require 'models.latentsync.live.pace'

-- Measurements of windows with 8 frames that take 0.02 s, plus 0.01 s per step.
local function pace(more)
  local o = { steps = 20, least = 4, margin = 0.04, span = 0.32 }
  for key, value in pairs(more or {}) do o[key] = value end
  local self = paces.new(o)
  self:begin(100)
  return self
end

local function known(more)
  local self = pace(more)
  self:note(20, 0.2, 0.02)
  return self
end

t.test('frames are due 25 times per second', function()
  local p = pace()
  t.near(p:due(0), 100, 1e-9)
  t.near(p:due(25), 101, 1e-9)
  t.equal(p:frame_at(100), 0)
  t.equal(p:frame_at(100.04), 1)
  t.equal(p:frame_at(100.0401), 2, 'the next one')
  t.equal(p:frame_at(90), 0, 'none before the first')
  p:shift(0.5)
  t.near(p:due(25), 101.5, 1e-9)
end)

t.test('the expected duration is the maximum of recent ones', function()
  local p = known()
  t.near(p:takes(20), 0.22, 1e-9)
  t.near(p:takes(8), 0.1, 1e-9)
  p:note(20, 0.4, 0.02)
  t.near(p:takes(20), 0.42, 1e-9)
  for _ = 1, 8 do p:note(20, 0.2, 0.02) end
  t.near(p:takes(20), 0.22, 1e-9, 'what is long ago is forgotten')
end)

t.test('as many steps as fit, at least the minimum, and at most what is sustainable', function()
  local p = known()
  t.equal(p:fitting(10), 20)
  t.equal(p:fitting(0.22), 20)
  t.equal(p:fitting(0.15), 13)
  t.equal(p:fitting(0), 4)
  t.equal(p:fitting(), 20)
  p = pace()
  p:note(20, 0.6, 0.02) -- 0.03 s per step: 9 steps fit into 95 % of 0.32 s
  t.equal(p:fitting(10), 9)
  t.equal(p:fitting(), 9)
  t.equal(pace():fitting(0.01), 20, 'nothing is known yet')
  t.equal(known { steps = 2 }:fitting(0), 2, 'the least is not more than all')
end)

t.test('a window begins when it will be ready; a following one continues', function()
  local p = known()
  local first, torn = p:place(100, nil, 0)
  t.equal(first, 7, '0.22 s, and 0.04 s to be sure, are 6.5 frames')
  t.equal(torn, 0)
  first, torn = p:place(100, 12, 3)
  t.equal(first, 12)
  t.equal(torn, 0)
  first, torn = p:place(101, 20, 25)
  t.equal(first, 32, 'what it was to follow was shown: it begins anew')
  t.equal(torn, 12)
  t.equal((p:place(90, nil, 5)), 5, 'nothing is put before what is shown')
end)

t.test('how much later than necessary a window is shown', function()
  local p = known() -- 0.32 s of sound, 0.1 s look-ahead, 0.22 s of work, 0.04 s margin: 17 frames
  t.equal(p:late(17, 100, 0.1), 0)
  t.equal(p:late(27, 100, 0.1), 10)
  t.equal(p:late(12, 100, 0.1), -5)
end)

t.done()
