--- The folder of a checkpoint: which file is taken for what, and configurations in JSON and YAML.

local cjson = require 'cjson'
local lfs = require 'lfs'
local uv = require 'luv'
local checkpoint = require 'models.latentsync.checkpoint'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local unet3d = require 'models.networks.unet3d'

-- A folder with files in it: {['whisper/tiny.pt'] = bytes, ...}; its path.
local count = 0
local function folder(files)
  count = count + 1
  local name = 'folder' .. count
  assert(lfs.mkdir(scratch.path(name)))
  for file, bytes in pairs(files) do
    local at = name
    for part in file:gmatch '([^/]+)/' do
      at = at .. '/' .. part
      lfs.mkdir(scratch.path(at))
    end
    scratch.write(name .. '/' .. file, bytes)
  end
  return scratch.path(name)
end

-- A network unlike LatentSync's, as LatentSync's training writes it down.
local YAML = [[
data:
  resolution: 384 # pixels
  audio_feat_length: [2, 2]
optimizer:
  lr: 1e-5
model:
  act_fn: silu
  attention_head_dim: 4
  block_out_channels: [32, 64]
  cross_attention_dim: 384
  down_block_types:
    [
      "CrossAttnDownBlock3D",
      "DownBlock3D",
    ]
  up_block_types: &up
    - UpBlock3D
    - CrossAttnUpBlock3D
  center_input_sample: false
  norm_eps: 1e-6
  norm_num_groups: 8
  class_embed_type: null
  num_class_embeds: ~
  use_motion_module: yes
  motion_module_kwargs: { num_attention_heads: 2, temporal_position_encoding_max_len: 24 }
]]

t.test('a configuration in YAML is the one in JSON', function()
  local model = {
    act_fn = 'silu', attention_head_dim = 4, block_out_channels = { 32, 64 }, cross_attention_dim = 384,
    down_block_types = { 'CrossAttnDownBlock3D', 'DownBlock3D' }, up_block_types = { 'UpBlock3D', 'CrossAttnUpBlock3D' },
    center_input_sample = false, norm_eps = 1e-6, norm_num_groups = 8, class_embed_type = cjson.null, num_class_embeds = cjson.null,
    use_motion_module = true, motion_module_kwargs = { num_attention_heads = 2, temporal_position_encoding_max_len = 24 },
  }
  local function read(name, text)
    local path, config, sampling = checkpoint.unet(folder { ['latentsync_unet.pt'] = '', [name] = text })
    t.equal(path:match '[^/]*$', 'latentsync_unet.pt')
    return config, sampling
  end
  local function same(a, b, where)
    t.equal(type(a), type(b), where)
    if type(a) ~= 'table' then return t.equal(a, b, where) end
    for k in pairs(a) do same(a[k], b[k], where .. '.' .. k) end
    for k in pairs(b) do t.ok(a[k] ~= nil, where .. '.' .. k) end
  end
  for _, name in ipairs { 'unet.yaml', 'unet.yml' } do
    local config, sampling = read(name, YAML)
    same(config, model, name)
    t.equal(sampling.size, 384)
    same(unet3d.config(config), unet3d.config(model), 'network')
    t.equal(unet3d.config(config).norm_eps, 1e-6)
  end
  local config, sampling = read('unet.json', cjson.encode { model = model, sampling = { size = 128, steps = 7 } })
  same(config, model, 'unet.json')
  t.equal(sampling.size .. ' ' .. sampling.steps, '128 7')
  local path, none, settings = checkpoint.unet(folder { ['latentsync_unet.safetensors'] = '' })
  t.equal(path:match '[^/]*$' .. ' ' .. tostring(none) .. ' ' .. tostring(next(settings)), 'latentsync_unet.safetensors nil nil')
end)

