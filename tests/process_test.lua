--- The program's environment: current folder, signals, closed streams, killed children.

local t = require 'tests.support.tap'
local lfs = require 'lfs'
local child = require 'tests.support.child'

t.test('no module in the current folder is loaded', function()
  local folder = child.folder .. '/hostile'
  assert(lfs.mkdir(folder))
  for _, name in ipairs { 'argparse', 'cjson', 'lfs', 'luv', 'lyaml', 'jit' } do
    child.file('hostile/' .. name .. '.lua', 'print "hostile" os.exit(9)')
  end
  -- Libraries too, which run code as soon as they are loaded.
  child.file('hostile.c', '#include <unistd.h>\n__attribute__((constructor)) static void act(void) ' ..
    '{ if (write(1, "hostile\\n", 8)) _exit(9); }')
  local library = child.folder .. '/hostile.so'
  assert(os.execute(("gcc -shared -fPIC -o '%s' '%s/hostile.c'"):format(library, child.folder)) == 0)
  local acts = child.run { '-e', ("package.loadlib('%s', '*')"):format(library) }
  t.equal(acts.out .. acts.code, 'hostile\n9', 'the library acts')
  for _, name in ipairs { 'lfs', 'luv', 'lyaml', 'cjson', 'libcrescent', 'crescent_media', 'crescent_http',
    'libcairo.so.2', 'libdnnl.so.2' } do
    assert(os.execute(("cp '%s' '%s/%s'"):format(library, folder, name:find '%.so' and name or name .. '.so')) == 0)
  end
  local all = [[cr.ones(2, 2):matmul(cr.ones(2, 2)) require "cr.json" require "lyaml" require "cjson" require "lfs"
    media.probe(cr.root .. "/models/mini/demo.mp4") require "cr.tools.draw".canvas(4, 4) cr.sleep(0)
    pcall(function() require "cr.serve.library".lib.cr_http_free(nil) end)]]
  for _, args in ipairs { { 'help' }, { '-e', all } } do
    for _, path in ipairs { '', ';;', './?.lua;;', '?.lua;;' } do
      local r = child.run(args, { cwd = folder, env = { LUA_PATH = path ~= '' and path or ';;',
        LUA_CPATH = path:gsub('lua', 'so') .. (path == '' and ';;' or '') } })
      t.equal(r.code, 0, args[1] .. ' with LUA_PATH ' .. path .. ': ' .. r.err)
      t.ok(not r.out:find 'hostile', args[1] .. ' ran a module of the current folder')
    end
  end
end)

t.test('a script finds modules beside itself, not in the current folder', function()
  assert(lfs.mkdir(child.folder .. '/own'))
  child.file('own/beside.lua', 'return "beside"')
  child.file('own/main.lua', 'print(require "beside", pcall(require, "elsewhere"))')
  assert(lfs.mkdir(child.folder .. '/other'))
  child.file('other/elsewhere.lua', 'return "elsewhere"')
  for _, path in ipairs { child.folder .. '/own/main.lua', '../own/main.lua' } do
    local r = child.run({ path }, { cwd = child.folder .. '/other' })
    t.ok(r.out:find '^beside\tfalse\t', path .. ': ' .. r.out .. r.err)
  end
end)

t.test('SIGHUP ends a run as SIGTERM does, unless it was ignored at the start', function()
  local wait = 'print "ready" io.stdout:flush() cr.sleep(%d) print "done"'
  local r = child.run({ '-e', wait:format(1000) }, { signal = 'sighup', after = 'ready', keep_stdin = true })
  t.equal(r.code, 129)
  t.equal(r.signal, 0, 'killed by the signal')
  t.equal(r.err, 'crescent: interrupted\n')
  r = child.run({ '-c', 'trap "" HUP; exec "$0" -e "$1"', child.program, wait:format(2) },
    { program = '/bin/sh', signal = 'sighup', after = 'ready' })
  t.equal(r.code, 0, r.err)
  t.ok(r.out:find 'done', r.out)
end)

t.test('a closed pipe and a file size limit are write errors', function()
  local r = child.run({ '-c', '{ "$0" -e "while true do print(1) end"; echo $? >&2; } | head -n 1', child.program },
    { program = '/bin/sh' })
  t.equal(r.err, 'crescent: cannot write to standard output: Broken pipe\n1\n')
  r = child.run({ '-c', 'ulimit -f 1; exec "$0" -e "$1"', child.program, ([[
    local file = assert(io.open('%s/large', 'wb'))
    file:setvbuf 'no'
    local ok, reason = file:write(('x'):rep(1e6))
    print(ok, reason)]]):format(child.folder) }, { program = '/bin/sh' })
  t.equal(r.out, 'nil\tFile too large\n')
  t.equal(r.code, 0, r.err)
end)

