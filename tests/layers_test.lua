--- The layer checker (tests/layers.lua): one violation of each kind is placed in a small tree and must be reported
--- with its file and line; the tree without it, and our own, must pass.

local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'

-- A tree with a file on most floors, each using a lower one.
local HOUSE = {
  ['core/crescent.h'] = '',
  ['core/base/internal.h'] = '#include "crescent.h"\n',
  ['core/base/tensor.h'] = '#include "base/internal.h"\n',
  ['core/base/tensor.c'] = '#include "base/tensor.h"\n\n#include <stdio.h>\nint cr__low(void) { return 1; }\n',
  ['core/cpu/cpu.h'] = '#include "base/internal.h"\n',
  ['core/cpu/move.c'] = '#include "cpu/cpu.h"\nint cr__low(void);\nint cr__high(void) { return cr__low(); }\n',
  ['core/ops/move.c'] = '#include "base/tensor.h"\n',
  ['kernels/device/cuda.h'] = '#include "base/internal.h"\n',
  ['kernels/norm/norm.cu'] = '#include "device/cuda.h"\n',
  ['kernels/reduce/reduce.h'] = '#include "device/cuda.h"\n',
  ['lua/cr/ffi.lua'] = "local ffi = require 'ffi'\nreturn { C = ffi.C }\n",
  ['lua/cr/tensor/init.lua'] = "local C = require 'cr.ffi'.C\nreturn C.cr_version\n",
  ['lua/cr/init.lua'] = "local lazy = { nn = 'cr.nn' }\nlocal cr = require 'cr.tensor'\nreturn cr or require(lazy.nn)\n",
  ['lua/cr/nn/init.lua'] = "-- require 'scripts.run' is only spoken of\nreturn require('cr.tensor')\n",
  ['lua/cr/cache/plain.lua'] = 'return {}\n',
  ['lua/cr/cache/init.lua'] = "return function(name) return require('cr.cache.' .. name) end\n",
  ['lua/cr/tools/cli.lua'] = "return require 'cr'\n",
  ['models/networks/vae.lua'] = "local ffi = require 'ffi'\nlocal ok = pcall(require, 'cr.nn')\nreturn ok and ffi.C.free\n",
  ['models/latentsync/init.lua'] = "return require [[models.networks.vae]]\n",
  ['models/mini/train/encode.lua'] = 'return {}\n',
  ['scripts/run.lua'] = "return require 'models.latentsync'\n",
  ['tests/support/tap.lua'] = 'return {}\n',
  ['tests/x_test.lua'] = "return require 'tests.support.tap', require 'cr'.C.cr_copy\n",
}

-- Checks a tree with `changes` made to HOUSE; returns whether it passed, and the output.
local count = 0
local function check(changes, build)
  count = count + 1
  local root = scratch.path('house' .. count)
  local contents = {}
  for name, text in pairs(HOUSE) do contents[name] = text end
  for name, text in pairs(changes) do contents[name] = text end
  for name, text in pairs(contents) do
    local folder = (root .. '/' .. name):match '^(.*)/'
    if not require 'lfs'.attributes(folder, 'mode') then assert(os.execute("mkdir -p '" .. folder .. "'") == 0) end
    scratch.write('house' .. count .. '/' .. name, text)
  end
  if build then assert(os.execute(build:gsub('ROOT', root)) == 0) end
  local handle = io.popen(("luajit tests/layers.lua '%s' %s 2>&1; echo status $?"):format(root, build and 'build' or ''))
  local text = handle:read '*a'
  handle:close()
  return text:match 'status (%d+)' == '0', text:gsub('status %d+\n$', '')
end

local function refused(what, place, changes, words, build)
  t.test(what, function()
    local passed, text = check(changes, build)
    t.ok(not passed, 'it passed')
    t.ok(text:find(place .. ': ', 1, true), ('%s is not named:\n%s'):format(place, text))
    t.ok(text:find(words, 1, true), ('"%s" is not said:\n%s'):format(words, text))
  end)
end

t.test('a tree without violations passes', function()
  local passed, text = check {}
  t.ok(passed, text)
  t.equal(text, '')
end)

