-- Error and speed of 8-bit floats in the UNet, layer by layer: the error that quantizing only this layer adds to the
-- guided prediction, compared with float16, and its time compared with float16; then the error and the time of a step
-- with all layers, with those of the recipe (models/quantize/recipe.lua or --list), and with only those that are
-- faster.
--
--     build/crescent tests/bench/cuda_fp8.lua --checkpoint DIR [--size 256,512] [--layers 1] [--list FILE.lua]
--         [--timestep 481] [--frames 16] [--rows 400] [--fast] [--device cuda] [--dtype f16]
--
-- DIR is a checkpoint folder; tests/bench/full_checkpoint.lua writes one with formula weights. --layers 0 skips the
-- table of layers, --layers 256 prints it only at that size. --fast accumulates with fewer bits. Inputs are random;
-- the error is the relative L2 error of the prediction compared with float16.
--
-- Tiny: --checkpoint DIR

local cr = require 'cr'
local fp8 = require 'tests.support.fp8'
local layers_of = require 'models.quantize.layers'
local nn = require 'cr.nn'
local recipes = require 'models.quantize.recipe'

local o = require 'tests.bench.options'.read('Error and speed of 8-bit floats in the UNet.', {
  { '--checkpoint', 'file', required = true, help = 'a checkpoint folder' },
  { '--size', default = '256', help = 'pixels, one or more' },
  { '--layers', default = '1', help = '0: no table of layers; 256: only at that size' },
  { '--list', 'file', help = "a recipe instead of the one named fp8" },
  { '--timestep', 'int', default = 481, min = 0, max = 999, help = 'timestep at which the error is measured' },
  { '--frames', 'int', default = 16, min = 1, help = 'of a window' },
  { '--rows', 'int', default = 400, min = 1, help = 'of the table of layers' },
  { '--fast', 'flag', help = 'accumulate with fewer bits' },
  { '--device', default = 'cuda', help = 'a GPU; cpu: errors only' },
  { '--dtype', 'choice', default = 'f16', choices = { 'f16', 'bf16', 'f32' }, help = 'data type of the other layers' },
})
if o.device ~= 'cpu' then require 'tests.bench.card' () end
local on_card = o.device ~= 'cpu'
if on_card then
  local info = require 'tests.bench.card' ()
  local ok, why = fp8.available(o.device)
  if not ok then require 'cr.tools.cli'.fail(why) end
  cr.cuda.device.fp8_fast = o.fast
  print(('%s%s'):format(info.name, o.fast and ', accumulation with fewer bits' or ''))
end

