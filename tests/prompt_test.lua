--- The prompt in a real terminal (tmux): typing, completion, interruption, output and history.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local uv = require 'cr.loop'.uv

local socket = 'crescent-test-' .. child.folder:match '[^/]*$'

local function shell(command)
  local pipe = io.popen(command .. ' 2>/dev/null')
  local out = pipe:read '*a'
  pipe:close()
  return out
end

local function tmux(command) return shell(("tmux -L %s -f /dev/null %s"):format(socket, command)) end

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function screen() return tmux 'capture-pane -p -J -S - -t a' end

local has_tmux = shell 'command -v tmux' ~= ''

-- Waits until the screen contains the text.
local function expect(text)
  local shown
  local come = t.wait(function()
    shown = screen()
    return shown:find(text, 1, true)
  end)
  t.ok(come, ('the screen lacks "%s":\n%s'):format(text, shown))
end

local function send(text) tmux('send-keys -t a -l -- ' .. quoted(text)) end
local function key(...)
  for _, name in ipairs { ... } do tmux('send-keys -t a ' .. name) end
end
local function line(text)
  send(text)
  key 'Enter'
end
local function clear()
  tmux 'send-keys -t a C-l'
  tmux 'clear-history -t a'
end

-- A prompt in a new terminal; `environment` precedes the command.
local function start(environment)
  if not has_tmux then t.skip 'tmux is missing: apt-get install tmux' end
  if tmux 'list-sessions' ~= '' then
    tmux 'kill-server'
    socket = socket .. '-' -- a server that is still ending would end the new session, too
  end
  local command = ("trap : INT; cd '%s'; env XDG_STATE_HOME='%s/state' TMUX= COLORTERM=truecolor %s '%s'; echo status $?; sleep 3600")
    :format(child.folder, child.folder, environment or '', child.program)
  tmux(('new-session -d -x 110 -y 50 -s a %s'):format(quoted(command)))
  expect 'crescent> '
end

local function in_session()
  if not has_tmux or tmux 'list-sessions' == '' then t.skip 'no session: tmux is missing' end
end

local function read_file(name)
  local file = io.open(child.folder .. '/' .. name, 'rb')
  local text = file and file:read '*a'
  if file then file:close() end
  return text
end

-- ---- typing -------------------------------------------------------------------------------------

t.test('values, errors and several lines', function()
  start()
  expect '? for help'
  expect('crescent ' .. cr.version:match '^%d+%.%d+' .. '  LuaJIT 2.1  ')
  line 'x = cr.arange(6):view(2, 3)'
  line 'x'
  expect 'f32 cpu [2 3]\n  1. 2. 3.\n  4. 5. 6.'
  line 'x:matmul(x)'
  expect 'error: matmul: inner sizes differ: [2 3] x [2 3]\ncrescent>'
  line '{ 1, 2, b = { c = {} }, a = "q" }'
  expect '{ 1, 2, a = "q", b = { c = {} } }'
  line '=6 * 7, nil'
  expect '42\nnil'
  line '_ + 1'
  expect '\n43\n'
  line 'for i = 1, 2 do'
  expect '      ..> '
  line 'print("row " .. i * 11)'
  line 'end'
  expect 'row 11\nrow 22'
  line 'error "mine"'
  expect 'error: mine'
  line 'x = = 1'
  expect "error: unexpected symbol near '='"
  line 'error { code = 7 }'
  expect 'error: { code = 7 }'
end)

t.test('an error names the failing layer, the file and the line', function()
  in_session()
  cr.scope(function()
    cr.save(child.folder .. '/w.safetensors', { ['down.0.proj.weight'] = cr.ones(3, 4), ['down.0.proj.bias'] = cr.ones(3) })
  end)
  child.file('mine.lua', [[
    local nn, weights = require 'cr.nn', require 'cr.weights'
    w = weights.tree(weights.open 'w.safetensors')
    --- Applies the projection.
    function run(x)
      local y = nn.linear(w.down[0].proj, x)
      return y
    end
  ]])
  line ':load mine.lua'
  line 'y = run(cr.ones(2, 5))'
  expect 'error: down.0.proj: linear: '
  expect '  at mine.lua:5, prompt:1'
  line '? run'
  expect 'function run(x)\n  Applies the projection.\n  (mine.lua:4)'
end)

