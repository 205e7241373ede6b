--- Parts of the prompt, without a terminal: formatting of values, completion, images by every terminal protocol.

local ffi = require 'ffi'
local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'

t.test('formatting of values', function()
  local text = require 'cr.tools.prompt.values'.text
  t.equal(text(nil), 'nil')
  t.equal(text 'a\nb', '"a\\nb"')
  t.equal(text {}, '{}')
  t.equal(text { f = print }, '{ f = function }')
  t.equal(text { 3, 4, x = true, ['a b'] = 1, [2.5] = 0 }, '{ 3, 4, [2.5] = 0, ["a b"] = 1, x = true }')
  local cycle = {}
  cycle.self = cycle
  t.equal(text(cycle), '{ self = { self = { self = {...} } } }')
  local long = {}
  for i = 1, 1000 do long[i] = i end
  t.ok(#text(long) < 100, text(long))
  t.equal(text(setmetatable({}, { __tostring = function() return 'mine' end })), 'mine')
  local wide = { first = ('a'):rep(60), second = { x = ('b'):rep(60), y = 1 } }
  t.ok(text(wide):find('\n  second = { x = "b', 1, true), text(wide))
end)

t.test('what Python writes gets advice, and the last of several statements is shown', function()
  local advice, run = require 'cr.tools.prompt.advice', require 'cr.tools.prompt.run'
  local function told(text)
    local chunk, problem = run.compile(text)
    if not chunk and run.is_incomplete(problem) then return 'more' end
    local ok, err = pcall(chunk or error, problem)
    return not ok and advice.of(text, tostring(err)) or 'none'
  end
  for text, wanted in pairs {
    ['x:mean'] = 'with parentheses: x:mean%(%)', ['x ** 2'] = 'x %^ 2', ['x != 2'] = 'a ~= b', ['import torch'] = 'without import',
    ['for i in range(3):'] = 'for i = 1, 10 do', ['x[0:2, :]'] = 'x%[{ { 1, 3 }', ['def f(x):'] = 'function f', ['x += 1'] = 'add_',
    ['torch.randn(3)'] = '%? torch.randn', ['help(nn)'] = '%? NAME', ['f = lambda x: x'] = 'function%(x%)', ['1 + nil'] = '^none$',
    ['x[1, 2]'] = 'x%[{ 1, 2 }%]', ['a @ b'] = 'matmul', ['x:sum(axis=1)'] = 'places and no names',
    ['f(1'] = '^more$', ['x = {'] = '^more$', ['if a then'] = '^more$',
  } do
    t.ok(told(text):find(wanted), ('%s: %s'):format(text, told(text)))
  end
  _G.thing = setmetatable({}, { __index = { sample = function() end, save = function() end } })
  t.equal(told 'thing:smaple {}', "did you mean 'sample'?")
  t.equal(told 'thing:zzzzzz()', 'Tab after thing: lists its methods')
  _G.thing = nil
  t.equal(run.compile 'a = 3; a + 1'(), 4)
  t.equal(run.compile 'a = 5; math.max(a, 2)'(), 5)
  run.compile 'b = "x;" .. a'()
  t.equal(_G.b, 'x;5', 'a semicolon in a string')
  t.equal(select('#', run.compile 'b = 1; return 1, 2'()), 2)
  _G.a, _G.b = nil, nil
end)

t.test('completion', function()
  local complete = require 'cr.tools.prompt.complete'.complete
  local function is(before, first, wanted)
    local at, list = complete(before, require 'cr.tools.prompt'.commands())
    local names = {}
    for i, c in ipairs(list) do names[i] = c.text end
    t.equal(at, first, before .. ': where')
    t.ok((' ' .. table.concat(names, ' ') .. ' '):find(' ' .. wanted .. ' ', 1, true),
      ('%s: %s is not among %s'):format(before, wanted, table.concat(names, ' ')))
  end
  is('string.for', 1, 'string.format')
  is('print(math.flo', 7, 'math.floor')
  is('f(x):su', 5, ':sum')
  is('local y = x[1]:sq', 15, ':sqrt')
  is('require "cr.sche', 10, 'cr.schedulers')
  is('run:sample { scheduler = "dpmpp_2', 27, 'dpmpp_2m')
  is("cr.zeros(2, { dtype = 'bf", 24, 'bf16')
  is('x:to "cu', 7, 'cuda')
  is('nn.conv2d(w, x, { pad', 19, 'padding')
  is('run:sample { steps = 4, sched', 25, 'scheduler')
  is('latentsync.session { vid', 22, 'video')
  is(':ti', 1, ':time')
  is(':time string.for', 7, 'string.format')
  is(':reload cr.wei', 9, 'cr.weights')
  is('? nn.conv', 3, 'nn.conv2d')
  is('? dpmpp_2', 3, 'dpmpp_2m')
  is('retu', 1, 'return')
  is('x = "' .. cr.root .. '/READ', 6, cr.root .. '/README.md')
  _G.schedulers, _G.nn, _G.cr = require 'cr.schedulers', require 'cr.nn', cr -- as in the prompt
  is('schedulers.load("dpmpp_2', 18, 'dpmpp_2m')
  is("s = schedulers.help 'eul", 22, 'euler')
  is('cr.generator(1, "torch', 18, 'torch-cpu')
  is('nn.linear(w, x, { residual = y, act = "ge', 40, 'gelu')
  is("nn.resize(x, f(1, 2), 3, 'bic", 27, 'bicubic_aa')
  _G.schedulers, _G.nn, _G.cr = nil, nil, nil
  local _, list = complete 'x = 12'
  t.equal(#list, 0, 'a number')
  _, list = complete 'x = "a" .. nosuch.fie'
  t.equal(#list, 0, 'a field of nothing')
end)

t.test('a local variable of an earlier line gets a hint', function()
  local hint = require 'cr.tools.prompt.run'.hint
  for _, case in ipairs {
    { 'local a = 5', 'a' }, { 'x = 1; local a, b = 2, 3', 'a, b' }, { 'local function f(x) return x end', 'f' }, { 'local a', 'a' },
    { "local s = 'a local b'", 's' }, { 'local a = 1\nlocal b = a', 'b' }, { 'local a = 5 -- five', 'a' },
  } do t.ok((hint(case[1]) or ''):find('^  ' .. case[2] .. ': a local is visible'), case[1]) end
  for _, code in ipairs { 'local t = 5 print(t)', 'f = function() local a = 5 end', 'a = "local x"', 'local a = 1\nprint(a)',
    'for i = 1, 2 do local a = i end', 'locals = 3', 'x.local_name = 1' } do t.equal(hint(code), nil, code) end
end)

t.test('incomplete input waits for more lines, invalid input is an error', function()
  local run = require 'cr.tools.prompt.run'
  local function waits(text)
    local chunk, problem = run.compile(text, 'x')
    return chunk == nil and run.is_incomplete(problem)
  end
  for _, text in ipairs { 'for i = 1, 3 do', 'f(', 'x = {', 'x = [[a', 'if a then', '= 1 +' } do t.equal(waits(text), true, text) end
  for _, text in ipairs { '= 1 2', 'a b', '1 2', 'x = )', 'end', 'return 1 2' } do t.equal(waits(text), false, text) end
end)

t.test('images by every protocol', function()
  local display = require 'cr.tools.display'
  cr.scope(function()
    local x = cr.arange(0, 1, 1 / 255):view(16, 16)
    local rgb = display.rgb(x)
    t.equal(table.concat(rgb.shape, ' '), '16 16 3')
    t.equal(rgb:max():item(), 255)
    t.equal(rgb:select(1, 1):select(1, 2):select(1, 1):item(), 1)
    local kitty = display.encode(rgb, { protocol = 'kitty', columns = 80, rows = 24 })
    t.ok(kitty:find('^\27_Ga=T,f=24,s=160,v=160,m=1;') and kitty:find '\27\\\n$', 'kitty: ' .. kitty:sub(1, 40))
    local iterm = display.encode(rgb, { protocol = 'iterm2', columns = 80, rows = 24 })
    t.ok(iterm:find '^\27%]1337;File=inline=1;size=%d+;width=160px;height=160px:iVBORw0KGgo' and iterm:find '\7\n$',
      'iTerm2: ' .. iterm:sub(1, 80))
    local blocks = display.encode(rgb, { protocol = 'blocks', columns = 80, rows = 24, colors = 'true' })
    t.ok(blocks:find('\27[38;2;0;0;0;48;2;', 1, true), 'blocks: ' .. blocks:sub(1, 40))
    local _, rows = blocks:gsub('\n', '')
    t.ok(rows >= 8 and rows <= 21, rows .. ' rows')
    local plain = display.encode(rgb, { protocol = 'blocks', columns = 80, rows = 24, colors = 'none' })
    t.ok(not plain:find '\27', 'no colours')
    local sheet = display.rgb(cr.zeros(3, 8, 10, 3))
    t.equal(table.concat(sheet.shape, ' '), '8 34 3', 'three in a row')
    local _, note = display.rgb(cr.full({ 4, 4 }, 7))
    t.ok(note, 'a range is told')
    t.raises(function() display.rgb(cr.zeros(3)) end, 'two dimensions')
    local nan = cr.full({ 2, 2 }, 0 / 0)
    t.equal(display.rgb(nan):max():item(), 0)
    if pcall(ffi.load, 'libsixel.so.1') then
      -- It stays loaded, so that the leak checker can name it (tests/support/lsan.supp).
      ffi.cdef 'void *dlopen(const char *file, int flags);'
      ffi.C.dlopen('libsixel.so.1', 0x1002) -- RTLD_NOW | RTLD_NODELETE
      local sixel = display.encode(rgb, { protocol = 'sixel', columns = 80, rows = 24 })
      t.ok(sixel:find '^\27P.*q"1;1;160;160' and sixel:find '\27\\', 'sixel: ' .. sixel:sub(1, 40))
    end
  end)
end)

t.test('the protocol is the terminal\'s', function()
  local function found(environment)
    for _, name in ipairs { 'TERM', 'TERM_PROGRAM', 'KITTY_WINDOW_ID', 'LC_TERMINAL', 'TMUX', 'CR_PICTURES' } do
      environment[name] = environment[name] or ''
    end
    return child.run({ '-e', "print(require 'cr.tools.terminal'.pictures())" }, { env = environment }).out
  end
  t.equal(found { TERM = 'xterm-kitty', KITTY_WINDOW_ID = '1' }, 'kitty\n')
  t.equal(found { TERM = 'xterm-256color', TERM_PROGRAM = 'iTerm.app' }, 'iterm2\n')
  t.equal(found { TERM = 'foot' }, 'sixel\n')
  t.equal(found { TERM = 'xterm-256color' }, 'blocks\n')
  t.equal(found { TERM = 'tmux-256color', TMUX = 'x', TERM_PROGRAM = 'iTerm.app' }, 'blocks\n')
  t.equal(found { TERM = 'xterm', CR_PICTURES = 'kitty' }, 'kitty\n')
end)

child.clean()
t.done()
