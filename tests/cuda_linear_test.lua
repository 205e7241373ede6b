--- Linear layers on a GPU compared with the CPU's in float64: sizes, dtypes, strides, fusion.

local ffi = require 'ffi'
local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local nn = require 'cr.nn'
local t = require 'tests.support.tap'
local views = require 'tests.support.cuda_views'

local DTYPES = { 'f32', 'f16', 'bf16', 'f64' }
local nan = 0 / 0

local poisoned = cuda.poisoned

local randn = cuda.randn64

local function up(x, dtype) return cuda.up(x, dtype) end

local function biggest(x) return x and x:numel() > 0 and x:abs():max():item() or 0 end

-- f32 and f64: relative to the largest term, because a few sums may cancel.
local LIMIT = { f32 = 1e-5, f64 = 1e-13 }

local function near(result, reference, largest, message)
  if not LIMIT[result.dtype] then return cuda.near(result, reference, { largest = largest, message = message }) end
  cr.scope(function()
    local worst = biggest(result:to 'cpu':to 'f64' - reference)
    t.ok(worst <= LIMIT[result.dtype] * largest, ('%s %s: off by %.3g of %.3g (CR_SEED=%d)'):format(message, result.dtype,
      worst, largest, cuda.seed))
  end)
end

--- The CPU's result and the largest term of its sums.
local function reference(x, w, act, residual)
  local y = nn.linear(w, x, { act = act, residual = residual })
  local plain = nn.linear({ weight = w.weight }, x)
  return y, math.max(biggest(y), biggest(plain), biggest(w.bias), biggest(residual), 1e-30)
end

local function name_of(m, k, n, options) return ('[%d %d] -> %d%s'):format(m, k, n, options or '') end

for _, dtype in ipairs(DTYPES) do
  cuda.test('sizes, ' .. dtype, function()
    local sizes = { { 1, 1, 1 }, { 1, 320, 1280 }, { 2, 3, 17 }, { 3, 17, 1 }, { 17, 1, 3 }, { 33, 320, 320 }, { 20, 1001, 320 },
      { 129, 64, 1001 }, { 257, 40, 8 }, { 64, 8, 7 } }
    for _, s in ipairs(cuda.cases(sizes)) do
      cr.scope(function()
        local m, k, n = s[1], s[2], s[3]
        local x, w = randn({ m, k }, dtype), { weight = randn({ n, k }, dtype, k ^ -0.5), bias = randn({ n }, dtype) }
        local card = { weight = up(w.weight, dtype), bias = up(w.bias, dtype) }
        local y, largest = reference(x, w)
        near(nn.linear(card, up(x, dtype)), y, largest, name_of(m, k, n))
        card.bias, w.bias = nil, nil
        y, largest = reference(x, w)
        local out = poisoned({ m, n }, dtype)
        nn.linear(card, up(x, dtype), { out = out })
        near(out, y, largest, name_of(m, k, n, ' without bias'))
      end)
    end
  end)
end

-- Every combination of bias, activation and residual; the residual separate, in place, repeated.
local function combinations(dtype, m, k, n, message)
  local x, weight, bias = randn({ 2, m, k }, dtype), randn({ n, k }, dtype, k ^ -0.5), randn({ n }, dtype)
  local whole, one, row, column =
      randn({ 2, m, n }, dtype), randn({ 1, m, n }, dtype), randn({ n }, dtype), randn({ 2, m, 1 }, dtype)
  local residuals = { none = false, apart = whole, ['in place'] = whole, ['over the batch'] = one:expand(2, m, n),
    ['of rows'] = row:expand(2, m, n), ['of columns'] = column:expand(2, m, n) }
  local cards = { none = false, apart = up(whole, dtype), ['over the batch'] = up(one, dtype):expand(2, m, n),
    ['of rows'] = up(row, dtype):expand(2, m, n), ['of columns'] = up(column, dtype):expand(2, m, n) }
  local xc, wc, bc = up(x, dtype), up(weight, dtype), up(bias, dtype)
  for _, activation in ipairs(cuda.cases { 'none', 'silu', 'gelu', 'relu', 'relu6' }) do
    local act = activation ~= 'none' and activation or nil
    for _, with_bias in ipairs { false, true } do
      for kind, residual in pairs(residuals) do
        cr.scope(function()
          local w = { weight = weight, bias = with_bias and bias or nil }
          local card = { weight = wc, bias = with_bias and bc or nil }
          local y, largest = reference(x, w, act, residual or nil)
          local out = kind == 'in place' and up(whole, dtype) or poisoned({ 2, m, n }, dtype)
          local r = kind == 'in place' and out or cards[kind] or nil
          nn.linear(card, xc, { act = act, residual = r, out = out })
          near(out, y, largest, ('%s: activation %s%s, residual %s'):format(message, activation, with_bias and ', bias' or '', kind))
        end)
      end
    end
  end
