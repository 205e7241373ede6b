--- The startup time of the program: the median and the slowest run of each command.
--
-- The limits are 30 ms for -e 'x = 1', 60 ms for lipsync --help, and 30 ms for the first line of the prompt, or 60
-- with a GPU. The first run of each command is the coldest one that is possible without dropping the file cache, and
-- is printed, too.
--
-- Tiny: --runs 1 --no-bars

local uv = require 'cr.loop'.uv
local child = require 'tests.support.child'
local pty = require 'tests.support.pty'

local o = require 'cr.tools.cli'.parse(arg, { name = 'tests/bench/startup.lua',
  summary = 'How long the program takes to start.', options = {
    { '--runs', 'int', default = 20, min = 1, help = 'of each command' },
    { '--bars', 'flag', negatable = true, help = 'fail where a bar is missed (default on)' },
  } })

-- Starts the prompt in its own terminal; returns when it has printed its first line.
local function start_prompt()
  local terminal = pty.start(child.program, { TERM = 'xterm', XDG_STATE_HOME = child.folder })
  if not terminal:wait 'crescent> ' then error('the prompt ended: ' .. terminal.text) end
  return terminal
end

local has_card = child.exists '/proc/driver/nvidia/version'

local runs = {
  { '-e', 'x = 1', bar = 30 }, { '-e', 'x = cr.zeros(1)' }, { '-e', 'cr.sleep(0)' },
  { 'lipsync', '--help', bar = 60 }, { '--version' },
  { prompt = true, bar = has_card and 60 or 30 },
}

print(('%-32s %10s %10s %10s %8s'):format('crescent', 'median ms', 'slowest', 'first', 'bar'))
local failed = false
for _, args in ipairs(runs) do
  local words = {}
  for i, word in ipairs(args) do words[i] = "'" .. word .. "'" end
  local command = ("'%s' %s >/dev/null 2>&1 </dev/null"):format(child.program, table.concat(words, ' '))
  local times = {}
  for i = 1, o.runs do
    local begin = uv.hrtime()
    local terminal = args.prompt and start_prompt()
    if not terminal and os.execute(command) ~= 0 then error('failed: ' .. command) end
    times[i] = (uv.hrtime() - begin) * 1e-6
    if terminal then terminal:close() end
  end
  local first = times[1]
  table.sort(times)
  local median = times[math.ceil(o.runs / 2)]
  print(('%-32s %10.1f %10.1f %10.1f %8s'):format(args.prompt and '(the prompt)' or table.concat(args, ' '), median, times[o.runs], first,
    args.bar or ''))
  failed = failed or (o.bars ~= false and args.bar and median > args.bar)
end
child.clean()
os.exit(failed and 1 or 0, true)
