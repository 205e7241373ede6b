-- Normalization, random numbers and temporal attention on a GPU at the networks' sizes: GB/s for one read of x and
-- one write of the result, and percentage of the GPU's memory bandwidth. Each operation is recorded 20 times in one
-- graph, so that launches cost nothing; small tensors stay in the cache, as in a network. Each result is checked
-- before it is timed.
--
--     build/crescent tests/bench/cuda_norm.lua [--only group|layer|temporal|random] [--bandwidth 4200]      GB/s of the card

local cr = require 'cr'
local nn = require 'cr.nn'
local command = require 'tests.bench.options'

local o = command.read('Normalization, random numbers, temporal attention.', {
  { '--only', 'choice', choices = { 'group', 'layer', 'temporal', 'random' }, help = 'only this kind of operation (default: all)' },
  command.bandwidth,
})
require 'tests.bench.card' ()

local only, limit = o.only, o.bandwidth
local device = 'cuda:0'
local generator = cr.generator(os.time() % 100000, 'philox')
local function randn(shape) return cr.randn(shape, { generator = generator, dtype = 'f16', device = device }) end

local CALLS = 20

-- `few`, if given, returns a part of the result and the CPU's value of it.
local function row(name, bytes, fn, few)
  cr.scope(function()
    local note = ''
    if few then
      local a, b = few()
      local e = (a:to('cpu'):to 'f32' - b):abs():max():item() / b:abs():max():item()
      note = e <= 4e-3 and '' or ('  WRONG: %.3g'):format(e)
    end
    local token = cr.zeros(1, { device = device })
    local graph = cr.graph(function(x)
      for _ = 1, CALLS do cr.scope(function() fn() end) end
      return x:clone()
    end, { direct = true })
    local ms = cr.cuda.time(function() graph(token) end) / CALLS
    local rate = bytes / ms / 1e6
    print(('%-52s %8.1f us %8.0f GB/s %5.1f %%%s%s'):format(name, ms * 1e3, rate, 100 * rate / limit, note,
      graph:why() and '  not recorded: ' .. graph:why() or ''))
    graph:free()
  end)
end

local function parameters(c)
  local w = { weight = randn { c }, bias = randn { c } }
  return w, { weight = w.weight:to('cpu'):to 'f32', bias = w.bias:to('cpu'):to 'f32' }
end

if not only or only == 'group' then
  for _, size in ipairs { { 32, 4096, 320 }, { 32, 4096, 640 }, { 32, 4096, 960 }, { 32, 1024, 640 }, { 32, 1024, 1280 },
    { 32, 1024, 1920 }, { 32, 256, 1280 }, { 32, 256, 2560 }, { 32, 64, 1280 }, { 32, 64, 2560 }, { 32, 1024, 320 },
    { 32, 1024, 960 }, { 32, 256, 640 }, { 32, 16, 1280 }, { 2, 16 * 4096, 320 }, { 4, 512 * 512, 128 }, { 4, 256 * 256, 256 },
    { 4, 128 * 128, 512 }, { 16, 64 * 64, 512 }, { 4, 256 * 256, 128 } } do
    cr.scope(function()
      local x, w, on_cpu = randn(size), parameters(size[3])
      for _, silu in ipairs { false, true } do
        row(('group norm%s [%d %d %d]'):format(silu and ' silu' or '', unpack(size)), 4 * x:numel(),
          function() return nn.group_norm(w, x, 32, 1e-5, { silu = silu }) end, function()
            local n, c = size[1], size[3]
            return nn.group_norm(w, x, 32, 1e-5, { silu = silu }):narrow(1, n, 1):narrow(3, 1, c / 32):contiguous(),
                nn.group_norm({ weight = on_cpu.weight:narrow(1, 1, c / 32), bias = on_cpu.bias:narrow(1, 1, c / 32) },
                  x:narrow(1, n, 1):narrow(3, 1, c / 32):contiguous():to('cpu'):to 'f32', 1, 1e-5, { silu = silu })
          end)
      end
    end)
  end
end

if not only or only == 'layer' then
  for _, size in ipairs { { 2, 16, 4096, 320 }, { 2, 16, 1024, 640 }, { 2, 16, 256, 1280 }, { 2, 16, 64, 1280 },
    { 2, 16, 1024, 320 }, { 2, 16, 256, 640 }, { 2, 16, 16, 1280 } } do
    cr.scope(function()
      local x, w, on_cpu = randn(size), parameters(size[4])
      local after = randn { 16, 1, size[4] }
      for _, with in ipairs { false, true } do
        local options = with and { after = after } or nil
        row(('layer norm%s [%d %d %d %d]'):format(with and ' with positions' or '', unpack(size)), 4 * x:numel(),
          function() return nn.layer_norm(w, x, 1e-5, options) end, function()
            return nn.layer_norm(w, x, 1e-5, options):narrow(3, 3, 5):contiguous(),
                nn.layer_norm(on_cpu, x:narrow(3, 3, 5):contiguous():to('cpu'):to 'f32', 1e-5,
                  with and { after = after:to('cpu'):to 'f32' } or nil)
          end)
      end
    end)
  end
end

if not only or only == 'temporal' then
  for _, size in ipairs { { 2, 16, 4096, 320 }, { 2, 16, 1024, 640 }, { 2, 16, 256, 1280 }, { 2, 16, 64, 1280 },
    { 2, 16, 1024, 320 }, { 2, 16, 256, 640 }, { 2, 16, 16, 1280 }, { 2, 24, 4096, 320 } } do
    cr.scope(function()
      local B, F, T, C = unpack(size)
      local qkv, out = randn { B, F, T, 3 * C }, cr.empty(size, { dtype = 'f16', device = device })
      local function attend(x, to)
        local function part(k) return x:narrow(4, 1 + k * C, C):transpose(2, 3) end
        return nn.attention(part(0), part(1), part(2), { heads = 8, out = to })
      end
      row(('temporal attention [%d %d %d %d], 8 heads'):format(B, F, T, C), 8 * out:numel(),
        function() attend(qkv, out:transpose(2, 3)) end, function()
          attend(qkv, out:transpose(2, 3))
          return out:narrow(3, T - 2, 3):transpose(2, 3):contiguous(),
              attend(qkv:narrow(3, T - 2, 3):contiguous():to('cpu'):to 'f32')
        end)
    end)
  end
end

if not only or only == 'random' then
  for _, kind in ipairs { 'torch-cuda', 'philox' } do
    cr.scope(function()
      local n, g = 2 ^ 26, cr.generator(1, kind)
      local ms = cr.cuda.time(function() cr.randn(n, { generator = g, dtype = 'f16', device = device }) end)
      print(('%-52s %8.1f us %8.0f GB/s'):format(kind .. ' randn of 2^26 halves', ms * 1e3, 2 * n / ms / 1e6))
    end)
  end
end
