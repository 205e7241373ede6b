--- Video, sound and pictures, read and written by FFmpeg's libraries.
--
-- Decoding and encoding run on other threads; functions that wait (read, seek, write, close) let other tasks run
-- meanwhile. Frames are numbered from 0, because times start at 0. No whole file is kept in memory: a reader holds
-- the frames of one read, a writer those of two writes.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'
local library = require 'cr.media.library'

local lib, check, want_path = library.lib, library.check, library.want_path
local deep = require 'cr.media.deep'
local video, audio, mix = require 'cr.media.video', require 'cr.media.audio', require 'cr.media.mix'
local media = {
  probe = require 'cr.media.probe'.probe,
  reader = video.reader, frames = video.frames,
  audio = audio.audio, load_audio = audio.load_audio, live_audio = audio.live_audio, pcm = require 'cr.media.pcm'.pcm,
  loudest = mix.loudest,
  writer = require 'cr.media.writer'.writer,
  eight_bits = deep.eight_bits, floats = deep.floats,
}

--- Returns the versions of FFmpeg's libraries, such as 'libavcodec 59.37.100, libavformat 59.27.100'.
--- @return string
function media.version() return ffi.string(lib.cr_media_version()) end

--- Concatenates the video streams of the parts of a film without encoding them again, and adds the sound of another
--- file.
--- @param path string its ending chooses the container
--- @param parts string[] files written with the same settings, at 25 frames per second or with explicit times
--- @param sound string? a file with sound
--- @param timed boolean? frames have explicit times, which continue from part to part
--- @return integer frames
--- @return number time of the last frame, in seconds
function media.join(path, parts, sound, timed)
  local list = ffi.new('const char *[?]', #parts)
  for i, part in ipairs(parts) do list[i - 1] = part end
  local last = ffi.new 'double[1]'
  local frames = check(lib.cr_media_join(want_path('join', path), #parts, list, sound, timed and 1 or 0, last))
  return tonumber(frames), last[0]
end

--- Reads a picture file (PNG, JPEG, ...).
--- @param path string
--- @param options table? {whole = keep all channels (1 grey, 2 grey and alpha, 3 RGB, 4 RGB and straight alpha) and
---   all bits: f32 in [0, 1] if values have more than 8 bits}
--- @return Tensor u8 [H W 3]; with `whole` u8 or f32 [H W C]
function media.read_picture(path, options)
  local t = tensor.new()
  if not (options and options.whole) then
    check(lib.cr_picture_read(t.c, want_path('read_picture', path)))
    return t
  end
  local format = ffi.new 'cr_yuv'
  local planes = check(lib.cr_picture_read_whole(t.c, want_path('read_picture', path), format)) == 1
  if t.dtype == 'u8' then return t end
  local floats = tensor.scope(function() return planes and deep.picture(t, format):rgb() or deep.float(t) / 65535 end)
  t:free()
  return floats
end

-- Endings of other formats, which are refused for a PNG.
local OTHERS = { jpg = true, jpeg = true, webp = true, gif = true, bmp = true, tif = true, tiff = true, avif = true, exr = true }

--- Writes a PNG, with 8 bits per value from u8 and 16 from f32 or i16.
--- @param path string
--- @param picture Tensor u8, f32 in [0, 1], or i16 with the bits of numbers up to 65535, [H W C] with C 1 grey, 2 grey
--- and alpha, 3 RGB, 4 RGB and alpha
function media.write_picture(path, picture)
  local ending = want_path('write_picture', path):lower():match '%.(%w+)$'
  if OTHERS[ending] then base.fail(('write_picture: %s: pictures are written as PNG: use the ending .png'):format(path)) end
  if picture.dtype ~= 'f32' then return check(lib.cr_picture_write(picture.c, path)) end
  local least, most = tensor.scope(function() return picture:min():item(), picture:max():item() end)
  if not (least >= 0 and most <= 1) then
    base.fail(('write_picture: u8 [H W 3], or f32 in [0, 1], is needed, not f32 from %g to %g'):format(least, most))
  end
  local whole = tensor.scope(function() return deep.whole(picture * 65535) end)
  local rc = lib.cr_picture_write(whole.c, path)
  whole:free()
  check(rc)
end

--- Fails, with the same sentence as write_picture, if a picture of this size cannot be written.
--- @param path string
--- @param height integer
--- @param width integer
function media.check_picture(path, height, width) check(lib.cr_picture_check(want_path('check_picture', path), height, width)) end

local maybe, any = arguments.maybe, arguments.any
local string, boolean = maybe(arguments.string), maybe(arguments.boolean)
local number, integer = maybe(arguments.finite), maybe(arguments.integer)
local quality = maybe(arguments.kind('a whole number from 0 to 63', function(v)
  return type(v) == 'number' and v % 1 == 0 and v >= 0 and v <= 63
end))
local files = arguments.list('a list of files', arguments.string, 1)
-- Paths are checked where they are used.
return arguments.guard('', media, {
  version = {}, read_picture = { any, maybe(arguments.options { whole = boolean }) },
  check_picture = { any, arguments.integer, arguments.integer }, eight_bits = { deep.kind }, floats = { deep.kind },
  write_picture = { any, tensor.kinds.alive }, probe = { any },
  join = { any, files, string, boolean },
  reader = { any, maybe(arguments.options {
    fps = number, device = string, planes = boolean, wait = boolean, deep = boolean,
  }) },
  frames = { any, maybe(arguments.options {
    fps = number, first = integer, batch = integer, device = string, planes = boolean, wait = boolean, deep = boolean,
  }) },
  audio = { any, maybe(arguments.options { rate = integer, channels = integer, s16 = boolean }) },
  load_audio = { any, maybe(arguments.options { rate = integer, channels = integer, s16 = boolean, seconds = number }) },
  live_audio = { any, maybe(arguments.options { rate = integer, channels = integer, format = string }) },
  pcm = { arguments.options { rate = arguments.positive, channels = maybe(arguments.positive) } },
  loudest = { files, maybe(arguments.options { start = number, stop = number }) },
  writer = { any, maybe(arguments.options {
    like = string, width = integer, height = integer, fps = number, codec = string, crf = quality, lossless = boolean,
    pix_fmt = string, audio = maybe(arguments.either('a file or a list of them', arguments.string, files)), audio_gain = number,
    audio_start = number, audio_end = number, comment = string, deep = boolean, timed = boolean,
    live = boolean, container = string, sound_rate = integer, sound_channels = integer,
  }) },
})
