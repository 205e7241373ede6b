--- Video, sound and pictures: what FFmpeg's libraries read and write.
--
-- Decoding and encoding run on other threads; the functions that wait (read, seek, write, close)
-- let other tasks run meanwhile. Frames are numbered from 0, as times begin at 0. Nothing here holds
-- a whole file: a reader holds one read's frames, a writer the frames of two writes.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
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
  check(lib.cr_picture_write(picture.c, want_path('write_picture', path)))
end

local maybe, any = arguments.maybe, arguments.any
local string, boolean = maybe(arguments.string), maybe(arguments.boolean)
local number, integer = maybe(arguments.finite), maybe(arguments.integer)
-- (paths are checked where they are used)
return arguments.guard('', media, {
  version = {}, read_picture = { any }, write_picture = { any, tensor.kinds.alive }, probe = { any },
  reader = { any, maybe(arguments.options { fps = number, device = string, planes = boolean, wait = boolean }) },
  frames = { any, maybe(arguments.options {
    fps = number, first = integer, batch = integer, device = string, planes = boolean, wait = boolean,
  }) },
  audio = { any, maybe(arguments.options { rate = integer, channels = integer, s16 = boolean }) },
  load_audio = { any, maybe(arguments.options { rate = integer, channels = integer, s16 = boolean, seconds = number }) },
  writer = { any, maybe(arguments.options {
    like = string, width = integer, height = integer, fps = number, codec = string, crf = number, lossless = boolean,
    pix_fmt = string, audio = string, audio_start = number, audio_end = number, comment = string,
  }) },
})
