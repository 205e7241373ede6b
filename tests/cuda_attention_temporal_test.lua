-- Attention over the frames of each position, and the plain kernel, on a card against the CPU's.

local cr = require 'cr'
local nn = require 'cr.nn'
local cuda = require 'tests.support.cuda'
local t = require 'tests.support.tap'

local nan = 0 / 0

-- q, k, v as in models/networks/unet3d.lua: parts of one packed product, with frames as tokens.
local function packed(qkv, c)
  local q, k, v = qkv:narrow(4, 1, c), qkv:narrow(4, 1 + c, c), qkv:narrow(4, 1 + 2 * c, c)
  return q:transpose(2, 3), k:transpose(2, 3), v:transpose(2, 3)
end

local function check(B, F, T, heads, d, dtype, options)
  options = options or {}
  cr.scope(function()
    local c = heads * d
    local qkv = cuda.randn({ B, F, T, 3 * c }, dtype, options.spread)
    local q, k, v = packed(qkv, c)
    local expected = nn.attention(q, k, v, { heads = heads, scale = options.scale })
    q, k, v = packed(cuda.up(qkv, dtype), c)
    local out = cr.full({ B, F, T, c }, nan, { dtype = dtype, device = cuda.device }):transpose(2, 3)
    nn.attention(q, k, v, { heads = heads, scale = options.scale, out = out })
    cuda.near(out, expected, { message = ('B %d F %d T %d, %d heads of %d'):format(B, F, T, heads, d) })
  end)
end

for _, dtype in ipairs { 'f16', 'bf16', 'f32' } do
  cuda.test('temporal attention of packed views, ' .. dtype, function()
    for _, d in ipairs { 4, 8, 12, 20, 32, 36, 40, 44, 64, 80, 88, 96, 120, 128, 136, 160, 200, 256 } do
      check(1, 16, 5, 2, d, dtype)
    end
    for F = 1, 32 do check(2, F, 3, 3, F % 2 == 0 and 40 or 28, dtype) end
    for _, F in ipairs { 15, 17, 24, 32 } do
      for _, d in ipairs { 80, 160, 252 } do check(1, F, 3, 2, d, dtype) end
    end
    check(2, 16, 64, 8, 40, dtype)
    check(1, 24, 30, 8, 80, dtype)
    check(2, 16, 7, 5, 40, dtype, { scale = 0.5 })
    check(1, 16, 9, 1, 40, dtype, { spread = 4 }) -- weights of almost 1 and 0
  end)
end

cuda.test('temporal attention: dense and separate tensors, odd places in memory', function()
  for _, dtype in ipairs { 'f16', 'bf16' } do
    local q, k, v = cuda.randn({ 3, 2, 11, 80 }, dtype), cuda.randn({ 3, 2, 11, 80 }, dtype), cuda.randn({ 3, 1, 11, 80 }, dtype)
    cuda.near(nn.attention(cuda.up(q, dtype), cuda.up(k, dtype), cuda.up(v, dtype), { heads = 2 }),
      nn.attention(q, k, v, { heads = 2 }), { message = 'v repeated' })
    -- Rows that begin at odd elements.
    local function odd(x)
      local big = cr.zeros({ 3, x:size(2), 11, 83 }, { dtype = dtype, device = cuda.device })
      local view = big:narrow(4, 2, 80)
      view:copy_(cuda.up(x, dtype))
      return view
    end
    cuda.near(nn.attention(odd(q), odd(k), odd(v), { heads = 2 }), nn.attention(q, k, v, { heads = 2 }),
      { message = 'unaligned' })
  end
end)

cuda.test('temporal attention does not mix positions, and reads nothing outside of the view', function()
  local qkv = cuda.randn({ 1, 9, 4, 120 }, 'f16')
  local q, k, v = packed(qkv, 40)
  local expected = nn.attention(q, k, v, { heads = 1 })
  -- Everything around the view, and one position, is NaN.
  local big = cr.full({ 1, 16, 5, 120 }, nan, { dtype = 'f16', device = cuda.device })
  local part = big:narrow(2, 1, 9):narrow(3, 1, 4)
  part:copy_(cuda.up(qkv, 'f16'))
  part:select(3, 2):fill_(nan)
  q, k, v = packed(part, 40)
  local y = nn.attention(q, k, v, { heads = 1 })
  for _, position in ipairs { 1, 3, 4 } do
    cuda.near(y:select(2, position):contiguous(), expected:select(2, position):contiguous())
  end
  local spoilt = y:select(2, 2):to 'f32':to 'cpu':contiguous():tolist()
  t.ok(spoilt[1][1][1] ~= spoilt[1][1][1], 'nan comes through')
end)

-- ---- the plain kernel ----

local function plain(lead, T, S, heads, d, dv, dtype, options)
  options = options or {}
  cr.scope(function()
    local function shape(rows, width)
      local s = { unpack(lead) }
      s[#s + 1], s[#s + 2] = rows, width
      return s
    end
    local q, k = cuda.randn(shape(T, heads * d), dtype), cuda.randn(shape(S, heads * d), dtype)
    local v = cuda.randn(shape(S, heads * dv), dtype)
    local mask = options.mask and options.mask(T, S)
    local expected = nn.attention(q, k, v, { heads = heads, mask = mask, scale = options.scale })
    local out = cr.full(shape(T, heads * dv), nan, { dtype = dtype, device = cuda.device })
    nn.attention(cuda.up(q, dtype), cuda.up(k, dtype), cuda.up(v, dtype),
      { heads = heads, mask = mask and cuda.up(mask), scale = options.scale, out = out })
    cuda.near(out, expected, { message = ('%d x %d, %d heads of %d and %d'):format(T, S, heads, d, dv) })
  end)
end

local function causal(T, S)
  local m = {}
  for i = 1, T do
    m[i] = {}
    for j = 1, S do m[i][j] = j - (S - T) > i and -math.huge or 0 end
  end
  return cr.tensor(m)
end

for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
  cuda.test('attention of any sizes, ' .. dtype, function()
    plain({}, 1, 1, 1, 1, 1, dtype)
    plain({ 2 }, 70, 50, 3, 7, 5, dtype)
    plain({ 2, 3 }, 33, 129, 2, 40, 24, dtype)
    plain({ 1 }, 130, 65, 4, 64, 64, dtype)
    plain({ 2 }, 40, 300, 1, 130, 200, dtype)
    plain({ 1 }, 65, 64, 1, 512, 512, dtype, { scale = 0.1 })
  end)

  cuda.test('attention with masks, ' .. dtype, function()
    plain({ 2 }, 90, 90, 2, 40, 40, dtype, { mask = causal })
    plain({ 3 }, 20, 200, 2, 64, 32, dtype, { mask = causal })
    plain({ 2 }, 66, 70, 2, 16, 16, dtype, { mask = function(T, S) return cuda.randn { 2, T, S } end })
    plain({ 2 }, 66, 70, 2, 16, 16, dtype, { mask = function(_, S) return cuda.randn { 1, S } end })
    plain({ 2 }, 12, 12, 2, 16, 16, dtype, { mask = function(T) return cuda.randn { 2, T, 1 } end })
    -- The first 64 keys are masked, so the running maximum starts at -inf.
    plain({ 1 }, 10, 100, 1, 16, 16, dtype, { mask = function(_, S)
      local m = {}
      for j = 1, S do m[j] = j <= 64 and -math.huge or 0 end
      return cr.tensor { m }
    end })
  end)
end

t.done()
