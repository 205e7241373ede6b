--- Nearest-neighbour upsampling folded into the following 3x3 convolution: the sums of taps, the result compared with
--- separate operations, weights prepared by a tree, networks with and without it; on the CPU and on a GPU.

local arena = require 'cr.weights.arena'
local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local help = require 'tests.support.networks'
local nn = require 'cr.nn'
local t = require 'tests.support.tap'
local upsample = require 'cr.nn.upsample'
local vae = require 'models.networks.vae'

-- name, N H W, C, O
local cases = {
  { 'even', { 2, 6, 8 }, 16, 24 }, { 'odd', { 3, 5, 7 }, 40, 8 }, { 'one pixel', { 1, 1, 1 }, 8, 16 },
  { 'one row', { 2, 1, 9 }, 24, 16 }, { 'one column', { 1, 11, 1 }, 8, 8 }, { 'odd channels', { 2, 4, 3 }, 5, 7 },
  { 'wide', { 2, 9, 13 }, 128, 72 }, { 'tall', { 1, 33, 17 }, 64, 96 },
}

-- Random weights with no more than dtype's precision, and what a tree makes of them.
local function layer(channels, results, dtype, bias)
  local w = {
    weight = cuda.randn({ results, 3, 3, channels }, dtype, (9 * channels) ^ -0.5),
    bias = bias and cuda.randn({ results }, dtype) or nil,
  }
  w.folded = { weight = upsample.fold(w.weight), bias = bias and cr.cat({ w.bias, w.bias, w.bias, w.bias }, 1) or nil }
  return w
end

local function apart(w, x) return nn.conv2d(w, nn.upsample_nearest(x, 2), { padding = 1 }) end

t.test('the sums of taps', function()
  local w = cr.randn({ 2, 3, 3, 4 }):to 'f16'
  local folded = upsample.fold(w)
  t.equal(folded.dtype, 'f32', 'dtype of the sums')
  t.equal(table.concat(folded.shape, ' '), '8 2 2 4')
  t.equal(upsample.fold(w:to 'f64').dtype, 'f64')
  -- The taps that act on each of the two pixels, by parity.
  local taps = { [0] = { { 0 }, { 1, 2 } }, { { 0, 1 }, { 2 } } }
  local wrong = 0
  t.each({ 0, 1 }, { 0, 1 }, { 0, 1 }, { 1, 2 }, { 1, 2 }, { 1, 2, 3, 4 }, function(a, b, o, y, x, c)
    local sum = 0
    for _, ky in ipairs(taps[a][y]) do
      for _, kx in ipairs(taps[b][x]) do
        sum = sum + w:select(1, o + 1):select(1, ky + 1):select(1, kx + 1):select(1, c):item()
      end
    end
    local got = folded:select(1, (2 * a + b) * 2 + o + 1):select(1, y):select(1, x):select(1, c):item()
    -- Sums of four f16 numbers of similar size are exact in f32 except for the last bits.
    if math.abs(got - sum) > 1e-6 then wrong = wrong + 1 end
  end)
  t.equal(wrong, 0, 'sums that differ')
end)

t.test('folded and separate operations agree, on the CPU', function()
  for _, case in ipairs(cases) do
    for _, bias in ipairs { true, false } do
      cr.scope(function()
        local n, channels, results = case[2], case[3], case[4]
        local w, x = layer(channels, results, 'f32', bias), cuda.randn { n[1], n[2], n[3], channels }
        local y = nn.upsample_conv2d(w, x)
        t.equal(table.concat(y.shape, ' '), ('%d %d %d %d'):format(n[1], 2 * n[2], 2 * n[3], results))
        t.near(y, apart(w, x), 2e-6, case[1] .. (bias and ', bias' or ''))
        -- Without prepared weights the plain form is used, bit for bit.
        t.near(nn.upsample_conv2d({ weight = w.weight, bias = w.bias }, x), apart(w, x), 0, case[1] .. ', plain')
      end)
    end
  end
  local w = layer(8, 8, 'f32', true)
  t.raises(function() nn.upsample_conv2d(w, cr.zeros(1, 4, 4, 9)) end, 'channels differ')
  t.raises(function() nn.upsample_conv2d(w, 'x') end, "upsample_conv2d: x: a tensor is needed, not 'x'")
end)

