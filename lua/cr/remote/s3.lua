--- Objects of S3 and compatible services: s3://BUCKET/KEY, with the literal key, without percent-encoding.
--
-- Large files are transferred in parts in parallel. The service checks uploads by the SHA-256 of the file or the
-- CRC-32 of its parts. The object's metadata holds the SHA-256 of the whole file as x-amz-meta-sha256, or the size of its parts as
-- x-amz-meta-part-bytes. Downloads are checked by that, by the object's own checksum, or by an ETag that is an MD5.

local digest = require 'cr.digest'
local download = require 'cr.remote.download'
local errors = require 'cr.errors'
local lfs = require 'lfs'
local loop = require 'cr.loop'
local object = require 'cr.remote.object'
local upload = require 'cr.remote.upload'
local url = require 'cr.remote.url'

local M = { head = object.head }

--- Downloads an object to a file.
--- @param address string
--- @param path string
--- @return integer bytes
function M.get(address, path)
  local head = M.head(address)
  if not head then errors.fail(url.shown(address) .. ': there is no such object') end
  download.by_parts(url.shown(address), path, head.checks, function(headers, out, on_failure)
    headers['If-Match'] = head.etag
    return object.request(address, { headers = headers, out = out, again = on_failure })
  end)
  return head.bytes
end

-- Returns false if another object exists already.
local function put_whole(address, file, o)
  local sha256 = digest.of_file('SHA256', file.path, 0, file.bytes, loop.await)
  local headers = { ['x-amz-meta-sha256'] = sha256, ['Content-Type'] = o.type or 'application/octet-stream' }
  if o.once then headers['If-None-Match'] = '*' end
  local answer = object.request(address, { method = 'PUT', file = file, sha256 = sha256, headers = headers, accept = { [412] = true } })
  if answer.status < 300 then return true end
  local head = M.head(address) -- a request whose answer was lost may have succeeded
  return head ~= nil and head.checks.sha256 == sha256
end

--- Uploads a file.
--- @param path string
--- @param address string
--- @param o table? {once = never replace an existing object, type = content type}
--- @return boolean false if, with `once`, another object exists
function M.put(path, address, o)
  o = o or {}
  local bytes = lfs.attributes(path, 'size') or errors.fail(path .. ' does not exist')
  if bytes <= upload.PART then return put_whole(address, { path = path, bytes = bytes }, o) end
  return upload.new(address, { once = o.once, type = o.type, bytes = bytes }):finish(path)
end

return M
