--- Checkpoints written by crescent quantize: their contents, that they compute what was measured, and invalid ones.

local cr = require 'cr'
local child = require 'tests.support.child'
local latentsync = require 'models.latentsync'
local lfs = require 'lfs'
local quantizer = require 'models.laboratory.quantizer'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local dir = scratch.path 'nano'

-- The tiny checkpoint, set to small images.
local function checkpoint()
  if lfs.attributes(dir) then return dir end
  require 'tests.support.checkpoint'.write(dir)
  local json = require 'cjson'
  local f = assert(io.open(dir .. '/unet.json', 'rb'))
  local config = json.decode(f:read '*a')
  f:close()
  config.sampling = { size = 64, steps = 2, guidance = 1.5 }
  require 'cr.files'.write(dir .. '/unet.json', json.encode(config))
  return dir
end

local recipe = scratch.write('recipe.lua', [[
return {
  unet = { { '^up_blocks%.2%.resnets%.0%.conv1$', 'int8' }, { '^up_blocks%.2%.attentions%.0%..*to_qkv$', 'int4' },
    { '^up_blocks%.2%.attentions%.0%..*net%.2$', 'int8' }, { '^up_blocks%.2%.upsamplers', 'int8' } },
  vae = { { '^decoder%.mid_block%.resnets%.0%.conv1$', 'int8' } },
}]])

