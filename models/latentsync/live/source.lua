--- The input sound of a live session: raw samples on standard input, a file played in real time, or what FFmpeg
--- opens.

local clock = require 'cr.clock'
local cr = require 'cr'
local errors = require 'cr.errors'
local files = require 'cr.files'
local media = require 'cr.media'
local lfs = require 'lfs'
local loop = require 'cr.loop'

local M = {}

local PIECE = 0.02 -- seconds per piece
local BYTES = 2 ^ 14 -- bytes per read of standard input

-- Passes on raw samples as they arrive. An incomplete sample waits for its remaining bytes.
local function raw(s, give)
  local rest, size = '', (s.format == 'f32' and 4 or 2) * s.channels
  local is_file = loop.uv.guess_handle(0) == 'file' -- a file can always be read without blocking
  while true do
    if not is_file then loop.readable(0) end
    local data, problem = loop.uv.fs_read(0, BYTES, -1)
    if not data and not tostring(problem):find '^EAGAIN' then errors.fail('standard input: ' .. tostring(problem)) end
    if data == '' then break end
    data = rest .. (data or '')
    local whole = #data - #data % size
    rest = data:sub(whole + 1)
    if whole > 0 then give(data:sub(1, whole), { rate = s.rate, channels = s.channels, format = s.format }) end
  end
end

-- The next piece of a reader. A connection that breaks, or that the sender ends without a word, is the end of the sound if any has
-- come: note(sentence) is called then.
local function next_piece(reader, n, note)
  local ok, piece = pcall(reader.read, reader, n)
  if ok then return piece end
  local text = tostring(piece)
  if not note or text:sub(1, #reader.path + 1) ~= reader.path .. ':' then error(piece, 0) end
  note(text .. '; the sound ends here')
  return cr.zeros(0, 1)
end

-- Passes on a reader's pieces; a file's pieces are passed on in real time.
local function pieces(reader, give, paced, note)
  local n, began, given = math.max(1, math.floor(reader.rate * PIECE + 0.5)), clock(), 0
  while true do
    local piece = next_piece(reader, n, not paced and given > 0 and note or nil)
    local count = piece:size(1)
    if count > 0 then
      given = given + count / reader.rate
      if paced then cr.sleep(math.max(0, began + given - clock())) end
      give(piece, { rate = reader.rate })
    end
    piece:free()
    if count < n then break end
  end
end

local function is_file(path) return lfs.attributes(path, 'mode') == 'file' end

--- Fails with one sentence if the sound cannot be read.
--- @param s table settings {audio, audio_format}
--- @param dash string
function M.check(s, dash)
  if s.audio == '-' or s.audio_format or s.audio:find '://' then return end
  if is_file(s.audio) then
    files.check_readable(dash .. 'audio', s.audio)
    if not media.probe(s.audio).has_audio then errors.fail(s.audio .. ' has no audio stream') end
  elseif not lfs.attributes(s.audio, 'mode') then
    errors.fail(('%saudio: %s is neither a file nor a URL; a device needs %saudio-format, as in %saudio-format alsa'):format(dash,
      s.audio, dash, dash))
  end
end

--- Reads a sound to its end.
--- @param s table settings {audio, audio_format, rate, channels, format}
--- @param give fun(samples: string|Tensor, from: table) receives a piece, as for media.pcm's push
--- @param note fun(sentence: string) receives why the sound of a URL or a device ended early
function M.read(s, give, note)
  if s.audio == '-' then return raw(s, give) end
  local paced = not s.audio_format and is_file(s.audio)
  local reader = paced and media.audio(s.audio) or media.live_audio(s.audio, { format = s.audio_format })
  local ok, problem = pcall(pieces, reader, give, paced, note)
  reader:close()
  if not ok then error(problem, 0) end
end

return M
