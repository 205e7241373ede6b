-- Times the networks on a GPU in float16 and quantized, in one run: a UNet step with guidance, and the VAE's decoding
-- of 16 frames, with random weights. Calibrated input ranges are invented; the time does not depend on them.
--
--     build/crescent tests/bench/cuda_quant.lua [--size 256,512] [--runs 10] [--recipes none,8bit,int8,int4,FILE.lua]
--         [--rows] [--profile 40]
--
-- --rows: without calibration; then inputs of products are quantized per row, and the VAE's inputs are not quantized.

local cr = require 'cr'
local apply = require 'models.quantize.apply'
local encode = require 'models.quantize.encode'
local layers = require 'models.quantize.layers'
local measure = require 'models.laboratory.measure'
local profile = require 'cr.tools.profile'
local recipes = require 'models.quantize.recipe'

local options = require 'tests.bench.options'
local o = options.read('Networks on a GPU in float16 and quantized.', {
  options.size,
  { '--runs', 'int', default = 10, min = 1, help = 'number of runs; the median is printed' },
  { '--profile', 'int', default = 0, min = 0, help = 'rows of the profile; 0: no profile' },
  { '--rows', 'flag', help = 'without calibrated input ranges' },
  { '--pixels', 'int', default = 2 ^ 19, min = 1, help = "pixels that the VAE decodes at a time" },
  { '--recipes', default = 'none,8bit,int4', help = 'names or files' },
})
require 'tests.bench.card' ()
local device = 'cuda'

-- The layers with static quantization, and a typical range of their inputs.
local STATIC = { { '%.conv[12]?$', 4 / 127 }, { '%.net%.2$', 4 / 127 } }

local function quantize(tree, rows)
  local count = 0
  for _, layer in ipairs(layers.of(tree)) do
    local format = recipes.choose(rows, layer, device, not o.rows)
    local input
    for _, static in ipairs(STATIC) do
      local product = layer.kind == 'product'
      if (format == 'int8' or format == 'fp8') and layer.name:find(static[1]) and not (product and o.rows) then
        input = cr.full({ layer.K }, static[2], { device = device })
      end
    end
    if format ~= 'none' then
      encode.layer(layer, format, { input = input })
      count = count + 1
    end
  end
  apply.fold(tree)
  return count
end

local info = cr.cuda.info()
print(('%s, crescent %s, CUDA %s'):format(info.name, cr.version, info.runtime))
local first = {}
for name in o.recipes:gmatch '[^,]+' do
  local recipe = recipes.named(name) or {}
  cr.scope(function()
    local model = measure.random { device = device, dtype = 'f16' }
    model.vae.pixels = o.pixels
    local count = quantize(model.unet.w, recipe.unet or {}) + quantize(model.vae.w, recipe.vae or {})
    for _, size in ipairs(options.numbers(o.size)) do
      for case in measure.cases(model, size) do
        if case.name:find 'step' or case.name:find 'decode' then
          cr.trim(device)
          cr.reset_peak(device)
          local done, ms = pcall(cr.cuda.time, case.run, o.runs)
          first[case.name] = first[case.name] or done and ms
          print(('%-10s %3d layers  %-16s %s'):format(name, count, case.name, done and
            ('%8.2f ms  %.2f of the first  %.2f GiB'):format(ms, ms / first[case.name], cr.memory(device).peak / 2 ^ 30) or tostring(ms)))
          if done and o.profile > 0 then
            print(profile.table(cr.scope(function() return (profile.run(case.run)) end), { rows = o.profile }))
          end
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
