--- Trees of weights, comparison with a network's list, CTranslate2, and the commands `weights` and `convert`.

local cr = require 'cr'
local cjson = require 'cjson'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local folder = require 'tests.support.golden'.folder .. 'torch_files/'

local function sample(name)
  local path = scratch.path(name or 'sample.safetensors')
  cr.save(path, {
    ['module.down_blocks.0.conv1.weight'] = cr.arange(0, 23):view(2, 3, 2, 2),
    ['module.down_blocks.0.conv1.bias'] = cr.tensor({ 1, 2 }, { dtype = 'f16' }),
    ['module.down_blocks.10.proj.weight'] = cr.arange(0, 5):view(2, 3),
    ['module.audio.weight'] = cr.arange(0, 11):view(2, 3, 2),
    ['module.pe'] = cr.arange(0, 11):view(1, 4, 3),
    ['module.steps'] = cr.tensor(3, { dtype = 'i64' }),
    other = cr.ones(1),
  })
  return path
end

t.test('a tree follows the dots, and convolutions are channels-last', function()
  local w = weights.tree(sample(), { prefix = 'module.' })
  t.equal(w.other, nil)
  local conv = w.down_blocks[0].conv1
  t.equal(table.concat(conv.weight.shape, ' '), '2 2 2 3')
  t.ok(conv.weight:is_contiguous())
  -- [O I kh kw] element (1, 2, 0, 1) = 12 + 8 + 1
  t.equal(conv.weight:select(1, 2):select(1, 1):select(1, 2):select(1, 3):item(), 21)
  t.equal(conv.bias.dtype, 'f32')
  t.equal(w.down_blocks[10].proj.weight:select(1, 2):select(1, 3):item(), 5)
  t.equal(table.concat(w.audio.weight.shape, ' '), '2 2 3')
  t.equal(table.concat(w.pe.shape, ' '), '1 4 3', 'only names that end in weight are turned')
  t.equal(w.steps.dtype, 'i64', 'integers keep their type')
end)

t.test('strip, rename and dtype', function()
  local w = weights.tree(sample(), {
    strip = 'module.', dtype = 'f16',
    rename = function(name) return not name:find '^audio' and name:gsub('^down_blocks', 'blocks') or nil end,
  })
  t.equal(w.other.dtype, 'f16')
  t.equal(w.audio, nil)
  t.equal(w.blocks[0].conv1.weight.dtype, 'f16')
end)

t.test("a node knows its path, and a layer's error names it", function()
  local w = weights.tree(sample(), { prefix = 'module.' })
  t.equal(weights.path(w.down_blocks[0].conv1), 'down_blocks.0.conv1')
  t.equal(weights.path(w), nil)
  t.raises(function() cr.nn.conv2d(w.down_blocks[0].conv1, cr.ones(1, 4, 4, 5)) end, 'down_blocks.0.conv1: conv2d: ')
end)

t.test('a tree outlives the scope it was made in', function()
  local w
  cr.scope(function() w = weights.tree(sample(), { prefix = 'module.' }) end)
  t.equal(w.down_blocks[0].conv1.bias:select(1, 2):item(), 2)
end)

t.test('a tree is freed completely, also twice', function()
  local path = sample()
  local before = cr.memory().count
  local tree = weights.tree(path)
  t.equal(cr.memory().count, before + 7)
  weights.free(tree)
  weights.free { tree, nil, { tree.other } }
  t.equal(cr.memory().count, before)
  t.ok(tree.module.down_blocks[0].conv1.bias:is_freed() and tree.other:is_freed(), 'all are')
end)

t.test('unconverted weights are not copied', function()
  local file = weights.open(sample())
  local w = weights.tree(file)
  t.ok(w.module.down_blocks[10].proj.weight:pointer() == file:get 'module.down_blocks.10.proj.weight':pointer())
end)

t.test('a tensor cannot also be a folder', function()
  local path = scratch.path 'clash.safetensors'
  cr.save(path, { a = cr.ones(1), ['a.b'] = cr.ones(1) })
  t.raises(function() weights.tree(path) end, 'clash.safetensors: a is a tensor, so a.b cannot be inside it')
end)

