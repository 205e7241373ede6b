--- A part of a film: the setting `part`, which `crescent split` writes. A job with it generates those windows of the whole job that
--- begin within some frames, exactly as the whole job would. The setting holds the figures that need the whole sound.
--
-- Its text is FIRST:FRAMES:LOOK, followed for each voice by :SAMPLES:MELS:TOP: the first frame (from 0, at 25 a second), the number of
-- frames, `all` or `near`; the length of the sound in samples at 16 kHz and in mel frames, and the largest log10 mel power.
--
-- A window depends on those before it: on the people who were selected, on their last positions, on the number of random draws.
-- Therefore all frames before the part are analysed, but not generated (`all`). With `near` only LEAD of them are, which is faster,
-- and gives the same result if the film shows one person, with a face in each window.

local M = {}

--- Frames that are analysed before a part that is `near`. A frame's weight in the running average of the alignment is then below
--- double precision (0.2^32), and smoothing reaches over three frames.
M.LEAD = 32

--- @class FilmPart
--- @field first integer frame of the result, from 0
--- @field frames integer
--- @field near boolean
--- @field sounds SoundFacts[] of each voice {samples, frames, top}: models/latentsync/audio.lua

--- The type of the setting.
M.kind = {
  metavar = 'PART', wanted = 'as crescent split writes it, FIRST:FRAMES:LOOK:SAMPLES:MELS:TOP', code = 1,
  read = function(text)
    local first, frames, look, rest = text:match '^(%d+):(%d+):(%l+)(:.*)$'
    if not first or tonumber(frames) < 1 or look ~= 'all' and look ~= 'near' then return nil end
    local part = { first = tonumber(first), frames = tonumber(frames), near = look == 'near', sounds = {} }
    local left = rest:gsub(':(%d+):(%d+):(%-?[%d.]+[e%d+-]*)', function(samples, mels, top)
      part.sounds[#part.sounds + 1] = { samples = tonumber(samples), frames = tonumber(mels), top = tonumber(top) }
      return tonumber(top) and '' or nil
    end)
    return left == '' and part or nil
  end,
  holds = function(value)
    return type(value) == 'table' and type(value.first) == 'number' and type(value.frames) == 'number' and type(value.sounds) == 'table'
  end,
  write = function(p)
    local words = { ('%.0f:%.0f:%s'):format(p.first, p.frames, p.near and 'near' or 'all') }
    for i, sound in ipairs(p.sounds) do words[i + 1] = ('%.0f:%.0f:%.17g'):format(sound.samples, sound.frames, sound.top) end
    return table.concat(words, ':')
  end,
}

-- Settings that make a frame depend on generated frames before it: {setting, reason, when}.
local MADE = {
  { 'match_colour', 'colours are smoothed over all generated frames before', function(v) return v == true end },
}

-- Settings that make a frame depend on all frames before it, which `near` does not analyse.
local SEEN = {
  { 'fps', 'the first of its frames depends on all before', function(v) return v == 'source' end },
  { 'cut_windows', 'the start of a window depends on all windows before it', function(v) return v == true end },
  { 'voice', 'the people can only be identified from the beginning', function(v) return v ~= nil end },
  { 'face', 'the person can only be identified from the beginning',
    function(v) return v ~= nil and not ({ largest = true, left = true, right = true, reference = true })[v] end },
}

--- The reason why a film with these settings cannot be split; nil if it can.
--- @param s table
--- @param near boolean? only frames near a part are analysed
--- @return string?
function M.problem(s, near)
  for _, row in ipairs(MADE) do
    if row[3](s[row[1]]) then return ('%s (%s): leave it out'):format(row[1]:gsub('_', '-'), row[2]) end
  end
  for _, row in ipairs(near and SEEN or {}) do
    if row[3](s[row[1]]) then return ('%s and --look near (%s): use --look all'):format(row[1]:gsub('_', '-'), row[2]) end
  end
end

--- Splits a film at window borders into parts of equal length, to within one window.
--- @param s table settings {video (nil: its length is not checked), audio or voice, start, duration, length, silence,
---   frames_per_window ...}
--- @param sounds string[] paths of the voices
--- @param o table {parts = their number, at most one per window; or seconds = length of each; look = 'all' or 'near'}
--- @return FilmPart[]
function M.cut(s, sounds, o)
  local errors, media, voices = require 'cr.errors', require 'cr.media', require 'models.latentsync.voice'
  local near = o.look == 'near'
  local problem = M.problem(s, near)
  if problem then errors.fail('a film cannot be split with ' .. problem) end
  local facts, heard = voices.facts(sounds, s), 0
  for _, one in ipairs(facts) do heard = math.max(heard, voices.frames(one, s.length or 'sound')) end
  local limit = s.duration and math.max(1, math.floor(s.duration * 25 + 0.5)) or math.huge
  local total = math.min(heard, limit)
  local seconds = near and s.video and media.probe(s.video).duration - (s.start or 0) or 0
  if seconds > 0 and total / 25 > seconds + 0.1 then
    errors.failf('%s: the sound needs %.2f s of video, but there are only %.2f: give a duration, or use --look all', s.video,
      total / 25, seconds)
  end
  local F = s.frames_per_window or 16
  local windows = math.ceil(total / F)
  local n = math.min(windows, o.parts or math.ceil(total / 25 / o.seconds))
  local list = {}
  for i = 1, n do
    local first, stop = math.floor((i - 1) * windows / n), math.floor(i * windows / n)
    list[i] = { first = first * F, frames = math.min(total, stop * F) - first * F, near = near, sounds = facts }
  end
  return list
end

return M
