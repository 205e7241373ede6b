--- A job on several GPUs: windows are dealt to free makers and collected in order, with the pixels of a single
--- device, also if a GPU fails during the job. The devices here are CPUs with a model each; tests/cuda_cards_test.lua
--- uses GPUs. With CR_SLOW=1 they fail at more points.

local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local cjson = require 'cjson'
local cr = require 'cr'
local dealers = require 'models.cards.dealer'
local jobs = require 'models.latentsync.job'
local lfs = require 'lfs'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local smooth = require 'tests.support.formula_image'
local t = require 'tests.support.tap'

local function message_of(err) return type(err) == 'table' and err.message or tostring(err) end

local function fails(pattern, fn, ...)
  local ok, err = pcall(fn, ...)
  t.ok(not ok and message_of(err):find(pattern) ~= nil, message_of(err))
end

-- Whole jobs on the CPU, one after another, take minutes.
local slow = os.getenv 'CR_SLOW' and t.test or function() end

-- ---- dealing -------------------------------------------------------------------------------------

-- Deals n windows to makers that need a given number of turns per window. Returns the collected numbers, the count
-- per maker, the maximum number of dealt and uncollected windows, and the messages. broken(maker, number) raises an
-- error while a window is generated; spoilt(maker, number) raises one when it is collected.
local function deal(n, turns, o)
  o = o or {}
  local makers, collected, most, notes, begun = {}, {}, 0, {}, {}
  for i in ipairs(turns) do makers[i] = { device = 'card ' .. i, turns = turns[i], load = function() return {} end } end
  local dealer = dealers.new {
    makers = makers, what = 'windows', note = function(text) notes[#notes + 1] = text end,
    survived = function(err) return not message_of(err):find 'card' end,
    make = function(maker, piece)
      begun[piece] = (begun[piece] or 0) + 1
      for _ = 1, maker.turns do cr.yield() end
      if o.broken and o.broken(maker, piece) then error(o.broken(maker, piece), 0) end
      return { decoded = function() end, piece = piece, maker = maker }
    end,
  }
  local tasks = {
    function()
      for k = 1, n do
        dealer:deal(k, o.alone and o.alone(k))
        most = math.max(most, k - #collected)
      end
      dealer:ended()
    end,
    function()
      for ticket in function() return dealer:next() end do
        collected[#collected + 1] = dealer:collect(ticket, function(window)
          local err = o.spoilt and window.maker and o.spoilt(window.maker, window.piece)
          if err then error(err, 0) end
          return window.piece or -ticket.number
        end)
        for _ = 1, o.slow or 0 do cr.yield() end
      end
      dealer:close()
    end,
  }
  for _, maker in ipairs(makers) do tasks[#tasks + 1] = function() dealer:work(maker) end end
  cr.run(function() cr.all(tasks) end)
  local counts = {}
  for i, maker in ipairs(makers) do counts[i] = maker.made end
  return collected, counts, most, notes, begun
end

local function in_order(collected, n)
  t.equal(#collected, n)
  for k = 1, n do t.equal(math.abs(collected[k]), k) end
end

t.test('windows are dealt to free makers and collected in order', function()
  for makers = 1, 5 do
    local turns = {}
    for i = 1, makers do turns[i] = 3 * i end
    local collected, counts, most = deal(100, turns)
    in_order(collected, 100)
    t.ok(most <= 2 * makers + 1, ('%d in flight for %d makers'):format(most, makers))
    for i = 2, makers do t.ok(counts[i] <= counts[i - 1] and counts[i] > 0, 'a slower one makes fewer') end
  end
  local _, counts = deal(60, { 2, 8 })
  t.ok(counts[1] >= 3 * counts[2], ('%d and %d'):format(counts[1], counts[2]))
end)

t.test('a slow collector bounds the queue; windows without work need no maker', function()
  local collected, counts, most = deal(60, { 1, 1, 1 }, { slow = 20, alone = function(k) return k % 3 == 0 end })
  in_order(collected, 60)
  t.ok(most <= 7, most .. ' in flight')
  t.equal(counts[1] + counts[2] + counts[3], 40)
  for k = 1, 60 do t.equal(collected[k] < 0, k % 3 == 0) end
end)

t.test('a failed GPU is dropped with a message, and the others generate its windows', function()
  local function second(maker) return maker.device == 'card 2' end
  -- Fails while generating, or when its result is collected, with others waiting after it.
  for _, kind in ipairs { 'broken', 'spoilt' } do
    local collected, counts, most, notes, begun = deal(40, { 2, 3, 4 }, {
      [kind] = function(maker, k) return second(maker) and k >= 9 and 'the card failed' end,
    })
    in_order(collected, 40)
    t.ok(counts[2] > 0 and counts[2] < 10 and counts[1] + counts[2] + counts[3] == 40)
    t.equal(#notes, 1)
    t.equal(notes[1], 'card 2 is dropped; card 1 and card 3 take over its windows: the card failed')
    t.ok(most <= 7, most .. ' in flight')
    local again = 0
    for k = 1, 40 do again = again + begun[k] - 1 end
    t.ok(again >= 1 and again <= 4, again .. ' windows were made again')
  end
  local _, counts = deal(10, { 1, 1 }, { broken = function(maker) return not second(maker) and 'the card failed' end })
  t.equal(counts[1], 0)
  t.equal(counts[2], 10)
end)

t.test('if all GPUs fail, the job ends with one sentence; other errors end it at once', function()
  fails('^no GPU is left: card 1: no memory on card 1; card 2: no memory on card 2$', deal, 20, { 1, 2 },
    { broken = function(maker, k) return k >= 7 and 'no memory on ' .. maker.device end })
  fails('^a mistake$', deal, 20, { 1, 2 }, { broken = function(_, k) return k == 5 and 'a mistake' end })
  fails('^a mistake$', deal, 20, { 1, 2 }, { spoilt = function(_, k) return k == 5 and 'a mistake' end })
  fails('^the card failed$', deal, 20, { 1 }, { broken = function(_, k) return k == 5 and 'the card failed' end })
  t.equal(require 'cr.loop'.count(), 0)
end)

-- ---- whole jobs ----------------------------------------------------------------------------------

local path, FRAMES, WINDOW, WINDOWS = clip.path, 18, 4, 5

clip.needs_whisper(t, 'jobs on several devices')

cr.scope(function()
  clip.checkpoint 'checkpoint'
  clip.video('face.mkv', 6, 96, 128)
  clip.points('points.json', clip.moving(6, { { 45, 32 }, { 80, 33 }, { 62, 54 } }, function(i) return i == 5 end))
  clip.voice('voice.wav', FRAMES / 25)
end)

-- Runs a job on a number of devices; change(job) may damage it. Returns its frames, its latents, its notes, and the job.
local function run(makers, o, change)
  local given = { video = path 'face.mkv', audio = path 'voice.wav', checkpoint = path 'checkpoint', out = path 'out.mkv', size = 64,
    steps = 2, points = path 'points.json', lossless = true, frames_per_window = WINDOW, device = 'cpu', quiet = true,
    dump_latents = path 'latents.safetensors' }
  for key, value in pairs(o or {}) do given[key] = value end
  local job, notes = jobs.new(given), {}
  for i = 1, makers do job.settings.devices[i] = 'cpu' end
  function job.progress:note(text) notes[#notes + 1] = text end
  if change then change(job) end
  cr.run(function() job:run() end)
  local reader = media.reader(path 'out.mkv', { fps = 25 })
  local frames = reader:read(200)
  reader:close()
  return frames, cr.load(path 'latents.safetensors').latents, table.concat(notes, '\n'), job
end

local function same(name, frames, latents, other, other_latents)
  t.equal(#other, #frames, name)
  for i, frame in ipairs(frames) do t.equal(smooth.compare(frame, other[i]), 0, ('%s: frame %d'):format(name, i)) end
  t.near(other_latents, latents, 0, name)
end

t.test('several makers produce the pixels of a single one', function()
  cr.scope(function()
    -- cases: colours matched over time; PyTorch's CPU generator with a stochastic sampler; mouths upscaled where they are made
    for name, o in pairs {
      plain = { scheduler = 'ddim', rng = 'torch-cuda', match_colour = true }, drawn = { scheduler = 'euler_ancestral', rng = 'torch' },
      sharp = { scheduler = 'ddim', upscale = 'mouth:' .. require 'tests.support.checkpoint'.upscaler(path 'small.safetensors') },
    } do
      cr.scope(function()
        local frames, latents, _, one = run(1, o)
        t.equal(#frames, FRAMES)
        t.equal(one.makers[1].made, WINDOWS)
        local other, other_latents, notes, job = run(name == 'plain' and 3 or 2, o)
        t.equal(notes:find('--upscale mouth: on a processor', 1, true) ~= nil, name == 'sharp', notes)
        same(name, frames, latents, other, other_latents)
        local made = 0
        for _, maker in ipairs(job.makers) do
          t.ok(maker.made > 0, 'each makes some')
          made = made + maker.made
        end
        t.equal(made, WINDOWS)
        t.ok(not rawequal(job.makers[1].model, job.makers[2].model), 'a model each')
      end)
    end
  end)
end)

-- Runs a job on simulated GPUs of equal speed: each finishes its n-th piece only after all have received their n-th, so a job that
-- blocks the thread would wait for ever. Returns the number of pieces for each GPU, and the makers.
local function in_step(makers)
  local given, bells = {}, {}
  local function least()
    local n = math.huge
    for i = 1, makers do n = math.min(n, given[i] or 0) end
    return n
  end
  local _, _, _, job = run(makers, { scheduler = 'ddim', frames_per_window = 3, steps = 1 }, function(job)
    local make = job.make
    function job:make(maker, ...)
      local number
      for i, one in ipairs(self.makers) do number = one == maker and i or number end
      function maker.model.mark()
        given[number] = (given[number] or 0) + 1
        local n = given[number]
        for _, bell in ipairs(bells) do bell:close() end
        bells = {}
        return function()
          while least() < n do
            local bell = cr.channel()
            bells[#bells + 1] = bell
            bell:get()
          end
        end
      end
      return make(self, maker, ...)
    end
  end)
  for _, maker in ipairs(job.makers) do maker.model.mark = nil end
  return given, job.makers
end

t.test('two cards work side by side: pieces are counted, and no clock', function()
  cr.scope(function()
    local alone, both, makers = in_step(1), in_step(2)
    t.equal(makers[1].made .. ' ' .. makers[2].made, '3 3')
    t.equal(both[1] .. ' ' .. both[2], ('%d %d'):format(alone[1] / 2, alone[1] / 2))
  end)
end)

-- Lets a maker's n-th window, and those after it, fail: when it is begun, or (late) when its steps should be done.
local function losing(number, n, err, late)
  return function(job)
    local make, seen = job.make, 0
    function job:make(maker, ...)
      if maker == self.makers[number] then
        seen = seen + 1
        if seen >= n and not late then error(err, 0) end
      end
      local window = make(self, maker, ...)
      if late and maker == self.makers[number] and seen >= n then window.sampled = function() error(err, 0) end end
      return window
    end
  end
end

local MEMORY = 'out of memory on cuda:1: 1.0 GiB asked for'

slow('a maker that is lost on the way changes no pixel', function()
  cr.scope(function()
    local o = { scheduler = 'euler_ancestral', rng = 'torch' }
    local frames, latents = run(1, o)
    for number = 1, 2 do
      local other, other_latents, notes = run(2, o, losing(number, 2, MEMORY, number == 2))
      same('lost', frames, latents, other, other_latents)
      t.ok(notes:find('cpu is dropped; cpu takes over its windows: ' .. MEMORY, 1, true), notes)
      t.equal(select(2, notes:gsub('is dropped', '')), 1)
    end
  end)
end)

slow('faces are found, and put back, by another when that one is lost', function()
  cr.scope(function()
    local o = { scheduler = 'euler_ancestral', rng = 'torch', match_colour = true }
    local frames, latents = run(1, o)
    local windows = require 'models.latentsync.windows'
    local open, opened = windows.open, 0
    windows.open = function(...)
      local source, calls = open(...), 0
      opened = opened + 1
      if opened == 1 then
        local next_clip = source.next
        function source:next()
          calls = calls + 1
          if calls == 4 then error(MEMORY, 0) end
          return next_clip(self)
        end
      end
      return source
    end
    local ok, other, other_latents, notes = pcall(run, 2, o)
    windows.open = open
    if not ok then error(other, 0) end
    same('found', frames, latents, other, other_latents)
    t.equal(opened, 2)
    t.equal(notes:match '[^\n]*faces; [^\n]*', 'cpu can no longer find faces; cpu takes over: ' .. MEMORY)
    -- in the middle of a window, of which some frames are in the file
    local shown, done = 0, false
    other, other_latents = run(2, o, function(job)
      job.stages[#job.stages + 1] = { frame = function(_, _, frame)
        shown = shown + 1
        if shown == 7 and not done then
          done = true
          error(MEMORY, 0)
        end
        return frame
      end }
    end)
    same('put back', frames, latents, other, other_latents)
    t.equal(shown, FRAMES + 1)
  end)
end)

t.test('what ends a job leaves nothing', function()
  local function gone(pattern, ...)
    fails(pattern, run, 2, {}, ...)
    t.ok(not lfs.attributes(path 'out.mkv'), 'no output')
    t.equal(require 'cr.loop'.count(), 0, 'no task')
  end
  os.remove(path 'out.mkv')
  gone('no GPU is left', function(job)
    losing(1, 2, MEMORY)(job)
    losing(2, 1, MEMORY)(job)
  end)
  gone('^a mistake$', losing(2, 1, 'a mistake'))
  gone('^stop$', function(job)
    local make = job.make
    function job:make(...)
      local window = make(self, ...)
      self:cancel 'stop'
      return window
    end
  end)
end)

t.test('frames are enlarged by several, in order', function()
  cr.scope(function()
    local weights = require 'tests.support.checkpoint'.upscaler(path 'small.safetensors')
    local choose_all, films = cr.cuda.choose_all, {}
    for makers = 1, 3, 2 do
      cr.cuda.choose_all = function()
        local list = {}
        for i = 1, makers do list[i] = 'cpu' end
        return list
      end
      local report = path 'upscale.json'
      local ok, err = pcall(cr.run, function()
        require 'models.upscale.job'.run(path 'face.mkv', path 'large.mkv', { model = weights, lossless = true, quiet = true,
          report = report })
      end)
      cr.cuda.choose_all = choose_all
      t.ok(ok, message_of(err))
      local reader = media.reader(path 'large.mkv', { fps = 25 })
      films[#films + 1] = reader:read(100)
      reader:close()
      local cards = cjson.decode(scratch.read(report)).cards
      if makers > 1 then
        t.equal(#cards, makers)
        t.equal(cards[1].frames + cards[2].frames + cards[3].frames, #films[1])
        t.ok(cards[2].frames > 0)
      end
    end
    t.equal(#films[1], 6)
    t.equal(#films[2], 6)
    for i, frame in ipairs(films[1]) do t.equal(smooth.compare(frame, films[2][i]), 0, 'frame ' .. i) end
  end)
end)

-- Runs `compare` with a reference on a number of devices; returns the measurements by cell.
local function compared(devices)
  local r = child.run { '-e', ([[
    local devices = {}
    for i = 1, %d do devices[i] = 'cpu' end
    require 'cr'.cuda.choose_all = function() return devices end
    arg = { '--video', '%s', '--audio', '%s', '--checkpoint', '%s', '--points', '%s', '--out', '%s', '--reference', 'ddim:2', '--device',
      'cpu', '--no-syncnet', '--frames', '0:4', '--steps', '1', '--schedulers', 'ddim,euler', 'size=64', 'dtype=f32,bf16' }
    dofile '%s/scripts/compare.lua'
  ]]):format(devices, path 'face.mkv', path 'voice.wav', path 'checkpoint', path 'points.json', path('lab' .. devices), cr.root) }
  t.equal(r.code, 0, r.err)
  local figures = {}
  for _, cell in ipairs(cjson.decode(scratch.read(path('lab' .. devices .. '/results.json'))).cells) do
    t.ok(cell.finished, cell.problem)
    figures[cell.label] = ('%s %s %s'):format(cell.psnr, cell.ssim, cell.latents_distance)
  end
  return figures
end

slow('cells are made by several, after what they are compared with', function()
  local one, two, count = compared(1), compared(2), 0
  for label, figures in pairs(one) do
    count = count + 1
    t.equal(two[label], figures, label)
  end
  t.equal(count, 5)
end)

-- ---- naming cards --------------------------------------------------------------------------------

t.test('lists of cards', function()
  local cuda = cr.cuda
  local available, count = cuda.available, cuda.count
  cuda.available, cuda.count = function() return true end, function() return 3 end
  local ok, err = pcall(function()
    t.equal(table.concat(cuda.choose_all 'cuda:2,cuda', ' '), 'cuda:2 cuda:0')
    t.equal(table.concat(cuda.choose_all 'cuda:all', ' '), 'cuda:0 cuda:1 cuda:2')
    t.equal(table.concat(cuda.choose_all 'cuda', ' '), 'cuda')
    t.equal(table.concat(cuda.choose_all 'cpu', ' '), 'cpu')
    for text, sentence in pairs {
      ['cuda,cuda:0'] = 'cuda:0 is listed twice', ['cuda:0,cuda:3'] = 'there is no card cuda:3; this machine has 3',
      ['cuda:7'] = 'there is no card cuda:7', ['cuda:0,cpu'] = 'the CPU cannot be combined with cards', ['cpu,cpu'] = 'the CPU cannot',
      ['cuda:0,auto'] = "'auto' is not a card", ['cuda:0,'] = "'' is not a card", ['cuda:all,cuda:1'] = 'cuda:all already means every card',
      ['gpu'] = 'is not auto, cpu',
    } do
      fails('%-%-device.*' .. sentence, cuda.choose_all, text, '--device')
    end
    fails('only one device is possible here', cuda.choose, 'cuda:0,cuda:1')
    fails('only one device is possible here', cuda.choose, 'cuda:all')
  end)
  cuda.available, cuda.count = available, count
  if not ok then error(err, 0) end
  local given = { video = path 'face.mkv', audio = path 'voice.wav', checkpoint = path 'checkpoint', device = 'cuda:0,cuda:1' }
  fails('only one device is possible here', require 'models.latentsync'.session, given)
  local r = child.run { 'faces', path 'face.mkv', '--device', 'cuda:0,cuda:1' }
  t.ok(r.code ~= 0 and r.err:find 'only one device is possible here', r.err)
end)

child.clean()
t.done()
