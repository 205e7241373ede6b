--- Times of 8-bit float matrix products on Hopper: float16, the library's 8-bit product, and the project's own
--- kernels (kernels/linear/gemm_hopper.h: wide and narrow tiles, and wide tiles that accumulate with fewer bits), for
--- the shapes of a UNet step of 2 x 16 frames with fused bias and residual. Then the quantization of the input
--- together with the product, as the search chooses it, and whole feed-forwards, to find the layers that are faster
--- in float16.
--
--   build/crescent tests/bench/cuda_fp8_linear.lua [--size 256,512] [--dtype f16|bf16]
--
-- Times are in microseconds; each shape is checked first: its first rows against the CPU, and the whole result
-- against the library. Ten calls are recorded in a graph, so that launch overhead is not measured.
local cr = require 'cr'
local fp8 = require 'tests.support.fp8'
local nn = require 'cr.nn'
local environment = require 'tests.support.environment'
local products = require 'tests.bench.products'

local sizes, dtype = products.arguments('Matrix products of 8-bit floats on Hopper.')

-- Rows at 256 px, input and output columns, fused operands (b bias, r residual), the operation that makes the input;
-- whether the shape exists at 512 px, too.
local SHAPES = {
  { 32768, 320, 320, 'br', 'quantize', 'to_out', true }, { 16384, 320, 320, 'br', 'quantize', 'to_out' },
  { 16384, 320, 320, '', 'norm', 'to_q' }, { 32768, 320, 960, '', 'norm', 'to_qkv', true },
  { 16384, 1280, 320, 'br', 'quantize', 'ff out', true }, { 8192, 640, 640, 'br', 'quantize', 'to_out' },
  { 8192, 640, 1920, '', 'norm', 'to_qkv', true }, { 8192, 640, 5120, 'b', 'norm', 'ff in', true },
  { 8192, 2560, 640, 'br', 'quantize', 'ff out', true }, { 2048, 1280, 1280, 'br', 'quantize', 'to_out' },
  { 2048, 1280, 3840, '', 'norm', 'to_qkv', true }, { 2048, 5120, 1280, 'br', 'quantize', 'ff out', true },
  { 512, 1280, 1280, 'br', 'quantize', 'to_out' }, { 512, 1280, 3840, '', 'norm', 'to_qkv' },
  { 512, 5120, 1280, 'br', 'quantize', 'ff out' },
}
-- Value of CR_FP8_OWN (nil: the search decides), fp8_fast.
local WAYS = { { '0', false }, { '1', false }, { '2', false }, { '1', true } }

local function with_way(way, fast, fn)
  environment.set('CR_FP8_OWN', way)
  cr.cuda.device.fp8_fast = fast
  fn()
  environment.set('CR_FP8_OWN')
  cr.cuda.device.fp8_fast = false
end

local time_of = products.recorded

local function randn(shape, scale) return products.randn(shape, dtype, scale) end
local function down(q) return { codes = q.codes:to 'cpu', scale = q.scale:to 'cpu', dtype = 'f32' } end

--- The first rows of a product on the CPU.
local function reference(w, qx, residual)
  local rows = 3
  local top = { codes = qx.codes:narrow(1, 1, rows), scale = qx.scale:narrow(1, 1, rows) }
  local weight = fp8.dequantize(down { codes = w.weight, scale = w.scale })
  return nn.linear({ weight = weight, bias = w.bias and w.bias:to 'cpu':to 'f32' }, fp8.dequantize(down(top)),
    { residual = residual and residual:narrow(1, 1, rows):to 'cpu':to 'f32' })
end

local function check(y, r, library, fast, name)
  cr.scope(function()
    local off = (y:narrow(1, 1, r:size(1)):to 'cpu':to 'f32' - r):abs():max():item() / r:abs():max():item()
    local near = off <= (fast and 2e-2 or dtype == 'f16' and 3e-3 or 1e-2) -- false for a nan
    if not near then error(('%s: error %g of the largest value'):format(name, off)) end
    local a, b = y:to 'f32', library:to 'f32'
    off = math.sqrt((a - b):square():sum():item() / b:square():sum():item())
    near = off <= (fast and 2e-2 or dtype == 'f16' and 1.5e-3 or 8e-3)
    if not near then error(('%s: error %g, compared with the library'):format(name, off)) end
  end)