local function quantize(out, more)
  local lines = {}
  local o = { checkpoint = checkpoint(), out = out, recipe = recipe, clips = {}, windows = 1, device = 'cpu', dtype = 'f32', bound = 1,
    tell = function(line) lines[#lines + 1] = line end, progress = function() end }
  for key, value in pairs(more or {}) do o[key] = value end
  local result = cr.scope(quantizer.run, o)
  return result, table.concat(lines, '\n')
end

local function forward(folder)
  return cr.scope(function()
    local model = latentsync.load(folder, { device = 'cpu', dtype = 'f32' })
    local y = model.unet:forward(t.formula('input:sample', { 1, 2, 8, 8, 13 }), 481, t.formula('input:audio', { 1, 2, 50, 384 }))
    local picture = model.vae:decode(t.formula('input:latent', { 1, 8, 8, 4 }))
    for _, net in ipairs { model.unet, model.vae, model.whisper } do weights.free(net.w) end
    return y, picture
  end)
end

t.test('a folder is written, read, and written again', function()
  t.fetched 'whisper/tiny.en.safetensors'
  cr.scope(function()
    local out = scratch.path 'nano8'
    local result, lines = quantize(out)
    t.equal(result.unet.layers, 3, 'the upsampler has no norm before it: without clips its range is not known')
    t.ok(lines:find 'unet%.up_blocks%.2%.resnets%.0%.conv1 +int8 +alone 0%.%d+', lines)
    t.ok(lines:find 'unet: 3 layers, 0 compute in 16 bits; the output has a relative error of 0%.%d+', lines)
    local file = weights.open(out .. '/latentsync_unet.safetensors')
    local about = require 'cjson'.decode(file.metadata.quantization)
    t.equal(about.recipe, recipe)
    t.equal(about.formats.int8, 2)
    local stem = 'up_blocks.2.attentions.0.transformer_blocks.0.attn1.to_k'
    t.equal(file:info(stem .. '.weight').dtype, 'u8')
    t.equal(table.concat(file:info(stem .. '.scale').shape, ' '), '64 1')
    t.equal(file:info('up_blocks.2.resnets.0.conv1.weight').dtype, 'i8')
    t.equal(file:info('up_blocks.1.resnets.0.conv1.weight').dtype, 'f16')
    file:close()
    local y, picture = forward(dir)
    local z, coarse = forward(out)
    local off, picture_off = t.relative_error(z, y), t.relative_error(coarse, picture)
    t.ok(off > 1e-4 and off < 0.2, ('the UNet is off by %.4f'):format(off))
    t.ok(picture_off > 1e-5 and picture_off < 0.1, ('the decoder is off by %.4f'):format(picture_off))

    quantize(scratch.path 'again')
    for _, name in ipairs { 'latentsync_unet.safetensors', 'vae/diffusion_pytorch_model.safetensors', 'unet.json', 'vae/config.json' } do
      t.equal(weights.sha256(scratch.path('again/' .. name)), weights.sha256(out .. '/' .. name), name .. ': the same bytes')
    end
  end)
end)

t.test("the size of LatentSync's UNet when quantized", function()
  local fitting, folder = require 'models.laboratory.quantizer.fitting', require 'models.laboratory.quantizer.folder'
  local recipes, unet3d = require 'models.quantize.recipe', require 'models.networks.unet3d'
  local shapes = {}
  for _, e in ipairs(unet3d.expected(unet3d.config())) do
    if not e.name:find '%.pe$' then shapes[e.name] = e.shape end
  end
  local function megabytes(rows)
    return folder.bytes('unet', shapes, function(layer)
      local format = recipes.choose(rows, layer, 'cpu', true)
      return format, fitting.rank(layer, format)
    end) / 1e6
  end
  local whole = megabytes {}
  t.ok(whole > 2500 and whole < 2560, ('float16: %.0f MB'):format(whole))
  for name, bound in pairs { ['8bit'] = 1400, int8 = 1400, int4 = 950 } do
    local size = megabytes(recipes.named(name).unet)
    t.ok(size < bound, ('%s: %.0f MB'):format(name, size))
    print(('# %s: %.0f MB of %.0f'):format(name, size, whole))
  end
end)

t.test('layers with large errors stay unchanged', function()
  t.fetched 'whisper/tiny.en.safetensors'
  cr.scope(function()
    local out = scratch.path 'exact'
    local result, lines = quantize(out, { bound = 1e-9 })
    t.equal(result.unet.kept, 3)
    t.equal(result.unet.error, 0)
    t.ok(lines:find 'stays in 16 bits', lines)
    local file = weights.open(out .. '/latentsync_unet.safetensors')
    for _, name in ipairs(file.names) do t.ok(not name:find '%.scale$', name) end
    file:close()
    t.near(forward(out), forward(dir), 2e-3, 'float16 is all that is lost')
  end)
end)

t.test('layers with large errors become weight-only', function()
  t.fetched 'whisper/tiny.en.safetensors'
  cr.scope(function()
    local out = scratch.path 'weight-only'
    local result, lines = quantize(out, { bound = 0.004 })
    t.ok(result.unet.kept > 0 and result.unet.error > 0 and result.unet.error <= 0.004, lines)
    t.ok(lines:find 'weight%-only in 8 bits', lines)
    local about = weights.open(out .. '/latentsync_unet.safetensors')
    local kept = require 'cjson'.decode(about.metadata.quantization).kept
    t.equal(#kept, result.unet.kept)
    local seen = 0
    for _, name in ipairs(about.names) do
      local stem = name:match '^(.*)%.scale$'
      local info = stem and about:info(stem .. '.weight')
      if stem and info.dtype == 'i8' and #about:info(name).shape == 2 then
        seen = seen + 1
        t.equal(table.concat(about:info(name).shape, ' '), info.shape[1] .. ' 1')
        t.ok(not about:has(stem .. '.input'), stem)
      end
    end
    about:close()
    t.ok(seen >= #kept, seen .. ' of them in the file')
    local off = t.relative_error(forward(out), forward(dir))
    t.ok(off > 1e-4 and off < 0.02, ('the UNet is off by %.4f'):format(off))
  end)
end)

t.test('a variant is created on first use', function()
  t.fetched 'whisper/tiny.en.safetensors'
  local uv, variant = require 'luv', require 'models.laboratory.quantizer.variant'
  local before, said = os.getenv 'CR_CACHE', 0
  local function folder()
    return cr.scope(variant.folder, checkpoint(), recipe, {
      clips = {}, windows = 1, device = 'cpu', progress = function() said = said + 1 end,
    })
  end
  uv.os_setenv('CR_CACHE', scratch.path 'cache')
  local first = folder()
  t.ok(first:find('/cache/variants/nano%-recipe%.lua%-%x+$') and said > 0, first)
  t.ok(lfs.attributes(first .. '/latentsync_unet.safetensors'))
  said = 0
  t.equal(folder(), first)
  t.equal(said, 0, 'the second time it is there')
  uv.os_setenv('CR_CACHE', '')
  t.raises(folder, 'needs a cache folder, but CR_CACHE is empty')
  if before then uv.os_setenv('CR_CACHE', before) else uv.os_unsetenv 'CR_CACHE' end
end)

t.test('damaged quantized folders', function()
  t.fetched 'whisper/tiny.en.safetensors'
  cr.scope(function()
    local out = scratch.path 'nano8'
    if not lfs.attributes(out) then quantize(out) end
    local path = out .. '/latentsync_unet.safetensors'
    local good = cr.load(path)
    local names = {}
    for name, x in pairs(good) do names[name] = x:clone() end
    local function says(change, pattern)
      local all = {}
      for name, x in pairs(names) do all[name] = x end
      change(all)
      cr.save(path, all)
      t.raises(function() latentsync.load(out, { device = 'cpu', dtype = 'f32' }) end, pattern)
    end
    local conv = 'up_blocks.2.resnets.0.conv1'
    local q = 'up_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q'
    says(function(all) all[conv .. '.scale'] = nil end, 'unet.safetensors: tensor ' .. conv .. '.weight holds codes %(i8%), but ' ..
      conv .. '.scale is missing')
    says(function(all) all[conv .. '.input'] = nil end, conv .. '.input is missing: a convolution in 8 bits needs it')
    says(function(all) all[conv .. '.scale'] = all[conv .. '.scale'] * (0 / 0) end, conv .. '.scale holds numbers that are not finite')
    says(function(all) all[conv .. '.input'] = all[conv .. '.input'] * 0 end, conv .. '.input holds zeros')
    says(function(all) all[conv .. '.scale'] = cr.ones(3) end, conv .. '.scale has shape %[3%], expected %[')
    says(function(all) all[q .. '.scale'] = cr.ones(64, 2) end, q .. '.scale has shape %[64 2%], expected %[64 1%]')
    says(function(all) all[conv .. '.scale'] = all[conv .. '.scale']:view(-1, 1):expand(-1, 2):contiguous() end,
      conv .. '.scale has shape %[%d+ 2%], expected %[%d+ 1%]')
    -- A branch may contain zeros: nothing is divided by it.
    local zeroed = {}
    for name, x in pairs(names) do zeroed[name] = x end
    zeroed[q .. '.up'] = zeroed[q .. '.up'] * 0
    cr.save(path, zeroed)
    local model = latentsync.load(out, { device = 'cpu', dtype = 'f32' })
    for _, net in ipairs { model.unet, model.vae, model.whisper } do weights.free(net.w) end
    says(function(all) all[q .. '.up'] = nil end, q .. '.down is there without up')
    says(function(all) all[conv .. '.weight'] = all[conv .. '.weight']:to 'f32' end, conv .. '.weight is f32 beside a scale')
  end)
end)

t.test('the command, and its refusals', function()
  t.fetched 'whisper/tiny.en.safetensors'
  local function says(words, pattern)
    local r = child.run { 'quantize', '--checkpoint', checkpoint(), '--device', 'cpu', unpack(words) }
    t.ok(r.code ~= 0 and (r.err or ''):find(pattern), (r.err or '') .. tostring(r.code))
  end
  local out = scratch.path 'never'
  says({ '--out', out, '--recipe', 'int3' }, "there is no recipe 'int3'")
  local empty = scratch.write('none.lua', "return { unet = { { 'nothing', 'int8' } } }")
  says({ '--out', out, '--recipe', empty }, 'matches no layer that can be quantized')
  says({ '--out', out, '--calibrate' }, '%-%-calibrate needs a video and a sound after it')
  says({ '--out', out, 'a.mp4' }, "'a.mp4': clips are for %-%-calibrate")
  says({ '--out', out, '--calibrate', 'a.mp4' }, 'a.mp4 has no sound after it')
  says({ '--out', out, '--calibrate', 'none.mp4', 'none.wav' }, '%-%-calibrate: none.mp4')
  says({ '--out', dir }, 'already contains [%w_.]+: choose another folder')
  t.ok(not lfs.attributes(out), 'nothing was written')
end)

t.done()
