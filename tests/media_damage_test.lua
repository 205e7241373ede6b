--- Damaged and truncated files: what is an error, what is a warning, and what is ignored.

local t = require 'tests.support.tap'
local media = require 'cr.media'
local child = require 'tests.support.child'
local inputs = require 'tests.support.media_inputs'

local path = inputs.path
local SECONDS, RATE = 3, 25

local function make(name, arguments)
  if not inputs.has_ffmpeg then t.skip 'the ffmpeg program is not installed' end
  if not inputs.ffmpeg(arguments .. ' ' .. name) then t.skip('ffmpeg cannot make ' .. name) end
  return path(name)
end

local CODECS = {
  ['h264.mp4'] = '-c:v libx264 -g 25 -x264-params open-gop=1', ['h264.mkv'] = '-c:v libx264 -g 25', ['h264.ts'] = '-c:v libx264 -g 25',
  ['hevc.mp4'] = '-c:v libx265 -x265-params log-level=none:keyint=25', ['mpeg2.ts'] = '-c:v mpeg2video -g 15 -bf 2',
  ['mpeg4.avi'] = '-c:v mpeg4 -g 25 -bf 2', ['vp9.webm'] = '-c:v libvpx-vp9 -g 25 -deadline realtime -cpu-used 8',
  ['flv1.flv'] = '-c:v flv -g 25', ['jpeg.avi'] = '-c:v mjpeg', ['hash.mp4'] = '-c:v libx265 -x265-params log-level=none:hash=1',
  ['ffv1.avi'] = '-c:v ffv1 -level 3 -slices 4 -slicecrc 1', ['vp8.mkv'] = '-c:v libvpx -g 25 -deadline good -cpu-used 5',
  ['av1.mp4'] = '-c:v libaom-av1 -g 25 -usage realtime -cpu-used 8',
}

local function film(name)
  return make(name, ('-f lavfi -i testsrc2=size=128x96:rate=%d:duration=%d -pix_fmt %s %s'):format(RATE, SECONDS,
    name:find 'jpeg' and 'yuvj420p' or 'yuv420p', CODECS[name]))
end

-- Reads all frames in a separate process: their number, or the error; lines on stderr.
local function read(name, first)
  local result = child.run({ '-e', ([[
    local reader, count = media.reader '%s', 0
    %s
    while true do
      local frames = reader:read(8)
      if #frames == 0 then break end
      count = count + #frames
      for _, frame in ipairs(frames) do frame:free() end
    end
    io.write(count)]]):format(name, first and ('reader:seek(%d)'):format(first) or '') }, { cwd = inputs.folder })
  return tonumber(result.out), result.err, result.code
end