t.test('our own tree passes, including its objects', function()
  local build = (os.getenv 'PROGRAM' or os.getenv 'CRESCENT' or 'build/crescent'):match '^(.*)/'
  if require 'lfs'.attributes(build .. '/core', 'mode') ~= 'directory' then build = '' end -- an installed program
  local handle = io.popen(('luajit tests/layers.lua . %s 2>&1'):format(build))
  t.equal(handle:read '*a', '')
  handle:close()
end)

-- ---- Lua ----------------------------------------------------------------------------------------

local above = 'is above'
for what, line in pairs {
  ['plainly'] = "local x = require 'cr.tools.cli'",
  ['with brackets'] = 'local x = require("cr.tools.cli")',
  ['in a long string'] = 'local x = require [[cr.tools.cli]]',
  ['by pcall'] = "local ok, x = pcall(require, 'cr.tools.cli')",
  ['by what is loaded'] = "local x = package.loaded['cr.tools.cli']",
  ['by a lazy name'] = "local lazy = { cli = 'cr.tools.cli' } local x = require(lazy.cli)",
  ['by a prefix'] = "local x = require('cr.tools.' .. name)",
} do
  refused('a floor of lua/ uses a higher one ' .. what, 'lua/cr/tensor/init.lua:2',
    { ['lua/cr/tensor/init.lua'] = 'local y = 1\n' .. line .. '\n' }, above)
end
refused('models use scripts', 'models/latentsync/init.lua:1', { ['models/latentsync/init.lua'] = "require 'scripts.run'\n" },
  'nobody may use scripts/')
refused('networks use the pipeline', 'models/networks/vae.lua:1',
  { ['models/networks/vae.lua'] = "require 'models.latentsync'\n" }, above)
refused('one floor uses itself', 'lua/cr/nn/init.lua:1',
  { ['lua/cr/nn/init.lua'] = "require 'cr.image'\n", ['lua/cr/image.lua'] = '' }, 'are on the same floor')
refused('a script is required', 'tests/x_test.lua:1', { ['tests/x_test.lua'] = "require 'scripts.run'\n" }, 'nobody may use scripts/')
refused('training is required', 'models/latentsync/init.lua:1',
  { ['models/latentsync/init.lua'] = "require 'models.mini.train.encode'\n" }, 'nobody may use models/mini/train/')
refused('tests/support is used outside of tests', 'scripts/run.lua:1', { ['scripts/run.lua'] = "require 'tests.support.tap'\n" },
  'scripts/ may use models, lua')
refused('a missing module', 'scripts/run.lua:1', { ['scripts/run.lua'] = "require 'models.gone'\n" },
  "no module 'models.gone'")
refused('require under another name', 'scripts/run.lua:1', { ['scripts/run.lua'] = "local r = require\nr 'cr.tools.cli'\n" },
  'own name only')
for what, line in pairs {
  ['dofile'] = "dofile 'scripts/run.lua'",
  ['loadfile'] = "local run = loadfile('scripts/run.lua')",
  ['loadstring'] = [[loadstring "return require 'scripts.run'" ()]],
  ['a name that is put together'] = "local name = 'scripts' .. '.run' local run = require(name)",
  ['a parameter'] = 'local function get(name) return require(name) end',
  ['_G.require'] = "_G.require 'scripts.run'",
  ["_G['require']"] = "_G['require']('scripts.run')",
  ["rawget(_G, 'require')"] = "rawget(_G, 'require')('scripts.run')",
  ['getfenv'] = "getfenv().require('scripts.run')",
  ['package.preload'] = "package.preload['scripts.run']()",
  ['package.loaders'] = "package.loaders[2]('scripts.run')()",
  ['package.searchpath'] = "local path = package.searchpath('scripts.run', package.path)",
} do
  refused('a file is used past a require: ' .. what, 'models/networks/vae.lua:1', { ['models/networks/vae.lua'] = line .. '\n' },
    'hides what a file uses')
end
refused('a circle in Lua', 'lua/cr/cache/plain.lua:2', { ['lua/cr/cache/plain.lua'] = "\nreturn require 'cr.cache'\n" },
  'cycle of uses: lua/cr/cache/init.lua, lua/cr/cache/plain.lua')
refused('a new folder', 'lua/cr/new/x.lua:1', { ['lua/cr/new/x.lua'] = '' }, 'belongs to no floor')

