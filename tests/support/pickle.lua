--- Pickles and PyTorch archives, composed byte by byte.

local scratch = require 'tests.support.scratch'

local M = {}

local le = scratch.le

--- A string in a pickle.
function M.text(s) return 'X' .. le(#s, 4) .. s end
function M.global(module, name) return 'c' .. module .. '\n' .. name .. '\n' end
function M.int(n) return 'J' .. le(n % 2 ^ 32, 4) end
function M.tuple(...) return '(' .. table.concat { ... } .. 't' end

local text, global, int, tuple = M.text, M.global, M.int, M.tuple

local function ints(list)
  local parts = {}
  for i, n in ipairs(list) do parts[i] = int(n) end
  return tuple(unpack(parts))
end

--- A storage with a key and a number of elements.
function M.storage(key, elements, kind)
  local module, name = (kind or 'FloatStorage'):match '^(.-)%.?([^.]+)$'
  return tuple(text 'storage', global(module == '' and 'torch' or module, name), text(key), text 'cpu', int(elements)) .. 'Q'
end

--- The arguments that rebuild a tensor: those of every version, then further ones.
function M.arguments(storage, offset, shape, stride, ...)
  return tuple(storage, int(offset), ints(shape), ints(stride), '\137', global('collections', 'OrderedDict') .. ')R', ...)
end

--- A tensor over storage `key`.
function M.tensor(key, elements, offset, shape, stride, storage)
  return global('torch._utils', '_rebuild_tensor_v2') ..
    M.arguments(M.storage(key, elements, storage), offset, shape, stride) .. 'R'
end

--- A dictionary of keys and values as a whole pickle.
function M.dict(...) return '\128\2}(' .. table.concat { ... } .. 'u.' end

--- Writes an archive like torch.save; returns its path. members: {name, bytes} beside the pickle.
function M.archive(pickle, members, zip64)
  local list = { { 'm/data.pkl', pickle }, { 'm/byteorder', 'little' } }
  for _, m in ipairs(members or {}) do list[#list + 1] = m end
  return scratch.write('made.pt', scratch.zip(list, zip64))
end

return M
