--- Tensor methods that reorder, repeat or split. Parts are views; other results are copies.

local common = require 'cr.tensor.common'
local creation = require 'cr.tensor.creation'
local operands = require 'cr.tensor.operands'

local fail, arguments, scope = common.fail, common.arguments, common.scope
local dim_of, shape_text, sizes_of = operands.dim_of, operands.shape_text, operands.sizes_of
local alive, maybe = common.alive, common.maybe

--- @class Tensor
local methods = {}

-- ---- other ways to see a tensor -------------------------------------------------------------------

--- Moves dimension `from` to position `to`: x:movedim(4, 2) makes [N H W C] [N C H W].
--- @return Tensor a view
function methods:movedim(from, to)
  from, to = dim_of('movedim', self, from) + 1, dim_of('movedim', self, to) + 1
  local order = {}
  for k = 1, self:dim() do
    if k ~= from then order[#order + 1] = k end
  end
  table.insert(order, to, from)
  return self:permute(order, {})
end

--- Splits dimension d into several: x:unflatten(2, { 3, -1 }).
--- @param d integer
--- @param sizes integer[] one may be -1
--- @return Tensor
function methods:unflatten(d, sizes)
  local dim, shape = dim_of('unflatten', self, d) + 1, self.shape
  local size, known, open = shape[dim], 1, nil
  table.remove(shape, dim)
  for k, n in ipairs(sizes) do
    table.insert(shape, dim + k - 1, n)
    if n == -1 then open = dim + k - 1 else known = known * n end
  end
  if open and known > 0 and size % known == 0 then shape[open], known = size / known, size end
  if known ~= size then fail(('unflatten: %d elements of %s are not {%s}'):format(size, shape_text(self), table.concat(sizes, ', '))) end
  return self:reshape(shape, {})
end

--- Expands dimensions of size 1 to the sizes of another tensor, without copying.
--- @return Tensor a view
function methods:expand_as(other) return self:expand(other.shape, {}) end

--- Splits into at most n parts along dimension d (1), of equal length except the last.
--- @return Tensor[] views
function methods:chunk(n, d)
  local size = self:size(d or 1)
  return self:split(math.max(1, math.ceil(size / n)), d)
end

--- Splits along dimension d (1) into parts of `length`, of which the last may be shorter, or of the lengths in a list.
--- @param length integer|integer[]
--- @param d integer? 1
--- @return Tensor[] views
function methods:split(length, d)
  d = d or 1
  local size, parts, at = self:size(d), {}, 1
  if type(length) == 'number' then
    while at <= size or #parts == 0 do
      parts[#parts + 1] = self:narrow(d, at, math.min(length, size + 1 - at))
      at = at + length
    end
    return parts
  end
  local sum = 0
  for _, n in ipairs(length) do sum = sum + n end
  if sum ~= size then fail(('split: lengths with the sum %d do not fit dimension %d of %s'):format(sum, d, shape_text(self))) end
  for _, n in ipairs(length) do
    parts[#parts + 1] = self:narrow(d, at, n)
    at = at + n
  end
  return parts
end

--- Returns a view for each index of dimension d (1), without that dimension.
--- @return Tensor[] views
function methods:unbind(d)
  local parts = {}
  for i = 1, self:size(d or 1) do parts[i] = self:select(d or 1, i) end
  return parts
end

--- Sliding windows along dimension d: x:unfold(1, size, step) has the elements of each window as the last dimension.
--- @param d integer
--- @param size integer of a window
--- @param step integer from one window to the next
--- @return Tensor
function methods:unfold(d, size, step)
  local n = math.floor((self:size(d) - size) / step) + 1
  if size > self:size(d) then fail(('unfold: dimension %d of %s is shorter than %d'):format(d, shape_text(self), size)) end
  return scope.scope(function()
    local parts = {}
    for k = 1, size do parts[k] = self:slice(d, k, k + (n - 1) * step, step) end
    return creation.stack(parts, self:dim() + 1)
  end)
end

-- ---- repeated -------------------------------------------------------------------------------------

--- Repeats the whole tensor along each dimension: x:tile(2, 1). If there are more numbers than dimensions, new
--- leading dimensions are added.
--- @param ... integer
--- @return Tensor
function methods:tile(...)
  local times, n = sizes_of('tile', self, ...)
  return scope.scope(function()
    local y = self
    for _ = y:dim() + 1, n do y = y:unsqueeze(1) end
    for k = 1, n do
      local d, t, copies = y:dim() - n + k, times[k - 1], {}
      if t < 0 then fail(('tile: %d is not a number of repetitions'):format(t)) end
      for i = 1, t do copies[i] = y end
      y = t == 0 and y:narrow(d, 1, 0) or t == 1 and y or creation.cat(copies, d)
    end
    return y:clone()
  end)
end

--- torch's repeat, a reserved word in Lua: x:repeat_(2, 1) is x:tile(2, 1).
--- @return Tensor
function methods:repeat_(...) return methods.tile(self, ...) end

--- Repeats each element of dimension d n times; without d all elements, in row-major order.
--- @return Tensor
function methods:repeat_interleave(n, d)
  if not d then return self:reshape(-1):repeat_interleave(n, 1) end
  local dim, shape, grown = dim_of('repeat_interleave', self, d) + 1, self.shape, self.shape
  grown[dim] = shape[dim] * n
  table.insert(shape, dim + 1, n)
  return scope.scope(function() return self:unsqueeze(dim + 1):expand(shape, {}):contiguous():view(grown, {}) end)
end

-- ---- in another order -----------------------------------------------------------------------------

local function numbers(x, first, last, step)
  return creation.arange(first, last, step, { dtype = 'i64', device = x.device })
end

--- Reverses dimensions: x:flip(1), x:flip { 1, 2 }.
--- @param dims integer|integer[]
--- @return Tensor
function methods:flip(dims)
  return scope.scope(function()
    local x = self
    for _, d in ipairs(type(dims) == 'table' and dims or { dims }) do
      if x:size(d) > 1 then x = x:index_select(d, numbers(x, x:size(d), 1, -1)) end
    end
    return rawequal(x, self) and x:clone() or x
  end)
end

--- Rotates the elements of dimension d by n; without d all elements, in row-major order.
--- @return Tensor
function methods:roll(n, d)
  if not d then return self:reshape(-1):roll(n, 1):view(self.shape, {}) end
  local size = self:size(d)
  local at = size > 0 and n % size or 0
  if at == 0 then return self:clone() end
  return scope.scope(function()
    return creation.cat({ self:narrow(d, size - at + 1, at), self:narrow(d, 1, size - at) }, d)
  end)
end

-- ---- triangles and diagonals ------------------------------------------------------------------------

-- Returns a bool mask [M N] of where column - row compares to k in the last two dimensions.
local function band(name, x, k, compare)
  if x:dim() < 2 then fail(('%s: at least two dimensions are needed, not %s'):format(name, shape_text(x))) end
  local rows, columns = numbers(x, 1, x:size(-2), 1):unsqueeze(2), numbers(x, 1, x:size(-1), 1)
  local distance = columns - rows
  return distance[compare](distance, k or 0)
end

--- Returns the lower triangle of the last two dimensions, with 0 above diagonal k (0).
--- @return Tensor
function methods:tril(k)
  return scope.scope(function() return self:masked_fill(band('tril', self, k, 'gt'), 0) end)
end

--- Returns the upper triangle of the last two dimensions, with 0 below diagonal k (0).
--- @return Tensor
function methods:triu(k)
  return scope.scope(function() return self:masked_fill(band('triu', self, k, 'lt'), 0) end)
end

--- Returns diagonal k (0) of the last two dimensions, or the matrix with a vector on diagonal k.
--- @return Tensor
function methods:diag(k)
  k = k or 0
  return scope.scope(function()
    if self:dim() == 1 then
      local n = self:size(1) + math.abs(k)
      local out = creation.zeros({ n * n }, { dtype = self.dtype, device = self.device })
      local first = k >= 0 and k + 1 or -k * n + 1
      out:slice(1, first, first + (self:size(1) - 1) * (n + 1), n + 1):copy_(self)
      return out:view(n, n)
    end
    if self:dim() < 2 then fail(('diag: a vector or a matrix is needed, not %s'):format(shape_text(self))) end
    local rows, columns = self:size(-2), self:size(-1)
    local n = math.max(0, math.min(k >= 0 and rows or rows + k, k >= 0 and columns - k or columns))
    local first = k >= 0 and k + 1 or -k * columns + 1
    local flat = self:flatten(-2, -1)
    return n == 0 and flat:narrow(-1, 1, 0):contiguous() or
      flat:slice(-1, first, first + (n - 1) * (columns + 1), columns + 1):contiguous()
  end)
end

local integer = arguments.integer
local several = arguments.either('a dimension or a list of them', integer, arguments.list('a list of dimensions', integer, 1))
return arguments.guard('', methods, {
  movedim = { alive, integer, integer },
  unflatten = { alive, integer, arguments.list('a list of sizes', integer, 1, 8) },
  expand_as = { alive, alive },
  chunk = { alive, arguments.positive, maybe(integer) },
  split = { alive, arguments.either('a length or a list of them', arguments.positive, arguments.list('', arguments.natural, 1)),
    maybe(integer) },
  unbind = { alive, maybe(integer) }, unfold = { alive, integer, arguments.positive, arguments.positive },
  repeat_interleave = { alive, arguments.natural, maybe(integer) },
  flip = { alive, several }, roll = { alive, integer, maybe(integer) },
  tril = { alive, maybe(integer) }, triu = { alive, maybe(integer) }, diag = { alive, maybe(integer) },
}, 'x')
