--- Objects of S3 and what speaks like it: s3://BUCKET/KEY, the key as it is, not as it would stand in a URL.
--
-- Large files go in parts side by side. What goes out is checked by the service: by its SHA-256, or by its parts'. An object
-- holds the whole file's as x-amz-meta-sha256, or the size of its parts as x-amz-meta-part-bytes. What comes is checked by
-- that, by the object's own checksum, or by the ETag where it is an MD5.

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

-- False: there is one already, which is another.
local function put_whole(address, file, o)
  local sha256 = digest.of_file('SHA256', file.path, 0, file.bytes, loop.await)
  local headers = { ['x-amz-meta-sha256'] = sha256, ['Content-Type'] = o.type or 'application/octet-stream' }
  if o.once then headers['If-None-Match'] = '*' end
  local answer = object.request(address, { method = 'PUT', file = file, sha256 = sha256, headers = headers, accept = { [412] = true } })
  if answer.status < 300 then return true end
  local head = M.head(address) -- (a request whose answer was lost may have been carried out)
  return head ~= nil and head.checks.sha256 == sha256
end

--- Uploads a file.
--- @param path string
--- @param address string
--- @param o table? {once = leave alone what is there already, type = of the content}
--- @return boolean whether it is there now; false: with `once`, there is another
function M.put(path, address, o)
  o = o or {}
  local bytes = lfs.attributes(path, 'size') or errors.fail(path .. ' is not there')
  if bytes <= upload.PART then return put_whole(address, { path = path, bytes = bytes }, o) end
  return upload.new(address, { once = o.once, type = o.type, bytes = bytes }):finish(path)
end

return M
