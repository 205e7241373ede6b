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
-- Order of random draws, as in the reference: the noise (one picture, the same for every frame of
-- every window), then for each window the posterior samples of the masked pictures and those of the
-- reference pictures.

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
--- @field size integer pixels of the square face picture
--- @field factor integer pixels of a latent's side
--- @field sampling table what the checkpoint names as its sampling: {size, steps, guidance}
--- @field quantized string[]? layers that a recipe quantized, 'unet.' and the like before their names
--- @field lacking string? why the device computes in other formats than were asked for
--- @field size_advice string? how another size is run, where nobody said which is the checkpoint's
local Model = {}
Model.__index = Model

-- ---- loading ---------------------------------------------------------------------------------

--- Loads a checkpoint folder (see models/latentsync/checkpoint.lua).
--- @param dir string
--- @param options table? {device = 'cpu', dtype = 'f32', vae = DIR, size = the checkpoint's, else 256,
---   card = options of the card (models/latentsync/card.lua),
---   quant = a recipe's name or file, or a recipe (models/quantize/recipe.lua): what becomes codes of 8 or 4 bits}
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
  self.quantized, self.lacking = quant and told.layers, told.lacking
  if quant and #told.layers == 0 then
    error(('%s: the recipe names no layer that can be quantized (of convolutions the range must be known: crescent quantize)')
      :format(type(options.quant) == 'string' and options.quant or 'quant'), 0)
  end
  self.factor = 2 ^ (#self.vae.config.block_out_channels - 1)
  self.channels = self.vae.config.latent_channels
  local needs = 2 * self.channels + 1 + self.channels
  if self.unet.config.in_channels ~= needs then
    error(('%s: the UNet takes %d channels, but latents, mask, masked and reference latents of this VAE make %d')
      :format(self.files.unet, self.unet.config.in_channels, needs), 0)
  end
  self:set_size(options.size or self.sampling.size or 256)
  if not options.size and not self.sampling.size then
    self.size_advice = 'the checkpoint does not say its size; LatentSync 1.6 is run with --size 512'
  end
  return self
end

--- The same model on another card, which only makes windows: without Whisper. From a card its weights go there beside whatever
--- else is done.
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

--- Loads Whisper, if it was left out.
--- @return LatentSync itself
function Model:hearing()
  if not self.whisper then
    self.whisper, self.files.whisper = loading.whisper(self.dir, self.unet.config.cross_attention_dim, self.options)
  end
  return self
end

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

--- Iterates over the windows of a video and its voices, of several people's the clips one after the other.
--- @param video string
--- @param audio string|table[] a sound, or {face = whom, path = sound} each (models/latentsync/windows.lua)
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

--- Aligned faces as the networks see them.
--- @param faces Tensor u8 [F S S 3]
--- @return Tensor f32, in [-1, 1]
function latentsync.pixels(faces)
  return cr.scope(function() return (faces:to 'f32' / 255 - 0.5) / 0.5 end)
end

--- Standard normal numbers as torch draws them for latents [N C h w], channels-last.
--- @param N integer
--- @param generator any a generator of cr.generator
--- @param dtype string? that they are drawn in (the model's)
--- @return Tensor [N h w C]
function Model:draw(N, generator, dtype)
  local z = cr.randn(N, self.channels, self.latent, self.latent,
    { generator = generator, dtype = dtype or self.dtype, device = self.device })
  return z:permute(1, 3, 4, 2):contiguous()
end

--- What the network is told of a window's pictures: mask, masked latents and reference latents.
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
      -- In a scope each: on a card every copy of a window counts.
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

--- The window's own pictures as latents: what is noised where sampling does not begin with noise alone.
--- @param cond Tensor from condition()
--- @return Tensor [1 F h w 4], a view
function Model:source(cond) return cond:narrow(5, cond:size(5) - self.channels + 1, self.channels) end

--- Passes over the random draws of condition(): for a window that is not made, or elsewhere.
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

--- The noise that a window starts from: the same picture for every frame.
--- @param clip Clip
--- @return Tensor [1 F h w 4]
function Model:noise(clip)
  return clip.source.noise:to(self.device):expand(1, clip.n, self.latent, self.latent, self.channels):contiguous()
end

--- The UNet for one window, with everything that does not depend on the step computed once:
--- d:call(x, i) predicts the noise at timesteps[i]. Guidance that changes from step to step and caches
--- over steps are put around it: see cr.guidance and cr.cache.
--- @param cond Tensor from condition()
--- @param hear Tensor from listen()
--- @param options table {guidance = 1.5, timesteps = number[], savings = as of models/networks/unet3d_denoiser.lua}
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

--- Latents to face pictures as the network makes them. A card may still be at it.
--- @param x Tensor [1 F h w 4]
--- @param clip Clip
--- @return Tensor f32 [F S S 3], about in [-1, 1]
function Model:pictures(x, clip)
  return clip.source.measure('decode latents', clip.n, cr.scope, function()
    local latents = self.vae:unscale(x:view(clip.n, self.latent, self.latent, self.channels))
    return self.vae:decode(latents):to 'f32'
  end)
end

--- Face pictures with their surroundings taken from the input; colours are matched, if that was asked for, so clips are to
--- come in order.
--- @param made Tensor f32 [F S S 3] from pictures()
--- @param clip Clip
--- @return Tensor f32 [F S S 3], about in [-1, 1]
function Model:compose(made, clip)
  local source = clip.source
  return cr.scope(function()
    local pixels, mask = clip.pixels or latentsync.pixels(clip.faces:to(made.device)), source.mask:to(made.device)
    -- Outside the mask the pixels are the input's.
    local inside = cr.scope(function()
      local matched = source.colour and source.colour:match(made, pixels, clip.items) or made
      return matched * (mask:neg() + 1)
    end)
    return inside + pixels * mask
  end)
end

--- Latents to face pictures: decoded, their surroundings taken from the input. A card may still be at it.
--- @param x Tensor [1 F h w 4]
--- @param clip Clip
--- @return Tensor f32 [F S S 3], about in [-1, 1]
function Model:decode(x, clip)
  return cr.scope(function() return self:compose(self:pictures(x, clip), clip) end)
end

-- A frame with one person's face put into it; as it is where there is none, or where nobody speaks.
local function put(self, frame, faces, clip, i)
  local item, source = (clip.shown or clip.items)[i], clip.source
  if not item.matrix or item.share == 0 then return frame end
  local face = faces:select(1, item.made or i):to(frame.device)
  if source.paste == 'reference' then return align.paste_reference(frame, face, item.matrix, self.size, item.share) end
  return align.paste_region(frame, face, item.matrix, source.mask, item.share)
end

--- Face pictures back into the frames that they came from.
--- @param faces Tensor from decode()
--- @param clip Clip
--- @param finish (fun(frame: Tensor|DeepPicture, item: FrameItem): Tensor)? what becomes of each frame as soon as it is done;
--- by default it comes down to the CPU
--- @param before {faces: Tensor, clip: Clip}[]? other people of the same window, who are put into the frames first
--- @param first integer? frame with which to begin (1)
--- @return Tensor[] u8 [H W 3] each, or what `finish` gives for them; a frame without a face, or in a pause, as it is
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
--- @return fun(): number? waits until that is done, and not for what is given later; in a task others run meanwhile. Of a card
---   it gives when that was, by cr.clock
function Model:mark()
  if self.device == 'cpu' then return function() end end
  -- A job has one who waits for it, a task as many as like.
  local reached = cr.go(function()
    local at = cr.await(cr.cuda.mark(self.device))
    local now = clock()
    return now - (math.floor(now * 1e6) - at) % 2 ^ 31 * 1e-6
  end)
  return function() return cr.await(reached) end
end

-- ---- what they take --------------------------------------------------------------------------

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
