--- Times of the feed-forward's first product with GEGLU on a GPU, for every shape of a step of 2 x 16 frames: product
--- and GEGLU as separate kernels, and fused (kernels/linear/geglu.cu), with TFLOP/s of the product only.
--- models/networks/unet3d.lua splits the rows of a feed-forward into chunks; three cases are measured: the chunks of
--- the separate kernels, the larger chunks of the fused one, and all rows at once.
--
--   build/crescent tests/bench/cuda_geglu.lua [--size 256,512] [--dtype f16|bf16]
--
-- Both are checked first: the first and last rows against the CPU in float32.
local cr = require 'cr'
local nn = require 'cr.nn'
local environment = require 'tests.support.environment'
local products = require 'tests.bench.products'

local sizes, dtype = products.arguments("The feed-forward's first product with GEGLU.")

local WIDE = 2 ^ 26 -- models/networks/unet3d.lua's
local WAYS = { 'apart', 'one kernel' }
-- channels, pixels per side at 512 px, feed-forwards per step (spatial and temporal)
local LEVELS = { { 320, 64, 10 }, { 640, 32, 10 }, { 1280, 16, 10 }, { 1280, 8, 6 } }

--- Rows of each chunk if at most `widest` elements are kept.
local function turn(rows, widest)
  local turns = math.ceil(rows * widest / WIDE)
  return turns <= 1 and rows or math.ceil(rows / turns / 128) * 128
end

local function check(y, w, x)
  local rows = x:size(1)
  for _, first in ipairs { 1, rows - 2 } do
    cr.scope(function()
      local function down(t) return t:to 'cpu':to 'f32' end
      local r = nn.linear_geglu({ weight = down(w.weight), bias = down(w.bias) }, down(x:narrow(1, first, 3)))
      local off = (down(y:narrow(1, first, 3)) - r):abs():max():item()
      local near = off <= (dtype == 'f16' and 4e-3 or 3e-2) * r:abs():max():item() -- false for a nan
      if not near then error(('error %g'):format(off)) end
    end)
  end
end

for _, size in ipairs(sizes) do
  print(('%d px, %s: ms and TFLOP/s'):format(size, dtype))
  local head = '     M     K     N  times |'
  for _, name in ipairs(WAYS) do head = head .. (' %15s |'):format(name) end
  print(head)
  -- Milliseconds of a step: separate kernels in their chunks; the faster choice for each shape in the fused kernel's
  -- chunks, and for all rows at once.
  local sum = { apart = 0, fused = 0, whole = 0 }
  for _, level in ipairs(LEVELS) do
    local c, side, times = unpack(level)
    local all = 32 * (side * size / 512) ^ 2
    local turns = { apart = turn(all, 8 * c), fused = turn(all, 4 * c), whole = all }
    local done = {}
    for _, kind in ipairs { 'apart', 'fused', 'whole' } do
      local m = turns[kind]
      if not done[m] then
        done[m] = {}
        cr.scope(function()
          local function randn(shape, scale) return products.randn(shape, dtype, scale) end
          local w, x = { weight = randn({ 8 * c, c }, c ^ -0.5), bias = randn { 8 * c } }, randn { m, c }
          local out = cr.empty(m, 4 * c, { dtype = dtype, device = 'cuda' })
          local line = ('%6d %5d %5d %6g |'):format(m, c, 8 * c, times * all / m)
          for way = 0, 1 do
            environment.set('CR_GEGLU', way)
            local function call() nn.linear_geglu(w, x, { out = out }) end
            call()
            check(out, w, x)
            local ms = cr.cuda.time(call)
            done[m][way] = ms
            line = line .. (' %7.3f %7.0f |'):format(ms, 16 * m * c * c / ms * 1e-9)
          end
          print(line)
        end)
      end
      sum[kind] = sum[kind] + times * all / m * (kind == 'apart' and done[m][0] or math.min(done[m][0], done[m][1]))
    end
  end
  print(('a step: %.2f ms apart; %.2f ms by the faster way, %.2f without turns\n'):format(sum.apart, sum.fused, sum.whole))
end
