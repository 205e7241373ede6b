--- The examples in scripts/examples/: a solver, a guidance method, a cache and a modified layer, each a paper's idea
--- in fewer than 60 lines. Each is tested alone, and in sessions, lipsync and compare.

local cr = require 'cr'
local t = require 'tests.support.tap'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local gaussian = require 'tests.support.gaussian'
local guidance = require 'cr.guidance'
local schedulers = require 'cr.schedulers'

local path = clip.path
local EXAMPLES = cr.root .. '/scripts/examples/'
local solver, layer, attention = EXAMPLES .. 'my_solver.lua', EXAMPLES .. 'my_layer.lua', EXAMPLES .. 'my_attention.lua'
local method, cache = EXAMPLES .. 'my_guidance.lua', EXAMPLES .. 'my_cache.lua'

t.test('each is short, and describes itself', function()
  for _, file in ipairs { 'my_scheduler', 'my_solver', 'my_guidance', 'my_attention', 'my_cache', 'my_layer' } do
    local lines = 0
    for _ in io.lines(EXAMPLES .. file .. '.lua') do lines = lines + 1 end
    t.ok(lines < 60, ('%s has %d lines'):format(file, lines))
  end
  t.ok(schedulers.help(solver):find 'iPNDM' and schedulers.help(solver):find 'predictions that a step combines')
  t.ok(guidance.help(method):find 'frequency%-decoupled' and guidance.help(method):find 'low frequencies')
  t.ok(require 'cr.cache'.help(cache):find 'reuse of attention by its kind')
end)

