-- UNet3D compared with the reference's values, and each of its optimizations with the plain network. CR_SLOW=1 adds
-- the full-size network (minutes).

local cr = require 'cr'
local t = require 'tests.support.tap'
local help = require 'tests.support.networks'
local golden = require 'tests.support.golden'
local unet3d = require 'models.networks.unet3d'

local function nano_config(changes)
  local source = require 'tests.support.checkpoint'.unet_config(64)
  for k, v in pairs(changes or {}) do source[k] = v end
  return unet3d.config(source)
end

local function nano(options, config)
  config = config or nano_config()
  return unet3d.new(help.tree(unet3d.expected(config), options), config, options)
end

t.test("the list of expected tensors equals the checkpoints'", function()
  local keys = help.read_keys(golden.folder .. 'unet_keys.txt')
  t.equal(help.difference(unet3d.expected(unet3d.config()), keys), nil)
  local small = help.read_json(golden.folder .. 'nano_keys.json').unet
  t.equal(help.difference(unet3d.expected(nano_config()), small), nil)
end)

t.test('the nano network gives the reference\'s outputs and block outputs', function()
  local gold = golden.open 'networks'
  local net = nano()
  local sample, audio = help.input('sample', { 2, 13, 8, 16, 16 }), t.formula('input:audio', { 2, 8, 50, 64 })
  local seen = 0
  function net.trace(name, x)
    local key = 'unet_nano.act.t481.' .. name
    if not gold:has(key) then return end
    seen = seen + 1
    gold:near(help.as_reference(x), key, 1e-5)
  end
  gold:near(help.as_reference(net:forward(sample, 481, audio)), 'unet_nano.out.t481', 1e-5)
  t.equal(seen, 11, 'block outputs compared')
  net.trace = nil
  for _, step in ipairs { 1, 981 } do
    gold:near(help.as_reference(net:forward(sample, step, audio)), 'unet_nano.out.t' .. step, 1e-5)
  end
  gold:close()
end)

t.test('fused projections do not change the result', function()
  local sample, audio = help.input('sample', { 1, 13, 4, 8, 8 }), t.formula('input:audio', { 1, 4, 50, 64 })
  local a, b = nano():forward(sample, 481, audio), nano({ fuse = false }):forward(sample, 481, audio)
  t.near(a, b, 5e-6)
end)

t.test('each batch element may have its own timestep', function()
  local net = nano()
  local sample, audio = help.input('sample', { 2, 13, 4, 8, 8 }), t.formula('input:audio', { 2, 4, 50, 64 })
  local both = net:forward(sample, { 981, 1 }, audio)
  t.near(both:narrow(1, 1, 1), net:forward(sample:narrow(1, 1, 1), 981, audio:narrow(1, 1, 1)), 5e-6)
  t.near(both:narrow(1, 2, 1), net:forward(sample:narrow(1, 2, 1), 1, audio:narrow(1, 2, 1)), 5e-6)
end)

t.test("the denoiser's optimizations do not change the result", function()
  local net = nano()
  local F, h = 5, 8
  local x, cond = help.input('x', { 1, 4, F, h, h }), help.input('cond', { 1, 9, F, h, h })
  local audio = t.formula('input:audio', { F, 50, 64 })
  local steps = { 801, 401, 1 }
  local want = cr.scope(function()
    local sample = cr.cat({ x, cond }, 5)
    local eps = net:forward(cr.cat({ sample, sample }, 1), steps[2],
      cr.cat({ cr.zeros(1, F, 50, 64), audio:unsqueeze(1) }, 1))
    return eps:narrow(1, 1, 1) * (1 - 1.5) + eps:narrow(1, 2, 1) * 1.5
  end)
  local function try(name, savings)
    cr.scope(function()
      local d = net:denoiser { cond = cond, audio = audio, guidance = 1.5, timesteps = steps, savings = savings }
      t.near(d:call(x, 2), want, 5e-6, name)
      d:free()
    end)
  end
  try('all savings', nil)
  try('none', { convolution = false, time = false, keys = false, deaf = false })
  for _, name in ipairs { 'convolution', 'time', 'keys', 'deaf' } do
    local on, off = { convolution = false, time = false, keys = false, deaf = false }, {}
    on[name], off[name] = nil, false
    try('only ' .. name, on)
    try('all but ' .. name, off)
  end
end)

