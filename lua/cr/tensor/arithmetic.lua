--- Tensor methods from the core's table of operations: elementwise operations and reductions, and clamp and softmax.

local common = require 'cr.tensor.common'
local operands = require 'cr.tensor.operands'

local C, base, arguments, kinds, scope = common.C, common.base, common.arguments, common.kinds, common.scope
local new, filled = common.new, common.filled
local dim_of, want_tensor = operands.dim_of, operands.want_tensor
local alive, maybe = common.alive, common.maybe

--- @class Tensor
local methods = {}
local signatures = {}

-- Binary elementwise operations with broadcasting. One operand may be a number. As methods they take a tensor to fill
-- as an additional argument: x:add(y, out).
local function binary(name, op)
  signatures[name] = { kinds.operand, kinds.operand, maybe(kinds.result) }
  return function(a, b, out)
    out = out or new()
    local rc
    if type(b) == 'number' then
      if type(a) == 'number' then want_tensor(name, a) end
      rc = C.cr_binary_scalar(out.c, op, a.c, b, 0)
    elseif type(a) == 'number' then
      rc = C.cr_binary_scalar(out.c, op, b.c, a, 1)
    else
      rc = C.cr_binary(out.c, op, a.c, b.c)
    end
    return filled(out, rc)
  end
end

-- The names of the methods come from core/base/operations.h, their help from the comments in crescent.h.
for op = 0, C.CR_BINARY_OPS - 1 do methods[base.binary[op]] = binary(base.binary[op], op) end

for op = 0, C.CR_UNARY_OPS - 1 do
  local name = base.unary[op]
  signatures[name] = { alive }
  methods[name] = function(x)
    local out = new()
    return filled(out, C.cr_unary(out.c, op, x.c))
  end
end

--- Clamps every element to low..high.
--- @return Tensor
function methods:clamp(low, high)
  local out = new()
  return filled(out, C.cr_clamp(out.c, self.c, low or -math.huge, high or math.huge))
end

local function dims_mask(name, t, dims)
  if dims == nil then return 0 end
  if type(dims) == 'number' then return bit.lshift(1, dim_of(name, t, dims)) end
  local mask = 0
  for _, d in ipairs(dims) do mask = bit.bor(mask, bit.lshift(1, dim_of(name, t, d))) end
  return mask
end

local reduction = { alive, maybe(kinds.dimensions), maybe(arguments.boolean) }

-- torch's max and min also take two tensors, which have other names here.
local extreme = { alive, maybe(arguments.kind(kinds.dimensions.what, kinds.dimensions.test, function(v)
  return kinds.alive.test(v) and 'for two tensors use x:maximum(y) or x:minimum(y)' or nil
end)), maybe(arguments.boolean) }

-- Reductions over a dimension, a list of dimensions, or all of them by default. With `keep` the dimensions stay with size 1.
for op = 0, C.CR_REDUCE_OPS - 1 do
  local name = base.reduce[op]
  signatures[name] = (name == 'max' or name == 'min') and extreme or reduction
  methods[name] = function(x, dims, keep)
    local out = new()
    return filled(out, C.cr_reduce(out.c, op, x.c, dims_mask(name, x, dims), keep and 1 or 0))
  end
end

local function softmax_over(x, d)
  return scope.scope(function() return x:transpose(d, -1):softmax():transpose(d, -1):contiguous() end)
end

--- Softmax over a dimension.
--- @param dim integer? the last
--- @return Tensor
function methods:softmax(dim)
  local last = self.c.rank - 1
  local d = dim and dim_of('softmax', self, dim) or last
  if d ~= last then return softmax_over(self, d + 1) end
  local out = new()
  return filled(out, C.cr_softmax(out.c, self.c))
end

signatures.clamp = { alive, maybe(arguments.number), maybe(arguments.number) }
signatures.softmax = { alive, maybe(arguments.integer) }
return arguments.guard('', methods, signatures, 'x')
