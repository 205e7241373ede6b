--- Audio tokens from a mel spectrogram instead of a sound. The reference's values are for the voice of a real person,
--- whose sound is not in the repository; only its spectrogram is in tests/golden.
--
-- As a program, `crescent tests/support/given_mel.lua KEY lipsync ARGUMENTS` runs a command with the spectrogram KEY
-- of tests/golden/pipeline.safetensors instead of that of the given sound.

local cr = require 'cr'
local audio = require 'models.latentsync.audio'

local M = {}

local HOP = 160

--- A replacement of audio.mel_stream.
local function stream_of(mel)
  return function()
    local frames = mel:size(2)
    local stream = { count = 0, samples = frames * HOP, tables = {} }
    function stream.read(_, n)
      n = math.min(n, frames - stream.count)
      if n <= 0 then return nil end
      stream.count = stream.count + n
      -- Undoes the clamping and scaling over the whole clip.
      return mel:narrow(2, stream.count - n + 1, n):t():to 'f64' * 4 - 4
    end
    return stream
  end
end

--- Tokens of a whole spectrogram, in the form that audio.tokens returns for a sound.
--- @param mel Tensor f32 [80 frames], as Whisper takes it
function M.tokens(model, mel)
  local own = audio.mel_stream
  audio.mel_stream = stream_of(mel)
  local tokens = audio.tokens(model, cr.zeros(2 * HOP))
  tokens:window(1, 1) -- one segment: everything is read now
  audio.mel_stream = own
  return tokens
end

if arg and arg[0] and arg[0]:find 'given_mel%.lua$' then
  local key, command = table.remove(arg, 1), table.remove(arg, 1)
  audio.mel_stream = stream_of(cr.load(cr.root .. '/tests/golden/pipeline.safetensors')[key])
  dofile(('%s/scripts/%s.lua'):format(cr.root, command))
end

return M
