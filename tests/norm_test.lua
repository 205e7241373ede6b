--- Group norm and layer norm against float64 references computed here.
local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local flat = require 'tests.support.flat'

local randn, values, strided, distance = flat.randn, flat.values, flat.strided, flat.distance
local tolerance = { f32 = 1e-6, f16 = 6e-4, bf16 = 5e-3, f64 = 1e-12 }

local function silu(x) return x / (1 + math.exp(-x)) end

-- Flat values of group norm of x [N rows C].
local function reference(x, n, rows, c, groups, w, b, eps, act, before)
  local out, size = {}, c / groups
  for s = 0, n - 1 do
    for g = 0, groups - 1 do
      local mean, square, count = 0, 0, rows * size
      local function each(fn)
        for r = 0, rows - 1 do
          for i = g * size, (g + 1) * size - 1 do
            local at = (s * rows + r) * c + i + 1
            fn(at, i + 1, x[at] + (before and before[s * c + i + 1] or 0))
          end
        end
      end
      each(function(_, _, v) mean = mean + v / count end)
      each(function(_, _, v) square = square + (v - mean) ^ 2 end)
      local inverse = 1 / math.sqrt(square / count + eps)
      each(function(at, i, v)
        local y = (v - mean) * inverse * w[i] + b[i]
        out[at] = act and silu(y) or y
      end)
    end
  end
  return out
end

local shapes = {
  { { 2, 5, 32 }, 4 }, { { 1, 3, 4, 5, 96 }, 32 }, { { 3, 70, 33 }, 3 }, { { 2, 33, 17, 40 }, 8 },
  { { 6, 8, 8, 64 }, 32 }, { { 2, 3 }, 3 }, { { 1, 1, 6 }, 2 }, { { 5, 1, 7 }, 1 }, { { 1, 40, 320 }, 32 },
}

