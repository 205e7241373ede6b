--- Image operations on a GPU: the same bytes and floats as on the CPU.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local golden = require 'tests.golden.align'
local image = require 'cr.image'
local nn = require 'cr.nn'
local align = require 'models.latentsync.align'
local base = require 'cr.ffi'
local ffi = require 'ffi'
local references = require 'tests.support.golden'
local smooth = require 'tests.support.formula_image'
local t = require 'tests.support.tap'

local C = base.C

--- Random u8 or float picture.
local function picture(shape, dtype)
  return cr.scope(function()
    local x = cuda.randn(shape)
    if dtype == 'u8' then return (x * 80 + 128):clamp(0, 255):to 'u8' end
    return x:to(dtype or 'f32')
  end)
end

local function up(x) return x:to(cuda.device) end

--- Every value equals the CPU's, including NaN.
local function same(result, reference, message)
  message = ('%s (CR_SEED=%d)'):format(message, cuda.seed)
  cr.scope(function()
    t.equal(table.concat(result.shape, ' '), table.concat(reference.shape, ' '), message .. ': shape')
    t.equal(result.dtype, reference.dtype, message .. ': dtype')
    local a, b = result:to 'cpu':to 'f64', reference:to 'f64'
    local p, q, unequal, most = a:contiguous():pointer(), b:contiguous():pointer(), 0, 0
    for i = 0, a:numel() - 1 do
      if p[i] ~= q[i] and (p[i] == p[i] or q[i] == q[i]) then
        unequal = unequal + 1
        local d = math.abs(p[i] - q[i])
        most = d == d and math.max(most, d) or math.huge
      end
    end
    t.ok(unequal == 0, ('%s: %d of %d numbers differ, by up to %g'):format(message, unequal, a:numel(), most))
  end)
end

local poisoned = cuda.poisoned

local codes = {
  nearest = C.CR_NEAREST, bilinear = C.CR_BILINEAR, linear = C.CR_LINEAR, bilinear_edge = C.CR_BILINEAR_EDGE,
  bicubic_aa = C.CR_BICUBIC_AA, lanczos4 = C.CR_LANCZOS4,
}

local sizes = {
  { 7, 5, 3, 16, 4 }, { 5, 9, 1, 5, 23 }, { 33, 21, 3, 10, 47 }, { 12, 1, 4, 3, 2 }, { 1, 1, 2, 4, 3 },
  { 280, 210, 3, 256, 256 }, { 61, 67, 5, 131, 43 },
}

for method, code in pairs(codes) do
  cuda.test('resize ' .. method, function()
    for _, s in ipairs(sizes) do
      for _, dtype in ipairs { 'u8', 'f32', 'f16', 'bf16' } do
        cr.scope(function()
          local x = picture({ s[1], s[2], s[3] }, dtype)
          local out = poisoned({ s[4], s[5], s[3] }, dtype)
          local card = up(x)
          base.check(C.cr_resize(out.c, card.c, s[4], s[5], code))
          same(out, nn.resize(x, s[4], s[5], method), ('%s %s'):format(dtype, table.concat(s, ' ')))
        end)
      end
    end
    cr.scope(function()
      local batch = picture({ 3, 9, 8, 4 })
      local card = up(batch)
      same(nn.resize(card, 14, 5, method), nn.resize(batch, 14, 5, method), 'a batch')
      same(nn.resize(card:permute(1, 3, 2, 4), 4, 11, method), nn.resize(batch:permute(1, 3, 2, 4), 4, 11, method),
        'turned')
      same(nn.resize(card:narrow(2, 3, 5):narrow(3, 2, 6), 7, 7, method),
        nn.resize(batch:narrow(2, 3, 5):narrow(3, 2, 6), 7, 7, method), 'a rectangle')
      local wide = poisoned({ 7, 7, 3, 4 }, 'f32')
      local out = wide:permute(3, 1, 2, 4)
      base.check(C.cr_resize(out.c, card.c, 7, 7, code))
      same(out, nn.resize(batch, 7, 7, method), 'into a view')
    end)
  end)
end

