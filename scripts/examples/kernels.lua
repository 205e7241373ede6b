--- Custom kernels: `crescent scripts/examples/kernels.lua` runs them on the CPU, and on a GPU if there is one.
--
-- A custom activation and a thresholding from formulas, a sampler's step from a recorded function, and (on a GPU)
-- attention from CUDA source. Each is compared with the same computation in single operations.

local cr = require 'cr'

local device = cr.cuda.available() and 'cuda' or 'cpu'
local function randn(...) return cr.randn(...):to(device) end

local function beside(name, mine, plain)
  print(('%-32s largest difference %.2g'):format(name, (mine - plain):abs():max():item()))
end

-- A custom activation: squared ReLU (So et al. 2021), times a gain per channel.
local activation = cr.kernel { 'y = square(relu(x)) * gain', x = 'in', gain = 'in broadcast', y = 'out' }
local x, gain = randn(2, 64, 64, 32), randn(32)
beside('squared ReLU with gains', activation(x, gain), x:relu():square() * gain)

-- Thresholding: clamps a prediction to a multiple of its row's standard deviation (an idea of Imagen's, Saharia et
-- al. 2022).
local moments = cr.kernel { 'm = mean(x); q = mean(x * x)', x = 'in', m = 'out', q = 'out' }
local limit = cr.kernel { 's = k * sqrt(max(q - m * m, 0)); y = clamp(x, m - s, m + s)', x = 'in', k = 'number', q = 'in broadcast',
  m = 'in broadcast', y = 'out' }
local rows = randn(16, 4096)
local m, q = moments(rows)
local deviation = rows:std(2, true) * 2
beside('thresholding', limit { x = rows, m = m:unsqueeze(2), q = q:unsqueeze(2), k = 2 },
  rows:maximum(rows:mean(2, true) - deviation):minimum(rows:mean(2, true) + deviation))

-- A sampler's step with guidance, written as at the prompt: one pass over memory instead of six.
local step = cr.fuse(function(latents, uncond, cond, scale, a, b)
  local e = uncond + (cond - uncond) * scale
  return (latents - e * b) / a
end)
local latents, uncond, cond = randn(1, 16, 64, 64, 4), randn(1, 16, 64, 64, 4), randn(1, 16, 64, 64, 4)
beside('a step with guidance', step(latents, uncond, cond, 1.5, 0.9, 0.3), (latents - (uncond + (cond - uncond) * 1.5) * 0.3) / 0.9)

if device == 'cpu' then
  print 'attention by CUDA source         needs a GPU'
  return
end

-- An attention variant: scores without softmax, each row divided by its sum of |scores|; one block per row of the
-- result.
local code = cr.cuda.source [[
  extern "C" __global__ void linear_attention(float *y, const float *q, const float *k, const float *v, int tokens, int d) {
    extern __shared__ float score[];
    const float *own = q + (long long)blockIdx.x * d;
    for (int s = threadIdx.x; s < tokens; s += blockDim.x) {
      float sum = 0;
      for (int i = 0; i < d; i++) sum += own[i] * k[(long long)s * d + i];
      score[s] = sum;
    }
    __syncthreads();
    float all = 0;
    for (int s = 0; s < tokens; s++) all += fabsf(score[s]);
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
      float sum = 0;
      for (int s = 0; s < tokens; s++) sum += score[s] * v[(long long)s * d + i];
      y[(long long)blockIdx.x * d + i] = sum / all;
    }
  }
]]
local tokens, d = 256, 40
local Q, K, V = randn(tokens, d), randn(tokens, d), randn(tokens, d)
local y = cr.empty_like(Q)
code.linear_attention({ grid = tokens, block = 128, shared = tokens * 4 }, y, Q, K, V, tokens, d)
local scores = Q:matmul(K:t())
beside('attention by CUDA source', y, (scores / scores:abs():sum(2, true)):matmul(V))
