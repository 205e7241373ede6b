--- Upscaling in the pipeline: the generated face before it is pasted (`mouth`), so that the region has the frame's
--- own resolution, or the finished frames (`frame:N`).

local cr = require 'cr'
local align = require 'models.latentsync.align'
local enlargers = require 'models.upscale.enlarger'
local networks = require 'models.upscale.networks'

local FIRM = 1.1 -- hysteresis: a face's size must pass the limit between two scales by this factor before the scale changes
local MOST = 65536 -- pixels: larger widths are counted as this one

-- A histogram of the widths of faces in their frames. The median of the whole clip is known only at its end, and a
-- clip may be hours long. So each window uses the median of all faces so far, which is nearly the same and does not
-- change at every cut.
local Widths = {}
Widths.__index = Widths

function Widths:add(items, size)
  for _, item in ipairs(items) do
    if item.matrix then
      local side = math.max(1, math.min(MOST, math.floor(align.side_in_frame(item.matrix, size) + 0.5)))
      self[side], self.count = (self[side] or 0) + 1, self.count + 1
    end
  end
end

function Widths:median()
  local seen, side = 0, 0
  repeat
    side = side + 1
    seen = seen + (self[side] or 0)
  until 2 * seen >= self.count
  return side
end

-- The integer scale for a face that is `ratio` times as wide in the frame as it was generated; 1 if upscaling gains
-- nothing. Returns `now` unless the ratio is clearly beyond its limits.
local function scale_of(ratio, now)
  local wanted = math.max(1, math.ceil(ratio))
  local firm = not now or wanted > now and ratio >= now * FIRM or wanted < now and ratio * FIRM <= wanted
  return firm and wanted or now
end

-- A stage's network on the device of its images.
local function enlarger_on(stage, device, job, model, scale)
  local here = stage.enlargers[device]
  if not here then
    local function note(text) job.progress:note(text) end
    here = enlargers.new(job.progress:measure('load', 0, networks.load, model, { device = device, dtype = job.settings.dtype }),
      { scale = scale, note = note })
    stage.enlargers[device] = here
  end
  return here
end

-- Frees the networks of a stage.
local function close(stage)
  for _, enlarger in pairs(stage.enlargers) do enlarger:free() end
end

-- Upscales the faces of windows that are larger in the frame than generated.
local function of_mouths(job, model)
  local stage, people = { close = close, enlargers = {} }, {} -- people[speaker]: {widths, scale}

  -- Chooses the scale of a window's faces; `device` generates them.
  local function decide(clip, size, device)
    local whose = clip.source and (clip.source.who or clip.source) or stage
    local person = people[whose] or { widths = setmetatable({ count = 0 }, Widths) }
    people[whose] = person
    person.widths:add(clip.items, size)
    local side, before = person.widths:median(), person.scale
    local scale = scale_of(side / size, before)
    person.scale = scale
    if scale == 1 and before ~= 1 then
      local from = before and ('from %.2f s on '):format((clip.first - 1) / 25) or ''
      job.progress:note(('--upscale mouth: %sthe faces are %d pixels wide in the frame and generated at %d, so upscaling gains nothing')
        :format(from, side, size))
    elseif not before and scale > 1 and device == 'cpu' then
      job.progress:note '--upscale mouth: on a processor this takes some seconds for each frame'
    elseif before == 1 and scale > 1 then
      job.progress:note(('--upscale mouth: from %.2f s on the faces are %d pixels wide in the frame and are upscaled')
        :format((clip.first - 1) / 25, side))
    end
    return scale
  end

  function stage:pass(clip, size) decide(clip, size) end -- luacheck: no self

  function stage:window(clip, faces)
    if not faces then return nil end
    local size = faces:size(2)
    local scale = decide(clip, size, faces.device)
    if scale == 1 then return nil end
    local enlarger = enlarger_on(self, faces.device, job, model)
    enlarger.scale = math.min(enlarger.net.scale, scale)
    return job.progress:measure('upscale', clip.n, cr.scope, function()
      local side = math.floor(size * enlarger.scale)
      -- A frame without a face, or in a pause, keeps its index, but nothing of it is pasted.
      local large = cr.zeros({ clip.n, side, side, 3 }, { device = faces.device })
      for i, item in ipairs(clip.items) do
        if item.matrix and item.share ~= 0 then
          cr.scope(function()
            local unit = ((faces:select(1, i) + 1) / 2):clamp(0, 1)
            large:select(1, i):copy_(enlarger:enlarge(unit) * 2 - 1)
          end)
        end
      end
      return large
    end)
  end

  return stage
end

-- Upscales finished frames; the output file's size follows.
local function of_frames(job, scale, model)
  local stage = { close = close, deep = true, enlargers = {} }

  function stage:frame(_, frame)
    local enlarger = enlarger_on(self, frame.device, job, model, scale)
    return job.progress:measure('upscale', 1, enlarger.frame, enlarger, frame)
  end

  return stage
end

--- @param job Job
--- @return Stage?
return function(job)
  local value = job.settings.upscale
  if not value or value == 'none' then return nil end
  local scale, model = value:match '^frame:([%d.]+):?(.*)$'
  model = scale and model or value:match '^mouth:(.+)$' or ''
  if model == '' then model = scale and 'animevideov3' or 'x4plus' end
  networks.file(model, '--upscale') -- reports a missing network before the job starts
  return scale and of_frames(job, tonumber(scale), model) or of_mouths(job, model)
end
