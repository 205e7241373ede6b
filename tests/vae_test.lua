-- The autoencoder compared with diffusers' values.

local cr = require 'cr'
local t = require 'tests.support.tap'
local help = require 'tests.support.networks'
local golden = require 'tests.support.golden'
local vae = require 'models.networks.vae'

local nano_config = { block_out_channels = { 32, 64, 64, 64 }, layers_per_block = 1 }

local function make(source, options)
  local config = vae.config(source)
  return vae.new(help.tree(vae.expected(config), options), config, options)
end

t.test("the list of expected tensors equals the checkpoints'", function()
  t.equal(help.difference(vae.expected(vae.config()), help.read_keys(golden.folder .. 'vae_keys.txt')), nil)
  local small = help.read_json(golden.folder .. 'nano_keys.json').vae
  t.equal(help.difference(vae.expected(vae.config(nano_config)), small), nil)
end)

local function compare(name, source, size, batch, tolerance)
  local gold = golden.open 'networks'
  local net = make(source)
  local image = help.input('image', { batch, 3, size, size }):clamp(-1, 1)
  local mean, logvar = net:encode(image)
  gold:near(help.as_reference(mean), name .. '.mean', tolerance)
  gold:near(help.as_reference(logvar), name .. '.logvar', tolerance)
  local decoded = net:decode(help.input('latent', { batch, 4, size / 8, size / 8 }))
  gold:near(help.as_reference(decoded), name .. '.dec', tolerance)
  gold:close()
end

t.test('the nano autoencoder gives the reference\'s numbers', function()
  compare('vae_nano', nano_config, 64, 2, 1e-5)
end)

t.test('the full autoencoder gives the reference\'s numbers', function()
  compare('vae_full', nil, 256, 1, 1e-5)
end)

t.test('the slice size does not change the result', function()
  local latent, image = help.input('latent', { 3, 4, 8, 8 }), help.input('image', { 3, 3, 32, 48 })
  local one, two, all = make(nano_config), make(nano_config, { slice = 2 }), make(nano_config, { slice = 3 })
  local want = all:decode(latent)
  t.near(one:decode(latent), want, 5e-6)
  t.near(two:decode(latent), want, 5e-6)
  local mean, logvar = all:encode(image)
  local mean2, logvar2 = two:encode(image)
  t.near(mean2, mean, 5e-6)
  t.near(logvar2, logvar, 5e-6)
end)

t.test('the attention\'s old names give the same result, linear or as 1x1 convolutions', function()
  local config = vae.config(nano_config)
  local latent = help.input('latent', { 1, 4, 8, 8 })
  local new_of = { query = 'to_q', key = 'to_k', value = 'to_v', proj_attn = 'to_out.0' }
  local want = make(nano_config):decode(latent)
  for _, as_convolution in ipairs { false, true } do
    local names, buffers = {}, {}
    for _, e in ipairs(vae.expected(config, true)) do
      local old = e.name:match 'attentions%.0%.(%a[%a_]*)%.'
      local formula_name = e.name
      if new_of[old] then formula_name = e.name:gsub('attentions%.0%.' .. old, 'attentions.0.' .. new_of[old]) end
      local w = t.formula(formula_name, e.shape, { kind = 'weight' })
      if as_convolution and e.or_shape then w = w:view(e.or_shape, {}) end
      names[#names + 1], buffers[e.name] = e, w
    end
    local net = vae.new(help.tree(names, { buffers = buffers }), config)
    t.near(net:decode(latent), want, 1e-6, as_convolution and 'convolutions' or 'linear')
  end
end)

t.test('a sample is (mean + deviation * noise) * scaling factor', function()
  local net = make(nano_config)
  local mean, logvar = t.formula('input:m', { 1, 2, 2, 4 }), t.formula('input:l', { 1, 2, 2, 4 })
  local noise = t.formula('input:n', { 1, 2, 2, 4 })
  local got = net:sample(mean, logvar, noise)
  t.near(got, (mean + (logvar * 0.5):exp() * noise) * 0.18215, 1e-6)
  t.near(net:sample(mean, logvar), mean * 0.18215, 1e-6)
  t.near(net:unscale(net:sample(mean, logvar)), mean, 1e-6)
end)

t.test('half precision runs and stays close', function()
  local latent, image = help.input('latent', { 1, 4, 8, 8 }), help.input('image', { 1, 3, 64, 64 }):clamp(-1, 1)
  local plain = make(nano_config)
  local want, want_mean = plain:decode(latent), plain:encode(image)
  for dtype, tolerance in pairs { f16 = 1e-2, bf16 = 8e-2 } do
    local net = make(nano_config, { dtype = dtype })
    t.near(net:decode(latent), want, tolerance, dtype)
    t.near((net:encode(image)), want_mean, tolerance, dtype)
  end
end)

t.test('wrong configurations and inputs get one sentence', function()
  t.raises(function() vae.config { act_fn = 'relu' } end, 'act_fn = relu')
  t.raises(function() vae.config { block_out_channels = { 100 } } end, '100 channels are not divisible')
  t.raises(function() vae.config { down_block_types = { 'AttnDownEncoderBlock2D' } } end, 'not supported')
  t.raises(function() vae.config { _class_name = 'VQModel' } end, 'VQModel')
  local net = make(nano_config)
  t.raises(function() net:encode(cr.zeros(1, 60, 64, 3)) end, 'are not divisible by 8')
  t.raises(function() net:encode(cr.zeros(1, 64, 64, 4)) end, 'must be %[N H W 3%]')
  t.raises(function() net:decode(cr.zeros(1, 8, 8, 3)) end, 'must be %[N H W 4%]')
end)

t.done()
