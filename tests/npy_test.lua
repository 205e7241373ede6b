--- NumPy's .npy: round trips, Fortran order, damaged headers.

local cr = require 'cr'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

--- A file of format 1 with any header.
local function npy(header, numbers, version)
  return '\147NUMPY' .. string.char(version or 1, 0) .. scratch.le(#header, (version or 1) == 1 and 2 or 4) .. header .. (numbers or '')
end

t.test('a round trip keeps dtype, shape and numbers', function()
  for _, dtype in ipairs { 'f32', 'f16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64', 'bool' } do
    local x = cr.tensor({ { 0, 1, 1 }, { 0, 0, 1 } }, { dtype = dtype })
    local path = scratch.path(dtype .. '.npy')
    cr.save(path, x)
    t.equal((scratch.read(path):find '\n') % 64, 0, 'the numbers are aligned')
    local y = cr.load(path)
    t.equal(y.dtype, dtype)
    t.near(y:to 'f64', x:to 'f64', 0)
  end
end)

t.test('scalars, empty arrays and views', function()
  local path = scratch.path 'x.npy'
  cr.save(path, cr.tensor(2.5))
  t.equal(cr.load(path):item(), 2.5)
  cr.save(path, cr.empty(0, 3))
  t.equal(table.concat(cr.load(path).shape, ' '), '0 3')
  local turned = cr.tensor { { 1, 2, 3 }, { 4, 5, 6 } }:t()
  cr.save(path, turned)
  t.near(cr.load(path), turned, 0)
end)

t.test('bfloat16 is refused: .npy has no such type', function()
  t.raises(function() cr.save(scratch.path 'b.npy', cr.zeros(2, { dtype = 'bf16' })) end, 'b.npy: .npy has no bf16')
end)

t.test('Fortran order becomes strides', function()
  local path = scratch.write('f.npy',
    npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", scratch.floats(1, 4, 2, 5, 3, 6)))
  local x = cr.load(path)
  t.near(x, cr.tensor { { 1, 2, 3 }, { 4, 5, 6 } }, 0)
  t.ok(not x:is_contiguous())
end)

t.test('versions 2 and 3, other spacing and quotes', function()
  for version = 2, 3 do
    local path = scratch.write('v.npy', npy('{"shape":(2,),"fortran_order":False,"descr":"<f4"}', scratch.floats(1, 2), version))
    t.near(cr.load(path), cr.tensor { 1, 2 }, 0)
  end
end)

local function array(descr, shape, numbers)
  return cr.load(scratch.write('a.npy', npy(("{'descr': '%s', 'fortran_order': False, 'shape': %s, }"):format(descr, shape), numbers)))
end

t.test('big-endian numbers', function()
  t.near(array('>f4', '(2,)', '\63\192\0\0\192\0\0\0'), cr.tensor { 1.5, -2 }, 0)
  t.near(array('>f8', '()', '\63\248\0\0\0\0\0\0'), cr.tensor(1.5, { dtype = 'f64' }), 0)
  t.near(array('>f2', '(1,)', '\62\0'):to 'f32', cr.tensor { 1.5 }, 0)
  t.near(array('>i2', '(2, 1)', '\255\254\1\0'), cr.tensor({ { -2 }, { 256 } }, { dtype = 'i16' }), 0)
  t.equal(array('>i4', '()', '\255\255\255\253'):item(), -3)
  t.equal(array('>i8', '()', '\0\0\1\0\0\0\0\0'):item(), 2 ^ 40)
  t.equal(array('>u1', '()', '\200'):item(), 200)
end)

t.test('unsigned numbers of 16, 32 and 64 bits', function()
  local x = array('<u2', '(2,)', '\255\255\0\1')
  t.equal(x.dtype, 'i32')
  t.near(x, cr.tensor({ 65535, 256 }, { dtype = 'i32' }), 0)
  t.equal(array('>u2', '()', '\255\254'):item(), 65534)
  x = array('<u4', '(1,)', '\255\255\255\255')
  t.equal(x.dtype, 'i64')
  t.equal(x:item(), 2 ^ 32 - 1)
  t.equal(array('>u4', '()', '\128\0\0\0'):item(), 2 ^ 31)
  t.equal(array('<u8', '()', scratch.le(2 ^ 50, 8)):item(), 2 ^ 50)
  t.raises(function() array('>u8', '()', '\128\0\0\0\0\0\0\0') end, 'a.npy: tensor array holds numbers above 9223372036854775807')
end)

local good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"
for what, case in pairs {
  ['too few numbers'] = { npy(good, '\0\0\0\0'), 'reaches past the end' },
  ['too many numbers'] = { npy(good, ('\0'):rep(12)), 'needs 8 bytes, but 12 follow' },
  ['a header that claims too much'] = { '\147NUMPY\1\0\255\255' .. good, 'header claims 65535 bytes, but the file holds only' },
  ['a cut magic'] = { '\147NUMPY\1\0', 'its version is unknown' },
  ['version 9'] = { npy(good, ('\0'):rep(8), 9), 'its version is unknown' },
  ['complex numbers'] = { npy((good:gsub('<f4', '<c8')), ('\0'):rep(16)), 'dtype <c8 is not handled' },
  ['an unknown byte order'] = { npy((good:gsub('<f4', '?f4')), ('\0'):rep(8)), 'dtype %?f4 is not handled' },
  ['no dtype'] = { npy((good:gsub('<f4', '')), ('\0'):rep(8)), 'dtype  is not handled' },
  ['records'] = { npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", ('\0'):rep(8)), 'records' },
  ['objects'] = { npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", ('\0'):rep(8)), '|O is not handled' },
  ['a shape of words'] = { npy("{'descr': '<f4', 'fortran_order': False, 'shape': (x,), }", ('\0'):rep(8)), 'header cannot be read' },
  ['a shape that overflows'] = {
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", ''), 'cannot be read' },
  ['sizes whose product overflows'] = {
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000, 2000000000, 2000000000), }", ''), 'more elements than any file' },
  ['a missing key'] = { npy("{'descr': '<f4', 'shape': (2,), }", ('\0'):rep(8)), 'header cannot be read' },
  ['a key twice'] = { npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", ('\0'):rep(8)), 'cannot be read' },
  ['code in the header'] = { npy("__import__('os').system('true')", ''), 'header cannot be read' },
} do
  t.test(what .. ' is refused', function()
    local path = scratch.write('wrong.npy', case[1])
    t.raises(function() weights.open(path) end, 'wrong%.npy: .*' .. case[2])
  end)
end

t.test('an .npz is written and read, compressed ones too', function()
  local path = scratch.path 'arrays.npz'
  local given = { x = cr.randn(3, 5), ['k.l'] = cr.tensor({ -1, 2 }, { dtype = 'i64' }), empty = cr.zeros(0, 3), b = cr.ones(2):to 'bool' }
  cr.save(path, given)
  local read = cr.load(path)
  for name, x in pairs(given) do
    t.equal(read[name].dtype, x.dtype, name)
    t.equal(table.concat(read[name].shape, ' '), table.concat(x.shape, ' '), name)
    t.ok(read[name]:equal(x), name)
  end
  local numbers = {}
  for i = 1, 500 do numbers[i] = i / 4 end
  local header = "{'descr': '<f4', 'fortran_order': False, 'shape': (500,), }"
  header = header .. (' '):rep(117 - #header) .. '\n' -- with the ten bytes before it: 128
  local packed = scratch.write('packed.npz', scratch.zip { { 'a.npy', npy(header, scratch.floats(unpack(numbers))), deflated = true } })
  t.near(cr.load(packed).a, numbers, 0, 'deflated')
  for what, case in pairs {
    ['an array that claims more'] = { { 'a.npy', npy(good, '\0\0\0\0') }, 'reaches past the end' },
    ['no array'] = { { 'a.npy', 'nothing of the kind' }, 'its version is unknown' },
    ['a packed one that claims more'] = { { 'a.npy', npy(good, '\0\0\0\0'), deflated = true }, 'past the end|middle' },
  } do
    local wrong = scratch.write('wrong.npz', scratch.zip { case[1] })
    local ok, message = pcall(function() return cr.load(wrong) end)
    local told = not ok and (message:find(case[2]) or message:find 'past the end' or message:find 'not aligned')
    t.ok(told, what .. ': ' .. tostring(message))
  end
  t.raises(function() cr.save(scratch.path 'h.npz', { x = cr.zeros({ 2 }, { dtype = 'bf16' }) }) end, '.npy has no bf16')
  t.ok(not io.open(scratch.path 'h.npz'), 'nothing is left of it')
end)

t.done()
