--- Numbers in configurations: implausible ones are refused at once, with file and key.

local cjson = require 'cjson'
local folder = require 'tests.support.scratch'.tree
local t = require 'tests.support.tap'
local loading = require 'models.latentsync.loading'

-- The error for a key in a file.
local function refused(read, name, cases)
  for _, case in ipairs(cases) do
    local text, pattern = unpack(case)
    t.test(text .. ' is refused', function()
      local begin = os.clock()
      t.raises(function() read(text) end, name:gsub('%p', '%%%0') .. ': ' .. pattern)
      t.ok(os.clock() - begin < 1, 'at once')
    end)
  end
end

local function unet(name)
  return function(text) loading.unet(folder { ['latentsync_unet.pt'] = '', [name] = text }, { dtype = 'f32', device = 'cpu' }) end
end

refused(unet 'unet.json', 'unet.json', {
  { '{"sampling":{"size":"big"}}', 'sampling.size must be a whole number from 16 to 4096, not "big"' },
  { '{"sampling":{"size":null}}', 'sampling.size .* not null' },
  { '{"sampling":{"size":[512]}}', 'sampling.size .* not a list' },
  { '{"sampling":{"size":{}}}', 'sampling.size .* not a table' },
  { '{"sampling":{"size":128.5}}', 'sampling.size .* not 128.5' },
  { '{"sampling":{"size":true}}', 'sampling.size .* not true' },
  { '{"sampling":{"size":1e9}}', 'sampling.size .* not 1000000000' },
  { '{"sampling":{"steps":-3}}', 'sampling.steps must be a whole number from 1 to 1000, not %-3' },
  { '{"sampling":{"steps":"20\\u001b[31m\\n"}}', 'sampling.steps .* not "20\\x1b%[31m\\n"' },
  { '{"sampling":{"guidance":-1}}', 'sampling.guidance must be a number from 0 to 100, not %-1' },
  { '{"sampling":{"guidance":NaN}}', 'sampling.guidance .* not %-?nan' },
  { '{"sampling":[512, 20]}', 'sampling must be a table of size, steps and guidance, not a list' },
  { '{"sampling":"fast"}', 'sampling must be a table .* not "fast"' },
  { '{"sampling":null}', 'sampling must be a table .* not null' },
  { '{"layers_per_block":1e6}', 'layers_per_block must be a whole number from 1 to 32, not 1000000' },
  { '{"layers_per_block":1.5}', 'layers_per_block .* not 1.5' },
  { '{"layers_per_block":[2]}', 'layers_per_block must be a number' },
  { '{"in_channels":1e18}', 'in_channels .* not 1e%+18' },
  { '{"cross_attention_dim":0}', 'cross_attention_dim .* not 0' },
  { '{"norm_num_groups":-32}', 'norm_num_groups .* not %-32' },
  { '{"norm_eps":Infinity}', 'norm_eps must be a number from 1e%-12 to 1, not inf' },
  { '{"norm_eps":NaN}', 'norm_eps .* not %-?nan' },
  { '{"norm_eps":0}', 'norm_eps .* not 0' },
  { '{"mid_block_scale_factor":Infinity}', 'mid_block_scale_factor .* not inf' },
  { '{"attention_head_dim":1e9}', 'attention_head_dim .* not 1000000000' },
  { '{"block_out_channels":[320,1e9,1280,1280]}', 'entry 2 of block_out_channels .* not 1000000000' },
  { '{"block_out_channels":[32,32,32,32,32,32,32,32,32]}', 'block_out_channels has 9 entries; at most 8' },
  { '{"motion_module_kwargs":{"temporal_position_encoding_max_len":1e5}}',
    'motion_module_kwargs.temporal_position_encoding_max_len must be a whole number from 1 to 4096, not 100000' },
  { '{"motion_module_kwargs":{"num_transformer_block":1e6}}', 'motion_module_kwargs.num_transformer_block .* not 1000000' },
  { '{"no\\u001b_such":1}', 'there is no option no\\x1b_such' },
})
refused(unet 'unet.yaml', 'unet.yaml', {
  { 'model:\n  norm_eps: .nan\n', 'norm_eps .* not %-?nan' },
  { 'model:\n  norm_eps: .inf\n', 'norm_eps .* not inf' },
  { 'data:\n  resolution: wide\nmodel:\n  norm_eps: 1e-5\n', 'data.resolution .* not "wide"' },
  { 'sampling:\n  size:\n', 'sampling.size .* not null' },
})
local function vae(text)
  loading.vae(folder { ['vae/config.json'] = text, ['vae/diffusion_pytorch_model.bin'] = '' }, {})
