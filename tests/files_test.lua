--- Writing files: completely or not at all, for any path, also with other writers.

local lfs = require 'lfs'
local t = require 'tests.support.tap'
local cr = require 'cr'
local files = require 'cr.files'
local child = require 'tests.support.child'
local scratch = require 'tests.support.scratch'

local function shell(command) return os.execute(("cd '%s' && %s"):format(scratch.folder, command)) == 0 end

--- The dot files of a folder, one per line.
local function leftovers(folder)
  local names = {}
  for name in lfs.dir(folder or scratch.folder) do
    if name:find '^%.[^.]' then names[#names + 1] = name end
  end
  return table.concat(names, '\n')
end

t.test('a file is written, and replaced', function()
  local path = scratch.path 'a.txt'
  files.write(path, 'one\0two')
  t.equal(scratch.read(path), 'one\0two')
  files.write(path, '')
  t.equal(scratch.read(path), '')
  t.equal(leftovers(), '')
end)

t.test('an existing file keeps its mode, a new one has that of the umask', function()
  local path = scratch.write('mode.txt', 'old')
  assert(shell 'chmod 640 mode.txt')
  files.write(path, 'new')
  t.equal(lfs.attributes(path, 'permissions'), 'rw-r-----')
  t.equal(scratch.read(path), 'new')
  assert(child.run({ '-e', ("require 'cr.files'.write('%s', 'x')"):format(scratch.path 'fresh.txt') }).code == 0)
  assert(shell 'touch plain.txt')
  t.equal(lfs.attributes(scratch.path 'fresh.txt', 'permissions'), lfs.attributes(scratch.path 'plain.txt', 'permissions'))
end)

t.test('a link stays a link, and its target is written', function()
  lfs.mkdir(scratch.path 'there')
  assert(shell 'ln -s there/b.txt to_b && ln -s to_b to_to_b && ln -s loop loop')
  files.write(scratch.path 'to_to_b', 'through two links')
  t.equal(lfs.symlinkattributes(scratch.path 'to_to_b', 'mode'), 'link')
  t.equal(lfs.symlinkattributes(scratch.path 'there/b.txt', 'mode'), 'file')
  t.equal(scratch.read(scratch.path 'there/b.txt'), 'through two links')
  t.raises(function() files.write(scratch.path 'loop', 'x') end, 'loop: cannot be written: Too many levels of symbolic links')
end)

t.test('devices, pipes and standard streams get the bytes and stay what they are', function()
  local null = lfs.attributes('/dev/null', 'rdev')
  files.write('/dev/null', 'gone')
  t.equal(lfs.attributes('/dev/null', 'mode'), 'char device')
  t.equal(lfs.attributes('/dev/null', 'rdev'), null)
  t.raises(function() files.write('/dev/full', 'x') end, '/dev/full: cannot be written: No space left on device')
  assert(shell 'mkfifo fifo && (cat fifo >from_fifo & echo >started)')
  files.write(scratch.path 'fifo', ('0123456789'):rep(20000)) -- more than a pipe's buffer
  t.equal(lfs.attributes(scratch.path 'fifo', 'mode'), 'named pipe')
  t.wait(function() return lfs.attributes(scratch.path 'from_fifo', 'size') == 200000 end)
  t.equal(scratch.read(scratch.path 'from_fifo'), ('0123456789'):rep(20000))
  local code = "io.write 'before '; io.flush(); require 'cr.files'.write('/dev/stdout', 'between'); io.write ' after'"
  t.equal(child.run({ '-e', code }).out, 'before between after', 'a pipe')
  local all = scratch.path 'all.txt'
  os.execute(([['%s' -e "%s" > '%s']]):format(child.program, code, all))
  t.equal(scratch.read(all), 'before between after', 'a file that standard output goes to')
  t.equal(leftovers(), '')
end)

t.test('unwritable files: one sentence, and existing files stay', function()
  lfs.mkdir(scratch.path 'folder')
  t.raises(function() files.write(scratch.path 'folder', 'x', '--report') end, '^%-%-report: .*/folder: cannot be written: Is a directory$')
  t.raises(function() files.write(scratch.path 'folder/', 'x') end, 'folder/: cannot be written: Is a directory')
  t.raises(function() files.write(scratch.path 'no/x', 'x') end, 'no/x: cannot be written: No such file')
  local path = scratch.write('kept.txt', 'old')
  local result = child.run({ '-e', ("require 'cr.files'.write('%s', ('x'):rep(100000))"):format(path) })
  t.equal(result.code, 0)
  scratch.write('kept.txt', 'old')
  os.execute(([[ulimit -f 8; trap '' XFSZ; '%s' -e "require 'cr.files'.write('%s', ('x'):rep(100000))" 2>'%s']]):format(
    child.program, path, scratch.path 'err.txt'))
  t.ok(scratch.read(scratch.path 'err.txt'):find 'kept.txt: cannot be written: File too large', 'the limit is told')
  t.equal(scratch.read(path), 'old')
  t.equal(leftovers(), '')
end)

t.test('an input that is a pipe or a device is refused, and is not opened', function()
  local pipe = scratch.path 'input'
  os.execute(("mkfifo '%s'"):format(pipe)) -- nobody writes to it, so opening it would block for ever
  for _, path in ipairs { '-', pipe, '/dev/zero', '/dev/null' } do
    local ok, message = pcall(files.check_readable, '--video', path)
    t.equal(not ok and message.message, '--video: ' .. path .. ': a pipe or device cannot be read twice: save it to a file first')
  end
end)

t.test('file names of maximum length', function()
  local long, letters = ('n'):rep(251) .. '.txt', ('\195\164'):rep(125) .. '.txt'
  for _, name in ipairs { long, letters } do
    files.write(scratch.path(name), name)
    t.equal(scratch.read(scratch.path(name)), name)
  end
  t.raises(function() files.write(scratch.path('x' .. long), '') end, 'File name too long')
end)

t.test('many writers of one name: the file is always one of theirs, complete', function()
  local code = ([[
    local files = require 'cr.files'
    for i = 1, 60 do files.write('%s', (arg[1] .. i .. '\n'):rep(3000)) end
  ]]):format(scratch.path 'shared.txt')
  local results, running = {}, 3
  cr.run(function()
    for i = 1, 3 do
      cr.go(function()
        results[i] = child.run { '-e', code, ({ 'a', 'b', 'c' })[i] }
        running = running - 1
      end)
    end
    local seen, whole = 0, 0
    while running > 0 do
      local text = lfs.attributes(scratch.path 'shared.txt') and scratch.read(scratch.path 'shared.txt')
      if text then
        seen = seen + 1
        local line = text:match '^[^\n]*\n'
        if line and text == line:rep(3000) then whole = whole + 1 end
      end
      cr.sleep(0.005)
    end
    t.equal(whole, seen, 'files seen whole')
    t.ok(seen > 0, 'files seen')
  end)
  for i = 1, 3 do t.equal(results[i].code, 0, results[i].err) end
  t.equal(leftovers(), '')
end)

t.test('temporary files of dead processes are removed; those of living ones, and other files, stay', function()
  local folder = scratch.path 'swept'
  lfs.mkdir(folder)
  local function touch(name) scratch.write('swept/' .. name, 'x') end
  touch '.film.mp4.tmp-99999-0'
  touch '.film.tmp-1-2'
  touch '.mine.tmp-1-b'
  touch 'film.tmp-1-2'
  touch '.film.tmp-'
  -- A process that is stopped while it writes, and killed.
  local code = ([[
    local ffi = require 'ffi'
    ffi.cdef 'typedef struct { const char *path; char *target, *temp; int fd, through; } test_output;'
    ffi.cdef 'int cr__output_open(test_output *, const char *);'
    local output = ffi.new 'test_output'
    assert(ffi.C.cr__output_open(output, arg[1]) == 0)
    print 'open'; io.flush()
    while true do require 'cr'.sleep(1) end
  ]])
  cr.run(function()
    local seen = false
    local living = cr.go(child.run, { '-e', code, folder .. '/living.txt' },
      { when = function() return seen end, signal = 'sigkill' })
    t.wait(function() return leftovers(folder):find '%.living' end)
    t.equal(child.run({ '-e', "require 'cr.files'.write(arg[1], 'new')", folder .. '/new.txt' }).code, 0)
    local left = leftovers(folder)
    t.ok(left:find '%.living', 'the file of a living process stays')
    t.ok(not left:find 'film.mp4' and not left:find 'tmp%-1%-2', 'those of dead ones are gone: ' .. left)
    t.ok(left:find('.mine.tmp-1-b', 1, true) and left:find '%.film%.tmp%-\n?', 'other names stay')
    t.ok(lfs.attributes(folder .. '/film.tmp-1-2'), 'and those without a dot')
    seen = true
    t.equal(cr.await(living).signal, 9)
  end)
  t.ok(leftovers(folder):find '%.living', 'killed: left behind')
  t.equal(child.run({ '-e', "require 'cr.files'.write(arg[1], 'new')", folder .. '/new.txt' }).code, 0)
  t.ok(not leftovers(folder):find '%.living', 'and swept by the next that writes there')
end)

t.test('an output that is one of the inputs is refused', function()
  local path = scratch.write('in.mp4', 'film')
  assert(shell 'ln -s in.mp4 link.mp4 && ln in.mp4 hard.mp4 && cp in.mp4 copy.mp4')
  for _, name in ipairs { 'in.mp4', 'link.mp4', 'hard.mp4', '../' .. scratch.folder:match '[^/]*$' .. '/in.mp4' } do
    t.ok(files.same(path, scratch.path(name)), name)
    t.raises(function()
      files.check_output(scratch.path(name), { ['--audio'] = '/dev/null', ['--video'] = path }, '--out')
    end, '^%-%-out: .* is also the input of %-%-video %(.*in%.mp4%) and would overwrite it: choose another name$')
  end
  t.ok(not files.same(path, scratch.path 'copy.mp4'), 'a copy')
  t.ok(not files.same('/dev/null', '/dev/null'), 'a device loses nothing')
  t.ok(not files.same(path, scratch.path 'nothing'), 'a missing file')
  files.check_output(scratch.path 'new.mp4', { video = path, checkpoint = { path, scratch.path 'copy.mp4' } })
  t.raises(function()
    files.check_output(scratch.path 'copy.mp4', { checkpoint = { path, scratch.path 'copy.mp4' } })
  end, 'copy%.mp4 is also the input of checkpoint')
end)

t.test('weights are not saved onto their own file', function()
  local path = scratch.path 'w.safetensors'
  cr.save(path, { x = cr.ones(3) })
  local file = require 'cr.weights'.open(path)
  t.raises(function() cr.save(path, { x = cr.zeros(2) }) end, 'w%.safetensors: this weights file is open and would be overwritten')
  file:close()
  cr.save(path, { x = cr.zeros(2) })
  require 'cr.weights'.open(path) -- forgotten at once
  cr.save(path, { x = cr.zeros(4) })
  assert(shell 'ln -s w.safetensors v.safetensors')
  local before = scratch.read(path)
  local result = child.run { 'convert', path, scratch.path 'v.safetensors' }
  t.equal(result.code, 1)
  t.ok(result.err:find 'v.safetensors is also the input of IN %(.*w.safetensors%) and would overwrite it: choose another name', result.err)
  t.equal(scratch.read(path), before)
end)

t.done()
