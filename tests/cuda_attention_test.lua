--- Attention on a GPU compared with the CPU's in f32 on the same numbers: all head sizes of the flash kernel and
--- sizes between, odd lengths, views, broadcasting, scores far apart. Cases that only the plain kernel supports (f32,
--- masks, odd head sizes) go through the same checks.
local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local environment = require 'tests.support.environment'
local nn = require 'cr.nn'
local t = require 'tests.support.tap'

-- Relative L2 errors: rounding the result and the probabilities gives about 3e-4 in f16.
local LIMIT = { f32 = 1e-5, f16 = 1e-3, bf16 = 8e-3 }

-- Compares a result with the reference, as a whole and by its worst element.
local function near(y, reference, v, message)
  cuda.near(y, reference, { message = message, largest = v:abs():max():item() })
  t.near(y:to 'cpu':to 'f32', reference, LIMIT[y.dtype], ('%s %s (CR_SEED=%d)'):format(message, y.dtype, cuda.seed))
end

-- Runs both; `see` transforms q, k and v (on either device) to the inputs of attention.
local function compare(dtype, q, k, v, options, message, see)
  cr.scope(function()
    see = see or function(...) return ... end
    local function run(a, b, c, out)
      a, b, c = see(a, b, c)
      return nn.attention(a, b, c, { heads = options.heads, scale = options.scale, out = out,
        mask = options.mask and options.mask:to(a.device) })
    end
    local reference = run(q, k, v)
    local out = cr.empty(reference.shape, { dtype = dtype, device = cuda.device }):fill_(0 / 0)
    run(cuda.up(q, dtype), cuda.up(k, dtype), cuda.up(v, dtype), out)
    near(out, reference, v, message)
  end)
end

local function case(dtype, b, T, S, heads, d, scale, magnitude)
  local function draw(n) return cuda.randn({ b, n, heads * d }, dtype, magnitude) end
  cr.scope(function()
    compare(dtype, draw(T), draw(S), draw(S), { heads = heads, scale = scale },
      ('%d x [%d %d], %d heads of %d'):format(b, T, S, heads, d))
  end)
end

-- The tests of the flash kernels run twice: with Hopper's own kernel (if available), and with the plain one, which
-- CR_ATTENTION=mma selects.
local function test(name, fn)
  for _, kernel in ipairs(os.getenv 'CR_ATTENTION' and { os.getenv 'CR_ATTENTION' } or { 'wgmma', 'mma' }) do
    cuda.test(name .. ', ' .. kernel, function() environment.with('CR_ATTENTION', kernel, fn) end)
  end
end

local lengths = { 1, 7, 50, 63, 65, 129, 200 }

