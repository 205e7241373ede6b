--- Text from clients and sizes: whether it is UTF-8, and how messages show them.

local M = {}

--- Returns whether a text is UTF-8 without NULs. Other text could not be shown, stored or sent back as JSON.
--- @param text string
--- @return boolean
function M.is_text(text)
  if text:find '%z' then return false end
  if not text:find '[\128-\255]' then return true end
  local at = 1
  while at <= #text do
    local a, b = text:byte(at, at + 1)
    local more = a < 0x80 and 0 or a >= 0xC2 and a < 0xE0 and 1 or a >= 0xE0 and a < 0xF0 and 2 or
      a >= 0xF0 and a < 0xF5 and 3
    if not more then return false end
    if more > 0 and not text:find('^' .. ('[\128-\191]'):rep(more), at + 1) then return false end
    if a == 0xE0 and b < 0xA0 or a == 0xED and b > 0x9F or a == 0xF0 and b < 0x90 or a == 0xF4 and b > 0x8F then return false end
    at = at + 1 + more
  end
  return true
end

--- Returns a text if it is UTF-8, otherwise a copy with question marks for all bytes that are not ASCII.
--- @param text string
--- @return string
function M.utf8(text) return M.is_text(text) and text or (text:gsub('[%z\128-\255]', '?')) end

--- Cuts a text to a number of bytes without splitting a character.
--- @param text string
--- @param bytes integer
--- @return string
function M.cut(text, bytes)
  if #text <= bytes then return text end
  while bytes > 0 and text:byte(bytes + 1) >= 128 and text:byte(bytes + 1) < 192 do bytes = bytes - 1 end
  return text:sub(1, bytes)
end

--- Formats a number of bytes for a message: '2.05 GB'.
--- @param bytes number
--- @return string
function M.size(bytes)
  if bytes < 1e6 then return ('%d bytes'):format(bytes) end
  return bytes >= 1e9 and ('%.3g GB'):format(bytes / 1e9) or ('%.3g MB'):format(bytes / 1e6)
end

--- Formats a value from a client for a message: short, in UTF-8, on one line.
--- @param value any
--- @return string
function M.shown(value) return M.cut((M.utf8(tostring(value)):gsub('[%c\127]', '?')), 60) end

return M
