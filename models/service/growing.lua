--- Uploads a result while it is written, if its format and destination allow it: Matroska, which is written
--- sequentially, to a bucket. (MP4 writes its index at the front when it is complete, so it is uploaded at the end.)
--
-- Invariant: nothing appears before the file is complete, and what appears is the finished file
-- (lua/cr/remote/upload.lua). A failed upload does not fail the job: the missing parts are sent at the end.

local lfs = require 'lfs'
local loop = require 'cr.loop'

local M = {}

local LOOK = 0.5 -- seconds between checks of the file's size

--- @class Growing
local Growing = {}
Growing.__index = Growing

-- The file under its temporary name (core/base/output.c).
local function file_of(folder)
  for name in lfs.dir(folder) do
    if name:find '^%.result%.mkv' then return folder .. '/' .. name end
  end
end

--- Starts uploading what is written to `folder`/result.mkv.
--- @param store Store
--- @param address string its destination
--- @param folder string
--- @return Growing
function M.start(store, address, folder)
  local self = setmetatable({ upload = address:find '%.mkv$' and store:follow(address, 'video/x-matroska') or nil }, Growing)
  if not self.upload then return self end
  self.task = loop.go(function()
    while not self.ended do
      loop.sleep(LOOK)
      local path = not self.ended and file_of(folder)
      if path then pcall(self.upload.grow, self.upload, path) end
    end
  end)
  return self
end

--- The file is complete: waits for uploads in progress.
--- @return Upload? for Store.put
function Growing:stop()
  self.ended = true
  if self.task then pcall(loop.await, self.task) end
  return self.upload
end

--- Cancels the upload.
function Growing:abort()
  self.ended = true
  if not self.task then return end
  self.task:cancel()
  pcall(loop.await, self.task)
  self.upload:abort()
end

return M
