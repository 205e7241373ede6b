--- The command line: what runs, exit codes, and one line on stderr for every error.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'

local function fails(args, code, pattern, options)
  local r = child.run(args, options)
  local what = table.concat(args, ' ')
  t.equal(r.code, code, what .. ': exit code')
  t.equal(r.lines, 1, what .. ': lines on stderr: ' .. r.err)
  t.ok(r.err:find '^crescent: ', what .. ': ' .. r.err)
  t.ok(r.err:find(pattern), ('%s: "%s" lacks %s'):format(what, r.err, pattern))
  return r
end

local function works(args, out, options)
  local r = child.run(args, options)
  local what = table.concat(args, ' ')
  t.equal(r.code, 0, what .. ': ' .. r.err)
  t.equal(r.err, '', what .. ': stderr')
  if out then t.ok(r.out:find(out), ('%s: "%s" lacks %s'):format(what, r.out, out)) end
  return r
end

t.test('-e, standard input, scripts', function()
  works({ '-e', 'x = 1' }, '^$')
  works({ '-e', 'print(cr.zeros(2, 3))' }, '^f32 cpu %[2 3%]\n')
  works({ '-e', 'print(nn.relu ~= nil, weights.open ~= nil)' }, '^true\ttrue\n$')
  works({ '-e', 'print(select("#", ...), ..., arg[1])', 'a b' }, '^1\ta b\ta b\n$')
  works({ '-' }, '^3\n$', { stdin = 'print(1 + 2)\n' })
  works({}, '^3\n4\n$', { stdin = '#!/usr/bin/env crescent\nprint(1 + 2)\nprint(4)\n' })
  works({}, '^$', { stdin = '' })
  local path = child.file('script.lua', 'local cr = require "cr"\nprint(cr.full({1}, 7):item(), arg[0], arg[1], #arg, ...)')
  local r = works { path, 'one', 'two' }
  t.equal(r.out, '7\t' .. path .. '\tone\t2\tone\ttwo\n')
end)

t.test('a script can be run by its path from any folder', function()
  child.file('here.lua', 'print("here", require "tests.support.formula" ~= nil)')
  works({ 'here.lua' }, '^here\ttrue', { cwd = child.folder })
  works({ './here.lua' }, '^here\ttrue', { cwd = child.folder })
end)

t.test('version and help', function()
  works({ '--version' }, '^crescent 0%.9  LuaJIT 2%.1')
  works({ 'help' }, 'doctor +Checks what this machine has')
  works({ '--help' }, 'crescent FILE.lua')
  works({ 'help', 'nn.linear' }, '^nn%.linear%(')
  works({ 'help', 'zeros' }, '^cr%.zeros%(')
  works({ 'help', 'cr.tensor' }, '^cr%.tensor%(value')
  works({ 'help', 'cr' }, '\n  go%(.*\n  zeros%(')
  works({ 'help', 'x:matmul' }, '^tensor:matmul%(')
  works({ 'help', 'cr.media' }, '\n  reader:read%(n, ahead%) ')
  works({ 'help', 'modules' }, '\n  schedulers.ddim +DDIM %(Song et al%. 2021%)')
  works({ 'help', 'doctor' }, '^Usage: crescent doctor')
  works({ 'doctor', '--help' }, '^Usage: crescent doctor')
  fails({ 'help', 'covn2d' }, 1, "did you mean 'conv2d'")
end)

t.test('doctor reports the machine and the face detector', function()
  local r = child.run { 'doctor' }
  t.ok(r.code == (r.out:find '\nMISSING' and 1 or 0), 'exit code ' .. r.code .. ': ' .. r.out)
  t.equal(r.lines, r.code, r.err)
  for _, what in ipairs { 'processor', 'threads', 'memory', 'libdnnl', 'lua%-luv', 'lua%-cjson', 'libav',
    'models', 'NVIDIA driver' } do
    t.ok(r.out:find('\n%S+ +' .. what), what .. ' is not mentioned')
  end
  t.ok(r.out:find "MediaPipe's face mesh" and r.out:find 'InsightFace')
end)

t.test('every command has help', function()
  for entry in require 'lfs'.dir(cr.root .. '/scripts') do
    local name = entry:match '^([%w_-]+)%.lua$'
    if name then works({ name, '--help' }, '^Usage: crescent ' .. name:gsub('%-', '%%-')) end
  end
end)

t.test('unknown names', function()
  fails({ 'docter' }, 2, "no command 'docter': did you mean 'doctor'")
  fails({ '--versoin' }, 2, "unknown option '%-%-versoin': did you mean '%-%-version'")
  fails({ '-e' }, 1, '%-e needs the code')
  fails({ '../secret' }, 1, 'cannot open')
  fails({ 'nosuch.lua' }, 1, 'nosuch.lua')
  fails({ 'lipsync', '--eta', '1' }, 2,
    "unknown option '%-%-eta': guidance methods have it, as in 'apg:eta=...'; schedulers have it, as in 'ddim:eta=...'")
  fails({ 'doctor', '--hlep' }, 2, "unknown option '%-%-hlep': did you mean '%-%-help'")
end)

