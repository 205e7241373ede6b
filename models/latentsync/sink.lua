--- The file that a job writes: the video's own form, the voice beside it, and the mark that AI made it.

local media = require 'cr.media'

local M = {}

local LABEL = 'The lips in this video were made by AI (Crescent).'

--- @param path string its ending picks the container
--- @param s table settings {video, video_info, fps, audio, start, duration, codec, crf, lossless, pix_fmt, label}; frames may
---   have all the bits of the video
--- @return table a writer of cr.media
function M.open(path, s)
  local start, own_rate = s.start or 0, s.fps == 'source'
  local fps = own_rate and s.video_info.fps > 0 and s.video_info.fps or 25
  return media.writer(path, {
    like = s.video, fps = fps, timed = own_rate, audio = s.audio, audio_start = start, audio_end = s.duration and start + s.duration or nil,
    codec = s.codec, crf = s.crf, lossless = s.lossless, pix_fmt = s.pix_fmt, deep = true, comment = s.label and LABEL or nil,
  })
end

return M
