--- Names that a server creates: ids, timestamps, and displayed file names.

local text = require 'cr.serve.text'
local uv = require 'cr.loop'.uv

local M = {}

--- The JSON Schema of an id.
M.id_schema = { type = 'string', pattern = '^[a-z0-9]{20}$', match = '^' .. ('[a-z0-9]'):rep(20) .. '$' }

local LETTERS = 'abcdefghijklmnopqrstuvwxyz234567'
local random = assert(io.open('/dev/urandom', 'rb'))
random:setvbuf 'no'

--- A new id with 100 random bits, which cannot be guessed.
--- @return string
function M.id()
  return (random:read(20):gsub('.', function(c)
    local k = c:byte() % 32 + 1
    return LETTERS:sub(k, k)
  end))
end

--- The current time in RFC 3339 format.
--- @param ago number? seconds before now
--- @return string
function M.now(ago)
  local seconds, micro = uv.gettimeofday()
  seconds = seconds - math.floor(ago or 0)
  return ('%s.%03dZ'):format(os.date('!%Y-%m-%dT%H:%M:%S', seconds), math.floor(micro / 1000))
end

--- A file's name for display: the last part of its path, without unprintable characters.
--- @param given string?
--- @param otherwise string
--- @return string
function M.shown(given, otherwise)
  local name = (given or ''):match '[^/\\]*$':gsub('[%c\127]', '')
  if name == '' or name == '.' or name == '..' or not text.is_text(name) then return otherwise end
  return text.cut(name, 200)
end

return M