cuda.test('resize nearest moves whole words', function()
  for _, dtype in ipairs { 'u8', 'f16', 'f32', 'f64' } do
    for _, channels in ipairs { 1, 2, 3, 4, 6, 8, 24, 40 } do
      cr.scope(function()
        local x = picture({ 2, 5, 7, channels }, dtype)
        local card = up(x)
        same(nn.upsample_nearest(card, 2), nn.upsample_nearest(x, 2), dtype .. ' twice, ' .. channels)
        same(nn.resize(card, 8, 11, 'nearest'), nn.resize(x, 8, 11, 'nearest'), dtype .. ' 8 x 11, ' .. channels)
        same(nn.resize(card, 10, 15, 'nearest'), nn.resize(x, 10, 15, 'nearest'), dtype .. ' 10 x 15, ' .. channels)
        same(nn.resize(card, 2, 3, 'nearest'), nn.resize(x, 2, 3, 'nearest'), dtype .. ' 2 x 3, ' .. channels)
      end)
    end
  end
  cr.scope(function() -- a start that is not at a 16-byte boundary
    local x = picture({ 3, 4, 17 }, 'f16')
    local card = up(x):view(-1):narrow(1, 2, 3 * 4 * 16):view(3, 4, 16)
    same(nn.upsample_nearest(card, 2), nn.upsample_nearest(x:view(-1):narrow(1, 2, 3 * 4 * 16):view(3, 4, 16), 2), 'odd start')
  end)
end)

local maps = {
  { 1, 0, 0, 0, 1, 0 },
  { 1.7, 0.4, -3.2, -0.5, 1.9, 4.7 },
  { 0.3, -0.2, 9.5, 0.15, 0.4, 2.25 },
  { -0.9, 0.1, 20, 0.2, -1.1, 25 },
  { 1, 0, 1e9, 0, 1, -1e9 },
}

cuda.test('warp_affine', function()
  for k, m in ipairs(maps) do
    for _, from in ipairs { 'u8', 'f32' } do
      for _, to in ipairs { 'u8', 'f32' } do
        for _, channels in ipairs { 1, 2, 3 } do
          cr.scope(function()
            local x = picture({ 41, 53, channels }, from)
            local area = { left = -4, top = 3, width = 71, height = 67 }
            local o = { fill = 77, dtype = to }
            same(image.warp_affine(up(x), m, area, o), image.warp_affine(x, m, area, o),
              ('map %d, %s to %s, %d channels'):format(k, from, to, channels))
          end)
        end
      end
    end
  end
  cr.scope(function()
    local x = picture({ 41, 53, 3 }, 'u8')
    local area = { width = 30, height = 40 }
    local function part(p) return p:narrow(1, 5, 30):narrow(2, 9, 40) end
    same(image.warp_affine(part(up(x)), maps[2], area), image.warp_affine(part(x), maps[2], area), 'a rectangle')
  end)
end)

cuda.test('warp_fixed', function()
  for k, m in ipairs(maps) do
    for _, channels in ipairs { 1, 3, 4 } do
      cr.scope(function()
        local x = picture({ 41, 53, channels }, 'u8')
        same(image.warp_fixed(up(x), m, 67, 71), image.warp_fixed(x, m, 67, 71), ('map %d, %d channels'):format(k, channels))
      end)
    end
  end
  cr.scope(function()
    local x = picture({ 41, 53, 3 }, 'u8')
    local function part(p) return p:narrow(1, 5, 30):narrow(2, 9, 40) end
    same(image.warp_fixed(part(up(x)), maps[2], 30, 40), image.warp_fixed(part(x), maps[2], 30, 40), 'a rectangle')
  end)
end)

cuda.test('warp_bicubic', function()
  for k, m in ipairs(maps) do
    for _, channels in ipairs { 1, 3, 6 } do
      cr.scope(function()
        local x = picture { 41, 53, channels }
        local area = { left = 2, top = -1, width = 73, height = 59 }
        same(image.warp_bicubic(up(x), m, area), image.warp_bicubic(x, m, area), ('map %d, %d channels'):format(k, channels))
      end)
    end
  end
end)

cuda.test('grid_sample', function()
  local thetas = {
    { 1, 0, 0, 0, 1, 0 }, { 0.7, -0.31, 0.2, 0.28, 0.9, -0.15 }, { 1.9, 0.4, -0.3, -0.6, 2.2, 0.1 },
    { 1e6, 0, 0, 0, 1e6, 0 }, { 1, 0, 1e30, 0, 1, 0 },
  }
  for k, theta in ipairs(thetas) do
    for _, dtype in ipairs { 'u8', 'f32' } do
      for _, channels in ipairs { 1, 3, 4 } do
        cr.scope(function()
          local x = picture({ 61, 87, channels }, dtype)
          same(image.grid_sample(up(x), theta, 93, 71, 127), image.grid_sample(x, theta, 93, 71, 127),
            ('theta %d, %s, %d channels'):format(k, dtype, channels))
        end)
      end
    end
  end
end)

