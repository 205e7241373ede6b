--- Requests about S3 objects, and the metadata that the service returns.
--
-- Buckets of AWS are addressed by host names (virtual-hosted style), those of another endpoint (AWS_ENDPOINT_URL_S3) by paths.

local aws = require 'cr.remote.aws'
local digest = require 'cr.digest'
local errors = require 'cr.errors'
local url = require 'cr.remote.url'

local M = {}

local client     -- for all buckets
local regions = {} -- regions of buckets outside the client's region

-- Returns the endpoint, path and region of an object.
local function place_of(address)
  local bucket, key = address:match '^s3://([%w._-]+)/(.+)$'
  if not bucket then errors.fail(('%s: an object is written s3://BUCKET/KEY'):format(url.shown(address))) end
  client = client or aws.new { service = 's3' }
  local region = regions[bucket] or client.region
  local path = '/' .. url.encode(key, '/')
  if client.own or bucket:find('.', 1, true) then
    local endpoint = client.own and client.endpoint or ('https://s3.%s.amazonaws.com'):format(region)
    return { endpoint = endpoint, path = '/' .. bucket .. path, region = region, bucket = bucket }
  end
  return { endpoint = ('https://%s.s3.%s.amazonaws.com'):format(bucket, region), path = path, region = region, bucket = bucket }
end

--- Sends a request about an object. If the bucket is in another region, the answer says so, and the request is sent there.
--- @param address string s3://BUCKET/KEY
--- @param o table the options of AwsClient.request, without endpoint, path and region
--- @return HttpAnswer it raises errors.unavailable if the failure may be temporary
function M.request(address, o)
  local place, again = place_of(address), o.again
  o.endpoint, o.path, o.region = place.endpoint, place.path, place.region
  function o.again(received, answer)
    local region = answer and answer.headers['x-amz-bucket-region']
    local moved = region and region ~= o.region and (answer.status == 301 or answer.status == 400)
    if moved then
      regions[place.bucket] = region
      place = place_of(address)
      o.endpoint, o.path, o.region = place.endpoint, place.path, place.region
    end
    return again and again(received, answer) or moved
  end
  local ok, answer, problem, passes = pcall(client.request, client, url.shown(address), o)
  if not ok and errors.is_failure(answer) then errors.unavailable(answer.message) end -- there are no credentials
  if not ok then error(answer, 0) end
  return answer or (passes and errors.unavailable or errors.fail)(problem)
end

--- Returns whether the connection to an object is encrypted.
--- @param address string
--- @return boolean
function M.is_private(address) return place_of(address).endpoint:find '^https:' ~= nil end

-- Returns the checks that the headers of an object allow: a digest of the whole or, for a multipart object whose part
-- size our own uploads record (upload.lua), the digest of the parts' digests. An object that was copied since may
-- have other parts, or none.
local function checks_of(h)
  local checks = { bytes = tonumber(h['content-length']), sha256 = h['x-amz-meta-sha256'] }
  if checks.sha256 then return checks end
  local function sum(name)
    local text = h['x-amz-checksum-' .. name]
    return text and digest.from_base64((text:gsub('%-%d+$', '')))
  end
  local sha256, crc32 = sum 'sha256', sum 'crc32'
  local name, count = (h.etag or ''):match '^"?([^"-]+)%-?(%d*)"?$'
  -- The ETag of an object that is encrypted with a customer's key is not an MD5.
  local plain = (h['x-amz-server-side-encryption'] or 'AES256') == 'AES256' and not h['x-amz-server-side-encryption-customer-algorithm']
  local md5 = plain and name and name:find('^' .. ('%x'):rep(32) .. '$') and name or nil
  local size = tonumber(h['x-amz-meta-part-bytes']) or 0
  if count == '' then
    checks.sha256, checks.md5 = sha256, not sha256 and md5 or nil
  elseif (crc32 or md5) and size > 0 and tonumber(count) == math.ceil(checks.bytes / size) then
    checks.parts = { algorithm = crc32 and 'CRC32' or 'MD5', bytes = size, digest = crc32 or md5 }
  end
  return checks
end

--- @class S3Head
--- @field bytes integer
--- @field etag string
--- @field checks Checks

--- Returns the size and the digests of an object.
--- @param address string
--- @return S3Head? nil if there is no such object
function M.head(address)
  local answer = M.request(address,
    { method = 'HEAD', accept = { [404] = true }, headers = { ['x-amz-checksum-mode'] = 'ENABLED' } })
  if answer.status == 404 then return nil end
  return { bytes = tonumber(answer.headers['content-length']), etag = answer.headers.etag, checks = checks_of(answer.headers) }
end

return M
