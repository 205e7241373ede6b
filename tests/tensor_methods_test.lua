--- Tensor methods that are written in Lua: indexing, in-place forms, einsum, Fourier transforms, image helpers.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'

local function grid(h, w, options)
  return cr.arange(1, h * w, 1, options):view(h, w)
end

t.test('reading x[key]: views, rows and masks', function()
  local x = grid(3, 4)
  t.near(x[2], { 5, 6, 7, 8 }, 0)
  t.near(x[-1], { 9, 10, 11, 12 }, 0, 'from the end')
  t.equal(x[{ 2, 3 }]:item(), 7)
  t.near(x[{ { 2, 3 }, {} }], { { 5, 6, 7, 8 }, { 9, 10, 11, 12 } }, 0)
  t.near(x[{ {}, { 1, 4, 2 } }], { { 1, 3 }, { 5, 7 }, { 9, 11 } }, 0, 'a step')
  t.near(x[{ {}, -1 }], { 4, 8, 12 }, 0)
  t.near(x[cr.tensor({ 3, 1, -3 }, { dtype = 'i64' })], { { 9, 10, 11, 12 }, { 1, 2, 3, 4 }, { 1, 2, 3, 4 } }, 0, 'rows')
  t.near(x[{ {}, cr.tensor({ 4, 1 }, { dtype = 'i64' }) }], { { 4, 1 }, { 8, 5 }, { 12, 9 } }, 0, 'columns')
  t.equal(table.concat(x[cr.tensor({ { 1, 2 }, { 3, 1 } }, { dtype = 'i64' })].shape, ' '), '2 2 4', 'an index of two dimensions')
  t.near(x[x:gt(10)], { 11, 12 }, 0, 'a mask over all')
  t.near(x[cr.tensor({ 1, 0, 1 }, { dtype = 'bool' })], { { 1, 2, 3, 4 }, { 9, 10, 11, 12 } }, 0, 'a mask over rows')
  t.equal(table.concat(x[x:gt(99)].shape, ' '), '0')
  local sum = 0
  for i, row in ipairs(x) do sum = sum + i * row:sum():item() end
  t.equal(sum, 10 + 2 * 26 + 3 * 42, 'ipairs goes over rows')
  local view = x[{ {}, { 2, 3 } }]
  view:fill_(0)
  t.equal(x:sum():item(), 78 - 5 - 13 - 21, 'parts are views')
end)

t.test('writing x[key] = y: views, rows and masks', function()
  local x = cr.zeros(3, 4)
  x[2] = 1
  x[{ 1, 2 }] = 5
  x[{ {}, { 4 } }] = cr.tensor { { 7 }, { 8 }, { 9 } }
  t.near(x, { { 0, 5, 0, 7 }, { 1, 1, 1, 8 }, { 0, 0, 0, 9 } }, 0)
  x[x:gt(6)] = -1
  t.near(x, { { 0, 5, 0, -1 }, { 1, 1, 1, -1 }, { 0, 0, 0, -1 } }, 0)
  x[cr.tensor({ 3, 1 }, { dtype = 'i64' })] = cr.tensor { { 1, 2, 3, 4 }, { 5, 6, 7, 8 } }
  t.near(x, { { 5, 6, 7, 8 }, { 1, 1, 1, -1 }, { 1, 2, 3, 4 } }, 0)
  x[{ {}, cr.tensor({ 4, 2 }, { dtype = 'i64' }) }] = cr.tensor { { 10, 20 }, { 30, 40 }, { 50, 60 } }
  t.near(x, { { 5, 20, 7, 10 }, { 1, 40, 1, 30 }, { 1, 60, 3, 50 } }, 0, 'columns in an order of their own')
  x[x:eq(1)] = cr.tensor { 100, 200, 300 }
  t.near(x, { { 5, 20, 7, 10 }, { 100, 40, 200, 30 }, { 300, 60, 3, 50 } }, 0, 'one value for each place')
  local turned = cr.zeros(4, 3):t()
  turned[turned:eq(0)] = cr.arange(1, 12)
  t.near(turned, grid(3, 4), 0, 'into a tensor with gaps')
  t.raises(function() x[x:gt(0)] = cr.ones(3) end, 'x%[mask%] = y: y %[3%] does not fit %[12%]')
end)

