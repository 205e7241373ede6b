--- Reads sound as tensors, in pieces or whole.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local check = require 'cr.ffi'.check
local tensor = require 'cr.tensor'
local library = require 'cr.media.library'

local lib, open_handle = library.lib, library.open_handle
local M = {}

--- @class AudioReader
--- @field path string
--- @field rate integer
--- @field channels integer
local Audio = {}
Audio.__index = Audio

--- Opens the sound of an audio or video file, resampled and mixed as ffmpeg does. Timestamps are respected: a track
--- that begins later than the file starts with silence, and gaps are filled with silence.
--- @param path string
--- @param options table? {rate (the file's), channels (the file's), s16 = false (through 16-bit integers)}
--- @return AudioReader
function M.audio(path, options)
  options = options or {}
  local handle = library.open('cr_audio', lib.cr_audio_close, library.want_path('audio', path), options.rate or 0,
    options.channels or 0, options.s16 and 1 or 0)
  return setmetatable({
    path = path, handle = handle, rate = lib.cr_audio_rate(handle), channels = lib.cr_audio_channels(handle),
  }, Audio)
end

--- Opens live sound: a URL, a pipe, a device. Samples are passed on as FFmpeg delivers them; timestamps are ignored.
--- @param url string a URL that FFmpeg accepts
--- @param options table? {rate = samples per second (the source's), channels (the source's), format = FFmpeg's input
---   format, such as 'alsa' (detected)}
--- @return AudioReader
function M.live_audio(url, options)
  options = options or {}
  local out = ffi.new 'cr_audio *[1]'
  library.check(lib.cr_audio_open_live(out, library.want_path('live_audio', url), options.format or '', options.rate or 0,
    options.channels or 0))
  local handle = ffi.gc(out[0], lib.cr_audio_close)
  return setmetatable({
    path = url, handle = handle, rate = lib.cr_audio_rate(handle), channels = lib.cr_audio_channels(handle),
  }, Audio)
end

--- Reads the next n samples of each channel. It returns fewer only at the end, and none after the end.
--- @param n integer
--- @return Tensor f32 [n], or [n channels] if there are several
function Audio:read(n)
  library.await(lib.cr_audio_read_start(open_handle(self, 'read'), n))
  local t = tensor.new()
  check(lib.cr_audio_take(open_handle(self, 'read'), t.c))
  if self.channels > 1 then return t end
  local flat = t:view(t:size(1))
  t:free()
  return flat
end

--- Closes the file. Calling it twice is allowed.
function Audio:close() library.close(self, lib.cr_audio_close) end

--- Reads a whole sound at once. It is meant for short ones, of at most options.seconds (600).
--- @param path string
--- @param options table? {rate, channels, s16 (see media.audio), seconds = 600 (a longer sound is an error)}
--- @return Tensor f32 [n], or [n channels]
--- @return integer rate
function M.load_audio(path, options)
  local reader = M.audio(path, options)
  local ok, result = pcall(function()
    local most = math.floor((options and options.seconds or 600) * reader.rate)
    local parts, count, step = {}, 0, 2 ^ 18
    while true do
      local part = reader:read(step)
      local n = part:size(1)
      count = count + n
      if count > most then
        error(('%s: the sound is longer than %g s: read it in pieces with media.audio'):format(path, most / reader.rate), 0)
      end
      if n > 0 or #parts == 0 then parts[#parts + 1] = part end
      if n < step then break end
    end
    if #parts == 1 then return parts[1] end
    local all = tensor.cat(parts, 1)
    for _, part in ipairs(parts) do part:free() end
    return all
  end)
  local rate = reader.rate
  reader:close()
  if not ok then error(result, 0) end
  return result, rate
end

arguments.methods(Audio, 'reader', { read = { arguments.positive }, close = {} })

return M
