-- LatentSync's UNet3D: Stable Diffusion 1.5's UNet applied to each frame, with cross-attention to each frame's audio
-- tokens and temporal self-attention ("motion modules") between frames.
--
-- Layout: video [B F H W C] everywhere. GroupNorm sees [B F H W C] in the resnets and at the output (its statistics
-- cover all frames of the window), and [B*F H W C] in the transformers and motion modules (per frame). These are
-- views; nothing is copied.
--
-- forward() is the plain network for any batch; denoiser() (models/networks/unet3d_denoiser.lua) is the same network
-- optimized for sampling.

local cr = require 'cr'
local denoiser = require 'models.networks.unet3d_denoiser'
local nets = require 'models.networks.unet3d_layers'
local nn = require 'cr.nn'
local settings = require 'models.networks.unet3d_config'

local conv, key_value, motion_module, norm = nets.conv, nets.key_value, nets.motion_module, nets.norm
local resnet, transformer, widened = nets.resnet, nets.transformer, nets.widened
local each_transformer, node, shape_text = nets.each_transformer, nets.node, nets.shape_text

local M = { config = settings.config, expected = settings.expected }

--- weights.tree's `adjacent`: weights that are fused into one product are stored contiguously.
M.adjacent = { { 'to_q.weight', 'to_k.weight', 'to_v.weight' } }

--- @class UNet3D
--- @field config UNetConfig
--- @field w table the tree of weights
--- @field trace? fun(name: string, x: Tensor) is called with the outputs of blocks; clone what you keep
--- @field idle table<string, DenoiserState[]> states of freed denoisers, for reuse on a GPU
local unet = {}
unet.__index = unet

-- One run of the network: what varies between runs, besides x.
--- @class UNetPass
--- @field frames integer
--- @field bias fun(w: table, batch: integer): Tensor the time embedding of a resnet, [batch C]
--- @field keys? fun(w: table): Tensor, Tensor keys and values of the audio; nil without audio
--- @field guided boolean the batch has two halves, and only the second one has audio tokens
--- @field hook? function wraps each layer (models/networks/unet3d_hook.lua)

-- ---- preparing the weights ----

-- A 1x1 convolution of channels-last data is a linear layer: [O 1 1 I] -> [O I].
local function as_linear(w)
  if w and w.weight:dim() == 4 then
    local whole = w.weight
    w.weight = cr.keep(whole:view(whole:size(1), whole:size(4)))
    whole:free()
  end
end

-- Fuses projections of the same input into one product. On a GPU their weights are already contiguous (M.adjacent),
-- so nothing is copied.
local function fuse(attention, name, ...)
  local parts = {}
  for i, key in ipairs { ... } do parts[i] = attention[key] end
  attention[name] = node(attention, name, cr.weights.joined_layers(parts))
  for i, key in ipairs { ... } do
    for what, t in pairs(parts[i]) do
      if not rawequal(t, rawget(attention[name], what)) then t:free() end
    end
    attention[key] = nil
  end
end

-- The sinusoidal position encoding of the motion modules, [frames width], as the reference computes it.
local function position_table(self, frames, width)
  local rows = {}
  for f = 0, frames - 1 do
    local row = {}
    for i = 0, width - 1 do
      local angle = f * math.exp((i - i % 2) * (-math.log(10000) / width))
      row[i + 1] = i % 2 == 0 and math.sin(angle) or math.cos(angle)
    end
    rows[f + 1] = row
  end
  return cr.keep(cr.tensor(rows):to(self.dtype):to(self.device):view(1, frames, width))
end

--- Creates the network from its tree of weights (weights.tree of a checkpoint that weights.check has compared with
--- `expected`). It takes the tree over and replaces weights by fused ones.
--- @param tree table
--- @param config? UNetConfig
--- @param options? { fuse?: boolean } fuse = false keeps query, key and value separate, for tests
--- @return UNet3D
function M.new(tree, config, options)
  config = config or settings.config()
  local self = setmetatable({ config = config, w = tree, idle = {} }, unet)
  local join = not (options and options.fuse == false)
  self.dtype, self.device = tree.conv_in.weight.dtype, tree.conv_in.weight.device

  each_transformer(tree, config, function(w, motion)
    as_linear(w.proj_in)
    as_linear(w.proj_out)
    for b = 0, motion and config.motion.num_transformer_block - 1 or 0 do
      local block = w.transformer_blocks[b]
      if motion then
        for i = 0, #config.motion.attention_block_types - 1 do
          local a = block.attention_blocks[i]
          if config.motion.temporal_position_encoding and not rawget(a, 'pos_encoder') then
            a.pos_encoder = { pe = position_table(self, config.motion.temporal_position_encoding_max_len,
              a.to_q.weight:size(1)) }
          end
          if join then fuse(a, 'to_qkv', 'to_q', 'to_k', 'to_v') end
        end
      elseif join then
        fuse(block.attn1, 'to_qkv', 'to_q', 'to_k', 'to_v')
        if rawget(block, 'attn2') then fuse(block.attn2, 'to_kv', 'to_k', 'to_v') end
      end
    end
  end)
  self:each_resnet(function(w) as_linear(rawget(w, 'conv_shortcut')) end)
  return self
