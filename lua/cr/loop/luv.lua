--- Opens luv on the core's loop. luv provides timers, sockets, processes and files.

local ffi = require 'ffi'
local base = require 'cr.ffi'

local C = base.C
local registry = debug.getregistry()

ffi.cdef [[
int cr_luaopen_loop(void *L);
int32_t cr__loop_handles(void);
int32_t cr__luv_failure(char *out, int32_t bytes);
]]

-- ---- errors in callbacks ------------------------------------------------------------------------

local failures = {} -- errors of callbacks, {err =, trace =}, in order

local uv

local function noted(err)
  local text = type(err) == 'string' and err or nil
  return { err = err, trace = debug.traceback(text, 2) }
end

local function returned(ok, ...)
  if ok then return ... end
  local failure = ...
  -- After a stack overflow the error handler cannot run, and the error arrives as it is.
  failures[#failures + 1] = type(failure) == 'table' and failure or { err = failure }
  uv.stop()
end

-- core/base/luv.c calls this for every callback, with the callback and its arguments.
function registry.cr_callback(fn, ...) return returned(xpcall(fn, noted, ...)) end

local text = ffi.new 'char[2048]'

-- Takes the oldest error of a callback or a thread, {err =, trace =}.
local function take_failure()
  if C.cr__luv_failure(text, 2048) > 0 then failures[#failures + 1] = { err = ffi.string(text) } end
  return table.remove(failures, 1)
end

-- ---- opening ------------------------------------------------------------------------------------

-- A luv thread has its own Lua state, which cannot use this one's values.
local function others_places(path)
  local kept = {}
  for place in path:gmatch '[^;]+' do
    if place:sub(1, #base.root + 1) ~= base.root .. '/' then kept[#kept + 1] = place end
  end
  return table.concat(kept, ';')
end

local function load_luv()
  local path, tried = package.searchpath('luv', package.cpath)
  if not path then
    base.fail('loop: luv is missing (apt-get install lua-luv):' .. tried:gsub('\n%s*', ' '))
  end
  local set_loop, problem = package.loadlib(base.file_of(C.cr_luaopen_loop) or '', 'cr_luaopen_loop')
  if not set_loop then base.fail('loop: ' .. tostring(problem)) end
  problem = set_loop(path, others_places(package.path), others_places(package.cpath))
  if problem then base.fail('loop: luv in ' .. path .. ' cannot be used: ' .. problem) end
  -- luv is loaded without `require`, because the program redirects require 'luv' to this file, so that luv always
  -- uses the core's loop.
  if type(package.loaded.luv) ~= 'table' then
    local open
    open, problem = package.loadlib(path, 'luaopen_luv')
    if not open then base.fail('loop: ' .. tostring(problem)) end
    package.loaded.luv = open 'luv'
  end
  return package.loaded.luv
end

uv = load_luv()

local uv_run = uv.run

--- Runs one turn of the loop as uv.run does. An error in a callback ends the turn and is stored.
local function turn(...)
  -- The interrupt hook must not raise an error inside a callback.
  local held = registry.cr_hold
  registry.cr_hold = true
  local result = uv_run(...)
  registry.cr_hold = held
  return result
end

-- Scripts may run the loop themselves.
function uv.run(...)
  local result = turn(...)
  local failure = take_failure()
  if failure then error(failure.err, 0) end
  return result
end

-- uv.walk would abort at the core's own handle, which luv did not make.
function uv.walk() base.fail 'uv.walk: not possible on this loop; cr.loop.handles() counts open handles' end

return { uv = uv, turn = turn, take_failure = take_failure }
