--- 3x3 convolutions with our own Hopper kernels: every variant of kernels/conv/hopper.cu compared with the CPU in
--- float32.
--
-- CR_CONV_HOPPER=N selects a variant wherever it applies: tiles of 256 pixels by 128 (1) or 160 output channels (2),
-- of 128 by 160 (3); 0 selects the library.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local environment = require 'tests.support.environment'
local nn = require 'cr.nn'
local t = require 'tests.support.tap'

local C = base.C
local WAYS = { 1, 2, 3 }
local halves = { 'f16', 'bf16' }
-- Relative L2 error; rounding the result gives two thirds of it.
local LIMIT = { f16 = 3e-4, bf16 = 2.4e-3 }
local same = { 1, 1, 1, 1 }

local function with_way(way, fn) environment.with('CR_CONV_HOPPER', way, fn) end

-- cr_conv2d with a given output, which nn.conv2d does not offer.
local function conv(out, p, padding, act, stride)
  local c = ffi.new('cr_conv')
  c.stride_h, c.stride_w, c.dilation_h, c.dilation_w, c.groups = stride or 1, stride or 1, 1, 1, 1
  for i = 0, 3 do c.pad[i] = padding[i + 1] end
  c.act = act or C.CR_ACT_NONE
  base.check(C.cr_conv2d(out.c, p.x.c, p.weight.c, p.bias and p.bias.c, p.residual and p.residual.c, nil, c))
end

--- Random numbers of dtype on the CPU as f32, and on the GPU.
local function drawn(shape, dtype, scale)
  return cr.scope(function()
    local x = cuda.randn(shape, dtype, scale)
    return x, cuda.up(x, dtype)
  end)
end

--- Operands for x [n h w c] and o output channels: on the CPU and on the GPU.
local function operands(s, dtype)
  local n, h, w, c, o, padding = s[1], s[2], s[3], s[4], s[5], s[6] or same
  local shape = { n, h + padding[1] + padding[2] - 2, w + padding[3] + padding[4] - 2, o }
  local p, q = {}, {}
  p.x, q.x = drawn({ n, h, w, c }, dtype)
  p.weight, q.weight = drawn({ o, 3, 3, c }, dtype, (9 * c) ^ -0.5)
  p.bias, q.bias = drawn({ o }, dtype)
  p.residual, q.residual = drawn(shape, dtype)
  return p, q, shape, padding
end

--- Compares the result on the GPU with a reference that was copied there.
local function near(y, reference, message)
  cr.scope(function()
    local off = y:to 'f32' - reference
    local worst, largest = off:abs():max():item(), reference:abs():max():item()
    local unit = 2 ^ math.floor(math.log(largest) / math.log(2)) * cuda.eps[y.dtype]
    local error2 = (off:square():sum():item() / reference:square():sum():item()) ^ 0.5
    t.ok(worst <= 2 * unit and error2 <= LIMIT[y.dtype],
      ('%s %s: off by %.3g, %.2f units of the largest; relative L2 error %.3g (CR_SEED=%d)'):format(message, y.dtype, worst,
        worst / unit, error2, cuda.seed))
  end)
end

--- A result between two images of NaN, which must not be overwritten.
local function guarded(shape, dtype)
  local whole = cr.full({ shape[1] + 2, shape[2], shape[3], shape[4] }, 0 / 0, { dtype = dtype, device = cuda.device })
  return whole:narrow(1, 2, shape[1]), whole
end

local function untouched(whole, message)
  cr.scope(function()
    for _, at in ipairs { 1, whole:size(1) } do
      local beside = whole:narrow(1, at, 1):to 'f32'
      t.equal(beside:eq(beside):to 'f32':sum():item(), 0, message .. ': nothing is written beside')
    end
  end)
end

local function check(s, dtype, combinations)
  cr.scope(function()
    local p, q, shape, padding = operands(s, dtype)
    for _, with in ipairs(combinations) do
      cr.scope(function()
        local function only(v)
          return { x = v.x, weight = v.weight, bias = with.bias and v.bias or nil, residual = with.residual and v.residual or nil }
        end
        local reference = cr.empty(shape)
        conv(reference, only(p), padding)
        reference = cuda.up(reference)
        for _, way in ipairs(WAYS) do
          cr.scope(function()
            local message = ('way %d [%s]%s%s'):format(way, table.concat(s, ' ', 1, 5), with.bias and ' bias' or '',
              with.residual and ' residual' or '')
            local out, whole = guarded(shape, dtype)
            with_way(way, function() conv(out, only(q), padding) end)
            near(out, reference, message)
            untouched(whole, message)
          end)
        end
      end)
    end
  end)
end