end

--- The same network on another device, with weights of its own.
--- @param device string
--- @return UNet3D
function unet:on(device)
  local w = cr.weights.on(self.w, device)
  return setmetatable({ config = self.config, w = w, idle = {}, dtype = self.dtype, device = w.conv_in.weight.device }, unet)
end

function unet:each_resnet(visit)
  local w, n = self.w, self.config.layers_per_block
  for i = 0, #self.config.block_out_channels - 1 do
    for j = 0, n - 1 do visit(w.down_blocks[i].resnets[j]) end
    for j = 0, n do visit(w.up_blocks[i].resnets[j]) end
  end
  visit(w.mid_block.resnets[0])
  visit(w.mid_block.resnets[1])
end

-- ---- blocks ----

-- Runs the layers that follow a resnet of a block; j counts from 0.
function unet:after_resnet(name, w, j, x, heads, pass)
  if self.trace then self.trace(('%s.resnets.%d'):format(name, j), x) end
  if rawget(w, 'attentions') then
    x = transformer(self, w.attentions[j], x, heads, pass)
    if self.trace then self.trace(('%s.attentions.%d'):format(name, j), x) end
  end
  if rawget(w, 'motion_modules') then
    x = motion_module(self, w.motion_modules[j], x, pass)
    if self.trace then self.trace(('%s.motion_modules.%d'):format(name, j), x) end
  end
  return x
end

