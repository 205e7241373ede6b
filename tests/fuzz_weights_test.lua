--- Damaged weights files: every truncation of small ones, and thousands of random changes. Each must open and return
--- its tensors, or be refused with one line; it must never crash.

local cr = require 'cr'
local onnx = require 'tests.support.onnx'
local pickle = require 'tests.support.pickle'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'

local CHANGES = tonumber(os.getenv 'CR_FUZZ') or 1500
local folder = cr.root .. '/tests/golden/torch_files/'
local path = scratch.path 'fuzzed'

-- One file of each format: a name in torch_files, or bytes made here.
local files = {}
for _, name in ipairs { 'zip.pt', 'protocol4.pt', 'deflated.pt', 'legacy.pth', 'expected.safetensors', 'evil_system.pt' } do
  files[#files + 1] = { name, scratch.read(folder .. name) }
end
cr.save(scratch.path 'x.npy', cr.tensor { { 1, 2 }, { 3, 4 } })
files[#files + 1] = { 'x.npy', scratch.read(scratch.path 'x.npy') }

cr.save(scratch.path 'x.npz', { a = cr.tensor { 1, 2 }, b = cr.ones(3, 1):to 'u8' })
files[#files + 1] = { 'x.npz', scratch.read(scratch.path 'x.npz') }
files[#files + 1] = { 'packed.npz',
  scratch.zip { { 'a.npy', scratch.read(scratch.path 'x.npy'), deflated = true }, { 'b.npy', scratch.read(scratch.path 'x.npy') } } }

local le = scratch.le
local function c_string(s) return le(#s + 1, 2) .. s .. '\0' end
files[#files + 1] = {
  'model.bin', le(6, 4) .. c_string 'WhisperSpec' .. le(3, 4) .. le(2, 4) ..
  c_string 'encoder/a' .. '\2' .. le(2, 4) .. le(1, 4) .. '\0' .. le(8, 4) .. scratch.floats(1, 2) ..
  c_string 'b' .. '\0' .. '\1' .. le(1, 4) .. '\7' .. le(1, 4) .. c_string 'c' .. c_string 'b',
}

-- Decoded elements, the negative bit, a subclass, a sparse tensor.
local text, global, tuple = pickle.text, pickle.global, pickle.tuple
local v2, v3 = global('torch._utils', '_rebuild_tensor_v2'), global('torch._utils', '_rebuild_tensor_v3')
local plain = pickle.arguments(pickle.storage('0', 2), 0, { 2 }, { 1 }, '}' .. text 'neg' .. '\136s')
files[#files + 1] = {
  'odd.pt', scratch.read(pickle.archive(pickle.dict(text 'neg', v2 .. plain .. 'R',
    text 'f8', v3 .. pickle.arguments(pickle.storage('0', 8, 'torch.storage.UntypedStorage'), 1, { 2, 3 }, { 3, 1 },
      global('torch', 'float8_e4m3fn')) .. 'R',
    text 'own', global('torch._tensor', '_rebuild_from_type_v2') .. tuple(v2, global('__main__', 'My'), plain, '}') .. 'R',
    text 'sparse', global('torch._utils', '_rebuild_sparse_tensor') .. tuple(text 'coo') .. 'R'),
    { { 'm/data/0', scratch.floats(1, 2), deflated = true } })),
}
files[#files + 1] = {
  'big.npy', '\147NUMPY\1\0\64\0' .. "{'descr': '>u2', 'fortran_order': True, 'shape': (2, 3), }     \n" .. ('\1\2'):rep(6),
}

files[#files + 1] = {
  'model.onnx', onnx.model {
    tensors = { { { 2, 1, 1, 1 }, { 1, 2 }, name = 'w' }, { { 2 }, { -1, 3 }, name = 'i', type = onnx.INT64, typed = true },
      { {}, { 0.5 }, name = 'f', typed = true } },
    inputs = { { 'x', { 1, 1, 'H', 4 } } }, outputs = { { 'y' } },
    nodes = { { 'Conv', { 'x', 'w' }, { 'c' }, { kernel_shape = { 1, 1 }, auto_pad = 'VALID' } },
      { 'Constant', {}, { 'k' }, { value = { tensor = { { 1 }, { 7 } } } } }, { 'Mul', { 'c', 'k' }, { 'y' } } },
  },
}

local function write(bytes)
  local handle = assert(io.open(path, 'wb'))
  handle:write(bytes)
  handle:close()
end

-- Reads everything in the file; returns a sentence if it was refused.
local function try()
  local ok, file = pcall(cr.weights.open, path)
  if not ok then return file end
  local refused
  cr.scope(function()
    local _ = file.metadata
    for _, name in ipairs(file.names) do
      local fine, x = pcall(file.get, file, name)
      if not fine then
        refused = x
      elseif x:numel() > 0 and x:numel() < 1e5 then
        x:to('f64'):sum()
      end
      collectgarbage 'step'
    end
  end)
  file:close()
  return refused
end

local function acceptable(sentence)
  return sentence == nil or
      type(sentence) == 'string' and sentence:find('fuzzed: ', 1, true) and not sentence:find '\n' and #sentence < 900
end

for _, item in ipairs(files) do
  local name, bytes = item[1], item[2]
  t.test(name .. ' cut at every length', function()
    local bad, whole
    for n = 0, #bytes - 1 do
      write(bytes:sub(1, n))
      local sentence = try()
      if not acceptable(sentence) then bad = sentence end
      if not sentence then whole = n end
    end
    t.ok(not bad, tostring(bad))
    t.ok(not whole, ('a file cut at byte %s was taken for whole'):format(tostring(whole)))
  end)

  t.test(name .. ' with random changes', function()
    math.randomseed(1247)
    local bad, refused
    for _ = 1, CHANGES do
      local changed, times = bytes, math.random(1, 4)
      for _ = 1, times do
        local at = math.random(1, #bytes)
        local kind = math.random(1, 4)
        local byte = kind == 1 and 255 or kind == 2 and 0 or math.random(0, 255)
        changed = changed:sub(1, at - 1) .. string.char(byte) .. changed:sub(at + 1)
      end
      write(changed)
      local sentence = try()
      if not acceptable(sentence) then bad = sentence end
      if sentence then refused = true end
    end
    t.ok(not bad, tostring(bad))
    t.ok(refused, 'no change was ever noticed')
  end)
end

t.test('random bytes after every kind of header', function()
  math.randomseed(7)
  local bad
  local heads = { 'PK\3\4', '\147NUMPY\1\0\80\0', '\128\2\138\10', le(64, 8) .. '{"', '\8\8\58\90', le(6, 4) .. c_string 'XSpec', '' }
  for _ = 1, CHANGES do
    local parts = { heads[math.random(1, #heads)] }
    for i = 2, math.random(2, 120) do parts[i] = string.char(math.random(0, 255)) end
    write(table.concat(parts))
    local sentence = try()
    if not acceptable(sentence) then bad = sentence end
  end
  t.ok(not bad, tostring(bad))
end)

t.done()