t.test('checking names the first problem and counts the rest', function()
  local file = weights.open(sample())
  local good = {
    { 'down_blocks.0.conv1.weight', { 2, 3, 2, 2 } }, { 'down_blocks.0.conv1.bias', { 2 } },
    { name = 'down_blocks.10.proj.weight', shape = { 2, 3 } }, { 'audio.weight', { 2, 3, 2 } }, { 'pe', { 1, 4, 3 } },
  }
  local surplus, first = weights.check(file, good, { prefix = 'module.' })
  t.equal(surplus .. ' ' .. first, '2 module.steps', 'what is not expected is counted, outside of the prefix too')
  t.equal(weights.check(file, { { 'other', { 1 } } }), 6)
  t.raises(function() weights.check(file, good, { prefix = 'module.', surplus = true }) end,
    'sample.safetensors: tensor module.steps is unexpected: this network has none with that name %(and 1 more%)$')
  t.raises(function() weights.check(file, { { 'a', {} }, good[1], { 'b', {} }, { 'c', {} } }, { prefix = 'module.' }) end,
    'tensor module.a is missing %(and 2 more%)$')
  t.raises(function() weights.check(file, { { 'pe', { 1, 24, 3 } } }, { prefix = 'module.' }) end,
    'tensor module.pe has shape %[1 4 3%], expected %[1 24 3%]$')
end)

t.test('wrong requests to a file are reported', function()
  local file = weights.open(sample())
  t.ok(file:has 'other')
  t.ok(not file:has 'others')
  t.raises(function() file:get 'others' end, 'sample.safetensors: there is no tensor others')
  t.raises(function() weights.open() end, 'weights.open: path: a path is needed, not nil')
  for _, ask in ipairs { 'get', 'has', 'info' } do
    t.raises(function() file[ask](file, nil) end,
      "weights_test.lua:%d+: .*sample.safetensors: file:%l+: name: a tensor's name is needed, not nil")
    t.raises(function() file[ask](file, 1) end, "a tensor's name is needed, not 1")
  end
  t.raises(function() cr.from_pointer(nil, { 4 }, 'f32') end, 'from_pointer: pointer: an address is needed, not nil')
end)

t.test('a file that is truncated while in use ends the program with one sentence', function()
  local path, half = scratch.path 'cut.safetensors', scratch.path 'half-written'
  cr.save(path, { x = cr.ones(2 ^ 21) })
  local script = scratch.write('cut.lua', [[
    local cr = require 'cr'
    local x = cr.weights.open(arg[1]):get 'x'
    io.open(arg[2], 'wb'):close()
    cr.C.cr_cleanup_add(arg[2])
    os.execute('truncate -s 8192 ' .. arg[1])
    print(x:sum():item())]])
  local text, status = scratch.command(('%s %s %s %s'):format(scratch.program, script, path, half))
  t.equal(status, 1)
  t.equal(text, ('crescent: %s: the file was truncated, or could not be read any more, while it was in use\n'):format(path))
  t.ok(not io.open(half), 'temporary files are deleted')
end)

t.test('a file that is changed while in use is detected', function()
  local name = 'changed.safetensors'
  local path = scratch.path(name)
  cr.save(path, { x = cr.ones(4) })
  t.equal(weights.changed(), nil)
  local bytes, file = scratch.read(path), weights.open(path)
  t.equal(weights.changed(), nil)
  local x = file:get 'x'
  file:close()
  scratch.write(name, bytes .. ' ')
  t.equal(weights.changed(), path .. ': the file was changed while it was in use, so the result cannot be trusted: run it again')
  x:free()
  t.ok(weights.changed(), 'of one that is closed, too')
  t.equal(weights.changed(), nil, 'once')
  -- Another file under the same name does not affect the one in use.
  file = weights.open(scratch.write(name, bytes))
  assert(os.rename(scratch.write('other', 'x'), path))
  t.equal(weights.changed(), nil)
  t.near(file:get 'x', cr.ones(4), 0)
  file:close()
  t.equal(weights.changed(), nil)
end)

