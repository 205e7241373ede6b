--- Your own kernels: a formula, or a function of elementwise operations, is compiled to one kernel on the CPU or on a card.
---
---     local scale_shift = cr.kernel { 'y = x * s + b', x = 'in', y = 'out', s = 'number', b = 'in broadcast' }
---     local z = scale_shift(x, { s = 2, b = bias })
---
--- Kernels compute in f32, or in f64 if an operand is f64, whatever the other dtypes are. `? kernel.formula` describes
--- formulas, `? cr.fuse` makes a kernel from a function, `? cuda.source` from CUDA source. scripts/examples/kernels.lua has
--- a custom activation, a thresholding and an attention variant in each of these ways.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local compile = require 'cr.kernel.compile'
local errors = require 'cr.errors'
local formula = require 'cr.kernel.formula'
local source = require 'cr.kernel.source'
local tensor = require 'cr.tensor'

local C, is_tensor, shape_text = base.C, tensor.is_tensor, tensor.shape_text

local M = {}

--- @class Kernel
--- @field text string the formula
--- @field order string[] the operands, in the order of their first use in the formula
--- @field kinds table<string, string>
--- @field dtypes table<string, string>
--- @field reduces table? the reduction at its end
local Kernel = {}
Kernel.__index = Kernel

-- ---- declaring --------------------------------------------------------------------------------------------

local KINDS = { ['in'] = true, ['in broadcast'] = true, out = true, number = true }

local function check_kind(name, kind)
  local dtype = type(kind) == 'string' and kind:match '^out (%w+)$'
  if dtype then
    tensor.dtype_code('kernel: ' .. name, dtype)
  elseif not KINDS[kind] then
    if name:find '^dims?$' then
      base.fail(('kernel: %s: reductions are over the last dimension: use x:transpose(d, -1) for another one'):format(name))
    end
    base.fail(("kernel: %s is %s: 'in', 'in broadcast', 'out', 'out f16' (or another dtype) or 'number' is needed")
      :format(name, arguments.shown(kind)))
  end
  return dtype
end