t.test('in-place methods, also with other dtypes and views of the same tensor', function()
  local x = cr.tensor { 1, 2, 3 }
  t.ok(rawequal(x:add_(1), x), 'it gives itself')
  x:mul_(cr.tensor({ 2, 2, 2 }, { dtype = 'f64' })):sub_(1)
  t.near(x, { 3, 5, 7 }, 0)
  x:exp_():log_():round_():clamp_(4, 6)
  t.near(x, { 4, 5, 6 }, 0)
  local m = grid(2, 2)
  m:add_(m:t())
  t.near(m, { { 2, 5 }, { 5, 8 } }, 0, 'a view of itself is read whole first')
  local i = cr.tensor({ 4, 6 }, { dtype = 'i32' })
  t.raises(function() i:div_(4) end, 'div_: i32 cannot hold the result')
  t.raises(function() i:add_(0.5) end, 'add_: i32 cannot hold the result')
  i:add_(1)
  t.equal(i.dtype, 'i32')
  x:lerp_(cr.zeros(3), 0.5):masked_fill_(cr.tensor({ 1, 0, 0 }, { dtype = 'bool' }), -1):zero_()
  t.near(x, { 0, 0, 0 }, 0)
  local g = cr.generator(7)
  local y = cr.empty(2000):normal_(3, 2, { generator = g })
  t.ok(math.abs(y:mean():item() - 3) < 0.2 and math.abs(y:std():item() - 2) < 0.2, 'normal numbers')
  y:uniform_(-1, 1, { generator = g })
  t.ok(y:min():item() >= -1 and y:max():item() < 1 and math.abs(y:mean():item()) < 0.1, 'uniform numbers')
end)

t.test('random integers and permutations', function()
  local g = cr.generator(3)
  local x = cr.randint(-2, 3, { 3000 }, { generator = g })
  t.equal(x.dtype, 'i64')
  t.near(x:unique():to 'f32', { -2, -1, 0, 1, 2 }, 0)
  local p = cr.randperm(100, { generator = g })
  t.near(p:sort():to 'f32', cr.arange(1, 100), 0, 'each number once')
  t.ok(not p:equal(cr.arange(1, 100):to 'i64'), 'in another order')
  t.raises(function() cr.randint(2, 2, { 1 }) end, 'randint: low = 2 must be below high = 2')
end)

t.test('einsum: sums, diagonals, batches, three operands', function()
  local a, b = cr.randn(3, 4), cr.randn(4, 5)
  t.near(cr.einsum('ij,jk->ik', a, b), a:matmul(b), 1e-6)
  t.near(cr.einsum('ij,jk', a, b), a:matmul(b), 1e-6, 'without an arrow')
  t.near(cr.einsum('ij->ji', a), a:t(), 0)
  t.near(cr.einsum('ij->', a), a:sum(), 1e-6)
  local s = cr.randn(4, 4)
  t.near(cr.einsum('ii->i', s), s:diag(), 0)
  t.near(cr.einsum('ii', s), s:trace(), 1e-6)
  t.near(cr.einsum('ij,jk,kl->il', a, b, b:t()), a:matmul(b):matmul(b:t()), 1e-5)
  local q, k = cr.randn(2, 3, 7, 5), cr.randn(2, 3, 6, 5)
  t.near(cr.einsum('bhtd,bhsd->bhts', q, k), q:matmul(k:transpose(3, 4)), 1e-6)
  t.near(cr.einsum('i,j->ij', cr.tensor { 1, 2 }, cr.tensor { 3, 4 }), { { 3, 4 }, { 6, 8 } }, 0)
  t.raises(function() cr.einsum('ij,jk->iz', a, b) end, "einsum: 'z' of the result is in no operand")
  t.raises(function() cr.einsum('ij,kj->ik', a, b) end, "einsum: 'j' has both the size 4 and the size 5")
  t.raises(function() cr.einsum('ijk', a) end, "einsum: 'ijk' has 3 letters, tensor 1 has 2 dimensions")
  t.raises(function() cr.einsum('ij,jk', a) end, "einsum: 'ij,jk' has 2 operands, but 1 tensors are given")
end)

