--- Upscaling networks: golden values with weights by formula under the authors' names and with trained weights, file
--- formats, and invalid files.

local cr = require 'cr'
local formula = require 'tests.support.formula'
local golden = require 'tests.support.golden'
local picture = require 'tests.support.formula_image'
local scratch = require 'tests.support.scratch'
local srvgg = require 'models.networks.srvgg'
local t = require 'tests.support.tap'
local upscaler = require 'models.networks.upscaler'

local MOST = 5e-5 -- maximum difference to the exact values, of 1.0
local ROUNDED = 2e-4 -- share of values that may round to the neighbour

local SMALL = { features = 64, growth = 32, blocks = 2, doublings = 2, unshuffle = 1, output = 3 }

local function rrdb(unshuffle)
  local c = {}
  for key, value in pairs(SMALL) do c[key] = value end
  c.unshuffle = unshuffle
  return require 'models.networks.rrdbnet'.expected(c)
end

-- {key of the golden values, tensors, scale, rows}
local FORMULA = {
  { 'srvgg_n32_x4', srvgg.expected { layers = 32, features = 64, scale = 4 }, 4 },
  { 'srvgg_n16_x2', srvgg.expected { layers = 16, features = 64, scale = 2 }, 2 },
  { 'rrdb_b2_x4', rrdb(1), 4 },
  { 'rrdb_b2_x2', rrdb(2), 2 },
  { 'rrdb_b2_x1', rrdb(4), 1 },
}

-- Writes a file with weights by formula; returns its path. `rename` maps names to those in the file.
local function weights_file(name, expected, rename)
  local path = scratch.path(name .. '.safetensors')
  cr.scope(function()
    local all = {}
    for key, x in pairs(formula.weights(expected)) do
      local own = key
      if rename then own = rename(key) end
      if own then all[own] = x end
    end
    cr.save(path, all)
  end)
  return path
end

local function enlarge(net, input) return net:forward((input:to 'f32' / 255):unsqueeze(1)):squeeze(1) end

local function largest(a, b) return (a:to 'f64' - b:to 'f64'):abs():max():item() end

local function rounded(x) return (x * 255 + 0.5):floor():clamp(0, 255):to 'u8' end

-- u8 values equal the golden ones, except for a few that are near a rounding boundary.
local function check_rounded(x, gold, key)
  local got, want = gold:cut(rounded(x), key), gold:get(key)
  local unequal, most = picture.compare(got, want)
  t.ok(most <= 1 and unequal <= ROUNDED, ('%s: %.4f %% differ, by up to %d'):format(key, 100 * unequal, most))
end

for _, case in ipairs(FORMULA) do
  local key, expected, scale = unpack(case)
  t.test(key .. ' with weights by formula under the authors\' names', function()
    local gold = golden.open 'upscale_formula'
    local net = upscaler.load(weights_file(key, expected, function(name) return 'params_ema.' .. name end))
    t.equal(net.scale, scale)
    cr.scope(function()
      local y = enlarge(net, gold:get 'input')
      local rows = gold:get(key .. '.rows')
      local d = largest(gold:cut(y:slice(1, 1, y:size(1), 3), key .. '.rows'), rows)
      t.ok(d <= 1e-5, ('off by %g'):format(d))
    end)
    net:free()
    gold:close()
  end)
end

-- The first ESRGAN's names of the same tensors.
local function old_names(name)
  local block, dense, conv, kind = name:match '^body%.(%d+)%.rdb(%d)%.conv(%d)%.(%a+)$'
  if block then return ('model.1.sub.%s.RDB%s.conv%s.0.%s'):format(block, dense, conv, kind) end
  local own = { conv_first = '0', conv_body = '1.sub.2', conv_up1 = '3', conv_up2 = '6', conv_hr = '8', conv_last = '10' }
  local part
  part, kind = name:match '^([%w_]+)%.(%a+)$'
  return ('model.%s.%s'):format(own[part], kind)
end

