--- `crescent upscale` and its parts: tiles, scales, half precision, videos, and refusals.

local cr = require 'cr'
local deep = require 'cr.media.deep'
local child = require 'tests.support.child'
local enlargers = require 'models.upscale.enlarger'
local formula = require 'tests.support.formula'
local golden = require 'tests.support.golden'
local inputs = require 'tests.support.media_inputs'
local media = require 'cr.media'
local picture = require 'tests.support.formula_image'
local rrdbnet = require 'models.networks.rrdbnet'
local scratch = require 'tests.support.scratch'
local srvgg = require 'models.networks.srvgg'
local t = require 'tests.support.tap'
local upscaler = require 'models.networks.upscaler'

-- A small network with weights by formula, its last convolution scaled by `factor`.
local function network_file(name, expected, last, factor)
  local path = scratch.path(name .. '.safetensors')
  cr.scope(function()
    local all = formula.weights(expected)
    all[last .. '.weight'] = all[last .. '.weight'] * (factor or 0.1)
    cr.save(path, all)
  end)
  return path
end

local SMALL = srvgg.expected { layers = 1, features = 8, scale = 2 }
local small = network_file('small', SMALL, 'body.4')
local folded = network_file('folded', rrdbnet.expected { features = 8, growth = 4, blocks = 1, doublings = 2, unshuffle = 2,
  output = 3 }, 'conv_last')

local function enlarged(path, input, options)
  local enlarger = enlargers.new(upscaler.load(path, options), options)
  local out = cr.scope(function() return enlarger:frame(input) end)
  enlarger:free()
  return out
end

t.test('tiling an SRVGGNetCompact changes nothing; the largest tiles that fit are used', function()
  cr.scope(function()
    local input = picture.image('upscale.tiles', 41, 53)
    local whole = enlarged(small, input)
    for _, tile in ipairs { 16, 20, 41 } do
      local share = picture.compare(enlarged(small, input, { tile = tile }), whole, 0)
      t.ok(share < 1e-3, ('tile %d: %g'):format(tile, share))
    end
  end)
  local enlarger = enlargers.new(upscaler.load(small))
  local pixel = 4 * enlarger.net.pixel_values
  t.equal(enlarger:tile_of(100, 100, 2 * 100 * 100 * pixel), nil, 'all of it fits')
  t.equal(enlarger:tile_of(100, 100, 2 * 80 * 80 * pixel), 80 - 2 * 3, 'with the surroundings')
  enlarger:free()
end)

-- A part of a photograph, whole and in tiles: the share of values that differ by more than one level, and the maximum
-- difference.
local function in_tiles(name, height, width, tile)
  local net = upscaler.load(t.fetched('upscale/' .. name .. '.safetensors'))
  local one, two = enlargers.new(net), enlargers.new(net, { tile = tile })
  local share, most = cr.scope(function()
    local photo = media.read_picture(t.fetched 'demo/astronaut.png')
    local part = photo:narrow(1, 41, height):narrow(2, 151, width):contiguous()
    return picture.compare(one:frame(part), two:frame(part), 1)
  end)
  net.free()
  return share, most
end

t.test('tiling the trained networks shows no seams', function()
  local _, most = in_tiles('animevideov3', 160, 192, 64)
  t.ok(most <= 1, ('animevideov3: %d'):format(most))
  local share
  share, most = in_tiles('x4plus-anime', 64, 192, 64)
  t.ok(share <= 1e-3 and most <= 4, ('x4plus-anime: %g, by up to %d'):format(share, most))
end)

t.test('a network with pixel unshuffle accepts any size, whole and in tiles', function()
  cr.scope(function()
    local input = picture.image('upscale.folded', 37, 45)
    local out = enlarged(folded, input)
    t.equal(table.concat(out.shape, ' '), '74 90 3')
    -- The added row mirrors the last but one, so an image that contains it gives the same result.
    local more = cr.cat({ input, input:narrow(1, 36, 1) }, 1)
    local same = enlarged(folded, more):narrow(1, 1, 74)
    t.ok(picture.compare(out, same:contiguous()) < 1e-3)
    local share = picture.compare(enlarged(folded, input, { tile = 17 }), out, 1)
    t.ok(share < 1e-3, ('in tiles: %g'):format(share))
  end)
end)

