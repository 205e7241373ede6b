--- Reading video and sound: bit for bit as the ffmpeg program, at every rate, from any frame.

local t = require 'tests.support.tap'
local cr = require 'cr'
local media = require 'cr.media'
local ffi = require 'ffi'
local inputs = require 'tests.support.media_inputs'
local scratch = require 'tests.support.scratch'

local FLAGS = '-sws_flags bicubic+accurate_rnd+full_chroma_int -pix_fmt rgb24 -f rawvideo'

local function need_ffmpeg()
  if not inputs.has_ffmpeg then t.skip 'the ffmpeg program is not installed' end
end

--- Creates an input, or skips the test if this ffmpeg lacks an encoder.
local function make(name, arguments)
  need_ffmpeg()
  if not inputs.ffmpeg(arguments .. ' ' .. name) then t.skip('ffmpeg cannot make ' .. name) end
  return inputs.path(name)
end

local function source(size, rate, seconds)
  return ('-f lavfi -i "testsrc2=size=%s:rate=%s:duration=%s"'):format(size, rate, seconds)
end

local H264 = '-pix_fmt yuv420p -c:v libx264 -preset veryfast -g 20 -bf 2'

--- All frames as one string each.
local function read_all(path, options, batch)
  local reader = media.reader(path, options)
  local frames = {}
  while true do
    local part = reader:read(batch or 7)
    for i, frame in ipairs(part) do
      frames[#frames + 1] = inputs.bytes(frame)
      part[i] = false
      frame:free()
    end
    if #part < (batch or 7) then break end
  end
  reader:close()
  return frames
end

--- The result of `ffmpeg -r 25`, with the sound decoded as well if there is one.
local function reference(name, rate)
  local sound = media.probe(inputs.path(name)).has_audio and '-map 0:a:0 -f null -' or ''
  assert(inputs.ffmpeg(('-i %s -map 0:v:0 %s %s ref.rgb %s'):format(name, rate or '-r 25', FLAGS, sound)))
  return inputs.read_file 'ref.rgb'
end

local function same_as_ffmpeg(name)
  local frames = read_all(inputs.path(name))
  local whole = reference(name)
  t.ok(#frames > 0, name .. ' has frames')
  local size = #frames[1]
  t.equal(#frames, #whole / size, name .. ': number of frames')
  for i, frame in ipairs(frames) do
    if frame ~= whole:sub((i - 1) * size + 1, i * size) then
      return t.ok(false, ('%s: frame %d differs'):format(name, i - 1))
    end
  end
  return frames
end

for _, rate in ipairs { '25', '24', '24000/1001', '30000/1001', '30', '50', '60', '12.5', '10', '8' } do
  t.test('' .. rate .. ' frames per second, as ffmpeg -r 25', function()
    make('rate.mp4', source('64x48', rate, 2) .. ' ' .. H264)
    same_as_ffmpeg 'rate.mp4'
  end)
end

t.test('a source at 25 frames per second passes unchanged', function()
  local path = make('plain.mp4', source('64x48', 25, 2) .. ' ' .. H264)
  local ours, own = read_all(path), read_all(path, { fps = 0 })
  t.equal(#ours, 50)
  t.equal(#own, 50)
  for i = 1, 50 do t.ok(ours[i] == own[i], 'frame ' .. i) end
end)

local variable = {
  ['gaps.mp4'] = source('64x48', 30, 4) .. ' -f lavfi -i sine=d=4 -vf "select=\'not(mod(n,7)*mod(n,3))\'" -vsync vfr '
    .. H264 .. ' -c:a aac',
  ['jitter.mkv'] = source('64x48', 30, 3) .. ' -vf "setpts=\'PTS+random(2)*0.02/TB\'" -vsync vfr ' .. H264,
  ['late.mp4'] = source('64x48', 25, 2) .. ' -f lavfi -i sine=d=3 -vf setpts=PTS+0.73/TB ' .. H264 .. ' -c:a aac',
  ['alone_and_late.mkv'] = source('64x48', 25, 2) .. ' -vf setpts=PTS+0.73/TB ' .. H264,
  ['long_pause.mp4'] = source('64x48', 25, 1) .. ' -vf "setpts=\'PTS+gt(N,12)*2/TB\'" -vsync vfr ' .. H264,
}
for name, arguments in pairs(variable) do
  t.test('a variable rate or a late start as ffmpeg -r 25: ' .. name, function()
    make(name, arguments)
    same_as_ffmpeg(name)
  end)
end

t.test('edit lists, streams without an index, other codecs', function()
  make('long.mp4', source('64x48', 25, 3) .. ' ' .. H264)
  make('ntsc.mp4', source('64x48', '30000/1001', 3) .. ' ' .. H264)
  local derived = {
    { 'cut.mp4', '-ss 0.77 -i long.mp4 -c copy' }, { 'cut_ntsc.mp4', '-ss 1.3 -i ntsc.mp4 -c copy' },
    { 'stream.ts', '-i ntsc.mp4 -c copy' }, { 'raw.h264', '-i long.mp4 -c copy' },
    { 'mpeg4.avi', source('64x48', 25, 2) .. ' -c:v mpeg4 -bf 2' },
    { 'mpeg2.mpg', source('64x48', 30, 2) .. ' -c:v mpeg2video -bf 2' },
    { 'intra.mov', source('64x48', 30, 2) .. ' -c:v mjpeg' }, { 'picture.gif', source('64x48', 10, 2) },
    { 'ten_bits.mp4', source('64x48', 25, 1) .. ' -pix_fmt yuv420p10le -c:v libx264' },
    { 'odd.webm', source('65x47', 25, 1) .. ' -pix_fmt yuv444p -c:v libvpx-vp9' },
  }
  for _, d in ipairs(derived) do
    if inputs.ffmpeg(d[2] .. ' ' .. d[1]) then same_as_ffmpeg(d[1]) end
  end
  -- Two concatenated streams: the second one's clock starts again.
  local bytes = inputs.read_file 'stream.ts'
  inputs.write_file('joined.ts', bytes .. bytes)
  same_as_ffmpeg 'joined.ts'
end)

t.test('the matrix and the range of a stream', function()
  local bt601
  for _, space in ipairs { 'bt709', 'bt470bg', 'smpte240m', 'bt2020nc' } do
    for _, range in ipairs { 'tv', 'pc' } do
      local name = ('color_%s_%s.mp4'):format(space, range)
      make(name, source('64x48', 25, 0.2) .. (' -vf "scale=out_color_matrix=%s:out_range=%s" -pix_fmt yuv420p '
        .. '-c:v libx264 -qp 0 -colorspace %s -color_range %s'):format(space, range, space, range))
      local frames = same_as_ffmpeg(name)
      -- The image does not depend on how it was coded.
      bt601 = bt601 or frames[1]
      local sum = 0
      for i = 1, #frames[1], 97 do sum = sum + math.abs(frames[1]:byte(i) - bt601:byte(i)) end
      t.ok(sum / (#frames[1] / 97) < 4, name .. ' looks like the others')
    end
  end
end)

t.test("planes converted by our own code give libswscale's bytes", function()
  for _, case in ipairs {
    { 'yuv420p', '320x240' }, { 'yuv420p', '121x67', 'bt709' }, { 'yuv422p', '121x66' }, { 'yuv444p', '45x31', 'smpte240m' },
    { 'yuvj420p', '66x38', 'bt2020nc' }, { 'yuv420p', '16x9' }, { 'yuv420p', '16x17' }, { 'yuv420p10le', '32x32' }, { 'nv12', '40x40' },
    { 'yuv420p', '7x9' },
  } do
    local name = ('planes_%s_%s.mkv'):format(case[1], case[2])
    local path = make(name, source(case[2], 25, 0.2) .. ' -vf noise=alls=60:allf=t -pix_fmt ' .. case[1] ..
      (case[3] and ' -colorspace ' .. case[3] or '') .. ' -c:v ' .. (case[1] == 'nv12' and 'rawvideo' or 'ffv1'))
    local frames, ours = read_all(path), read_all(path, { planes = true })
    t.equal(#ours, #frames, name .. ': frames')
    for i, frame in ipairs(frames) do t.ok(ours[i] == frame, name .. ': frame ' .. i) end
    -- Frames that are held as planes and as RGB, and are converted twice.
    for _, planes in ipairs { true, false } do
      local reader = media.reader(path, { planes = planes, wait = true })
      for i, frame in ipairs(reader:read(100)) do
        t.equal(frame.height * frame.width * 3, #frames[i])
        t.ok(planes and frame.format and frame.bytes < #frames[i] or frame.bytes <= #frames[i], name .. ': bytes held')
        for _ = 1, 2 do
          local rgb = frame:rgb()
          t.ok(inputs.bytes(rgb) == frames[i], name .. ': a frame that waited')
          rgb:free()
        end
        local last = frame:rgb()
        frame:free()
        frame:free()
        t.ok(inputs.bytes(last) == frames[i], name .. ': RGB outlives its frame')
        last:free()
        t.raises(function() frame:rgb() end, 'has been freed')
      end
      reader:close()
    end
  end
end)

t.test('rotation', function()
  make('upright.mp4', source('64x48', 25, 0.4) .. ' ' .. H264)
  for _, angle in ipairs { 90, 180, 270 } do
    local name = ('turned_%d.mp4'):format(angle)
    make('four.mp4', source('64x48', 25, 0.2) .. ' -pix_fmt yuv422p -c:v libx264')
    make('four_turned.mp4', ('-i four.mp4 -c copy -metadata:s:v:0 rotate=%d'):format(angle))
    same_as_ffmpeg 'four_turned.mp4'
    make(name, ('-i upright.mp4 -c copy -metadata:s:v:0 rotate=%d'):format(angle))
    same_as_ffmpeg(name)
    local info = media.probe(inputs.path(name))
    t.equal(info.width, angle == 180 and 64 or 48, 'width as shown')
    t.equal(info.height, angle == 180 and 48 or 64, 'height as shown')
    local reader = media.reader(inputs.path(name))
    local frame = reader:read(1)[1]
    t.equal(table.concat(frame.shape, 'x'), ('%dx%dx3'):format(info.height, info.width))
    reader:close()
  end
end)

--- Reads pieces from random positions and compares them with a sequential run.
local function seeks_exactly(name)
  local path = inputs.path(name)
  local all = read_all(path)
  local reader = media.reader(path)
  reader:seek(math.floor(#all / 2)) -- first to an unread position
  t.ok(inputs.bytes(reader:read(1)[1]) == all[math.floor(#all / 2) + 1], name .. ': a seek ahead')
  local generator = cr.generator(7, 'torch-cpu')
  local numbers = cr.rand(24, 2, { generator = generator }):tolist()
  for _, pair in ipairs(numbers) do
    local first, n = math.floor(pair[1] * #all), 1 + math.floor(pair[2] * 20)
    reader:seek(first)
    t.equal(reader.position, first)
    local piece = reader:read(n)
    t.equal(#piece, math.min(n, #all - first), name .. ': frames from ' .. first)
    for k, frame in ipairs(piece) do
      if inputs.bytes(frame) ~= all[first + k] then
        t.ok(false, ('%s: frame %d differs after a seek to %d'):format(name, first + k - 1, first))
      end
      frame:free()
    end
  end
  t.raises(function() reader:seek(#all + 3) end, 'there is no frame ' .. #all + 3 .. ': the video has ' .. #all)
  reader:seek(0)
  t.ok(inputs.bytes(reader:read(1)[1]) == all[1], name .. ': back at the start')
  reader:close()
end

t.test('seeking is exact', function()
  make('long.mp4', source('64x48', 25, 8) .. ' ' .. H264)
  make('fast.mkv', source('64x48', 50, 6) .. ' ' .. H264)
  make('slow.mp4', source('64x48', 12, 8) .. ' ' .. H264)
  make('open.mp4', source('64x48', 25, 6) .. ' -pix_fmt yuv420p -c:v libx264 -x264-params keyint=25:open-gop=1:bframes=3')
  make('refresh.mp4', source('64x48', 25, 6) .. ' -pix_fmt yuv420p -c:v libx264 -x264-params intra-refresh=1:keyint=30')
  make('stream.ts', '-i long.mp4 -c copy')
  make('raw.h264', '-i long.mp4 -c copy')
  make('guessed.flv', source('64x48', 30, 3) .. ' -c:v flv')
  make('gaps.mp4', variable['gaps.mp4'])
  for _, name in ipairs {
    'long.mp4', 'fast.mkv', 'slow.mp4', 'open.mp4', 'refresh.mp4', 'stream.ts', 'raw.h264', 'guessed.flv', 'gaps.mp4',
  } do
    seeks_exactly(name)
  end
end)

t.test('backward in pieces of bounded memory', function()
  local path = make('long.mp4', source('64x48', 25, 8) .. ' ' .. H264)
  local all = read_all(path)
  local reader = media.reader(path)
  local bytes = 64 * 48 * 3
  local expected, most = 149, 0
  for frame, index in reader:backward(20, 149, 10 * bytes) do
    t.equal(index, expected, 'order')
    t.ok(inputs.bytes(frame) == all[index + 1], 'frame ' .. index)
    frame:free()
    expected = expected - 1
    most = math.max(most, cr.memory().live)
  end
  t.equal(expected, 19)
  t.ok(most <= 10 * bytes, 'at most ten frames are held')
  reader:close()
end)

t.test('memory does not grow with the length', function()
  local path = make('hour.mp4', source('320x240', 25, 20) .. ' ' .. H264)
  local reader = media.reader(path)
  local most, count = 0, 0
  while true do
    local part = reader:read(8)
    most = math.max(most, cr.memory().live)
    count = count + #part
    for i, frame in ipairs(part) do
      part[i] = false
      frame:free()
    end
    if #part < 8 then break end
  end
  t.equal(count, 500)
  t.ok(most <= 8 * 320 * 240 * 3, ('eight frames at once, not %d bytes'):format(most))
  reader:close()
end)

t.test('frames decoded ahead of the read that asks for them', function()
  local path = make('long.mp4', source('64x48', 25, 8) .. ' ' .. H264)
  local all = read_all(path)
  local reader, at = media.reader(path), 0
  local function read(n, ahead)
    local part = reader:read(n, ahead)
    t.equal(#part, math.min(n, #all - at), ('%d frames from %d'):format(n, at))
    for k, frame in ipairs(part) do
      t.ok(inputs.bytes(frame) == all[at + k], 'frame ' .. at + k - 1)
      frame:free()
    end
    at = at + #part
    t.equal(reader.position, at)
  end
  read(8, 8)
  read(8, 5)
  read(9, 3) -- more than were started
  t.raises(function() reader:read(2) end, '3 frames are already being decoded')
  read(3)
  read(4, 6)
  reader:seek(40) -- decoded frames are discarded
  at = 40
  read(7, 100)
  read(100, 100)
  while at < #all do read(100, 100) end
  t.equal(#reader:read(5, 5), 0, 'after the end')
  reader:close()
  reader = media.reader(path)
  reader:read(4, 200)[1]:free()
  reader:close() -- while it is decoding
end)

t.test('reading in tasks, and closing during a read', function()
  local path = make('long.mp4', source('64x48', 25, 8) .. ' ' .. H264)
  local counts = {}
  local function count(n)
    local reader, total = media.reader(path), 0
    for _ = 1, 5 do
      local part = reader:read(n)
      total = total + #part
      for _, frame in ipairs(part) do frame:free() end
    end
    reader:close()
    counts[#counts + 1] = total
  end
  cr.run(function() cr.all { cr.go(count, 3), cr.go(count, 20), cr.go(count, 60) } end)
  table.sort(counts)
  t.equal(table.concat(counts, ' '), '15 100 200')
  local ok, err = cr.run(function()
    local reader = media.reader(path)
    local task = cr.go(function() reader:read(200) end)
    cr.sleep(0.01)
    reader:close()
    local ok, err = pcall(cr.await, task)
    reader:close()
    return ok, err
  end)
  t.ok(not ok and (err:find 'is closed' or err:find 'interrupted'), tostring(err))
  local n = 0
  for frame, seconds in media.frames(path, { first = 100 }) do
    t.near(seconds, (100 + n) / 25, 1e-6)
    frame:free()
    n = n + 1
  end
  t.equal(n, 100)
end)

-- ---- sound -----------------------------------------------------------------------------------

local function sound_source(rate)
  return ('-f lavfi -i "aevalsrc=0.3*sin(2*PI*440*t)|0.2*sin(2*PI*333*t+t*t):d=2.3:s=%d"'):format(rate)
end

local sounds = {
  { 'a.wav', sound_source(44100) }, { 'a.mp3', sound_source(48000) }, { 'a.m4a', sound_source(44100) },
  { 'a.opus', sound_source(48000) }, { 'a.flac', sound_source(48000) }, { 'low.wav', sound_source(8000) },
  { 'same.wav', '-f lavfi -i sine=d=2:r=16000 -ac 1' }, { 'two.wav', sound_source(16000) },
  { 'deep.wav', sound_source(48000) .. ' -c:a pcm_s24le' }, { 'float.wav', sound_source(48000) .. ' -c:a pcm_f32le' },
  { 'five.mkv', '-f lavfi -i "aevalsrc=0.1*sin(2600*t)|0.1*sin(t*1000)|0.1*sin(t*3000)|0.1*sin(t*50)|0.2*sin(t*5000)|0.1:'
    .. 'd=2:s=48000:c=5.1" -c:a ac3' },
  { 'film.mp4', source('64x48', 25, 2) .. ' ' .. sound_source(44100) .. ' -c:v libx264 -pix_fmt yuv420p -c:a aac' },
  { 'cut.m4a', '-ss 0.5 -i film.mp4 -vn -c copy' },
}

local function read_sound(path, options)
  local reader = media.audio(path, options)
  local parts, count = {}, 0
  while true do
    local part = reader:read(5003)
    local n = part:size(1)
    parts[#parts + 1] = inputs.bytes(part)
    count = count + n
    part:free()
    if n < 5003 then break end
  end
  reader:close()
  return table.concat(parts), count
end

t.test('sound as ffmpeg resamples and mixes it', function()
  for _, s in ipairs(sounds) do
    make(s[1], s[2])
    local path = inputs.path(s[1])
    for _, way in ipairs { { 16000, 1 }, { 16000, 1, true }, { 0, 0 }, { 48000, 2 } } do
      local rate, channels, s16 = unpack(way)
      local options = (rate > 0 and '-ar ' .. rate or '') .. ' ' .. (channels > 0 and '-ac ' .. channels or '')
      if s16 then
        assert(inputs.ffmpeg(('-i %s -vn %s -f s16le ref.s16'):format(s[1], options)))
        assert(inputs.ffmpeg '-f s16le -ar 16000 -ac 1 -i ref.s16 -f f32le ref.f32')
      else
        assert(inputs.ffmpeg(('-i %s -vn %s -f f32le ref.f32'):format(s[1], options)))
      end
      local ours = read_sound(path, { rate = rate, channels = channels, s16 = s16 })
      t.ok(ours == inputs.read_file 'ref.f32', ('%s at %d Hz, %d channels%s'):format(s[1], rate, channels, s16 and ', s16' or ''))
    end
  end
end)

t.test('16-bit samples are read as the reference reads them: divided by 32768', function()
  local n = 153600
  local samples = ffi.new('int16_t[?]', n)
  for i = 0, n - 1 do samples[i] = (i * 7919 + 12345) % 65536 - 32768 end
  local path = inputs.write_file('noise.wav', scratch.wav(ffi.string(samples, n * 2)))
  local x, rate = media.load_audio(path, { rate = 16000, channels = 1, s16 = true })
  t.equal(rate, 16000)
  t.equal(x:dim(), 1)
  t.equal(x:size(1), n)
  local p, off = x:pointer(), 0
  for i = 0, n - 1 do off = math.max(off, math.abs(p[i] - samples[i] / 32768)) end
  t.equal(off, 0, 'largest difference')
  x:free()
end)

t.test('a whole sound at once has a limit', function()
  local path = make('a.wav', sound_source(44100))
  t.raises(function() media.load_audio(path, { seconds = 1 }) end, 'a%.wav: the sound is longer than 1 s')
  local x = media.load_audio(path)
  t.equal(table.concat(x.shape, 'x'), '101430x2')
  x:free()
end)

-- ---- bad input -------------------------------------------------------------------------------

local function both(path, pattern)
  t.raises(function() media.probe(path) end, pattern)
  t.raises(function() media.reader(path) end, pattern)
  t.raises(function() media.audio(path) end, pattern)
  t.raises(function() media.read_picture(path) end, pattern)
end

t.test('bad files are refused with one sentence', function()
  both(inputs.path 'nowhere.mp4', 'nowhere%.mp4: No such file or directory$')
  both(inputs.folder, 'is a folder')
  both(inputs.write_file('empty.mp4', ''), 'empty%.mp4: the file is empty$')
  both(inputs.write_file('text.mp4', ('some words\n'):rep(300)), 'text%.mp4: cannot be read as video or sound: .*Invalid data')
  both(inputs.write_file('noise.bin', ('\1\255\7zq'):rep(5000)), 'noise%.bin: cannot be read as video or sound')
  both(inputs.write_file('short.wav', 'RIFF\36\0\0\0WAVEfmt \16\0\0\0\1\0\1\0\128\62\0\0\0\125\0\0\2\0\16\0data\0\4\1\0\1\2'),
    "short%.wav: the file is truncated: its 'data' part should have 66560 bytes, but 2 are there$")
  t.raises(function() media.reader(inputs.path 'x', { fps = -1 }) end, 'rate must be')
  t.raises(function() media.reader(7) end, 'path is needed')
end)

t.test('truncated, without video, without sound', function()
  local path = make('long.mp4', source('64x48', 25, 4) .. ' ' .. H264)
  local bytes = inputs.read_file 'long.mp4'
  both(inputs.write_file('half.mp4', bytes:sub(1, math.floor(#bytes / 2))), "half%.mp4: the file is truncated: its 'mdat' part")
  make('fast.mp4', '-i long.mp4 -c copy -movflags +faststart')
  bytes = inputs.read_file 'fast.mp4'
  both(inputs.write_file('half.mp4', bytes:sub(1, math.floor(#bytes / 2))), 'half%.mp4: the file is truncated')
  both(inputs.write_file('headless.mp4', bytes:sub(1, 36)), 'headless%.mp4: ')
  t.raises(function() media.audio(path) end, 'long%.mp4 has no audio stream$')
  make('a.mp3', sound_source(48000))
  t.raises(function() media.reader(inputs.path 'a.mp3') end, 'a%.mp3 has no video stream$')
  make('zero.wav', '-f lavfi -i anullsrc=r=16000:cl=mono -t 0')
  t.raises(function() media.load_audio(inputs.path 'zero.wav') end, 'zero%.wav: its sound is empty$')
  local reader = media.reader(path)
  t.raises(function() reader:read(0) end, 'whole number from 1')
  t.raises(function() reader:seek(-1) end, 'whole number from 0')
  reader:close()
  t.raises(function() reader:read(1) end, 'is closed')
end)

t.test('a playlist cannot refer to other files', function()
  local playlist = '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n'
  t.raises(function() media.probe(inputs.write_file('list.m3u8', playlist)) end, 'list%.m3u8')
end)

inputs.remove()
t.done()
