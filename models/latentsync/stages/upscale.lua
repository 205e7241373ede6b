--- Upscaling in the pipeline: of the new face before it is pasted (`mouth`), so that the region has the frame's own
--- resolution, or of the finished frames (`frame:N`).

local cr = require 'cr'
local align = require 'models.latentsync.align'
local enlargers = require 'models.upscale.enlarger'
local networks = require 'models.upscale.networks'

-- The median of the sides that a window's faces have in their frames, in pixels.
local function median_side(items, size)
  local sides = {}
  for _, item in ipairs(items) do
    if item.matrix then sides[#sides + 1] = align.side_in_frame(item.matrix, size) end
  end
  table.sort(sides)
  return sides[math.ceil(#sides / 2)]
end

local function load(job, model, scale)
  local s = job.settings
  local function note(text) job.progress:note(text) end
  return enlargers.new(job.progress:measure('load', 0, networks.load, model, { device = s.device, dtype = s.dtype }),
    { scale = scale, note = note })
end

-- A stage gives its network's memory back.
local function close(stage)
  if stage.enlarger then stage.enlarger:free() end
end

-- Enlarges the faces of windows; whether there is anything to gain is decided at the first that has one.
local function of_mouths(job, model)
  local stage = { close = close }

  local function decide(clip, size)
    local side = median_side(clip.items, size)
    if side <= size then
      job.progress:note(('--upscale mouth: the faces are %.0f pixels wide in the frame and are made at %d, so there is nothing to gain')
        :format(side, size))
      return false
    end
    local enlarger = load(job, model)
    -- No larger than the frame shows.
    enlarger.scale = math.min(enlarger.net.scale, math.ceil(side / size))
    return enlarger
  end

  function stage:window(clip, faces)
    if not faces then return nil end
    local size = faces:size(2)
    if self.enlarger == nil then self.enlarger = decide(clip, size) end
    if not self.enlarger then return nil end
    return job.progress:measure('upscale', clip.n, cr.scope, function()
      local side = math.floor(size * self.enlarger.scale)
      -- A frame without a face, or in a pause, keeps its place: nothing of it is pasted.
      local large = cr.zeros({ clip.n, side, side, 3 }, { device = faces.device })
      for i, item in ipairs(clip.items) do
        if item.matrix and item.share ~= 0 then
          cr.scope(function()
            local unit = ((faces:select(1, i) + 1) / 2):clamp(0, 1)
            large:select(1, i):copy_(self.enlarger:enlarge(unit) * 2 - 1)
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
  local stage = { close = close, deep = true }

  function stage:frame(_, frame)
    self.enlarger = self.enlarger or load(job, model, scale)
    return job.progress:measure('upscale', 1, self.enlarger.frame, self.enlarger, frame)
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