t.test('a script that ends by os.exit still flushes its output', function()
  local path = child.folder .. '/exit.mp4'
  local unfreed = { env = { ASAN_OPTIONS = 'intercept_tls_get_addr=0:detect_leaks=0' } } -- os.exit frees nothing
  local text = [[
    local writer = require 'cr.media'.writer(..., { width = 16, height = 16, fps = 25 })
    writer:write(require 'cr'.zeros(16, 16, 3, { dtype = 'u8' }))
    os.exit(%s)
  ]]
  local function leftovers()
    local names = {}
    for name in lfs.dir(child.folder) do
      if name:find 'exit%.mp4' then names[#names + 1] = name end
    end
    return table.concat(names, ' ')
  end
  for _, code in ipairs { '3', '3, true', 'false' } do
    local r = child.run({ child.file('exit.lua', text:format(code)), path }, unfreed)
    t.equal(r.code, code == 'false' and 1 or 3, r.err)
    t.equal(leftovers(), '', 'after os.exit(' .. code .. ')')
  end
  for _, code in ipairs { '', '0', 'true, true' } do
    local r = child.run({ child.file('exit.lua', text:format(code)), path }, unfreed)
    t.equal(r.code, 0, r.err)
    t.ok(r.err:find 'the writer was never closed, so the file is finished now', r.err)
    t.equal(leftovers(), 'exit.mp4', 'after os.exit(' .. code .. ')')
    os.remove(path)
    r = child.run({ '-c', 'exec "$0" -e "$1" >/dev/full', child.program, ('print(1) os.exit(%s)'):format(code) },
      { program = '/bin/sh' })
    t.equal(r.err, 'crescent: cannot write to standard output: No space left on device\n')
    t.equal(r.code, 1)
 -- more than its buffer: a write fails, not the flush at the end
    r = child.run({ '-c', 'exec "$0" -e "$1" >/dev/full', child.program, ('io.write(("x"):rep(1e5)) os.exit(%s)'):format(code) },
      { program = '/bin/sh' })
    t.equal(r.err, 'crescent: cannot write to standard output: a write has failed\n')
    t.equal(r.code, 1)
  end
end)

t.test('too little address space gives one sentence', function()
  if child.program:find '/sanitize' then t.skip 'a sanitizer takes all address space' end
  local seen = {}
  for kilobytes = 60000, 130000, 5000 do
    local r = child.run({ '-c', ('ulimit -v %d; exec "$0" -e "$1"'):format(kilobytes), child.program,
      'a = cr.ones(256, 256) print(a:matmul(a):sum():item()) cr.await(cr.go(uv.fs_stat, "/")) print "end"' }, { program = '/bin/sh' })
    if r.code == 0 then
      t.equal(r.out, '16777216\nend\n')
    else
      t.equal(r.code, 1, ('%d kB: %s'):format(kilobytes, r.err))
      t.ok(r.err:find '^crescent: [^\n]+\n$', ('%d kB: %s'):format(kilobytes, r.err))
    end
    seen[r.code] = true
  end
  t.ok(seen[0] and seen[1], 'limits on both sides')
end)

t.test('standard streams that are closed are opened on /dev/null', function()
  local path = child.folder .. '/opened'
  child.run({ '-c', 'exec "$0" -e "$1" >&- 2>&-', child.program, ([[
    local file = io.open('%s', 'wb')
    print 'lost'
    io.stdout:flush()
    file:write 'kept'
    file:close()]]):format(path) }, { program = '/bin/sh' })
  local file = assert(io.open(path, 'rb'))
  t.equal(file:read '*a', 'kept')
  file:close()
end)

local function script(name, text, args, options) return child.run({ child.file(name, text), unpack(args or {}) }, options) end

t.test('an error in a luv callback ends a script with one sentence and its position, and leaves nothing', function()
  assert(lfs.mkdir(child.folder .. '/films'))
  local begin = [[
    local cr, uv, folder = require 'cr', require 'luv', ...
    local writer = require 'cr.media'.writer(folder .. '/film.mp4', { width = 16, height = 16, fps = 25 })
    writer:write(cr.zeros(16, 16, 3, { dtype = 'u8' }))
  ]]
  local boom = ' error "boom" end)\n'
  for name, text in pairs {
    timer = 'uv.new_timer():start(1, 0, function()' .. boom .. 'cr.sleep(1000)',
    own_loop = 'uv.new_timer():start(1, 0, function()' .. boom .. 'uv.run()',
    task = 'uv.new_timer():start(1, 0, function()' .. boom .. 'cr.run(function() cr.sleep(1000) end)',
    socket = [[
      local server = uv.new_tcp()
      server:bind('127.0.0.1', 0)
      server:listen(8, function()]] .. boom .. [[
      uv.new_tcp():connect('127.0.0.1', server:getsockname().port)
      cr.sleep(1000)]],
    process = 'uv.spawn("true", {}, function()' .. boom .. 'cr.sleep(1000)',
    file = 'uv.fs_stat("/", function()' .. boom .. 'cr.sleep(1000)',
    thread = 'uv.new_thread(function()' .. boom:gsub('%)\n', '):join()'),
    work = 'uv.new_work(function()' .. boom:gsub('%)\n', ', function() end):queue()') .. 'cr.sleep(1000)',
  } do
    local r = script('callback_' .. name .. '.lua', begin .. text, { child.folder .. '/films' })
    t.equal(r.code, 1, name)
    t.ok(r.err:find('^crescent: [^\n]*/callback_' .. name .. '.lua:%d+: boom\n$'), name .. ': ' .. r.err)
    for entry in lfs.dir(child.folder .. '/films') do t.ok(entry:find '^%.%.?$', name .. ' left ' .. entry) end
  end
end)

t.test('no module in the current folder is loaded in a thread', function()
  local folder = child.folder .. '/hostile'
  local r = child.run({ '-e', [[
    local thread = uv.new_thread(function() print(pcall(require, 'lyaml_')) require 'lyaml' end)
    thread:join()]] }, { cwd = folder })
  t.ok(not r.out:find 'hostile', r.out)
  t.ok(r.out:find '^false', r.out)
end)

t.test('a child that was killed by a signal has failed', function()
  local r = child.run({ '-c', 'kill -KILL $$' }, { program = '/bin/sh' })
  t.equal(r.code, 137)
  t.equal(r.signal, 9)
end)

child.clean()
t.done()