-- The file with a range of its bytes inverted.
local function damage(name, from, to, every)
  local bytes = inputs.read_file(name)
  local parts, at = {}, 1
  for i = math.floor(#bytes * from), math.floor(#bytes * to), every do
    parts[#parts + 1] = bytes:sub(at, i - 1)
    parts[#parts + 1] = string.char(255 - bytes:byte(i))
    at = i + 1
  end
  parts[#parts + 1] = bytes:sub(at)
  inputs.write_file('bad_' .. name, table.concat(parts))
  return 'bad_' .. name
end

for _, name in ipairs { 'h264.mp4', 'hevc.mp4', 'mpeg4.avi', 'mpeg2.ts', 'flv1.flv', 'jpeg.avi' } do
  t.test('damage in the middle is an error that names the file and the time: ' .. name, function()
    film(name)
    local count, lines = read(name)
    t.equal(count, SECONDS * RATE, 'whole')
    t.equal(lines, '')
    local code
    count, lines, code = read(damage(name, 0.4, 0.6, name:find 'hevc' and 1 or 97))
    t.equal(count, nil)
    t.equal(code, 1)
    local time = lines:match('crescent: bad_' .. name:gsub('%.', '%%.') .. ': its frame at ([%d.]+) s is damaged or missing: ' ..
      'cut that part out, or repair the file\n')
    t.ok(time and tonumber(time) > 0.5 and tonumber(time) < 2.5, lines)
  end)
end

for _, name in ipairs { 'hash.mp4', 'ffv1.avi', 'vp9.webm', 'av1.mp4', 'vp8.mkv' } do
  t.test('a few wrong bytes are an error if a checksum or the decoder detects them: ' .. name, function()
    film(name)
    local count, lines = read(name)
    t.equal(count, SECONDS * RATE, 'whole')
    t.equal(lines, '')
    for tenth = 3, 8 do
      count, lines = read(damage(name, tenth / 10, tenth / 10 + 0.001, 1))
      t.equal(count, nil, tenth .. ' tenths')
      local unfit = lines:find 'the checksum of its part from [%d.]+ s on is wrong, so frames there are damaged: cut that part out'
      local damaged = lines:find 'its frame at [%d.]+ s is damaged or missing: ' or
        lines:find 'its last frames, from [%d.]+ s on, are damaged: '
      t.ok(name == 'vp8.mkv' and unfit or name ~= 'vp8.mkv' and damaged, lines)
    end
  end)
end

t.test("a Matroska block with a wrong checksum: the rest can be used, damaged sound is reported", function()
  film 'vp8.mkv'
  make('both.mkv', '-i vp8.mkv -f lavfi -i sine=f=700:d=3:r=44100 -c:v copy -c:a pcm_s16le -cluster_time_limit 1000')
  local bytes = inputs.read_file 'both.mkv'
  local parts, at = {}, 0
  repeat
    at = bytes:find('\31\67\182\117', at + 1, true)
    parts[#parts + 1] = at
  until not at
  t.ok(#parts >= 3, #parts .. ' clusters')
  local middle = math.floor((parts[2] + parts[3]) / 2)
  inputs.write_file('unfit.mkv', bytes:sub(1, middle) .. string.char(255 - bytes:byte(middle + 1)) .. bytes:sub(middle + 2))
  t.equal((read('unfit.mkv', 60)), 15)
  local count, lines = read 'unfit.mkv'
  t.equal(count, nil)
  local from = tonumber(lines:match ': the checksum of its part from ([%d.]+) s on')
  t.ok(from and from > 0.5 and from < 2.1, lines)
  local reader = media.reader(path 'unfit.mkv')
  local before = reader:read(math.floor(from * RATE))
  t.equal(#before, math.floor(from * RATE), 'what comes before')
  for _, frame in ipairs(before) do frame:free() end
  reader:close()
  local result = child.run({ '-e', "print((media.load_audio 'unfit.mkv'):size(1))" }, { cwd = inputs.folder })
  t.equal(result.out, '132300\n', result.err)
  t.ok(result.err:find '^crescent: unfit.mkv: the checksum of its part from [%d.]+ s on is wrong: its sound may be damaged\n$', result.err)
end)

t.test('frames after a damaged key frame are damaged, too', function()
  film 'h264.mkv'
  local bytes, key = inputs.read_file 'h264.mkv', nil
  local pipe = io.popen(('ffprobe -v error -select_streams v -show_entries packet=pos,size,flags -of csv=p=0 "%s"'):format(path 'h264.mkv'))
  for line in pipe:lines() do
    local size, pos = line:match '(%d+),(%d+),K'
    key = key or size and tonumber(pos) > #bytes / 5 and { tonumber(pos), tonumber(size) }
  end
  pipe:close()
  local half = key[1] + math.floor(key[2] / 2)
  inputs.write_file('key.mkv', bytes:sub(1, half) .. ('\170\3\99'):rep(20) .. bytes:sub(half + 61))
  make('key.mp4', '-i key.mkv -c copy') -- this format has no checksum
  for _, first in ipairs { 25, 26, 40 } do
    local count, lines = read('key.mp4', first)
    t.equal(count, nil, 'from picture ' .. first)
    t.ok(lines:find 'is damaged or missing', lines)
  end
  t.equal((read('key.mp4', 50)), 25, 'from the next key frame on')
end)

t.test('frames after the damage can be used, damaged ones cannot', function()
  film 'h264.mp4'
  local bad = damage('h264.mp4', 0.35, 0.4, 97)
  t.equal((read(bad, 60)), 15, 'from the next key frame on')
  local count, lines = read(bad, 32)
  t.equal(count, nil)
  t.ok(lines:find 'is damaged or missing', lines)
  local reader = media.reader(path(bad))
  t.raises(function() for _ = 1, 10 do for _, x in ipairs(reader:read(8)) do x:free() end end end, 'is damaged or missing')
  reader:seek(60)
  local frames = reader:read(1)
  t.equal(#frames, 1)
  frames[1]:free()
  reader:seek(0)
  t.raises(function() for _ = 1, 10 do for _, x in ipairs(reader:read(8)) do x:free() end end end, 'is damaged or missing')
  reader:close()
end)

t.test('a video that begins in the middle of a sequence is not damaged', function()
  for name, least in pairs { ['h264.mp4'] = 50, ['hevc.mp4'] = 50, ['mpeg2.ts'] = 60, ['mpeg4.avi'] = 60, ['vp9.webm'] = 50,
    ['flv1.flv'] = 60 } do
    film(name)
    make('cut_' .. name, ("-i %s -c copy -bsf:v noise=drop='lt(n\\,10)'"):format(name))
    local count, lines = read('cut_' .. name)
    t.ok(count and count >= least, name .. ': ' .. tostring(count) .. ' ' .. lines)
    t.equal(lines, name == 'vp9.webm' and 'crescent: cut_vp9.webm: it begins in the middle of a sequence: what cannot be ' ..
      'decoded before 0.60 s is left out or incomplete\n' or '', name)
  end
end)

-- Truncates a video at several positions: check(lines) for each.
local function cut_off(name, check)
  film(name)
  local bytes = inputs.read_file(name)
  for share = 3, 8 do
    inputs.write_file('end_' .. name, bytes:sub(1, math.floor(#bytes * share / 10)))
    local count, lines = read('end_' .. name)
    t.ok(count and count > 5 and count < SECONDS * RATE, ('%s, %d tenths: %s %s'):format(name, share, count, lines))
    if check then check(lines) end
  end
end

t.test('a truncated video is read up to its end, with a message', function()
  for _, name in ipairs { 'mpeg4.avi', 'flv1.flv', 'jpeg.avi', 'vp9.webm', 'h264.mkv' } do
    cut_off(name, function(lines)
      t.ok(lines ~= '', name .. ': it is told')
      local rest = lines:gsub(('crescent: end_%s: the file is truncated: its header claims %%d+ bytes, but %%d+ are there\n')
        :format(name), '')
        :gsub(('crescent: end_%s: it is truncated: its last frame, at [%%d.]+ s, is left out or incomplete\n'):format(name), '')
      t.equal(rest, '', name)
    end)
  end
  for _, name in ipairs { 'h264.ts', 'mpeg2.ts' } do cut_off(name) end -- these formats do not store their length
end)

t.test('a transport stream with lost packets gives an error or a message; a concatenated one nothing', function()
  film 'mpeg2.ts'
  local bytes = inputs.read_file 'mpeg2.ts'
  inputs.write_file('joined.ts', bytes .. bytes)
  local count, lines = read 'joined.ts'
  t.equal(lines, '')
  t.near(count, 2 * SECONDS * RATE, 2)
  local packets = math.floor(#bytes / 188)
  for share = 2, 8 do
    local at = math.floor(packets * share / 10) * 188
    inputs.write_file('lost.ts', bytes:sub(1, at) .. bytes:sub(at + 188 * 3 + 1))
    count, lines = read 'lost.ts'
    t.ok(lines:find 'bytes are missing near' or not count and lines:find 'is damaged or missing', ('%d tenths: %s'):format(share, lines))
  end
end)

t.test('damaged sound is reported in one line, and keeps its time', function()
  make('tone.mp2', '-f lavfi -i sine=f=700:d=3:r=44100 -c:a mp2')
  make('tone.mkv', '-i tone.mp2 -c copy')
  make('noise.mkv', "-i tone.mkv -c copy -bsf:a noise=amount='if(between(n\\,40\\,50)\\,1\\,0)'")
  local result = child.run({ '-e', "print((media.load_audio 'noise.mkv'):size(1))" }, { cwd = inputs.folder })
  t.equal(result.code, 0, result.err)
  t.near(tonumber(result.out), 3 * 44100, 3000)
  t.ok(result.err:find '^crescent: noise.mkv: its sound is damaged at 1%.[0-3]%d s: what cannot be decoded is silent\n$', result.err)
end)

t.test('sound with a wrong checksum is reported', function()
  make('tone.flac', '-f lavfi -i sine=f=700:d=3:r=44100 -c:a flac')
  local result = child.run({ '-e', ("media.load_audio '%s'"):format(damage('tone.flac', 0.5, 0.5, 1)) }, { cwd = inputs.folder })
  t.ok(result.err:find 'bad_tone.flac: its sound is damaged at [%d.]+ s', result.err)
end)

t.test('NaN samples are reported, and silent', function()
  for _, format in ipairs { 'f32le', 'f64le' } do
    local name = format .. '.wav'
    make(name, '-f lavfi -i sine=f=700:d=1:r=16000 -ac 2 -c:a pcm_' .. format)
    local bytes, nan = inputs.read_file(name), format == 'f32le' and '\0\0\192\127' or '\0\0\0\0\0\0\240\255'
    local at = bytes:find('data', 1, true) + 7 + #nan * 2 * 8000
    inputs.write_file('nan_' .. name, bytes:sub(1, at) .. nan .. bytes:sub(at + #nan + 1))
    local result = child.run({ '-e', ([[
      local x, y = media.load_audio 'nan_%s', media.load_audio '%s'
      print(x:size(1), x:abs():max():item() <= 1, (x - y):ne(0):to 'f32':sum():item(), x:narrow(1, 8001, 1):narrow(2, 1, 1):item())
    ]]):format(name, name) }, { cwd = inputs.folder })
    t.equal(result.out, '16000\ttrue\t1\t0\n', result.err)
    local line = '^crescent: nan_' .. name .. ': its sound is damaged at [%d.]+ s: what cannot be decoded is silent\n$'
    t.ok(result.err:find(line), result.err)
  end
end)

t.test('an image with broken metadata is read', function()
  make('photo.jpg', '-f lavfi -i testsrc2=size=128x96 -frames:v 1 -pix_fmt yuvj420p')
  local bytes = inputs.read_file 'photo.jpg'
  inputs.write_file('exif.jpg', bytes:sub(1, 2) .. '\255\225\0\20Exif\0\0MM\0\42\255\255\255\255\0\0' .. bytes:sub(3))
  t.equal(inputs.bytes(media.read_picture(path 'exif.jpg')), inputs.bytes(media.read_picture(path 'photo.jpg')))
end)

t.test('a truncated image is an error', function()
  for _, ending in ipairs { 'jpg', 'png', 'bmp', 'tiff' } do
    local name = 'whole.' .. ending
    make(name, '-f lavfi -i testsrc2=size=128x96 -frames:v 1 -pix_fmt ' .. (ending == 'jpg' and 'yuvj420p' or 'rgb24'))
    local bytes = inputs.read_file(name)
    t.equal(media.read_picture(path(name)):size(1), 96, name)
    for tenths = 3, 9 do
      inputs.write_file('part_' .. name, bytes:sub(1, math.floor(#bytes * tenths / 10)))
      t.raises(function() media.read_picture(path('part_' .. name)) end, 'part_whole.' .. ending .. ': ')
    end
  end
end)

t.test("a failing allocation inside FFmpeg is an error, whatever FFmpeg returns", function()
  film 'h264.mp4'
  local result = child.run({ '-e', [[
    local ffi = require 'ffi'
    ffi.cdef 'void av_max_alloc(size_t); void *av_malloc(size_t); int64_t cr__allocations_failed(void);'
    local reader, writer = media.reader 'h264.mp4', media.writer 'short.mp4'
    for _, frame in ipairs(reader:read(8)) do writer:write(frame) end
    local util
    for line in io.lines '/proc/self/maps' do util = util or line:match '(/%S*libavutil%S*)' end
    local av = ffi.load(util)
    av.av_max_alloc(2 ^ 62)
    assert(av.av_malloc(2 ^ 60) == nil)
    if ffi.C.cr__allocations_failed() == 0 then return print 'uncounted' end
    print(select(2, pcall(reader.read, reader, 8)))
    print(select(2, pcall(writer.close, writer)))
    print(#media.reader 'h264.mp4':read(1))
  ]] }, { cwd = inputs.folder })
  t.equal(result.code, 0, result.err)
  if child.program:find '/sanitize' then t.skip 'a sanitizer answers for memory' end
  t.equal(result.out, 'h264.mp4: out of memory\nshort.mp4: out of memory\n1\n')
  t.equal(inputs.leftovers(), '')
  t.ok(not io.open(path 'short.mp4'), 'no file')
end)

t.test('an encoder without memory reports that, whatever its library returns', function()
  if child.program:find '/sanitize' then t.skip 'a sanitizer takes all of the address space' end
  local result = child.run({ '-e', [[
    local ffi = require 'ffi'
    ffi.cdef 'typedef struct { uint64_t now, most; } limit; int setrlimit(int, const limit *);'
    local function writer(size) return media.writer('large.mp4', { width = size, height = size, fps = 25 }) end
    writer(64):abort()
    local AS, pages = 9, tonumber(io.open '/proc/self/statm':read '*n')
    ffi.C.setrlimit(AS, ffi.new('limit', pages * 4096 + 128 * 2 ^ 20, pages * 4096 + 128 * 2 ^ 20))
    print(select(2, pcall(writer, 4096)))
  ]] }, { cwd = inputs.folder, env = { CR_THREADS = '1' } })
  t.equal(result.code, 0, result.err)
  t.ok(result.out:find 'large.mp4: the encoder libx264 cannot be opened at 4096x4096: out of memory\n$', result.out)
  t.equal(inputs.leftovers(), '')
end)

inputs.remove()
t.done()
