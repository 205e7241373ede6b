-- The networks on a GPU compared with the reference's values, their optimizations compared with the plain form, and
-- the whole pipeline. The full-size networks get weights by formula, which takes ten seconds; on a GPU they need no
-- switch.

local cr = require 'cr'
local t = require 'tests.support.tap'
local cuda = require 'tests.support.cuda'
local help = require 'tests.support.networks'
local checkpoint = require 'tests.support.checkpoint'
local golden = require 'tests.support.golden'
local given_mel = require 'tests.support.given_mel'
local unet3d = require 'models.networks.unet3d'
local vae = require 'models.networks.vae'
local whisper = require 'models.networks.whisper'

local device = cuda.device
local NANO = 2e-5 -- allowed in f32

-- PyTorch's own float16 errors against the golden values, as tests/bench/cuda_networks.lua --error
-- measures them (PyTorch 2.11, cuDNN 9.19, H200), and 5 %.
local SLACK = 1.05
local UNET_F16 = 0.0023 * SLACK
local VAE_F16 = { mean = 0.00214 * SLACK, logvar = 0.00161 * SLACK, dec = 0.00213 * SLACK }

local function nano_unet(options)
  options = options or {}
  options.device = device
  local config = unet3d.config(checkpoint.unet_config(64))
  return unet3d.new(help.tree(unet3d.expected(config), options), config, options)
end

local nano_vae = { block_out_channels = { 32, 64, 64, 64 }, layers_per_block = 1 }
local function make_vae(source, options)
  options = options or {}
  options.device, options.made = device, vae.made
  local config = vae.config(source)
  return vae.new(help.tree(vae.expected(config), options), config, options)
end

local function up(x) return x:to(device) end
local function down(x) return x:to 'cpu':to 'f32' end

cuda.test('nano UNet in f32: outputs and block outputs', function()
  local gold = golden.open 'networks'
  local net = nano_unet()
  local sample, tokens = up(help.input('sample', { 2, 13, 8, 16, 16 })), up(t.formula('input:audio', { 2, 8, 50, 64 }))
  local seen = 0
  function net.trace(name, x)
    local key = 'unet_nano.act.t481.' .. name
    if not gold:has(key) then return end
    seen = seen + 1
    gold:near(help.as_reference(down(x)), key, NANO)
  end
  gold:near(help.as_reference(down(net:forward(sample, 481, tokens))), 'unet_nano.out.t481', NANO)
  t.equal(seen, 11, 'block outputs compared')
  net.trace = nil
  for _, step in ipairs { 1, 981 } do
    gold:near(help.as_reference(down(net:forward(sample, step, tokens))), 'unet_nano.out.t' .. step, NANO)
  end
  gold:close()
end)

local SAVINGS = { 'convolution', 'time', 'keys', 'deaf' }
local function none()
  local off = {}
  for _, name in ipairs(SAVINGS) do off[name] = false end
  return off
end

-- Steps 1 and 2 run and record, later ones replay: four calls cover each case.
local function calls(d, x)
  local y
  for k = 1, 4 do
    y = cr.scope(function() return down(d:call(k == 4 and x or x * (k + 1), k == 4 and 2 or 1)) end)
  end
  return y
end

cuda.test('nano UNet in f32: optimizations and recordings do not change the results', function()
  local net = nano_unet()
  local F, h = 5, 8
  local x, cond = up(help.input('x', { 1, 4, F, h, h })), up(help.input('cond', { 1, 9, F, h, h }))
  local tokens = up(t.formula('input:audio', { F, 50, 64 }))
  local steps = { 801, 401, 1 }
  local want = cr.scope(function()
    local sample = cr.cat({ x, cond }, 5)
    local eps = net:forward(cr.cat({ sample, sample }, 1), steps[2],
      cr.cat({ cr.zeros(1, F, 50, 64, { device = device }), tokens:unsqueeze(1) }, 1))
    return down(eps:narrow(1, 1, 1) * (1 - 1.5) + eps:narrow(1, 2, 1) * 1.5)
  end)
  local function try(name, savings, record)
    cr.scope(function()
      local d = net:denoiser { cond = cond, audio = tokens, guidance = 1.5, timesteps = steps, savings = savings, record = record }
      t.near(calls(d, x), want, NANO, name)
      d:free()
    end)
  end
  try 'all savings'
  try('all savings, not recorded', nil, false)
  try('none', none())
  for _, name in ipairs(SAVINGS) do
    local on = none()
    on[name] = nil
    try('only ' .. name, on)
    try('all but ' .. name, { [name] = false })
  end
end)

