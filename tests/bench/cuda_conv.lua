--- Convolutions on a GPU at the networks' shapes: a corner of each result is compared with the CPU. Printed are the
--- time of the algorithm search, the median time of a call, TFLOP/s, the percentage of the 725 TFLOP/s that a matrix
--- product reaches, and the time with bias and residual as separate kernels. Sums are over one UNet step and one
--- slice of the VAE. At the end, the convolutions after a 2x upsampling, fused with it (and the time of their
--- convolution only) and separate, for 16 decoded frames and for one UNet step.
--
--     build/crescent tests/bench/cuda_conv.lua [--only PATTERN] [--dtype f16]

local cr = require 'cr'
local clock = require 'cr.clock'
local nn = require 'cr.nn'
local options = require 'tests.bench.options'

local given = options.read("Convolutions at the networks' shapes.", {
  options.only,
  { '--dtype', 'choice', default = 'f16', choices = { 'f16', 'bf16', 'f32' }, help = 'data type of the operands' },
})
local pattern, dtype = given.only, given.dtype
require 'tests.bench.card' ()
local device, LIMIT = 'cuda:0', 725
local one, asymmetric = { 1, 1, 1, 1 }, { 0, 1, 0, 1 }

-- name; N H W; C; O; calls without and with a residual; stride; padding; kernel
local shapes = {}
local function add(net, n, scale, list)
  for _, s in ipairs(list) do
    shapes[#shapes + 1] = {
      net = net, n = n, size = math.floor(s[1] * scale), c = s[2], o = s[3], plain = s[4], residual = s[5],
      stride = s[6] or 1, padding = s[7] or one,
    }
  end
end

local unet = {
  { 64, 13, 320, 1, 0 }, { 64, 320, 320, 2, 5 }, { 64, 960, 320, 1, 0 }, { 64, 640, 320, 2, 0 },
  { 64, 640, 640, 1, 0 }, { 64, 320, 4, 1, 0 }, { 64, 320, 320, 1, 0, 2 }, { 32, 320, 640, 1, 0 },
  { 32, 640, 640, 1, 5 }, { 32, 1920, 640, 1, 0 }, { 32, 1280, 640, 1, 0 }, { 32, 960, 640, 1, 0 },
  { 32, 1280, 1280, 1, 0 }, { 32, 640, 640, 1, 0, 2 }, { 16, 640, 1280, 1, 0 }, { 16, 1280, 1280, 2, 5 },
  { 16, 2560, 1280, 2, 0 }, { 16, 1920, 1280, 1, 0 }, { 16, 1280, 1280, 1, 0, 2 }, { 8, 1280, 1280, 4, 7 },
  { 8, 2560, 1280, 3, 0 },
}
local decoder = {
  { 64, 4, 512, 1, 0 }, { 64, 512, 512, 5, 5 }, { 128, 512, 512, 4, 3 }, { 256, 512, 512, 1, 0 },
  { 256, 512, 256, 1, 0 }, { 256, 256, 256, 2, 3 }, { 512, 256, 256, 1, 0 }, { 512, 256, 128, 1, 0 },
  { 512, 128, 128, 2, 3 }, { 512, 128, 3, 1, 0 },
}
local encoder = {
  { 512, 3, 128, 1, 0 }, { 512, 128, 128, 2, 2 }, { 512, 128, 128, 1, 0, 2, asymmetric }, { 256, 128, 256, 1, 0 },
  { 256, 256, 256, 1, 2 }, { 256, 256, 256, 1, 0, 2, asymmetric }, { 128, 256, 512, 1, 0 }, { 128, 512, 512, 1, 2 },
  { 128, 512, 512, 1, 0, 2, asymmetric }, { 64, 512, 512, 4, 4 }, { 64, 512, 8, 1, 0 },
}
add('UNet 512', 32, 1, unet)
add('UNet 256', 32, 0.5, unet)
add('decode 512, 4 frames', 4, 1, decoder)
add('encode 512, 4 frames', 4, 1, encoder)

-- The last pixels of the last picture, on the CPU.
local function check(name, y, x, w, s, residual)
  local h, oh = s.size, y:size(2)
  local rows = math.min(4, oh)
  local take = math.min(h, (rows + 1) * s.stride + 2)
  local function corner(v, n) return v:narrow(1, s.n, 1):narrow(2, v:size(2) - n + 1, n):narrow(3, v:size(3) - n + 1, n) end
  local function down(v) return v:contiguous():to 'cpu':to 'f32' end
  local cpu = { weight = down(w.weight), bias = down(w.bias) }
  local r = nn.conv2d(cpu, down(corner(x, take)), { stride = s.stride, padding = s.padding })
  local keep = math.min(rows, 3)
  r = corner(r:expand(s.n, r:size(2), r:size(3), r:size(4)), keep)
  if residual then r = r + down(corner(residual, keep)) end
  local got = down(corner(y, keep))
  local err = math.sqrt(((got - r):square():sum() / r:square():sum()):item())
  local near = err < (dtype == 'f32' and 1e-5 or dtype == 'bf16' and 8e-3 or 1e-3) -- false for a nan
  if not near then error(('%s: error %g'):format(name, err), 0) end
end

