--- A part of a film: the setting `part`, which `crescent split` writes. A job with it makes some frames of the
--- result, from a window border on, exactly as the whole job would. The setting holds the figures that need the whole
--- sound.
--
-- Its text is FIRST:FRAMES:SAMPLES:MELS:TOP: the first frame of the result (from 0), the number of frames, the length
-- of the sound in samples at 16 kHz and in mel frames, and the largest log10 mel power.
--
-- To smooth the faces of the first frames as the whole job does, LEAD frames before the part are analysed, but not
-- generated. The random sequence continues after the draws of the earlier windows, each of which is assumed to
-- contain a face.

local M = {}

--- Frames that are analysed before a part. A frame's weight in the running average of the alignment is then below
--- double precision (0.2^32), and smoothing reaches over three frames.
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

-- Settings that make a frame depend on all earlier ones, or that have no fixed frame count: {setting, reason, when}.
local LINKED = {
  { 'fps', 'parts are counted at 25 frames per second', function(v) return v == 'source' end },
  { 'cut_windows', 'the start of a window depends on all windows before it', function(v) return v == true end },
  { 'match_colour', 'colours are smoothed over the whole film', function(v) return v == true end },
  { 'tail', 'the remaining frames belong to no part', function(v) return v == 'keep' end },
  { 'voice', 'parts with several voices are not supported yet', function(v) return v ~= nil end },
  { 'face', 'the person can only be identified from the beginning',
    function(v) return v ~= nil and not ({ largest = true, left = true, right = true, reference = true })[v] end },
}

--- The reason why a film with these settings cannot be split; nil if it can.
--- @param s table
--- @return string?
function M.problem(s)
  for _, row in ipairs(LINKED) do
    if row[3](s[row[1]]) then return ('%s (%s): leave it out'):format(row[1]:gsub('_', '-'), row[2]) end
  end
end

--- Splits a film at window borders into parts of equal length, to within one window.
--- @param s table settings {video (nil: its length is not checked), audio, start, duration, length, silence, frames_per_window ...}
--- @param o table {parts = their number, at most one per window; or seconds = length of each}
--- @return FilmPart[]
function M.cut(s, o)
  local errors, media, voices = require 'cr.errors', require 'cr.media', require 'models.latentsync.voice'
  local problem = M.problem(s)
  if problem then errors.fail('a film cannot be split with ' .. problem) end
  local facts = voices.facts(s.audio, s)
  local limit = s.duration and math.max(1, math.floor(s.duration * 25 + 0.5)) or math.huge
  local total = math.min(voices.frames(facts, s.length or 'sound'), limit)
  local seconds = s.video and media.probe(s.video).duration - (s.start or 0) or 0
  if seconds > 0 and total / 25 > seconds + 0.1 then
    errors.failf('%s: the sound needs %.2f s of video, but there are only %.2f: give a duration', s.video, total / 25, seconds)
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
