--- Face alignment and pasting: compared with the reference's values, and with their own documentation.

local t = require 'tests.support.tap'
local cr = require 'cr'
local align = require 'models.latentsync.align'
local references = require 'tests.support.golden'
local smooth = require 'tests.support.formula_image'
local golden = require 'tests.golden.align'

local function agrees(x, file, name)
  local a, b = file:cut(x, name), file:get(name)
  t.equal(table.concat(a.shape, ' '), table.concat(b.shape, ' '), name)
  local unequal, most = smooth.compare(a, b)
  t.ok(unequal <= 1e-3 and most <= 2, ('%s: %.4f %% differ, by up to %d'):format(name, unequal * 100, most))
end

--- A face in [-1, 1] from a u8 picture.
local function as_face(bytes) return bytes:to 'f32' / 127.5 - 1 end

t.test('matrices and biases are the reference\'s', function()
  for _, clip in ipairs(golden) do
    local a = align.new { size = clip.size }
    for k, frame in ipairs(clip.frames) do
      local m = a:matrix(frame.points)
      t.near(cr.tensor(m), cr.tensor(frame.matrix), 1e-6, clip.clip .. ' matrix ' .. k)
      for i = 1, 6 do
        t.near(m[i], frame.matrix[i], 1e-5 * math.max(1, math.abs(frame.matrix[i])), 'element ' .. i)
      end
      t.near(cr.tensor(a.bias), cr.tensor(frame.bias), 1e-5, clip.clip .. ' bias ' .. k)
    end
  end
end)

t.test('points are rounded half to even, and reset() clears the bias', function()
  local exact = align.new():matrix { { 100, 202 }, { 180, 196 }, { 140, 250 } }
  local rounded = align.new():matrix { { 100.5, 201.5 }, { 179.6, 196.4 }, { 140.49, 249.51 } }
  t.near(cr.tensor(rounded), cr.tensor(exact), 0)
  local a = align.new()
  local points, other = { { 100, 200 }, { 180, 196 }, { 140, 250 } }, { { 90, 201 }, { 171, 190 }, { 120, 240 } }
  local first = a:matrix(points)
  a:matrix(other)
  t.ok(math.abs(a:matrix(points)[3] - first[3]) > 1e-4, 'the frame before has its share')
  a:reset()
  t.near(cr.tensor(a:matrix(points)), cr.tensor(first), 0)
  local plain = align.new { smooth_bias = false }:matrix(points)
  t.near(plain[1], first[1], 0)
  t.ok(math.abs(plain[6] - first[6]) > 1e-3, 'without the bias')
  t.raises(function() a:matrix { { 1, 1 }, { 1, 1 }, { 1, 1 } } end, 'fall together')
  t.raises(function() a:matrix { { 1, 1 }, { 0 / 0, 1 }, { 2, 3 } } end, 'point 2 has no finite coordinates')
  t.raises(function() a:matrix { { 1, 1 }, { 2, 1 } } end, 'point 3')
end)

t.test('the transform is the best rotation for rotated and mirrored points', function()
  for turn = 0, 350, 35 do
    for _, mirror in ipairs { 1, -1 } do
      local c, s = math.cos(math.rad(turn)), math.sin(math.rad(turn))
      local points = {}
      for i, p in ipairs { { -50, -20 }, { 50, -24 }, { 6, 33 } } do
        local x, y = p[1] * mirror, p[2]
        points[i] = { 400 + c * x - s * y, 300 + s * x + c * y }
      end
      local m = align.new { smooth_bias = false }:matrix(points)
      t.near(m[1], m[5], 1e-6, 'a rotation')
      t.near(m[2], -m[4], 1e-6, 'a rotation')
      -- The angle is optimal: no other one brings the points closer to the template.
      local template = { { 47.6, 56 }, { 162.4, 56 }, { 105, 112 } }
      local function error_of(delta)
        local cd, sd, sum = math.cos(delta), math.sin(delta), 0
        local cx, cy = 105, (56 + 56 + 112) / 3
        for i, p in ipairs(points) do
          local px, py = math.floor(p[1] + 0.5), math.floor(p[2] + 0.5)
          local x, y = m[1] * px + m[2] * py + m[3] - cx, m[4] * px + m[5] * py + m[6] - cy
          x, y = cd * x - sd * y, sd * x + cd * y
          sum = sum + (x + cx - template[i][1]) ^ 2 + (y + cy - template[i][2]) ^ 2
        end
        return sum
      end
      local best = error_of(0)
      for step = 1, 35 do t.ok(error_of(step * math.pi / 18) >= best - 1e-6, turn .. ' degrees') end
    end
  end
end)