cuda.test('erode and gaussian_blur', function()
  for _, s in ipairs { { 1, 1, 1 }, { 1, 17, 3 }, { 23, 1, 1 }, { 31, 70, 1 }, { 45, 70, 2 } } do
    cr.scope(function()
      local x = picture(s)
      local card = up(x)
      for _, window in ipairs { { 0, 0 }, { 1, 0 }, { 0, 1 }, { 2, 1 }, { 8, 7 }, { 100, 3 } } do
        same(image.erode(card, window[1], window[2]), image.erode(x, window[1], window[2]),
          ('erode %s, %d before, %d after'):format(table.concat(s, ' '), window[1], window[2]))
      end
      for _, size in ipairs { 1, 3, 11, 51 } do
        local sigma = 0.3 * (size / 2 - 1.5) + 1.1
        same(image.gaussian_blur(card, size, sigma), image.gaussian_blur(x, size, sigma),
          ('blur %s, %d taps'):format(table.concat(s, ' '), size))
      end
      local turned, out = card:permute(2, 1, 3), poisoned({ s[1], s[2], s[3] }, 'f32'):permute(2, 1, 3)
      base.check(C.cr_erode(out.c, turned.c, 2, 2))
      same(out, image.erode(x:permute(2, 1, 3), 2, 2), 'turned')
    end)
  end
end)

cuda.test('blend', function()
  cr.scope(function()
    local frame, face = picture({ 29, 34, 3 }, 'u8'), picture { 29, 34, 3 } * 150 + 100
    local weight = picture { 29, 34, 1 }:clamp(0, 1)
    face:pointer()[0], weight:pointer()[0] = 0 / 0, 0
    local expected = image.blend(frame, face, weight)
    local card, paint, w = up(frame), up(face), up(weight)
    same(image.blend(card, paint, w), expected, 'a new picture')
    same(image.blend(card, paint, w, poisoned({ 29, 34, 3 }, 'u8')), expected, 'a given one')
    local whole = cr.full({ 50, 60, 3 }, 9, { dtype = 'u8', device = cuda.device })
    local part = whole:narrow(1, 4, 29):narrow(2, 11, 34)
    part:copy_(card)
    image.blend(part, paint, w, part)
    same(part, expected, 'in place, in a rectangle')
    local host = cr.full({ 50, 60, 3 }, 9, { dtype = 'u8' })
    host:narrow(1, 4, 29):narrow(2, 11, 34):copy_(expected)
    same(whole, host, 'nothing around it is written')
    same(image.blend(card:permute(2, 1, 3), paint:permute(2, 1, 3), w:permute(2, 1, 3)), expected:permute(2, 1, 3), 'turned')
  end)
end)

cuda.test('cut_square', function()
  local frame = picture({ 301, 411, 3 }, 'u8')
  local card = up(frame)
  for k, s in ipairs {
    { 200, 150, 411, 0, 96 }, { 205.5, 150.5, 411, 0, 48 }, { 200, 150, 100, 0.3, 128 }, { 20, 290, 300, -0.8, 100 },
    { 100, 100, 700, 0, 97 }, { 50.2, 60.3, 80, 0, 192 }, { 1000, 1000, 40, 0.1, 33 }, { 1e300, 0, 1e12, 1, 5 },
  } do
    cr.scope(function()
      local square = { x = s[1], y = s[2], side = s[3], angle = s[4] }
      cuda.near(image.cut_square(card, square, s[5], 1 / 127.5, -1), image.cut_square(frame, square, s[5], 1 / 127.5, -1),
        { message = 'square ' .. k, limit = 1e-6 })
    end)
  end
end)

