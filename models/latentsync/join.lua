--- Joins the parts of a film: video packets are copied, and the sound is encoded once for the whole length, by the
--- same code that writes it for a whole job.

local cr = require 'cr'
local errors = require 'cr.errors'
local media = require 'cr.media'
local sinks = require 'models.latentsync.sink'

local M = {}

local SIDE = 16 -- side in pixels of the dummy images beside which the sound is encoded; they are discarded

-- Writes a file with the sound of a film of `frames` frames.
local function write_sound(path, s, frames)
  local sink = sinks.sound(path, s)
  local ok, problem = pcall(function()
    local black = cr.zeros({ SIDE, SIDE, 3 }, { dtype = 'u8' })
    for _ = 1, frames do sink:write { black } end
    black:free()
    sink:close()
  end)
  if not ok then
    sink:abort()
    error(problem, 0)
  end
end

--- Joins parts. Must be called in a task.
--- @param out string its extension must be that of the parts
--- @param paths string[] the parts' files, in order
--- @param frames integer the expected total
--- @param s table settings {audio, start, duration, lossless}
function M.run(out, paths, frames, s)
  local folder, name = out:match '^(.*/)([^/]*)$'
  local function beside(what) return ('%s.%s.%s'):format(folder or '', what, name or out) end
  local sound, joined = beside 'sound', beside 'joined'
  local ok, problem = pcall(function()
    write_sound(sound, s, frames)
    local n = media.join(joined, paths, sound)
    if n ~= frames then errors.failf('%s: the parts have %d frames in all, not %d', out, n, frames) end
    local renamed, why = os.rename(joined, out)
    if not renamed then errors.fail(why) end
  end)
  os.remove(sound)
  os.remove(joined)
  if not ok then error(problem, 0) end
end

return M
