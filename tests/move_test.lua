--- Copying, converting, filling, joining, gathering and padding.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local flat = require 'tests.support.flat'

local values, strided = flat.values, flat.strided
local dtypes = { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64', 'bool' }

local function same(x, list, message)
  local got = values(x)
  local bad = #got ~= #list and 0
  for i = 1, #list do
    if not bad and got[i] ~= list[i] and not (got[i] ~= got[i] and list[i] ~= list[i]) then bad = i end
  end
  t.ok(not bad, ('%s: element %s is %s, expected %s'):format(message or 'differs', bad, tostring(got[bad]), tostring(list[bad])))
end

t.test('copies of every order of dimensions, to and from gaps', function()
  for _, dtype in ipairs { 'u8', 'f16', 'f32', 'i64' } do
    for _, shape in ipairs { { 37, 3, 65 }, { 1, 5, 2 }, { 70, 41, 1 }, { 2, 3, 4, 5 } } do
      local x = (flat.randn(shape) * 50):clamp(0, 120):to(dtype)
      for _, order in ipairs(flat.permutations(#shape)) do
        cr.scope(function()
          local view = x:permute(unpack(order))
          local list = values(view)
          same(view:clone(), list, 'copy')
          local gaps = strided(view)
          same(gaps, list, 'copy into gaps')
          same(gaps:clone(), list, 'copy out of gaps')
        end)
      end
    end
  end
  local row = cr.tensor { 1, 2, 3 }
  same(row:expand(4, 3):clone(), { 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3 }, 'repeated')
  same(row:unsqueeze(2):expand(3, 2):clone(), { 1, 1, 2, 2, 3, 3 }, 'repeated inside')
  t.equal(cr.empty(0, 3):clone():numel(), 0)
end)

t.test('conversions between all dtypes', function()
  local numbers = { 0, 1, -1, 2.75, -2.75, 100, 127, -128, 0.5 }
  for _, from in ipairs(dtypes) do
    local x = cr.tensor(numbers, { dtype = from })
    local list = values(x)
    for _, to in ipairs(dtypes) do
      local expected = {}
      for i, v in ipairs(list) do
        if to == 'bool' then
          v = v ~= 0 and 1 or 0
        elseif not flat.tolerance[to] then
          v = v < 0 and math.ceil(v) or math.floor(v)
          if to == 'u8' then
            v = flat.tolerance[from] and math.max(v, 0) or v % 256 -- floats saturate, integers wrap
          elseif to == 'i8' then
            v = flat.tolerance[from] and math.min(v, 127) or (v + 128) % 256 - 128
          end
        end
        expected[i] = v
      end
      for _, view in ipairs { x, strided(x) } do
        local y = view:to(to)
        t.equal(y.dtype, to)
        same(y, expected, from .. ' to ' .. to)
      end
    end
  end
end)

t.test('floats to integers truncate and saturate; nan becomes 0', function()
  local inf = math.huge
  for _, from in ipairs { 'f32', 'f64' } do
    local x = cr.tensor({ 0 / 0, inf, -inf, 1e20, -1e20, 300.9, -300.9 }, { dtype = from })
    same(x:to 'u8', { 0, 255, 0, 255, 0, 255, 0 })
    same(x:to 'i8', { 0, 127, -128, 127, -128, 127, -128 })
    same(x:to 'i16', { 0, 32767, -32768, 32767, -32768, 300, -300 })
    same(x:to 'i32', { 0, 2147483647, -2147483648, 2147483647, -2147483648, 300, -300 })
    local wide = x:to 'i64':pointer()
    t.ok(wide[1] == 0x7fffffffffffffffLL and wide[2] == -0x7fffffffffffffffLL - 1 and wide[0] == 0, 'i64')
  end
  local big = cr.tensor({ 9007199254740993LL }, { dtype = 'i64' })
  t.ok(big:clone():to 'i64':pointer()[0] == 9007199254740993LL)
  same(cr.tensor({ 9007199254740993LL }, { dtype = 'i64' }):to 'f32', { 9007199254740992 })
end)

t.test('every half and its neighbours', function()
  local ffi = require 'ffi'
  local bits = ffi.new('uint16_t[?]', 65536)
  for i = 0, 65535 do bits[i] = i end
  for dtype, decode in pairs { f16 = flat.half, bf16 = flat.brain } do
    local x = cr.from_pointer(bits, { 65536 }, dtype, bits)
    local wide = x:to 'f64'
    local p = wide:pointer()
    local back = wide:to(dtype)
    local q = ffi.cast('uint16_t *', cr.C.cr_data(back.c))
    local wrong, lost = 0, 0
    for i = 0, 65535 do
      local v = decode(i)
      if v == v and p[i] ~= v or v ~= v and p[i] == p[i] then wrong = wrong + 1 end
      if v == v and q[i] ~= i then lost = lost + 1 end
    end
    t.equal(wrong, 0, dtype .. ' to f64')
    t.equal(lost, 0, 'and back')
    -- Halfway between neighbours it rounds to even; otherwise to the nearer one.
    local middles, expected = {}, {}
    for i = 0, 0x7bfe, 7 do
      local a, b = decode(i), decode(i + 1)
      if b < math.huge then
        local m = (a + b) / 2
        for _, v in ipairs { m, m + (b - a) * 2 ^ -40, m - (b - a) * 2 ^ -40 } do
          middles[#middles + 1] = v
          expected[#expected + 1] = v > m and b or v < m and a or (i % 2 == 0 and a or b)
        end
      end
    end
    same(cr.tensor(middles, { dtype = 'f64' }):to(dtype), expected, 'rounding f64 to ' .. dtype)
  end
  same(cr.tensor { 65519.996, 65520, 1e-8, 2.98e-8, 2.99e-8 }:to 'f16', { 65504, math.huge, 0, 0, 2 ^ -24 })
end)

t.test('fill and arange', function()
  for _, dtype in ipairs(dtypes) do
    local x = cr.empty({ 33, 70 }, { dtype = dtype }):fill_(1)
    local list = {}
    for i = 1, 33 * 70 do list[i] = 1 end
    same(x, list, 'fill ' .. dtype)
    x:slice(2, 2, 70, 3):fill_(0)
    for i = 1, 33 * 70 do list[i] = ((i - 1) % 70 + 1) % 3 == 2 and 0 or 1 end
    same(x, list, 'fill with gaps ' .. dtype)
    if dtype ~= 'bool' then same(cr.arange(2, 11, 3, { dtype = dtype }), { 2, 5, 8, 11 }, 'arange ' .. dtype) end
  end
  t.equal(cr.arange(3000, { dtype = 'i32' }):tolist()[2500], 2500)
  t.raises(function() cr.arange(3, { dtype = 'bool' }) end, 'arange: bool is not supported')
end)

t.test('cat and stack', function()
  for _, dtype in ipairs { 'u8', 'f16', 'f32', 'f64' } do
    for dim = 1, 3 do
      local parts, shape = {}, { 3, 4, 5 }
      for i, size in ipairs { 2, 0, 6 } do
        shape[dim] = size
        parts[i] = strided((flat.randn(shape) * 20 + 60):to(dtype))
      end
      local all = cr.cat(parts, dim)
      t.equal(all:size(dim), 8)
      same(all:slice(dim, 1, 2), values(parts[1]))
      same(all:slice(dim, 3, 8), values(parts[3]))
    end
  end
  same(cr.stack({ cr.tensor { 1, 2 }, cr.tensor { 3, 4 } }, 2), { 1, 3, 2, 4 })
  t.raises(function() cr.cat({ cr.ones(2, 3), cr.ones(2, 4) }, 1) end,
    'cat: the sizes must be equal in all dimensions but 1: %[2 3%] and %[2 4%]')
  t.raises(function() cr.cat({ cr.ones(2), cr.ones(2):to 'f16' }, 1) end, 'cat: dtypes differ: f32 %[2%] and f16 %[2%]')
end)

t.test('gather_rows', function()
  local x = flat.randn { 9, 4, 2 }
  for _, view in ipairs { x, strided(x) } do
    local y = view:gather_rows { 4, 4, 1, 9 }
    same(y, values(cr.cat({ x:slice(1, 4, 4), x:slice(1, 4, 4), x:slice(1, 1, 1), x:slice(1, 9, 9) }, 1)))
  end
  t.equal(x:gather_rows(cr.tensor({ 2 }, { dtype = 'i32' })):size(1), 1)
  t.raises(function() x:gather_rows { 10 } end, 'gather: index 10 is out of range: dimension 1 of %[9 4 2%] has the indices 1 to 9')
  t.raises(function() x:gather_rows { 0 } end, 'gather: index 0 is out of range')
end)

t.test('indexing of parts and elements, along every dimension, reading and writing', function()
  local shape = { 3, 4, 5 }
  for _, dtype in ipairs { 'u8', 'f16', 'f32', 'f64', 'i64' } do
    local x = (flat.randn(shape) * 20 + 60):to(dtype)
    for _, view in ipairs { x, strided(x) } do
      local all = values(view)
      for dim = 1, 3 do
        local size = shape[dim]
        local step = ({ 20, 5, 1 })[dim]
        -- The element at place i, with another place of this dimension.
        local function moved(i, place) return all[i + (place - 1 - math.floor((i - 1) / step) % size) * step] end
        local list, want = { size, 1, -1, 2 }, {}
        local part = view:index_select(dim, list)
        for k, n in ipairs(list) do
          same(part:narrow(dim, k, 1), values(view:narrow(dim, n < 0 and size + 1 + n or n, 1)), dtype .. ' part')
        end
        same(view:clone():index_copy_(dim, list, part), all, 'parts written back')
        local places = cr.randint(1, size + 1, shape, { dtype = dim == 2 and 'i32' or 'i64' })
        for i, n in ipairs(values(places)) do want[i] = moved(i, n) end
        same(view:gather(dim, places), want, dtype .. ' elements')
        same(view:gather(dim, places - size - 1), want, dtype .. ' elements, from the end')
        -- A permutation of each line, so that every element is written once.
        local order = cr.rand(3, 4, 5):argsort(dim)
        local gathered = view:gather(dim, order)
        same(strided(cr.zeros(shape, { dtype = dtype })):scatter_(dim, order, gathered), all, dtype .. ' written')
        local sums = cr.zeros(shape, { dtype = 'f64' }):scatter_add_(dim, places, view:to 'f64')
        t.near(sums:sum(dim), view:to 'f64':sum(dim), 1e-12, dtype .. ' added')
      end
    end
  end
  local x = cr.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
  same(x:scatter_add_(1, cr.tensor({ { 1, 1, 1 }, { 1, 2, 1 } }, { dtype = 'i64' }), cr.ones(2, 3)), { 3, 3, 5, 4, 6, 6 })
  local y = cr.zeros(2, 3)
  y[cr.tensor({ { 1, 2 } }, { dtype = 'i64' })] = cr.tensor { 7, 8, 9 }
  same(y, { 7, 8, 9, 7, 8, 9 }, 'an index of two dimensions')
  local four = cr.tensor({ { 4 } }, { dtype = 'i64' })
  t.raises(function() x:gather(2, four) end, 'gather: index 4 is out of range: dimension 2 of %[2 3%] has the indices 1 to 3')
  t.raises(function() x:index_copy_(1, { -3 }, 1) end, 'scatter: index %-3 is out of range')
  t.raises(function() x:gather(1, cr.ones({ 2, 4 }, { dtype = 'i64' })) end, 'larger than %[2 3%] in dimension 2')
  t.raises(function() cr.zeros(0, 2):gather_rows { 1 } end, 'gather: dimension 1 of %[0 2%] is empty')
  t.equal(cr.zeros(0, 2):gather_rows({}):numel(), 0)
end)

t.test('where elements are not 0', function()
  local x = cr.tensor { { 0, 3, 0 }, { 1, 0, -2 } }
  same(x:nonzero(), { 1, 2, 2, 1, 2, 3 })
  same(strided(x:gt(0)):nonzero(), { 1, 2, 2, 1 })
  t.equal(table.concat(cr.zeros(2, 3):nonzero().shape, ' '), '0 2')
  same(x[x:ne(0)], { 3, 1, -2 })
  same(cr.arange(5000):gt(4998):nonzero(), { 4999, 5000 })
end)

t.test('pad', function()
  local x = cr.tensor { { 1, 2 }, { 3, 4 } }
  same(nn.pad(x, { 1, 0 }, { 0, 2 }, -5), { -5, -5, -5, -5, 1, 2, -5, -5, 3, 4, -5, -5 })
  same(nn.pad(strided(x:to 'u8'), { 0, 1 }, { 0, 0 }), { 0, 1, 2, 0, 3, 4 })
  t.raises(function() nn.pad(x, { -1, 0 }, { 0, 0 }) end, 'pad: the padding must not be negative: dimension 1 of %[2 2%] by %-1 and 0')
end)

t.test('messages', function()
  local x = cr.ones(2, 3)
  t.raises(function() cr.empty(3, 2):copy_(x) end, '%[2 3%] cannot become %[3 2%]')
  local small = cr.empty(3)
  t.raises(function() cr.check(cr.C.cr_copy(small.c, x.c)) end,
    'copy: the result is f32 %[2 3%], but the tensor given for it is f32 %[3%]')
  local freed = cr.ones(2)
  freed:free()
  t.raises(function() freed:clone() end, 'freed')
end)

t.done()
