--- The folder that LatentSync's users have: which file in it is what.
--
--     DIR/latentsync_unet.pt            or .pth, .bin, .safetensors
--     DIR/unet.json or DIR/unet.yaml    only for a network other than LatentSync's, or another size; LatentSync's own
--                                       stage2_512.yaml too, if it is the only YAML with a model block
--     DIR/whisper/tiny.pt               or small.pt ..., or .safetensors with a .json beside it
--     DIR/vae/config.json, diffusion_pytorch_model.safetensors (or .bin ..., of the variant fp16, or in shards with
--                                       their index)
--     DIR/scheduler_config.json         only for a scheduler other than LatentSync's
--
-- Nothing is read here but small configuration files; every refusal names the file looked for.

local checks = require 'cr.config'
local lfs = require 'lfs'
local config_file = require 'models.networks.config_file'

local checkpoint = {}

local ENDINGS = { '.pt', '.pth', '.bin', '.safetensors' }

local function is_file(path) return lfs.attributes(path, 'mode') == 'file' end
local function is_folder(path) return lfs.attributes(path, 'mode') == 'directory' end

-- What may follow a name: whole files, those of diffusers' variant, indexes of shards.
local tails = {}
for _, variant in ipairs { '', '.fp16' } do
  for _, ending in ipairs(ENDINGS) do tails[#tails + 1] = variant .. ending end
end
for _, ending in ipairs { '.safetensors', '.bin' } do
  for _, index in ipairs { '.index.json', '.index.fp16.json' } do tails[#tails + 1] = ending .. index end
end

--- base .. the first of the tails that is there, or nil.
local function with_ending(base)
  for _, tail in ipairs(tails) do
    if is_file(base .. tail) then return base .. tail end
  end
end

-- The configuration's file: unet.json or unet.yaml, else the folder's only YAML with a `model` block.
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

-- The least and the most that a checkpoint may name as its sampling, and whether it is a whole number.
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

--- All files of a checkpoint's folder, those of its folders too.
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

--- The UNet's file, its configuration (LatentSync's `model` block; nil: LatentSync's own) and the
--- sampling settings that stand beside it ({size, steps, guidance}; empty if there are none), and the file of both.
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
  -- A whole configuration of LatentSync's training has the network in `model`.
  if type(config.model) == 'table' then
    local resolution = type(config.data) == 'table' and config.data.resolution
    if resolution and not sampling.size then
      sampling.size = checks.number(file, 'data.resolution', tonumber(resolution) or resolution, unpack(sampling_bounds.size))
    end
    config = config.model
  end
  return path, config, sampling, file
end

--- The scheduler's configuration, if the folder has one as diffusers writes it.
--- @param dir string
--- @return string? path
function checkpoint.scheduler(dir)
  for _, name in ipairs { '/scheduler_config.json', '/scheduler/scheduler_config.json' } do
    if is_file(dir .. name) then return dir .. name end
  end
end

--- Where diffusers' users have stabilityai/sd-vae-ft-mse, or nil.
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

--- The VAE's file and its diffusers configuration.
--- @param dir string the checkpoint's folder
--- @param vae string? a diffusers folder that takes the place of DIR/vae
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

-- OpenAI's names of the sizes that a UNet may ask for.
local WHISPER_NAMES = { [384] = 'tiny', [512] = 'base', [768] = 'small', [1024] = 'medium' }

--- The Whisper file whose width is the UNet's cross-attention dimension. Names are tried in order:
--- the usual name of that size, then every other weights file in DIR/whisper; `width_of` tells a
--- file's width. The fetched tiny.en serves every checkpoint that asks for 384 and brings none.
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
  error(('the UNet asks for a Whisper %d wide%s, but %s holds none%s'):format(width,
    usual and ' (' .. usual .. '.pt)' or '', folder, #seen > 0 and ': ' .. table.concat(seen, ', ') or ''), 0)
end

return checkpoint
