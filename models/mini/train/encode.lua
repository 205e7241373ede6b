--- Writes raw RGB frames from standard input as a video with a voice:
---
---     program | crescent encode.lua OUT.mp4 WIDTH HEIGHT FPS SOUND [CRF]
--
-- A frame has WIDTH x HEIGHT x 3 bytes. The sound is truncated, or padded with silence, to the length of the video.

local ffi = require 'ffi'
local cr = require 'cr'
local cli = require 'cr.tools.cli'
local media = require 'cr.media'

local out, width, height, fps, sound = arg[1], tonumber(arg[2]), tonumber(arg[3]), tonumber(arg[4]), arg[5]
if not (out and width and height and fps and sound) then
  cli.fail 'usage: crescent encode.lua OUT.mp4 WIDTH HEIGHT FPS SOUND [CRF], frames as raw RGB on standard input'
end

local function run()
  local sink = media.writer(out, { width = width, height = height, fps = fps, audio = sound, crf = tonumber(arg[6]) or 14 })
  local size, count = width * height * 3, 0
  local ok, reason = pcall(function()
    while true do
      local bytes = io.read(size)
      if not bytes then break end
      if #bytes ~= size then
        error(('standard input ends within frame %d: %d of %d bytes'):format(count + 1, #bytes, size), 0)
      end
      -- A separate storage, because writing continues after sink:write, when the string may be gone.
      local frame = cr.empty({ height, width, 3 }, { dtype = 'u8' })
      ffi.copy(frame:pointer(), bytes, size)
      sink:write { frame }
      frame:free()
      count = count + 1
    end
    sink:close()
  end)
  if not ok then
    sink:abort()
    cli.fail(out .. ': ' .. tostring(reason))
  end
end

run()
