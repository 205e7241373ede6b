--- Convolution and pooling against float64 references computed here in Lua.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local lists = require 'tests.support.flat'

local randn, values = lists.randn, lists.values

local function tensor(flat, shape) return cr.tensor(flat, { dtype = 'f64' }):view(shape) end

local acts = {
  none = function(x) return x end,
  silu = function(x) return x / (1 + math.exp(-x)) end,
  relu = function(x) return math.max(x, 0) end,
  relu6 = function(x) return math.min(math.max(x, 0), 6) end,
  prelu = function(x, slope) return x < 0 and x * slope or x end,
}

-- By the definition, one element at a time.
local function conv_reference(w, x, o)
  local n, h, wd, c = unpack(x.shape)
  local oc, kh, kw, kc = unpack(w.weight.shape)
  local sh, sw = o.stride and o.stride[1] or 1, o.stride and o.stride[2] or 1
  local dh, dw = o.dilation and o.dilation[1] or 1, o.dilation and o.dilation[2] or 1
  local pad = o.padding or { 0, 0, 0, 0 }
  local oh = math.floor((h + pad[1] + pad[2] - dh * (kh - 1) - 1) / sh) + 1
  local ow = math.floor((wd + pad[3] + pad[4] - dw * (kw - 1) - 1) / sw) + 1
  local px, pw = values(x), values(w.weight)
  local bias = w.bias and values(w.bias)
  local slope, residual = o.slope and values(o.slope), o.residual and values(o.residual)
  local act = acts[o.act or (slope and 'prelu') or 'none']
  local group = oc / (o.groups or 1)
  local out = {}
  for b = 0, n - 1 do
    for y = 0, oh - 1 do
      for z = 0, ow - 1 do
        for k = 0, oc - 1 do
          local sum = bias and bias[k + 1] or 0
          for i = 0, kh - 1 do
            for j = 0, kw - 1 do
              local r, s = y * sh + i * dh - pad[1], z * sw + j * dw - pad[3]
              if r >= 0 and r < h and s >= 0 and s < wd then
                local from, at = ((b * h + r) * wd + s) * c + math.floor(k / group) * kc, ((k * kh + i) * kw + j) * kc
                for l = 1, kc do sum = sum + px[from + l] * pw[at + l] end
              end
            end
          end
          out[#out + 1] = act(sum, slope and slope[k + 1]) + (residual and residual[#out + 1] or 0)
        end
      end
    end
  end
  return tensor(out, { n, oh, ow, oc })
end

local tolerance = { f32 = 1e-6, f16 = 6e-4, bf16 = 5e-3, f64 = 1e-13 }

-- name, x's shape, weight's shape, options
local cases = {
  { '1x1', { 2, 5, 7, 6 }, { 9, 1, 1, 6 }, {} },
  { '3x3 padded', { 2, 6, 5, 4 }, { 8, 3, 3, 4 }, { padding = { 1, 1, 1, 1 } } },
  { '3x3, 17 to 33 channels', { 1, 9, 11, 17 }, { 33, 3, 3, 17 }, { padding = { 1, 1, 1, 1 } } },
  { 'one pixel', { 1, 1, 1, 3 }, { 2, 3, 3, 3 }, { padding = { 1, 1, 1, 1 } } },
  { 'stride 2', { 1, 8, 8, 16 }, { 16, 3, 3, 16 }, { stride = { 2, 2 }, padding = { 1, 1, 1, 1 } } },
  { 'stride 2, padded right and bottom', { 2, 8, 7, 5 }, { 6, 3, 3, 5 }, { stride = { 2, 2 }, padding = { 0, 1, 0, 1 } } },
  { 'stride that leaves input over', { 1, 8, 6, 3 }, { 4, 1, 1, 3 }, { stride = { 3, 4 } } },
  { '5x2, strides and paddings differ', { 1, 12, 9, 3 }, { 7, 5, 2, 3 }, { stride = { 2, 1 }, padding = { 2, 1, 0, 1 } } },
  { 'dilated', { 1, 11, 13, 4 }, { 5, 3, 3, 4 }, { dilation = { 2, 3 }, padding = { 2, 2, 3, 3 } } },
  { '1-D', { 2, 1, 40, 10 }, { 12, 1, 3, 10 }, { stride = { 1, 2 }, padding = { 0, 0, 1, 1 } } },
  { 'depthwise', { 2, 7, 8, 19 }, { 19, 3, 3, 1 }, { groups = 19, padding = { 1, 1, 1, 1 } } },
  { 'depthwise 5x5, stride 2', { 1, 9, 9, 32 }, { 32, 5, 5, 1 }, { groups = 32, stride = { 2, 2 }, padding = { 1, 2, 1, 2 } } },
  { 'depthwise, two results a channel', { 1, 6, 6, 8 }, { 16, 3, 3, 1 }, { groups = 8, padding = { 1, 1, 1, 1 } } },
  { '3 groups', { 1, 6, 6, 12 }, { 9, 3, 3, 4 }, { groups = 3, padding = { 1, 1, 1, 1 } } },
}

for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
  t.test('conv2d ' .. dtype, function()
    for _, case in ipairs(cases) do
      local name, o = case[1], case[4]
      local x = randn(case[2]):to(dtype)
      local w = { weight = randn(case[3]):to(dtype) }
      t.near(nn.conv2d(w, x, o), conv_reference(w, x, o), tolerance[dtype], name)
      w.bias = randn { case[3][1] }:to(dtype)
      local y = nn.conv2d(w, x, o)
      t.equal(y.dtype, dtype)
      t.near(y, conv_reference(w, x, o), tolerance[dtype], name .. ', bias')
    end
  end)
end

t.test('conv2d with activations and residual', function()
  for _, dtype in ipairs { 'f32', 'f16', 'f64' } do
    for _, shape in ipairs {
      { { 1, 5, 6, 8 }, { 16, 3, 3, 8 } }, { { 2, 7, 3, 5 }, { 7, 1, 1, 5 } }, { { 1, 6, 6, 20 }, { 20, 3, 3, 1 } },
    } do
      local x, w = randn(shape[1]):to(dtype), { weight = randn(shape[2]):to(dtype), bias = randn { shape[2][1] }:to(dtype) }
      local p = shape[2][2] == 3 and 1 or 0
      local groups = shape[1][4] / shape[2][4]
      local residual = randn { shape[1][1], shape[1][2], shape[1][3], shape[2][1] }:to(dtype)
      for act in pairs(acts) do
        local o = { act = act, padding = { p, p, p, p }, groups = groups }
        if act == 'prelu' then o.act, o.slope = nil, randn { shape[2][1] }:to(dtype) end
        t.near(nn.conv2d(w, x, o), conv_reference(w, x, o), tolerance[dtype], dtype .. ' ' .. act)
        o.residual = residual
        t.near(nn.conv2d(w, x, o), conv_reference(w, x, o), tolerance[dtype], dtype .. ' ' .. act .. ' and residual')
      end
    end
  end
end)

-- oneDNN's implementations of a convolution differ in how they add.
t.test('conv2d with a residual whose size differs from x', function()
  for _, case in ipairs {
    { { 1, 3, 4, 8 }, { 8, 1, 1, 8 }, { 1, 1, 1, 1 } }, { { 3, 15, 16, 8 }, { 8, 5, 1, 8 }, { 1, 0, 2, 3 } },
    { { 1, 9, 23, 1 }, { 96, 4, 2, 1 }, { 0, 0, 0, 0 } }, { { 2, 18, 14, 40 }, { 40, 2, 1, 40 }, { 1, 1, 1, 1 } },
  } do
    for _, act in ipairs { 'none', 'silu', 'relu' } do
      local x, w = randn(case[1]), { weight = randn(case[2]), bias = randn { case[2][1] } }
      local o = { padding = case[3], act = act }
      o.residual = randn(nn.conv2d(w, x, o).shape)
      t.near(nn.conv2d(w, x, o), conv_reference(w, x, o), 1e-6, act)
    end
  end
end)

t.test('conv2d of views, mixed dtypes, a changed weight', function()
  local o = { padding = { 1, 1, 1, 1 } }
  local w = { weight = randn { 6, 3, 3, 4 }, bias = randn { 6 } }
  local nchw = randn { 2, 4, 5, 7 }
  local x = nchw:permute(1, 3, 4, 2)
  t.near(nn.conv2d(w, x, o), conv_reference(w, x, o), 1e-6, 'x seen through NCHW')
  local torch_weight = { weight = randn { 6, 4, 3, 3 }:permute(1, 3, 4, 2), bias = w.bias }
  t.near(nn.conv2d(torch_weight, x, o), conv_reference(torch_weight, x, o), 1e-6, 'weight seen through [O I kh kw]')
  local half = { weight = w.weight:to 'f16', bias = w.bias }
  t.near(nn.conv2d(half, x, o), conv_reference(half, x, o), 1e-6, 'f16 weight')
  w.weight:fill_(0.25)
  t.near(nn.conv2d(w, x, o), conv_reference(w, x, o), 1e-6, 'weight changed in place')
end)

-- On a CPU, windows of 3x3 and 2x2 over many pixels use Winograd's algorithm; in float64 they do not.
t.test('conv2d of larger pictures', function()
  for _, case in ipairs {
    { { 1, 20, 24, 16 }, { 16, 3, 3, 16 }, { 1, 1, 1, 1 } }, { { 3, 17, 19, 17 }, { 37, 3, 3, 17 }, { 1, 1, 1, 1 } },
    { { 2, 31, 18, 40 }, { 3, 3, 3, 40 }, { 0, 0, 0, 0 } }, { { 1, 40, 33, 24 }, { 70, 3, 3, 24 }, { 0, 3, 2, 1 } },
    { { 1, 24, 26, 33 }, { 32, 2, 2, 33 }, { 1, 1, 1, 1 } }, { { 2, 29, 23, 16 }, { 20, 2, 2, 16 }, { 0, 0, 0, 1 } },
    { { 1, 16, 20, 256 }, { 232, 3, 3, 256 }, { 1, 1, 1, 1 }, { 'prelu' } }, -- weights that are transformed in portions
  } do
    local x, w = randn(case[1]), { weight = randn(case[2]), bias = randn { case[2][1] } }
    local wide = { weight = w.weight:to 'f64', bias = w.bias:to 'f64' }
    for _, act in ipairs(case[4] or { 'none', 'relu', 'prelu', 'silu' }) do
      local o, p = { padding = case[3] }, { padding = case[3] }
      if act == 'prelu' then
        o.slope = randn { case[2][1] }
        p.slope = o.slope:to 'f64'
      else
        o.act, p.act = act, act
      end
      local plain = nn.conv2d(wide, x:to 'f64', p)
      t.near(nn.conv2d(w, x, o), plain, 3e-6, act)
      o.residual = randn(plain.shape)
      t.near(nn.conv2d(w, x, o), plain + o.residual, 3e-6, act .. ' and residual')
    end
    t.near(nn.conv2d({ weight = w.weight }, x:to 'f16', { padding = case[3] }),
      nn.conv2d({ weight = wide.weight }, x:to 'f16':to 'f64', { padding = case[3] }), 6e-4, 'f16')
  end
end)

t.test('conv2d of a larger image does not depend on the threads or on the other images of the batch', function()
  local x, w = randn { 3, 45, 50, 32 }, { weight = randn { 48, 3, 3, 32 } }
  local threads = cr.threads()
  local y = nn.conv2d(w, x, { padding = 1 })
  for n = 1, 5 do
    cr.threads(n)
    t.equal((nn.conv2d(w, x, { padding = 1 }) - y):abs():max():item(), 0, n .. ' threads')
  end
  cr.threads(threads)
  t.equal((nn.conv2d(w, x:narrow(1, 2, 1), { padding = 1 }) - y:narrow(1, 2, 1)):abs():max():item(), 0, 'one picture')
end)

t.test('conv2d of empty tensors', function()
  local w = { weight = randn { 6, 3, 3, 4 } }
  t.equal(table.concat(nn.conv2d(w, cr.empty(0, 5, 5, 4)).shape, ' '), '0 3 3 6')
end)

-- If the CPU multiplies in bf16, both operands are rounded to bf16 after their transforms: about 1.2 % in total,
-- while rounding the result alone gives 0.17 %.
t.test('many tiles in bf16', function()
  for _, case in ipairs { { 2, 16, 96, 64, 3 }, { 1, 31, 50, 41, 3 }, { 1, 32, 33, 16, 2 }, { 1, 24, 16, 3, 3 } } do
    cr.scope(function()
      local n, side, c, o, taps = unpack(case)
      local x, w = cr.randn(n, side, side, c):to 'bf16', { weight = cr.randn(o, taps, taps, c):to 'bf16', bias = cr.randn(o):to 'bf16' }
      local wide = { weight = w.weight:to 'f64', bias = w.bias:to 'f64' }
      local z = nn.conv2d(wide, x:to 'f64', { padding = 1, act = 'relu' })
      local residual = cr.randn(z.shape):to 'bf16'
      local y = nn.conv2d(w, x, { padding = 1, act = 'relu', residual = residual })
      t.equal(y.dtype, 'bf16')
      local off = t.relative_error(y:to 'f64', z + residual:to 'f64')
      t.ok(off > 1e-4 and off < 0.02, ('%s: off by %.4f'):format(table.concat(case, ' '), off))
    end)
  end
end)

t.test('conv2d reports wrong arguments', function()
  local w, x = { weight = cr.ones(6, 3, 3, 4) }, cr.ones(1, 5, 5, 4)
  t.raises(function() nn.conv2d(w, cr.ones(1, 5, 5, 3)) end,
    'conv2d: channels differ: %[1 5 5 3%] with weight %[6 3 3 4%] in 1 group')
  t.raises(function() nn.conv2d(w, cr.ones(1, 2, 5, 4)) end, 'conv2d: the window of weight %[6 3 3 4%] does not fit into %[1 2 5 4%]')
  t.raises(function() nn.conv2d(w, cr.ones(5, 5, 4)) end, 'conv2d: x %[N H W C%] and weight')
  t.raises(function() nn.conv2d(w, x, { stride = 0 }) end, 'conv2d: stride, dilation and groups must be at least 1')
  t.raises(function() nn.conv2d(w, x, { padding = -1 }) end, 'conv2d: the padding must not be negative')
  t.raises(function() nn.conv2d(w, x, { residual = cr.ones(1, 5, 5, 6) }) end, 'conv2d: the residual %[1 5 5 6%] is not %[1 3 3 6%]')
  t.raises(function() nn.conv2d({ weight = w.weight, bias = cr.ones(4) }, x) end, 'conv2d: bias must be %[6%] for')
  t.raises(function() nn.conv2d(w, x, { act = 'prelu' }) end, 'conv2d: PReLU, and only PReLU, needs a slope')
end)

local function pool_reference(x, kernel, stride, pad)
  local n, h, w, c = unpack(x.shape)
  local oh = math.floor((h + pad[1] + pad[2] - kernel[1]) / stride[1]) + 1
  local ow = math.floor((w + pad[3] + pad[4] - kernel[2]) / stride[2]) + 1
  local px, out = values(x), {}
  for b = 0, n - 1 do
    for y = 0, oh - 1 do
      for z = 0, ow - 1 do
        for k = 1, c do
          local high = -math.huge
          for r = math.max(y * stride[1] - pad[1], 0), math.min(y * stride[1] - pad[1] + kernel[1], h) - 1 do
            for s = math.max(z * stride[2] - pad[3], 0), math.min(z * stride[2] - pad[3] + kernel[2], w) - 1 do
              high = math.max(high, px[((b * h + r) * w + s) * c + k])
            end
          end
          out[#out + 1] = high
        end
      end
    end
  end
  return tensor(out, { n, oh, ow, c })
end

t.test('max_pool2d', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
    for _, case in ipairs {
      { { 1, 4, 4, 3 }, { 2, 2 }, { 2, 2 }, { 0, 0, 0, 0 } },
      { { 2, 7, 9, 21 }, { 3, 3 }, { 2, 2 }, { 1, 1, 1, 1 } },
      { { 1, 8, 5, 16 }, { 2, 3 }, { 1, 2 }, { 1, 0, 0, 2 } },
    } do
      local x = randn(case[1]):to(dtype)
      t.near(nn.max_pool2d(x, { kernel = case[2], stride = case[3], padding = case[4] }),
        pool_reference(x, case[2], case[3], case[4]), 0, dtype)
    end
  end
  local x = randn { 1, 5, 6, 4 }:permute(1, 3, 2, 4)
  t.near(nn.max_pool2d(x, { kernel = 2 }), pool_reference(x, { 2, 2 }, { 2, 2 }, { 0, 0, 0, 0 }), 0, 'a view')
  local nan = nn.max_pool2d(cr.tensor { 1, 0 / 0, 3, 4 }:view(1, 2, 2, 1), { kernel = 2 }):item()
  t.ok(nan ~= nan, 'a nan passes on')
  t.raises(function() nn.max_pool2d(cr.ones(1, 2, 2, 1), { kernel = 3 }) end, 'max_pool2d: a 3 x 3 window does not fit into %[1 2 2 1%]')
  t.raises(function() nn.max_pool2d(cr.ones(1, 4, 4, 1), { kernel = 2, padding = 2 }) end,
    'max_pool2d: the padding must be smaller than the kernel')
end)

t.done()