local all = { {}, { bias = true }, { bias = true, residual = true }, { residual = true } }
-- N H W C O, padding
local shapes = {
  { 1, 16, 16, 64, 64 }, { 3, 17, 19, 128, 128 }, { 5, 8, 8, 192, 160 }, { 2, 33, 40, 320, 320 }, { 3, 7, 9, 64, 256 },
  { 1, 24, 24, 72, 136 }, { 2, 30, 15, 128, 640 }, { 9, 8, 8, 64, 1280 }, { 2, 16, 18, 64, 136, { 0, 1, 0, 1 } },
  { 1, 5, 70, 200, 384, { 2, 0, 1, 3 } }, { 2, 1, 1, 64, 72 }, { 4, 4, 4, 128, 264 },
}
for _, dtype in ipairs(halves) do
  cuda.test('sizes that fill tiles and that do not, ' .. dtype, function()
    for _, s in ipairs(cuda.cases(shapes)) do check(s, dtype, all) end
  end)
end

-- Several tiles per thread block, with a partial last wave: pipeline stages and output buffers are reused.
cuda.library_test('many tiles', function()
  check({ 17, 64, 64, 64, 328 }, 'f16', { { bias = true, residual = true }, {} })
  check({ 5, 128, 112, 128, 128 }, 'bf16', { { bias = true, residual = true }, { bias = true } })
  check({ 131, 8, 8, 128, 640 }, 'f16', { { bias = true, residual = true }, {} })
  check({ 33, 16, 16, 320, 1280 }, 'f16', { { bias = true, residual = true } })
end)

cuda.test('an in-place residual, activations, unfused steps', function()
  cr.scope(function()
    local p, q, shape, padding = operands({ 2, 20, 17, 64, 160 }, 'f16')
    for _, way in ipairs(WAYS) do
      with_way(way, function()
        cr.scope(function()
          local reference, out = cr.empty(shape), q.residual:clone()
          conv(reference, p, padding)
          conv(out, { x = q.x, weight = q.weight, bias = q.bias, residual = out }, padding)
          cuda.near(out, reference, { message = ('way %d, in place'):format(way) })
          for _, fusion in ipairs { true, false } do
            cuda.with({ fusion = fusion }, function()
              for _, act in ipairs { 'NONE', 'SILU', 'RELU' } do
                conv(reference, p, padding, C['CR_ACT_' .. act])
                local y = guarded(shape, 'f16')
                conv(y, q, padding, C['CR_ACT_' .. act])
                cuda.near(y, reference, { message = ('way %d, %s, fusion %s'):format(way, act, fusion) })
              end
            end)
          end
        end)
      end)
    end
  end)
end)

cuda.test('what no variant supports', function()
  for _, way in ipairs(WAYS) do
    with_way(way, function()
      for _, s in ipairs {
        { 2, 12, 10, 40, 64 }, { 2, 12, 10, 64, 66 }, { 1, 9, 10, 66, 64 }, { 2, 16, 16, 64, 64, stride = 2 },
        { 2, 16, 16, 64, 64, dtype = 'f32' },
      } do
        cr.scope(function()
          local dtype = s.dtype or 'f16'
          local p, q, shape, padding = operands(s, dtype)
          p.residual, q.residual = nil, nil
          if s.stride then shape = { 2, 8, 8, s[5] } end
          local reference, out = cr.empty(shape), guarded(shape, dtype)
          conv(reference, p, padding, nil, s.stride)
          conv(out, q, padding, nil, s.stride)
          cuda.near(out, reference, { message = ('way %d [%s] %s'):format(way, table.concat(s, ' ', 1, 5), dtype) })
        end)
      end
    end)
  end
end)

cuda.test('views', function()
  cr.scope(function()
    local p, q, shape, padding = operands({ 2, 18, 20, 128, 128 }, 'f16')
    for _, way in ipairs(WAYS) do
      with_way(way, function()
        cr.scope(function()
          local wide = cr.full({ 2, 18, 24, 136 }, 0 / 0, { dtype = 'f16', device = cuda.device })
          local x = wide:narrow(4, 5, 128):narrow(3, 3, 20)
          base.check(C.cr_copy(x.c, q.x.c))
          local reference, y = cr.empty(shape), cr.full({ 2, 18, 20, 144 }, 0 / 0, { dtype = 'f16', device = cuda.device })
          conv(reference, p, padding)
          conv(y:narrow(4, 9, 128), { x = x, weight = q.weight, bias = q.bias, residual = q.residual }, padding)
          cuda.near(y:narrow(4, 9, 128), reference, { message = ('way %d, x and result are views'):format(way) })
        end)
      end)
    end
  end)
end)

