--- The model: a checkpoint's networks, and the steps from a window of video and sound to finished
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
-- Random numbers are drawn in the reference's order: the noise (one latent image, the same for every frame of every
-- window), then, for each window, the posterior samples of the masked images and those of the reference images.

local cr = require 'cr'
local arguments = require 'cr.arguments'
local align = require 'models.latentsync.align'
local clock = require 'cr.clock'
local loading = require 'models.latentsync.loading'
local media = require 'cr.media'
local recipes = require 'models.quantize.recipe'
local windows = require 'models.latentsync.windows'

local latentsync = {}

--- @class LatentSync
--- @field size integer side of the square face image in pixels
--- @field factor integer side of a latent in pixels: the VAE's downsampling factor
--- @field sampling table the checkpoint's sampling settings: {size, steps, guidance}
--- @field quantized string[]? layers that a recipe quantized, with prefixes such as 'unet.'
--- @field lacking string? why the device computes in other formats than requested
--- @field unmatched string? a sentence about a row of the recipe that matches no layer
--- @field size_advice string? how to use another size, if the checkpoint does not say its size
local Model = {}
Model.__index = Model

-- ---- loading ---------------------------------------------------------------------------------

--- Loads a checkpoint folder (see models/latentsync/checkpoint.lua).
--- @param dir string
--- @param options table? {device = 'cpu', dtype = 'f32', vae = DIR, size = the checkpoint's, else 256,
---   card = options of the GPU (models/latentsync/card.lua),
---   quant = a recipe's name or file, or a recipe (models/quantize/recipe.lua): which layers are quantized to 8 or 4 bits}
--- @return LatentSync
function latentsync.load(dir, options)
  options = options or {}
  local self = setmetatable({ dir = dir, dtype = options.dtype or 'f32', device = options.device or 'cpu', files = {} }, Model)
  if self.device ~= 'cpu' then require 'models.latentsync.card'.set(self.device, options.card) end
  local quant = options.quant
  if type(quant) == 'string' then quant = recipes.named(quant) end
  local told = { layers = {} }
  local o = { dtype = self.dtype, device = self.device, vae = options.vae, quant = quant, told = told, card = options.card }
  self.unet, self.sampling, self.files.unet = loading.unet(dir, o)
  self.vae, self.files.vae = loading.vae(dir, o)
  self.options = o
  self:hearing()
  self.quantized, self.lacking, self.unmatched = quant and told.layers, told.lacking, told.unmatched
  if quant and #told.layers == 0 then
    error(('%s: the recipe matches no layer that can be quantized (convolutions need calibrated ranges: crescent quantize)')
      :format(type(options.quant) == 'string' and options.quant or 'quant'), 0)
  end
  self.factor = 2 ^ (#self.vae.config.block_out_channels - 1)
  self.channels = self.vae.config.latent_channels
  local needs = 2 * self.channels + 1 + self.channels
  if self.unet.config.in_channels ~= needs then
    error(('%s: the UNet takes %d input channels, but latents, mask, masked and reference latents of this VAE have %d')
      :format(self.files.unet, self.unet.config.in_channels, needs), 0)
  end
  self:set_size(options.size or self.sampling.size or 256)
  if not options.size and not self.sampling.size then
    self.size_advice = 'the checkpoint does not say its size; LatentSync 1.6 needs --size 512'
  end
  return self
end

--- A copy of the model on another device that only generates windows, without Whisper. On a GPU the weights are
--- copied in the background.
--- @param device string
--- @return LatentSync
function Model:on(device)
  local other = {}
  for key, value in pairs(self) do other[key] = value end
  other.device, other.whisper, other.kept = device, nil, nil
  other.options = setmetatable({ device = device }, { __index = self.options })
  if device ~= 'cpu' then require 'models.latentsync.card'.set(device, self.options.card) end
  other.unet = cr.tagged(loading.UNET_TAG, self.unet.on, self.unet, device)
  other.vae = cr.tagged(loading.VAE_TAG, self.vae.on, self.vae, device)
  return setmetatable(other, Model)
end

--- Loads Whisper, if it was not loaded.
--- @return LatentSync itself
function Model:hearing()
  if not self.whisper then
    self.whisper, self.files.whisper = loading.whisper(self.dir, self.unet.config.cross_attention_dim, self.options)
  end
  return self
end

--- Sets the side of the square face image, in pixels.
--- @param size integer
function Model:set_size(size)
  local step = self.factor
  if size < 2 * step or size % step ~= 0 then
    error(('a size of %d cannot be used: the VAE downsamples by %d, so the size must be a multiple of that and at least %d')
      :format(size, step, 2 * step), 0)
  end
  self.size, self.latent = size, size / step
end

--- The maximum number of frames in a window: the length of the motion modules' position encoding.
function Model:max_frames()
  local motion = self.unet.config.motion
  return motion and motion.temporal_position_encoding_max_len or math.huge
end

-- ---- windows ---------------------------------------------------------------------------------

--- Iterates over the windows of a video and its voices. With several people, their clips of a window follow one
--- another.
--- @param video string
--- @param audio string|table[] a sound, or a list of {face = choice, path = sound} (models/latentsync/windows.lua)
--- @param options WindowOptions?
--- @return fun(): Clip?
function Model:windows(video, audio, options)
  local source = windows.open(self, video, audio, options)
  return function()
    local clip = source:next()
    if not clip then source:close() end
    return clip
  end
end

-- ---- the steps of a window -------------------------------------------------------------------

--- Aligned faces in the range that the networks take.
--- @param faces Tensor u8 [F S S 3]
--- @return Tensor f32, in [-1, 1]
function latentsync.pixels(faces)
  return cr.scope(function() return (faces:to 'f32' / 255 - 0.5) / 0.5 end)
end

--- Standard normal noise for latents [N C h w] in torch's order, returned channels-last.
--- @param N integer
--- @param generator any a generator from cr.generator
--- @param dtype string? data type of the draws (the model's)
--- @return Tensor [N h w C]
function Model:draw(N, generator, dtype)
  local z = cr.randn(N, self.channels, self.latent, self.latent,
    { generator = generator, dtype = dtype or self.dtype, device = self.device })
  return z:permute(1, 3, 4, 2):contiguous()
end

--- The image conditioning of a window: mask, masked latents and reference latents.
--- @param clip Clip
--- @return Tensor [1 F h w 9]
function Model:condition(clip)
  local source = clip.source
  if not clip.faces then error('no frame of this window has a face', 0) end
  clip.pixels = clip.pixels or latentsync.pixels(clip.faces)
  return source.measure('encode latents', clip.n, function()
    return cr.scope(function()
      local F, side = clip.n, self.latent
      local mask = source.mask:to(self.device)
      -- Each in its own scope, because every copy of a window counts on a GPU.
      local function encoded(keep)
        return cr.scope(function()
          local x = keep and clip.pixels * keep or clip.pixels
          local mean, logvar = self.vae:encode(x:to(self.dtype))
          return self.vae:sample(mean, logvar, self:draw(F, clip.generator or source.generator))
        end)
      end
      local masked = encoded(mask)
      local reference = encoded()
      local small = align.mask_latent(source.mask, self.factor):to(self.dtype):to(self.device)
      small = small:view(1, side, side, 1):expand(F, side, side, 1)
      return cr.cat({ small, masked, reference }, 4):view(1, F, side, side, 1 + 2 * self.channels)
    end)
  end)
end

--- The window's own images as latents, to which noise is added if sampling starts from the video.
--- @param cond Tensor from condition()
--- @return Tensor [1 F h w 4], a view
function Model:source(cond) return cond:narrow(5, cond:size(5) - self.channels + 1, self.channels) end

--- Skips the random draws of condition(), for a window that is not generated here.
--- @param clip Clip
function Model:skip(clip)
  local count = clip.n * self.channels * self.latent * self.latent
  for _ = 1, 2 do cr.skip_randn(clip.source.generator, count, self.dtype) end
end

--- The audio tokens of a window's frames.
--- @param clip Clip
--- @return Tensor [F 50 D]
function Model:listen(clip)
  return clip.source.measure('audio', clip.n, function()
    if clip.hear then return cr.scope(function() return clip.hear:to(self.device):clone() end) end
    return clip.source.tokens:window(clip.first, clip.n)
  end)
end

--- The initial noise of a window: the same latent image for every frame.
--- @param clip Clip
--- @return Tensor [1 F h w 4]
function Model:noise(clip)
  return clip.source.noise:to(self.device):expand(1, clip.n, self.latent, self.latent, self.channels):contiguous()
end

--- The UNet for one window, with everything that does not depend on the step computed once. d:call(x, i) predicts the
--- noise at timesteps[i]. Guidance that varies over steps, and caches over steps, are wrapped around it: see
--- cr.guidance and cr.cache.
--- @param cond Tensor from condition()
--- @param hear Tensor from listen()
--- @param options table {guidance = 1.5, timesteps = number[], savings = as for models/networks/unet3d_denoiser.lua}
function Model:denoiser(cond, hear, options)
  return self.unet:denoiser {
    cond = cond, audio = hear, guidance = options.guidance or 1.5, timesteps = options.timesteps,
    savings = options.savings,
  }
end

--- The predicted noise at timestep t, with guidance. What depends only on the window is cached as long as `cond` and
--- `hear` are the same tensors.
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
    -- The steps are not known in advance, so their embeddings cannot be computed in advance.
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

--- Decodes latents to face images. On a GPU the work may still be in progress when this returns.
--- @param x Tensor [1 F h w 4]
--- @param clip Clip
--- @return Tensor f32 [F S S 3], about in [-1, 1]
function Model:pictures(x, clip)
  return clip.source.measure('decode latents', clip.n, cr.scope, function()
    local latents = self.vae:unscale(x:view(clip.n, self.latent, self.latent, self.channels))
    return self.vae:decode(latents):to 'f32'
  end)
end

--- Combines generated face images with the input's pixels outside of the mask. If colour matching is enabled, clips
--- must come in order.
--- @param made Tensor f32 [F S S 3] from pictures()
--- @param clip Clip
--- @return Tensor f32 [F S S 3], about in [-1, 1]
function Model:compose(made, clip)
  local source = clip.source
  return cr.scope(function()
    local pixels, mask = clip.pixels or latentsync.pixels(clip.faces:to(made.device)), source.mask:to(made.device)
    -- Outside of the regenerated region the pixels are those of the input.
    local inside = cr.scope(function()
      local matched = source.colour and source.colour:match(made, pixels, clip.items) or made
      return matched * (mask:neg() + 1)
    end)
    return inside + pixels * mask
  end)
end

--- Latents to face images, decoded and combined with the input. On a GPU the work may still be in progress.
--- @param x Tensor [1 F h w 4]
--- @param clip Clip
--- @return Tensor f32 [F S S 3], about in [-1, 1]
function Model:decode(x, clip)
  return cr.scope(function() return self:compose(self:pictures(x, clip), clip) end)
end

-- Pastes one person's face into a frame. Frames without a face, and in pauses, stay unchanged.
local function put(self, frame, faces, clip, i)
  local item, source = (clip.shown or clip.items)[i], clip.source
  if not item.matrix or item.share == 0 then return frame end
  local face = faces:select(1, item.made or i):to(frame.device)
  if source.paste == 'reference' then return align.paste_reference(frame, face, item.matrix, self.size, item.share) end
  return align.paste_region(frame, face, item.matrix, source.mask, item.share)
end

--- Pastes face images back into their frames.
--- @param faces Tensor from decode()
--- @param clip Clip
--- @param finish (fun(frame: Tensor|DeepPicture, item: FrameItem): Tensor)? is called for each finished frame; by default the
--- frame is copied to the CPU
--- @param before {faces: Tensor, clip: Clip}[]? other people of the same window, who are pasted first
--- @param first integer? first frame to paste (1)
--- @return Tensor[] u8 [H W 3] each, or the results of `finish`; frames without a face, or in a pause, are unchanged
function Model:paste(faces, clip, finish, before, first)
  finish = finish or function(frame) return media.eight_bits(frame):to 'cpu' end
  return clip.source.measure('paste', clip.n, function()
    local finished, items = {}, clip.shown or clip.items
    for i = first or 1, #items do
      local item = items[i]
      finished[#finished + 1] = cr.scope(function()
        local frame = item.frame:whole()
        for _, other in ipairs(before or {}) do frame = put(self, frame, other.faces, other.clip, i) end
        return finish(put(self, frame, faces, clip, i), item)
      end)
    end
    return finished
  end)
end

--- Makes finished frames of latents: decodes, then pastes.
--- @param x Tensor [1 F h w 4]
--- @param clip Clip
--- @return Tensor[] u8 [H W 3] each
function Model:paint(x, clip)
  return cr.scope(function() return self:paste(self:decode(x, clip), clip) end)
end

--- Waits until the model's device has finished its queued work; other tasks run meanwhile.
function Model:wait()
  if self.device ~= 'cpu' then cr.cuda.synchronize(self.device) end
end

--- Records an event on the model's device.
--- @return fun(): number? waits for work that was queued before the event; other tasks run meanwhile. On a GPU it returns the time
---   of the event, by cr.clock
function Model:mark()
  if self.device == 'cpu' then return function() end end
  -- Only one caller may wait for a job, but any number may wait for a task.
  local job = cr.cuda.mark(self.device)
  local reached = cr.go(function()
    local ok, at = pcall(cr.await, job)
    local now = clock()
    return ok, ok and now - (math.floor(now * 1e6) - at) % 2 ^ 31 * 1e-6 or at
  end)
  return function()
    local ok, at = cr.await(reached)
    if not ok then error(at, 0) end -- told to those who wait, and to nobody if they are gone
    return at
  end
end

-- ---- argument types --------------------------------------------------------------------------

local maybe, integer, number, string, fn = arguments.maybe, arguments.positive, arguments.finite, arguments.string, arguments.callable
local x, clip, any = cr.kinds.alive, arguments.kind('a window of model:windows', arguments.table.test), arguments.any
local weight = maybe(number)

arguments.methods(Model, 'model', {
  on = { string }, hearing = {},
  set_size = { integer }, max_frames = {}, windows = { string, any, maybe(arguments.table) },
  draw = { integer, any, maybe(string) }, condition = { clip }, source = { x }, skip = { clip }, listen = { clip }, noise = { clip },
  denoiser = { x, maybe(x), arguments.options { guidance = weight, timesteps = arguments.table, savings = maybe(arguments.table) } },
  denoise = { x, number, x, maybe(x), maybe(arguments.options { guidance = weight }) },
  pictures = { x, clip }, compose = { x, clip }, decode = { x, clip },
  paste = { x, clip, maybe(fn), maybe(arguments.table), maybe(integer) }, paint = { x, clip }, wait = {}, mark = {},
})
return arguments.guard('latentsync.', latentsync, {
  pixels = { x },
  load = { string, maybe(arguments.options {
    device = maybe(string), dtype = maybe(string), vae = maybe(string), size = maybe(integer), quant = any, card = maybe(string),
  }) },
})