t.test('crop, face and pasted frame are the reference\'s', function()
  local file = references.open 'image'
  for _, clip in ipairs(golden) do
    cr.scope(function()
      local last = #clip.frames - 1
      local prefix = ('align.%s.%d.'):format(clip.clip, last)
      local a, m = align.new { size = clip.size }, nil
      for _, frame in ipairs(clip.frames) do m = a:matrix(frame.points) end
      local frame = smooth.image('frame' .. last, clip.height, clip.width)
      local before = frame:clone()
      local face, crop = align.warp(frame, m, clip.size)
      agrees(crop:slice(1, 1, crop:size(1), 3), file, prefix .. 'crop')
      agrees(face:slice(1, 1, face:size(1), 3), file, prefix .. 'face')
      local new = as_face(smooth.image('gen' .. last, clip.size, clip.size))
      local pasted = align.paste_reference(frame, new, m)
      agrees(pasted, file, prefix .. 'pasted')
      local width, height = align.crop_size(clip.size)
      local resized = cr.nn.resize(new, height, width, 'bicubic_aa')
      file:near(resized:slice(1, 1, height, 7):permute(3, 1, 2), prefix .. 'resized', 1e-6)
      local unequal = smooth.compare(frame, before)
      t.equal(unequal, 0, 'the frame itself is not written to')
    end)
  end
  file:close()
end)

t.test('the fixed mask is the reference\'s, also at other sizes', function()
  local file = references.open 'image'
  for _, size in ipairs { 64, 256, 512 } do
    local mask = align.mask(size)
    local every = math.max(1, size / 128)
    file:near(mask:squeeze(3):slice(1, 1, size, every), 'mask.r' .. size, 1e-6)
  end
  file:close()
end)

t.test('the mask for the UNet is every eighth pixel', function()
  local mask = align.mask(256)
  local small = align.mask_latent(mask)
  t.equal(table.concat(small.shape, ' '), '32 32 1')
  t.near(small, mask:slice(1, 1, 256, 8):slice(2, 1, 256, 8), 0)
  local p = mask:pointer()
  t.equal(p[0], 1, 'the corner is kept')
  t.equal(p[200 * 256 + 128], 0, 'the mouth is regenerated')
end)

t.test('a mask can come from an image', function()
  local ok, media = pcall(require, 'cr.media')
  if not ok then t.skip 'the media library is not built' end
  local path = os.tmpname()
  os.remove(path)
  path = path .. '.png'
  local white = cr.full({ 256, 256, 3 }, 255, { dtype = 'u8' })
  local ok_write, problem = pcall(function()
    media.write_picture(path, (white:to 'f32' * align.mask(256)):to 'u8')
  end)
  if not ok_write and tostring(problem):find 'crescent_media' then t.skip(tostring(problem)) end
  t.ok(ok_write, tostring(problem))
  t.near(align.mask(96, path), align.mask(96), 0)
  os.remove(path)
  t.raises(function() align.mask(96, path) end, path:gsub('%p', '%%%0'))
end)

t.test('pasting an unchanged face changes the frame little', function()
  local frame = smooth.image('frame0', 301, 255)
  local m = align.new():matrix { { 90, 120 }, { 160, 112 }, { 128, 165 } }
  local face, crop = align.warp(frame, m, 256)
  local back = as_face(face)
  local mask = align.mask(256)
  for _, pasted in ipairs { align.paste_reference(frame, back, m), align.paste_region(frame, back, m, mask) } do
    local sum, p, q = 0, pasted:pointer(), frame:pointer()
    for i = 0, frame:numel() - 1 do sum = sum + (p[i] - q[i]) ^ 2 end
    local rms = math.sqrt(sum / frame:numel())
    t.ok(rms > 0 and rms < 3, 'root mean square ' .. rms)
  end
  t.equal(table.concat(crop.shape, ' '), '280 210 3')
end)

