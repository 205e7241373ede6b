--- Attention against a float64 reference computed here in Lua.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local lists = require 'tests.support.flat'

local randn, values = lists.randn, lists.values

-- q [B T h*d], k [B S h*d], v [B S h*dv], mask [B T S] or nil; all of rank 3, leading sizes equal.
local function reference(q, k, v, heads, scale, mask)
  local b, tt, s = q:size(1), q:size(2), k:size(2)
  local d, dv = q:size(3) / heads, v:size(3) / heads
  scale = scale or 1 / math.sqrt(d)
  local pq, pk, pv, pm = values(q), values(k), values(v), mask and values(mask)
  local out = {}
  for e = 0, b - 1 do
    for i = 0, tt - 1 do
      for h = 0, heads - 1 do
        local scores, high, sum = {}, -math.huge, 0
        for j = 0, s - 1 do
          local x = 0
          local qa, ka = ((e * tt + i) * heads + h) * d, ((e * s + j) * heads + h) * d
          for l = 1, d do x = x + pq[qa + l] * pk[ka + l] end
          x = x * scale + (pm and pm[(e * tt + i) * s + j + 1] or 0)
          scores[j], high = x, math.max(high, x)
        end
        for j = 0, s - 1 do
          scores[j] = math.exp(scores[j] - high)
          sum = sum + scores[j]
        end
        for l = 1, dv do
          local x = 0
          for j = 0, s - 1 do x = x + scores[j] * pv[((e * s + j) * heads + h) * dv + l] end
          out[((e * tt + i) * heads + h) * dv + l] = x / sum
        end
      end
    end
  end
  return cr.tensor(out, { dtype = 'f64' }):view(b, tt, heads * dv)
end

local tolerance = { f32 = 2e-6, f16 = 6e-4, bf16 = 5e-3 }

-- batch, queries, keys, heads, head size of q and k, of v
local sizes = {
  { 1, 1, 1, 1, 1, 1 }, { 2, 3, 5, 1, 7, 7 }, { 3, 16, 16, 2, 4, 4 }, { 1, 16, 16, 8, 12, 12 },
  { 2, 33, 50, 3, 8, 8 }, { 1, 17, 131, 2, 5, 9 }, { 1, 40, 257, 1, 24, 3 }, { 1, 65, 129, 2, 40, 40 },
  { 1, 20, 70, 1, 160, 160 }, { 1, 35, 140, 1, 512, 512 }, { 5, 24, 24, 2, 6, 6 },
}

for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
  t.test('attention ' .. dtype, function()
    for _, s in ipairs(sizes) do
      local b, n, m, heads, d, dv = unpack(s)
      local q, k, v = randn { b, n, heads * d }:to(dtype), randn { b, m, heads * d }:to(dtype), randn { b, m, heads * dv }:to(dtype)
      local out = nn.attention(q, k, v, { heads = heads })
      t.equal(out.dtype, dtype)
      t.near(out, reference(q, k, v, heads), tolerance[dtype], table.concat(s, ' '))
    end
  end)
end

t.test('attention with other scales, and scores far apart', function()
  local q, k, v = randn { 2, 37, 24 }, randn { 2, 150, 24 }, randn { 2, 150, 24 }
  t.near(nn.attention(q, k, v, { heads = 3, scale = 0.1 }), reference(q, k, v, 3, 0.1), 2e-6)
  -- The largest score is first, last or in the middle, and up to hundreds larger than the others.
  t.near(nn.attention(q, k, v, { heads = 3, scale = 30 }), reference(q, k, v, 3, 30), 1e-4)
  local rising = cr.arange(150):view(1, 150, 1) * cr.ones(2, 150, 24) / 24
  t.near(nn.attention(cr.ones(2, 37, 24), rising, v, { heads = 3 }), reference(cr.ones(2, 37, 24), rising, v, 3), 2e-6,
    'rising scores')
end)

t.test('attention of views', function()
  local heads = 2
  local packed = randn { 2, 19, 3 * 12 }
  local q, k, v = packed:slice(3, 1, 12), packed:slice(3, 13, 24), packed:slice(3, 25, 36)
  t.near(nn.attention(q, k, v, { heads = heads }), reference(q, k, v, heads), 2e-6, 'a packed qkv')

  -- [B F H W C] as [B H W F C]: attention over the frames of each position.
  for _, channels in ipairs { 8, 64 } do
    local video = { randn { 2, 16, 3, 5, channels }, randn { 2, 16, 3, 5, channels }, randn { 2, 16, 3, 5, channels } }
    local seen, flat = {}, {}
    for i, x in ipairs(video) do
      seen[i] = x:permute(1, 3, 4, 2, 5)
      flat[i] = seen[i]:contiguous():view(30, 16, channels)
    end
    local out = nn.attention(seen[1], seen[2], seen[3], { heads = heads })
    t.equal(table.concat(out.shape, ' '), '2 3 5 16 ' .. channels)
    local expected = reference(flat[1], flat[2], flat[3], heads):view(2, 3, 5, 16, channels)
    t.near(out, expected, 2e-6, 'frames of a video')
    local back = cr.zeros(2, 16, 3, 5, channels)
    nn.attention(seen[1], seen[2], seen[3], { heads = heads, out = back:permute(1, 3, 4, 2, 5) })
    t.near(back, expected:permute(1, 4, 2, 3, 5), 2e-6, 'into a view')
  end

  local q1, k1, v1 = randn { 6, 9, 12 }, randn { 1, 21, 12 }, randn { 1, 21, 12 }
  t.near(nn.attention(q1, k1, v1, { heads = 3 }), reference(q1, k1:expand(6, 21, 12), v1:expand(6, 21, 12), 3), 2e-6,
    'one k and v for all')
  t.near(nn.attention(q1:expand(6, 9, 12), k1:expand(6, 21, 12), v1:expand(6, 21, 12), { heads = 3 }),
    reference(q1, k1:expand(6, 21, 12), v1:expand(6, 21, 12), 3), 2e-6, 'repeated by strides of 0')
  local q2 = randn { 9, 12 }
  t.near(nn.attention(q2, k1:select(1, 1), v1:select(1, 1), { heads = 1 }),
    reference(q2:view(1, 9, 12), k1, v1, 1):view(9, 12), 2e-6, 'no leading dimension')
end)