t.test('rfft and irfft follow their definitions', function()
  for _, n in ipairs { 1, 2, 7, 12 } do
    local x = cr.randn(3, n)
    local re, im = cr.rfft(x)
    local rows = x:tolist()
    for r = 1, 3 do
      for f = 0, math.floor(n / 2) do
        local c, s = 0, 0
        for j = 0, n - 1 do
          c = c + rows[r][j + 1] * math.cos(2 * math.pi * j * f / n)
          s = s - rows[r][j + 1] * math.sin(2 * math.pi * j * f / n)
        end
        t.ok(math.abs(re[{ r, f + 1 }]:item() - c) < 1e-5 and math.abs(im[{ r, f + 1 }]:item() - s) < 1e-5,
          ('%d numbers, frequency %d'):format(n, f))
      end
    end
    t.near(cr.irfft(re, im, -1, n), x, 1e-5, n .. ' numbers there and back')
  end
  local x = cr.randn(2, 5, 6, 3)
  local re, im = cr.rfft(x, { 2, 3 })
  t.equal(table.concat(re.shape, ' '), '2 5 4 3')
  t.near(re[{ {}, 1, 1 }], x:sum { 2, 3 }, 1e-5, 'the frequency 0 is the sum')
  t.near(cr.irfft(re, im, { 2, 3 }), x, 1e-5)
  t.raises(function() cr.irfft(re, im, { 2, 3 }, 9) end, 'irfft: 4 frequencies do not belong to a length of 9')
end)

t.test('images: distances, sizes, positions', function()
  local a = cr.rand(2, 16, 15, 3)
  t.near(nn.ssim(a, a), 1, 1e-6)
  t.ok(nn.ssim(a, 1 - a):item() < 0, 'a negative is unlike')
  t.near(nn.ssim((a * 255):to 'u8', (a * 255):to 'u8'), 1, 1e-6)
  t.near(nn.mse_loss(cr.zeros(4), cr.full({ 4 }, 2)), 4, 0)
  t.near(nn.l1_loss(cr.zeros(4), cr.full({ 4 }, -2)), 2, 0)
  t.near(nn.interpolate(a, { scale = 2 }), nn.upsample_nearest(a), 0)
  t.near(nn.interpolate(a, { size = { 16, 15 }, mode = 'bicubic' }), a, 1e-6, 'the same size')
  t.near(nn.interpolate(a, { size = { 8, 5 }, mode = 'area' }), nn.avg_pool2d(a, { kernel = { 2, 3 } }), 1e-6)
  t.raises(function() nn.interpolate(a, { mode = 'nearest' }) end, 'interpolate: give size = {height, width} or scale = number')
  local columns = cr.linspace(-1, 1, 15):view(1, 1, 15):expand(2, 16, 15)
  local rows = cr.linspace(-1, 1, 16):view(1, 16, 1):expand(2, 16, 15)
  t.near(nn.grid_sample(a, cr.stack({ columns, rows }, 4), { align_corners = true }), a, 1e-5, 'the grid of its own pixels')
  local v = cr.tensor { 1, 2, 3, 4 }
  t.near(nn.pad(v, { 2 }, { 3 }, 'reflect'), { 3, 2, 1, 2, 3, 4, 3, 2, 1 }, 0)
  t.near(nn.pad(v, { 2 }, { 1 }, 'replicate'), { 1, 1, 1, 2, 3, 4, 4 }, 0)
  t.near(nn.pad(v, { 2 }, { 1 }, 'circular'), { 3, 4, 1, 2, 3, 4, 1 }, 0)
end)

