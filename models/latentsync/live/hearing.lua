--- Streaming audio features: the audio tokens of each frame, from a sound that arrives piece by piece.
--
-- Whisper encodes the last SPAN seconds of what has arrived, followed by silence, as at the end of a clip. Frame i
-- takes positions 2i - 4 to 2i + 5 (models/latentsync/audio.lua); the last one ends 120 ms after the frame begins and
-- depends on a little audio after that. Positions that have not arrived yet are replaced by the last one that has.
-- The spectrogram is clamped relative to the largest value so far, starting at TOP, which is typical for speech,
-- because the maximum of the whole clip is not known yet.
--
-- Invariant: memory is bounded by SPAN seconds, however long the session runs.

local ffi = require 'ffi'
local cr = require 'cr'
local audio = require 'models.latentsync.audio'
local nn = require 'cr.nn'

local M = {}

local HOP, MELS = 160, 80
local PER_FRAME = audio.rate / 25
local MEL_PER_FRAME = PER_FRAME / HOP
local TOP = 1.5
local HALF_WINDOW, HOPS_HELD = 200, 2 -- samples and hops that the spectrogram needs after a frame
local MOST = 1500 -- mel frames read per call

--- @class Hearing
--- @field fed integer samples received
--- @field count integer mel frames computed
local Hearing = {}
Hearing.__index = Hearing

--- @param whisper Whisper
--- @param options {span: number, whole: boolean?} span: seconds that are encoded together; whole: whether Whisper gets its full
---   segment of 30 s, padded with silence, or only those seconds, which costs proportionally less
--- @return Hearing
function M.new(whisper, options)
  local length = whisper:segment_frames()
  local span = math.min(length, math.floor(options.span * 50 + 0.5) * 2)
  local self = setmetatable({
    whisper = whisper, span = span, length = options.whole and length or span, queue = {}, fed = 0, count = 0, top = TOP,
    room = 2 * span + MOST, base = 0,
  }, Hearing)
  self.mel = ffi.new('float[?]', self.room * MELS)
  self.stream = audio.mel_stream(function()
    return function() return table.remove(self.queue, 1) end
  end)
  return self
end

--- Takes the next samples and owns them from then on.
--- @param samples Tensor f32 [n] on the CPU, 16 kHz
function Hearing:feed(samples)
  if samples:numel() == 0 then return samples:free() end
  self.queue[#self.queue + 1] = cr.keep(samples)
  self.fed = self.fed + samples:numel()
end

-- Computes the spectrogram of what has arrived, and drops what is older than the span.
local function advance(self)
  while true do
    local n = math.min(MOST, math.floor((self.fed + HALF_WINDOW) / HOP) - HOPS_HELD - self.count)
    if n <= 0 then break end
    local held = self.count - self.base
    if held + n > self.room then
      local drop = held - self.span
      ffi.copy(self.mel, self.mel + drop * MELS, self.span * MELS * 4)
      self.base, held = self.base + drop, self.span
    end
    cr.scope(function()
      local part = self.stream:read(n):to 'f32':contiguous()
      self.top = math.max(self.top, part:max():item())
      ffi.copy(self.mel + held * MELS, part:pointer(), n * MELS * 4)
    end)
    self.count = self.count + n
  end
end

--- Whether the sound has arrived up to the end of this frame, plus `more` seconds.
--- @param frame integer from 0, at 25 per second
--- @param more number seconds after the frame's end
function Hearing:covers(frame, more) return self.fed >= (frame + 1) * PER_FRAME + more * audio.rate end

--- Tokens of some frames.
--- @param frames integer[] from 0, in ascending order, none older than the span
--- @return Tensor [n 50 D] on Whisper's device
function Hearing:window(frames)
  advance(self)
  if self.count < 2 then error('hearing: no audio has arrived yet', 2) end
  return cr.scope(function()
    -- Starts at an even mel frame, so that encoder positions do not shift.
    local first = math.max(0, math.floor((self.count - self.span + 1) / 2) * 2)
    local heard = math.floor((self.count - first) / 2) * 2
    local mel = cr.from_pointer(self.mel + (first - self.base) * MELS, { heard, MELS }, 'f32', self.mel)
    mel = (mel:clamp(self.top - 8, math.huge) + 4) / 4
    if heard < self.length then mel = nn.pad(mel, {}, { self.length - heard }, 0) end
    local features = self.whisper:encode(mel)
    local last, layers, D = heard / 2 - 1, features:size(2), features:size(3)
    local rows = {}
    for _, frame in ipairs(frames) do
      local low = frame * MEL_PER_FRAME / 2 - 4
      for p = low, low + 9 do
        local position = math.max(0, math.min(last, p - first / 2))
        rows[#rows + 1] = features:narrow(1, position + 1, 1)
      end
    end
    return cr.cat(rows, 1):view(#frames, 10 * layers, D)
  end)
end

function Hearing:free()
  for _, samples in ipairs(self.queue) do samples:free() end
  for _, t in pairs(self.stream.tables) do t:free() end
  self.queue, self.stream = {}, nil
end

return M
