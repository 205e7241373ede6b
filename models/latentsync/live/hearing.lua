--- What is heard while it is spoken: the audio tokens of each frame from a sound that comes piece by piece.
--
-- Whisper hears the last SPAN seconds up to what has come so far, behind which there is nothing, as behind the end of a
-- clip. Frame i takes positions 2i - 4 to 2i + 5 (models/latentsync/audio.lua), the last of which ends 120 ms after the
-- frame begins and hears a little beyond; what has not come yet is replaced by the last position that has. The floor of
-- the spectrogram hangs on the loudest value of all that was heard, at first on TOP, that of usual speech, since a whole
-- clip's is not known yet.
--
-- Invariant: memory is that of SPAN seconds, however long it goes on.

local ffi = require 'ffi'
local cr = require 'cr'
local audio = require 'models.latentsync.audio'
local nn = require 'cr.nn'

local M = {}

local HOP, MELS = 160, 80
local PER_FRAME = audio.rate / 25
local MEL_PER_FRAME = PER_FRAME / HOP
local TOP = 1.5
local HALF_WINDOW, HOPS_HELD = 200, 2 -- what the spectrogram's stream wants behind a frame
local MOST = 1500                     -- mel frames read at once

--- @class Hearing
--- @field fed integer samples so far
--- @field count integer mel frames so far
local Hearing = {}
Hearing.__index = Hearing

--- @param whisper Whisper
--- @param options {span: number, whole: boolean?} seconds that are heard together; whether Whisper is given its whole segment
---   of 30 s, silent behind them, or those seconds alone, which costs as much less
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

--- Takes the next samples, which become its own.
--- @param samples Tensor f32 [n] on the CPU, 16 kHz
function Hearing:feed(samples)
  if samples:numel() == 0 then return samples:free() end
  self.queue[#self.queue + 1] = cr.keep(samples)
  self.fed = self.fed + samples:numel()
end

-- Makes the spectrogram of all that has come, and forgets what lies behind the span.
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

--- Whether all that frames up to this one want to hear has come, and `more` seconds.
--- @param frame integer from 0, at 25 a second
--- @param more number seconds behind the frame's end
function Hearing:covers(frame, more) return self.fed >= (frame + 1) * PER_FRAME + more * audio.rate end

--- Tokens of some frames.
--- @param frames integer[] from 0, in ascending order, none of them longer ago than the span
--- @return Tensor [n 50 D] on Whisper's device
function Hearing:window(frames)
  advance(self)
  if self.count < 2 then error('hearing: nothing has been heard yet', 2) end
  return cr.scope(function()
    -- From an even number of mel frames, so that positions stay where they are.
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
