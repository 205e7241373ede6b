--- Times of the UNet's 16-bit matrix products on Hopper: cuBLASLt's searched algorithms compared with the project's
--- own kernels (kernels/linear/gemm_hopper.h), with fused bias and residual; then TFLOP/s of both, and the memory
--- bandwidth of the own kernel.
--
--   build/crescent tests/bench/cuda_linear_own.lua [--size 256,512] [--dtype f16|bf16]
--
-- Times are in microseconds; each result is first compared with the library's. Ten calls are recorded in a graph, so
-- that launch overhead is not measured; the operands of small products stay in the L2 cache between calls.
local cr = require 'cr'
local nn = require 'cr.nn'
local environment = require 'tests.support.environment'
local products = require 'tests.bench.products'

local sizes, dtype = products.arguments('Matrix products in 16 bits on Hopper.')

-- Rows at 256 px, input and output columns, fused operands (b bias, r residual).
local SHAPES = {
  { 32768, 320, 320, 'br' }, { 16384, 320, 320, 'br' }, { 16384, 320, 320, '' }, { 16384, 320, 960, '' },
  { 32768, 320, 960, '' }, { 16384, 1280, 320, 'br' }, { 8192, 640, 640, 'br' }, { 8192, 640, 1920, '' },
  { 8192, 2560, 640, 'br' }, { 2048, 1280, 1280, 'br' }, { 2048, 1280, 3840, '' }, { 2048, 5120, 1280, 'br' },
  { 512, 1280, 1280, 'br' }, { 512, 1280, 3840, '' }, { 512, 5120, 1280, 'br' },
}
local LIMIT = { f16 = 5e-4, bf16 = 4e-3 } -- two roundings of one sum

local time_of = products.recorded

local function randn(shape, scale) return products.randn(shape, dtype, scale) end

local function check(y, library, name)
  cr.scope(function()
    local a, b = y:to 'f32', library:to 'f32'
    local off = math.sqrt((a - b):square():sum():item() / b:square():sum():item())
    local near = off <= LIMIT[dtype] -- false for a nan
    if not near then error(('%s: error %g, compared with the library'):format(name, off)) end
  end)
end

local function line(m, k, n, takes)
  cr.scope(function()
    local x, residual = randn { m, k }, takes:find 'r' and randn { m, n } or nil
    local w = { weight = randn({ n, k }, k ^ -0.5), bias = takes:find 'b' and randn { n } or nil }
    local function call() return nn.linear(w, x, { residual = residual }) end
    local us, library = {}, nil
    for way = 0, 1 do
      environment.set('CR_LINEAR_OWN', way)
      local y = call() -- searches are done with that
      library = library or y
      check(y, library, ('[%d %d] -> %d, way %d'):format(m, k, n, way))
      us[way] = time_of(call)
    end
    environment.set('CR_LINEAR_OWN')
    local bytes = 2 * (m * k + n * k + m * n * (residual and 2 or 1))
    print(('%6d %5d %5d %-2s | %7.1f %7.1f | %4.0f %4.0f | %4.2f %6.2f'):format(m, k, n, takes, us[0], us[1],
      2e-6 * m * k * n / us[0], 2e-6 * m * k * n / us[1], us[0] / us[1], bytes / us[1] * 1e-6))
  end)
end

for _, size in ipairs(sizes) do
  local scale = (size / 256) ^ 2
  print(('%d px, %s: us'):format(size, dtype))
  print('     M     K     N    | library    ours | TFLOP/s   | gain   TB/s')
  for _, s in ipairs(SHAPES) do line(s[1] * scale, s[2], s[3], s[4]) end
end
