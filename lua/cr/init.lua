--- Crescent from Lua: `local cr = require 'cr'`.
--
-- This module has what scripts use most. The rest are modules of their own: cr.nn, cr.weights, cr.media,
-- cr.schedulers.*. The event loop and the media library load on first use.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local memory = require 'cr.tensor.memory'
local tensor = require 'cr.tensor'

local C = base.C

--- @class cr
local cr = {
  C = C, check = base.check, root = base.root, is_tensor = tensor.is_tensor, kinds = tensor.kinds, scope = tensor.scope,
  keep = tensor.keep, memory = memory.memory, trim = memory.trim, reset_peak = memory.reset_peak, tagged = memory.tagged,
  version = ffi.string(C.cr_version()),
}
for name, fn in pairs(tensor.functions) do cr[name] = fn end

--- Sets the number of threads of CPU operations (0: the default of the machine), or returns it if n is nil.
--- @param n integer?
--- @return integer threads in force
function cr.threads(n) return n and C.cr_set_threads(n) or C.cr_threads() end

--- Returns whether Ctrl-C was pressed.
function cr.interrupted() return C.cr_interrupted() ~= 0 end

-- Endings of file names that people expect to work, and what to use instead.
local endings = {
  json = 'tensors are not written as JSON: name it .safetensors',
}
for _, ending in ipairs { 'png', 'jpg', 'jpeg' } do
  endings[ending] = "to write a picture use require 'cr.tools.display'.save('x.png', x), or :save x.png at the prompt"
end
for _, ending in ipairs { 'pt', 'pth', 'bin', 'ckpt' } do
  endings[ending] = "PyTorch's own files are not written: name it .safetensors, which PyTorch's users read with safetensors.torch"
end

--- Fails if tensors cannot be saved under a name. One tensor is saved as .npy, a table of named tensors as
--- .safetensors (also without that ending) or as .npz. An open weights file is never overwritten.
--- @param path string
--- @param named boolean? whether a table of named tensors is saved
function cr.check_save(path, named)
  local ending = path:lower():match '%.([^./]*)$' or ''
  local reason = endings[ending]
  if not reason and (ending == 'npy') == (named or false) or not named and ending == 'npz' then
    reason = 'one tensor is saved as .npy, named ones as .safetensors or .npz'
  end
  local weights = package.loaded['cr.weights']
  if type(weights) == 'table' and weights.opened(path) then
    collectgarbage() -- closes files without references
    if weights.opened(path) then
      reason = 'this weights file is open and would be overwritten: close it first, or choose another name'
    end
  end
  if reason then base.fail(('save: %s: %s'):format(path, reason)) end
end

--- Writes a tensor as .npy, or named tensors as .safetensors or .npz.
--- @param path string
--- @param what Tensor|table<string, Tensor>
--- @param metadata table<string, string>? of a safetensors file
function cr.save(path, what, metadata)
  if tensor.is_tensor(what) then
    cr.check_save(path)
    base.check(C.cr_npy_save(path, what.c))
    return
  end
  if type(what) ~= 'table' then
    base.fail(('save: %s: a tensor or a table of tensors is needed, not %s'):format(path, arguments.shown(what)))
  end
  cr.check_save(path, true)
  local names = {}
  for name in pairs(what) do
    if type(name) ~= 'string' then base.fail(('save: %s: the keys must be names, not %s'):format(path, arguments.shown(name))) end
    names[#names + 1] = name
  end
  table.sort(names)
  local c_names = ffi.new('const char *[?]', #names + 1)
  local c_tensors = ffi.new('const cr_tensor *[?]', #names + 1)
  local json = metadata and require 'cr.json'.encode(metadata) or nil
  tensor.scope(function()
    local kept = {} -- keeps tensors alive, since C holds only their addresses
    for i, name in ipairs(names) do
      local t = tensor.want_tensor('save: ' .. name, what[name]):to 'cpu':contiguous()
      kept[i] = t
      c_names[i - 1], c_tensors[i - 1] = name, kept[i].c
    end
    if path:lower():find '%.npz$' then
      if metadata then base.fail(('save: %s: .npz holds no metadata: name it .safetensors'):format(path)) end
      base.check(C.cr_npz_save(path, #names, c_names, c_tensors))
      return
    end
    base.check(C.cr_safetensors_save(path, #names, c_names, c_tensors, json))
  end)
end

--- Reads a weights file of any format. Returns a tensor for .npy, else a table of tensors by name.
--- @param path string
function cr.load(path)
  local file = require 'cr.weights'.open(path)
  if file.format == 'npy' then return file:get(file.names[1]) end
  local all = {}
  for _, name in ipairs(file.names) do all[name] = file:get(name) end
  return all
end

local file_name = arguments.kind('a file name', arguments.string.test)
arguments.guard('', cr, {
  threads = { arguments.maybe(arguments.natural) }, interrupted = {},
  check_save = { file_name, arguments.maybe(arguments.boolean) },
  save = { file_name, arguments.any, arguments.maybe(arguments.table) }, load = { file_name },
})

-- Modules that are loaded when they are first accessed.
local lazy = {
  nn = 'cr.nn', weights = 'cr.weights', media = 'cr.media', cuda = 'cr.cuda', graph = 'cr.graph',
  onnx = 'cr.graphs.onnx', kernel = 'cr.kernel', fuse = 'cr.kernel',
}
for _, name in ipairs { 'go', 'await', 'sleep', 'all', 'channel', 'run', 'yield' } do lazy[name] = 'cr.loop' end

setmetatable(cr, {
  __names = lazy, -- for completion at the prompt
  __index = function(self, key)
    local module = lazy[key]
    if not module then
      local absent, known = require 'cr.tensor.absent', {}
      local instead = absent.functions[key] or tensor.methods[key] and ('it is a method: x:%s(...)'):format(key) or absent.methods[key]
      for name in pairs(self) do known[#known + 1] = name end
      for name in pairs(lazy) do known[#known + 1] = name end
      absent.refuse('cr', key, instead, known)
    end
    local value = require(module)
    if module == 'cr.loop' then value = value[key] end
    if module == 'cr.graph' or module == 'cr.kernel' then value = key == 'fuse' and value.fuse or value.new end
    rawset(self, key, value)
    return value
  end,
})

return cr
