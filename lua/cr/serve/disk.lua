--- Files that a server writes without blocking: other threads wait for the disk while other tasks run.
--
--     local file = disk.create(path)
--     for chunk in request.read, request do file:write(chunk) end
--     file:finish()            -- flushes it to the disk;  file:abandon() deletes it
--     disk.rename(from, to)    -- flushes the name, too

local lfs = require 'lfs'
local loop = require 'cr.loop'

local uv = loop.uv
local M = {}

local PRIVATE_FILE, PRIVATE_FOLDER = 384, 448 -- 0600, 0700: other users cannot read uploads

-- Calls an asynchronous function of luv and waits for its result.
local function wait(fn, ...)
  local done = loop.channel(1)
  local args, n = { ... }, select('#', ...)
  args[n + 1] = function(err, result) done:put { err = err, result = result } end
  fn(unpack(args, 1, n + 1))
  local answer = done:get()
  if answer.err then error(answer.err, 0) end
  return answer.result
end

--- @class NewFile
--- @field fd integer
--- @field path string
local NewFile = {}
NewFile.__index = NewFile

--- Creates a file, which must not exist yet.
--- @param path string
--- @return NewFile
function M.create(path)
  return setmetatable({ path = path, fd = wait(uv.fs_open, path, 'wx', PRIVATE_FILE), bytes = 0 }, NewFile)
end

--- Appends bytes and waits until the system has them.
--- @param data string
function NewFile:write(data)
  local at = 1
  while at <= #data do
    local n = wait(uv.fs_write, self.fd, at == 1 and data or data:sub(at), self.bytes)
    at, self.bytes = at + n, self.bytes + n
  end
end

local function close(self)
  if self.fd then uv.fs_close(self.fd) end
  self.fd = nil
end

--- Flushes all bytes to the disk and closes the file.
function NewFile:finish()
  wait(uv.fs_fsync, self.fd)
  close(self)
end

--- Closes and deletes the file.
function NewFile:abandon()
  close(self)
  uv.fs_unlink(self.path)
end

--- Flushes the bytes of a file, or the names in a folder, to the disk.
--- @param path string
function M.sync_file(path)
  local fd = wait(uv.fs_open, path, 'r', 0)
  local ok, problem = pcall(wait, uv.fs_fsync, fd)
  uv.fs_close(fd)
  if not ok then error(problem, 0) end
end

--- Renames a file or a folder, and flushes the new name to the disk.
--- @param from string
--- @param to string
function M.rename(from, to)
  wait(uv.fs_rename, from, to)
  M.sync_file(to:match '^(.*)/')
end

--- Flushes all files of a folder to the disk.
--- @param path string
function M.sync(path)
  for name in lfs.dir(path) do
    local file = path .. '/' .. name
    if lfs.symlinkattributes(file, 'mode') == 'file' then M.sync_file(file) end
  end
  M.sync_file(path)
end

--- Deletes a file, or a folder with its contents. It need not exist.
--- @param path string
function M.remove(path)
  if lfs.symlinkattributes(path, 'mode') == 'directory' then
    for name in lfs.dir(path) do
      if name ~= '.' and name ~= '..' then M.remove(path .. '/' .. name) end
    end
    uv.fs_rmdir(path)
  else
    uv.fs_unlink(path)
  end
end

--- Makes a private folder unless it exists.
--- @param path string
--- @return boolean? nil if it cannot be made
--- @return string? problem
function M.make_folder(path)
  if lfs.attributes(path, 'mode') == 'directory' then return true end
  local ok, problem = uv.fs_mkdir(path, PRIVATE_FOLDER)
  return ok, problem
end

--- Returns the names in a folder.
--- @param path string
--- @return string[]
function M.list(path)
  local names = {}
  for name in lfs.dir(path) do
    if name ~= '.' and name ~= '..' then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

return M