for what, line in pairs {
  ['cr.ffi'] = "local base = require 'cr.ffi'",
  ['cr.ffi by pcall'] = "local ok, base = pcall(require, 'cr.ffi')",
  ['cr.ffi among what is loaded'] = "local base = package.loaded['cr.ffi']",
  ['cr.C'] = "local C = cr.C",
  ['require("cr").C'] = 'local C = require("cr").C',
  ["require 'cr'.C"] = "local C = require 'cr'.C",
  ["cr['C']"] = "local C = cr['C']",
  ["rawget(cr, 'C')"] = "local C = rawget(cr, 'C')",
  ["package.loaded.cr.C"] = 'local C = package.loaded.cr.C',
  ['ffi.C.cr_copy'] = 'ffi.C.cr_copy(a, b)',
  ['an alias of ffi.C'] = 'local libc = ffi.C; libc.cr_copy(a, b)',
  ['ffi.load'] = "local C = ffi.load 'build/libcrescent.so'",
  ['ffi.load of a computed name'] = "local C = ffi.load(cr.root .. '/libcres' .. 'cent.so')",
} do
  refused('raw C calls outside lua/cr/: ' .. what, 'models/latentsync/init.lua:3',
    { ['models/latentsync/init.lua'] = "local ffi, cr = require 'ffi', require 'cr'\n\n" .. line .. '\n' },
    'raw C calls belong in lua/cr/')
end

-- ---- C and CUDA ---------------------------------------------------------------------------------

refused('a floor of core/ includes a higher one', 'core/base/tensor.c:2',
  { ['core/base/tensor.c'] = '/* a\n */ #include "cpu/cpu.h"\n' }, above)
refused('the same by a path from the file', 'core/base/tensor.c:1', { ['core/base/tensor.c'] = '#include "../cpu/cpu.h"\n' }, above)
refused('the same between angle brackets', 'core/base/tensor.c:1', { ['core/base/tensor.c'] = '#include <cpu/cpu.h>\n' }, above)
refused('the same by #import', 'core/base/tensor.c:1', { ['core/base/tensor.c'] = '#import "cpu/cpu.h"\n' }, above)
refused('core/ includes kernels/', 'core/ops/move.c:1', { ['core/ops/move.c'] = '#include "../../kernels/device/cuda.h"\n' },
  'core/ may use no other room')
refused('kernels/ includes more than the base', 'kernels/norm/norm.cu:1',
  { ['kernels/norm/norm.cu'] = '#include "cpu/cpu.h"\n' }, 'kernels/ may use core/base')
refused('one family of kernels includes another', 'kernels/norm/norm.cu:1',
  { ['kernels/norm/norm.cu'] = '#include "reduce/reduce.h"\n' }, 'are on the same floor')
refused('a name that begins elsewhere', 'core/ops/move.c:1', { ['core/ops/move.c'] = '#include "../base/tensor.h"\n' },
  'write #include "base/tensor.h"')
refused('a bare name', 'core/base/tensor.c:1', { ['core/base/tensor.c'] = '#include "tensor.h"\n' },
  'write #include "base/tensor.h"')
refused('a missing header', 'core/ops/move.c:1', { ['core/ops/move.c'] = '#include "base/gone.h"\n' },
  'no file "base/gone.h"')
refused('a header that a macro names', 'core/ops/move.c:1', { ['core/ops/move.c'] = '#include HEADER\n' }, 'cannot be checked')
refused('a circle in C', 'core/base/tensor.c:2', {
  ['core/base/tensor.c'] = '#include "base/tensor.h"\n#include "base/copy.h"\n', ['core/base/copy.h'] = '',
  ['core/base/copy.c'] = '#include "base/copy.h"\n#include "base/tensor.h"\n',
}, 'cycle of uses: core/base/copy, core/base/tensor')

local COMPILE = "cd 'ROOT' && for f in core/*/*.c; do mkdir -p build/${f%/*} && " ..
  '${CC:-gcc} -Icore -c $f -o build/${f%.c}.o || exit 1; done'
t.test('objects without violations pass', function()
  local passed, text = check({}, COMPILE)
  t.ok(passed, text)
end)
refused('a symbol of a higher floor, declared without its header', 'core/base/tensor.c:1',
  { ['core/base/tensor.c'] = 'int cr__high(void);\nint cr__low(void) { return cr__high(); }\n' },
  'may not use cr__high of core/cpu/move.c', COMPILE)

t.done()