local places = {
  { 'inside', { { 90, 120 }, { 160, 112 }, { 128, 165 } } },
  { 'small', { { 90, 120 }, { 102, 121 }, { 95, 128 } } },
  { 'tiny', { { 90, 120 }, { 93, 120 }, { 91, 122 } } },
  { 'large', { { 60, 40 }, { 200, 32 }, { 130, 120 } } },
  { 'turned', { { 150, 60 }, { 170, 130 }, { 100, 110 } } },
  { 'over the left border', { { -10, 120 }, { 60, 112 }, { 20, 165 } } },
  { 'over the bottom', { { 90, 230 }, { 160, 222 }, { 128, 275 } } },
  { 'over the right and top', { { 200, 5 }, { 270, -4 }, { 240, 45 } } },
  { 'outside', { { -900, 120 }, { -830, 112 }, { -860, 165 } } },
}

t.test('paste_region changes no pixel outside of the regenerated region', function()
  local frame = smooth.image('frame1', 301, 255)
  local mask = align.mask(256)
  for _, place in ipairs(places) do
    cr.scope(function()
      local m = align.new():matrix(place[2])
      local pasted = align.paste_region(frame, cr.full({ 256, 256, 3 }, 0 / 0), m, mask)
      -- A face of NaN shows which pixels it affects.
      local white = align.paste_region(frame, cr.ones(256, 256, 3), m, mask)
      local p, q, mp = white:pointer(), frame:pointer(), mask:pointer()
      local outside, changed, deep, deep_white = 0, 0, 0, 0
      for y = 0, 300 do
        for x = 0, 254 do
          -- The face pixel that maps to this frame pixel.
          local u = ((m[1] * x + m[2] * y + m[3]) + 0.5) * 256 / 210 - 0.5
          local v = ((m[4] * x + m[5] * y + m[6]) + 0.5) * 256 / 280 - 0.5
          local kept = true
          for dy = 0, 1 do
            for dx = 0, 1 do
              local i, j = math.floor(u) + dx, math.floor(v) + dy
              if i >= 0 and i < 256 and j >= 0 and j < 256 and mp[j * 256 + i] < 1 then kept = false end
            end
          end
          local at = (y * 255 + x) * 3
          local same = p[at] == q[at] and p[at + 1] == q[at + 1] and p[at + 2] == q[at + 2]
          if kept and not same then outside = outside + 1 end
          if not same then changed = changed + 1 end
          if math.abs(u - 128) < 20 and math.abs(v - 165) < 20 then
            deep = deep + 1
            if p[at] == 255 and p[at + 1] == 255 and p[at + 2] == 255 then deep_white = deep_white + 1 end
          end
        end
      end
      t.equal(outside, 0, place[1] .. ': pixels changed outside')
      t.ok(place[1] == 'outside' or changed > 0, place[1] .. ': nothing was pasted')
      t.equal(deep_white, deep, place[1] .. ': in the middle the face has all the weight')
      t.equal(table.concat(pasted.shape, ' '), '301 255 3')
    end)
  end
end)

t.test('the weight of paste_region decreases smoothly', function()
  local frame = cr.zeros(1080, 1920, 3, { dtype = 'u8' })
  local m = align.new():matrix { { 860, 420 }, { 1060, 415 }, { 965, 560 } }
  local weight, area = align.region_weight(frame, m, align.mask(256))
  local p, w, h = weight:pointer(), area.width, area.height
  local steepest, least, most = 0, 1, 0
  for y = 0, h - 2 do
    for x = 0, w - 2 do
      local v = p[y * w + x]
      least, most = math.min(least, v), math.max(most, v)
      steepest = math.max(steepest, math.abs(p[y * w + x + 1] - v), math.abs(p[(y + 1) * w + x] - v))
    end
  end
  t.equal(least, 0)
  t.near(most, 1, 1e-6)
  t.ok(steepest > 0 and steepest < 0.1, 'steepest step between neighbours: ' .. steepest)
  for x = 0, w - 1 do
    if p[x] ~= 0 or p[(h - 1) * w + x] ~= 0 then return t.ok(false, 'the rectangle cuts into the area') end
  end
end)