local sums, order = {}, {}
for _, s in ipairs(shapes) do
  if s.net:find(pattern) then
    cr.scope(function()
      local function randn(shape, scale)
        local v = cr.randn(shape, { device = device })
        return (scale and v * scale or v):to(dtype)
      end
      local w = { weight = randn({ s.o, 3, 3, s.c }, 1 / math.sqrt(9 * s.c)), bias = randn { s.o } }
      local x = randn { s.n, s.size, s.size, s.c }
      for _, with in ipairs { false, true } do
        local calls = with and s.residual or s.plain
        if calls > 0 then
          cr.scope(function()
            local o = { stride = s.stride, padding = s.padding }
            local name = ('%s: %d %d -> %d%s%s'):format(s.net, s.size, s.c, s.o, s.stride > 1 and ' /2' or '', with and ' +' or '')
            if with then o.residual = randn { s.n, s.size, s.size, s.o } end
            local start = clock()
            local y = nn.conv2d(w, x, o)
            cr.cuda.synchronize()
            local search = clock() - start
            check(name, y, x, w, s, o.residual)
            local function run() return nn.conv2d(w, x, o) end
            local ms = cr.cuda.time(run, 5)
            cr.cuda.device.fusion = false
            local apart = cr.cuda.time(run, 3)
            cr.cuda.device.fusion = true
            local flop = 2 * y:numel() * 9 * s.c
            print(('%-38s %2d x %8.4f ms %6.1f TFLOP/s %4.0f %%  apart %8.4f ms, searched in %4.0f ms'):format(name,
              calls, ms, flop / ms * 1e-9, flop / ms * 1e-7 / LIMIT, apart, search * 1e3))
            if not sums[s.net] then
              sums[s.net] = { ms = 0, flop = 0, apart = 0, search = 0 }
              order[#order + 1] = s.net
            end
            local sum = sums[s.net]
            sum.ms, sum.flop, sum.apart = sum.ms + calls * ms, sum.flop + calls * flop, sum.apart + calls * apart
            sum.search = sum.search + search
          end)
        end
      end
    end)
  end
end
for _, net in ipairs(order) do
  local sum = sums[net]
  print(('%-38s      %8.3f ms %6.1f TFLOP/s %4.0f %%  apart %8.3f ms, searched in %4.0f ms'):format(net, sum.ms,
    sum.flop / sum.ms * 1e-9, sum.flop / sum.ms * 1e-7 / LIMIT, sum.apart, sum.search * 1e3))
end

-- ---- after a doubling ----

-- net, calls; N H W, C, O
local doublings = {}
local function doubled(net, calls, n, scale, list)
  for _, s in ipairs(list) do
    doublings[#doublings + 1] = { net = net, calls = calls, n = n, size = s[1] * scale, c = s[2], o = s[3] }
  end
end
local up_decoder = { { 32, 512, 512 }, { 64, 512, 512 }, { 128, 256, 256 } }
local up_unet = { { 8, 1280, 1280 }, { 16, 1280, 1280 }, { 32, 640, 640 } }
doubled('doubled, decode 256', 4, 4, 1, up_decoder)
doubled('doubled, decode 512', 8, 2, 2, up_decoder)
doubled('doubled, UNet 256', 1, 32, 0.5, up_unet)
doubled('doubled, UNet 512', 1, 32, 1, up_unet)

sums, order = {}, {}
for _, s in ipairs(doublings) do
  if s.net:find(pattern) then
    cr.scope(function()
      local function randn(shape, scale)
        local v = cr.randn(shape, { device = device })
        return (scale and v * scale or v):to(dtype)
      end
      local w = { weight = randn({ s.o, 3, 3, s.c }, 1 / math.sqrt(9 * s.c)), bias = randn { s.o } }
      w.folded = { weight = require 'cr.nn.upsample'.fold(w.weight):to(dtype), bias = cr.cat({ w.bias, w.bias, w.bias, w.bias }, 1) }
      local x = randn { s.n, s.size, s.size, s.c }
      local name = ('%s: %d %d -> %d'):format(s.net, s.size, s.c, s.o)
      local function folded() return nn.upsample_conv2d(w, x) end
      local start = clock()
      local y = folded()
      cr.cuda.synchronize()
      local search = clock() - start
      local function apart() return nn.conv2d(w, nn.upsample_nearest(x, 2), { padding = 1 }) end
      local other = apart()
      local err = math.sqrt(((y - other):to 'f32':square():sum() / other:to 'f32':square():sum()):item())
      local near = err < (dtype == 'f32' and 1e-5 or dtype == 'bf16' and 1e-2 or 1.5e-3)
      if not near then error(('%s: folded and separate results differ by %g'):format(name, err), 0) end
      local ms, alone = cr.cuda.time(folded, 5), cr.cuda.time(function() return nn.conv2d(w.folded, x, { padding = 1 }) end, 5)
      local plain = cr.cuda.time(apart, 5)
      local flop = 2 * y:numel() * 4 * s.c
      print(('%-38s %2d x %8.4f ms, of it conv %8.4f ms %6.1f TFLOP/s  apart %8.4f ms, searched in %4.0f ms'):format(name,
        s.calls, ms, alone, flop / alone * 1e-9, plain, search * 1e3))
      if not sums[s.net] then
        sums[s.net] = { ms = 0, alone = 0, plain = 0 }
        order[#order + 1] = s.net
      end
      local sum = sums[s.net]
      sum.ms, sum.alone, sum.plain = sum.ms + s.calls * ms, sum.alone + s.calls * alone, sum.plain + s.calls * plain
    end)
  end
end
for _, net in ipairs(order) do
  local sum = sums[net]
  print(('%-38s      %8.3f ms, of it conv %8.3f ms                 apart %8.3f ms'):format(net, sum.ms, sum.alone, sum.plain))
end