end
refused(vae, 'config.json', {
  { '{"scaling_factor":0}', 'scaling_factor must be a number from 1e%-06 to 1000000, not 0' },
  { '{"scaling_factor":Infinity}', 'scaling_factor .* not inf' },
  { '{"scaling_factor":"0.18"}', 'scaling_factor must be a number, not "0.18"' },
  { '{"layers_per_block":1e6}', 'layers_per_block .* not 1000000' },
  { '{"latent_channels":4.5}', 'latent_channels .* not 4.5' },
  { '{"norm_num_groups":0}', 'norm_num_groups .* not 0' },
  { '{"block_out_channels":[]}', 'block_out_channels must be a list of 1 to 8 whole numbers, not 0 entries' },
  { '{"block_out_channels":[128,"x"]}', 'entry 2 of block_out_channels .* not "x"' },
  { '{"block_out_channels":[128,1e9]}', 'entry 2 of block_out_channels .* not 1000000000' },
})

local function dims(changes)
  local all = { n_mels = 80, n_audio_ctx = 1500, n_audio_state = 384, n_audio_head = 6, n_audio_layer = 4 }
  for k, v in pairs(changes) do all[k] = v end
  return cjson.encode(all)
end
refused(function(text)
  local dir = folder { ['w.json'] = text }
  require 'cr'.save(dir .. '/w.safetensors', { x = require 'cr'.ones(1) })
  require 'models.networks.whisper'.width(dir .. '/w.safetensors')
end, 'w.json', {
  { dims { n_audio_layer = 1e6 }, 'n_audio_layer must be a whole number from 1 to 256, not 1000000' },
  { dims { n_mels = 80.5 }, 'n_mels .* not 80.5' },
  { dims { n_audio_ctx = -1 }, 'n_audio_ctx .* not %-1' },
  { dims { n_audio_state = cjson.null }, 'n_audio_state .* not null' },
  { dims { n_audio_head = { 6 } }, 'n_audio_head .* not a list' },
  { dims { n_audio_head = 5 }, '384 channels are not divisible into 5 heads' },
})

t.test('valid values are accepted', function()
  local _, _, sampling, path = require 'models.latentsync.checkpoint'.unet(folder { ['latentsync_unet.pt'] = '',
    ['unet.json'] = '{"sampling":{"size":512,"steps":25,"guidance":1.7},"norm_eps":1e-6}' })
  t.equal(('%d %d %g'):format(sampling.size, sampling.steps, sampling.guidance), '512 25 1.7')
  t.ok(path:find 'unet.json$')
end)

t.test('configurations of megabytes are refused at once', function()
  local begin = os.clock()
  t.raises(function() unet 'unet.yaml' ('a: &a [1]\nb: [' .. ('*a, '):rep(1e5) .. '*a]\n') end, 'unet.yaml is larger than 256 KiB')
  t.raises(function() unet 'unet.yaml' ('a: &a [1]\nb: [' .. ('*a, '):rep(6e4) .. '*a]\n') end, 'too many entries for a configuration')
  t.ok(os.clock() - begin < 20, os.clock() - begin)
end)

t.done()
