--- Video, sound and pictures: what FFmpeg's libraries read and write.
--
-- Decoding and encoding run on other threads; the functions that wait (read, seek, write, close)
-- let other tasks run meanwhile. Frames are numbered from 0, as times begin at 0. Nothing here holds
-- a whole file: a reader holds one read's frames, a writer the frames of two writes.

local ffi = require 'ffi'
local tensor = require 'cr.tensor'
local library = require 'cr.media.library'

local lib, check, want_path = library.lib, library.check, library.want_path
local video, audio = require 'cr.media.video', require 'cr.media.audio'
local media = {
  probe = require 'cr.media.probe'.probe,
  reader = video.reader, frames = video.frames,
  audio = audio.audio, load_audio = audio.load_audio,
  writer = require 'cr.media.writer'.writer,
}

--- The versions of FFmpeg's libraries, such as 'libavcodec 59.37.100, libavformat 59.27.100'.
---@return string
function media.version() return ffi.string(lib.cr_media_version()) end

--- Reads a picture file (PNG, JPEG, ...).
---@param path string
---@return Tensor u8 [H W 3]
function media.read_picture(path)
  local t = tensor.new()
  check(lib.cr_picture_read(t.c, want_path('read_picture', path)))
  return t
end

--- Writes a PNG.
---@param path string
---@param picture Tensor u8 [H W 3] or [H W 1]
function media.write_picture(path, picture)
  check(lib.cr_picture_write(tensor.want_tensor('write_picture', picture).c, want_path('write_picture', path)))
end

return media