cuda.test('nano UNet: a window reuses the recordings of the previous one', function()
  local net = nano_unet()
  local function window(seed)
    return up(help.input('cond' .. seed, { 1, 9, 4, 8, 8 })), up(t.formula('input:audio' .. seed, { 4, 50, 64 }))
  end
  local x = up(help.input('x', { 1, 4, 4, 8, 8 }))
  for seed = 1, 3 do
    cr.scope(function()
      local cond, tokens = window(seed)
      local d = net:denoiser { cond = cond, audio = tokens, timesteps = { 901, 481 } }
      local got = calls(d, x)
      d:free()
      local plain = net:denoiser { cond = cond, audio = tokens, timesteps = { 901, 481 }, record = false }
      t.near(got, down(plain:call(x, 2)), NANO, 'window ' .. seed)
      plain:free()
    end)
  end
end)

cuda.test('nano UNet: without guidance, without audio, odd sizes', function()
  local net = nano_unet()
  local x, cond = up(help.input('x', { 1, 4, 3, 10, 13 })), up(help.input('cond', { 1, 9, 3, 10, 13 }))
  local tokens = up(t.formula('input:audio', { 3, 50, 64 }))
  local sample = cr.cat({ x, cond }, 5)
  local d = net:denoiser { cond = cond, audio = tokens, guidance = 1, timesteps = { 481, 481 } }
  t.near(calls(d, x), down(net:forward(sample, 481, tokens:unsqueeze(1))), NANO, 'without guidance')
  d:free()
  d = net:denoiser { cond = cond, guidance = 1.5, timesteps = { 481, 481 } }
  t.near(calls(d, x), down(net:forward(sample, 481)), NANO, 'without audio')
  d:free()
end)

cuda.test('nano UNet in f16 and bf16', function()
  local gold = golden.open 'networks'
  local sample, tokens = up(help.input('sample', { 2, 13, 8, 16, 16 })), up(t.formula('input:audio', { 2, 8, 50, 64 }))
  local want = help.channels_last(gold:get 'unet_nano.out.t481')
  for dtype, limit in pairs { f16 = 5e-3, bf16 = 4e-2 } do
    t.near(down(nano_unet { dtype = dtype }:forward(sample, 481, tokens)), want, limit, dtype)
  end
  gold:close()
end)

-- Errors of mean, log variance and decoded picture against the golden values.
local function vae_errors(name, net, size, batch)
  local gold = golden.open 'networks'
  local mean, logvar = net:encode(up(help.input('image', { batch, 3, size, size }):clamp(-1, 1)))
  local decoded = net:decode(up(help.input('latent', { batch, 4, size / 8, size / 8 })))
  local function against(x, key) return gold:error(help.as_reference(down(x)), name .. '.' .. key) end
  local errors = { mean = against(mean, 'mean'), logvar = against(logvar, 'logvar'), dec = against(decoded, 'dec') }
  gold:close()
  return errors
end

local function within(errors, limits, what)
  for key, e in pairs(errors) do
    local limit = type(limits) == 'table' and limits[key] or limits
    t.ok(e <= limit, ('%s %s: relative error %.3g, allowed %.3g'):format(what, key, e, limit))
    print(('# %s %s: relative error %.3g'):format(what, key, e))
  end
end

cuda.test('nano autoencoder', function()
  within(vae_errors('vae_nano', make_vae(nano_vae), 64, 2), NANO, 'f32')
  within(vae_errors('vae_nano', make_vae(nano_vae, { dtype = 'f16' }), 64, 2), 5e-3, 'f16')
  within(vae_errors('vae_nano', make_vae(nano_vae, { dtype = 'bf16' }), 64, 2), 4e-2, 'bf16')
end)

