--- Joins the parts of a film: video packets are copied, and the sound is encoded once for the whole length, by the
--- same code that writes it for a whole job.

local cr = require 'cr'
local errors = require 'cr.errors'
local media = require 'cr.media'
local sinks = require 'models.latentsync.sink'

local M = {}

local SIDE = 16 -- side in pixels of the dummy images beside which the sound is encoded; they are discarded

-- Writes a file with the sound of a film of this length: {frames}, or, for frames with times of their own, {last = the time of the
-- last one in seconds, rate = their rate}.
local function write_sound(path, s, length)
  local sink = sinks.sound(path, s, length.rate)
  local ok, problem = pcall(function()
    local black = cr.zeros({ SIDE, SIDE, 3 }, { dtype = 'u8' })
    for i = 1, length.frames or math.ceil(25 * length.last) do sink:write({ black }, length.rate and (i - 1) / 25) end
    if length.rate then sink:write({ black }, length.last) end
    black:free()
    sink:close()
  end)
  if not ok then
    sink:abort()
    error(problem, 0)
  end
end

-- The length of a film that only its parts know.
local function length_of(path, parts, timed)
  local frames, last = media.join(path, parts, nil, timed)
  return timed and { last = last, rate = media.probe(path).fps } or { frames = frames }
end

--- Joins parts. Must be called in a task.
--- @param out string its extension must be that of the parts
--- @param paths string[] the parts' files, in order
--- @param frames integer the expected total; with fps = 'source' or tail = 'keep' the total is what the parts have
--- @param s table settings {audio or voice, start, duration, lossless, fps, tail}
function M.run(out, paths, frames, s)
  local folder, name = out:match '^(.*/)([^/]*)$'
  local function beside(what) return ('%s.%s.%s'):format(folder or '', what, name or out) end
  local sound, joined, timed = beside 'sound', beside 'joined', s.fps == 'source' or nil
  local open = timed or s.tail == 'keep'
  local ok, problem = pcall(function()
    write_sound(sound, s, open and length_of(joined, paths, timed) or { frames = frames })
    local n = media.join(joined, paths, sound, timed)
    if not open and n ~= frames then errors.failf('%s: the parts have %d frames in all, not %d', out, n, frames) end
    local renamed, why = os.rename(joined, out)
    if not renamed then errors.fail(why) end
  end)
  os.remove(sound)
  os.remove(joined)
  if not ok then error(problem, 0) end
end

return M