end

local function line(m, k, n, takes, before, name)
  cr.scope(function()
    local x = randn { m, k }
    local plain = { weight = randn({ n, k }, k ^ -0.5), bias = takes:find 'b' and randn { n } or nil }
    local norm = { weight = randn { k }, bias = randn { k } }
    local residual = takes:find 'r' and randn { m, n } or nil
    local w, q = fp8.quantize(plain.weight), fp8.quantize(x)
    w = { weight = w.codes, scale = w.scale, bias = plain.bias }
    local function of_codes(codes, scale, r) return nn.linear(w, { codes = codes, scale = scale, dtype = dtype }, { residual = r }) end
    local us = { time_of(function(a, r) return nn.linear(plain, a, { residual = r }) end, x, residual) }
    local first, library = cr.scope(function() return reference(w, q, residual) end), nil
    for i, way in ipairs(WAYS) do
      with_way(way[1], way[2], function()
        local y = of_codes(q.codes, q.scale, residual)
        library = library or y
        check(y, first, library, way[2], ('%s [%d %d] -> %d, way %s%s'):format(name, m, k, n, way[1], way[2] and ' fast' or ''))
        us[i + 1] = time_of(of_codes, q.codes, q.scale, residual)
      end)
    end
    local wide, narrow = function(a) return a end, function(a) return a end
    if before == 'norm' then
      wide, narrow = function(a) return nn.layer_norm(norm, a) end, function(a) return fp8.layer_norm(norm, a) end
    end
    local function whole(layer, prepare)
      return time_of(function(a, r)
        return cr.scope(function() return nn.linear(layer, prepare(a), { residual = r }) end)
      end, x, residual)
    end
    local f16, f8 = whole(plain, wide), whole(w, narrow)
    print(('%-7s %6d %5d %5d %-2s | %7.1f %7.1f %7.1f %7.1f %7.1f | %4.0f %4.0f | %7.1f %7.1f  %s'):format(name, m, k, n, takes,
      us[1], us[2], us[3], us[4], us[5], 2e-6 * m * k * n / us[1], 2e-6 * m * k * n / math.min(us[3], us[4]), f16, f8, before))
  end)
end

--- A feed-forward in float16, with its second product in 8 bits, and with both products in 8 bits.
local function feed_forward(m, c)
  cr.scope(function()
    local x, norm = randn { m, c }, { weight = randn { c }, bias = randn { c } }
    local first, second = { weight = randn({ 8 * c, c }, c ^ -0.5), bias = randn { 8 * c } },
      { weight = randn({ c, 4 * c }, (4 * c) ^ -0.5), bias = randn { c } }
    local function narrow(w)
      local q = fp8.quantize(w.weight)
      return { weight = q.codes, scale = q.scale, bias = w.bias }
    end
    local first8, second8 = narrow(first), narrow(second)
    local function whole(wide, last)
      return time_of(function(a) return cr.scope(function() return nn.linear(last, wide(a), { residual = a }) end) end, x)
    end
    local function in_f16(a) return nn.linear_geglu(first, nn.layer_norm(norm, a)) end
    local function in_8(a) return fp8.geglu(nn.linear(first8, fp8.layer_norm(norm, a))) end
    print(('feed-forward %6d x %4d: f16 %7.1f, second 8-bit %7.1f, both %7.1f'):format(m, c, whole(in_f16, second),
      whole(in_f16, second8), whole(in_8, second8)))
  end)
end

cr.cuda.device.linear_geglu = true
for _, size in ipairs(sizes) do
  local scale = (size / 256) ^ 2
  print(('%d px, %s: us of f16, of codes by the library, by wide and narrow tiles, wide with fewer bits; TFLOP/s of f16 and own;'
    .. ' with what stands before'):format(size, dtype))
  print('layer        M     K     N    |     f16 library    wide  narrow    fast |  f16  own |     f16     fp8')
  for _, s in ipairs(SHAPES) do
    if size == 256 or s[7] then line(s[1] * scale, s[2], s[3], s[4], s[5], s[6]) end
  end
  for level = 0, 3 do feed_forward(math.min(16384, 32768 / 4 ^ level) * scale, 320 * 2 ^ math.min(level, 2)) end
end
