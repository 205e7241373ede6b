--- Indexing for reading and writing, x[1], x[{ 1, { 2, 3 } }], x[mask], x[rows], and methods that gather and scatter.
--
-- Indices count from 1, negative ones from the end, and ranges include both ends.

local common = require 'cr.tensor.common'
local creation = require 'cr.tensor.creation'
local operands = require 'cr.tensor.operands'

local C, fail, arguments, kinds, scope = common.C, common.fail, common.arguments, common.kinds, common.scope
local new, filled, is_tensor = common.new, common.filled, common.is_tensor
local dim_of, shape_text = operands.dim_of, operands.shape_text
local alive, maybe = common.alive, common.maybe

--- @class Tensor
local methods = {}
local M = {}

local function is_mask(t) return t.dtype == 'bool' or t.dtype == 'u8' end

-- Converts indices, from 1 (negative from the end), to what C takes for x: i64 or i32, on x's device or the CPU.
local function index_for(name, x, index)
  if not is_tensor(index) then return creation.tensor(index, { dtype = 'i64' }) end
  if index.dtype ~= 'i64' and index.dtype ~= 'i32' then
    fail(('%s: the indices are %s: i64 or i32 is needed, as of x:to \'i64\'; a mask is bool, as x:ne(0)'):format(name, index.dtype))
  end
  return index.device ~= x.device and index:to 'cpu' or index
end

-- The same for indices of any shape, flattened.
local function list_for(name, x, index)
  index = index_for(name, x, index)
  return index.c.rank == 1 and index or index:reshape(-1)
end

local function gather(x, dim, index)
  local out = new()
  return filled(out, C.cr_gather(out.c, x.c, dim, index.c))
end

-- ---- parts of a dimension -------------------------------------------------------------------------

--- Selects parts of dimension d by a list or a tensor of indices [T]: x:index_select(1, { 3, 1 }). An index out of
--- range is an error; on a card the next synchronizing call raises it.
--- @param d integer
--- @param index integer[]|Tensor
--- @return Tensor x's sizes, but T in dimension d
function methods:index_select(d, index)
  local dim = dim_of('index_select', self, d)
  local list = list_for('index_select', self, index)
  local out = gather(self, dim, list)
  if not rawequal(list, index) then list:free() end
  return out
end

--- Selects rows of the first dimension by indices from 1, in a table or a tensor.
--- @return Tensor
function methods:gather_rows(index) return self:index_select(1, index) end

-- Writes or adds y, a tensor or a number, to parts of x along `dim` (from 0).
local function write_parts(name, x, dim, index, y, add)
  scope.scope(function()
    local list = list_for(name, x, index)
    local shape = x.shape
    shape[dim + 1] = list:size(1)
    if not is_tensor(y) then
      y = creation.full(shape, y, { dtype = x.dtype, device = x.device })
    else
      local fits, wide = pcall(y.expand, y, shape, {})
      if not fits then
        fail(('%s: y %s does not fit [%s]'):format(name, shape_text(y), table.concat(shape, ' ')))
      end
      y = wide:to(x.dtype)
    end
    filled(x, C.cr_scatter(x.c, dim, list.c, y.c, add and 1 or 0))
  end)
  return x
end

--- Adds the parts of y in place to parts of this tensor along dimension d: x:index_add_(1, { 2, 2 }, y).
--- @param d integer
--- @param index integer[]|Tensor [T]
--- @param y Tensor|number x's sizes, but T in dimension d
--- @return Tensor itself
function methods:index_add_(d, index, y)
  return write_parts('index_add_', self, dim_of('index_add_', self, d), index, y, true)
end

--- Overwrites parts along dimension d in place: x:index_copy_(1, { 2, 3 }, y).
--- @return Tensor itself
function methods:index_copy_(d, index, y)
  return write_parts('index_copy_', self, dim_of('index_copy_', self, d), index, y)
end

-- ---- elements -------------------------------------------------------------------------------------

-- Returns the dimension, from 0, and an index with as many dimensions as x.
local function each_of(name, x, d, index)
  local dim = dim_of(name, x, d)
  if index:dim() ~= x:dim() then
    fail(('%s: an index of %d dimensions is needed for %s, not %s'):format(name, x:dim(), shape_text(x), shape_text(index)))
  end
  return dim, index_for(name, x, index)
end

--- Gathers elements along dimension d by an index with as many dimensions as x: out[i][j] = x[index[i][j]][j] for d = 1.
--- @param d integer
--- @param index Tensor i64 or i32; in other dimensions not larger than x
--- @return Tensor of the index's sizes
function methods:gather(d, index)
  local dim, places = each_of('gather', self, d, index)
  return gather(self, dim, places)
