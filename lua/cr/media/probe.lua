--- Reports the contents of a media file.

local ffi = require 'ffi'
local library = require 'cr.media.library'

local M = {}

--- The properties that a writer copies from the video given as `like`.
M.tags = { 'color_space', 'color_range', 'color_primaries', 'color_transfer', 'aspect_num', 'aspect_den' }

--- Reads the headers of a video or audio file, and its first picture.
--- @param path string
--- @return table {has_video, has_audio, width, height (as shown), rotation, fps, duration, frames (at 25 a
---second, estimated), sample_rate, channels, audio_duration, video_codec, audio_codec, format, color_*, aspect_*,
---bits (per value), hdr (cr_hdr), pix_fmt (libav's name), alpha (whether pixels may be transparent)}
function M.probe(path)
  local c = ffi.new 'cr_media_info'
  library.check(library.lib.cr_media_probe(library.want_path('probe', path), c))
  local info = {
    has_video = c.has_video ~= 0, has_audio = c.has_audio ~= 0, width = c.width, height = c.height,
    rotation = c.rotation, fps = c.fps, duration = c.duration, frames = tonumber(c.frames),
    sample_rate = c.sample_rate, channels = c.channels, audio_duration = c.audio_duration,
    video_codec = ffi.string(c.video_codec), audio_codec = ffi.string(c.audio_codec),
    format = ffi.string(c.format), bits = c.bits, hdr = ffi.new('cr_hdr', c.hdr),
    pix_fmt = ffi.string(c.pix_fmt), alpha = c.alpha ~= 0,
  }
  for _, name in ipairs(M.tags) do info[name] = c[name] end
  return info
end

return M
