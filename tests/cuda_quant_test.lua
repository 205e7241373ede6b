--- Quantization on a GPU compared with the CPU: quantized values bit for bit, int8 products exactly, epilogues within
--- the result's rounding, at odd sizes, by every kernel.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local environment = require 'tests.support.environment'
local nn = require 'cr.nn'
local quant = require 'cr.quant'
local t = require 'tests.support.tap'
local upsample = require 'cr.nn.upsample'

local hopper_test = cuda.on_hopper(cuda.test)
local ROUNDING = { f16 = 2 ^ -11, bf16 = 2 ^ -8, f32 = 2 ^ -22 }

local function up(x) return x and x:to(cuda.device) end

-- A quantized layer on the card.
local function card_layer(w, dtype)
  local c = {}
  for _, name in ipairs { 'weight', 'scale', 'input', 'smooth' } do c[name] = up(rawget(w, name)) end
  c.bias = rawget(w, 'bias') and cuda.up(w.bias, dtype)
  if rawget(w, 'folded') then c.folded = card_layer(w.folded, dtype) end
  return c
end

local function down(q) return { codes = q.codes:to 'cpu', scale = q.scale and q.scale:to 'cpu', dtype = 'f32' } end
local function on_card(q, dtype) return { codes = up(q.codes), scale = up(q.scale), dtype = dtype } end

-- The GPU's results are the CPU's f32 results rounded: the error is below one and a half roundings of the dtype.
local function same_numbers(y, want, dtype, message)
  cr.scope(function()
    local off = (y:to 'cpu':to 'f32' - want):abs() / (want:abs() * ROUNDING[dtype] + 1e-5)
    local worst = off:max():item()
    t.ok(worst <= 1.5, ('%s: off by %.3g roundings (CR_SEED=%d)'):format(message, worst, cuda.seed))
  end)
end

local function same_codes(q, r, message)
  local a = down(q)
  if r.scale then
    local same = a.scale:eq(r.scale):to 'f32' + a.scale:ne(a.scale):to 'f32' * r.scale:ne(r.scale):to 'f32'
    t.equal(same:min():item(), 1, message .. ': scales')
  end
  t.equal((a.codes:to 'f32' - r.codes:to 'f32'):abs():max():item(), 0, message .. ': codes')
end

-- Values before quantization differ in their last bits, or are rounded to `dtype` first (per-row scales, other
-- sizes), so a result may occasionally be the neighbouring code. GELU before quantization may have an error of 1e-3,
-- which is large for a small code.
local function near_codes(q, r, divisor, message, dtype)
  cr.scope(function()
    local apart = (down(q).codes:to 'f32' - r.codes:to 'f32'):abs()
    local y, z = quant.dequantize(down(q), { divisor = divisor }), quant.dequantize(r, { divisor = divisor, dtype = 'f32' })
    local share, off = apart:gt(0):to 'f32':mean():item(), (y - z):abs():max():item() / z:abs():max():item()
    t.ok(share < ((dtype == 'bf16' or dtype == 'coarse') and 0.12 or 0.02) and off < 0.08,
      ('%s: %.2g of the codes differ, numbers by %.2g (CR_SEED=%d)'):format(message, share, off, cuda.seed))
  end)
end

local function near(y, want, message) cuda.near(y, want, { message = message }) end

local function positive(n) return cuda.randn({ n }):abs() * 0.02 + 0.01 end

cuda.test("quantized values, scales and dequantized values equal the CPU's", function()
  for _, format in ipairs { 'int8', 'fp8' } do
    for _, dtype in ipairs { 'f16', 'bf16', 'f32' } do
      for _, width in ipairs(cuda.cases { 1, 7, 8, 40, 320, 1000, 1288, 10248 }) do
        cr.scope(function()
          local x = cuda.randn({ 5, width }, dtype, 10 ^ (width % 5 - 2))
          local xc, d = cuda.up(x, dtype), positive(width)
          local name = ('%s %s [5 %d]'):format(format, dtype, width)
          for _, o in ipairs { {}, { divisor = true }, { divisor = true, static = true } } do
            local function with(divisor) return { format = format, divisor = o.divisor and divisor, static = o.static } end
            local r = quant.quantize(x, with(d))
            local q = quant.quantize(xc, with(up(d)))
            same_codes(q, r, name .. (o.static and ' static' or o.divisor and ' divided' or ''))
            local y = quant.dequantize(q, { dtype = 'f32', divisor = o.divisor and up(d) })
            t.equal((y:to 'cpu' - quant.dequantize(r, { dtype = 'f32', divisor = o.divisor and d })):abs():max():item(), 0, name)
          end
        end)
      end
    end
  end
  for _, width in ipairs { 3, 64 } do
    local bad = cr.zeros { 4, width }
    local p = bad:pointer()
    p[0], p[width], p[2 * width], p[3 * width] = 0 / 0, math.huge, -3, 1e-38
    same_codes(quant.quantize(up(bad)), quant.quantize(bad), 'not finite, ' .. width)
    local ones = cr.ones { width }
    local a, b = quant.quantize(up(bad), { divisor = up(ones), static = true }), quant.quantize(bad, { divisor = ones, static = true })
    same_codes(a, b, 'static, not finite, ' .. width)
  end
end)