t.test('SHA-256', function()
  t.equal(weights.sha256(scratch.write('abc', 'abc')), 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad')
  t.equal(weights.sha256(scratch.write('nothing', '')), 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855')
  t.raises(function() weights.sha256(scratch.path 'missing') end, 'missing: No such file')
end)

-- ---- CTranslate2 -----------------------------------------------------------------------------

local le = scratch.le
local function c_string(s) return le(#s + 1, 2) .. s .. '\0' end
local function variable(name, shape, dtype, bytes)
  local sizes = {}
  for i, n in ipairs(shape) do sizes[i] = le(n, 4) end
  return c_string(name) .. string.char(#shape) .. table.concat(sizes) .. string.char(dtype) .. le(#bytes, 4) .. bytes
end
local function model(variables, aliases)
  return le(6, 4) .. c_string 'TestSpec' .. le(3, 4) .. le(#variables, 4) .. table.concat(variables) .. (aliases or le(0, 4))
end

t.test('a CTranslate2 model is read, aliases too', function()
  local path = scratch.write('model.bin', model({
    variable('odd', { 3 }, 1, '\1\2\255'), variable('encoder/x', { 2, 2 }, 0, scratch.floats(1, 2, 3, 4)),
  }, le(1, 4) .. c_string 'same' .. c_string 'encoder/x'))
  local file = weights.open(path)
  t.equal(file.format, 'ctranslate2')
  t.equal(file.metadata.specification, 'TestSpec')
  t.equal(table.concat(file.names, ' '), 'odd encoder/x same')
  t.near(file:get 'same', cr.tensor { { 1, 2 }, { 3, 4 } }, 0)
  t.equal(file:get('odd'):select(1, 3):item(), -1)
end)

t.test('damaged CTranslate2 models are refused', function()
  local function refused(bytes, pattern)
    local path = scratch.write('model.bin', bytes)
    t.raises(function() weights.open(path) end, 'model.bin: .*' .. pattern)
  end
  refused(model { variable('x', { 3 }, 0, scratch.floats(1, 2)) }, 'tensor x reaches past the end')
  refused(model { variable('x', { 1 }, 0, scratch.floats(1, 2)) }, 'x has 8 bytes, but its shape needs 4')
  refused(model { variable('x', { 1 }, 9, '1234') }, 'x has the unknown dtype 9')
  refused(model({}, le(1, 4) .. c_string 'a' .. c_string 'b'), 'the alias a names a tensor that is missing')
  refused(model {} .. 'more', '4 bytes follow')
  refused((model {}):gsub('^\6', '\9'), 'version 9, but only versions 3 to 6 are supported')
end)

-- ---- the commands ------------------------------------------------------------------------------

t.test('crescent weights lists a file', function()
  local text, status = scratch.command(scratch.program .. ' weights ' .. folder .. 'zip.pt')
  t.equal(status, 0)
  t.ok(text:find '\nstate_dict.e.channels_last%s+f32%s+%[2 4 5 3%]\n', text)
  t.ok(text:find '\n16 tensors, 437 parameters, 1703 B, torch%-zip\n$', text)
end)

t.test('crescent weights --json gives statistics', function()
  local path = scratch.path 'stats.safetensors'
  cr.save(path, {
    x = cr.tensor { 1, 2, 3, 6 }, none = cr.empty(0), bad = cr.tensor { 1, 0 / 0 }, flag = cr.tensor({ 1, 0 }, { dtype = 'bool' }),
    half = cr.tensor({ 0.5, -1.5 }, { dtype = 'f16' }), ['a"b'] = cr.tensor({ -3 }, { dtype = 'i64' }),
  })
  local text, status = scratch.command(scratch.program .. ' weights --json ' .. path)
  t.equal(status, 0)
  local all = cjson.decode(text).tensors
  t.equal(all.x.mean, 3)
  t.near(all.x.std, math.sqrt(3.5), 1e-15)
  t.equal(all.x.min, 1)
  t.equal(all.x.max, 6)
  t.equal(all.x.dtype, 'f32')
  t.equal(#all.x.shape, 1)
  for _, key in ipairs { 'mean', 'std', 'min', 'max' } do
    t.equal(all.none[key], cjson.null, key .. ' of an empty tensor')
    t.equal(all.bad[key], cjson.null, key .. ' with a nan')
  end
  t.equal(all.flag.mean, 0.5)
  t.equal(all.half.min, -1.5)
  t.equal(all['a"b'].max, -3)
end)

t.test('crescent weights counts non-finite values, and reports unreadable tensors', function()
  local path = scratch.path 'bad.safetensors'
  local huge = math.huge
  cr.save(path, {
    a = cr.tensor { 1, 0 / 0, huge, -huge, huge }, b = cr.tensor({ 1, huge }, { dtype = 'f16' }), c = cr.tensor { 3e38, 3e38 },
    d = cr.tensor({ 0 / 0 }, { dtype = 'bf16' }), e = cr.tensor({ 7 }, { dtype = 'i32' }),
  })
  local text, status = scratch.command(scratch.program .. ' weights ' .. path)
  t.equal(status, 0, text)
  t.equal(text, 'a  f32   [5]  1 nan, 3 inf\nb  f16   [2]  1 inf\nc  f32   [2]\nd  bf16  [1]  1 nan\ne  i32   [1]\n' ..
    '5 tensors, 11 parameters, 38 B, safetensors, 6 values not finite\n')
  local all = cjson.decode((scratch.command(scratch.program .. ' weights --json ' .. path))).tensors
  t.equal(('%d %d %d %d'):format(all.a.nan, all.a.inf, all.b.inf, all.c.inf), '1 3 1 0')
  path = scratch.write('odd.safetensors', scratch.safetensors('{"x\\n":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}', ('x'):rep(8)))
  text, status = scratch.command(scratch.program .. ' weights ' .. path)
  t.equal(status, 0, text)
  t.equal(text:match '^[^\n]*', 'x\\n  other [1]  has dtype complex64, which is not handled')
end)

t.test('crescent convert reports how many values overflow', function()
  local path, out = scratch.path 'large.safetensors', scratch.path 'small.safetensors'
  cr.save(path, { a = cr.tensor { 1, 65520, -1e5, math.huge }, b = cr.tensor { 65519 }, c = cr.tensor { 7e4 }, none = cr.empty(0) })
  local function convert(dtype) return scratch.command(('%s convert %s %s --dtype %s'):format(scratch.program, path, out, dtype)) end
  local text, status = convert 'f16'
  t.equal(status, 0)
  t.equal(text, ('crescent: %s: 3 values in 2 tensors exceed the range of f16 and became infinite (a, ...)\n'):format(path))
  t.equal(weights.open(out):get('b'):item(), 65504)
  t.equal(convert 'bf16', '')
end)

t.test('crescent convert writes any file as safetensors', function()
  local out = scratch.path 'out.safetensors'
  local text, status = scratch.command(('%s convert %sdeflated.pt %s --dtype f16'):format(scratch.program, folder, out))
  t.equal(status, 0, text)
  local file, expected = weights.open(out), weights.open(folder .. 'expected.safetensors')
  t.equal(file.metadata.global_step, '12345')
  t.equal(#file.names, 16)
  t.near(file:get 'state_dict.a.weight', expected:get('a.weight'):to 'f16', 0)
  t.equal(file:info('state_dict.f.i64').dtype, 'i64')
end)

t.test('the commands refuse in one line', function()
  local function refused(arguments, status, pattern)
    local text, found = scratch.command(scratch.program .. ' ' .. arguments)
    t.equal(found, status, arguments)
    t.ok(text:find(pattern) and select(2, text:gsub('\n', '')) == 1, text)
  end
  local out = scratch.path 'none.safetensors'
  refused('weights ' .. scratch.path 'missing', 1, '^crescent: .*missing: No such file or directory\n$')
  refused('weights ' .. folder .. 'evil_system.pt', 1, 'evil_system.pt: the pickle calls posix.system')
  refused('weights --jsn x', 2, "unknown option '%-%-jsn': did you mean '%-%-json'%?")
  refused(('convert %sevil_eval.pth %s'):format(folder, out), 1, 'calls __builtin__.eval')
  refused(('convert %szip.pt %s/no/folder.safetensors'):format(folder, scratch.folder), 1, 'cannot be written: No such file')
  refused(('convert %szip.pt %s --dtype f17'):format(folder, out), 2, 'f17')
  t.ok(not io.open(out), 'no output is left')
end)

t.test('safetensors whose first bytes look like a pickle are safetensors', function()
  local met = 0
  for n = 500, 1500 do
    local path = scratch.path 'length.safetensors'
    cr.save(path, { x = cr.ones(3) }, { note = ('n'):rep(n) })
    local f = io.open(path, 'rb')
    local low, high = f:read(2):byte(1, 2)
    f:close()
    if low == 0x80 and high >= 2 and high <= 5 then
      met = met + 1
      local file = weights.open(path)
      t.equal(file.format, 'safetensors')
      t.near(file:get 'x', cr.ones(3), 0)
      file:close()
    end
  end
  t.ok(met > 0, 'no header met the lengths in question')
end)

t.test('a disk that is full leaves no half file', function()
  local into = scratch.path 'full'
  assert(require 'lfs'.mkdir(into))
  local text, status = scratch.command(("sh -c \"trap '' XFSZ; ulimit -f 1; %s convert %s %s/x.safetensors\""):format(
    scratch.program, folder .. 'zip.pt', into))
  t.equal(status, 1, text)
  for name in require 'lfs'.dir(into) do t.ok(name == '.' or name == '..', 'left behind: ' .. name) end
end)

t.done()
