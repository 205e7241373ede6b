--- Finds pauses in the sound, and decides what happens to the mouth there: the setting `silence`.
--
-- The sound is analysed once before anything else (Silero VAD, on the CPU: a few milliseconds per second). A gap of
-- more than 0.4 s between segments of speech is a pause. `keep`: frames in a pause keep their own mouth; at its ends
-- the generated mouth fades over 4 frames inside of the pause, so that speech is never affected. `close`: the model
-- gets silence in pauses, whatever the sound is.

local ffi = require 'ffi'
local cr = require 'cr'
local vad = require 'models.networks.vad'

local M = {}

local LONG = 0.4 -- seconds without speech that make a pause
local FADE = 4       -- frames
local PER_FRAME = vad.rate / 25

--- @class Silence
--- @field pauses number[][] a list of {first sample, sample after the last}, in order; the first may begin before the sound, the
---   last extends to infinity
local Silence = {}
Silence.__index = Silence

-- The gaps between segments of speech that are long enough; before and after the sound nobody speaks either.
local function pauses_of(speech, samples)
  local list, before = {}, 0
  for i = 1, #speech + 1 do
    local first = speech[i] and speech[i][1] or samples
    if first - before > LONG * vad.rate then
      list[#list + 1] = { before > 0 and before or -math.huge, speech[i] and first or math.huge }
    end
    before = speech[i] and speech[i][2]
  end
  return list
end

--- Finds segments of speech.
--- @param source fun(): fun(): Tensor? opens a sound; f32 samples at 16 kHz
--- @return integer[][] segments a list of {first sample, sample after the last}, in order
--- @return integer samples length of the sound
function M.speech(source)
  local net = vad.load()
  local ok, result, count = pcall(function()
    local stream, next_piece, probabilities, samples = net:stream(), source(), {}, 0
    local function add(list)
      for _, p in ipairs(list) do probabilities[#probabilities + 1] = p end
    end
    while cr.scope(function()
      local piece = next_piece()
      if not piece then return false end
      samples = samples + piece:numel()
      add(stream:feed(piece))
      return true
    end) do end
    add(stream:finish())
    return vad.segments(probabilities, { samples = samples }), samples
  end)
  net:free()
  if not ok then error(result, 0) end
  return result, count
end

--- Finds the pauses of a sound.
--- @param source fun(): fun(): Tensor? see speech
--- @return Silence
function M.find(source) return setmetatable({ pauses = pauses_of(M.speech(source)) }, Silence) end

-- The pause that a sample lies in, or nil.
function Silence:at(sample)
  for _, pause in ipairs(self.pauses) do
    if sample < pause[1] then return nil end
    if sample < pause[2] then return pause end
  end
end

--- The weight of the generated mouth in a frame.
--- @param i integer the frame, from 1, at 25 per second
--- @return number 0 to 1
function Silence:share(i)
  local pause = self:at((i - 0.5) * PER_FRAME)
  if not pause then return 1 end
  -- The number of frames from this one (included) to the nearer end of the pause.
  local from = math.floor((i - 0.5) - pause[1] / PER_FRAME) + 1
  local to = math.floor(pause[2] / PER_FRAME - (i - 0.5)) + 1
  return math.max(0, 1 - math.min(from, to) / (FADE + 1))
end

--- The seconds of pauses within the first `total` seconds.
--- @param total number
--- @return number
function Silence:seconds(total)
  local sum = 0
  for _, pause in ipairs(self.pauses) do
    sum = sum + math.max(0, math.min(pause[2] / vad.rate, total) - math.max(pause[1] / vad.rate, 0))
  end
  return sum
end

--- The same sound, with silence in its pauses.
--- @param source fun(): fun(): Tensor? see find
--- @return fun(): fun(): Tensor?
function Silence:muted(source)
  return function()
    local next_piece, at = source(), 0
    return function()
      local piece = next_piece()
      if not piece then return nil end
      local n = piece:numel()
      piece = piece:contiguous():clone()
      for _, pause in ipairs(self.pauses) do
        local first, stop = math.max(pause[1] - at, 0), math.min(pause[2] - at, n)
        if stop > first then ffi.fill(piece:pointer() + first, (stop - first) * 4) end
      end
      at = at + n
      return piece
    end
  end
end

return M