for _, dtype in ipairs { 'f16', 'bf16' } do
  test('head sizes, ' .. dtype, function()
    for i, d in ipairs { 8, 16, 24, 40, 48, 56, 64, 72, 80, 88, 96, 104, 128, 136, 160, 192, 200, 256, 512 } do
      local heads = d > 128 and 1 + i % 2 or 1 + i % 8
      for j = 1, 3 do
        case(dtype, 1 + j % 2, lengths[(i + 2 * j) % #lengths + 1], lengths[(2 * i + 3 * j) % #lengths + 1], heads, d)
      end
    end
  end)

  test('lengths, ' .. dtype, function()
    for _, T in ipairs(lengths) do
      for _, S in ipairs(lengths) do case(dtype, 1, T, S, 2, 40) end
    end
    for _, s in ipairs { 31, 32, 33, 64, 96, 127, 128 } do
      case(dtype, 1, 257, s, 1, 40)
      case(dtype, 1, 17, s, 1, 160)
    end
    case(dtype, 1, 1000, 1000, 2, 40)
    case(dtype, 1, 1000, 777, 1, 80)
    case(dtype, 2, 300, 1000, 1, 512)
    case(dtype, 3, 1024, 50, 8, 40)
  end)

  test('scores far apart, ' .. dtype, function()
    for _, d in ipairs { 40, 80, 160, 512 } do
      case(dtype, 2, 65, 300, 1, d, 3)
      case(dtype, 2, 65, 300, 1, d, nil, 6)
      case(dtype, 1, 33, 129, 2, d <= 160 and d or 8, 1e-4)
    end
    -- Scores that rise by hundreds along the keys, and fall: the running maximum must be updated step by step, or
    -- stay.
    for _, step in ipairs { 0.02, -0.02, 1, -1 } do
      cr.scope(function()
        local q, v = cr.ones(1, 40, 40), cuda.randn({ 1, 500, 40 }, dtype)
        local k = ((cr.arange(500):view(1, 500, 1) - 250) * step * cr.ones(1, 1, 40)):to(dtype):to 'f32'
        compare(dtype, q, k, v, { heads = 1 }, 'scores in steps of ' .. step)
      end)
    end
  end)

  test('views, ' .. dtype, function()
    cr.scope(function()
      local heads, d = 3, 40
      local w = heads * d
      local packed = cuda.randn({ 2, 70, 3 * w }, dtype)
      local function split(x) return x:narrow(3, 1, w), x:narrow(3, w + 1, w), x:narrow(3, 2 * w + 1, w) end
      compare(dtype, packed, packed, packed, { heads = heads }, 'a packed qkv', split)
      -- [B F H W C] as [B H W F C]; 40 frames are too many for temporal attention.
      local function turn(a, b, c) return a:permute(1, 3, 4, 2, 5), b:permute(1, 3, 4, 2, 5), c:permute(1, 3, 4, 2, 5) end
      local video, up = {}, {}
      for i = 1, 3 do
        video[i] = cuda.randn({ 2, 40, 2, 3, 64 }, dtype)
        up[i] = cuda.up(video[i], dtype):permute(1, 3, 4, 2, 5)
      end
      compare(dtype, video[1], video[2], video[3], { heads = 2 }, 'frames of a video', turn)
      local a, b, c = turn(video[1], video[2], video[3])
      local expected = nn.attention(a, b, c, { heads = 2 })
      local back = cr.empty(video[1].shape, { dtype = dtype, device = cuda.device }):fill_(0 / 0)
      nn.attention(up[1], up[2], up[3], { heads = 2, out = back:permute(1, 3, 4, 2, 5) })
      near(back, expected:permute(1, 4, 2, 3, 5), video[3], 'into a view')
      local wide = cr.empty(2, 40, 2, 3, 128, { dtype = dtype, device = cuda.device }):fill_(0 / 0)
      nn.attention(up[1], up[2], up[3], { heads = 2, out = wide:slice(5, 1, 128, 2):permute(1, 3, 4, 2, 5) })
      near(wide:slice(5, 1, 128, 2):contiguous(), expected:permute(1, 4, 2, 3, 5), video[3], 'into every second column')
    end)
    cr.scope(function()
      local q, k, v = cuda.randn({ 6, 33, 80 }, dtype), cuda.randn({ 1, 90, 80 }, dtype), cuda.randn({ 1, 90, 80 }, dtype)
      compare(dtype, q, k, v, { heads = 2 }, 'one k and v for all')
      compare(dtype, q, k, v, { heads = 2 }, 'repeated by strides of 0', function(a, b, c)
        return a:slice(1, 1, 6, 2), b:expand(3, 90, 80), c:expand(3, 90, 80)
      end)
      compare(dtype, q, k, v, { heads = 2 }, 'no leading dimension', function(a, b, c)
        return a:select(1, 2), b:select(1, 1), c:select(1, 1)
      end)
      -- Rows that start at no multiple of 16 bytes, and one element after that.
      compare(dtype, q, k, v, { heads = 1 }, 'unaligned', function(a, b, c)
        return a:narrow(3, 4, 40), b:narrow(3, 2, 40), c:narrow(3, 6, 40)
      end)
      local many = cuda.randn({ 2, 1, 3, 2, 1, 2, 40, 16 }, dtype)
      compare(dtype, many, many, many, { heads = 2 }, 'many leading dimensions', function(a, b, c)
        return a:permute(4, 2, 1, 6, 5, 3, 7, 8), b:permute(4, 2, 1, 6, 5, 3, 7, 8), c:permute(4, 2, 1, 6, 5, 3, 7, 8)
      end)
    end)
  end)

  test('NaN is propagated, ' .. dtype, function()
    for _, d in ipairs { 40, 160 } do
      cr.scope(function()
        local q, k, v = cr.ones(1, 50, d), cr.ones(1, 50, d), cr.ones(1, 50, d)
        k:select(1, 1):select(1, 37):fill_(0 / 0)
        local y = nn.attention(cuda.up(q, dtype), cuda.up(k, dtype), cuda.up(v, dtype), { heads = 1 })
        y = y:to 'cpu':to 'f32':sum():item()
        t.ok(y ~= y)
      end)
    end
  end)
end

for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
  cuda.test('masks and other head sizes, ' .. dtype, function()
    cr.scope(function()
      local sizes = { { 3, 5, 1, 1 }, { 33, 50, 3, 7 }, { 40, 131, 2, 20 }, { 65, 70, 1, 12 }, { 20, 40, 2, 264 }, { 16, 50, 2, 40 } }
      for _, s in ipairs(sizes) do
        case(dtype, 2, s[1], s[2], s[3], s[4])
      end
      local q, k = cuda.randn({ 3, 18, 80 }, dtype), cuda.randn({ 3, 140, 80 }, dtype)
      for _, width in ipairs { 80, 48 } do
        local v = cuda.randn({ 3, 140, width }, dtype)
        compare(dtype, q, k, v, { heads = 2 }, 'v of ' .. width)
        for _, shape in ipairs { { 18, 140 }, { 1, 140 }, { 140 }, { 3, 18, 140 }, { 3, 1, 140 }, { 18, 1 } } do
          compare(dtype, q, k, v, { heads = 2, mask = cuda.randn(shape) }, 'mask [' .. table.concat(shape, ' ') .. ']')
        end
      end
    end)
  end)
end

cuda.test('temporal attention', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
    for _, s in ipairs { { 16, 8, 40 }, { 16, 8, 80 }, { 24, 2, 160 }, { 32, 3, 12 }, { 7, 1, 256 }, { 1, 2, 40 } } do
      cr.scope(function()
        local F, heads, d = unpack(s)
        local packed = cuda.randn({ 2, F, 5, 3 * heads * d }, dtype)
        local name = ('%d frames, %d heads of %d'):format(F, heads, d)
        compare(dtype, packed, packed, packed, { heads = heads }, name, function(x)
          x = x:transpose(2, 3)
          local w = heads * d
          return x:narrow(4, 1, w), x:narrow(4, w + 1, w), x:narrow(4, 2 * w + 1, w)
        end)
      end)
    end
  end
end)

t.done()
