--- Digests of texts and of parts of files, as hexadecimal digits: digest.of_text('SHA256', 'abc').

local ffi = require 'ffi'
local base = require 'cr.ffi'
local base64 = require 'cr.base64'

local C, check = base.C, base.check

local M = {}

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
--- @param await function? the loop's: another thread reads, and other tasks go on meanwhile
--- @return string
function M.of_file(algorithm, path, offset, bytes, await)
  offset, bytes = offset or 0, bytes or 2 ^ 52
  return with(algorithm, function(handle)
    if not await then
      if C.cr_digest_add_file(handle, path, offset, bytes) < 0 then base.raise() end
      return
    end
    local job = C.cr_digest_start_file(handle, path, offset, bytes)
    if job < 0 then base.raise() end
    await(job)
  end)
end

--- Hexadecimal digits as the bytes that they stand for.
--- @param hex string
--- @return string
function M.bytes(hex) return (hex:gsub('%x%x', function(pair) return string.char(tonumber(pair, 16)) end)) end

--- A digest that is written in base64, as hexadecimal digits.
--- @param text string
--- @return string? nil: it is no base64
function M.from_base64(text)
  local bytes = base64.decode(text)
  return bytes and (bytes:gsub('.', function(c) return ('%02x'):format(c:byte()) end))
end

return M
