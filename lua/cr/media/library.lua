--- crescent_media.so, and what the files of cr.media share: checks of arguments, waiting for jobs, printing warnings.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local loop = require 'cr.loop'

local M = {}

--- The functions of crescent_media.so.
M.lib = base.part('media', "install FFmpeg's libraries with `make deps`")

function M.want_path(name, path)
  if type(path) ~= 'string' or path == '' then
    base.fail(name .. ': a file\'s path is needed, not ' .. type(path))
  end
  return path
end

local told, text = {}, ffi.new 'char[500]'

--- Prints a note to the user about a call that succeeded, each sentence once.
function M.say(sentence)
  if not told[sentence] then io.stderr:write('crescent: ', sentence, '\n') end
  told[sentence] = true
end

--- Prints the warnings of media functions, each sentence once.
function M.tell()
  while M.lib.cr_media_warning(text, 500) > 0 do M.say(ffi.string(text)) end
end

--- Raises C's message if rc is negative; otherwise prints warnings and returns rc.
function M.check(rc)
  if rc < 0 then base.raise() end
  M.tell()
  return rc
end

--- Waits for a job, raises its failure with C's message, and prints its warnings.
function M.await(job)
  if tonumber(job) < 0 then base.raise() end
  local result = loop.await(job)
  M.tell()
  return result
end

--- Opens an object of the library.
--- @param kind string of the handle, such as 'cr_audio': <kind>_open is called
--- @param close_handle function closes the handle when it is garbage
--- @param ... any the further arguments of the function
function M.open(kind, close_handle, ...)
  local out = ffi.new(kind .. ' *[1]')
  M.check(M.lib[kind .. '_open'](out, ...))
  return ffi.gc(out[0], close_handle)
end

--- Closes the handle of an object by a C function. Calling it twice is allowed.
function M.close(self, close_handle)
  local handle = self.handle
  self.handle = nil
  if handle then close_handle(ffi.gc(handle, nil)) end
end

--- Returns the handle of an object, or fails if it was closed.
function M.open_handle(self, name)
  if not self.handle then base.fail(name .. ': ' .. self.path .. ' is closed') end
  return self.handle
end

return M

