--- Unusual PyTorch tensors: those that are read nevertheless, those that are listed and refused when read; and
--- archives with trailing data.

local cr = require 'cr'
local pickle = require 'tests.support.pickle'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local text, global, int, tuple = pickle.text, pickle.global, pickle.int, pickle.tuple
local storage, arguments, tensor = pickle.storage, pickle.arguments, pickle.tensor

local numbers = { { 'm/data/0', scratch.floats(0, 1, 2, 3) }, { 'm/data/1', '\56\192\127\1' } }

--- A file in which `value` is x, besides a plain tensor y.
local function open(value)
  return weights.open(pickle.archive(pickle.dict(text 'x', value, text 'y', tensor('0', 4, 0, { 4 }, { 1 })), numbers))
end

local function metadata(key) return '}' .. text(key) .. '\136s' end
local rebuild, rebuild3 = global('torch._utils', '_rebuild_tensor_v2'), global('torch._utils', '_rebuild_tensor_v3')

t.test('a tensor with the negative bit has the opposite sign: torch.tensor([0+1j, 2+3j]).conj().imag', function()
  local file = open(rebuild .. arguments(storage('0', 4), 1, { 2 }, { 2 }, metadata 'neg') .. 'R')
  t.near(file:get 'x', cr.tensor { -1, -3 }, 0)
  t.near(file:get 'y', cr.tensor { 0, 1, 2, 3 }, 0, 'another view of the storage has its own')
  file = open(rebuild .. arguments(storage('0', 4), 1, { 2 }, { 2 }, metadata 'conj') .. 'R')
  t.near(file:get 'x', cr.tensor { 1, 3 }, 0)
  file = open(rebuild3 .. arguments(storage('1', 4, 'torch.storage.UntypedStorage'), 1, { 1 }, { 1 }, global('torch', 'int8'),
    metadata 'neg') .. 'R')
  t.equal(file:get('x'):item(), 64)
end)

t.test('8-bit floats and unsigned integers are read', function()
  local function untyped(dtype, shape, stride, offset)
    return open(rebuild3 .. arguments(storage('1', 4, 'torch.storage.UntypedStorage'), offset or 0, shape, stride,
      global('torch', dtype)) .. 'R'):get 'x'
  end
  local x = untyped('float8_e4m3fn', { 2, 2 }, { 1, 2 })
  t.equal(x.dtype, 'f16')
  t.equal(x:select(1, 1):select(1, 1):item(), 1)
  t.equal(x:select(1, 2):select(1, 1):item(), -2)
  local nan = x:select(1, 1):select(1, 2):item()
  t.ok(nan ~= nan)
  t.equal(x:select(1, 2):select(1, 2):item(), 2 ^ -9)
  t.near(untyped('float8_e5m2', { 2 }, { 1 }):to 'f32', cr.tensor { 0.5, -2 }, 0)
  t.near(untyped('float8_e5m2', { 1 }, { 1 }, 3):to 'f32', cr.tensor { 2 ^ -16 }, 0)
  t.near(untyped('uint16', { 2 }, { 1 }), cr.tensor({ 0xc038, 0x017f }, { dtype = 'i32' }), 0)
  t.equal(untyped('uint32', {}, {}):item(), 0x017fc038)
end)

t.test('buffers and tensors with attributes are tensors', function()
  local parameter = 'torch.nn.parameter'
  for _, class in ipairs { global('torch', 'Tensor'), global(parameter, 'Parameter'), global(parameter, 'Buffer') } do
    local file = open(global('torch._tensor', '_rebuild_from_type_v2') ..
      tuple(rebuild, class, arguments(storage('0', 4), 0, { 4 }, { 1 }), '}' .. text 'persistent' .. '\136s') .. 'R')
    t.near(file:get 'x', file:get 'y', 0)
  end
end)

