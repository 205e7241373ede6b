--- `make install`: the installed program runs from anywhere, without the source tree.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'

local function shell(line)
  local status = os.execute(line .. " >'" .. child.folder .. "/log' 2>&1")
  local log = io.open(child.folder .. '/log', 'rb')
  local text = log:read '*a'
  log:close()
  return status == 0 or status == true, text
end

-- Everything is built: make only copies, and is independent of a surrounding `make test`.
local function make(words)
  if not shell 'command -v make' then t.skip 'make is missing' end
  if not child.exists(cr.root .. '/Makefile') then t.skip 'not a source tree' end
  if child.program:find '/sanitize/' then words = 'SANITIZE=1 ' .. words end
  local ok, log = shell(("cd '%s' && env -u MAKEFLAGS -u MAKELEVEL -u MAKEOVERRIDES make -s %s"):format(cr.root, words))
  t.ok(ok, 'make ' .. words .. ': ' .. log)
end

local prefix = child.folder .. '/prefix'

-- Runs the installed program in another folder, without LD_LIBRARY_PATH and LUA_PATH.
local function installed(args, program, env)
  local all = { LD_LIBRARY_PATH = '', LUA_PATH = ';;', LUA_CPATH = ';;', FONTCONFIG_FILE = '' }
  for name, value in pairs(env or {}) do all[name] = value end
  return child.run(args, { program = program or prefix .. '/bin/crescent', cwd = child.folder, env = all })
end

t.test('make install PREFIX=...', function()
  make("install PREFIX='" .. prefix .. "'")
  local r = installed { '-e', 'print(cr.root) print(package.searchpath("models.latentsync", package.path))' }
  t.equal(r.code, 0, r.err)
  t.equal(r.out, prefix .. '/share/crescent\n' .. prefix .. '/share/crescent/models/latentsync/init.lua\n')
  r = installed { '--version' }
  t.ok(r.code == 0 and r.out:find '^crescent ' ~= nil, r.out .. r.err)
  r = installed { 'lipsync', '--help' }
  t.ok(r.code == 0 and r.out:find('--checkpoint', 1, true) ~= nil, r.out .. r.err)
  r = installed { 'doctor' }
  for _, part in ipairs { 'media', 'remote' } do
    t.ok(r.out:find(('%s/lib/crescent/crescent_%s.so'):format(prefix, part), 1, true) ~= nil, r.out)
  end
end)

t.test('the libraries it uses are the installed ones', function()
  local r = installed { '-e', [[
    local media = require 'cr.media'
    media.write_picture(arg[1], cr.full({ 4, 4, 3 }, 9, { dtype = 'u8' }))
    print(media.read_picture(arg[1]):to 'f32':mean():item(), cr.ones(8, 8):matmul(cr.ones(8, 8)):sum():item())
    cr.sleep(0)
    cr.run(function() pcall(function() require 'cr.serve.http'.listen { handler = print }:close() end) end)
    for line in io.lines '/proc/self/maps' do
      local path = line:match '/.*crescent[^/]*$'
      if path then print(path) end
    end]], child.folder .. '/p.png' }
  t.equal(r.code, 0, r.err)
  t.equal(r.out:match '^[^\n]*', '9\t512')
  local files = {}
  for path in r.out:gmatch '\n(/[^\n]*)' do
    files[path:match '[^/]*$'] = true
    t.ok(path:sub(1, #prefix) == prefix, path .. ' is not in the prefix')
  end
  t.ok(files.crescent and files['libcrescent.so'] and files['crescent_media.so'], r.out)
  t.equal(files['crescent_http.so'], child.exists((child.program:gsub('crescent$', 'crescent_http.so'))) or nil, r.out)
end)

t.test('an installed font is found', function()
  -- As `make dist` installs it; the program tells fontconfig its path, unless the user has set it.
  local fonts = prefix .. '/share/crescent/fonts'
  if not shell(("mkdir '%s' && printf '<fontconfig/>' >'%s/fonts.conf'"):format(fonts, fonts)) then error 'cannot write' end
  local program = 'require "cr.tools.draw".canvas(2, 2) print(os.getenv "FONTCONFIG_FILE")'
  t.equal(installed { '-e', program }.out, fonts .. '/fonts.conf\n')
  t.equal(installed({ '-e', program }, nil, { FONTCONFIG_FILE = '/own.conf' }).out, '/own.conf\n')
  shell(("rm -r '%s'"):format(fonts))
  t.equal(installed { '-e', program }.out, '\n')
end)

t.test('what is installed, and how', function()
  local share = prefix .. '/share/crescent/'
  for _, name in ipairs { 'core/crescent.h', 'lua/cr/init.lua', 'models/networks/unet3d.lua', 'scripts/lipsync.lua',
    'LICENSE', 'NOTICE' } do
    t.ok(child.exists(share .. name), name .. ' is missing')
  end
  for _, name in ipairs { 'whisper/tiny.en.safetensors', 'face/face_landmark.tflite' } do
    t.equal(child.exists(share .. 'models/fetched/' .. name), child.exists(cr.root .. '/models/fetched/' .. name), name)
  end
  t.ok(not child.exists(share .. 'models/fetched/wheels'), 'the packages are left out')
  t.ok(not child.exists(share .. 'models/mini/train'), 'the training is left out')
  -- Without a CUDA compiler this part does not exist.
  local part = child.program:gsub('[^/]+$', 'crescent_cuda.so')
  t.equal(child.exists(prefix .. '/lib/crescent/crescent_cuda.so'), child.exists(part), 'the part for GPUs goes along')
  local _, found = shell(("find '%s' -name __pycache__ -o -name '*.whl' -o -name '*.part' -o ! -perm -a=r -o -perm -o=w ! -type l")
    :format(prefix))
  t.equal(found, '', 'neither leftovers nor files that others cannot read, or can write')
end)

t.test('from plain luajit', function()
  if not shell 'command -v luajit' then t.skip 'luajit is missing' end
  local lua = prefix .. '/share/crescent/lua/'
  local ok, out = shell(("cd / && LUA_PATH='%s?.lua;%s?/init.lua;;' luajit -e 'print(require [[cr]].ones(3):sum():item())'")
    :format(lua, lua))
  if child.program:find '/sanitize/' then t.skip 'a sanitized library needs its own program' end
  t.ok(ok, out)
  t.equal(out, '3\n')
end)

t.test('make install DESTDIR=... PREFIX=/usr, run after a move and through a link', function()
  local staging, moved = child.folder .. '/staging', child.folder .. '/moved here'
  make("install DESTDIR='" .. staging .. "' PREFIX=/usr")
  t.ok(child.exists(staging .. '/usr/bin/crescent'), 'bin/crescent')
  assert(os.rename(staging .. '/usr', moved))
  local r = installed({ '-e', 'print(cr.root)' }, moved .. '/bin/crescent')
  t.equal(r.out, moved .. '/share/crescent\n', r.err)
  assert(shell(("ln -s '%s/bin/crescent' '%s/link'"):format(moved, child.folder)))
  r = installed({ '-e', 'print(cr.root)' }, child.folder .. '/link')
  t.equal(r.out, moved .. '/share/crescent\n', r.err)
  assert(os.rename(moved .. '/share/crescent/lua', moved .. '/gone'))
  r = installed({ '-e', 'print(1)' }, moved .. '/bin/crescent')
  t.equal(r.code, 1)
  t.ok(r.lines == 1 and r.err:find 'its Lua files are neither in .*: install it again', r.err)
end)

child.clean()
t.done()