t.test("the help's examples run", function()
  local help = require 'cr.tools.help'
  local asked, figures = {}, setmetatable({}, { __tostring = function() return 'figures' end })
  local env = setmetatable({
    guidance = guidance, cache = require 'cr.cache', schedulers = schedulers, solver = require 'cr.sampling.solver',
    options = require 'cr.sampling.options', scheduler = schedulers.load 'ddim', latents = cr.ones(1, 2, 8, 8, 4), i = 1, print = tostring,
    denoiser = { predict = function(_, _, _, how) asked[#asked + 1] = how.hook.name end },
    run = { sample = function(_, o)
      require 'models.latentsync.settings'.check('sample', o, { 'sample', 'seed', 'quiet' })
      local sample = {}
      function sample.compare(_, other) return other and figures end
      function sample.diff() asked[#asked + 1] = 'diff' end
      return sample
    end },
  }, { __index = _G })
  local made = {}
  for _, name in ipairs { 'guidance.new', 'guidance.wrap', 'cache.plan', 'schedulers.load', 'solver.class', 'solver.extend',
    'sample:compare', 'sample:diff', 'unet3d_hook' } do
    local text, lines = help.text(name), {}
    local from = text:find('\n' .. name .. '(', 1, true) or 1 -- another function with this name may come first
    for line in text:sub(from):gmatch '[^\n]+' do
      local code = line:match '^      (%S.*)$' or #lines > 0 and line:match '^        (%s*%S.*)$'
      if code then lines[#lines + 1] = code elseif #lines > 0 then break end
    end
    lines[#lines + 1] = table.concat(lines, '\n'):find 'local M =' and 'return M' or nil
    local chunk, problem = loadstring(table.concat(lines, '\n'))
    if t.ok(chunk and #lines > 0, ('%s: %s'):format(name, problem or text)) then made[name] = setfenv(chunk, env)() or true end
  end
  env.latents:free() -- registered classes live for ever, and so does what their functions reference
  t.equal(table.concat(asked, ' '), 'diff louder')
  -- What two of them make is a scheduler.
  local x = t.formula('input:sched', { 1, 4, 4 }):to 'f64'
  local mine, euler = made['solver.class'].new { steps = 1 }, schedulers.load('euler', { steps = 1 })
  t.near(mine:step(x, 999, x), euler:step(x, 999, x), 1e-12)
  t.ok(made['solver.extend'].new { gain = 0.5 })
end)

t.test("the solver: Euler's steps at order 1, higher convergence with higher order, the data's deviation with noise", function()
  for spec, least in pairs { [':order=1'] = 0.95, [':order=2'] = 1.7, [':order=3'] = 1.7, [':order=1,eta=1'] = 0.9 } do
    local few, many = gaussian.error_between(solver .. spec, 32), gaussian.error_between(solver .. spec, 128)
    local order = math.log(few / many) / math.log(4)
    t.ok(order > least and many < 0.02, ('%s: order %.2f, off by %.3g'):format(spec, order, many))
  end
  local x = t.formula('input:sched', { 1, 4, 4 }):to 'f64'
  local function walk(s)
    local y = s:start(x)
    for _, at in ipairs(s.timesteps) do y = s:step((y * 1.7):sin() * 0.8, at, y) end
    return y
  end
  t.near(walk(schedulers.load(solver .. ':order=1', { steps = 6 })), walk(schedulers.load('euler', { steps = 6 })), 1e-12)
end)

t.test('the guidance: low frequencies have their own scale', function()
  local g = guidance.new { method = method .. ':low=1.5', scale = 4 }
  local uncond, cond = t.formula('input:u', { 1, 2, 6, 6, 4 }), t.formula('input:c', { 1, 2, 6, 6, 4 })
  -- A constant change is low-frequency, an alternating one high-frequency.
  t.near(g:combine(uncond, uncond + 0.5, {}), uncond + 0.75, 1e-5)
  local checks = cr.zeros(1, 2, 6, 6, 4)
  local p = checks:pointer()
  for f = 0, 1 do
    for y = 0, 5 do
      for x = 0, 5 do
        for c = 0, 3 do p[((f * 6 + y) * 6 + x) * 4 + c] = (x + y) % 2 == 0 and 1 or -1 end
      end
    end
  end
  t.near(g:combine(uncond, uncond + checks, {}), uncond + checks * 4, 1e-5)
  t.near(guidance.new { method = method .. ':low=4', scale = 4 }:combine(uncond, cond, {}),
    guidance.new { scale = 4 }:combine(uncond, cond, {}), 1e-5, 'with equal weights it is the plain one')
end)

clip.needs_whisper(t, 'the doors')

cr.scope(function()
  clip.checkpoint 'checkpoint'
  clip.video('face.mkv', 6, 96, 128)
  clip.points('points.json', clip.moving(6, { { 44, 32 }, { 79, 33 }, { 61, 54 } }))
  clip.voice('voice.wav', 0.24)
end)

local piece = { '--video', path 'face.mkv', '--audio', path 'voice.wav', '--checkpoint', path 'checkpoint', '--points',
  path 'points.json', '--device', 'cpu', '--quiet' }

local function with(words)
  local all = { table.remove(words, 1) }
  for _, word in ipairs(piece) do all[#all + 1] = word end
  for _, word in ipairs(words) do all[#all + 1] = word end
  return child.run(all)
end

t.test('lipsync takes each', function()
  local report = path 'report.json'
  local r = with { 'lipsync', '--size', '64', '--out', path 'out.mkv', '--steps', '4', '--scheduler', solver .. ':order=2',
    '--guidance', '2', '--guidance-method', method .. ':low=1.2', '--cache', ('%s:2:2:3,%s:1.3'):format(cache, layer), '--dump-latents',
    path 'latents.safetensors', '--report', report }
  if not t.equal(r.code, 0, r.err) then return end
  local settings = require 'cjson'.decode(require 'tests.support.scratch'.read(report)).settings
  t.ok(settings.scheduler:find 'my_solver.lua' and settings.cache:find 'my_cache', 'the files in the report')
  t.ok(settings.guidance_method:find 'my_guidance.lua:low=1.2', settings.guidance_method)
end)

t.test('an error in an own file has its position, however long the path is', function()
  local files, folder = require 'cr.files', path 'a_folder_for_a_study_of_guidance_with_a_long_name/and_another_one'
  files.make_folder(folder)
  for name, code in pairs {
    ['wrong.lua'] = 'return function(self, uncond, cond)\n  return uncond + (cond - uncnd) * self.scale\nend\n',
    ['lacks.lua'] = 'return function(self, uncond, cond)\n  return uncond:scale(2)\nend\n',
  } do
    files.write(folder .. '/' .. name, code)
    local r = with { 'lipsync', '--size', '64', '--out', path 'none.mkv', '--steps', '3', '--guidance', '2', '--guidance-method',
      folder .. '/' .. name }
    t.ok(r.code == 1 and r.err:find('^crescent: [^\n]*' .. name:gsub('%.', '%%.') .. ':2: [^\n]+\n$'), r.err)
  end
end)

t.test('a session takes each, with the same latents, and each changes them', function()
  cr.scope(function()
    local run = require 'models.latentsync'.session {
      video = path 'face.mkv', audio = path 'voice.wav', checkpoint = path 'checkpoint', size = 64, points = path 'points.json',
      device = 'cpu', quiet = true,
    }
    local function by(more)
      local o = { scheduler = solver .. ':order=2', steps = 4, guidance = 2, quiet = true }
      for key, value in pairs(more) do o[key] = value end
      return run:sample(o).latents[1]
    end
    local plain = by {}
    local all = by { guidance_method = method .. ':low=1.2', cache = ('%s:2:2:3,%s:1.3'):format(cache, layer) }
    t.near(all:permute(1, 5, 2, 3, 4):contiguous(), cr.load(path 'latents.safetensors').latents, 0, "lipsync's")
    t.near(by { cache = cache .. ':1:1:1' }, plain, 1e-6, 'a cache that keeps nothing')
    t.near(by { cache = layer .. ':1' }, plain, 1e-5, 'a layer as it was')
    for _, more in ipairs { { cache = cache .. ':2:3:2' }, { cache = layer .. ':1.5' }, { guidance_method = method },
      { guidance_method = attention .. ':layers=up_blocks' },
      { scheduler = 'euler' }, { scheduler = EXAMPLES .. 'my_scheduler.lua' } } do
      t.ok(t.relative_error(by(more), plain) > 1e-5, (more.cache or more.guidance_method or more.scheduler) .. ' changes the result')
    end
    t.near(by { guidance_method = attention .. ':seg=0' }, plain, 1e-5, 'a weight of nothing')
    t.near(by { guidance_method = attention .. ':sigma=1e-3,layers=up_blocks' }, plain, 1e-4, 'a blur of nothing')
    -- The table that an example returns can be passed without its file.
    local function file_of(name) return dofile(EXAMPLES .. name) end
    t.near(by { cache = file_of 'my_cache.lua', scheduler = file_of 'my_scheduler.lua', guidance_method = file_of 'my_guidance.lua' },
      by { cache = cache, scheduler = EXAMPLES .. 'my_scheduler.lua', guidance_method = method }, 0)
    local function euler(o) return schedulers.load('euler', { steps = o.steps }) end
    t.near(by { scheduler = euler }, by { scheduler = 'euler' }, 0, 'a function that makes a scheduler')
    local function handing(o) return schedulers.load('euler', o) end
    t.near(by { scheduler = handing, strength = 0.5 }, by { scheduler = 'euler', strength = 0.5 }, 0, 'one that hands its options on')
    t.near(by { scheduler = 'euler: timesteps = [ 900, 400 ]' }, by { scheduler = 'euler', options = { timesteps = { 900, 400 } } }, 0)
    t.raises(function() by { guidance = { scale = 2, method = 'apg' }, guidance_method = 'cfg' } end,
      'guidance.method and guidance_method contradict each other')
    t.raises(function() by { windows = 0 } end, 'sample: windows: a whole number from 1 is needed, not 0')
    t.raises(function() by { scheduler = {} } end, 'a scheduler is a name, a file, a table with timesteps and a function step, or a table')
    t.raises(function() by { sigmas = { 14, 1, 0 } } end, "no option 'sigmas': schedulers have it, as in 'ddim:sigmas=...'")
    t.raises(function() by { cache = cache .. ':0' } end, 'my_cache: expected three numbers of steps')
    t.raises(function() by { cache = layer .. ':x' } end, 'my_layer: GAIN must be a number')
    run:free()
  end)
end)

t.test('compare takes each, beside the built-in', function()
  local r = with { 'compare', '--out', path 'lab', '--reference', 'none', '--no-syncnet', '--steps', '2', '--guidance', '2', '--schedulers',
    solver .. ':order=2', 'size=64', 'guidance_method=cfg,' .. method .. ':low=1.2', ('cache=none,%s:2:2:2+%s:1.3'):format(cache, layer) }
  if not t.equal(r.code, 0, r.err) then return end
  local list = require 'cjson'.decode(require 'tests.support.scratch'.read(path 'lab/results.json'))
  t.equal(#list.cells, 4)
  for _, cell in ipairs(list.cells) do t.ok(cell.finished, cell.label) end
  t.ok(r.out:find 'my_guidance.lua:low=1.2' and r.out:find 'my_cache.lua:2:2:2%+my_layer.lua:1.3', r.out)
end)

child.clean()
t.done()
