--- Matrix products on a GPU compared with the CPU's in float64, and the file of algorithms.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local child = require 'tests.support.child'
local t = require 'tests.support.tap'
local views = require 'tests.support.cuda_views'

local DTYPES = { 'f32', 'f16', 'bf16', 'f64' }
local nan = 0 / 0

local randn = cuda.randn64

local LIMIT = { f32 = 1e-5, f64 = 1e-13 }

-- f32 and f64: relative to the largest value, because a few sums may cancel.
local function near(result, reference, message)
  if not LIMIT[result.dtype] then return cuda.near(result, reference, { message = message }) end
  cr.scope(function()
    local shapes = table.concat(result.shape, ' ') .. ' and ' .. table.concat(reference.shape, ' ')
    if not t.equal(table.concat(result.shape, ' '), table.concat(reference.shape, ' '), message .. ': shape ' .. shapes) then return end
    local worst, largest = (result:to 'cpu':to 'f64' - reference):abs():max():item(), reference:abs():max():item()
    t.ok(worst <= LIMIT[result.dtype] * largest, ('%s %s: off by %.3g of %.3g (CR_SEED=%d)'):format(message, result.dtype,
      worst, largest, cuda.seed))
  end)
end

local function matmul_to(out, a, b)
  cr.check(cr.C.cr_matmul(out.c, a.c, b.c))
  return out
end

for _, dtype in ipairs(DTYPES) do
  cuda.test('sizes, ' .. dtype, function()
    for _, s in ipairs(cuda.cases { { 1, 1, 1 }, { 2, 3, 2 }, { 1, 64, 33 }, { 33, 64, 1 }, { 65, 1, 17 }, { 31, 129, 67 },
      { 320, 1001, 17 }, { 200, 64, 256 } }) do
      cr.scope(function()
        local m, k, n = s[1], s[2], s[3]
        local a, b = randn({ m, k }, dtype), randn({ k, n }, dtype, k ^ -0.5)
        near(cuda.up(a, dtype):matmul(cuda.up(b, dtype)), a:matmul(b), ('[%d %d] x [%d %d]'):format(m, k, k, n))
      end)
    end
  end)
end

for _, dtype in ipairs(DTYPES) do
  cuda.test('leading dimensions, ' .. dtype, function()
    for _, s in ipairs(cuda.cases {
      { { 5, 7, 16 }, { 5, 16, 8 } }, { { 5, 7, 9 }, { 9, 8 } }, { { 7, 9 }, { 5, 9, 8 } }, { { 3, 1, 7, 8 }, { 1, 4, 8, 5 } },
      { { 3, 4, 7, 8 }, { 3, 4, 8, 5 } }, { { 3, 4, 7, 8 }, { 4, 8, 5 } }, { { 4, 7, 8 }, { 3, 4, 8, 5 } },
      { { 3, 4, 1, 8 }, { 3, 1, 8, 5 } }, { { 2, 1, 3, 1, 7, 8 }, { 4, 1, 2, 8, 5 } }, { { 2, 3, 1, 9 }, { 2, 3, 9, 1 } },
      { { 1, 1, 6, 8 }, { 8, 3 } }, { { 2, 3, 70, 130 }, { 3, 130, 90 } } }) do
      cr.scope(function()
        local a, b = randn(s[1], dtype), randn(s[2], dtype, 0.25)
        near(cuda.up(a, dtype):matmul(cuda.up(b, dtype)), a:matmul(b),
          ('[%s] x [%s]'):format(table.concat(s[1], ' '), table.concat(s[2], ' ')))
      end)
    end
  end)
end

for _, dtype in ipairs(DTYPES) do
  cuda.test('strides, ' .. dtype, function()
    -- The second one needs copies.
    t.each({ { 3, 6, 16, 24 }, { 3, 66, 96, 72 } }, function(s)
      local m, k, n = s[2], s[3], s[4]
      local a, b = randn({ s[1], m, k }, dtype), randn({ s[1], k, n }, dtype, k ^ -0.5)
      local expected = a:matmul(b)
      local as, bs = views.matrices(cuda.up(a, dtype)), views.matrices(cuda.up(b, dtype))
      local most = #cuda.cases(as) < 7 and 3 or 7
      local outs = views.matrices(cuda.up(expected, dtype))
      for i, va in ipairs(as) do
        for j, vb in ipairs(bs) do -- the first seven with each other, the rest with a dense one
          if i <= most and j <= most or i == 1 or j == 1 then
            near(va[2]:matmul(vb[2]), expected, ('a %s, b %s'):format(va[1], vb[1]))
          end
        end
      end
      for _, vo in ipairs(cuda.cases(outs)) do
        vo[2]:fill_(nan)
        near(matmul_to(vo[2], as[1][2], bs[1][2]), expected, 'result ' .. vo[1])
        vo[2]:fill_(nan)
        near(matmul_to(vo[2], as[4][2], bs[2][2]), expected, 'a and b turned, result ' .. vo[1])
      end
      local row, column = a:slice(2, 2, 2):expand(-1, m, -1), b:slice(3, 1, 1):expand(-1, -1, n)
      local rowc, columnc = cuda.up(a, dtype):slice(2, 2, 2):expand(-1, m, -1), cuda.up(b, dtype):slice(3, 1, 1):expand(-1, -1, n)
      near(rowc:matmul(columnc), row:matmul(column), 'repeated rows and columns')
      near(cuda.up(a, dtype):slice(1, 1, 1):expand(s[1], -1, -1):matmul(bs[1][2]),
        a:slice(1, 1, 1):expand(s[1], -1, -1):matmul(b), 'a repeated')
      near(as[1][2]:matmul(cuda.up(b, dtype):slice(1, 3, 3):expand(s[1], -1, -1)),
        a:matmul(b:slice(1, 3, 3):expand(s[1], -1, -1)), 'b repeated')
    end)
  end)