cuda.test('autoencoder: the slice size has no effect, samples have the posterior\'s distribution', function()
  local latent, image = up(help.input('latent', { 3, 4, 8, 8 })), up(help.input('image', { 3, 3, 32, 48 }))
  local all = make_vae(nano_vae, { slice = 3 })
  local want, want_mean, want_logvar = all:decode(latent), all:encode(image)
  for slice = 1, 2 do
    local net = make_vae(nano_vae, { slice = slice })
    t.near(down(net:decode(latent)), down(want), NANO, 'decoded by ' .. slice)
    local mean, logvar = net:encode(image)
    t.near(down(mean), down(want_mean), NANO, 'mean by ' .. slice)
    t.near(down(logvar), down(want_logvar), NANO, 'logvar by ' .. slice)
  end
  local function draw(name) return t.formula('input:' .. name, { 1, 2, 2, 4 }) end
  local mean, logvar, noise = draw 'm', draw 'l', draw 'n'
  t.near(down(all:sample(up(mean), up(logvar), up(noise))), (mean + (logvar * 0.5):exp() * noise) * 0.18215, 1e-6)
  t.near(down(all:unscale(all:sample(up(mean), up(logvar)))), mean, 1e-6)
end)

cuda.test('the tokens of a clip', function()
  local gold = golden.open 'networks'
  local model = whisper.load(golden.folder .. 'whisper_nano.pt', { device = device })
  local tokens = given_mel.tokens(model, gold:get 'whisper.mel')
  t.equal(tokens:count(), tonumber(gold:get('whisper.n_chunks'):item()), 'number of chunks')
  t.near(down(tokens:features(0):narrow(1, 1, 40)), gold:get 'whisper.feat_first40', NANO, 'features')
  local n = tokens:count()
  local picked = {}
  for i, k in ipairs { 0, 1, 2, math.floor(n / 2), n - 2, n - 1 } do picked[i] = down(tokens:window(k + 1, 1)) end
  t.near(cr.cat(picked, 1), gold:get 'whisper.chunks_sel', NANO, 'chunks')
  tokens:free()
  gold:close()
end)

cuda.test('the golden pipeline: latents and frames', function()
  local ok, why = pcall(function() require 'cr.media'.version() end)
  if not ok then t.skip(tostring(why):match '[^\n]*') end
  require 'tests.support.golden_pipeline' 'cuda'
end)

-- A tree of weights in another dtype; its nodes keep their paths.
local function converted(tree, dtype)
  local copy = setmetatable({}, getmetatable(tree))
  for key, value in pairs(tree) do
    copy[key] = cr.is_tensor(value) and cr.keep(value:to(dtype)) or converted(value, dtype)
  end
  return copy
end

cuda.test('the full UNet in f32, f16 and bf16', function()
  local gold = golden.open 'networks'
  local config = unet3d.config()
  local sample, tokens = up(help.input('sample', { 2, 13, 16, 32, 32 })), up(t.formula('input:audio', { 2, 16, 50, 384 }))
  local tree = help.tree(unet3d.expected(config), { device = device })
  for _, case in ipairs { { 'f16', UNET_F16 }, { 'bf16', 0.03 }, { 'f32', NANO } } do
    cr.scope(function()
      local net = unet3d.new(case[1] == 'f32' and tree or converted(tree, case[1]), config)
      local e = gold:error(help.as_reference(down(net:forward(sample, 481, tokens))), 'unet_full.out.r256.t481')
      t.ok(e <= case[2], ('%s: relative error %.3g, allowed %.3g'):format(case[1], e, case[2]))
      print(('# %s: relative error %.3g'):format(case[1], e))
    end)
    collectgarbage()
  end
  gold:close()
end)

cuda.test('the full autoencoder in f32, f16 and bf16', function()
  within(vae_errors('vae_full', make_vae(nil, { dtype = 'f16' }), 256, 1), VAE_F16, 'f16')
  within(vae_errors('vae_full', make_vae(nil, { dtype = 'bf16' }), 256, 1), 0.02, 'bf16')
  within(vae_errors('vae_full', make_vae(), 256, 1), NANO, 'f32')
end)

t.done()
