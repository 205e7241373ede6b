--- LatentSync: a checkpoint's networks, and the steps from a window of video and sound to finished
--- frames. A pipeline is a loop over `model:windows(...)`:
---
---     local model = latentsync.load(dir)
---     for clip in model:windows(video, audio, { frames = 16 }) do
---       local cond, hear = model:condition(clip), model:listen(clip)
---       local x = model:noise(clip)
---       for _, t in ipairs(scheduler.timesteps) do
---         x = scheduler:step(model:denoise(x, t, cond, hear, { guidance = 1.5 }), t, x)
---       end
---       sink:write(model:paint(x, clip))
---     end
--
-- Order of random draws, as in the reference: the noise (one picture, the same for every frame of
-- every window), then for each window the posterior samples of the masked pictures and those of the
-- reference pictures.

local cr = require 'cr'
local weights = require 'cr.weights'
local align = require 'models.latentsync.align'
local audio = require 'models.latentsync.audio'
local checkpoint = require 'models.latentsync.checkpoint'
local frames = require 'models.latentsync.frames'
local unet3d = require 'models.networks.unet3d'
local unet3d_fp8 = require 'models.networks.unet3d_fp8'
local vae_model = require 'models.networks.vae'
local whisper_model = require 'models.networks.whisper'

local latentsync = {}

--- @class LatentSync
--- @field size integer pixels of the square face picture
--- @field factor integer pixels of a latent's side
--- @field sampling table what the checkpoint names as its sampling: {size, steps, guidance}
local Model = {}
Model.__index = Model

-- ---- loading ---------------------------------------------------------------------------------

local UNET_TAG = 'unet weights' -- in reports of memory

local PREFIXES = { '', 'state_dict.', 'model.', 'module.' }

--- The prefix that a checkpoint puts before the names of the network.
local function prefix_of(file, name)
  for _, prefix in ipairs(PREFIXES) do
    if file:has(prefix .. name) then return prefix end
  end
  return ''
end

local function load_unet(dir, options)
  local path, model_config, sampling = checkpoint.unet(dir)
  local config = unet3d.config(model_config)
  local file = weights.open(path)
  local prefix = prefix_of(file, 'conv_in.weight')
  weights.check(file, unet3d.expected(config), { surplus = true, prefix = prefix })
  local tree = weights.tree(file, { prefix = prefix, dtype = options.dtype, device = options.device,
    tag = UNET_TAG, adjacent = unet3d.adjacent, apart = options.quant and unet3d_fp8.apart(options.quant) })
  file:close()
  return unet3d.new(tree, config), sampling, path
end

local function load_vae(dir, options)
  local path, raw = checkpoint.vae(dir, options.vae)
  local config = vae_model.config(raw)
  local file = weights.open(path)
  weights.check(file, vae_model.expected(config, vae_model.has_old_names(file)), { surplus = true })
  local tree = weights.tree(file, { dtype = options.dtype, device = options.device,
    tag = 'vae weights', made = vae_model.made })
  file:close()
  return vae_model.new(tree, config), path
end

local function load_whisper(dir, width, options)
  local path = checkpoint.whisper(dir, width, function(p) return whisper_model.width(p) end)
  return whisper_model.load(path, { dtype = options.dtype, device = options.device, state = width }), path
end

