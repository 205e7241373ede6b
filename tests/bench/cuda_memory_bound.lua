-- Memory-bound operations on a GPU, at the sizes of the UNet at 512 px and the VAE: a few rows are compared with the
-- CPU, then GB/s and the percentage of the GPU's memory bandwidth are printed.
--
--     build/crescent tests/bench/cuda_memory_bound.lua [--bandwidth 4200]      GB/s of the card

local cr = require 'cr'
local nn = require 'cr.nn'
local options = require 'tests.bench.options'

local limit = options.read('Memory-bound operations.', { options.bandwidth }).bandwidth
require 'tests.bench.card' ()

local device = 'cuda:0'
local generator = cr.generator(os.time() % 100000, 'philox')
local function randn(shape, dtype)
  return cr.scope(function()
    -- one random row from the CPU, scaled differently for each row of the GPU's tensor
    local n, last = 1, shape[#shape]
    for k = 1, #shape - 1 do n = n * shape[k] end
    local row = cr.randn(last, { generator = generator }):to(device)
    local column = cr.randn(n, 1, { generator = generator }):to(device)
    return (row + column):to(dtype or 'f16'):view(shape)
  end)
end

-- The largest difference of the first rows, relative to the largest value.
local function check(name, result, expected)
  cr.scope(function()
    local a, b = result:to('cpu'):to 'f32', expected:to 'f32'
    local e = (a - b):abs():max():item() / math.max(b:abs():max():item(), 1e-9)
    if e ~= e or e > 2e-3 then error(('%s: wrong: %.3g'):format(name, e), 0) end
  end)
end

local function row(name, bytes, fn, verify)
  cr.scope(function()
    if verify then cr.scope(verify) end
    local ms = cr.cuda.time(function() cr.scope(function() fn() end) end)
    local rate = bytes / ms / 1e6
    print(('%-44s %8.1f us %8.0f GB/s %5.1f %%'):format(name, ms * 1e3, rate, 100 * rate / limit))
  end)
end

for _, size in ipairs { { 32, 4096, 320 }, { 32, 1024, 640 }, { 32, 256, 1280 }, { 4, 512 * 512, 128 } } do
  cr.scope(function()
    local N, T, D = unpack(size)
    local n = N * T * D
    local text = (' [%d %d %d]'):format(N, T, D)
    local x, y, bias = randn(size), randn(size), randn { D }
    local out = cr.empty(size, { dtype = 'f16', device = device })
    local function few(t) return t:narrow(1, N, 1):narrow(2, T - 6, 7):to 'cpu' end
    row('copy f16' .. text, 4 * n, function() out:copy_(x) end, function() check('copy', few(out:copy_(x)), few(x)) end)
    row('add' .. text, 6 * n, function() x:add(y, out) end, function() check('add', few(x:add(y, out)), few(x) + few(y)) end)
    row('add [D]' .. text, 4 * n, function() x:add(bias, out) end,
      function() check('add bias', few(x:add(bias, out)), few(x) + bias:to 'cpu') end)
    row('mul by a number' .. text, 4 * n, function() x:mul(0.5, out) end, function() check('mul', few(x:mul(0.5, out)), few(x) * 0.5) end)
    row('silu' .. text, 4 * n, function() cr.check(cr.C.cr_unary(out.c, cr.C.CR_SILU, x.c)) end,
      function() check('silu', few(x:silu()), few(x):silu()) end)
    row('f16 to f32' .. text, 6 * n, function() return x:to 'f32' end, function() check('to f32', few(x:to 'f32'), few(x)) end)
    local wide = x:to 'f32'
    row('f32 to f16' .. text, 6 * n, function() out:copy_(wide) end, function() check('to f16', few(out:copy_(wide)), few(wide)) end)
    row('cat of two, last dimension' .. text, 8 * n, function() return cr.cat({ x, y }, 3) end,
      function() check('cat', few(cr.cat({ x, y }, 3)), cr.cat({ few(x), few(y) }, 3)) end)
    row('transpose [T D] to [D T]' .. text, 4 * n, function() return x:transpose(2, 3):contiguous() end, function()
      local turned = x:transpose(2, 3):contiguous():transpose(2, 3)
      check('transpose', turned:narrow(1, N, 1):narrow(2, 1, 70), x:narrow(1, N, 1):narrow(2, 1, 70):to 'cpu')
    end)
    row('rows in another order' .. text, 4 * n, function() return x:transpose(1, 2):contiguous() end, function()
      check('rows', x:transpose(1, 2):contiguous():transpose(1, 2):narrow(2, 1, 9), x:narrow(2, 1, 9):to 'cpu')
    end)
    row('sum of all' .. text, 2 * n, function() return x:sum() end)
    row('mean of rows' .. text, 2 * n, function() return x:mean(3) end,
      function() check('mean', few(x:mean({ 3 }, true)), few(x):mean({ 3 }, true)) end)
    row('mean of columns' .. text, 2 * n, function() return x:view(N * T, D):mean(1) end)
    row('softmax' .. text, 4 * n, function() return x:softmax() end, function() check('softmax', few(x:softmax()), few(x):softmax()) end)
    wide:free()
    if D <= 1280 and T <= 4096 then
      y:free()
      local both = randn { N, T, 8 * D }
      row(('geglu [%d %d %d]'):format(N, T, 8 * D), 24 * n, function() return nn.geglu(both) end,
        function() check('geglu', few(nn.geglu(both)), nn.geglu(few(both))) end)
    end
  end)
end

-- A sampling step: latents of one window, and of many windows, which fill the GPU.
for _, shape in ipairs { { 1, 16, 64, 64, 4 }, { 64, 16, 64, 64, 4 } } do
  cr.scope(function()
    local n = 16 * 64 * 64 * 4 * shape[1]
    for _, count in ipairs { 2, 4, 8 } do
      local xs, c = {}, {}
      for k = 1, count do xs[k], c[k] = randn(shape, 'f32'), k / 10 end
      row(('lincomb of %d f32 [%s]'):format(count, table.concat(shape, ' ')), 4 * n * (count + 1),
        function() return cr.lincomb(xs, c) end)
    end
  end)
end
