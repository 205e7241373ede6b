--- Lip-syncs a video to a voice.
--
-- models/latentsync/settings.lua declares the settings; models/latentsync/job.lua does the work.

local started = require 'cr.clock'()
local cr = require 'cr'
local cli = require 'cr.tools.cli'

local settings = require 'models.latentsync.settings'
local args = cli.parse(arg, {
  name = 'lipsync', summary = 'Lip-syncs the face in a video to a voice.',
  options = settings.schema:options(), groups = settings.groups,
})

cr.run(function()
  local job = require 'models.latentsync.job'.new(args, { where = '--', started = started })
  local result = job:run()
  if args.report then
    local report = require 'models.latentsync.report'
    report.write(args.report, report.of(job, result))
  end
  local more = result.missing > 0 and (', %d without a face'):format(result.missing) or ''
  if result.silent.frames > 0 then more = ('%s, %d unchanged because nobody speaks'):format(more, result.silent.frames) end
  job.progress:note(('%s: %d frames in %.1f s (%s)%s'):format(args.out, result.frames, result.seconds, job:describe(), more))
end)
