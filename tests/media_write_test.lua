--- Writing video and images, and reading them again: sizes, colours, synchronous sound, failures.

local ffi = require 'ffi'
local t = require 'tests.support.tap'
local cr = require 'cr'
local media = require 'cr.media'
local base = require 'cr.ffi'
local inputs = require 'tests.support.media_inputs'
local video_files = require 'tests.support.video_files'

local path = inputs.path

local picture, write, read_all, free_all = video_files.picture, video_files.write, video_files.read_all, video_files.free_all
local psnr, compare = video_files.psnr, video_files.compare

t.test('H.264 in MP4: the frames come back in order, tagged', function()
  write('out.mp4', { comment = 'made by a test', crf = 12 }, 30, 48, 64)
  local info = media.probe(path 'out.mp4')
  t.equal(info.video_codec, 'h264')
  t.equal(info.width .. 'x' .. info.height, '64x48')
  t.near(info.fps, 25, 0)
  t.near(info.duration, 30 / 25, 1e-6)
  t.equal(info.frames, 30)
  local frames = read_all 'out.mp4'
  compare('out.mp4', frames, 30, 48, 64, 34)
  free_all(frames)
  local bytes = inputs.read_file 'out.mp4'
  t.ok(bytes:find('made by a test', 1, true), 'the comment is there')
  t.ok(bytes:find('moov', 1, true) < bytes:find('mdat', 1, true), 'the index stands in front')
  t.equal(inputs.leftovers(), '')
end)

t.test('every container, and a codec by name', function()
  for _, e in ipairs { 'mp4', 'mov', 'mkv', 'webm' } do
    local ok, err = pcall(write, 'out.' .. e, {}, 6, 48, 64)
    if not ok and tostring(err):find 'lacks the encoder' then t.skip(err) end
    t.ok(ok, tostring(err))
    local frames = read_all('out.' .. e)
    compare('out.' .. e, frames, 6, 48, 64, 28)
    free_all(frames)
  end
  write('old.mkv', { codec = 'mpeg4' }, 6, 48, 64)
  t.equal(media.probe(path 'old.mkv').video_codec, 'mpeg4')
end)

