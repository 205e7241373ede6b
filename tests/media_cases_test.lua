--- Media files from real programs: images and videos with rotation, slightly wrong headers, late sound, deep colours;
--- and writers that are not closed.

local lfs = require 'lfs'
local t = require 'tests.support.tap'
local cr = require 'cr'
local media = require 'cr.media'
local child = require 'tests.support.child'
local inputs = require 'tests.support.media_inputs'
local scratch = require 'tests.support.scratch'

local path = inputs.path
local FLAGS = '-sws_flags bicubic+accurate_rnd+full_chroma_int -pix_fmt rgb24 -f rawvideo'
local PICTURES = '-f lavfi -i testsrc2=size=64x48:rate=25:duration=2'

local function make(name, arguments)
  if not inputs.has_ffmpeg then t.skip 'the ffmpeg program is not installed' end
  if not inputs.ffmpeg(arguments .. ' ' .. name) then t.skip('ffmpeg cannot make ' .. name) end
  return path(name)
end

local function first_frame(name)
  local reader = media.reader(path(name))
  local frame = reader:read(1)[1]
  reader:close()
  return frame
end

local function gray(h, w) return cr.zeros(h, w, 3, { dtype = 'u8' }) end

-- What the child wrote to stderr, of a script in the folder of the inputs.
local function script(code) return child.run({ '-e', code }, { cwd = inputs.folder }) end

-- ---- rotated images ----------------------------------------------------------------

