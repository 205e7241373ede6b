--- Copying, converting, joining, gathering and padding on the card against the CPU's.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local ffi = require 'ffi'
local cuda = require 'tests.support.cuda'
local views = require 'tests.support.cuda_views'
local flat = require 'tests.support.flat'

cuda.test('copies of every order of dimensions, to and from gaps', function()
  for _, dtype in ipairs { 'u8', 'f16', 'f32', 'f64' } do
    for _, shape in ipairs { { 37, 3, 65 }, { 1, 5, 2 }, { 70, 41, 1 }, { 2, 3, 4, 16 }, { 64, 2, 96 }, { 33, 130 } } do
      local x = views.random(shape, dtype)
      local y = x:to(cuda.device)
      for _, order in ipairs(flat.permutations(#shape)) do
        cr.scope(function()
          local expected, view = x:permute(unpack(order)):contiguous(), y:permute(unpack(order))
          local text = ('%s [%s]'):format(dtype, table.concat(order, ' '))
          local out = views.poisoned(view.shape, dtype):copy_(view)
          views.same(out, expected, 'copy ' .. text)
          local gaps, whole = views.holes(view.shape, dtype)
          gaps:copy_(view)
          views.same(gaps, expected, 'copy into gaps ' .. text)
          if flat.tolerance[dtype] then views.untouched(whole, gaps:numel(), text) end
          views.same(gaps:clone(), expected, 'copy out of gaps ' .. text)
        end)
      end
    end
  end
  local row = cr.tensor { 1, 2, 3 }:to(cuda.device)
  views.same(row:expand(4, 3):clone(), cr.tensor { { 1, 2, 3 }, { 1, 2, 3 }, { 1, 2, 3 }, { 1, 2, 3 } })
  views.same(row:unsqueeze(2):expand(3, 2):clone(), cr.tensor { { 1, 1 }, { 2, 2 }, { 3, 3 } })
  t.equal(cr.empty({ 0, 3 }, { device = cuda.device }):clone():numel(), 0)
  t.equal(cr.empty(0, 3):to(cuda.device):to('cpu'):numel(), 0)
end)

cuda.test('larger copies: dense, rows of a wider tensor, transposed', function()
  for _, dtype in ipairs { 'f16', 'f32' } do
    local x = cuda.randn({ 3, 300, 520 }, dtype):to(dtype)
    local y = x:to(cuda.device)
    local function same(a, b, text) t.equal(a:to('cpu'):ne(b):sum():item(), 0, text) end
    same(y:clone(), x, 'dense')
    same(y:transpose(2, 3):clone(), x:transpose(2, 3), 'transposed')
    same(y:transpose(1, 2):clone(), x:transpose(1, 2), 'rows in another order')
    same(y:narrow(3, 9, 312):clone(), x:narrow(3, 9, 312), 'columns')
    same(y:narrow(3, 2, 311):clone(), x:narrow(3, 2, 311), 'odd columns')
    same(y:slice(3, 1, 520, 2):clone(), x:slice(3, 1, 520, 2), 'every other')
  end
end)

cuda.test('conversions between all dtypes', function()
  for _, from in ipairs(views.all) do
    for _, shape in ipairs { { 9 }, { 4, 48 } } do
      local x = cr.cat({ cr.tensor { 0, 1, -1, 2.75, -2.75, 100, 127, -128, 0.5 }, cuda.randn { 183 } * 70 }, 1)
      x = x:narrow(1, 1, shape[2] and 192 or 9):view(shape):to(from)
      for _, to in ipairs(views.all) do
        cr.scope(function()
          local expected = x:to(to)
          for layout, view in pairs(views.layouts(x)) do
            views.same(view:to(to), expected, from .. ' to ' .. to .. ' ' .. layout)
          end
          local out = views.holes(shape, to)
          views.same(out:copy_(x), expected, from .. ' up to ' .. to .. ' with gaps')
          local back = flat.strided(cr.zeros(shape, { dtype = to }))
          back:copy_(x:to(cuda.device))
          views.same(back, expected, from .. ' down to ' .. to .. ' with gaps')
        end)
      end
    end
  end
end)

cuda.test('floats to integers truncate and saturate; nan becomes 0', function()
  local inf = math.huge
  for _, from in ipairs { 'f32', 'f64', 'f16', 'bf16' } do
    local x = cr.tensor({ 0 / 0, inf, -inf, 1e20, -1e20, 300.9, -300.9, 40000, -40000, 255.5, 0.99, -0.99 }, { dtype = from })
    for _, to in ipairs { 'u8', 'i8', 'i16', 'i32', 'i64', 'bool' } do
      views.same(x:to(cuda.device):to(to), x:to(to), from .. ' to ' .. to)
    end
  end
  for _, value in ipairs { 9007199254740993LL, -0x7fffffffffffffffLL } do
    local big = cr.tensor({ value }, { dtype = 'i64' })
    local y = big:to(cuda.device)
    t.ok(y:clone():to('cpu'):pointer()[0] == value)
    for _, to in ipairs(views.all) do views.same(y:to(to), big:to(to), 'i64 to ' .. to) end
  end
end)

cuda.test('every half and its neighbours', function()
  local bits = ffi.new('uint16_t[?]', 65536)
  for i = 0, 65535 do bits[i] = i end
  for dtype, decode in pairs { f16 = flat.half, bf16 = flat.brain } do
    local x = cr.from_pointer(bits, { 65536 }, dtype, bits)
    local y = x:to(cuda.device)
    local finite = cr.where(x:to('f64'):eq(x:to('f64')), x:to 'f64', cr.zeros({ 1 }, { dtype = 'f64' }))
    local wide = y:to 'f64'
    t.equal(cr.where(wide:eq(wide), wide, cr.zeros({ 1 }, { dtype = 'f64', device = cuda.device })):to('cpu'):ne(finite):sum():item(),
      0, dtype .. ' to f64')
    views.same(y:to 'f32', x:to 'f32', dtype .. ' to f32')
    local back = wide:to(dtype):to 'cpu'
    local q = ffi.cast('uint16_t *', cr.C.cr_data(back.c))
    local lost = 0
    for i = 0, 65535 do
      local v = decode(i)
      if v == v and q[i] ~= i then lost = lost + 1 end
    end
    t.equal(lost, 0, back.dtype .. ' and back')
    -- Halfway between neighbours, and slightly more or less.
    local middles = {}
    for i = 0, 0x7bfe, 7 do
      local a, b = decode(i), decode(i + 1)
      if b < math.huge then
        local m = (a + b) / 2
        for _, v in ipairs { m, m + (b - a) * 2 ^ -40, m - (b - a) * 2 ^ -40 } do middles[#middles + 1] = v end
      end
    end
    local m = cr.tensor(middles, { dtype = 'f64' })
    views.same(m:to(cuda.device):to(dtype), m:to(dtype), 'rounding f64 to ' .. dtype)
    views.same(m:to(cuda.device):to('f32'):to(dtype), m:to('f32'):to(dtype), 'rounding f32 to ' .. dtype)
  end
end)

cuda.test('cat and stack', function()
  for _, dtype in ipairs { 'u8', 'f16', 'f32', 'f64' } do
    for dim = 1, 3 do
      for _, sizes in ipairs { { 2, 0, 6 }, { 3 }, { 8, 16 }, { 1, 2, 3, 4 }, { 2, 1, 1, 1, 3 } } do
        for _, rest in ipairs { { 3, 4, 5 }, { 2, 6, 32 } } do
          cr.scope(function()
            local cpu, card, total = {}, {}, 0
            for i, size in ipairs(sizes) do
              local shape = { unpack(rest) }
              shape[dim] = size
              cpu[i] = views.random(shape, dtype)
              local layouts = views.layouts(cpu[i])
              local name = next(layouts, math.random() < 0.5 and 'dense' or nil)
              if math.random() < 0.5 then name = 'dense' end
              card[i] = layouts[name] or layouts.dense
              total = total + size
            end
            local expected = cr.cat(cpu, dim)
            views.same(cr.cat(card, dim), expected, ('cat along %d of %d %s'):format(dim, #sizes, dtype))
            local list = ffi.new('const cr_tensor *[?]', #card)
            for i, x in ipairs(card) do list[i - 1] = x.c end
            local out = views.holes(expected.shape, dtype)
            cr.check(cr.C.cr_cat(out.c, #card, list, dim - 1))
            views.same(out, expected, 'into gaps')
          end)
        end
      end
    end
  end
  -- A batch that is a broadcast view, like the second half of a UNet's skips.
  local x, skip = cuda.randn({ 2, 3, 5, 16 }, 'f16'):to 'f16', cuda.randn({ 1, 3, 5, 8 }, 'f16'):to 'f16'
  views.same(cr.cat({ x:to(cuda.device), skip:to(cuda.device):expand(2, -1, -1, -1) }, 4),
    cr.cat({ x, skip:expand(2, -1, -1, -1) }, 4), 'repeated')
  local a, b = cr.tensor { 1, 2 }:to(cuda.device), cr.tensor { 3, 4 }:to(cuda.device)
  views.same(cr.stack({ a, b }, 2), cr.tensor { { 1, 3 }, { 2, 4 } })
end)

cuda.test('gather_rows', function()
  for _, dtype in ipairs { 'u8', 'f16', 'f32', 'f64' } do
    for _, shape in ipairs { { 9, 4, 2 }, { 9, 16 }, { 9, 3 }, { 9 } } do
      local x = views.random(shape, dtype)
      local index = { 4, 4, 1, 9, 2 }
      for layout, view in pairs(views.layouts(x)) do
        views.same(view:gather_rows(index), x:gather_rows(index), dtype .. ' ' .. layout)
      end
    end
  end
  local x = cuda.randn { 9, 4, 2 }
  local y = x:to(cuda.device)
  views.same(y:gather_rows(cr.tensor({ 2 }, { dtype = 'i32' }):to(cuda.device)), x:gather_rows { 2 })
  local three = cr.tensor({ 1, 6, -1 }, { dtype = 'i32' }):to(cuda.device)
  local out, whole = views.holes({ 3, 4, 2 }, 'f32')
  cr.check(cr.C.cr_gather(out.c, y.c, 0, three.c))
  views.same(out, x:gather_rows { 1, 6, 9 }, 'i32 into gaps')
  views.untouched(whole, 24)
  t.equal(y:gather_rows({}):numel(), 0)
  t.raises(function() y:gather_rows { 10 } end, 'gather: index 10 is out of range: dimension 1 of %[9 4 2%] has the indices 1 to 9')
  t.raises(function() y:gather_rows { 0 } end, 'gather: index 0 is out of range')
end)

cuda.test('parts and elements by an index, along every dimension, read and written', function()
  local shape = { 5, 4, 16 }
  for _, dtype in ipairs(views.all) do
    local x = views.random(shape, dtype)
    for layout, view in pairs(views.layouts(x)) do
      for dim = 1, 3 do
        cr.scope(function()
          local text = ('%s %s, dimension %d'):format(dtype, layout, dim)
          local list = cr.tensor({ 3, 1, -1, 3, 2 }, { dtype = dim == 2 and 'i32' or 'i64' })
          views.same(view:index_select(dim, list:to(cuda.device)), x:index_select(dim, list), text .. ', parts')
          local places = cr.randint(1, shape[dim] + 1, shape)
          views.same(view:gather(dim, places:to(cuda.device)), x:gather(dim, places), text .. ', elements')
          local order = cr.rand(5, 4, 16):argsort(dim)
          local gaps, whole = views.holes(shape, dtype)
          gaps:fill_(0)
          gaps:scatter_(dim, order:to(cuda.device), view)
          views.same(gaps, cr.zeros(shape, { dtype = dtype }):scatter_(dim, order, x), text .. ', written')
          if flat.tolerance[dtype] then views.untouched(whole, gaps:numel(), text) end
        end)
      end
    end
  end
  local x = cuda.randn { 700, 33 }
  local mask = x:gt(0.5)
  local y, m = x:to(cuda.device), mask:to(cuda.device)
  views.same(m:nonzero(), mask:nonzero(), 'where a mask is set')
  views.same(m:t():nonzero(), mask:t():nonzero(), 'turned')
  views.same(y:nonzero(), x:nonzero())
  views.same(y[m], x[mask], 'elements where a mask is set')
  views.same(y[m:select(2, 1)], x[mask:select(2, 1)], 'rows where a mask is set')
  t.equal(y:gt(100):nonzero():size(1), 0)
end)

cuda.test('an index out of range is reported by the next call that waits', function()
  local y = cr.zeros({ 9, 4 }, { device = cuda.device })
  local function at(...) return cr.tensor({ ... }, { dtype = 'i64' }):to(cuda.device) end
  local text = 'gather: index 10 is out of range: dimension 1 of %[9 4%] has the indices 1 to 9'
  y:gather_rows(at(1, 10)) -- nothing waits yet
  t.raises(function() cr.cuda.synchronize() end, text)
  cr.cuda.synchronize()
  local z = y:gather_rows(at(10, 9))
  t.raises(function() z:sum():item() end, text)
  y:index_select(2, at(0))
  t.raises(function() cr.run(function() cr.await(cr.cuda.mark()) end) end,
    'gather: index 0 is out of range: dimension 2 of %[9 4%] has the indices 1 to 4')
  y:scatter_(1, at(-10):view(1, 1), 3)
  t.raises(function() y:tolist() end, 'scatter: index %-10 is out of range')
  cuda.with({ blocking = true }, function() t.raises(function() y:gather_rows(at(10)) end, text) end)
  local g = cr.graph(function(index) return y:gather_rows(index) end)
  for _, row in ipairs { 1, 9, 10 } do g(at(row)) end
  t.raises(function() cr.cuda.synchronize() end, text)
  t.equal(g:why(), nil, 'it is recorded')
  g:free()
  t.equal(y:gather_rows(at(9)):sum():item(), 0, 'the card goes on')
end)

cuda.test('pad', function()
  for _, dtype in ipairs { 'u8', 'f16', 'f32' } do
    local x = views.random({ 3, 5, 8 }, dtype)
    for layout, y in pairs(views.layouts(x)) do
      for _, value in ipairs { 0, 5 } do
        views.same(nn.pad(y, { 1, 0, 2 }, { 0, 2, 6 }, value), nn.pad(x, { 1, 0, 2 }, { 0, 2, 6 }, value), layout)
      end
    end
  end
end)

cuda.test('item, tolist, nan', function()
  t.equal(cr.tensor({ 5 }, { dtype = 'i64' }):to(cuda.device):item(), 5)
  t.equal(cr.tensor({ 2.5 }):to(cuda.device):item(), 2.5)
  for _, dtype in ipairs(views.floats) do
    local y = cr.tensor({ 1.5, 0 / 0, -math.huge }, { dtype = dtype }):to(cuda.device)
    local list = y:tolist()
    t.ok(list[1] == 1.5 and list[2] ~= list[2] and list[3] == -math.huge)
    list = y:to('f64'):neg():tolist()
    t.ok(type(list[2]) == 'number' and list[2] ~= list[2])
  end
end)

t.done()
