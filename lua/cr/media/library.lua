--- crescent_media.so, and what all of cr.media does with it: checks of arguments, waiting for jobs, telling its
--- warnings.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local loop = require 'cr.loop'

local M = {}

--- Its functions.
M.lib = base.part('media', "install FFmpeg's libraries with `make deps`")

function M.want_path(name, path)
  if type(path) ~= 'string' or path == '' then
    base.fail(name .. ': a file\'s path is needed, not ' .. type(path))
  end
  return path
end

local told, text = {}, ffi.new 'char[500]'

--- Prints a sentence that a user should know beside a success, once.
function M.say(sentence)
  if not told[sentence] then io.stderr:write('crescent: ', sentence, '\n') end
  told[sentence] = true
end

--- Prints what media functions have to say beside their success, each sentence once.
function M.tell()
  while M.lib.cr_media_warning(text, 500) > 0 do M.say(ffi.string(text)) end
end

--- Raises C's sentence if rc is negative, tells warnings if not, and passes rc on.
function M.check(rc)
  if rc < 0 then base.raise() end
  M.tell()
  return rc
end

--- Waits for a job; its failure is raised as C's sentence, its warnings are told.
function M.await(job)
  if tonumber(job) < 0 then base.raise() end
  local result = loop.await(job)
  M.tell()
  return result
end

--- What one of its functions opens.
--- @param kind string of the handle, such as 'cr_audio': <kind>_open is called
--- @param close_handle function with which the handle ends when nobody has it any more
--- @param ... any the further arguments of the function
function M.open(kind, close_handle, ...)
  local out = ffi.new(kind .. ' *[1]')
  M.check(M.lib[kind .. '_open'](out, ...))
  return ffi.gc(out[0], close_handle)
end

--- Closes an object's handle by a function of C. Twice is fine.
function M.close(self, close_handle)
  local handle = self.handle
  self.handle = nil
  if handle then close_handle(ffi.gc(handle, nil)) end
end

--- The handle of an object that has not been closed.
function M.open_handle(self, name)
  if not self.handle then base.fail(name .. ': ' .. self.path .. ' is closed') end
  return self.handle
end

return M