t.test('what is no configuration gets one sentence', function()
  local function refused(name, text, pattern)
    local dir = folder { ['latentsync_unet.pt'] = '', [name] = text }
    t.raises(function() checkpoint.unet(dir) end, '^[^\n]*' .. name:gsub('%.', '%%.') .. '[^\n]*' .. pattern .. '[^\n]*$')
  end
  refused('unet.yaml', 'model: [1, 2\n b: {', 'cannot be read: 1:12')
  refused('unet.yaml', 'only words', 'holds no table')
  refused('unet.yaml', '', 'holds no table')
  refused('unet.yaml', 'model: ' .. ('['):rep(100000), 'cannot be read')
  refused('unet.yaml', 'model: &m { up: *m }', 'too many entries')
  local bomb = { 'a0: &a0 [x, x, x, x, x, x, x, x, x]' }
  for i = 1, 11 do bomb[#bomb + 1] = ('a%d: &a%d [%s]'):format(i, i, ('*a%d, '):format(i - 1):rep(9)) end
  refused('unet.yaml', table.concat(bomb, '\n'), 'too many entries')
  refused('unet.json', '{"model": ', 'cannot be read')
  refused('unet.json', '7', 'holds no table')
  -- A tag that other readers would act on is a tag.
  local path = scratch.path 'made'
  local _, config = checkpoint.unet(folder { ['latentsync_unet.pt'] = '',
    ['unet.yaml'] = 'model: !!python/object/apply:os.system ["touch ' .. path .. '"]' })
  t.raises(function() unet3d.config(config) end, 'unet configuration: the option 1 is not known')
  t.equal(lfs.attributes(path), nil)
end)

t.test("the UNet's file and the scheduler's", function()
  t.raises(function() checkpoint.unet(scratch.path 'nowhere') end, 'nowhere is not a folder')
  t.raises(function() checkpoint.unet(folder {}) end, 'holds no latentsync_unet%.pt')
  local all = { ['latentsync_unet.safetensors'] = '', ['latentsync_unet.bin'] = '', ['latentsync_unet.pth'] = '' }
  t.equal(checkpoint.unet(folder(all)):match '[^/]*$', 'latentsync_unet.pth')
  t.equal(checkpoint.scheduler(folder {}), nil)
  local dir = folder { ['scheduler/scheduler_config.json'] = '{}' }
  t.equal(checkpoint.scheduler(dir), dir .. '/scheduler/scheduler_config.json')
  scratch.write(dir:match '[^/]*$' .. '/scheduler_config.json', '{}')
  t.equal(checkpoint.scheduler(dir), dir .. '/scheduler_config.json')
end)

t.test('the VAE: the named folder, that of the checkpoint, the Hugging Face cache', function()
  local variables = { 'HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME', 'HOME' }
  local before = {}
  for _, name in ipairs(variables) do
    before[name] = os.getenv(name)
    uv.os_unsetenv(name)
  end
  local ok, err = pcall(function()
    local weights, config = 'diffusion_pytorch_model.safetensors', '{"scaling_factor": 0.5}'
    local snapshots = 'models--stabilityai--sd-vae-ft-mse/snapshots/'
    local empty = folder {}
    uv.os_setenv('HOME', empty)
    t.raises(function() checkpoint.vae(empty) end, 'no VAE: neither .*/vae nor .*/%.cache/huggingface/hub holds')
    local one = { [snapshots .. 'aa11/config.json'] = config, [snapshots .. 'aa11/' .. weights] = '' }
    local hub = folder(one)
    uv.os_setenv('HF_HUB_CACHE', hub)
    local path, settings = checkpoint.vae(empty)
    t.equal(path, hub .. '/' .. snapshots .. 'aa11/' .. weights)
    t.equal(settings.scaling_factor, 0.5)
    -- Of two downloads the one that refs/main names.
    for _, name in ipairs { 'bb22', 'cc33' } do
      one[snapshots .. name .. '/config.json'], one[snapshots .. name .. '/' .. weights] = '{}', ''
    end
    one['models--stabilityai--sd-vae-ft-mse/refs/main'] = 'bb22\n'
    hub = folder(one)
    uv.os_setenv('HF_HUB_CACHE', hub)
    t.equal(checkpoint.vae(empty), hub .. '/' .. snapshots .. 'bb22/' .. weights)
    local home = folder { ['hub/' .. snapshots .. 'dd44/config.json'] = '{}', ['hub/' .. snapshots .. 'dd44/' .. weights] = '' }
    uv.os_unsetenv 'HF_HUB_CACHE'
    uv.os_setenv('HF_HOME', home)
    t.equal(checkpoint.vae(empty), home .. '/hub/' .. snapshots .. 'dd44/' .. weights)
    local own = folder { ['vae/diffusion_pytorch_model.bin'] = '' }
    path, settings = checkpoint.vae(own)
    t.equal(path .. tostring(settings), own .. '/vae/diffusion_pytorch_model.binnil')
    local named = folder { [weights] = '' }
    t.equal(checkpoint.vae(own, named), named .. '/' .. weights)
    t.raises(function() checkpoint.vae(own, empty) end, 'holds no diffusion_pytorch_model')
    t.raises(function() checkpoint.vae(own, named .. '/' .. weights) end, 'is not a folder')
  end)
  for _, name in ipairs(variables) do
    if before[name] then uv.os_setenv(name, before[name]) else uv.os_unsetenv(name) end
  end
  if not ok then error(err, 0) end
end)

t.test('the Whisper that is as wide as the UNet asks', function()
  local widths = { ['tiny.pt'] = 384, ['small.pt'] = 768, ['a.safetensors'] = 768, ['b.bin'] = 512, ['.hidden.pt'] = 1024 }
  local files = { ['whisper/notes.txt'] = '', ['whisper/small.json'] = '' }
  for name in pairs(widths) do files['whisper/' .. name] = '' end
  local dir, asked = folder(files), {}
  local function width_of(path)
    asked[#asked + 1] = path:match '[^/]*$'
    return widths[asked[#asked]]
  end
  t.equal(checkpoint.whisper(dir, 768, width_of), dir .. '/whisper/small.pt')
  t.equal(table.concat(asked, ' '), 'small.pt', 'the usual name first')
  t.equal(checkpoint.whisper(dir, 512, width_of), dir .. '/whisper/b.bin')
  t.equal(checkpoint.whisper(dir, 384, width_of), dir .. '/whisper/tiny.pt')
  t.raises(function() checkpoint.whisper(dir, 1024, width_of) end,
    'asks for a Whisper 1024 wide %(medium%.pt%), but .*tiny%.pt is 384 wide')
  t.raises(function() checkpoint.whisper(folder {}, 640, width_of) end, 'asks for a Whisper 640 wide, but .*/whisper holds none$')
  t.equal(checkpoint.whisper(folder {}, 384, width_of), t.fetched 'whisper/tiny.en.safetensors')
end)

t.done()
