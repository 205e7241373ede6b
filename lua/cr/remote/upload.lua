--- Uploads files to S3 in parts in parallel, each part as soon as its bytes are known, so a file may still be growing.
--
--     local up = upload.new('s3://bucket/key', { once = true })
--     up:grow(path)            any number of times: sends parts that look complete
--     up:finish(path)          sends the rest and changed parts; then the object appears
--     up:abort()               removes everything
--
-- The checksum of a part (CRC-32, the one that all services with checksums know; a cryptographic digest would take longer
-- than a fast network) is computed once, on a thread of the loop, while other parts are being sent. The service checks
-- it (x-amz-checksum-crc32, which is signed), and the checksum of all these checksums identifies the object. For a service
-- without checksums, and without TLS, the signature covers the part's SHA-256. Invariant: the object is the file as
-- finish() read it, even if the file was changed after grow() had sent a part.

local arguments = require 'cr.arguments'
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
--- @field address string
--- @field size integer bytes of a part
--- @field parts table[] {crc, etag} of each part that was sent
local Upload = {}
Upload.__index = Upload

--- @param address string s3://BUCKET/KEY
--- @param o table {once = never replace an existing object, type = content type, bytes = the final size, if it is known}
--- @return Upload
function M.new(address, o)
  local size = math.max(M.PART, math.ceil((o.bytes or 0) / MOST_PARTS))
  -- Some compatible services refuse checksums, and AWS's own variable switches them off.
  local checked = os.getenv 'AWS_REQUEST_CHECKSUM_CALCULATION' ~= 'when_required'
  local private = object.is_private(address)
  return setmetatable({ address = address, o = o, size = size, parts = {}, checked = checked, private = private,
    trusted = private or checked }, Upload)
end

local function begin(self)
  if self.id then return end
  local begun = object.request(self.address, { method = 'POST', query = { uploads = '' }, body = '', headers = {
    ['Content-Type'] = self.o.type or 'application/octet-stream', ['x-amz-meta-part-bytes'] = ('%.0f'):format(self.size),
    ['x-amz-checksum-algorithm'] = self.checked and 'CRC32' or nil,
  } })
  self.id = begun.body:match '<UploadId>([^<]+)</UploadId>' or errors.fail(url.shown(self.address) .. ': the service returned no UploadId')
end

-- Sends part i of a file of so many bytes, unless it was sent already.
local function put(self, path, bytes, i)
  local offset = (i - 1) * self.size
  local count = math.min(self.size, bytes - offset)
  local function of(algorithm) return digest.of_file(algorithm, path, offset, count, loop.await) end
  local crc = of 'CRC32'
  if self.parts[i] and self.parts[i].crc == crc then return end
  local function send()
    local answer = object.request(self.address, {
      method = 'PUT', query = { partNumber = i, uploadId = self.id }, file = { path = path, offset = offset, bytes = count },
      sha256 = self.trusted and 'UNSIGNED-PAYLOAD' or of 'SHA256',
      headers = { ['Content-Type'] = 'application/octet-stream',
        ['x-amz-checksum-crc32'] = self.checked and base64.encode(digest.bytes(crc)) or nil },
    })
    -- The service returns the checksum that it verified. Without TLS, a service that returns none might accept a part
    -- that was changed in transit.
    if not self.trusted or self.private or answer.headers['x-amz-checksum-crc32'] then return answer end
    self.trusted = false
    return send()
  end
  self.parts[i] = { crc = crc, etag = send().headers.etag or '' }
end

--- Sends the complete parts of a growing file, except the first, because most formats rewrite the beginning of a file
--- at the end.
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

-- Returns the identifiers that the service will give to the object: {CRC32 =, MD5 =} of the parts' checksums; MD5 only
-- if the ETags are MD5.
local function names_of(self)
  local crcs, md5 = {}, {}
  for i, part in ipairs(self.parts) do
    crcs[i] = digest.bytes(part.crc)
    local hex = part.etag:match '^"?(%x+)"?$'
    if hex and #hex == 32 and md5 then md5[i] = digest.bytes(hex) else md5 = nil end
  end
  return { CRC32 = digest.of_text('CRC32', table.concat(crcs)), MD5 = md5 and digest.of_text('MD5', table.concat(md5)) or nil }
end

-- Returns whether the existing object is this file, since a request whose answer was lost may have succeeded.
local function is_ours(self, bytes)
  local head = object.head(self.address)
  local parts = head and head.bytes == bytes and head.checks.parts
  return parts and parts.bytes == self.size and names_of(self)[parts.algorithm] == parts.digest or false
end

local function complete(self, bytes)
  local list = {}
  for i, part in ipairs(self.parts) do
    list[i] = ('<Part><PartNumber>%d</PartNumber><ETag>%s</ETag>%s</Part>'):format(i, (part.etag:gsub('"', '&quot;')),
      self.checked and ('<ChecksumCRC32>%s</ChecksumCRC32>'):format(base64.encode(digest.bytes(part.crc))) or '')
  end
  local answer = object.request(self.address, {
    method = 'POST', query = { uploadId = self.id }, accept = { [412] = true, [404] = true }, idle = 300,
    headers = { ['Content-Type'] = 'application/xml', ['If-None-Match'] = self.o.once and '*' or nil },
    body = COMPLETE:format(table.concat(list)),
  })
  if answer.status < 300 then self.id = nil end
  if not self.id or is_ours(self, bytes) then return true end
  if answer.status == 404 then errors.fail(url.shown(self.address) .. ': the multipart upload no longer exists') end
  return false
end

--- Sends the rest of a file that no longer grows, and completes the object.
--- @param path string
--- @return boolean false if, with `once`, another object exists
function Upload:finish(path)
  local ok, done = pcall(function()
    local bytes = lfs.attributes(path, 'size') or errors.fail(path .. ' does not exist')
    local count = math.max(1, math.ceil(bytes / self.size))
    if count > MOST_PARTS then
      errors.failf('%s: a growing file may have at most %.0f bytes', url.shown(self.address), MOST_PARTS * self.size)
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

--- Removes an incomplete upload, whose storage would be billed.
function Upload:abort()
  if not self.id then return end
  pcall(object.request, self.address, { method = 'DELETE', query = { uploadId = self.id }, accept = { [404] = true } })
  self.id, self.parts = nil, {}
end

local text = arguments.string
arguments.methods(Upload, 'upload', { grow = { text }, finish = { text }, abort = {} })

return M
