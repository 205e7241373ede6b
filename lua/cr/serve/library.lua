--- crescent_http.so: reading requests, frames of WebSockets, TLS.

local ffi = require 'ffi'
local base = require 'cr.ffi'

local lib = base.part('http', 'install llhttp, wslay and OpenSSL with `make deps`, then run `make`')

return {
  lib = lib,
  check = base.check,
  --- Raises where it is missing.
  load = function() return lib.cr_http_new end,
  --- The sentence of the call that failed last.
  message = function() return ffi.string(base.C.cr_last_error()) end,
}