t.test('tiles equal those of the authors\' program', function()
  local net = upscaler.load(t.fetched 'upscale/animevideov3.safetensors')
  net.margin = 4
  local gold = golden.open 'upscale'
  local enlarger = enlargers.new(net, { tile = 20 })
  cr.scope(function()
    local got, key = enlarger:frame(gold:get 'odd.input'), 'tiles.python.t20p4'
    local share, most = picture.compare(gold:cut(got, key), gold:get(key))
    t.ok(share <= 2e-4 and most <= 1, ('%g, by up to %d'):format(share, most))
  end)
  enlarger:free()
  gold:close()
end)

t.test('another scale is the clamped result, resized by Lanczos4: within one level of the rounded one', function()
  local gold = golden.open 'upscale'
  local path = t.fetched 'upscale/animevideov3.safetensors'
  cr.scope(function()
    for _, scale in ipairs { 1.5, 2, 3 } do
      local key = 'outscale.' .. scale
      local got = enlarged(path, gold:get 'odd.input', { scale = scale })
      local share, most = picture.compare(gold:cut(got, key), gold:get(key), 1)
      t.ok(share <= 1e-3, ('%s: %g, by up to %d'):format(key, share, most))
    end
  end)
  gold:close()
end)

t.test('grey, alpha and 16 bits follow the authors\' program', function()
  local gold = golden.open 'upscale'
  local enlarger = enlargers.new(upscaler.load(t.fetched 'upscale/animevideov3.safetensors'))
  cr.scope(function()
    local function check(key, got, share, most)
      local d = (gold:cut(got, key):to 'f32' - gold:get(key):to 'f32'):abs()
      local unequal = d:gt(0):to 'f32':mean():item()
      t.ok(unequal <= share and d:max():item() <= most, ('%s: %g differ, by up to %g'):format(key, unequal, d:max():item()))
    end
    local rgba = gold:get 'rgba.input'
    check('rgba.python', enlarger:picture(rgba), 2e-4, 1)
    local alpha = rgba:narrow(3, 4, 1):contiguous()
    check('gray.python', enlarger:picture(alpha):squeeze(3), 2e-4, 1)
    local both = enlarger:picture(cr.cat({ alpha, alpha }, 3)) -- grey with alpha: each as the other
    check('gray.python', both:select(3, 1), 2e-4, 1)
    check('gray.python', both:select(3, 2), 2e-4, 1)
    -- 5e-5 of 1 is the tolerance of float32.
    check('u16.python', deep.float(enlarger:picture(gold:get 'u16.input':to 'f32' / 65535)):to 'i32', 0.01, 3)
  end)
  enlarger:free()
  gold:close()
end)

