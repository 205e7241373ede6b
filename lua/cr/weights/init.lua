--- Reads weights files: safetensors, PyTorch, .npy, .npz, CTranslate2, ONNX.
--
-- A file is memory-mapped, so opening one of many gigabytes takes milliseconds, and a tensor is a view of the file
-- where the format allows it. Nothing in a file is executed.

local ffi = require 'ffi'
local arena = require 'cr.weights.arena'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local quantized = require 'cr.weights.quantized'
local tensor = require 'cr.tensor'

local C, fail = base.C, base.fail

local M = {}

-- ---- files ---------------------------------------------------------------------------------

--- @class WeightsFile
--- @field path string
--- @field names string[] in the order of the file
--- @field format string 'safetensors', 'torch-zip', 'torch-legacy', 'npy', 'npz', 'ctranslate2' or 'onnx'
--- @field warning string? what was ignored when it was opened: 'FILE: 12 bytes behind the archive are ignored'
--- @field metadata table everything but tensors: safetensors' __metadata__, a pickle's numbers and strings, ONNX's graph
local File = {}

local handle_type = ffi.typeof 'cr_weights *[1]'

local function handle_of(file)
  local handle = rawget(file, 'handle')
  if not handle then fail(file.path .. ': the file is closed') end
  return handle
end

-- Fields that are computed on first use: metadata needs a JSON library, names a walk over the directory.
local lazy = {
  names = function(file)
    local handle = handle_of(file)
    local names, entry = {}, ffi.new 'cr_weights_entry'
    for i = 0, tonumber(C.cr_weights_count(handle)) - 1 do
      base.check(C.cr_weights_entry_at(handle, i, entry))
      names[i + 1] = ffi.string(entry.name)
    end
    return names
  end,
  metadata = function(file)
    local json = require 'cjson'.new()
    json.decode_max_depth(200)
    local ok, value = pcall(json.decode, ffi.string(C.cr_weights_metadata(handle_of(file))))
    return ok and value or {}
  end,
}

local file_meta = {
  __index = function(file, key)
    if File[key] then return File[key] end
    local make = lazy[key]
    if not make then return nil end
    local value = make(file)
    rawset(file, key, value)
    return value
  end,
}

--- Escapes a name from a file for one line of a message.
M.printable = base.printable

local noted = {}

--- Prints on stderr what was ignored in a file, once in a process, since a file may be opened several times.
--- @param text string
function M.note(text)
  if noted[text] then return end
  noted[text] = true
  io.stderr:write('crescent: ', text, '\n')
end

local open_files = setmetatable({}, { __mode = 'k' })

--- Returns the open file with a path, if there is one.
--- @param path string
--- @return WeightsFile?
function M.opened(path)
  for file in pairs(open_files) do
    if rawget(file, 'handle') and require 'cr.files'.same(path, file.path) then return file end
  end
end

--- Opens a weights file of any supported format, which is detected from its contents, not its name. An index of
--- shards ('x.safetensors.index.json') opens all shards as one file.
--- @param path string
--- @return WeightsFile
function M.open(path)
  if path:find '%.index[%w.]*%.json$' then return require 'cr.weights.shards'.open(path, M.open) end
  local out = handle_type()
  if C.cr_weights_open(out, path) < 0 then base.raise() end
  local handle = ffi.gc(out[0], C.cr_weights_close)
  local file = setmetatable({ path = path, handle = handle, format = ffi.string(C.cr_weights_format(handle)) }, file_meta)
  open_files[file] = true
  local warning = C.cr_weights_warning(handle)
  if warning ~= nil then
    file.warning = ('%s: %s are ignored'):format(path, ffi.string(warning))
    M.note(file.warning)
  end
  return file
end

local function index_of(file, name)
  local index = C.cr_weights_find(handle_of(file), name)
  if index < 0 then base.raise() end
  return index
end

--- Returns whether the file has a tensor with this name.
--- @param name string
--- @return boolean
function File:has(name)
  return C.cr_weights_find(handle_of(self), name) >= 0
