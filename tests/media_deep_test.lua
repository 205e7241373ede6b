--- More than 8 bits per sample: planes that pass unchanged, conversion to RGB and back, blending into them, and
--- images of every kind.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local deep = require 'cr.media.deep'
local inputs = require 'tests.support.media_inputs'
local media = require 'cr.media'

local path = inputs.path
local H, W = 46, 62

-- A picture f32 [h w 3] in [0, 1]: smooth, or of independent values.
local function picture(seed, h, w, noise)
  return cr.scope(function()
    local generator = cr.generator(seed, 'torch-cpu')
    if noise then return cr.rand(h, w, 3, { generator = generator }) end
    return cr.nn.resize(cr.rand(3, 3, 3, { generator = generator }), h, w, 'bicubic_aa'):clamp(0, 1)
  end)
end

-- A video of three frames in FFV1, which is lossless.
local function write(name, pix_fmt, h, w, noise)
  local writer = media.writer(path(name), { deep = true, codec = 'ffv1', pix_fmt = pix_fmt })
  cr.scope(function()
    for i = 1, 3 do writer:write(picture(i, h or H, w or W, noise)) end
  end)
  writer:close()
  return path(name)
end

local function frames_of(name, options)
  local reader = media.reader(path(name), options)
  local frames = reader:read(10)
  reader:close()
  return frames, reader.bits
end

local function free_all(frames)
  for _, frame in ipairs(frames) do frame:free() end
end

local function worst(a, b)
  return cr.scope(function() return (a:to 'f32' - b:to 'f32'):abs():max():item() end)
end

local FORMATS = { -- {pixel format, bits, tolerance for smooth images in levels}
  { 'yuv420p10le', 10, 12 }, { 'yuv422p10le', 10, 12 }, { 'yuv444p10le', 10, 1.62 }, { 'yuv444p12le', 12, 1.62 },
  { 'yuv420p12le', 12, 48 }, { 'yuv444p16le', 16, 1.62 }, { 'gbrp10le', 10, 0.51 }, { 'gbrp16le', 16, 0.51 },
}