for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
  t.test('group norm, ' .. dtype, function()
    t.each(shapes, function(case)
      local shape, groups = case[1], case[2]
      local n, c = shape[1], shape[#shape]
      local rows = 1
      for k = 2, #shape - 1 do rows = rows * shape[k] end
      for _, offset in ipairs { 0, 6 } do
        local x = (randn(shape) * 1.7 + offset):to(dtype)
        local w = { weight = randn { c }, bias = randn { c } }
        local before = randn { n, c }:to(dtype)
        local function check(act, with)
          local expected = reference(values(x), n, rows, c, groups, values(w.weight), values(w.bias), 1e-5, act,
            with and values(before))
          for _, view in ipairs { x, strided(x) } do
            local y = nn.group_norm(w, view, groups, 1e-5, { silu = act, bias_before = with and before or nil })
            local e = distance(values(y), expected)
            t.ok(y.dtype == dtype and e <= tolerance[dtype],
              ('[%s] / %d, %s%s: error %.3g'):format(table.concat(shape, ' '), groups, act and 'silu ' or '',
                with and 'before' or '', e))
          end
        end
        for k = 0, 3 do check(k % 2 == 1, k >= 2) end
      end
    end)
  end)
end

t.test('group norm with a large mean, over many rows and threads', function()
  local x = randn { 1, 64, 64, 32 } + 100
  local w = { weight = cr.ones(32), bias = cr.zeros(32) }
  local expected = reference(values(x), 1, 4096, 32, 8, values(w.weight), values(w.bias), 1e-6)
  local was = cr.threads()
  for _, n in ipairs { 1, 2, 5 } do
    cr.threads(n)
    local e = distance(values(nn.group_norm(w, x, 8, 1e-6)), expected)
    t.ok(e < 1e-6, ('%d threads: error %.3g'):format(n, e))
  end
  cr.threads(was)
end)

t.test('the view determines the scope of group norm', function()
  local x = randn { 2, 3, 4, 5, 8 } -- [B F H W C]
  local w = { weight = randn { 8 }, bias = randn { 8 } }
  local whole = nn.group_norm(w, x, 2, 1e-5)
  local frames = nn.group_norm(w, x:view(6, 4, 5, 8), 2, 1e-5):view(2, 3, 4, 5, 8)
  t.ok(distance(values(whole), values(frames)) > 1e-3, 'statistics differ')
  local expected = reference(values(x), 6, 20, 8, 2, values(w.weight), values(w.bias), 1e-5)
  t.ok(distance(values(frames), expected) < 1e-6)
end)

t.test('group norm in place, without weights, of constants', function()
  local x = randn { 2, 9, 16 }
  local expected = reference(values(x), 2, 9, 16, 4, values(cr.ones(16)), values(cr.zeros(16)), 1e-5)
  cr.check(cr.C.cr_group_norm(x.c, x.c, 4, nil, nil, 1e-5, 0, nil))
  t.ok(distance(values(x), expected) < 1e-6)
  local flat_picture = nn.group_norm({ weight = cr.ones(4), bias = cr.full({ 4 }, 3) }, cr.full({ 1, 5, 4 }, 7), 2, 1e-5)
  t.near(flat_picture, cr.full({ 1, 5, 4 }, 3), 1e-6)
  t.equal(nn.group_norm({}, cr.empty(0, 4, 8), 2, 1e-5):numel(), 0)
end)

for _, dtype in ipairs { 'f32', 'f16', 'bf16', 'f64' } do
  t.test('layer norm, ' .. dtype, function()
    for _, shape in ipairs { { 40 }, { 3, 1 }, { 5, 7, 33 }, { 2, 3, 4, 64 }, { 4, 2500 }, { 300, 48 } } do
      local c = shape[#shape]
      for _, offset in ipairs { 0, 6 } do
        local x = (randn(shape) + offset):to(dtype)
        local w = { weight = randn { c }, bias = randn { c } }
        local rows = x:numel() / c
        -- A layer norm is a group norm of single rows with one group.
        local expected = reference(values(x), rows, 1, c, 1, values(w.weight), values(w.bias), 1e-5)
        local added = #shape > 1 and { shape[#shape - 1], c } or { c }
        local after = randn(added):to(dtype)
        local extra, sum = values(after), {}
        for i = 1, #expected do sum[i] = expected[i] + extra[(i - 1) % #extra + 1] end
        for _, view in ipairs { x, strided(x) } do
          local e = distance(values(nn.layer_norm(w, view, 1e-5)), expected)
          t.ok(e <= tolerance[dtype], ('[%s]: error %.3g'):format(table.concat(shape, ' '), e))
          e = distance(values(nn.layer_norm(w, view, 1e-5, { after = strided(after) })), sum)
          t.ok(e <= tolerance[dtype], ('[%s] with after: error %.3g'):format(table.concat(shape, ' '), e))
        end
      end
    end
  end)
end

t.test('messages', function()
  local w = { weight = cr.ones(6), bias = cr.zeros(6) }
  t.raises(function() nn.group_norm(w, cr.ones(2, 3, 6), 4, 1e-5) end,
    'group_norm: 6 channels of %[2 3 6%] are not divisible into 4 groups')
  t.raises(function() nn.group_norm(w, cr.ones(2, 3, 8), 4, 1e-5) end,
    'group_norm: weight must be %[8%] for %[2 3 8%], not %[6%]')
  t.raises(function() nn.group_norm(w, cr.ones(2, 6), 3, 1e-5, { bias_before = cr.ones(6) }) end,
    'group_norm: bias_before must be %[2 6%]')
  t.raises(function() nn.layer_norm(w, cr.ones(2, 6), 1e-5, { after = cr.ones(3, 6) }) end,
    'layer_norm: `after` %[3 6%] does not broadcast to x %[2 6%]')
  t.raises(function() nn.layer_norm(w, cr.ones(2, 6):to 'i32') end, 'layer_norm: a float tensor is needed')
end)

t.done()
