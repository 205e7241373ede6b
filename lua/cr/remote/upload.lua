--- Files that go out to S3 in parts, side by side, each once its bytes are known: a file that still grows, too.
--
--     local up = upload.new('s3://bucket/key', { once = true })
--     up:grow(path)            as often as one likes: parts that look whole go out
--     up:finish(path)          the rest, and what has changed since; then all of it appears at once
--     up:abort()               nothing is left of it
--
-- A part's SHA-256 is computed once, on a thread of the loop's, while others are on their way. The service checks it
-- (x-amz-checksum-sha256, which is signed; of a service that knows no checksums the signature itself holds it), and the digest of
-- all of them names the whole.
-- Invariant: what appears is the file as it was when finish() read it, whatever was written after grow() sent a part.

local base64 = require 'cr.base64'
local digest = require 'cr.digest'
local download = require 'cr.remote.download'
local errors = require 'cr.errors'
local lfs = require 'lfs'
local loop = require 'cr.loop'
local object = require 'cr.remote.object'
local url = require 'cr.remote.url'

local M = {}

M.PART = 16 * 2 ^ 20 -- bytes
local MOST_PARTS = 10000
local AT_ONCE = 4

local COMPLETE = '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">%s</CompleteMultipartUpload>'

--- @class Upload
--- @field parts table[] {sha256, etag} of those that are there
local Upload = {}
Upload.__index = Upload

--- @param address string s3://BUCKET/KEY
--- @param o table {once = leave alone what is there already, type = of the content, bytes = how many there will be, if that is known}
--- @return Upload
function M.new(address, o)
  local size = math.max(M.PART, math.ceil((o.bytes or 0) / MOST_PARTS))
  -- (some that speak like S3 refuse checksums: AWS's own variable leaves them out)
  local checked = os.getenv 'AWS_REQUEST_CHECKSUM_CALCULATION' ~= 'when_required'
  local private = object.is_private(address)
  return setmetatable({ address = address, o = o, size = size, parts = {}, checked = checked, private = private,
    trusted = private or checked }, Upload)
end

local function begin(self)
  if self.id then return end
  local begun = object.request(self.address, { method = 'POST', query = { uploads = '' }, body = '', headers = {
    ['Content-Type'] = self.o.type or 'application/octet-stream', ['x-amz-meta-part-bytes'] = ('%.0f'):format(self.size),
    ['x-amz-checksum-algorithm'] = self.checked and 'SHA256' or nil,
  } })
  self.id = begun.body:match '<UploadId>([^<]+)</UploadId>' or errors.fail(url.shown(self.address) .. ': an upload in parts has no number')
end

-- Sends part i of a file of so many bytes, unless it is there.
local function put(self, path, bytes, i)
  local offset = (i - 1) * self.size
  local count = math.min(self.size, bytes - offset)
  local sha256 = digest.of_file('SHA256', path, offset, count, loop.await)
  if self.parts[i] and self.parts[i].sha256 == sha256 then return end
  local function send()
    local answer = object.request(self.address, {
      method = 'PUT', query = { partNumber = i, uploadId = self.id }, file = { path = path, offset = offset, bytes = count },
      sha256 = self.trusted and 'UNSIGNED-PAYLOAD' or sha256,
      headers = { ['Content-Type'] = 'application/octet-stream',
        ['x-amz-checksum-sha256'] = self.checked and base64.encode(digest.bytes(sha256)) or nil },
    })
    -- The service says which checksum it has seen. Who says none would take a part that was changed on its way, without TLS.
    if not self.trusted or self.private or answer.headers['x-amz-checksum-sha256'] then return answer end
    self.trusted = false
    return send()
  end
  self.parts[i] = { sha256 = sha256, etag = send().headers.etag or '' }
end

--- Sends the parts of a growing file that are there in full; not the first, which most formats write again at their end.
--- @param path string
function Upload:grow(path)
  local bytes, list = lfs.attributes(path, 'size') or 0, {}
  for i = 2, math.floor(bytes / self.size) do
    if not self.parts[i] then list[#list + 1] = i end
  end
  if #list == 0 then return end
  begin(self)
  download.each(#list, AT_ONCE, function(k) put(self, path, bytes, list[k]) end)
end

-- What the service will call the whole: {SHA256 =, MD5 =} of the parts' digests; of MD5 where its ETags are that.
local function names_of(self)
  local sha256, md5 = {}, {}
  for i, part in ipairs(self.parts) do
    sha256[i] = digest.bytes(part.sha256)
    local hex = part.etag:match '^"?(%x+)"?$'
    if hex and #hex == 32 and md5 then md5[i] = digest.bytes(hex) else md5 = nil end
  end
  return { SHA256 = digest.of_text('SHA256', table.concat(sha256)), MD5 = md5 and digest.of_text('MD5', table.concat(md5)) or nil }
end

-- Whether the object that is there is this file: a request whose answer was lost may have been carried out.
local function is_ours(self, bytes)
  local head = object.head(self.address)
  local parts = head and head.bytes == bytes and head.checks.parts
  return parts and parts.bytes == self.size and names_of(self)[parts.algorithm] == parts.digest or false
end

local function complete(self, bytes)
  local list = {}
  for i, part in ipairs(self.parts) do
    list[i] = ('<Part><PartNumber>%d</PartNumber><ETag>%s</ETag>%s</Part>'):format(i, (part.etag:gsub('"', '&quot;')),
      self.checked and ('<ChecksumSHA256>%s</ChecksumSHA256>'):format(base64.encode(digest.bytes(part.sha256))) or '')
  end
  local answer = object.request(self.address, {
    method = 'POST', query = { uploadId = self.id }, accept = { [412] = true, [404] = true }, idle = 300,
    headers = { ['Content-Type'] = 'application/xml', ['If-None-Match'] = self.o.once and '*' or nil },
    body = COMPLETE:format(table.concat(list)),
  })
  if answer.status < 300 then self.id = nil end
  if not self.id or is_ours(self, bytes) then return true end
  if answer.status == 404 then errors.fail(url.shown(self.address) .. ': the upload in parts is gone') end
  return false
end

--- Sends what is left of a file that grows no more, and makes the object of it.
--- @param path string
--- @return boolean false: with `once`, there is another already
function Upload:finish(path)
  local ok, done = pcall(function()
    local bytes = lfs.attributes(path, 'size') or errors.fail(path .. ' is not there')
    local count = math.max(1, math.ceil(bytes / self.size))
    if count > MOST_PARTS then
      errors.failf('%s: a file that grows may have %.0f bytes', url.shown(self.address), MOST_PARTS * self.size)
    end
    begin(self)
    for i = count + 1, #self.parts do self.parts[i] = nil end
    download.each(count, AT_ONCE, function(i) put(self, path, bytes, i) end)
    return complete(self, bytes)
  end)
  self:abort()
  if not ok then error(done, 0) end
  return done
end

--- Leaves nothing of what has not become an object: it would be paid for.
function Upload:abort()
  if not self.id then return end
  pcall(object.request, self.address, { method = 'DELETE', query = { uploadId = self.id }, accept = { [404] = true } })
  self.id, self.parts = nil, {}
end

return M
