--- The stages that a job's settings select, in processing order. A new stage is a file in this folder and its name
--- below. The file returns a function of the job that returns a Stage (models/latentsync/flow.lua), or nil if the
--- settings do not select it.

local M = {}

M.NAMES = { 'dump_latents', 'upscale' }

--- @param job Job
--- @return Stage[]
function M.of(job)
  local list = {}
  for _, name in ipairs(M.NAMES) do list[#list + 1] = require('models.latentsync.stages.' .. name)(job) end
  return list
end

return M