t.test('a pasted face is not shifted, whether it is scaled up or down', function()
  -- A bright spot in the face square must appear where the matrix maps it.
  for _, place in ipairs { places[1], places[4], places[5] } do
    cr.scope(function()
      local frame = cr.zeros(301, 255, 3, { dtype = 'u8' })
      local m = align.new():matrix(place[2])
      local face = cr.full({ 256, 256, 3 }, -1)
      local f = face:pointer()
      local cu, cv = 120, 170
      for v = cv - 20, cv + 20 do
        for u = cu - 20, cu + 20 do
          local bright = 2 * math.exp(-((u - cu) ^ 2 + (v - cv) ^ 2) / 72) - 1
          for c = 0, 2 do f[(v * 256 + u) * 3 + c] = bright end
        end
      end
      -- The face pixel's position in the crop, mapped back by the inverse.
      local x, y = (cu + 0.5) * 210 / 256 - 0.5 - m[3], (cv + 0.5) * 280 / 256 - 0.5 - m[6]
      local det = m[1] * m[5] - m[2] * m[4]
      local ex, ey = (m[5] * x - m[2] * y) / det, (m[1] * y - m[4] * x) / det
      for name, pasted in pairs {
        region = align.paste_region(frame, face, m, align.mask(256)), reference = align.paste_reference(frame, face, m),
      } do
        local p, sum, sx, sy = pasted:pointer(), 0, 0, 0
        for j = 0, 300 do
          for i = 0, 254 do
            -- The reference leaves a bright rim where the crop ends near the frame's border.
            local near = math.abs(i - ex) < 60 and math.abs(j - ey) < 60
            local v = near and p[(j * 255 + i) * 3] or 0
            sum, sx, sy = sum + v, sx + v * i, sy + v * j
          end
        end
        t.near(sx / sum, ex, 0.1, place[1] .. ', ' .. name .. ': x')
        t.near(sy / sum, ey, 0.1, place[1] .. ', ' .. name .. ': y')
      end
    end)
  end
end)

t.test('pasting survives any matrix and frame', function()
  local face, mask = cr.zeros(256, 256, 3), align.mask(256)
  for _, size in ipairs { { 1, 1 }, { 1, 300 }, { 200, 1 }, { 3, 5 } } do
    cr.scope(function()
      local frame = cr.zeros(size[1], size[2], 3, { dtype = 'u8' })
      for _, place in ipairs(places) do
        local m = align.new():matrix(place[2])
        t.equal(align.paste_reference(frame, face, m):numel(), frame:numel())
        t.equal(align.paste_region(frame, face, m, mask):numel(), frame:numel())
        t.equal(align.warp(frame, m, 64):numel(), 64 * 64 * 3)
      end
    end)
  end
  local frame = smooth.image('frame1', 40, 50)
  local m = align.new():matrix(places[1][2])
  local keep_all = align.paste_region(frame, face, m, cr.ones(256, 256, 1))
  t.equal((smooth.compare(keep_all, frame)), 0, 'a mask that keeps all')
  t.raises(function() align.paste_region(frame, face, m, cr.ones(512, 512, 1)) end, 'mask of shape %[256 256 1%]')
  t.raises(function() align.paste_region(frame, face, m, cr.ones(64, 32, 1)) end, 'mask of shape %[256 256 1%]')
  t.raises(function() align.paste_reference(frame, cr.zeros(8, 9, 3), m) end, 'a face of shape %[size size 3%]')
end)

t.test('points of a mesh are averages of brows and nose', function()
  local mesh = {}
  for k = 0, 467 do mesh[k + 1] = { k, 1000 - k, 7 } end
  local points = align.points_from_mesh(mesh)
  t.near(points[1][1], (70 + 63 + 105 + 66 + 107) / 5, 1e-9)
  t.near(points[2][1], (300 + 293 + 334 + 296 + 336) / 5, 1e-9)
  t.near(points[3][2], 1000 - (5 + 64 + 294 + 4) / 4, 1e-9)
end)

-- ---- smoothing -------------------------------------------------------------------------------

local function points_at(x) return { { x, 2 * x }, { x + 1, 0 }, { 5, -x } } end