t.test('without guidance there is only one half, without audio no cross-attention', function()
  local net = nano()
  local x, cond = help.input('x', { 1, 4, 3, 8, 8 }), help.input('cond', { 1, 9, 3, 8, 8 })
  local audio = t.formula('input:audio', { 3, 50, 64 })
  local sample = cr.cat({ x, cond }, 5)
  local d = net:denoiser { cond = cond, audio = audio, guidance = 1, timesteps = { 481 } }
  t.near(d:call(x, 1), net:forward(sample, 481, audio:unsqueeze(1)), 5e-6)
  d:free()
  d = net:denoiser { cond = cond, guidance = 1.5, timesteps = { 481 } }
  t.near(d:call(x, 1), net:forward(sample, 481), 5e-6)
  d:free()
end)

t.test('a denoiser outlives the scope that it was made in', function()
  local net = nano()
  local x, cond = help.input('x', { 1, 4, 3, 8, 8 }), help.input('cond', { 1, 9, 3, 8, 8 })
  local audio = t.formula('input:audio', { 3, 50, 64 })
  local d
  local first = cr.scope(function()
    d = net:denoiser { cond = cond, audio = audio, timesteps = { 481 } }
    return d:call(x, 1)
  end)
  t.near(cr.scope(function() return d:call(x, 1) end), first, 0)
  local live = cr.memory().count
  d:free()
  t.ok(cr.memory().count < live, 'free gives memory back')
end)

t.test('sizes that are not divisible by two keep their size', function()
  local net = nano()
  local y = net:forward(help.input('sample', { 1, 13, 2, 10, 13 }), 481, t.formula('input:audio', { 1, 2, 50, 64 }))
  t.equal(table.concat(y.shape, ' '), '1 2 10 13 4')
end)

t.test('half precision runs and stays close', function()
  local sample, audio = help.input('sample', { 1, 13, 4, 8, 8 }), t.formula('input:audio', { 1, 4, 50, 64 })
  local want = nano():forward(sample, 481, audio)
  for dtype, tolerance in pairs { f16 = 1e-2, bf16 = 8e-2 } do
    local net = nano { dtype = dtype }
    t.equal(net.dtype, dtype)
    t.near(net:forward(sample, 481, audio), want, tolerance, dtype)
    local d = net:denoiser { cond = sample:narrow(5, 5, 9), audio = audio:squeeze(1), timesteps = { 481 } }
    local x = d:call(sample:narrow(5, 1, 4), 1)
    t.equal(x.dtype, 'f32')
    d:free()
  end
end)

t.test('other configurations: their tensors, and that they run', function()
  for name, changes in pairs {
    ['no motion'] = { use_motion_module = false },
    ['decoder only'] = { motion_module_decoder_only = true },
    ['motion in the middle'] = { motion_module_mid_block = true },
    ['motion at some resolutions'] = { motion_module_resolutions = { 2, 8 } },
    ['no audio'] = { add_audio_layer = false },
    ['per-frame norms'] = { use_inflated_groupnorm = true },
    ['linear projections'] = { use_linear_projection = true },
    ['two layers, own heads'] = { layers_per_block = 2, attention_head_dim = { 2, 4, 3, 6 } },
    ['scaled middle'] = { mid_block_scale_factor = 2 },
    ['centred input'] = { center_input_sample = true },
    ['two levels'] = {
      block_out_channels = { 32, 64 }, down_block_types = { 'CrossAttnDownBlock3D', 'DownBlock3D' },
      up_block_types = { 'UpBlock3D', 'CrossAttnUpBlock3D' },
    },
  } do
    cr.scope(function()
      local config = nano_config(changes)
      local net = nano(nil, config)
      local sample, audio = help.input('sample', { 1, 13, 2, 8, 8 }), t.formula('input:audio', { 2, 50, 64 })
      local plain = net:forward(sample, 481, audio:unsqueeze(1))
      local d = net:denoiser { cond = sample:narrow(5, 5, 9):contiguous(), audio = audio, guidance = 1, timesteps = { 481 } }
      t.near(d:call(sample:narrow(5, 1, 4):contiguous(), 1), plain, 5e-6, name)
      d:free()
    end)
  end
end)

