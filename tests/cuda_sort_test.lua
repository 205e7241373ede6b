--- Cumulative sums, sorting and indexed writes on a GPU, compared with the CPU's.
local t = require 'tests.support.tap'
local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local flat = require 'tests.support.flat'
local views = require 'tests.support.cuda_views'

local SHAPES = { { 1 }, { 5, 1 }, { 7, 33 }, { 2, 3, 257 }, { 3, 5001 }, { 300, 17 }, { 2, 100003 } }

-- Random numbers of a dtype with many equal ones; floats include NaN, infinities and both zeros.
local function drawn(shape, dtype)
  return cr.scope(function()
    local x = (cuda.randn(shape) * 20):round():clamp(dtype == 'u8' and 0 or -100, 100)
    if flat.tolerance[dtype] then
      local u = cr.rand_like(x)
      x = cr.where(u:lt(0.02), 0 / 0, cr.where(u:lt(0.03), math.huge, cr.where(u:lt(0.04), -math.huge, x)))
      x = cr.where(u:gt(0.97), -0.0, x)
    end
    return x:to(dtype)
  end)
end

cuda.test('sorting: every dtype, both directions, stable', function()
  for _, dtype in ipairs(views.all) do
    for _, shape in ipairs(cuda.cases(SHAPES)) do
      cr.scope(function()
        local x = drawn(shape, dtype)
        local y = x:to(cuda.device)
        for _, falling in ipairs { false, true } do
          local values, places = x:sort(-1, falling)
          local a, b = y:sort(-1, falling)
          local text = ('%s [%s]%s'):format(dtype, table.concat(shape, ' '), falling and ' falling' or '')
          views.same(b, places, 'places, ' .. text)
          views.same(a, values, text)
        end
      end)
    end
  end
  local x = cuda.randn { 9, 4, 31 }
  local values, places = x:transpose(1, 3):sort(2)
  local a, b = x:to(cuda.device):transpose(1, 3):sort(2)
  views.same(a, values, 'with gaps')
  views.same(b, places, 'with gaps, places')
end)

