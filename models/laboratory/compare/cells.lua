--- Generates the cells of a comparison that share a piece of video and sound. The piece is prepared once per size;
--- each cell then costs sampling, decoding and writing.

local axes = require 'models.laboratory.compare.axes'
local cr = require 'cr'
local clock = require 'cr.clock'
local detail = require 'models.laboratory.detail'
local metrics = require 'models.latentsync.metrics'
local sheet = require 'models.laboratory.compare.sheet'

local cells = {}

local FACE_CRF = 14 -- almost lossless, because people compare these images

-- Peak memory of tensors on the device since the peak was reset.
local function peak(device) return cr.memory(device).peak end

-- Two stages: `decoded` measures the faces directly after decoding, and keeps the mouths of a reference. `pasted`,
-- behind the upscaling stage, writes the face clip, keeps a few images and measures finished frames. Their own time
-- is not counted for the cell.
local function observer(cell, run, sample, folder, mouth)
  local media = require 'cr.media'
  local o = run.settings
  local begin = o.start
  local self = { seconds = 0, pictures = {}, mouths = {}, by_window = {}, decoded = {}, pasted = {} }
  local wanted = sheet.places(sample.frames)
  local frame, without, sink = 0, 0, nil
  local mouth_detail = detail.of_mouth(run.mask, run.model.device)
  local sums = cell.reference and metrics.sums()
  local theirs, their_latents
  if sums then
    local weights = require 'cr.weights'
    theirs = weights.open(folder:file({ id = cell.reference }, 'mouth.safetensors'))
    their_latents = weights.open(folder:file({ id = cell.reference }, 'latents.safetensors'))
  end

  local function on_my_time(fn)
    return function(_, ...)
      local start = clock()
      cr.scope(fn, ...)
      self.seconds = self.seconds + clock() - start
    end
  end

  local function as_bytes(faces) return ((faces + 1) * 127.5):round():clamp(0, 255):to('u8'):to 'cpu' end

  -- The clip's size is that of the faces of the first window with a face.
  local function write(pixels)
    local size = pixels:size(2)
    sink = sink or media.writer(folder:file(cell, 'face.mp4'), {
      width = size, height = size, fps = 25, crf = FACE_CRF, audio = o.audio, audio_start = begin,
      audio_end = begin + sample.frames / 25,
    })
    for i = 1, pixels:size(1) do
      frame = frame + 1
      if wanted[frame] then self.pictures[#self.pictures + 1] = cr.keep(pixels:select(1, i):clone()) end
    end
    sink:write(pixels)
  end

  self.decoded.window = on_my_time(function(clip, faces)
    if not faces then return end
    local w, name = clip.window, 'window' .. clip.window
    local mine = mouth:cut(as_bytes(faces)):contiguous()
    self.by_window[name] = sample.latents[w]
    if sums then
      mouth:add(sums, mine, theirs:get(name))
      metrics.add_latents(sums, sample.latents[w], their_latents:get(name))
    end
    if cell.is_reference then self.mouths[name] = cr.keep(mine:clone()) end
  end)

  self.pasted.window = on_my_time(function(clip, faces)
    local size = faces and faces:size(2) or self.size
    local function grey(n) return cr.full({ n, size, size, 3 }, 128, { dtype = 'u8' }) end
    if not size then
      without = without + clip.n
      return
    end
    if without > 0 then write(grey(without)) end
    self.size, without = size, 0
    write(faces and as_bytes(faces) or grey(clip.n))
  end)

  self.pasted.frame = on_my_time(function(item, picture) mouth_detail:add(item, picture) end)

  -- The measurements; nil where there are none.
  function self.finish()
    local start = clock()
    sink:close()
    cr.save(folder:file(cell, 'latents.safetensors'), self.by_window)
    if cell.is_reference then cr.save(folder:file(cell, 'mouth.safetensors'), self.mouths) end
    sheet.write_strip(folder:file(cell, 'strip.png'), self.pictures)
    local found = mouth_detail:result()
    if sums and sums.frames > 0 then
      local distance = metrics.result(sums)
      found.psnr, found.ssim, found.latents_distance = distance.psnr, distance.ssim, distance.latents
    end
    self.seconds = self.seconds + clock() - start
    return found
  end

  function self.free()
    if sink then sink:abort() end
    mouth_detail:free()
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

--- The stage that upscales a cell's mouths; nil if there is none.
--- @param cell table
--- @param run Run
--- @param progress table receives messages for the user
--- @return Stage?
function cells.upscaler(cell, run, progress)
  local s = { upscale = cell.upscale, device = run.model.device, dtype = run.model.dtype }
  return require 'models.latentsync.stages.upscale' { settings = s, progress = progress }
end

local function made(run)
  local n = 0
  for _, window in ipairs(run.windows) do n = n + (window.made and 1 or 0) end
  return n
end

--- Generates one cell.
--- @param cell table
--- @param run Run prepared, with the cell's dtype and size
--- @param folder ComparisonFolder
--- @param mouth Mouth
--- @param progress table the progress of the whole comparison
--- @return table result
function cells.make(cell, run, folder, mouth, progress)
  local device = run.model.device
  folder:begin(cell)
  -- Garbage of another cell must neither slow this one nor count as its memory.
  collectgarbage()
  collectgarbage()
  cr.reset_peak(device)
  local asked = axes.settings(cell, 'sample')
  asked.progress, asked.quiet = progress, true
  local sample = run:sample(asked)
  local result = {
    sampling_seconds = sample.seconds, sampling_peak_bytes = peak(device), calls = sample.settings.steps,
    step_seconds = sample.seconds / (cell.steps_made * math.max(1, made(run))), frames = sample.frames, shown = 'face.mp4',
    windows = #run.windows,
  }
  local watch = observer(cell, run, sample, folder, mouth)
  local ok, err = pcall(function()
    local start = clock()
    local stages = { watch.decoded }
    stages[#stages + 1] = cells.upscaler(cell, run, progress)
    stages[#stages + 1] = watch.pasted
    sample:save(folder:file(cell, 'clip.mp4'), { quiet = true, stages = stages })
    local took = clock() - start - watch.seconds
    result.peak_bytes = peak(device)
    result.seconds = sample.seconds + took
    for key, value in pairs(watch.finish()) do result[key] = value end
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