-- Checks a declaration and returns the kernel without dtypes, with names in the order of their first use in the formula.
local function declare(declared)
  local text = declared[1]
  if type(text) ~= 'string' then base.fail "kernel: a formula is needed first: cr.kernel { 'y = x * 2', x = 'in', y = 'out' }" end
  local self = { text = text, statements = formula.parse(text), order = {}, kinds = {}, dtypes = {} }
  local known, made = {}, {}
  for name, kind in pairs(declared) do
    if name ~= 1 then
      if type(name) ~= 'string' or not name:find '^[%a_][%w_]*$' then base.fail(('kernel: %s is no name'):format(arguments.shown(name))) end
      self.dtypes[name], self.kinds[name] = check_kind(name, kind), kind:match '^%w+'
      known[#known + 1] = name
    end
  end
  table.sort(known)
  local function meet(name)
    if made[name] then return end
    if not self.kinds[name] then
      base.fail(("kernel: %s in '%s' is neither declared nor assigned before: %s"):format(name, text, errors.did_you_mean(name, known)))
    end
    if self.kinds[name] == 'out' then base.fail(("kernel: %s is read before it is assigned in '%s'"):format(name, text)) end
    made[name] = true
    self.order[#self.order + 1] = name
  end
  for _, s in ipairs(self.statements) do
    formula.each_name(s.node, meet)
    if self.kinds[s.name] and self.kinds[s.name] ~= 'out' then
      base.fail(("kernel: %s is assigned in '%s', but declared as '%s'"):format(s.name, text, self.kinds[s.name]))
    end
    if made[s.name] then
      base.fail(("kernel: %s is assigned twice in '%s': rename one of the two"):format(s.name, text))
    end
    made[s.name] = true
    if s.how then self.reduces = true end
    if self.kinds[s.name] == 'out' then self.order[#self.order + 1] = s.name end
  end
  if self.reduces then
    for _, s in ipairs(self.statements) do
      if self.kinds[s.name] == 'out' and not s.how then
        base.fail(("kernel: either all results are reduced or none: %s is not, in '%s'"):format(s.name, text))
      end
    end
  end
  local any
  for _, name in ipairs(known) do
    if not made[name] then base.fail(("kernel: %s is declared, but '%s' has no such name"):format(name, text)) end
    any = any or self.kinds[name] == 'out'
  end
  if not any then base.fail(("kernel: nothing in '%s' is declared as 'out'"):format(text)) end
  return setmetatable(self, Kernel)
end

-- ---- operands ---------------------------------------------------------------------------------------------

local FLOATS = { f64 = 4, f32 = 3, bf16 = 2, f16 = 2 }

-- Returns the dtype of results that declare none: the promoted dtype of the inputs.
local function promoted(inputs)
  local best
  for _, x in ipairs(inputs) do
    local dtype = x.dtype
    if FLOATS[dtype] then
      if not best then best = dtype
      elseif best ~= dtype then best = FLOATS[best] == FLOATS[dtype] and 'f32' or FLOATS[best] > FLOATS[dtype] and best or dtype end
    end
  end
  return best or 'f32'
end

local function broadcast(shapes)
  local rank, out = 0, {}
  for _, s in ipairs(shapes) do rank = math.max(rank, #s) end
  for k = 1, rank do
    local size = 1
    for _, s in ipairs(shapes) do
      local n = s[k - (rank - #s)] or 1
      if n ~= 1 then
        if size ~= 1 and size ~= n then
          local texts = {}
          for i, each in ipairs(shapes) do texts[i] = '[' .. table.concat(each, ' ') .. ']' end
          base.fail('kernel: shapes do not broadcast: ' .. table.concat(texts, ', '))
        end
        size = n
      end
    end
    out[k] = size
  end
  return out
end

-- Returns how element i of the result is mapped to an element of x: 'full', 'one', or 'part' with inner and count. x
-- is copied if none of these forms fits.
local function placed(x, shape)
  local rank = #shape
  local own = x.shape
  local first, last, inner, count = nil, nil, 1, 1
  for k = 1, rank do
    local n = own[k - (rank - #own)] or 1
    if shape[k] ~= 1 and n ~= 1 then first, last = first or k, k end
  end
  if not first then return x, 'one' end
  for k = 1, rank do
    local n = own[k - (rank - #own)] or 1
    if k >= first and k <= last and n ~= shape[k] then -- broadcast dimensions in between: x is expanded and copied
      return x:expand(shape, {}):contiguous(), 'full'
    end
    if k >= first and k <= last then count = count * n end
    if k > last then inner = inner * shape[k] end
  end
  x = x:contiguous()
  local total = 1
  for k = 1, rank do total = total * shape[k] end
  if inner == 1 and count == total then return x, 'full' end
  return x, 'part', inner, count
end

local function gcd(a, b)
  while b ~= 0 do a, b = b, a % b end
  return a
end

-- ---- calling ----------------------------------------------------------------------------------------------

-- Returns the compiled program for these operands, which is made once for each combination of dtypes and kinds.
local function program_of(self, operands, wide)
  local key = { wide and 'd' or 'f' }
  for _, o in ipairs(operands) do key[#key + 1] = o.name .. o.dtype .. o.kind .. (o.run and 'r' or '') end
  local text = table.concat(key, ' ')
  self.programs = self.programs or {}
  local p = self.programs[text]
  if not p then
    p = { statements = self.statements, numbers = {}, operands = operands, wide = wide, reduces = self.reduces }
    for _, name in ipairs(self.order) do
      if self.kinds[name] == 'number' then p.numbers[#p.numbers + 1] = name end
    end
    -- The cached program keeps names and kinds only; each call supplies the tensors.
    local list = {}
    for i, o in ipairs(operands) do list[i] = { name = o.name, dtype = o.dtype, kind = o.kind, out = o.out, run = o.run } end
    p.operands = list
    self.programs[text] = p
  end
  return p
end

local SEGMENT = 8192

local function run_on_cpu(p, operands, numbers, n, length)
  p.c = p.c or source.c(p)
  local kernel = compile.c(p.c)
  local parts, pointers = ffi.new('long long[?]', 2 * #operands), ffi.new('void *[?]', #operands)
  local segment = p.reduces and length or SEGMENT
  for i, o in ipairs(operands) do
    parts[2 * i - 2], parts[2 * i - 1] = o.inner or 1, o.count or 1
    if o.kind == 'part' and not p.reduces then segment = gcd(segment == SEGMENT and 0 or segment, o.inner == 1 and o.count or o.inner) end
    pointers[i - 1] = C.cr_data(o.tensor.c)
  end
  kernel(n, segment, parts, pointers, ffi.new('double[?]', math.max(1, #numbers), numbers))
end

local argument_type = ffi.typeof 'cr_argument[?]'
local triple, whole, real = ffi.typeof 'int32_t[3]', ffi.typeof 'long long[1]', ffi.typeof 'double[1]'

-- Queues a launch. `list` holds tensors, and FFI objects whose bytes are the value of a parameter.
local function launch(code, grid, block, shared, list)
  local args = argument_type(#list)
  for i, v in ipairs(list) do
    if is_tensor(v) then args[i - 1].tensor = v.c else args[i - 1].value = v end
  end
  base.check(C.cr_code_launch(code, triple(grid), triple(block), shared, #list, args))
end
M.launch = launch

--- Loads code on a card. The garbage collector unloads it.
--- @param text string CUDA source
--- @param name string name of the source in messages
--- @param device string
--- @param fn string a __global__ function
function M.load(text, name, device, fn)
  local image = compile.cuda(text, name, device)
  local out = ffi.new 'cr_code *[1]'
  base.check(C.cr_code_load(out, tensor.device_code('kernel', device), image, fn))
  return ffi.gc(out[0], C.cr_code_free)
end

local function run_on_card(p, operands, numbers, n, length, device)
  local width = p.reduces and 1 or source.width(p)
  for _, o in ipairs(operands) do
    if n % width ~= 0 or o.kind == 'part' and (o.inner == 1 and o.count or o.inner) % width ~= 0 or
      o.kind ~= 'one' and tonumber(o.tensor.c.offset) % width ~= 0 then
      width = 1
    end
  end
  p.codes = p.codes or {}
  local key = device .. ' ' .. width
  p.codes[key] = p.codes[key] or M.load(source.cuda(p, width), 'kernel', device, 'kernel')
  local list = { whole(n), whole(length) }
  for _, o in ipairs(operands) do
    list[#list + 1] = o.tensor
    if o.kind == 'part' then list[#list + 1], list[#list + 2] = whole(o.inner), whole(o.count) end
  end
  for _, v in ipairs(numbers) do list[#list + 1] = real(v) end
  local blocks = p.reduces and n / length or math.min(math.ceil(n / width / 256), 2 ^ 20)
  launch(p.codes[key], { blocks, 1, 1 }, { 256, 1, 1 }, 0, list)
end

-- Assigns the values of a call to names: positional values fill the inputs and numbers in the formula's order, and a
-- table fills the rest by name.
local function values_of(self, ...)
  local values, places = {}, {}
  for _, name in ipairs(self.order) do
    if self.kinds[name] ~= 'out' then places[#places + 1] = name end
  end
  local n = select('#', ...)
  local named = n > 0 and select(n, ...)
  if type(named) == 'table' then n = n - 1 else named = {} end
  if n > #places then base.fail(("kernel: %d values for '%s', which takes %d"):format(n, self.text, #places)) end
  for i = 1, n do values[places[i]] = select(i, ...) end
  for name, v in pairs(named) do
    if not self.kinds[name] then
      base.fail(("kernel: there is no %s in '%s': %s"):format(arguments.shown(name), self.text,
        errors.did_you_mean(tostring(name), self.order)))
    end
    if values[name] ~= nil then base.fail(('kernel: %s is given twice'):format(name)) end
    values[name] = v
  end
  for _, name in ipairs(self.order) do
    local v, kind = values[name], self.kinds[name]
    local fits = kind == 'number' and type(v) == 'number' or kind == 'in' and is_tensor(v) or kind == 'out' and (v == nil or is_tensor(v))
    if not fits then
      base.fail(('kernel: %s: %s is needed, not %s'):format(name, kind == 'number' and 'a number' or 'a tensor', arguments.shown(v)))
    end
    if kind == 'in' then tensor.kinds.alive.test(v) end
  end
  return values
end

--- Runs a kernel. The arguments are tensors and numbers in the formula's order, then a table of further values by
--- name, which may contain tensors to fill.
--- @param self Kernel
--- @return Tensor ... one for each 'out', in the formula's order
function Kernel.__call(self, ...)
  local values = values_of(self, ...)
  local inputs, shapes, device = {}, {}, nil
  for _, name in ipairs(self.order) do
    local v = values[name]
    if self.kinds[name] == 'in' then
      if device and v.device ~= device then base.fail(('kernel: tensors are on different devices: %s and %s'):format(device, v.device)) end
      inputs[#inputs + 1], shapes[#shapes + 1], device = v, v.shape, v.device
    end
  end
  if #inputs == 0 then base.fail 'kernel: there is no tensor among the values' end
  local shape = broadcast(shapes)
  if self.reduces and #shape == 0 then base.fail 'kernel: a scalar has no dimension to reduce' end
  local length = self.reduces and shape[#shape] or 1
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  local out_shape = { unpack(shape) }
  if self.reduces then out_shape[#shape] = nil end
  local results = {}
  tensor.scope(function()
    local operands, numbers, wide, kept = {}, {}, false, {}
    for _, name in ipairs(self.order) do
      local v, kind = values[name], self.kinds[name]
      if kind == 'number' then
        numbers[#numbers + 1] = v
      elseif kind == 'in' then
        local x, how, inner, count = placed(v, shape)
        operands[#operands + 1] = { name = name, tensor = x, dtype = x.dtype, kind = how, inner = inner, count = count,
          run = inner == 1 or nil }
        wide = wide or x.dtype == 'f64'
      else
        local dtype = self.dtypes[name] or promoted(inputs)
        local given = v
        if v and (shape_text(v) ~= '[' .. table.concat(out_shape, ' ') .. ']' or v.dtype ~= dtype or v.device ~= device) then
          base.fail(('kernel: the result %s is %s [%s] on %s, but the tensor given for it is %s %s on %s'):format(name, dtype,
            table.concat(out_shape, ' '), device, v.dtype, shape_text(v), v.device))
        end
        local y = (v and v:is_contiguous()) and v or tensor.empty(out_shape, { dtype = dtype, device = device })
        operands[#operands + 1] = { name = name, tensor = y, dtype = dtype, kind = 'full', out = true }
        kept[#kept + 1] = { y = y, given = given }
      end
    end
    if n > 0 then
      local p = program_of(self, operands, wide)
      if device == 'cpu' then
        run_on_cpu(p, operands, numbers, n, length)
      else
        run_on_card(p, operands, numbers, n, length, device)
      end
    end
    for _, k in ipairs(kept) do
      if k.given and not rawequal(k.given, k.y) then k.given:copy_(k.y) end
      results[#results + 1] = k.given or k.y
    end
    return results
  end)
  return unpack(results)
end

function Kernel:__tostring() return ("kernel: %s"):format(self.text) end

--- Makes a kernel from a formula. Inputs broadcast. Results have the dtype of the inputs unless declared otherwise,
--- as in y = 'out f16'.
---
---     local threshold = cr.kernel { 'y = where(abs(x) > t, x, 0)', x = 'in', t = 'number', y = 'out' }
---     local energy = cr.kernel { 'e = sum(x * x)', x = 'in', e = 'out' }      (over the last dimension)
--- @param declared table the formula, then names: 'in', 'in broadcast', 'out', 'out DTYPE', 'number'
--- @return Kernel callable
function M.new(declared) return declare(declared) end

-- ---- recording functions ------------------------------------------------------------------------------------

--- @class Traced a value that stands for an expression while a function is recorded
local Traced = {}

local function node_of(v)
  if type(v) == 'number' then return { op = 'number', value = v } end
  if getmetatable(v) == Traced then return rawget(v, 'node') end
  base.fail(('fuse: %s is not an operand: pass tensors as arguments of the function'):format(arguments.shown(v)))
end
local function traced(node) return setmetatable({ node = node }, Traced) end

local function apply(op)
  return function(...)
    local node = { op = op }
    for i = 1, select('#', ...) do node[i] = node_of((select(i, ...))) end
    local wanted = formula.FUNCTIONS[op][1]
    if #node ~= wanted then base.fail(('fuse: %s takes %d operand%s, not %d'):format(op, wanted, wanted > 1 and 's' or '', #node)) end
    return traced(node)
  end
end

local special = {
  clamp = function(x, low, high) return apply 'clamp'(x, low or -math.huge, high or math.huge) end,
  where = function(x, condition, y) return apply 'where'(condition, x, y) end,
  lerp = function(x, y, w) return x + (y - x) * w end,
}

-- Functions of cr and nn for recorded values.
local given = {
  where = function(condition, a, b) return apply 'where'(condition, a, b) end,
  lincomb = function(list, weights)
    local sum
    for i, x in ipairs(list) do
      local term = x * weights[i]
      sum = sum and sum + term or term
    end
    return sum
  end,
}
Traced.__given = function(name, first, ...)
  if given[name] then return given[name](first, ...) end
  local n = select('#', ...)
  while n > 0 and select(n, ...) == nil do n = n - 1 end -- drops omitted arguments
  if getmetatable(first) == Traced then return first[name](first, unpack({ ... }, 1, n)) end
  base.fail(('fuse: %s is not elementwise, or not supported in kernels'):format(name))
end

Traced.__index = function(_, name)
  if special[name] then return special[name] end
  if formula.FUNCTIONS[name] then return apply(name) end
  if tensor.methods[name] then
    base.fail(('fuse: x:%s is not elementwise, or not supported in kernels: compute it before, and pass the result'):format(name))
  end
  local names = {}
  for known in pairs(formula.FUNCTIONS) do names[#names + 1] = known end
  base.fail(('fuse: x:%s is not elementwise, or not supported in kernels: %s'):format(tostring(name),
    errors.did_you_mean(tostring(name), names)))
end
Traced.__add, Traced.__sub, Traced.__mul, Traced.__div = apply 'add', apply 'sub', apply 'mul', apply 'div'
Traced.__mod, Traced.__pow = apply 'remainder', apply 'pow'
Traced.__unm = function(x) return apply 'neg'(x) end
for name, what in pairs { __lt = 'a:lt(b)', __le = 'a:le(b)', __concat = 'numbers', __call = 'methods' } do
  Traced[name] = function() base.fail(('fuse: this is not an elementwise operation: use %s'):format(what)) end
end

local function record(fn, kinds)
  local inputs, self = {}, { order = {}, kinds = {}, dtypes = {}, statements = {}, text = 'a recorded function' }
  for i, kind in ipairs(kinds) do
    local name = 'a' .. i
    inputs[i] = traced { op = 'name', name = name }
    self.order[i], self.kinds[name] = name, kind
  end
  local results = { fn(unpack(inputs)) }
  if #results == 0 then base.fail 'fuse: the function returns nothing' end
  for i, y in ipairs(results) do
    local name = 'y' .. i
    self.statements[i] = { name = name, node = node_of(y) }
    self.order[#self.order + 1], self.kinds[name] = name, 'out'
  end
  return setmetatable(self, Kernel)
end

--- Fuses a function of elementwise operations to one kernel. The function is recorded when it is first called with
--- certain kinds of arguments (tensors or numbers), so it must not branch on their values.
---
---     local step = cr.fuse(function(x, e, a, b) return (x - b * e) / a end)
---     local y = step(x, e, 0.9, 0.1)
--- @param fn fun(...): ...
--- @return fun(...): Tensor ...
function M.fuse(fn)
  local kernels = {}
  return function(...)
    local kinds, key = {}, {}
    for i = 1, select('#', ...) do
      local v = select(i, ...)
      if not is_tensor(v) and type(v) ~= 'number' then
        base.fail(('fuse: argument %d: a tensor or a number is needed, not %s'):format(i, arguments.shown(v)))
      end
      kinds[i] = is_tensor(v) and 'in' or 'number'
      key[i] = kinds[i]
    end
    local text = table.concat(key, ' ')
    kernels[text] = kernels[text] or record(fn, kinds)
    return kernels[text](...)
  end
end

return arguments.guard('', M, {
  new = { arguments.kind("a table such as { 'y = x * 2', x = 'in', y = 'out' }", arguments.table.test), name = 'kernel' },
  fuse = { arguments.callable },
})
