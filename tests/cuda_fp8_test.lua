--- FP8 on a GPU: quantized values equal the CPU's bit for bit; products are compared with float64 on exactly the
--- quantized values, at odd sizes, with every fused epilogue.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local environment = require 'tests.support.environment'
local fp8 = require 'tests.support.fp8'
local nn = require 'cr.nn'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local table_of = require 'tests.support.fp8_table'

local function down(q) return { codes = q.codes:to 'cpu', scale = q.scale:to 'cpu', dtype = 'f32' } end

--- Wraps a function that declares tests, for tests of products: only some GPUs have FP8 tensor cores.
local function on_fp8(test)
  return function(name, fn)
    test(name, function()
      local ok, why = fp8.available(cuda.device)
      if not ok then t.skip(why) end
      fn()
    end)
  end
end
local product_test = on_fp8(cuda.test)
local own_test, large_test = cuda.on_hopper(product_test), cuda.on_hopper(on_fp8(cuda.library_test))

cuda.test('quantization of all f16 numbers and of all midpoints', function()
  local values, want = table_of.cases()
  local x = cr.empty({ 1, #values }, { dtype = 'f32' })
  local p = x:pointer()
  for i, v in ipairs(values) do p[i - 1] = v end
  for _, dtype in ipairs { 'f32', 'f16' } do
    local n = dtype == 'f16' and 31 * 1024 * 2 or #values -- the midpoints are not f16 numbers
    local q = fp8.quantize(x:narrow(2, 1, n):to(dtype):to(cuda.device), cr.ones(1, { device = cuda.device }))
    local codes = q.codes:to 'cpu'
    local c, wrong = codes:pointer(), 0
    for i = 0, n - 1 do wrong = wrong + (c[i] ~= want[i + 1] and 1 or 0) end
    t.equal(wrong, 0, dtype)
  end
end)

local function same_codes(q, r, message)
  local a = down(q)
  t.equal((a.scale - r.scale):abs():max():item(), 0, message .. ': scales')
  t.equal((a.codes:to 'f32' - r.codes:to 'f32'):abs():max():item(), 0, message .. ': codes')
end

local WIDTHS = { 1, 3, 8, 17, 40, 64, 320, 328, 640, 648, 1000, 1280, 1288, 2560, 2561, 5120, 5128, 10240, 10248 }

cuda.test("quantized values and scales equal the CPU's", function()
  for _, dtype in ipairs { 'f16', 'bf16', 'f32' } do
    for _, width in ipairs(WIDTHS) do
      cr.scope(function()
        local x = cuda.randn({ 5, width }, dtype, 10 ^ (width % 7 - 3))
        local name = ('%s [5 %d]'):format(dtype, width)
        local xc = cuda.up(x, dtype)
        local r = fp8.quantize(x)
        same_codes(fp8.quantize(xc), r, name)
        t.equal((fp8.dequantize(fp8.quantize(xc), 'f32'):to 'cpu' - fp8.dequantize(r, 'f32')):abs():max():item(), 0, name)
        local fixed = cr.tensor { 0.001, 0.01, 0.1, 1, 10 }
        same_codes(fp8.quantize(xc, fixed:to(cuda.device)), fp8.quantize(x, fixed), name .. ' fixed')
      end)
    end
  end
  for _, rows in ipairs { 1, 2, 31, 33, 257 } do
    cr.scope(function()
      local x = cuda.randn({ rows, 320 }, 'f16')
      same_codes(fp8.quantize(cuda.up(x, 'f16')), fp8.quantize(x), rows .. ' rows')
    end)
  end
  local x = cuda.randn({ 3, 4, 64 }, 'f16')
  same_codes(fp8.quantize(cuda.up(x, 'f16'):transpose(1, 2)), fp8.quantize(x:transpose(1, 2)), 'turned')
  same_codes(fp8.quantize(cuda.up(x, 'f16'):narrow(3, 2, 48)), fp8.quantize(x:narrow(3, 2, 48)), 'cut')
  same_codes(fp8.quantize(cr.zeros(3, 64, { device = cuda.device })), fp8.quantize(cr.zeros(3, 64)), 'zeros')
  local bad = fp8.dequantize(fp8.quantize(cr.tensor({ { 1, 0 / 0 }, { 1, math.huge }, { 1, 2 } }):to(cuda.device))):to 'cpu':pointer()
  t.ok(bad[0] == 1 and bad[1] ~= bad[1] and bad[2] ~= bad[2] and bad[3] ~= bad[3] and bad[5] == 2, 'nan and infinity')
end)

-- Values before quantization differ in their last bits, so a result may occasionally be the neighbouring code.
local function near_codes(q, r, message)
  cr.scope(function()
    local a = down(q)
    local s = ((a.scale - r.scale):abs() / r.scale):max():item()
    local apart = (a.codes:to 'f32' - r.codes:to 'f32'):abs()
    local share = apart:gt(0):to 'f32':mean():item()
    local y, z = fp8.dequantize(a, 'f32'), fp8.dequantize(r, 'f32')
    local off = (y - z):abs():max():item() / z:abs():max():item()
    t.ok(s < 1e-4 and share < 0.01 and off < 0.08, ('%s: scales off by %.2g, %.2g of the codes differ, numbers by %.2g (CR_SEED=%d)')
      :format(message, s, share, off, cuda.seed))
  end)
end

cuda.test('quantization fused with GEGLU and layer norm', function()
  for _, dtype in ipairs { 'f16', 'bf16' } do
    for _, width in ipairs { 8, 17, 320, 640, 648, 1280, 2560, 5120, 10248 } do
      cr.scope(function()
        local x = cuda.randn({ 5, 2 * width }, dtype)
        local name = ('%s %d'):format(dtype, width)
        -- Two passes round to the dtype in between; the step of a code is 2^-3, that of bf16 2^-8.
        local single = width % 8 == 0 and width <= 10240
        local r = single and fp8.geglu(x) or fp8.quantize(nn.geglu(x):to(dtype):to 'f32')
        near_codes(fp8.geglu(cuda.up(x, dtype)), r, 'geglu ' .. name)
        local y = x:narrow(2, 1, width):contiguous()
        local w = { weight = cuda.randn({ width }, dtype), bias = cuda.randn({ width }, dtype) }
        local card = { weight = cuda.up(w.weight, dtype), bias = cuda.up(w.bias, dtype) }
        r = single and fp8.layer_norm(w, y) or fp8.quantize(nn.layer_norm(w, y):to(dtype):to 'f32')
        near_codes(fp8.layer_norm(card, cuda.up(y, dtype)), r, 'layer norm ' .. name)
      end)
    end
  end
  cr.scope(function()
    local x, after = cuda.randn({ 2, 3, 5, 64 }, 'f16'), cuda.randn({ 3, 1, 64 }, 'f16')
    local w = { weight = cuda.randn({ 64 }, 'f16') }
    local card = { weight = cuda.up(w.weight, 'f16') }
    near_codes(fp8.layer_norm(card, cuda.up(x, 'f16'), nil, { after = cuda.up(after, 'f16') }),
      fp8.layer_norm(w, x, nil, { after = after }), 'position')
    local whole = cuda.randn({ 2, 3, 5, 64 }, 'f16')
    near_codes(fp8.layer_norm(card, cuda.up(x, 'f16'), nil, { after = cuda.up(whole, 'f16') }),
      fp8.layer_norm(w, x, nil, { after = whole }), 'as large')
    near_codes(fp8.layer_norm({}, cuda.up(x, 'f16')), fp8.layer_norm({}, x), 'without weight')
  end)
end)

local function up(x, dtype) return x and cuda.up(x, dtype) or nil end

--- The product in float64 of the GPU's dequantized values, and its largest term.
local function reference(qx, w, options)
  local function wide(x) return x and x:to 'f64' end
  local a, b = fp8.dequantize(down(qx), 'f32'):to 'f64', fp8.dequantize(down { codes = w.weight, scale = w.scale }, 'f32'):to 'f64'
  local plain = nn.linear({ weight = b }, a)
  local y = nn.linear({ weight = b, bias = wide(options.bias) }, a, { act = options.act, residual = wide(options.residual) })
  return y, math.max(y:abs():max():item(), plain:abs():max():item(), 1e-30)
end

local function check(m, k, n, dtype, options)
  cr.scope(function()
    local w = { weight = up(cuda.randn({ n, k }, dtype, k ^ -0.5), dtype), bias = up(options.bias, dtype) }
    fp8.quantize_layer(w)
    local x, residual = up(cuda.randn({ m, k }, dtype), dtype), up(options.residual, dtype)
    local q = fp8.quantize(x)
    local y, largest = reference(q, w, options)
    local message = ('[%d %d] -> %d %s%s%s%s'):format(m, k, n, options.act or '', options.bias and ' bias' or '',
      options.residual and ' residual' or '', options.name or '')
    local function near(z)
      if dtype == 'f32' then
        -- The tensor cores accumulate with about 14 bits.
        t.near(z:to 'cpu':to 'f64', y, k % 16 == 0 and n % 16 == 0 and 5e-4 or 1e-5, message)
      else
        cuda.near(z, y, { largest = largest, message = message })
      end
    end
    near(nn.linear(w, x, { act = options.act, residual = residual }))
    near(nn.linear(w, q, { act = options.act, residual = residual }))
    if residual then
      nn.linear(w, q, { act = options.act, residual = residual, out = residual })
      near(residual)
    end
    w.weight:free()
    w.scale:free()
  end)
end

local SIZES = { { 1, 16, 16 }, { 1, 320, 1280 }, { 2, 16, 32 }, { 3, 320, 320 }, { 17, 640, 1920 }, { 33, 1280, 320 },
  { 129, 320, 2560 }, { 257, 64, 48 }, { 1000, 1280, 1280 }, { 5, 17, 33 }, { 6, 32, 17 }, { 7, 8, 16 }, { 2, 24, 24 } }

product_test('products at many sizes', function()
  for _, dtype in ipairs { 'f16', 'bf16', 'f32' } do
    for _, s in ipairs(cuda.cases(SIZES)) do check(s[1], s[2], s[3], dtype, {}) end
  end
end)

product_test('bias, activation, residual', function()
  for _, dtype in ipairs { 'f16', 'bf16', 'f32' } do
    for _, s in ipairs { cuda.slow and { 33, 64, 96 } or { 33, 320, 640 }, { 5, 17, 33 } } do
      local m, k, n = unpack(s)
      t.each({ false, 'silu', 'gelu', 'relu' },
        { false, cuda.randn({ n }, dtype) },
        { false, cuda.randn({ m, n }, dtype) },
        function(act, bias, residual)
          check(m, k, n, dtype, { act = act or nil, bias = bias or nil, residual = residual or nil })
        end)
    end
  end
end)

product_test('steps apart, first proposals, fewer bits', function()
  local n = 640
  local bias, residual = cuda.randn({ n }, 'f16'), cuda.randn({ 33, n }, 'f16')
  cuda.with({ linear_bias = false }, function() check(33, 320, n, 'f16', { bias = bias, residual = residual, name = ' apart' }) end)
  cuda.with({ linear_residual = false }, function()
    check(33, 320, n, 'f16', { bias = bias, residual = residual, name = ' residual apart' })
  end)
  cuda.with({ search = false }, function() check(33, 320, n, 'f16', { bias = bias, residual = residual, name = ' first' }) end)
  cuda.with({ fp8_fast = true }, function() check(33, 320, n, 'f16', { bias = bias, residual = residual, name = ' fast' }) end)
end)

product_test('views and dtypes that must be copied', function()
  cr.scope(function()
    local w = { weight = up(cuda.randn({ 64, 96 }, 'f16'), 'f16') }
    fp8.quantize_layer(w)
    local x = up(cuda.randn({ 4, 6, 96 }, 'f16'), 'f16')
    local y = nn.linear(w, x):to 'cpu'
    t.near(nn.linear(w, x:transpose(1, 2)):transpose(1, 2):contiguous():to 'cpu', y, 0, 'turned')
    local out = cr.zeros(6, 4, 64, { dtype = 'f16', device = cuda.device }):transpose(1, 2)
    nn.linear(w, x, { out = out })
    t.near(out:contiguous():to 'cpu', y, 0, 'into a turned one')
    local one = up(cuda.randn({ 1, 6, 64 }, 'f16'), 'f16')
    local z = nn.linear(w, x, { residual = one:expand(4, 6, 64) }):to 'cpu':to 'f32'
    t.near(z, y:to 'f32' + one:to 'cpu':to 'f32', 1e-3, 'one residual for all')
    w.weight:free()
    w.scale:free()
  end)
end)

product_test('recorded: two kernels where the library takes all along', function()
  cr.scope(function()
    local w = { weight = up(cuda.randn({ 640, 320 }, 'f16'), 'f16'), bias = up(cuda.randn({ 640 }, 'f16'), 'f16') }
    fp8.quantize_layer(w)
    local x, residual = up(cuda.randn({ 512, 320 }, 'f16'), 'f16'), up(cuda.randn({ 512, 640 }, 'f16'), 'f16')
    local plain = nn.linear(w, x, { residual = residual }):to 'cpu'
    local graph = cr.graph(function(a, b) return nn.linear(w, a, { residual = b }) end)
    local y
    for _ = 1, 3 do y = graph(x, residual) end
    t.equal(graph:why(), nil)
    t.near(y:to 'cpu', plain, 0, 'replayed')
    print(('# a product with bias and residual: %d kernels and copies in a recording'):format(graph:size()))
    graph:free()
    w.weight:free()
    w.scale:free()
  end)
end)

-- Our own kernels (kernels/linear/gemm_hopper.h): CR_FP8_OWN selects the wide tiles (1) or the narrow ones (2)
-- wherever they fit, 0 the library.
local function with_own(way, options, fn)
  environment.with('CR_FP8_OWN', way, function() cuda.with(options, fn) end)
end

local whole, poisoned = cuda.whole, cuda.poisoned
local function powers(n)
  local list = {}
  for i = 1, n do list[i] = 2 ^ math.random(-2, 1) end
  return cr.tensor(list)
end
local function coded(x, scale)
  return cr.scope(function() return fp8.quantize(cuda.up(x * scale:view(scale:numel(), 1)), cuda.up(scale)) end)
end

-- Integers whose sums are exact in every accumulator, and scales that are powers of two: there is only one correct
-- result, the exact one rounded once. Reference: f32 sums on the GPU, and the first rows on the CPU.
local function check_whole(m, k, n, dtype, with)
  cr.scope(function()
    local q, qw = coded(whole(m, k), powers(m)), coded(whole(n, k), powers(n))
    local bias, residual = with.bias and whole(n) or nil, with.residual and whole(m, n) or nil
    local message = ('[%d %d] -> %d %s%s%s'):format(m, k, n, dtype, bias and ' bias' or '', residual and ' residual' or '')
    local wide = nn.linear({ weight = qw.codes, scale = qw.scale, bias = bias and cuda.up(bias) },
      { codes = q.codes, scale = q.scale, dtype = 'f32' }, { residual = residual and cuda.up(residual) })
    local few = math.min(m, 5)
    local top = { codes = q.codes:narrow(1, 1, few), scale = q.scale:narrow(1, 1, few), dtype = 'f32' }
    local first = reference(top, { weight = qw.codes, scale = qw.scale },
      { bias = bias, residual = residual and residual:narrow(1, 1, few) })
    t.near(wide:narrow(1, 1, few):to 'cpu':to 'f64', first, 0, message .. ': reference')
    local want = wide:to(dtype):to 'f32'
    local w = { weight = qw.codes, scale = qw.scale, bias = bias and cuda.up(bias, dtype) }
    local x = { codes = q.codes, scale = q.scale, dtype = dtype }
    for way = 1, 2 do
      for _, fast in ipairs { false, true } do
        cr.scope(function()
          local own, in_place = poisoned({ m, n }, dtype), residual and cuda.up(residual, dtype) or nil
          with_own(way, { fp8_fast = fast }, function()
            nn.linear(w, x, { out = own, residual = residual and cuda.up(residual, dtype) })
            if residual then nn.linear(w, x, { out = in_place, residual = in_place }) end
          end)
          local name = ('%s way %d%s'):format(message, way, fast and ' fast' or '')
          local off = (own:to 'f32' - want):abs():max():item()
          t.ok(off == 0, ('%s: off by %g (CR_SEED=%d)'):format(name, off, cuda.seed)) -- false for a nan
          if residual then t.ok((in_place:to 'f32' - want):abs():max():item() == 0, name .. ' in place') end
        end)
      end
    end
  end)
end

own_test('our own kernels: whole numbers, exactly', function()
  for _, dtype in ipairs { 'f16', 'bf16' } do
    for i, s in ipairs(cuda.cases { { 1, 16, 8 }, { 3, 320, 320 }, { 77, 640, 328 }, { 1000, 1280, 168 }, { 129, 48, 488 },
      { 257, 336, 64 }, { 64, 128, 160 } }) do
      check_whole(s[1], s[2], s[3], dtype, { bias = i % 2 == 1, residual = i % 3 ~= 2 })
    end
    check_whole(131, 320, 328, dtype, {})
    check_whole(131, 320, 328, dtype, { residual = true })
  end
end)

-- Many tiles per thread block: pipeline stages and output buffers are reused, and warpgroups overtake each other.
large_test('our own kernels: many rows', function()
  check_whole(30011, 320, 320, 'f16', { bias = true, residual = true })
  check_whole(16001, 320, 960, 'bf16', {})
  check_whole(8200, 2560, 640, 'f16', { bias = true, residual = true })
  check_whole(2047, 1280, 3840, 'f16', {})
  check_whole(513, 5120, 1280, 'f16', { bias = true, residual = true })
end)

-- Relative L2 error: rounding the result gives 2e-4 in f16 and 1.6e-3 in bf16, accumulating 128 products in the
-- tensor cores about 1e-4. Longer accumulations lose up to 2^-13 per 32 products, always downwards.
own_test('our own kernels: any numbers', function()
  local LIMIT, FAST_LIMIT = { f16 = 8e-4, bf16 = 2.4e-3 }, 2e-2
  t.each({ 'f16', 'bf16' }, cuda.cases { { 33, 320, 640 }, { 130, 1280, 168 }, { 70, 5120, 320 } }, function(dtype, s)
    local m, k, n = unpack(s)
    local q, qw = fp8.quantize(cuda.up(cuda.randn({ m, k }, dtype), dtype)),
      fp8.quantize(cuda.up(cuda.randn({ n, k }, dtype, k ^ -0.5), dtype))
    local bias, residual = cuda.randn({ n }, dtype), cuda.randn({ m, n }, dtype)
    local want, largest = reference(q, { weight = qw.codes, scale = qw.scale }, { bias = bias, residual = residual })
    local w = { weight = qw.codes, scale = qw.scale, bias = cuda.up(bias, dtype) }
    for way = 1, 2 do
      for _, fast in ipairs { false, true } do
        local y
        with_own(way, { fp8_fast = fast }, function() y = nn.linear(w, q, { residual = cuda.up(residual, dtype) }) end)
        local name = ('way %d%s [%d %d] -> %d'):format(way, fast and ' fast' or '', m, k, n)
        if not fast then cuda.near(y, want, { largest = largest, message = name }) end
        local off = t.relative_error(y:to 'cpu':to 'f64', want)
        t.ok(off <= (fast and FAST_LIMIT or LIMIT[dtype]), ('%s %s: relative L2 error %.3g'):format(name, dtype, off))
      end
    end
  end)
end)

own_test('our own kernels in a recording: one for all', function()
  cr.scope(function()
    local q, qw = coded(whole(512, 320), powers(512)), coded(whole(640, 320), powers(640))
    local w = { weight = qw.codes, scale = qw.scale, bias = cuda.up(whole(640), 'f16') }
    local residual = cuda.up(whole(512, 640), 'f16')
    with_own(1, {}, function()
      local function call(codes, scale, r) return nn.linear(w, { codes = codes, scale = scale, dtype = 'f16' }, { residual = r }) end
      local plain = call(q.codes, q.scale, residual):to 'cpu'
      local graph = cr.graph(call, { direct = true })
      local y
      for _ = 1, 3 do y = graph(q.codes, q.scale, residual) end
      t.equal(graph:why(), nil)
      t.equal(graph:size(), 2, 'the product, and a copy of its result')
      t.near(y:to 'cpu', plain, 0, 'replayed')
      graph:free()
    end)
  end)
end)

own_test('what our own kernels do not take', function()
  with_own(1, {}, function()
    check(33, 320, 640, 'f32', {})
    check(33, 320, 640, 'f16', { act = 'silu', bias = cuda.randn({ 640 }, 'f16') })
    check(5, 17, 33, 'f16', {})
  end)
  with_own(0, {}, function() check(33, 320, 640, 'f16', { bias = cuda.randn({ 640 }, 'f16'), name = ' by the library' }) end)
end)

product_test('a quantized network takes less memory than before, and computes the same wherever it was loaded', function()
  local apply, layers, recipes = require 'models.quantize.apply', require 'models.quantize.layers', require 'models.quantize.recipe'
  local unet3d, weights = require 'models.networks.unet3d', require 'cr.weights'
  t.keeps_storages() -- recordings and cached memory of the device
  local dir = scratch.path 'nano'
  require 'tests.support.checkpoint'.write(dir)
  local config = unet3d.config(require 'tests.support.checkpoint'.unet_config(384))
  local sample = up(cuda.randn({ 1, 3, 8, 8, 13 }, 'f16'), 'f16')
  local audio = up(cuda.randn({ 1, 3, 50, 384 }, 'f16'), 'f16')
  local function loaded(apart)
    collectgarbage()
    collectgarbage()
    local before = cr.memory(cuda.device).live
    local net = unet3d.new(weights.tree(dir .. '/latentsync_unet.safetensors',
      { dtype = 'f16', device = cuda.device, adjacent = unet3d.adjacent, apart = apart }), config)
    local full = cr.memory(cuda.device).live - before
    local bytes, codes = 0, 0
    for _, layer in ipairs(layers.of(net.w)) do
      if layers.takes(layer, 'fp8') then
        local n = layer.node.weight:numel()
        bytes, codes = bytes + 2 * n, codes + n + 4 * layer.node.weight:size(1)
      end
    end
    apply.network(net.w, { default = 'fp8' }, cuda.device)
    return net, full, cr.memory(cuda.device).live - before, bytes, codes
  end
  local net, full, after, bytes, codes = loaded(recipes.apart('unet', { default = 'fp8' }, cuda.device))
  t.ok(after <= full - bytes + 1.2 * codes, ('%d bytes, before %d'):format(after, full))
  local plain = loaded()
  t.near(net:forward(sample, 481, audio):to 'cpu', plain:forward(sample, 481, audio):to 'cpu', 1e-3)
end)

product_test('nothing and what is wrong', function()
  cr.scope(function()
    local w = { weight = up(cuda.randn({ 16, 32 }, 'f16'), 'f16') }
    fp8.quantize_layer(w)
    t.equal(table.concat(nn.linear(w, cr.zeros(0, 32, { device = cuda.device })).shape, ' '), '0 16')
    t.raises(function() nn.linear(w, cr.zeros(2, 32)) end, 'different devices')
    w.weight:free()
    w.scale:free()
  end)
end)

t.done()
