--- One utterance of the input: its sound, the audio tokens of its frames, and where somebody speaks.
--
-- A live sound is a sequence of utterances. An utterance begins with the first sample after a gap, and ends when no
-- more samples arrive. All counting starts at its first sample: frame i (from 0) is the i-th 25th of a second.
--
-- In pauses the idle mouth is kept. The weight of the generated mouth rises over RISE frames before speech, as far as
-- the look-ahead reaches, and falls over FALL frames once nobody has spoken for LONG seconds.
--
-- Invariant: memory is bounded by what has not been shown yet and by the span that is encoded.

local ffi = require 'ffi'
local cr = require 'cr'
local hearings = require 'models.latentsync.live.hearing'
local media = require 'cr.media'
local vad = require 'models.networks.vad'

local M = { rate = 48000, fps = 25 }

local RATE, FPS = M.rate, M.fps
local PER_FRAME = RATE / FPS
local ENTER, LEAVE = 0.5, 0.35 -- probabilities at which speech begins and ends
local LONG = 0.4               -- seconds
local RISE, FALL = 3, 5        -- frames
local PACED = 0.5 -- seconds by which a real-time sound may be early
local CHUNKS = FPS * vad.chunk / vad.rate -- frames per chunk of the voice activity detector

--- @class Utterance
--- @field channels integer
--- @field count integer samples received, at 48 kHz
--- @field taken integer frames already taken
--- @field ended boolean no more samples will arrive
--- @field last number time at which the last piece arrived
local Utterance = {}
Utterance.__index = Utterance

--- @param o {whisper: Whisper, vad: VoiceActivity?, channels: integer, span: number, whole: boolean?, look: number} without
---   vad, all of it counts as speech; look: look-ahead of the audio in seconds
--- @return Utterance
function M.new(o)
  return setmetatable({
    o = o, channels = o.channels, hearing = hearings.new(o.whisper, o), stream = o.vad and o.vad:stream(),
    down = media.pcm { rate = 16000 }, samples = ffi.new('float[?]', RATE * o.channels), room = RATE, at = 0, held = 0,
    count = 0, taken = 0, ended = false, arrivals = {}, speech = {}, chunks = 0, speaks = false, share_before = 0,
  }, Utterance)
end

-- Where speech is, as a list of {first, last} frames; only the latest are kept.
local function watch(self, probabilities)
  for _, p in ipairs(probabilities) do
    local first = self.chunks * CHUNKS
    self.speaks = p >= ENTER or self.speaks and p >= LEAVE
    if self.speaks then
      local latest = self.speech[#self.speech]
      if latest and latest[2] >= first - 1e-9 then
        latest[2] = first + CHUNKS
      else
        self.speech[#self.speech + 1] = { first, first + CHUNKS }
        if #self.speech > 64 then table.remove(self.speech, 1) end
      end
    end
    self.chunks = self.chunks + 1
  end
end

local function hear(self)
  local piece = self.down:take()
  local flat = piece:view(piece:size(1))
  piece:free()
  if self.stream and flat:numel() > 0 then watch(self, self.stream:feed(flat)) end
  self.hearing:feed(flat)
end

--- Takes the next piece.
--- @param piece Tensor f32 [n channels] at 48 kHz
--- @param now number time of its arrival
function Utterance:push(piece, now)
  local n, C = piece:size(1), self.channels
  if n == 0 then return end
  if self.at + self.held + n > self.room then
    self.room = math.max(self.room, 2 * (self.held + n))
    local fresh = ffi.new('float[?]', self.room * C)
    ffi.copy(fresh, self.samples + self.at * C, self.held * C * 4)
    self.samples, self.at = fresh, 0
  end
  cr.scope(function() ffi.copy(self.samples + (self.at + self.held) * C, piece:contiguous():pointer(), n * C * 4) end)
  self.held, self.count, self.last, self.began = self.held + n, self.count + n, now, self.began or now
  self.arrivals[#self.arrivals + 1] = { self.count, now }
  self.down:push(piece, { rate = RATE })
  hear(self)
end

--- Ends the utterance: silence follows.
function Utterance:finish()
  if self.ended then return end
  self.ended = true
  self.total = math.ceil(self.count / PER_FRAME)
  -- Appends the look-ahead of the last frame, and what resamplers and the spectrogram's stream still hold back.
  cr.scope(function()
    local rest = self.total * PER_FRAME - self.count
    self.down:push(cr.zeros(rest + RATE / 2, self.channels), { rate = RATE })
    self.down:finish()
  end)
  hear(self)
end

--- How many of the next n frames can be taken: all n or, before the end, none.
--- @param n integer
--- @return integer
function Utterance:ready(n)
  if self.ended then return math.min(n, self.total - self.taken) end
  local last = self.taken + n - 1
  return self.count >= (last + 1) * PER_FRAME and self.hearing:covers(last, self.o.look) and n or 0
end

--- Seconds of sound that have not been shown yet.
function Utterance:waiting() return self.held / RATE end

-- Whether somebody speaks in a frame, has just spoken, or is about to.
local function spoken(self, frame)
  if not self.stream then return true end
  local hang = math.max(0, LONG - self.o.look) * FPS
  for i = #self.speech, 1, -1 do
    local s = self.speech[i]
    if s[1] < frame + 1 + RISE and s[2] > frame - hang then return true end
  end
  return false
end

-- The arrival time of a frame's first sample.
local function arrival(self, frame)
  local sample = frame * PER_FRAME + 1
  while self.arrivals[2] and self.arrivals[1][1] < sample do table.remove(self.arrivals, 1) end
  return self.arrivals[1][2]
end

--- Takes the next n frames; at most as many as are ready.
--- @param n integer
--- @return {sound: Tensor, share: number, came: number}[] for each frame: f32 [1920 channels], the weight of the generated
---   mouth, and the arrival time of its first sample
function Utterance:take(n)
  local list, C = {}, self.channels
  for i = 1, n do
    local frame = self.taken + i - 1
    local target = spoken(self, frame) and 1 or 0
    local before = self.share_before
    local share = math.max(before - 1 / FALL, math.min(before + 1 / RISE, target))
    self.share_before = share
    local sound = cr.keep(cr.zeros(PER_FRAME, C))
    local there = math.min(PER_FRAME, self.held)
    ffi.copy(sound:pointer(), self.samples + self.at * C, there * C * 4)
    self.at, self.held = self.at + there, self.held - there
    list[i] = { sound = sound, share = share < 1e-6 and 0 or share, came = arrival(self, frame) }
  end
  self.taken = self.taken + n
  return list
end

--- Tokens of frames that were taken recently.
--- @param frames integer[] from 0
--- @return Tensor [n 50 D]
function Utterance:tokens(frames) return self.hearing:window(frames) end

--- Whether the sound arrives in real time, as from a microphone, and not faster.
--- @param now number
--- @return boolean
function Utterance:is_paced(now)
  return self.count / RATE <= now - self.began + PACED
end

--- Whether the utterance has ended and all of it was taken.
function Utterance:done() return self.ended and self.taken >= self.total end

function Utterance:free()
  self.hearing:free()
  if self.stream then self.stream:free() end
  self.down:close()
end

return M