-- The outputs of a down block that later blocks use; at most `most` are computed.
function unet:down_block(i, x, pass, most)
  local w, name = self.w.down_blocks[i], 'down_blocks.' .. i
  local skips = {}
  for j = 0, self.config.layers_per_block - 1 do
    if #skips == most then return skips end
    x = resnet(self, w.resnets[j], x, pass)
    x = self:after_resnet(name, w, j, x, self.config.heads[i + 1], pass)
    skips[#skips + 1] = x
  end
  if rawget(w, 'downsamplers') and #skips ~= most then
    x = conv(w.downsamplers[0].conv, x, { stride = 2, padding = self.config.downsample_padding })
    skips[#skips + 1] = x
  end
  if self.trace then self.trace(name, x) end
  return skips
end

function unet:mid_block(x, pass)
  local w, scale = self.w.mid_block, self.config.mid_block_scale_factor
  x = resnet(self, w.resnets[0], x, pass, scale)
  x = self:after_resnet('mid_block', w, 0, x, self.config.heads[#self.config.heads], pass)
  x = resnet(self, w.resnets[1], x, pass, scale)
  if self.trace then self.trace('mid_block', x) end
  return x
end

-- Runs an up block from layer `first` on. The input of layer `wanted` is kept and also returned.
function unet:up_block(i, x, skips, pass, first, wanted)
  local w, name = self.w.up_blocks[i], 'up_blocks.' .. i
  local heads = self.config.heads[#self.config.heads - i]
  local deep
  for j = first or 0, self.config.layers_per_block do
    local skip = table.remove(skips)
    local joined = cr.cat({ x, widened(skip, x:size(1)) }, 5)
    -- Freed before the largest tensors are allocated.
    skip:free()
    if j == wanted then deep = x else x:free() end
    x = resnet(self, w.resnets[j], joined, pass)
    joined:free()
    x = self:after_resnet(name, w, j, x, heads, pass)
  end
  if rawget(w, 'upsamplers') then
    local next_skip = skips[#skips]
    local B, F, H, W, C = unpack(x.shape)
    local flat = x:view(B * F, H, W, C)
    -- Downsampling rounds odd sizes up, so upsampling may be one too large.
    local layer = w.upsamplers[0].conv
    if next_skip:size(3) == 2 * H and next_skip:size(4) == 2 * W then
      flat = nn.upsample_conv2d(layer, flat)
    else
      flat = nn.conv2d(layer, nn.resize(flat, next_skip:size(3), next_skip:size(4), 'nearest'), { padding = 1 })
    end
    x = flat:view(B, F, flat:size(2), flat:size(3), flat:size(4))
  end
  if self.trace then self.trace(name, x) end
  return x, deep
end

--- The number of branches that DeepCache can choose from: the layers of the up path.
function unet:branches() return #self.config.block_out_channels * (self.config.layers_per_block + 1) end

-- From the first convolution's output to the network's output. With `branch` (DeepCache, Ma et al. 2023, arXiv
-- 2312.00858) it also returns the input of the layer that is followed by `branch` layers of the up path. If this
-- input is given as `deep`, only that layer and the ones after it are computed, and of the down path only the
-- `branch` layers that they need.
function unet:body(x, pass, branch, deep)
  return cr.scope(function()
    local blocks, layers = #self.config.block_out_channels, self.config.layers_per_block + 1
    local at = branch and blocks - 1 - math.floor(branch / layers) -- the up block, and the layer in it
    local layer = branch and layers - 1 - branch % layers
    local skips = { x }
    for i = 0, blocks - 1 do
      local most = deep and branch + 1 - #skips
      if most == 0 then break end
      for _, skip in ipairs(cr.scope(self.down_block, self, i, skips[#skips], pass, most or nil)) do
        skips[#skips + 1] = skip
      end
    end
    if deep then
      x = deep:narrow(1, 1, deep:size(1)) -- a separate handle, because layers free their input
    else
      x = cr.scope(self.mid_block, self, skips[#skips], pass)
    end
    local kept
    for i = deep and at or 0, blocks - 1 do
      local before, here = x, i == at and layer or nil
      local y, found = cr.scope(self.up_block, self, i, before, skips, pass, deep and here, not deep and here)
      if not (found and rawequal(found, before)) then before:free() end
      x, kept = y, kept or found
    end
    if self.trace then self.trace('conv_norm_out', norm(self, self.w.conv_norm_out, x, {})) end
    local y = conv(self.w.conv_out, norm(self, self.w.conv_norm_out, x, { silu = true }), { padding = 1 })
    return y, kept
  end)
end

-- SiLU of the time embeddings of a list of timesteps, [#timesteps 4C].
function unet:embed(timesteps)
  local w = self.w.time_embedding
  local e = nn.timestep_embedding(timesteps, self.config.block_out_channels[1],
    { dtype = self.dtype, device = self.device })
  e = nn.linear(w.linear_1, e, { act = 'silu' })
  e = nn.linear(w.linear_2, e)
  if self.trace then self.trace('time_embedding', e) end
  return nn.silu(e)
end

function unet:check_video(what, x, channels)
  if x:dim() ~= 5 or x:size(5) ~= channels then
    error(('unet: %s must be [B F H W %d], not %s'):format(what, channels, shape_text(x)), 3)
  end
  local m = self.config.motion
  if self.config.use_motion_module and m.temporal_position_encoding
      and x:size(2) > m.temporal_position_encoding_max_len then
    error(('unet: %d frames in a window, but the network takes at most %d'):format(x:size(2),
      m.temporal_position_encoding_max_len), 3)
  end
end

function unet:check_audio(audio, rows)
  if audio:size(-1) ~= self.config.cross_attention_dim then
    error(('unet: audio tokens have width %d, but the network takes %d; use another Whisper')
      :format(audio:size(-1), self.config.cross_attention_dim), 3)
  end
  if audio:numel() / audio:size(-1) / audio:size(-2) ~= rows then
    error(('unet: audio tokens %s do not fit %d frames'):format(shape_text(audio), rows), 3)
  end
end

--- The plain network.
--- @param sample Tensor [B F H W in_channels]
--- @param t number|number[] timestep, or one per batch element
--- @param audio? Tensor [B F T D] tokens of each frame; nil skips cross-attention
--- @return Tensor epsilon [B F H W out_channels]
function unet:forward(sample, t, audio)
  self:check_video('the sample', sample, self.config.in_channels)
  local B, F = sample:size(1), sample:size(2)
  if audio then self:check_audio(audio, B * F) end
  local timesteps = type(t) == 'table' and t or { t }
  if #timesteps ~= 1 and #timesteps ~= B then
    error(('unet: %d timesteps for a batch of %d'):format(#timesteps, B), 2)
  end
  return cr.scope(function()
    local x = sample:to(self.dtype)
    if self.config.center_input_sample then x = x * 2 - 1 end
    local embedding = self:embed(timesteps)
    local pass = { frames = F, guided = false }
    function pass.bias(w, batch)
      return nn.linear(w.time_emb_proj, embedding):expand(batch, -1)
    end
    if audio and self.config.add_audio_layer then
      local tokens = audio:reshape(B * F, audio:size(-2), audio:size(-1)):to(self.dtype)
      function pass.keys(w) return key_value(w, tokens) end
    end
    x = conv(self.w.conv_in, x:contiguous(), { padding = 1 })
    if self.trace then self.trace('conv_in', x) end
    return (self:body(x, pass)):to(sample.dtype)
  end)
end

--- The network optimized for the steps of one window.
--- @param window UNetWindow
--- @return UNetDenoiser
function unet:denoiser(window) return denoiser.new(self, window) end

return M
