-- Times the networks on a card in float16 and with layers in 8 bits, in one run: a UNet step with guidance, the VAE's
-- decoding of 16 frames, random weights. Scales are made up, which costs as much as good ones.
--
--     build/crescent tests/bench/cuda_quant.lua [--size 256,512] [--runs 10] [--recipes none,conv,8bit,all]
--
-- Recipes: `conv` int8 convolutions; `linear` products alone: int8 by rows behind norms, E4M3 behind GEGLU; `8bit` both;
-- `last` also the VAE's last block; `dynamic` as 8bit, but GEGLU's codes by rows too; `int4` all weights.

local cr = require 'cr'
local measure = require 'models.laboratory.measure'
local quant = require 'cr.quant'
local upsample = require 'cr.nn.upsample'

local options = require 'tests.bench.options'
local o = options.read('Networks on a card in float16 and in 8 bits.', {
  options.size,
  { '--runs', 'int', default = 10, min = 1, help = 'of which the median is told' },
  { '--recipes', default = 'none,conv,linear,8bit,last', help = 'what is quantized' },
})
require 'tests.bench.card' ()
local device = 'cuda'

local function divisor(size, value) return cr.full({ size }, value, { device = device }) end

-- { pattern of names, format, static value of the divisor or nil: by rows }; the first that fits counts.
local CONV = {
  { '^conv_in', false }, { '^conv_out', false }, { '%.conv_in$', false }, { '%.conv_out$', false }, { 'downsamplers', false },
  { 'resnets%.%d+%.conv[12]$', 'int8', 0.03 }, { 'upsamplers%.0%.conv$', 'int8', 0.03 },
}
local LINEAR = {
  { '%.to_qkv$', 'int8' }, { 'attn2%.to_q$', 'int8' }, { '%.net%.0%.proj$', 'int8' }, { '%.net%.2$', 'fp8', 0.02 },
}
local DYNAMIC = { { '%.to_qkv$', 'int8' }, { 'attn2%.to_q$', 'int8' }, { '%.net%.0%.proj$', 'int8' }, { '%.net%.2$', 'fp8' } }
local function joined(...)
  local list = {}
  for _, part in ipairs { ... } do
    for _, row in ipairs(part) do list[#list + 1] = row end
  end
  return list
end
local LAST = { { 'decoder%.up_blocks%.3', false }, { '^encoder', false } }
local recipes = {
  none = {}, conv = joined(LAST, CONV), linear = joined(LAST, LINEAR), ['8bit'] = joined(LAST, CONV, LINEAR),
  last = joined({ { '^encoder', false } }, CONV, LINEAR), dynamic = joined(LAST, CONV, DYNAMIC),
  int4 = { { '^conv_in', false }, { '%.conv_in$', false }, { '%.conv_out$', false }, { '^conv_out', false }, { '.', 'int4' } },
}

local function quantize(tree, recipe)
  local count = 0
  local function visit(node, name)
    if type(node) ~= 'table' or cr.is_tensor(node) then return end
    local weight = rawget(node, 'weight')
    if weight and weight:dim() >= 2 and weight:size(1) % 16 == 0 and weight:size(-1) % 16 == 0 then
      for _, row in ipairs(recipe) do
        if name:find(row[1]) then
          if row[2] then
            local before = weight
            if name:find 'upsamplers' and not rawget(node, 'folded') then
              local b = node.bias
              node.folded = { weight = cr.keep(upsample.fold(weight)), bias = cr.keep(cr.cat({ b, b, b, b }, 1)) }
            end
            quant.quantize_layer(node, { format = row[2], input = row[3] and divisor(weight:size(-1), row[3]) })
            before:free()
            count = count + 1
          end
          break
        end
      end
    end
    for key, child in pairs(node) do
      if key ~= 'folded' and key ~= 'weight' and key ~= 'bias' then visit(child, (name == '' and '' or name .. '.') .. key) end
    end
  end
  cr.scope(visit, tree, '')
  return count
end

local info = cr.cuda.info()
print(('%s, crescent %s, CUDA %s'):format(info.name, cr.version, info.runtime))
local first = {}
for name in o.recipes:gmatch '[^,]+' do
  local recipe = recipes[name]
  cr.scope(function()
    local model = measure.random { device = device, dtype = 'f16' }
    local count = quantize(model.unet.w, recipe) + quantize(model.vae.w, recipe)
    for _, size in ipairs(options.numbers(o.size)) do
      for case in measure.cases(model, size) do
        if case.name:find 'step' or case.name:find 'decode' then
          cr.trim(device)
          cr.reset_peak(device)
          local done, ms = pcall(cr.cuda.time, case.run, o.runs)
          first[case.name] = first[case.name] or done and ms
          print(('%-10s %3d layers  %-16s %s'):format(name, count, case.name, done and
            ('%8.2f ms  %.2f of the first  %.2f GiB'):format(ms, ms / first[case.name], cr.memory(device).peak / 2 ^ 30) or tostring(ms)))
        end
        case.free()
      end
    end
  end)
  collectgarbage()
  collectgarbage()
  cr.trim(device)
end
os.exit(0, true)
