--- Weights files from Lua: safetensors, PyTorch, .npy, .npz, CTranslate2, ONNX.
--
-- A file is mapped, not read: opening one of many gigabytes takes milliseconds, and a tensor taken
-- from it is a view of the file wherever the format allows. Nothing in a file is executed.

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
--- @field warning string? what was passed over when it was opened: 'FILE: 12 bytes behind the archive are passed over'
--- @field metadata table what is not a tensor: safetensors' __metadata__, a pickle's numbers and strings, ONNX's graph
local File = {}

local handle_type = ffi.typeof 'cr_weights *[1]'

local function handle_of(file)
  local handle = rawget(file, 'handle')
  if not handle then fail(file.path .. ': the file is closed') end
  return handle
end

-- Made when first asked for: metadata needs a JSON library, names a walk over the directory.
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

--- A name from a file, fit for one line of a message.
M.printable = base.printable

local noted = {}

--- Says on stderr what was passed over in a file: once a process, since a file may be opened several times.
--- @param text string
function M.note(text)
  if noted[text] then return end
  noted[text] = true
  io.stderr:write('crescent: ', text, '\n')
end

local open_files = setmetatable({}, { __mode = 'k' })

--- The open file that a name leads to, if there is one.
--- @param path string
--- @return WeightsFile?
function M.opened(path)
  for file in pairs(open_files) do
    if rawget(file, 'handle') and require 'cr.files'.same(path, file.path) then return file end
  end
end

--- Opens a weights file of any readable format; the contents decide, not the name. An index of shards
--- ('x.safetensors.index.json') opens them all as one file.
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
    file.warning = ('%s: %s are passed over'):format(path, ffi.string(warning))
    M.note(file.warning)
  end
  return file
end

local function index_of(file, name)
  local index = C.cr_weights_find(handle_of(file), name)
  if index < 0 then base.raise() end
  return index
end

--- Whether the file has a tensor of this name.
--- @param name string
--- @return boolean
function File:has(name)
  return C.cr_weights_find(handle_of(self), name) >= 0
end

--- What the file says about a tensor, without touching its numbers.
--- @param name string
--- @return table {dtype = 'f32', shape = integer[], bytes = integer in the file}; of a tensor that cannot be had the
---   dtype is 'other', the shape may be short, and trouble says why: 'is sparse, which is not handled'
function File:info(name)
  local entry = ffi.new 'cr_weights_entry'
  base.check(C.cr_weights_entry_at(handle_of(self), index_of(self, name), entry))
  local shape = {}
  for i = 1, entry.rank do shape[i] = entry.shape[i - 1] end
  return { dtype = base.dtypes[entry.dtype] or 'other', shape = shape, bytes = tonumber(entry.bytes),
    trouble = entry.trouble ~= nil and ffi.string(entry.trouble) or nil }
end

--- A tensor over the mapped file. Copy it before writing to it.
--- @param name string
--- @return Tensor
function File:get(name)
  local index = index_of(self, name)
  local out = tensor.new()
  if C.cr_weights_tensor(handle_of(self), index, out.c) < 0 then base.raise() end
  return out
end

--- Lets go of the file now; tensors taken from it stay valid. Twice is fine.
function File:close()
  local handle = rawget(self, 'handle')
  if not handle then return end
  self.handle = nil
  C.cr_weights_close(ffi.gc(handle, nil))
end

--- One sentence if a weights file was changed while it, or a tensor over it, was in use: what came of it cannot be
--- trusted. Ask at the end of a run.
--- @return string?
function M.changed()
  local path = C.cr_weights_changed()
  if path == nil then return nil end
  return ffi.string(path) .. ': the file was changed while it was in use, so the result cannot be trusted: run it again'
end

--- SHA-256 of a file as 64 hex digits.
--- @param path string
--- @return string
function M.sha256(path)
  local hex = ffi.new 'char[65]'
  if C.cr_sha256_file(path, hex) < 0 then base.raise() end
  return ffi.string(hex, 64)
end

-- ---- trees ---------------------------------------------------------------------------------

-- A convolution's weight [O I ...] with its input channels last, by the number of dimensions.
local channels_last = { [3] = { 1, 3, 2 }, [4] = { 1, 3, 4, 2 }, [5] = { 1, 3, 4, 5, 2 } }

local function turn_of(name, rank) return name:find 'weight$' and channels_last[rank] or nil end

local floats = { f32 = true, f16 = true, bf16 = true, f64 = true }

-- What a tensor becomes: floats the network's dtype, but for those that are kept exact.
local function dtype_of(name, dtype, options)
  if not floats[dtype] or options.exact and options.exact(name) then return dtype end
  return options.dtype or 'f32'
end

--- One tensor as a model wants it: floats in `dtype`, a convolution's weight channels-last, dense.
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

