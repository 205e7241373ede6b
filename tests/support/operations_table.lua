--- The table of operations in lua/README.md: names, dtypes, and support on CPU and GPU. Names and dtypes come from
--- the library itself.

local base = require 'cr.ffi'
local cr = require 'cr'
local nn = require 'cr.nn'

local HEAD = '| operations | CPU | card | dtypes |\n| --- | --- | --- | --- |\n'
local FLOATS = 'f32, f16, bf16, f64'

local function sorted(list)
  table.sort(list)
  return '`' .. table.concat(list, '` `') .. '`'
end

-- The names of the core table's operations, by the dtype of their result for i32.
local function by_result(names, count, call)
  local groups = {}
  for op = 0, tonumber(base.C[count]) - 1 do
    local name = names[op]
    local ok, y = pcall(call, cr.ones({ 2 }, { dtype = 'i32' }), name)
    local kind = ok and y.dtype or 'bool alone'
    groups[kind] = groups[kind] or {}
    table.insert(groups[kind], name)
  end
  return groups
end

local DTYPES = {
  i32 = 'all; the result is of the same', f32 = FLOATS .. '; of others it is f32', bool = 'all; the result is bool',
  i64 = 'all; sums of whole numbers, and places, are i64', ['bool alone'] = 'bool',
}

local function names_of(functions, skip)
  local list = {}
  for name, fn in pairs(functions) do
    if type(fn) == 'function' and not (skip and skip(name)) then list[#list + 1] = name end
  end
  return list
end

-- In-place methods: the names of operations with an underscore appended.
local function is_in_place(name)
  return name:find '_$' ~= nil and (require 'cr.tensor.arithmetic'[name:sub(1, -2)] ~= nil)
end

return function()
  return cr.scope(function()
    local rows = {}
    local function row(names, dtypes, card) rows[#rows + 1] = ('| %s | yes | %s | %s |'):format(sorted(names), card or 'yes', dtypes) end
    local function groups(list)
      for _, kind in ipairs { 'i32', 'f32', 'i64', 'bool', 'bool alone' } do
        if list[kind] then row(list[kind], DTYPES[kind]) end
      end
    end
    groups(by_result(base.unary, 'CR_UNARY_OPS', function(x, name) return x[name](x) end))
    groups(by_result(base.binary, 'CR_BINARY_OPS', function(x, name) return x[name](x, x) end))
    groups(by_result(base.reduce, 'CR_REDUCE_OPS', function(x, name) return x[name](x) end))
    row(names_of(require 'cr.tensor.statistics'), 'all that the name makes sense of; sums of whole numbers in i64')
    row(names_of(require 'cr.tensor.mathematics', is_in_place), 'floats; whole numbers where they stay whole')
    row(names_of(require 'cr.tensor.matrices'.methods), FLOATS .. '; whole numbers up to 2^53')
    row(names_of(require 'cr.tensor.moves'), 'all')
    row(names_of(require 'cr.tensor.indexing'.methods), 'all', 'yes; `index_add_`, `scatter_add_` of floats, i32, i64')
    local made = {}
    for name in pairs(require 'cr.tensor'.functions) do made[#made + 1] = 'cr.' .. name end
    row(made, 'all')
    local layers = {}
    for _, name in ipairs(names_of(nn)) do layers[#layers + 1] = 'nn.' .. name end
    row(layers, 'f32, f16, bf16')
    return HEAD .. table.concat(rows, '\n') .. '\n'
  end)
end
