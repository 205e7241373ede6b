--- Recipes and quantized networks on the CPU: which layers get which format, the error, recipes from files.

local cr = require 'cr'
local apply = require 'models.quantize.apply'
local layers = require 'models.quantize.layers'
local nn = require 'cr.nn'
local quant = require 'cr.quant'
local recipes = require 'models.quantize.recipe'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local function nano_unet()
  local unet3d = require 'models.networks.unet3d'
  local config = unet3d.config(require 'tests.support.checkpoint'.unet_config(384))
  return unet3d.new(require 'tests.support.networks'.tree(unet3d.expected(config), {}), config)
end

t.test('the UNet in each format, completely and by patterns', function()
  cr.scope(function()
    local sample, audio = t.formula('input:sample', { 1, 2, 8, 8, 13 }), t.formula('input:audio', { 1, 2, 50, 384 })
    local net = nano_unet()
    local y = net:forward(sample, 481, audio)
    weights.free(net.w)
    -- Bounds for weights by formula, whose errors add up, unlike those of a trained network.
    local off = {}
    for format, bound in pairs { int8 = 0.12, int4 = 0.9 } do
      net = nano_unet()
      local told = apply.network(net.w, recipes.named(format).unet, 'cpu')
      t.ok(told.formats[format] > 40, ('%d layers in %s'):format(told.formats[format], format))
      local all = ' ' .. table.concat(told.layers, ' ') .. ' '
      for _, name in ipairs { 'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_qkv',
        'up_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.0.ff.net.0.proj',
        'mid_block.attentions.0.proj_in', 'up_blocks.3.resnets.0.conv_shortcut', 'up_blocks.2.resnets.0.conv1',
        'down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0' } do
        t.ok(all:find(' ' .. name .. ' ', 1, true) ~= nil, name)
      end
      t.ok(not all:find 'time_emb' and not all:find 'to_kv' and not all:find ' conv_', 'what stays')
      off[format] = t.relative_error(net:forward(sample, 481, audio), y)
      t.ok(off[format] > 0.001 and off[format] < bound, ('%s: off by %.3g'):format(format, off[format]))
      t.equal(#apply.network(net.w, recipes.named(format).unet, 'cpu').layers, 0, 'twice is once')
      weights.free(net.w)
    end
    net = nano_unet()
    local some = apply.network(net.w, { { '^up_blocks%.1%..*conv', 'none' }, { '^up_blocks%.1%.', 'int8' } }, 'cpu').layers
    t.ok(#some > 3)
    for _, name in ipairs(some) do t.ok(name:find '^up_blocks%.1' ~= nil and not name:find 'conv', name) end
    local less = t.relative_error(net:forward(sample, 481, audio), y)
    t.ok(less > 0 and less < off.int8, ('one block: off by %.3g'):format(less))
    weights.free(net.w)
  end)
end)

t.test('quantization frees the original weights', function()
  cr.scope(function()
    local net = nano_unet()
    local before, bytes, codes = cr.memory().live, 0, 0
    for _, layer in ipairs(layers.of(net.w)) do
      if layer.kind == 'product' and layers.takes(layer, 'int8') then
        bytes, codes = bytes + 4 * layer.N * layer.K, codes + layer.N * layer.K + 4 * layer.N
      end
    end
    t.ok(#apply.network(net.w, { { 'conv[12]$', 'none' }, default = 'int8' }, 'cpu').layers > 0)
    t.equal(before - cr.memory().live, bytes - codes)
    weights.free(net.w)
  end)
end)

t.test('quantized upsampling convolutions are folded, although a folded bias exists already', function()
  cr.scope(function()
    local conv = { weight = cr.randn(16, 3, 3, 16), bias = cr.randn(16) }
    quant.quantize_layer(conv, { input = cr.full({ 16 }, 4 / 127) })
    local x = cr.randn(1, 5, 4, 16)
    local y = nn.upsample_conv2d(conv, x)
    conv.folded = { bias = cr.cat { conv.bias, conv.bias, conv.bias, conv.bias } } -- as weights.tree leaves it on a GPU
    setmetatable(conv, { __path = 'upsamplers.0.conv' })
    apply.fold { conv = conv }
    t.ok(quant.takes(conv.folded) == 'int8', 'it is folded')
    t.ok(t.relative_error(nn.upsample_conv2d(conv, x), y) < 0.02, 'and gives the same')
  end)
end)

t.test('the layers that are loaded separately are the quantized ones', function()
  local unet3d = require 'models.networks.unet3d'
  local config = unet3d.config(require 'tests.support.checkpoint'.unet_config(384))
  cr.scope(function()
    local rows = { int8 = recipes.named('int8').unet, int4 = recipes.named('int4').unet, all = { default = 'int8' },
      q = { { 'attn2%.to_q$', 'int8' } } }
    for message, list in pairs(rows) do
      local apart, found = recipes.apart('unet', list, 'cpu'), {}
      for _, e in ipairs(unet3d.expected(config)) do
        if apart(e.name, e.shape) then found[layers.fused('unet', (e.name:gsub('%.weight$', '')))] = true end
      end
      local net = nano_unet()
      local done = apply.network(net.w, list, 'cpu').layers
      t.ok(#done > 0, message)
      for _, name in ipairs(done) do
        t.ok(found[name], message .. ': ' .. name)
        found[name] = nil
      end
      -- Only convolutions remain: without a norm before them their range is unknown.
      for name in pairs(found) do t.ok(name:find 'samplers' or name:find '^conv_', message .. ': ' .. name .. ' is not quantized') end
      weights.free(net.w)
    end
  end)
end)

t.test("names of fused layers, and of the checkpoint's layers", function()
  t.equal(layers.fused('unet', 'a.attn1.to_k'), 'a.attn1.to_qkv')
  t.equal(layers.fused('unet', 'a.attn2.to_v'), 'a.attn2.to_kv')
  t.equal(layers.fused('unet', 'a.attn2.to_q'), 'a.attn2.to_q')
  t.equal(layers.fused('unet', 'a.attention_blocks.1.to_q'), 'a.attention_blocks.1.to_qkv')
  t.equal(layers.fused('whisper', 'encoder.blocks.0.attn.value'), 'encoder.blocks.0.attn.packed')
  t.equal(layers.fused('vae', 'decoder.mid_block.attentions.0.to_q'), 'decoder.mid_block.attentions.0.to_q')
  t.equal(table.concat(layers.parts('unet', 'a.attn2.to_kv'), ' '), 'a.attn2.to_k a.attn2.to_v')
  t.equal(table.concat(layers.parts('whisper', 'b.attn.packed'), ' '), 'b.attn.query b.attn.key b.attn.value')
  t.equal(table.concat(layers.parts('unet', 'conv_in'), ' '), 'conv_in')
end)

t.test('recipes by name, by network, from files', function()
  local path = scratch.write('recipe.lua', [[
return { unet = { { '%.to_out%.0$', 'none' }, default = '8bit' }, whisper = { default = 'int8' } }]])
  t.equal(recipes.read(path).whisper.default, 'int8')
  t.equal(recipes.named(path).unet.default, '8bit')
  t.equal(recipes.named('unet=' .. path).whisper, nil)
  t.equal(recipes.named 'none', nil)
  for _, name in ipairs(recipes.names) do t.ok(recipes.named(name).unet and not recipes.named(name).whisper, name) end
  local both = recipes.named 'whisper=int4+unet=8bit'
  t.ok(both.whisper.default == 'int4' and both.unet.default == '8bit' and not both.vae)
  t.equal(recipes.named('int8+vae=none').vae, nil)

  -- A row without a layer is probably a mistake; the rows of named recipes are for all networks.
  scratch.write('recipe.lua', "return { unet = { { '^mid', 'int8' }, { '^mdi', 'int8' }, default = 'none' } }")
  local all = { { name = 'mid_block.x' }, { name = 'conv_in' } }
  t.equal(recipes.unmatched(recipes.read(path).unet, all), path .. ": row 2 of unet matches no layer: '^mdi'")
  t.equal(recipes.unmatched(recipes.named('int8').unet, all), nil)

  -- The former lists of fp8 layers.
  scratch.write('recipe.lua', "return { keep = { '%.to_out%.0$' }, only = { '^mid' } }")
  local layer = { name = 'mid_block.x', kind = 'product', N = 64, K = 64, taps = 1 }
  local function chosen(name)
    layer.name = name
    return (recipes.choose(recipes.read(path).unet, layer, 'cpu'))
  end
  t.equal(chosen 'mid_block.x', 'int8', 'what a CPU has instead of fp8')
  t.equal(chosen 'mid_block.x.to_out.0', 'none')
  t.equal(chosen 'up_blocks.0.x', 'none')
  scratch.write('recipe.lua', "return { keep = { 'x' } }")
  t.equal(chosen 'up_blocks.0.y', 'int8')

  local function bad(text, pattern)
    scratch.write('recipe.lua', text)
    t.raises(function() recipes.read(path) end, pattern)
  end
  bad('return 3', 'recipe.lua: it must return a table')
  bad("return { keep = '%.to_out' }", "recipe.lua: 'keep' is not a list of Lua patterns")
  bad("return { keep = {}, skip = {} }", "'skip' is not a list")
  bad("return { keep = { '%' } }", "'keep' is not a list")
  bad("return { net = {} }", "recipe.lua: there is no network 'net': unet, vae or whisper")
  bad("return { unet = 3 }", 'recipe.lua: unet is not a list')
  bad("return { unet = { 'x' } }", 'recipe.lua: row 1 of unet is not { pattern, format }')
  bad("return { unet = { { '%', 'int8' } } }", 'row 1 of unet is not')
  bad("return { vae = { { 'x', 'int3' } } }", "row 1 of vae: 'int3' is not a format: int8, fp8, int4, 8bit or none")
  bad("return { unet = { default = 4 } }", "unet.default: '4' is not a format")
  bad("return { unet = { standard = 'int8' } }", "unet has no 'standard'")
  bad('return {', 'recipe.lua:1')
  bad("error 'no'", 'recipe.lua: .*no')
  t.raises(function() recipes.read(scratch.path 'none.lua') end, 'none.lua')
  t.raises(function() recipes.named 'int3' end, "there is no recipe 'int3': did you mean 'int4'%? %(or a file that ends in .lua%)")
  t.raises(function() recipes.named 'wisper=int8' end, "there is no network 'wisper': .*whisper")
  scratch.write('recipe.lua', "return { unet = { default = 'int8' } }")
  t.raises(function() recipes.named('vae=' .. path) end, 'has no rows for the network vae')
end)

t.test('formats by device', function()
  t.equal(recipes.on_device('8bit', 'cpu'), 'int8')
  local format, why = recipes.on_device('fp8', 'cpu')
  t.equal(format, 'int8')
  t.ok(why:find 'fp8 needs an NVIDIA GPU', why)
  t.ok(not layers.takes({ kind = 'convolution', N = 64, K = 64 }, 'fp8') and not layers.takes({ kind = 'product', N = 64, K = 24 }, 'int8'))
  t.ok(layers.takes({ kind = 'product', N = 16, K = 96 }, 'int4') and not layers.takes({ kind = 'product', N = 16, K = 48 }, 'int4'))
end)

t.test('converting a quantized layer to another format, and its branch', function()
  cr.scope(function()
    local encode = require 'models.quantize.encode'
    local generator = cr.generator(5, 'philox')
    local function randn(...) return cr.randn({ ... }, { generator = generator }) end
    local function layer(N, K)
      local node = setmetatable({ weight = cr.keep(randn(N, K)), bias = cr.keep(randn(N)) }, { __path = 'x' })
      return { name = 'x', kind = 'product', N = N, K = K, taps = 1, node = node }, node
    end
    local x = randn(9, 128)
    local one, node = layer(48, 128)
    local y = cr.nn.linear(node, x)
    encode.layer(one, 'fp8')
    t.equal(quant.format(node), 'fp8')
    local list = layers.quantized(setmetatable({ x = node }, {}))
    t.equal(list[1].format, 'fp8')
    t.equal(apply.fit({ x = node }, 'cpu'):match '^fp8 needs', 'fp8 needs')
    t.equal(quant.format(node), 'int8', 'what a CPU can')
    t.ok(t.relative_error(cr.nn.linear(node, x), y) < 0.05)
    weights.free(node)

    -- The branch covers what 4 bits lose most of; GPTQ compensates errors with other inputs.
    -- A few directions are much stronger than the rest, as in trained weights.
    local weight = randn(48, 128) + randn(48, 2):matmul(randn(2, 128)) * 4
    local off, gram = {}, x:t():matmul(x)
    for name, how in pairs { plain = {}, branch = { rank = 16 }, gptq = { gram = gram }, both = { rank = 16, gram = gram } } do
      one, node = layer(48, 128)
      node.weight:copy_(weight)
      local exact = cr.nn.linear(node, x)
      encode.layer(one, 'int4', how)
      off[name] = t.relative_error(cr.nn.linear(node, x), exact)
      weights.free(node)
    end
    t.ok(off.branch < off.plain and off.gptq < off.plain and off.both < off.gptq,
      ('plain %.4f, branch %.4f, gptq %.4f, both %.4f'):format(off.plain, off.branch, off.gptq, off.both))
  end)
end)

t.done()
