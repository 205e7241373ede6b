--- Live: sound goes in while frames come out.
--
--     local engine = require 'models.latentsync.live.engine'.new { model =, idle =, settings =, write = }
--     cr.go(function() engine:run() end)
--     engine:hear(bytes, { rate = 16000 })   -- as it comes: of any rate, in bursts, with gaps
--     engine:flush()                         -- drops what has not been shown: who listens has begun to speak
--     engine:finish()                        -- nothing more comes of this speech
--     engine:stop()                          -- run() returns when all that came has been shown
--
-- Tasks share one clock of 25 frames a second. The planner, of several cards one for each, makes a window as soon as all
-- that it hears has come, and gives its frames the next numbers. The player shows the frame that is due: the idle clip, with
-- the mouth and the sound of its number, if it has any. Sound never waits for its mouth: where that is not made in time, the
-- last one is held.
--
-- Invariants: what waits to be made is bounded by the setting `queue`, what is made and waits to be shown by two windows; frame
-- k's sound is the sound that its mouth was made for; nothing is held of what was shown.

local clock = require 'cr.clock'
local cr = require 'cr'
local media = require 'cr.media'
local metrics = require 'models.latentsync.live.metrics'
local paces = require 'models.latentsync.live.pace'
local utterances = require 'models.latentsync.live.utterance'
local vad = require 'models.networks.vad'

local M = { rate = utterances.rate, fps = utterances.fps }

local PER_FRAME = utterances.rate / utterances.fps
local BESIDE = 1     -- the stream of a card for what is pasted
local WINDOWS = 2    -- that are made and wait
local FALL = 5       -- frames over which a mouth fades when its speech is over
local STALL = 3      -- seconds that the picture may be late before its clock is set back
local WARM = 3       -- windows made before anything is shown: to know how long they take, and to record them on a card

--- @class LiveEngine
--- @field metrics LiveMetrics
--- @field pace Pace
--- @field on_flushed (fun(seconds: number))? called before the first frame without what a flush dropped: when it is shown, in
---   seconds of the video
local Engine = {}
Engine.__index = Engine