end

for _, dtype in ipairs(DTYPES) do
  cuda.test('bias, activation, residual, ' .. dtype, function()
    cr.scope(function() combinations(dtype, 24, 40, 64, 'even') end)
    cr.scope(function() combinations(dtype, 7, 19, 13, 'odd') end)
  end)
  cuda.test('the same without fusion, ' .. dtype, function()
    cuda.with({ fusion = false }, function() cr.scope(function() combinations(dtype, 9, 24, 16, 'in steps') end) end)
  end)
  cuda.test("the same with the library's first choice, " .. dtype, function()
    cuda.with({ search = false }, function() cr.scope(function() combinations(dtype, 10, 24, 32, 'unsearched') end) end)
  end)
end

for _, dtype in ipairs(DTYPES) do
  cuda.test('strides, ' .. dtype, function()
    for _, s in ipairs { { 3, 5, 16, 24 }, { 4, 70, 48, 133 } } do -- the second one needs copies
      cr.scope(function()
        local b, m, k, n = s[1], s[2], s[3], s[4]
        local x, w, r = randn({ b, m, k }, dtype), { weight = randn({ n, k }, dtype, k ^ -0.5), bias = randn({ n }, dtype) },
          randn({ b, m, n }, dtype)
        local y, largest = reference(x, w, nil, r)
        local card, xc, rc = { weight = up(w.weight, dtype), bias = up(w.bias, dtype) }, up(x, dtype), up(r, dtype)
        for _, v in ipairs(cuda.cases(views.matrices(xc))) do near(nn.linear(card, v[2], { residual = rc }), y, largest, 'x ' .. v[1]) end
        for _, v in ipairs(cuda.cases(views.matrices(rc))) do
          near(nn.linear(card, xc, { residual = v[2] }), y, largest, 'residual ' .. v[1])
        end
        for _, v in ipairs(cuda.cases(views.matrices(card.weight))) do
          near(nn.linear({ weight = v[2], bias = card.bias }, xc, { residual = rc }), y, largest, 'weight ' .. v[1])
        end
        for _, v in ipairs(cuda.cases(views.matrices(rc))) do
          nn.linear(card, xc, { residual = v[2], out = v[2] })
          near(v[2], y, largest, 'residual and result ' .. v[1])
        end
        for _, v in ipairs(cuda.cases(views.matrices(rc))) do
          v[2]:fill_(nan)
          nn.linear(card, xc, { residual = rc, out = v[2] })
          near(v[2], y, largest, 'result ' .. v[1])
        end
        local bias = poisoned({ n, 2 }, dtype):select(2, 2)
        bias:copy_(card.bias)
        near(nn.linear({ weight = card.weight, bias = bias }, xc, { residual = rc }), y, largest, 'bias with gaps')
        bias = poisoned({ n + 1 }, dtype):slice(1, 2, n + 1)
        bias:copy_(card.bias)
        near(nn.linear({ weight = card.weight, bias = bias }, xc, { residual = rc }), y, largest, 'bias from an odd place')
        y, largest = reference(x:slice(2, 1, 1):expand(b, m, k), w)
        near(nn.linear(card, xc:slice(2, 1, 1):expand(b, m, k)), y, largest, 'rows repeated')
        y, largest = reference(x:slice(1, 2, 2):expand(b, m, k), w)
        near(nn.linear(card, xc:slice(1, 2, 2):expand(b, m, k)), y, largest, 'matrices repeated')
        y, largest = reference(x, { weight = w.weight:slice(1, 1, 1):expand(n, k) })
        near(nn.linear({ weight = card.weight:slice(1, 1, 1):expand(n, k) }, xc), y, largest, 'weight repeated')
      end)
    end
  end)
end

