--- A piece of video and sound prepared once, so that sampling it again costs only the sampling.
---
---     local run = latentsync.session { video = 'face.mp4', audio = 'voice.wav', checkpoint = 'DIR' }
---     run:sample { scheduler = 'dpmpp_2m', steps = 10 }:show()
---     run:save 'out.mp4'
--
-- For each window the session keeps the aligned faces (u8, in host memory), the conditioning latents and the audio
-- tokens (on the model's device). The video's frames are read again when a result is saved. The preparation draws
-- random numbers in the pipeline's order, so a sample with the same seed and settings has the same latents as the
-- command `lipsync`.

local cr = require 'cr'
local arguments = require 'cr.arguments'
local clock = require 'cr.clock'
local colours = require 'models.latentsync.colour'
local diagnosis = require 'models.latentsync.diagnosis'
local difference = require 'models.latentsync.difference'
local errors = require 'cr.errors'
local flow = require 'models.latentsync.flow'
local jobs = require 'models.latentsync.job'
local latentsync = require 'models.latentsync.model'
local media = require 'cr.media'
local progress_of = require 'cr.tools.progress'
local samplers = require 'models.latentsync.sampler'
local settings = require 'models.latentsync.settings'
local sinks = require 'models.latentsync.sink'
local windows = require 'models.latentsync.windows'

local M = {}

local SHOWN = 4 -- frames that show() decodes

--- @class SessionOptions the settings of models/latentsync/settings.lua except those of the result; the settings of sampling
---   are the defaults of samples
--- @field video string path of a video with the face
--- @field audio string path of the voice
--- @field checkpoint string|LatentSync its folder, or a loaded model
--- @field device string? 'auto': a GPU if there is one
--- @field dtype string? f16 on a GPU, f32 on a CPU
--- @field vae string? folder of the VAE
--- @field size integer? side of the face image in pixels
--- @field quiet boolean? show no progress
--- (and start, duration (seconds), frames (a window: 16), seed (1247), rng, points, smooth, no_face,
--- mask, paste, audio_overlap, scheduler, steps, guidance, cache, ...)

local STAGES = { 'input', 'load', 'find', 'sample', 'paste', 'encode', 'run' }

--- @class Run
--- @field model LatentSync
--- @field frames integer frames of the result
--- @field windows table[] {n, first, has_face, made, faces, cond, hear, items, speaker, last}: with several people, each
---   person's windows over the same frames follow one another, and `last` marks the last of them
--- @field last Sample? the latest sample
local Run = {}
Run.__index = Run

--- @class Sample
--- @field latents Tensor[] for each window [1 F h w 4]; false for a window without a face or speech
--- @field seconds number duration of the sampling
--- @field settings table {scheduler, steps (calls of the network), asked (steps, if they are not as many), guidance, cache, seed}
local Sample = {}
Sample.__index = Sample

-- ---- preparing ----------------------------------------------------------------------------------

local function prepare_window(model, clip)
  local window = { n = clip.n, first = clip.first, last = clip.last, speaker = clip.source, items = {} }
  window.has_face, window.made = windows.has_face(clip), windows.is_made(clip)
  if windows.is_skipped(clip) then model:skip(clip) end
  if window.made then
    local kept = cr.scope(function()
      local cond, hear = model:condition(clip), model:listen(clip)
      return { cond:clone(), hear:clone() }
    end)
    window.cond, window.hear = cr.keep(unpack(kept))
    window.faces = cr.keep(clip.faces:to 'cpu')
    if not rawequal(window.faces, clip.faces) then clip.faces:free() end
  end
  for i, item in ipairs(clip.items) do
    window.items[i] = { index = item.index, matrix = item.matrix, share = item.share }
    if clip.last then item.frame:free() end
  end
  return window
end

--- Aligns the faces of a video, encodes the audio, and encodes the conditioning.
--- @param o SessionOptions
--- @return Run
function M.new(o)
  local given = settings.check('session', o, STAGES, { 'finder' })
  for _, name in ipairs { 'video', 'audio', 'checkpoint' } do
    if given[name] == nil and not (name == 'audio' and given.voice) then
      errors.fail(('session: %s is missing: session { video = FILE, audio = FILE, checkpoint = DIR }'):format(name))
    end
  end
  if given.fps == 'source' then
    errors.fail "session: fps = 'source' works only in a job: a session has 25 frames per second"
  end
  local s = jobs.settings(given, 'session')
  local progress = progress_of.new { quiet = s.quiet }
  local model = progress:measure('load', 0, jobs.model, s)
  local source = windows.open(model, s.video, settings.voices(s),
    jobs.window_options(s, { finder = s.finder, measure = function(...) return progress:measure(...) end }))
  local self = setmetatable({
    model = model, settings = s, windows = {}, frames = 0, drawn_in = model.dtype,
    first_noise = cr.scope(function() return model:draw(1, cr.generator(s.seed, s.rng)):unsqueeze(1) end), mask = source.mask:clone(),
  }, Run)
  cr.keep(self.first_noise, self.mask)
  progress:expect(source.total)
  local ok, err = pcall(function()
    for clip in function() return source:next() end do
      local window = prepare_window(model, clip)
      self.windows[#self.windows + 1] = window
      if window.last then
        self.frames = self.frames + window.n
        progress:advance(window.n)
      end
    end
    local missed = source:missed()
    if missed then error(missed, 0) end
  end)
  progress:clear()
  source:close()
  if not ok then
    self:free()
    error(err, 0)
  end
  self.prepared_in = progress:seconds()
  return self
end

function Run:__tostring()
  return ('session: %d frames in %d window%s of %s, %d px, %s on %s'):format(self.frames, #self.windows,
    #self.windows == 1 and '' or 's', self.settings.video,
    self.model.size, self.model.dtype, self.model.device)
end

--- Frees what the session keeps.
function Run:free()
  for _, window in ipairs(self.windows) do
    for _, name in ipairs { 'cond', 'hear', 'faces' } do
      if window[name] then window[name]:free() end
    end
  end
  self.first_noise:free()
  self.mask:free()
  self.windows, self.last, self.before = {}, nil, nil
end

-- ---- sampling -----------------------------------------------------------------------------------

-- The noise of a seed, the same latent image for every frame; see models/latentsync/model.lua.
function Run:noise(seed)
  if seed == self.settings.seed then return self.first_noise end
  local m = self.model
  return m:draw(1, cr.generator(seed, self.settings.rng), self.drawn_in):unsqueeze(1):to(m.dtype)
end

--- The same session with other weights, for example in another dtype. Prepared data are shared, and converted where
--- necessary. Free the new session before this one.
--- @param model LatentSync a model of the same size, on any device
--- @return Run
function Run:on(model)
  if model.latent ~= self.first_noise:size(3) then
    error(('session: it was prepared for %d px, not for %d'):format(self.first_noise:size(3) * model.factor, model.size), 2)
  end
  local other = setmetatable({}, Run)
  for key, value in pairs(self) do other[key] = value end
  local function copy(t) return t and cr.keep(cr.scope(function() return t:to(model.dtype):to(model.device):clone() end)) end
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

--- Samples all windows, or the first ones.
---
---     run:sample { scheduler = 'dpmpp_2m_karras', steps = 12, guidance = 2, cache = 'deepcache:3' }:show()
--- @param o table? {scheduler = name, file, scheduler or function (the session's, the checkpoint's, else ddim; see cr.schedulers),
---   steps = 20, guidance = 1.5 or {scale, interval, rescale, off_last, method} (see cr.guidance), guidance_method = name, file,
---   table or function, cache = text, table or function (see cr.cache), strength = share of the steps, seed (the session's;
---   it sets the initial noise, the conditioning is not drawn again), windows = their number (all; counted per person),
---   options = the scheduler's, quiet,
---   progress = the progress of an enclosing job (cr.tools.progress), to which the steps are added}
--- @return Sample
function Run:sample(o)
  local given = settings.check('sample', o or {}, { 'sample', 'seed', 'quiet' }, { 'windows', 'options', 'progress' })
  local s = setmetatable(given, { __index = self.settings })
  local model, seed, sampler = self.model, s.seed, samplers.new(s)
  arguments.want('sample: windows', arguments.maybe(arguments.positive), given.windows)
  local count = math.min(given.windows or #self.windows, #self.windows)
  local progress = given.progress or progress_of.new { quiet = given.quiet, unit = 'steps' }
  if not given.progress then progress:expect(count * sampler:steps()) end
  local generators = {} -- one per speaker
  local sample = setmetatable({ run = self, latents = {}, frames = 0,
    settings = { scheduler = sampler.name, steps = sampler:steps(), guidance = s.guidance, seed = seed,
      cache = sampler.plan and sampler.plan.text, guidance_method = sampler.guidance.name },
  }, Sample)
  local asked = sampler.scheduler.options and sampler.scheduler.options.steps
  sample.settings.asked = asked ~= sampler:steps() and asked or nil -- a method may call the network twice a step
  local begin = clock()
  local ok, err = pcall(cr.scope, function()
    local noise = self:noise(seed)
    for w = 1, count do
      local window = self.windows[w]
      if window.last then sample.frames = sample.frames + window.n end
      local speaker = window.speaker or 'nobody'
      generators[speaker] = generators[speaker] or cr.generator(seed, s.rng)
      sampler:use(generators[speaker])
      local latents = cr.scope(function()
        local start = noise:expand(1, window.n, model.latent, model.latent, model.channels):contiguous()
        if not window.made then
          if window.has_face then sampler:skip(start) end
          return false
        end
        local x = sampler:run(model, window, start, function(i)
          progress:step(w, count, i, sampler:steps())
          progress:advance(1)
          cr.yield()
        end)
        model:wait()
        if not diagnosis.is_finite(diagnosis.largest(x)) then
          errors.fail(('window %d: %s'):format(w, diagnosis.of(sampler, model, window, start)))
        end
        return x
      end)
      sample.latents[w] = latents and cr.keep(latents)
    end
  end)
  progress:clear()
  if not ok then error(err, 0) end
  sample.seconds = clock() - begin
  self.before, self.last = self.last, sample
  return sample
end

function Sample:__tostring()
  local s = self.settings
  local method = s.guidance_method ~= 'cfg' and ' (' .. s.guidance_method .. ')' or ''
  local steps = s.asked and ('%d steps (%d calls)'):format(s.asked, s.steps) or ('%d steps'):format(s.steps)
  return ('%s, %s, guidance %g%s%s, seed %d: %d frames in %.2f s, %.1f ms per %s and window'):format(s.scheduler,
    steps, s.guidance, method, s.cache and ', ' .. s.cache or '', s.seed, self.frames, self.seconds,
    self.seconds * 1e3 / (s.steps * math.max(1, #self.latents)), s.asked and 'call' or 'step')
end

-- ---- viewing ------------------------------------------------------------------------------------

-- The fields of a clip's source that model:decode and model:paste use.
local function source_of(run)
  return { mask = run.mask, paste = run.settings.paste, measure = function(_, _, fn, ...) return fn(...) end,
    colour = run.settings.match_colour and colours.new(run.mask, run.model.device) or nil }
end

-- The fields of a clip that they use; faces: u8 [n S S 3].
local function clip_of(run, n, faces, items, source)
  return { n = n, pixels = latentsync.pixels(faces:to(run.model.device)), items = items, source = source }
end

--- The faces of some frames, decoded together.
--- @param places integer[][] a list of {window, frame in the window}, from 1
--- @return Tensor f32 [n S S 3], about in [-1, 1]
function Sample:faces(places)
  local run = self.run
  return cr.scope(function()
    local latents, faces = {}, {}
    for k, place in ipairs(places) do
      local w, i = unpack(place)
      if not self.latents[w] then error(('window %d has no face or no speech, or was not sampled'):format(w), 2) end
      latents[k], faces[k] = self.latents[w]:narrow(2, i, 1), run.windows[w].faces:narrow(1, i, 1)
    end
    local source = source_of(run)
    local decoded = run.model:decode(cr.cat(latents, 2), clip_of(run, #places, cr.cat(faces, 1), nil, source))
    if source.colour then source.colour:free() end
    return decoded
  end)
end

--- A few faces, spread over the session.
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

--- The distance of this sample from another one of the same piece, over the mouth's pixels and over latents. The other may be
--- of another session, for example with a quantized checkpoint:
---
---     print(run:sample { steps = 8 }:compare(run:sample { steps = 50 }))
--- @param other Sample
--- @return Difference {psnr (dB; nil: equal), ssim, latents = relative L2 difference |a - b| / |b|, frames}
function Sample:compare(other) return difference.compare(self, other) end

--- Shows this sample, another one, and their difference (amplified four times, around grey) side by side:
---
---     run:sample { steps = 8, guidance_method = 'apg' }:diff()
--- @param other Sample? the previous sample of the session
--- @param count integer? number of frames, spread over the session (4)
--- @return Difference as for compare, with `pictures`
function Sample:diff(other, count)
  if other == nil then
    other = self.run.last
    if rawequal(other, self) then other = self.run.before end
    if not other then errors.fail 'diff: there is no earlier sample; name one: sample:diff(other)' end
  end
  local found = difference.compare(self, other)
  found.pictures = difference.pictures(self, other, count or SHOWN)
  cr.keep(unpack(found.pictures))
  cr.scope(function() require 'cr.tools.display'.show(found.pictures) end)
  return found
end

-- ---- saving -------------------------------------------------------------------------------------

-- A source that reads the frames of a sample's windows again. Consecutive windows need no seek.
local function windows_again(sample)
  local run, w = sample.run, 0
  local s = run.settings
  local first = math.floor(s.start * 25 + 0.5)
  local reader = media.reader(s.video, { fps = 25, device = run.model.device, wait = true, deep = true })
  local source, sources = {}, {} -- sources[speaker] is the source of that speaker's clips
  local held -- frames of the current window

  local function read(items)
    local least, most = math.huge, -math.huge
    for _, item in ipairs(items) do least, most = math.min(least, item.index), math.max(most, item.index) end
    if reader.position ~= first + least - 1 then reader:seek(first + least - 1) end
    local frames = reader:read(most - least + 1)
    if #frames < most - least + 1 then
      error(('%s: frame %d could not be read again'):format(reader.path, first + least + #frames), 0)
    end
    -- A frame that is shown twice is freed after its last use.
    local list, uses = {}, {}
    for i, item in ipairs(items) do
      local frame = frames[item.index - least + 1]
      uses[frame] = (uses[frame] or 0) + 1
      list[i] = {
        rgb = function() return frame:rgb() end,
        whole = function() return frame:whole() end,
        free = function()
          uses[frame] = uses[frame] - 1
          if uses[frame] == 0 then frame:free() end
        end,
      }
    end
    for _, frame in ipairs(frames) do
      if not uses[frame] then frame:free() end
    end
    return list
  end

  function source.next()
    w = w + 1
    local latents, window = sample.latents[w], run.windows[w]
    if latents == nil then return nil end
    held = held or read(window.items)
    local items = {}
    for i, item in ipairs(window.items) do
      items[i] = { index = item.index, matrix = item.matrix, share = item.share, frame = held[i] }
    end
    local clip = { n = window.n, items = items }
    if latents then
      local own = sources[window.speaker] or source_of(run)
      sources[window.speaker] = own
      clip = cr.scope(function() return clip_of(run, window.n, window.faces, items, own) end)
      cr.keep(clip.pixels)
    end
    clip.window, clip.first, clip.last = w, window.first, window.last
    if window.last then held = nil end
    return clip
  end

  function source.close()
    reader:close()
    for _, own in pairs(sources) do
      if own.colour then own.colour:free() end
    end
  end
  return source
end

--- Pastes the faces into the video's frames and writes a file with the sound.
--- @param path string its extension selects the container
--- @param options table? {crf = 18, codec, lossless, label = true (metadata says that AI generated it), quiet,
---   stages = further stages (models/latentsync/flow.lua), which can read clip.window, the window's index}
--- @return Sample itself
function Sample:save(path, options)
  local given = settings.check('save', options or {}, { 'encode', 'quiet' }, { 'stages' })
  local run = self.run
  if type(path) ~= 'string' or path == '' then errors.fail "save: a file name is missing: run:save 'out.mp4'" end
  local s = setmetatable(given, { __index = run.settings })
  local model = run.model
  local source = windows_again(self)
  local sink = sinks.open(path, setmetatable({ duration = self.frames / 25 }, { __index = s }))
  local progress = progress_of.new { quiet = given.quiet }
  progress:expect(self.frames)
  local ok, err = pcall(cr.await, cr.go(function()
    flow.run {
      makers = { { device = model.device, model = model } }, source = source, stages = given.stages or {}, sink = sink,
      progress = progress, frames_per_window = s.frames_per_window,
      make = function(_, clip) return { latents = self.latents[clip.window], sampled = model:mark() } end,
    }
    sink:close()
  end))
  progress:clear()
  source:close()
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

local maybe, settings_of, count = arguments.maybe, arguments.maybe(arguments.table), arguments.maybe(arguments.positive)
arguments.methods(Run, 'run', {
  free = {}, noise = { arguments.seed }, on = { arguments.table }, sample = { settings_of }, show = { count },
  save = { arguments.any, settings_of },
})
local sample = arguments.kind('another sample', function(v) return type(v) == 'table' and type(v.latents) == 'table' end)
arguments.methods(Sample, 'sample', {
  faces = { arguments.list('a list of places {window, frame}', arguments.list('', arguments.positive, 2, 2)) },
  pictures = { count }, show = { count }, compare = { sample }, diff = { maybe(sample), count },
  save = { arguments.any, maybe(arguments.table) },
})
return arguments.guard('session.', M, { new = { arguments.table } })
