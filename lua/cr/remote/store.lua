--- Where the files of jobs come from and go to: s3://BUCKET/KEY, https://HOST/… of hosts that are allowed, file:///PATH
--- under a folder that is.
--
-- Invariants: what is put is there whole or not at all, and never takes another's place; no other host and no other folder
-- is touched, whatever redirections or links say.

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

--- @param o table {root = folder of file:// URLs; none are allowed without it, hosts = names of hosts of https:// URLs;
---   'http://HOST:PORT' allows plain HTTP there}
--- @return Store
function M.new(o)
  local root = o.root and (uv.fs_realpath(o.root) or errors.failf('--root: there is no folder %s', o.root))
  local self = setmetatable({ root = root and (root == '/' and root or root .. '/'), hosts = {} }, Store)
  for _, host in ipairs(o.hosts or {}) do self.hosts[host:lower()] = true end
  return self
end

local function scheme_of(address) return address:match '^(%a[%w+.-]*)://' end

--- The store that a command's options ask for.
--- @param args table {root, allow_urls = names with commas}
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
  errors.failf('%s: files of this host are not allowed here (--allow-urls)', url.shown(address))
end

-- The path of a file:// URL; of one that is to be written its folder must be there.
--- @return string
local function local_path(self, address, written)
  if not self.root then errors.failf('%s: files of the machine are not allowed here (--root)', address) end
  local path = url.decode(address:match '^file://(/.*)$' or errors.failf('%s: a file of the machine is file:///PATH', address))
  local folder, name = path:match '^(.*)/([^/]*)$'
  local real = written and uv.fs_realpath(folder == '' and '/' or folder) or not written and uv.fs_realpath(path)
  if not real then errors.failf('%s: there is no such %s', address, written and 'folder' or 'file') end
  if (real .. '/'):sub(1, #self.root) ~= self.root then
    errors.failf('%s: it is not in the folder of --root', address)
  end
  return written and real .. '/' .. name or real
end

--- Raises a sentence about an address that cannot be used.
--- @param address string
function Store:check(address)
  local scheme = scheme_of(address)
  if scheme == 's3' then
    if not address:find '^s3://[%w._-]+/.' then errors.failf('%s: an object is s3://BUCKET/KEY', address) end
  elseif scheme == 'https' or scheme == 'http' then
    web(self, address)
  elseif scheme == 'file' then
    if not self.root then local_path(self, address) end
  else
    errors.failf('%s: files are s3://BUCKET/KEY, https://HOST/… or file:///PATH', url.shown(address))
  end
end

-- ---- coming and going -----------------------------------------------------------------------------

--- Brings a file.
--- @param address string
--- @param path string where it is to be, if it has to be brought
--- @return string path where it is
function Store:fetch(address, path)
  self:check(address)
  local scheme = scheme_of(address)
  if scheme == 'file' then return local_path(self, address) end
  if scheme == 's3' then s3.get(address, path) else download.url(address, path, function(to) web(self, to) end) end
  return path
end

--- Whether there is something already; of https:// nobody knows.
--- @param address string
--- @return boolean
function Store:exists(address)
  self:check(address)
  local scheme = scheme_of(address)
  if scheme == 's3' then return s3.head(address) ~= nil end
  return scheme == 'file' and lfs.attributes(local_path(self, address, true), 'mode') ~= nil
end

-- By a copy beside it, which gets its name only where there is none.
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

--- What takes a file while it grows, or nil: this place takes whole files only. Nothing appears there before `put`.
--- @param address string
--- @param kind string as of put
--- @return Upload?
function Store:follow(address, kind)
  self:check(address)
  return scheme_of(address) == 's3' and upload.new(address, { once = true, type = kind }) or nil
end

--- Puts a file where there is none.
--- @param path string
--- @param address string
--- @param kind string its type: 'video/mp4'
--- @param follower Upload? what has taken some of it while it grew
--- @return boolean false: there is another already, which stays
function Store:put(path, address, kind, follower)
  self:check(address)
  local scheme = scheme_of(address)
  if follower and follower.id then return follower:finish(path) end
  if scheme == 's3' then return s3.put(path, address, { once = true, type = kind }) end
  if scheme == 'file' then return put_file(path, local_path(self, address, true)) end
  return put_web(path, address, kind)
end

return M