cuda.test('topk: short and long rows, few and many rows, small and large k', function()
  for _, case in ipairs { { { 5, 1 }, 1 }, { { 40, 33 }, 7 }, { { 3, 2000 }, 2000 }, { { 3, 5001 }, 1 }, { { 3, 5001 }, 1100 },
    { { 3, 5001 }, 4000 }, { { 300, 5001 }, 1025 }, { { 300, 3000 }, 10 }, { { 300003 }, 10 }, { { 2, 300003 }, 1000 },
    { { 700000 }, 2500 }, { { 70000 }, 30000 } } do
    local shape, k = case[1], case[2]
    for _, dtype in ipairs(#shape == 2 and shape[2] < 5000 and views.all or { 'f32', 'f16', 'u8', 'i64' }) do
      cr.scope(function()
        local x = drawn(shape, dtype)
        local y = x:to(cuda.device)
        for _, largest in ipairs { true, false } do
          local text = ('%d of %s [%s]%s'):format(k, dtype, table.concat(shape, ' '), largest and '' or ', least')
          local values, places = x:topk(k, -1, largest)
          local a, b = y:topk(k, -1, largest)
          t.equal(b:to('cpu'):ne(places):sum():item(), 0, text .. ', places')
          t.equal(a:to('cpu'):ne(values):logical_and(values:eq(values)):sum():item(), 0, text)
        end
      end)
    end
  end
  local x = cuda.randn { 31, 9, 5 }
  local values, places = x:topk(4, 1)
  local a, b = x:to(cuda.device):topk(4, 1)
  views.same(a, values, 'with gaps')
  views.same(b, places, 'with gaps, places')
end)

cuda.test('cumulative sums and products', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i32', 'i64', 'bool' } do
    for _, shape in ipairs(cuda.cases(SHAPES)) do
      cr.scope(function()
        local x = flat.tolerance[dtype] and cuda.randn(shape, dtype):to(dtype) or (cuda.randn(shape) * 3):abs():to(dtype)
        local y = x:to(cuda.device)
        local text = ('%s [%s]'):format(dtype, table.concat(shape, ' '))
        local want = flat.tolerance[dtype] and x:to 'f64':cumsum(-1) or x:cumsum(-1)
        local got = y:cumsum(-1)
        t.equal(got.dtype, flat.tolerance[dtype] and dtype or 'i64', text)
        if flat.tolerance[dtype] then
          -- The error of a sum of n numbers grows with sqrt(n) and their magnitude.
          local allowed = ({ f32 = 3e-7, f64 = 1e-15, f16 = 1e-3, bf16 = 8e-3 })[dtype]
          local e = (got:to('cpu'):to 'f64' - want):abs():max():item() / math.max(1, want:abs():max():item())
          t.ok(e <= allowed * math.max(1, math.sqrt(shape[#shape]) / 8), ('%s: error %.3g'):format(text, e))
        else
          views.same(got, want, text)
        end
      end)
    end
  end
  local x = (cuda.randn { 3, 700 } * 0.01 + 1)
  local want = x:to 'f64':cumprod(2)
  local e = (x:to(cuda.device):cumprod(2):to('cpu'):to 'f64' / want - 1):abs():max():item()
  t.ok(e < 2e-5, ('products: error %.3g'):format(e))
  views.same(x:to(cuda.device):t():cumsum(1):ge(0), x:t():cumsum(1):ge(0), 'with gaps')
end)

cuda.test('indexed writes and additions of rows', function()
  for _, dtype in ipairs(views.all) do
    cr.scope(function()
      local x, y = drawn({ 11, 5, 3 }, dtype), drawn({ 4, 5, 3 }, dtype)
      local at = cr.tensor({ 7, 1, 11, 2 }, { dtype = 'i64' })
      local want = x:clone():index_copy_(1, at, y)
      views.same(x:to(cuda.device):index_copy_(1, at, y:to(cuda.device)), want, dtype)
      local gaps = views.holes(x.shape, dtype)
      gaps:copy_(x:to(cuda.device))
      views.same(gaps:index_copy_(1, at, y:to(cuda.device)), want, dtype .. ' with gaps')
    end)
  end
  for _, dtype in ipairs { 'f32', 'f64', 'f16', 'bf16', 'i32', 'i64' } do
    cr.scope(function()
      local x, y = (cuda.randn { 6, 300 } * 8):round():to(dtype), (cuda.randn { 50, 300 } * 4):round():to(dtype)
      local at = cr.randint(1, 7, { 50 })
      -- Integers, so that the order of summing has no effect.
      views.same(x:to(cuda.device):index_add_(1, at, y:to(cuda.device)), x:clone():index_add_(1, at, y), 'added, ' .. dtype)
    end)
  end
  t.raises(function() cr.zeros({ 2 }, { dtype = 'u8', device = cuda.device }):index_add_(1, { 1 }, 1) end, 'u8 is not added up on a card')
  t.raises(function() cr.zeros({ 2 }, { device = cuda.device }):index_copy_(1, { 3 }, 1) end, 'scatter: index 3 is out of range')
end)

cuda.test('indexing, topk and median on the GPU', function()
  local x = cuda.randn { 40, 33 }
  local y = x:to(cuda.device)
  views.same(y[y:gt(1)], x[x:gt(1)], 'a mask')
  views.same(y:gather(2, y:argsort(2)), x:gather(2, x:argsort(2)), 'gather')
  local v, i = x:topk(5, 1)
  local a, b = y:topk(5, 1)
  views.same(a, v, 'topk')
  views.same(b, i, 'topk, places')
  views.same(y:median(2), x:median(2), 'median')
  views.same(y:unique(), x:unique(), 'unique')
  local re, im = cr.rfft(x, { 1, 2 })
  local p, q = cr.rfft(y, { 1, 2 })
  t.ok((p:to 'cpu' - re):abs():max():item() < 1e-3 and (q:to 'cpu' - im):abs():max():item() < 1e-3, 'rfft')
end)

cuda.test('they can be recorded', function()
  local x = cuda.randn { 5, 700 }
  local y = x:to(cuda.device):clone()
  local g = cr.graph(function(v)
    local sorted = v:sort(2)
    return sorted, sorted:cumsum(2)
  end)
  local sorted, sums
  for _ = 1, 3 do sorted, sums = g(y) end
  t.equal(g:why(), nil, 'it is recorded')
  views.same(sorted, (x:sort(2)), 'sorted in a recording')
  t.ok((sums:to 'cpu' - x:sort(2):cumsum(2)):abs():max():item() < 1e-2, 'sums in a recording')
  g:free()
end)

t.done()
