--- luv on the core's loop: timers, sockets, processes and files are luv's.

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

local failures = {} -- {err =, trace =} of callbacks, in order

local uv

local function noted(err)
  local text = type(err) == 'string' and err or nil
  return { err = err, trace = debug.traceback(text, 2) }
end

local function returned(ok, ...)
  if ok then return ... end
  local failure = ...
  -- (A stack overflow leaves the handler no stack: then the error comes as it is.)
  failures[#failures + 1] = type(failure) == 'table' and failure or { err = failure }
  uv.stop()
end

-- core/base/luv.c calls this for every callback, with the callback and its arguments.
function registry.cr_callback(fn, ...) return returned(xpcall(fn, noted, ...)) end

local text = ffi.new 'char[2048]'

-- The oldest error of a callback or a thread, {err =, trace =}, which is taken.
local function take_failure()
  if C.cr__luv_failure(text, 2048) > 0 then failures[#failures + 1] = { err = ffi.string(text) } end
  return table.remove(failures, 1)
end

-- ---- opening ------------------------------------------------------------------------------------

-- A thread's own Lua cannot use what is ours.
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
  -- Not by require: the program makes require 'luv' come here, so that luv is never without our loop.
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

--- Turns the loop as uv.run does; an error in a callback ends the turn, and is kept.
local function turn(...)
  -- The hook must not raise inside a callback.
  local held = registry.cr_hold
  registry.cr_hold = true
  local result = uv_run(...)
  registry.cr_hold = held
  return result
end

-- A script may turn the loop by itself.
function uv.run(...)
  local result = turn(...)
  local failure = take_failure()
  if failure then error(failure.err, 0) end
  return result
end

-- It would abort at the core's own handle, which luv did not make.
function uv.walk() base.fail 'uv.walk: not possible on this loop; cr.loop.handles() counts open handles' end

return { uv = uv, turn = turn, take_failure = take_failure }