for _, case in ipairs(FORMATS) do
  local pix_fmt, bits, off = case[1], case[2], case[3]
  t.test(pix_fmt .. ': RGB to planes and back, and planes from file to file to the last bit', function()
    write('rgb.mkv', pix_fmt)
    write('noise.mkv', pix_fmt, H, W, true)
    t.equal(media.probe(path 'rgb.mkv').pix_fmt, pix_fmt)
    local rgb, own = frames_of('rgb.mkv', { deep = true })
    t.equal(own, bits)
    t.equal(#rgb, 3)
    for i, frame in ipairs(rgb) do
      t.equal(frame.dtype, 'f32')
      local x = picture(i, H, W)
      local d = worst(frame, x) * (2 ^ bits - 1)
      t.ok(d <= off, ('frame %d is off by %g levels'):format(i, d))
      x:free()
    end
    free_all(rgb)
    local frames = frames_of('noise.mkv', { deep = true, wait = true })
    local writer = media.writer(path 'again.mkv', { like = path 'noise.mkv', deep = true, lossless = true })
    cr.scope(function()
      for _, frame in ipairs(frames) do writer:write { frame:whole() } end
    end)
    writer:close()
    t.equal(media.probe(path 'again.mkv').pix_fmt, pix_fmt, 'lossless keeps the pixels as they are')
    local again = frames_of('again.mkv', { deep = true, wait = true })
    t.equal(#again, 3)
    cr.scope(function()
      for i, frame in ipairs(frames) do
        local a, b = frame:whole(), again[i]:whole()
        t.equal(worst(a.values, b.values), 0, 'frame ' .. i)
        t.equal(frame.bytes, 2 * a.values:numel())
        t.equal(frame:rgb().dtype, 'u8')
        t.equal(worst(frame:rgb(), deep.eight_bits(a)), 0)
      end
    end)
    free_all(frames)
    free_all(again)
  end)
end

t.test('sizes that are not divisible by the chroma subsampling', function()
  write('odd.mkv', 'yuv420p10le', 31, 45)
  local info = media.probe(path 'odd.mkv')
  t.equal(info.width .. 'x' .. info.height, '46x32', 'a column and a row are repeated')
  local frames = frames_of('odd.mkv', { deep = true })
  cr.scope(function()
    for i, frame in ipairs(frames) do
      local d = worst(frame:narrow(1, 1, 31):narrow(2, 1, 45), picture(i, 31, 45)) * 1023
      t.ok(d <= 16, ('off by %g'):format(d))
      d = worst(frame:narrow(2, 46, 1), frame:narrow(2, 45, 1)) * 1023
      t.ok(d <= 16, ('the last column by %g'):format(d))
    end
  end)
  free_all(frames)
end)

t.test('levels are those of ITU-R BT.2100, exactly', function()
  cr.scope(function()
    local format = require 'ffi'.new('cr_yuv', { 2, 1, 0, 0, 0, { 110013, 140363, 12277, 42626 }, 10 }) -- BT.2020, limited
    local rgb = cr.tensor { { { 1, 1, 1 }, { 1, 0, 0 } } }
    local planes = deep.planes(rgb, format)
    local kr, kb = 0.2627, 0.0593
    local want = { 940, 64 + 876 * kr, 512, 512 - 896 * kr / (2 * (1 - kb)), 512, 960 }
    for i, value in ipairs(want) do
      local got = planes.values:narrow(1, i, 1):item()
      t.ok(math.abs(got - value) <= 0.51, ('value %d: %g for %g'):format(i, got, value))
    end
    t.ok(worst(planes:rgb(), rgb) < 1.5e-3)
  end)
end)

t.test('blending into an area: unchanged where the weight is 0, replaced where it is 1', function()
  for _, pix_fmt in ipairs { 'yuv420p10le', 'yuv444p12le', 'gbrp16le' } do
    write('mix.mkv', pix_fmt, H, W, true)
    local frames = frames_of('mix.mkv', { deep = true, wait = true })
    cr.scope(function()
      local before = frames[1]:whole()
      local after = before:clone()
      local area = { left = 11, top = 9, width = 30, height = 25 }
      local weight = cr.zeros(25, 30, 1)
      weight:narrow(1, 7, 11):narrow(2, 7, 16):fill_(1)
      after:mix(cr.zeros(25, 30, 3) + 0.25, cr.zeros(25, 30, 1), area)
      t.equal(worst(after.values, before.values), 0, pix_fmt .. ': a weight of 0')
      after:mix(cr.zeros(25, 30, 3) + 0.25, weight, area)
      -- As far as chroma's filter reaches: 4 pixels.
      local outside = cr.ones(H, W, 1)
      outside:narrow(1, 9 + 7 - 4, 11 + 8):narrow(2, 11 + 7 - 4, 16 + 8):fill_(0)
      local a, b = before:rgb(), after:rgb()
      local reach = cr.ones(H, W, 1)
      reach:narrow(1, 9 + 7 - 8, 11 + 16):narrow(2, 11 + 7 - 8, 16 + 16):fill_(0)
      t.equal(worst(a * reach, b * reach), 0, pix_fmt .. ': around the area')
      local luma = H * W
      local y0, y1 = before.values:narrow(1, 1, luma):view(H, W, 1), after.values:narrow(1, 1, luma):view(H, W, 1)
      t.equal(worst(y0:to 'f32' * outside, y1:to 'f32' * outside), 0)
      local inside = b:narrow(1, 9 + 7 + 4, 3):narrow(2, 11 + 7 + 4, 8)
      t.ok(worst(inside, cr.zeros(3, 8, 3) + 0.25) < 2e-3, pix_fmt .. ': inside of it')
    end)
    free_all(frames)
  end
end)

t.test('8 bits stay unchanged', function()
  local x = cr.scope(function() return (picture(1, H, W) * 255):round():to 'u8' end)
  local writer = media.writer(path 'eight.mkv', { lossless = true })
  writer:write(x)
  t.raises(function() writer:write(picture(1, H, W)) end, 'need the option deep')
  writer:abort()
  writer = media.writer(path 'eight.mkv', { lossless = true })
  writer:write(x)
  writer:close()
  local plain = frames_of 'eight.mkv'
  local asked, bits = frames_of('eight.mkv', { deep = true })
  t.equal(bits, 8)
  t.equal(asked[1].dtype, 'u8')
  t.ok(inputs.bytes(asked[1]) == inputs.bytes(plain[1]))
  free_all { x, plain[1], asked[1] }
end)

t.test('what an encoder cannot keep is reported in one line', function()
  write('ten.mkv', 'yuv422p10le')
  write('twelve.mkv', 'yuv444p12le')
  local code = [[
    local media = require 'cr.media'
    local writer = media.writer('%s', { like = '%s', deep = true%s })
    for frame in media.frames('%s', { deep = true }) do writer:write(frame) end
    writer:close()
  ]]
  local function run(out, input, options)
    local result = require 'tests.support.child'.run({ '-e', code:format(out, input, options, input) }, { cwd = inputs.folder })
    t.equal(result.code, 0, result.err)
    return result.err, media.probe(path(out)).pix_fmt
  end
  local said, pixels = run('x.mp4', 'ten.mkv', '')
  t.equal(said, '')
  t.equal(pixels, 'yuv422p10le')
  said, pixels = run('x.mp4', 'twelve.mkv', '')
  t.equal(said, 'crescent: x.mp4: the video has 12 bits per sample, but the file has 10 (yuv420p10le)\n')
  t.equal(pixels, 'yuv420p10le')
  said, pixels = run('x.mkv', 'ten.mkv', ", codec = 'mpeg4'")
  t.equal(said, 'crescent: x.mkv: the video has 10 bits per sample; they pass through 8 bits, and the file has 8 (yuv420p)\n')
  t.equal(pixels, 'yuv420p')
  said, pixels = run('x.mp4', 'ten.mkv', ", pix_fmt = 'yuv420p10le'")
  t.equal(said, '')
  t.equal(pixels, 'yuv420p10le')
end)

t.test('as FFmpeg reads it: rotated, packed, with alpha', function()
  if not inputs.has_ffmpeg then t.skip 'the ffmpeg program is not installed' end
  local source = '-f lavfi -i testsrc2=size=64x48:rate=25:duration=0.12 '
  for _, case in ipairs {
    { 'v210.mov', '-c:v v210', 'yuv422p10le' }, { 'alpha.mov', '-c:v prores_ks -pix_fmt yuva444p10le', 'yuv444p12le' },
    { 'grey.mkv', '-c:v ffv1 -pix_fmt gray10le', 'gbrp10le' },
    { 'full.mkv', '-c:v ffv1 -pix_fmt yuv444p10le -color_range pc', 'yuv444p10le' },
  } do
    if inputs.ffmpeg(source .. case[2] .. ' ' .. case[1]) then
      assert(inputs.ffmpeg(('-i %s -frames:v 1 -pix_fmt %s -f rawvideo ref.raw'):format(case[1], case[3])))
      local frames = frames_of(case[1], { deep = true, wait = true })
      cr.scope(function()
        local values = frames[1]:whole().values
        local bytes = require 'ffi'.string(values:contiguous():pointer(), 2 * values:numel())
        t.ok(bytes == inputs.read_file 'ref.raw', case[1])
      end)
      free_all(frames)
    end
  end
  if media.probe(path 'alpha.mov').alpha then
    local result = child.run({ '-e', "require 'cr.media'.writer('x.mp4', { like = 'alpha.mov', deep = true }):abort()" },
      { cwd = inputs.folder })
    t.equal(result.err, 'crescent: x.mp4: the video has 12 bits per sample, but the file has 10 (yuv420p10le)\n' ..
      'crescent: x.mp4: the transparency of the video (yuva444p12le) is lost\n')
  end
  assert(inputs.ffmpeg(source .. '-c:v libx264 -pix_fmt yuv420p10le up.mp4'))
  assert(inputs.ffmpeg '-i up.mp4 -c copy -metadata:s:v:0 rotate=90 turned.mp4')
  assert(inputs.ffmpeg '-i turned.mp4 -frames:v 1 -f rawvideo ref.raw')
  local frames = frames_of('turned.mp4', { deep = true, wait = true })
  cr.scope(function()
    local values = frames[1]:whole().values
    t.equal(frames[1].width .. 'x' .. frames[1].height, '48x64')
    t.ok(require 'ffi'.string(values:contiguous():pointer(), 2 * values:numel()) == inputs.read_file 'ref.raw')
  end)
  free_all(frames)
end)

-- ---- pictures --------------------------------------------------------------------------------

t.test('images with any channels, with 8 and 16 bits', function()
  for channels = 1, 4 do
    cr.scope(function()
      local name = path 'any.png'
      local x = cr.rand(13, 17, channels, { generator = cr.generator(channels, 'torch-cpu') })
      local bytes = (x * 255):round():to 'u8'
      media.write_picture(name, bytes)
      local y = media.read_picture(name, { whole = true })
      t.equal(y.dtype, 'u8')
      t.equal(table.concat(y.shape, ' '), '13 17 ' .. channels)
      t.equal(worst(y, bytes), 0)
      media.write_picture(name, x)
      t.equal(media.probe(name).bits, 16)
      y = media.read_picture(name, { whole = true })
      t.equal(y.dtype, 'f32')
      t.ok(worst(y, x) <= 0.51 / 65535, channels .. ' channels of 16 bits')
      media.write_picture(name, y)
      t.equal(worst(media.read_picture(name, { whole = true }), y), 0, 'the same numbers again')
      local rgb = media.read_picture(name)
      t.equal(rgb.dtype .. ' ' .. table.concat(rgb.shape, ' '), 'u8 13 17 3', 'as it always was')
    end)
  end
  t.raises(function() media.write_picture(path 'x.png', cr.zeros(2, 2, 3) + 2) end, 'f32 in %[0, 1%], is needed, not f32 from 2 to 2')
  t.raises(function() media.write_picture(path 'x.png', cr.zeros(2, 2, 3) / 0) end, 'is needed, not f32 from')
  t.raises(function() media.write_picture(path 'x.png', cr.zeros({ 2, 2, 5 }, { dtype = 'u8' })) end, 'with 1 to 4 channels')
  t.raises(function() media.check_picture('x.png', 20000, 20000) end, 'x%.png: FFmpeg encodes at most 268 million pixels, but 20000 x')
  media.check_picture('x.png', 16000, 16000)
  collectgarbage()
end)

t.test('palettes: alpha only if a colour is transparent; JPEG', function()
  if not inputs.has_ffmpeg then t.skip 'the ffmpeg program is not installed' end
  local source = '-f lavfi -i testsrc2=size=32x24:rate=1:duration=1 '
  assert(inputs.ffmpeg(source .. '-pix_fmt pal8 opaque.png'))
  assert(inputs.ffmpeg(source .. '-vf "format=rgba,colorchannelmixer=aa=0.5,split[a][b];[a]palettegen=reserve_transparent=1[p];' ..
    '[b][p]paletteuse" holes.gif'))
  assert(inputs.ffmpeg(source .. 'x.jpg'))
  cr.scope(function()
    t.equal(media.read_picture(path 'opaque.png', { whole = true }):size(3), 3)
    t.equal(media.read_picture(path 'x.jpg', { whole = true }):size(3), 3)
    t.equal(media.read_picture(path 'holes.gif', { whole = true }):size(3), 4)
  end)
end)

t.test('a size that an encoder refuses: the message contains the limit', function()
  local function refused(options, sentence)
    t.raises(function() media.writer(path('big.' .. (options.ending or 'mkv')), options.o) end, sentence)
  end
  refused({ ending = 'mp4', o = { width = 17000, height = 64 } },
    'libx264 takes at most 16384 pixels a side, but frames of 17000x64 are larger')
  refused({ o = { width = 64, height = 9000, codec = 'mpeg4' } }, 'mpeg4 takes at most 8190 pixels a side, but frames of 64x9000')
  refused({ o = { width = 20000, height = 20000, codec = 'ffv1' } }, 'at most 268 million pixels, but 20000 x 20000 are more')
  t.equal(inputs.leftovers(), '')
end)

inputs.remove()
t.done()
