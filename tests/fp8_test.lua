--- 8-bit floating point on the CPU: every rounding against a table made from the format's definition, products
--- against float64 of the very numbers that the codes stand for.

local ffi = require 'ffi'
local cr = require 'cr'
local fp8 = require 'cr.fp8'
local nn = require 'cr.nn'
local t = require 'tests.support.tap'
local table_of = require 'tests.support.fp8_table'

local nan = 0 / 0

local function filled(values, dtype)
  local x = cr.empty({ 1, #values }, { dtype = 'f32' })
  local p = x:pointer()
  for i, v in ipairs(values) do p[i - 1] = v end
  return dtype and x:to(dtype) or x
end

local one = function() return cr.ones(1) end

t.test('codes of all halves and of all midpoints are the nearest, ties to even', function()
  local values, want = table_of.cases()
  local q = fp8.quantize(filled(values), one())
  local p, wrong, first = q.codes:pointer(), 0, nil
  for i, v in ipairs(values) do
    if p[i - 1] ~= want[i] then
      wrong = wrong + 1
      first = first or ('%.9g: code %d, not %d'):format(v, p[i - 1], want[i])
    end
  end
  t.ok(#values > 60000, 'there are many')
  t.ok(wrong == 0, ('%d of %d are wrong: %s'):format(wrong, #values, first or ''))
end)

t.test('what is too large becomes 448, nan stays', function()
  local q = fp8.quantize(filled { 448, 463.99, 464, 1e6, -1e30, math.huge, -math.huge, nan, -0.0 }, one())
  local p = q.codes:pointer()
  local got = {}
  for i = 0, 8 do got[i + 1] = p[i] end
  t.equal(table.concat(got, ' '), '126 126 126 126 254 126 254 127 128')
end)

t.test('codes back to numbers', function()
  local codes = cr.arange(0, 255, 1, { dtype = 'i32' }):to 'u8':view(2, 128)
  local y = fp8.dequantize({ codes = codes, scale = cr.tensor { 1, 2 } }, 'f32')
  local p, wrong = y:pointer(), 0
  for code = 0, 255 do
    local want = table_of.numbers[code % 128]
    local got = p[code]
    if code >= 128 then want = want and -2 * want end
    local good = want and got == want or not want and got ~= got
    if not good then wrong = wrong + 1 end
  end
  t.equal(wrong, 0)
end)

t.test('scales are of the largest magnitude of a row', function()
  local x = cr.tensor { { 1, -7, 2 }, { 0, 0, 0 }, { 1e-3, 0, 5e-4 } }
  local q = fp8.quantize(x)
  local s = q.scale:pointer()
  local function f32(v) return tonumber(ffi.new('float', v)) end
  t.equal(s[0], f32(7 / 448))
  t.equal(s[2], f32(f32(1e-3) / 448))
  local y = fp8.dequantize(q)
  t.near(y:narrow(1, 2, 1), cr.zeros(1, 3), 0)
  t.ok((y - x):abs():max():item() <= 7 / 28, 'half a step of 3 bits at most')
  local bad = fp8.quantize(cr.tensor { { 1, nan }, { 1, math.huge }, { 1, 2 } })
  local z = fp8.dequantize(bad):pointer()
  t.ok(z[0] == 1 and z[1] ~= z[1], 'a nan is alone')
  t.ok(z[2] ~= z[2] and z[3] ~= z[3], 'an infinity takes its row along')
  t.ok(z[4] == 1 and z[5] == 2, 'the others are as they were')
end)

t.test('any strides, float types and ranks', function()
  local x = cr.randn(6, 5, 4)
  for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
    local y = x:to(dtype)
    local q, r = fp8.quantize(y:transpose(1, 3)), fp8.quantize(y:transpose(1, 3):contiguous():to 'f32')
    t.equal(table.concat(q.scale.shape, ' '), '4 5')
    t.ok((q.codes:to 'f32' - r.codes:to 'f32'):abs():max():item() == 0 and (q.scale - r.scale):abs():max():item() == 0, dtype)
    t.equal(fp8.dequantize(q).dtype, dtype)
  end
  local q = fp8.quantize(cr.tensor { 3, 6 })
  t.equal(#q.scale.shape, 0)
  t.near(fp8.dequantize(q), cr.tensor { 3, 6 }, 1e-6)
  t.equal(table.concat(fp8.quantize(cr.zeros(0, 8)).codes.shape, ' '), '0 8')
end)

--- The product of the numbers that the codes stand for, in float64.
local function reference(qx, w, options)
  local function wide(x) return x and x:to 'f64' end
  local a = fp8.dequantize(qx, 'f32'):to 'f64'
  local b = fp8.dequantize({ codes = w.weight, scale = w.scale }, 'f32'):to 'f64'
  return nn.linear({ weight = b, bias = wide(w.bias) }, a, { act = options.act, residual = wide(options.residual) })
end

t.test('products are those of the numbers', function()
  for _, size in ipairs { { 1, 16, 16 }, { 3, 17, 5 }, { 33, 64, 48 }, { 7, 1, 1 }, { 129, 320, 33 } } do
    local m, k, n = unpack(size)
    for _, act in ipairs { 'none', 'silu', 'gelu', 'relu' } do
      cr.scope(function()
        local w = { weight = cr.randn(n, k), bias = cr.randn(n) }
        local x, residual = cr.randn(m, k), cr.randn(m, n)
        fp8.quantize_layer(w)
        local options = { act = act ~= 'none' and act or nil, residual = residual }
        local q = fp8.quantize(x)
        local y = reference(q, w, options)
        local name = ('%d %d %d %s'):format(m, k, n, act)
        t.near(nn.linear(w, x, options):to 'f64', y, 1e-5, name)
        t.near(nn.linear(w, q, options):to 'f64', y, 1e-5, name .. ', quantized before')
        options.out = residual
        nn.linear(w, x, options)
        t.near(residual:to 'f64', y, 1e-5, name .. ', in place')
        w.weight:free()
        w.scale:free()
      end)
    end
  end
  local w = { weight = cr.randn(4, 8) }
  fp8.quantize_layer(w)
  t.equal(nn.linear(w, cr.randn(2, 8, { dtype = 'f16' })).dtype, 'f16')
  t.equal(nn.linear(w, fp8.quantize(cr.randn(2, 8, { dtype = 'bf16' }))).dtype, 'bf16')
  w.weight:free()
  w.scale:free()
end)

t.test('a product loses about 4 %', function()
  local w, x = { weight = cr.randn(64, 320) }, cr.randn(100, 320)
  local y = nn.linear(w, x)
  fp8.quantize_layer(w)
  local off = ((nn.linear(w, x) - y):square():sum():item() / y:square():sum():item()) ^ 0.5
  t.ok(off > 0.01 and off < 0.05, ('off by %.3f'):format(off))
  w.weight:free()
  w.scale:free()
end)

t.test('geglu and layer norm on the way', function()
  local x = cr.randn(2, 6, 4, 32)
  local function same(q, y, name)
    local r = fp8.quantize(y)
    t.near(fp8.dequantize(q), fp8.dequantize(r), 1e-6, name)
  end
  same(fp8.geglu(x), nn.geglu(x), 'geglu')
  local w = { weight = cr.randn(32), bias = cr.randn(32) }
  same(fp8.layer_norm(w, x), nn.layer_norm(w, x), 'layer norm')
  local after = cr.randn(6, 1, 32)
  same(fp8.layer_norm(w, x, 1e-3, { after = after }), nn.layer_norm(w, x, 1e-3, { after = after }), 'layer norm, position')
  same(fp8.layer_norm({}, x), nn.layer_norm({}, x), 'layer norm alone')
end)

t.test('what is wrong is said', function()
  local q = fp8.quantize(cr.randn(3, 8))
  local w = { weight = q.codes, scale = q.scale }
  t.raises(function() nn.linear(w, cr.randn(2, 7)) end, 'fp8_linear: inner sizes differ or are 0: %[2 7%] x weight %[3 8%]')
  t.raises(function() nn.linear(w, cr.randn(2, 8, { dtype = 'f64' })) end, 'f64 is not handled')
  t.raises(function() nn.linear({ weight = q.codes, scale = cr.ones(2) }, cr.randn(2, 8)) end,
    'codes %[3 8%] need a scale for each row, not %[2%]')
  t.raises(function() nn.linear({ weight = q.codes:to 'i32', scale = q.scale }, cr.randn(2, 8)) end,
    'codes are u8 and scales f32, not i32 and f32')
  t.raises(function() fp8.quantize(cr.ones(2, 2, { dtype = 'i32' })) end, 'fp8_quantize')
  t.raises(function() fp8.quantize(cr.ones(2, 3), cr.ones(3)) end, 'a scale for each row')
  t.raises(function() fp8.geglu(cr.ones(2, 3)) end, 'is not even')
  t.raises(function() fp8.layer_norm({ weight = cr.ones(2) }, cr.ones(2, 3)) end, 'weight must be %[3%], not %[2%]')
  t.raises(function() nn.linear({ weight = cr.ones(3, 8) }, q) end, 'a tensor is needed, not a table')
  local ok, why = fp8.available 'cpu'
  t.ok(not ok and why:find 'not a CPU' ~= nil, why)
end)

t.done()
