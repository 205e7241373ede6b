-- S3, requests and credentials with moto behind a gate that verifies every signature, fails and cuts connections
-- (tests/support/remote/cloud.py).

local t = require 'tests.support.tap'
local cr = require 'cr'
local digest = require 'cr.digest'
local environment = require 'tests.support.environment'
local http = require 'cr.remote.http'
local lfs = require 'lfs'
local scratch = require 'tests.support.scratch'
local service = require 'tests.support.cloud'
local url = require 'cr.remote.url'

t.test('URLs: parts, canonical queries, and their display', function()
  local u = url.parse 'redis://anna:se%2Fcret@[::1]:6380/2?stream=a%20b&group=g#x'
  t.equal(u.scheme .. u.user .. u.password .. u.host .. u.port .. u.path, 'redisannase/cret[::1]6380/2')
  t.equal(u.query.stream .. u.query.group .. u.fragment, 'a bgx')
  t.equal(url.parse 'no url', nil)
  t.equal(url.parse 'http://a b/', nil)
  t.equal(url.query { ['a-b'] = 1, a = 2, uploads = '' }, '?a=2&a-b=1&uploads=')
  t.equal(url.shown 'https://me:pw@host/a/b?X-Amz-Signature=1#f', 'https://host/a/b')
  t.equal(url.encode("ä/b c(1)'", '/'), '%C3%A4/b%20c%281%29%27')
end)

t.test('digests of strings, of parts of files, and from base64', function()
  local path = scratch.write('digest', 'xxabcyy')
  t.equal(digest.of_text('MD5', 'abc'), '900150983cd24fb0d6963f7d28e17f72')
  t.equal(digest.of_file('SHA256', path, 2, 3), digest.of_text('SHA256', 'abc'))
  t.equal(digest.of_text('CRC32', '123456789'), 'cbf43926')
  t.equal(digest.of_file('CRC32', path, 2, 3), '352441c2')
  t.equal(digest.from_base64 'ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=', digest.of_text('SHA256', 'abc'))
  t.raises(function() digest.of_file('MD5', scratch.path 'absent') end, 'absent: No such file')
end)

local lacks = service.lacks_cloud()
if lacks then
  t.test('S3 and credentials', function() t.skip(lacks) end)
  t.done()
end

local cloud = service.cloud()
cloud:enter()
local s3 = require 'cr.remote.s3'
local download = require 'cr.remote.download'

local function run(fn) cr.run(fn) end

