--- A checkpoint's folder: which file is used for what, and configurations in JSON and YAML.

local cjson = require 'cjson'
local cr = require 'cr'
local lfs = require 'lfs'
local uv = require 'luv'
local checkpoint = require 'models.latentsync.checkpoint'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local unet3d = require 'models.networks.unet3d'
local weights = require 'cr.weights'

local folder = scratch.tree

-- A network other than LatentSync's, as LatentSync's training writes its configuration.
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

t.test('a configuration in YAML equals the one in JSON', function()
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

t.test('an invalid configuration gives one sentence', function()
  local function refused(name, text, pattern)
    local dir = folder { ['latentsync_unet.pt'] = '', [name] = text }
    t.raises(function() checkpoint.unet(dir) end, '^[^\n]*' .. name:gsub('%.', '%%.') .. '[^\n]*' .. pattern .. '[^\n]*$')
  end
  refused('unet.yaml', 'model: [1, 2\n b: {', 'cannot be read: 1:12')
  refused('unet.yaml', 'only words', 'does not contain a table')
  refused('unet.yaml', '', 'does not contain a table')
  refused('unet.yaml', 'model: ' .. ('['):rep(100000), 'cannot be read')
  refused('unet.yaml', 'model: &m { up: *m }', 'too many entries')
  local bomb = { 'a0: &a0 [x, x, x, x, x, x, x, x, x]' }
  for i = 1, 11 do bomb[#bomb + 1] = ('a%d: &a%d [%s]'):format(i, i, ('*a%d, '):format(i - 1):rep(9)) end
  refused('unet.yaml', table.concat(bomb, '\n'), 'too many entries')
  refused('unet.json', '{"model": ', 'cannot be read')
  refused('unet.json', '7', 'does not contain a table')
  -- A tag that other YAML readers would execute is only a tag here.
  local path = scratch.path 'made'
  local _, config = checkpoint.unet(folder { ['latentsync_unet.pt'] = '',
    ['unet.yaml'] = 'model: !!python/object/apply:os.system ["touch ' .. path .. '"]' })
  t.raises(function() unet3d.config(config) end, 'unet configuration: there is no option 1')
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
    local name_of, config = 'diffusion_pytorch_model.safetensors', '{"scaling_factor": 0.5}'
    local snapshots = 'models--stabilityai--sd-vae-ft-mse/snapshots/'
    local empty = folder {}
    uv.os_setenv('HOME', empty)
    t.raises(function() checkpoint.vae(empty) end, 'no VAE: neither .*/vae nor .*/%.cache/huggingface/hub holds')
    local one = { [snapshots .. 'aa11/config.json'] = config, [snapshots .. 'aa11/' .. name_of] = '' }
    local hub = folder(one)
    uv.os_setenv('HF_HUB_CACHE', hub)
    local path, settings = checkpoint.vae(empty)
    t.equal(path, hub .. '/' .. snapshots .. 'aa11/' .. name_of)
    t.equal(settings.scaling_factor, 0.5)
    -- Of two downloads, the one that refs/main names is used.
    for _, name in ipairs { 'bb22', 'cc33' } do
      one[snapshots .. name .. '/config.json'], one[snapshots .. name .. '/' .. name_of] = '{}', ''
    end
    one['models--stabilityai--sd-vae-ft-mse/refs/main'] = 'bb22\n'
    hub = folder(one)
    uv.os_setenv('HF_HUB_CACHE', hub)
    t.equal(checkpoint.vae(empty), hub .. '/' .. snapshots .. 'bb22/' .. name_of)
    local home = folder { ['hub/' .. snapshots .. 'dd44/config.json'] = '{}', ['hub/' .. snapshots .. 'dd44/' .. name_of] = '' }
    uv.os_unsetenv 'HF_HUB_CACHE'
    uv.os_setenv('HF_HOME', home)
    t.equal(checkpoint.vae(empty), home .. '/hub/' .. snapshots .. 'dd44/' .. name_of)
    local own = folder { ['vae/diffusion_pytorch_model.bin'] = '' }
    path, settings = checkpoint.vae(own)
    t.equal(path .. tostring(settings), own .. '/vae/diffusion_pytorch_model.binnil')
    local named = folder { [name_of] = '' }
    t.equal(checkpoint.vae(own, named), named .. '/' .. name_of)
    t.raises(function() checkpoint.vae(own, empty) end, 'holds no diffusion_pytorch_model')
    t.raises(function() checkpoint.vae(own, named .. '/' .. name_of) end, 'is not a folder')
  end)
  for _, name in ipairs(variables) do
    if before[name] then uv.os_setenv(name, before[name]) else uv.os_unsetenv(name) end
  end
  if not ok then error(err, 0) end
end)

t.test("a configuration under LatentSync's own name is read, if it is the only one with a network", function()
  local files = { ['latentsync_unet.pt'] = '', ['stage2_512.yaml'] = 'data:\n  resolution: 512\n' .. YAML:match 'model:.*',
    ['notes.yaml'] = 'author: me\n' }
  local dir = folder(files)
  local _, config, sampling, path = checkpoint.unet(dir)
  t.equal(path, dir .. '/stage2_512.yaml')
  t.equal(sampling.size, 512)
  t.equal(config.block_out_channels[2], 64)
  files['unet.json'] = '{"norm_eps": 1e-6}'
  t.equal(checkpoint.unet(folder(files)) and select(4, checkpoint.unet(folder(files))):match '[^/]*$', 'unet.json', 'the usual name first')
  files['unet.json'], files['a.yml'] = nil, files['stage2_512.yaml']
  t.raises(function() checkpoint.unet(folder(files)) end, 'a.yml and .*/stage2_512.yaml both have a model block')
  t.equal(select(2, checkpoint.unet(folder { ['latentsync_unet.pt'] = '', ['notes.yaml'] = 'author: me\n' })), nil)
end)

t.test("diffusers' variants and shards of a VAE", function()
  local stem = 'vae/diffusion_pytorch_model'
  local function found(...)
    local files = {}
    for _, tail in ipairs { ... } do files[stem .. tail] = '' end
    return checkpoint.vae(folder(files)):match 'model(.*)$'
  end
  t.equal(found '.fp16.safetensors', '.fp16.safetensors')
  t.equal(found('.fp16.safetensors', '.bin'), '.bin', 'whole ones first')
  t.equal(found '.safetensors.index.json', '.safetensors.index.json')
  t.equal(found '.safetensors.index.fp16.json', '.safetensors.index.fp16.json')
  t.equal(found('.safetensors.index.json', '.fp16.bin'), '.fp16.bin')
end)

t.test('shards are one file', function()
  local dir = folder {}
  cr.save(dir .. '/m-1.safetensors', { ['a.weight'] = cr.ones(2), spare = cr.ones(1) })
  cr.save(dir .. '/m-2.safetensors', { ['b.weight'] = cr.zeros(3) })
  local function index(map)
    scratch.write(dir:match '[^/]*$' .. '/m.safetensors.index.json', cjson.encode { metadata = { total_size = 20 }, weight_map = map })
    return weights.open(dir .. '/m.safetensors.index.json')
  end
  local file = index { ['a.weight'] = 'm-1.safetensors', ['b.weight'] = 'm-2.safetensors' }
  t.equal(table.concat(file.names, ' '), 'a.weight b.weight')
  t.equal(table.concat(file:info('b.weight').shape, ' '), '3')
  weights.check(file, { { 'a.weight', { 2 } }, { 'b.weight', { 3 } } }, { surplus = true })
  t.near(weights.tree(file).a.weight, cr.ones(2), 0)
  t.raises(function() file:get 'spare' end, 'index.json: there is no tensor spare')
  file:close()
  t.raises(function() index { c = 'm-1.safetensors' } end, 'index.json: c should be in m%-1.safetensors, but is not')
  t.raises(function() index { c = 'm-3.safetensors' } end, 'm%-3.safetensors: No such file')
  for _, name in ipairs { '../m-1.safetensors', '/etc/passwd', '..', '', 5 } do
    t.raises(function() index { c = name } end, 'weight_map does not name a file in its folder for c')
  end
  scratch.write(dir:match '[^/]*$' .. '/x.index.json', '{}')
  t.raises(function() weights.open(dir .. '/x.index.json') end, 'this is not an index of shards')
end)

t.test("prefixes of a network's names", function()
  local function prefix(...)
    local names = {}
    for _, before in ipairs { ... } do names[before .. 'conv_in.weight'] = cr.ones(1) end
    cr.save(scratch.path 'prefix.safetensors', names)
    return require 'models.latentsync.loading'.prefix(weights.open(scratch.path 'prefix.safetensors'), 'conv_in.weight')
  end
  for _, before in ipairs { '', 'state_dict.', 'module.', 'state_dict.module.', 'unet.', 'state_dict.unet.', 'model.unet.module.' } do
    t.equal(prefix(before), before)
  end
  t.equal(prefix('unet.', 'vae.encoder.', 'state_dict.unet.'), 'unet.')
  t.equal(prefix('vae.', 'xunet.'), '', 'others are no wrappers')
end)

t.test('unknown tensors are ignored and counted, under any prefix', function()
  local mini, all = cr.root .. '/models/mini', {}
  for name, x in pairs(cr.load(mini .. '/latentsync_unet.safetensors')) do all['state_dict.module.' .. name] = x end
  all['state_dict.module.stranger\27'], all.optimizer = cr.zeros(1), cr.zeros(1)
  local dir = folder { ['unet.json'] = scratch.read(mini .. '/unet.json') }
  cr.save(dir .. '/latentsync_unet.safetensors', all)
  local script = scratch.write('load.lua', [[
    local net = require 'models.latentsync.loading'.unet(arg[1], { dtype = 'f32', device = 'cpu' })
    print(net.w.stranger, #net.config.block_out_channels)]])
  local text, status = scratch.command(('%s %s %s'):format(scratch.program, script, dir))
  t.equal(status, 0, text)
  t.equal(text, 'crescent: ' .. dir .. '/latentsync_unet.safetensors: 2 tensors that this network does not have: ignored ' ..
    '(optimizer, ...)\nnil\t3\n')
end)

t.test("unknown tensors of a Whisper file are counted, except its decoder's", function()
  local tiny = t.fetched 'whisper/tiny.en.safetensors'
  local all = {}
  for name, x in pairs(cr.load(tiny)) do all[name] = x end
  all['decoder.ln.weight'], all['encoder.ln_post.weight'] = cr.zeros(2), cr.zeros(2)
  local dir = folder { ['tiny.json'] = scratch.read((tiny:gsub('safetensors$', 'json'))) }
  local script = scratch.write('hear.lua', [[print(#require 'models.networks.whisper'.load(arg[1]).w.blocks)]])
  local function heard()
    cr.save(dir .. '/tiny.safetensors', all)
    return (scratch.command(('%s %s %s/tiny.safetensors'):format(scratch.program, script, dir)))
  end
  t.equal(heard(), '3\n')
  all['encoder.adapter'] = cr.zeros(1)
  t.equal(heard(), 'crescent: ' .. dir .. '/tiny.safetensors: 1 tensor that this network does not have: ignored (encoder.adapter)\n3\n')
end)

t.test('the Whisper whose width the UNet needs', function()
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
    'needs a Whisper of width 1024 %(medium%.pt%), but .*tiny%.pt is 384 wide')
  t.raises(function() checkpoint.whisper(folder {}, 640, width_of) end, 'needs a Whisper of width 640, but .*/whisper holds none$')
  t.equal(checkpoint.whisper(folder {}, 384, width_of), t.fetched 'whisper/tiny.en.safetensors')
end)

t.done()
