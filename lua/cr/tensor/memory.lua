--- Memory of tensors on a device, and its use by tags.

local common = require 'cr.tensor.common'
local tensor = require 'cr.tensor'

local ffi, arguments, base, C = common.ffi, common.arguments, common.base, common.C

local M = {}

local MOST_TAGS = 32

--- Returns the memory of tensors on a device, in bytes: {live, cached (freed but kept for reuse), peak (largest live
--- at once), peak_reserved (largest live and cached together), count (number of storages), tags (for a card: a list
--- of {name, live, peak}, largest live first; '' is memory without a tag)}.
--- @param device string? 'cpu'
function M.memory(device)
  local code = tensor.device_code('memory', device)
  local m = ffi.new 'cr_memory'
  base.check(C.cr_memory_get(code, m))
  local tags = {}
  if code ~= C.CR_CPU then
    local list = ffi.new('cr_memory_tag[?]', MOST_TAGS)
    local n = base.check(C.cr_memory_tags(code, list, MOST_TAGS))
    for i = 0, math.min(n, MOST_TAGS) - 1 do
      tags[i + 1] = {
        name = ffi.string(list[i].name), live = tonumber(list[i].live_bytes), peak = tonumber(list[i].peak_bytes),
      }
    end
  end
  return {
    live = tonumber(m.live_bytes), cached = tonumber(m.cached_bytes), peak = tonumber(m.peak_bytes),
    peak_reserved = tonumber(m.peak_reserved_bytes), count = tonumber(m.live_count), tags = tags,
  }
end

--- Returns cached memory to the system.
--- @param device string? 'cpu'
function M.trim(device) base.check(C.cr_memory_trim(tensor.device_code('trim', device))) end

--- Resets the peaks of cr.memory to the live memory.
--- @param device string? 'cpu'
function M.reset_peak(device) base.check(C.cr_memory_reset_peak(tensor.device_code('reset_peak', device))) end

local names = {} -- C keeps the addresses of these strings
local current = ''

--- Returns the tag that cr.tagged has set, or ''.
--- @return string
function M.tag() return current end

local function restore(before, ok, ...)
  current = before
  C.cr_memory_set_tag(names[before])
  if not ok then error((...), 0) end
  return ...
end

--- Calls fn(...) and returns its results. Reports show the memory that it allocates on a card under `name`. fn must
--- not wait for other tasks.
---
---     local model = cr.tagged('unet weights', load, path)
--- @param name string one of a few fixed names; at most 32 are distinguished
--- @param fn function
--- @return ... what fn returns
function M.tagged(name, fn, ...)
  if not names[name] then
    names[name] = ffi.new('char[?]', #name + 1)
    ffi.copy(names[name], name)
  end
  local before = current
  current = name
  C.cr_memory_set_tag(names[name])
  return restore(before, pcall(fn, ...))
end

local device = arguments.maybe(arguments.string)
return arguments.guard('', M, {
  memory = { device }, trim = { device }, reset_peak = { device }, tag = {},
  tagged = { arguments.kind('a name', arguments.string.test), arguments.callable, vararg = true },
})