-- Each operand in turn begins off a 16-byte boundary, or has rows of odd length, while the others are aligned.
for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
  cuda.test('misaligned operands, ' .. dtype, function()
    -- A tool that searches for races takes minutes for the larger size, so there one of each kind is run.
    t.each(cuda.slow and { { 180, 24, 16 } } or { { 180, 24, 16 }, { 96, 320, 320 } }, function(s)
      local m, k, n = s[1], s[2], s[3]
      local p = { x = randn({ m, k }, dtype), weight = randn({ n, k }, dtype, k ^ -0.5), bias = randn({ n }, dtype),
        residual = randn({ m, n }, dtype) }
      local aligned = { out = poisoned({ m, n }, dtype) }
      for name, v in pairs(p) do aligned[name] = up(v, dtype) end
      local expected = {}
      for flags = 0, 3 do
        expected[flags] = { reference(p.x, { weight = p.weight, bias = flags % 2 == 1 and p.bias or nil }, nil,
          flags > 1 and p.residual or nil) }
      end
      local function shifted(v, by)
        local view = poisoned({ v:numel() + by }, dtype):slice(1, by + 1, v:numel() + by):view(v.shape)
        return view:copy_(v)
      end
      local function odd_lines(v, before, after)
        local width = v:size(-1)
        return poisoned({ v:size(1), width + before + after }, dtype):slice(2, before + 1, before + width):copy_(v)
      end
      local function check(name, way, view, bias, residual)
        local q = {}
        for key, value in pairs(aligned) do q[key] = value end
        q[name] = view
        local y, largest = unpack(expected[(bias and 1 or 0) + (residual and 2 or 0)])
        q.out:fill_(nan)
        nn.linear({ weight = q.weight, bias = bias and q.bias or nil }, q.x,
          { residual = residual and q.residual or nil, out = q.out })
        near(q.out, y, largest, ('%s %s, %s%s%s'):format(name, way, name_of(m, k, n), bias and ', bias' or '',
          residual and ', residual' or ''))
      end
      for name, v in pairs(aligned) do
        local shifts = { ['one off'] = shifted(v, 1), ['four bytes off'] = shifted(v, dtype == 'f32' and 1 or 2),
          ['eight bytes off'] = shifted(v, dtype == 'f32' and 2 or 4) }
        if name ~= 'bias' then
          shifts['odd lines'], shifts['odd lines, one off'], shifts['odd lines, two off'] =
            odd_lines(v, 0, 3), odd_lines(v, 1, 2), odd_lines(v, 2, 1)
          shifts['aligned lines of more'] = odd_lines(v, 8, 8)
        end
        if cuda.slow then shifts = { ['one off'] = shifts['one off'], ['odd lines'] = shifts['odd lines'] } end
        for way, view in pairs(shifts) do
          for _, flags in ipairs(cuda.slow and { 3 } or { 0, 1, 2, 3 }) do check(name, way, view, flags % 2 == 1, flags > 1) end
        end
      end
    end)
  end)
end

cuda.test('memory around a result is not overwritten', function()
  for _, dtype in ipairs(DTYPES) do
    cr.scope(function()
      local x, w = randn({ 5, 24 }, dtype), { weight = randn({ 16, 24 }, dtype) }
      local around = cr.full({ 7, 20 }, 3, { dtype = dtype, device = cuda.device })
      nn.linear({ weight = up(w.weight, dtype) }, up(x, dtype), { out = around:slice(1, 2, 6):slice(2, 3, 18) })
      local y, largest = reference(x, w)
      near(around:slice(1, 2, 6):slice(2, 3, 18), y, largest, 'the result')
      around:slice(1, 2, 6):slice(2, 3, 18):fill_(3)
      t.near(around:to 'cpu':to 'f64', cr.full({ 7, 20 }, 3, { dtype = 'f64' }), 0, 'around, ' .. dtype)
    end)
  end
end)

cuda.test('mixed dtypes', function()
  for _, dtype in ipairs(DTYPES) do
    for _, other in ipairs(DTYPES) do
      cr.scope(function()
        local m, k, n = 21, 64, 24
        -- Numbers that every dtype represents, so that conversions of operands have no effect.
        local function common(shape, scale) return randn(shape, 'bf16', scale):to 'f16':to 'f64' end
        local x, r = common { m, k }, common { m, n }
        local w = { weight = common({ n, k }, 0.125), bias = common { n } }
        local y, largest = reference(x, w, 'silu', r)
        local got = nn.linear({ weight = up(w.weight, other), bias = up(w.bias, other) }, up(x, dtype),
          { act = 'silu', residual = up(r, other) })
        t.equal(got.dtype, dtype)
        near(got, y, largest, 'the others ' .. other)
      end)
    end
  end
end)

