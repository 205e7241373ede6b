--- Lip-syncs a video to a live sound: frames come out while the sound comes in.
--
-- models/latentsync/live/settings.lua declares the settings; models/latentsync/live/init.lua does the work.

local cr = require 'cr'
local cli = require 'cr.tools.cli'

local settings = require 'models.latentsync.live.settings'

local args = cli.parse(arg, {
  name = 'live', summary = 'Lip-syncs a face to a live sound.',
  options = settings.schema:options(), groups = settings.groups,
})

cr.run(function()
  local session = require 'models.latentsync.live'.open(args, { where = '--' })
  local report = session:run()
  if not args.quiet then
    for _, line in ipairs(session.engine.metrics:lines()) do session.progress:note(line) end
  end
  report.settings = settings.schema:report(session.settings)
  if args.report then require 'cr.files'.write(args.report, require 'cr.json'.encode(report, true) .. '\n', '--report') end
  session:free()
end)
