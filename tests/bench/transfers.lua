-- Transfers alone: seconds and peak memory of 1 GB from a web server and through S3, by curl and by ours,
-- which computes the SHA-256 of all that it sends, too. The bucket is tests/support/remote/cloud.py's own: moto is slower than both.
--
--     build/crescent tests/bench/transfers.lua [--megabytes N]
--
-- Tiny: --megabytes 2

local cr = require 'cr'
local clouds = require 'tests.support.cloud'
local now = require 'cr.clock'
local options = require 'tests.bench.options'
local scratch = require 'tests.support.scratch'

local args = options.read('Transfers alone: a web server and S3, beside curl.', {
  { '--megabytes', 'int', default = 1024, min = 1, help = 'of the file' },
})
local lacks = clouds.lacks_cloud()
if lacks then
  print(lacks)
  return
end
local bytes = args.megabytes * 2 ^ 20

local function peak()
  return tonumber(require 'cr.files'.read '/proc/self/status':match 'VmHWM:%s*(%d+)') / 1024
end

local cloud = clouds.cloud()
cloud:enter()
local s3, download, digest = require 'cr.remote.s3', require 'cr.remote.download', require 'cr.digest'

local function timed(what, fn)
  local before, began = peak(), now()
  fn()
  local seconds = now() - began
  print(('%-28s %6.2f s  %7.0f MB/s  peak of memory %+.0f MiB'):format(what, seconds, bytes / 1e6 / seconds, peak() - before))
end

cr.run(function()
  local address = ('%s/-/file?bytes=%.0f'):format(cloud.url, bytes)
  local path, back = scratch.path 'file', scratch.path 'back'
  download.url(cloud.url .. '/-/file?bytes=1000', path, function() end) -- (libcurl is loaded)
  timed('curl', function() assert(os.execute(("curl -s -o '%s' '%s'"):format(path, address)) == 0) end)
  timed('download of a URL', function() download.url(address, path, function() end) end)
  timed('SHA-256 of it', function() digest.of_file('SHA256', path, 0, nil, cr.yield) end)
  local signed = "curl -sf --aws-sigv4 aws:amz:eu-west-1:s3 --user 'AKIATEST:secret/of+tests' -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD'"
  local function curl(what) assert(os.execute(('%s %s %s/pattern/%.0f >/dev/null'):format(signed, what, cloud.url, bytes)) == 0) end
  timed('curl into S3', function() curl(("-T '%s'"):format(path)) end)
  timed('curl out of S3', function() curl(("-o '%s'"):format(back)) end)
  local object = ('s3://pattern/%.0f'):format(bytes)
  timed('into S3', function() assert(s3.put(path, object)) end)
  timed('out of S3', function() s3.get(object, back) end)
  assert(digest.of_file('SHA256', path) == digest.of_file('SHA256', back), 'another file came back')
end)
