--- luv on the core's loop: timers, sockets, processes and files are luv's.

local ffi = require 'ffi'
local base = require 'cr.ffi'

local C = base.C
local registry = debug.getregistry()

ffi.cdef [[
typedef struct { const char *file; void *base; const char *symbol; void *address; } cr_dl_info;
int dladdr(const void *address, cr_dl_info *info);
int cr_luaopen_loop(void *L);
int32_t cr__loop_handles(void);
]]

local function load_luv()
  local path, tried = package.searchpath('luv', package.cpath)
  if not path then
    base.fail('loop: luv is missing (apt-get install lua-luv):' .. tried:gsub('\n%s*', ' '))
  end
  local info = ffi.new 'cr_dl_info'
  local ours = ffi.C.dladdr(ffi.cast('void *', C.cr_luaopen_loop), info) ~= 0 and ffi.string(info.file)
  local set_loop, problem = package.loadlib(ours or '', 'cr_luaopen_loop')
  if not set_loop then base.fail('loop: ' .. tostring(problem)) end
  problem = set_loop(path)
  if problem then base.fail('loop: luv in ' .. path .. ' cannot be used: ' .. problem) end
  -- Not by require: the program makes require 'luv' come here, so that luv is never without our loop.
  if type(package.loaded.luv) ~= 'table' then
    local open
    open, problem = package.loadlib(path, 'luaopen_luv')
    if not open then base.fail('loop: ' .. tostring(problem)) end
    package.loaded.luv = open 'luv'
  end
  return package.loaded.luv
end

local uv = load_luv()

-- A script may turn the loop by itself; the hook must not raise inside a callback of luv's, which
-- would end the process.
local uv_run = uv.run
function uv.run(...)
  local held = registry.cr_hold
  registry.cr_hold = true
  local result = uv_run(...)
  registry.cr_hold = held
  return result
end

-- It would abort at the core's own handle, which luv did not make.
function uv.walk() base.fail 'uv.walk: not possible on this loop; cr.loop.handles() counts open handles' end

return uv