t.test('completion', function()
  in_session()
  clear()
  send 'cr.aran'
  key 'Tab'
  send '2)'
  key 'Enter'
  expect 'crescent> cr.arange(2)\nf32 cpu [2]'
  send 'x:matm'
  key 'Tab'
  expect 'x:matmul('
  key 'C-c'
  send 'nn.group'
  key('Tab', 'Tab')
  expect 'group_norm       group_norm_silu'
  key 'C-c'
  send ':lo'
  key 'Tab'
  send 'mi'
  key 'Tab'
  expect ':load mine.lua'
  key 'C-c'
end)

t.test('a task continues while a line is typed', function()
  in_session()
  clear()
  line 'function told(name) while not io.open(name) do cr.sleep(0.01) end end'
  line 'cr.go(function() told "first" print("tick") told "second" error "late" end)'
  send '1000 + 2'
  expect 'crescent> 1000 + 2\n'
  child.file('first', '')
  expect 'tick\ncrescent> 1000 + 2\n'
  child.file('second', '')
  expect 'tick\nerror in a task: late\ncrescent> 1000 + 2\n'
  send '34'
  key 'Enter'
  expect 'crescent> 1000 + 234\n1234\n'
end)

t.test('an error in a callback is reported; the session and its variables stay', function()
  in_session()
  clear()
  line 'kept = 4321'
  line 'timer = uv.new_timer() timer:start(400, 0, function() error "in a timer" end)'
  send 'kept + '
  expect 'error in a callback: in a timer\ncrescent> kept +'
  line '1'
  expect '\n4322\n'
  line 'timer:start(1, 0, function() error "while waiting" end) cr.sleep(1000)'
  expect 'error: while waiting\n'
  line 'uv.new_thread(function() error "in a thread" end):join()'
  expect 'in a thread\n'
  line 'kept + 2'
  expect '\n4323\n'
end)

-- ---- interruption -------------------------------------------------------------------------------

t.test('Ctrl-C stops the running code and keeps variables', function()
  in_session()
  clear()
  line 'print("co" .. "unts") n = 0 while true do n = n + 1 end'
  expect 'counts'
  cr.sleep(0.1)
  key 'C-c'
  expect 'error: interrupted'
  line 'n > 1000 and "kept " .. 1'
  expect '"kept 1"'
  line 'big = cr.rand(256, 256) print("multi" .. "plies") while true do big = big:matmul(big):clamp(0, 1) end'
  expect 'multiplies'
  key 'C-c'
  line '"after " .. big:size(1)'
  expect '"after 256"'
  line 'print("sle" .. "eps") cr.sleep(5000)'
  expect 'sleeps'
  key 'C-c'
  line '"after " .. 2'
  expect '"after 2"'
  send 'garbage'
  expect 'crescent> garbage' -- the terminal discards unread input
  key 'C-c'
  line '"after " .. 3'
  expect 'garbage^C\ncrescent> "after " .. 3\n"after 3"'
  line 'cr.go(function() cr.sleep(5000) end) print("wa" .. "its")'
  expect 'waits'
  key 'C-c'
  expect '1 task stopped'
end)

