--- The prompt in a real terminal (tmux): printing, errors, several lines, Ctrl-C, history, Ctrl-D.

local t = require 'tests.tap'
local cr = require 'cr'
local child = require 'tests.child'

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

-- Waits until the screen holds the text; a prompt that does not come is a failure, not a hang.
local function expect(text, from)
  local shown
  for _ = 1, 200 do
    shown = screen()
    local rest = shown:sub(from or 1)
    if rest:find(text, 1, true) then return t.ok(true) end
    cr.sleep(0.05)
  end
  t.ok(false, ('the screen lacks "%s":\n%s'):format(text, shown))
end

local function line(text) tmux('send-keys -t a -l -- ' .. quoted(text)) tmux 'send-keys -t a Enter' end
local function key(name) tmux('send-keys -t a ' .. name) end

local function start()
  if shell 'command -v tmux' == '' then t.skip 'tmux is missing: apt-get install tmux' end
  tmux(('new-session -d -x 110 -y 200 -s a %s'):format(quoted(("trap : INT; XDG_STATE_HOME='%s/state' '%s'; echo status $?; sleep 60")
    :format(child.folder, child.program))))
  expect 'crescent> '
end

t.test('a session at the prompt', function()
  start()
  expect '? for help'
  expect('crescent ' .. cr.version:match '^%d+%.%d+' .. '  LuaJIT 2.1  cpu: ')
  line 'x = cr.arange(6):view(2, 3)'
  line 'x'
  expect 'f32 cpu [2 3]'
  line 'x:matmul(x)'
  expect 'error: matmul: inner sizes differ: [2 3] x [2 3]'
  line '{ 1, 2, b = { c = {} }, a = "q" }'
  expect '{ 1, 2, a = "q", b = { c = {} } }'
  line '=6 * 7, nil'
  expect '42\nnil'
  line 'for i = 1, 2 do'
  expect '      ..> '
  line 'print("row " .. i * 11)'
  line 'end'
  expect 'row 11\nrow 22'
end)

t.test('the session goes on after errors and Ctrl-C', function()
  if tmux 'list-sessions' == '' then t.skip 'no session' end
  line 'error "mine"'
  expect 'error: mine'
  line 'x = = 1'
  expect "error: unexpected symbol near '='"
  line 'error { code = 7 }'
  expect 'error: { code = 7 }'
  line 'help'
  expect '? NAME  '
  line 'while true do end'
  cr.sleep(0.3)
  key 'C-c'
  expect 'error: interrupted'
  line '"after" .. 1'
  expect '"after1"'
  line 'cr.sleep(50)'
  cr.sleep(0.3)
  key 'C-c'
  line '"after" .. 2'
  expect '"after2"'
  tmux 'send-keys -t a -l -- garbage'
  cr.sleep(0.2)
  key 'C-c'
  line '"after" .. 3'
  expect '"after3"'
  line '? conv2d'
  expect 'nn.conv2d('
  line ':time 1 + 1'
  expect ' runs)'
  line ':mem'
  expect 'tensors '
  line ':nosuch'
  expect 'there is no command :nosuch'
  tmux 'send-keys -t a Up Up'
  cr.sleep(0.2)
  key 'Enter'
  cr.sleep(0.2)
  local _, count = screen():gsub('tensors %d', '')
  t.equal(count, 2, ':mem again from the history')
  key 'C-d'
  expect 'status 0'
end)

t.test('history stays for the next session', function()
  if tmux 'list-sessions' == '' then t.skip 'no session' end
  tmux 'kill-server'
  socket = socket .. '-2' -- a server that is still ending would take the new session with it
  local file = io.open(child.folder .. '/state/crescent/history', 'rb')
  if not t.ok(file, 'no history file') then return end
  local text = file:read '*a'
  file:close()
  t.ok(text:find('matmul', 1, true), 'history: ' .. text)
  start()
  tmux 'send-keys -t a Up'
  expect 'crescent> :mem'
  key 'C-c'
  line 'quit'
  expect 'status 0'
end)

t.test('without a terminal there is no prompt', function()
  local r = child.run({}, { stdin = 'print(1)\nprint(nosuch.field)\n' })
  t.equal(r.code, 1)
  t.equal(r.out, '1\n')
  t.equal(r.lines, 1, r.err)
end)

t.test('how values are shown', function()
  local show = require 'cr.prompt.values'.text
  t.equal(show(nil), 'nil')
  t.equal(show 'a\nb', '"a\\nb"')
  t.equal(show {}, '{}')
  t.equal(show { f = print }, '{ f = function }')
  t.equal(show { 3, 4, x = true, ['a b'] = 1, [2.5] = 0 }, '{ 3, 4, [2.5] = 0, ["a b"] = 1, x = true }')
  local cycle = {}
  cycle.self = cycle
  t.equal(show(cycle), '{ self = { self = { self = {...} } } }')
  local long = {}
  for i = 1, 1000 do long[i] = i end
  t.ok(#show(long) < 100, show(long))
  t.equal(show(setmetatable({}, { __tostring = function() return 'mine' end })), 'mine')
end)

tmux 'kill-server'
child.clean()
t.done()