end

cuda.test('empty inner and outer dimensions, very many matrices', function()
  for _, dtype in ipairs(DTYPES) do
    cr.scope(function()
      local options = { dtype = dtype, device = cuda.device }
      local zero = cr.empty(2, 3, 0, options):matmul(cr.empty(0, 4, options))
      t.equal(table.concat(zero.shape, ' '), '2 3 4')
      t.equal(zero:to 'cpu':to 'f64':abs():max():item(), 0)
      t.equal(cr.empty(2, 0, 5, options):matmul(cr.empty(5, 4, options)):numel(), 0)
      local many = cuda.slow and 300 or 70000 -- beyond the 65535 of a grid's depth
      local a, b = randn({ many, 2, 3 }, dtype), randn({ many, 3, 2 }, dtype)
      near(cuda.up(a, dtype):matmul(cuda.up(b, dtype)), a:matmul(b), 'many')
    end)
  end
end)

cuda.test('attention by products, head by head in place', function()
  cr.scope(function()
    local frames, tokens, heads, size = 2, 50, 8, 40
    local q, k = randn({ frames, tokens, heads * size }, 'f16'), randn({ frames, tokens, heads * size }, 'f16', size ^ -0.5)
    local function split(x) return x:view(frames, tokens, heads, size):transpose(2, 3) end
    near(split(cuda.up(q, 'f16')):matmul(split(cuda.up(k, 'f16')):transpose(3, 4)),
      split(q):matmul(split(k):transpose(3, 4)), 'scores')
  end)
end)

-- ---- the file of algorithms --------------------------------------------------------------------

-- Products of some sizes in a separate program, which prints their sums.
local SCRIPT = [[
  local cr = require 'cr'
  for _, m in ipairs { %s } do
    local x = cr.ones(m, 64, { dtype = 'f16', device = 'cuda' })
    print(x:matmul(x:t()):to('cpu'):to('f32'):sum():item())
  end
]]

local function lines_of(folder)
  local n = 0
  for name in require 'lfs'.dir(folder) do
    t.ok(not name:find '%.tmp', 'a temporary file is left: ' .. name)
    if name:find '^algorithms%-' then
      for _ in io.lines(folder .. '/' .. name) do n = n + 1 end
      return n, folder .. '/' .. name
    end
  end
  return n
end

local function run(folder, ...)
  local r = child.run({ '-e', SCRIPT:format(table.concat({ ... }, ', ')) }, { env = { CR_CACHE = folder, CR_LINEAR_OWN = '0' } })
  t.equal(r.code, 0, r.err)
  local sums = {}
  for i, m in ipairs { ... } do sums[i] = m * m * 64 .. '\n' end
  t.equal(r.out, table.concat(sums))
end

cuda.library_test('algorithms are remembered on disk; a damaged file costs nothing but time', function()
  local folder = child.folder .. '/cache/deep'
  run(folder, 40)
  local n, path = lines_of(folder)
  t.equal(n, 2, 'a headline and one choice')
  run(folder, 40, 48)
  t.equal(lines_of(folder), 3, 'another one joins it')
  local file = io.open(path, 'rb')
  local text = file:read '*a'
  file:close()
  for what, damaged in pairs {
    ['cut short'] = text:sub(1, -30), ['not text'] = ('\0\255\n\t'):rep(1000),
    ['other numbers'] = text:gsub('\t([0-9a-f]+)\n', function(hex) return '\t' .. ('7'):rep(#hex) .. '\n' end) } do
    file = io.open(path, 'wb')
    file:write(damaged)
    file:close()
    run(folder, 40, 48)
    t.equal(lines_of(folder), 3, what)
  end
  run('/proc/crescent', 40) -- a path that cannot be written
  child.clean()
end)

t.done()
