--- Quantization on the CPU: every rounding compared with its definition, int8 products and convolutions exactly with
--- integers in float64, the others with float64 on the dequantized values.

local ffi = require 'ffi'
local cr = require 'cr'
local nn = require 'cr.nn'
local quant = require 'cr.quant'
local t = require 'tests.support.tap'
local table_of = require 'tests.support.fp8_table'

local nan = 0 / 0

local function filled(values)
  local x = cr.empty({ 1, #values }, { dtype = 'f32' })
  local p = x:pointer()
  for i, v in ipairs(values) do p[i - 1] = v end
  return x
end

local function same(a, b, message)
  t.equal(table.concat(a.shape, ' '), table.concat(b.shape, ' '), message)
  t.equal(a:numel() == 0 and 0 or (a:to 'f64' - b:to 'f64'):abs():max():item(), 0, message)
end

local function codes_of(values, format)
  return quant.quantize(filled(values), { format = format, divisor = cr.ones(#values), static = true }).codes
end

local function listed(codes)
  local p, got = codes:pointer(), {}
  for i = 1, codes:numel() do got[i] = p[i - 1] end
  return table.concat(got, ' ')
end

t.test('E4M3: all f16 numbers and all midpoints round to nearest, ties to even', function()
  local values, want = table_of.cases()
  local p, wrong, first = codes_of(values, 'fp8'):pointer(), 0, nil
  for i, v in ipairs(values) do
    if p[i - 1] ~= want[i] then
      wrong = wrong + 1
      first = first or ('%.9g: code %d, not %d'):format(v, p[i - 1], want[i])
    end
  end
  t.ok(#values > 60000, 'there are many')
  t.ok(wrong == 0, ('%d of %d are wrong: %s'):format(wrong, #values, first or ''))
end)

t.test('E4M3: large values become 448, NaN stays NaN', function()
  local codes = codes_of({ 448, 463.99, 464, 1e6, -1e30, math.huge, -math.huge, nan, -0.0 }, 'fp8')
  t.equal(listed(codes), '126 126 126 126 254 126 254 127 128')
end)

t.test('E4M3: dequantization', function()
  local codes = cr.arange(0, 255, 1, { dtype = 'i32' }):to 'u8':view(2, 128)
  local y = quant.dequantize({ codes = codes, scale = cr.tensor { 1, 2 } })
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

t.test('int8: round to nearest, ties to even, at most 127, NaN becomes 0', function()
  local codes = codes_of({ 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e30, -126.5, -127.5, -1e30, math.huge, -math.huge, nan }, 'int8')
  t.equal(codes.dtype, 'i8')
  t.equal(listed(codes), '0 2 2 0 -2 126 127 127 -126 -127 -127 127 -127 0')
  local values = {}
  for i = 1, 4001 do values[i] = (i - 2001) / 16 + (i % 7 - 3) * 1e-4 end
  local p, wrong = codes_of(values, 'int8'):pointer(), 0
  for i, v in ipairs(values) do
    local want = math.max(-127, math.min(127, math.floor(v + 0.5)))
    if math.abs(v) % 1 ~= 0.5 and p[i - 1] ~= want then wrong = wrong + 1 end
  end
  t.equal(wrong, 0)
end)

t.test('scales come from the largest magnitude of a row', function()
  for format, most in pairs { fp8 = 448, int8 = 127 } do
    local x = cr.tensor { { 1, -7, 2 }, { 0, 0, 0 }, { 1e-3, 0, 5e-4 } }
    local q = quant.quantize(x, { format = format })
    local s = q.scale:pointer()
    local function f32(v) return tonumber(ffi.new('float', v)) end
    t.equal(s[0], f32(7 / most), format)
    t.equal(s[2], f32(f32(1e-3) / most), format)
    local y = quant.dequantize(q)
    t.near(y:narrow(1, 2, 1), cr.zeros(1, 3), 0)
    t.ok((y - x):abs():max():item() <= (format == 'fp8' and 7 / 28 or 7 / 254 * 1.0001), format .. ': half a step at most')
  end
end)

t.test('NaN and infinity are visible in the result', function()
  local x = cr.tensor { { 1, nan }, { 1, math.huge }, { 1, 2 } }
  local z = quant.dequantize(quant.quantize(x, { format = 'fp8' })):pointer()
  t.ok(z[0] == 1 and z[1] ~= z[1], 'E4M3: a nan is alone')
  t.ok(z[2] ~= z[2] and z[3] ~= z[3], 'E4M3: an infinity takes its row along')
  t.ok(z[4] == 1 and z[5] == 2, 'E4M3: the others are as they were')
  local y = quant.dequantize(quant.quantize(x)):pointer()
  for i = 0, 3 do t.ok(y[i] ~= y[i], 'int8: a row has one scale') end
  t.near(quant.dequantize(quant.quantize(x)):narrow(1, 3, 1), cr.tensor { { 1, 2 } }, 1e-2)
end)

t.test('smoothing divisors, with and without scales', function()
  local x, divisor = cr.randn(5, 33), cr.rand(33) + 0.5
  for _, format in ipairs { 'int8', 'fp8' } do
    local inverse = cr.ones(33) / divisor
    local q, r = quant.quantize(x, { format = format, divisor = divisor }), quant.quantize(x * inverse, { format = format })
    same(q.codes, r.codes, format)
    same(q.scale, r.scale, format)
    local fixed = quant.quantize(x, { format = format, divisor = divisor / 20, static = true })
    t.ok(fixed.scale == nil, format)
    t.near(quant.dequantize(fixed, { divisor = divisor / 20 }), x, format == 'int8' and 0.06 or 0.3, format)
  end
end)

t.test('any strides, float types and ranks', function()
  local x = cr.randn(6, 5, 4)
  for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
    for _, format in ipairs { 'int8', 'fp8' } do
      local y = x:to(dtype)
      local q = quant.quantize(y:transpose(1, 3), { format = format })
      local r = quant.quantize(y:transpose(1, 3):contiguous():to 'f32', { format = format })
      t.equal(table.concat(q.scale.shape, ' '), '4 5')
      same(q.codes, r.codes, dtype .. ' ' .. format)
      same(q.scale, r.scale, dtype .. ' ' .. format)
      t.equal(quant.dequantize(q).dtype, dtype)
    end
  end
  local q = quant.quantize(cr.tensor { 3, 6 }, { format = 'fp8' })
  t.equal(#q.scale.shape, 0)
  t.near(quant.dequantize(q), cr.tensor { 3, 6 }, 1e-6)
  t.equal(table.concat(quant.quantize(cr.zeros(0, 8)).codes.shape, ' '), '0 8')
end)

-- ---- products -----------------------------------------------------------------------------------

local function wide(x) return x and x:to 'f64' end

-- Integers -n .. n as f32.
local function whole(n, ...) return (cr.rand(...) * (2 * n + 1) - n - 0.5):round() end

local function activated(y, act)
  return act and nn[act](y) or y
end

t.test('products of int8 are exact', function()
  for _, size in ipairs { { 1, 16, 16 }, { 3, 17, 5 }, { 33, 64, 48 }, { 7, 1, 1 }, { 129, 320, 33 }, { 65, 515, 70 } } do
    local m, k, n = unpack(size)
    cr.scope(function()
      local a, b = whole(127, m, k), whole(127, n, k)
      local w = { weight = b:to 'i8', scale = cr.ones(n) }
      local y = nn.linear(w, { codes = a:to 'i8', dtype = 'f32' })
      -- f32 represents such sums with 24 bits: the sums are exact, and rounded once.
      same(y, nn.linear({ weight = wide(b) }, wide(a)):to 'f32', ('%d %d %d'):format(m, k, n))
    end)
  end
end)

t.test('epilogues of int8 products', function()
  for _, act in ipairs { 'none', 'silu', 'gelu', 'relu' } do
    for _, dynamic in ipairs { false, true } do
      cr.scope(function()
        local m, k, n = 19, 45, 23
        local a, b, scale, rows = whole(127, m, k), whole(127, n, k), cr.rand(n) * 1e-3 + 1e-4, cr.rand(m) + 0.5
        local bias, residual = cr.randn(n), cr.randn(m, n)
        local w = { weight = b:to 'i8', scale = scale, bias = bias }
        local q = { codes = a:to 'i8', scale = dynamic and rows or nil, dtype = 'f32' }
        local y = nn.linear(w, q, { act = act ~= 'none' and act or nil, residual = residual })
        local sums = nn.linear({ weight = wide(b) }, wide(a)) * wide(scale)
        if dynamic then sums = sums * wide(rows):view(m, 1) end
        local want = activated(sums + wide(bias), act ~= 'none' and act) + wide(residual)
        t.near(wide(y), want, 1e-5, act .. (dynamic and ', rows' or ''))
        nn.linear(w, q, { act = act ~= 'none' and act or nil, residual = residual, out = residual })
        t.near(wide(residual), want, 1e-5, act .. ' in place')
        q.dtype = 'bf16'
        t.equal(nn.linear(w, q).dtype, 'bf16')
      end)
    end
  end
end)

t.test('convolutions of int8 are exact', function()
  local cases = {
    { x = { 1, 5, 7, 3 }, w = { 4, 3, 3, 3 }, o = { padding = 1 } },
    { x = { 2, 9, 6, 16 }, w = { 32, 3, 3, 16 }, o = { padding = 1, stride = 2 } },
    { x = { 2, 8, 8, 33 }, w = { 17, 2, 2, 33 }, o = { padding = 1 } },
    { x = { 1, 6, 6, 8 }, w = { 6, 1, 1, 8 }, o = {} },
    { x = { 1, 9, 7, 8 }, w = { 12, 3, 3, 4 }, o = { padding = { 0, 1, 0, 2 }, groups = 2 } },
    { x = { 1, 11, 9, 5 }, w = { 7, 3, 2, 5 }, o = { padding = { 2, 1 }, dilation = { 2, 1 }, stride = { 1, 3 } } },
    { x = { 1, 16, 16, 96 }, w = { 64, 3, 3, 96 }, o = { padding = 1 } },
  }
  for i, case in ipairs(cases) do
    cr.scope(function()
      local x, weight = whole(127, unpack(case.x)), whole(127, unpack(case.w))
      local n = case.w[1]
      local w = { weight = weight:to 'i8', scale = cr.ones(n) }
      local q = { codes = x:to 'i8', dtype = 'f32' }
      local sums = nn.conv2d({ weight = wide(weight) }, wide(x), case.o)
      same(nn.conv2d(w, q, case.o), sums:to 'f32', 'case ' .. i)
      local scale, bias, residual = cr.rand(n) * 1e-3, cr.randn(n), cr.randn(sums.shape)
      w.scale, w.bias = scale, bias
      for _, act in ipairs { false, 'silu', 'gelu', 'relu' } do
        local o = { residual = residual, act = act or nil }
        for key, v in pairs(case.o) do o[key] = v end
        t.near(wide(nn.conv2d(w, q, o)), activated(sums * wide(scale) + wide(bias), act) + wide(residual), 1e-5,
          ('case %d %s'):format(i, act or 'none'))
      end
    end)
  end
end)

t.test('products and convolutions of E4M3 and int4 use the dequantized values', function()
  for _, size in ipairs { { 1, 16, 16 }, { 3, 18, 5 }, { 33, 64, 48 }, { 7, 2, 1 }, { 129, 320, 33 } } do
    local m, k, n = unpack(size)
    for _, format in ipairs { 'fp8', 'int4' } do
      cr.scope(function()
        local w = { weight = cr.randn(n, k), bias = cr.randn(n) }
        local x, residual = cr.randn(m, k), cr.randn(m, n)
        quant.quantize_layer(w, { format = format })
        t.equal(quant.format(w), format)
        local q = format == 'fp8' and quant.quantize(x, { format = format }) or nil
        local a = q and wide(quant.dequantize(q)) or wide(x)
        local plain = { weight = wide(quant.dequantize(w)), bias = wide(w.bias) }
        for _, act in ipairs { 'silu', 'gelu', 'relu' } do
          local want = nn.linear(plain, a, { act = act, residual = wide(residual) })
          local name = ('%s %d %d %d %s'):format(format, m, k, n, act)
          t.near(wide(nn.linear(w, x, { act = act, residual = residual })), want, 1e-5, name)
          if q then t.near(wide(nn.linear(w, q, { act = act, residual = residual })), want, 1e-5, name .. ', quantized before') end
        end
        w.weight:free()
        w.scale:free()
      end)
    end
  end
  for _, format in ipairs { 'fp8', 'int4' } do
    cr.scope(function()
      local input = cr.rand(70) * 0.01 + 0.01
      local w = { weight = cr.randn(9, 3, 3, 70), bias = cr.randn(9) }
      local x = cr.randn(2, 5, 6, 70)
      quant.quantize_layer(w, { format = format, input = format == 'fp8' and input or nil })
      local a, weight = x, quant.dequantize(w)
      if format == 'fp8' then
        a = quant.dequantize(quant.quantize(x, { format = 'fp8', divisor = input, static = true }), { divisor = input })
        weight = weight / input
      end
      t.near(wide(nn.conv2d(w, x, { padding = 1 })),
        nn.conv2d({ weight = wide(weight), bias = wide(w.bias) }, wide(a), { padding = 1 }), 1e-5, format)
      for _, name in ipairs { 'weight', 'scale', 'input' } do if w[name] then w[name]:free() end end
    end)
  end
end)

t.test('4 bits: packed, and a large weight in blocks', function()
  cr.scope(function()
    local codes = whole(8, 3, 10):clamp(-8, 7)
    local packed = quant.pack4(codes)
    t.equal(table.concat(packed.shape, ' '), '3 5')
    same(quant.dequantize { weight = packed, scale = cr.ones(3, 1) }, codes, 'there and back')
    t.raises(function() quant.pack4(cr.ones(2, 3)) end, 'the last dimension of %[2 3%] is not even')
    t.raises(function() quant.pack4(cr.full({ 2, 2 }, 8)) end, 'from %-8 to 7')
    local w = { weight = cr.randn(700, 1000) }
    quant.quantize_layer(w, { format = 'int4' })
    t.equal(table.concat(w.scale.shape, ' '), '700 16')
    local x = cr.randn(3, 1000)
    t.near(nn.linear(w, x), nn.linear({ weight = quant.dequantize(w) }, x), 1e-4)
    w.weight:free()
    w.scale:free()
  end)
end)

-- ---- layers -------------------------------------------------------------------------------------

local function free_layer(w)
  for _, name in ipairs { 'weight', 'scale', 'input', 'smooth' } do
    if rawget(w, name) then w[name]:free() end
  end
end

t.test('the error of a layer', function()
  local most = { int8 = 0.02, fp8 = 0.05, int4 = 0.16 }
  for format, bound in pairs(most) do
    for _, how in ipairs { 'rows', 'smooth', 'input' } do
      if how == 'rows' or format ~= 'int4' then
        cr.scope(function()
          local x = cr.randn(100, 320)
          local w = { weight = cr.randn(64, 320), bias = cr.randn(64) }
          local y = nn.linear(w, x)
          local spread = cr.rand(320) * 0.2 + 0.9
          quant.quantize_layer(w, { format = format, smooth = how == 'smooth' and spread or nil,
            input = how == 'input' and spread * (4 / (format == 'int8' and 127 or 448)) or nil })
          local off = t.relative_error(nn.linear(w, x), y)
          t.ok(off > bound / 8 and off < bound, ('%s %s: off by %.4f'):format(format, how, off))
          free_layer(w)
        end)
      end
    end
  end
end)

t.test('a low-rank branch beside a quantized weight', function()
  for _, format in ipairs { 'int8', 'fp8', 'int4' } do
    cr.scope(function()
      local w = { weight = cr.randn(24, 64), bias = cr.randn(24) }
      quant.quantize_layer(w, { format = format })
      local x, residual = cr.randn(11, 64), cr.randn(11, 24)
      local low = { weight = cr.randn(4, 64) }
      local up = { weight = cr.randn(24, 4) }
      for _, act in ipairs { false, 'silu' } do
        local branch = nn.linear(up, nn.linear(low, x))
        local want = activated(nn.linear(w, x) + branch, act) + residual
        local both = { weight = w.weight, scale = w.scale, bias = w.bias, down = low.weight, up = up.weight }
        t.ok(quant.takes(both) == nil, 'it takes numbers')
        t.near(nn.linear(both, x, { act = act or nil, residual = residual }), want, 1e-4, format .. (act or ''))
        local out = cr.empty { 11, 24 }
        nn.linear(both, x, { act = act or nil, residual = residual, out = out })
        t.near(out, want, 1e-4, format .. ' into a tensor')
      end
      free_layer(w)
    end)
  end
  cr.scope(function()
    local w = { weight = cr.randn(6, 3, 3, 8) }
    local x = cr.randn(1, 7, 7, 8)
    quant.quantize_layer(w, { input = cr.full({ 8 }, 4 / 127) })
    local down, up = cr.randn(2, 3, 3, 8), cr.randn(6, 2)
    local o = { padding = 1, stride = 2 }
    local want = nn.conv2d(w, x, o) + nn.linear({ weight = up }, nn.conv2d({ weight = down }, x, o))
    t.near(nn.conv2d({ weight = w.weight, scale = w.scale, input = w.input, down = down, up = up }, x, o), want, 1e-4)
    free_layer(w)
  end)
end)

t.test('operations produce the format that the next layer takes', function()
  local groups = 4
  for _, format in ipairs { 'int8', 'fp8' } do
    for _, how in ipairs { 'rows', 'smooth', 'input' } do
      for _, dtype in ipairs { 'f32', 'bf16' } do
        cr.scope(function()
          local divisor = cr.rand(32) * 0.05 + 0.02
          local w = { weight = cr.randn(16, 32) }
          quant.quantize_layer(w, { format = format, smooth = how == 'smooth' and divisor or nil,
            input = how == 'input' and divisor or nil })
          local norm = { weight = cr.randn(32), bias = cr.randn(32) }
          local name = table.concat({ format, how, dtype }, ' ')
          -- The value was rounded to x's dtype before, so at a tie the code may differ.
          local function matches(q, y, what)
            t.equal(q.dtype, dtype)
            local r = quant.for_layer(w, y)
            t.equal(q.scale == nil, how == 'input')
            t.equal(q.codes.dtype, r.codes.dtype)
            local a, b = quant.dequantize(q, { dtype = 'f32' }), quant.dequantize(r, { dtype = 'f32' })
            t.ok((a - b):abs():max():item() <= b:abs():max():item() * (dtype == 'f32' and 1e-5 or 0.13), name .. ' ' .. what)
          end
          local x = cr.randn(2, 6, 4, 32):to(dtype)
          local same_x = x:to 'f32'
          matches(nn.layer_norm(norm, x, nil, { codes = w }), nn.layer_norm(norm, same_x), 'layer norm')
          local after = cr.randn(6, 1, 32)
          matches(nn.layer_norm(norm, x, 1e-3, { codes = w, after = after }), nn.layer_norm(norm, same_x, 1e-3, { after = after }),
            'layer norm, position')
          matches(nn.layer_norm({}, x, nil, { codes = w }), nn.layer_norm({}, same_x), 'layer norm alone')
          local before = cr.randn(2, 32)
          matches(nn.group_norm(norm, x, groups, 1e-5, { codes = w, silu = true, bias_before = before }),
            nn.group_norm(norm, same_x, groups, 1e-5, { silu = true, bias_before = before }), 'group norm')
          matches(nn.group_norm(norm, x, groups, 1e-5, { codes = w }), nn.group_norm(norm, same_x, groups, 1e-5), 'group norm alone')
          local two = cr.randn(2, 5, 64):to(dtype)
          matches(nn.geglu(two, { codes = w }), nn.geglu(two:to 'f32'), 'geglu')
          local k = cr.randn(2, 5, 32):to(dtype)
          matches(nn.attention(k, k, k, { heads = 2, codes = w }),
            nn.attention(k:to 'f32', k:to 'f32', k:to 'f32', { heads = 2 }), 'attention')
          if how == 'input' then
            local row = cr.zeros({ 2, 5, 48 }, { dtype = w.weight.dtype })
            nn.attention(k, k, k, { heads = 2, codes = w, out = row:narrow(3, 9, 32) })
            local into = { codes = row:narrow(3, 9, 32):contiguous(), dtype = dtype }
            matches(into, nn.attention(k:to 'f32', k:to 'f32', k:to 'f32', { heads = 2 }), 'attention into a view')
            t.equal(row:narrow(3, 1, 8):to('f32'):abs():sum():item(), 0)
          else
            t.raises(function() nn.attention(k, k, k, { heads = 2, codes = w, out = cr.zeros({ 2, 5, 32 }, { dtype = 'i8' }) }) end,
              'only if the layer has an `input`')
          end
          free_layer(w)
        end)
      end
    end
  end
end)

t.test('a layer that takes floats gets floats', function()
  cr.scope(function()
    local plain, four = { weight = cr.randn(8, 32) }, { weight = cr.randn(8, 32) }
    quant.quantize_layer(four, { format = 'int4' })
    local x = cr.randn(3, 32)
    for _, w in ipairs { plain, four } do
      t.ok(cr.is_tensor(nn.layer_norm({}, x, nil, { codes = w })))
      t.ok(cr.is_tensor(nn.group_norm({}, x, 4, 1e-5, { codes = w })))
      t.ok(cr.is_tensor(nn.geglu(cr.randn(3, 64), { codes = w })))
      t.ok(cr.is_tensor(nn.attention(x, x, x, { codes = w })))
      t.ok(quant.takes(w) == nil)
    end
    free_layer(four)
  end)
end)

t.test('a convolution after nearest-neighbour upsampling', function()
  cr.scope(function()
    local w = { weight = cr.randn(8, 3, 3, 16) * 0.1, bias = cr.randn(8) }
    w.folded = { weight = require 'cr.nn.upsample'.fold(w.weight), bias = cr.cat({ w.bias, w.bias, w.bias, w.bias }, 1) }
    local x = cr.randn(1, 6, 5, 16)
    local y = nn.upsample_conv2d(w, x)
    quant.quantize_layer(w, { input = cr.full({ 16 }, 4 / 127) })
    t.equal(quant.format(w.folded), 'int8')
    local off = t.relative_error(nn.upsample_conv2d(w, x), y)
    t.ok(off > 1e-4 and off < 0.02, 'folded: off by ' .. off)
    w.folded.weight:free()
    w.folded.scale:free()
    w.folded = nil
    off = t.relative_error(nn.upsample_conv2d(w, x), y)
    t.ok(off > 1e-4 and off < 0.02, 'as it is: off by ' .. off)
    free_layer(w)
  end)
end)

t.test('wrong arguments are reported', function()
  local x = cr.randn(3, 8)
  local q = quant.quantize(x, { format = 'fp8' })
  local w = { weight = q.codes, scale = q.scale }
  t.raises(function() nn.linear(w, cr.randn(2, 7)) end, 'quant_linear: inner sizes differ or are 0: %[2 7%] x weight %[3 8%]')
  t.raises(function() nn.linear(w, cr.randn(2, 8, { dtype = 'f64' })) end, 'f64 is not handled')
  t.raises(function() nn.linear({ weight = q.codes, scale = cr.ones(2) }, cr.randn(2, 8)) end,
    'codes %[3 8%] need a scale for each row, not %[2%]')
  t.raises(function() nn.linear({ weight = q.codes:to 'i32', scale = q.scale }, q) end,
    'codes must be u8 or i8 and scales f32, not i32 and f32')
  t.raises(function() nn.linear(w, quant.quantize(x)) end, 'a weight of u8 codes takes inputs of the same codes, not i8')
  t.raises(function() quant.quantize(cr.ones(2, 2, { dtype = 'i32' })) end, 'quantize')
  t.raises(function() quant.quantize(cr.ones(2, 3), { divisor = cr.ones(2) }) end, 'the divisor must be f32 %[3%], not f32 %[2%]')
  t.raises(function() quant.quantize(x, { static = true }) end, 'codes need scales or a divisor')
  t.raises(function() nn.geglu(cr.ones(2, 3), { codes = w }) end, 'is not even')
  t.raises(function() nn.layer_norm({ weight = cr.ones(2) }, cr.ones(2, 3), nil, { codes = w }) end, 'weight must be %[3%]')
  t.raises(function() nn.linear({ weight = cr.ones(3, 8) }, q) end, 'a tensor is needed, not a table')
  t.raises(function() nn.conv2d({ weight = cr.ones(3, 1, 1, 8) }, q) end, 'a tensor is needed, not a table')
  local conv = { weight = cr.zeros({ 4, 3, 3, 8 }, { dtype = 'i8' }), scale = cr.ones(4) }
  local picture = cr.ones(1, 5, 5, 8)
  t.raises(function() nn.conv2d(conv, picture) end, 'a convolution in 8 bits needs an `input`')
  conv.input = cr.ones(7)
  t.raises(function() nn.conv2d(conv, picture) end, 'the divisor must be f32 %[8%]')
  conv.input = cr.ones(8)
  t.raises(function() nn.conv2d(conv, picture, { slope = cr.ones(4) }) end, 'no PReLU')
  t.raises(function() nn.conv2d(conv, cr.ones(1, 2, 5, 8)) end, 'quant_conv2d: the window of weight')
  t.raises(function() nn.conv2d(conv, picture, { residual = cr.ones(1, 5, 5, 4) }) end, 'the residual %[1 5 5 4%] is not %[1 3 3 4%]')
  t.raises(function() nn.linear({ weight = cr.zeros({ 4, 4 }, { dtype = 'u8' }), scale = cr.ones(4, 2) }, x) end,
    '%[4 4%] has two codes per byte and needs a scale for each 64 of them, not %[4 2%]')
  t.raises(function() nn.linear({ weight = cr.zeros({ 4, 4 }, { dtype = 'u8' }), scale = cr.ones(4, 1) }, q) end, 'a tensor is needed')
  t.raises(function() nn.linear({ weight = cr.zeros({ 1, 131073 }, { dtype = 'i8' }), scale = cr.ones(1) }, cr.ones(1, 131073)) end,
    'a sum must have at most 131072 products to be exact')
  t.raises(function() quant.quantize_layer { weight = cr.ones(2, 3, 3, 4) } end, 'a convolution needs an input')
  t.raises(function() quant.quantize_layer({ weight = cr.ones(2, 4) }, { input = cr.ones(4), smooth = cr.ones(4) }) end,
    'give only one of the two')
  t.raises(function() quant.quantize_layer({ weight = cr.ones(2, 4) }, { format = 'int4', smooth = cr.ones(4) }) end,
    'int4 does not quantize the input')
  t.raises(function() quant.quantize_layer({ weight = cr.ones(2, 4) }, { format = 'int5' }) end, "there is no format 'int5'")
  local ok, why = quant.available('cpu', 'fp8')
  t.ok(not ok and why:find 'not a CPU' ~= nil, why)
  t.ok(quant.available('cpu', 'int8'))
end)

-- If oneDNN may not use VNNI, the plain loops run; bf16 conversions, too.
t.test('on a CPU with fewer instructions', function()
  if os.getenv 'ONEDNN_MAX_CPU_ISA' then t.skip 'this is that run' end
  local run = require 'tests.support.child'.run({ 'tests/quant_test.lua' }, { env = { ONEDNN_MAX_CPU_ISA = 'AVX2' } })
  t.equal(run.code, 0, run.out)
end)

t.done()
