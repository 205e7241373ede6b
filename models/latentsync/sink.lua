--- The file that a job writes: the video's own form, the voice beside it, and the mark that AI made it.

local media = require 'cr.media'
local settings = require 'models.latentsync.settings'

local M = {}

M.LABEL = 'The lips in this video were made by AI (Crescent).'

--- Frames a second of the result; of a video with uneven times about so many.
--- @param s table settings {fps, video_info}
function M.rate(s) return s.fps == 'source' and s.video_info.fps > 0 and s.video_info.fps or 25 end

local HEADROOM = 10 ^ (-1 / 20) -- of full scale: lossy encoders go a little beyond what they are given

-- The files of the sound, and their gain. Voices are added up as they are; where their sum would be cut off, all of it
-- becomes as much quieter as it takes, alike from beginning to end, so that nothing is heard of it.
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

--- A file with the sound of a job beside small pictures, 25 a second, which make it as long as the job's result.
--- @param path string
--- @param s table settings {audio, start, duration, lossless}
--- @return table a writer of cr.media
function M.sound(path, s)
  local start = s.start or 0
  local stop = s.duration and start + s.duration or nil
  local sound, gain = sound_of(s, start, stop)
  return media.writer(path, { fps = 25, audio = sound, audio_gain = gain, audio_start = start, audio_end = stop, lossless = s.lossless })
end

--- @param path string its ending picks the container
--- @param s table settings {video, video_info, fps, audio, voice, sound, start, duration, codec, crf, lossless, pix_fmt, label};
---   frames may have all the bits of the video
--- @return table a writer of cr.media
function M.open(path, s)
  local start = s.start or 0
  local stop = s.duration and start + s.duration or nil
  local sound, gain
  if not s.part then sound, gain = sound_of(s, start, stop) end -- of parts it is joined with all of them
  return media.writer(path, {
    like = s.video, fps = M.rate(s), timed = s.fps == 'source',
    audio = sound, audio_gain = gain, audio_start = start, audio_end = stop,
    codec = s.codec, crf = s.crf, lossless = s.lossless, pix_fmt = s.pix_fmt, deep = true, comment = s.label and M.LABEL or nil,
  })
end

return M
