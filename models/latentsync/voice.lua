--- A voice: the audio tokens of every frame, and its pauses.

local audio = require 'models.latentsync.audio'
local silences = require 'models.latentsync.silence'

local M = {}

local RATE = audio.rate

-- A source for models/latentsync/audio.lua: a function that opens the sound again at each call, limited to a piece,
-- and padded with silence to `least` samples.
local function sound(path, start, duration, least)
  local media = require 'cr.media'
  return function()
    local reader = media.audio(path, { rate = RATE, channels = 1, s16 = true })
    local skip = math.floor((start or 0) * RATE + 0.5)
    local left = duration and math.floor(duration * RATE + 0.5) or math.huge
    local given = 0
    return function()
      while left > 0 do
        local piece = reader:read(RATE * 4)
        local n = piece and piece:size(1) or 0
        if n == 0 then break end
        if skip >= n then
          skip = skip - n
          piece:free()
        else
          local first, count = skip + 1, math.min(n - skip, left)
          skip, left, given = 0, left - count, given + count
          return piece:narrow(1, first, count):contiguous()
        end
      end
      reader:close()
      if given == 0 and start and start > 0 then error(('%s ends before %g s'):format(path, start), 0) end
      local rest = math.min((least or 0) - given, RATE * 4)
      if rest <= 0 then return nil end
      left, given = 0, given + rest
      return require 'cr'.zeros(rest)
    end
  end
end

-- The number of samples of a sound.
local function samples_of(source)
  local cr, next_piece, n = require 'cr', source(), 0
  while cr.scope(function()
    local piece = next_piece()
    n = n + (piece and piece:numel() or 0)
    return piece ~= nil
  end) do end
  return n
end

--- @class Voice
--- @field path string
--- @field tokens AudioTokens
--- @field silence Silence? its pauses, if requested
local Voice = {}
Voice.__index = Voice

local function hear(whisper, path, source, o, facts)
  local self = setmetatable({ path = path }, Voice)
  local ok, result = pcall(function()
    if o.silence ~= 'model' then self.silence = silences.find(source) end
    if o.silence == 'close' then source = self.silence:muted(source) end
    return audio.tokens(whisper, source, { overlap = o.audio_overlap, facts = facts })
  end)
  if not ok then error((tostring(result):gsub('^audio: ', path .. ': ')), 0) end
  self.tokens = result
  return self
end

-- The number of samples of the longest of several sounds; nil for a single one, which is not padded.
local function longest_of(paths, o)
  local longest
  for i = 1, #paths > 1 and #paths or 0 do
    longest = math.max(longest or 0, samples_of(sound(paths[i], o.start, o.duration)))
  end
  return longest
end

--- The figures about the whole sounds that a part of a film needs.
--- @param paths string[]
--- @param o table {start, duration, silence} from the settings
--- @return SoundFacts[] one for each voice
function M.facts(paths, o)
  local longest, list = longest_of(paths, o), {}
  for i, path in ipairs(paths) do
    local source = sound(path, o.start, o.duration, longest)
    if o.silence == 'close' then source = silences.find(source):muted(source) end
    local ok, result = pcall(audio.facts, source)
    if not ok then error((tostring(result):gsub('^audio: ', path .. ': ')), 0) end
    list[i] = result
  end
  return list
end

--- The number of frames, at 25 per second, for a voice of this length: see Voice:frames.
--- @param facts SoundFacts
--- @param length string 'sound' or 'reference'
--- @return integer
function M.frames(facts, length)
  local heard = math.floor(math.floor(facts.frames / 2) / 2) + 2
  -- The reference generates two frames more than the sound lasts, and takes their images backward from the end.
  if length ~= 'sound' then return heard end
  return math.min(heard, math.max(1, math.ceil(25 * facts.samples / RATE - 1e-6)))
end

--- Prepares voices, padded with silence to the length of the longest.
--- @param whisper Whisper
--- @param paths string[]
--- @param o table {start, duration, silence, audio_overlap, part} from the settings
--- @return Voice[]
function M.hear(whisper, paths, o)
  local longest, facts = longest_of(paths, o), o.part and o.part.sounds or {}
  if o.part and #facts ~= #paths then error(('part: it describes %d voices, but there are %d'):format(#facts, #paths), 0) end
  local voices = {}
  for i, path in ipairs(paths) do
    local ok, result = pcall(hear, whisper, path, sound(path, o.start, o.duration, longest), o, facts[i])
    if not ok then
      for _, voice in ipairs(voices) do voice:free() end
      error(result, 0)
    end
    voices[i] = result
  end
  return voices
end

--- The number of frames, at 25 per second: the length of the voice, or two frames more, as in the reference.
--- @param length string 'sound' or 'reference'
--- @return integer
function Voice:frames(length)
  return M.frames(self.tokens, length)
end

function Voice:free() self.tokens:free() end

return M
