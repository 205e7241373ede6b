--- The UNet with 8-bit layers on the CPU: which layers they are, what they cost, lists from files.

local cr = require 'cr'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local function nano_unet(dtype)
  local unet3d = require 'models.networks.unet3d'
  local config = unet3d.config(require 'tests.support.checkpoint'.unet_config(384))
  return unet3d.new(require 'tests.support.networks'.tree(unet3d.expected(config), { dtype = dtype }), config)
end

t.test('the UNet with 8-bit layers, all and by a list', function()
  local lists = require 'models.networks.unet3d_fp8'
  cr.scope(function()
    local sample, audio = t.formula('input:sample', { 1, 3, 8, 8, 13 }), t.formula('input:audio', { 1, 3, 50, 384 })
    local net = nano_unet()
    local y = net:forward(sample, 481, audio)
    local names = net:quantize { keep = { '^time_embedding%.', 'time_emb_proj$', 'to_kv$' } }
    t.ok(#names > 50, #names .. ' layers')
    local all = ' ' .. table.concat(names, ' ') .. ' '
    for _, name in ipairs { 'down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_qkv',
      'up_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.0.ff.net.0.proj',
      'mid_block.attentions.0.proj_in', 'up_blocks.3.resnets.0.conv_shortcut',
      'down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0' } do
      t.ok(all:find(' ' .. name .. ' ', 1, true) ~= nil, name)
    end
    t.ok(not all:find 'time_emb' and not all:find 'to_kv', 'what stays')
    local z = net:forward(sample, 481, audio)
    local off = t.relative_error(z, y)
    t.ok(off > 0.01 and off < 0.5, ('all: off by %.3g'):format(off))
    t.equal(#net:quantize { keep = { 'time_emb', 'to_kv$' } }, 0, 'twice is once')
    weights.free(net.w)

    net = nano_unet()
    local some = net:quantize { keep = lists.keep, only = { '^up_blocks%.1%.' } }
    t.ok(#some > 3 and #some < #names)
    for _, name in ipairs(some) do t.ok(name:find '^up_blocks%.1' ~= nil, name) end
    for _, layer in ipairs(lists.layers(net.w)) do
      t.ok(not layer.name:find 'proj_in$' and not layer.name:find '^down_blocks%.0', 'kept by default')
    end
    local less = t.relative_error(net:forward(sample, 481, audio), y)
    t.ok(less > 0 and less < off, ('one block: off by %.3g'):format(less))
    weights.free(net.w)
  end)
end)

t.test('what is quantized gives its memory back', function()
  cr.scope(function()
    local net = nano_unet()
    local lists = require 'models.networks.unet3d_fp8'
    local before, bytes, codes = cr.memory().live, 0, 0
    for _, layer in ipairs(lists.layers(net.w, {})) do
      local n, rows = layer.node.weight:numel(), layer.node.weight:size(1)
      bytes, codes = bytes + 4 * n, codes + n + 4 * rows
    end
    net:quantize {}
    t.equal(before - cr.memory().live, bytes - codes)
    weights.free(net.w)
  end)
end)

t.test('what is loaded apart is what is quantized', function()
  local lists, unet3d = require 'models.networks.unet3d_fp8', require 'models.networks.unet3d'
  local config = unet3d.config(require 'tests.support.checkpoint'.unet_config(384))
  cr.scope(function()
    local net = nano_unet()
    local specs = { default = lists, all = {}, some = { keep = { 'to_kv$', 'to_qkv$' } }, q = { only = { 'attn2%.to_q$' } } }
    for message, spec in pairs(specs) do
      local apart, found, wanted = lists.apart(spec), {}, {}
      for _, e in ipairs(unet3d.expected(config)) do
        if apart(e.name, e.shape) then found[lists.fused((e.name:gsub('%.weight$', '')))] = true end
      end
      local n = 0
      for _, layer in ipairs(lists.layers(net.w, spec)) do
        wanted[layer.name] = true
        n = n + 1
        t.ok(found[layer.name], message .. ': ' .. layer.name)
      end
      t.ok(n > 0, message)
      for name in pairs(found) do t.ok(wanted[name], message .. ': ' .. name .. ' is not quantized') end
    end
    weights.free(net.w)
  end)
end)

t.test('lists from files', function()
  local lists = require 'models.networks.unet3d_fp8'
  local path = scratch.write('list.lua', "return { keep = { '%.to_out%.0$' }, only = { '^mid' } }")
  t.equal(lists.read(path).only[1], '^mid')
  local function bad(text, pattern)
    scratch.write('list.lua', text)
    t.raises(function() lists.read(path) end, pattern)
  end
  bad('return 3', 'list.lua: it must return a table')
  bad("return { keep = '%.to_out' }", "list.lua: 'keep' is not a list of Lua patterns")
  bad("return { skip = {} }", "'skip' is not a list")
  bad("return { keep = { '%' } }", "'keep' is not a list")
  bad('return {', 'list.lua:1')
  bad("error 'no'", 'list.lua: .*no')
  t.raises(function() lists.read(scratch.path 'none.lua') end, 'none.lua')
  t.equal(lists.named 'fp8'.keep, lists.keep)
  t.raises(function() lists.named 'int4' end, "there is no 'int4', only fp8 and files")
end)

t.done()
