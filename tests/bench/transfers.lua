-- Transfers without a job: seconds and peak memory for 1 GB from a web server and through S3, alternately by curl and
-- by Crescent, on the same server. Crescent also computes the checksum of all data through S3, which curl
-- does not. The bucket is tests/support/remote/cloud.py's own, because moto is slower than both.
--
--     build/crescent tests/bench/transfers.lua [--megabytes N] [--pairs N]
--
-- Tiny: --megabytes 2 --pairs 1

local cr = require 'cr'
local clouds = require 'tests.support.cloud'
local now = require 'cr.clock'
local options = require 'tests.bench.options'
local scratch = require 'tests.support.scratch'

local args = options.read('Transfers alone: a web server and S3, beside curl.', {
  { '--megabytes', 'int', default = 1024, min = 1, help = 'of the file' },
  { '--pairs', 'int', default = 5, min = 1, help = 'of runs, curl and ours in turns' },
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

local function timed(fn)
  local before, began = peak(), now()
  fn()
  return now() - began, peak() - before
end

local function median(list)
  table.sort(list)
  return list[math.floor((#list + 1) / 2)]
end

-- Both run alternately; the printed share of curl's throughput is the median of the pairs.
local function pairs_of(what, by_curl, by_ours)
  local shares, curls, ours, most = {}, {}, {}, 0
  for i = 1, args.pairs do
    curls[i] = timed(by_curl)
    local grown
    ours[i], grown = timed(by_ours)
    shares[i], most = curls[i] / ours[i], math.max(most, grown)
  end
  print(('%-18s curl %6.2f s %5.0f MB/s   ours %6.2f s %5.0f MB/s   %3.0f %% of curl (%.0f to %.0f)   memory %+.0f MiB'):format(what,
    median(curls), bytes / 1e6 / median(curls), median(ours), bytes / 1e6 / median(ours), 100 * median(shares), 100 * shares[1],
    100 * shares[#shares], most))
end

cr.run(function()
  local address = ('%s/-/file?bytes=%.0f'):format(cloud.url, bytes)
  local path, back = scratch.path 'file', scratch.path 'back'
  download.url(cloud.url .. '/-/file?bytes=1000', path, function() end) -- (libcurl is loaded)
  local signed = "curl -sf --aws-sigv4 aws:amz:eu-west-1:s3 --user 'AKIATEST:secret/of+tests' -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD'"
  local function curl(what) return function() assert(os.execute(what .. ' >/dev/null') == 0) end end
  local object = ('s3://pattern/%.0f'):format(bytes)
  local place = ('%s/pattern/%.0f'):format(cloud.url, bytes)
  pairs_of('a URL', curl(("curl -sf -o '%s' '%s'"):format(path, address)), function() download.url(address, path, function() end) end)
  print(('CRC-32 of it       %.2f s'):format(timed(function() digest.of_file('CRC32', path, 0, nil, cr.await) end)))
  pairs_of('into S3', curl(("%s -T '%s' %s"):format(signed, path, place)), function() assert(s3.put(path, object)) end)
  assert(s3.head(object).checks.parts) -- (computed by the server, once)
  pairs_of('out of S3', curl(("%s -o '%s' %s"):format(signed, back, place)), function() s3.get(object, back) end)
  assert(digest.of_file('SHA256', path) == digest.of_file('SHA256', back), 'another file came back')
end)
