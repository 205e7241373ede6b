--- A session for repeated sampling: the same latents and frames as the command lipsync, every time.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local smooth = require 'tests.support.formula_image'

local path = clip.path
local FRAMES = 9 -- fewer than the sound needs, so that they are also played backward

clip.needs_whisper(t, 'a session')

local points = clip.moving(FRAMES, { { 45, 32 }, { 80, 33 }, { 62, 54 } }, function(i) return i == 4 end)

local function prepare()
  clip.checkpoint 'checkpoint'
  clip.video('face.mkv', FRAMES, 96, 128)
  clip.voice('voice.wav', 0.6)
  clip.points('points.json', points)
end

local function same_frames(name, other)
  local left, right = clip.frames(name), clip.frames(other)
  t.equal(#left, #right, 'frames')
  for i, frame in ipairs(left) do
    t.equal(smooth.compare(frame, right[i]), 0, ('frame %d'):format(i))
  end
  return #left
end

cr.scope(prepare)

t.test("repeated samples equal lipsync's result", function()
  local r = child.run({ 'lipsync', '--video', path 'face.mkv', '--audio', path 'voice.wav', '--out', path 'out.mkv',
    '--checkpoint', path 'checkpoint', '--size', '64', '--steps', '2', '--points', path 'points.json', '--lossless',
    '--frames-per-window', '8', '--match-colour', '--dump-latents', path 'latents.safetensors', '--quiet' })
  if not t.equal(r.code, 0, r.err) then return end
  cr.scope(function()
    local run = require 'models.latentsync'.session {
      video = path 'face.mkv', audio = path 'voice.wav', checkpoint = path 'checkpoint', size = 64, points = points,
      frames = 8, device = 'cpu', match_colour = true, quiet = true,
    }
    t.raises(function() run:save(path 'early.mkv') end, 'nothing was sampled yet')
    local first = run:sample { scheduler = 'ddim', steps = 2, quiet = true }
    local wanted = cr.load(path 'latents.safetensors').latents
    local list = {}
    for i, x in ipairs(first.latents) do list[i] = x:permute(1, 5, 2, 3, 4):contiguous() end
    t.near(cr.cat(list, 3), wanted, 0, 'latents')
    run:save(path 'mine.mkv', { lossless = true, quiet = true })
    t.ok(same_frames('mine.mkv', 'out.mkv') > FRAMES, 'the video is played backward too')
    local matched = first:pictures(1)[1]:to 'f32'
    run.settings.match_colour = false
    t.ok(smooth.compare(matched, first:pictures(1)[1]:to 'f32') > 0.1, 'colours were matched')
    run.settings.match_colour = true

    local other = run:sample { scheduler = 'dpmpp_2m', steps = 3, windows = 1, quiet = true }
    t.equal(#other.latents, 1)
    t.equal(other.settings.steps, 3)
    t.ok(t.relative_error(other.latents[1], first.latents[1]) > 1e-3, 'another method, other latents')
    local again = run:sample { scheduler = 'ddim', steps = 2, quiet = true }
    t.near(again.latents[2], first.latents[2], 0, 'the same again')
    local seeded = run:sample { scheduler = 'ddim', steps = 2, seed = 7, windows = 1, quiet = true }
    t.ok(t.relative_error(seeded.latents[1], first.latents[1]) > 1e-2, 'another seed')

    local cached = run:sample { scheduler = 'ddim', steps = 2, cache = 'deepcache:2', windows = 1, quiet = true }
    t.ok(t.relative_error(cached.latents[1], first.latents[1]) > 0, 'a cache changes the second step')
    local off = run:sample { scheduler = 'ddim', steps = 2, guidance = { scale = 1.5, off_last = 1 }, windows = 1, quiet = true }
    t.ok(t.relative_error(off.latents[1], first.latents[1]) > 0, 'guidance is off at the end')
    local function by(method)
      return run:sample { scheduler = 'ddim', steps = 2, guidance = 2, guidance_method = method, windows = 1, quiet = true }.latents[1]
    end
    local plain = by 'cfg'
    for _, method in ipairs { 'apg:norm=0.1', 'cfgpp', 'pag:layers=down_blocks.0', 'zero_star' } do
      local x = by(method)
      t.ok(t.relative_error(x, plain) > 1e-6, method)
      x:free()
    end
    -- A start at a later step: from the window's own latents with noise of that level.
    local late = run:sample { scheduler = 'ddim', steps = 4, strength = 0.5, windows = 1, quiet = true }
    t.equal(late.settings.steps, 2)
    local s = require 'cr.schedulers'.load('ddim', { steps = 4, begin_index = 2 })
    local window, noise = run.windows[1], run:noise(run.settings.seed)
    local y = run.model:source(window.cond):clone() * math.sqrt(s.alphas[s.timesteps[1]]) +
      noise:expand(1, window.n, 8, 8, 4) * math.sqrt(1 - s.alphas[s.timesteps[1]])
    for _, at in ipairs(s.timesteps) do y = s:step(run.model:denoise(y, at, window.cond, window.hear), at, y) end
    t.near(late.latents[1], y, 1e-4, 'strength')
    for _, spec in ipairs { 'ddim:begin_index=2', cr.root .. '/scripts/examples/my_scheduler.lua:lookahead=0,begin_index=2' } do
      local same = run:sample { scheduler = spec, steps = 4, windows = 1, quiet = true }
      t.near(same.latents[1], late.latents[1], 1e-5, spec .. ' is the same')
    end
    t.raises(function() run:sample { scheduler = 'ddim:begin_index=2', steps = 4, strength = 0.5 } end,
      'strength and begin_index both set the first step')
    t.raises(function() run:sample { steps = 4, strength = 0.2 } end, 'strength: 0.2 of 4 steps leaves no step: use at least 0.25')
    t.raises(function() run:sample { strength = 0 } end, 'strength: 0 is not more than 0')
    t.raises(function() run:sample { scheduler = s, strength = 0.5 } end, "strength: it needs the scheduler by name or file")
    local own = by(function(self, uncond, cond) return uncond * (1 - self.scale) + cond * self.scale end)
    t.near(own, plain, 1e-4, 'a function that does what cfg does')
    for _, x in ipairs { plain, own } do x:free() end

    -- The comparison of two samples equals figures computed by hand.
    local found = seeded:compare(first)
    t.equal(found.frames, 8, 'the window that both have')
    t.near(found.latents, t.relative_error(seeded.latents[1], first.latents[1]), 1e-6)
    t.ok(found.psnr > 5 and found.psnr < 60 and found.ssim > 0 and found.ssim < 1, tostring(found))
    local same = first:compare(first)
    t.equal(same.psnr, nil)
    t.near(same.ssim, 1, 1e-5)
    t.ok(tostring(same):find '^PSNR infinite, SSIM 1.0000, relative L2 difference of the latents 0 %(%d+ frames%)$', tostring(same))
    local before = run:sample { scheduler = 'ddim', steps = 1, windows = 1, quiet = true }
    local after = run:sample { scheduler = 'ddim', steps = 2, windows = 1, quiet = true }
    local display, shown = require 'cr.tools.display', 0
    local show = display.show
    function display.show(pictures) shown = shown + #pictures end
    local diff = after:diff(nil, 2)
    display.show = show
    t.equal(shown, 2)
    t.near(diff.latents, after:compare(before).latents, 0, 'the one before')
    t.equal(#diff.pictures .. ' ' .. table.concat(diff.pictures[1].shape, ' '), '2 64 192 3')
    local mine, theirs = after:faces { { 1, 3 } }, before:faces { { 1, 3 } }
    local wanted_picture = ((cr.cat({ mine, theirs, (mine - theirs) * 4 }, 3) + 1) * 127.5):round():clamp(0, 255):to 'u8'
    t.equal(smooth.compare(diff.pictures[1]:to 'f32', wanted_picture:select(1, 1):to 'f32'), 0, 'both, and four times their difference')
    for _, picture in ipairs(diff.pictures) do picture:free() end
    t.raises(function() first:compare { latents = {} } end, 'compare: the argument must be another sample')
    t.raises(function() first:compare(setmetatable({ latents = { false } }, { __index = first })) end, 'no window in common')

    local pictures = first:pictures(3)
    t.equal(#pictures, 3)
    t.equal(table.concat(pictures[1].shape, ' ') .. ' ' .. pictures[1].dtype, '64 64 3 u8')
    t.ok(tostring(first):find '^ddim, 2 steps, guidance 1.5, seed', tostring(first))
    local projected = run:sample { steps = 1, windows = 1, guidance_method = 'apg', quiet = true }
    t.ok(tostring(projected):find 'guidance 1.5 %(apg%), seed', tostring(projected))
    local twice = run:sample { scheduler = 'heun', steps = 2, windows = 1, quiet = true }
    t.ok(tostring(twice):find '^heun, 2 steps %(3 calls%), .* ms per call and window$', tostring(twice))
    t.ok(tostring(run):find 'session: %d+ frames in 2 windows', tostring(run))

    t.raises(function() run:sample { scheduler = 'dpmp_2m' } end, "no scheduler 'dpmp_2m': did you mean")
    t.raises(function() run:sample { schedular = 'ddim' } end, "no option 'schedular': did you mean 'scheduler'")
    t.raises(function() run:sample { guidance_method = 'apgg' } end, "no guidance method 'apgg': did you mean apg")
    t.raises(function() run:sample { guidance_method = 5 } end, 'sample: guidance_method: 5 is not')
    t.raises(function() run:sample { steps = 0 } end, 'steps')
    run:free()
  end)
end)

t.test('bad input', function()
  local new = require 'models.latentsync'.session
  t.raises(function() new { audio = 'a', checkpoint = 'c' } end, 'session: video is missing')
  t.raises(function() new { video = 'a', audio = 'b', checkpoint = 'c', vidoe = 1 } end, "no option 'vidoe': did you mean 'video'")
  t.raises(function() new { video = path 'none.mp4', audio = path 'voice.wav', checkpoint = path 'checkpoint' } end, 'none.mp4')
  t.raises(function() new { video = path 'voice.wav', audio = path 'voice.wav', checkpoint = path 'checkpoint' } end, 'no video stream')
end)

child.clean()
t.done()
