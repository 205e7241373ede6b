--- The output of a live session: a file or URL that FFmpeg writes, or fragmented MP4 that a function receives.

local media = require 'cr.media'
local sinks = require 'models.latentsync.sink'
local utterances = require 'models.latentsync.live.utterance'

local M = {}

--- @class LiveOutput
local Output = {}
Output.__index = Output

--- @param s table settings {out, container, codec, crf, channels, label}; out '-': standard output
--- @param idle Idle whose size the frames have
--- @param bytes (fun(bytes: string))? receives MP4 in pieces, instead of `out`
--- @return LiveOutput
function M.open(s, idle, bytes)
  local path = bytes and '' or s.out == '-' and 'pipe:1' or s.out
  return setmetatable({ bytes = bytes, writer = media.writer(path, {
    live = true, container = s.container or bytes and 'mp4' or nil, width = idle.width, height = idle.height, fps = utterances.fps,
    codec = s.codec, crf = s.crf, sound_rate = utterances.rate, sound_channels = s.channels, comment = s.label and sinks.LABEL or nil,
  }) }, Output)
end

--- Writes a frame and its sound; returns when that is done.
--- @param frame Tensor u8 [H W 3]
--- @param sound Tensor f32 [1920 channels]
--- @return number delay of the sound in seconds: samples that the encoder still holds
function Output:write(frame, sound)
  local writer = self.writer
  writer:sound(sound)
  writer:write(frame)
  writer:settle()
  if self.bytes then self.bytes(writer:take()) end
  return writer:sound_lag()
end

--- Ends the video.
function Output:close()
  local rest = self.writer:close()
  if self.bytes and rest ~= '' then self.bytes(rest) end
end

--- Ends at once and removes the output; does nothing after close().
function Output:abort() self.writer:abort() end

return M
