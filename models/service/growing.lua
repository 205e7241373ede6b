--- A result that goes to its place while it is made, where its format and its place allow it: Matroska, which is written from
-- beginning to end, into a bucket. (MP4 puts its index before all else once it is whole; it goes when it is.)
--
-- Invariant: nothing appears before the whole is there, and what appears is the finished file (lua/cr/remote/upload.lua). What
-- goes wrong meanwhile is no failure of the job: what is missing is sent at the end.

local lfs = require 'lfs'
local loop = require 'cr.loop'

local M = {}

local LOOK = 0.5 -- seconds between two looks at how much there is

--- @class Growing
local Growing = {}
Growing.__index = Growing

-- The file under the name that it has until it is whole (core/base/output.c).
local function file_of(folder)
  for name in lfs.dir(folder) do
    if name:find '^%.result%.mkv' then return folder .. '/' .. name end
  end
end

--- Begins to send what is written to `folder`/result.mkv.
--- @param store Store
--- @param address string where it is to be
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

--- The file is whole: what was on its way arrives first.
--- @return Upload? for Store.put
function Growing:stop()
  self.ended = true
  if self.task then pcall(loop.await, self.task) end
  return self.upload
end

--- Nothing comes of it.
function Growing:abort()
  self.ended = true
  if not self.task then return end
  self.task:cancel()
  pcall(loop.await, self.task)
  self.upload:abort()
end

return M
