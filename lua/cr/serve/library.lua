--- crescent_http.so: parses requests and WebSocket messages, and does TLS.

local ffi = require 'ffi'
local base = require 'cr.ffi'

local lib = base.part('http', 'install llhttp, wslay and OpenSSL with `make deps`, then run `make`')
local M = { lib = lib, check = base.check }

--- Fails if the library is missing.
function M.load() return lib.cr_http_new end

--- Returns the message of the last failed call.
--- @return string
function M.message() return ffi.string(base.C.cr_last_error()) end

--- Makes an object of the library.
--- @param kind string of the handle, such as 'cr_http': <kind>_new makes it, and <kind>_free frees it when it is garbage
--- @param ... any the further arguments of the function
function M.new(kind, ...)
  local out = ffi.new(kind .. ' *[1]')
  base.check(lib[kind .. '_new'](out, ...))
  return ffi.gc(out[0], lib[kind .. '_free'])
end

--- Frees a handle now.
function M.free(kind, handle) lib[kind .. '_free'](ffi.gc(handle, nil)) end

local bytes = ffi.new 'const char *[1]'

--- Takes the bytes that a handle has to send.
--- @param fn function cr_ws_output or cr_tls_output
--- @return string
function M.output(fn, handle)
  local n = base.check(fn(handle, bytes))
  return ffi.string(bytes[0], n)
end

return M