t.test('a configuration that is not supported gets one sentence', function()
  local function refused(changes, pattern)
    t.raises(function() unet3d.config(changes) end, pattern)
  end
  refused({ act_fn = 'gelu' }, 'act_fn = gelu is not supported')
  refused({ in_chanels = 3 }, 'there is no option in_chanels')
  refused({ layers_per_block = 1.5 }, 'layers_per_block must be a whole number')
  refused({ block_out_channels = { 100, 200, 300, 300 } }, '100 channels are not divisible into 32 groups')
  refused({ block_out_channels = 5 }, 'block_out_channels must be a list')
  refused({ down_block_types = { 'DownBlock3D' } }, 'must have 4 entries')
  refused({ resnet_time_scale_shift = 'scale_shift' }, 'not supported')
  refused({ dual_cross_attention = true }, 'dual_cross_attention is not supported')
  refused({ motion_module_kwargs = { attention_block_types = { 'Temporal_Cross' } } }, 'Temporal_Cross')
  refused({ norm_eps = 'small' }, 'norm_eps must be a number')
  t.equal(unet3d.config({ model = { norm_eps = '1e-5', in_channels = 9 } }).in_channels, 9)
end)

t.test('wrong inputs get one sentence', function()
  local net = nano()
  t.raises(function() net:forward(cr.zeros(1, 2, 8, 8, 4), 1) end, 'must be %[B F H W 13%]')
  t.raises(function() net:forward(cr.zeros(1, 25, 8, 8, 13), 1) end, '25 frames')
  t.raises(function() net:forward(cr.zeros(1, 2, 8, 8, 13), 1, cr.zeros(1, 2, 50, 384)) end, 'have width 384')
  t.raises(function() net:forward(cr.zeros(1, 2, 8, 8, 13), 1, cr.zeros(1, 3, 50, 64)) end, 'do not fit 2 frames')
  t.raises(function() net:forward(cr.zeros(2, 2, 8, 8, 13), { 1, 2, 3 }) end, '3 timesteps')
  local d = net:denoiser { cond = cr.zeros(1, 2, 8, 8, 9), timesteps = { 1 } }
  t.raises(function() d:call(cr.zeros(1, 3, 8, 8, 4), 1) end, 'do not fit')
  t.raises(function() d:call(cr.zeros(1, 2, 8, 8, 4), 2) end, 'no step 2')
  d:free()
  net.w.down_blocks[0].resnets[0].conv1.weight = cr.zeros(32, 3, 3, 31)
  t.raises(function() net:forward(cr.zeros(1, 2, 8, 8, 13), 1) end, 'down_blocks%.0%.resnets%.0%.conv1: conv2d')
end)

-- This takes minutes: a test of `make test-slow`.
local slow = os.getenv 'CR_SLOW' == '1' and t.test or function() end
slow('the full network gives the reference\'s output', function()
  local gold = golden.open 'networks'
  local config = unet3d.config()
  local net = unet3d.new(help.tree(unet3d.expected(config)), config)
  local y = net:forward(help.input('sample', { 2, 13, 16, 32, 32 }), 481, t.formula('input:audio', { 2, 16, 50, 384 }))
  gold:near(help.as_reference(y), 'unet_full.out.r256.t481', 1e-5)
  gold:close()
end)

t.done()
