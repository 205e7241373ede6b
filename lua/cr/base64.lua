--- Base64 (RFC 4648) by libcrypto: encodes bytes as text and decodes them.

local ffi = require 'ffi'
local base = require 'cr.ffi'

local M = {}

ffi.cdef [[
int EVP_EncodeBlock(unsigned char *out, const unsigned char *x, int n);
int EVP_DecodeBlock(unsigned char *out, const unsigned char *x, int n);
]]

local crypto
local function library()
  crypto = crypto or base.system_library 'libcrypto.so.3' or
      base.fail 'base64: libcrypto.so.3 is missing: apt-get install libssl3'
  return crypto
end

--- Encodes bytes as base64 on one line.
--- @param data string
--- @return string
function M.encode(data)
  local out = ffi.new('unsigned char[?]', 4 * math.ceil(#data / 3) + 1)
  local n = library().EVP_EncodeBlock(out, data, #data)
  return ffi.string(out, n)
end

--- Decodes base64 that stands on one line.
--- @param text string
--- @return string? nil if the text is no base64
function M.decode(text)
  local padding = #text:match '=*$'
  if #text % 4 ~= 0 or padding > 2 or text:sub(1, #text - padding):find '[^%w+/]' then return nil end
  local out = ffi.new('unsigned char[?]', #text / 4 * 3 + 1)
  local n = library().EVP_DecodeBlock(out, text, #text)
  return n >= 0 and ffi.string(out, n - padding) or nil
end

return M
