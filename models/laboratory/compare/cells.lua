--- Makes the cells of a comparison that share a piece of video and sound: it is prepared once a size,
-- and each cell costs its sampling, decoding and writing.

local cr = require 'cr'
local clock = require 'cr.clock'
local grid = require 'models.laboratory.compare.grid'
local metrics = require 'models.laboratory.compare.metrics'
local sheet = require 'models.laboratory.compare.sheet'

local cells = {}

local FACE_CRF = 14 -- the pictures that people compare: hardly any loss

-- The most that tensors held on the device since the peak began anew.
local function peak(device) return cr.memory(device).peak end

-- A stage that writes the face clip, keeps a few pictures, measures, and for a reference keeps the mouths. Its own
-- time is not the cell's.
local function observer(cell, run, sample, folder, mouth)
  local media = require 'cr.media'
  local o = run.settings
  local begin = o.start
  local S = run.model.size
  local sink = media.writer(folder:file(cell, 'face.mp4'), {
    width = S, height = S, fps = 25, crf = FACE_CRF, audio = o.audio, audio_start = begin,
    audio_end = begin + sample.frames / 25,
  })
  local self = { seconds = 0, pictures = {}, mouths = {}, by_window = {}, sink = sink }
  local wanted = sheet.places(sample.frames)
  local frame = 0
  local sums = cell.reference and metrics.sums()
  local theirs, their_latents
  if sums then
    local weights = require 'cr.weights'
    theirs = weights.open(folder:file({ id = cell.reference }, 'mouth.safetensors'))
    their_latents = weights.open(folder:file({ id = cell.reference }, 'latents.safetensors'))
  end

  function self.window(_, clip, faces)
    local start, w = clock(), clip.window
    cr.scope(function()
      local n, name = clip.n, 'window' .. w
      local pixels
      if faces then
        pixels = ((faces + 1) * 127.5):round():clamp(0, 255):to('u8'):to 'cpu'
        local mine = mouth:cut(pixels):contiguous()
        self.by_window[name] = sample.latents[w]
        if sums then
          mouth:add(sums, mine, theirs:get(name))
          metrics.add_latents(sums, sample.latents[w], their_latents:get(name))
        end
        if cell.is_reference then self.mouths[name] = cr.keep(mine:clone()) end
      else
        pixels = cr.full({ n, S, S, 3 }, 128, { dtype = 'u8' })
      end
      for i = 1, n do
        frame = frame + 1
        if wanted[frame] then self.pictures[#self.pictures + 1] = cr.keep(pixels:select(1, i):clone()) end
      end
      sink:write(pixels)
    end)
    self.seconds = self.seconds + clock() - start
  end

  function self.finish()
    local start = clock()
    sink:close()
    cr.save(folder:file(cell, 'latents.safetensors'), self.by_window)
    if cell.is_reference then cr.save(folder:file(cell, 'mouth.safetensors'), self.mouths) end
    sheet.write_strip(folder:file(cell, 'strip.png'), self.pictures)
    self.seconds = self.seconds + clock() - start
    return sums and sums.frames > 0 and metrics.result(sums) or nil
  end

  function self.free()
    sink:abort()
    if theirs then
      theirs:close()
      their_latents:close()
    end
    for _, list in ipairs { self.pictures, self.mouths } do
      for _, t in pairs(list) do t:free() end
    end
  end
  return self
end

local function with_face(run)
  local n = 0
  for _, window in ipairs(run.windows) do n = n + (window.has_face and 1 or 0) end
  return n
end

--- Makes one cell.
--- @param cell table
--- @param run Run prepared, with the cell's dtype and size
--- @param folder ComparisonFolder
--- @param mouth Mouth
--- @param progress table of the whole comparison
--- @return table result
function cells.make(cell, run, folder, mouth, progress)
  local device = run.model.device
  folder:begin(cell)
  -- What another cell left behind must not slow this one, nor count.
  collectgarbage()
  collectgarbage()
  cr.reset_peak(device)
  local sample = run:sample {
    scheduler = cell.scheduler, steps = cell.steps, guidance = grid.guidance(cell), cache = grid.cache(cell), seed = cell.seed,
    progress = progress, quiet = true,
  }
  local result = {
    sampling_seconds = sample.seconds, sampling_peak_bytes = peak(device), calls = sample.settings.steps,
    step_seconds = sample.seconds / (cell.steps * math.max(1, with_face(run))), frames = sample.frames, shown = 'face.mp4',
    windows = #run.windows,
  }
  local watch = observer(cell, run, sample, folder, mouth)
  local ok, err = pcall(function()
    local start = clock()
    sample:save(folder:file(cell, 'clip.mp4'), { quiet = true, stages = { watch } })
    local took = clock() - start - watch.seconds
    result.peak_bytes = peak(device)
    result.seconds = sample.seconds + took
    local distance = watch.finish()
    if distance then
      result.psnr, result.ssim, result.latents_distance = distance.psnr, distance.ssim, distance.latents
    end
  end)
  watch.free()
  for _, x in ipairs(sample.latents) do
    if x then x:free() end
  end
  run.last = nil
  if not ok then error(err, 0) end
  return result
end

return cells
