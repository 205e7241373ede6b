--- The engine of a live session: sound goes in while frames come out.
--
--     local engine = require 'models.latentsync.live.engine'.new { model =, idle =, settings =, write = }
--     cr.go(function() engine:run() end)
--     engine:hear(bytes, { rate = 16000 })   -- as it arrives: at any rate, in bursts, with gaps
--     engine:flush()                         -- drops what has not been shown, because the listener has begun to speak
--     engine:finish()                        -- the end of this speech
--     engine:stop()                          -- run() returns when everything has been shown
--
-- All tasks share one clock of 25 frames per second. The planner (one per GPU) generates a window as soon as all the
-- audio that it needs has arrived, and assigns the next frame numbers to it. The player shows the frame that is due:
-- the idle clip, with the mouth and the sound that belong to its number, if there are any. Sound never waits for its
-- mouth: if a mouth is not ready in time, the previous one is held.
--
-- Invariants: input that waits is bounded by the setting `queue`, generated frames that wait are bounded by two
-- windows. The sound of frame k is the sound for which its mouth was generated. Nothing is kept of frames that were
-- shown.

local clock = require 'cr.clock'
local cr = require 'cr'
local media = require 'cr.media'
local metrics = require 'models.latentsync.live.metrics'
local paces = require 'models.latentsync.live.pace'
local utterances = require 'models.latentsync.live.utterance'
local vad = require 'models.networks.vad'

local M = { rate = utterances.rate, fps = utterances.fps }

local PER_FRAME = utterances.rate / utterances.fps
local WINDOWS = 2 -- generated windows that may wait
local FALL = 5 -- frames over which a mouth fades out after its speech
local STALL = 3 -- seconds that the video may be late before its clock is reset
local ASK_AGAIN = 0.03 -- seconds after which a speech is asked once more whether it is silent
local WARM = 3 -- warm-up windows, to measure their duration and to record CUDA graphs

--- @class LiveEngine
--- @field metrics LiveMetrics
--- @field pace Pace
--- @field on_flushed (fun(seconds: number))? is called before the first frame after a flush, with its presentation time in
---   seconds of the video
local Engine = {}
Engine.__index = Engine

--- @param o table {model: LatentSync, idle: Idle, settings: from models/latentsync/live/settings.lua, write = fun(frame:
---   Tensor u8 [H W 3], sound: Tensor f32 [1920 channels]): number: writes a frame and returns, when that is done, the seconds
---   by which the encoder delays the sound; makers = one per device (models/latentsync/live/maker.lua)}
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

-- ---- input -------------------------------------------------------------------------------

--- Seconds of sound that have not been shown yet.
function Engine:waiting()
  local sum = 0
  for _, u in ipairs(self.utterances) do sum = sum + u:waiting() end
  return sum
end

-- The current utterance, or a new one.
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

--- Takes samples.
--- @param samples string|Tensor as for media.pcm's push
--- @param from {rate: integer, channels: integer?, format: string?}
--- @return boolean whether there is room for more; if not, call await_room, or make the sender wait
function Engine:hear(samples, from)
  self.pcm:push(samples, from)
  take(self, clock())
  ring(self.bell)
  return self:waiting() < self.settings.queue
end

--- Waits until the first frame is shown: earlier sound would only wait.
function Engine:await_start() self.begun:get() end

--- Waits until less sound is queued than the setting `queue` allows.
function Engine:await_room()
  while self:waiting() >= self.settings.queue and not self.stopped do self.room:get() end
end

--- Ends this speech; its last window is generated now.
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

--- Drops all sound that has not been shown. From the next frame on there is silence, and the mouth fades out.
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

--- Ends the input: run() returns when everything has been shown.
function Engine:stop()
  self:finish()
  self.stopping = true
end

-- ---- the planner ---------------------------------------------------------------------------------