cuda.test('yuv_to_rgb', function()
  for _, size in ipairs { { 64, 48 }, { 121, 67 }, { 8, 8 }, { 640, 361 } } do
    for _, shift in ipairs { { 1, 1 }, { 1, 0 }, { 0, 0 }, { 0, 1 } } do
      for full = 0, 1 do
        cr.scope(function()
          local width, height = size[1], size[2]
          local f = ffi.new('cr_yuv', { width, height, shift[1], shift[2], full, { 117489, 138438, 13975, 34925 } })
          local chroma = math.floor((width + shift[1]) / 2 ^ shift[1]) * math.floor((height + shift[2]) / 2 ^ shift[2])
          local x = picture({ width * height + 2 * chroma }, 'u8')
          local card, expected, out = up(x), cr.empty(height, width, 3, { dtype = 'u8' }), poisoned({ height, width, 3 }, 'u8')
          base.check(C.cr_yuv_to_rgb(expected.c, x.c, f))
          base.check(C.cr_yuv_to_rgb(out.c, card.c, f))
          same(out, expected, ('%d x %d, chroma %d %d, full range %d'):format(width, height, shift[1], shift[2], full))
        end)
      end
    end
  end
end)

cuda.test('rgb_to_yuv', function()
  t.each({ { 64, 48 }, { 122, 66 }, { 12, 12 }, { 640, 362 }, { 1080, 1920 } },
    { { 1, 1 }, { 1, 0 }, { 0, 0 }, { 0, 1 } },
    { 0, 1 },
    function(size, shift, full)
      for short = 0, size[1] > 1000 and 0 or 1 do -- with and without a repeated row and column
        cr.scope(function()
          local width, height = size[1], size[2]
          local f = ffi.new('cr_yuv', { width, height, shift[1], shift[2], full, { 117489, 138438, 13975, 34925 } })
          local x = picture({ height - short * shift[2], width - short * shift[1], 3 }, 'u8')
          local n = width * height + 2 * (width / 2 ^ shift[1]) * (height / 2 ^ shift[2])
          local expected, out = cr.empty(n, { dtype = 'u8' }), poisoned({ n }, 'u8')
          base.check(C.cr_rgb_to_yuv(expected.c, x.c, f))
          base.check(C.cr_rgb_to_yuv(out.c, up(x).c, f))
          same(out, expected, ('%d x %d, chroma %d %d, full range %d, short %d'):format(width, height, shift[1], shift[2], full, short))
        end)
      end
    end)
end)

cuda.test('frames that are copied as planes give the same file', function()
  local media = require 'cr.media'
  local ok, why = pcall(media.version)
  if not ok then t.skip(tostring(why)) end
  local function write(path, device, shape)
    local sink = media.writer(path)
    for i = 1, 6 do
      cr.scope(function()
        local x = (smooth.image('gen' .. i % 2, shape[1], shape[2])):to(device)
        local packed = sink:pack(x)
        t.equal(packed.device, 'cpu')
        t.equal(packed:dim(), device == 'cpu' and 3 or 1, 'planes come down')
        sink:write(i % 3 == 0 and x or packed)
      end)
    end
    sink:close()
    local file = assert(io.open(path, 'rb'))
    local bytes = file:read '*a'
    file:close()
    os.remove(path)
    return bytes
  end
  for _, shape in ipairs { { 90, 120 }, { 91, 121 } } do
    local name = os.tmpname()
    local here, there = write(name .. '.mp4', 'cpu', shape), write(name .. '.mp4', cuda.device, shape)
    os.remove(name)
    t.ok(here == there, ('%d x %d'):format(shape[1], shape[2]))
  end
end)

cuda.test('a video that is copied in its decoded format is the same on the GPU', function()
  local video = cr.root .. '/models/mini/demo.mp4'
  local ok, host = pcall(function() return require 'cr.media'.reader(video) end)
  if not ok then t.skip(tostring(host)) end
  local there = require 'cr.media'.reader(video, { device = cuda.device })
  local a, b = host:read(3), there:read(3)
  host:close()
  there:close()
  for i = 1, 3 do
    t.ok(b[i].device ~= 'cpu')
    local mine = b[i]:to 'cpu'
    t.equal((smooth.compare(mine, a[i])), 0, 'frame ' .. i)
    for _, x in ipairs { mine, a[i], b[i] } do x:free() end
  end
end)