-- A file with the given number of bytes, without repetition.
local function file(name, bytes)
  local parts = {}
  for i = 1, 4099 do parts[i] = digest.of_text('SHA256', name .. i) end
  local block = table.concat(parts)
  return scratch.write(name, block:rep(math.ceil(bytes / #block)):sub(1, bytes))
end

t.test('objects are uploaded and downloaded, whatever their names and sizes', function()
  run(function()
    service.make_bucket 'films'
    for name, bytes in pairs { ['a.bin'] = 1, ['empty'] = 0, ['ä b+c/(1)~&=?.mp4'] = 70000, ['x/../y//z'] = 5 } do
      local path = file('out', bytes)
      local address = 's3://films/' .. name
      t.ok(s3.put(path, address), name)
      t.equal(s3.get(address, scratch.path 'in'), bytes, name)
      t.ok(scratch.read(scratch.path 'in') == scratch.read(path), name)
    end
    t.equal(s3.head 's3://films/absent', nil)
    t.raises(function() s3.get('s3://films/absent', scratch.path 'absent') end, 's3://films/absent: there is no such object')
    t.raises(function() s3.put(scratch.path 'in', 's3://films') end, 'an object is written s3://BUCKET/KEY')
    t.raises(function() s3.put(scratch.path 'in', 's3://nobucket/x') end, 's3://nobucket/x: NoSuchBucket')
    t.equal(lfs.attributes(scratch.path 'absent.part'), nil)
    t.equal(#cloud:seen().bad, 0, table.concat(cloud:seen().bad, ', '))
  end)
end)

t.test('a file in parts, while the bucket fails and connections break', function()
  run(function()
    local bytes = 50 * 2 ^ 20 + 17
    local path = file('large', bytes)
    cloud:set { fail = 0.3 }
    t.ok(s3.put(path, 's3://films/large', { once = true }))
    t.equal(s3.get('s3://films/large', scratch.path 'back'), bytes)
    cloud:set { fail = 0 }
    t.equal(digest.of_file('SHA256', scratch.path 'back'), digest.of_file('SHA256', path))
    local seen = cloud:seen()
    t.ok(seen.failed >= 3, 'failed: ' .. seen.failed)
    t.equal(#seen.bad, 0, table.concat(seen.bad, ', '))
  end)
end)

t.test('with `once`, existing objects are kept; an identical one counts as uploaded', function()
  run(function()
    local first, second = file('first', 100), file('second', 100)
    t.equal(s3.put(first, 's3://films/once', { once = true }), true)
    t.equal(s3.put(second, 's3://films/once', { once = true }), false)
    t.equal(s3.put(first, 's3://films/once', { once = true }), true)
    t.equal(s3.put(file('other', 20 * 2 ^ 20), 's3://films/large', { once = true }), false)
    s3.get('s3://films/once', scratch.path 'in')
    t.ok(scratch.read(scratch.path 'in') == scratch.read(first))
    t.equal(s3.put(second, 's3://films/once'), true)
 -- nothing remains of aborted uploads
    local list = require 'cr.remote.aws'.new { service = 's3' }:request('uploads', { path = '/films', query = { uploads = '' } })
    t.ok(not list.body:find '<Upload>', list.body)
  end)
end)

t.test('a file is uploaded while it grows, and appears in its final form', function()
  run(function()
    local upload, MIB = require 'cr.remote.upload', 2 ^ 20
    local address, whole = 's3://films/grown', scratch.read(file('grown', 50 * MIB))
    local path = scratch.path 'growing'
    local up = upload.new(address, { once = true, type = 'video/x-matroska' })
    for _, size in ipairs { 5, 20, 33, 49 } do
      scratch.write('growing', 'x' .. whole:sub(2, size * MIB))
      up:grow(path)
    end
    t.ok(up.parts[2] and up.parts[3] and not up.parts[1] and not up.parts[4])
    t.equal(s3.head(address), nil)
    local second = up.parts[2]
    -- Some formats write the file's head at the end; a few also append data.
    scratch.write('growing', whole:sub(1, 40 * MIB) .. 'changed' .. whole:sub(40 * MIB + 8))
    t.equal(up:finish(path), true)
    t.equal(up.parts[2], second) -- it was not sent again
    s3.get(address, scratch.path 'in')
    t.ok(scratch.read(scratch.path 'in') == scratch.read(path))
    t.equal(s3.head(address).checks.parts.bytes, upload.PART)
    -- An identical object of somebody else needs no upload; a late one leaves nothing.
    t.equal(s3.put(path, address, { once = true }), true)
    local late = upload.new(address, { once = true })
    late:grow(path)
    scratch.write('growing', whole)
    t.equal(late:finish(path), false)
    local given_up = upload.new('s3://films/given-up', { once = true })
    given_up:grow(path)
    given_up:abort()
    given_up:abort()
    t.equal(s3.head 's3://films/given-up', nil)
    local list = require 'cr.remote.aws'.new { service = 's3' }:request('uploads', { path = '/films', query = { uploads = '' } })
    t.ok(not list.body:find '<Upload>', list.body)
    t.equal(#cloud:seen().bad, 0, table.concat(cloud:seen().bad, ', '))
  end)
end)

t.test('parts that a service does not check by their sum are signed with it, and without sums that is so from the start', function()
  run(function()
    local up = require 'cr.remote.upload'.new('s3://films/signed', {})
    t.equal(up.trusted, true)
    t.equal(up:finish(scratch.path 'growing'), true)
    t.equal(up.trusted, false) -- moto reports no checksums of parts
    local there = require 'cr.remote.upload'.new('s3://pattern/1', {})
    there:finish(scratch.path 'growing')
    t.equal(there.trusted, true)
    environment.set('AWS_REQUEST_CHECKSUM_CALCULATION', 'when_required')
    local path = file('plain', 20 * 2 ^ 20)
    t.ok(s3.put(path, 's3://films/plain', { once = true }))
    environment.set('AWS_REQUEST_CHECKSUM_CALCULATION', nil)
    t.equal(s3.head 's3://films/plain'.checks.parts.algorithm, 'MD5') -- from its ETag
    t.equal(s3.get('s3://films/plain', scratch.path 'in'), 20 * 2 ^ 20)
    t.equal(#cloud:seen().bad, 0, table.concat(cloud:seen().bad, ', '))
  end)
end)

t.test('damaged downloads are refused', function()
  run(function()
    local address, path = 's3://films/damaged', file('damaged', 1000)
    local aws = require 'cr.remote.aws'
    assert(aws.new { service = 's3' }:request(address, {
      method = 'PUT', path = '/films/damaged', body = scratch.read(path),
      headers = { ['x-amz-meta-sha256'] = digest.of_text('SHA256', 'another'), ['Content-Type'] = 'a/b' },
    }))
    t.raises(function() s3.get(address, scratch.path 'in2') end, 'the SHA256 of what arrived is not the expected one')
    -- An object in parts whose composite digest is wrong.
    t.raises(function()
      local parts = { algorithm = 'SHA256', bytes = 1000, digest = ('0'):rep(64) }
      download.by_parts('parts', scratch.path 'in2', { bytes = 3000, parts = parts },
        function(headers, out) return http.request { url = cloud.url .. '/-/file?bytes=3000', headers = headers, out = out } end)
    end, '^parts: the SHA256 of what arrived is not the expected one$')
    t.equal(lfs.attributes(scratch.path 'in2') or lfs.attributes(scratch.path 'in2.part'), nil)
  end)
end)

t.test('a broken download is resumed, restarted if ranges are not supported, and follows redirections', function()
  run(function()
    local function any() end
    local bytes, path = 3000000, scratch.path 'url'
    local function right() return lfs.attributes(path, 'size') == bytes and digest.of_file('SHA256', path) end
    download.url(cloud.url .. '/-/file?bytes=' .. bytes, path, any)
    local sum = right()
    download.url(cloud.url .. '/-/file?cut=700001&bytes=' .. bytes .. '#sha256=' .. sum, path, any)
    t.equal(right(), sum)
    t.raises(function() download.url(cloud.url .. '/-/file?bytes=10#sha256=' .. sum, scratch.path 'no', any) end, 'SHA256 of what arrived')
    local to = url.encode(cloud.url .. '/-/file?bytes=' .. bytes)
    local asked = {}
    download.url(cloud.url .. '/-/file?to=' .. to, path, function(address) asked[#asked + 1] = address end)
    t.equal(right(), sum)
    t.equal(#asked, 2)
    t.raises(function() download.url(cloud.url .. '/-/file?to=' .. to, path, function(address)
      if not address:find 'to=' then error('not there', 0) end
    end) end, 'not there')
    t.raises(function() download.url(cloud.url .. '/-/nothing', scratch.path 'no', any) end, '/%-/nothing: status')
  end)
end)

t.test('an abandoned request ends, and the others continue', function()
  run(function()
    local task = cr.go(http.request, { url = cloud.url .. '/-/file?bytes=2000000000', limit = 2 ^ 31 })
    cr.sleep(0.05)
    task:cancel 'enough'
    t.raises(function() cr.await(task) end, 'enough')
    t.equal(http.request { url = cloud.url .. '/-/file?bytes=8' }.status, 200)
    t.ok(t.wait(function() return tonumber(require 'cr.ffi'.C.cr_loop_pending()) == 0 end))
    t.raises(function() http.request { url = cloud.url, headers = { A = 'b\r\nC: d' } } end, 'line break')
    t.raises(function() http.request { url = cloud.url .. '/-/file?bytes=1000', limit = 10 } end, 'more than 10 bytes')
  end)
end)

-- ---- credentials ---------------------------------------------------------------------------------

local VARIABLES = {
  'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN', 'AWS_PROFILE', 'AWS_CONFIG_FILE', 'AWS_SHARED_CREDENTIALS_FILE',
  'AWS_ROLE_ARN', 'AWS_WEB_IDENTITY_TOKEN_FILE', 'AWS_CONTAINER_CREDENTIALS_FULL_URI', 'AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE',
  'AWS_EC2_METADATA_DISABLED', 'AWS_EC2_METADATA_SERVICE_ENDPOINT',
}

-- Calls fn with only these variables, and a credentials chain.
local function with(values, fn)
  local before = {}
  for _, name in ipairs(VARIABLES) do
    before[name] = os.getenv(name)
    environment.set(name, values[name])
  end
  local none_of = { AWS_CONFIG_FILE = '/dev/null', AWS_SHARED_CREDENTIALS_FILE = '/dev/null', AWS_EC2_METADATA_DISABLED = 'true' }
  for name, none in pairs(none_of) do
    if not values[name] then environment.set(name, none) end
  end
  local ok, problem = pcall(run, function() fn(require 'cr.remote.credentials'.chain 'eu-west-1') end)
  for _, name in ipairs(VARIABLES) do environment.set(name, before[name]) end
  if not ok then error(problem, 0) end
end

t.test('credentials are found in each of their sources, in order', function()
  local keys = scratch.write('credentials', '[default]\naws_access_key_id = A1\naws_secret_access_key=S1\n' ..
    '[own]\naws_access_key_id = AKIATEST\naws_secret_access_key = secret/of+tests\n')
  local config = scratch.write('config', '[profile role]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = own\n' ..
    '[profile web]\nrole_arn = arn:aws:iam::1:role/y\nweb_identity_token_file = ' .. scratch.write('token', 'web-token\n') .. '\n' ..
    '[profile circle]\nrole_arn = arn:aws:iam::1:role/z\nsource_profile = circle2\n' ..
    '[profile circle2]\nrole_arn = arn:aws:iam::1:role/z\nsource_profile = circle\n')
  local function expect(values, pattern, token)
    with(values, function(chain)
      local got = chain:get()
      t.ok(got.id:find(pattern) and (got.token ~= nil) == (token or false), pattern .. ': ' .. got.id)
    end)
  end
  local shared = { AWS_SHARED_CREDENTIALS_FILE = keys, AWS_CONFIG_FILE = config }
  local function plus(more)
    local all = {}
    for _, part in ipairs { shared, more } do
      for name, value in pairs(part) do all[name] = value end
    end
    return all
  end
  expect(plus { AWS_ACCESS_KEY_ID = 'E', AWS_SECRET_ACCESS_KEY = 'S', AWS_SESSION_TOKEN = 'T' }, '^E$', true)
  expect(shared, '^A1$')
  expect(plus { AWS_PROFILE = 'own' }, '^AKIATEST$')
  expect(plus { AWS_PROFILE = 'role' }, '^ASIASTS', true)
  expect(plus { AWS_PROFILE = 'web' }, '^ASIASTS', true)
  local web = { AWS_ROLE_ARN = 'arn:aws:iam::1:role/w', AWS_WEB_IDENTITY_TOKEN_FILE = scratch.path 'token' }
  expect(plus(web), '^ASIASTS', true)
  expect({
    AWS_CONTAINER_CREDENTIALS_FULL_URI = cloud.url .. '/-/container',
    AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE = scratch.write('pod', 'pod-token'),
  }, '^ASIAPOD', true)
  local instance = { AWS_EC2_METADATA_DISABLED = 'false', AWS_EC2_METADATA_SERVICE_ENDPOINT = cloud.url }
  expect(instance, '^ASIAIMDS', true)
  local function refuses(values, pattern)
    with(values, function(chain) t.raises(function() chain:get() end, pattern) end)
  end
  refuses({}, 'there are no AWS credentials: set')
  refuses(plus { AWS_PROFILE = 'absent' }, 'AWS profile absent, which AWS_PROFILE names, is in neither')
  refuses(plus { AWS_PROFILE = 'circle' }, 'form a cycle')
  refuses({ AWS_CONTAINER_CREDENTIALS_FULL_URI = 'http://example.org/x' }, 'only go to this machine')
  scratch.write('token', 'stale')
  refuses(web, 'the role arn:aws:iam::1:role/w gives no credentials: status 403, InvalidIdentityToken')
end)

t.test('credentials are renewed before they expire, once for all requests, and used while renewal fails', function()
  local pod = {
    AWS_CONTAINER_CREDENTIALS_FULL_URI = cloud.url .. '/-/container',
    AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE = scratch.write('pod', 'pod-token'),
  }
  with(pod, function(chain)
    cloud:set { expires = 200 } -- less than the five minutes before expiry at which they are renewed
    local before = cloud:seen().credentials
    local tasks = {}
    for i = 1, 5 do tasks[i] = function() return chain:get().id end end
    local ids = cr.all(tasks)
    t.equal(cloud:seen().credentials, before + 1)
    t.equal(ids[1], ids[5])
    t.ok(chain:get().id ~= ids[1], 'they were not renewed')
    local last = chain:get().id
    scratch.write('pod', 'wrong')
    t.equal(chain:get().id, last)
    cloud:set { expires = 3600 }
    scratch.write('pod', 'pod-token')
    local fresh = chain:get().id
    t.equal(chain:get().id, fresh)
  end)
end)

t.test('requests are signed with a session\'s token, too', function()
  with({ AWS_EC2_METADATA_DISABLED = 'false', AWS_EC2_METADATA_SERVICE_ENDPOINT = cloud.url }, function()
    local aws = require 'cr.remote.aws'
    local before = #cloud:seen().bad
    local query = { ['list-type'] = 2, prefix = 'a b/ü' }
    assert(aws.new { service = 's3', region = 'us-west-2' }:request('buckets', { path = '/', query = query }))
    t.equal(#cloud:seen().bad, before)
  end)
end)

t.done()
