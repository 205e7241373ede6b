--- Attention on a GPU at the networks' shapes: some rows are compared with the CPU, then the median time, TFLOP/s,
--- and GB/s of the tensors read and written.
--
--     build/crescent tests/bench/cuda_attention.lua [--only PATTERN]

local cr = require 'cr'
local nn = require 'cr.nn'
local options = require 'tests.bench.options'

local pattern = options.read("Attention at the networks' shapes.", { options.only }).only
require 'tests.bench.card' ()
local device, dtype = 'cuda:0', 'f16'

-- [B T heads*d]; keys and values are packed with the queries unless they are S tokens of their own
local shapes = {
  { 'UNet 512 px, self 64x64', 32, 4096, nil, 8, 40 },
  { 'UNet 512 px, self 32x32', 32, 1024, nil, 8, 80 },
  { 'UNet 512 px, self 16x16', 32, 256, nil, 8, 160 },
  { 'UNet 512 px, self 8x8', 32, 64, nil, 8, 160 },
  { 'UNet 512 px, audio 64x64', 16, 4096, 50, 8, 40 },
  { 'UNet 512 px, audio 32x32', 16, 1024, 50, 8, 80 },
  { 'UNet 512 px, audio 16x16', 16, 256, 50, 8, 160 },
  { 'UNet 256 px, self 32x32', 32, 1024, nil, 8, 40 },
  { 'UNet 256 px, self 16x16', 32, 256, nil, 8, 80 },
  { 'UNet 256 px, self 8x8', 32, 64, nil, 8, 160 },
  { 'UNet 256 px, audio 32x32', 16, 1024, 50, 8, 40 },
  { 'VAE 512 px, 4 frames', 4, 4096, nil, 1, 512 },
  { 'VAE 256 px, 16 frames', 16, 1024, nil, 1, 512 },
  { 'Whisper', 1, 1500, nil, 6, 64 },
  { 'head of 128', 16, 2048, nil, 8, 128 },
}

-- The rows of the last batch entry are compared with the CPU.
local function check(name, q, k, v, heads)
  local last, rows = q:size(1), math.min(48, q:size(2))
  local function one(x) return x:narrow(1, last, 1) end
  local y = one(nn.attention(q, k, v, { heads = heads })):narrow(2, q:size(2) - rows + 1, rows):contiguous()
  local function down(x) return x:contiguous():to 'cpu':to 'f32' end
  local r = nn.attention(down(one(q):narrow(2, q:size(2) - rows + 1, rows)), down(one(k)), down(one(v)), { heads = heads })
  y = down(y)
  local err = math.sqrt(((y - r):square():sum() / r:square():sum()):item())
  local near = err < 1e-3 -- false for a nan
  if not near then error(('%s: error %g'):format(name, err)) end
end

for _, s in ipairs(shapes) do
  local name, B, T, S, heads, d = unpack(s, 1, 6)
  if name:find(pattern) then
    cr.scope(function()
      local w = heads * d
      local q, k, v
      if S then
        q = cr.randn({ B, T, w }, { device = device }):to(dtype)
        local packed = cr.randn({ B, S, 2 * w }, { device = device }):to(dtype)
        k, v = packed:narrow(3, 1, w), packed:narrow(3, w + 1, w)
      else
        local packed = cr.randn({ B, T, 3 * w }, { device = device }):to(dtype)
        q, k, v = packed:narrow(3, 1, w), packed:narrow(3, w + 1, w), packed:narrow(3, 2 * w + 1, w)
      end
      check(name, q, k, v, heads)
      local ms = cr.cuda.time(function() return nn.attention(q, k, v, { heads = heads }) end)
      local flop, bytes = 4 * B * T * (S or T) * w, 4 * B * (T + (S or T)) * w
      print(('%-26s %8.4f ms  %6.1f TFLOP/s  %6.0f GB/s'):format(name, ms, flop / ms * 1e-9, bytes / ms * 1e-6))
    end)
  end
end
