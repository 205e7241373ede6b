--- Computes digests of strings and of parts of files, as hexadecimal digits: digest.of_text('SHA256', 'abc').

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

--- @param algorithm 'SHA256'|'MD5'|'CRC32'
--- @param text string
--- @return string
function M.of_text(algorithm, text)
  return with(algorithm, function(handle) check(C.cr_digest_add(handle, text, #text)) end)
end

--- @param algorithm 'SHA256'|'MD5'|'CRC32'
--- @param path string
--- @param offset integer? bytes to skip at the beginning (0)
--- @param bytes integer? how many bytes (to the end of the file)
--- @param await function? cr.await: another thread then reads the file while other tasks run
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

--- Converts hexadecimal digits to bytes.
--- @param hex string
--- @return string
function M.bytes(hex) return (hex:gsub('%x%x', function(pair) return string.char(tonumber(pair, 16)) end)) end

--- Converts a digest from base64 to hexadecimal digits.
--- @param text string
--- @return string? nil if the text is no base64
function M.from_base64(text)
  local bytes = base64.decode(text)
  return bytes and (bytes:gsub('.', function(c) return ('%02x'):format(c:byte()) end))
end

return M