t.test('results that overflow in float16 are computed again in float32, with a message', function()
  local huge = network_file('huge', SMALL, 'body.4', 1e5)
  local told = {}
  cr.scope(function()
    local input = picture.image('upscale.huge', 8, 8)
    local enlarger = enlargers.new(upscaler.load(huge, { dtype = 'f16' }), { note = function(text) told[#told + 1] = text end })
    local got = enlarger:frame(input)
    enlarger:frame(input)
    enlarger:free()
    t.equal(picture.compare(got, enlarged(huge, input)), 0)
  end)
  t.equal(#told, 1)
  t.ok(told[1]:find 'overflows in f16', told[1])
end)

-- ---- the command ---------------------------------------------------------------------------------

local function command(...) return child.run { 'upscale', '--quiet', '--device', 'cpu', ... } end

local function refused(pattern, ...)
  local result = command(...)
  t.ok(result.code ~= 0, 'it fails')
  t.ok(result.err:find(pattern), result.err)
  t.equal(select(2, result.err:gsub('\n', '')), 1, 'one sentence')
end

local png = scratch.path 'in.png'
media.write_picture(png, picture.image('upscale.in', 20, 30))

t.test('a picture', function()
  local out = scratch.path 'out.png'
  local result = command(png, out, '--model', small, '--scale', '3')
  t.equal(result.code, 0, result.err)
  cr.scope(function()
    local got = media.read_picture(out)
    t.equal(table.concat(got.shape, ' '), '60 90 3')
    t.equal(picture.compare(got, enlarged(small, picture.image('upscale.in', 20, 30), { scale = 3 })), 0)
  end)
end)

t.test('an image keeps its channels and its 16 bits', function()
  local enlarger = enlargers.new(upscaler.load(small))
  for channels = 1, 4 do
    cr.scope(function()
      local input, out = scratch.path 'kind.png', scratch.path 'kind_out.png'
      local x = cr.rand(9, 11, channels, { generator = cr.generator(channels, 'torch-cpu') })
      for _, many in ipairs { true, false } do
        media.write_picture(input, many and x or (x * 255):round():to 'u8')
        local result = command(input, out, '--model', small)
        t.equal(result.code, 0, result.err)
        local got = media.read_picture(out, { whole = true })
        t.equal(table.concat(got.shape, ' '), '18 22 ' .. channels)
        t.equal(got.dtype, many and 'f32' or 'u8')
        local want = enlarger:picture(media.read_picture(input, { whole = true }))
        t.equal(want.dtype, many and 'i16' or 'u8', 'as it leaves the card')
        local d = (got:to 'f32' - (many and deep.float(want) / 65535 or want:to 'f32')):abs():max():item()
        t.equal(d, 0, channels .. ' channels')
      end
    end)
  end
  enlarger:free()
end)

t.test('a video with 10 bits keeps them, also in the network', function()
  local input, out = scratch.path 'deep.mkv', scratch.path 'deep_out.mkv'
  local writer = media.writer(input, { fps = 25, deep = true, pix_fmt = 'yuv444p10le', codec = 'ffv1' })
  cr.scope(function()
    for i = 1, 3 do writer:write(cr.rand(24, 32, 3, { generator = cr.generator(i, 'torch-cpu') })) end
  end)
  writer:close()
  local result = command(input, out, '--model', small, '--lossless')
  t.equal(result.code .. result.err, '0')
  t.equal(media.probe(out).pix_fmt, 'yuv444p10le')
  local enlarger = enlargers.new(upscaler.load(small))
  cr.scope(function()
    local before, after = media.reader(input, { deep = true }), media.reader(out, { deep = true })
    for i = 1, 3 do
      local want, got = enlarger:enlarge(before:read(1)[1]), after:read(1)[1]
      local d = (want - got):abs():max():item() * 1023
      t.ok(d <= 1.62, ('frame %d is off by %g levels'):format(i, d)) -- rounding of luma and chroma
    end
    before:close()
    after:close()
  end)
  enlarger:free()
  result = command(input, scratch.path 'film.mp4', '--model', small)
  t.equal(result.code .. result.err, '0')
  t.equal(media.probe(scratch.path 'film.mp4').pix_fmt, 'yuv444p10le')
  result = command(input, scratch.path 'film.mp4', '--model', small, '--pix-fmt', 'yuv420p')
  t.ok(result.err:find('film.mp4: the video has 10 bits per sample; they pass through 8 bits, and the file has 8 (yuv420p)\n',
    1, true), result.err)
end)

t.test('a video: all frames, frame rate, report', function()
  local input, out, report = scratch.path 'in.mkv', scratch.path 'out.mkv', scratch.path 'report.json'
  local writer = media.writer(input, { fps = 12, lossless = true })
  cr.scope(function()
    for i = 1, 7 do writer:write { picture.image('upscale.frame' .. i, 32, 48) } end
  end)
  writer:close()
  local result = command(input, out, '--model', small, '--report', report, '--lossless')
  t.equal(result.code, 0, result.err)
  local info = media.probe(out)
  t.equal(info.width, 96)
  t.equal(info.height, 64)
  t.near(info.fps, 12, 1e-3)
  cr.scope(function()
    local reader = media.reader(out, { fps = 0 })
    local frames = reader:read(20)
    reader:close()
    t.equal(#frames, 7)
    for i = 1, 7 do
      local want = enlarged(small, picture.image('upscale.frame' .. i, 32, 48))
      t.equal(picture.compare(frames[i], want), 0, 'frame ' .. i)
    end
  end)
  local told = require 'cjson'.decode(scratch.read(report))
  t.equal(told.frames, 7)
  t.equal(told.network, 'SRVGGNetCompact')
end)

t.test('a rotated video: upright, with its sound and frame rate', function()
  if not inputs.has_ffmpeg then t.skip 'the ffmpeg program is not installed' end
  local made = inputs.ffmpeg('-f lavfi -i "testsrc2=size=48x32:rate=30000/1001:duration=0.5" ' ..
    '-f lavfi -i "sine=frequency=330:sample_rate=44100:duration=0.5" -pix_fmt yuv420p -c:v libx264 -c:a aac flat.mp4') and
    inputs.ffmpeg '-i flat.mp4 -c copy -metadata:s:v:0 rotate=90 turned.mp4'
  if not made then t.skip 'this ffmpeg has no libx264' end
  local input, out = inputs.path 'turned.mp4', scratch.path 'upright.mkv'
  local result = command(input, out, '--model', small, '--lossless')
  t.equal(result.code, 0, result.err)
  local before, after = media.probe(input), media.probe(out)
  t.equal(('%d x %d, turned by %d'):format(before.width, before.height, before.rotation % 180), '32 x 48, turned by 90')
  t.equal(('%d x %d, turned by %d'):format(after.width, after.height, after.rotation), '64 x 96, turned by 0')
  t.near(after.fps, 30000 / 1001, 1e-3)
  cr.scope(function()
    local function frames_of(path)
      local reader = media.reader(path, { fps = before.fps })
      local frames = reader:read(100)
      reader:close()
      return frames
    end
    local small_frames, large_frames = frames_of(input), frames_of(out)
    t.equal(#small_frames, 15)
    t.equal(#large_frames, 15)
    for i, frame in ipairs(large_frames) do t.equal(picture.compare(frame, enlarged(small, small_frames[i])), 0, 'frame ' .. i) end
    local function sound_of(path) return media.load_audio(path, { rate = 44100, channels = 1 }) end
    local own, kept = sound_of(input), sound_of(out)
    local n = math.min(own:size(1), kept:size(1))
    t.ok(n >= 0.48 * 44100 and math.abs(own:size(1) - kept:size(1)) <= 2048, ('%d and %d samples'):format(own:size(1), kept:size(1)))
    t.ok(t.relative_error(kept:narrow(1, 1, n), own:narrow(1, 1, n)) < 0.05, 'the sound is the same')
  end)
end)

t.test('refusals are one sentence', function()
  local out = scratch.path 'none.png'
  refused("there is no network 'x4plos': did you mean 'x4plus'", png, out, '--model', 'x4plos')
  refused("unknown option '%-%-modell': did you mean '%-%-model'", png, out, '--modell', 'x4plus')
  refused('would overwrite it', png, png, '--model', small)
  refused('an image is written as PNG', png, scratch.path 'out.mp4', '--model', small)
  refused('has no second network', png, out, '--model', small, '--denoise', '0.5')
  refused("'8' is not auto or a side", png, out, '--model', small, '--tile', '8')
  local dot = scratch.path 'dot.png'
  cr.scope(function() media.write_picture(dot, cr.zeros({ 1, 1, 3 }, { dtype = 'u8' })) end)
  refused('1 x 1 pixels is too small', dot, out, '--model', small)
  refused('%-%-lossless writes Matroska', scratch.path 'in.mkv', scratch.path 'out.mp4', '--model', small, '--lossless')
  local line = scratch.path 'line.png'
  cr.scope(function() media.write_picture(line, cr.zeros({ 40, 1, 3 }, { dtype = 'u8' })) end)
  refused('1 x 40 pixels is too small', line, out, '--model', small)
  local text = scratch.write('text.png', 'no picture')
  refused('text%.png', text, out, '--model', small)
  t.ok(not child.exists(out), 'nothing is written')
end)

-- The files in the folder.
local function names()
  local list = {}
  for name in require 'lfs'.dir(scratch.folder) do list[#list + 1] = name end
  table.sort(list)
  return table.concat(list, '\n')
end

t.test('a result that is too large for the encoder is refused before the work, with the limit', function()
  local wide, film = scratch.path 'wide.png', scratch.path 'wide.mkv'
  cr.scope(function() media.write_picture(wide, cr.zeros({ 600, 2000, 1 }, { dtype = 'u8' })) end)
  local writer = media.writer(film, { codec = 'ffv1', width = 1200, height = 16 })
  cr.scope(function() writer:write(cr.zeros({ 16, 1200, 3 }, { dtype = 'u8' })) end)
  writer:close()
  local before = names()
  refused('out%.png: FFmpeg encodes at most 268 million pixels, but 32000 x 9600 are more', wide, scratch.path 'out.png', '--model', small,
    '--scale', '16')
  refused('out%.mp4: the encoder libx264 takes at most 16384 pixels a side, but frames of 19200x256 are larger', film,
    scratch.path 'out.mp4', '--model', small, '--scale', '16')
  refused('takes at most 8190 pixels a side', film, scratch.path 'out.mkv', '--model', small, '--scale', '8', '--codec', 'mpeg4')
  t.equal(names(), before, 'nothing is left')
end)

t.test('a full disk: one sentence, and nothing is left', function()
  local full = { scratch.path 'full.png', scratch.path 'full.mkv' }
  for _, path in ipairs(full) do t.equal(os.execute(("ln -sf /dev/full '%s'"):format(path)), 0) end
  local before = names()
  refused('full%.png: cannot be written: No space left on device', png, full[1], '--model', small)
  refused('full%.mkv: cannot be written: No space left on device', scratch.path 'in.mkv', full[2], '--model', small)
  refused('full: cannot be written: No space left on device', png, scratch.path 'out2.png', '--model', small, '--report', '/dev/full')
  os.remove(scratch.path 'out2.png')
  -- A file size limit interrupts the writing.
  local result = child.run({ '-c', ("ulimit -f 1; exec '%s' upscale --quiet --device cpu '%s' '%s' --model '%s' --scale 16"):format(
    child.program, png, scratch.path 'limited.png', small) }, { program = '/bin/bash' })
  t.ok(result.code ~= 0 and result.err:find 'limited%.png: cannot be written', result.err)
  t.equal(names(), before)
end)

t.test('a file of weights of another network, or without some of its tensors', function()
  local other, half, out = scratch.path 'other.safetensors', scratch.path 'half.safetensors', scratch.path 'out3.png'
  cr.scope(function()
    cr.save(other, { ['encoder.weight'] = cr.zeros(4, 4) })
    local all = formula.weights(SMALL)
    all['body.2.bias'] = nil
    cr.save(half, all)
  end)
  local broken = scratch.write('broken.safetensors', scratch.read(small):sub(1, 1000))
  local text = scratch.write('weights.pth', 'no weights')
  local before = names()
  refused('other%.safetensors.*neither RRDBNet nor SRVGGNetCompact', png, out, '--model', other)
  refused('half%.safetensors.*body%.2%.bias is missing', png, out, '--model', half)
  refused('broken%.safetensors', png, out, '--model', broken)
  refused('weights%.pth', png, out, '--model', text)
  refused('none%.pth', png, out, '--model', scratch.path 'none.pth')
  t.equal(names(), before)
end)
-- ---- what takes long -----------------------------------------------------------------------------

-- Upscales a video of a given length in a child process; returns the process's peak memory in bytes.
local function resident(seconds)
  local input, out = scratch.path(seconds .. '.mp4'), scratch.path(seconds .. 'out.mp4')
  local writer = media.writer(input, { fps = 25, width = 64, height = 48 })
  cr.scope(function()
    local frames = {}
    for i = 1, 5 do frames[i] = picture.image('upscale.long' .. i, 48, 64) end
    for i = 1, 25 * seconds do writer:write { frames[i % 5 + 1] } end
  end)
  writer:close()
  local result = child.run { '-e', ([[
    local cr = require 'cr'
    local made = cr.run(function() return require 'models.upscale.job'.run(%q, %q, { model = %q, device = 'cpu', quiet = true }) end)
    for line in io.lines '/proc/self/status' do
      if line:find '^VmHWM' then print(made.frames, line:match '%%d+') end
    end]]):format(input, out, small) }
  t.equal(result.code, 0, result.err)
  local frames, kib = result.out:match '(%d+)%s+(%d+)'
  t.equal(tonumber(frames), 25 * seconds)
  return tonumber(kib) * 1024
end

if os.getenv 'CR_SLOW' then
  t.test('tiles of x4plus', function()
    local share, most = in_tiles('x4plus', 160, 192, 96)
    t.ok(share <= 1e-3 and most <= 4, ('%g, by up to %d'):format(share, most))
  end)

  t.test('memory does not grow with the length of a video', function()
    local short, long = resident(20), resident(120)
    t.ok(long <= 1.05 * short, ('%.1f and %.1f MiB'):format(short / 2 ^ 20, long / 2 ^ 20))
  end)
end

t.done()
