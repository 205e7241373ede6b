-- The variational autoencoder of Stable Diffusion (diffusers' AutoencoderKL), which encodes images to latents of an
-- eighth of their size, and decodes them.
--
-- Layout: images [N H W 3] in [-1, 1], latents [N h w 4]. The network processes a few images at a time, so memory
-- depends on the image size and not on N. Every normalization is per image, so this does not change the results. The
-- deep layers, whose feature maps are as small as the latents, process many images at a time; otherwise most of a GPU
-- would idle.

local cr = require 'cr'
local checks = require 'cr.config'
local nn = require 'cr.nn'
local quant = require 'cr.quant'
local upsample = require 'cr.nn.upsample'

local M = {}

--- weights.tree's `made`: convolutions behind a nearest-neighbour upsampling, in folded form.
M.made = upsample.made { 'upsamplers.0.conv' }

local EPS = 1e-6
local PIXELS = 2 ^ 19 -- input pixels that an encoder processes at once: they fill a GPU; half as many took 4 % longer on an H200

local defaults = {
  in_channels = 3, out_channels = 3, latent_channels = 4, block_out_channels = { 128, 256, 512, 512 },
  layers_per_block = 2, norm_num_groups = 32, act_fn = 'silu', scaling_factor = 0.18215,
  mid_block_add_attention = true, use_quant_conv = true, use_post_quant_conv = true,
}

local WHERE = 'vae configuration'

-- Upper bounds of the numbers, far below what would exhaust memory.
local bounds = { in_channels = 4096, out_channels = 4096, latent_channels = 4096, layers_per_block = 32, norm_num_groups = 4096 }
local MOST_LEVELS, MOST_CHANNELS = 8, 65536

local function fail(...) checks.fail(WHERE, ...) end

--- @class VAEConfig
--- @field block_out_channels integer[]
--- @field layers_per_block integer
--- @field latent_channels integer
--- @field scaling_factor number
--- @field factor integer side of a latent in pixels

--- Checks diffusers' config.json (decoded) and fills in Stable Diffusion's values.
--- @param source? table
--- @return VAEConfig
function M.config(source)
  source = source or {}
  if type(source) ~= 'table' then fail('expected a table, not a %s', type(source)) end
  local c = {}
  for k, want in pairs(defaults) do
    local v = source[k]
    if type(v) == 'userdata' or type(v) == 'cdata' then v = nil end -- null in JSON or YAML
    if v == nil then v = want end
    if type(v) ~= type(want) then fail('%s must be a %s, not %s', k, type(want) == 'table' and 'list' or type(want), checks.shown(v)) end
    c[k] = v
  end
  if c.act_fn ~= 'silu' and c.act_fn ~= 'swish' then fail('act_fn = %s is not supported', c.act_fn) end
  for key, block in pairs { down_block_types = 'DownEncoderBlock2D', up_block_types = 'UpDecoderBlock2D' } do
    for _, kind in ipairs(type(source[key]) == 'table' and source[key] or {}) do
      if kind ~= block then fail('the block %s is not supported', tostring(kind)) end
    end
  end
  if source._class_name and source._class_name ~= 'AutoencoderKL' then
    fail('it describes a %s, not an AutoencoderKL', tostring(source._class_name))
  end
  for key, most in pairs(bounds) do checks.number(WHERE, key, c[key], 1, most, true) end
  checks.integers(WHERE, 'block_out_channels', c.block_out_channels, 1, MOST_CHANNELS, 1, MOST_LEVELS)
  for _, n in ipairs(c.block_out_channels) do
    if n % c.norm_num_groups ~= 0 then fail('%d channels are not divisible into %d groups', n, c.norm_num_groups) end
  end
  checks.number(WHERE, 'scaling_factor', c.scaling_factor, 1e-6, 1e6)
  c.factor = 2 ^ (#c.block_out_channels - 1)
  return c
end

-- diffusers' names of the middle attention, before and since version 0.17.
local attention_names = {
  { 'query', 'to_q' }, { 'key', 'to_k' }, { 'value', 'to_v' }, { 'proj_attn', 'to_out.0' },
}

--- Whether a weights file has the old names of the middle attention.
function M.has_old_names(file)
  return file:has 'encoder.mid_block.attentions.0.query.weight'
end

--- The tensors of a checkpoint: a list of { name =, shape = [, or_shape =] } with PyTorch shapes.
--- @param c VAEConfig
--- @param old_names? boolean the attention's tensors are called query, key, value and proj_attn
function M.expected(c, old_names)
  local list = {}
  local function both(name, out, ...)
    list[#list + 1] = { name = name .. '.weight', shape = { out, ... } }
    list[#list + 1] = { name = name .. '.bias', shape = { out } }
  end
  local function resnet(name, from, to)
    both(name .. '.norm1', from)
    both(name .. '.conv1', to, from, 3, 3)
    both(name .. '.norm2', to)
    both(name .. '.conv2', to, to, 3, 3)
    if from ~= to then both(name .. '.conv_shortcut', to, from, 1, 1) end
  end
  local function middle(name, width)
    if c.mid_block_add_attention then
      both(name .. '.attentions.0.group_norm', width)
      for _, pair in ipairs(attention_names) do
        both(('%s.attentions.0.%s'):format(name, old_names and pair[1] or pair[2]), width, width)
        -- Some files store the projections as 1x1 convolutions.
        list[#list - 1].or_shape = { width, width, 1, 1 }
      end
    end
    resnet(name .. '.resnets.0', width, width)
    resnet(name .. '.resnets.1', width, width)
  end
  local widths, n = c.block_out_channels, #c.block_out_channels

  both('encoder.conv_in', widths[1], c.in_channels, 3, 3)
  for i = 1, n do
    local name = ('encoder.down_blocks.%d'):format(i - 1)
    for j = 0, c.layers_per_block - 1 do
      resnet(('%s.resnets.%d'):format(name, j), j == 0 and widths[math.max(i - 1, 1)] or widths[i], widths[i])
    end
    if i < n then both(name .. '.downsamplers.0.conv', widths[i], widths[i], 3, 3) end
  end
  middle('encoder.mid_block', widths[n])
  both('encoder.conv_norm_out', widths[n])
  both('encoder.conv_out', 2 * c.latent_channels, widths[n], 3, 3)

  both('decoder.conv_in', widths[n], c.latent_channels, 3, 3)
  for i = 1, n do
    local name = ('decoder.up_blocks.%d'):format(i - 1)
    local to = widths[n + 1 - i]
    local from = i == 1 and to or widths[n + 2 - i]
    for j = 0, c.layers_per_block do
      resnet(('%s.resnets.%d'):format(name, j), j == 0 and from or to, to)
    end
    if i < n then both(name .. '.upsamplers.0.conv', to, to, 3, 3) end
  end
  middle('decoder.mid_block', widths[n])
  both('decoder.conv_norm_out', widths[1])
  both('decoder.conv_out', c.out_channels, widths[1], 3, 3)
  if c.use_quant_conv then both('quant_conv', 2 * c.latent_channels, 2 * c.latent_channels, 1, 1) end
  if c.use_post_quant_conv then both('post_quant_conv', c.latent_channels, c.latent_channels, 1, 1) end
  return list
end

-- ---- the network ----

--- @class VAE
--- @field config VAEConfig
--- @field w table
--- @field slice? integer number of images processed at once, whatever their size
--- @field pixels integer otherwise, the number of input pixels that an encoder processes at once
local vae = {}
vae.__index = vae

-- [O 1 1 I] of a 1x1 convolution -> [O I].
local function as_linear(w)
  if w and w.weight:dim() == 4 then
    w.weight = cr.keep(w.weight:view(w.weight:size(1), w.weight:size(4)))
  end
end

local encode, encode_deep, decode_deep, decode

-- On a GPU each function is recorded once per shape.
local function recorded(self)
  for name, fn in pairs { encoder = encode, deep_encoder = encode_deep, deep_decoder = decode_deep, decoder = decode } do
    self[name] = cr.graph(function(x) return fn(self, x) end)
  end
  return self
end

--- Creates the autoencoder from its tree of weights, which it takes over; the attention may have its old names.
--- @param tree table
--- @param config? VAEConfig
--- @param options? { slice?: integer } images at once; default: 1 on a CPU, and on a GPU as many as have a quarter of a megapixel
--- (decoding: an eighth), at least 2: that fills a GPU and bounds its memory
--- @return VAE
function M.new(tree, config, options)
  config = config or M.config()
  local first = tree.encoder.conv_in.weight
  local self = setmetatable({
    config = config, w = tree, dtype = first.dtype, device = first.device,
    slice = options and options.slice, pixels = PIXELS,
  }, vae)
  for _, half in ipairs { tree.encoder, tree.decoder } do
    local a = config.mid_block_add_attention and half.mid_block.attentions[0]
    if a then
      if rawget(a, 'query') then
        a.to_q, a.to_k, a.to_v = a.query, a.key, a.value
        a.to_out = { [0] = a.proj_attn }
        a.query, a.key, a.value, a.proj_attn = nil, nil, nil, nil
      end
      for _, w in ipairs { a.to_q, a.to_k, a.to_v, a.to_out[0] } do as_linear(w) end
    end
    for i = 0, #config.block_out_channels - 1 do
      local resnets = (rawget(half, 'down_blocks') or half.up_blocks)[i].resnets
      for j = 0, config.layers_per_block do
        local r = rawget(resnets, j)
        if r then as_linear(rawget(r, 'conv_shortcut')) end
      end
    end
  end
  return recorded(self)
end

--- A copy of the network on another device.
--- @param device string
--- @return VAE
function vae:on(device)
  local w = cr.weights.on(self.w, device)
  return recorded(setmetatable({ config = self.config, w = w, dtype = self.dtype, device = w.encoder.conv_in.weight.device,
    slice = self.slice, pixels = self.pixels }, vae))
end

local function resnet(self, w, x)
  return cr.scope(function()
    local groups = self.config.norm_num_groups
    local h = nn.group_norm(w.norm1, x, groups, EPS, { silu = true, codes = w.conv1 })
    local function step(y)
      quant.tensor_of(h):free()
      h = y
    end
    step(nn.conv2d(w.conv1, h, { padding = 1 }))
    step(nn.group_norm(w.norm2, h, groups, EPS, { silu = true, codes = w.conv2 }))
    local shortcut = rawget(w, 'conv_shortcut')
    return nn.conv2d(w.conv2, h, { padding = 1, residual = shortcut and nn.linear(shortcut, x) or x })
  end)
end

-- Self-attention over all positions, with a single head of the block's width.
local function attention(self, w, x)
  return cr.scope(function()
    local N, H, W, C = unpack(x.shape)
    local h = nn.group_norm(w.group_norm, x, self.config.norm_num_groups, EPS):view(N, H * W, C)
    local q, k, v = nn.linear(w.to_q, h), nn.linear(w.to_k, h), nn.linear(w.to_v, h)
    return nn.linear(w.to_out[0], nn.attention(q, k, v, { heads = 1 }):view(N, H, W, C), { residual = x })
  end)
end

local function middle(self, w, x)
  x = resnet(self, w.resnets[0], x)
  if self.config.mid_block_add_attention then x = attention(self, w.attentions[0], x) end
  return resnet(self, w.resnets[1], x)
end

-- The number of images per slice, each of which takes as much memory as an encoder at `pixels` pixels.
local function at_once(self, pixels)
  return self.slice or (self.device == 'cpu' and 1 or math.max(2, math.floor(self.pixels / pixels)))
end

-- Runs fn on `slice` rows of x at a time and concatenates the results.
local function sliced(x, slice, fn)
  local N = x:size(1)
  if N <= slice then return fn(x) end
  local out
  for first = 1, N, slice do
    local n = math.min(slice, N - first + 1)
    local part = cr.scope(fn, x:narrow(1, first, n))
    if not out then
      local shape = part.shape
      shape[1] = N
      out = cr.empty(shape, { dtype = part.dtype, device = part.device })
    end
    out:narrow(1, first, n):copy_(part)
    part:free()
  end
  return out
end

-- The same measure for the deep layers: four times the channels, and twice the tensors around the attention.
local function deep_pixels(x) return 8 * x:size(2) * x:size(3) end

-- x = step(layer(x)) frees the previous x, because every copy counts with large images. The first x belongs to the
-- caller and is not freed.
local function freeing()
  local last
  return function(x)
    if last then last:free() end
    last = x
    return x
  end
end

-- From the images to the input of the deepest block.
function encode(self, x)
  local w, c, step = self.w.encoder, self.config, freeing()
  x = step(nn.conv2d(w.conv_in, x, { padding = 1 }))
  for i = 0, #c.block_out_channels - 2 do
    local block = w.down_blocks[i]
    for j = 0, c.layers_per_block - 1 do x = step(resnet(self, block.resnets[j], x)) end
    -- Padded only on the right and at the bottom.
    x = step(nn.conv2d(block.downsamplers[0].conv, x, { stride = 2, padding = { 0, 1, 0, 1 } }))
  end
  return x
end

function encode_deep(self, x)
  local w, c, step = self.w.encoder, self.config, freeing()
  local block = w.down_blocks[#c.block_out_channels - 1]
  for j = 0, c.layers_per_block - 1 do x = step(resnet(self, block.resnets[j], x)) end
  x = step(middle(self, w.mid_block, x))
  x = step(nn.group_norm_silu(w.conv_norm_out, x, c.norm_num_groups, EPS))
  x = step(nn.conv2d(w.conv_out, x, { padding = 1 }))
  return c.use_quant_conv and step(nn.conv2d(self.w.quant_conv, x)) or x
end

-- From the latents to the first upsampler.
function decode_deep(self, x)
  local w, c, step = self.w.decoder, self.config, freeing()
  if c.use_post_quant_conv then x = step(nn.conv2d(self.w.post_quant_conv, x)) end
  x = step(nn.conv2d(w.conv_in, x, { padding = 1 }))
  x = step(middle(self, w.mid_block, x))
  for j = 0, c.layers_per_block do x = step(resnet(self, w.up_blocks[0].resnets[j], x)) end
  return x
end

function decode(self, x)
  local w, c, step = self.w.decoder, self.config, freeing()
  for i = 1, #c.block_out_channels - 1 do
    x = step(nn.upsample_conv2d(w.up_blocks[i - 1].upsamplers[0].conv, x))
    for j = 0, c.layers_per_block do x = step(resnet(self, w.up_blocks[i].resnets[j], x)) end
  end
  x = step(nn.group_norm_silu(w.conv_norm_out, x, c.norm_num_groups, EPS))
  return step(nn.conv2d(w.conv_out, x, { padding = 1 }))
end

local function check(what, x, channels)
  if x:dim() ~= 4 or x:size(4) ~= channels then
    error(('vae: %s must be [N H W %d], not [%s]'):format(what, channels, table.concat(x.shape, ' ')), 3)
  end
end

--- The mean and log variance of the images' latents, unscaled.
--- @param image Tensor [N H W 3] in [-1, 1]
--- @return Tensor mean [N h w 4]
--- @return Tensor logvar [N h w 4], not clamped; `sample` clamps it
function vae:encode(image)
  check('a picture', image, self.config.in_channels)
  local factor = self.config.factor
  if image:size(2) % factor ~= 0 or image:size(3) % factor ~= 0 then
    error(('vae: %dx%d pixels are not divisible by %d'):format(image:size(3), image:size(2), factor), 2)
  end
  return cr.scope(function()
    local deep = sliced(image, at_once(self, image:size(2) * image:size(3)), function(part)
      return self.encoder(part:to(self.dtype):contiguous())
    end)
    local moments = sliced(deep, at_once(self, deep_pixels(deep)), self.deep_encoder)
    local n = self.config.latent_channels
    return moments:narrow(4, 1, n), moments:narrow(4, n + 1, n)
  end)
end

--- Decodes unscaled latents to images.
--- @param latent Tensor [N h w 4]
--- @return Tensor [N H W 3], about in [-1, 1]
function vae:decode(latent)
  check('a latent', latent, self.config.latent_channels)
  return cr.scope(function()
    local deep = sliced(latent, at_once(self, deep_pixels(latent)), function(part)
      return self.deep_decoder(part:to(self.dtype):contiguous())
    end)
    -- Twice, because a decoder's widest tensors have twice the channels of an encoder's at the same size. A quantized
    -- image needs less time and memory, and more images at once fill a GPU better, up to half a window.
    local codes = quant.format(self.w.decoder.up_blocks[0].resnets[0].conv1) == 'int8'
    local pixels = (codes and 0.5 or 2) * latent:size(2) * latent:size(3) * self.config.factor ^ 2
    local slice = at_once(self, pixels)
    return sliced(deep, codes and math.min(slice, 8) or slice, self.decoder)
  end)
end

--- Samples from the posterior and scales for the UNet: (mean + std noise) * scaling_factor, with the log variance
--- clamped to -30 .. 20.
--- @param mean Tensor
--- @param logvar Tensor
--- @param noise? Tensor standard normal, shaped like mean; nil returns the mean
--- @return Tensor
function vae:sample(mean, logvar, noise)
  return nn.posterior_sample(mean, logvar, noise, self.config.scaling_factor)
end

--- Converts the UNet's latents to the decoder's scale.
function vae:unscale(latent) return latent / self.config.scaling_factor end

return M
