--- Objects of S3 and what speaks like it: s3://BUCKET/KEY, the key as it is, not as it would stand in a URL.
--
-- AWS's buckets are asked by their own host names, those of another endpoint (AWS_ENDPOINT_URL_S3) by paths. Large files
-- go in parts side by side. Each body that goes out is signed with its SHA-256, which the service checks; an object of ours
-- holds the whole file's as x-amz-meta-sha256. What comes is checked by that, by the object's own checksum, or by the ETag
-- where it is an MD5.

local aws = require 'cr.remote.aws'
local digest = require 'cr.digest'
local download = require 'cr.remote.download'
local errors = require 'cr.errors'
local lfs = require 'lfs'
local loop = require 'cr.loop'
local url = require 'cr.remote.url'

local M = {}

local PART, MOST_PARTS = 16 * 2 ^ 20, 10000 -- bytes of a part of what goes out
local AT_ONCE = 4

local COMPLETE = '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">%s</CompleteMultipartUpload>'

local client     -- for all buckets
local regions = {} -- of buckets that are elsewhere

-- How an object is asked for.
local function place_of(address)
  local bucket, key = address:match '^s3://([%w._-]+)/(.+)$'
  if not bucket then errors.fail(('%s: an object is s3://BUCKET/KEY'):format(url.shown(address))) end
  client = client or aws.new { service = 's3' }
  local region = regions[bucket] or client.region
  local path = '/' .. url.encode(key, '/')
  if client.own or bucket:find('.', 1, true) then
    local endpoint = client.own and client.endpoint or ('https://s3.%s.amazonaws.com'):format(region)
    return { endpoint = endpoint, path = '/' .. bucket .. path, region = region, bucket = bucket }
  end
  return { endpoint = ('https://%s.s3.%s.amazonaws.com'):format(bucket, region), path = path, region = region, bucket = bucket }
end

-- A request about an object; a bucket of another region says so, and is asked there.
local function request(address, o)
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
  return client:request(url.shown(address), o)
end

local function wanted(answer, problem) return answer or errors.fail(problem) end

--- @class S3Head
--- @field bytes integer
--- @field etag string
--- @field checks Checks

--- What an object is.
--- @param address string
--- @return S3Head? nil: there is none
function M.head(address)
  local answer = wanted(request(address,
    { method = 'HEAD', accept = { [404] = true }, headers = { ['x-amz-checksum-mode'] = 'ENABLED' } }))
  if answer.status == 404 then return nil end
  local h, checks = answer.headers, { bytes = tonumber(answer.headers['content-length']) }
  checks.sha256 = h['x-amz-meta-sha256']
  if not checks.sha256 and h['x-amz-checksum-sha256'] and not h['x-amz-checksum-sha256']:find '-%d+$' then
    checks.sha256 = digest.from_base64(h['x-amz-checksum-sha256'])
  end
  -- (of an object that is encrypted with a key of one's own the ETag is no MD5)
  local plain = (h['x-amz-server-side-encryption'] or 'AES256') == 'AES256' and not h['x-amz-server-side-encryption-customer-algorithm']
  local md5 = (h.etag or ''):match '^"?(%x+)"?$'
  if not checks.sha256 and plain and md5 and #md5 == 32 then checks.md5 = md5 end
  return { bytes = checks.bytes, etag = h.etag, checks = checks }
end

--- Downloads an object to a file.
--- @param address string
--- @param path string
--- @return integer bytes
function M.get(address, path)
  local head = M.head(address)
  if not head then errors.fail(url.shown(address) .. ': there is no such object') end
  download.by_parts(url.shown(address), path, head.checks, function(headers, out, on_failure)
    headers['If-Match'] = head.etag
    return request(address, { headers = headers, out = out, again = on_failure })
  end)
  return head.bytes
end

-- Whether the object that is there is this file: a request whose answer was lost may have been carried out.
local function is_ours(address, sha256)
  local head = M.head(address)
  return head ~= nil and head.checks.sha256 == sha256
end

local function headers_of(o, sha256)
  return { ['x-amz-meta-sha256'] = sha256, ['Content-Type'] = o.type or 'application/octet-stream' }
end

-- False: there is one already, which is another.
local function put_whole(address, file, o, sha256)
  local headers = headers_of(o, sha256)
  if o.once then headers['If-None-Match'] = '*' end
  local answer = wanted(request(address,
    { method = 'PUT', file = file, sha256 = sha256, headers = headers, accept = { [412] = true } }))
  return answer.status < 300 or is_ours(address, sha256)
end

local function put_part(address, path, id, number, offset, bytes)
  local sha256 = digest.of_file('SHA256', path, offset, bytes, loop.yield)
  local answer = wanted(request(address, {
    method = 'PUT', query = { partNumber = number, uploadId = id }, sha256 = sha256, file = { path = path, offset = offset, bytes = bytes },
    headers = { ['Content-Type'] = 'application/octet-stream' },
  }))
  return ('<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>'):format(number, (answer.headers.etag:gsub('"', '&quot;')))
end

local function put_in_parts(address, path, bytes, o, sha256)
  local begun = wanted(request(address, { method = 'POST', query = { uploads = '' }, body = '', headers = headers_of(o, sha256) }))
  local id = begun.body:match '<UploadId>([^<]+)</UploadId>' or errors.fail(url.shown(address) .. ': an upload in parts has no number')
  local size = math.max(PART, math.ceil(bytes / MOST_PARTS))
  local parts = {}
  local ok, result = pcall(function()
    download.each(math.ceil(bytes / size), AT_ONCE, function(i)
      local offset = (i - 1) * size
      parts[i] = put_part(address, path, id, i, offset, math.min(size, bytes - offset))
    end)
    local answer = wanted(request(address, {
      method = 'POST', query = { uploadId = id }, accept = { [412] = true, [404] = true }, idle = 300,
      headers = { ['Content-Type'] = 'application/xml', ['If-None-Match'] = o.once and '*' or nil },
      body = COMPLETE:format(table.concat(parts)),
    }))
    if answer.status < 300 then return 'done' end
    if is_ours(address, sha256) then return 'done' end
    if answer.status == 404 then errors.fail(url.shown(address) .. ': the upload in parts is gone') end
    return 'other'
  end)
  if ok and result == 'done' then return true end
  -- What was uploaded would be paid for.
  pcall(request, address, { method = 'DELETE', query = { uploadId = id }, accept = { [404] = true } })
  if not ok then error(result, 0) end
  return false
end

--- Uploads a file.
--- @param path string
--- @param address string
--- @param o table? {once = leave alone what is there already, type = of the content}
--- @return boolean whether it is there now; false: with `once`, there is another
function M.put(path, address, o)
  o = o or {}
  local bytes = lfs.attributes(path, 'size') or errors.fail(path .. ' is not there')
  local sha256 = digest.of_file('SHA256', path, 0, bytes, loop.yield)
  if bytes > PART then return put_in_parts(address, path, bytes, o, sha256) end
  return put_whole(address, { path = path, bytes = bytes }, o, sha256)
end

return M
