--- `crescent lipsync` as a command: order and number of frames, what stays untouched, options, reports, and errors.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local scratch = require 'tests.support.scratch'
local smooth = require 'tests.support.formula_image'
local media = require 'cr.media'
local cjson = require 'cjson'
local lfs = require 'lfs'

local path, write_voice, frames_of = clip.path, clip.voice, clip.frames
local WIDTH, HEIGHT, FRAMES = 160, 120, 11

local function write_points(name, n, missing)
  return clip.points(name, clip.moving(n, { { 60, 40 }, { 100, 41 }, { 80, 66 } }, missing))
end

local video, voice, points, checkpoint, white

local function prepare()
  cr.scope(function()
    checkpoint = clip.checkpoint 'checkpoint'
    video = clip.video('face.mkv', FRAMES, HEIGHT, WIDTH)
    voice = write_voice('voice.wav', 0.6)
    points = write_points('points.json', FRAMES)
    white = path 'white.png'
    media.write_picture(white, cr.full({ 64, 64, 3 }, 255, { dtype = 'u8' }))
  end)
end

--- Runs lipsync with the usual arguments, then those given ("--name value" pairs replace).
local function lipsync(extra)
  local args = { 'lipsync', '--video', video, '--audio', voice, '--out', path 'out.mkv', '--checkpoint', checkpoint,
    '--size', '64', '--steps', '1', '--points', points, '--lossless', '--length', 'reference', '--quiet' }
  for _, word in ipairs(extra or {}) do args[#args + 1] = word end
  return child.run(args)
end

local function same(a, b) return smooth.compare(a, b) == 0 end

clip.needs_whisper(t, 'lipsync')

prepare()

t.test('a sound longer than the video: the video plays forward, backward, forward', function()
  local long = write_voice('long.wav', 1.2)
  local r = lipsync { '--audio', long, '--mask', white }
  t.equal(r.code, 0, r.err)
  local out = frames_of 'out.mkv'
  -- 1.2 s give 60 encoder positions, so 32 frames.
  t.equal(#out, 32, 'frames')
  for i, frame in ipairs(out) do
    local turn, within = math.floor((i - 1) / FRAMES), (i - 1) % FRAMES
    local k = turn % 2 == 0 and within or FRAMES - 1 - within
    t.ok(same(frame, smooth.image('frame' .. k, HEIGHT, WIDTH)), ('shown frame %d is source frame %d'):format(i, k))
  end
end)

t.test('a shorter sound cuts the video; --tail keep keeps the rest; --start and --duration', function()
  local short = write_voice('short.wav', 0.2)
  t.equal(lipsync { '--audio', short }.code, 0)
  t.equal(#frames_of 'out.mkv', 7, 'frames of 0.2 s')
  t.equal(lipsync { '--audio', short, '--tail', 'keep' }.code, 0)
  local out = frames_of 'out.mkv'
  t.equal(#out, FRAMES, 'frames with the tail')
  t.ok(same(out[9], smooth.image('frame8', HEIGHT, WIDTH)), 'the tail is untouched')
  t.ok(not same(out[2], smooth.image('frame1', HEIGHT, WIDTH)), 'the rest is not')
  t.equal(lipsync { '--start', '0.2', '--duration', '0.12', '--mask', white }.code, 0)
  out = frames_of 'out.mkv'
  t.equal(#out, 3, 'frames of 0.12 s')
  t.ok(same(out[1], smooth.image('frame5', HEIGHT, WIDTH)), 'begins with frame 5')
end)

t.test('only the regenerated region changes', function()
  t.equal(lipsync().code, 0)
  local out = frames_of 'out.mkv'
  local align = require 'models.latentsync.align'
  local aligner = align.new { size = 64 }
  local all = cjson.decode(io.open(points):read '*a')
  for k = 0, FRAMES - 1 do
    local matrix = aligner:matrix(all[k + 1])
    local frame = smooth.image('frame' .. k, HEIGHT, WIDTH)
    local weight, area = align.region_weight(frame, matrix, align.mask(64))
    -- Where the weight is 0, the pixel equals the decoded one.
    local p, q, w = out[k + 1]:pointer(), frame:pointer(), weight:contiguous():pointer()
    local changed, wrong = 0, 0
    for y = 0, HEIGHT - 1 do
      for x = 0, WIDTH - 1 do
        local ax, ay = x - area.left, y - area.top
        local inside = ax >= 0 and ay >= 0 and ax < area.width and ay < area.height and w[ay * area.width + ax] > 0
        for c = 0, 2 do
          local at = (y * WIDTH + x) * 3 + c
          if p[at] ~= q[at] then
            if inside then changed = changed + 1 else wrong = wrong + 1 end
          end
        end
      end
    end
    t.equal(wrong, 0, 'values changed outside, frame ' .. k)
    t.ok(changed > 100, 'the area itself changes')
  end
end)

t.test('10 bits: pixels outside of the region have the same bits', function()
  local input = path 'deep.mkv'
  local sink = media.writer(input, { deep = true, pix_fmt = 'yuv420p10le', codec = 'ffv1' })
  local noise = cr.generator(5, 'torch-cpu')
  cr.scope(function() -- the usual images, with values between their levels
    for k = 0, 3 do
      local x = smooth.image('frame' .. k, HEIGHT, WIDTH):to 'f32' / 255
      sink:write((x + (cr.rand(HEIGHT, WIDTH, 3, { generator = noise }) - 0.5) / 255):clamp(0, 1))
    end
  end)
  sink:close()
  local holed = write_points('holed.json', 4, function(i) return i == 2 end)
  local r = lipsync { '--video', input, '--points', holed, '--duration', '0.16' }
  t.equal(r.code .. r.err:gsub('scheduler ddim: 1 step is too few [^\n]*\n', ''), '0')
  t.equal(media.probe(path 'out.mkv').pix_fmt, 'yuv420p10le')
  local align = require 'models.latentsync.align'
  local aligner = align.new { size = 64 }
  cr.scope(function()
    local before = media.reader(input, { deep = true, wait = true })
    local after = media.reader(path 'out.mkv', { deep = true, wait = true })
    local a, b = before:read(4), after:read(9)
    t.equal(#b, 4)
    for i = 1, 4 do
      local old, new = a[i]:whole(), b[i]:whole()
      local changed = (old.values - new.values):ne(0)
      if i == 2 then
        t.equal(changed:to 'f32':sum():item(), 0, 'a frame without a face')
      else
        local matrix = aligner:matrix { { 60 + i, 40 }, { 100 + i, 41 }, { 80 + i, 66 } }
        local weight, area = align.region_weight(old, matrix, align.mask(64))
        local all = cr.zeros(HEIGHT, WIDTH, 1)
        all:narrow(1, area.top + 1, area.height):narrow(2, area.left + 1, area.width):copy_(weight)
        local luma = changed:narrow(1, 1, HEIGHT * WIDTH):view(HEIGHT, WIDTH, 1):to 'f32'
        t.equal((luma * all:eq(0):to 'f32'):sum():item(), 0, 'luma outside, frame ' .. i)
        t.ok(luma:sum():item() > 100, 'the area itself changes')
        -- Chroma: as far as its filter reaches.
        local near = require 'cr.image'.erode(all:eq(0):to 'f32', 4, 4)
        local rgb = (old:rgb() - new:rgb()):abs():max(3, true)
        t.equal((rgb * require 'cr.image'.erode(near, 4, 4)):max():item(), 0, 'colours outside')
      end
      for _, frame in ipairs { a[i], b[i] } do frame:free() end
    end
    before:close()
    after:close()
  end)
  r = lipsync { '--video', input, '--points', holed, '--duration', '0.16', '--pix-fmt', 'bgr0' }
  t.equal(r.code, 0)
  t.ok(r.err:find('the video has 10 bits per sample; they pass through 8 bits, and the file has 8 (bgr0)', 1, true), r.err)
end)

t.test('frames without a face: keep, hold, error, none at all', function()
  local gaps = write_points('gaps.json', FRAMES, function(i) return i >= 5 and i <= 6 end)
  t.equal(lipsync { '--points', gaps, '--report', path 'report.json' }.code, 0)
  local out = frames_of 'out.mkv'
  t.ok(same(out[5], smooth.image('frame4', HEIGHT, WIDTH)), 'keep: untouched')
  t.ok(not same(out[7], smooth.image('frame6', HEIGHT, WIDTH)), 'the next one is made')
  local report = cjson.decode(io.open(path 'report.json'):read '*a')
  -- The video is shown forward and backward, but its two frames without a face are counted once.
  t.equal(report.frames_without_face, 2, 'counted')
  t.equal(lipsync { '--points', gaps, '--no-face', 'hold' }.code, 0)
  t.ok(not same(frames_of 'out.mkv'[5], smooth.image('frame4', HEIGHT, WIDTH)), 'hold: made at the last place')
  os.remove(path 'out.mkv')
  local r = lipsync { '--points', gaps, '--no-face', 'error' }
  t.equal(r.code, 1)
  t.ok(r.err:find 'frame 5 %(at 0%.16 s%) has no face', r.err)
  t.ok(not child.exists(path 'out.mkv'), 'no output')
  r = lipsync { '--points', write_points('none.json', FRAMES, function() return true end) }
  t.equal(r.code, 1)
  t.ok(r.err:find 'no face was found in any of the 11 frames', r.err)
  t.ok(not child.exists(path 'out.mkv'), 'no output')
end)

t.test('H.264 with sound: size, label, report, latents; the same seed gives the same', function()
  local odd = clip.video('odd.mkv', 5, 121, 161)
  local args = { '--video', odd, '--out', path 'out.mp4', '--report', path 'report.json', '--dump-latents', path 'a.safetensors' }
  local function without_lossless(more)
    local all = { 'lipsync', '--video', odd, '--audio', voice, '--checkpoint', checkpoint, '--size', '64', '--steps', '2',
      '--points', points, '--length', 'reference', '--quiet' }
    for _, word in ipairs(more) do all[#all + 1] = word end
    return child.run(all)
  end
  local r = without_lossless(args)
  t.equal(r.code, 0, r.err)
  local info = media.probe(path 'out.mp4')
  t.equal(info.width .. 'x' .. info.height, '162x122', 'padded to even')
  t.ok(info.has_audio and info.sample_rate == 16000 and info.channels == 1, 'the sound as it was')
  t.near(info.duration, 17 / 25, 0.03, 'seconds')
  local bytes = io.open(path 'out.mp4', 'rb'):read '*a'
  t.ok(bytes:find('made by AI', 1, true), 'labelled')
  local report = cjson.decode(io.open(path 'report.json'):read '*a')
  t.equal(report.frames, 17)
  local worked = 0
  for _, stage in ipairs { 'decode', 'align', 'audio', 'encode latents', 'denoise', 'decode latents', 'paste', 'encode' } do
    local s = report.stages[stage]
    t.ok(s and s.seconds > 0, 'stage ' .. stage)
    t.ok(s.working_seconds >= 0 and s.working_seconds <= s.seconds, 'its work is part of it')
    worked = worked + s.working_seconds
  end
  t.ok(worked > 0 and worked <= report.seconds, ('%g s of work in %g s'):format(worked, report.seconds))
  t.ok(report.peak_resident_bytes > 1e6 and #report.checkpoint.unet.sha256 == 64 and report.seed == 1247, 'the rest')
  t.equal(without_lossless { '--out', path 'plain.mp4', '--no-label', '--dump-latents', path 'b.safetensors' }.code, 0)
  t.ok(not io.open(path 'plain.mp4', 'rb'):read '*a':find('made by AI', 1, true), 'not labelled')
  local a, b = cr.load(path 'a.safetensors').latents, cr.load(path 'b.safetensors').latents
  t.equal(table.concat(a.shape, ' '), '1 4 17 8 8')
  t.equal(t.relative_error(a, b), 0, 'the same latents')
  t.equal(without_lossless { '--out', path 'plain.mp4', '--seed', '3', '--dump-latents', path 'b.safetensors' }.code, 0)
  t.ok(t.relative_error(a, cr.load(path 'b.safetensors').latents) > 0.1, 'another seed, other latents')
end)

t.test('progress: one line per second if stderr is not a terminal', function()
  local args = { 'lipsync', '--video', video, '--audio', voice, '--out', path 'out.mkv', '--checkpoint', checkpoint,
    '--size', '64', '--steps', '1', '--points', points, '--lossless', '--length', 'reference' }
  local r = child.run(args)
  t.equal(r.code, 0, r.err)
  args[#args + 1] = '--quiet'
  t.equal(child.run(args).err, 'scheduler ddim: 1 step is too few for this method, which needs at least 3; expect ' ..
    'patches or blur\n', 'quiet is no progress, and warnings still')
  t.ok(r.err:find '%d/17 frames', r.err)
  t.ok(r.err:find('\n64 px, 17 frames, faces by the points given\n', 1, true), 'the size and the faces: ' .. r.err)
  t.ok(r.err:find 'out%.mkv: 17 frames in [%d.]+ s %(64 px, 1 step of ddim, cpu%)', 'the closing line: ' .. r.err)
  t.ok(not r.err:find '[\r\27]', 'no terminal codes')
  t.ok(r.err:find 'ddim: 1 step is too few', 'steps that are too few')
  t.ok(r.err:find '%.mkv is shorter than the sound: after 0%.44 s it runs backward and forward\n', r.err)
  t.ok(r.lines <= r.seconds + 8, 'not more than a line a second, four about the job, and the last')
end)

t.test('schedulers by name, file and checkpoint; caches and guidance; report and latents name them', function()
  local function sampled(name, more)
    local words = { '--report', path 'report.json', '--dump-latents', path(name) }
    for _, word in ipairs(more) do words[#words + 1] = word end
    local r = lipsync(words)
    t.equal(r.code, 0, r.err)
    return cr.load(path(name)).latents, cjson.decode(io.open(path 'report.json'):read '*a').settings
  end
  local ddim = sampled('a.safetensors', { '--steps', '2' })
  local mine, settings = sampled('b.safetensors',
    { '--steps', '2', '--scheduler', cr.root .. '/scripts/examples/my_scheduler.lua:lookahead=0' })
  t.near(mine, ddim, 1e-5, 'DDIM from a file of its own')
  t.ok(settings.scheduler:find 'my_scheduler.lua' and settings.scheduler_options.lookahead == 0, 'the file in the report')

  local both, named = sampled('c.safetensors', { '--scheduler', 'dpmpp_2m_karras', '--steps', '4', '--cache', 'deepcache:2',
    '--guidance', '2', '--guidance-interval', '100:999', '--guidance-rescale', '0.5', '--guidance-off-last', '1' })
  t.ok(t.relative_error(both, ddim) > 1e-3, 'other latents')
  t.equal(named.scheduler, 'dpmpp_2m_karras')
  t.equal(named.scheduler_options.sigmas, 'karras')
  t.equal(named.cache, 'deepcache:2')
  t.equal(named.cached_steps.full .. ' ' .. named.cached_steps.shallow, '4 4', 'of two windows with four steps')
  t.equal(table.concat(named.guidance_interval, ' '), '100 999')
  t.equal(named.guidance .. ' ' .. named.guidance_rescale .. ' ' .. named.guidance_off_last, '2 0.5 1')
  local file = cr.weights.open(path 'c.safetensors')
  t.ok(file.metadata.scheduler:find 'dpmpp_2m_karras' and file.metadata.cache == 'deepcache:2', 'metadata of the latents')
  file:close()

  local config = child.file('checkpoint/scheduler_config.json', '{"_class_name": "EulerAncestralDiscreteScheduler"}')
  local first, own = sampled('a.safetensors', { '--steps', '2' })
  t.equal(own.scheduler, ('euler_ancestral (%s)'):format(config))
  t.near(sampled('b.safetensors', { '--steps', '2' }), first, 0, 'fresh noise comes from the seed')
  os.remove(config)
end)

-- ---- bad input -------------------------------------------------------------------------------

--- The command must fail with one line that matches, and leave nothing.
local function refused(name, extra, pattern, code)
  os.remove(path 'out.mkv')
  local r = lipsync(extra)
  t.equal(r.code, code or 1, name .. ': ' .. r.err)
  local _, few = r.err:gsub('[^\n]* too few for this method[^\n]*\n', '') -- printed before the work begins
  t.equal(r.lines - few, 1, name .. ': lines on stderr: ' .. r.err)
  t.ok(r.err:find(pattern), name .. ': ' .. r.err)
  t.ok(not child.exists(path 'out.mkv'), name .. ': no output')
  for file in lfs.dir(child.folder) do t.ok(not file:find '^%.[^.]', name .. ': left ' .. file) end
end

local read = scratch.read

t.test('bad video and sound', function()
  refused('missing video', { '--video', path 'nothing.mp4' }, 'nothing%.mp4: No such file')
  refused('missing sound', { '--audio', path 'nothing.wav' }, 'nothing%.wav: No such file')
  refused('empty video', { '--video', child.file('empty.mp4', '') }, 'empty%.mp4 is empty')
  refused('empty sound', { '--audio', child.file('empty.wav', '') }, 'empty%.wav is empty')
  refused('a text', { '--video', child.file('text.mp4', ('This is no video.\n'):rep(99)) }, 'text%.mp4')
  refused('sound as video', { '--video', voice }, 'voice%.wav has no video stream')
  refused('video as sound', { '--audio', video }, 'face%.mkv has no')
  refused('a WAV without samples', { '--audio', child.file('none.wav', scratch.wav '') }, 'none%.wav')
  refused('half a WAV header', { '--audio', child.file('half.wav', read(voice):sub(1, 30)) }, 'half%.wav')
  local mp4 = path 'cut.mp4'
  local sink = media.writer(mp4, { fps = 25 })
  for k = 0, 9 do sink:write(smooth.image('frame' .. k, 64, 64)) end
  sink:close()
  local bytes = read(mp4)
  refused('a truncated MP4', { '--video', child.file('truncated.mp4', bytes:sub(1, 300)) }, 'truncated%.mp4')
  -- FFmpeg treats an image file as a video with one frame.
  media.write_picture(path 'dot.png', cr.zeros({ 1, 1, 3 }, { dtype = 'u8' }))
  refused('one pixel', { '--video', path 'dot.png', '--points', write_points('dots.json', 1, function() return true end) },
    'at 1x1')
end)

t.test('bad checkpoints', function()
  local unet = read(checkpoint .. '/latentsync_unet.safetensors')
  local function folder(name, bytes, ending)
    lfs.mkdir(path(name))
    os.execute(("cp -r '%s/vae' '%s/unet.json' '%s'"):format(checkpoint, checkpoint, path(name)))
    if bytes then child.file(name .. '/latentsync_unet' .. (ending or '.safetensors'), bytes) end
    return path(name)
  end
  refused('no folder', { '--checkpoint', path 'nowhere' }, 'nowhere is not a folder')
  refused('no UNet', { '--checkpoint', folder 'bare' }, 'bare holds no latentsync_unet')
  refused('a truncated UNet', { '--checkpoint', folder('cut', unet:sub(1, 100000)) }, 'latentsync_unet%.safetensors')
  refused('a header that claims more', { '--checkpoint', folder('huge', scratch.le(2 ^ 31 - 1, 8) .. '{}') },
    'latentsync_unet%.safetensors')
  local evil = read(cr.root .. '/tests/golden/torch_files/evil_system.pt')
  refused('a pickle that calls', { '--checkpoint', folder('evil', evil, '.pt') }, 'refused')
  cr.scope(function()
    local all = cr.load(checkpoint .. '/latentsync_unet.safetensors')
    local dir2 = folder 'changed'
    all['conv_in.bias'] = nil
    cr.save(dir2 .. '/latentsync_unet.safetensors', all)
    refused('a tensor missing', { '--checkpoint', dir2 }, 'tensor conv_in%.bias is missing')
    all['conv_in.bias'] = cr.zeros(33)
    cr.save(dir2 .. '/latentsync_unet.safetensors', all)
    refused('a wrong shape', { '--checkpoint', dir2 }, 'conv_in%.bias has shape %[33%], expected %[32%]')
  end)
  refused('no VAE', { '--vae', path 'nowhere' }, 'nowhere is not a folder')
end)

t.test('--length: as long as the sound, or two frames more', function()
  t.equal(lipsync { '--length', 'sound' }.code, 0)
  t.equal(#frames_of 'out.mkv', 15, '0.6 s')
  t.equal(lipsync { '--length', 'sound', '--audio', write_voice('odd.wav', 0.41) }.code, 0)
  t.equal(#frames_of 'out.mkv', 11, '0.41 s: a frame that has begun is there')
end)

t.test('NaN ends the run with one sentence: the step, and the first bad tensor', function()
  local function spoilt(file, name, value)
    local folder = path 'spoilt'
    os.execute(("rm -rf '%s' && cp -r '%s' '%s'"):format(folder, checkpoint, folder))
    cr.scope(function()
      local all = cr.load(checkpoint .. '/' .. file)
      local x = all[name]:contiguous():view(-1)
      local bad = cr.full({ 1 }, value, { dtype = x.dtype })
      all[name] = cr.cat({ bad, x:narrow(1, 2, x:numel() - 1) }, 1):view(unpack(all[name].shape))
      cr.save(folder .. '/' .. file, all)
    end)
    return folder
  end
  local unet, vae = 'latentsync_unet.safetensors', 'vae/diffusion_pytorch_model.safetensors'
  for _, value in ipairs { 0 / 0, 1 / 0 } do
    refused('a weight of the UNet', { '--checkpoint', spoilt(unet, 'down_blocks.0.resnets.0.conv1.weight', value) },
      'window 1 .*step 1 of 1 of ddim is not finite.*the weight down_blocks%.0%.resnets%.0%.conv1%.weight of the UNet')
  end
  refused('a weight of the decoder', { '--checkpoint', spoilt(vae, 'decoder.conv_out.bias', 0 / 0) },
    'decoded faces .*the weight decoder%.conv_out%.bias of the VAE')
  refused('a weight of the encoder', { '--checkpoint', spoilt(vae, 'encoder.conv_in.bias', 0 / 0) },
    'image conditioning .*the weight encoder%.conv_in%.bias of the VAE')
  local blow = child.file('blow.lua', 'return function() return { timesteps = { 800, 400 }, ' ..
    'step = function(_, eps, t, x) return t == 400 and x / 0 or x end } end')
  refused('a scheduler that divides by 0', { '--scheduler', blow }, 'step 2 of 2 of .*blow%.lua is not finite')
  os.execute(("rm -rf '%s'"):format(path 'spoilt'))
end)

t.test('an output that is an input, or another output', function()
  for _, option in ipairs { '--out', '--report', '--dump-latents' } do
    local inputs = { ['--video'] = video, ['--audio'] = voice, ['--points'] = points, ['--checkpoint'] = checkpoint .. '/unet.json' }
    for name, file in pairs(inputs) do
      local before = read(file)
      refused(option .. ' is ' .. name, { option, file, '--codec', 'libx264' }, ('is also the input of %s'):format(name:gsub('%-', '%%-')))
      t.ok(read(file) == before, file .. ' is as it was')
    end
  end
  assert(os.execute(("ln -sf '%s' '%s'"):format(video, path 'link.mkv')) == 0)
  refused('by a link', { '--out', path 'link.mkv' }, 'is also the input of %-%-video')
  refused('two outputs', { '--report', path 'same.json', '--dump-latents', path 'same.json' }, 'is also the output of %-%-')
end)

t.test('bad options', function()
  refused('an odd size', { '--size', '100' }, 'size of 100 cannot be used.*multiple')
  refused('too many frames', { '--frames-per-window', '25' }, 'window of 25 frames')
  refused('no such folder', { '--out', path 'no/where/out.mkv' }, 'no/where does not exist')
  refused('an unknown scheduler', { '--scheduler', 'ddam' }, "no scheduler 'ddam'.*ddim")
  refused('a scheduler file with a mistake', { '--scheduler', child.file('bad.lua', 'local a =\nreturn +') }, 'bad%.lua:2: ')
  refused('a step that returns nothing', { '--scheduler', child.file('none.lua',
    'return function() return { timesteps = { 1 }, step = function() end } end') }, 'none%.lua: step returned nothing')
  refused('an unknown cache', { '--cache', 'depcache:3' }, "no cache 'depcache'.*deepcache")
  refused('a branch too many', { '--cache', 'deepcache:2:8' }, 'no branch 8 to cache: this network has 0 to 7')
  refused('no interval', { '--guidance-interval', '9' }, "guidance%-interval: '9' is not of the form A:B")
  refused('no steps', { '--steps', '0' }, '%-%-steps: 0 is less than 1')
  refused('too many steps', { '--steps', '2000' }, '%-%-steps: 2000 is more than 1000')
  refused('no GPU part', { '--device', 'cuda' }, 'cuda')
  refused('points that are none', { '--points', child.file('bad.json', '[[1,2]]') }, 'bad%.json: entry 1')
  refused('lossless MP4', { '--out', path 'out.mp4' }, 'must end in %.mkv')
  refused('a start past the end', { '--start', '99' }, 'voice%.wav ends before 99 s')
  refused('a start past the pictures', { '--audio', write_voice('long.wav', 1.2), '--start', '1' }, 'face%.mkv.*1 s')
  refused('an unknown option', { '--step', '3' }, "'%-%-step'.*'%-%-steps'", 2)
  refused('a wrong type', { '--steps', 'many' }, "%-%-steps: 'many' is not a whole number", 2)
  if os.getenv 'USER' ~= 'root' and os.execute 'test "$(id -u)" = 0' ~= 0 then
    lfs.mkdir(path 'closed')
    os.execute("chmod 555 '" .. path 'closed' .. "'")
    refused('a folder that cannot be written', { '--out', path 'closed/out.mkv' }, 'closed')
  end
end)

t.test('--upscale: larger frames, or only a larger mouth', function()
  local network = require 'tests.support.checkpoint'.upscaler(path 'upscaler.safetensors')
  local plain = lipsync()
  t.equal(plain.code, 0, plain.err)
  cr.scope(function()
    local before = frames_of 'out.mkv'
    local large = lipsync { '--upscale', 'frame:2:' .. network }
    t.equal(large.code, 0, large.err)
    local info = media.probe(path 'out.mkv')
    t.equal(info.width, 2 * WIDTH)
    t.equal(info.height, 2 * HEIGHT)
    t.equal(#frames_of 'out.mkv', #before)
    local function stages() return cjson.decode(scratch.read(path 'told.json')).stages end
    local mouth = lipsync { '--upscale', 'mouth:' .. network, '--report', path 'told.json' }
    t.equal(mouth.code, 0, mouth.err)
    t.ok(stages().upscale, 'the report says how long it took')
    local after = frames_of 'out.mkv'
    t.equal(#after, #before)
    local share = smooth.compare(after[1], before[1])
    t.ok(share > 0 and share < 0.5, ('%g of the frame differs'):format(share))
    -- The face is 85 pixels wide in the frame and generated at 128, so upscaling gains nothing.
    t.equal(lipsync { '--size', '128', '--duration', '0.08' }.code, 0)
    before = frames_of 'out.mkv'
    local told = lipsync { '--size', '128', '--duration', '0.08', '--upscale', 'mouth:' .. network, '--report', path 'told.json' }
    t.equal(told.code, 0, told.err)
    after = frames_of 'out.mkv'
    for i = 1, #before do t.ok(same(after[i], before[i]), 'nothing is gained, and nothing changed') end
    t.equal(stages().upscale, nil, 'no time went into it')
  end)
  t.ok(lipsync { '--upscale', 'mouth:x4plos' }.err:find "there is no network 'x4plos'")
end)

t.test('Ctrl-C while a window is generated: the program ends before the window does, and nothing remains', function()
  os.remove(path 'out.mkv')
  local args = { 'lipsync', '--video', video, '--audio', voice, '--out', path 'out.mkv', '--checkpoint', checkpoint,
    '--size', '256', '--steps', '50', '--points', points, '--lossless', '--quiet' }
  -- Nothing is printed, so the signal is sent some time after the start.
  local r = child.run(args, { after = '', signal = 'sigint', delay = 3 })
  t.equal(r.code, 130, r.err)
  t.ok(r.processor < 10, ('ended after %.2f s of the processor'):format(r.processor))
  for file in lfs.dir(child.folder) do t.ok(not file:find '^%.[^.]' and file ~= 'out.mkv', 'left ' .. file) end
end)

child.clean()
t.done()