--- Pushes x values (false: no face; 'cut' before a value begins a scene); returns the first coordinates of the
--- results.
local function smoothed(list)
  local smoother, out, cut = align.smoother(), {}, nil
  for _, x in ipairs(list) do
    if x == 'cut' then
      cut = true
    else
      local got = smoother:push(x and points_at(x), cut)
      cut = nil
      if got ~= nil then out[#out + 1] = got and got[1][1] end
    end
  end
  for _, got in ipairs(smoother:flush()) do out[#out + 1] = got and got[1][1] end
  return out
end

local function same_list(a, b, message)
  t.equal(#a, #b, message .. ': length')
  for i = 1, #b do
    if b[i] == false then t.equal(a[i], false, message .. ' ' .. i)
    else t.near(a[i] or 0 / 0, b[i], 1e-12, message .. ' ' .. i) end
  end
end

t.test('the smoother has the documented impulse response', function()
  same_list(smoothed { 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0 },
    { 0, 0, 0, 1, 6, 15, 20, 15, 6, 1, 0, 0, 0 }, 'impulse')
  same_list(smoothed { 16, 0, 0, 0, 0, 0, 0 }, { 16, 4, 1, 0.25, 0, 0, 0 }, 'at the start')
end)

t.test('a uniform movement passes the smoother unchanged, from the first frame to the last', function()
  local line = {}
  for i = 1, 12 do line[i] = 3 * i - 5 end
  same_list(smoothed(line), line, 'line')
  same_list(smoothed { 1, 2 }, { 1, 2 }, 'two frames')
  same_list(smoothed { 7 }, { 7 }, 'one frame')
  same_list(smoothed {}, {}, 'none')
end)

t.test('smoothing never crosses a scene cut or a missing face', function()
  same_list(smoothed { 1, 1, 1, 1, 'cut', 90, 90, 90, 90 }, { 1, 1, 1, 1, 90, 90, 90, 90 }, 'cut')
  same_list(smoothed { 1, 1, 1, 'cut', 50, 'cut', 90, 90 }, { 1, 1, 1, 50, 90, 90 }, 'two cuts')
  same_list(smoothed { 4, 4, 4, 4, false, 70, 70, 70 }, { 4, 4, 4, 4, false, 70, 70, 70 }, 'gap')
  same_list(smoothed { false, false, 3, false, false }, { false, false, 3, false, false }, 'alone')
end)

t.test('the smoother keeps few frames, has a delay of three, and can be reset', function()
  local smoother = align.smoother()
  for i = 1, 500 do
    local got = smoother:push(points_at(i), i % 50 == 0)
    t.equal(got == nil, i <= 3)
    if got then t.near(got[1][1], i - 3, 1e-9) end
  end
  local kept = 0
  for _ in pairs(smoother.frames) do kept = kept + 1 end
  t.ok(kept <= 7, kept .. ' frames are kept')
  t.equal(#smoother:flush(), 3)
  t.equal(smoother:push(points_at(1)), nil)
  t.near(smoother:flush()[1][1][1], 1, 0)
end)

t.test('pasting into planes with more than 8 bits agrees with pasting into bytes', function()
  local deep = require 'cr.media.deep'
  cr.scope(function()
    local frame = smooth.image('deep', 120, 140)
    local face = require 'cr.nn'.resize(as_face(smooth.image('deep.face', 5, 5)), 64, 64, 'bilinear')
    local scale = align.side_in_frame({ 1, 0, 0, 0, 1, 0 }, 64) / 100
    local m = { scale, 0, 0, 0, scale, 0 }
    local format = require 'ffi'.new('cr_yuv', { 140, 120, 0, 0, 0, { 110013, 140363, 12277, 42626 }, 12 })
    for name, last in pairs { paste_region = align.mask(64), paste_reference = 64 } do
      local planes = deep.planes(frame:to 'f32' / 255, format)
      local got, want = deep.eight_bits(align[name](planes, face, m, last)), align[name](frame, face, m, last)
      t.ok(smooth.compare(want, frame, 3) > 0.05, 'something is pasted')
      local share, most = smooth.compare(got, want, 1)
      t.ok(share == 0, ('%s: %g, by up to %d'):format(name, share, most))
    end
  end)
end)

t.done()