t.test("the first ESRGAN's names give the same network", function()
  local gold = golden.open 'upscale_formula'
  local net = upscaler.load(weights_file('old', rrdb(1), old_names))
  cr.scope(function()
    local y = enlarge(net, gold:get 'input')
    t.ok(largest(gold:cut(y:slice(1, 1, y:size(1), 3), 'rrdb_b2_x4.rows'), gold:get 'rrdb_b2_x4.rows') <= 1e-5)
  end)
  net:free()
  gold:close()
end)

t.test('the weights of two files are blended, key by key', function()
  local expected = srvgg.expected { layers = 1, features = 4, scale = 2 }
  local one = weights_file('one', expected)
  local two = scratch.path 'two.safetensors'
  cr.scope(function()
    local all = {}
    for _, e in ipairs(expected) do all[e.name] = formula.tensor(e.name, e.shape, { kind = 'weight', salt = 2 }) end
    cr.save(two, all)
  end)
  local net = upscaler.load(one, { other = two, share = 0.25 })
  cr.scope(function()
    local a, b = cr.load(one)['body.2.weight'], cr.load(two)['body.2.weight']
    t.near(net.w.body[2].weight, (a * 0.25 + b * 0.75):permute(1, 3, 4, 2), 1e-6)
  end)
  net:free()
  t.raises(function() upscaler.load(one, { other = weights_file('three', srvgg.expected { layers = 2, features = 4, scale = 2 }) }) end,
    'contain different networks')
end)

t.test('general-x4v3 is blended with the wdn file beside it', function()
  local networks = require 'models.upscale.networks'
  local name, expected = unpack(FORMULA[1])
  local general = weights_file('realesr-general-x4v3', expected)
  weights_file('realesr-general-wdn-x4v3', expected)
  local gold = golden.open 'upscale_formula'
  cr.scope(function()
    -- Any blend of a network with itself is that network.
    local net = networks.load(general, { denoise = 0.3 })
    local y = enlarge(net, gold:get 'input')
    local d = largest(gold:cut(y:slice(1, 1, y:size(1), 3), name .. '.rows'), gold:get(name .. '.rows'))
    t.ok(d <= 1e-5, ('off by %g'):format(d))
    net:free()
    -- With a network whose last bias is larger by 1, the result shows the share.
    local other = cr.load(general)
    other['body.66.bias'] = other['body.66.bias'] + 1
    cr.save((general:gsub('general%-', 'general-wdn-')), other)
    net = networks.load(general, { denoise = 0.3 })
    t.near(enlarge(net, gold:get 'input') - y, cr.full(y.shape, 0.7), 1e-4, 'mixed')
    net:free()
  end)
  gold:close()
end)

t.test('files of other or truncated networks give one sentence', function()
  local expected = rrdb(1)
  local function without(missing)
    return function(name) return name ~= missing and name or nil end
  end
  t.raises(function() upscaler.load(weights_file('a', { { 'encoder.weight', { 4, 4 } } })) end,
    'neither RRDBNet nor SRVGGNetCompact.*encoder%.weight')
  t.raises(function() upscaler.load(weights_file('b', expected, without 'conv_hr.bias')) end, 'conv_hr%.bias is missing')
  t.raises(function() upscaler.load(weights_file('c', expected, without 'body.1.rdb2.conv3.weight')) end,
    'body%.1%.rdb2%.conv3%.weight is missing')
  t.raises(function()
    upscaler.load(weights_file('d', expected, function(name) return name == 'conv_hr.bias' and 'conv_odd.bias' or name end))
  end, 'missing')
  t.raises(function()
    upscaler.load(weights_file('e', { { 'body.0.weight', { 8, 3, 3, 3 } }, { 'body.1.weight', { 8 } },
      { 'body.2.weight', { 7, 8, 3, 3 } } }))
  end, 'do not form an upscaled image')
end)

-- ---- the trained networks ------------------------------------------------------------------------

