--- Digests of texts and of parts of files, as hexadecimal digits: digest.of_text('SHA256', 'abc').

local ffi = require 'ffi'
local base = require 'cr.ffi'

local C, check = base.C, base.check

local M = {}

local AT_ONCE = 4 * 2 ^ 20 -- bytes of a file between two pauses

local function with(algorithm, fill)
  local out = ffi.new 'cr_digest *[1]'
  check(C.cr_digest_open(out, algorithm))
  local handle = ffi.gc(out[0], C.cr_digest_close)
  fill(handle)
  local hex = ffi.new 'char[129]'
  check(C.cr_digest_end(handle, hex))
  C.cr_digest_close(ffi.gc(handle, nil))
  return ffi.string(hex)
end

--- @param algorithm 'SHA256'|'MD5'
--- @param text string
--- @return string
function M.of_text(algorithm, text)
  return with(algorithm, function(handle) check(C.cr_digest_add(handle, text, #text)) end)
end

--- @param algorithm 'SHA256'|'MD5'
--- @param path string
--- @param offset integer? bytes to leave out
--- @param bytes integer? how many; all that follow
--- @param pause function? called between pieces of 4 MiB, so that others get their turn
--- @return string
function M.of_file(algorithm, path, offset, bytes, pause)
  offset, bytes = offset or 0, bytes or 2 ^ 52
  return with(algorithm, function(handle)
    while bytes > 0 do
      local n = tonumber(C.cr_digest_add_file(handle, path, offset, math.min(bytes, AT_ONCE)))
      if n < 0 then base.raise() end
      if n == 0 then return end
      offset, bytes = offset + n, bytes - n
      if pause then pause() end
    end
  end)
end

local LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'

--- A digest that is written in base64, as hexadecimal digits.
--- @param text string
--- @return string
function M.from_base64(text)
  local hex, value, bits = {}, 0, 0
  for letter in text:gmatch '[%w+/]' do
    value, bits = value * 64 + LETTERS:find(letter, 1, true) - 1, bits + 6
    if bits >= 8 then
      bits = bits - 8
      hex[#hex + 1] = ('%02x'):format(math.floor(value / 2 ^ bits))
      value = value % 2 ^ bits
    end
  end
  return table.concat(hex)
end

return M