t.test('Ctrl-C ends loops repeatedly; with CR_SLOW=1, on an idle machine: in less than 200 ms', function()
  local clock = require 'cr.clock'
  local terminal = require 'tests.support.pty'.start(child.program, { TERM = 'dumb', XDG_STATE_HOME = child.folder })
  t.ok(terminal:wait 'crescent> ', terminal.text)
  for _, code in ipairs { 'while true do end', 'a = cr.rand(128, 128) while true do a = a:matmul(a):clamp(0, 1) end' } do
    local times = {}
    for i = 1, 3 do
      terminal:line('print("star" .. "ted") ' .. code)
      t.ok(terminal:wait 'started', terminal.text)
      cr.sleep(0.1)
      local begin = clock()
      terminal.process:kill 'sigint'
      t.ok(terminal:wait 'error: interrupted', terminal.text)
      times[i] = clock() - begin
      t.ok(terminal:wait 'crescent> ', terminal.text)
    end
    table.sort(times)
    print(('# %s: interrupted in %.0f ms'):format(code, times[2] * 1e3))
    -- On a busy machine the time says nothing.
    local idle = io.open '/proc/loadavg':read '*n' < #uv.cpu_info()
    t.ok(os.getenv 'CR_SLOW' ~= '1' or not idle or times[2] < 0.2, ('%s: %.0f ms'):format(code, times[2] * 1e3))
  end
  t.equal(terminal:close(), 0)
end)

-- ---- commands -----------------------------------------------------------------------------------

t.test('help', function()
  in_session()
  clear()
  line '? conv2d'
  expect 'nn.conv2d(w, x, options)'
  expect "returns      Tensor [N H' W' O]"
  expect 'example      '
  clear()
  line '?? gaussian'
  expect 'image.gaussian_blur(x, size, sigma)'
  line '? ddim'
  expect 'eta '
  clear()
  line 'help'
  expect ':trace CODE'
  line '? :plot'
  expect 'Rank 1 is a curve'
  line ':nosuch'
  expect 'there is no command :nosuch: did you mean :search?'
  clear()
  line 'help :mem'
  expect ':mem\n  shows the memory of tensors'
  line 'help trace'
  expect ':trace CODE'
  line '? conv'
  expect "'conv' is part of these names:\n  nn.conv2d(w, x, options)"
  line ':reload'
  expect "error: :reload needs a module's name"
  line ':reload cr.wieghts'
  expect "there is no module 'cr.wieghts': did you mean 'cr.weights'?"
  line 'cr.await(3)'
  expect 'error: await: there is no job 3: '
  line 'local kept = 5'
  expect '  kept: a local is visible only in the input that declares it, so it is gone: write it without `local`\ncrescent>'
end)

t.test('time, memory and a trace', function()
  in_session()
  clear()
  line ':time x + 1'
  expect ' runs)'
  line ':mem'
  expect 'largest:'
  expect '[256 256]                prompt:1'
  line ':trace -o t.json big:matmul(big) + 1'
  expect '2 operations'
  expect 't.json: open it in ui.perfetto.dev' -- printed after it is written
  local text = read_file 't.json'
  if not t.ok(text, 'no t.json') then return end
  local names = {}
  for _, event in ipairs(require 'cjson'.decode(text).traceEvents) do names[event.name] = event end
  t.ok(names.matmul and names.add, text)
  t.equal(names.matmul.args.result, '[256 256]')
  t.ok(names.matmul.dur > 0 and names.add.ts >= names.matmul.ts + names.matmul.dur, 'one after the other')
end)

t.test('load and reload', function()
  in_session()
  clear()
  child.file('counted.lua', 'return { version = function() return "first" end }')
  line 'package.path = "./?.lua;" .. package.path  counted = require "counted"  keep = counted'
  line 'keep.version()'
  expect '"first"'
  child.file('counted.lua', 'return { version = function() return "second" end }')
  line ':reload counted'
  line 'keep.version()'
  expect '"second"'
  child.file('counted.lua', 'return nil + 1')
  line ':reload counted'
  expect 'error: '
  line 'keep.version() .. " stays"'
  expect '"second stays"'
  line ':load missing.lua'
  expect 'error: load: missing.lua: No such file'
end)

