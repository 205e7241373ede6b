--- Environment variables of this process, as C's getenv sees them; kernels read some to choose an implementation.

local ffi = require 'ffi'

ffi.cdef 'int setenv(const char *name, const char *value, int overwrite); int unsetenv(const char *name);'

local M = {}

--- Sets a variable; nil removes it.
--- @param name string
--- @param value string|number|nil
function M.set(name, value)
  if value == nil then ffi.C.unsetenv(name) else ffi.C.setenv(name, tostring(value), 1) end
end

--- Calls fn with a variable set, and restores it afterwards; errors of fn are passed on.
function M.with(name, value, fn)
  local before = os.getenv(name)
  M.set(name, value)
  local ok, err = pcall(fn)
  M.set(name, before)
  if not ok then error(err, 0) end
end

return M
