--- The stages that a job's settings choose, in the order in which they stand. A new one is a file here and its
--- name below: it returns a function of the job that gives a Stage (models/latentsync/flow.lua), or nil where the
--- settings do not ask for it.

local M = {}

local NAMES = { 'dump_latents', 'upscale' }

--- @param job Job
--- @return Stage[]
function M.of(job)
  local list = {}
  for _, name in ipairs(NAMES) do list[#list + 1] = require('models.latentsync.stages.' .. name)(job) end
  return list
end

return M
