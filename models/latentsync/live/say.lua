--- Text to speech with a program of the system, for demonstrations.

local cr = require 'cr'
local errors = require 'cr.errors'
local files = require 'cr.files'
local loop = require 'cr.loop'

local M = { speakers = { 'espeak-ng', 'flite' } }

local MOST = 1000 -- maximum number of characters
local PIECE = 2 ^ 15 -- bytes passed on at once

-- The arguments with which each program speaks a text into a file.
local ARGUMENTS = {
  ['espeak-ng'] = function(text, path) return { '-w', path, '--', text } end,
  flite = function(text, path) return { '-o', path, '-t', text } end,
}

-- The WAV of a text, and the program's exit status.
local function spoken(program, text)
  local path, over = os.tmpname(), cr.channel(1)
  local handle, problem
  handle, problem = loop.uv.spawn(program, { args = ARGUMENTS[program](text, path) }, function(status)
    handle:close()
    over:put(status)
  end)
  local status = handle and over:get()
  local wav = files.read(path) or ''
  os.remove(path)
  if not handle then errors.failf('say: %s cannot be run (%s): install it', program, tostring(problem)) end
  return wav, status
end

-- The samples of a WAV and their rate. The header's length field may be invalid.
local function samples_of(wav)
  local format = wav:find('fmt ', 1, true)
  local data = wav:find('data', 1, true)
  if not format or not data then return nil end
  local a, b, c = wav:byte(format + 12, format + 14)
  return wav:sub(data + 8), a + 256 * b + 65536 * c
end

--- Speaks a text. Waits for the whole sound, which takes a few hundredths of a second.
--- @param program string 'espeak-ng' or 'flite'
--- @param text any the client's value
--- @param give fun(data: string, rate: integer) receives mono samples of 16 bits
function M.say(program, text, give)
  if type(text) ~= 'string' or not text:find '%S' then errors.fail 'say: text is missing' end
  if #text > MOST then errors.failf('say: the text has %d bytes, more than %d', #text, MOST) end
  local wav, code = spoken(program, (text:gsub('%c', ' ')))
  local data, rate = samples_of(wav)
  if code ~= 0 or not data then errors.failf('say: %s produced no sound (status %s)', program, tostring(code)) end
  data = data:sub(1, #data - #data % 2)
  for at = 1, #data, PIECE do give(data:sub(at, at + PIECE - 1), rate) end
end

return M
