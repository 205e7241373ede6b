--- A checkpoint folder of a tiny LatentSync with weights by formula: every part of the real one in a few megabytes,
--- untrained, for tests and the demonstration.

local cr = require 'cr'
local lfs = require 'lfs'
local cjson = require 'cjson'
local formula = require 'tests.support.formula'
local srvgg = require 'models.networks.srvgg'
local unet3d = require 'models.networks.unet3d'
local vae = require 'models.networks.vae'

local checkpoint = {}

--- The UNet's configuration, as LatentSync's `model` block.
--- @param audio_width integer width of the Whisper: 384 for tiny
function checkpoint.unet_config(audio_width)
  return {
    act_fn = 'silu', add_audio_layer = true, attention_head_dim = 4,
    block_out_channels = { 32, 64, 96, 96 }, center_input_sample = false,
    cross_attention_dim = audio_width,
    down_block_types = { 'CrossAttnDownBlock3D', 'CrossAttnDownBlock3D', 'CrossAttnDownBlock3D', 'DownBlock3D' },
    mid_block_type = 'UNetMidBlock3DCrossAttn',
    up_block_types = { 'UpBlock3D', 'CrossAttnUpBlock3D', 'CrossAttnUpBlock3D', 'CrossAttnUpBlock3D' },
    downsample_padding = 1, flip_sin_to_cos = true, freq_shift = 0, in_channels = 13,
    layers_per_block = 1, mid_block_scale_factor = 1, norm_eps = 1e-5, norm_num_groups = 32,
    out_channels = 4, sample_size = 16, resnet_time_scale_shift = 'default', use_motion_module = true,
    motion_module_resolutions = { 1, 2, 4, 8 }, motion_module_mid_block = false,
    motion_module_decoder_only = false, motion_module_type = 'Vanilla',
    motion_module_kwargs = {
      num_attention_heads = 8, num_transformer_block = 1,
      attention_block_types = { 'Temporal_Self', 'Temporal_Self' }, temporal_position_encoding = true,
      temporal_position_encoding_max_len = 24, temporal_attention_dim_div = 1, zero_initialize = true,
    },
  }
end

--- The VAE's configuration, as diffusers' config.json.
checkpoint.vae_config = {
  _class_name = 'AutoencoderKL', act_fn = 'silu', block_out_channels = { 32, 64, 64, 64 },
  down_block_types = { 'DownEncoderBlock2D', 'DownEncoderBlock2D', 'DownEncoderBlock2D', 'DownEncoderBlock2D' },
  up_block_types = { 'UpDecoderBlock2D', 'UpDecoderBlock2D', 'UpDecoderBlock2D', 'UpDecoderBlock2D' },
  in_channels = 3, out_channels = 3, latent_channels = 4, layers_per_block = 1, norm_num_groups = 32,
  sample_size = 256, scaling_factor = 0.18215,
}

local function write_file(path, text)
  local f, reason = io.open(path, 'wb')
  if not f then error(reason, 0) end
  f:write(text)
  f:close()
end

local function without_tables(expected)
  local list = {}
  for _, e in ipairs(expected) do
    -- The network computes the position encoding itself.
    if not e.name:find '%.pe$' then list[#list + 1] = e end
  end
  return list
end

--- Writes a small upscaling network: SRVGGNetCompact with scale 2 and weights by formula.
--- @param path string .safetensors
--- @param strength number? scale of the weights of its last convolution (0.1)
--- @return string path
function checkpoint.upscaler(path, strength)
  cr.scope(function()
    local all = formula.weights(srvgg.expected { layers = 1, features = 8, scale = 2 })
    all['body.4.weight'] = all['body.4.weight'] * (strength or 0.1)
    cr.save(path, all)
  end)
  return path
end

--- Writes the folder.
--- @param dir string is created if necessary
--- @param options table? {audio_width = 384, whisper = a Whisper file to copy into it}
function checkpoint.write(dir, options)
  options = options or {}
  for _, folder in ipairs { dir, dir .. '/vae', dir .. '/whisper' } do lfs.mkdir(folder) end
  cr.scope(function()
    local config = checkpoint.unet_config(options.audio_width or 384)
    write_file(dir .. '/unet.json', cjson.encode(config))
    cr.save(dir .. '/latentsync_unet.safetensors', formula.weights(without_tables(unet3d.expected(unet3d.config(config)))))
    write_file(dir .. '/vae/config.json', cjson.encode(checkpoint.vae_config))
    cr.save(dir .. '/vae/diffusion_pytorch_model.safetensors', formula.weights(vae.expected(vae.config(checkpoint.vae_config))))
  end)
  if options.whisper then
    local f, reason = io.open(options.whisper, 'rb')
    if not f then error(reason, 0) end
    write_file(dir .. '/whisper/' .. options.whisper:match '[^/]*$', f:read '*a')
    f:close()
  end
end

return checkpoint