t.test('an odd size is padded by one repeated column and row', function()
  write('odd.mp4', { crf = 4 }, 5, 47, 63)
  local info = media.probe(path 'odd.mp4')
  t.equal(info.width .. 'x' .. info.height, '64x48')
  local frames = read_all 'odd.mp4'
  compare('odd.mp4', frames, 5, 47, 63, 38)
  local p, worst = frames[1]:pointer(), 0
  for y = 0, 47 do
    for c = 0, 2 do
      local at = (y * 64 + 63) * 3 + c
      worst = math.max(worst, math.abs(p[at] - p[at - 3]))
    end
  end
  t.ok(worst <= 12, 'the last column repeats the one before, but for coding: ' .. worst)
  free_all(frames)
  write('dot.mp4', {}, 2, 1, 1)
  frames = read_all 'dot.mp4'
  t.equal(#frames, 2)
  t.equal(table.concat(frames[1].shape, 'x'), '2x2x3')
  free_all(frames)
end)

t.test('lossless keeps every value, at odd sizes too', function()
  local generator = cr.generator(3, 'torch-cpu')
  local noise = cr.scope(function() return (cr.rand(7, 31, 45, 3, { generator = generator }) * 256):to 'u8' end)
  local writer = media.writer(path 'exact.mkv', { lossless = true })
  writer:write(noise) -- [F H W 3]
  local reversed = cr.scope(function() return noise:select(1, 7):permute(2, 1, 3):contiguous() end)
  writer:write(reversed:permute(2, 1, 3)) -- a view that is not dense
  writer:close()
  local info = media.probe(path 'exact.mkv')
  t.equal(info.video_codec, 'ffv1')
  t.equal(info.width .. 'x' .. info.height, '45x31')
  local frames = read_all 'exact.mkv'
  t.equal(#frames, 8)
  for i, frame in ipairs(frames) do
    local x = noise:select(1, math.min(i, 7))
    t.ok(inputs.bytes(frame) == inputs.bytes(x), 'frame ' .. i)
    x:free()
  end
  free_all(frames)
  -- From a file to a file, with sound.
  local again = media.writer(path 'again.mkv', { like = path 'exact.mkv', lossless = true })
  for frame in media.frames(path 'exact.mkv') do again:write(frame) end
  again:close()
  local first, second = read_all 'exact.mkv', read_all 'again.mkv'
  for i = 1, 8 do t.ok(inputs.bytes(first[i]) == inputs.bytes(second[i]), 'again, frame ' .. i) end
  free_all(first)
  free_all(second)
  noise:free()
  reversed:free()
  collectgarbage()
end)

t.test('the source\'s matrix, range and tags are kept', function()
  if not inputs.has_ffmpeg then t.skip 'the ffmpeg program is not installed' end
  local codes = { bt709 = 1, smpte170m = 6, bt2020nc = 9 }
  for space, code in pairs(codes) do
    for range, range_code in pairs { tv = 1, pc = 2 } do
      local name = ('%s_%s.mp4'):format(space, range)
      if not inputs.ffmpeg(('-f lavfi -i testsrc2=size=64x48:rate=25:duration=0.4 -vf scale=out_color_matrix=%s:out_range=%s '
          .. '-pix_fmt yuv420p -c:v libx264 -qp 0 -colorspace %s -color_range %s -color_primaries bt709 -color_trc bt709 %s')
          :format(space == 'smpte170m' and 'bt601' or space == 'bt2020nc' and 'bt2020' or space, range, space, range, name)) then
        t.skip('ffmpeg cannot make ' .. name)
      end
      local writer = media.writer(path 'copy.mp4', { like = path(name), crf = 1 })
      local originals = read_all(name)
      for _, frame in ipairs(originals) do writer:write(frame) end
      writer:close()
      local info = media.probe(path 'copy.mp4')
      t.equal(info.color_space, code, name .. ': matrix')
      t.equal(info.color_range, range_code, name .. ': range')
      t.equal(info.color_primaries, 1, name .. ': primaries')
      t.equal(info.color_transfer, 1, name .. ': transfer')
      local copies = read_all 'copy.mp4'
      t.equal(#copies, #originals)
      -- A wrong matrix or range would cost 10 dB at least.
      for i = 1, #copies do
        local decibels = psnr(copies[i], originals[i])
        t.ok(decibels > 29, ('%s: frame %d: %.1f dB'):format(name, i, decibels))
      end
      free_all(originals)
      free_all(copies)
    end
  end
end)

--- An image as planes by cr_rgb_to_yuv.
local function planes_of(x, format)
  local planes = require 'cr.tensor'.new()
  base.check(base.C.cr_rgb_to_yuv(planes.c, x.c, format))
  return planes
end

t.test("planes from our own code give libswscale's bytes", function()
  if not inputs.has_ffmpeg then t.skip 'the ffmpeg program is not installed' end
  for _, case in ipairs {
    { 'bt709', 'tv', { 64, 48 }, { 121, 67 }, { 12, 12 }, { 13, 15 }, { 18, 300 } }, { 'bt709', 'pc', { 66, 47 } },
    { 'bt470bg', 'tv', { 80, 50 } }, { 'bt470bg', 'pc', { 45, 31 } }, { 'smpte240m', 'pc', { 64, 48 } }, { 'bt2020nc', 'tv', { 99, 48 } },
  } do
    local space, range = case[1], case[2]
    if not inputs.ffmpeg(('-f lavfi -i testsrc2=size=64x48:rate=25:duration=0.04 -pix_fmt yuv420p -c:v libx264 -qp 0 '
        .. '-colorspace %s -color_range %s tags.mp4'):format(space, range)) then
      t.skip 'ffmpeg cannot make tags.mp4'
    end
    local reader = media.reader(path 'tags.mp4', { planes = true, wait = true })
    local frame = reader:read(1)[1]
    local format = frame.format
    reader:close()
    frame:free()
    t.equal(format.full_range, range == 'pc' and 1 or 0)
    for k = 3, #case do
      local w, h = case[k][1], case[k][2]
      local name = ('%s %s %d x %d'):format(space, range, w, h)
      cr.scope(function()
        local x = (cr.rand(h, w, 3, { generator = cr.generator(w, 'torch-cpu') }) * 256):to 'u8'
        local writer = media.writer(path 'planes.mkv', { like = path 'tags.mp4', width = w, height = h, codec = 'ffv1' })
        writer:write(x)
        writer:close()
        assert(inputs.ffmpeg '-i planes.mkv -f rawvideo planes.yuv')
        format.width, format.height = w + w % 2, h + h % 2
        t.ok(inputs.bytes(planes_of(x, format)) == inputs.read_file 'planes.yuv', name)
      end)
    end
  end
end)

t.test('images that are passed as planes give the same file', function()
  for _, size in ipairs { { 48, 64 }, { 47, 63 } } do
    local h, w = size[1], size[2]
    write('rgb.mp4', {}, 8, h, w)
    local writer = media.writer(path 'planes.mp4', { width = w, height = h })
    -- A writer's default without tags: BT.601, limited range.
    local format = ffi.new('cr_yuv', { w + w % 2, h + h % 2, 1, 1, 0, { 104597, 132201, 25675, 53279 } })
    cr.scope(function()
      for i = 0, 7 do
        local x = picture(i, h, w)
        t.ok(rawequal(writer:pack(x), x), 'in the main memory nothing is to be done')
        writer:write(i % 3 == 1 and x or planes_of(x, format)) -- both, alternating
      end
    end)
    t.raises(function() writer:write(cr.zeros(100, { dtype = 'u8' })) end, 'u8 %[%d+ %d+ 3%] on the CPU is needed')
    writer:close()
    t.ok(inputs.read_file 'planes.mp4' == inputs.read_file 'rgb.mp4', ('%d x %d'):format(w, h))
  end
  local writer = media.writer(path 'exact.mkv', { lossless = true, width = 64, height = 48 })
  t.raises(function() writer:write(cr.zeros(64 * 48 * 3 / 2, { dtype = 'u8' })) end, 'is needed')
  writer:abort()
end)

--- Writes a 16-bit WAV: silence, except a tone between `from` and `to` seconds.
local function write_tone(name, rate, channels, seconds, from, to)
  local n = math.floor(seconds * rate)
  local data = ffi.new('int16_t[?]', n * channels)
  for i = math.floor(from * rate), math.floor(to * rate) - 1 do
    for c = 0, channels - 1 do data[i * channels + c] = 9000 * math.sin(i * 2 * math.pi * 700 / rate) end
  end
  local le = require 'tests.support.scratch'.le
  local body = ffi.string(data, n * channels * 2)
  return inputs.write_file(name, 'RIFF' .. le(36 + #body, 4) .. 'WAVEfmt ' .. le(16, 4) .. le(1, 2) .. le(channels, 2)
    .. le(rate, 4) .. le(rate * channels * 2, 4) .. le(channels * 2, 2) .. le(16, 2) .. 'data' .. le(#body, 4) .. body)
end

--- Seconds at which a sound begins and ends to be audible, and its length.
local function heard(name)
  local x, rate = media.load_audio(path(name), { channels = 1 })
  local p, n = x:pointer(), x:size(1)
  local first, last
  for i = 0, n - 1 do
    if math.abs(p[i]) > 0.05 then
      first = first or i
      last = i
    end
  end
  x:free()
  return first and first / rate, last and last / rate, n / rate
end

t.test('the sound keeps its rate and channels, and is synchronous', function()
  local wav = write_tone('tone.wav', 44100, 2, 3, 1, 1.5)
  for _, e in ipairs { 'mp4', 'mov', 'mkv', 'webm' } do
    local name = 'sound.' .. e
    write(name, { audio = wav }, 50, 32, 32) -- two seconds of three
    local info = media.probe(path(name))
    t.equal(info.has_audio, true)
    t.equal(info.channels, 2)
    t.equal(info.sample_rate, e == 'webm' and 48000 or 44100)
    t.equal(info.audio_codec, e == 'webm' and 'opus' or 'aac')
    local first, last, length = heard(name)
    t.near(first, 1, 0.006, name .. ': the tone begins')
    t.near(last, 1.5, 0.006, name .. ': the tone ends')
    t.near(length, 2, 0.03, name .. ': the sound is cut to the pictures')
    if e == 'mp4' then t.near(info.audio_duration, 2, 1e-3, 'to the sample') end
    local frames = read_all(name)
    t.equal(#frames, 50, name .. ': the pictures begin at 0')
    free_all(frames)
  end
end)

t.test('sound that is shorter is followed by silence; a piece of it can be used', function()
  local wav = write_tone('tone.wav', 16000, 1, 1, 0.25, 0.5)
  write('short.mp4', { audio = wav }, 75, 32, 32)
  local info = media.probe(path 'short.mp4')
  t.near(info.audio_duration, 3, 1e-3)
  t.equal(info.sample_rate, 16000)
  local first, last = heard 'short.mp4'
  t.near(first, 0.25, 0.008)
  t.near(last, 0.5, 0.008)
  local long = write_tone('long.wav', 48000, 1, 4, 2, 3.9)
  write('piece.mp4', { audio = long, audio_start = 1.5, audio_end = 2.8 }, 50, 32, 32)
  first, last = heard 'piece.mp4'
  t.near(first, 0.5, 0.006)
  t.near(last, 1.3, 0.006)
  write('exact.mkv', { audio = wav, lossless = true }, 25, 32, 32)
  local x = media.load_audio(path 'exact.mkv')
  local y = media.load_audio(wav)
  t.equal(x:size(1), 16000)
  t.ok(inputs.bytes(x) == inputs.bytes(y), 'lossless sound beside lossless pictures')
  x:free()
  y:free()
end)

t.test('several sounds are added up, each until it ends', function()
  local one, two = write_tone('one.wav', 16000, 1, 1, 0.1, 0.3), write_tone('two.wav', 44100, 2, 2, 0.2, 1.8)
  t.near(media.loudest({ one, one }), 2 * 9000 / 32768, 1e-4)
  t.near(media.loudest({ one, one }, { start = 0.5 }), 0, 1e-4)
  t.near(media.loudest({ one, one }, { stop = 0.05 }), 0, 1e-4)
  local loudest = media.loudest { one, two }
  t.ok(loudest > 0.4 and loudest < 2 * 9000 / 32768, tostring(loudest))
  for _, e in ipairs { 'mp4', 'mkv', 'webm' } do
    local name = 'both.' .. e
    write(name, { audio = { one, two }, audio_gain = 0.5, lossless = e == 'mkv' or nil }, 50, 32, 32)
    local info = media.probe(path(name))
    t.equal(info.sample_rate, e == 'webm' and 48000 or 44100, 'the higher rate')
    t.equal(info.channels, 2, 'the more channels')
    local first, last = heard(name)
    t.near(first, 0.1, 0.006, name .. ': the first one begins')
    t.near(last, 1.8, 0.006, name .. ': the second one ends')
  end
  cr.scope(function()
    local got, a, b = media.load_audio(path 'both.mkv'), media.load_audio(one, { rate = 44100, channels = 2 }), media.load_audio(two)
    local sum = b:clone()
    local part = sum:narrow(1, 1, a:size(1))
    part:copy_(part + a)
    t.equal(got:size(1), 2 * 44100)
    t.near(got, sum * 0.5, 2e-4, 'the sum times the gain, in 16 bits')
    -- Samples beyond full scale are clipped; they do not wrap.
    write('loud.mkv', { audio = { two, two, two, two, two }, lossless = true }, 50, 32, 32)
    t.near(media.load_audio(path 'loud.mkv'), (b * 5):clamp(-1, 1), 1 / 16384)
  end)
  t.raises(function() media.loudest { one, path 'nowhere.wav' } end, 'nowhere%.wav: No such file or directory')
  t.raises(function() media.writer(path 'x.mp4', { audio = { one, path 'nowhere.wav' }, width = 32, height = 32 }) end, 'nowhere%.wav')
  t.raises(function() media.writer(one, { audio = { two, one }, width = 32, height = 32 }) end, 'would overwrite it')
end)

t.test('memory does not grow while writing', function()
  local writer = media.writer(path 'long.mp4', { audio = write_tone('tone.wav', 16000, 1, 20, 1, 19) })
  local most = 0
  for i = 0, 299 do
    local x = picture(i % 50, 48, 64)
    writer:write(x)
    x:free()
    most = math.max(most, cr.memory().live)
  end
  writer:close()
  t.ok(most <= 3 * 48 * 64 * 3, most .. ' bytes')
  t.near(media.probe(path 'long.mp4').duration, 12, 1e-6)
end)

t.test('unwritable outputs give one sentence, and nothing remains', function()
  local function fails(pattern, name, options, h, w)
    local writer
    t.raises(function()
      writer = media.writer(name, options)
      local x = picture(0, h or 32, w or 32)
      writer:write(x)
      x:free()
      writer:close()
    end, pattern)
    if writer then writer:abort() end
    collectgarbage()
  end
  fails('nofolder/x%.mp4: cannot be written: No such file or directory$', path 'nofolder/x.mp4')
  fails('x%.foo: the ending does not name a kind of video file', path 'x.foo')
  fails('x%.wav: a wav file cannot hold video', path 'x.wav')
  fails("no video encoder named 'nope'$", path 'x.mp4', { codec = 'nope' })
  fails('a mp4 file cannot hold ffv1: use the ending .mkv$', path 'x.mp4', { lossless = true })
  fails('nowhere%.wav: No such file or directory$', path 'x.mp4', { audio = path 'nowhere.wav' })
  fails('nowhere%.mp4: No such file or directory$', path 'x.mp4', { like = path 'nowhere.mp4' })
  fails('u8 %[16 16 3%] on the CPU is needed, not u8 %[32 32 3%]$', path 'x.mp4', { width = 16, height = 16 })
  for _, crf in ipairs { 99, -5, 18.5 } do fails('crf: a whole number from 0 to 63', path 'x.mp4', { crf = crf }) end
  t.raises(function() media.write_picture(path 'x.jpg', cr.zeros({ 2, 2, 3 }, { dtype = 'u8' })) end, 'x.jpg: pictures are written as PNG')
  local wav = write_tone('empty.wav', 16000, 1, 0, 0, 0)
  fails('empty.wav: ', path 'x.mp4', { audio = wav })
  os.execute('mkdir "' .. path 'folder.mp4' .. '"')
  fails('folder%.mp4: cannot be written: Is a directory$', path 'folder.mp4')
  t.raises(function() media.writer(path 'x.mp4'):close() end, 'x%.mp4: no frame was written$')
  t.equal(inputs.leftovers(), '')
  t.equal(inputs.read_file 'x.mp4', nil)
end)

t.test('a full disk', function()
  local folder = path 'small'
  os.execute('mkdir "' .. folder .. '"')
  if os.execute(('mount -t tmpfs -o size=200k tmpfs "%s" 2>/dev/null'):format(folder)) ~= 0 then
    t.skip 'a small file system cannot be mounted here'
  end
  local generator = cr.generator(3, 'torch-cpu')
  local noise = cr.scope(function() return (cr.rand(4, 160, 160, 3, { generator = generator }) * 256):to 'u8' end)
  for _, name in ipairs { 'small/x.mkv', 'small/x.mp4' } do
    local writer = media.writer(path(name), { lossless = name == 'small/x.mkv', crf = 1 })
    t.raises(function()
      for _ = 1, 10 do writer:write(noise) end
      writer:close()
    end, 'small/x%.m..: cannot be written: No space left on device$')
    writer:abort()
  end
  local pipe = io.popen(('ls -A "%s" | wc -l; umount "%s"'):format(folder, folder))
  t.equal(pipe:read '*n', 0, 'files left')
  pipe:close()
  noise:free()
end)

t.test('an unfinished file is removed with its writer', function()
  local writer = media.writer(path 'never.mp4')
  local x = picture(1, 32, 32)
  writer:write(x)
  t.ok(inputs.leftovers():find 'never', 'a dot name while it is being written')
  writer:abort()
  writer:abort()
  writer:close()
  t.raises(function() writer:write(x) end, 'is closed')
  x:free()
  t.equal(inputs.leftovers(), '')
  t.equal(inputs.read_file 'never.mp4', nil)
end)

t.test('concurrent encoding and decoding, in tasks', function()
  write('first.mp4', {}, 40, 48, 64)
  cr.run(function()
    local frames = cr.channel(2)
    cr.go(function()
      for frame in media.frames(path 'first.mp4') do frames:put(frame) end
      frames:close()
    end)
    local writer = media.writer(path 'second.mp4', { like = path 'first.mp4' })
    local n = 0
    while true do
      local frame = frames:get()
      if not frame then break end
      writer:write(frame)
      frame:free()
      n = n + 1
    end
    writer:close()
    assert(n == 40)
  end)
  local frames = read_all 'second.mp4'
  compare('second.mp4', frames, 40, 48, 64, 28)
  free_all(frames)
end)

-- ---- pictures --------------------------------------------------------------------------------

t.test('frames with times of their own, and sound to the end of the last', function()
  local wanted = { 0, 1001 / 30000, 0.2, 0.25, 1 }
  for _, ending in ipairs { 'mp4', 'mkv' } do
    local writer = media.writer(path('timed.' .. ending), { timed = true, fps = 30, audio = cr.root .. '/models/mini/demo.flac' })
    for i, seconds in ipairs(wanted) do writer:write(cr.full({ 32, 32, 3 }, 40 * i, { dtype = 'u8' }), seconds) end
    writer:write(cr.full({ 32, 32, 3 }, 250, { dtype = 'u8' }), 0.9) -- too early: shown as soon as possible
    writer:close()
    local reader = media.reader(path('timed.' .. ending), { fps = 0 })
    t.equal(#reader:read(100), 6)
    for i, seconds in ipairs(wanted) do
      t.ok(math.abs(reader.last_seconds[i] - seconds) < 0.0011, ('%s: frame %d at %g'):format(ending, i, reader.last_seconds[i]))
    end
    reader:close()
    local info = media.probe(path('timed.' .. ending))
    t.ok(math.abs(info.audio_duration - (1 + 1 / 30)) < 0.03, ('%s: %g s of sound'):format(ending, info.audio_duration))
  end
  t.raises(function()
    local writer = media.writer(path 'untimed.mp4')
    writer:write(cr.zeros({ 32, 32, 3 }, { dtype = 'u8' }), 0.5)
  end, 'needs the option timed')
end)

t.test('pictures', function()
  local x = picture(3, 37, 53)
  media.write_picture(path 'x.png', x)
  local y = media.read_picture(path 'x.png')
  t.equal(table.concat(y.shape, 'x'), '37x53x3')
  t.ok(inputs.bytes(x) == inputs.bytes(y), 'PNG round trip')
  local view = x:narrow(1, 5, 20):narrow(2, 3, 30)
  media.write_picture(path 'part.png', view)
  local z = media.read_picture(path 'part.png')
  t.ok(inputs.bytes(view) == inputs.bytes(z), 'a view')
  local gray = x:narrow(3, 1, 1):contiguous()
  media.write_picture(path 'gray.png', gray)
  local g = media.read_picture(path 'gray.png')
  local first = g:narrow(3, 1, 1)
  t.ok(inputs.bytes(first) == inputs.bytes(gray), 'gray')
  t.raises(function() media.write_picture(path 'no/x.png', x) end, 'no/x%.png: cannot be written: No such file')
  local f = x:to 'f32'
  t.raises(function() media.write_picture(path 'f.png', f) end, 'u8 %[H W 3%]')
  t.raises(function() media.read_picture(inputs.write_file('bad.png', '\137PNG\r\n\26\n' .. ('x'):rep(90))) end, 'bad%.png: ')
  for _, tensor in ipairs { x, y, z, view, gray, g, first, f } do tensor:free() end
  if inputs.has_ffmpeg and inputs.ffmpeg '-i x.png -q:v 2 x.jpg' then
    assert(inputs.ffmpeg '-i x.jpg -sws_flags bicubic+accurate_rnd+full_chroma_int -pix_fmt rgb24 -f rawvideo ref.rgb')
    local j = media.read_picture(path 'x.jpg')
    t.ok(inputs.bytes(j) == inputs.read_file 'ref.rgb', 'JPEG as ffmpeg reads it')
    j:free()
  end
end)

inputs.remove()
t.done()
