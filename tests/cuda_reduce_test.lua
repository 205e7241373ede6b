--- Reductions and softmax on the card against the CPU's.
local t = require 'tests.support.tap'
local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local views = require 'tests.support.cuda_views'
local flat = require 'tests.support.flat'

local names = { 'sum', 'mean', 'max', 'min', 'var' }

local function dims_of(bits, rank)
  local dims = {}
  for k = 1, rank do
    if math.floor(bits / 2 ^ (k - 1)) % 2 == 1 then dims[#dims + 1] = k end
  end
  return bits ~= 0 and dims or nil, #dims
end

for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i32', 'i64', 'bool' } do
  cuda.test('every set of dimensions, ' .. dtype, function()
    t.each({ { 7 }, { 3, 5 }, { 4, 5, 6 }, { 2, 3, 2, 5 }, { 3, 600, 2 }, { 2, 3, 4100 }, { 5000, 3 }, { 300, 40 } }, function(shape)
      local x = (cuda.randn(shape) * 4 + 9):clamp(0, 100):to(dtype)
      if dtype == 'f16' then x = x * 0.2 end -- sums must stay within its range
      if dtype == 'bool' then x = cuda.randn(shape):gt(0.5) end
      local layouts = views.layouts(x)
      local function check(bits)
        local dims, count = dims_of(bits, #shape)
        cr.scope(function()
          for layout, view in pairs(layouts) do
            if layout == 'dense' or x:numel() < 500 or math.random() < 0.2 then
              local text = ('over %d of [%s] %s'):format(bits, table.concat(shape, ' '), layout)
              for _, name in ipairs(names) do
                local keep = math.random() < 0.5
                local expected = x[name](x, dims, keep)
                local y = view[name](view, dims, keep)
                if name == 'max' or name == 'min' then
                  views.same(y, expected, name .. ' ' .. text)
                else
                  views.check(y, expected, name .. ' ' .. text, dtype == 'f64' and 1e-12 or 1e-6)
                end
              end
              if count <= 1 then
                for _, name in ipairs { 'argmax', 'argmin' } do
                  views.same(view[name](view, dims and dims[1]), x[name](x, dims and dims[1]), name .. ' ' .. text)
                end
              end
            end
          end
        end)
      end
      for bits = 0, 2 ^ #shape - 1 do check(bits) end
    end)
  end)
end

cuda.test('long reductions, split into pieces', function()
  for _, dtype in ipairs { 'f32', 'f16' } do
    for _, shape in ipairs { { 700001 }, { 2, 300007 }, { 100003, 5 }, { 40000, 32 }, { 300, 3001 } } do
      local x = cuda.randn(shape, dtype):to(dtype)
      local y = x:to(cuda.device)
      for dim = 0, #shape do
        local dims = dim > 0 and dim or nil
        for _, name in ipairs { 'mean', 'var' } do
          views.check(y[name](y, dims), x[name](x, dims), name, 1e-6)
        end
        -- Results near zero by cancellation are compared in f64.
        local a, b = y:to('f64'):sum(dims), x:to('f64'):sum(dims)
        t.ok((a:to 'cpu' - b):abs():max():item() < 1e-7, 'sum')
        for _, name in ipairs { 'max', 'min', 'argmax', 'argmin' } do views.same(y[name](y, dims), x[name](x, dims), name) end
      end
    end
  end
  local counts = cr.arange(0, 1e6, 1, { dtype = 'i32', device = cuda.device })
  t.equal(counts:sum():item(), 500000500000)
  local even = cr.full({ 300000 }, 0.1, { device = cuda.device })
  t.near(even:sum():item(), 0.10000000149011612 * 300000, 0.01)
  t.near((even + 1000):var():item(), 0, 1e-6)
end)

cuda.test('ties, nan, empty tensors', function()
  local ties = cr.full({ 3, 20000 }, 2)
  ties:slice(2, 4001, 20000, 7000):fill_(5)
  ties:slice(2, 301, 20000, 9000):fill_(-5)
  local y = ties:to(cuda.device)
  for _, name in ipairs { 'argmax', 'argmin' } do
    views.same(y[name](y, 2), ties[name](ties, 2), name)
    views.same(y[name](y), ties[name](ties), name .. ' of all')
    views.same(y[name](y, 1), ties[name](ties, 1), name .. ' of columns')
  end
  ties:slice(2, 700, 20000, 400):fill_(0 / 0)
  y = ties:to(cuda.device)
  for _, name in ipairs { 'argmax', 'argmin', 'max', 'min', 'sum' } do
    for _, dim in ipairs { 0, 1, 2 } do
      local dims = dim > 0 and dim or nil
      views.same(y[name](y, dims), ties[name](ties, dims), name .. ' with nan')
    end
  end
  local infinite = cr.tensor { { -math.huge, -math.huge }, { math.huge, 1 } }
  views.same(infinite:to(cuda.device):max(2), infinite:max(2))
  views.same(infinite:to(cuda.device):argmax(2), infinite:argmax(2))
  local empty = cr.empty({ 0, 3 }, { device = cuda.device })
  t.equal(empty:sum():item(), 0)
  views.same(empty:sum(1), cr.zeros(3))
  t.equal(empty:sum(2):numel(), 0)
  t.raises(function() empty:mean() end, 'mean: %[0 3%] has no elements to reduce')
  t.equal(cr.tensor(5):to(cuda.device):sum():item(), 5)
end)

cuda.test('given outputs, and the same bits in every run', function()
  for _, dtype in ipairs { 'f32', 'f16' } do
    local x = cuda.randn({ 6, 5, 700 }, dtype):to(dtype)
    local y = x:to(cuda.device)
    for bits, shape in pairs { [1] = { 5, 700 }, [2] = { 6, 700 }, [4] = { 6, 5 } } do
      local dims = dims_of(bits, 3)
      local out, whole = views.holes(shape, dtype)
      cr.check(cr.C.cr_reduce(out.c, cr.C.CR_MEAN, y.c, bits, 0))
      views.check(out, x:mean(dims), 'mean', 1e-6)
      views.untouched(whole, out:numel())
    end
  end
  local x = cr.randn(3, 100001):to(cuda.device)
  local one = x:sum():item()
  for _ = 1, 5 do t.equal(x:sum():item(), one) end
end)

cuda.test('softmax', function()
  for _, dtype in ipairs(views.floats) do
    for _, shape in ipairs { { 1 }, { 3, 7 }, { 2, 3, 32 }, { 9, 77 }, { 4, 256 }, { 3, 257 }, { 2, 2048 }, { 2, 2049 }, { 2, 9000 } } do
      local x = (cuda.randn(shape) * 3):to(dtype)
      local expected = x:softmax()
      for layout, y in pairs(views.layouts(x)) do
        views.check(y:softmax(), expected, ('softmax [%s] %s'):format(table.concat(shape, ' '), layout))
      end
      if flat.tolerance[dtype] and #shape > 1 then
        local out, whole = views.holes(shape, dtype)
        cr.check(cr.C.cr_softmax(out.c, x:to(cuda.device).c))
        views.check(out, expected, 'into gaps')
        views.untouched(whole, out:numel())
      end
    end
  end
  local inf = math.huge
  local special = cr.tensor { { 0, -inf, 0 }, { 1000, 1000, -1000 }, { -inf, -inf, -inf }, { 0 / 0, 1, 2 }, { inf, 1, 2 } }
  views.same(special:to(cuda.device):softmax(), special:softmax(), 'special rows')
  t.equal(cr.empty({ 0, 4 }, { device = cuda.device }):softmax():numel(), 0)
end)

t.done()
