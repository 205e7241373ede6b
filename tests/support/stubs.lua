--- lua/types/cr.lua: the annotations that lua-language-server cannot read from the sources, since a loop makes the functions
--- or an __index loads them. All other methods and functions are annotated where they are written.

local arithmetic = require 'cr.tensor.arithmetic'
local base = require 'cr.ffi'
local cr = require 'cr'
local tensor = require 'cr.tensor'

local M = {}

local HEAD = [[
--- @meta
--- The methods that the table of operations makes, and the functions that `cr` takes from other modules. `make docs` writes
--- this file; lua-language-server reads it, and no program does.
-- luacheck: ignore

--- C's structs, whose fields core/crescent.h declares.
--- @class ffi.cdata*
--- @field [any] any

--- @class Tensor
local Tensor = {}

]]

-- By the operation's enumerator that ends its list: parameters, and their annotations.
local KINDS = {
  { names = base.binary, count = 'CR_BINARY_OPS', arguments = 'b, out',
    params = { '@param b Tensor|number', '@param out Tensor? filled in place of a new one' }, in_place = 'b' },
  { names = base.unary, count = 'CR_UNARY_OPS', arguments = '', params = {}, in_place = '' },
  { names = base.reduce, count = 'CR_REDUCE_OPS', arguments = 'dims, keep',
    params = { '@param dims integer|integer[]|nil the dimensions, or all', '@param keep boolean? whether they stay, with size 1' } },
}

local function method(lines, name, text, params, arguments)
  lines[#lines + 1] = '--- ' .. text
  for _, param in ipairs(params) do lines[#lines + 1] = '--- ' .. param end
  lines[#lines + 1] = '--- @return Tensor'
  lines[#lines + 1] = ('function Tensor:%s(%s) end\n'):format(name, arguments)
end

local function operations(lines)
  for _, kind in ipairs(KINDS) do
    local comments = base.comments_of(kind.names, kind.count)
    for op = 0, tonumber(base.C[kind.count]) - 1 do
      local name = kind.names[op]
      local text = assert(comments[name], name .. ' has no comment in core/crescent.h')
      -- The reduction var is replaced by a function of lua/cr/tensor/statistics.lua.
      if tensor.methods[name] == arithmetic[name] then method(lines, name, text, kind.params, kind.arguments) end
      if kind.in_place then method(lines, name .. '_', 'In place: ' .. text, { kind.params[1] }, kind.in_place) end
    end
  end
end

-- The module that holds a function, by the names under which it was loaded.
local function home(name, fn)
  local found
  for module, value in pairs(package.loaded) do
    local ours = module:find '^cr%.' and module ~= 'cr.tensor'
    if ours and type(value) == 'table' and rawget(value, name) == fn and (not found or module < found) then found = module end
  end
  return assert(found, name .. ' is in no module')
end

--- The names that cr gets from elsewhere, with the expression that tells the language server what each is.
--- @return table<string, string>
function M.functions()
  local all = {}
  for name, fn in pairs(tensor.functions) do all[name] = ("require '%s'.%s"):format(home(name, fn), name) end
  for name, module in pairs(getmetatable(cr).__names) do
    local value = require(module)
    local field = module == 'cr.loop' and name or name == 'graph' and 'new' or name == 'kernel' and 'new' or name == 'fuse' and name
    assert(not field or value[field], name)
    all[name] = ("require '%s'%s"):format(module, field and '.' .. field or '')
  end
  return all
end

--- The text of the file.
--- @return string
function M.text()
  local lines = {}
  operations(lines)
  lines[#lines + 1] = '--- @class cr\nlocal cr = {}\n'
  local names = {}
  local functions = M.functions()
  for name in pairs(functions) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do lines[#lines + 1] = ('cr.%s = %s'):format(name, functions[name]) end
  return HEAD .. table.concat(lines, '\n') .. '\n'
end

return M
