-- Tensor operations on a GPU, on large tensors (64 MB and more) and small ones: milliseconds each. torch_tensors.py
-- runs it and PyTorch together and prints both.
--
--     build/crescent tests/bench/cuda_tensors.lua [--only topk,sort] [--json]

local cr = require 'cr'
local options = require 'tests.bench.options'

local o = options.read('Tensor operations on a GPU.', {
  { '--only', default = '', help = 'only rows whose names contain one of these words, separated by commas' },
  { '--json', 'flag', help = 'for torch_tensors.py' },
})
require 'tests.bench.card' ()

local times = {}
local function row(name, fn)
  local wanted = o.only == ''
  for word in o.only:gmatch '[^,]+' do wanted = wanted or name:find(word, 1, true) end
  if not wanted then return end
  times[name] = cr.cuda.time(fn)
  if not o.json then print(('%-32s %9.4f ms'):format(name, times[name])) end
end

-- These are the same names as in torch_tensors.py.
for size, shape in pairs { large = { 4096, 8192 }, small = { 32, 64 } } do
  cr.scope(function()
    local x, y = cr.randn(shape, { device = 'cuda' }), cr.randn(shape, { device = 'cuda' })
    local half, brain, mask = x:to 'f16', x:to 'bf16', x:gt(0)
    local index, flat = cr.randperm(shape[1], { device = 'cuda' }), x:view(-1)
    local columns = cr.randperm(shape[2], { device = 'cuda' })
    local places = cr.randint(1, shape[1] + 1, shape, { device = 'cuda' })
    local function each(name, fn) row(size .. ' ' .. name, fn) end
    each('add', function() return x + y end)
    each('mul f16', function() return half * 2 end)
    each('exp', function() return x:exp() end)
    each('log1p of bool', function() return mask:log1p() end)
    each('remainder', function() return x:remainder(0.7) end)
    each('clamp', function() return x:clamp(-1, 1) end)
    each('where', function() return cr.where(mask, x, y) end)
    each('where f16', function() return cr.where(mask, half, 0) end)
    each('masked_fill', function() return x:masked_fill(mask, 0) end)
    each('to f16', function() return x:to 'f16' end)
    each('transpose', function() return x:t():contiguous() end)
    each('cat', function() return cr.cat({ x, y }, 2) end)
    each('index_select', function() return x:index_select(1, index) end)
    each('index_select columns', function() return x:index_select(2, columns) end)
    each('gather', function() return x:gather(1, places) end)
    each('masked_select', function() return x:masked_select(mask) end)
    each('nonzero', function() return mask:nonzero() end)
    each('sum', function() return x:sum() end)
    each('sum bf16', function() return brain:sum() end)
    each('sum of bool', function() return mask:sum() end)
    each('mean rows', function() return x:mean(2) end)
    each('mean columns', function() return x:mean(1) end)
    each('max rows', function() return x:max(2) end)
    each('max columns', function() return x:max(1) end)
    each('argmax rows', function() return x:argmax(2) end)
    each('var rows', function() return x:var(2) end)
    each('softmax', function() return x:softmax() end)
    each('cumsum', function() return x:cumsum(2) end)
    each('sort', function() return x:sort(2) end)
    each('sort f16', function() return half:sort(2) end)
    each('topk 10', function() return x:topk(10, 2) end)
    each('topk 10 of columns', function() return x:topk(10, 1) end)
    each('topk 10 of all', function() return flat:topk(10) end)
    each('topk 1000 of all', function() return flat:topk(1000) end)
    each('sort all', function() return flat:sort() end)
    each('cumsum all', function() return flat:cumsum() end)
  end)
end

-- A sampling step: the built-in operation, the same in recorded Lua, and a formula.
cr.scope(function()
  local xs = {}
  for k = 1, 3 do xs[k] = cr.randn({ 64, 16, 64, 64, 4 }, { device = 'cuda' }) end
  local a, b, c = unpack(xs)
  local fused = cr.fuse(function(x, y, z) return x * 0.1 + y * 0.2 + z * 0.3 end)
  local formula = cr.kernel { 'y = a * 0.1 + b * 0.2 + c * 0.3', a = 'in', b = 'in', c = 'in', y = 'out' }
  row('step by lincomb', function() return cr.lincomb(xs, { 0.1, 0.2, 0.3 }) end)
  row('step by fuse', function() return fused(a, b, c) end)
  row('step by kernel', function() return formula(a, b, c) end)
end)
if o.json then print(require 'cjson'.encode(times)) end
