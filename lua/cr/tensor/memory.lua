--- What tensors hold on a device, and what for.

local common = require 'cr.tensor.common'
local tensor = require 'cr.tensor'

local ffi, arguments, base, C = common.ffi, common.arguments, common.base, common.C

local M = {}

local MOST_TAGS = 32

--- What tensors hold on a device, in bytes: {live, cached (freed, kept for reuse), peak (most live at
--- once), peak_reserved (most live and cached together), count (storages), tags (of a card: a list of
--- {name, live, peak}, most live first; '' is what has no name)}.
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

--- Gives freed memory that is kept for reuse back to the system.
--- @param device string? 'cpu'
function M.trim(device) base.check(C.cr_memory_trim(tensor.device_code('trim', device))) end

--- Lets the peaks of cr.memory begin anew at what is live.
--- @param device string? 'cpu'
function M.reset_peak(device) base.check(C.cr_memory_reset_peak(tensor.device_code('reset_peak', device))) end

local names = {} -- C keeps the addresses
local current = ''

--- What memory taken now is for, by cr.tagged; '' nothing in particular.
--- @return string
function M.tag() return current end

local function restore(before, ok, ...)
  current = before
  C.cr_memory_set_tag(names[before])
  if not ok then error((...), 0) end
  return ...
end

--- fn(...); what it takes of a card's memory goes by `name` in reports. fn must not wait for others.
---
---     local model = cr.tagged('unet weights', load, path)
--- @param name string a few fixed ones, not made up as one goes: 32 are told apart
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