t.test('errors of scripts', function()
  local function script(text) return child.file('bad.lua', text) end
  fails({ script 'error "broken"' }, 1, '^crescent: .*bad.lua:1: broken\n$')
  fails({ script 'local x\n\nprint(x.y)' }, 1, "bad.lua:3: attempt to index local 'x'")
  fails({ script 'x = = 1' }, 1, "bad.lua:1: unexpected symbol near '='")
  fails({ script 'require "no.such.module"' }, 1, "module 'no.such.module' not found\n$")
  fails({ script 'error("two\\nlines")' }, 1, 'two lines')
  fails({ script 'error { 1 }' }, 1, 'table')
  fails({ script 'error()' }, 1, 'nil')
  fails({ script 'require "cr.errors".fail("no such thing", 1)' }, 1, '^crescent: no such thing\n$')
  fails({ script 'require "cr.errors".fail("worse", 2)' }, 2, '^crescent: worse\n$')
  fails({ script 'require "cr.tools.cli".fail("seven", 7)' }, 7, '^crescent: seven\n$')
  fails({ script 'local cr = require "cr"\ncr.zeros(2, 3):matmul(cr.zeros(2, 3))' }, 1,
    'bad.lua:2: matmul: inner sizes differ: %[2 3%] x %[2 3%]\n$')
  fails({ script 'local function f() return f() + 1 end f()' }, 1, 'stack overflow')
  fails({}, 1, '^crescent: stdin:2: second\n$', { stdin = 'print(1)\nerror "second"\nprint(3)\n' })
  fails({ '-e', 'error "here"' }, 1, '%(command line%):1: here')
  local r = child.run({ script 'local function f() error "deep" end\nf()\nf()' }, { env = { CR_TRACEBACK = '1' } })
  t.equal(r.code, 1)
  t.ok(r.err:find 'stack traceback' and r.err:find "bad.lua:2:", r.err)
end)

t.test('tasks of a script', function()
  local function script(text) return child.file('task.lua', 'local cr = require "cr"\n' .. text) end
  works({ script 'cr.go(function() cr.sleep(0.01) print "ended" end)' }, '^ended\n$')
  fails({ script 'cr.go(function() cr.sleep(0.01)\nerror "late" end)' }, 1, 'task.lua:3: late')
  fails({ script 'cr.run(function() cr.channel():get() end)' }, 1, 'deadlock: .*task.lua:2 %(channel get%)')
  local r = fails({ script [[
    cr.go(function() local ok, err = pcall(cr.sleep, 100) print('closed', err) end)
    cr.yield() error 'main' ]] }, 1, 'main')
  t.equal(r.out, 'closed\tcancelled\n')
  works({ script 'local uv = require "luv" local n = uv.new_timer() n:start(1, 0, function() print "luv" n:close() end) uv.run()' },
    '^luv\n$')
  works({ '-e', 'local n = require "luv".new_timer() n:start(1, 0, function() print "same loop" n:close() end) cr.sleep(0.02)' },
    '^same loop\n$')
end)

t.test('a luv that is missing or damaged', function()
  fails({ '-e', 'package.cpath = "/none/?.so" cr.sleep(0)' }, 1, 'luv is missing %(apt%-get install lua%-luv%)')
  child.file('luv.so', 'junk')
  fails({ '-e', ('package.cpath = "%s/?.so" cr.sleep(0)'):format(child.folder) }, 1,
    'luv in .*/luv.so cannot be used: .*file too short')
end)

t.test('an unwritable standard output', function()
  if not child.exists '/dev/full' then t.skip 'no /dev/full' end
  local status = os.execute("'" .. child.program .. "' -e 'print(1)' >/dev/full 2>'" .. child.folder .. "/err'")
  t.equal(status, 256, 'exit status 1')
  t.ok(io.open(child.folder .. '/err'):read '*a':find '^crescent: cannot write to standard output: No space')
end)

-- ---- options --------------------------------------------------------------------------------