end

local function scatter(name, x, d, index, y, add)
  local dim, places = each_of(name, x, d, index)
  scope.scope(function()
    if not is_tensor(y) then y = creation.full(index.shape, y, { dtype = x.dtype, device = x.device }) end
    for k = 1, index:dim() do
      if y:dim() ~= index:dim() or y:size(k) < index:size(k) then
        fail(('%s: the values %s are fewer than the index %s'):format(name, shape_text(y), shape_text(index)))
      end
      y = y:narrow(k, 1, index:size(k))
    end
    filled(x, C.cr_scatter(x.c, dim, places.c, y:to(x.dtype).c, add and 1 or 0))
  end)
  return x
end

--- Writes y in place where gather would read: x:scatter_(1, index, y).
--- @param d integer
--- @param index Tensor i64 or i32
--- @param y Tensor|number at least as large as the index
--- @return Tensor itself
function methods:scatter_(d, index, y) return scatter('scatter_', self, d, index, y) end

--- Adds y in place where gather would read.
--- @return Tensor itself
function methods:scatter_add_(d, index, y) return scatter('scatter_add_', self, d, index, y, true) end

--- Takes elements by their index in row-major order, from 1: x:take { 1, 4 }.
--- @param index integer|integer[]|Tensor
--- @return Tensor of the index's sizes
function methods:take(index)
  return scope.scope(function()
    if type(index) == 'number' then index = { index } end
    local flat = self:reshape(-1)
    local places = index_for('take', flat, index)
    return gather(flat, 0, places:reshape(-1)):view(places.shape, {})
  end)
end

-- ---- masks ----------------------------------------------------------------------------------------

-- Returns the indices of all nonzero elements, from 1: [n D], or [n] in row-major order.
local function places_of(x, flat)
  return scope.scope(function()
    local out = new()
    return filled(out, C.cr_nonzero(out.c, (is_mask(x) and x or x:ne(0)).c, flat))
  end)
end

--- Returns the indices of all nonzero elements, from 1. It synchronizes with a card.
--- @return Tensor i64 [n D] for a tensor with D dimensions
function methods:nonzero() return places_of(self, 0) end

--- x where the mask is false, and y where it is true.
--- @param mask Tensor bool or u8, broadcast to x
--- @param y number|Tensor
--- @return Tensor
function methods:masked_fill(mask, y)
  return scope.scope(function()
    if not is_tensor(y) then y = creation.full({}, y, { dtype = self.dtype, device = self.device }) end
    return creation.where(mask, y:to(self.dtype), self)
  end)
end

