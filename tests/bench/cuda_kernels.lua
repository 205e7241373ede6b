-- A profile of a UNet step (with guidance, 16 frames) and of the VAE on a GPU: a table of every kind of operation
-- with its calls, kernels, time, TFLOP/s, GB/s and percentage of the GPU's limits; then how much of the time of the
-- replayed step (for the VAE: of the run) their sum explains.
--
--     build/crescent tests/bench/cuda_kernels.lua [--size 256,512] [--part unet,vae] [--rows 60] [--checkpoint DIR]
--         [--quant fp8|FILE.lua]
--
-- Weights are random unless a checkpoint is given: the time does not depend on them. The first run also searches for
-- algorithms, which takes a few seconds.

local cr = require 'cr'
local clock = require 'cr.clock'
local measure = require 'models.laboratory.measure'
local profile = require 'cr.tools.profile'

local o = require 'tests.bench.options'.read("Profile of a step on a GPU.", {
  { '--size', default = '256,512', help = 'pixels' },
  { '--part', default = 'unet', help = 'unet, vae or both' },
  { '--rows', 'int', default = 60, min = 1, help = 'number of rows of the table' },
  { '--checkpoint', 'file', help = 'a checkpoint folder instead of random weights' },
  { '--quant', help = 'quantization of the UNet: fp8 or a recipe FILE.lua' },
})
local info = require 'tests.bench.card' ()
local device, dtype = 'cuda', 'f16'
local limits = profile.limits
print(('%s, crescent %s, CUDA %s, cuBLAS %s, cuDNN %s; limits counted with: %.0f TFLOP/s (nominal %.0f), %.2f TB/s'):format(
  info.name, cr.version, info.runtime, info.cublas, info.cudnn, limits.f16 * 1e-12, limits.nominal * 1e-12,
  limits.memory * 1e-12))

local parts = {}
for name in o.part:gmatch '[^,]+' do parts[name] = true end

cr.scope(function()
  local model
  if o.checkpoint then
    model = require 'models.latentsync'.load(o.checkpoint, { device = device, dtype = dtype })
  else
    model = measure.random { device = device, dtype = dtype, unet = parts.unet == true, vae = parts.vae == true }
  end
  if o.quant then
    for network, told in pairs(require 'models.quantize.apply'.recipe(model, o.quant, device)) do
      for format, n in pairs(told.formats) do print(('%s: %d layers in %s'):format(network, n, format)) end
    end
  end
  for size in o.size:gmatch '%d+' do
    for case in measure.cases(model, tonumber(size), { parts = parts }) do
      if case.name:find '^unet window' then
        case.free()
      else
        local ms = cr.cuda.time(case.run, 10, device) -- of a replay: recorded by the calls before
        local start = clock()
        local rows = cr.scope(function() return (profile.run(case.run)) end)
        local sum = profile.total(rows)
        print(('\n%s px: %.2f ms; its %d operations alone %.2f ms, %.0f %% of it; by the limits %.2f ms%s'):format(case.name, ms,
          sum.calls, sum.seconds * 1e3, sum.seconds * 1e5 / ms, sum.least * 1e3,
          case.work and ('; %.0f TFLOP/s on %.2f TFLOP'):format(case.work / ms * 1e3, case.work) or ''))
        print(profile.table(rows, { rows = o.rows }))
        print(('  (profiled in %.0f s; after it %.2f ms)'):format(clock() - start, cr.cuda.time(case.run, 5, device)))
        case.free()
      end
    end
  end
end)
