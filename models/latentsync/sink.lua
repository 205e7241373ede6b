--- The file that a job writes: the video's own form, the voice beside it, and the mark that AI made it.

local media = require 'cr.media'

local M = {}

local LABEL = 'The lips in this video were made by AI (Crescent).'

--- Frames a second of the result; of a video with uneven times about so many.
--- @param s table settings {fps, video_info}
function M.rate(s) return s.fps == 'source' and s.video_info.fps > 0 and s.video_info.fps or 25 end

--- @param path string its ending picks the container
--- @param s table settings {video, video_info, fps, audio, start, duration, codec, crf, lossless, pix_fmt, label}; frames may
---   have all the bits of the video
--- @return table a writer of cr.media
function M.open(path, s)
  local start = s.start or 0
  return media.writer(path, {
    like = s.video, fps = M.rate(s), timed = s.fps == 'source',
    audio = s.audio, audio_start = start, audio_end = s.duration and start + s.duration or nil,
    codec = s.codec, crf = s.crf, lossless = s.lossless, pix_fmt = s.pix_fmt, deep = true, comment = s.label and LABEL or nil,
  })
end

return M