local options = [[
  local args = require 'cr.tools.cli'.parse(arg, {
    name = 'try', summary = 'Tries options.',
    options = {
      { '--video', 'file', required = true, help = 'the face' },
      { '--steps', 'int', default = 20, min = 1, max = 1000, help = 'denoising steps' },
      { '--seed', 'int', default = 1247, help = 'of the noise; -1: random' },
      { '--start', 'number', default = 0, unit = 'seconds', help = 'where to begin' },
      { '--paste', 'choice', default = 'region', choices = { 'region', 'reference' }, help = 'how' },
      { '--size', function(s) return tonumber(s) and tonumber(s) % 8 == 0 and tonumber(s) or nil, 'a multiple of 8' end,
        default_text = "the checkpoint's", help = 'of the face' },
      { '--no-label', 'flag', help = 'no metadata' },
      { '--smooth', 'flag', negatable = true, help = 'steady points' },
    },
    positional = { { 'more', 'file', optional = true, help = 'more' } },
  })
  local out = {}
  for name, value in pairs(args) do out[#out + 1] = name .. '=' .. tostring(value) end
  table.sort(out)
  print(table.concat(out, ' '))
]]

t.test('option values', function()
  local path = child.file('options.lua', options)
  local function gives(line, expected)
    local args = { path }
    for word in line:gmatch '%S+' do args[#args + 1] = word end
    local r = works(args)
    t.equal(r.out, expected .. '\n', line)
  end
  gives('--video a', 'no_label=false paste=region seed=1247 start=0 steps=20 video=a')
  gives('--video=a --seed -1 --steps 3 --steps=4', 'no_label=false paste=region seed=-1 start=0 steps=4 video=a')
  gives('--start -1.5e1 --video a --no-label --smooth',
    'no_label=true paste=region seed=1247 smooth=true start=-15 steps=20 video=a')
  gives('--video a --no-smooth --paste reference b',
    'more=b no_label=false paste=reference seed=1247 smooth=false start=0 steps=20 video=a')
  gives('--video a --video b=c --size 512',
    'no_label=false paste=region seed=1247 size=512 start=0 steps=20 video=b=c')
  gives('--video -x.mp4 -- -y', 'more=-y no_label=false paste=region seed=1247 start=0 steps=20 video=-x.mp4')
  gives('--video=--x.mp4 -- --y=1', 'more=--y=1 no_label=false paste=region seed=1247 start=0 steps=20 video=--x.mp4')
  gives('--video - --steps 3', 'no_label=false paste=region seed=1247 start=0 steps=3 video=-')
  gives('--video -x=y --start -.5', 'no_label=false paste=region seed=1247 start=-0.5 steps=20 video=-x=y')
  local r = works { path, '--help' }
  t.ok(r.out:find('%-%-start X +where to begin %(seconds, default 0%)'), r.out)
  t.ok(r.out:find("%-%-size VALUE +of the face %(default the checkpoint's%)"), r.out)
  t.ok(r.out:find('%-%-paste NAME +how %(region|reference, default region%)'), r.out)
end)

t.test('wrong options', function()
  local path = child.file('options.lua', options)
  local function wrong(line, code, pattern)
    local args = { path }
    for word in line:gmatch '%S+' do args[#args + 1] = word end
    fails(args, code, pattern)
  end
  wrong('--video a --stpes 3', 2, "unknown option '%-%-stpes': did you mean '%-%-steps'")
  wrong('--vidoe=a', 2, "unknown option '%-%-vidoe': did you mean '%-%-video'")
  wrong('--video a -x', 2, "unknown option '%-x'")
  wrong('--video a --steps many', 2, "%-%-steps: 'many' is not a whole number")
  wrong('--video a --steps 1.5', 2, 'whole number')
  wrong('--video a --seed 0x10', 2, 'whole number')
  wrong('--video a --start nan', 2, "'nan' is not a number")
  wrong('--video a --start=', 2, 'not a number')
  wrong('--video a --paste over', 2, "'over' is not region or reference")
  wrong('--video a --size 100', 2, "'100' is not a multiple of 8")
  wrong('--video a --steps 0', 1, '%-%-steps: 0 is less than 1')
  wrong('--video a --steps 2000', 1, 'more than 1000')
  wrong('--video', 1, '%-%-video needs a value')
  wrong('--video --steps 3', 1, '%-%-video needs a value')
  wrong('--video -h', 1, '%-%-video needs a value')
  wrong('--video -- a', 1, '%-%-video needs a value')
  wrong('--video --stpes 3', 1, "%-%-video needs a value before '%-%-stpes'")
  wrong('--video a --steps -x', 2, "%-%-steps: '%-x' is not a whole number")
  wrong('--steps 3', 1, '%-%-video is missing')
  wrong('--video a b c', 1, "'c' is one argument too many: %-%-help says what is taken")
  wrong('--video a --no-label=1', 1, 'no%-label')
end)

t.test('nearest names', function()
  local errors = require 'cr.errors'
  t.equal(errors.distance('steps', 'stpes'), 1)
  t.equal(errors.distance('', 'abc'), 3)
  t.equal(errors.distance('kitten', 'sitting'), 3)
  t.equal(errors.nearest('sceduler', { 'steps', 'scheduler', 'seed' }), 'scheduler')
  t.equal(errors.nearest('x', {}), nil)
end)

child.clean()
t.done()
