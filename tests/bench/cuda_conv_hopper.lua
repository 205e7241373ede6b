--- 3x3 convolutions of the UNet and the VAE on a GPU, by cuDNN's best algorithm and by every variant of
--- kernels/conv/hopper.cu: microseconds and TFLOP/s, and the time of the convolutions of a UNet step and two VAE
--- slices with the faster one.
--
--     [CR_CACHE=] build/crescent tests/bench/cuda_conv_hopper.lua [--only PATTERN] [--dtype f16|bf16] [--ways 1,3]
--
-- Results are checked first: cuDNN's last pixels against the CPU in float32, and the whole result of each variant
-- against cuDNN's. The search for cuDNN's algorithms takes a quarter of a second for each shape that is not in the
-- cache.

local cr = require 'cr'
local clock = require 'cr.clock'
local nn = require 'cr.nn'
local environment = require 'tests.support.environment'
local options = require 'tests.bench.options'

local request = options.read("cuDNN's convolutions compared with the project's own.", {
  options.only, options.dtype, { '--ways', default = '1,2,3', help = 'variants of the own kernel' },
})
local pattern, dtype, wanted = request.only, request.dtype, request.ways
require 'tests.bench.card' ()
local device, begun = 'cuda:0', clock()
local WAYS = { '256x128', '256x160', '128x160' }

-- N, side, C, O, calls (most shapes are called equally often with and without a residual), with a residual
local nets = {
  { 'UNet 256', {
    { 32, 32, 320, 320, 9, true }, { 32, 32, 640, 320, 2 }, { 32, 32, 960, 320, 1 }, { 32, 32, 640, 640, 1 },
    { 32, 16, 320, 640, 1 }, { 32, 16, 640, 640, 6, true }, { 32, 16, 960, 640, 1 }, { 32, 16, 1280, 640, 1 },
    { 32, 16, 1920, 640, 1 }, { 32, 16, 1280, 1280, 1 }, { 32, 8, 1280, 1280, 7, true }, { 32, 8, 2560, 1280, 2 },
    { 32, 4, 1280, 1280, 11, true },
  } },
  { 'UNet 512', { { 32, 64, 320, 320, 9, true }, { 32, 64, 640, 640, 1 }, { 32, 16, 2560, 1280, 2 } } },
  { 'VAE 256', {
    { 4, 256, 128, 128, 8, true }, { 4, 128, 256, 256, 6, true }, { 4, 64, 512, 512, 6, true }, { 16, 32, 512, 512, 9 },
    { 2, 256, 128, 128, 5, true }, { 2, 256, 256, 128, 1 }, { 2, 128, 256, 256, 5, true }, { 2, 128, 512, 256, 1 },
    { 2, 64, 512, 512, 7, true },
  } },
}

-- The last pixels of the last picture, on the CPU.
local function check(y, w, x, residual)
  local n, h = x:size(1), x:size(2)
  local function corner(v, size) return v:narrow(1, n, 1):narrow(2, h - size + 1, size):narrow(3, h - size + 1, size) end
  local function down(v) return v:contiguous():to 'cpu':to 'f32' end
  local r = nn.conv2d({ weight = down(w.weight), bias = down(w.bias) }, down(corner(x, 4)), { padding = { 0, 1, 0, 1 } })
  r = r:narrow(2, 2, 2):narrow(3, 2, 2)
  if residual then r = r + down(corner(residual, 2)) end
  local err = math.sqrt(((down(corner(y, 2)) - r):square():sum() / r:square():sum()):item())
  local near = err < (dtype == 'bf16' and 8e-3 or 1e-3) -- false for a nan
  if not near then error(('error %g, compared with the CPU'):format(err), 0) end
end

local function randn(shape, scale)
  return cr.scope(function() return (cr.randn(shape, { device = device }) * (scale or 1)):to(dtype) end)
end

for _, net in ipairs(nets) do
  local name, list = net[1], net[2]
  if name:find(pattern) then
    local head = ('%-34s %17s |'):format(name .. ', us and TFLOP/s', 'library')
    for way, title in ipairs(WAYS) do
      if wanted:find(way, 1, true) then head = head .. (' %d %9s |'):format(way, title) end
    end
    print(head)
    local sum = { library = 0, best = 0 }
    for _, s in ipairs(list) do
      cr.scope(function()
        local n, side, c, o, calls, with = unpack(s, 1, 6)
        local w, x = { weight = randn({ o, 3, 3, c }, (9 * c) ^ -0.5), bias = randn { o } }, randn { n, side, side, c }
        local given = { padding = 1, residual = with and randn { n, side, side, o } or nil }
        local function run() return nn.conv2d(w, x, given) end
        environment.set('CR_CONV_HOPPER', '0')
        local y = run()
        check(y, w, x, given.residual)
        local flop, us = 2 * n * side * side * 9 * c * o, cr.cuda.time(run, 5) * 1e3
        local line = ('[%d %d %d %d] -> %d%s'):format(n, side, side, c, o, with and ' +' or '')
        line = ('%-26s %2d calls %8.1f %8.0f |'):format(line, calls, us, flop / us * 1e-6)
        local best, fastest = us, 'library'
        local square = y:to 'f32':square():sum():item()
        for way in ipairs(WAYS) do
          if wanted:find(way, 1, true) then
            environment.set('CR_CONV_HOPPER', way)
            local off = cr.scope(function() return math.sqrt((run() - y):to 'f32':square():sum():item() / square) end)
            local near = off < (dtype == 'bf16' and 8e-3 or 1e-3)
            if near then
              local own = cr.cuda.time(run, 5) * 1e3
              line = line .. (' %6.1f %4.0f |'):format(own, flop / own * 1e-6)
              if own < best then best, fastest = own, 'way ' .. way end
            else
              line = line .. (' off %7.1g |'):format(off)
            end
          end
        end
        print(('%s %s, %.2f times'):format(line, fastest, us / best))
        sum.library, sum.best = sum.library + calls * us, sum.best + calls * best
      end)
    end
    print(('%s: %.3f ms by the library, %.3f by the fastest\n'):format(name, sum.library * 1e-3, sum.best * 1e-3))
  end
end
print(('in %.1f s'):format(clock() - begun))