cuda.test('alignment and pasting on the card are the CPU\'s', function()
  for _, clip in ipairs(golden) do
    cr.scope(function()
      local a, m = align.new { size = clip.size }, nil
      for _, frame in ipairs(clip.frames) do m = a:matrix(frame.points) end
      local frame = smooth.image('frame0', clip.height, clip.width)
      local card = up(frame)
      local face, crop = align.warp(frame, m, clip.size)
      local card_face, card_crop = align.warp(card, m, clip.size)
      same(card_crop, crop, 'crop')
      same(card_face, face, 'face')
      local new = smooth.image('gen0', clip.size, clip.size):to 'f32' / 127.5 - 1
      local mask = align.mask(clip.size)
      local before = frame:clone()
      same(align.paste_reference(card, up(new), m), align.paste_reference(frame, new, m), 'paste_reference')
      same(align.paste_region(card, up(new), m, up(mask)), align.paste_region(frame, new, m, mask), 'paste_region')
      same(card, before, 'the frame itself is not written to')
    end)
  end
end)

cuda.test('crop, face and pasted frame are the reference\'s', function()
  local file = references.open 'image'
  local function agrees(x, name)
    local unequal, most = smooth.compare(file:cut(x:to 'cpu', name), file:get(name))
    t.ok(unequal <= 1e-3 and most <= 2, ('%s: %.4f %% differ, by up to %d'):format(name, unequal * 100, most))
  end
  for _, clip in ipairs(golden) do
    cr.scope(function()
      local last = #clip.frames - 1
      local prefix = ('align.%s.%d.'):format(clip.clip, last)
      local a, m = align.new { size = clip.size }, nil
      for _, frame in ipairs(clip.frames) do m = a:matrix(frame.points) end
      local frame = up(smooth.image('frame' .. last, clip.height, clip.width))
      local face, crop = align.warp(frame, m, clip.size)
      agrees(crop:slice(1, 1, crop:size(1), 3), prefix .. 'crop')
      agrees(face:slice(1, 1, face:size(1), 3), prefix .. 'face')
      local new = up(smooth.image('gen' .. last, clip.size, clip.size):to 'f32' / 127.5 - 1)
      agrees(align.paste_reference(frame, new, m), prefix .. 'pasted')
    end)
  end
  file:close()
end)

cuda.test('pixel_shuffle', function()
  for _, case in ipairs { { 1, 9, 70, 4, 3 }, { 2, 3, 5, 2, 3 }, { 1, 7, 33, 1, 3 }, { 2, 4, 3, 3, 2 }, { 1, 1, 1, 16, 1 } } do
    local n, h, w, s, c = unpack(case)
    for _, dtype in ipairs { 'f32', 'f16', 'bf16' } do
      cr.scope(function()
        local message = ('%s %s'):format(dtype, table.concat(case, ' '))
        local x, more = cuda.randn({ n, h, w, s * s * c }, dtype), cuda.randn({ n, h, w, c }, dtype)
        local cx, cm = cuda.up(x, dtype), cuda.up(more, dtype)
        same(nn.pixel_shuffle(cx, s, { base = cm, dtype = 'f32' }), nn.pixel_shuffle(x, s, { base = more }), message)
        for _, whole in ipairs { 'u8', 'i16' } do
          same(nn.pixel_shuffle(cx, s, { base = cm, dtype = whole }), nn.pixel_shuffle(x, s, { base = more, dtype = whole }),
            message .. ' ' .. whole)
        end
        same(nn.pixel_shuffle(cx, s), nn.pixel_shuffle(x:to(dtype), s), message .. ' as it is')
        if h > 2 and w > 2 then -- a rectangle of a larger image, without gaps between the channels
          local part = function(v) return v:narrow(2, 2, h - 2):narrow(3, 2, w - 2) end
          same(nn.pixel_shuffle(part(cx), s, { base = part(cm), dtype = 'u8' }),
            nn.pixel_shuffle(part(x), s, { base = part(more), dtype = 'u8' }), message .. ' a rectangle')
        end
      end)
    end
  end
  cr.scope(function()
    local flaw = cr.zeros({ 1 }, { dtype = 'i32', device = cuda.device })
    local x = cuda.up(cuda.randn({ 1, 40, 50, 48 }, 'f16'), 'f16')
    nn.pixel_shuffle(x, 4, { dtype = 'u8', flaw = flaw })
    t.equal(flaw:item(), 0)
    x:narrow(2, 40, 1):narrow(3, 49, 1):narrow(4, 47, 1):fill_(1 / 0)
    nn.pixel_shuffle(x, 4, { dtype = 'u8', flaw = flaw })
    t.equal(flaw:item(), 1)
  end)
end)

t.done()
