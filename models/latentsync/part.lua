--- A part of a film: the setting `part`, which `crescent split` writes. A job with it makes so many frames of the result, from
--- the windows' border at which it begins, as the whole job would make them: it is told what only the whole sound knows.
--
-- Its text is FIRST:FRAMES:SAMPLES:MELS:TOP: the first frame of the result (from 0) and how many, samples of the sound at 16 kHz,
-- its mel frames and the largest log10 mel power.
--
-- Faces of the part's first frames are steadied by those before them: LEAD frames are looked at and not made. Random numbers
-- begin where those of the windows before end, each of which is taken to have a face in it.

local M = {}

--- Frames before a part that are looked at. What a frame leaves of itself in the alignment of one so far behind is less
--- than double precision can tell (0.2^32), and steadying reaches over three.
M.LEAD = 32

--- @class FilmPart
--- @field first integer frame of the result, from 0
--- @field frames integer
--- @field sound SoundFacts {samples, frames, top}: models/latentsync/audio.lua

--- The type of the setting.
M.kind = {
  metavar = 'PART', wanted = 'as crescent split writes it, FIRST:FRAMES:SAMPLES:MELS:TOP', code = 1,
  read = function(text)
    local first, frames, samples, mels, top = text:match '^(%d+):(%d+):(%d+):(%d+):(%-?[%d.]+[e%d+-]*)$'
    if not first or tonumber(frames) < 1 or not tonumber(top) then return nil end
    local sound = { samples = tonumber(samples), frames = tonumber(mels), top = tonumber(top) }
    return { first = tonumber(first), frames = tonumber(frames), sound = sound }
  end,
  holds = function(value)
    return type(value) == 'table' and type(value.first) == 'number' and type(value.frames) == 'number' and type(value.sound) == 'table'
  end,
  write = function(p)
    return ('%.0f:%.0f:%.0f:%.0f:%.17g'):format(p.first, p.frames, p.sound.samples, p.sound.frames, p.sound.top)
  end,
}

-- Settings that link a frame with all before it, or that know no frame of the result: {setting, why, when}.
local LINKED = {
  { 'fps', 'parts are counted at 25 frames a second', function(v) return v == 'source' end },
  { 'cut_windows', 'where windows begin is known only at their end', function(v) return v == true end },
  { 'match_colour', 'colours are steadied over the whole film', function(v) return v == true end },
  { 'tail', 'what follows belongs to no part', function(v) return v == 'keep' end },
  { 'voice', 'of several voices parts cannot be made yet', function(v) return v ~= nil end },
  { 'face', 'who that is is known only from the beginning',
    function(v) return v ~= nil and not ({ largest = true, left = true, right = true, reference = true })[v] end },
}

--- Why a film with these settings cannot be cut; nil: it can.
--- @param s table
--- @return string?
function M.problem(s)
  for _, row in ipairs(LINKED) do
    if row[3](s[row[1]]) then return ('%s: %s: leave it out'):format(row[1]:gsub('_', '-'), row[2]) end
  end
end

--- Cuts a film at windows into parts that are as long as one another, but for a window.
--- @param s table settings {video (nil: its length is not looked at), audio, start, duration, length, silence, frames_per_window ...}
--- @param o table {parts = how many, at most one a window, or seconds = of each}
--- @return FilmPart[]
function M.cut(s, o)
  local errors, media, voices = require 'cr.errors', require 'cr.media', require 'models.latentsync.voice'
  local problem = M.problem(s)
  if problem then errors.fail('a film cannot be cut with ' .. problem) end
  local facts = voices.facts(s.audio, s)
  local limit = s.duration and math.max(1, math.floor(s.duration * 25 + 0.5)) or math.huge
  local total = math.min(voices.frames(facts, s.length or 'sound'), limit)
  local seconds = s.video and media.probe(s.video).duration - (s.start or 0) or 0
  if seconds > 0 and total / 25 > seconds + 0.1 then
    errors.failf('%s: the sound needs %.2f s of pictures, of which there are %.2f: give a duration', s.video, total / 25, seconds)
  end
  local F = s.frames_per_window or 16
  local windows = math.ceil(total / F)
  local n = math.min(windows, o.parts or math.ceil(total / 25 / o.seconds))
  local list = {}
  for i = 1, n do
    local first, stop = math.floor((i - 1) * windows / n), math.floor(i * windows / n)
    list[i] = { first = first * F, frames = math.min(total, stop * F) - first * F, sound = facts }
  end
  return list
end

return M
