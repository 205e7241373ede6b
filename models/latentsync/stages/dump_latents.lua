--- Keeps the final latents of all windows and writes them as safetensors [1 4 F h w], with what they were made by.

local cr = require 'cr'
local errors = require 'cr.errors'
local json = require 'cr.json'

--- @param job Job
--- @return Stage?
return function(job)
  local path = job.settings.dump_latents
  if not path then return nil end
  local kept = {}
  local stage = {}

  function stage:latents(_, latents)
    kept[#kept + 1] = cr.keep(cr.scope(function() return latents:permute(1, 5, 2, 3, 4):to 'f32':clone() end))
  end

  function stage:close(ok)
    local s, sampler = job.settings, job.sampler
    if ok and #kept == 0 then
      errors.fail(('--dump-latents: no window of %s was made, so there are no latents'):format(s.video))
    elseif ok then
      cr.scope(function()
        cr.save(path, { latents = cr.cat(kept, 3) }, {
          scheduler = json.encode(sampler.scheduler:settings()), steps = tostring(s.steps), seed = tostring(s.seed),
          guidance = json.encode(sampler.settings), cache = s.cache or 'none',
        })
      end)
    end
    for _, tensor in ipairs(kept) do tensor:free() end
  end

  return stage
end
