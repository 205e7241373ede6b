--- Sound that arrives in pieces, and video that is written frame by frame (cr.media's pcm, live_audio and live
--- writers).

local t = require 'tests.support.tap'
local child = require 'tests.support.child'
local cr = require 'cr'
local ffi = require 'ffi'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'

local RATE = 48000

-- A tone as f32 [n].
local function tone(n, rate, hertz)
  local x = cr.empty({ n }, { dtype = 'f32' })
  local p = x:pointer()
  for i = 0, n - 1 do p[i] = 0.5 * math.sin(2 * math.pi * hertz * i / rate) end
  return x
end

-- The same as 16-bit samples.
local function bytes_of(x)
  local n, p = x:numel(), x:pointer()
  local out = ffi.new('int16_t[?]', n)
  for i = 0, n - 1 do out[i] = math.floor(p[i] * 32767 + 0.5) end
  return ffi.string(out, 2 * n)
end

-- The largest error of a sound against that tone, away from its ends.
local function off_tone(x, rate, hertz, skip)
  local worst, p = 0, x:contiguous():pointer()
  for i = skip, x:size(1) - 1 - skip do worst = math.max(worst, math.abs(p[i] - 0.5 * math.sin(2 * math.pi * hertz * i / rate))) end
  return worst
end

t.test('pieces of any size are one sound', function()
  cr.scope(function()
    local pcm, data = media.pcm { rate = RATE }, bytes_of(tone(16000, 16000, 440))
    local at, sizes, i = 1, { 2, 640, 6, 4000, 1280 }, 0
    local parts = {}
    while at <= #data do
      i = i % #sizes + 1
      pcm:push(data:sub(at, at + sizes[i] - 1), { rate = 16000 })
      at = at + sizes[i]
      parts[#parts + 1] = pcm:take()
    end
    pcm:finish()
    parts[#parts + 1] = pcm:take()
    local all = cr.cat(parts, 1)
    t.ok(math.abs(all:size(1) - RATE) <= 64, ('%d samples'):format(all:size(1)))
    t.ok(off_tone(all, RATE, 440, 200) < 2e-3, 'the tone')
    pcm:close()
  end)
end)

t.test('a sound may change its rate, channels and format', function()
  cr.scope(function()
    local pcm = media.pcm { rate = RATE }
    pcm:push(bytes_of(tone(8000, 16000, 440)), { rate = 16000 })
    local second = tone(22050, 44100, 440)
    local both = cr.stack({ second, second }, 2):contiguous()
    pcm:push(ffi.string(both:pointer(), both:numel() * 4), { rate = 44100, channels = 2, format = 'f32' })
    pcm:push(tone(4000, 8000, 440), { rate = 8000 })
    pcm:finish()
    local all = pcm:take()
    t.ok(math.abs(all:size(1) - 1.5 * RATE) <= 200, ('%d samples'):format(all:size(1)))
    -- 220 periods per second: each piece begins where the previous one ended.
    local middle = all:narrow(1, 1, 24000)
    t.ok(off_tone(middle, RATE, 440, 200) < 2e-3)
    t.equal(pcm:take():size(1), 0, 'nothing is left')
    pcm:close()
  end)
end)

t.test('invalid samples are refused with a sentence, and NaN is silent', function()
  local pcm = media.pcm { rate = RATE }
  t.raises(function() pcm:push('abc', { rate = 16000 }) end, '3 bytes are not a whole number of samples of 1 channel of s16')
  t.raises(function() pcm:push('abcd', { rate = 16000, format = 'u8' }) end, "the format 'u8' is neither s16 nor f32")
  t.raises(function() pcm:push('abcd', { rate = 2000000 }) end, 'sound of 2000000 Hz')
  t.raises(function() pcm:push('abcd', { rate = 16000, speed = 2 }) end, 'speed')
  cr.scope(function()
    local x = cr.full({ 4800, 1 }, 0 / 0)
    pcm:push(x, { rate = RATE })
    pcm:finish()
    t.equal(pcm:take():abs():max():item(), 0)
  end)
  pcm:close()
  t.raises(function() pcm:take() end, 'closed')
end)

-- Writes frames of growing brightness with a tone to a live writer. Returns the output in pieces.
local function write(path, options, frames)
  local pieces = {}
  cr.run(function()
    options.width, options.height, options.live = 64, 48, true
    options.sound_rate = RATE
    local w = media.writer(path, options)
    cr.scope(function()
      local sound = tone(frames * 1920, RATE, 440):view(frames * 1920, 1)
      for k = 0, frames - 1 do
        w:sound(sound:narrow(1, k * 1920 + 1, 1920))
        w:write(cr.full({ 48, 64, 3 }, 40 + 4 * k, { dtype = 'u8' }))
        w:settle()
        if path == '' then pieces[k + 1] = w:take() end
        t.ok(w:sound_lag() >= 0 and w:sound_lag() < 0.07, ('the sound is %g s behind'):format(w:sound_lag()))
      end
    end)
    pieces[#pieces + 1] = w:close()
  end)
  return pieces
end

-- The frames and sound of a file that was written this way.
local function check(path, frames, what)
  cr.scope(function()
    local reader = media.reader(path, { fps = 25 })
    local list = reader:read(100)
    reader:close()
    t.equal(#list, frames, what .. ': frames')
    for k, frame in ipairs(list) do
      local level = frame:to('f32'):mean():item()
      t.ok(math.abs(level - (40 + 4 * (k - 1))) < 3, ('%s: frame %d has level %.1f'):format(what, k, level))
    end
    local sound = media.load_audio(path, { rate = RATE, channels = 1 })
    t.ok(math.abs(sound:size(1) - frames * 1920) < 3072, ('%s: %d samples'):format(what, sound:size(1)))
    t.ok(off_tone(sound:narrow(1, 1, (frames - 2) * 1920), RATE, 440, 2048) < 0.05, what .. ': the sound lies where it did')
  end)
end

t.test('each frame leaves at once, with its sound, as a fragment of MP4', function()
  local pieces = write('', { container = 'mp4' }, 30)
  for k = 1, 30 do t.ok(#pieces[k] > 0 and pieces[k]:find('moof', 1, true), ('frame %d has left'):format(k)) end
  t.ok(pieces[1]:find('^....ftyp'), 'the header comes first')
  check(scratch.write('memory.mp4', table.concat(pieces)), 30, 'memory')
  -- A reader that stops in the middle has everything up to there.
  local list = {}
  for k = 1, 20 do list[k] = pieces[k] end
  check(scratch.write('part.mp4', table.concat(list)), 20, 'a part')
end)

for _, name in ipairs { 'live.mp4', 'live.mkv', 'live.ts' } do
  t.test('a file that grows: ' .. name, function()
    write(scratch.path(name), {}, 30)
    check(scratch.path(name), 30, name)
  end)
end

t.test('missing sound is silent, and errors have a sentence', function()
  cr.run(function()
    cr.scope(function()
      local w = media.writer('', { live = true, container = 'mp4', width = 64, height = 48, sound_rate = RATE })
      t.raises(function() w:sound(cr.zeros(10, 2)) end, 'f32 %[n 1%] on the CPU is needed, not f32 %[10 2%]')
      local bytes = {}
      for k = 1, 10 do
        w:write(cr.full({ 48, 64, 3 }, 90, { dtype = 'u8' }))
        w:settle()
        bytes[k] = w:take()
      end
      bytes[11] = w:close()
      local sound = media.load_audio(scratch.write('silent.mp4', table.concat(bytes)), { rate = RATE, channels = 1 })
      t.ok(sound:size(1) > 8 * 1920 and sound:abs():max():item() < 1e-3, 'silence')
      t.raises(function() media.writer('', { live = true, width = 64, height = 48 }) end, 'name the container')
      t.raises(function() media.writer('', { live = true, container = 'wav', width = 64, height = 48 }) end,
        "memory: FFmpeg here cannot write video in a container named 'wav'")
      t.raises(function() media.writer('/no/folder/x.mp4', { live = true, width = 64, height = 48 }) end,
        '/no/folder/x.mp4: cannot be written')
      local plain = media.writer(scratch.path 'plain.mp4', { width = 64, height = 48 })
      t.raises(function() plain:sound(cr.zeros(10, 1)) end, 'without a sound_rate')
      t.raises(function() plain:take() end, 'does not write to memory')
      plain:abort()
    end)
  end)
end)

t.test('a live sound is read from a URL or a device', function()
  cr.run(function()
    cr.scope(function()
      local path = scratch.write('tone.wav', scratch.wav(bytes_of(tone(16000, 16000, 440))))
      local reader = media.live_audio('file:' .. path, { rate = RATE, channels = 1 })
      local parts, n = {}, 0
      repeat
        parts[#parts + 1] = reader:read(960)
        n = n + parts[#parts]:size(1)
      until parts[#parts]:size(1) < 960
      reader:close()
      t.ok(math.abs(n - RATE) <= 64, ('%d samples'):format(n))
      t.ok(off_tone(cr.cat(parts, 1), RATE, 440, 200) < 2e-3)
      t.raises(function() media.live_audio('tcp://127.0.0.1:1', {}) end, 'tcp://127.0.0.1:1: cannot be opened as live sound')
      t.raises(function() media.live_audio('x', { format = 'nonesuch' }) end, "has no input format or device named 'nonesuch'")
    end)
  end)
end)

child.clean()
t.done()
