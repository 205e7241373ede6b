--- safetensors: round trips, mapping, and every kind of invalid header.

local cr = require 'cr'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local dtypes = { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64', 'bool' }

t.test('a round trip keeps every dtype, shape and number', function()
  local all = {}
  for _, dtype in ipairs(dtypes) do all['x.' .. dtype] = cr.tensor({ { 0, 1, 2 }, { 3, 4, 5 } }, { dtype = dtype }) end
  all.scalar = cr.tensor(2.5)
  all.empty = cr.empty(0, 4)
  all.turned = cr.tensor { { 1, 2, 3 }, { 4, 5, 6 } }:t()
  all.wide = cr.tensor({ 1 }):view(1, 1, 1, 1, 1, 1, 1, 1)
  local path = scratch.path 'round.safetensors'
  cr.save(path, all, { note = 'a "quoted" line\nand é' })
  local file = weights.open(path)
  t.equal(file.format, 'safetensors')
  t.equal(file.metadata.note, 'a "quoted" line\nand é')
  t.equal(#file.names, 14)
  for name, x in pairs(all) do
    local y = file:get(name)
    t.equal(y.dtype, x.dtype, name)
    t.equal(table.concat(y.shape, ' '), table.concat(x.shape, ' '), name)
    if x:numel() > 0 then t.near(y:to 'f64', x:to 'f64', 0, name) end
  end
  t.equal(file:info('turned').bytes, 24)
  local loaded = cr.load(path)
  t.near(loaded.turned, all.turned, 0)
end)

t.test('names of any kind survive', function()
  local names = { 'a"b', 'back\\slash', 'tab\there', 'line\nbreak', 'schön.日本', '\1' }
  local all = {}
  for i, name in ipairs(names) do all[name] = cr.tensor(i) end
  local path = scratch.path 'names.safetensors'
  cr.save(path, all)
  local file = weights.open(path)
  for i, name in ipairs(names) do t.equal(file:get(name):item(), i, name) end
end)

t.test('tensors are views of the mapped file, and writing to one does not change the file', function()
  local path = scratch.path 'map.safetensors'
  cr.save(path, { x = cr.ones(1024) })
  local before = scratch.read(path)
  local file = weights.open(path)
  local a, b = file:get 'x', file:get 'x'
  t.ok(a:pointer() == b:pointer(), 'two views of one file')
  file:close()
  a:fill_(7)
  t.equal(b:select(1, 1024):item(), 7)
  t.ok(scratch.read(path) == before, 'the file is unchanged')
  t.raises(function() file:get 'x' end, 'map.safetensors: the file is closed')
end)

t.test('opening does not read the data', function()
  local path = scratch.path 'sparse.safetensors'
  local header = '{"x":{"dtype":"F32","shape":[536870912],"data_offsets":[0,2147483648]}}'
  local handle = assert(io.open(path, 'wb'))
  handle:write(scratch.safetensors(header))
  handle:seek('set', 8 + #header + 2147483648 - 1)
  handle:write '\0'
  handle:close()
  local held = cr.memory().live
  local file = weights.open(path)
  t.equal(cr.memory().live, held)
  t.equal(file:get('x'):select(1, 536870912):item(), 0)
  t.equal(file:info('x').bytes, 2147483648)
end)

t.test('unaligned data are read, too', function()
  local header = '{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
  local file = weights.open(scratch.write('odd.safetensors', scratch.safetensors(header, '\5' .. scratch.floats(1.5, -2))))
  t.near(file:get 'x', cr.tensor { 1.5, -2 }, 0)
  t.equal(file:get('b'):item(), 5)
end)

-- A file with one tensor of a dtype.
local function single(dtype, shape, bytes)
  local header = ('{"x":{"dtype":"%s","shape":%s,"data_offsets":[0,%d]}}'):format(dtype, shape, #bytes)
  return weights.open(scratch.write('one.safetensors', scratch.safetensors(header, bytes)))
end

t.test('8-bit floats become float16, every code of them', function()
  local codes = {}
  for i = 0, 255 do codes[i + 1] = string.char(i) end
  for dtype, bits in pairs { F8_E4M3 = { exponent = 4, bias = 7 }, F8_E5M2 = { exponent = 5, bias = 15 } } do
    local file = single(dtype, '[256]', table.concat(codes))
    t.equal(file:info('x').dtype, 'f16')
    t.equal(file:info('x').bytes, 256)
    local x = file:get 'x':to 'f64'
    for code = 0, 255 do
      local fraction = 2 ^ (7 - bits.exponent)
      local exponent, mantissa = math.floor(code % 128 / fraction), code % fraction
      local top = 2 ^ bits.exponent - 1
      local want = exponent == 0 and mantissa / fraction * 2 ^ (1 - bits.bias) or
          (1 + mantissa / fraction) * 2 ^ (exponent - bits.bias)
      if dtype == 'F8_E4M3' and code % 128 == 127 or dtype == 'F8_E5M2' and exponent == top and mantissa > 0 then want = 0 / 0 end
      if dtype == 'F8_E5M2' and exponent == top and mantissa == 0 then want = math.huge end
      if code > 127 then want = -want end
      local got = x:select(1, code + 1):item()
      if got ~= want and (got == got or want == want) then t.equal(got, want, ('%s %d'):format(dtype, code)) end
    end
  end
end)

t.test('unsigned integers become the next wider ones', function()
  t.near(single('U16', '[2]', '\255\255\1\0'):get 'x', cr.tensor({ 65535, 1 }, { dtype = 'i32' }), 0)
  local wide = single('U32', '[2]', '\254\255\255\255\1\0\0\0')
  t.equal(wide:info('x').dtype, 'i64')
  t.equal(wide:get('x'):select(1, 1):item(), 4294967294)
  t.equal(single('U64', '[]', scratch.le(2 ^ 40, 8)):get('x'):item(), 2 ^ 40)
  local file = single('U64', '[1]', ('\255'):rep(8))
  t.raises(function() file:get 'x' end, 'one.safetensors: tensor x holds numbers above 9223372036854775807')
end)

t.test('unsupported dtypes are listed, and refused when read', function()
  local function refused(file, pattern)
    t.equal(file:info('x').dtype, 'other')
    t.ok(file:info('x').trouble:find(pattern), file:info('x').trouble)
    t.raises(function() file:get 'x' end, 'one.safetensors: tensor x ' .. pattern)
    t.equal(file:info('y').dtype, 'f32')
    t.near(file:get 'y', cr.tensor { 1.5 }, 0)
  end
  local function beside(dtype, shape, bytes)
    local header = ('{"x":{"dtype":"%s","shape":%s,"data_offsets":[4,%d]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')
      :format(dtype, shape, 4 + #bytes)
    return weights.open(scratch.write('one.safetensors', scratch.safetensors(header, scratch.floats(1.5) .. bytes)))
  end
  refused(beside('C64', '[1]', ('x'):rep(8)), 'has dtype complex64, which is not handled')
  refused(beside('F8_E8M0', '[2]', 'xx'), 'has dtype float8_e8m0fnu')
  refused(beside('U8', '[1,1,1,1,1,1,1,1,1]', '!'), 'has 9 dimensions; at most 8')
  refused(beside('U8', '[4294967296,0]', ''), 'has a size of 4294967296; at most')
end)

t.test('null metadata counts as absent', function()
  local file = weights.open(scratch.write('null.safetensors',
    scratch.safetensors('{"__metadata__": null,"x":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', '\7')))
  t.equal(next(file.metadata), nil)
  t.equal(file:get('x'):item(), 7)
end)

-- {what, bytes, what the sentence says}
local x = '"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
local eight = ('\0'):rep(8)
local st = scratch.safetensors
local wrong = {
  { 'an empty file', '', 'the file is empty' },
  { 'seven bytes', '1234567', 'too short for weights' },
  { 'text', 'these are no weights', 'not a weights file' },
  { 'a header that claims too much', scratch.le(1000, 8) .. '{}', 'header claims 1000 bytes, but the file holds only 10' },
  { 'a header of exabytes', ('\255'):rep(7) .. '\127{}', 'header claims %d+ bytes; 100 MB is the most' },
  { 'a tensor past the end', st('{' .. x .. '}', '\0\0\0\0'), 'tensor x claims bytes 0 to 8, but the file holds only 4' },
  { 'bytes after the last tensor', st('{' .. x .. '}', eight .. '!'), '1 bytes follow the last tensor' },
  { 'a shape that does not fit', st('{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', eight),
    'tensor x reaches past the end of its storage of 8 bytes' },
  { 'a shape that is too small', st('{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}', eight),
    'tensor x has 8 bytes, but its shape needs 4' },
  { 'a shape whose product overflows',
    st('{"x":{"dtype":"F32","shape":[2000000000,2000000000,2000000000],"data_offsets":[0,8]}}', eight), 'more elements than any file' },
  { 'a size past 64 bits',
    st('{"x":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]}}', eight), 'a number is too large' },
  { 'metadata that are no object', st('{"__metadata__":nil,' .. x .. '}', eight), 'not valid JSON' },
  { 'metadata that are null and more', st('{"__metadata__":null,"__metadata__":{},' .. x .. '}', eight), '__metadata__ twice' },
  { 'a negative size', st('{"x":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', eight), 'a whole number is missing' },
  { 'a fraction', st('{"x":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}}', eight), 'a number is not whole' },
  { 'ranges the wrong way round', st('{"x":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', eight), 'claims bytes 8 to 0' },
  { 'overlapping ranges', st('{' .. x .. ',"y":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', eight .. '1234'),
    'tensor y overlaps the one before it' },
  { 'a gap', st('{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', eight), 'tensor x leaves a gap before it' },
  { 'a name twice', st('{' .. x .. ',"x":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}}', eight), 'two tensors are named x' },
  { 'a key twice', st('{"x":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', eight), 'dtype occurs twice' },
  { 'a missing key', st('{"x":{"dtype":"F32","shape":[2]}}', eight), 'data_offsets is missing' },
  { 'an unknown key', st('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}}', eight), 'unknown key more' },
  { 'an unknown dtype', st('{"x":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}', eight), 'tensor x has the unknown dtype F99' },
  { 'three offsets', st('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}}', eight), 'a list in the header is too long' },
  { 'JSON that ends early', st('{' .. x, eight), 'not valid JSON: it ends too early' },
  { 'JSON with more behind it', st('{' .. x .. '} x', eight), 'something follows its end' },
  { 'a name that is not UTF-8', st('{"\255":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', eight), 'a string is not UTF%-8' },
  { 'a name with a zero byte',
    st('{"a\\u0000b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', eight), 'the name holds a zero byte' },
  { 'half a surrogate', st('{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', eight), 'half of a surrogate pair' },
  { 'metadata that is no string', st('{"__metadata__":{"a":1},' .. x .. '}', eight), 'value of a in __metadata__ is not a string' },
  { 'a Git LFS pointer', 'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull' },
  { 'a web page', '<!DOCTYPE html><html>', 'a web page' },
}
for _, case in ipairs(wrong) do
  t.test(case[1] .. ' is refused', function()
    local path = scratch.write('wrong.safetensors', case[2])
    t.raises(function() weights.open(path) end, 'wrong%.safetensors: .*' .. case[3])
  end)
end

t.test('a folder, a missing file and a pipe are refused', function()
  t.raises(function() weights.open(scratch.folder) end, 'this is a folder, not a file')
  t.raises(function() weights.open(scratch.path 'nothing') end, 'nothing: No such file or directory')
  t.raises(function() weights.open '/dev/null' end, 'device or pipe, not a file')
end)

t.test("names are escaped and truncated in messages, after the file's name", function()
  local function message(name)
    local ok, err = pcall(weights.open, scratch.write('shown.safetensors',
      st('{' .. require 'cr.json'.encode(name) .. ':{"dtype":"F99","shape":[0],"data_offsets":[0,0]}}')))
    t.ok(not ok)
    return tostring(err):match 'shown%.safetensors: tensor (.*) has the unknown'
  end
  t.equal(message 'a\nb\27[31m\127', 'a\\nb\\x1b[31m\\x7f')
  t.equal(message 'a\194\155b', 'a\\x9bb', 'a control character of Latin-1')
  t.equal(message 'a\226\128\174b', 'a\\u202eb', 'one that turns the text around')
  t.equal(message 'schön.日本', 'schön.日本')
  t.equal(message(('x'):rep(5000)), ('x'):rep(120) .. '...')
end)

t.test('saving under the extension of another format is refused', function()
  local one_tensor = cr.ones(2)
  for _, name in ipairs { 'm.pt', 'm.pth', 'm.bin', 'm.ckpt', 'm.PT' } do
    t.raises(function() cr.save(scratch.path(name), { x = one_tensor }) end,
      "save: .*/m%..*: PyTorch's own files are not written: name it .safetensors")
    t.raises(function() cr.save(scratch.path(name), one_tensor) end, "PyTorch's own files are not written")
  end
  t.raises(function() cr.save(scratch.path 'm.npz', one_tensor) end, 'm.npz: one tensor is saved as .npy, named ones as')
  t.raises(function() cr.save(scratch.path 'm.npz', { x = one_tensor }, { a = 'b' }) end, 'm.npz: .npz holds no metadata')
  t.raises(function() cr.save(scratch.path 'm.json', { x = one_tensor }) end, 'm.json: tensors are not written as JSON')
  t.raises(function() cr.save(scratch.path 'm.npy', { x = one_tensor }) end, 'm.npy: one tensor is saved as .npy, named ones as')
  t.raises(function() cr.save(scratch.path 'm.safetensors', one_tensor) end, 'one tensor is saved as .npy, named ones as')
  t.raises(function() cr.save(scratch.path 'm.safetensors', 5) end, 'a tensor or a table of tensors is needed, not 5')
  t.raises(function() cr.save(scratch.path 'm.safetensors', { one_tensor }) end, 'the keys must be names, not 1')
  t.raises(function() cr.save(nil, { x = one_tensor }) end, 'save: path: a file name is needed, not nil')
  for name in require 'lfs'.dir(scratch.folder) do t.ok(not name:find '^m%.', name) end
end)

t.test('saving that fails leaves nothing behind', function()
  local one = { x = cr.ones(2) }
  t.raises(function() cr.save(scratch.path 'no/folder.safetensors', one) end, 'folder.safetensors: cannot be written: No such file')
  t.raises(function() cr.save(scratch.path 'bad.safetensors', { ['a\255'] = one.x }) end, 'is not UTF%-8')
  t.raises(function() cr.save(scratch.path 'bad.safetensors', { __metadata__ = one.x }) end, 'cannot be named __metadata__')
  t.raises(function() cr.save(scratch.path 'bad.safetensors', one, { list = { 1 } }) end, 'must be a JSON object of strings')
  t.raises(function() cr.save('/dev/full/x.safetensors', one) end, 'cannot be written')
  for name in require 'lfs'.dir(scratch.folder) do t.ok(not name:find '^%.[^.]' and name ~= 'bad.safetensors', name) end
end)

t.test('files of the safetensors library are read', function()
  local file = weights.open(cr.root .. '/tests/golden/torch_files/expected.safetensors')
  t.equal(#file.names, 16)
  t.equal(file:info('b.bf16').dtype, 'bf16')
  t.equal(file:get('num_batches_tracked'):item(), 42)
end)

t.done()