local plain = rebuild .. arguments(storage('0', 4), 0, { 4 }, { 1 }) .. 'R'
-- {what, the value, what the sentence says}
local refused = {
  { 'a sparse tensor', global('torch._utils', '_rebuild_sparse_tensor') ..
    tuple(global('torch.serialization', '_get_layout') .. tuple(text 'torch.sparse_coo') .. 'R',
      tuple(plain, plain, global('torch', 'Size') .. tuple(tuple(int(4))) .. 'R', '\137')) .. 'R', 'is sparse' },
  { 'a quantized tensor', global('torch._utils', '_rebuild_qtensor') ..
    tuple(storage('1', 4, 'QInt8Storage'), int(0), tuple(int(4)), tuple(int(1)),
      tuple(global('torch', 'per_tensor_affine'), 'G\63\240\0\0\0\0\0\0', int(0)), '\137',
      global('collections', 'OrderedDict') .. ')R') .. 'R', 'is quantized' },
  { 'a tensor of a class of its own', global('torch._tensor', '_rebuild_from_type_v2') ..
    tuple(rebuild, global('__main__', 'My'), arguments(storage('0', 4), 0, { 4 }, { 1 }), '}') .. 'R', 'is of the class __main__.My' },
  { 'a tensor around another', global('torch._utils', '_rebuild_wrapper_subclass') ..
    tuple(global('torchao.dtypes', 'AffineQuantizedTensor'), global('torch', 'float32')) .. 'R',
    'is of the class torchao.dtypes.AffineQuantizedTensor' },
  { 'a tensor without numbers', global('torch._utils', '_rebuild_meta_tensor_no_storage') ..
    tuple(global('torch', 'float32'), tuple(int(2)), tuple(int(1)), '\137') .. 'R', 'was saved from the meta device' },
  { 'a nested tensor', global('torch._utils', '_rebuild_nested_tensor') .. tuple(plain, plain, plain, plain) .. 'R', 'is nested' },
  { 'complex numbers', rebuild .. arguments(storage('0', 2, 'ComplexFloatStorage'), 0, { 2 }, { 1 }) .. 'R', 'has dtype complex64' },
  { 'nine dimensions', tensor('0', 4, 0, { 1, 1, 1, 1, 1, 1, 1, 1, 4 }, { 4, 4, 4, 4, 4, 4, 4, 4, 1 }), 'has 9 dimensions' },
}
for _, case in ipairs(refused) do
  t.test(case[1] .. ' is refused when it is read', function()
    local file = open(case[2])
    t.equal(table.concat(file.names, ' '), 'x y')
    t.equal(file:info('x').dtype, 'other')
    t.raises(function() file:get 'x' end, 'made.pt: tensor x ' .. case[3])
    t.near(file:get 'y', cr.tensor { 0, 1, 2, 3 }, 0)
    t.raises(function() weights.tree(file) end, 'made.pt: tensor x ' .. case[3])
  end)
end

t.test("a tensor's subclass does not allow any other name", function()
  local class = global('os', 'system')
  local function raises(value) t.raises(function() open(value) end, 'calls os.system, which is refused') end
  local from_type = global('torch._tensor', '_rebuild_from_type_v2')
  raises(from_type .. tuple(class, global('torch', 'Tensor'), tuple(text 'true'), '}') .. 'R')
  raises(from_type .. tuple(class, class, tuple(text 'true'), '}') .. 'R')
  raises(from_type .. tuple(rebuild, global('torch', 'Tensor'), tuple(class), '}') .. 'R')
  raises(class .. tuple(text 'true') .. 'R')
  raises(class .. tuple(text 'true') .. '\129')
  raises('](' .. class .. 'e')
end)

t.test('bytes after an archive are ignored, with one warning', function()
  local bytes = scratch.read(pickle.archive(pickle.dict(text 'y', tensor('0', 4, 0, { 4 }, { 1 })), numbers))
  local zip64 = scratch.read(pickle.archive(pickle.dict(text 'y', tensor('0', 4, 0, { 4 }, { 1 })), numbers, true))
  for i, whole in ipairs { bytes, zip64 } do
    for _, more in ipairs { 'x', ('\0'):rep(100000), 'PK\5\6' } do
      local path = scratch.write(('behind%d.pt'):format(#more + i), whole .. more)
      local text_out, status = scratch.command(('%s weights %s'):format(scratch.program, path))
      t.equal(status, 0, text_out)
      t.equal(text_out:match '^[^\n]*', ('crescent: %s: %d bytes behind the archive are ignored'):format(path, #more))
      t.equal(select(2, text_out:gsub('are ignored', '')), 1)
    end
  end
  local legacy = scratch.write('behind.pth', scratch.read(cr.root .. '/tests/golden/torch_files/legacy.pth') .. 'xyz')
  local out = scratch.command(('%s weights %s'):format(scratch.program, legacy))
  t.ok(out:find('behind.pth: 3 bytes behind the last storage are ignored\n', 1, true), out)
end)

t.done()
