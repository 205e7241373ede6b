--- The engine of a live session (models/latentsync/live): which frame has which sound and which mouth, whatever
--- arrives and however long a window takes. Whisper and the networks are replaced; a mouth is the number of the frame
--- for which it was generated.

local t = require 'tests.support.tap'
local clock = require 'cr.clock'
local cr = require 'cr'
local engines = require 'models.latentsync.live.engine'
local utterances = require 'models.latentsync.live.utterance'

local RATE, PER_FRAME = 48000, 1920

local whisper = {
  segment_frames = function() return 3000 end,
  encode = function(_, mel) return cr.zeros(mel:size(1) / 2, 1, 4) end,
}

-- A clip whose frame k is the number k; an image encodes its mouth.
local idle = {
  index = function(_, k) return k % 10 + 1 end,
  picture = function(_, number, face, share)
    return { number = number, mouth = share > 0 and face and face:mean():item() or nil, share = share }
  end,
}

-- A maker that needs a given time per step; records its calls and their arguments.
local function maker_of(step)
  local self = { steps = 4, calls = {} }
  function self.make(_, numbers, _, heard, steps, stopped, run_in)
    self.calls[#self.calls + 1] = { numbers = numbers, heard = heard, steps = steps }
    for _ = 1, steps do
      if step > 0 then cr.sleep(step) else cr.yield() end
      if stopped and stopped() then return nil end
    end
    local n = #heard - run_in
    return cr.keep(cr.scope(function()
      return cr.tensor(heard):narrow(1, run_in + 1, n):view(n, 1, 1, 1):expand(n, 2, 2, 3):contiguous()
    end)),
      { hear = 0, denoise = steps * step, decode = 0 }
  end
  return self
end

-- Sound whose frame i (from 0) is i + 1 throughout, in thousandths.
local function counted(frames, from)
  local x = cr.empty { frames * PER_FRAME, 1 }
  for i = 0, frames - 1 do x:narrow(1, i * PER_FRAME + 1, PER_FRAME):fill_((i + 1 + (from or 0)) / 1000) end
  return x
end

-- Runs a session; feed(engine) runs in a concurrent task. Returns the frames {picture, sound (the number in it), even
-- (whether all samples are that number)}, and the engine.
local function run(o, feed, write)
  local shown = {}
  local settings = { channels = 1, silence = 'model', every = 1, run_in = 0, frames_per_window = 4, least_steps = 1, margin = 0, queue = 60,
    gap = 150, look_ahead = 100, span = 2 }
  for key, value in pairs(o.settings or {}) do settings[key] = value end
  local maker, list = maker_of(o.step or 0), {}
  for i = 1, o.makers or 1 do list[i] = maker end
  local engine
  cr.run(function()
    engine = engines.new { model = { device = 'cpu', whisper = whisper }, idle = idle, settings = settings, makers = list,
      write = write or function(picture, sound)
        local low, high = sound:min():item(), sound:max():item()
        shown[#shown + 1] = { picture = picture, sound = math.floor(low * 1000 + 0.5), even = high - low < 1e-6, at = clock() }
        return 0
      end }
    engine.shown_so_far = shown
    cr.all { function() engine:run() end, function()
      engine:await_start()
      feed(engine)
      engine:stop()
    end }
  end)
  return shown, engine, maker
end

-- The numbers of the sounds that are not silent, and whether they are consecutive.
local function sounds(shown)
  local list, whole, before = {}, true, nil
  for k, frame in ipairs(shown) do
    if frame.sound ~= 0 then
      list[#list + 1] = frame.sound
      whole = whole and frame.even and (before == nil or before == k - 1)
      before = k
    end
  end
  return list, whole
end

-- Checks that every mouth that is neither held nor fading belongs to the sound of its frame. Returns their number.
local function check_mouths(shown)
  local fitting = 0
  for _, frame in ipairs(shown) do
    if frame.sound ~= 0 and frame.picture.mouth == frame.sound - 1 then fitting = fitting + 1 end
  end
  return fitting
end

local function count_up(list, n, from)
  t.equal(#list, n, 'frames with sound')
  for i, number in ipairs(list) do t.equal(number, i + (from or 0), 'their order') end
end

t.test('a burst is played in real time, each frame with its sound and mouth', function()
  local began = clock()
  local shown, engine = run({}, function(live)
    local x = counted(22)
    t.ok(live:hear(x, { rate = RATE }))
    x:free()
  end)
  local list, whole = sounds(shown)
  count_up(list, 22)
  t.ok(whole, 'without a gap')
  t.equal(check_mouths(shown) + engine.metrics.values.held, 22, 'mouths')
  t.ok(clock() - began > 21 / 25, 'no faster than it is heard')
  for k, frame in ipairs(shown) do t.equal(frame.picture.number, (k - 1) % 10 + 1, 'the idle clip goes on') end
  t.equal(shown[#shown].picture.share, 0, 'the mouth has closed')
  t.near(engine:waiting(), 0, 1e-9)
end)

t.test('speech begins and ends by a crossfade', function()
  local shown = run({}, function(live)
    local x = counted(12)
    live:hear(x, { rate = RATE })
    x:free()
  end)
  local before = 0
  for _, frame in ipairs(shown) do
    local share = frame.picture.share
    t.ok(share - before <= 1 / 3 + 1e-6 and before - share <= 1 / 5 + 1e-6, ('from %.2f to %.2f'):format(before, share))
    before = share
  end
end)

t.test('sound in small pieces with varying rates, without an announced end, is shown completely', function()
  local shown, engine = run({}, function(live)
    for i = 0, 15 do
      local rate = i < 8 and 16000 or 32000
      local x = cr.full({ rate / 25 }, 0.5)
      live:hear(x, { rate = rate })
      x:free()
      cr.sleep(0.02)
    end
    t.wait(function() return #live.utterances == 0 end)
  end)
  local n = 0
  for _, frame in ipairs(shown) do
    if frame.sound ~= 0 then n = n + 1 end
  end
  t.ok(n >= 15 and n <= 16, ('%d frames with sound'):format(n))
  t.equal(engine.metrics.values.torn, 0)
end)

t.test('after a pause another utterance begins, with its own frames', function()
  local shown, engine, maker = run({}, function(live)
    for part = 0, 1 do
      local x = counted(6, 100 * part)
      live:hear(x, { rate = RATE })
      x:free()
      t.wait(function() return #live.utterances == 0 end)
    end
  end)
  local list = sounds(shown)
  t.equal(#list, 12)
  for i = 1, 6 do
    t.equal(list[i], i)
    t.equal(list[6 + i], 100 + i)
  end
  local begins = 0 -- one more is generated during the warm-up
  for _, call in ipairs(maker.calls) do begins = begins + (call.heard[1] == 0 and 1 or 0) end
  t.ok(begins == 3 or engine.metrics.values.skipped > 0, 'of each the first frame is frame 0')
end)

t.test('a flush drops waiting sound at once, and speech may begin again', function()
  local at, first
  local shown, engine = run({ step = 0.005 }, function(live)
    local x = counted(100)
    live:hear(x, { rate = RATE })
    x:free()
    t.wait(function()
      local list = sounds(live.shown_so_far)
      return #list >= 3
    end)
    at = #live.shown_so_far
    live:flush()
    t.equal(live:waiting(), 0)
    t.equal(next(live.slots), nil, 'nothing waits')
    x = counted(5, 500)
    first = x
    live:hear(x, { rate = RATE })
    x:free()
  end)
  t.equal(shown[at + 1].sound == 0 or shown[at + 1].sound > 500, true, 'the next frame is silent')
  for k = at + 1, #shown do t.ok(shown[k].sound == 0 or shown[k].sound > 500, 'nothing of it comes after') end
  local list = sounds({ unpack(shown, at + 1) })
  count_up(list, 5, 500)
  t.equal(engine.metrics.values.flushes, 1)
  t.ok(engine.metrics.times.flush.n == 1 and first ~= nil)
end)

t.test('a slow device uses fewer steps, then holds mouths; the sound continues', function()
  local shown, engine, maker = run({ step = 0.06 }, function(live) -- 4 steps: 0.24 s for 0.16 s
    local x = counted(60)
    live:hear(x, { rate = RATE })
    x:free()
  end)
  local list, whole = sounds(shown)
  count_up(list, 60)
  t.ok(whole, 'without a gap')
  local fewer = 0
  for i = 2, #maker.calls do fewer = fewer + (maker.calls[i].steps < 4 and 1 or 0) end
  t.ok(fewer > 0 and engine.metrics.values.short > 0, 'fewer steps')
  shown, engine = run({ step = 0.3 }, function(live) -- even one step takes longer than its window is shown
    local x = counted(40)
    live:hear(x, { rate = RATE })
    x:free()
  end)
  list, whole = sounds(shown)
  count_up(list, 40)
  t.ok(whole, 'without a gap')
  t.ok(engine.metrics.values.held > 0, 'mouths are held')
  local report = engine.metrics:report()
  t.ok(report.held == engine.metrics.values.held and report.seconds.latency.n == 40, 'and it is told')
end)

t.test('two cards take windows in turn', function()
  local shown, engine, maker = run({ step = 0.06, makers = 2 }, function(live) -- 0.24 s per window, two at the same time
    local x = counted(40)
    live:hear(x, { rate = RATE })
    x:free()
  end)
  local list, whole = sounds(shown)
  count_up(list, 40)
  t.ok(whole, 'without a gap')
  t.ok(check_mouths(shown) + engine.metrics.values.held >= 40, 'mouths')
  local full = 0
  for i = 3, #maker.calls do full = full + (maker.calls[i].steps == 4 and 1 or 0) end
  t.ok(full > 0, 'windows have all their steps')
  t.equal(engine.pace:fitting(), 4, 'there is time for all of them')
end)

t.test('frames can share a mouth', function()
  local shown, _, maker = run({ settings = { every = 3, frames_per_window = 2 } }, function(live)
    local x = counted(12)
    live:hear(x, { rate = RATE })
    x:free()
  end)
  count_up(sounds(shown), 12)
  t.equal(#maker.calls[#maker.calls].heard, 2)
  for _, frame in ipairs(shown) do
    if frame.sound ~= 0 and frame.picture.mouth then t.equal(frame.picture.mouth % 3, 1, 'the middle one of three') end
  end
end)

t.test('frames before a window are context, of the same number at every window, and are not shown', function()
  local shown, _, maker = run({ settings = { run_in = 3, frames_per_window = 4 } }, function(live)
    local x = counted(12)
    live:hear(x, { rate = RATE })
    x:free()
  end)
  count_up(sounds(shown), 12)
  local calls = maker.calls
  t.equal(table.concat(calls[#calls - 2].heard, ' '), '0 0 0 0 1 2 3')
  t.equal(table.concat(calls[#calls - 1].heard, ' '), '1 2 3 4 5 6 7')
  t.equal(table.concat(calls[#calls].heard, ' '), '5 6 7 8 9 10 11')
  t.equal((calls[#calls].numbers[4] - calls[#calls].numbers[3]) % 10, 1, "the clip's frames, too")
  for _, frame in ipairs(shown) do
    if frame.sound ~= 0 and frame.picture.mouth then t.equal(frame.picture.mouth, frame.sound - 1, 'the mouth of its own sound') end
  end
end)

t.test('what waits is bounded, and room is waited for', function()
  run({ settings = { queue = 1 } }, function(live)
    local x = counted(26)
    t.equal(live:hear(x, { rate = RATE }), false, 'there is no more room')
    x:free()
    live:await_room()
    t.ok(live:waiting() < 1)
    live:flush()
  end)
end)

t.test('an error of the output ends the session with its message, and nothing remains', function()
  t.raises(function()
    run({}, function(live)
      local x = counted(50)
      live:hear(x, { rate = RATE })
      x:free()
      while true do cr.sleep(1) end
    end, function() error('the reader is gone', 0) end)
  end, 'the reader is gone')
end)

-- ---- speech detection -----------------------------------------------------------------------

t.test('silence keeps the idle mouth, and speech is detected ahead', function()
  local vad = require 'models.networks.vad'
  local net = vad.load(t.fetched 'vad/silero_vad_16k.safetensors')
  cr.run(function()
    cr.scope(function()
      local media = require 'cr.media'
      local speech = media.load_audio(cr.root .. '/models/mini/demo.flac', { rate = RATE, channels = 1 })
      speech = speech:view(speech:numel(), 1)
      local u = utterances.new { whisper = whisper, vad = net, channels = 1, span = 2, look = 0.1 }
      local quiet = cr.zeros(2 * RATE, 1)
      local shares, at = {}, 0
      for _, part in ipairs { quiet, speech:narrow(1, 1, 2 * RATE), quiet } do
        for i = 0, 99 do
          u:push(part:narrow(1, i * 960 + 1, 960), 0)
          if u:ready(4) == 4 then
            for _, frame in ipairs(u:take(4)) do
              at = at + 1
              shares[at] = frame.share
              frame.sound:free()
            end
          end
        end
      end
      u:free()
      for i = 1, 45 do t.equal(shares[i], 0, ('frame %d, before anybody speaks'):format(i)) end
      local full, closed = 0, 0
      for i = 55, 95 do full = full + (shares[i] == 1 and 1 or 0) end
      for i = 125, at do closed = closed + (shares[i] == 0 and 1 or 0) end
      t.ok(full > 35, ('%d of 41 frames of speech'):format(full))
      t.equal(closed, at - 124, 'frames after it')
    end)
  end)
  net:free()
end)

t.done()