-- Returns x with the dimensions of a mask flattened to one, and the indices where the mask is true.
local function masked(name, x, mask)
  if not is_mask(mask) then fail(('%s: the mask is %s: bool or u8 is needed, as of x:gt(0)'):format(name, mask.dtype)) end
  local d, rest = mask:dim(), { -1 }
  for k = 1, math.max(d, x:dim()) do
    if k <= d and (k > x:dim() or mask:size(k) ~= x:size(k)) then
      fail(('%s: the mask %s does not match the leading dimensions of %s'):format(name, shape_text(mask), shape_text(x)))
    end
    if k > d then rest[#rest + 1] = x:size(k) end
  end
  return rest, places_of(mask, 1)
end

--- Returns the elements where a mask is true as a vector. It synchronizes with a card.
--- @param mask Tensor bool or u8, broadcast to x
--- @return Tensor [n]
function methods:masked_select(mask)
  return scope.scope(function()
    local x, m = self, mask
    if shape_text(x) ~= shape_text(m) then -- broadcasts both to one shape
      local ones = creation.ones(m.shape, { device = x.device, dtype = 'u8' })
      x = creation.where(ones, x, x)
      m = m:expand(x.shape, {})
    end
    local _, at = masked('masked_select', x, m)
    return gather(x:reshape(-1), 0, at)
  end)
end

--- condition ? x : y, elementwise: x:where(x:gt(0), 0).
--- @param condition Tensor bool or u8
--- @param y Tensor|number
--- @return Tensor
function methods:where(condition, y) return creation.where(condition, self, y) end

-- ---- x[key] ---------------------------------------------------------------------------------------

-- Applies the key of one dimension: a number (which removes the dimension), {first, last, step}, {} for all, a list
-- or a tensor of indices. Returns the view, how many dimensions remain of this one, and a tensor of indices that is
-- still to be applied.
local function part(x, d, key)
  if type(key) == 'number' then return x:select(d, key), 0 end
  if is_tensor(key) then return x, 1, key end
  if type(key) ~= 'table' then
    fail(('a tensor has no element [%s]: a number, {first, last, step}, {} for all, or a tensor of indices is needed')
      :format(arguments.shown(key)))
  end
  if #key > 3 then
    fail(('x[...]: a range has at most three numbers, {first, last, step}, not %d: x:index_select(%d, {...}) takes a list')
      :format(#key, d))
  end
  return x:slice(d, key[1], key[2], key[3]), 1
end

-- Returns the view for a key, and the dimension and tensor of indices that are still to be applied.
local function view_of(x, key)
  if type(key) ~= 'table' then key = { key } end
  if #key > x:dim() then fail(('a tensor %s has no element of %d indices'):format(shape_text(x), #key)) end
  local d, rows, at = 1, nil, nil
  for i = 1, #key do
    local left, taken
    x, left, taken = part(x, d, key[i])
    if taken and rows then
      fail 'a key may contain one tensor of indices: x[a][{ {}, b }] applies two in turn, x:take((a - 1) * x:size(2) + b) as pairs'
    end
    if taken then rows, at = taken, d end
    d = d + left
  end
  return x, rows, at
end

-- Returns the sizes of a view with dimension d replaced by the sizes of an index.
local function spread(view, d, index)
  local shape = {}
  for k, size in ipairs(view.shape) do
    for _, n in ipairs(k == d and index.shape or { size }) do shape[#shape + 1] = n end
  end
  return shape
end

--- Implements x[key].
--- @param x Tensor alive
--- @param key any anything but a string
function M.get(x, key)
  if is_tensor(key) and is_mask(key) then
    return scope.scope(function()
      local rest, at = masked('x[mask]', x, key)
      return gather(x:reshape(rest, {}), 0, at)
    end)
  end
  if type(key) == 'number' then return x:select(1, key) end
  return scope.scope(function()
    local view, rows, d = view_of(x, key)
    if not rows then return view end
    if is_mask(rows) then rows = places_of(rows, 1) end
    local y = view:index_select(d, rows)
    return rows:dim() == 1 and y or y:view(spread(view, d, rows), {})
  end)
end

-- Writes y to all of a view.
local function overwrite(view, y)
  if is_tensor(y) then view:copy_(y) else view:fill_(y) end
end

--- Implements x[key] = y.
--- @param x Tensor alive
--- @param key any anything but a string
--- @param y Tensor|number|table as cr.tensor takes it
function M.set(x, key, y)
  if type(y) == 'table' then y = creation.tensor(y, { dtype = x.dtype, device = x.device }) end
  if not is_tensor(y) and type(y) ~= 'number' and type(y) ~= 'boolean' then
    fail(('x[...] = y: y is a number or a tensor, not %s'):format(arguments.shown(y)))
  end
  if type(y) == 'boolean' then y = y and 1 or 0 end
  scope.scope(function()
    if is_tensor(key) and is_mask(key) and not is_tensor(y) then
      local shape = key.shape
      for k = key:dim() + 1, x:dim() do shape[k] = 1 end
      x:copy_(x:masked_fill(key:view(shape, {}), y))
      return
    end
    if is_tensor(key) and is_mask(key) then
      local rest, at = masked('x[mask] = y', x, key)
      local view = x:reshape(rest, {}) -- a copy if x is not contiguous
      write_parts('x[mask] = y', view, 0, at, y)
      if not x:is_contiguous() then x:copy_(view:view(x.shape, {})) end
      return
    end
    local view, rows, d = view_of(x, key)
    if not rows then return overwrite(view, y) end
    if is_mask(rows) then rows = places_of(rows, 1) end
    if is_tensor(y) and rows:dim() ~= 1 then -- y broadcasts over the dimensions of the index
      local shape, wide = view.shape, y:expand(spread(view, d, rows), {})
      shape[d] = rows:numel()
      y = wide:reshape(shape, {})
    end
    write_parts('x[rows] = y', view, d - 1, rows, y)
  end)
end

local integer = arguments.integer
local indices = arguments.either('a tensor or a list of row numbers', alive, arguments.list('a list of row numbers', integer))
M.methods = arguments.guard('', methods, {
  index_select = { alive, integer, indices }, gather_rows = { alive, indices },
  index_add_ = { alive, integer, indices, kinds.operand }, index_copy_ = { alive, integer, indices, kinds.operand },
  gather = { alive, integer, alive }, scatter_ = { alive, integer, alive, kinds.operand },
  scatter_add_ = { alive, integer, alive, kinds.operand },
  take = { alive, arguments.either('an index, or a tensor or a list of them', integer, indices) },
  nonzero = { alive }, masked_fill = { alive, alive, kinds.operand }, masked_select = { alive, alive },
  where = { alive, alive, maybe(kinds.operand) },
}, 'x')
return M
