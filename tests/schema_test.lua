--- Settings that are declared once: checks in scripts, on a command line, in reports and in the documentation.

local t = require 'tests.support.tap'
local cli = require 'cr.tools.cli'
local errors = require 'cr.errors'
local schema = require 'cr.schema'
local settings = require 'models.latentsync.settings'

local rows = schema.new {
  { 'voice', 'file', per_person = true, required = true, stage = 'input', help = 'a voice for each person' },
  { 'steps', 'int', default = 20, min = 1, max = 1000, stage = 'sample', unit = 'steps', help = 'denoising steps' },
  { 'weight', 'number', above = 0, below = 2, per_person = true, default = 1.5, stage = 'sample', help = 'of the sound' },
  { 'kind', 'choice', choices = { 'a', 'b' }, default = 'a', stage = 'sample', help = 'which' },
  { 'dtype', 'string', default = function(s) return s.kind == 'b' and 'f16' or 'f32' end, default_text = 'by kind', help = 'of numbers' },
  { 'frames_per_window', 'int', also = 'frames', default = 16, stage = 'find', help = 'together' },
  { 'label', 'flag', default = true, off = 'leave it out', stage = 'encode', help = 'a mark' },
  { 'smooth', 'flag', negatable = true, help = 'steady' },
}

local function refused(given, pattern, extra)
  local ok, problem = pcall(rows.check, rows, 'door', given, extra)
  t.ok(not ok and errors.is_failure(problem) and problem.message:find(pattern) ~= nil, tostring(problem))
end

t.test('errors in scripts: names, types, ranges, choices', function()
  refused({ stpes = 3 }, "^door: there is no option 'stpes': did you mean 'steps'%?$")
  refused({ steps = 'many' }, "^door: steps: 'many' is not a whole number$")
  refused({ steps = 2.5 }, '^door: steps: 2%.5 is not a whole number$')
  refused({ steps = 0 }, '^door: steps: 0 is less than 1$')
  refused({ steps = 0 / 0 }, 'steps: .*nan is not a whole number$')
  refused({ weight = 1 / 0 }, 'weight: inf is not a number$')
  refused({ weight = 2 }, '^door: weight: 2 is not less than 2$')
  refused({ weight = 0 }, '^door: weight: 0 is not more than 0$')
  refused({ weight = { 1, 3 } }, '^door: weight: 3 is not less than 2$')
  refused({ steps = { 1, 2 } }, '^door: steps: a table is not a whole number$')
  refused({ voice = {} }, '^door: voice: the list is empty$')
  refused({ kind = 'c' }, "^door: kind: 'c' is not a or b$")
  refused({ kind = 3 }, '^door: kind: 3 is not a or b$')
  refused({ label = 1 }, '^door: label: 1 is not true or false$')
  refused({ mine = 1, other = 2 }, "no option 'other'", { 'mine' })
end)

t.test('values come back under their own names, with defaults', function()
  local given = rows:check('door', { frames = 8, weight = { 1, 1.25 }, mine = 7 }, { 'mine' })
  t.equal(given.frames_per_window, 8)
  t.equal(given.mine, 7)
  rows:complete(given)
  t.equal(given.steps, 20)
  t.equal(given.dtype, 'f32')
  t.equal(given.label, true)
  t.equal(rows:complete { kind = 'b' }.dtype, 'f16', 'a default that depends on another')
  t.equal(#rows:only { 'sample', 'label' }.rows, 4, 'by stage and by name')
end)

t.test('on a command line: the same rows, a list per person, words that can be parsed again', function()
  local spec = { name = 'try', summary = 'x', options = rows:options() }
  local args = cli.parse({ '--voice', 'one.wav', '--voice=two.wav', '--weight', '0.5', '--no-label', '--no-smooth' }, spec)
  t.equal(table.concat(args.voice, ' '), 'one.wav two.wav')
  t.equal(args.weight, 0.5, 'one value is no list')
  t.equal(args.steps, nil, 'defaults are not filled in')
  t.equal(args.label, false)
  t.equal(args.smooth, false)
  t.equal(cli.parse({ '--voice', 'a' }, spec).label, nil)
  local words = rows:words(args)
  t.equal(table.concat(words, ' '), '--voice=one.wav --voice=two.wav --weight=0.5 --no-label --no-smooth')
  local again = cli.parse(words, spec)
  t.equal(table.concat(again.voice, ' '), 'one.wav two.wav')
  t.equal(again.weight, 0.5)
  for text, wanted in pairs { ['--steps=0'] = '%-%-steps: 0 is less than 1', ['--weight=2'] = '%-%-weight: 2 is not less than 2',
    ['--kind=c'] = "%-%-kind: 'c' is not a or b" } do
    local ok, problem = pcall(cli.parse, { '--voice', 'a', text }, spec)
    t.ok(not ok and problem.message:find(wanted), tostring(problem))
  end
end)

t.test('reports and documentation', function()
  local told = rows:report { steps = 3, weight = { 1, 2 }, dtype = function() end, kind = 'a', label = false }
  t.equal(told.steps, 3)
  t.equal(told.weight[2], 2)
  t.equal(told.label, false)
  local lines = rows:markdown()
  t.equal(lines[1], '| `--voice FILE` | a voice for each person (required) |')
  t.equal(lines[2], '| `--steps N` | denoising steps (steps; default: 20) |')
  t.equal(lines[7], '| `--no-label` | leave it out |')
  t.equal(lines[8], '| `--smooth`, `--no-smooth` | steady |')
end)

t.test("lipsync's settings: a guidance table sets its parts; every row has help and a stage", function()
  local given = settings.check('sample', { guidance = { scale = 2, interval = { 100, 800 }, off_last = 1 } }, { 'sample' })
  t.equal(given.guidance, 2)
  t.equal(given.guidance_interval[2], 800)
  t.equal(given.guidance_off_last, 1)
  t.raises(function() settings.check('sample', { guidance = { weight = 2 } }, { 'sample' }) end, "no option 'weight'")
  t.raises(function() settings.check('sample', { video = 'x' }, { 'sample' }) end, "no option 'video'")
  local stages = { input = true, load = true, find = true, sample = true, paste = true, encode = true, output = true, run = true }
  for _, row in ipairs(settings.schema.rows) do
    t.ok(row.help or row.off, row[1] .. ' has no help')
    t.ok(stages[row.stage], ("%s: '%s' is no stage: settings.lua lists them"):format(row[1], tostring(row.stage)))
  end
end)

t.test("each of lipsync's settings is used", function()
  local files, root, text = require 'cr.files', require 'cr'.root, {}
  local list = io.popen(("find '%s/models' '%s/scripts' -name '*.lua' ! -path '*/latentsync/settings.lua'"):format(root, root))
  for path in list:lines() do text[#text + 1] = files.read(path) end
  list:close()
  text = table.concat(text, '\n')
  local parts_of_guidance = files.read(root .. '/lua/cr/guidance/init.lua')
  for _, row in ipairs(settings.schema.rows) do
    local part = row[1]:match '^guidance_(.*)$'
    t.ok(text:find('%.' .. row[1] .. '%f[^%w_]') or part and parts_of_guidance:find(("'%s'"):format(part), 1, true),
      ('no file of models/ or scripts/ reads the setting %s'):format(row[1]))
  end
end)

t.done()