cuda.test('one kernel in a recording, with correct results when replayed', function()
  cr.scope(function()
    local p, q = operands({ 3, 21, 16, 128, 320 }, 'f16')
    local reference = nn.conv2d(p, p.x, { padding = 1, residual = p.residual })
    -- Nodes of a recording of one kernel: the result is also copied.
    local plain = cr.graph(nn.geglu)
    for _ = 1, 3 do plain(q.x) end
    local one = plain:size()
    plain:free()
    for _, way in ipairs(WAYS) do
      with_way(way, function()
        local w = { weight = q.weight, bias = q.bias }
        local g = cr.graph(function(x) return nn.conv2d(w, x, { padding = 1, residual = q.residual }) end)
        local y
        for _ = 1, 3 do y = g(q.x) end
        t.equal(g:why(), nil)
        t.equal(g:size(), one, 'way ' .. way)
        cuda.near(y, reference, { message = 'replayed, way ' .. way })
        g:free()
      end)
    end
  end)
end)

cuda.library_test('searched, and left to the library', function()
  cr.scope(function()
    local p, q = operands({ 4, 32, 32, 128, 128 }, 'f16')
    local reference = nn.conv2d(p, p.x, { padding = 1, residual = p.residual })
    local function run() return nn.conv2d({ weight = q.weight, bias = q.bias }, q.x, { padding = 1, residual = q.residual }) end
    for _ = 1, 2 do cuda.near(run(), reference, { message = 'searched' }) end
    with_way(0, function() cuda.near(run(), reference, { message = 'by the library' }) end)
    cuda.with({ search = false }, function() cuda.near(run(), reference, { message = 'unsearched' }) end)
  end)
end)

-- ---- few output channels: kernels/conv/lines_hopper.h ----

-- A recording shows by its number of kernels that the kernels for few output channels are used, but only without a
-- library (CR_LIBRARIES=0 is for slow tools). Here only results are compared; the sizes below are supported by these
-- kernels. N H W C O, padding
local lines = {
  { 1, 530, 96, 64, 64 }, { 2, 270, 200, 64, 48 }, { 1, 541, 113, 40, 56 }, { 1, 560, 128, 96, 32 }, { 1, 531, 90, 160, 32 },
  { 3, 200, 128, 192, 64 }, { 1, 300, 250, 136, 40 }, { 1, 540, 100, 64, 64, { 0, 1, 2, 1 } }, { 1, 1100, 95, 16, 16 },
}
for _, dtype in ipairs(halves) do
  cuda.test('few results, ' .. dtype, function()
    for _, s in ipairs(cuda.cases(lines)) do
      cr.scope(function()
        local p, q, shape, padding = operands(s, dtype)
        local slope, card_slope = drawn({ s[5] }, dtype)
        for _, act in ipairs { 'none', 'relu', 'prelu' } do
          for _, with in ipairs { {}, { bias = true }, { residual = true }, { bias = true, residual = true } } do
            cr.scope(function()
              local function options(v, bent)
                return {
                  padding = { padding[1], padding[2], padding[3], padding[4] }, residual = with.residual and v.residual or nil,
                  act = act ~= 'prelu' and act or nil, slope = act == 'prelu' and bent or nil,
                }
              end
              local function weights(v) return { weight = v.weight, bias = with.bias and v.bias or nil } end
              local reference = cuda.up(nn.conv2d(weights(p), p.x, options(p, slope)))
              local out, whole = guarded(shape, dtype)
              local o = options(q, card_slope)
              o.out = out
              nn.conv2d(weights(q), q.x, o)
              local message = ('[%s] %s%s%s'):format(table.concat(s, ' ', 1, 5), act, with.bias and ' bias' or '',
                with.residual and ' residual' or '')
              near(out, reference, message)
              untouched(whole, message)
            end)
          end
        end
      end)
    end
  end)
end

cuda.test('few output channels next to the input, as in a dense block', function()
  cr.scope(function()
    local p, q = operands({ 1, 533, 101, 96, 32 }, 'f16')
    local reference = cuda.up(nn.conv2d(p, p.x, { padding = 1 }))
    local dense = cr.full({ 1, 533, 101, 160 }, 0 / 0, { dtype = 'f16', device = cuda.device })
    dense:narrow(4, 1, 96):copy_(q.x)
    nn.conv2d({ weight = q.weight, bias = q.bias }, dense:narrow(4, 1, 96), { padding = 1, out = dense:narrow(4, 97, 32) })
    near(dense:narrow(4, 97, 32):contiguous(), reference, 'into channels of the same memory')
    t.equal((dense:narrow(4, 1, 96) - q.x):abs():max():item(), 0, 'what is read stays')
    local beside = dense:narrow(4, 129, 32):to 'f32'
    t.equal(beside:eq(beside):to 'f32':sum():item(), 0, 'channels beside stay')
    -- In place of the residual.
    local small, card = operands({ 1, 540, 128, 64, 64 }, 'f16')
    reference = cuda.up(nn.conv2d(small, small.x, { padding = 1, residual = small.residual }))
    local y = card.residual:clone()
    nn.conv2d({ weight = card.weight, bias = card.bias }, card.x, { padding = 1, residual = y, out = y })
    near(y, reference, 'a residual in place of the result')
  end)
end)

t.done()
