--- Image operations compared with slow references in double precision, at odd sizes.

local t = require 'tests.support.tap'
local cr = require 'cr'
local nn = require 'cr.nn'
local image = require 'cr.image'
local base = require 'cr.ffi'
local ffi = require 'ffi'
local tensor = require 'cr.tensor'
local pictures = require 'tests.support.pictures'

local picture, reader, clamp, worst = pictures.picture, pictures.reader, pictures.clamp, pictures.worst

local function cubic(v)
  v = math.abs(v)
  if v < 1 then return 1.5 * v ^ 3 - 2.5 * v ^ 2 + 1 end
  return v < 2 and -0.5 * v ^ 3 + 2.5 * v ^ 2 - 4 * v + 2 or 0
end

local function sinc(v) return v == 0 and 1 or math.sin(math.pi * v) / (math.pi * v) end
local function lanczos(v) return math.abs(v) < 4 and sinc(v) * sinc(v / 4) or 0 end
local function tent(v) return math.max(0, 1 - math.abs(v)) end

--- Source indices and weights of result index i on an axis; repeat_edge: taps outside count as the edge, else they
--- are omitted.
local function taps_at(center, reach, kernel, scale, n, repeat_edge)
  local list, total = {}, 0
  for s = math.ceil(center - reach * scale), math.floor(center + reach * scale) do
    if repeat_edge or s >= 0 and s < n then
      local w = kernel((s - center) / scale)
      list[#list + 1] = { clamp(s, 0, n - 1), w }
      total = total + w
    end
  end
  for _, tap in ipairs(list) do tap[2] = tap[2] / total end
  return list
end

local methods = {
  bilinear = function(i, n, m) return taps_at((i + 0.5) * n / m - 0.5, 1, tent, 1, n, true) end,
  bilinear_edge = function(i, n, m) return taps_at(i * n / m, 1, tent, 1, n, true) end,
  lanczos4 = function(i, n, m) return taps_at((i + 0.5) * n / m - 0.5, 4, lanczos, 1, n, true) end,
  bicubic_aa = function(i, n, m)
    return taps_at((i + 0.5) * n / m - 0.5, 2, cubic, math.max(1, n / m), n, false)
  end,
  nearest = function(i, n, m) return { { math.floor(i * n / m), 1 } } end,
}

local sizes = { { 7, 5, 3, 16, 4 }, { 5, 9, 1, 5, 23 }, { 33, 21, 3, 10, 47 }, { 12, 1, 4, 3, 2 }, { 1, 1, 2, 4, 3 } }

for name, taps in pairs(methods) do
  t.test('resize ' .. name .. ' follows its definition', function()
    for _, s in ipairs(sizes) do
      local x = picture(name, s[1], s[2], s[3])
      local y = nn.resize(x, s[4], s[5], name)
      local at = reader(x)
      local rows, columns = {}, {}
      for i = 0, s[4] - 1 do rows[i] = taps(i, s[1], s[4]) end
      for i = 0, s[5] - 1 do columns[i] = taps(i, s[2], s[5]) end
      local difference = worst(y, function(r, i, c)
        local sum = 0
        for _, a in ipairs(rows[r]) do
          for _, b in ipairs(columns[i]) do sum = sum + a[2] * b[2] * at(a[1], b[1], c) end
        end
        return sum
      end)
      t.ok(difference < 1e-5, ('%s %s: off by %g'):format(name, table.concat(s, ' '), difference))
    end
  end)
end

t.test('resize lanczos4 of u8 is exact in 11-bit fixed point', function()
  for _, s in ipairs { { 28, 21, 3, 25, 26 }, { 9, 13, 3, 40, 7 }, { 5, 5, 1, 9, 3 } } do
    local x = picture('fixed', s[1], s[2], s[3], 'u8')
    local y = nn.resize(x, s[4], s[5], 'lanczos4')
    local at = reader(x)
    local function fixed(i, n, m)
      local list = methods.lanczos4(i, n, m)
      for _, tap in ipairs(list) do tap[2] = math.floor(tap[2] * 2048 + 0.5) end
      return list
    end
    local rows, columns = {}, {}
    for i = 0, s[4] - 1 do rows[i] = fixed(i, s[1], s[4]) end
    for i = 0, s[5] - 1 do columns[i] = fixed(i, s[2], s[5]) end
    t.equal(worst(y, function(r, i, c)
      local sum = 0
      for _, a in ipairs(rows[r]) do
        for _, b in ipairs(columns[i]) do sum = sum + a[2] * b[2] * at(a[1], b[1], c) end
      end
      return clamp(math.floor((sum + 2 ^ 21) / 2 ^ 22), 0, 255)
    end), 0, table.concat(s, ' '))
  end
end)

t.test('resize keeps dtypes, takes batches and views with gaps', function()
  local x = t.formula('input:batch', { 2, 3, 6, 5 }, { kind = 'raw' })
  local both = nn.resize(x, 7, 9, 'bicubic_aa')
  t.equal(table.concat(both.shape, ' '), '2 7 9 5')
  t.near(both:select(1, 2), nn.resize(x:select(1, 2), 7, 9, 'bicubic_aa'), 0)
  local turned = x:permute(1, 3, 2, 4)
  t.near(nn.resize(turned, 4, 4, 'bilinear'), nn.resize(turned:contiguous(), 4, 4, 'bilinear'), 0)
  local half = x:to 'f16'
  local up = nn.upsample_nearest(half, 2)
  t.equal(up.dtype, 'f16')
  t.near(up:slice(2, 1, 6, 2):slice(3, 2, 12, 2), half, 0)
  t.equal(nn.resize(half, 5, 5, 'bilinear').dtype, 'f16')
  t.near(nn.resize(half, 5, 5, 'bilinear'), nn.resize(half:to 'f32', 5, 5, 'bilinear'), 1e-3)
  t.equal(nn.resize(picture('bytes', 4, 4, 3, 'u8'), 9, 9, 'bicubic_aa').dtype, 'u8')
end)

local function inverse(m)
  local det = m[1] * m[5] - m[2] * m[4]
  return function(x, y)
    x, y = x - m[3], y - m[6]
    return (m[5] * x - m[2] * y) / det, (m[1] * y - m[4] * x) / det
  end
end

local maps = {
  { 1, 0, 0, 0, 1, 0 },
  { 1.7, 0.4, -3.2, -0.5, 1.9, 4.7 },
  { 0.3, -0.2, 9.5, 0.15, 0.4, 2.25 },
  { -0.9, 0.1, 20, 0.2, -1.1, 25 },
}

t.test('warp_affine is bilinear, mixes the fill in at the border, and computes a rectangle', function()
  for k, m in ipairs(maps) do
    t.each({ 'f32', 'u8' }, { 1, 2, 3 }, function(dtype, channels)
      local x = picture('warp' .. k, 19, 23, channels, dtype)
      local at, back = reader(x), inverse(m)
      local function value(y, i, c)
        if y < 0 or i < 0 or y >= 19 or i >= 23 then return 77 end
        return at(y, i, c)
      end
      local function expected(y, i, c)
        local u, v = back(i - 4, y + 3)
        local x0, y0 = math.floor(u), math.floor(v)
        local fx, fy = u - x0, v - y0
        return (value(y0, x0, c) * (1 - fx) + value(y0, x0 + 1, c) * fx) * (1 - fy)
          + (value(y0 + 1, x0, c) * (1 - fx) + value(y0 + 1, x0 + 1, c) * fx) * fy
      end
      local area = { left = -4, top = 3, width = 41, height = 37 }
      local y = image.warp_affine(x, m, area, { fill = 77, dtype = 'f32' })
      t.ok(worst(y, expected) < 2e-4, ('map %d, %s, %d channels'):format(k, dtype, channels))
      local bytes = image.warp_affine(x, m, area, { fill = 77, dtype = 'u8' })
      local p, q = y:pointer(), bytes:pointer()
      for i = 0, y:numel() - 1 do
        if q[i] ~= math.floor(clamp(p[i], 0, 255)) then
          t.equal(q[i], p[i], 'u8 truncates')
          break
        end
      end
    end)
  end
end)

t.test('warp_bicubic widens its kernel where the map shrinks', function()
  for k, m in ipairs(maps) do
    local x = picture('bicubic' .. k, 19, 23, 3)
    local at, back = reader(x), inverse(m)
    local ox, oy = back(0, 0)
    local ax, ay = back(1, 0)
    local bx, by = back(0, 1)
    local sx = math.max(1, math.sqrt((ax - ox) ^ 2 + (bx - ox) ^ 2))
    local sy = math.max(1, math.sqrt((ay - oy) ^ 2 + (by - oy) ^ 2))
    local y = image.warp_bicubic(x, m, { left = 2, top = -1, width = 33, height = 29 })
    local difference = worst(y, function(r, i, c)
      local u, v = back(i + 2, r - 1)
      local sum = 0
      for _, a in ipairs(taps_at(clamp(v, 0, 18), 2, cubic, sy, 19, false)) do
        for _, b in ipairs(taps_at(clamp(u, 0, 22), 2, cubic, sx, 23, false)) do
          sum = sum + a[2] * b[2] * at(a[1], b[1], c)
        end
      end
      return sum
    end)
    t.ok(difference < 2e-5, ('map %d: off by %g'):format(k, difference))
  end
  local flat = cr.full({ 9, 9, 1 }, 0.625)
  local y = image.warp_bicubic(flat, maps[3], { width = 20, height = 20 })
  t.near(y, cr.full({ 20, 20, 1 }, 0.625), 1e-6, 'a flat picture stays flat')
  local same = picture('same', 8, 6, 3)
  t.near(image.warp_bicubic(same, maps[1], { width = 6, height = 8 }), same, 0, 'identity')
end)

t.test('erode is the minimum of its window', function()
  for _, s in ipairs { { 1, 1, 1 }, { 1, 17, 3 }, { 23, 1, 1 }, { 31, 70, 1 }, { 13, 70, 2 } } do
    local x = picture('erode', s[1], s[2], s[3])
    local at = reader(x)
    for _, window in ipairs { { 0, 0 }, { 1, 0 }, { 0, 1 }, { 2, 1 }, { 5, 5 }, { 8, 7 }, { 100, 3 } } do
      local before, after = window[1], window[2]
      t.equal(worst(image.erode(x, before, after), function(y, i, c)
        local least = math.huge
        for v = math.max(0, y - before), math.min(s[1] - 1, y + after) do
          for u = math.max(0, i - before), math.min(s[2] - 1, i + after) do
            least = math.min(least, at(v, u, c))
          end
        end
        return least
      end), 0, ('%s, %d before, %d after'):format(table.concat(s, ' '), before, after))
    end
  end
end)

t.test('gaussian_blur reflects at the border, several times if necessary', function()
  local function reflect(i, n)
    if n == 1 then return 0 end
    while i < 0 or i >= n do
      if i < 0 then i = -i else i = 2 * (n - 1) - i end
    end
    return i
  end
  for _, s in ipairs { { 1, 1, 1 }, { 2, 9, 3 }, { 17, 29, 1 }, { 40, 67, 2 } } do
    local x = picture('blur', s[1], s[2], s[3])
    local at = reader(x)
    for _, size in ipairs { 1, 3, 11, 31 } do
      local half, sigma = (size - 1) / 2, 0.3 * (size / 2 - 1.5) + 1.1
      local kernel, total = {}, 0
      for k = -half, half do
        kernel[k] = math.exp(-k * k / (2 * sigma * sigma))
        total = total + kernel[k]
      end
      local difference = worst(image.gaussian_blur(x, size, sigma), function(y, i, c)
        local sum = 0
        for v = -half, half do
          for u = -half, half do
            sum = sum + kernel[v] * kernel[u] * at(reflect(y + v, s[1]), reflect(i + u, s[2]), c)
          end
        end
        return sum / (total * total)
      end)
      t.ok(difference < 2e-6, ('%s, %d taps: off by %g'):format(table.concat(s, ' '), size, difference))
    end
  end
end)

t.test('blend truncates, and leaves the frame unchanged where the weight is 0', function()
  local frame = picture('frame', 9, 14, 3, 'u8')
  local face = cr.scope(function() return picture('face', 9, 14, 3) * 150 + 100 end)
  local weight = cr.scope(function() return picture('weight', 9, 14, 1):clamp(0, 1) end)
  face:pointer()[0], weight:pointer()[0] = 0 / 0, 0
  local f, a, w = reader(frame), reader(face), reader(weight)
  local function expected(y, x, c)
    local k = w(y, x, 0)
    if k == 0 then return f(y, x, c) end
    return math.floor(clamp(k * a(y, x, c) + (1 - k) * f(y, x, c), 0, 255))
  end
  t.ok(worst(image.blend(frame, face, weight), expected) <= 1, 'at most one apart by rounding')
  local whole = cr.zeros(20, 30, 3, { dtype = 'u8' })
  local part = whole:narrow(1, 4, 9):narrow(2, 11, 14)
  part:copy_(frame)
  image.blend(part, face, weight, part)
  t.near(part, image.blend(frame, face, weight), 0, 'in place, in a rectangle')
  t.near(whole:to 'f32':sum(), part:to 'f32':sum(), 0, 'nothing around it is written')
end)

t.test('the result does not depend on the number of threads', function()
  local x = picture('threads', 180, 250, 3)
  local function all()
    return cr.scope(function()
      local planes, bytes = tensor.new(), (x * 60 + 128):to 'u8'
      base.check(base.C.cr_rgb_to_yuv(planes.c, bytes.c, ffi.new('cr_yuv', { 250, 180, 1, 1, 0, { 117489, 138438, 13975, 34925 } })))
      return { nn.resize(x, 301, 99, 'bicubic_aa'), image.erode(x, 9, 8), image.gaussian_blur(x, 19, 3),
        image.warp_bicubic(x, maps[2], { width = 300, height = 300 }),
        image.warp_affine(x, maps[2], { width = 300, height = 300 }), planes }
    end)
  end
  cr.threads(1)
  local one = all()
  cr.threads(3)
  local three = all()
  cr.threads(0)
  for i = 1, #one do t.near(three[i], one[i], 0, 'operation ' .. i) end
end)

--- An image of one colour as planes: every Y, U and V.
local function levels(r, g, b, w, h, format)
  local x = cr.empty(h, w, 3, { dtype = 'u8' })
  local p = x:pointer()
  for i = 0, h * w - 1 do p[3 * i], p[3 * i + 1], p[3 * i + 2] = r, g, b end
  local out = tensor.new()
  base.check(base.C.cr_rgb_to_yuv(out.c, x.c, format))
  local q, luma = out:pointer(), format.width * format.height
  local chroma = (out:numel() - luma) / 2
  local found = { q[0], q[luma], q[luma + chroma] }
  for k, from in ipairs { 0, luma, luma + chroma } do
    for i = 0, (k == 1 and luma or chroma) - 1 do
      if q[from + i] ~= found[k] then error(('plane %d is not of one colour'):format(k)) end
    end
  end
  x:free()
  out:free()
  return table.concat(found, ' ')
end

t.test("rgb_to_yuv: colours have the standards' levels, and can be converted back", function()
  local bt709, bt601 = { 117489, 138438, 13975, 34925 }, { 104597, 132201, 25675, 53279 }
  for _, size in ipairs { { 20, 16 }, { 19, 15 }, { 16, 12 } } do
    local w, h = size[1], size[2]
    for _, shift in ipairs { { 1, 1 }, { 1, 0 }, { 0, 0 } } do
      local W, H = w + (shift[1] == 1 and w % 2 or 0), h + (shift[2] == 1 and h % 2 or 0)
      local function format(full, matrix) return ffi.new('cr_yuv', { W, H, shift[1], shift[2], full, matrix }) end
      t.equal(levels(255, 255, 255, w, h, format(0, bt709)), '235 128 128')
      t.equal(levels(0, 0, 0, w, h, format(0, bt709)), '16 128 128')
      t.equal(levels(255, 0, 0, w, h, format(0, bt709)), '63 102 240')
      t.equal(levels(0, 0, 255, w, h, format(0, bt709)), '32 240 118')
      t.equal(levels(255, 0, 0, w, h, format(0, bt601)), '81 90 240')
      t.equal(levels(255, 255, 255, w, h, format(1, bt601)), '255 128 128')
      t.equal(levels(0, 0, 0, w, h, format(1, bt709)), '0 128 128')
    end
  end
  cr.scope(function() -- a smooth image survives the conversion and back
    local x = picture('smooth', 6, 8, 3)
    x = (nn.resize(x, 96, 128, 'bicubic_aa') * 60 + 128):clamp(0, 255):to 'u8'
    local format = ffi.new('cr_yuv', { 128, 96, 1, 1, 0, bt709 })
    local planes, back = tensor.new(), tensor.new()
    base.check(base.C.cr_rgb_to_yuv(planes.c, x.c, format))
    base.check(base.C.cr_yuv_to_rgb(back.c, planes.c, format))
    local error_of = ((back:to 'f32' - x:to 'f32') ^ 2):mean():item()
    t.ok(error_of < 4, ('mean squared difference %.2f'):format(error_of))
  end)
end)

t.test('rgb_to_yuv refuses invalid planes', function()
  local out = tensor.new()
  local function try(w, h, shift, shape, matrix)
    local x = cr.zeros(shape, { dtype = 'u8' })
    local format = ffi.new('cr_yuv', { w, h, shift, shift, 0, matrix or { 117489, 138438, 13975, 34925 } })
    t.raises(function() base.check(base.C.cr_rgb_to_yuv(out.c, x.c, format)) end, 'rgb_to_yuv: ')
    x:free()
  end
  try(10, 16, 1, { 16, 10, 3 })            -- too narrow
  try(21, 16, 1, { 16, 21, 3 }) -- half a chroma sample
  try(20, 16, 1, { 16, 18, 3 })            -- two columns short
  try(20, 16, 0, { 16, 19, 3 }) -- no column to repeat
  try(20, 16, 1, { 16, 20, 4 })
  try(20, 16, 1, { 16, 20, 3 }, { 0, 1, 1, 1 })
  t.ok(out.c.storage == nil, 'nothing was made')
end)

t.test('bad arguments get one sentence', function()
  local bytes, floats = picture('bad', 4, 5, 3, 'u8'), picture('bad', 4, 5, 3)
  local area = { width = 4, height = 4 }
  t.raises(function() nn.resize(floats, 0, 4, 'bilinear') end, 'resize: the new size 0 x 4')
  t.raises(function() nn.resize(cr.zeros(2, 2), 4, 4) end, 'resize: an image .* %[2 2%]')
  t.raises(function() nn.resize(cr.zeros(0, 2, 3), 4, 4) end, 'resize: %[0 2 3%] has no pixels')
  t.raises(function() nn.resize(cr.zeros(2, 2, 3, { dtype = 'i32' }), 4, 4) end, 'resize: .*not i32')
  t.raises(function() image.warp_affine(bytes, { 1, 2, 3, 2, 4, 6 }, area) end, 'has no inverse')
  t.raises(function() image.warp_fixed(bytes, { 1, 2, 3, 2, 4, 6 }, 4, 4) end, 'warp_fixed: .*has no inverse')
  t.raises(function() image.warp_fixed(floats, maps[1], 4, 4) end, 'warp_fixed: u8 is needed, not f32')
  t.raises(function() image.warp_affine(bytes, { 0 / 0, 0, 0, 0, 1, 0 }, area) end, 'not finite')
  t.raises(function() image.warp_affine(bytes, { 1e-200, 0, 0, 0, 1e-100, 0 }, area) end, 'has no inverse')
  t.raises(function() image.warp_affine(bytes, { 1, 0 }, area) end, 'matrix of six numbers')
  t.raises(function() image.warp_affine(bytes, maps[1], { width = 0, height = 4 }) end, 'size 4 x 0')
  t.raises(function() image.warp_bicubic(bytes, maps[1], area) end, 'f32 is needed, not u8')
  t.raises(function() image.erode(bytes, 1, 1) end, 'erode: f32 is needed, not u8')
  t.raises(function() image.erode(floats, -1, 1) end, 'erode: the window')
  t.raises(function() image.gaussian_blur(floats, 4, 1) end, 'size 4 is not a positive odd number')
  t.raises(function() image.gaussian_blur(floats, 3, 0) end, 'sigma 0 is not positive')
  t.raises(function() image.blend(bytes, floats, cr.zeros(4, 5, 3)) end, 'weight %[4 5 3%] does not fit')
  t.raises(function() image.blend(bytes, cr.zeros(4, 4, 3), cr.zeros(4, 5, 1)) end, 'sizes differ')
  local far = image.warp_affine(floats, { 1, 0, 1e9, 0, 1, -1e9 }, area, { fill = 3 })
  t.near(far, cr.full({ 4, 4, 3 }, 3), 0, 'a picture moved far away leaves the fill')
  t.equal(image.warp_bicubic(floats, { 1e-9, 0, 0, 0, 1e9, 0 }, area).dtype, 'f32', 'extreme scales are no crash')
end)

t.test('luma is the weighted sum of a pixel\'s colours', function()
  cr.scope(function()
    local x = (cr.rand { 7, 5, 3 } * 255):to 'u8'
    local y, from = image.luma(x), x:pointer()
    t.equal(table.concat(y.shape, ' '), '7 5 1')
    local got, off = y:pointer(), 0
    for i = 0, 34 do off = math.max(off, math.abs(got[i] - 0.299 * from[3 * i] - 0.587 * from[3 * i + 1] - 0.114 * from[3 * i + 2])) end
    t.ok(off <= 1e-4, 'off by ' .. off)
  end)
end)

t.test('pixel_shuffle follows its definition', function()
  for _, case in ipairs { { 2, 3, 5, 2, 3 }, { 1, 4, 3, 4, 3 }, { 1, 2, 2, 3, 1 }, { 3, 1, 7, 1, 2 } } do
    cr.scope(function()
      local n, h, w, s, c = unpack(case)
      local x, more = cr.randn { n, h, w, s * s * c }, cr.randn { n, h, w, c }
      local y, z = nn.pixel_shuffle(x, s), nn.pixel_shuffle(x, s, { base = more })
      local bytes = nn.pixel_shuffle(x, s, { base = more, dtype = 'u8' })
      local numbers = nn.pixel_shuffle(x, s, { base = more, dtype = 'i16' }):pointer()
      local from, add, plain, sum, byte = x:pointer(), more:pointer(), y:pointer(), z:pointer(), bytes:pointer()
      local off, wrong, deep = 0, 0, 0
      for i = 0, y:numel() - 1 do
        local channel, column = i % c, math.floor(i / c) % (w * s)
        local row, which = math.floor(i / c / (w * s)) % (h * s), math.floor(i / c / (w * s) / (h * s))
        local pixel = (which * h + math.floor(row / s)) * w + math.floor(column / s)
        local value = from[(pixel * s * s + row % s * s + column % s) * c + channel]
        local both = value + add[pixel * c + channel]
        off = math.max(off, math.abs(plain[i] - value), math.abs(sum[i] - both))
        wrong = math.max(wrong, math.abs(byte[i] - math.min(math.max(both, 0), 1) * 255))
        deep = math.max(deep, math.abs(numbers[i] % 65536 - math.min(math.max(both, 0), 1) * 65535))
      end
      t.ok(off <= 1e-6, 'off by ' .. off)
      t.ok(wrong <= 0.5 + 1e-4, 'bytes off by ' .. wrong)
      t.ok(deep <= 0.5 + 1e-2, 'numbers of 16 bits off by ' .. deep)
    end)
  end
end)

t.test('pixel_shuffle rounds half to even and marks non-finite values', function()
  cr.scope(function()
    local x = cr.tensor({ 0.5 / 255, 1.5 / 255, 2.5 / 255, -1, 2, 1 }):view(1, 1, 2, 3)
    local flaw = cr.zeros({ 1 }, { dtype = 'i32' })
    local y, want = nn.pixel_shuffle(x, 1, { dtype = 'u8', flaw = flaw }):pointer(), { 0, 2, 2, 0, 255, 255 }
    for i = 1, #want do t.equal(y[i - 1], want[i]) end
    t.equal(flaw:item(), 0)
    for _, value in ipairs { 0 / 0, 1 / 0, -1 / 0 } do
      flaw:fill_(0)
      local bad = cr.full({ 1, 2, 2, 3 }, 0.5)
      bad:narrow(2, 2, 1):narrow(3, 1, 1):narrow(4, 3, 1):fill_(value)
      nn.pixel_shuffle(bad, 1, { dtype = 'u8', flaw = flaw })
      t.equal(flaw:item(), 1, tostring(value))
    end
  end)
end)

t.test('pixel_shuffle refuses', function()
  cr.scope(function()
    local x = cr.zeros { 1, 2, 2, 12 }
    t.raises(function() nn.pixel_shuffle(x, 5) end, '25 channels')
    t.raises(function() nn.pixel_shuffle(x, 17) end, 'must be 1 to 16')
    t.raises(function() nn.pixel_shuffle(x, 2, { base = cr.zeros { 1, 2, 2, 4 } }) end, 'does not fit')
    t.raises(function() nn.pixel_shuffle(x, 2, { flaw = cr.zeros { 1 } }) end, 'flaw must be i32')
    t.raises(function() nn.pixel_shuffle(x:to 'f64', 2) end, 'not f64')
    t.raises(function() nn.pixel_shuffle(x, 2, { scale = 2 }) end, 'scale')
  end)
end)

t.done()