-- Whether nothing has come since it was first asked a while ago. Sound that came while the thread was busy is heard only
-- after other tasks have run.
local function is_silent(u, now)
  if u.asked_after ~= u.last then
    u.asked_after, u.asked = u.last, now
    return false
  end
  return now - u.asked >= ASK_AGAIN
end

-- The utterance of which a window can be generated now, and its number of frames; nil if there is none.
local function next_window(self, now)
  local u = self.utterances[1]
  if not u then return nil end
  if not u.ended and now - u.last >= self.settings.gap / 1000 and u:ready(self.span) == 0 and is_silent(u, now) then self:finish() end
  local n = u:ready(self.span)
  if n > 0 then return u, n end
  if u:done() then
    table.remove(self.utterances, 1):free()
    return next_window(self, now)
  end
end

-- The frames that a window of n frames denoises, relative to its first: those before it that are context, then one window's worth
-- of frames, the middle one of each group that shares a mouth.
local function made_frames(self, n)
  local s, list = self.settings, {}
  for i = 1 - s.run_in, s.frames_per_window do
    list[#list + 1] = math.min((i - 1) * s.every + math.floor((s.every - 1) / 2), n - 1)
  end
  return list
end

local function make(self, maker, u, first, window, due)
  local epoch, numbers, heard, m = self.epoch, {}, {}, self.metrics
  for i, offset in ipairs(made_frames(self, #window)) do
    -- (before the first frame of an utterance, that frame is heard again)
    numbers[i], heard[i] = self.idle:index(first + offset), math.max(0, u.taken - #window + offset)
  end
  local steps = self.pace:fitting(due - clock())
  local faces, took = maker:make(numbers, u, heard, steps, function() return self.epoch ~= epoch end, self.settings.run_in)
  if not faces then return end
  if self.model.device ~= 'cpu' then cr.cuda.hand_over(faces, cr.cuda.BESIDE) end
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

-- Skips pauses while the video lags behind the sound, if the sound arrives in real time. If it came in a burst, its
-- pauses are kept.
local function catch_up(self, u, window, first, now)
  if not u:is_paced(now) then return end
  local late = math.min(#window, self.pace:late(first, window[1].came, self.settings.look_ahead / 1000))
  for _ = 1, late do drop_slot(table.remove(window, 1)) end
  self.metrics:count('left', math.max(0, late))
end

-- Assigns frame numbers to a window and generates its mouths.
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
  ring(self.bell) -- another GPU may generate the next window
  ring(self.room)
  if not spoken then return end
  if self.pace:due(first + n - 1) < now + self.pace:takes(1) then
    m:count 'skipped'
    return
  end
  make(self, maker, u, first, window, self.pace:due(first))
end

-- The planner's task of one maker; the makers take windows in turn.
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

-- The mouth of the frame that is due: its own, or the previous one fading out.
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
  if self.model.device ~= 'cpu' then cr.cuda.stream(cr.cuda.BESIDE) end
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

-- ---- running -----------------------------------------------------------------------------------

-- Generates windows of silence, to measure how long they take.
local function warm(self)
  local hearing = require 'models.latentsync.live.hearing'.new(self.model.whisper, { span = self.settings.span,
    whole = self.settings.span == 30 })
  hearing:feed(cr.zeros(16000))
  local silence = { tokens = function(_, frames) return hearing:window(frames) end }
  local frames, numbers = {}, {}
  local run_in = self.settings.run_in
  for i = 1, run_in + self.settings.frames_per_window do frames[i], numbers[i] = i - 1, self.idle:index(i - 1) end
  local times = self.model.device == 'cpu' and 1 or WARM
  for _, maker in ipairs(self.makers) do
    for i = 1, times do
      local faces, took = maker:make(numbers, silence, frames, self.steps, nil, run_in)
      faces:free()
      if i == times then self.pace:note(self.steps, took.denoise, took.hear + took.decode) end
    end
  end
  hearing:free()
end

--- Shows frames until stop(); must be called in a task. Frees its resources when it ends or fails.
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

--- Frees all resources. May be called twice.
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