t.test('an attention mask may be boolean', function()
  local q, k, v = cr.randn(1, 3, 8), cr.randn(1, 4, 8), cr.randn(1, 4, 8)
  local mask = cr.tensor({ { 1, 0, 1, 1 }, { 0, 1, 0, 0 }, { 1, 1, 1, 1 } }, { dtype = 'bool' })
  local added = cr.where(mask, 0, -math.huge)
  t.near(nn.attention(q, k, v, { mask = mask }), nn.attention(q, k, v, { mask = added }), 0)
  t.near(nn.attention(q, k, v, { mask = mask }):select(2, 2), v:select(2, 2), 1e-6, 'only one is attended to')
end)

t.test('sorting is stable, puts NaN last, and supports every dtype', function()
  local x = cr.tensor { 2, 0 / 0, 1, 2, -0.0, 0, 1 }
  local _, at = x:sort()
  t.near(at:to 'f32', { 5, 6, 3, 7, 1, 4, 2 }, 0)
  _, at = x:sort(1, true)
  t.near(at:to 'f32', { 2, 1, 4, 3, 7, 5, 6 }, 0, 'falling')
  for _, dtype in ipairs { 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64', 'bool' } do
    local y = cr.tensor({ 3, 0, 1, 2, 0 }, { dtype = dtype })
    local sorted = y:sort()
    t.equal(sorted.dtype, dtype)
    t.near(sorted:to 'f32', dtype == 'bool' and { 0, 0, 1, 1, 1 } or { 0, 0, 1, 2, 3 }, 0)
  end
  local long = cr.randn(3, 5001)
  local sorted, order = long:sort(2)
  t.ok(sorted:diff(2):ge(0):all():item(), 'a long row')
  t.near(long:gather(2, order), sorted, 0)
  t.near(cr.randn(4, 3):t():contiguous():sort(1):diff(1):ge(0):all():to 'f32', 1, 0, 'another dimension')
end)

t.test('topk equals the start of a sorted row', function()
  for _, shape in ipairs { { 7 }, { 3, 40 }, { 5, 6, 4 } } do
    for _, dtype in ipairs { 'f32', 'f16', 'u8', 'i64' } do
      local x = (cr.randn(shape) * 3):round():abs():to(dtype)
      for d = 1, #shape do
        for _, largest in ipairs { true, false } do
          local values, places = x:sort(d, largest)
          local v, p = x:topk(3, d, largest)
          t.near(v:to 'f32', values:narrow(d, 1, 3):to 'f32', 0, dtype)
          t.near(p:to 'f32', places:narrow(d, 1, 3):to 'f32', 0, dtype .. ', places')
        end
      end
    end
  end
  local v, p = cr.tensor { 2, 0 / 0, 5 }:topk(1)
  t.ok(v:isnan():item() and p:item() == 2, 'a nan is the greatest')
  t.raises(function() cr.ones(2, 3):topk(4) end, 'topk: dimension %-1 of %[2 3%] has no 4 elements')
end)

t.test('cumulative sums of long rows', function()
  local x = cr.ones(2, 5000)
  t.near(x:cumsum(2):select(2, 5000), { 5000, 5000 }, 0)
  t.near(cr.tensor({ 200, 100 }, { dtype = 'u8' }):cumsum():to 'f32', { 200, 300 }, 0, 'whole numbers in i64')
  t.near(cr.tensor { 1, 2, 3 }:cumprod(), { 1, 2, 6 }, 0)
end)

t.test('rows are written from tables, lists of tensors go into einsum', function()
  local x = cr.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
  x[1] = { 7, 8, 9 }
  x[{ {}, 3 }] = { 0.5, 1.5 }
  t.near(x:flatten(), { 7, 8, 0.5, 4, 5, 1.5 }, 0)
  t.raises(function() x[1] = { 7, 8 } end, 'expand: %[2%] cannot become %[3%]')
  t.near(cr.einsum('ij,kj->ik', { x, x }), x:matmul(x:t()), 1e-5)
  t.raises(function() return x[{ {}, { 1, 2, 3, 3 } }] end, 'at most three numbers, .* not 4: x:index_select%(2, {...}%)')
  t.raises(function() return x[0] end, 'select: index 0 is not within dimension 1 of %[2 3%]: the first is 1')
  t.raises(function() return x[x] end, "the indices are f32: i64 or i32 is needed, as of x:to 'i64'; a mask is bool, as x:ne%(0%)")
  t.raises(function() x:max(x) end, 'max: dims: for two tensors use x:maximum%(y%) or x:minimum%(y%)')
  t.raises(function() x:to { dtype = 'f16' } end,
    "to: what: a dtype or a device, as in x:to 'f16' or x:to%(y.dtype%), is needed, not a table")
  t.raises(function() x:bmm(x) end, 'bmm: two tensors of 3 dimensions are needed, not %[2 3%] and %[2 3%]: a:matmul%(b%) takes any')
end)

t.test('what is told to use in place of other names can be used', function()
  local absent, ran = require 'cr.tensor.absent', 0
  local function numbers() return cr.tensor { { 0.2, 0.4, 0.1 }, { 0.5, 0.3, 0.9 }, { 0.7, 0.6, 0.8 } } end
  local function three() return cr.randn(1, 3, 8) end
  local function values_for(piece) -- for the letters that the sentences use
    local x, square = numbers(), piece:find ':bmm' and numbers():unsqueeze(1) or numbers()
    local rows = cr.tensor({ 3, 1, 2 }, { dtype = 'i64' })
    return { cr = cr, nn = nn, math = math, d = 2, n = 3, limit = 2, low = 0, high = 1, bins = 4, from = 1, to = 2, slope = 0.1, size = 2,
      step = 1, first = 1, number = 0, seed = 1, dtype = 'f16', edges = cr.tensor { 0.25, 0.5 }, u = cr.rand(3, 1), list = { x, x },
      labels = rows, rows = rows, columns = rows, index = rows:view(3, 1), mask = x:gt(0), x = x, p = x, out = x, a = square, c = square,
      b = piece:find ':mv' and x[1] or square, y = piece:find 'mask' and x:reshape(-1) or numbers(), q = three(), k = three(), v = three() }
  end
  for group, names in pairs(absent) do
    for name, answer in pairs(type(names) == 'table' and names or {}) do
      local code, before = (answer:match 'use (.*)$' or ''):match '^(.-) with (y = .*)$'
      code = code or answer:match 'use (.*)$' or ''
      for piece in (code:gsub(',? and ', '\0'):gsub(',? or ', '\0') .. '\0'):gmatch '(.-)%z' do
        local fn = loadstring((before or '') .. ' return ' .. piece) or piece:find '[^=]=[^=]' and loadstring(piece)
 -- w is a layer's weights, and a file does not exist
        if fn and piece:find '[:.%[(]' and not piece:find '%f[%w]w%f[%W]' and not piece:find 'x%.npy' then
          cr.scope(function()
            local ok, err = pcall(setfenv(fn, values_for(piece)))
            t.ok(ok, ('%s.%s: %s: %s'):format(group, name, piece, tostring(err)))
            ran = ran + 1
          end)
        end
      end
    end
  end
  t.ok(ran > 60, ran .. ' were tried')
  t.equal(require 'cr.tools.help'.text 'x:addmm', 'there is no addmm: use c + a:matmul(b)')
  t.raises(function() return cr.bmm end, 'cr has no bmm: it is a method: x:bmm')
  t.raises(function() return cr.kron end, 'cr has no kron: use cr.einsum')
  t.raises(function() return nn.tanh end, 'nn has no tanh: it is a method: x:tanh')
  t.raises(function() return cr.cuda.is_available end, 'cr.cuda has no is_available: it has another name here: use cr.cuda.available')
  -- A name that is unknown everywhere is an error, too, and does not give nil.
  t.raises(function() return cr.linspaec end, "cr has no linspaec: did you mean 'linspace'%?")
  t.raises(function() return nn.conv2 end, "nn has no conv2: did you mean 'conv2d'%?")
  t.raises(function() return cr.wombats end, 'cr has no wombats: `crescent help cr` lists all names')
end)

t.done()
