--- Loads LatentSync's networks from a checkpoint's files. The files may have prefixes that training programs put
--- before the names, and tensors that the networks do not use.

local tagged = require 'cr'.tagged
local weights = require 'cr.weights'
local apply = require 'models.quantize.apply'
local checkpoint = require 'models.latentsync.checkpoint'
local recipes = require 'models.quantize.recipe'
local unet3d = require 'models.networks.unet3d'
local vae_model = require 'models.networks.vae'
local whisper_model = require 'models.networks.whisper'

local loading = {}

--- Tags of the weights in memory reports.
loading.UNET_TAG = 'unet weights'
loading.VAE_TAG = 'vae weights'

-- Calls a network's configuration function; an error names the file.
local function configured(path, config, source)
  local ok, result = pcall(config, source)
  if ok then return result end
  local text = tostring(result)
  error(path and text:gsub('^%w+ configuration', function() return path end) or text, 0)
end

-- Prefixes that programs put before a network's names: Lightning, DataParallel, programs that save several networks.
local WRAPPERS = { state_dict = true, module = true, model = true, unet = true }

--- The prefix of a network's names, such as '' or 'state_dict.module.'; the shortest one if there are several.
--- @param file WeightsFile
--- @param name string of one of its tensors
--- @return string
function loading.prefix(file, name)
  local best
  for _, full in ipairs(file.names) do
    local prefix = full:sub(1, -#name - 1)
    if prefix .. name == full and not prefix:gsub('([^.]*)%.', function(part) return WRAPPERS[part] and '' end):find '.' and
        (not best or #prefix < #best) then
      best = prefix
    end
  end
  return best or ''
end

-- The network's tensors as a tree; closes the file.
local function tree(file, expected, options)
  local ok, result = pcall(weights.known, file, expected, options)
  file:close()
  if not ok then error(result, 0) end
  return result
end

-- Networks that a recipe quantizes are loaded into an arena of their own, so that its memory can be freed.
local function apart(network, options)
  local rows = options.quant and options.quant[network]
  return rows and recipes.apart(network, rows, options.device)
end

-- Quantizes a network's weights as the recipe says. If the device lacks a format of the file, it uses another one.
-- What was done is added to options.told, if given.
local function quantized(network, weight, options)
  local told, rows = options.told or { layers = {} }, options.quant and options.quant[network]
  local lacking = apply.fit(weight, options.device)
  if rows then
    local did = apply.network(weight, rows, options.device)
    lacking = lacking or did.lacking
    told.unmatched = told.unmatched or did.unmatched
    for _, name in ipairs(did.layers) do told.layers[#told.layers + 1] = network .. '.' .. name end
  end
  apply.fold(weight)
  told.lacking = told.lacking or lacking
end

--- The UNet of a checkpoint's folder.
--- @param dir string
--- @param options table {dtype =, device =, quant = a recipe (models/quantize/recipe.lua) or nil, told = {layers = names of
---   layers that the recipe quantized, lacking = why a format was replaced, unmatched = a sentence about a row without a layer},
---   to which this function appends}
--- @return UNet3D unet, table sampling, string path
function loading.unet(dir, options)
  local path, source, sampling, config_path = checkpoint.unet(dir)
  local config = configured(config_path, unet3d.config, source)
  local file = weights.open(path)
  local unet = unet3d.new(tree(file, unet3d.expected(config), {
    prefix = loading.prefix(file, 'conv_in.weight'),
    dtype = options.dtype, device = options.device, tag = loading.UNET_TAG, adjacent = unet3d.adjacent,
    apart = apart('unet', options),
  }), config)
  tagged(loading.UNET_TAG, quantized, 'unet', unet.w, options)
  return unet, sampling, path
end

--- The VAE.
--- @param dir string
--- @param options table {dtype =, device =, vae = a folder instead of DIR/vae, quant =, told =}
--- @return VAE vae, string path
function loading.vae(dir, options)
  local path, source, config_path = checkpoint.vae(dir, options.vae)
  local config = configured(config_path, vae_model.config, source)
  local file = weights.open(path)
  local vae = vae_model.new(tree(file, vae_model.expected(config, vae_model.has_old_names(file)), {
    dtype = options.dtype, device = options.device, tag = loading.VAE_TAG, made = vae_model.made, apart = apart('vae', options),
  }), config)
  tagged(loading.VAE_TAG, quantized, 'vae', vae.w, options)
  return vae, path
end

--- The Whisper whose width the UNet needs.
--- @param dir string
--- @param width integer
--- @param options table {dtype =, device =, quant =, told =}
--- @return Whisper whisper, string path
function loading.whisper(dir, width, options)
  local path = checkpoint.whisper(dir, width, whisper_model.width)
  local whisper = whisper_model.load(path, { dtype = options.dtype, device = options.device, state = width })
  quantized('whisper', whisper.w, options)
  return whisper, path
end

return loading