end

--- Describes a tensor without reading its numbers.
--- @param name string
--- @return table {dtype = 'f32', shape = integer[], bytes = integer in the file}; for a tensor that cannot be read,
---   the dtype is 'other', the shape may be incomplete, and the field `trouble` says why: 'is sparse, which is not
---   handled'
function File:info(name)
  local entry = ffi.new 'cr_weights_entry'
  base.check(C.cr_weights_entry_at(handle_of(self), index_of(self, name), entry))
  local shape = {}
  for i = 1, entry.rank do shape[i] = entry.shape[i - 1] end
  return { dtype = base.dtypes[entry.dtype] or 'other', shape = shape, bytes = tonumber(entry.bytes),
    trouble = entry.trouble ~= nil and ffi.string(entry.trouble) or nil }
end

--- Returns a tensor over the mapped file. Copy it before writing to it.
--- @param name string
--- @return Tensor
function File:get(name)
  local index = index_of(self, name)
  local out = tensor.new()
  if C.cr_weights_tensor(handle_of(self), index, out.c) < 0 then base.raise() end
  return out
end

--- Closes the file now. Tensors that were taken from it stay valid. Calling it twice is allowed.
function File:close()
  local handle = rawget(self, 'handle')
  if not handle then return end
  self.handle = nil
  C.cr_weights_close(ffi.gc(handle, nil))
end

--- Returns a sentence if a weights file was changed while it, or a tensor over it, was in use, because the results
--- are then unreliable. Call it at the end of a run.
--- @return string?
function M.changed()
  local path = C.cr_weights_changed()
  if path == nil then return nil end
  return ffi.string(path) .. ': the file was changed while it was in use, so the result cannot be trusted: run it again'
end

--- Returns the SHA-256 of a file as 64 hexadecimal digits.
--- @param path string
--- @return string
function M.sha256(path)
  local hex = ffi.new 'char[65]'
  if C.cr_sha256_file(path, hex) < 0 then base.raise() end
  return ffi.string(hex, 64)
end

-- ---- trees ---------------------------------------------------------------------------------

-- The permutation that moves the input channels of a convolution's weight [O I ...] to the end, by the number of dimensions.
local channels_last = { [3] = { 1, 3, 2 }, [4] = { 1, 3, 4, 2 }, [5] = { 1, 3, 4, 5, 2 } }

local function turn_of(name, rank) return name:find 'weight$' and channels_last[rank] or nil end

local floats = { f32 = true, f16 = true, bf16 = true, f64 = true }

-- Returns the dtype of a tensor in the tree: that of the network for floats, except those that are kept exact.
local function dtype_of(name, dtype, options)
  if not floats[dtype] or options.exact and options.exact(name) then return dtype end
  return options.dtype or 'f32'
end

--- Prepares one tensor for a model: floats in `dtype`, convolution weights channels-last, contiguous.
local function prepared(file, full, name, options)
  local t = tensor.scope(function()
    local x = file:get(full)
    local expand = options.expand and options.expand[full]
    if expand then x = expand(x) end
    local turn = turn_of(name, x:dim())
    if turn then x = x:permute(unpack(turn)) end
    return x:to(dtype_of(name, x.dtype, options)):contiguous()
  end)
  return tensor.keep(t)
end