cuda.test('dequantized weights of all formats', function()
  for _, shape in ipairs { { 5, 64 }, { 7, 70 }, { 6, 3, 3, 66 }, { 4, 2, 2, 128 } } do
    for _, format in ipairs { 'int8', 'fp8', 'int4' } do
      local w = { weight = cuda.randn(shape) }
      quant.quantize_layer(w, { format = format, input = #shape == 4 and format ~= 'int4' and cr.ones { shape[4] } or nil })
      for _, dtype in ipairs { 'f32', 'f16' } do
        local want = quant.dequantize(w, { dtype = dtype }):to 'f32'
        t.equal((quant.dequantize(card_layer(w), { dtype = dtype }):to 'cpu':to 'f32' - want):abs():max():item(), 0,
          ('%s [%s] %s'):format(format, table.concat(shape, ' '), dtype))
      end
    end
  end
end)

-- Integers below 128, whose sums are exact and representable in f16.
local function small(shape, most) return cr.scope(function() return (cuda.randn(shape) * most):round():clamp(-3, 3):to 'i8' end) end

local PRODUCTS = { -- rows, inner dimension, columns
  { 1, 16, 16 }, { 3, 5, 7 }, { 130, 320, 168 }, { 257, 80, 64 }, { 1000, 328, 200 }, { 300, 1280, 648 }, { 4100, 320, 328 },
}

local function product_cases(ways)
  for _, way in ipairs(ways) do
    environment.with('CR_FP8_OWN', way, function()
      for _, s in ipairs(cuda.cases(PRODUCTS)) do
        cr.scope(function()
          local m, k, n = unpack(s)
          local w = { weight = small({ n, k }, 1), scale = cr.ones { n } }
          local x = small({ m, k }, 1)
          local exact = nn.linear(w, { codes = x, dtype = 'f32' })
          local name = ('way %s [%d %d] -> %d'):format(way, m, k, n)
          for _, dtype in ipairs { 'f16', 'f32' } do
            local y = nn.linear(card_layer(w), { codes = up(x), dtype = dtype })
            if dtype == 'f32' or exact:abs():max():item() <= 2048 then
              t.equal((y:to 'cpu':to 'f32' - exact):abs():max():item(), 0, name .. ' exact ' .. dtype)
            end
          end
          for _, dtype in ipairs { 'f16', 'bf16', 'f32' } do
            for _, act in ipairs { 'none', 'silu' } do
              local v = { weight = w.weight, scale = positive(n), bias = cuda.randn({ n }, dtype) }
              local residual = cuda.randn({ m, n }, dtype)
              local q = { codes = x, scale = positive(m), dtype = 'f32' }
              local want = nn.linear(v, q, { residual = residual, act = act })
              local c = card_layer(v, dtype)
              local y = nn.linear(c, on_card(q, dtype), { residual = cuda.up(residual, dtype), act = act })
              -- The activation is applied to a result that is already rounded.
              if act == 'none' then same_numbers(y, want, dtype, name .. ' ' .. dtype) else near(y, want, name .. ' ' .. act) end
              if act == 'none' and dtype == 'f16' then
                local to = cuda.up(residual, dtype)
                nn.linear(c, on_card(q, dtype), { residual = to, out = to })
                same_numbers(to, want, dtype, name .. ' in place')
              end
            end
          end
        end)
      end
    end)
  end
end

cuda.test('int8 products are exact, with every epilogue', function() product_cases { '' } end)
hopper_test('int8 products by each tile', function() product_cases { '1', '2', '3' } end)

cuda.test('products of int4 weights, and of low-rank branches', function()
  for _, s in ipairs { { 5, 64, 48 }, { 33, 320, 640 }, { 7, 70, 9 } } do
    cr.scope(function()
      local m, k, n = unpack(s)
      local w = { weight = cuda.randn({ n, k }), bias = cuda.randn({ n }, 'f16') }
      quant.quantize_layer(w, { format = 'int4' })
      local x = cuda.randn({ m, k }, 'f16')
      near(nn.linear(card_layer(w, 'f16'), cuda.up(x, 'f16')), nn.linear(w, x), ('int4 [%d %d] -> %d'):format(m, k, n))
    end)
  end
end)

-- n, height, width, channels, results, window, options, bias
local CONVOLUTIONS = {
  { 2, 17, 19, 320, 160, 3, { padding = 1 } }, { 3, 16, 16, 128, 328, 3, { padding = 1 } }, { 5, 7, 9, 80, 136, 3, { padding = 1 } },
  { 1, 33, 20, 64, 64, 3, { padding = { 0, 1, 0, 1 } } }, { 2, 9, 9, 192, 64, 3, { padding = 0 } },
  { 4, 8, 8, 640, 320, 3, { padding = 1 } },
  { 2, 11, 13, 64, 96, 3, { padding = 1, stride = 2 } },
  { 7, 4, 4, 128, 72, 3, { padding = 1 } }, { 1, 9, 7, 5, 3, 3, { padding = 1 } }, { 2, 8, 10, 24, 40, 1, {} },
  { 1, 12, 12, 32, 64, 3, { padding = 2, dilation = 2 } }, { 2, 6, 6, 64, 64, 3, { padding = 1, groups = 4 } },
}

local function convolution_cases(ways, list)
  for _, way in ipairs(ways) do
    environment.with('CR_CONV_HOPPER', way, function()
      for _, s in ipairs(cuda.cases(list)) do
        cr.scope(function()
          local n, h, wide, c, o, k, given = unpack(s)
          local x, weight = small({ n, h, wide, c }, 1), small({ o, k, k, c / (given.groups or 1) }, 0.7)
          local name = ('way %s [%d %d %d %d] -> %d, %dx%d'):format(way, n, h, wide, c, o, k, k)
          local function options(residual, act)
            return { padding = given.padding, stride = given.stride, dilation = given.dilation, groups = given.groups,
              residual = residual, act = act }
          end
          local w = { weight = weight, scale = cr.ones { o }, input = cr.ones { c } }
          local q = { codes = x, dtype = 'f32' }
          local exact = nn.conv2d(w, q, options())
          local y = nn.conv2d(card_layer(w), on_card(q, 'f16'), options())
          if exact:abs():max():item() <= 2048 then t.equal((y:to 'cpu':to 'f32' - exact):abs():max():item(), 0, name .. ' exact') end
          for _, dtype in ipairs { 'f16', 'bf16', 'f32' } do
            local v = { weight = weight, scale = positive(o), input = w.input, bias = cuda.randn({ o }, dtype) }
            local residual = cuda.randn(exact.shape, dtype)
            local card = card_layer(v, dtype)
            local want = nn.conv2d(v, q, options(residual))
            same_numbers(nn.conv2d(card, on_card(q, dtype), options(cuda.up(residual, dtype))), want, dtype, name .. ' ' .. dtype)
            near(nn.conv2d(card, on_card(q, dtype), options(cuda.up(residual, dtype), 'silu')), nn.conv2d(v, q, options(residual, 'silu')),
              name .. ' silu')
          end
        end)
      end
    end)
  end
end

cuda.test('int8 convolutions are exact, with every epilogue', function() convolution_cases({ '', '0' }, CONVOLUTIONS) end)
hopper_test('int8 convolutions by each tile', function()
  local list = {}
  for i = 1, 6 do list[i] = CONVOLUTIONS[i] end
  convolution_cases({ '1', '2', '3' }, list)
end)

cuda.test('int8 convolutions of an upsampled image, all four phases', function()
  for _, way in ipairs { '', '0', '1', '2', '3' } do
    environment.with('CR_CONV_HOPPER', way, function()
      for _, s in ipairs(cuda.cases { { 2, 12, 20, 128, 64 }, { 3, 9, 8, 64, 72 }, { 1, 16, 33, 320, 160 }, { 2, 5, 7, 16, 8 } }) do
        cr.scope(function()
          local n, h, wide, c, o = unpack(s)
          local w = { weight = cuda.randn({ o, 3, 3, c }, 'f32', 0.1), bias = cuda.randn({ o }, 'f16') }
          w.folded = { weight = upsample.fold(w.weight), bias = cr.cat({ w.bias, w.bias, w.bias, w.bias }, 1) }
          quant.quantize_layer(w, { input = cr.full({ c }, 0.03) })
          local x = cuda.randn({ n, h, wide, c }, 'f16')
          local want, y = nn.upsample_conv2d(w, x), nn.upsample_conv2d(card_layer(w, 'f16'), cuda.up(x, 'f16'))
          same_numbers(y, want, 'f16', ('way %s [%d %d %d %d] -> %d'):format(way, n, h, wide, c, o))
        end)
      end
    end)
  end
end)

cuda.test('convolutions of int4 weights', function()
  cr.scope(function()
    local w = { weight = cuda.randn({ 24, 3, 3, 70 }, 'f32', 0.1), bias = cuda.randn({ 24 }, 'f16') }
    quant.quantize_layer(w, { format = 'int4' })
    local x = cuda.randn({ 2, 9, 11, 70 }, 'f16')
    near(nn.conv2d(card_layer(w, 'f16'), cuda.up(x, 'f16'), { padding = 1 }), nn.conv2d(w, x, { padding = 1 }), 'int4')
  end)
end)

-- Layers with quantized inputs; only their input formats matter.
local function taker(format, width, input)
  return { weight = cr.zeros({ 1, width }, { dtype = format == 'int8' and 'i8' or 'u8' }), scale = cr.ones { 1 }, input = input }
end

cuda.test('group norm, layer norm and GEGLU write quantized values', function()
  for _, format in ipairs { 'int8', 'fp8' } do
    for _, dtype in ipairs { 'f16', 'bf16', 'f32' } do
      for _, s in ipairs(cuda.cases { { 2, 6, 5, 64, 8 }, { 1, 64, 64, 320, 32 }, { 3, 7, 9, 36, 4 }, { 2, 128, 96, 128, 32 } }) do
        cr.scope(function()
          local n, h, wide, c, groups = unpack(s)
          local name = ('%s %s [%d %d %d %d]'):format(format, dtype, n, h, wide, c)
          local x, before = cuda.randn({ n, h, wide, c }, dtype), cuda.randn({ n, c }, dtype)
          local w = { weight = cuda.randn({ c }, dtype), bias = cuda.randn({ c }, dtype) }
          local card = { weight = cuda.up(w.weight, dtype), bias = cuda.up(w.bias, dtype) }
          local static, rows = taker(format, c, positive(c)), taker(format, c)
          for _, layer in ipairs { static, rows } do
            local on = card_layer(layer)
            local xc = cuda.up(x, dtype)
            local q = nn.group_norm(card, xc, groups, 1e-5, { silu = true, bias_before = cuda.up(before, dtype), codes = on })
            local r = nn.group_norm(w, x, groups, 1e-5, { silu = true, bias_before = before, codes = layer })
            near_codes(q, r, layer.input, name .. (layer.input and ' group norm' or ' group norm by rows'), dtype)
            near_codes(nn.layer_norm(card, xc, 1e-5, { codes = on }), nn.layer_norm(w, x, 1e-5, { codes = layer }), layer.input,
              name .. ' layer norm', dtype)
            local both = cuda.randn({ n, 5, 2 * c }, dtype)
            near_codes(nn.geglu(cuda.up(both, dtype), { codes = on }), nn.geglu(both, { codes = layer }), layer.input,
              name .. ' geglu', dtype)
          end
        end)
      end
    end
  end
end)

cuda.test('a product with GEGLU returns floats, or quantized values for the next layer', function()
  for _, s in ipairs(cuda.cases { { 257, 80, 64 }, { 1000, 320, 208 }, { 130, 640, 1280 }, { 5, 24, 10 } }) do
    cr.scope(function()
      local m, k, d = unpack(s)
      local w = { weight = cuda.randn({ 2 * d, k }, 'f32', 2 * k ^ -0.5), bias = cuda.randn({ 2 * d }, 'f16') }
      quant.quantize_layer(w)
      local x = cuda.randn({ m, k }, 'f16')
      local q = quant.quantize(x)
      local card, codes = card_layer(w, 'f16'), on_card(q, 'f16')
      local name = ('[%d %d] -> %d'):format(m, k, d)
      q.dtype = 'f32'
      near(nn.linear_geglu(card, codes), nn.linear_geglu(w, q), name)
      for _, format in ipairs { 'int8', 'fp8' } do
        local layer = taker(format, d, positive(d))
        near_codes(nn.linear_geglu(card, codes, { codes = card_layer(layer) }), nn.linear_geglu(w, q, { codes = layer }),
          layer.input, name .. ' ' .. format, 'coarse')
      end
    end)
  end
end)

cuda.test('an operation without a kernel on the GPU is refused in one sentence', function()
  local w = { weight = cr.zeros({ 8, 3, 3, 16 }, { dtype = 'u8', device = cuda.device }), scale = cr.ones({ 8 }, { device = cuda.device }),
    input = cr.ones({ 16 }, { device = cuda.device }) }
  local x = { codes = cr.zeros({ 1, 4, 4, 16 }, { dtype = 'u8', device = cuda.device }), dtype = 'f16' }
  t.raises(function() nn.conv2d(w, x, { padding = 1 }) end,
    'no convolutions in 8%-bit floating point on a card')
end)

-- A kernel that writes quantized values rounds to the dtype first, so they equal those of a separate pass bit for
-- bit.
cuda.test('attention writes quantized values of its result', function()
  local shapes = { -- leading dimensions, tokens, heads, head size: spatial, temporal, small ones that are not staged
    { { 2 }, 1023, 8, 40 }, { { 3 }, 257, 5, 80 }, { { 2 }, 65, 3, 160 }, { { 1 }, 100, 2, 24 }, { { 1 }, 130, 1, 512 },
    { { 2, 700 }, 16, 8, 40 }, { { 1, 3 }, 16, 2, 20 }, { { 5, 90 }, 23, 4, 80 },
  }
  for _, dtype in ipairs { 'f16', 'bf16' } do
    for _, s in ipairs(cuda.cases(shapes)) do
      cr.scope(function()
        local lead, tokens, heads, size = unpack(s)
        local shape = { unpack(lead) }
        shape[#shape + 1] = tokens
        shape[#shape + 1] = heads * size
        local function draw() return cuda.up(cuda.randn(shape), dtype) end
        local q, k, v = draw(), draw(), draw()
        local plain = nn.attention(q, k, v, { heads = heads })
        local divisor = positive(heads * size)
        for _, format in ipairs { 'int8', 'fp8' } do
          local layer = { weight = up(cr.zeros({ 16, heads * size }, { dtype = format == 'int8' and 'i8' or 'u8' })),
            scale = up(cr.ones(16)), input = up(divisor) }
          local got = nn.attention(q, k, v, { heads = heads, codes = layer })
          local want = quant.quantize(plain, { format = format, divisor = up(divisor), static = true })
          local name = ('%s %s [%s], %d heads'):format(format, dtype, table.concat(shape, ' '), heads)
          t.equal(got.scale, nil, name .. ': no scales')
          t.equal((got.codes:to 'cpu':to 'f32' - want.codes:to 'cpu':to 'f32'):abs():max():item(), 0, name)
        end
      end)
    end
  end
end)

cuda.test('attention over frames writes quantized values to the right places', function()
  cr.scope(function()
    local B, F, T, C = 2, 16, 301, 320
    local x = cuda.up(cuda.randn { B, F, T, 3 * C }, 'f16')
    local function part(i) return x:narrow(4, (i - 1) * C + 1, C):transpose(2, 3) end
    local layer = { weight = up(cr.zeros({ 16, C }, { dtype = 'i8' })), scale = up(cr.ones(16)), input = up(positive(C)) }
    local numbers = cr.empty({ B, F, T, C }, { dtype = 'f16', device = cuda.device })
    nn.attention(part(1), part(2), part(3), { heads = 8, out = numbers:transpose(2, 3) })
    local codes = cr.empty({ B, F, T, C }, { dtype = 'i8', device = cuda.device })
    nn.attention(part(1), part(2), part(3), { heads = 8, out = codes:transpose(2, 3), codes = layer })
    local want = quant.quantize(numbers, { divisor = layer.input, static = true }).codes
    t.equal((codes:to 'cpu':to 'f32' - want:to 'cpu':to 'f32'):abs():max():item(), 0)
    t.ok(want:to 'cpu':to 'f32':abs():max():item() > 20, 'the codes are of some size')
  end)
end)

t.done()
