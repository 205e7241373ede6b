--- Custom kernels on a GPU: formulas, recorded functions, CUDA source, recordings.
local t = require 'tests.support.tap'
local cr = require 'cr'
local cuda = require 'tests.support.cuda'

require 'tests.support.kernels'(cuda.test, cuda.device)

cuda.test('CUDA source: launching, numbers, shared memory, messages', function()
  local code = cr.cuda.source [[
    __global__ void __launch_bounds__(256) scale(float *y, const float *x, float s, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i < n) y[i] = x[i] * s;
    }
    extern "C" __global__ void sums(float *y, const float *x, int n) {
      extern __shared__ float part[];
      part[threadIdx.x] = threadIdx.x < n ? x[blockIdx.x * n + threadIdx.x] : 0;
      __syncthreads();
      if (threadIdx.x == 0) {
        float s = 0;
        for (int i = 0; i < n; i++) s += part[i];
        y[blockIdx.x] = s;
      }
    }
  ]]
  local x = cr.randn(3, 200):to(cuda.device)
  local y = cr.empty_like(x)
  code.scale({ grid = 3, block = 256 }, y, x, 2.5, 600)
  t.ok((y - x * 2.5):abs():max():item() < 1e-6, 'scaled')
  local s = cr.zeros({ 3 }, { device = cuda.device })
  code.sums({ grid = { 3 }, block = 256, shared = 60000 }, s, x, 200)
  t.ok((s - x:sum(2)):abs():max():item() < 1e-3, 'summed')
  t.raises(function() code.scale({ grid = 1, block = 4096 }, y, x, 1, 1) end, 'kernel')
  t.raises(function() code.scale({ grid = 1, block = 1 }, y, x, 'a', 1) end, "scale: s: a number is needed, not 'a'")
  local broken = cr.cuda.source '\n\n__global__ void f(float *y) { y[0] = nothing; }'
  t.raises(function() broken.f({ grid = 1, block = 1 }, y) end, 'source%(3%).*nothing')
  local g = cr.graph(function(v)
    local out = cr.empty_like(v)
    code.scale({ grid = 3, block = 256 }, out, v, 3, 600)
    return cr.kernel { 'y = x + 1', x = 'in', y = 'out' }(out)
  end)
  local z
  for _ = 1, 3 do z = g(x) end
  t.equal(g:why(), nil, 'it is recorded')
  t.ok((z - (x * 3 + 1)):abs():max():item() < 1e-5, 'replayed')
  g:free()
end)

t.done()
