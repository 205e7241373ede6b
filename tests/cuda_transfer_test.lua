-- Copies to a GPU and back, in every size around that of the staging buffer; trees of weights on a GPU equal those on
-- the CPU.

local arena = require 'cr.weights.arena'
local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local ffi = require 'ffi'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local device = cuda.device
local MiB = 2 ^ 20

ffi.cdef 'int memcmp(const void *a, const void *b, size_t n);'

local function noise(n)
  local x = cr.empty(n, { dtype = 'u8' })
  local p = x:pointer()
  local v = cuda.seed
  for i = 0, math.min(n, 4096) - 1 do
    v = (v * 69069 + 12345) % 4294967296
    p[i] = math.floor(v / 65536) % 256
  end
  local done = 4096
  while done < n do -- doubles the data, minus one byte, so that no two staging slots are equal
    local count = math.min(done - 1, n - done)
    ffi.copy(p + done, p + 1, count)
    done = done + count
  end
  return x
end

local function same_bytes(a, b, bytes, message)
  t.ok(ffi.C.memcmp(a:pointer(), b:pointer(), bytes) == 0, message)
end

cuda.test('bytes of all sizes are copied up and back', function()
  for _, n in ipairs { 1, 2, 3, 255, 256, 257, 4097, MiB - 1, 8 * MiB - 1, 8 * MiB, 8 * MiB + 1, 32 * MiB + 13,
    77 * MiB + 5 } do
    cr.scope(function()
      local x = noise(n)
      local up = x:to(device)
      same_bytes(up:to 'cpu', x, n, n .. ' bytes')
    end)
  end
end)

cuda.test('the host memory may be reused at once', function()
  cr.scope(function()
    local x = noise(5 * MiB + 3)
    local kept, ups = {}, {}
    for i = 1, 20 do
      x:pointer()[17] = i
      kept[i] = x:clone()
      ups[i] = x:to(device)
      ffi.fill(x:pointer() + 1000, 1000, i)
    end
    for i = 20, 1, -1 do same_bytes(ups[i]:to 'cpu', kept[i], 5 * MiB + 3, 'upload ' .. i) end
  end)
end)

cuda.test('many small ones in a row', function()
  cr.scope(function()
    local ups = {}
    for i = 1, 3000 do ups[i] = cr.scope(function() return cr.full({ i % 37 + 1 }, i):to(device) end) end
    local wrong = 0
    for i = 3000, 1, -7 do
      if ups[i]:to 'cpu':min():item() ~= i then wrong = wrong + 1 end
    end
    t.equal(wrong, 0)
  end)
end)

cuda.test('the other stream has its own staging buffer', function()
  cr.scope(function()
    local n = 20 * MiB + 1
    local x, y = noise(n), noise(n)
    y:pointer()[n - 1] = 255 - x:pointer()[n - 1]
    for _ = 1, 4 do
      local a = x:to(device)
      cr.C.cr_device_stream(1)
      local b = y:to(device)
      cr.C.cr_device_stream(0)
      same_bytes(a:to 'cpu', x, n, 'stream 0')
      same_bytes(b:to 'cpu', y, n, 'stream 1')
    end
  end)
end)

cuda.test('strides and dtypes', function()
  cr.scope(function()
    local x = cuda.randn { 33, 7, 5 }
    t.near(x:permute(3, 1, 2):to(device):to 'cpu', x:permute(3, 1, 2):contiguous(), 0)
    local up = x:to(device)
    t.near(up:narrow(1, 2, 30):permute(2, 3, 1):to 'cpu', x:narrow(1, 2, 30):permute(2, 3, 1):contiguous(), 0)
    for _, dtype in ipairs { 'f16', 'bf16', 'f64', 'i32' } do
      t.near(up:to(dtype):to 'cpu':to 'f32', x:to(dtype):to 'f32', 0, dtype)
    end
  end)
end)

