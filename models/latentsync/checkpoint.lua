--- Finds the files of a checkpoint's folder, which is the folder that LatentSync's users have.
--
--     DIR/latentsync_unet.pt            or .pth, .bin, .safetensors
--     DIR/unet.json or DIR/unet.yaml    only for a network other than LatentSync's, or another size; LatentSync's own
--     DIR/unet.json or DIR/unet.yaml    only for a network or size other than LatentSync's; LatentSync's own
--     DIR/whisper/tiny.pt               or small.pt ..., or .safetensors with a .json beside it
--     DIR/vae/config.json, diffusion_pytorch_model.safetensors (or .bin ..., of the fp16 variant, or in shards with
--                                       their index)
--     DIR/scheduler_config.json         only for a scheduler other than LatentSync's
--
-- This module reads only small configuration files. Every refusal names the file that it looked for.

local checks = require 'cr.config'
local lfs = require 'lfs'
local config_file = require 'models.networks.config_file'

local checkpoint = {}

local ENDINGS = { '.pt', '.pth', '.bin', '.safetensors' }

local function is_file(path) return lfs.attributes(path, 'mode') == 'file' end
local function is_folder(path) return lfs.attributes(path, 'mode') == 'directory' end

-- Possible ends of a file name: whole files, files of diffusers' fp16 variant, shard indexes.
local tails = {}
for _, variant in ipairs { '', '.fp16' } do
  for _, ending in ipairs(ENDINGS) do tails[#tails + 1] = variant .. ending end
end
for _, ending in ipairs { '.safetensors', '.bin' } do
  for _, index in ipairs { '.index.json', '.index.fp16.json' } do tails[#tails + 1] = ending .. index end
end

--- `base` with the first of these ends for which a file exists, or nil.
local function with_ending(base)
  for _, tail in ipairs(tails) do
    if is_file(base .. tail) then return base .. tail end
  end
end

-- The configuration file: unet.json or unet.yaml, else the folder's only YAML with a `model` block.
local function unet_config(dir)
  for _, name in ipairs { 'unet.json', 'unet.yaml', 'unet.yml' } do
    if is_file(dir .. '/' .. name) then return dir .. '/' .. name end
  end
  local found = {}
  for name in lfs.dir(dir) do
    local path = dir .. '/' .. name
    if name:find '^[^.].*%.ya?ml$' and is_file(path) and type(config_file.read(path).model) == 'table' then
      found[#found + 1] = path
    end
  end
  table.sort(found)
  if #found > 1 then
    error(('%s and %s both have a model block: name the one that belongs to this checkpoint unet.yaml'):format(found[1], found[2]), 0)
  end
  return found[1]
end

-- The smallest and largest value of each field of `sampling`, and whether it must be an integer.
local sampling_bounds = { size = { 16, 4096, true }, steps = { 1, 1000, true }, guidance = { 0, 100 } }

local function read_sampling(path, config)
  local sampling = config.sampling
  if sampling == nil then return {} end
  if type(sampling) ~= 'table' or sampling[1] ~= nil then
    error(('%s: sampling must be a table of size, steps and guidance, not %s'):format(path, checks.shown(sampling)), 0)
  end
  for key, bound in pairs(sampling_bounds) do
    if sampling[key] ~= nil then checks.number(path, 'sampling.' .. key, sampling[key], unpack(bound)) end
  end
  return sampling
end

--- All files of a checkpoint's folder, including those in its subfolders.
--- @param dir string
--- @return string[]
function checkpoint.files(dir)
  local list = {}
  if not is_folder(dir) then return list end
  for name in lfs.dir(dir) do
    local path = dir .. '/' .. name
    if name ~= '.' and name ~= '..' then
      if is_folder(path) then
        for _, file in ipairs(checkpoint.files(path)) do list[#list + 1] = file end
      else
        list[#list + 1] = path
      end
    end
  end
  table.sort(list)
  return list
end

--- The UNet's file, its configuration (LatentSync's `model` block; nil for LatentSync's own), the sampling settings
--- of the configuration ({size, steps, guidance}; empty if there are none), and the configuration's path.
--- @param dir string
--- @return string path, table? model_config, table sampling, string? config_path
function checkpoint.unet(dir)
  if not is_folder(dir) then
    error(('%s is not a folder: --checkpoint takes the folder that holds latentsync_unet.pt'):format(dir), 0)
  end
  local path = with_ending(dir .. '/latentsync_unet')
  if not path then
    error(('%s holds no latentsync_unet.pt (nor .pth, .bin, .safetensors): put LatentSync\'s UNet there'):format(dir), 0)
  end
  local file = unet_config(dir)
  if not file then return path, nil, {} end
  local config = config_file.read(file)
  local sampling = read_sampling(file, config)
  config.sampling = nil
  -- A complete LatentSync training configuration describes the network in its `model` block.
  if type(config.model) == 'table' then
    local resolution = type(config.data) == 'table' and config.data.resolution
    if resolution and not sampling.size then
      sampling.size = checks.number(file, 'data.resolution', tonumber(resolution) or resolution, unpack(sampling_bounds.size))
    end
    config = config.model
  end
  return path, config, sampling, file
end

--- The scheduler's configuration file, in diffusers' format, if the folder has one.
--- @param dir string
--- @return string? path
function checkpoint.scheduler(dir)
  for _, name in ipairs { '/scheduler_config.json', '/scheduler/scheduler_config.json' } do
    if is_file(dir .. name) then return dir .. name end
  end
end

--- The folder of stabilityai/sd-vae-ft-mse in the Hugging Face cache, or nil.
local function cached_vae()
  local home = os.getenv 'HOME' or ''
  local hub = os.getenv 'HF_HUB_CACHE' or os.getenv 'HUGGINGFACE_HUB_CACHE'
  if not hub then
    local hf = os.getenv 'HF_HOME' or (os.getenv 'XDG_CACHE_HOME' or home .. '/.cache') .. '/huggingface'
    hub = hf .. '/hub'
  end
  local repository = hub .. '/models--stabilityai--sd-vae-ft-mse'
  local snapshots = repository .. '/snapshots'
  if not is_folder(snapshots) then return nil, hub end
  local main = is_file(repository .. '/refs/main') and config_file.text(repository .. '/refs/main'):match '%x+'
  if main and is_file(snapshots .. '/' .. main .. '/config.json') then return snapshots .. '/' .. main end
  for name in lfs.dir(snapshots) do
    if is_file(snapshots .. '/' .. name .. '/config.json') then return snapshots .. '/' .. name end
  end
  return nil, hub
end

--- The VAE's weights file and its diffusers configuration.
--- @param dir string the checkpoint's folder
--- @param vae string? a diffusers folder to use instead of DIR/vae
--- @return string path, table? config, string? config_path
function checkpoint.vae(dir, vae)
  local hub
  local folder = vae or (is_folder(dir .. '/vae') and dir .. '/vae')
  if not folder then
    folder, hub = cached_vae()
    if not folder then
      error(('no VAE: neither %s/vae nor %s holds stabilityai/sd-vae-ft-mse; name its folder with --vae'):format(dir, hub), 0)
    end
  end
  if not is_folder(folder) then error(folder .. ' is not a folder: --vae takes a diffusers VAE folder', 0) end
  local path = with_ending(folder .. '/diffusion_pytorch_model')
  if not path then
    error(folder .. ' holds no diffusion_pytorch_model.safetensors (nor .bin): it is not a diffusers VAE folder', 0)
  end
  local file = folder .. '/config.json'
  if not is_file(file) then return path end
  return path, config_file.read(file), file
end

-- OpenAI's names of the model sizes, by the width that a UNet may require.
local WHISPER_NAMES = { [384] = 'tiny', [512] = 'base', [768] = 'small', [1024] = 'medium' }

--- The Whisper file whose width equals the UNet's cross-attention dimension. It tries the usual name of that size
--- first, then every other weights file in DIR/whisper; `width_of` returns a file's width. For a width of 384, the
--- fetched tiny.en is used if the checkpoint has none.
--- @param dir string
--- @param width integer
--- @param width_of fun(path: string): integer
--- @return string path
function checkpoint.whisper(dir, width, width_of)
  local folder = dir .. '/whisper'
  local usual = WHISPER_NAMES[width]
  local seen = {}
  if is_folder(folder) then
    local names = {}
    for name in lfs.dir(folder) do
      local stem, ending = name:match '^([^.].*)(%.%w+)$'
      for _, e in ipairs(ENDINGS) do
        if e == ending then names[#names + 1] = { name = name, first = stem == usual and 0 or 1 } end
      end
    end
    table.sort(names, function(a, b)
      if a.first ~= b.first then return a.first < b.first end
      return a.name < b.name
    end)
    for _, entry in ipairs(names) do
      local path = folder .. '/' .. entry.name
      local found = width_of(path)
      if found == width then return path end
      seen[#seen + 1] = ('%s is %d wide'):format(path, found)
    end
  end
  if width == 384 then
    local fetched = require 'cr'.root .. '/models/fetched/whisper/tiny.en.safetensors'
    if is_file(fetched) then return fetched end
    seen[#seen + 1] = '`make models` fetches one that fits'
  end
  error(('the UNet needs a Whisper of width %d%s, but %s holds none%s'):format(width,
    usual and ' (' .. usual .. '.pt)' or '', folder, #seen > 0 and ': ' .. table.concat(seen, ', ') or ''), 0)
end

return checkpoint
