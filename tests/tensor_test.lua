--- Tensors: creation, views, freeing, counting and reading.
--
-- Views are compared with indices that are computed here, the memory count with the expected change of each step.

local cr = require 'cr'
local flat = require 'tests.support.flat'
local t = require 'tests.support.tap'

math.randomseed(os.time())
local floats, integers = { 'f32', 'f16', 'bf16', 'f64' }, { 'u8', 'i8', 'i16', 'i32', 'i64' }

local function shape_of(x) return table.concat(x.shape, ' ') end
local function numbers(x) return table.concat(flat.values(x), ' ') end

t.test('made from sizes, numbers and memory', function()
  cr.scope(function()
    for _, list in ipairs { floats, integers, { 'bool' } } do
      for _, dtype in ipairs(list) do
        local x = cr.tensor({ { 1, 0, 1 }, { 0, 1, 1 } }, { dtype = dtype })
        t.equal(x.dtype .. ' ' .. shape_of(x), dtype .. ' 2 3')
        t.equal(numbers(x), '1 0 1 0 1 1', dtype)
        t.equal(x.device .. ' ' .. x:dim() .. ' ' .. x:numel() .. ' ' .. #x, 'cpu 2 6 2')
      end
    end
    t.equal(shape_of(cr.zeros(2, 0, 3)) .. ', ' .. shape_of(cr.ones { 4 }) .. ', ' .. shape_of(cr.full({}, 7)), '2 0 3, 4, ')
    t.equal(numbers(cr.arange(3)) .. ', ' .. numbers(cr.arange(0, 1, 0.25)) .. ', ' .. numbers(cr.arange(3, 1, -1)),
      '1 2 3, 0 0.25 0.5 0.75 1, 3 2 1')
    t.equal(shape_of(cr.tensor({ 1, 2, 3, 4, 5, 6 }, { shape = { 3, 2 } })), '3 2')
    local memory = require 'ffi'.new('float[4]', 1, 2, 3, 4)
    local over = cr.from_pointer(memory, { 2, 2 }, 'f32', memory)
    memory[3] = 9
    t.equal(numbers(over), '1 2 3 9', 'the memory itself, not a copy')
  end)
end)

t.test('invalid tensors are refused', function()
  cr.scope(function()
    for _, case in ipairs {
      { function() cr.zeros(2, -1) end, 'dimension 2 has the negative size %-1' },
      { function() cr.zeros(2, 1.5) end, 'size 2 is 1.5, not a whole number' },
      { function() cr.zeros { 1, 1, 1, 1, 1, 1, 1, 1, 1 } end, 'at most 8 dimensions' },
      { function() cr.empty(2 ^ 30, 2 ^ 30) end, 'too many elements' },
      { function() cr.empty(2 ^ 30, 2 ^ 28) end, 'out of memory: %d+%.%d MiB asked for, [%d.]+ MiB held' },
      { function() cr.zeros(2, { dtype = 'f8' }) end, "unknown dtype 'f8': 8%-bit floats exist only as codes .* %(f32" },
      { function() cr.zeros(2, { device = 'gpu' }) end, "unknown device 'gpu': cpu" },
      { function() cr.tensor { { 1, 2 }, { 3 } } end, 'rows at depth 2 differ in length' },
      { function() cr.tensor { 1, 'two' } end, "element 2 is 'two', not a number" },
      { function() cr.generator(1, 'dice') end, "there is no generator 'dice': did you mean 'philox'" },
      { function() cr.cat {} end, 'cat: list: a list of tensors is needed, not an empty table' },
      { function() return cr.ones(2).shap end, "no field or method shap: did you mean 'shape'" },
      { function() return cr.ones(2).width end, 'no field or method width: .crescent help tensor. lists' },
      { function() return cr.ones(2) + {} end, 'add: b: a tensor or a number is needed, not an empty table' },
    } do
      t.raises(case[1], case[2])
    end
  end)
end)

-- The index k (from 1) of the element at a 1-based position of a dense tensor.
local function place(shape, at)
  local k = 0
  for i, size in ipairs(shape) do k = k * size + at[i] - 1 end
  return k + 1
end

-- All positions of a shape in row-major order.
local function each(shape, fn)
  local at = {}
  local function walk(depth)
    if depth > #shape then return fn(at) end
    for i = 1, shape[depth] do
      at[depth] = i
      walk(depth + 1)
    end
  end
  walk(1)
end

-- The elements of a view: for each position, the position in the original.
local function check_view(y, x, shape, source, message)
  t.equal(shape_of(y), table.concat(shape, ' '), message)
  local values, k = flat.values(y), 0
  local from = flat.values(x)
  local off = 0
  each(shape, function(at)
    k = k + 1
    if values[k] ~= from[place(x.shape, source(at))] then off = off + 1 end
  end)
  t.equal(off, 0, message .. ': elements that are not those')
end

t.test('views show the same memory, with indices from 1 and from the end', function()
  for _ = 1, 20 do
    cr.scope(function()
      local shape = {}
      for i = 1, 4 do shape[i] = math.random(1, 5) end
      local x = cr.arange(place(shape, shape)):view(shape)
      local a, b, c, d = unpack(shape)
      check_view(x:permute(3, 1, 4, 2), x, { c, a, d, b }, function(at) return { at[2], at[4], at[1], at[3] } end, 'permute')
      check_view(x:transpose(2, -1), x, { a, d, c, b }, function(at) return { at[1], at[4], at[3], at[2] } end, 'transpose')
      check_view(x:t(), x, { a, b, d, c }, function(at) return { at[1], at[2], at[4], at[3] } end, 't')
      local first = math.random(1, b)
      local last, step = math.random(first, b), math.random(1, 3)
      local n = math.floor((last - first) / step) + 1
      check_view(x:slice(2, first, last, step), x, { a, n, c, d },
        function(at) return { at[1], first + (at[2] - 1) * step, at[3], at[4] } end, 'slice')
      check_view(x:slice(-3, first - b - 1, last - b - 1), x, { a, last - first + 1, c, d },
        function(at) return { at[1], first + at[2] - 1, at[3], at[4] } end, 'slice from the end')
      check_view(x:narrow(2, first, last - first + 1), x, { a, last - first + 1, c, d },
        function(at) return { at[1], first + at[2] - 1, at[3], at[4] } end, 'narrow')
      check_view(x:select(2, last), x, { a, c, d }, function(at) return { at[1], last, at[2], at[3] } end, 'select')
      check_view(x:select(-1, -1), x, { a, b, c }, function(at) return { at[1], at[2], at[3], d } end, 'select the last')
      check_view(x:unsqueeze(3):expand(-1, -1, 3, -1, -1), x, { a, b, 3, c, d },
        function(at) return { at[1], at[2], at[4], at[5] } end, 'expand')
      check_view(x:flatten(2, 3), x, { a, b * c, d },
        function(at) return { at[1], math.floor((at[2] - 1) / c) + 1, (at[2] - 1) % c + 1, at[3] } end, 'flatten')
      check_view(x:view(a * b, -1), x, { a * b, c * d }, function(at)
        return { math.floor((at[1] - 1) / b) + 1, (at[1] - 1) % b + 1, math.floor((at[2] - 1) / d) + 1, (at[2] - 1) % d + 1 }
      end, 'view')
      local turned = x:permute(4, 3, 2, 1)
      t.equal(numbers(turned:reshape(-1)), numbers(turned:contiguous()), 'reshape copies what a view cannot show')
      x:select(1, a):select(1, b):select(1, c):fill_(-1)
      t.equal(turned:select(1, d):select(1, c):select(1, b):select(1, a):item(), -1, 'what is written in one is seen in all')
    end)
  end
  cr.scope(function()
    t.equal(shape_of(cr.zeros(1, 2, 1):squeeze()) .. ', ' .. shape_of(cr.zeros(1, 2, 1):squeeze(-1)), '2, 1 2')
    t.equal(shape_of(cr.zeros(2):unsqueeze(1)) .. ', ' .. shape_of(cr.zeros(2):unsqueeze(-1)), '1 2, 2 1')
    local x = cr.arange(4)
    t.ok(x:contiguous() == x and x:to 'f32' == x and x:to 'cpu' == x, 'nothing is copied for nothing')
    t.ok(not cr.zeros(2, 3):t():is_contiguous())
  end)
end)

t.test('invalid views are refused', function()
  cr.scope(function()
    local x = cr.zeros(2, 3)
    for _, case in ipairs {
      { function() x:view(4) end, 'view: %[2 3%] has 6 elements, %[4%] has 4' },
      { function() x:t():view(6) end, 'view: ' },
      { function() x:size(3) end, 'size: %[2 3%] has no dimension 3' },
      { function() x:size(0) end, 'has no dimension 0' },
      { function() x:transpose(1, -3) end, 'transpose: %[2 3%] has no dimension' },
      { function() x:permute(1, 1) end, 'permute: ' },
      { function() x:permute(1) end, 'has 2 dimensions, but 1 are given' },
      { function() x:slice(1, 1, 3) end, 'slice: ' },
      { function() x:slice(1, 0, 1) end, 'slice: ' },
      { function() x:select(1, 3) end, 'select: ' },
      { function() x:select(1, 0) end, 'select: ' },
      { function() x:squeeze(1) end, 'squeeze: dimension 1 of %[2 3%] is not 1' },
      { function() x:unsqueeze(4) end, 'unsqueeze: %[2 3%] has no position 4' },
      { function() x:expand(4, 3) end, 'expand: ' },
      { function() x:item() end, 'item: %[2 3%] has more than one element' },
      { function() x:t():pointer() end, 'pointer: the tensor is not contiguous' },
    } do
      t.raises(case[1], case[2])
    end
  end)
end)

t.test('values are read exactly', function()
  cr.scope(function()
    t.equal(cr.full({}, 2 ^ 53 - 1, { dtype = 'i64' }):item(), 2 ^ 53 - 1)
    t.equal(tostring(cr.tensor(9007199254740993LL, { dtype = 'i64' }):item()), '9007199254740993LL')
    t.equal(cr.tensor(true, { dtype = 'bool' }):item(), true)
    t.equal(cr.tensor(-0.5, { dtype = 'bf16' }):item(), -0.5)
    local list = cr.arange(6):view(3, 2):t():tolist()
    t.equal(#list .. ' ' .. table.concat(list[1], ' ') .. ' ' .. table.concat(list[2], ' '), '2 1 3 5 2 4 6')
    -- A NaN with special bits must not reach LuaJIT, which encodes types in them.
    local bits = require 'ffi'.new('uint64_t[1]', 0xfff9800012345678ULL)
    local odd = cr.from_pointer(bits, { 1 }, 'f64', bits)
    t.ok(odd:item() ~= odd:item() and odd:tolist()[1] ~= odd:tolist()[1], 'a nan')
  end)
end)

t.test('freeing once, twice, and use after free', function()
  local before = cr.memory().count
  local x = cr.arange(6)
  local y = x:view(2, 3)
  t.equal(cr.memory().count - before, 1, 'a view is no memory of its own')
  x:free()
  x:free()
  t.ok(x:is_freed() and not y:is_freed())
  t.equal(numbers(y), '1 2 3 4 5 6', 'a view holds the memory')
  for _, use in ipairs {
    function() return x + 1 end, function() return x:view(6) end, function() return x:sum() end, function() return x:to 'f16' end,
    function() return x:item() end, function() return x:pointer() end, function() return x.shape end,
    function() return x:numel() end, function() return x:fill_(1) end, function() return y:copy_(x) end,
    function() return x:slice(1, 1, 1) end, function() return x:size(1) end, function() return x:permute(1) end,
    function() return x:t() end, function() return x:squeeze() end, function() return x:sum(1) end,
    function() return cr.cat { y, x } end, function() return y:matmul(x) end,
  } do
    t.raises(use, 'freed')
  end
  t.ok(tostring(x):find 'freed', tostring(x))
  y:free()
end)

t.test('scopes free what they do not return', function()
  local before = cr.memory().count
  local kept, list, inner
  local y, n = cr.scope(function()
    local a = cr.ones(2)
    inner = cr.scope(function() return a + 1, cr.ones(5) end)
    kept = cr.keep(cr.ones(3))
    list = { a * 2, name = a * 3 }
    return list, 7
  end)
  t.ok(y == list and n == 7, 'what fn returns')
  t.ok(inner:is_freed(), 'returned to the scope around, which freed it')
  t.equal(cr.memory().count - before, 3, 'the list\'s two and what was kept')
  t.equal(numbers(kept) .. ' ' .. numbers(list[1]) .. ' ' .. numbers(list.name), '1 1 1 2 2 3 3')
  local lost
  t.raises(function()
    cr.scope(function()
      lost = cr.ones(4)
      error 'on the way'
    end)
  end, 'on the way')
  t.ok(lost:is_freed(), 'an error frees too')
  for _, x in ipairs { kept, list[1], list.name } do x:free() end
  t.equal(cr.memory().count, before)
end)

t.test('concurrent tasks have separate scopes', function()
  cr.run(function()
    local alive
    cr.all {
      function()
        cr.scope(function()
          local mine = cr.ones(3)
          cr.sleep(0.02)
          alive = not mine:is_freed()
        end)
      end,
      function()
        local theirs
        cr.scope(function()
          theirs = cr.ones(2)
          cr.sleep(0.005)
        end)
        t.ok(theirs:is_freed(), 'its own end')
      end,
    }
    t.ok(alive, 'another task\'s end frees nothing of ours')
  end)
end)

t.test('unreachable tensors are collected', function()
  local before = cr.memory().count
  for _ = 1, 50 do cr.ones(1000) end
  t.ok(cr.memory().count > before)
  collectgarbage()
  collectgarbage()
  t.equal(cr.memory().count, before)
  -- Without explicit collection: so many bytes that Lua's own trigger would come too late.
  cr.reset_peak()
  for _ = 1, 400 do cr.empty(4 * 2 ^ 20) end
  t.ok(cr.memory().peak - cr.memory().live < 400 * 16 * 2 ^ 20 * 0.9, 'collected on the way')
  collectgarbage()
  collectgarbage()
  cr.trim()
end)

t.test('memory is counted, cached and released', function()
  cr.trim()
  cr.reset_peak()
  local start = cr.memory()
  t.equal(start.cached, 0)
  t.equal(start.peak, start.live)
  local bytes, list = { 100, 2 ^ 16, 2 ^ 16 + 1, 3 * 2 ^ 17, 2 ^ 20 + 4096, 2 ^ 23 - 1 }, {}
  local sum = 0
  for i, n in ipairs(bytes) do
    list[i] = cr.empty({ n }, { dtype = 'u8' })
    sum = sum + n
    t.equal(cr.memory().live - start.live, sum, n .. ' bytes')
  end
  t.equal(cr.memory().count - start.count, #bytes)
  for _, x in ipairs(list) do x:free() end
  local freed = cr.memory()
  t.equal(freed.live, start.live)
  t.equal(freed.peak - start.live, sum)
  t.ok(freed.cached >= sum - 100 and freed.cached <= 1.25 * sum + 2 ^ 16, ('%d bytes are kept of %d'):format(freed.cached, sum))
  local again = cr.empty({ 2 ^ 20 + 4096 }, { dtype = 'u8' })
  t.ok(cr.memory().cached < freed.cached, 'taken from what is kept')
  again:free()
  t.equal(cr.memory().cached, freed.cached)
  cr.trim()
  t.equal(cr.memory().cached, 0, 'given back')
  t.equal(#cr.memory().tags, 0, 'a processor\'s memory has no names')
  t.equal(cr.tagged('words', function(a, b) return b, a end, 1, 2), 2)
  t.raises(function() cr.tagged(nil, print) end, 'a name is needed')
end)

t.done()