cuda.test('small constants can be recorded', function()
  local values = cr.arange(1, 5000)
  local g = cr.graph(function(x) return x + values:to(device) end)
  local x = cr.ones(5000, { device = device })
  local wanted = values + 1
  for _ = 1, 3 do
    cr.scope(function() t.near(g(x):to 'cpu', wanted, 0) end)
  end
  t.equal(g:why(), nil)
  for _, v in ipairs { values, wanted, x } do v:free() end
  g:free()
end)

-- ---- weights ---------------------------------------------------------------------------------

local function file_of(dtype)
  local tensors = {
    ['a.conv.weight'] = cuda.randn { 6, 5, 3, 3 }, ['a.conv.bias'] = cuda.randn { 6 },
    ['a.one.weight'] = cuda.randn { 4, 3, 5 }, ['a.three.weight'] = cuda.randn { 3, 2, 2, 3, 2 },
    ['a.attn.0.to_q.weight'] = cuda.randn { 5, 7 }, ['a.attn.0.to_v.weight'] = cuda.randn { 3, 7 },
    ['a.attn.0.to_k.weight'] = cuda.randn { 9, 7 }, ['a.attn.0.to_k.bias'] = cuda.randn { 9 },
    ['a.attn.1.to_v.weight'] = cuda.randn { 2, 7 }, ['a.attn.1.to_k.weight'] = cuda.randn { 2, 7 },
    ['z.scalar'] = cr.tensor(2.5), ['z.empty'] = cr.empty(0, 4),
  }
  for name, x in pairs(tensors) do tensors[name] = x:to(dtype) end
  tensors['z.steps'] = cr.arange(1, 7):to 'i64'
  local path = scratch.path('arena_' .. dtype .. '.safetensors')
  cr.save(path, tensors)
  return path
end

local adjacent = { { 'to_q.weight', 'to_k.weight', 'to_v.weight' } }

local function compare(a, b, path)
  for key, x in pairs(b) do
    local name = path .. '.' .. tostring(key)
    if cr.is_tensor(x) then
      local y = a[key]
      t.equal(y.dtype, x.dtype, name)
      t.equal(table.concat(y.shape, ' '), table.concat(x.shape, ' '), name)
      t.ok(y:is_contiguous(), name)
      t.near(y:to 'cpu', x, 0, name)
    else
      t.equal(weights.path(a[key]), weights.path(x))
      compare(a[key], x, name)
    end
  end
end

local function check_joined(w)
  local attn = w.a.attn[0]
  local whole = weights.joined { attn.to_q.weight, attn.to_k.weight, attn.to_v.weight }
  t.equal(table.concat(whole.shape, ' '), '17 7')
  t.near(whole:to 'cpu', cr.cat({ attn.to_q.weight:to 'cpu', attn.to_k.weight:to 'cpu', attn.to_v.weight:to 'cpu' }, 1), 0)
  t.equal(table.concat(weights.joined({ attn.to_k.weight, attn.to_v.weight }).shape, ' '), '12 7')
  t.equal(weights.joined { attn.to_k.weight, attn.to_q.weight }, nil, 'in the wrong order')
  t.equal(weights.joined { attn.to_q.weight, attn.to_v.weight }, nil, 'with a gap')
  t.equal(table.concat(weights.joined({ w.a.attn[1].to_k.weight, w.a.attn[1].to_v.weight }).shape, ' '), '4 7')
end