cuda.test('more than three dimensions, one dimension, no rows', function()
  for _, dtype in ipairs { 'f32', 'f16' } do
    cr.scope(function()
      local w = { weight = randn({ 16, 24 }, dtype), bias = randn({ 16 }, dtype) }
      local card = { weight = up(w.weight, dtype), bias = up(w.bias, dtype) }
      for _, shape in ipairs { { 2, 3, 4, 5, 24 }, { 24 }, { 1, 24 }, { 1, 1, 24 } } do
        local x = randn(shape, dtype)
        local y, largest = reference(x, w)
        near(nn.linear(card, up(x, dtype)), y, largest, #shape .. ' dimensions')
      end
      local x = randn({ 2, 3, 4, 5, 24 }, dtype)
      local y, largest = reference(x:permute(3, 1, 4, 2, 5), w)
      near(nn.linear(card, up(x, dtype):permute(3, 1, 4, 2, 5)), y, largest, 'outer dimensions in another order')
      local empty = nn.linear(card, cr.empty(0, 24, { dtype = dtype, device = cuda.device }))
      t.equal(table.concat(empty.shape, ' '), '0 16')
      empty = nn.linear({ weight = cr.empty(0, 24, { dtype = dtype, device = cuda.device }) }, up(x, dtype))
      t.equal(table.concat(empty.shape, ' '), '2 3 4 5 0')
      t.raises(function()
        nn.linear({ weight = cr.empty(3, 0, { dtype = dtype, device = cuda.device }) },
          cr.empty(2, 0, { dtype = dtype, device = cuda.device }))
      end, 'linear: the weight %[3 0%] has no columns')
    end)
  end
end)

cuda.library_test('float32 is exact, unless TF32 is asked for', function()
  cr.scope(function()
    local x, w = randn({ 300, 512 }), { weight = randn({ 256, 512 }) }
    local y = nn.linear(w, x)
    local card, xc = { weight = up(w.weight, 'f32') }, up(x, 'f32')
    local function err() return t.relative_error(nn.linear(card, xc):to 'cpu', y) end
    t.ok(not cr.cuda.device.tf32, 'off from the start')
    local exact = err()
    t.ok(exact <= 2e-6, ('off by %.3g'):format(exact))
    cuda.with({ tf32 = true }, function()
      local e = err()
      t.ok(e > 2e-5 and e < 2e-3, ('in TF32 off by %.3g'):format(e))
    end)
    t.ok(err() <= 2e-6, 'off again')
  end)
end)

cuda.test('long sums in float16 are accumulated in float32', function()
  cr.scope(function()
    for _, dtype in ipairs { 'f16', 'bf16' } do
      local k = cuda.slow and 2048 or 16384 -- few results, so that splitting the inner dimension is worthwhile
      local x, w = randn({ 16, k }, dtype), { weight = randn({ 64, k }, dtype, 1 / 32) }
      local y = nn.linear(w, x)
      local card, xc = { weight = up(w.weight, dtype) }, up(x, dtype)
      for _, search in ipairs { true, false } do
        cuda.with({ search = search }, function()
          local e = t.relative_error(nn.linear(card, xc):to 'cpu':to 'f64', y)
          -- Rounding the result alone gives about 0.3 ulps.
          t.ok(e <= 0.3 * cuda.eps[dtype], ('%s: %.3f units'):format(dtype, e / cuda.eps[dtype]))
        end)
      end
    end
  end)
end)

cuda.library_test('the shapes of the networks', function()
  for _, s in ipairs { { 4096, 320, 960 }, { 4096, 320, 2560 }, { 4096, 1280, 320 }, { 1024, 640, 640 }, { 256, 1280, 10240 },
    { 1600, 384, 640 } } do
    cr.scope(function()
      local m, k, n = s[1], s[2], s[3]
      local x, w, r = randn({ m, k }, 'f16'), { weight = randn({ n, k }, 'f16', k ^ -0.5), bias = randn({ n }, 'f16') },
        randn({ m, n }, 'f16')
      local y = nn.linear({ weight = w.weight:to 'f32', bias = w.bias:to 'f32' }, x:to 'f32', { residual = r:to 'f32' })
      local card = { weight = up(w.weight, 'f16'), bias = up(w.bias, 'f16') }
      local got = nn.linear(card, up(x, 'f16'), { residual = up(r, 'f16') })
      cuda.near(got, y, { message = name_of(m, k, n) })
      local e = t.relative_error(got:slice(1, 1, 64):to 'cpu', y:slice(1, 1, 64))
      t.ok(e <= 4e-4, ('%s: relative error %.3g'):format(name_of(m, k, n), e))
    end)
  end
end)

cuda.library_test('recorded, with known and unknown shapes', function()
  cr.scope(function()
    local m, k, n = 40 + math.random(50), 72, 56
    local x, w, r = randn({ m, k }, 'f16'), { weight = randn({ n, k }, 'f16', k ^ -0.5), bias = randn({ n }, 'f16') },
      randn({ m, n }, 'f16')
    local y, largest = reference(x, w, nil, r)
    local card, xc, rc = { weight = up(w.weight, 'f16'), bias = up(w.bias, 'f16') }, up(x, 'f16'), up(r, 'f16')
    local out = poisoned({ m, n }, 'f16')
    local C, graph = cr.C, ffi.new 'cr_graph *[1]'
    cr.check(C.cr_graph_begin(xc.c.device))
    nn.linear(card, xc, { residual = rc, out = out })
    cr.check(C.cr_graph_end(xc.c.device, graph))
    cr.check(C.cr_graph_launch(graph[0]))
    near(out, y, largest, 'recorded before it was ever run')
    C.cr_graph_free(graph[0])
    near(nn.linear(card, xc, { residual = rc }), y, largest, 'run after')
  end)
end)

t.done()
