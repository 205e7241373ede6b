--- The READMEs of the repository and of each room: their Lua blocks and commands run, their options are lipsync's,
--- and their links are valid.
--
-- Commands run as written, in a folder with files of the names that they use. What takes minutes (make, benchmarks,
-- the small model, quantize) is only checked for existence and for the options that are shown.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local media = require 'cr.media'
local onnx = require 'tests.support.onnx'
local lfs = require 'lfs'

local dir = child.folder

local read = require 'tests.support.scratch'.read
local PAGES = { '', 'core/', 'kernels/', 'lua/', 'models/', 'scripts/', 'tests/' } -- folders
local blocks, commands, prose, everything = {}, {}, {}, {}
for _, folder in ipairs(PAGES) do
  local page = read(cr.root .. '/' .. folder .. 'README.md')
  local text_lines, block, kind = {}, nil, nil
  everything[#everything + 1] = page
  for line in (page .. '\n'):gmatch '(.-)\n' do
    local fence = line:match '^```(%w*)'
    if fence and not block then
      block, kind = {}, fence
    elseif fence then
      if kind == 'lua' then
        blocks[#blocks + 1] = table.concat(block, '\n') .. '\n'
      elseif kind == '' or kind == 'sh' then -- text is a transcript: tests/prompt_test.lua
        for _, command in ipairs(block) do commands[#commands + 1] = command end
      end
      block = nil
    elseif block then
      block[#block + 1] = line
    elseif line:find '^    %S' then
      commands[#commands + 1] = line:match '^%s*(.-)%s*$'
    else
      text_lines[#text_lines + 1] = line
    end
  end
  prose[folder] = table.concat(text_lines, '\n')
end
everything = table.concat(everything, '\n')
do -- each command once, without its comment; a line that ends in \ is continued
  local seen, list, begun = {}, {}, ''
  for _, line in ipairs(commands) do
    local command = begun .. line:gsub('%s+#.*$', '')
    begun = command:match '^(.*)\\$' or ''
 -- requests to a server are run by tests/serve_test.lua
    if begun == '' and not seen[command] and not command:find '^curl ' then
      seen[command], list[#list + 1] = true, command
    end
  end
  commands = list
end

local fetched = t.has_fetched 'whisper/tiny.en.safetensors' and t.has_fetched 'face/face_landmark.tflite' and
    t.has_fetched 'demo/astronaut.png'

-- The files that the commands name: face.mp4, voice.wav, DIR, FILE, IN, path/to/script.lua, mine.lua.
cr.scope(function()
  lfs.mkdir(dir .. '/build')
  assert(lfs.link(child.program, dir .. '/build/crescent', true))
  lfs.mkdir(dir .. '/path')
  lfs.mkdir(dir .. '/path/to')
  child.file('path/to/script.lua', "local cr = require 'cr' print(cr.ones(2):sum():item(), arg[1])")
  child.file('mine.lua', blocks[1])
  for _, name in ipairs { 'FILE', 'IN' } do
    cr.save(dir .. '/weights.safetensors', { a = cr.randn(3, 4), ['b.c'] = cr.ones(2) })
    assert(os.rename(dir .. '/weights.safetensors', dir .. '/' .. name))
  end
  local relu = onnx.model { nodes = { { 'Relu', { 'x' }, { 'y' } } }, inputs = { { 'x', { 2 } } }, outputs = { { 'y', { 2 } } } }
  child.file('MODEL.onnx', relu)
  cr.save(dir .. '/X.npy', cr.ones(2))
  if not fetched then return end
  clip.checkpoint 'DIR'
  clip.voice('voice.wav', 0.2)
  local portrait = media.read_picture(cr.root .. '/models/fetched/demo/astronaut.png')
  local sink = media.writer(dir .. '/face.mp4', { fps = 25 })
  for k = 0, 5 do
    local face = portrait:slice(1, 1, 288):slice(2, 81 + 2 * k, 368 + 2 * k):contiguous()
    sink:write { face }
  end
  sink:close()
end)

-- The expected output of commands, if it can be predicted.
local prints = {
  ["build/crescent -e 'print(cr.randn(2,3))'"] = '^f32 cpu %[2 3%]\n',
  ['build/crescent path/to/script.lua arg1'] = '^2\targ1\n$',
  ['build/crescent weights FILE'] = '2 tensors',
  ['build/crescent weights FILE --json'] = '^{"tensors": ',
  ['build/crescent onnx MODEL.onnx'] = 'Relu',
  ['build/crescent help'] = '^crescent .*Commands:.*lipsync',
  ['build/crescent doctor'] = "MediaPipe's face mesh",
  ['build/crescent bench'] = 'frames per second',
}
local writes = { ['out.mp4'] = true, ['OUT.safetensors'] = true }

local function run_command(command)
  -- The smallest image and one step; everything else is the command's own.
  local line = command:find ' lipsync ' and command .. ' --size 64 --steps 1 --quiet' or
      command:find ' compare ' and command .. ' --schedulers ddim --steps 1 --reference ddim:2 --quiet size=64' or
      command:find ' bench' and command .. ' --checkpoint DIR --size 64 --runs 1' or command
  for name in pairs(writes) do os.remove(dir .. '/' .. name) end
  local r = child.run({ '-c', line }, { program = '/bin/sh', cwd = dir })
  -- The status of doctor says whether this machine lacks something.
  t.ok(r.code == 0 or command:find ' doctor$', ('%s: status %s: %s'):format(command, r.code, r.err))
  t.ok(r.out:find(prints[command] or ''), ('%s prints %s'):format(command, r.out))
  for name in pairs(writes) do
    if command:find(' ' .. name, 1, true) then t.ok(child.exists(dir .. '/' .. name), command .. ' writes ' .. name) end
  end
  if command:find ' compare ' then t.ok(child.exists(dir .. '/lab/index.html'), command .. ' writes lab/index.html') end
  if command:find 'out%.mp4' then
    local info = media.probe(dir .. '/out.mp4')
    t.ok(info.has_video and info.has_audio, command .. ': out.mp4 holds video and sound')
  end
end

t.test('there is something to run', function()
  t.ok(#blocks >= 4, 'Lua blocks: ' .. #blocks)
  t.ok(#commands >= 12, 'commands: ' .. #commands)
  for command in pairs(prints) do
    t.ok(everything:find((command:gsub(' %-%-json$', '')), 1, true), 'no page has ' .. command)
  end
end)

for i, block in ipairs(blocks) do
  if not block:find('arg[1]', 1, true) then
    t.test(('Lua block %d: %s'):format(i, block:match '^[^\n]*'), function()
      local r = child.run { child.file('block.lua', block) }
      t.equal(r.code, 0, r.err)
      t.ok(r.out ~= '', 'it prints something')
    end)
  end
end

t.test('the scheduler in the page is DDIM', function()
  local source
  for _, block in ipairs(blocks) do source = source or block:match '^(.-\nlocal function plain_ddim.-\nend\n)' end
  local shown = assert(loadstring(source .. 'return plain_ddim(4)'))()
  local ours = require 'cr.schedulers.ddim'.new { steps = 4 }
  t.equal(table.concat(shown.timesteps, ' '), table.concat(ours.timesteps, ' '))
  cr.scope(function()
    for _, step in ipairs(ours.timesteps) do
      local eps, x = cr.randn(2, 5), cr.randn(2, 5)
      t.near(shown:step(eps, step, x), ours:step(eps, step, x), 1e-6, 'step ' .. step)
    end
  end)
end)

t.test('the squares in the page', function()
  for _, block in ipairs(blocks) do
    if block:find 'squares' then t.equal(child.run({ child.file('block.lua', block) }).out, '385\n') end
  end
end)

for _, command in ipairs(commands) do
  t.test(command, function()
    local variables, target = command:match '^([%w_=]* ?)make (%S+)'
    if target then
      if child.run({ '-c', 'command -v make' }, { program = '/bin/sh' }).code ~= 0 then t.skip 'make is missing' end
      local clean = 'env -u MAKEFLAGS -u MAKELEVEL -u MAKEOVERRIDES '
      local r = child.run({ '-c', clean .. variables .. command:gsub('^make ', 'make -n ') },
        { program = '/bin/sh', cwd = cr.root })
      t.ok(r.code == 0 and not r.err:find 'No rule', r.err)
      return
    end
    local script = command:match 'build/crescent (tests/%S+)' or command:match '^tests/%S+%.sh'
    if script then
      t.ok(script:find '%.sh$' and child.exists(cr.root .. '/' .. script) or loadfile(cr.root .. '/' .. script) ~= nil, script)
      return
    end
    if command:find '^apt%-get ' then
      t.equal(child.run({ '-n', '-c', command }, { program = '/bin/sh' }).code, 0, 'the shell reads it')
      return
    end
    t.ok(command:find '^build/crescent' or command:find '^%u[%w_]*=%S+ build/crescent', 'an unknown kind of command')
    local minutes = (command:find 'models/mini' or command:find ' quantize ' or command:find ' serve ' or
      command:find ' worker ') and
      command:match 'build/crescent (%l+)'
    if minutes then
      local help = child.run({ minutes, '--help' }).out
      for option in command:gmatch ' (%-%-[%w-]+)' do t.ok(help:find(option, 1, true), minutes .. ' has no ' .. option) end
      return
    end
    if (command:find 'face%.mp4' or command:find ' bench') and not fetched then
      t.skip 'the models are not fetched: run `make models`'
    end
    local card, why = cr.cuda.available()
    if command:find '--device cuda' and not card then t.skip(why) end
    -- "[--option]" is tested without and with the option.
    run_command((command:gsub('%s*%b[]', '')))
    if command:find '%[' then run_command((command:gsub('[%[%]]', ''))) end
  end)
end

t.test('options are those of lipsync --help, with the same defaults', function()
  local help = child.run({ 'lipsync', '--help' }).out:gsub('\n +([^-%s])', ' %1')
  local section = read(cr.root .. '/scripts/README.md'):match '\n## lipsync: [^\n]*\n(.-)\n## '
  local shown = {}
  for row in section:gmatch '\n(| `%-%-[^\n]*)' do
    local default = row:match 'default:? ([^)]*)%)? |$' or row:match 'default:? ([^)]*)'
    for name in row:match '^| (.-) |':gmatch '`(%-%-[%w-]+)' do
      shown[name] = true
      local line = help:match('\n   (' .. name:gsub('%-', '%%-') .. '[ \n][^\n]*)')
      if t.ok(line, name .. ' is not an option') and default and not line:find 'the opposite of' then
        t.ok(line:find('default ' .. default, 1, true), ('%s: README says %s, --help %s'):format(name, default, line))
      end
    end
  end
  for name in help:gmatch '\n   (%-%-[%w-]+)' do t.ok(shown[name] or name == '--help', name .. ' is not in scripts/README.md') end
end)

t.test('links, images and folders exist', function()
  for page, text in pairs(prose) do
    for target in text:gmatch '%]%(([^)#]+)[^)]*%)' do
      if not target:find '^https?://' then t.ok(child.exists(cr.root .. '/' .. page .. target), page .. target .. ' is missing') end
    end
    -- Paths are relative to the repository, or to the page's folder.
    for name in text:gmatch '`([%w_./]+/[%w_]+%.%l+)`' do
      local script = name:match '%.lua$' or name:match '%.py$' or name:match '%.[ch]u?h?$' or name:match '%.sh$'
      if script and name:sub(1, 2) ~= './' and not name:find 'NAME' then -- NAME: the file that a recipe adds
        t.ok(child.exists(cr.root .. '/' .. name) or child.exists(cr.root .. '/' .. page .. name) or
          child.exists(cr.root .. '/lua/cr/' .. name) or child.exists(cr.root .. '/models/latentsync/' .. name),
        page .. 'README.md: ' .. name .. ' is missing')
      end
    end
  end
  for folder in prose['']:gmatch '\n| `([%w/]+/)` |' do t.ok(child.exists(cr.root .. '/' .. folder), folder .. ' is missing') end
  t.ok(child.exists(cr.root .. '/LICENSE') and child.exists(cr.root .. '/NOTICE'))
end)

child.clean()
t.done()