--- @param o table {model: LatentSync, idle: Idle, settings: from models/latentsync/live/settings.lua, write = fun(frame:
---   Tensor u8 [H W 3], sound: Tensor f32 [1920 channels]): number: hands a frame on and returns when that is done, with the
---   seconds by which the sound that has left is behind; makers = one for each device (models/latentsync/live/maker.lua)}
--- @return LiveEngine
function M.new(o)
  local s = o.settings
  local self = setmetatable({
    model = o.model, idle = o.idle, settings = s, write = o.write, metrics = metrics.new(),
    makers = o.makers,
    pcm = media.pcm { rate = utterances.rate, channels = s.channels }, utterances = {}, slots = {}, shown = 0, epoch = 0,
    share = 0, bell = cr.channel(1), begun = cr.channel(0), room = cr.channel(1), vad = s.silence == 'keep' and vad.load() or nil,
    silence = cr.keep(cr.zeros(PER_FRAME, s.channels)), span = s.every * s.frames_per_window,
  }, Engine)
  self.steps = self.makers[1].steps
  self.pace = paces.new { steps = self.steps, least = s.least_steps, margin = s.margin / 1000, span = self.span / utterances.fps,
    makers = #self.makers }
  return self
end

local function ring(bell)
  if bell:count() == 0 then bell:put(true) end
end

-- ---- what comes in -------------------------------------------------------------------------------

--- Seconds of sound that wait to be shown.
function Engine:waiting()
  local sum = 0
  for _, u in ipairs(self.utterances) do sum = sum + u:waiting() end
  return sum
end

-- The utterance that goes on, or a new one.
local function current(self)
  local latest = self.utterances[#self.utterances]
  if latest and not latest.ended then return latest end
  local s = self.settings
  latest = utterances.new { whisper = self.model.whisper, vad = self.vad, channels = s.channels, span = s.span,
    whole = s.span == 30, look = s.look_ahead / 1000 }
  self.utterances[#self.utterances + 1] = latest
  return latest
end

local function take(self, now)
  local piece = self.pcm:take()
  if piece:size(1) > 0 then current(self):push(piece, now) end
  piece:free()
end

--- Takes sound.
--- @param samples string|Tensor as of media.pcm's push
--- @param from {rate: integer, channels: integer?, format: string?}
--- @return boolean whether there is room for more: else wait for it (await_room), or it is the sender who is to wait
function Engine:hear(samples, from)
  self.pcm:push(samples, from)
  take(self, clock())
  ring(self.bell)
  return self:waiting() < self.settings.queue
end

--- Waits until the first frame is shown: sound that comes before it would wait.
function Engine:await_start() self.begun:get() end

--- Waits until less sound waits than the setting `queue` allows.
function Engine:await_room()
  while self:waiting() >= self.settings.queue and not self.stopped do self.room:get() end
end

--- Nothing more comes of this speech: its end is made now.
function Engine:finish()
  self.pcm:finish()
  take(self, clock())
  local latest = self.utterances[#self.utterances]
  if latest then latest:finish() end
  ring(self.bell)
end

local function drop_slot(slot)
  slot.sound:free()
  if slot.face then slot.face:free() end
end

--- Drops all sound that has not been shown. From the next frame on there is silence, and the mouth fades.
function Engine:flush()
  self.epoch = self.epoch + 1
  self.pcm:finish()
  self.pcm:take():free()
  for _, u in ipairs(self.utterances) do u:free() end
  for _, slot in pairs(self.slots) do drop_slot(slot) end
  self.utterances, self.slots, self.flushed = {}, {}, clock()
  self.metrics:count 'flushes'
  ring(self.bell)
  ring(self.room)
end

--- Nothing comes any more: run() ends when all has been shown.
function Engine:stop()
  self:finish()
  self.stopping = true
end

-- ---- the planner ---------------------------------------------------------------------------------

-- The utterance of which a window can be made now, and of how many frames; nil: none.
local function next_window(self, now)
  local u = self.utterances[1]
  if not u then return nil end
  if not u.ended and now - u.last >= self.settings.gap / 1000 and u:ready(self.span) == 0 then self:finish() end
  local n = u:ready(self.span)
  if n > 0 then return u, n end
  if u:done() then
    table.remove(self.utterances, 1):free()
    return next_window(self, now)
  end
end

-- Which of n frames mouths are made for, from 0: of each group that shares one its middle one; as many as a window has.
local function made_frames(self, n)
  local every, list = self.settings.every, {}
  for i = 1, self.settings.frames_per_window do
    list[i] = math.min((i - 1) * every + math.floor((every - 1) / 2), n - 1)
  end
  return list
end

local function make(self, maker, u, first, window, due)
  local epoch, numbers, heard, m = self.epoch, {}, {}, self.metrics
  for i, offset in ipairs(made_frames(self, #window)) do
    numbers[i], heard[i] = self.idle:index(first + offset), u.taken - #window + offset
  end
  local steps = self.pace:fitting(due - clock())
  local faces, took = maker:make(numbers, u, heard, steps, function() return self.epoch ~= epoch end)
  if not faces then return end
  if self.model.device ~= 'cpu' then cr.cuda.hand_over(faces, BESIDE) end
  self.pace:note(steps, took.denoise, took.hear + took.decode)
  m:made(steps)
  if steps < self.steps then m:count 'short' end
  for name, seconds in pairs(took) do m:time(name, seconds) end
  m:time('early', math.max(0, due - clock()))
  if self.epoch == epoch then
    for i, slot in ipairs(window) do
      slot.face = slot.waiting and cr.keep(faces:select(1, math.floor((i - 1) / self.settings.every) + 1)) or nil
      slot.waiting = nil
    end
  end
  faces:free()
end

-- Where nobody speaks what is later than it need be is left out, if the sound comes at its own pace: of one that came in a
-- burst its pauses belong to it.
local function catch_up(self, u, window, first, now)
  if not u:is_paced(now) then return end
  local late = math.min(#window, self.pace:late(first, window[1].came, self.settings.look_ahead / 1000))
  for _ = 1, late do drop_slot(table.remove(window, 1)) end
  self.metrics:count('left', math.max(0, late))
end

-- Gives a window's frames their numbers, and makes their mouths.
local function plan(self, maker, u, n)
  local now, m = clock(), self.metrics
  local first, torn = self.pace:place(now, u.follows, self.shown)
  m:count('torn', torn)
  local window, spoken = u:take(n), false
  for _, slot in ipairs(window) do
    slot.waiting = slot.share > 0
    spoken = spoken or slot.waiting
  end
  m:time('buffer', now - window[1].came)
  if not spoken then catch_up(self, u, window, first, now) end
  for i, slot in ipairs(window) do self.slots[first + i - 1] = slot end
  u.follows, self.planned = first + #window, first + #window
  ring(self.bell) -- another card may make the next one
  ring(self.room)
  if not spoken then return end
  if self.pace:due(first + n - 1) < now + self.pace:takes(1) then
    m:count 'skipped'
    return
  end
  make(self, maker, u, first, window, self.pace:due(first))
end

-- For each maker a task; they take windows in turn.
local function plan_all(self, maker)
  local ahead = (WINDOWS - 2 + #self.makers) * self.span
  while not self.stopped do
    local u, n
    if (self.planned or 0) - self.shown <= ahead then u, n = next_window(self, clock()) end
    if u then plan(self, maker, u, n) else self.bell:get() end
  end
  ring(self.bell)
end

-- ---- the player ----------------------------------------------------------------------------------

-- The mouth of the frame that is due: of its slot, or the last one, fading.
local function mouth_of(self, slot)
  if slot and slot.face then
    if self.face then self.face:free() end
    self.face, slot.face = slot.face, nil
    return slot.share
  end
  if slot and slot.waiting then
    slot.waiting = nil
    self.metrics:count 'held'
    return math.max(self.share, 0)
  end
  return math.max(0, math.min(slot and slot.share or 0, self.share), self.share - 1 / FALL)
end

local function show(self, due)
  local m, k = self.metrics, self.shown
  local slot = self.slots[k]
  self.slots[k], self.shown = nil, k + 1
  ring(self.bell)
  self.share = mouth_of(self, slot)
  local sound, came, flushed = slot and slot.sound or self.silence, slot and slot.came, self.flushed
  self.flushed = nil
  if flushed and self.on_flushed then self.on_flushed(k / utterances.fps) end
  local lag = cr.scope(function()
    return self.write(self.idle:picture(self.idle:index(k), self.face, self.share), sound)
  end)
  local now = clock()
  m:count 'frames'
  if self.share > 0 then m:count 'speaking' end
  m:time('encode', now - due)
  if came then m:time('latency', now - came + lag) end
  if flushed then m:time('flush', now - flushed) end
  if slot then slot.sound:free() end
end

local function play(self)
  if self.model.device ~= 'cpu' then cr.cuda.stream(BESIDE) end
  while true do
    local due = self.pace:due(self.shown)
    local early = due - clock()
    if early > 0 then cr.sleep(early) else cr.yield() end
    if -early > STALL then
      self.pace:shift(-early)
      self.metrics:count 'stalls'
    end
    if self.stopping and #self.utterances == 0 and not next(self.slots) and self.share == 0 then break end
    show(self, math.max(due, clock()))
  end
  self.stopped = true
  ring(self.bell)
  ring(self.room)
end

-- ---- all of it -----------------------------------------------------------------------------------

-- Makes windows of silence, so that it is known how long they take.
local function warm(self)
  local hearing = require 'models.latentsync.live.hearing'.new(self.model.whisper, { span = self.settings.span,
    whole = self.settings.span == 30 })
  hearing:feed(cr.zeros(16000))
  local silence = { tokens = function(_, frames) return hearing:window(frames) end }
  local frames, numbers = {}, {}
  for i = 1, self.settings.frames_per_window do frames[i], numbers[i] = i - 1, self.idle:index(i - 1) end
  local times = self.model.device == 'cpu' and 1 or WARM
  for _, maker in ipairs(self.makers) do
    for i = 1, times do
      local faces, took = maker:make(numbers, silence, frames, self.steps)
      faces:free()
      if i == times then self.pace:note(self.steps, took.denoise, took.hear + took.decode) end
    end
  end
  hearing:free()
end

--- Shows frames until stop(), in a task. Frees what it holds when it ends, whether that fails or not.
function Engine:run()
  local ok, problem = pcall(function()
    warm(self)
    self.pace:begin(clock())
    self.begun:close()
    local tasks = { function() play(self) end }
    for _, maker in ipairs(self.makers) do tasks[#tasks + 1] = function() plan_all(self, maker) end end
    cr.all(tasks)
  end)
  self.stopped = true
  self:free()
  if not ok then error(problem, 0) end
end

--- Gives everything back. Twice is fine.
function Engine:free()
  for _, u in ipairs(self.utterances) do u:free() end
  for _, slot in pairs(self.slots) do drop_slot(slot) end
  self.utterances, self.slots = {}, {}
  self.pcm:close()
  for _, name in ipairs { 'face', 'silence', 'vad' } do
    if self[name] then self[name]:free() end
    self[name] = nil
  end
end

return M
