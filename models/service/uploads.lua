--- Receives files that users upload: streams them to disk, probes them, and stores them under an id.
--
-- Invariants: a file is in the store only when all its bytes are on disk and it was found to be a video, sound or
-- image within the limits. After any failure nothing of it remains. Its type is determined by its bytes, not by its
-- name. Another process probes it, so that a file that crashes a decoder does not end the server.

local disk = require 'cr.serve.disk'
local lfs = require 'lfs'
local names = require 'models.service.names'
local problems = require 'cr.serve.problem'
local sniff = require 'cr.serve.sniff'
local text_of = require 'cr.serve.text'

local M = {}

--- @class Uploads
local Uploads = {}
Uploads.__index = Uploads

--- @param o table {folder, store, probe = function(path) -> info; raises what is wrong, limits = {upload, pixels}}
--- @return Uploads
function M.new(o)
  for _, name in ipairs { '/files', '/incoming' } do assert(disk.make_folder(o.folder .. name)) end
  local self = setmetatable(o, Uploads)
  -- Partial uploads from when a server ended.
  for _, name in ipairs(disk.list(o.folder .. '/incoming')) do disk.remove(o.folder .. '/incoming/' .. name) end
  local known = {}
  for _, file in ipairs(o.store:files()) do known[file.path] = true end
  for _, name in ipairs(disk.list(o.folder .. '/files')) do
    if not known[name] then disk.remove(o.folder .. '/files/' .. name) end
  end
  return self
end

-- Writes the incoming bytes; returns the first ones.
local function take(self, file, read)
  local head = {}
  for chunk in read do
    if file.bytes + #chunk > self.limits.upload then
      problems.fail(413, ('the file is larger than the limit of %s'):format(text_of.size(self.limits.upload)), 'file')
    end
    if file.bytes < sniff.BYTES then head[#head + 1] = chunk:sub(1, sniff.BYTES) end
    local ok, problem = pcall(file.write, file, chunk)
    if not ok then
      if tostring(problem):find 'ENOSPC' then problems.fail(507, "the server's disk is full: delete files and jobs") end
      error(problem, 0)
    end
  end
  if file.bytes == 0 then problems.fail(422, 'the file is empty', 'file') end
  return table.concat(head):sub(1, sniff.BYTES)
end

local function check(self, info)
  local v = info.video
  if v and v.width * v.height > self.limits.pixels then
    problems.fail(422, ('an image of %d x %d pixels exceeds the limit of %.3g megapixels'):format(v.width, v.height,
      self.limits.pixels / 1e6), 'file')
  end
end

-- Probes a file. Messages name it by the client's file name, not by its path.
local function look(self, path, name)
  local ok, found = pcall(self.probe, path)
  if not ok then
    if problems.is(found) then error(found, 0) end
    local text = tostring(found)
    local from = text:find(path, 1, true)
    if from then text = text:sub(1, from - 1) .. name .. text:sub(from + #path) end
    problems.fail(415, text, 'file')
  end
  check(self, found)
  return found
end

-- Stores a complete file, whose first bytes are `head`; if it is refused, it is deleted.
local function keep(self, path, head, name, id)
  local to
  local ok, result = pcall(function()
    local kind, ending = sniff.kind(head)
    if not kind then problems.fail(415, 'the file is not a video, sound or image of a known type', 'file') end
    local shown = names.shown(name, 'file.' .. ending)
    local info = look(self, path, shown)
    local record = {
      id = id, name = shown, bytes = lfs.attributes(path, 'size'), type = info.video and kind or sniff.of_sound(kind), sha256 = info.sha256,
      created = names.now(), video = info.video, audio = info.audio, still = info.still, path = id .. '.' .. ending,
    }
    to = self.folder .. '/files/' .. record.path
    disk.rename(path, to)
    self.store:add_file(record)
    return record
  end)
  if ok then return result end
  disk.remove(path)
  if to then disk.remove(to) end
  error(result, 0)
end

--- Receives a file while it is uploaded.
--- @param name string? the client's name for it
--- @param read fun(): string? its bytes, piece by piece
--- @return table file
function Uploads:receive(name, read)
  local id = names.id()
  local file = disk.create(self.folder .. '/incoming/' .. id)
  local ok, head = pcall(function()
    local head = take(self, file, read)
    file:finish()
    return head
  end)
  if not ok then
    file:abandon()
    error(head, 0)
  end
  return keep(self, file.path, head, name, id)
end

--- Stores a file that another function writes.
--- @param name string? the client's name for it
--- @param write fun(path: string) writes the whole file, or raises an error
--- @return table file
function Uploads:receive_by(name, write)
  local id = names.id()
  local path = self.folder .. '/incoming/' .. id
  local ok, head = pcall(function()
    write(path)
    if lfs.attributes(path, 'size') > self.limits.upload then problems.fail(413, 'the file is larger than the limit for files', 'file') end
    disk.sync_file(path)
    local f = assert(io.open(path, 'rb'))
    local first = f:read(sniff.BYTES) or ''
    f:close()
    return first
  end)
  if not ok then
    disk.remove(path)
    error(head, 0)
  end
  return keep(self, path, head, name, id)
end

--- A file's path.
--- @param file table
--- @return string
function Uploads:path(file) return self.folder .. '/files/' .. file.path end

--- Deletes a file.
--- @param file table
function Uploads:drop(file)
  self.store:drop_file(file.id)
  disk.remove(self:path(file))
end

--- A file's description for clients.
--- @param file table
--- @return table
function M.view(file)
  local view = {}
  for key, value in pairs(file) do view[key] = value end
  view.path, view.still = nil, nil
  return view
end

return M
