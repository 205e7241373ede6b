--- LatentSync's networks from the files of a checkpoint, as people have them: under the names that training programs
--- wrap around a network's own, and with tensors that no network here has.

local weights = require 'cr.weights'
local checkpoint = require 'models.latentsync.checkpoint'
local unet3d = require 'models.networks.unet3d'
local unet3d_fp8 = require 'models.networks.unet3d_fp8'
local vae_model = require 'models.networks.vae'
local whisper_model = require 'models.networks.whisper'

local loading = {}

--- The tag of the UNet's weights in reports of memory.
loading.UNET_TAG = 'unet weights'

-- What a network makes of its configuration; a refusal names the file.
local function configured(path, config, source)
  local ok, result = pcall(config, source)
  if ok then return result end
  local text = tostring(result)
  error(path and text:gsub('^%w+ configuration', function() return path end) or text, 0)
end

-- What programs put before a network's names: Lightning, DataParallel, those that save it beside others.
local WRAPPERS = { state_dict = true, module = true, model = true, unet = true }

--- What stands before the names of a network: '', 'state_dict.module.'; the shortest where there are several.
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

-- The network's tensors as a tree; the file is closed.
local function tree(file, expected, options)
  local ok, result = pcall(weights.known, file, expected, options)
  file:close()
  if not ok then error(result, 0) end
  return result
end

--- The UNet of a checkpoint's folder.
--- @param dir string
--- @param options table {dtype =, device =, quant = list of layers}
--- @return UNet3D unet, table sampling, string path
function loading.unet(dir, options)
  local path, source, sampling, config_path = checkpoint.unet(dir)
  local config = configured(config_path, unet3d.config, source)
  local file = weights.open(path)
  return unet3d.new(tree(file, unet3d.expected(config), {
    prefix = loading.prefix(file, 'conv_in.weight'),
    dtype = options.dtype, device = options.device, tag = loading.UNET_TAG, adjacent = unet3d.adjacent,
    apart = options.quant and unet3d_fp8.apart(options.quant),
  }), config), sampling, path
end

--- The VAE.
--- @param dir string
--- @param options table {dtype =, device =, vae = a folder instead of DIR/vae}
--- @return VAE vae, string path
function loading.vae(dir, options)
  local path, source, config_path = checkpoint.vae(dir, options.vae)
  local config = configured(config_path, vae_model.config, source)
  local file = weights.open(path)
  return vae_model.new(tree(file, vae_model.expected(config, vae_model.has_old_names(file)), {
    dtype = options.dtype, device = options.device, tag = 'vae weights', made = vae_model.made,
  }), config), path
end

--- The Whisper that is as wide as the UNet asks.
--- @param dir string
--- @param width integer
--- @param options table {dtype =, device =}
--- @return Whisper whisper, string path
function loading.whisper(dir, width, options)
  local path = checkpoint.whisper(dir, width, whisper_model.width)
  return whisper_model.load(path, { dtype = options.dtype, device = options.device, state = width }), path
end

return loading