t.test('attention with a mask', function()
  local b, n, m, heads = 3, 18, 140, 2
  local q, k, v = randn { b, n, 8 }, randn { b, m, 8 }, randn { b, m, 10 }
  for _, shape in ipairs { { n, m }, { 1, m }, { m }, { b, n, m }, { b, 1, m }, { n, 1 }, { 1, n, m } } do
    local mask = randn(shape) * 3
    t.near(nn.attention(q, k, v, { heads = heads, mask = mask }), reference(q, k, v, heads, nil, mask:expand(b, n, m)), 2e-6,
      'mask [' .. table.concat(shape, ' ') .. ']')
  end
  local causal = cr.zeros(n, m)
  local p = causal:pointer()
  for i = 0, n - 1 do
    for j = i + 1, m - 1 do p[i * m + j] = -math.huge end
  end
  t.near(nn.attention(q, k, v, { heads = heads, mask = causal }), reference(q, k, v, heads, nil, causal:expand(b, n, m)), 2e-6,
    'causal')
  -- Values whose mask is -inf must have no influence.
  local late = cr.zeros(m)
  for j = 0, 129 do late:pointer()[j] = -math.huge end
  v:slice(2, 1, 130):fill_(1e30)
  t.near(nn.attention(q, k, v, { heads = heads, mask = late }),
    reference(q, k:slice(2, 131, m), v:slice(2, 131, m), heads), 2e-6, 'a whole block masked')
end)

t.test('NaN is propagated', function()
  local q, k, v = cr.ones(1, 20, 4), cr.ones(1, 20, 4), cr.ones(1, 20, 4)
  k:select(1, 1):select(1, 7):fill_(0 / 0)
  local out = nn.attention(q, k, v, { heads = 1 }):sum():item()
  t.ok(out ~= out)
end)

t.test('the result of attention does not depend on the number of threads', function()
  local before = cr.threads()
  local q, k, v = randn { 1, 300, 32 }, randn { 1, 200, 32 }, randn { 1, 200, 32 }
  local expected = reference(q, k, v, 4)
  for _, n in ipairs { 1, 2, 5 } do
    cr.threads(n)
    t.near(nn.attention(q, k, v, { heads = 4 }), expected, 2e-6, n .. ' threads')
  end
  cr.threads(before)
end)

t.test('attention reports wrong arguments', function()
  local q, k = cr.ones(2, 3, 8), cr.ones(2, 5, 8)
  t.raises(function() nn.attention(q, k, k, { heads = 3 }) end, 'attention: 3 heads do not divide q %[2 3 8%], v %[2 5 8%]')
  t.raises(function() nn.attention(q, cr.ones(2, 5, 6), k, { heads = 2 }) end, 'attention: widths differ: q %[2 3 8%], k %[2 5 6%]')
  t.raises(function() nn.attention(q, k, q, { heads = 2 }) end, 'attention: lengths differ: k %[2 5 8%], v %[2 3 8%]')
  t.raises(function() nn.attention(q, cr.ones(4, 5, 8), k, { heads = 2 }) end,
    'attention: the leading sizes of q %[2 3 8%] and k %[4 5 8%] differ')
  t.raises(function() nn.attention(q, k, k, { heads = 2, mask = cr.ones(5, 3) }) end, 'attention: the mask f32 %[5 3%] does not fit')
  local turned = cr.ones(2, 8, 8):transpose(2, 3)
  t.raises(function() nn.attention(turned, turned, turned, { heads = 1 }) end,
    'attention: the last dimension of %[2 8 8%] must be dense')
  t.raises(function() nn.attention(q:to 'f64', k:to 'f64', k:to 'f64', { heads = 2 }) end, 'attention: q, k and v must all be')
  t.raises(function() nn.attention(q, cr.empty(2, 0, 8), cr.empty(2, 0, 8), { heads = 2 }) end, 'attention: q or k is empty')
end)

t.done()
