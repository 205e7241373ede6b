--- Decides whether a job is accepted: its files exist, have the right content, and stay within the limits.

local problems = require 'cr.serve.problem'
local requests = require 'models.service.request'
local shown = require 'cr.serve.text'.shown

local M = {}

-- The files that a request names; each must exist and have the right content.
local function files_of(request, store, ids)
  local list = {}
  for i, one in ipairs(requests.files(request)) do
    local file = store:file(ids[one.name] or one.name)
    if not file then problems.fail(422, ("%s: there is no file '%s'"):format(one.field, shown(one.name)), one.field) end
    if one.field == 'video' and not file.video then problems.fail(422, ('video: %s has no picture'):format(file.name), 'video') end
    if one.field ~= 'video' and not file.audio then
      problems.fail(422, ('%s: %s has no sound'):format(one.field, file.name), one.field)
    end
    list[i] = file
  end
  return list
end

-- Refuses results that would be too long or too large, as far as this is known in advance.
local function check_extent(request, files, limits)
  local seconds, times = requests.extent(request, files[1], { unpack(files, 2) })
  local v = files[1].video
  if seconds > limits.seconds then
    problems.fail(422, ('the result would be %.4g s long, but the limit is %g s: set duration'):format(seconds,
      limits.seconds), 'duration')
  end
  if v.width * v.height * times * times > limits.pixels then
    problems.fail(422, ('the result would have %.0f x %.0f pixels, but the limit is %.3g megapixels'):format(
      v.width * times, v.height * times, limits.pixels / 1e6), request.kind == 'upscale' and 'scale' or 'upscale')
  end
end

--- Raises a problem if a job cannot be accepted.
--- @param request table {kind, video, audio, voices, ...}, checked
--- @param store Store
--- @param limits table {seconds, pixels}
--- @param ids table<string, string> ids of fetched files, by URL
function M.check(request, store, limits, ids)
  local files = files_of(request, store, ids)
  if request.kind ~= 'faces' then check_extent(request, files, limits) end
end

return M
