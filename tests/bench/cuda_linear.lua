--- Times of the UNet's linear layers on a GPU, with the number of calls in a step of 2 x 16 frames: TFLOP/s and
--- percentage of the tensor cores' speed (725 TFLOP/s on an H200), for cuBLASLt's first heuristic result and for the
--- algorithm that the search chose, and the time of the search.
--
--   build/crescent tests/bench/cuda_linear.lua [--size 256,512] [--dtype f16|bf16|f32|tf32]
--
-- Each shape is checked first: its first rows against the CPU.
local cr = require 'cr'
local nn = require 'cr.nn'
local clock = require 'cr.clock'
local options = require 'tests.bench.options'

local o = options.read("The UNet's linear layers.", {
  options.size,
  { '--dtype', 'choice', default = 'f16', choices = { 'f16', 'bf16', 'f32', 'tf32' }, help = 'data type of the operands' },
})
require 'tests.bench.card' ()

local CEILING = 725
local sizes, kind = options.numbers(o.size), o.dtype
local dtype = kind == 'tf32' and 'f32' or kind

-- channels, pixels per side at 512 px, spatial transformers, temporal ones
local LEVELS = { { 320, 64, 5, 5 }, { 640, 32, 5, 5 }, { 1280, 16, 5, 5 }, { 1280, 8, 1, 5 } }

-- Layers of a level's blocks: name, input and output columns as multiples of the channels, number in a spatial and in
-- a temporal transformer, fused operations.
local LAYERS = {
  { 'proj_in', 1, 1, 1, 1, { bias = true } },
  { 'to_q', 1, 1, 1, 0, {} },
  { 'to_qkv', 1, 3, 1, 2, {} },
  { 'to_out', 1, 1, 2, 2, { bias = true, residual = true } },
  { 'ff in', 1, 8, 1, 1, { bias = true } },
  { 'ff out', 4, 1, 1, 1, { bias = true, residual = true } },
  { 'proj_out', 1, 1, 1, 1, { bias = true, residual = true } },
}

local function check(y, x, w, residual)
  cr.scope(function()
    local function down(t) return t and t:to 'cpu':to 'f32' end
    local rows = 3
    local expected = nn.linear({ weight = down(w.weight), bias = down(w.bias) }, down(x:slice(1, 1, rows)),
      { residual = residual and down(residual:slice(1, 1, rows)) })
    local off = (down(y:slice(1, 1, rows)) - expected):abs():max():item()
    local allowed = ({ f16 = 4e-3, bf16 = 3e-2, f32 = kind == 'tf32' and 5e-3 or 2e-5 })[dtype]
    local near = off <= allowed * expected:abs():max():item() -- false for a nan
    if not near then error(('error %g'):format(off)) end
  end)
end

cr.cuda.device.tf32 = kind == 'tf32'
for _, size in ipairs(sizes) do
  print(('%d px, %s; first proposal, then searched'):format(size, kind))
  print('layer          M     K     N  times |     ms TFLOP/s    % |     ms TFLOP/s    % | search ms')
  local sum, flops_sum, search_sum = { 0, 0 }, 0, 0
  for _, level in ipairs(LEVELS) do
    local c, side, spatial, temporal = unpack(level)
    local m = 32 * (side * size / 512) ^ 2
    for _, layer in ipairs(LAYERS) do
      cr.scope(function()
        local name, k, n, in_spatial, in_temporal, fused = unpack(layer)
        k, n = k * c, n * c
        local times = spatial * in_spatial + temporal * in_temporal
        local function randn(shape, scale)
          return cr.scope(function() return (cr.randn(shape, { device = 'cuda' }) * (scale or 1)):to(dtype) end)
        end
        local w = { weight = randn({ n, k }, k ^ -0.5), bias = fused.bias and randn { n } or nil }
        local x, residual = randn { m, k }, fused.residual and randn { m, n } or nil
        local out = cr.empty(m, n, { dtype = dtype, device = 'cuda' })
        local function call() nn.linear(w, x, { residual = residual, out = out }) end
        local flops = 2 * m * k * n
        local line, search = ('%-9s %6d %5d %5d %6d |'):format(name, m, k, n, times), 0
        for i = 1, 2 do
          cr.cuda.device.search = i == 2
          cr.cuda.synchronize()
          local start = clock()
          call()
          cr.cuda.synchronize()
          if i == 2 then search = (clock() - start) * 1e3 end
          check(out, x, w, residual)
          local ms = cr.cuda.time(call)
          line = line .. (' %6.3f %7.0f %4.0f |'):format(ms, flops / ms * 1e-9, flops / ms * 1e-7 / CEILING)
          sum[i] = sum[i] + ms * times
        end
        print(line .. (' %6.1f'):format(search))
        flops_sum, search_sum = flops_sum + flops * times, search_sum + search
      end)
    end
  end
  local line = ('%-37s|'):format(('a step: %.2f TFLOP'):format(flops_sum * 1e-12))
  for i = 1, 2 do
    line = line .. (' %6.2f %7.0f %4.0f |'):format(sum[i], flops_sum / sum[i] * 1e-9, flops_sum / sum[i] * 1e-7 / CEILING)
  end
  print(line .. (' %6.0f\n'):format(search_sum))
end