-- The layout of an arena and its views needs no GPU: this one is in host memory, filled by the same code.
t.test('an arena contains the tensors of a tree', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
    local path = file_of(dtype)
    for _, to in ipairs { 'f32', 'f16' } do
      local plain = weights.tree(path, { dtype = to })
      local items, got, file = {}, {}, weights.open(path)
      local turns = { [3] = { 1, 3, 2 }, [4] = { 1, 3, 4, 2 }, [5] = { 1, 3, 4, 5, 2 } }
      for i, name in ipairs(file.names) do
        local info = file:info(name)
        items[i] = { full = name, name = name, info = info, dtype = info.dtype == 'i64' and 'i64' or to,
          turn = name:find 'weight$' and turns[#info.shape] or nil }
      end
      arena.load(file, items, { device = 'cpu', adjacent = adjacent }, function(name, x) got[name] = x end)
      file:close()
      local function at(name)
        local node = plain
        for part in name:gmatch '[^.]+' do node = node[tonumber(part) or part] end
        return node
      end
      for name, x in pairs(got) do
        t.equal(x.dtype, at(name).dtype, name)
        t.near(x, at(name), 0, name)
      end
      t.equal(table.concat(weights.joined({ got['a.attn.0.to_q.weight'], got['a.attn.0.to_k.weight'] }).shape, ' '), '14 7')
      t.equal(weights.joined { at 'a.attn.0.to_q.weight', at 'a.attn.0.to_k.weight' }, nil)
    end
  end
end)

t.test('separate groups come first in an arena', function()
  local path = file_of 'f32'
  local plain, file = weights.tree(path, { dtype = 'f32' }), weights.open(path)
  local items, got = {}, {}
  for i, name in ipairs(file.names) do
    local info = file:info(name)
    items[i] = { full = name, name = name, info = info, dtype = info.dtype }
  end
  local before = cr.memory()
  local seen = {}
  arena.load(file, items, { device = 'cpu', adjacent = adjacent, apart = function(name, shape)
    seen[name] = table.concat(shape, ' ')
    return name:find 'attn' ~= nil
  end }, function(name, x) got[name] = x end)
  file:close()
  t.equal(seen['a.attn.0.to_q.weight'], '5 7')
  -- Two groups, a bias, the other floats, the integers.
  t.equal(cr.memory().count - before.count, 5)
  local function parts(n) return got[('a.attn.%d.to_k.weight'):format(n)], got[('a.attn.%d.to_v.weight'):format(n)] end
  for n = 0, 1 do
    local k, v = parts(n)
    local from = plain.a.attn[n]
    t.near(weights.joined { k, v }, cr.cat({ from.to_k.weight, from.to_v.weight }, 1), 0, 'joined')
  end
  collectgarbage()
  collectgarbage()
  local live = cr.memory().live
  for _, x in ipairs { parts(1) } do x:free() end
  t.equal(live - cr.memory().live, 256, 'a group of 112 bytes, in whole rows')
  for name, x in pairs(got) do
    if not x:is_freed() and x:dim() < 3 then
      local node = plain
      for part in name:gmatch '[^.]+' do node = node[tonumber(part) or part] end
      t.near(x, node, 0, name)
    end
  end
end)

cuda.test('a tree on a card equals the one on the CPU', function()
  for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
    local path = file_of(dtype)
    for _, to in ipairs { 'f32', 'f16', 'bf16' } do
      local count = cr.memory(device).count
      local here = weights.tree(path, { dtype = to })
      local there = weights.tree(path, { dtype = to, device = device, tag = 'test weights', adjacent = adjacent })
      t.ok(cr.memory(device).count <= count + 2, 'one storage for each dtype')
      compare(there, here, dtype .. '->' .. to)
      check_joined(there)
    end
  end
end)

cuda.test("an arena's memory is counted by purpose and freed with its last tensor", function()
  collectgarbage()
  collectgarbage()
  local before = cr.memory(device).live
  local w = weights.tree(file_of 'f32', { dtype = 'f16', device = device, tag = 'test weights' })
  local tagged = 0
  for _, tag in ipairs(cr.memory(device).tags) do
    if tag.name == 'test weights' then tagged = tag.live end
  end
  t.equal(tagged, cr.memory(device).live - before)
  local last = w.a.conv.bias
  w = nil -- luacheck: ignore
  require 'jit'.flush()
  collectgarbage()
  collectgarbage()
  t.ok(cr.memory(device).live > before, 'a tensor still holds it')
  last:free()
  t.equal(cr.memory(device).live, before)
end)

t.done()
