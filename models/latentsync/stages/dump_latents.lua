--- Keeps the final latents of all windows and writes them as safetensors [1 4 F h w], with the sampling settings.
--- With several people it writes one tensor each, `latents.1` and so on, in the order of voices and person numbers.

local cr = require 'cr'
local errors = require 'cr.errors'
local json = require 'cr.json'

--- @param job Job
--- @return Stage?
return function(job)
  local path = job.settings.dump_latents
  if not path then return nil end
  local speakers, kept_of = {}, {} -- kept_of[who]: that person's latents
  local stage = {}

  function stage:latents(clip, latents)
    local who = clip.source.who
    local kept = kept_of[who]
    if not kept then
      kept = {}
      speakers[#speakers + 1], kept_of[who] = clip.source, kept
    end
    kept[#kept + 1] = cr.keep(cr.scope(function() return latents:permute(1, 5, 2, 3, 4):to 'f32':to 'cpu':clone() end))
  end

  function stage:close(ok)
    local s, sampler = job.settings, job.sampler
    if ok and #speakers == 0 then
      errors.fail(('--dump-latents: no window of %s was generated, so there are no latents'):format(s.video))
    elseif ok then
      cr.scope(function()
        table.sort(speakers, function(a, b) return a:comes_before(b) end)
        local tensors = {}
        for i, speaker in ipairs(speakers) do
          tensors[#speakers == 1 and 'latents' or 'latents.' .. i] = cr.cat(kept_of[speaker.who], 3)
        end
        cr.save(path, tensors, {
          scheduler = json.encode(sampler.scheduler:settings()), steps = tostring(s.steps), seed = tostring(s.seed),
          guidance = json.encode(sampler.settings), cache = sampler.plan and sampler.plan.text or 'none',
        })
      end)
    end
    for _, speaker in ipairs(speakers) do
      for _, tensor in ipairs(kept_of[speaker.who]) do tensor:free() end
    end
  end

  return stage
end
