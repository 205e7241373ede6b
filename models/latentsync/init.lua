--- LatentSync for scripts: `local latentsync = require 'models.latentsync'`.
--
-- latentsync.load returns a model, whose windows a script loops over. latentsync.session keeps a piece of video and
-- sound for sampling again and again. latentsync.job runs a whole job, like the command `lipsync`.

local arguments = require 'cr.arguments'
local model = require 'models.latentsync.model'
local windows = require 'models.latentsync.windows'

local latentsync = { load = model.load, has_face = windows.has_face, pixels = model.pixels }

--- Prepares a piece of video and sound for sampling again and again; see models/latentsync/session.lua.
--- @param options SessionOptions {video =, audio =, checkpoint =, ...}
--- @return Run
function latentsync.session(options) return require 'models.latentsync.session'.new(options) end

--- Creates a job, which runs from its settings to its file; see models/latentsync/job.lua.
--- @param given table settings (models/latentsync/settings.lua) by their names: {video =, audio =, checkpoint =, out =, ...}
--- @return Job
function latentsync.job(given) return require 'models.latentsync.job'.new(given) end

return arguments.guard('latentsync.', latentsync, {
  session = { arguments.table }, job = { arguments.table }, has_face = { arguments.table },
})
