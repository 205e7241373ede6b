--- The tensor object itself, and the scopes that free what is made inside them.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local errors = require 'cr.errors'
local arguments = require 'cr.arguments'

local C = base.C

-- `ended` is the index in `places` of the scope that freed the tensor, or 0 if it was not freed.
ffi.cdef 'typedef struct { cr_tensor c; int32_t ended; } cr_lua_tensor;'
local tensor_type = ffi.typeof 'cr_lua_tensor'

local M = { type = tensor_type }

local istype = ffi.istype
local function is_tensor(x) return istype(tensor_type, x) end
M.is_tensor = is_tensor

-- ---- where scopes end ----------------------------------------------------------------------

--- @type table<integer, string|false>
local places = { [-1] = false }
local numbers = {} -- index -1 stands for scopes of the library itself and of C functions

-- Returns the index of the place where the scope of a function ends.
local function place_of(fn)
  if type(fn) ~= 'function' then return -1 end
  local info = debug.getinfo(fn, 'S')
  local lines = numbers[info.source]
  if lines == nil then
    local shown = info.what ~= 'C' and not errors.is_library(info.source)
    lines = shown and {} or false
    numbers[info.source] = lines
  end
  if not lines then return -1 end
  local number = lines[info.lastlinedefined]
  if not number then
    number = #places + 1
    places[number] = ('%s:%d'):format(info.short_src, info.lastlinedefined)
    lines[info.lastlinedefined] = number
  end
  return number
end

--- Returns why a tensor cannot be used, or nil.
--- @param t Tensor
--- @return string?
function M.why_freed(t)
  if t.c.storage ~= nil then return nil end
  local place = places[t.ended]
  if not place then return 'the tensor has been freed' end
  return ('the tensor has been freed, since the scope that ends at %s did not return it: return it, or call cr.keep')
    :format(place)
end

-- ---- scopes --------------------------------------------------------------------------------

-- Each coroutine has its own stack of scopes, since tasks are interleaved inside their scopes.
local scopes = setmetatable({}, { __mode = 'k' })
local MAIN = {}

local made -- see M.on_new

--- Installs fn(tensor), which is called for each new tensor before it is filled.
--- @param fn function?
function M.on_new(fn) made = fn end

--- Makes an empty tensor for C to fill, and registers it in the open scope of this coroutine.
--- @return Tensor
function M.new()
  if C.cr_memory_pressure() ~= 0 then
    collectgarbage()
    C.cr_memory_collected()
  end
  local t = tensor_type() --[[@as Tensor]]
  local scope = scopes[coroutine.running() or MAIN]
  if scope then scope[#scope + 1] = t end
  if made then made(t) end
  return t
end

--- Returns the tensor that C has filled, or raises C's message.
--- @param out Tensor
--- @param rc integer the result of the C function
--- @return Tensor
function M.filled(out, rc)
  if rc < 0 then base.raise() end
  return out
end

--- Returns all tensors among some values and in nested tables.
--- @return Tensor[]
function M.tensors_of(...)
  local list, tables, seen = {}, {}, {}
  local function look(v)
    if is_tensor(v) then
      list[#list + 1] = v
    elseif type(v) == 'table' and not seen[v] then
      seen[v] = true
      tables[#tables + 1] = v
    end
  end
  for i = 1, select('#', ...) do look((select(i, ...))) end
  local k = 0
  while k < #tables do -- a loop instead of recursion, since tables may be nested very deeply
    k = k + 1
    for key, value in next, tables[k] do
      look(key)
      look(value)
    end
  end
  return list
end

local function close_scope(key, scope, fn, ok, ...)
  local outer = scope.outer
  scopes[key] = outer
  local count = #scope
  if count > 0 then
    local kept = {}
    if ok and select('#', ...) == 1 and is_tensor((...)) then
      kept[(...)] = true
    elseif ok then
      for _, t in ipairs(M.tensors_of(...)) do kept[t] = true end
    end
    local place
    for i = 1, count do
      local t = scope[i]
      if not kept[t] then
        place = place or place_of(fn)
        t.ended = place
        C.cr_free(t.c)
      elseif outer then
        outer[#outer + 1] = t
      end
    end
  end
  if not ok then error((...), 0) end
  return ...
end

--- Runs fn(...) and frees every tensor that is made inside it, except those that it returns, directly or in nested
--- tables. Scopes can be nested; returned tensors belong to the outer scope.
---
---     local y = cr.scope(function() return (x * 2 + 1):sum() end)
--- @param fn fun(...): ...
function M.scope(fn, ...)
  if type(fn) ~= 'function' then arguments.want('scope', arguments.callable, fn) end
  local key = coroutine.running() or MAIN
  local scope = { outer = scopes[key] }
  scopes[key] = scope
  return close_scope(key, scope, fn, pcall(fn, ...))
end

--- Removes tensors from all open scopes, so that they live until they are freed or garbage. It is for caches that
--- outlive the scope in which they are filled.
--- @param ... Tensor
--- @return Tensor ... the same
function M.keep(...)
  for i = 1, select('#', ...) do
    local t = select(i, ...)
    if not is_tensor(t) then base.fail('keep: a tensor is needed, not ' .. arguments.shown(t)) end
    local scope = scopes[coroutine.running() or MAIN]
    while scope do
      for k = #scope, 1, -1 do
        if rawequal(scope[k], t) then table.remove(scope, k) end
      end
      scope = scope.outer
    end
  end
  return ...
end

return M