--- The same for all tensors at once, for a card.
local function load_to_card(file, names, options, visit)
  local items = {}
  for _, n in ipairs(names) do
    local info = file:info(n.full)
    if info.dtype == 'other' then file:get(n.full) end -- raises the reason
    local expand = options.expand and options.expand[n.full]
    local dtype = dtype_of(n.name, expand and 'f32' or info.dtype, options)
    local turn = turn_of(n.name, #info.shape)
    items[#items + 1] = { full = n.full, name = n.name, info = info, dtype = dtype, turn = turn, make = expand and function(x)
      x = expand(x)
      return turn and x:permute(unpack(turn)) or x
    end }
    for _, made in ipairs(floats[info.dtype] and options.made or {}) do -- codes have no derived tensors
      if n.name:sub(-#made.of) == made.of then
        items[#items + 1] = { full = n.full, name = n.name:sub(1, -#made.of - 1) .. made.name, dtype = dtype,
          info = { dtype = info.dtype, shape = made.shape(info.shape) }, make = made.make }
      end
    end
  end
  arena.load(file, items, options, visit)
end

local function key_of(part) return part:find '^%d+$' and tonumber(part) or part end

local function new_node(path) return setmetatable({}, { __path = path }) end

--- Stores a value in nested nodes by its dotted name.
local function place(file, root, name, value)
  local node, path = root, nil
  local rest = name
  while true do
    local part, after = rest:match '^([^.]*)%.(.*)$'
    if not part then break end
    path = path and path .. '.' .. part or part
    local key = key_of(part)
    local child = rawget(node, key)
    if child == nil then
      child = new_node(path)
      node[key] = child
    elseif tensor.is_tensor(child) then
      fail(('%s: %s is a tensor, so %s cannot be inside it'):format(file.path, M.printable(path), M.printable(name)))
    end
    node, rest = child, after
  end
  local key = key_of(rest)
  if rawget(node, key) ~= nil then fail(('%s: %s occurs twice'):format(file.path, M.printable(name))) end
  node[key] = value
end

--- Returns all tensors as nested tables by their dotted names, with the checkpoint's own numbers:
--- w.down_blocks[0].resnets[0].norm1.weight. Convolution weights (names that end in `weight`, three to five
--- dimensions) are converted to channels-last: [O I kh kw] becomes [O kh kw I]. Every node knows its path
--- (weights.path), which errors of nn.* show. The tensors belong to no scope. On a card they share one allocation,
--- which is freed with the last of them.
--- @param file WeightsFile|string
--- @param options table? {prefix = take only names with this prefix, and remove it; strip = a prefix to remove from
---   names that have it (DataParallel's 'module.'); dtype = 'f32' (of floats); device = 'cpu'; exact = function(name)
---   -> whether a tensor keeps the file's dtype; expand = functions by names in the file that dequantize codes;
---   rename = function(name) -> name, or nil to leave the tensor out; tag = the tag in cr.memory's report for a card;
---   adjacent = lists of endings of names, { { 'to_q.weight', 'to_k.weight' } }: tensors with the same stem are
---   adjacent in memory, for weights.joined; apart = function(name, shape) -> whether a tensor gets a separate
---   allocation, which can be freed before the others; made = a list of derived tensors: {of = ending of a name,
---   name = the ending that replaces it, shape = function(shape in the file) -> shape, make = function(tensor of the
---   file) -> tensor}}
--- @return table
function M.tree(file, options)
  options = options or {}
  local own = type(file) == 'string'
  if own then file = M.open(file) end
  local prefix, strip = options.prefix or '', options.strip or ''
  local names = {}
  for _, full in ipairs(file.names) do
    if full:sub(1, #prefix) == prefix then
      local name = full:sub(#prefix + 1)
      if strip ~= '' and name:sub(1, #strip) == strip then name = name:sub(#strip + 1) end
      if options.rename then name = options.rename(name) end
      if name then names[#names + 1] = { full = full, name = name } end
    end
  end
  local root = new_node(nil)
  if options.device and options.device ~= 'cpu' then
    load_to_card(file, names, options, function(name, t) place(file, root, name, t) end)
  else
    for _, n in ipairs(names) do place(file, root, n.name, prepared(file, n.full, n.name, options)) end
  end
  if own then file:close() end
  return root
end

--- Returns one tensor over several that are adjacent in memory (the option `adjacent` of tree), joined along the
--- first dimension, or nil if they are not.
M.joined = arena.joined

--- Joins several layers with the same input to one layer, whose result concatenates theirs. Nothing is freed.
--- Quantized layers (cr.quant) must share the format, `input`, `smooth` and `down`.
--- @param parts table[] {weight = [N K], bias = [N] or nil, ...} each
--- @return table {weight = [sum of N K], ...}
function M.joined_layers(parts)
  local first = parts[1]
  local whole = { input = rawget(first, 'input'), smooth = rawget(first, 'smooth'), down = rawget(first, 'down') }
  for _, name in ipairs { 'weight', 'scale', 'up', 'bias' } do
    local list = {}
    for i, part in ipairs(parts) do list[i] = rawget(part, name) end
    if #list == #parts then whole[name] = tensor.keep(M.joined(list) or tensor.cat(list, 1)) end
  end
  return whole
end

--- Copies a tree to a device. A tensor that occurs twice is copied once. Copies between cards do not synchronize.
--- @param tree table of tensors, tables and other values
--- @param device string
--- @return table
function M.on(tree, device)
  local copies = {}
  local function copied(value)
    local known = copies[value]
    if known ~= nil then return known end
    if tensor.is_tensor(value) then
      local there = value:to(device)
      known = tensor.keep(rawequal(there, value) and value:clone() or there)
      copies[value] = known
    elseif type(value) == 'table' then
      known = setmetatable({}, getmetatable(value))
      copies[value] = known
      for key, part in next, value do rawset(known, key, copied(part)) end
    else
      return value
    end
    return known
  end
  return copied(tree)
end

--- Frees the tensors of a tree, or of any nested table. Calling it twice is allowed.
--- @param tree table
function M.free(tree)
  for _, value in pairs(tree) do
    if tensor.is_tensor(value) then value:free() elseif type(value) == 'table' then M.free(value) end
  end
end

--- Returns the path of a node of a tree in its checkpoint: 'down_blocks.0.resnets.0.conv1'.
--- @param node table
--- @return string|false|nil
function M.path(node)
  local meta = type(node) == 'table' and getmetatable(node)
  return meta and meta.__path
end

-- ---- checking ------------------------------------------------------------------------------

local function shape_text(shape) return '[' .. table.concat(shape, ' ') .. ']' end

local function same_shape(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

local function complain(file, first, count)
  if not first then return end
  fail(('%s: %s%s'):format(file.path, first, count > 1 and (' (and %d more)'):format(count - 1) or ''))
end

--- Fails unless the file has every expected tensor with its shape. The sentence names the first problem and counts
--- the others of its kind. Unexpected tensors are counted but accepted, as by PyTorch's
--- load_state_dict(strict=False).
---
---     local surplus, first = weights.check(file, { { 'conv_in.weight', { 320, 13, 3, 3 } }, ... })
--- @param file WeightsFile
--- @param expected table[] {name, shape} in order (or {name =, shape =, or_shape = an alternative shape, optional =
---   true: it may be missing}); shapes as in the checkpoint
--- @param options table? {prefix = precedes every expected name; surplus = true: unexpected tensors are an error,
---   too}
--- @return integer surplus number of unexpected tensors
--- @return string? first name of the first of them
function M.check(file, expected, options)
  local prefix = options and options.prefix or ''
  local known = {}
  local missing, missing_count, wrong, wrong_count = nil, 0, nil, 0
  for _, item in ipairs(expected) do
    local name, shape = prefix .. (item.name or item[1]), item.shape or item[2]
    known[name] = true
    if not file:has(name) then
      if not item.optional then
        missing, missing_count = missing or ('tensor %s is missing'):format(name), missing_count + 1
      end
    elseif shape then
      local found = file:info(name).shape
      if not same_shape(found, shape) and not (item.or_shape and same_shape(found, item.or_shape)) then
        wrong = wrong or ('tensor %s has shape %s, expected %s'):format(name, shape_text(found), shape_text(shape))
        wrong_count = wrong_count + 1
      end
    end
  end
  complain(file, missing, missing_count)
  complain(file, wrong, wrong_count)
  local surplus, first = 0, nil
  for _, name in ipairs(file.names) do
    if not known[name] then surplus, first = surplus + 1, first or name end
  end
  if options and options.surplus and first then
    complain(file, ('tensor %s is unexpected: this network has none with that name'):format(M.printable(first)), surplus)
  end
  return surplus, first
end

-- Returns whether a name begins with one of a list of prefixes.
local function begins(name, beginnings)
  for _, beginning in ipairs(beginnings) do
    if name:sub(1, #beginning) == beginning then return true end
  end
  return false
end

--- Returns a network's tensors as a tree after `check`. Other tensors of the file are ignored, as by PyTorch's
--- load_state_dict(strict=False), and counted in one line. Quantized layers of the file stay quantized (cr.quant).
--- @param file WeightsFile
--- @param expected table[] as for `check`
--- @param options table? options of `tree`: {prefix =, dtype =, device =, tag =, adjacent =, apart =, made =}
--- @param beside string[]? prefixes of names in the file that belong to the network but are not needed, and are not
---   counted
--- @return table
function M.known(file, expected, options, beside)
  local known, surplus, first = {}, 0, nil
  local tree_options = { rename = function(name) return known[name] and name or nil end }
  for key, value in pairs(options or {}) do tree_options[key] = value end
  local prefix = tree_options.prefix or ''
  local codes
  expected, codes, tree_options.expand = quantized.expected(file, expected, prefix, fail)
  if next(codes) then
    function tree_options.exact(name) return quantized.is_exact(name, codes) end
  end
  M.check(file, expected, { prefix = prefix })
  for _, item in ipairs(expected) do known[item.name or item[1]] = true end
  for _, name in ipairs(file.names) do
    local ours = name:sub(1, #prefix) == prefix and known[name:sub(#prefix + 1)]
    if not ours and not begins(name, beside or {}) then surplus, first = surplus + 1, first or name end
  end
  if surplus > 0 then
    M.note(('%s: %d tensor%s that this network does not have: ignored (%s%s)'):format(file.path, surplus,
      surplus == 1 and '' or 's', M.printable(first), surplus == 1 and '' or ', ...'))
  end
  for weight in pairs(tree_options.expand) do known[weight:sub(#prefix + 1):gsub('weight$', 'scale')] = nil end
  return M.tree(file, tree_options)
end

local name = arguments.kind("a tensor's name", arguments.string.test)
arguments.methods(File, 'file', { has = { name }, info = { name }, get = { name }, close = {} }, file_meta)

local maybe, text, list = arguments.maybe, arguments.maybe(arguments.string), arguments.maybe(arguments.table)
local callable = maybe(arguments.callable)
local file = arguments.kind('a weights file or its path', function(v)
  return type(v) == 'string' or type(v) == 'table' and type(v.names) == 'table'
end)
local opened = arguments.kind('an open weights file', function(v) return type(v) == 'table' and type(v.names) == 'table' end)
local expected = arguments.list('a list of names and shapes', arguments.table)
local of_tree, of_known = {}, {}
for key, kind in pairs {
  prefix = text, strip = text, dtype = text, device = text, exact = callable, expand = maybe(arguments.table), rename = callable,
  tag = text, adjacent = list, apart = callable, made = list,
} do
  of_tree[key] = kind
  if key ~= 'strip' and key ~= 'rename' and key ~= 'exact' and key ~= 'expand' then of_known[key] = kind end
end
return arguments.guard('weights.', M, {
  joined = { arguments.list('a list of tensors', tensor.kinds.alive, 1) },
  joined_layers = { arguments.list('a list of layers', tensor.kinds.layer, 1) },
  note = { arguments.string }, opened = { arguments.string },
  open = { arguments.kind('a path', arguments.string.test) },
  sha256 = { arguments.string }, changed = {}, path = { arguments.any }, free = { arguments.table },
  on = { arguments.table, arguments.string },
  tree = { file, maybe(arguments.options(of_tree)) },
  known = { opened, expected, maybe(arguments.options(of_known)), maybe(arguments.list('a list of names', arguments.string)) },
  check = { opened, expected, maybe(arguments.options { prefix = text, surplus = maybe(arguments.boolean) }) },
})