local unet = require 'models.latentsync'.load(o.checkpoint, { device = o.device, dtype = o.dtype }).unet
local config, F = unet.config, o.frames
local timesteps = { 981, o.timestep, 1 }
local rows = (o.list and recipes.read(o.list) or recipes.named 'fp8').unet
local layers, listed = {}, 0
for _, layer in ipairs(layers_of.of(unet.w)) do
  if layers_of.takes(layer, 'fp8') and not layer.name:find '^time_emb' and not layer.name:find 'time_emb_proj$' and
      not layer.name:find '%.to_kv$' then
    layer.own, layer.listed = layer.node.weight, recipes.choose(rows, layer, o.device) == 'fp8'
    layers[#layers + 1] = layer
    listed = listed + (layer.listed and 1 or 0)
  end
end

local function on(layer)
  if not layer.codes then
    layer.codes = fp8.quantize(layer.own)
    cr.keep(layer.codes.codes, layer.codes.scale)
  end
  layer.node.weight, layer.node.scale = layer.codes.codes, layer.codes.scale
end
local function off(layer)
  layer.node.weight, layer.node.scale = layer.own, nil
end

local function relative(a, b)
  return cr.scope(function()
    local x, y = a:to 'f32', b:to 'f32'
    return math.sqrt((x - y):square():sum():item() / y:square():sum():item())
  end)
end

local function time_of(fn) return on_card and cr.cuda.time(fn, 5) or 0 end

-- What every size needs: the same inputs, and the prediction with the layers as they are now.
local function case(size)
  local side, latent = size / 8, config.out_channels
  local generator = cr.generator(1247, 'philox')
  local function randn(...) return cr.randn(..., { generator = generator, dtype = o.dtype, device = o.device }) end
  local c = { cond = randn { 1, F, side, side, config.in_channels - latent },
    audio = randn { F, 50, config.cross_attention_dim }, x = randn { 1, F, side, side, latent } }
  function c.denoiser(record)
    return unet:denoiser { cond = c.cond, audio = c.audio, guidance = 1.5, timesteps = timesteps, record = record }
  end
  function c.predict()
    local d = c.denoiser(false)
    local y = d:call(c.x, 2)
    d:free()
    unet.idle = {}
    return y
  end
  function c.milliseconds()
    local d = c.denoiser(true)
    for _ = 1, 3 do d:call(c.x, 2):free() end
    local ms = time_of(function() return d:call(c.x, 2) end)
    d:free()
    unet.idle = {}
    collectgarbage()
    collectgarbage()
    return ms
  end
  return c
end

-- Records the rows of each layer's input and the fused operands of its product, by wrapping the functions during a
-- run.
local function watch(fn)
  local by_node, names = {}, { 'linear', 'linear_geglu' }
  for _, layer in ipairs(layers) do by_node[layer.node] = layer end
  local plain = {}
  for _, name in ipairs(names) do
    plain[name] = nn[name]
    nn[name] = function(w, x, options) -- luacheck: ignore
      local layer = by_node[w]
      if layer then
        layer.calls = (layer.calls or 0) + 1
        layer.m = x:numel() / x:size(-1)
        layer.residual = options and options.residual ~= nil
        layer.geglu = name == 'linear_geglu'
      end
      return plain[name](w, x, options)
    end
  end
  fn()
  for name, f in pairs(plain) do nn[name] = f end -- luacheck: ignore
end

-- Milliseconds of a product in float16, in 8 bits, and in 8 bits with an input that is already quantized; with GEGLU
-- where the network fuses it.
local timed = {}
local function times(layer)
  local n, k = layer.own:size(1), layer.own:size(2)
  local bias = rawget(layer.node, 'bias')
  local key = ('%d %d %d %s %s %s'):format(layer.m, k, n, tostring(bias ~= nil), tostring(layer.residual),
    tostring(layer.geglu))
  if not timed[key] then
    timed[key] = cr.scope(function()
      local x = cr.randn(layer.m, k, { dtype = o.dtype, device = o.device })
      local residual = layer.residual and cr.randn(layer.m, n, { dtype = o.dtype, device = o.device }) or nil
      local out = cr.empty(layer.m, n, { dtype = o.dtype, device = o.device })
      local options = { residual = residual, out = out }
      local wide, q = { weight = layer.own, bias = bias }, fp8.quantize(layer.own)
      local narrow, qx = { weight = q.codes, scale = q.scale, bias = bias }, fp8.quantize(x)
      if on_card and not timed.nodes then -- one where the library takes scales, bias and residual along
        local graph = cr.graph(function(codes, scale, r) return nn.linear(narrow, { codes = codes, scale = scale, dtype = o.dtype },
          { residual = r }) end, { direct = true })
        local plus = residual or out
        for _ = 1, 3 do graph(qx.codes, qx.scale, plus) end
        print(('a product of codes %d x %d x %d with scales, bias and residual: %d kernels%s'):format(layer.m, k, n, graph:size(),
          graph:why() or ''))
        graph:free()
        timed.nodes = true
      end
      if layer.geglu then
        return { time_of(function() nn.linear_geglu(wide, x) end), time_of(function() nn.geglu(nn.linear(narrow, x)) end),
          time_of(function() fp8.geglu(nn.linear(narrow, qx)) end) }
      end
      return { time_of(function() nn.linear(wide, x, options) end), time_of(function() nn.linear(narrow, x, options) end),
        time_of(function() nn.linear(narrow, qx, options) end) }
    end)
  end
  return timed[key]
end

-- Products whose input is quantized by the step before; the fused GEGLU in float16 does not quantize.
local single = on_card and o.dtype ~= 'f32' and cr.cuda.device.linear_geglu
local function is_fused(name)
  return name:find 'to_qkv$' or name:find 'attn2%.to_q$' or name:find 'ff%.net%.0' or name:find 'ff%.net%.2$' and not single
end

local function saved(layer) return layer.ms and layer.ms[1] - layer.ms[is_fused(layer.name) and 3 or 2] or 0 end

-- Layers of one kind in one block together: what a pattern of a list stands for.
local function by_kind()
  local kinds, list = {}, {}
  for _, layer in ipairs(layers) do
    if layer.error then
      local block = layer.name:match '^%a+_blocks?%.?%d*'
      local kind = layer.name:gsub('%.attentions%.%d+', '.attentions'):gsub('%.motion_modules%.%d+%.temporal_transformer', '.motion')
        :gsub('%.resnets%.%d+', ''):gsub('%.transformer_blocks%.0', ''):gsub('%.attention_blocks%.%d+', '')
      kind = block and kind or layer.name
      local k = kinds[kind]
      if not k then
        k = { name = kind, n = 0, square = 0, saving = 0, took = 0 }
        kinds[kind] = k
        list[#list + 1] = k
      end
      k.n, k.square = k.n + 1, k.square + layer.error ^ 2
      k.saving, k.took = k.saving + saved(layer) * layer.calls, k.took + layer.ms[1] * layer.calls
    end
  end
  table.sort(list, function(a, b) return a.saving > b.saving end)
  print(('\n%-52s layers    error  f16 ms  saving'):format 'kind')
  for _, k in ipairs(list) do
    print(('%-52s %6d %8.5f %7.3f %7.3f'):format(k.name, k.n, math.sqrt(k.square), k.took, k.saving))
  end
end

-- Layers that together save `share` of what can be saved, at the least error.
local function cheapest(share)
  local faster, whole, chosen = {}, 0, {}
  for _, layer in ipairs(layers) do
    if layer.error and saved(layer) > 0 then
      faster[#faster + 1] = layer
      whole = whole + saved(layer) * layer.calls
    end
  end
  local function price(layer) return layer.error ^ 2 / (saved(layer) * layer.calls) end
  table.sort(faster, function(a, b) return price(a) < price(b) end)
  local sum = 0
  for _, layer in ipairs(faster) do
    if sum >= share * whole then break end
    chosen[layer] = true
    sum = sum + saved(layer) * layer.calls
  end
  return function(layer) return chosen[layer] end
end

local function layer_by_layer(c, before)
  print(('\n%-82s calls       M     K     N    error  f16 us  fp8 us  of codes'):format 'layer')
  for _, layer in ipairs(layers) do
    if layer.calls then
      cr.scope(function()
        on(layer)
        layer.error = relative(c.predict(), before)
        off(layer)
      end)
      layer.ms = times(layer)
    end
  end
  local sorted = {}
  for _, layer in ipairs(layers) do
    if layer.error then sorted[#sorted + 1] = layer end
  end
  table.sort(sorted, function(a, b) return a.error > b.error end)
  local square = 0
  for i, layer in ipairs(sorted) do
    square = square + layer.error ^ 2
    if i <= o.rows then
      print(('%-82s %5d %7d %5d %5d %8.5f %7.1f %7.1f %7.1f%s'):format(layer.name, layer.calls, layer.m, layer.own:size(2),
        layer.own:size(1), layer.error, layer.ms[1] * 1e3, layer.ms[2] * 1e3, layer.ms[3] * 1e3, layer.listed and '' or '  kept'))
    end
  end
  by_kind()
  print(('%d layers; if their errors were independent: %.5f'):format(#sorted, math.sqrt(square)))
end

cr.scope(function()
  for size in o.size:gmatch '%d+' do
    local c = case(tonumber(size))
    for _, layer in ipairs(layers) do layer.calls, layer.error, layer.ms = nil, nil, nil end
    local before
    watch(function() before = c.predict() end)
    local again = c.predict()
    print(('\n%s px: %d layers can be quantized, %d are by the list; the same network twice differs by %.2g'):format(size, #layers,
      listed, relative(again, before)))
    if o.layers == '1' or o.layers == size then
      layer_by_layer(c, before)
    elseif on_card then
      for _, layer in ipairs(layers) do
        if layer.calls then layer.ms = times(layer) end
      end
    end
    local sets = {
      { 'none', function() return false end },
      { 'all', function() return true end },
      { 'the list', function(layer) return layer.listed end },
      { 'the list and the ff', function(layer)
        return layer.listed or layer.name:find '%.ff%.net%.' and not layer.name:find '^down_blocks%.0%.'
      end },
    }
    if on_card then
      sets[#sets + 1] = { 'all that are faster', function(layer) return saved(layer) > 0 end }
      sets[#sets + 1] = { 'faster by a fifth', function(layer) return layer.ms and saved(layer) > 0.2 * layer.ms[1] end }
      sets[#sets + 1] = { 'the faster of the list', function(layer) return layer.listed and saved(layer) > 0 end }
    end
    if on_card and (o.layers == '1' or o.layers == size) then
      for _, share in ipairs { 0.5, 0.75, 0.9 } do
        sets[#sets + 1] = { ('%d %% of the saving'):format(100 * share), cheapest(share) }
      end
    end
    local base
    print(('\n%-24s layers   error%s'):format('8-bit', on_card and '    ms a step   of float16; saving of the products alone' or ''))
    for _, set in ipairs(sets) do
      local n, alone = 0, 0
      for _, layer in ipairs(layers) do
        if layer.calls and set[2](layer) then
          on(layer)
          n, alone = n + 1, alone + saved(layer) * layer.calls
        end
      end
      local e = cr.scope(function() return relative(c.predict(), before) end)
      local ms = on_card and c.milliseconds()
      base = base or ms
      print(('%-24s %6d %8.5f%s'):format(set[1], n, e,
        on_card and (' %9.2f %9.1f %%  %9.2f'):format(ms, 100 * ms / base, alone) or ''))
      for _, layer in ipairs(layers) do off(layer) end
    end
  end
end)
