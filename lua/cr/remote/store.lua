--- Fetches and stores the files of jobs: s3://BUCKET/KEY, https://HOST/… on allowed hosts, file:///PATH under an
--- allowed folder.
--
-- Invariants: a stored file appears complete or not at all, and never replaces another file. No other host or folder
-- is accessed, not even through redirections or links.

local download = require 'cr.remote.download'
local errors = require 'cr.errors'
local http = require 'cr.remote.http'
local lfs = require 'lfs'
local loop = require 'cr.loop'
local retry = require 'cr.remote.retry'
local s3 = require 'cr.remote.s3'
local upload = require 'cr.remote.upload'
local url = require 'cr.remote.url'

local uv = loop.uv

local M = {}

--- @class Store
--- @field root string? the folder of --root, with a slash at its end
local Store = {}
Store.__index = Store

--- @param o table {root = folder of file:// URLs, none of which are allowed without it, hosts = the allowed hosts of
---   https:// URLs; 'http://HOST:PORT' allows plain HTTP}
--- @return Store
function M.new(o)
  local root = o.root and (uv.fs_realpath(o.root) or errors.failf('--root: there is no folder %s', o.root))
  local self = setmetatable({ root = root and (root == '/' and root or root .. '/'), hosts = {} }, Store)
  for _, host in ipairs(o.hosts or {}) do self.hosts[host:lower()] = true end
  return self
end

local function scheme_of(address) return address:match '^(%a[%w+.-]*)://' end

--- Makes the store for a command's options.
--- @param args table {root, allow_urls = host names separated by commas}
--- @return Store
function M.of(args)
  local hosts = {}
  for host in (args.allow_urls or ''):gmatch '[^,%s]+' do hosts[#hosts + 1] = host end
  return M.new { root = args.root, hosts = hosts }
end

-- ---- which addresses may be used -------------------------------------------------------------------

local function web(self, address)
  local parts = url.parse(address)
  local host = parts and (parts.port and ('%s:%d'):format(parts.host, parts.port) or parts.host)
  local known = parts and not parts.user and (parts.scheme == 'https' and self.hosts[host] or self.hosts[parts.scheme .. '://' .. host])
  if known then return end
  errors.failf('%s: files of this host are not allowed; --allow-urls lists the allowed hosts', url.shown(address))
end

-- Returns the real path of the nearest folder above a path that exists.
local function real_above(path)
  local real
  repeat
    path = path:match '^(.*)/[^/]*$' or ''
    real = uv.fs_realpath(path == '' and '/' or path)
  until real
  return real
end

-- Returns the path of a file:// URL. The folder of a file to be written must exist. About what is outside of the root
-- folder nobody learns whether it exists.
--- @return string
local function local_path(self, address, written)
  if not self.root then errors.failf('%s: local files are not allowed; --root names their folder', address) end
  local path = url.decode(address:match '^file://(/.*)$' or errors.failf('%s: a local file is written file:///PATH', address))
  local folder, name = path:match '^(.*)/([^/]*)$'
  local real = written and uv.fs_realpath(folder == '' and '/' or folder) or not written and uv.fs_realpath(path)
  if ((real or real_above(path)) .. '/'):sub(1, #self.root) ~= self.root then
    errors.failf('%s: this is outside the folder of --root: file:///PATH takes the whole path', address)
  end
  if not real then errors.failf('%s: there is no such %s', address, written and 'folder' or 'file') end
  return written and real .. '/' .. name or real
end

--- Fails if an address cannot be used.
--- @param address string
function Store:check(address)
  local scheme = scheme_of(address)
  if scheme == 's3' then
    if not address:find '^s3://[%w._-]+/.' then errors.failf('%s: an object is written s3://BUCKET/KEY', address) end
  elseif scheme == 'https' or scheme == 'http' then
    web(self, address)
  elseif scheme == 'file' then
    if not self.root then local_path(self, address) end
  else
    errors.failf('%s: the address of a file is s3://BUCKET/KEY, https://HOST/… or file:///PATH', url.shown(address))
  end
end

-- ---- coming and going -----------------------------------------------------------------------------

--- Fetches a file.
--- @param address string
--- @param path string where to store it, unless it is a local file
--- @return string path of the file
function Store:fetch(address, path)
  self:check(address)
  local scheme = scheme_of(address)
  if scheme == 'file' then return local_path(self, address) end
  if scheme == 's3' then s3.get(address, path) else download.url(address, path, function(to) web(self, to) end) end
  return path
end

--- Returns whether a file exists at an address; for https:// this is unknown.
--- @param address string
--- @return boolean
function Store:exists(address)
  self:check(address)
  local scheme = scheme_of(address)
  if scheme == 's3' then return s3.head(address) ~= nil end
  return scheme == 'file' and lfs.attributes(local_path(self, address, true), 'mode') ~= nil
end

-- Writes a copy beside the target and links it to its name only if no such file exists.
local function put_file(path, to)
  local part = ('%s.%d.part'):format(to, uv.os_getpid())
  local function must(ok, problem) return ok or errors.failf('%s', problem) end
  local done, result = pcall(function()
    must(uv.fs_copyfile(path, part))
    local fd = must(uv.fs_open(part, 'r', 0))
    uv.fs_fsync(fd)
    uv.fs_close(fd)
    local ok, problem, code = uv.fs_link(part, to)
    return ok and true or code == 'EEXIST' and 'other' or must(nil, problem)
  end)
  uv.fs_unlink(part)
  if not done then error(result, 0) end
  return result == true
end

local function put_web(path, address, kind)
  local answer, problem = retry.call(function()
    local got, why = http.request { method = 'PUT', url = address, headers = { ['Content-Type'] = kind, ['If-None-Match'] = '*' },
      file = { path = path, bytes = lfs.attributes(path, 'size') } }
    if not got then return nil, ('%s: %s'):format(url.shown(address), why), true end
    if got.status < 300 or got.status == 412 then return got end
    return nil, ('%s: status %d'):format(url.shown(address), got.status), got.status >= 500 or got.status == 429
  end)
  return (answer or errors.fail(problem)).status < 300
end

--- Returns an upload that takes a file while it grows, or nil if the address takes complete files only. Nothing
--- appears there before `put`.
--- @param address string
--- @param kind string content type, as for `put`
--- @return Upload?
function Store:follow(address, kind)
  self:check(address)
  return scheme_of(address) == 's3' and upload.new(address, { once = true, type = kind }) or nil
end

--- Stores a file at an address unless another exists there.
--- @param path string
--- @param address string
--- @param kind string its content type: 'video/mp4'
--- @param follower Upload? the upload that took part of it while it grew
--- @return boolean false if another file exists there, which stays
function Store:put(path, address, kind, follower)
  self:check(address)
  local scheme = scheme_of(address)
  if follower and follower.id then return follower:finish(path) end
  if scheme == 's3' then return s3.put(path, address, { once = true, type = kind }) end
  if scheme == 'file' then return put_file(path, local_path(self, address, true)) end
  return put_web(path, address, kind)
end

return M
