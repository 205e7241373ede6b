--- Upscaling in the pipeline: of the new face before it is pasted (`mouth`), so that the region has the frame's own
--- resolution, or of the finished frames (`frame:N`).

local cr = require 'cr'
local align = require 'models.latentsync.align'
local enlargers = require 'models.upscale.enlarger'
local networks = require 'models.upscale.networks'

local FIRM = 1.1   -- a face has to be so many times beyond a border of scales before the scale changes
local MOST = 65536 -- pixels: a wider face is not told from it

-- How wide faces have been in their frames: how many of each whole number of pixels. The whole clip's median is known
-- at its end only, and a clip may be hours long; so each window goes by the median of all faces until then, which
-- comes to the same and does not change with every cut.
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

-- How many times larger than it is made a face is wanted that is `ratio` times as wide in the frame: a whole number, 1 where
-- there is nothing to gain; `now` unless the ratio is firmly beyond its borders.
local function scale_of(ratio, now)
  local wanted = math.max(1, math.ceil(ratio))
  local firm = not now or wanted > now and ratio >= now * FIRM or wanted < now and ratio * FIRM <= wanted
  return firm and wanted or now
end

-- A stage's network on the device where its pictures lie.
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

-- A stage gives its networks' memory back.
local function close(stage)
  for _, enlarger in pairs(stage.enlargers) do enlarger:free() end
end

-- Enlarges the faces of windows, where the frame shows them larger than they are made.
local function of_mouths(job, model)
  local stage, people = { close = close, enlargers = {} }, {} -- people[where their clips come from]: {widths, scale}

  -- The scale of a window's faces.
  local function decide(clip, size)
    local whose = clip.source and (clip.source.who or clip.source) or stage
    local person = people[whose] or { widths = setmetatable({ count = 0 }, Widths) }
    people[whose] = person
    person.widths:add(clip.items, size)
    local side, before = person.widths:median(), person.scale
    local scale = scale_of(side / size, before)
    person.scale = scale
    if scale == 1 and before ~= 1 then
      local from = before and ('from %.2f s on '):format((clip.first - 1) / 25) or ''
      job.progress:note(('--upscale mouth: %sthe faces are %d pixels wide in the frame and are made at %d, so there is nothing to gain')
        :format(from, side, size))
    elseif before == 1 and scale > 1 then
      job.progress:note(('--upscale mouth: from %.2f s on the faces are %d pixels wide in the frame and are enlarged')
        :format((clip.first - 1) / 25, side))
    end
    return scale
  end

  function stage:window(clip, faces)
    if not faces then return nil end
    local size = faces:size(2)
    local scale = decide(clip, size)
    if scale == 1 then return nil end
    local enlarger = enlarger_on(self, faces.device, job, model)
    enlarger.scale = math.min(enlarger.net.scale, scale)
    return job.progress:measure('upscale', clip.n, cr.scope, function()
      local side = math.floor(size * enlarger.scale)
      -- A frame without a face, or in a pause, keeps its place: nothing of it is pasted.
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

-- Enlarges finished frames; the file's size follows.
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
  networks.file(model, '--upscale') -- told now, if there is none
  return scale and of_frames(job, tonumber(scale), model) or of_mouths(job, model)
end
