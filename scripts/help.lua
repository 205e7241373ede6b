-- Lists the commands, or describes a command or a function.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local lfs = require 'lfs'

if arg[1] == '--help' or arg[1] == '-h' then
  print 'Usage: crescent help [COMMAND | SETTING | FUNCTION | MODULE | FILE]\n\nLists the commands, or describes one of these.'
  os.exit(0, true)
end

local folder = cr.root .. '/scripts/'

local function print_row(name, text)
  local line = ('  %-24s'):format(name)
  for word in text:gmatch '%S+' do
    if #line + #word >= 100 then
      print(line)
      line = (' '):rep(26)
    end
    line = line .. ' ' .. word
  end
  print(line)
end

local names = {}
for entry in lfs.dir(folder) do
  local name = entry:match '^([%w_-]+)%.lua$'
  if name then names[#names + 1] = name end
end
table.sort(names)

local topic = arg[1]
if not topic then
  print(('crescent %s: lip-synced video from Lua scripts'):format(cr.version:match '^%d+%.%d+'))
  print '\nUsage:'
  for _, line in ipairs {
    { 'crescent', 'a prompt' },
    { 'crescent COMMAND ...', 'one of the commands below; each has --help' },
    { 'crescent FILE.lua ...', "a script; `arg` as in lua, require 'cr'" },
    { "crescent -e 'CODE'", 'runs CODE; cr, nn, weights and media are there' },
    { 'crescent -', 'runs the script on standard input' },
    { 'crescent help NAME', 'help on a command, a setting (--cache), a function (nn.conv2d), a module (cr.nn), a file' },
    { 'crescent --version', 'the versions' },
  } do
    print_row(line[1], line[2])
  end
  print '\nCommands:'
  for _, name in ipairs(names) do print_row(name, require 'cr.tools.help_names'.summary(name)) end
  print '\nCR_THREADS=N sets the threads of CPU operations; CR_TRACEBACK=1 shows where an error arose.'
  return
end

for _, name in ipairs(names) do
  if name == topic then
    _G.arg = { [0] = folder .. name .. '.lua', '--help' }
    return assert(loadfile(arg[0]))('--help')
  end
end

local text, found = require 'cr.tools.help'.text(topic, require 'models.latentsync.settings'.schema:describe())
if not found then cli.fail(text) end
print(text)
