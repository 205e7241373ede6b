--- PyTorch's files: equal values in every format, shared views, and nothing executed.

local cr = require 'cr'
local pickle = require 'tests.support.pickle'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local folder = require 'tests.support.golden'.folder .. 'torch_files/'

local function bytes_of(x)
  local ffi = require 'ffi'
  local dense = x:contiguous()
  local size = ({ f32 = 4, f16 = 2, bf16 = 2, f64 = 8, i16 = 2, i32 = 4, i64 = 8 })[x.dtype] or 1
  return x:numel() > 0 and ffi.string(ffi.cast('const char *', dense:pointer()), x:numel() * size) or ''
end

local function compare(name, prefix)
  local file, expected = weights.open(folder .. name), weights.open(folder .. 'expected.safetensors')
  t.equal(#file.names, #expected.names)
  for _, key in ipairs(expected.names) do
    local a, b = file:get(prefix .. key), expected:get(key)
    t.equal(a.dtype, b.dtype, key)
    t.equal(table.concat(a.shape, ' '), table.concat(b.shape, ' '), key)
    t.ok(bytes_of(a) == bytes_of(b), key .. ' differs')
  end
  return file
end

t.test('a zip archive gives the expected numbers', function()
  local file = compare('zip.pt', 'state_dict.')
  t.equal(file.format, 'torch-zip')
  t.equal(file.metadata.global_step, 12345)
  t.equal(file.names[1], 'state_dict.a.weight')
end)

t.test('pickle protocol 4, too', function() compare('protocol4.pt', '') end)
t.test('and deflated members', function()
  local file = compare('deflated.pt', 'state_dict.')
  t.ok(file:get 'state_dict.d.whole':select(1, 1):pointer() == file:get 'state_dict.d.transposed':t():select(1, 1):pointer(),
    'views share what was unpacked once')
end)
t.test('the legacy stream', function() t.equal(compare('legacy.pth', '').format, 'torch-legacy') end)

t.test('views of one storage stay views, with their strides', function()
  local file = weights.open(folder .. 'zip.pt')
  local whole, slice = file:get 'state_dict.d.whole', file:get 'state_dict.d.slice'
  t.ok(not slice:is_contiguous())
  t.ok(slice:select(1, 1):select(1, 1):pointer() == whole:pointer() + 12, 'the slice begins at element 12')
  t.ok(not file:get 'state_dict.e.channels_last':is_contiguous())
  t.ok(file:get 'state_dict.e.channels_last':permute(1, 3, 4, 2):is_contiguous())
end)

t.test('the tensors outlive the file', function()
  local file = weights.open(folder .. 'zip.pt')
  local x = file:get 'state_dict.a.bias'
  file:close()
  file:close()
  t.equal(x:numel(), 4)
  t.near(x, weights.open(folder .. 'expected.safetensors'):get 'a.bias', 0)
end)

for name, pattern in pairs {
  ['evil_system.pt'] = 'evil_system.pt: the pickle calls posix.system, which is refused: only tensors and plain data are read',
  ['evil_eval.pth'] = 'evil_eval.pth: the pickle calls __builtin__.eval, which is refused',
  ['truncated.pt'] = 'truncated.pt: .* the file is truncated',
  ['short_storage.pt'] = 'short_storage.pt: tensor state_dict.a.weight: its storage claims 108 elements of 4 bytes, but .* holds 216',
} do
  t.test(name .. ' is refused', function()
    t.raises(function() weights.open(folder .. name) end, pattern)
    local there = io.open 'crescent_was_here'
    t.ok(not there, 'nothing was executed')
    if there then there:close() end
  end)
end

t.test("Whisper's file contains its dims and 65 tensors", function()
  local file = weights.open(cr.root .. '/tests/golden/whisper_nano.pt')
  t.equal(file.metadata.dims.n_audio_state, 64)
  t.equal(file.metadata.dims.n_mels, 80)
  t.equal(#file.names, 65)
  t.equal(table.concat(file:info('model_state_dict.encoder.conv1.weight').shape, ' '), '64 80 3')
end)

-- ---- archives made here ----------------------------------------------------------------------

local le = scratch.le
local text, global, int, tensor, dict = pickle.text, pickle.global, pickle.int, pickle.tensor, pickle.dict
local archive = pickle.archive

local twelve = { { 'm/data/0', scratch.floats(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) } }

t.test('an archive with zip64 fields is read', function()
  local file = weights.open(archive(dict(text 'x', tensor('0', 12, 0, { 3, 4 }, { 4, 1 })), twelve, true))
  t.equal(file:get('x'):select(1, 3):select(1, 4):item(), 11)
end)

t.test('an expanded tensor has stride 0', function()
  local file = weights.open(archive(dict(text 'x', tensor('0', 12, 5, { 2, 3 }, { 0, 1 })), twelve))
  t.near(file:get 'x', cr.tensor { { 5, 6, 7 }, { 5, 6, 7 } }, 0)
end)

t.test('names come from nested dictionaries and lists, the rest is metadata', function()
  local x = tensor('0', 12, 0, { 1 }, { 1 })
  local file = weights.open(archive(dict(
    text 'a', '}(' .. text 'b' .. '](' .. x .. text 'plain' .. x .. 'e' .. int(7) .. x .. 'u',
    text 'lr', 'G' .. '\63\224\0\0\0\0\0\0', text 'on', '\136', text 'none', 'N', text 'long', '\138\3\255\255\0'), twelve))
  t.equal(table.concat(file.names, ' '), 'a.b.0 a.b.2 a.7')
  t.equal(file.metadata.a.b[2], 'plain')
  t.equal(file.metadata.lr, 0.5)
  t.equal(file.metadata.on, true)
  t.equal(file.metadata.long, 65535)
end)

local endless = {}
for i = 1, 40 do endless[i] = '](' .. 'h' .. string.char(i - 1) .. 'h' .. string.char(i - 1) .. 'eq' .. string.char(i) end

-- {what, pickle, members, what the sentence says}
local wrong = {
  { 'a storage that is missing', dict(text 'x', tensor('5', 12, 0, { 3 }, { 1 })), twelve, 'tensor x: its storage m/data/5 is missing' },
  { 'a view past its storage', dict(text 'x', tensor('0', 12, 10, { 3 }, { 1 })), twelve, 'tensor x reaches past the end of its storage' },
  { 'a stride past its storage', dict(text 'x', tensor('0', 12, 0, { 3 }, { 6 })), twelve, 'tensor x reaches past the end' },
  { 'a negative stride', dict(text 'x', tensor('0', 12, 11, { 3 }, { -1 })), twelve, 'tensor x has a negative stride' },
  { 'a negative offset', dict(text 'x', tensor('0', 12, -1, { 3 }, { 1 })), twelve, 'tensor x has an invalid offset' },
  { 'a negative size', dict(text 'x', tensor('0', 12, 0, { -3 }, { 1 })), twelve, 'tensor x has a negative size' },
  { 'strides that overflow', dict(text 'x', tensor('0', 12, 0, { 2 ^ 31 - 1, 2 ^ 31 - 1, 2 ^ 31 - 1 },
    { 2 ^ 31 - 1, 2 ^ 31 - 1, 2 ^ 31 - 1 })), twelve, 'more elements than any file' },
  { 'two tensors of one name', dict(text 'a.b', tensor('0', 12, 0, { 1 }, { 1 }), text 'a',
    '}' .. text 'b' .. tensor('0', 12, 1, { 1 }, { 1 }) .. 's'), twelve, 'two tensors are named a.b' },
  { 'an unknown global that is not called', dict(text 'x', global('os', 'getcwd')), {}, 'the pickle calls os.getcwd, which is refused' },
  { 'an unknown global by STACK_GLOBAL', dict(text 'x', text 'subprocess' .. text 'Popen' .. '\147'), {}, 'calls subprocess.Popen' },
  { 'an unknown class by INST', dict(text 'x', '(ibdb\nPdb\n'), {}, 'calls bdb.Pdb' },
  { 'a global with a newline in its name', dict(text 'x', text 'a\nb' .. text 'c' .. '\147'), {}, 'calls a\\nb.c, which' },
  { 'an extension code', dict(text 'x', '\130\1'), {}, 'an opcode that plain data and tensors do not need' },
  { 'a storage that is called', dict(text 'x', global('torch', 'FloatStorage') .. ')R'), {},
    'the arguments of torch.FloatStorage are wrong' },
  { 'a tensor of a string', dict(text 'x', global('torch._utils', '_rebuild_tensor_v2') .. '(' .. text 's' .. int(0) .. '))tR'), {},
    'the arguments of torch._utils._rebuild_tensor_v2 are wrong' },
  { 'a call of a number', dict(text 'x', int(1) .. ')R'), {}, 'a value that is not a function is called' },
  { 'a persistent id of another kind', dict(text 'x', text 'storage' .. 'Q'), {}, 'a persistent id is not a storage' },
  { 'a list that contains itself', '\128\2]q\0h\0a.', {}, 'nested too deeply or too large' },
  { 'lists that double forty times', '\128\2]q\0' .. table.concat(endless) .. '.', {}, 'nested too deeply or too large' },
  { 'a memo of gigabytes', '\128\2Nr' .. le(2 ^ 31, 4) .. '.', {}, 'an invalid memo number' },
  { 'a string of gigabytes', '\128\2X' .. le(2 ^ 31, 4) .. 'abc.', {}, 'it is truncated' },
  { 'a long of exabytes', '\128\2\142' .. ('\255'):rep(8) .. '.', {}, 'it is truncated' },
  { 'a stack that runs dry', '\128\2.', {}, 'a value is missing' },
  { 'items without a mark', '\128\2}u.', {}, 'a mark is missing' },
  { 'a key without a value', '\128\2}(Nu.', {}, 'items are added to a value that takes none' },
  { 'a tuple of marks', '\128\2((\135.', {}, 'a value is missing' },
  { 'no end', '\128\2N', {}, 'it is truncated' },
  { 'protocol 9', '\128\9N.', {}, 'its protocol is unknown' },
}
for _, case in ipairs(wrong) do
  t.test(case[1] .. ' is refused', function()
    local path = archive(case[2], case[3])
    t.raises(function() weights.open(path) end, 'made%.pt: .*' .. case[4])
  end)
end

t.test('an archive of another program, and a big-endian one, are refused', function()
  local path = scratch.write('other.pt', scratch.zip { { 'word/document.xml', '<x/>' } })
  t.raises(function() weights.open(path) end, 'not one of torch.save')
  path = scratch.write('big.pt', scratch.zip { { 'm/data.pkl', '\128\2}.' }, { 'm/byteorder', 'big' } })
  t.raises(function() weights.open(path) end, 'big%-endian')
  path = scratch.write('twice.pt', scratch.zip { { 'm/data.pkl', '\128\2}.' }, { 'm/data.pkl', '\128\2}.' } })
  t.raises(function() weights.open(path) end, 'two members have the same name')
end)

t.test('a deflated member that is damaged is refused', function()
  local bytes = scratch.read(folder .. 'deflated.pt')
  local at = bytes:find('zip/data/0', 1, true) + 10
  local file = weights.open(scratch.write('damaged.pt', bytes:sub(1, at + 20) .. '\0\0\0\0' .. bytes:sub(at + 25)))
  t.raises(function() file:get 'state_dict.a.weight' end, 'damaged.pt: a compressed member')
end)

t.done()
