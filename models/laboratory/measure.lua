--- Benchmarks of the networks: a UNet step with guidance, and encoding and decoding of a window's images, with a
--- checkpoint's weights or random ones.
--
-- Random weights take as long as trained ones: the run time does not depend on the values, as long as they stay
-- within the dtype's range.

local cr = require 'cr'
local unet3d = require 'models.networks.unet3d'
local vae_model = require 'models.networks.vae'
local weights = require 'cr.weights'

local measure = {}

-- The work of one call of LatentSync's own network with 16 frames, in 1e12 multiplications and additions, without optimizations that
-- skip some of it.
local WORK = {
  ['unet step'] = { [256] = 8.10, [512] = 35.25 },
  ['vae encode'] = { [256] = 4.36, [512] = 17.87 },
  ['vae decode'] = { [256] = 9.95, [512] = 40.23 },
}

--- A tree of random weights that keep the magnitude of activations from layer to layer, created on the device.
--- @param expected table[] from a model's expected()
--- @param options table {device =, dtype =, tag =, adjacent =, made = (as for weights.tree)}
function measure.random_tree(expected, options)
  local generator = cr.generator(1247, 'philox')
  local names, shapes = {}, {}
  for _, e in ipairs(expected) do
    if not e.optional then
      names[#names + 1] = e.name
      shapes[e.name] = e.shape
    end
  end
  return weights.tree({
    names = names, path = 'random weights',
    info = function(_, name) return { dtype = 'f32', shape = shapes[name] } end,
    get = function(_, name)
      local shape = shapes[name]
      local n = 1
      for _, size in ipairs(shape) do n = n * size end
      return cr.scope(function()
        local x = cr.randn(shape, { generator = generator, device = options.device })
        if #shape >= 2 then return x * (n / shape[1]) ^ -0.5 end
        return name:find 'weight$' and x * 0.1 + 1 or x * 0.1
      end)
    end,
  }, options)
end

--- LatentSync's own networks with random weights, in the form that latentsync.load returns.
--- @param options table {device =, dtype =, unet = false or vae = false: omit it}
--- @return table {unet = UNet3D?, vae = VAE?}
function measure.random(options)
  local model = {}
  if options.unet ~= false then
    local config = unet3d.config()
    model.unet = unet3d.new(measure.random_tree(unet3d.expected(config), { device = options.device,
      dtype = options.dtype, tag = 'unet weights', adjacent = unet3d.adjacent }), config)
  end
  if options.vae ~= false then
    local config = vae_model.config()
    model.vae = vae_model.new(measure.random_tree(vae_model.expected(config), { device = options.device,
      dtype = options.dtype, tag = 'vae weights', made = vae_model.made }), config)
  end
  return model
end

--- @class MeasuredCase
--- @field name string 'unet step 256'
--- @field work number? 1e12 operations, if known
--- @field run fun() one call; the caller owns its result
--- @field free fun()

local function is_own(unet) return unet.config.block_out_channels[1] == 320 and unet.config.layers_per_block == 2 end

--- The benchmark cases of a window at a size; free each case before the next one.
--- @param model table {unet =, vae =}
--- @param size integer pixels
--- @param options table? {frames = 16, guidance = 1.5, parts = {unet = true, vae = true}}
--- @return fun(): MeasuredCase?
function measure.cases(model, size, options)
  options = options or {}
  local F = options.frames or 16
  local list = {}
  local function add(kind, make, own)
    list[#list + 1] = function()
      local run, free, tensors = cr.scope(make)
      cr.keep(unpack(tensors))
      return {
        name = ('%s %d'):format(kind, size), run = run,
        work = own and F == 16 and (WORK[kind] or {})[size] or nil,
        free = function()
          if free then free() end
          for _, t in ipairs(tensors) do t:free() end
        end,
      }
    end
  end
  local function noise(net, ...) return cr.randn(..., { dtype = net.dtype, device = net.device }) end

  local unet, vae = model.unet, model.vae
  local parts = options.parts or { unet = true, vae = true }
  if unet and parts.unet then
    local c = unet.config
    local own = is_own(unet)
    local side, latent = size / 8, c.out_channels
    local function window()
      return noise(unet, { 1, F, side, side, c.in_channels - latent }), noise(unet, { F, 50, c.cross_attention_dim }),
        noise(unet, { 1, F, side, side, latent })
    end
    local guidance = options.guidance or 1.5
    local steps = { 981, 481, 1 }
    add('unet window', function()
      local cond, audio = window()
      return function()
        unet:denoiser { cond = cond, audio = audio, guidance = guidance, timesteps = steps }:free()
      end, nil, { cond, audio }
    end)
    add('unet step', function()
      local cond, audio, x = window()
      local d = unet:denoiser { cond = cond, audio = audio, guidance = guidance, timesteps = steps }
      return function() return d:call(x, 2) end, function() d:free() end, { cond, audio, x }
    end, own)
  end
  if vae and parts.vae then
    local own = vae.config.block_out_channels[1] == 128 and vae.config.layers_per_block == 2
    local side = size / vae.config.factor
    add('vae encode', function()
      local image = noise(vae, { F, size, size, vae.config.in_channels })
      return function() return vae:encode(image) end, nil, { image }
    end, own)
    add('vae decode', function()
      local z = noise(vae, { F, side, side, vae.config.latent_channels })
      return function() return vae:decode(z) end, nil, { z }
    end, own)
  end
  local i = 0
  return function()
    i = i + 1
    return list[i] and list[i]()
  end
end

return measure
