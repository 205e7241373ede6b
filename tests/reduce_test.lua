--- Reductions over every set of dimensions against float64 references computed here.
local t = require 'tests.support.tap'
local cr = require 'cr'
local flat = require 'tests.support.flat'

local values, strided, distance, groups = flat.values, flat.strided, flat.distance, flat.groups

local function total(g)
  local s = 0
  for _, v in ipairs(g) do s = s + v end
  return s
end

local function best(g, better)
  local at = 1
  for i = 2, #g do
    if better(g[i], g[at]) then at = i end
  end
  return at
end
local function more(a, b) return a > b end
local function less(a, b) return a < b end

local reference = {
  sum = total,
  mean = function(g) return total(g) / #g end,
  max = function(g) return g[best(g, more)] end,
  min = function(g) return g[best(g, less)] end,
  var = function(g)
    local mean, s = total(g) / #g, 0
    for _, v in ipairs(g) do s = s + (v - mean) ^ 2 end
    return s / #g
  end,
}

local function result_dtype(name, dtype)
  if flat.tolerance[dtype] or name == 'max' or name == 'min' then return dtype end
  return name == 'sum' and 'i64' or 'f32'
end

for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i32', 'i64' } do
  t.test('every set of dimensions, ' .. dtype, function()
    t.each({ { 7 }, { 3, 5 }, { 4, 5, 6 }, { 2, 3, 2, 5 }, { 3, 600, 2 }, { 1, 1, 4100 } }, function(shape)
      local x = (flat.randn(shape) * 4 + 9):clamp(0, 100):to(dtype)
      local list = values(x)
      local function check(bits)
        local mask, dims, kept = {}, {}, {}
        for k = 1, #shape do
          mask[k] = bits == 0 or math.floor(bits / 2 ^ (k - 1)) % 2 == 1
          if mask[k] and bits ~= 0 then dims[#dims + 1] = k end
          kept[k] = mask[k] and 1 or shape[k]
        end
        local parts = groups(list, shape, mask)
        local dims_or_nil = bits ~= 0 and dims or nil
        cr.scope(function()
          for _, view in ipairs { x, strided(x) } do
            for name, fn in pairs(reference) do
              local y = view[name](view, dims_or_nil)
              local expected = {}
              for i, g in ipairs(parts) do expected[i] = fn(g) end
              local want = result_dtype(name, dtype)
              local e = distance(values(y), expected)
              t.ok(y.dtype == want and e <= 5 * (flat.tolerance[want] or 0),
                ('%s over %d of [%s] %s: %s, error %.3g'):format(name, bits, table.concat(shape, ' '), dtype, y.dtype, e))
            end
            t.equal(table.concat(view:sum(dims_or_nil, true).shape, ' '), table.concat(kept, ' '))
            if #dims <= 1 then
              for name, better in pairs { argmax = more, argmin = less } do
                local y = view[name](view, dims_or_nil and dims[1])
                local expected = {}
                for i, g in ipairs(parts) do expected[i] = best(g, better) end
                t.ok(y.dtype == 'i64' and distance(values(y), expected) == 0, name)
              end
            end
          end
        end)
      end
      for bits = 0, 2 ^ #shape - 1 do check(bits) end
    end)
  end)
end

t.test('large sums keep their precision', function()
  local n = 300000
  local x = cr.full({ n }, 0.1)
  t.near(x:sum():item(), 0.10000000149011612 * n, 0.01)
  t.near((x + 1000):var():item(), 0, 1e-6)
  local y = flat.randn { 100, 3000 }
  t.near((y + 10000):to 'f64':var():item(), y:to 'f64':var():item(), 1e-2)
  local was = cr.threads()
  cr.threads(1)
  local one = y:sum():item()
  cr.threads(4)
  local four = y:sum():item()
  cr.threads(was)
  t.near(one, four, 1e-9 * math.abs(one) + 1e-6)
end)

t.test('nan, empty tensors, messages', function()
  local x = cr.tensor { { 1, 0 / 0, 3 }, { 4, 5, 6 } }
  local m = x:max(2):tolist()
  t.ok(m[1] ~= m[1], 'max passes nan on')
  t.equal(m[2], 6)
  t.equal(x:argmin(2):tolist()[1], 2)
  local empty = cr.empty(0, 3)
  t.equal(empty:sum():item(), 0)
  t.equal(table.concat(empty:sum(1):tolist(), ' '), '0 0 0')
  t.raises(function() empty:mean() end, 'mean: %[0 3%] has no elements to reduce')
  t.raises(function() empty:max(1) end, 'max: %[0 3%] has no elements')
  t.raises(function() x:sum(3) end, 'sum: .* no dimension 3')
  t.raises(function() cr.ones(2, 2, 2):argmax { 1, 2 } end, 'argmax')
  t.equal(cr.tensor(5):sum():item(), 5)
end)

t.done()
