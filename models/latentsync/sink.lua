--- Opens the file that a job writes: the video's own format, the voice beside it, and a statement that AI made it.

local media = require 'cr.media'
local settings = require 'models.latentsync.settings'

local M = {}

M.LABEL = 'The lips in this video were made by AI (Crescent).'

--- Frames per second of the result; approximate if the video has irregular times.
--- @param s table settings {fps, video_info}
function M.rate(s) return s.fps == 'source' and s.video_info.fps > 0 and s.video_info.fps or 25 end

local HEADROOM = 10 ^ (-1 / 20) -- of full scale: lossy encoders overshoot a little

-- The sound files and their gain. Voices are added unchanged. If their sum would clip, all of it is attenuated by one
-- constant factor, so that the level does not vary.
local function sound_of(s, start, stop)
  local paths, seen = {}, {}
  for _, voice in ipairs(settings.voices(s)) do
    if not seen[voice.path] then paths[#paths + 1] = voice.path end
    seen[voice.path] = true
  end
  if s.sound then return s.sound, 1 end
  if #paths == 1 then return paths[1], 1 end
  local loudest = media.loudest(paths, { start = start, stop = stop })
  return paths, loudest > HEADROOM and HEADROOM / loudest or 1
end

--- Opens a file for a job's sound beside small images, 25 per second, which set its length.
--- @param path string
--- @param s table settings {audio, start, duration, lossless}
--- @param rate number? pictures have times of their own, about so many a second
--- @return table a writer of cr.media
function M.sound(path, s, rate)
  local start = s.start or 0
  local stop = s.duration and start + s.duration or nil
  local sound, gain = sound_of(s, start, stop)
  return media.writer(path, { fps = rate or 25, timed = rate and true, audio = sound, audio_gain = gain, audio_start = start,
    audio_end = stop, lossless = s.lossless })
end

--- @param path string its extension selects the container
--- @param s table settings {video, video_info, fps, audio, voice, sound, start, duration, codec, crf, lossless, pix_fmt, label};
---   frames may have the full bit depth of the video
--- @return table a writer of cr.media
function M.open(path, s)
  local start = s.start or 0
  local stop = s.duration and start + s.duration or nil
  local sound, gain
  if not s.part then sound, gain = sound_of(s, start, stop) end -- the sound of a part is added when the parts are joined
  return media.writer(path, {
    like = s.video, fps = M.rate(s), timed = s.fps == 'source',
    audio = sound, audio_gain = gain, audio_start = start, audio_end = stop,
    codec = s.codec, crf = s.crf, lossless = s.lossless, pix_fmt = s.pix_fmt, deep = true, comment = s.label and M.LABEL or nil,
  })
end

return M