t.test('images and plots', function()
  in_session()
  clear()
  line ':show cr.arange(0, 1, 0.01):view(1, 101):expand(20, 101)'
  expect '\226\150\128\226\150\128\226\150\128'
  line ':save picture.png'
  expect '  picture.png'
  local text = read_file 'picture.png'
  t.ok(text and text:sub(2, 4) == 'PNG', 'a PNG')
  line ':show 5'
  expect 'error: show: a tensor or a list of them is needed, not number'
  clear()
  line ':plot cr.arange(0, 6, 0.05):sin()'
  expect '\226\148\130'
  expect ' 121'
end)

-- ---- history ----------------------------------------------------------------------------

t.test('history and the end', function()
  in_session()
  clear()
  line 'for k = 1, 2 do'
  line '  last_row = k'
  line 'end'
  line ':device cpu'
  expect '* cpu '
  key 'C-d'
  expect 'status 0'
  t.ok((read_file 'state/crescent/history' or ''):find('matmul', 1, true), 'a history file')
  start()
  key 'Up'
  expect 'crescent> :device cpu'
  key 'Up'
  expect 'crescent> for k = 1, 2 do\n  last_row = k\nend'
  key 'Enter'
  line 'last_row * 21'
  expect '\n42\n'
  key 'C-r'
  send 'matmul(x'
  expect "`matmul(x': "
  key('C-c', 'C-c')
  line ':restart'
  expect '? for help'
  key 'Up' -- the last input is in the new session's history; its variables are not.
  key 'Up'
  expect 'crescent> last_row * 21'
  key 'Enter'
  expect "attempt to perform arithmetic on global 'last_row' (a nil value)"
  line 'quit'
  expect 'status 0'
  tmux 'kill-server'
end)

-- Numbers may differ (times do), and so may alignment spaces.
local function plainly(text)
  return (text:gsub('%d+%.?%d*', '0'):gsub('0 [mu]s', '0 ms'):gsub(' +', ' '):gsub('%s+$', ''))
end

t.test('the transcript in lua/README.md is accurate', function()
  start()
  local file = assert(io.open(cr.root .. '/lua/README.md', 'rb'))
  local section = file:read '*a':match '\n## The prompt\n(.*)'
  file:close()
  local transcript = section:match '```text\n(.-)\n```'
  local typed = 0
  for command in transcript:gmatch 'crescent> ([^\n]+)' do
    line(command)
    typed = typed + 1
    -- The next line is typed after this one has finished.
    t.wait(function() return select(2, screen():gsub('crescent> ', '')) > typed end)
  end
  t.ok(typed >= 6, typed .. ' commands')
  local shown = screen():gsub('^[^\n]*\n', ''):gsub('\ncrescent> %s*$', '')
  t.equal(plainly(shown), plainly(transcript))
  local all = {}
  for name in pairs(require 'cr.tools.prompt'.commands()) do all[#all + 1] = name end
  for _, name in ipairs(all) do
    t.ok(name == 'help' or name == 'search' or section:find(':' .. name, 1, true), 'lua/README.md has no :' .. name)
  end
end)

t.test('SIGTERM ends it', function()
  local terminal = require 'tests.support.pty'.start(child.program, { TERM = 'dumb', XDG_STATE_HOME = child.folder })
  t.ok(terminal:wait 'crescent> ', terminal.text)
  terminal.process:kill 'sigterm'
  t.equal(terminal:close(), 143)
end)

t.test('without a terminal it is a script, which ends at its first error', function()
  local r = child.run({}, { stdin = 'print(1)\nprint(nosuch.field)\nprint(2)\n' })
  t.equal(r.code, 1)
  t.equal(r.out, '1\n')
  t.equal(r.lines, 1, r.err)
  t.equal(child.run({}, { stdin = 'local a = 1\nprint(a + 1)\n' }).out, '2\n')
end)

if has_tmux then tmux 'kill-server' end
child.clean()
t.done()
