--- crescent_http.so: reading requests, messages of WebSockets, TLS.

local ffi = require 'ffi'
local base = require 'cr.ffi'

local lib = base.part('http', 'install llhttp, wslay and OpenSSL with `make deps`, then run `make`')
local M = { lib = lib, check = base.check }

--- Raises where it is missing.
function M.load() return lib.cr_http_new end

--- The sentence of the call that failed last.
--- @return string
function M.message() return ffi.string(base.C.cr_last_error()) end

--- What one of its functions makes.
--- @param kind string of the handle, such as 'cr_http': <kind>_new is called, and <kind>_free when nobody has it any more
--- @param ... any the further arguments of the function
function M.new(kind, ...)
  local out = ffi.new(kind .. ' *[1]')
  base.check(lib[kind .. '_new'](out, ...))
  return ffi.gc(out[0], lib[kind .. '_free'])
end

--- Frees it now.
function M.free(kind, handle) lib[kind .. '_free'](ffi.gc(handle, nil)) end

local bytes = ffi.new 'const char *[1]'

--- The bytes that a handle has to send, which are taken.
--- @param fn function cr_ws_output or cr_tls_output
--- @return string
function M.output(fn, handle)
  local n = base.check(fn(handle, bytes))
  return ffi.string(bytes[0], n)
end

return M
