--- Returns the seconds of a monotonic clock: `require 'cr.clock'()`.

local ffi = require 'ffi'

ffi.cdef [[
typedef struct { long sec, nsec; } cr_timespec;
int clock_gettime(int clock, cr_timespec *out);
]]
local MONOTONIC = 1
local at = ffi.new 'cr_timespec'

return function()
  ffi.C.clock_gettime(MONOTONIC, at)
  return tonumber(at.sec) + tonumber(at.nsec) * 1e-9
end