t.test('a photo is upright by its EXIF orientation', function()
  make('photo.jpg', PICTURES .. ' -frames:v 1 -update 1')
  local bytes = inputs.read_file 'photo.jpg'
  for orientation = 1, 8 do
    local tiff = 'II*\0\8\0\0\0' .. '\1\0' .. '\18\1\3\0\1\0\0\0' .. string.char(orientation) .. '\0\0\0' .. '\0\0\0\0'
    local exif = 'Exif\0\0' .. tiff
    local segment = '\255\225' .. string.char(0, #exif + 2) .. exif
    inputs.write_file('turned.jpg', bytes:sub(1, 2) .. segment .. bytes:sub(3))
    assert(inputs.ffmpeg(('-i turned.jpg %s -frames:v 1 ref.rgb'):format(FLAGS)))
    local x = media.read_picture(path 'turned.jpg')
    t.equal(table.concat(x.shape, 'x'), orientation > 4 and '64x48x3' or '48x64x3')
    t.ok(inputs.bytes(x) == inputs.read_file 'ref.rgb', 'orientation ' .. orientation)
    local info = media.probe(path 'turned.jpg')
    t.equal(info.width .. 'x' .. info.height, orientation > 4 and '48x64' or '64x48')
    x:free()
  end
end)

t.test('H.264 with rotation in its pictures', function()
  make('film.mp4', PICTURES .. ' -c:v libx264 -pix_fmt yuv420p')
  make('sei.mp4', '-i film.mp4 -c copy -bsf:v h264_metadata=display_orientation=insert:rotate=90')
  make('turned.mp4', '-i film.mp4 -c copy -metadata:s:v:0 rotate=90')
  local info = media.probe(path 'sei.mp4')
  t.equal(info.width .. 'x' .. info.height, '48x64')
  local ours, expected = first_frame 'sei.mp4', first_frame 'turned.mp4'
  t.ok(inputs.bytes(ours) == inputs.bytes(expected), 'as the same film with the turn in its container')
  local writer = media.writer(path 'like.mp4', { like = path 'sei.mp4' })
  writer:write(ours)
  writer:close()
  t.equal(media.probe(path 'like.mp4').height, 64)
  ours:free()
  expected:free()
end)

t.test('a writer `like` a video takes the size of the first frame, not of the headers', function()
  make('film.mp4', PICTURES .. ' -c:v libx264 -pix_fmt yuv420p')
  local writer = media.writer(path 'other.mp4', { like = path 'film.mp4' })
  local x, y = gray(32, 80), gray(48, 64)
  writer:write(x)
  t.raises(function() writer:write(y) end, 'u8 %[32 80 3%] on the CPU is needed, not u8 %[48 64 3%]')
  writer:close()
  local info = media.probe(path 'other.mp4')
  t.equal(info.width .. 'x' .. info.height, '80x32')
  t.equal(inputs.leftovers(), '')
  x:free()
  y:free()
end)

-- ---- headers ---------------------------------------------------------------------------------

-- A second of 16-bit sound at 16 kHz whose header names `claimed` bytes.
local function write_wav(name, claimed)
  local samples = ('\1\2\3\4'):rep(8000)
  return inputs.write_file(name, scratch.wav(samples):sub(1, 40) .. scratch.le(claimed, 4) .. samples)
end

t.test('a WAV whose length is unknown or slightly wrong is read', function()
  for _, claimed in ipairs { 0, 1900000000, 2000000000, 0x7ffff000, 0x7fffffff, 0xffffffff, 32002, 63998 } do
    local name = ('wav_%.0f.wav'):format(claimed)
    local result = script(("print((media.load_audio '%s'):size(1)) media.probe '%s'"):format(
      (write_wav(name, claimed)), path(name)))
    t.equal(result.out, '16000\n', name .. ': samples ' .. result.err)
    t.near(media.probe(path(name)).audio_duration, 1, 0, name .. ': seconds')
    local missing = claimed == 32002 and '0.0001' or claimed == 63998 and '0.9999'
    t.equal(result.err, missing and ('crescent: %s: the last %s s of the sound that its header claims are missing\n')
      :format(path(name), missing) or '', 'one line where sound is missing')
  end
  for _, claimed in ipairs { 64000, 100000, 1899999998 } do
    local name = write_wav('cut.wav', claimed)
    t.raises(function() media.audio(name) end, ("cut%%.wav: the file is truncated: its 'data' part should have %d bytes"):format(claimed))
  end
end)

t.test('a file that is truncated while it is read is an error', function()
  local samples = ('\1\2\3\4'):rep(400000)
  local name = inputs.write_file('shrinks.wav', scratch.wav(samples))
  local reader = media.audio(name)
  reader:read(1000):free()
  inputs.write_file('shrinks.wav', scratch.wav(samples):sub(1, 400000))
  t.raises(function()
    while true do
      local x = reader:read(100000)
      local n = x:size(1)
      x:free()
      if n < 100000 then break end
    end
  end, 'shrinks%.wav: the file was truncated while it was read')
  reader:close()
end)

t.test('data that cameras append to an MP4 are ignored; an index beyond the end is an error', function()
  make('film.mp4', PICTURES .. ' -f lavfi -i sine=d=2 -c:v libx264 -pix_fmt yuv420p -c:a aac')
  make('front.mp4', '-i film.mp4 -c copy -movflags +faststart')
  for _, name in ipairs { 'film.mp4', 'front.mp4' } do
    local bytes = inputs.read_file(name)
    for _, tail in ipairs { ('\255'):rep(1000), '\127\0\0\0abcd' .. ('z'):rep(100), '\0\0\0', '\127\255\255\255mdatxx' } do
      inputs.write_file('tail.mp4', bytes .. tail)
      local reader = media.reader(path 'tail.mp4')
      local frames = reader:read(100)
      t.equal(#frames, 50, name)
      for _, frame in ipairs(frames) do frame:free() end
      reader:close()
    end
  end
  local bytes = inputs.read_file 'front.mp4'
  local at = bytes:find('mdat', 1, true)
  -- The data box claims to end with the file, so only the index can tell.
  local cut = bytes:sub(1, #bytes - 5000)
  inputs.write_file('cut.mp4', cut:sub(1, at - 5) .. string.char(0, 0, math.floor((#cut - at + 5) / 256), (#cut - at + 5) % 256)
    .. cut:sub(at))
  t.raises(function() media.reader(path 'cut.mp4') end,
    'cut%.mp4: the file is truncated: its index refers to byte %d+, but the file has %d+ bytes')
end)

t.test('pipes and devices are refused with advice', function()
  local sentence = ': a pipe or device cannot be read twice: save it to a file first$'
  os.execute(("mkfifo '%s'"):format(path 'fifo'))
  for _, name in ipairs { '-', path 'fifo', '/dev/zero' } do
    t.raises(function() media.reader(name) end, sentence)
    t.raises(function() media.audio(name) end, sentence)
    t.raises(function() media.probe(name) end, sentence)
  end
end)

t.test('file names are never interpreted', function()
  local x, y = gray(4, 6), gray(4, 8)
  media.write_picture(path 'p%d.png', x)
  media.write_picture(path 'p1.png', y)
  media.write_picture(path 'p[1]*.png', x)
  for _, name in ipairs { 'p%d.png', 'p[1]*.png' } do
    local z = media.read_picture(path(name))
    t.equal(z:size(2), 6, name)
    z:free()
  end
  local before = lfs.currentdir()
  lfs.chdir(inputs.folder)
  for _, name in ipairs { '-x.mp4', 'film%d.mp4', 'a:b.mp4', ('n'):rep(251) .. '.mp4' } do
    local writer = media.writer(name)
    writer:write(gray(16, 16))
    writer:close()
    t.equal(media.probe(name).width, 16, name)
  end
  lfs.chdir(before)
  x:free()
  y:free()
end)

-- ---- the time of sound -----------------------------------------------------------------------

--- Seconds at which a sound begins to be audible, first and last.
local function heard(name, options)
  local x, rate = media.load_audio(path(name), options)
  local p, channels = x:pointer(), x:dim() == 2 and x:size(2) or 1
  local first, last
  for i = 0, x:size(1) - 1 do
    if math.abs(p[i * channels]) > 0.05 then first, last = first or i, i end
  end
  local length = x:size(1) / rate
  x:free()
  return first / rate, last / rate, length
end

t.test('a track that begins late is preceded by silence, when read and when written', function()
  for _, case in ipairs { { 'late.mkv', 'libopus' }, { 'late.mp4', 'aac' }, { 'late.mov', 'pcm_s16le' } } do
    make(case[1], PICTURES .. ' -itsoffset 0.4 -f lavfi -i sine=f=700:d=1.2:r=48000 -map 0:v -map 1:a -pix_fmt yuv420p -c:v libx264 -c:a '
      .. case[2])
    local first, last, length = heard(case[1], { rate = 16000, channels = 1, s16 = true })
    t.near(first, 0.4, 0.006, case[1])
    t.near(last, 1.6, 0.03, case[1])
    t.near(length, 1.6, 0.03, case[1])
    local writer = media.writer(path 'film.mp4', { like = path(case[1]), audio = path(case[1]) })
    local x = gray(48, 64)
    for _ = 1, 50 do writer:write(x) end
    writer:close()
    x:free()
    t.near((heard 'film.mp4'), 0.4, 0.006, case[1] .. ': in the output')
  end
end)

t.test('a gap is silence, and later sound keeps its time', function()
  -- 0.2 s of a tone at 0.2 s and at 2 s; between 0.5 and 1.3 s nothing was recorded.
  for _, codec in ipairs { 'pcm_s16le', 'libopus', 'flac' } do
    make('hole.mkv', '-f lavfi -i "aevalsrc=0.5*sin(4400*t)*(between(t\\,0.2\\,0.4)+between(t\\,2\\,2.2)):d=3:s=48000" ' ..
      '-af "aselect=not(between(t\\,0.5\\,1.3))" -c:a ' .. codec)
    local first, last, length = heard 'hole.mkv'
    t.near(first, 0.2, 0.006, codec)
    t.near(last, 2.2, 0.03, codec)
    t.near(length, 3, 0.03, codec)
  end
  -- Concatenated transport streams have their own clocks, and no gap between them.
  make('a.ts', '-f lavfi -i sine=d=1 -c:a mp2')
  local bytes = inputs.read_file 'a.ts'
  inputs.write_file('joined.ts', bytes .. bytes)
  local _, _, length = heard 'joined.ts'
  t.near(length, 2, 0.1, 'joined')
end)

-- ---- deep colours ----------------------------------------------------------------------------

t.test("10 bits in, 10 bits out, with the mastering display's metadata", function()
  make('hdr.mp4', PICTURES .. ' -pix_fmt yuv420p10le -c:v libx265 -tag:v hvc1 -x265-params "log-level=none:colorprim=bt2020:' ..
    'transfer=smpte2084:colormatrix=bt2020nc:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)' ..
    'L(10000000,50):max-cll=900,300"')
  local info = media.probe(path 'hdr.mp4')
  t.equal(info.bits, 10)
  t.equal(info.hdr.max_light, 900)
  local code = [[
    local writer = media.writer('%s', { like = 'hdr.mp4'%s })
    for _ = 1, 3 do writer:write(cr.zeros(48, 64, 3, { dtype = 'u8' })) end
    writer:close()
  ]]
  for _, name in ipairs { 'out.mp4', 'out.mkv' } do
    local result = script(code:format(name, ''))
    t.equal(result.code, 0, result.err)
    t.equal(result.err, ('crescent: %s: the video has 10 bits per sample; they pass through 8 bits, and the file has 10 (yuv420p10le)\n')
      :format(name))
    local out = media.probe(path(name))
    t.equal(out.bits, 10, name)
    t.equal(out.color_transfer, info.color_transfer)
    t.equal(out.hdr.mastering, 1, name)
    t.equal(out.hdr.max_light .. ' ' .. out.hdr.max_average_light, '900 300')
    for _, pair in ipairs { { 'primaries', 6 }, { 'white', 2 }, { 'luminance', 2 } } do
      for i = 0, pair[2] - 1 do
        local a, b = info.hdr[pair[1]], out.hdr[pair[1]]
        t.near(b[2 * i] / b[2 * i + 1], a[2 * i] / a[2 * i + 1], 1e-4, pair[1])
      end
    end
  end
  local deep = script([[
    local writer = media.writer('deep.mp4', { like = 'hdr.mp4', deep = true })
    for frame in media.frames('hdr.mp4', { deep = true }) do writer:write(frame) end
    writer:close()
  ]])
  t.equal(deep.code .. deep.err, '0', 'nothing is lost')
  local kept = media.probe(path 'deep.mp4')
  t.equal(('%s %d %d %d'):format(kept.pix_fmt, kept.hdr.mastering, kept.hdr.max_light, kept.color_transfer), 'yuv420p10le 1 900 16')
  local result = script(code:format('old.mkv', ", codec = 'mpeg4'"))
  t.ok(result.err:find('they pass through 8 bits, and the file has 8 %(yuv420p%)'), 'what is lost is said')
  script(code:format('eight.mp4', ", pix_fmt = 'yuv420p'"))
  t.equal(media.probe(path 'eight.mp4').bits, 8)
  t.raises(function() media.writer(path 'x.mp4', { width = 16, height = 16, pix_fmt = 'yuv420' }) end, "no pixel format 'yuv420'")
  t.raises(function() media.writer(path 'x.mp4', { width = 16, height = 16, pix_fmt = 'pal8' }) end, 'libx264 does not take pal8')
end)

-- ---- writers ---------------------------------------------------------------------------------

t.test('containers that do not support the streams are refused by name, before the work', function()
  for _, ending in ipairs { 'mpg', 'vob', 'ogv', 'gif', 'mp3', 'wav', 'mka', 'y4m', 'apng', 'mxf' } do
    t.raises(function() media.writer(path('x.' .. ending), { width = 16, height = 16 }) end,
      'x%.' .. ending .. ': a %w+ file cannot hold video and sound of this kind: use %.mp4, %.mov, %.mkv or %.webm$')
  end
end)

t.test('an output that is its own input is refused', function()
  make('film.mp4', PICTURES .. ' -c:v libx264 -pix_fmt yuv420p')
  os.execute(("ln -sf film.mp4 '%s'"):format(path 'link.mp4'))
  t.raises(function() media.writer(path 'link.mp4', { like = path 'film.mp4' }) end, 'link%.mp4 is also the input of the video')
  t.raises(function() media.writer(path 'film.mp4', { audio = path 'film.mp4' }) end, 'film%.mp4 is also the input of the sound')
end)

t.test('a file whose writer is never closed is finished, with a message', function()
  local write = [[
    local writer = media.writer 'forgotten.mp4'
    for _ = 1, 30 do writer:write(cr.zeros(16, 16, 3, { dtype = 'u8' })) end
  ]]
  local line = 'crescent: forgotten.mp4: the writer was never closed, so the file is finished now, with 30 frames: call close()\n'
  for what, code in pairs {
    ['at the end'] = write,
    ['in a global'] = 'w = nil ' .. write .. ' w = writer',
    ['by garbage collection'] = 'do ' .. write .. ' end collectgarbage() collectgarbage() media.probe "forgotten.mp4"',
    ['in a task'] = 'cr.run(function() ' .. write .. ' end)',
  } do
    local result = script(code)
    t.equal(result.code, 0, what)
    t.equal(result.err, line, what)
    t.equal(media.probe(path 'forgotten.mp4').frames, 30, what)
    os.remove(path 'forgotten.mp4')
  end
  for what, code in pairs {
    ['after an error'] = write .. " error 'no'",
    ['after an error in a task'] = "cr.run(function() " .. write .. " error 'no' end)",
    ['nothing was written'] = "media.writer('forgotten.mp4', { width = 16, height = 16 })",
    ['a writer that failed'] = write .. " pcall(writer.write, writer, cr.zeros(3, 3, 3, { dtype = 'u8' })) writer:abort()",
  } do
    local result = script(code)
    t.equal(result.code, code:find "error 'no'" and 1 or 0, what)
    t.ok(not result.err:find 'never closed', what)
    t.ok(not lfs.attributes(path 'forgotten.mp4'), what .. ': nothing appears')
    t.equal(inputs.leftovers(), '', what)
  end
end)

inputs.remove()
t.done()