-- What weights.tree does for a GPU, in host memory.
t.test('an arena computes prepared weights from the file', function()
  local weight, bias = cr.randn { 6, 5, 3, 3 }, cr.randn { 6 }
  local file = { path = 'test', get = function(_, name) return name:find 'weight$' and weight or bias end }
  local items = {}
  for _, made in ipairs(upsample.made { 'conv' }) do
    local from = made.of == 'conv.weight' and weight or bias
    items[#items + 1] = { full = 'a.' .. made.of, name = 'a.' .. made.name, dtype = 'f16', make = made.make,
      info = { dtype = 'f32', shape = made.shape(from.shape) } }
  end
  local got = {}
  arena.load(file, items, { device = 'cpu' }, function(name, x) got[name] = x end)
  t.near(got['a.conv.folded.weight'], upsample.fold(weight:permute(1, 3, 4, 2)):to 'f16', 0, 'weight')
  t.near(got['a.conv.folded.bias'], cr.cat({ bias, bias, bias, bias }, 1):to 'f16', 0, 'bias')
end)

local nano_vae = { block_out_channels = { 32, 64, 64, 64 }, layers_per_block = 1 }
local function make_vae(options)
  local config = vae.config(nano_vae)
  return vae.new(help.tree(vae.expected(config), options), config)
end

-- Adds to a network on the CPU what a tree computes on a GPU.
local function fold_all(w)
  local n = 0
  for key, child in pairs(w) do
    if key == 'upsamplers' then
      local c = child[0].conv
      c.folded = { weight = cr.keep(upsample.fold(c.weight)), bias = cr.keep(cr.cat({ c.bias, c.bias, c.bias, c.bias }, 1)) }
      n = n + 1
    elseif type(child) == 'table' then
      n = n + fold_all(child)
    end
  end
  return n
end

t.test('the autoencoder with and without folding, on the CPU', function()
  local plain, folded = make_vae(), make_vae()
  t.equal(fold_all(folded.w), 3, 'folded layers')
  local z = help.input('latent', { 2, 4, 5, 7 })
  t.near(folded:decode(z), plain:decode(z), 5e-6)
end)

cuda.test('folded and separate operations agree, on a GPU', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
    for _, case in ipairs(cases) do
      for _, bias in ipairs { true, false } do
        cr.scope(function()
          local n, channels, results = case[2], case[3], case[4]
          local here, x = layer(channels, results, dtype, bias), cuda.randn({ n[1], n[2], n[3], channels }, dtype)
          local there = { weight = cuda.up(here.weight, dtype), bias = bias and cuda.up(here.bias, dtype) or nil, folded = {} }
          for name, v in pairs(here.folded) do there.folded[name] = cuda.up(v, dtype) end
          local want, name = apart(here, x), ('%s [%s] %d to %d%s'):format(case[1], table.concat(n, ' '), channels, results,
            bias and ', bias' or '')
          cuda.near(nn.upsample_conv2d(there, cuda.up(x, dtype)), want, { message = name })
          cuda.with({ conv_upsample = false }, function()
            cuda.near(nn.upsample_conv2d(there, cuda.up(x, dtype)), want, { message = name .. ', off' })
          end)
        end)
      end
    end
  end
end)

cuda.test('the switch selects the implementation', function()
  local w = layer(32, 32, 'f16', true)
  local there = { weight = cuda.up(w.weight, 'f16'), bias = cuda.up(w.bias, 'f16'), folded = {} }
  for name in pairs(w.folded) do there.folded[name] = cr.zeros(w.folded[name].shape, { dtype = 'f16', device = cuda.device }) end
  local x = cuda.up(cuda.randn({ 1, 8, 8, 32 }, 'f16'), 'f16')
  local function largest() return nn.upsample_conv2d(there, x):abs():max():item() end
  cuda.with({ conv_upsample = true }, function() t.equal(largest(), 0, 'on: the prepared weights, zeros here') end)
  cuda.with({ conv_upsample = false }, function() t.ok(largest() > 0, 'off: the weights themselves') end)
end)

cuda.test('an autoencoder\'s tree on a GPU has prepared weights, which do not change the result', function()
  local function decoded(dtype, made)
    return cr.scope(function()
      local net = make_vae { device = cuda.device, dtype = dtype, made = made }
      t.equal(rawget(net.w.decoder.up_blocks[0].upsamplers[0].conv, 'folded') ~= nil, made ~= nil)
      return net:decode(help.input('latent', { 3, 4, 5, 7 }):to(cuda.device)):to 'cpu':to 'f32'
    end)
  end
  for dtype, limit in pairs { f32 = 1e-5, f16 = 4e-3, bf16 = 3e-2 } do
    t.near(decoded(dtype, vae.made), decoded(dtype), limit, 'autoencoder ' .. dtype)
  end
end)

t.done()