--- Loads a checkpoint folder (see models/latentsync/checkpoint.lua).
--- @param dir string
--- @param options table? {device = 'cpu', dtype = 'f32', vae = DIR, size = the checkpoint's, else 256,
---   quant = 'fp8' or a list of models/networks/unet3d_fp8.lua's kind: these of the UNet's products in 8-bit floats}
--- @return LatentSync
function latentsync.load(dir, options)
  options = options or {}
  local self = setmetatable({ dir = dir, dtype = options.dtype or 'f32', device = options.device or 'cpu', files = {} }, Model)
  local quant = options.quant
  if type(quant) == 'string' then quant = unet3d_fp8.named(quant) end
  local o = { dtype = self.dtype, device = self.device, vae = options.vae, quant = quant }
  self.unet, self.sampling, self.files.unet = load_unet(dir, o)
  if quant then self.quantized = cr.tagged(UNET_TAG, self.unet.quantize, self.unet, quant) end
  self.vae, self.files.vae = load_vae(dir, o)
  self.whisper, self.files.whisper = load_whisper(dir, self.unet.config.cross_attention_dim, o)
  self.factor = 2 ^ (#self.vae.config.block_out_channels - 1)
  self.channels = self.vae.config.latent_channels
  local needs = 2 * self.channels + 1 + self.channels
  if self.unet.config.in_channels ~= needs then
    error(('%s: the UNet takes %d channels, but latents, mask, masked and reference latents of this VAE make %d')
      :format(self.files.unet, self.unet.config.in_channels, needs), 0)
  end
  self:set_size(options.size or self.sampling.size or 256)
  return self
end

--- A piece of video and sound kept ready for sampling again and again; see models/latentsync/run.lua.
--- @param options SessionOptions {video =, audio =, checkpoint =, ...}
--- @return Run
function latentsync.session(options) return require 'models.latentsync.run'.new(options) end

--- Chooses the size of the square face picture, in pixels.
--- @param size integer
function Model:set_size(size)
  local step = self.factor
  if size < 2 * step or size % step ~= 0 then
    error(('a size of %d cannot be used: the VAE divides pictures by %d, so it must be a multiple of that, at least %d')
      :format(size, step, 2 * step), 0)
  end
  self.size, self.latent = size, size / step
end

--- Most frames a window can have: the length of the motion modules' position encoding.
function Model:max_frames()
  local motion = self.unet.config.motion
  return motion and motion.temporal_position_encoding_max_len or math.huge
end

-- ---- windows ---------------------------------------------------------------------------------

--- A sound as models.audio wants it: a function that opens it anew, cut to a piece.
local function sound(path, start, duration)
  local media = require 'cr.media'
  local RATE = audio.rate
  return function()
    local reader = media.audio(path, { rate = RATE, channels = 1, s16 = true })
    local skip = math.floor((start or 0) * RATE + 0.5)
    local left = duration and math.floor(duration * RATE + 0.5) or math.huge
    local given = 0
    return function()
      while left > 0 do
        local piece = reader:read(RATE * 4)
        local n = piece and piece:size(1) or 0
        if n == 0 then break end
        if skip >= n then
          skip = skip - n
          piece:free()
        else
          local first, count = skip + 1, math.min(n - skip, left)
          skip, left, given = 0, left - count, given + count
          return piece:narrow(1, first, count):contiguous()
        end
      end
      reader:close()
      if given == 0 and start and start > 0 then error(('%s ends before %g s'):format(path, start), 0) end
      return nil
    end
  end
end

--- @class Clip one window of a video
--- @field n integer frames
--- @field items FrameItem[]
--- @field first integer number of its first frame in the output, from 1
--- @field faces Tensor? u8 [F S S 3]: the aligned faces, on the model's device; nil if no frame has one
--- @field pixels Tensor? f32 [F S S 3]: the same in [-1, 1], once condition() has been asked

--- @class Session what windows() keeps for a whole video
local Session = {}
Session.__index = Session

--- @class WindowOptions
--- @field frames integer? frames a window (16)
--- @field seed integer? 1247
--- @field rng string? 'torch-cpu', 'torch-cuda' or 'philox' (the device's own torch kind)
--- @field points table? see models/latentsync/frames.lua
--- @field finder table? a face finder; by default models.face's
--- @field smooth boolean? steady the points (on for the detector's)
--- @field no_face string? 'keep', 'hold' or 'error'
--- @field mask string? a picture in place of the fixed mask
--- @field paste string? 'region' or 'reference'
--- @field start number? seconds to leave out
--- @field duration number? seconds to do
--- @field audio_overlap number? seconds that Whisper's segments overlap (0)
--- @field measure function? (stage, frames, fn, ...): times a stage
--- @field pause function? called after each frame is looked at, so that others get their turn

--- Prepares a video and a sound; iterate over it with session:next() or model:windows().
--- @param video string
--- @param audio_path string
--- @param options WindowOptions?
--- @return Session
function Model:session(video, audio_path, options)
  local o = options or {}
  local F = o.frames or 16
  if F < 1 or F ~= math.floor(F) or F > self:max_frames() then
    error(('a window of %s frames cannot be used: this checkpoint takes 1 to %d'):format(tostring(F), self:max_frames()), 0)
  end
  local measure = o.measure or function(_, _, fn, ...) return fn(...) end
  local session = setmetatable({
    model = self, frames = F, o = o, measure = measure, shown = 0, video = video,
    paste = o.paste or 'region',
    generator = cr.generator(o.seed or 1247, o.rng or (self.device == 'cpu' and 'torch-cpu' or 'torch-cuda')),
    mask = align.mask(self.size, o.mask),
  }, Session)
  session.tokens = measure('audio', 0, function()
    local ok, result = pcall(audio.tokens, self.whisper, sound(audio_path, o.start, o.duration),
      { overlap = o.audio_overlap or 0 })
    if not ok then error((tostring(result):gsub('^audio: ', audio_path .. ': ')), 0) end
    return result
  end)
  session.total = session.tokens:count()
  if o.duration then session.total = math.min(session.total, math.max(1, math.floor(o.duration * 25 + 0.5))) end
  session.source = frames.open {
    video = video, size = self.size, device = self.device, first = math.floor((o.start or 0) * 25 + 0.5),
    limit = o.duration and math.max(1, math.floor(o.duration * 25 + 0.5)) or nil,
    points = o.points, finder = o.points == nil and (o.finder or require 'models.latentsync.face'.load { device = self.device }) or nil,
    smooth = o.smooth == nil and o.points == nil or o.smooth == true,
    no_face = o.no_face or 'keep', measure = measure, pause = o.pause,
  }
  -- Drawn first: see the order of draws above. NCHW as in torch.
  local z = cr.randn(1, self.channels, 1, self.latent, self.latent,
    { generator = session.generator, dtype = self.dtype, device = self.device })
  session.noise = z:permute(1, 3, 4, 5, 2):contiguous()
  return session
end

-- The aligned faces of a window: u8 [F S S 3]. A frame without a face lends the position of the nearest frame
-- that has one: the network wants a whole window, the frame itself stays untouched.
local function aligned_faces(items, size)
  local parts = {}
  for i, item in ipairs(items) do
    local matrix = item.matrix
    for distance = 1, #items do
      if matrix then break end
      local before, after = items[i - distance], items[i + distance]
      matrix = before and before.matrix or after and after.matrix
    end
    parts[i] = cr.scope(function() return (align.warp(item.frame:rgb(), matrix, size)) end)
  end
  return cr.stack(parts, 1)
end

--- The next window, or nil after the last. Its faces are aligned by whoever asks, so that on a card the frames
--- stay with that task's stream: another one, at work on a window, would have to be waited for at each of them.
--- @return Clip?
function Session:next()
  if self.shown >= self.total then return nil end
  local model = self.model
  local items = self.source:take(math.min(self.frames, self.total - self.shown))
  local clip = setmetatable({ session = self, items = items, n = #items, first = self.shown + 1 }, { __index = self })
  if latentsync.has_face(clip) then
    clip.faces = cr.keep(self.measure('align', clip.n, function()
      return cr.scope(function() return aligned_faces(items, model.size):to(model.device) end)
    end))
  end
  for _, item in ipairs(items) do item.frame:leave_card() end -- those that are shown again, too
  model:wait() -- the faces go on to another stream of the card
  self.shown = self.shown + #items
  return clip
end

--- Frames of the video after the sound has ended, n at most; empty at its end.
--- @return FrameItem[]
function Session:rest(n) return self.source:take(n, true) end

function Session:close()
  self.tokens:free()
  self.source:close()
  self.mask:free()
  self.noise:free()
end

--- Iterates over the windows of a video.
--- @param video string
--- @param audio_path string
--- @param options WindowOptions?
--- @return fun(): Clip?
function Model:windows(video, audio_path, options)
  local session = self:session(video, audio_path, options)
  return function()
    local clip = session:next()
    if not clip then session:close() end
    return clip
  end
end

-- ---- the steps of a window -------------------------------------------------------------------

--- Whether any frame of the window has a face.
function latentsync.has_face(clip)
  for _, item in ipairs(clip.items) do
    if item.matrix then return true end
  end
  return false
end

--- Aligned faces as the networks see them.
--- @param faces Tensor u8 [F S S 3]
--- @return Tensor f32, in [-1, 1]
function latentsync.pixels(faces)
  return cr.scope(function() return (faces:to 'f32' / 255 - 0.5) / 0.5 end)
end

--- Standard normal numbers as torch draws them for [N C h w], channels-last.
local function draw_like(clip, N, channels, side, dtype, device)
  local z = cr.randn(N, channels, side, side, { generator = clip.generator, dtype = dtype, device = device })
  return z:permute(1, 3, 4, 2):contiguous()
end

--- What the network is told of a window's pictures: mask, masked latents and reference latents.
--- @param clip Clip
--- @return Tensor [1 F h w 9]
function Model:condition(clip)
  local session = clip.session
  if not clip.faces then error('no frame of this window has a face', 0) end
  clip.pixels = clip.pixels or latentsync.pixels(clip.faces)
  return session.measure('encode latents', clip.n, function()
    return cr.scope(function()
      local F, side = clip.n, self.latent
      local mask = session.mask:to(self.device)
      -- In a scope each: on a card every copy of a window counts.
      local function encoded(keep)
        return cr.scope(function()
          local x = keep and clip.pixels * keep or clip.pixels
          local mean, logvar = self.vae:encode(x:to(self.dtype))
          return self.vae:sample(mean, logvar, draw_like(session, F, self.channels, side, self.dtype, self.device))
        end)
      end
      local masked = encoded(mask)
      local reference = encoded()
      local small = align.mask_latent(session.mask, self.factor):to(self.dtype):to(self.device)
      small = small:view(1, side, side, 1):expand(F, side, side, 1)
      return cr.cat({ small, masked, reference }, 4):view(1, F, side, side, 1 + 2 * self.channels)
    end)
  end)
end

--- The audio tokens of a window's frames.
--- @param clip Clip
--- @return Tensor [F 50 D]
function Model:listen(clip)
  return clip.session.measure('audio', clip.n, function()
    return clip.session.tokens:window(clip.first, clip.n)
  end)
end

--- The noise that a window starts from: the same picture for every frame.
--- @param clip Clip
--- @return Tensor [1 F h w 4]
function Model:noise(clip)
  return clip.session.noise:expand(1, clip.n, self.latent, self.latent, self.channels):contiguous()
end

--- The UNet for one window, with everything that does not depend on the step computed once:
--- d:call(x, i) predicts the noise at timesteps[i]. Guidance that changes from step to step and caches
--- over steps are put around it: see cr.guidance and cr.cache.
--- @param cond Tensor from condition()
--- @param hear Tensor from listen()
--- @param options table {guidance = 1.5, timesteps = number[]}
function Model:denoiser(cond, hear, options)
  return self.unet:denoiser {
    cond = cond, audio = hear, guidance = options.guidance or 1.5, timesteps = options.timesteps,
    savings = options.savings,
  }
end

--- The predicted noise at timestep t, guidance applied. What belongs to the window is kept from one
--- call to the next as long as `cond` and `hear` are the same tensors.
--- @param x Tensor [1 F h w 4]
--- @param t number
--- @param cond Tensor from condition()
--- @param hear Tensor from listen()
--- @param options table? {guidance = 1.5}
--- @return Tensor [1 F h w 4]
function Model:denoise(x, t, cond, hear, options)
  local guidance = options and options.guidance or 1.5
  local kept = self.kept
  if not (kept and rawequal(kept.cond, cond) and rawequal(kept.hear, hear) and kept.guidance == guidance) then
    if kept then kept.denoiser:free() end
    -- Steps are not known beforehand, so their embeddings are not computed beforehand either.
    kept = {
      cond = cond, hear = hear, guidance = guidance, steps = {},
      denoiser = self:denoiser(cond, hear, { guidance = guidance, timesteps = {}, savings = { time = false } }),
    }
    self.kept = kept
  end
  local timesteps = kept.denoiser.timesteps
  if not kept.steps[t] then
    timesteps[#timesteps + 1] = t
    kept.steps[t] = #timesteps
  end
  return kept.denoiser:call(x, kept.steps[t])
end

--- Latents to face pictures: decoded, their surroundings taken from the input. A card may still be at it.
--- @param x Tensor [1 F h w 4]
--- @param clip Clip
--- @return Tensor f32 [F S S 3], about in [-1, 1]
function Model:decode(x, clip)
  local session = clip.session
  return session.measure('decode latents', clip.n, function()
    return cr.scope(function()
      local latents = self.vae:unscale(x:view(clip.n, self.latent, self.latent, self.channels))
      local mask = session.mask:to(self.device)
      -- Outside the mask the pixels are the input's.
      local inside = cr.scope(function() return self.vae:decode(latents):to 'f32' * (mask:neg() + 1) end)
      return inside + clip.pixels * mask
    end)
  end)
end

--- Face pictures back into the frames that they came from.
--- @param faces Tensor from decode()
--- @param clip Clip
--- @param finish (fun(frame: Tensor, item: FrameItem): Tensor)? what becomes of each frame as soon as it is done;
--- by default it comes down to the CPU
--- @return Tensor[] u8 [H W 3] each, or what `finish` gives for them; a frame without a face as it is
function Model:paste(faces, clip, finish)
  local session = clip.session
  finish = finish or function(frame) return frame:to 'cpu' end
  return session.measure('paste', clip.n, function()
    local finished = {}
    for i, item in ipairs(clip.items) do
      finished[i] = cr.scope(function()
        local frame = item.frame:rgb()
        if not item.matrix then return finish(frame, item) end
        local face = faces:select(1, i):to(frame.device)
        if session.paste == 'reference' then
          return finish(align.paste_reference(frame, face, item.matrix), item)
        end
        return finish(align.paste_region(frame, face, item.matrix, session.mask), item)
      end)
    end
    return finished
  end)
end

--- Latents to finished frames.
--- @param x Tensor [1 F h w 4]
--- @param clip Clip
--- @return Tensor[] u8 [H W 3] each
function Model:paint(x, clip)
  return cr.scope(function() return self:paste(self:decode(x, clip), clip) end)
end

--- Waits until the model's device has done what it was given; in a task others run meanwhile.
function Model:wait()
  if self.device ~= 'cpu' then cr.cuda.synchronize(self.device) end
end

--- Marks what this task has given the model's device so far.
--- @return fun() waits until that is done, and not for what is given later; in a task others run meanwhile
function Model:mark()
  if self.device == 'cpu' then return function() end end
  -- A job has one who waits for it, a task as many as like.
  local reached = cr.go(cr.await, cr.cuda.mark(self.device))
  return function() cr.await(reached) end
end

return latentsync
