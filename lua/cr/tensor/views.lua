--- Tensor methods that return views, without copying.

local common = require 'cr.tensor.common'
local operands = require 'cr.tensor.operands'

local C, raise, fail, arguments = common.C, common.raise, common.fail, common.arguments
local new, filled, shape_type = common.new, common.filled, common.shape_type

--- @class Tensor
local methods = {}
local sizes_of, dim_of, shape_text = operands.sizes_of, operands.dim_of, operands.shape_text

--- Returns a view with another shape, in which one size may be -1. It never copies.
--- @return Tensor
function methods:view(...)
  local shape, rank = sizes_of('view', self, ...)
  local out = new()
  return filled(out, C.cr_view(out.c, self.c, rank, shape))
end

--- Like view, but copies if the layout requires it.
--- @return Tensor
function methods:reshape(...)
  local shape, rank = sizes_of('reshape', self, ...)
  local out = new()
  if C.cr_view(out.c, self.c, rank, shape) < 0 then
    local dense = self:contiguous()
    if C.cr_view(out.c, dense.c, rank, shape) < 0 then raise() end
  end
  return out
end

--- Permutes dimensions: x:permute(1, 3, 4, 2).
--- @return Tensor
function methods:permute(...)
  local dims, rank = sizes_of('permute', self, ...)
  if rank ~= self.c.rank then
    fail(('permute: %s has %d dimensions, but %d are given'):format(shape_text(self), self.c.rank, rank))
  end
  for i = 0, rank - 1 do dims[i] = dim_of('permute', self, dims[i]) end
  local out = new()
  if C.cr_permute(out.c, self.c, dims) < 0 then raise() end
  return out
end

--- Swaps two dimensions.
--- @return Tensor
function methods:transpose(a, b)
  a, b = dim_of('transpose', self, a), dim_of('transpose', self, b)
  local dims = shape_type()
  for i = 0, self.c.rank - 1 do dims[i] = i == a and b or i == b and a or i end
  local out = new()
  return filled(out, C.cr_permute(out.c, self.c, dims))
end

--- Swaps the last two dimensions: the transpose of a matrix. A tensor with fewer dimensions is returned unchanged.
--- @return Tensor
function methods:t() return self.c.rank < 2 and self or self:transpose(-2, -1) end

--- Returns the indices first..last of dimension d, with a step.
--- @return Tensor
function methods:slice(d, first, last, step)
  local dim = dim_of('slice', self, d)
  local size = self.c.shape[dim]
  first, last = first or 1, last or size
  if first < 0 then first = size + 1 + first end
  if last < 0 then last = size + 1 + last end
  local out = new()
  return filled(out, C.cr_slice(out.c, self.c, dim, first - 1, last, step or 1))
end

--- Returns `length` indices of dimension d from `first` on.
--- @return Tensor
function methods:narrow(d, first, length) return self:slice(d, first, first + length - 1) end

--- Returns one index of dimension d, without that dimension.
--- @return Tensor
function methods:select(d, index)
  local dim = dim_of('select', self, d)
  if index < 0 then index = self.c.shape[dim] + 1 + index end
  local out = new()
  return filled(out, C.cr_select(out.c, self.c, dim, index - 1))
end

--- Removes dimension d, which must have size 1, or by default all dimensions of size 1.
--- @return Tensor
function methods:squeeze(d)
  local only = d and dim_of('squeeze', self, d) + 1
  local shape = {}
  for i, size in ipairs(self.shape) do
    if only == i and size ~= 1 then fail(('squeeze: dimension %d of %s is not 1'):format(i, shape_text(self))) end
    if not (size == 1 and (not only or only == i)) then shape[#shape + 1] = size end
  end
  return self:view(shape, {})
end

--- Inserts a dimension of size 1 at position d.
--- @return Tensor
function methods:unsqueeze(d)
  local shape = self.shape
  if d < 0 then d = #shape + 2 + d end
  if d < 1 or d > #shape + 1 then fail(('unsqueeze: %s has no position %d'):format(shape_text(self), d)) end
  table.insert(shape, d, 1)
  return self:view(shape, {})
end

--- Flattens dimensions a..b to one.
--- @return Tensor
function methods:flatten(a, b)
  a, b = dim_of('flatten', self, a or 1) + 1, dim_of('flatten', self, b or -1) + 1
  local shape, joined = {}, 1
  for i, size in ipairs(self.shape) do
    if i < a or i > b then
      shape[#shape + 1] = size
    else
      joined = joined * size
      if i == b then shape[#shape + 1] = joined end
    end
  end
  return self:reshape(shape, {})
end

--- Expands dimensions of size 1 to a shape, without copying; -1 keeps a size.
--- @return Tensor
function methods:expand(...)
  local shape, rank = sizes_of('expand', self, ...)
  local out = new()
  return filled(out, C.cr_expand(out.c, self.c, rank, shape))
end

local alive, integer, maybe = common.alive, arguments.integer, arguments.maybe
return arguments.guard('', methods, {
  transpose = { alive, integer, integer },
  t = { alive },
  slice = { alive, integer, maybe(integer), maybe(integer), maybe(integer) },
  narrow = { alive, integer, integer, integer },
  select = { alive, integer, integer },
  squeeze = { alive, maybe(integer) },
  unsqueeze = { alive, integer },
  flatten = { alive, maybe(integer), maybe(integer) },
}, 'x')