--- The same of all tensors at once, for a card.
local function load_to_card(file, names, options, visit)
  local items = {}
  for _, n in ipairs(names) do
    local info = file:info(n.full)
    if info.dtype == 'other' then file:get(n.full) end -- which says why not
    local expand = options.expand and options.expand[n.full]
    local dtype = dtype_of(n.name, expand and 'f32' or info.dtype, options)
    local turn = turn_of(n.name, #info.shape)
    items[#items + 1] = { full = n.full, name = n.name, info = info, dtype = dtype, turn = turn, make = expand and function(x)
      x = expand(x)
      return turn and x:permute(unpack(turn)) or x
    end }
    for _, made in ipairs(floats[info.dtype] and options.made or {}) do -- of codes nothing is made
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

--- Puts a value into nested nodes by the dots of its name.
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
      fail(('%s: %s is a tensor, so %s has no place'):format(file.path, M.printable(path), M.printable(name)))
    end
    node, rest = child, after
  end
  local key = key_of(rest)
  if rawget(node, key) ~= nil then fail(('%s: %s stands twice'):format(file.path, M.printable(name))) end
  node[key] = value
end

--- All tensors as nested tables by the dots of their names, numbers as they are in the checkpoint:
--- w.down_blocks[0].resnets[0].norm1.weight. Convolution weights (names that end in `weight`, three
--- to five dimensions) are turned channels-last once: [O I kh kw] becomes [O kh kw I]. Every node
--- knows its path (weights.path), which errors of nn.* name. The tensors belong to no scope. On a card
--- they share one piece of memory, which is given back when the last of them is freed.
--- @param file WeightsFile|string
--- @param options table? {prefix = only names that begin so, without it; strip = left out at the
---   beginning of a name where it stands (DataParallel's 'module.'); dtype = 'f32' (of floats),
---   device = 'cpu', exact = function(name) -> whether it keeps the file's dtype,
---   expand = by names in the file, function(tensor) -> the numbers that its codes stand for, rename = function(name) -> name, or nil
---   to leave the tensor out; tag =
---   the name in cr.memory's report of a card, adjacent = lists of endings of names, { { 'to_q.weight',
---   'to_k.weight' } }: those of one stem stand one behind the other, for weights.joined; apart =
---   function(name, shape) -> whether it has memory of its own, to be freed before the others; made = a list of
---   tensors that are to stand beside those they are made of: {of = ending of a name, name = the ending
---   instead of it, shape = function(the file's) -> its own, make = function(the file's tensor) -> tensor}}
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

--- One tensor over several that stand one behind the other in memory (tree's `adjacent`), along their
--- first dimension; nil if they do not.
M.joined = arena.joined

--- One layer over several that take the same: their results stand side by side. Nothing is freed. Quantized ones (cr.quant)
--- have one format, and one input, smooth and down.
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

--- A copy of a tree on a device; what stands in it twice is copied once. Between cards nobody waits for it.
--- @param tree table of tensors, tables and whatever else
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

--- Frees the tensors of a tree, or of any table of tensors and tables; twice is fine.
--- @param tree table
function M.free(tree)
  for _, value in pairs(tree) do
    if tensor.is_tensor(value) then value:free() elseif type(value) == 'table' then M.free(value) end
  end
end

--- Where a node of a tree stands in its checkpoint: 'down_blocks.0.resnets.0.conv1'.
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

--- Raises one sentence unless the file has every expected tensor in its shape: the first problem
--- by name, the others of its kind counted. Tensors that are not expected are counted, as PyTorch's
--- load_state_dict(strict=False) passes them over.
---
---     local surplus, first = weights.check(file, { { 'conv_in.weight', { 320, 13, 3, 3 } }, ... })
--- @param file WeightsFile
--- @param expected table[] {name, shape} in order (or {name =, shape =, or_shape = another that will do,
---   optional = true: it may be missing}); shapes as in the checkpoint
--- @param options table? {prefix = in front of every expected name; surplus = true: tensors that are not expected
---   are an error too}
--- @return integer surplus tensors that are not expected
--- @return string? first the first of them
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
    complain(file, ('tensor %s is surplus: this network has none of that name'):format(M.printable(first)), surplus)
  end
  return surplus, first
end

-- Whether a name begins like one of a list.
local function begins(name, beginnings)
  for _, beginning in ipairs(beginnings) do
    if name:sub(1, #beginning) == beginning then return true end
  end
  return false
end

--- A network's tensors as a tree, once `check` finds them whole. What else the file holds is passed over, as
--- PyTorch's load_state_dict(strict=False) does, and counted in one line. Layers that the file holds quantized are
--- taken as they are (cr.quant).
--- @param file WeightsFile
--- @param expected table[] as `check` takes them
--- @param options table? those of `tree`: {prefix =, dtype =, device =, tag =, adjacent =, apart =, made =}
--- @param beside string[]? beginnings of names in the file that belong to the network and that nobody needs: they are
---   not counted
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
    M.note(('%s: %d tensor%s that this network does not have: passed over (%s%s)'):format(file.path, surplus,
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
