-- Downloads a checkpoint's folder to a volume and verifies each file's hash. An init container of the pods runs it.
--
--     crescent /opt/crescent/share/crescent/scripts/deploy/checkpoint.lua s3://BUCKET/PREFIX DIR SHA256-OF-THE-LIST
--
-- PREFIX/SHA256SUMS lists the files in sha256sum's format ("HEX  latentsync_unet.pt"). Its own hash is the third
-- argument, so that the manifest determines what runs. Existing files with the right hash are kept.

local cr = require 'cr'
local digest = require 'cr.digest'
local errors = require 'cr.errors'
local files = require 'cr.files'
local s3 = require 'cr.remote.s3'

local from, to, wanted = arg[1], arg[2], arg[3]
if not wanted then errors.fail('usage: checkpoint.lua s3://BUCKET/PREFIX DIR SHA256-OF-THE-LIST', 2) end

local function is_right(path, hash)
  return require 'lfs'.attributes(path, 'mode') == 'file' and digest.of_file('SHA256', path) == hash
end

cr.run(function()
  local list = to .. '/SHA256SUMS'
  files.make_folder(to)
  if not is_right(list, wanted) then
    s3.get(from .. '/SHA256SUMS', list)
    if not is_right(list, wanted) then errors.failf('%s/SHA256SUMS has another SHA-256 than %s', from, wanted) end
  end
  for line in io.lines(list) do
    local hash, name = line:match '^(%x+)%s+%*?(.-)%s*$'
    if not hash or name:find '^/' or ('/' .. name .. '/'):find '/%.%./' then errors.failf('%s/SHA256SUMS: %s', from, line) end
    local path = to .. '/' .. name
    if not is_right(path, hash) then
      files.make_folder(path:match '^(.*)/')
      s3.get(from .. '/' .. name, path)
      if not is_right(path, hash) then errors.failf('%s/%s has another SHA-256 than the list says', from, name) end
      print(name)
    end
  end
end)