-- Rows 1, 12, 23, ... before clamping and the rounded image, of a network's result for an image of the golden values.
local function check_golden(net, name, pictures, gold)
  gold = gold or golden.open 'upscale'
  cr.scope(function()
    for _, which in ipairs(pictures) do
      local y = enlarge(net, gold:get(which .. '.input'))
      local key = ('%s.%s.rows11'):format(name, which)
      local d = largest(gold:cut(y:slice(1, 1, y:size(1), 11), key), gold:get(key))
      t.ok(d <= MOST, ('%s is off by %g'):format(key, d))
      check_rounded(y, gold, ('%s.%s.u8'):format(name, which))
    end
  end)
  gold:close()
end

t.test('the fetched animevideov3', function()
  local net = upscaler.load(t.fetched 'upscale/animevideov3.safetensors')
  t.equal(net.margin, 18)
  check_golden(net, 'realesr-animevideov3-x4', { 'even', 'odd' })
  net:free()
end)

t.test('the fetched x4plus', function()
  local net = upscaler.load(t.fetched 'upscale/x4plus.safetensors')
  check_golden(net, 'realesrgan-x4plus', { 'odd' })
  net:free()
end)

t.test('the fetched x4plus-anime', function()
  local net = upscaler.load(t.fetched 'upscale/x4plus-anime.safetensors')
  check_golden(net, 'realesrgan-x4plus-anime', { 'even' })
  net:free()
end)

-- Bicubic interpolation as ncnn's x2 and x3 append it: a = -0.75, pixel centres, repeated edges, no widening when
-- shrinking.
local function bicubic(x, height, width)
  local function axis(v, d, size)
    local from, parts = v:size(d), {}
    local function cubic(s)
      s = math.abs(s)
      local a = -0.75
      if s <= 1 then return (a + 2) * s ^ 3 - (a + 3) * s ^ 2 + 1 end
      return s < 2 and a * (s ^ 3 - 5 * s ^ 2 + 8 * s - 4) or 0
    end
    for i = 0, size - 1 do
      local at = (i + 0.5) * from / size - 0.5
      local first, taps, shares = math.floor(at) - 1, {}, {}
      for k = 0, 3 do
        taps[k + 1] = v:narrow(d, math.max(0, math.min(from - 1, first + k)) + 1, 1)
        shares[k + 1] = cubic(at - first - k)
      end
      parts[#parts + 1] = cr.lincomb(taps, shares)
    end
    return cr.cat(parts, d)
  end
  return axis(axis(x, 1, height), 2, width)
end

local function check_smaller(net, pictures, gold)
  cr.scope(function()
    for _, which in ipairs(pictures) do
      local y = enlarge(net, gold:get(which .. '.input'))
      for scale = 2, 3 do
        local key = ('realesr-animevideov3-x%d.%s'):format(scale, which)
        local small = bicubic(y, y:size(1) / 4 * scale, y:size(2) / 4 * scale)
        local d = largest(gold:cut(small:slice(1, 1, small:size(1), 11), key .. '.rows11'), gold:get(key .. '.rows11'))
        t.ok(d <= MOST, ('%s is off by %g'):format(key, d))
        if gold:has(key .. '.u8') then check_rounded(small, gold, key .. '.u8') end
      end
    end
  end)
end

t.test('ncnn\'s x2 and x3 files contain the x4 network with downscaling', function()
  local net = upscaler.load(t.fetched 'upscale/animevideov3.safetensors')
  local gold = golden.open 'upscale'
  check_smaller(net, { 'even', 'odd' }, gold)
  gold:close()
  net:free()
end)

t.with_shared('the whole of every picture, a real face among them', function(shared)
  local pictures = { 'even', 'odd', 'face' }
  for name, key in pairs { animevideov3 = 'realesr-animevideov3-x4', x4plus = 'realesrgan-x4plus' } do
    local net = upscaler.load(t.fetched('upscale/' .. name .. '.safetensors'))
    check_golden(net, key, pictures, golden.open('golden_upscale', shared 'golden/'))
    net:free()
  end
  local net, gold = upscaler.load(t.fetched 'upscale/animevideov3.safetensors'), golden.open('golden_upscale', shared 'golden/')
  check_smaller(net, pictures, gold)
  gold:close()
  net:free()
end)

t.done()
