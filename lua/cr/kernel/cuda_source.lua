--- Your own CUDA source: its __global__ functions become Lua functions of a grid, blocks, tensors and numbers.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local kernel = require 'cr.kernel'
local tensor = require 'cr.tensor'

local M = {}

local NUMBERS = { -- the FFI type that holds the bytes of a parameter, by its type in C
  float = 'float[1]', double = 'double[1]', int = 'int32_t[1]', unsigned = 'uint32_t[1]', ['unsigned int'] = 'uint32_t[1]',
  ['long long'] = 'int64_t[1]', ['unsigned long long'] = 'uint64_t[1]', int32_t = 'int32_t[1]', uint32_t = 'uint32_t[1]',
  int64_t = 'int64_t[1]', uint64_t = 'uint64_t[1]', size_t = 'uint64_t[1]', long = 'int64_t[1]', bool = 'bool[1]',
}

-- Parses a parameter list of C into {name =, make = FFI type, or nil for a pointer}.
local function parameters(fn, text)
  local list = {}
  for part in (text .. ','):gmatch '%s*(.-)%s*,' do
    if part ~= '' and part ~= 'void' then
      local plain = part:gsub('__restrict__', ''):gsub('%f[%w_]const%f[^%w_]', ''):gsub('%s+', ' '):match '^%s*(.-)%s*$'
      local name = plain:match '([%a_][%w_]*)$' or '?'
      if plain:find('*', 1, true) then
        list[#list + 1] = { name = name }
      else
        local kind = plain:match '^(.-)%s*[%a_][%w_]*$'
        local make = NUMBERS[kind]
        if not make then
          base.fail(("cuda.source: %s: the parameter '%s' is neither a pointer nor a number"):format(fn, base.printable(part)))
        end
        list[#list + 1] = { name = name, make = ffi.typeof(make), whole = not (kind == 'float' or kind == 'double') }
      end
    end
  end
  return list
end

local function triple(name, v, default)
  if v == nil then v = default end
  if type(v) == 'number' then v = { v } end
  local good = type(v) == 'table' and #v >= 1 and #v <= 3
  for i = 1, 3 do good = good and (v[i] == nil or arguments.positive.test(v[i])) end
  if not good then
    base.fail(('%s: a whole number from 1, or a list of up to three, is needed, not %s'):format(name, arguments.shown(v)))
  end
  return { v[1], v[2] or 1, v[3] or 1 }
end

local launching = arguments.options { grid = arguments.any, block = arguments.any, shared = arguments.maybe(arguments.natural) }

local function function_of(text, name, list)
  local codes = {}
  return function(options, ...)
    arguments.want(name, launching, options)
    local n = select('#', ...)
    if n ~= #list then base.fail(('%s: it takes %d arguments, not %d'):format(name, #list, n)) end
    local values, device = {}, nil
    for i, p in ipairs(list) do
      local v = select(i, ...)
      if not p.make then
        arguments.want(('%s: %s'):format(name, p.name), tensor.kinds.alive, v)
        if v.device == 'cpu' then base.fail(("%s: %s is on the CPU: x:to 'cuda' copies it"):format(name, p.name)) end
        if device and device ~= v.device then
          base.fail(('%s: tensors are on different devices: %s and %s'):format(name, device, v.device))
        end
        if not v:is_contiguous() then base.fail(('%s: %s has gaps: use :contiguous() first'):format(name, p.name)) end
        values[i], device = v, v.device
      else
        local is_number = type(v) == 'number' and (not p.whole or v % 1 == 0) or type(v) == 'cdata' or type(v) == 'boolean'
        if not is_number then
          base.fail(('%s: %s: a %snumber is needed, not %s'):format(name, p.name, p.whole and 'whole ' or '', arguments.shown(v)))
        end
        values[i] = p.make(v)
      end
    end
    if not device then base.fail(('%s: no tensor on a card is among the arguments'):format(name)) end
    codes[device] = codes[device] or kernel.load(text, 'source', device, name)
    kernel.launch(codes[device], triple(name .. ': grid', options.grid), triple(name .. ': block', options.block),
      options.shared or 0, values)
  end
end

--- @param text string
--- @return table<string, function>
function M.new(text)
  local functions = {}
  -- extern "C" avoids C++ name mangling; line numbers stay the same.
  local plain = text:gsub('extern%s+"C"%s+__global__', '__global__'):gsub('__global__', 'extern "C" __global__')
  for head, list in plain:gsub('__launch_bounds__%s*%b()', ''):gmatch '__global__%s+([^%(]-)%s*(%b())' do
    local name = head:match '([%a_][%w_]*)$'
    if name then functions[name] = function_of(plain, name, parameters(name, list:sub(2, -2))) end
  end
  if next(functions) == nil then base.fail 'cuda.source: there is no __global__ function in the source' end
  return setmetatable(functions, { __index = function(_, name)
    local names = {}
    for known in pairs(functions) do names[#names + 1] = known end
    base.fail(('cuda.source: there is no __global__ function %s: %s'):format(tostring(name),
      require 'cr.errors'.did_you_mean(tostring(name), names)))
  end })
end

return M
