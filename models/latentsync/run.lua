--- A piece of video and sound kept ready, so that sampling it again costs only the sampling.
---
---     local run = latentsync.session { video = 'face.mp4', audio = 'voice.wav', checkpoint = 'DIR' }
---     run:sample { scheduler = 'dpmpp_2m', steps = 10 }:show()
---     run:save 'out.mp4'
--
-- Kept are, for each window, the aligned faces (u8, in the main memory), the conditioning latents and
-- the audio tokens (on the model's device); the video's frames are read again when a result is saved.
-- Preparing draws random numbers in the pipeline's order, so a sample with the same seed and settings
-- has the latents that the command lipsync makes.

local cr = require 'cr'
local latentsync = require 'models.latentsync'
local clock = require 'cr.clock'
local errors = require 'cr.errors'

local M = {}

local LABEL = 'The lips in this video were made by AI (Crescent).'
local SHOWN = 4 -- frames that show() decodes

--- @class SessionOptions
--- @field video string path of a video with the face
--- @field audio string path of the voice
--- @field checkpoint string|LatentSync its folder, or a model that is loaded
--- @field device string? 'auto': a card if there is one
--- @field dtype string? f16 on a card, f32 on a CPU
--- @field vae string? folder of the VAE
--- @field size integer? pixels of the face picture
--- @field quiet boolean? no progress
--- (and start, duration (seconds), frames (a window: 16), seed (1247), rng, points, smooth, no_face,
--- mask, paste, audio_overlap, as WindowOptions)

local window_options = {
  'frames', 'seed', 'rng', 'points', 'finder', 'smooth', 'no_face', 'mask', 'paste', 'start', 'duration', 'audio_overlap',
}
local own_options = { video = true, audio = true, checkpoint = true, device = true, dtype = true, vae = true, size = true, quiet = true }
for _, name in ipairs(window_options) do own_options[name] = true end

--- @class Run
--- @field model LatentSync
--- @field frames integer of the result
--- @field windows table[] {n, first, has_face, faces, cond, hear, items}
--- @field last Sample? the latest
local Run = {}
Run.__index = Run

--- @class Sample
--- @field latents Tensor[] of each window with a face, [1 F h w 4]; false without one
--- @field seconds number that sampling took
--- @field settings table {scheduler, steps, guidance, cache, seed}
local Sample = {}
Sample.__index = Sample

-- ---- preparing ----------------------------------------------------------------------------------

local models = setmetatable({}, { __mode = 'v' }) -- so that a second session loads nothing

local function load_model(o)
  if type(o.checkpoint) == 'table' then return o.checkpoint end
  local device = o.device or 'auto'
  if device == 'auto' then device = cr.cuda.available() and 'cuda' or 'cpu' end
  local dtype = o.dtype or (device == 'cpu' and 'f32' or 'f16')
  local key = table.concat({ o.checkpoint, o.vae or '', device, dtype, tostring(o.size) }, '\n')
  if not models[key] then
    models[key] = latentsync.load(o.checkpoint, { device = device, dtype = dtype, vae = o.vae, size = o.size })
  end
  return models[key]
end

local function check(o)
  for name in pairs(o) do
    if not own_options[name] then
      local names = {}
      for known in pairs(own_options) do names[#names + 1] = known end
      errors.fail(("session: there is no option '%s': did you mean '%s'?"):format(tostring(name),
        errors.nearest(tostring(name), names)))
    end
  end
  for _, name in ipairs { 'video', 'audio', 'checkpoint' } do
    if o[name] == nil then
      errors.fail(('session: %s is missing: session { video = FILE, audio = FILE, checkpoint = DIR }'):format(name))
    end
  end
  local media = require 'cr.media'
  if not media.probe(o.video).has_video then errors.fail(('session: %s has no video stream'):format(o.video)) end
  if not media.probe(o.audio).has_audio then errors.fail(('session: %s has no audio stream'):format(o.audio)) end
end

local function prepare_window(model, clip)
  local window = { n = clip.n, first = clip.first, has_face = latentsync.has_face(clip), items = {} }
  if window.has_face then
    local kept = cr.scope(function()
      local cond, hear = model:condition(clip), model:listen(clip)
      return { cond:clone(), hear:clone() }
    end)
    window.cond, window.hear = cr.keep(unpack(kept))
    window.faces = cr.keep(clip.faces:to 'cpu')
    if not rawequal(window.faces, clip.faces) then clip.faces:free() end
  end
  for i, item in ipairs(clip.items) do
    window.items[i] = { index = item.index, matrix = item.matrix }
    item.frame:free()
  end
  return window
end

--- Aligns the faces of a video, hears the voice, and encodes what sampling needs.
--- @param o SessionOptions
--- @return Run
function M.new(o)
  if type(o) ~= 'table' then errors.fail 'session: wants a table: session { video = FILE, audio = FILE, checkpoint = DIR }' end
  check(o)
  local progress = require 'cr.tools.progress'.new { quiet = o.quiet }
  local model = progress:measure('load', 0, load_model, o)
  if o.size and o.size ~= model.size then model:set_size(o.size) end
  local given = { measure = function(...) return progress:measure(...) end }
  for _, name in ipairs(window_options) do given[name] = o[name] end
  given.seed = o.seed or 1247
  local session = model:session(o.video, o.audio, given)
  local self = setmetatable({
    model = model, o = o, windows = {}, frames = 0, with_face = 0, seed = given.seed,
    rng = o.rng or (model.device == 'cpu' and 'torch-cpu' or 'torch-cuda'), drawn_in = model.dtype, first_noise = session.noise:clone(),
    mask = session.mask:clone(), paste = session.paste,
  }, Run)
  cr.keep(self.first_noise, self.mask)
  progress:expect(session.total)
  local ok, err = pcall(function()
    for clip in function() return session:next() end do
      local window = prepare_window(model, clip)
      self.windows[#self.windows + 1] = window
      self.frames = self.frames + window.n
      self.with_face = self.with_face + (window.has_face and 1 or 0)
      progress:advance(window.n)
    end
  end)
  progress:clear()
  session:close()
  if ok and self.with_face == 0 then
    ok, err = false, ('no face was found in any of the %d frames of %s'):format(self.frames, o.video)
  end
  if not ok then
    self:free()
    error(err, 0)
  end
  self.prepared_in = progress:seconds()
  return self
end

function Run:__tostring()
  return ('session: %d frames in %d window%s of %s, %d px, %s on %s'):format(self.frames, #self.windows,
    #self.windows == 1 and '' or 's', self.o.video,
    self.model.size, self.model.dtype, self.model.device)
end

--- Gives back what the session keeps.
function Run:free()
  for _, window in ipairs(self.windows) do
    for _, name in ipairs { 'cond', 'hear', 'faces' } do
      if window[name] then window[name]:free() end
    end
  end
  self.first_noise:free()
  self.mask:free()
  self.windows, self.last = {}, nil
end

-- ---- sampling -----------------------------------------------------------------------------------

-- The noise of a seed, the same picture for every frame; see models/latentsync/init.lua.
function Run:noise(seed)
  if seed == self.seed then return self.first_noise end
  local m = self.model
  local z = cr.randn(1, m.channels, 1, m.latent, m.latent,
    { generator = cr.generator(seed, self.rng), dtype = self.drawn_in, device = m.device })
  return z:permute(1, 3, 4, 5, 2):contiguous():to(m.dtype)
end

--- The same piece for the same networks with other weights, such as those of another dtype: what was prepared is
--- shared, converted where it must be. Free it before this one.
--- @param model LatentSync of the same size, on the same device
--- @return Run
function Run:on(model)
  if model.latent ~= self.first_noise:size(3) then
    error(('session: prepared for %d px, not for %d'):format(self.first_noise:size(3) * model.factor, model.size), 2)
  end
  local other = setmetatable({}, Run)
  for key, value in pairs(self) do other[key] = value end
  local function copy(t) return t and cr.keep(cr.scope(function() return t:to(model.dtype):clone() end)) end
  other.model, other.last, other.windows = model, nil, {}
  other.first_noise, other.mask = copy(self.first_noise), cr.keep(self.mask:clone())
  for w, window in ipairs(self.windows) do
    local mine = {}
    for key, value in pairs(window) do mine[key] = value end
    mine.cond, mine.hear, mine.faces = copy(window.cond), copy(window.hear), window.faces and cr.keep(window.faces:clone())
    other.windows[w] = mine
  end
  return other
end

local sample_options = {
  scheduler = true, steps = true, guidance = true, cache = true, seed = true, windows = true, options = true, quiet = true,
  progress = true,
}

-- The scheduler and its name: the checkpoint's, or DDIM, if none is asked for.
local function scheduler_of(model, o, steps)
  if type(o.scheduler) == 'table' then return o.scheduler, o.scheduler.name or 'own' end
  local given = { steps = steps }
  for key, value in pairs(o.options or {}) do given[key] = value end
  local spec = o.scheduler or require 'models.latentsync.checkpoint'.scheduler(model.dir) or 'ddim'
  return require 'cr.schedulers'.load(spec, given), spec
end

--- Samples all windows, or the first few.
---
---     run:sample { scheduler = 'dpmpp_2m_karras', steps = 12, guidance = 2, cache = 'deepcache:3' }:show()
--- @param o table? {scheduler = name, file or scheduler (the checkpoint's, else ddim), steps = 20, guidance = 1.5 or
---   {scale, interval, rescale, off_last} (cr.guidance), cache = text (cr.cache), seed (the session's: it decides
---   the first noise; what was encoded stays), windows = how many (all), options = the scheduler's, quiet,
---   progress = that of a longer job (cr.progress), to which the steps are added}
--- @return Sample
function Run:sample(o)
  o = o or {}
  for name in pairs(o) do
    if not sample_options[name] then
      local names = {}
      for known in pairs(sample_options) do names[#names + 1] = known end
      errors.fail(("sample: there is no option '%s': did you mean '%s'?"):format(tostring(name),
        errors.nearest(tostring(name), names)))
    end
  end
  local model = self.model
  local steps = o.steps or model.sampling.steps or 20
  local guided = o.guidance or model.sampling.guidance or 1.5
  if type(guided) ~= 'table' then guided = { scale = guided } end
  local scale = guided.scale or 1.5
  local guidance, cache = require 'cr.guidance', require 'cr.cache'
  local method, plan = guidance.new(guided), o.cache and cache.plan(o.cache)
  local seed = o.seed or self.seed
  local scheduler, name = scheduler_of(model, o, steps)
  local count = math.min(o.windows or #self.windows, #self.windows)
  local progress = o.progress or require 'cr.tools.progress'.new { quiet = o.quiet, unit = 'steps' }
  if not o.progress then progress:expect(count * #scheduler.timesteps) end
  if scheduler.use then scheduler:use(cr.generator(seed, self.rng)) end
  local sample = setmetatable({ run = self, latents = {}, frames = 0,
    settings = { scheduler = name, steps = #scheduler.timesteps, guidance = scale, cache = o.cache, seed = seed },
  }, Sample)
  local begin = clock()
  local ok, err = pcall(cr.scope, function()
    local noise = self:noise(seed)
    for w = 1, count do
      local window = self.windows[w]
      sample.frames = sample.frames + window.n
      sample.latents[w] = window.has_face and cr.keep(cr.scope(function()
        local unet = model:denoiser(window.cond, window.hear, { guidance = scale, timesteps = scheduler.timesteps })
        unet = guidance.wrap(cache.wrap(unet, plan), method)
        local x = noise:expand(1, window.n, model.latent, model.latent, model.channels):contiguous()
        local fine, problem = pcall(function()
          scheduler:reset()
          if scheduler.start then x = scheduler:start(x) end
          for i, t in ipairs(scheduler.timesteps) do
            x = scheduler:step(unet:call(x, i), t, x)
            progress:advance(1)
            cr.yield()
          end
          model:wait()
        end)
        unet:free()
        if not fine then error(problem, 0) end
        return x
      end)) or false
    end
  end)
  progress:clear()
  if not ok then error(err, 0) end
  sample.seconds = clock() - begin
  self.last = sample
  return sample
end

function Sample:__tostring()
  local s = self.settings
  return ('%s, %d steps, guidance %g%s, seed %d: %d frames in %.2f s, %.1f ms a step of a window'):format(s.scheduler,
    s.steps, s.guidance, s.cache and ', ' .. s.cache or '', s.seed, self.frames, self.seconds,
    self.seconds * 1e3 / (s.steps * math.max(1, #self.latents)))
end

-- ---- looking ------------------------------------------------------------------------------------

-- What model:decode and model:paste ask of a clip; faces: u8 [n S S 3].
local function clip_of(run, n, faces, items)
  local session = { mask = run.mask, paste = run.paste, measure = function(_, _, fn, ...) return fn(...) end }
  return { n = n, pixels = latentsync.pixels(faces:to(run.model.device)), items = items, session = session }
end

--- The faces of some frames, decoded together.
--- @param places integer[][] {window, frame of it} each, from 1
--- @return Tensor f32 [n S S 3], about in [-1, 1]
function Sample:faces(places)
  local run = self.run
  return cr.scope(function()
    local latents, faces = {}, {}
    for k, place in ipairs(places) do
      local w, i = unpack(place)
      if not self.latents[w] then error(('window %d has no face, or was not sampled'):format(w), 2) end
      latents[k], faces[k] = self.latents[w]:narrow(2, i, 1), run.windows[w].faces:narrow(1, i, 1)
    end
    return run.model:decode(cr.cat(latents, 2), clip_of(run, #places, cr.cat(faces, 1)))
  end)
end

--- A few faces, spread over the piece.
--- @param count integer? 4
--- @return Tensor[] u8 [S S 3] each, on the CPU
function Sample:pictures(count)
  local places = {}
  for w, latents in ipairs(self.latents) do
    for i = 1, latents and latents:size(2) or 0 do places[#places + 1] = { w, i } end
  end
  count = math.min(count or SHOWN, #places)
  local chosen = {}
  -- In the middle of each of `count` equal parts.
  for k = 1, count do chosen[k] = places[math.floor((k - 0.5) * #places / count) + 1] end
  return cr.scope(function()
    local all = ((self:faces(chosen) + 1) * 127.5):round():clamp(0, 255):to('u8'):to 'cpu'
    local list = {}
    for k = 1, count do list[k] = all:select(1, k):clone() end
    return list
  end)
end

--- Shows a few of the faces in the terminal.
--- @param count integer? 4
--- @return Sample itself
function Sample:show(count)
  cr.scope(function() require 'cr.tools.display'.show(self:pictures(count)) end)
  return self
end

-- ---- saving -------------------------------------------------------------------------------------

-- The frames of a window, read again. Windows that go on where the last ended need no seek.
local function read_frames(reader, first, items)
  local least, most = math.huge, -math.huge
  for _, item in ipairs(items) do least, most = math.min(least, item.index), math.max(most, item.index) end
  if reader.position ~= first + least - 1 then reader:seek(first + least - 1) end
  local frames = reader:read(most - least + 1)
  if #frames < most - least + 1 then
    error(('%s: frame %d could not be read again'):format(reader.path, first + least + #frames), 0)
  end
  local list = {}
  for i, item in ipairs(items) do
    list[i] = { frame = frames[item.index - least + 1], index = item.index, matrix = item.matrix }
  end
  return list, frames
end

--- Puts the faces back into the video's frames and writes a file with the voice.
--- @param path string its ending picks the container
--- @param options table? {crf = 18, codec, lossless, label = true (metadata say that AI made it), quiet,
---   each = fun(w, faces): told of each window's faces, f32 [F S S 3] about in [-1, 1]; nil where it has none}
--- @return Sample itself
function Sample:save(path, options)
  local o, run = options or {}, self.run
  local given = run.o
  if type(path) ~= 'string' or path == '' then errors.fail "save: wants a file name: run:save 'out.mp4'" end
  local media = require 'cr.media'
  local model, start = run.model, given.start or 0
  local reader = media.reader(given.video, { fps = 25, device = model.device, wait = true })
  local sink = media.writer(path, {
    like = given.video, fps = 25, audio = given.audio, audio_start = start,
    audio_end = start + self.frames / 25, codec = o.codec, crf = o.crf, lossless = o.lossless,
    comment = o.label ~= false and LABEL or nil,
  })
  local progress = require 'cr.tools.progress'.new { quiet = o.quiet }
  progress:expect(self.frames)
  local first = math.floor(start * 25 + 0.5)
  local function down(frame) return sink:pack(frame) end
  local ok, err = pcall(function()
    for w, latents in ipairs(self.latents) do
      cr.scope(function()
        local window = run.windows[w]
        local items, frames = read_frames(reader, first, window.items)
        local finished = {}
        if latents then
          local clip = clip_of(run, window.n, window.faces, items)
          local faces = model:decode(latents, clip)
          if o.each then o.each(w, faces) end
          finished = model:paste(faces, clip, down)
        else
          if o.each then o.each(w) end
          for i, item in ipairs(items) do
            finished[i] = cr.scope(function() return down(item.frame:rgb()) end)
          end
        end
        for _, frame in ipairs(frames) do frame:free() end
        sink:write(finished)
        progress:advance(window.n)
      end)
    end
    sink:close()
  end)
  progress:clear()
  reader:close()
  if not ok then
    sink:abort()
    error(err, 0)
  end
  return self
end

--- Shows the latest sample.
--- @param count integer? 4 faces
--- @return Sample
function Run:show(count) return (self.last or self:sample()):show(count) end

--- Saves the latest sample; see Sample:save.
--- @param path string
--- @param options table?
--- @return Sample
function Run:save(path, options)
  if not self.last then errors.fail 'save: nothing was sampled yet: run:sample { steps = 10 }' end
  return self.last:save(path, options)
end

return M
