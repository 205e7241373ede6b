--- Parts of tensors by index: x[1], x[{ 1, { 2, 3 } }], x[mask], x[rows], reading and writing; methods that gather and scatter.
--
-- Indices count from 1, negative ones from the end, and ranges include both ends.

local common = require 'cr.tensor.common'
local creation = require 'cr.tensor.creation'
local operands = require 'cr.tensor.operands'

local C, fail, arguments, kinds, scope = common.C, common.fail, common.arguments, common.kinds, common.scope
local new, filled, is_tensor = common.new, common.filled, common.is_tensor
local dim_of, shape_text = operands.dim_of, operands.shape_text
local alive, maybe = common.alive, common.maybe

local methods, M = {}, {}

local function is_mask(t) return t.dtype == 'bool' or t.dtype == 'u8' end

-- Numbers of rows, from 1 (negative from the end), as C wants them: i64 [T] from 0 on x's device.
local function rows_from_zero(name, x, index)
  if not is_tensor(index) then index = creation.tensor(index, { dtype = 'i64' }) end
  if index.dtype ~= 'i64' and index.dtype ~= 'i32' then
    fail(('%s: the indices are %s: i64 or i32 is needed, as of x:to \'i64\''):format(name, index.dtype))
  end
  index = index:to(x.device):to 'i64'
  return creation.where(index:lt(0), index + x:size(1), index - 1)
end

local function gather(x, rows)
  local out = new()
  return filled(out, C.cr_gather_rows(out.c, x.c, rows.c))
end

-- ---- rows of a dimension --------------------------------------------------------------------------

--- Parts of dimension d, by a list or a tensor of whole numbers [T]: x:index_select(1, { 3, 1 }).
--- @param d integer
--- @param index integer[]|Tensor
--- @return Tensor of x's sizes, but T in dimension d
function methods:index_select(d, index)
  local dim = dim_of('index_select', self, d) + 1
  return scope.scope(function()
    local turned = self:transpose(1, dim)
    return gather(turned, rows_from_zero('index_select', turned, index)):transpose(1, dim):contiguous()
  end)
end

--- Rows (1-based numbers in a table or tensor) of the first dimension.
--- @return Tensor
function methods:gather_rows(index) return self:index_select(1, index) end

-- Writes y (a tensor or a number) to rows of x, or adds it.
local function write_rows(name, x, index, y, add)
  scope.scope(function()
    local rows = rows_from_zero(name, x, index)
    local shape = x.shape
    shape[1] = rows:size(1)
    if not is_tensor(y) then
      y = creation.full(shape, y, { dtype = x.dtype, device = x.device })
    else
      local fits, wide = pcall(y.expand, y, shape, {})
      if not fits then
        fail(('%s: y %s does not fit [%s]'):format(name, shape_text(y), table.concat(shape, ' ')))
      end
      y = wide:to(x.dtype)
    end
    filled(x, C.cr_scatter_rows(x.c, rows.c, y.c, add and 1 or 0))
  end)
  return x
end

-- write_rows along any dimension d; y turns with x where it has as many.
local function write_along(name, x, d, index, y, add)
  local dim = dim_of(name, x, d) + 1
  scope.scope(function()
    write_rows(name, x:transpose(1, dim), index, is_tensor(y) and y:dim() == x:dim() and y:transpose(1, dim) or y, add)
  end)
  return x
end

--- Adds the parts of y to parts of this tensor along dimension d: x:index_add_(1, { 2, 2 }, y). In place.
--- @param d integer
--- @param index integer[]|Tensor [T]
--- @param y Tensor|number of x's sizes, but T in dimension d
--- @return Tensor itself
function methods:index_add_(d, index, y)
  return write_along('index_add_', self, d, index, y, true)
end

--- Overwrites parts along dimension d: x:index_copy_(1, { 2, 3 }, y). In place.
--- @return Tensor itself
function methods:index_copy_(d, index, y)
  return write_along('index_copy_', self, d, index, y)
end

-- ---- elements -------------------------------------------------------------------------------------

-- Where in x's row-major order the elements lie that `index` names along a dimension: i64 [numel], from 1.
local function places(name, x, d, index)
  local dim = dim_of(name, x, d) + 1
  if index:dim() ~= x:dim() then
    fail(('%s: an index of %d dimensions is needed for %s, not %s'):format(name, x:dim(), shape_text(x), shape_text(index)))
  end
  local size = x:size(dim)
  index = index:to(x.device):to 'i64'
  if index:numel() > 0 and (index:min():item() < -size or index:max():item() > size or index:eq(0):max():item()) then
    fail(('%s: an index lies outside of 1 to %d, or -%d to -1'):format(name, size, size))
  end
  local at, stride = creation.where(index:lt(0), index + size, index - 1), {}
  local step = 1
  for k = x:dim(), 1, -1 do
    stride[k], step = step, step * x:size(k)
  end
  at = at * stride[dim] + 1
  for k = 1, x:dim() do
    if k ~= dim then
      if index:size(k) > x:size(k) then
        fail(('%s: the index %s is larger than %s in dimension %d'):format(name, shape_text(index), shape_text(x), k))
      end
      local shape = {}
      for j = 1, x:dim() do shape[j] = j == k and index:size(k) or 1 end
      local steps = creation.arange(0, index:size(k) - 1, 1, { dtype = 'i64', device = x.device })
      at = at + (steps * stride[k]):view(shape, {})
    end
  end
  return at:reshape(-1)
end

--- Elements of dimension d by an index of as many dimensions: out[i][j] = x[index[i][j]][j] for d = 1.
--- @param d integer
--- @param index Tensor i64 or i32; elsewhere not larger than x
--- @return Tensor of the index's sizes
function methods:gather(d, index)
  return scope.scope(function()
    local at = places('gather', self, d, index)
    return gather(self:reshape(-1), at - 1):view(index.shape, {})
  end)
end

local function scatter(name, x, d, index, y, add)
  scope.scope(function()
    local at = places(name, x, d, index)
    local flat = x:is_contiguous() and x:view(-1) or x:contiguous():view(-1)
    if is_tensor(y) then
      for k = 1, index:dim() do
        if y:dim() ~= index:dim() or y:size(k) < index:size(k) then
          fail(('%s: the values %s are fewer than the index %s'):format(name, shape_text(y), shape_text(index)))
        end
        y = y:narrow(k, 1, index:size(k))
      end
      y = y:reshape(-1)
    end
    write_rows(name, flat, at, y, add)
    if not x:is_contiguous() then x:copy_(flat:view(x.shape, {})) end
  end)
  return x
end

--- Writes y where gather would read: x:scatter_(1, index, y). In place.
--- @param d integer
--- @param index Tensor i64 or i32
--- @param y Tensor|number at least as large as the index
--- @return Tensor itself
function methods:scatter_(d, index, y) return scatter('scatter_', self, d, index, y) end

--- Adds y where gather would read. In place.
--- @return Tensor itself
function methods:scatter_add_(d, index, y) return scatter('scatter_add_', self, d, index, y, true) end

--- Elements by their places in row-major order, from 1: x:take { 1, 4 }.
--- @param index integer|integer[]|Tensor
--- @return Tensor of the index's sizes
function methods:take(index)
  return scope.scope(function()
    if type(index) == 'number' then index = { index } end
    if not is_tensor(index) then index = creation.tensor(index, { dtype = 'i64' }) end
    local flat = self:reshape(-1)
    return gather(flat, rows_from_zero('take', flat, index:reshape(-1))):view(index.shape, {})
  end)
end

-- ---- masks ----------------------------------------------------------------------------------------

-- Where a mask's elements are not 0: i64 [n] on its device, from 1 on, in row-major order. How many there are only their
-- numbers tell, so a card is waited for.
local function places_of(mask)
  local host = mask:ne(0):to('cpu'):contiguous()
  local p, list = host:pointer(), {}
  for i = 0, host:numel() - 1 do
    if p[i] ~= 0 then list[#list + 1] = i + 1 end
  end
  return creation.tensor(list, { dtype = 'i64', shape = { #list } }):to(mask.device)
end

--- Indices of all elements that are not 0, from 1 on. Waits for a card.
--- @return Tensor i64 [n D] of a tensor of D dimensions
function methods:nonzero()
  return scope.scope(function()
    local rest, columns = places_of(self) - 1, {}
    for k = self:dim(), 1, -1 do
      local size = self:size(k)
      columns[k] = rest:remainder(size) + 1
      rest = (rest - rest:remainder(size)):to 'f64':div(size):to 'i64'
    end
    if #columns == 0 then return creation.empty({ rest:size(1), 0 }, { dtype = 'i64', device = self.device }) end
    return creation.stack(columns, 2)
  end)
end

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

-- A mask over x's leading dimensions, x with these as one, and the places in it.
local function masked(name, x, mask)
  if not is_mask(mask) then fail(('%s: the mask is %s: bool or u8 is needed, as of x:gt(0)'):format(name, mask.dtype)) end
  local d, rest = mask:dim(), { -1 }
  for k = 1, math.max(d, x:dim()) do
    if k <= d and (k > x:dim() or mask:size(k) ~= x:size(k)) then
      fail(('%s: the mask %s does not lie over %s'):format(name, shape_text(mask), shape_text(x)))
    end
    if k > d then rest[#rest + 1] = x:size(k) end
  end
  return rest, places_of(mask)
end

--- The elements where a mask is true, one after another. Waits for a card.
--- @param mask Tensor bool or u8, broadcast to x
--- @return Tensor [n]
function methods:masked_select(mask)
  return scope.scope(function()
    local x, m = self, mask
    if shape_text(x) ~= shape_text(m) then -- to one shape, whichever is the smaller
      local ones = creation.ones(m.shape, { device = x.device, dtype = 'u8' })
      x = creation.where(ones, x, x)
      m = m:expand(x.shape, {})
    end
    local _, at = masked('masked_select', x, m)
    return gather(x:reshape(-1), at - 1)
  end)
end

--- condition ? x : y, elementwise: x:where(x:gt(0), 0).
--- @param condition Tensor bool or u8
--- @param y Tensor|number
--- @return Tensor
function methods:where(condition, y) return creation.where(condition, self, y) end

-- ---- x[key] ---------------------------------------------------------------------------------------

-- One dimension's part: a number (the dimension goes), {first, last, step}, {} for all, a list or tensor of indices.
-- Returns the view, how many dimensions are left of this one, and a tensor of rows that is still to be taken.
local function part(x, d, key)
  if type(key) == 'number' then return x:select(d, key), 0 end
  if is_tensor(key) then return x, 1, key end
  if type(key) ~= 'table' then
    fail(('a tensor has no element [%s]: a number, {first, last, step}, {} for all, or a tensor of indices is needed')
      :format(arguments.shown(key)))
  end
  return x:slice(d, key[1], key[2], key[3]), 1
end

-- The view that a key names, and the dimension and tensor of rows that are still to be taken of it.
local function view_of(x, key)
  if type(key) ~= 'table' then key = { key } end
  if #key > x:dim() then fail(('a tensor %s has no element of %d indices'):format(shape_text(x), #key)) end
  local d, rows, at = 1, nil, nil
  for i = 1, #key do
    local left, taken
    x, left, taken = part(x, d, key[i])
    if taken and rows then fail 'one tensor of indices at a time: x[a][{ {}, b }] takes them one after the other' end
    if taken then rows, at = taken, d end
    d = d + left
  end
  return x, rows, at
end

-- The same key with a mask in place of indices, which lies over as many dimensions as it has.
local function of_mask(x, mask)
  local rest, at = masked('x[mask]', x, mask)
  return rest, at
end

--- What x[key] is.
--- @param x Tensor alive
--- @param key any but a text
function M.get(x, key)
  if is_tensor(key) and is_mask(key) then
    return scope.scope(function()
      local rest, at = of_mask(x, key)
      return gather(x:reshape(rest, {}), at - 1)
    end)
  end
  if type(key) == 'number' then return x:select(1, key) end
  return scope.scope(function()
    local view, rows, d = view_of(x, key)
    if not rows then return view end
    if is_mask(rows) then rows = places_of(rows) end
    local y = view:index_select(d, rows:reshape(-1))
    local shape = {}
    for k, size in ipairs(view.shape) do
      if k == d then
        for _, n in ipairs(rows.shape) do shape[#shape + 1] = n end
      else
        shape[#shape + 1] = size
      end
    end
    return y:view(shape, {})
  end)
end

-- y over the whole of a view.
local function overwrite(view, y)
  if is_tensor(y) then view:copy_(y) else view:fill_(y) end
end

--- x[key] = y.
--- @param x Tensor alive
--- @param key any but a text
--- @param y Tensor|number
function M.set(x, key, y)
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
    local view, rows, d, at
    if is_tensor(key) and is_mask(key) then
      local rest
      rest, at = of_mask(x, key)
      view = x:reshape(rest, {}) -- a copy, where x has gaps
      write_rows('x[mask] = y', view, at, y)
      if not x:is_contiguous() then x:copy_(view:view(x.shape, {})) end
      return
    end
    view, rows, d = view_of(x, key)
    if not rows then return overwrite(view, y) end
    if is_mask(rows) then rows = places_of(rows) end
    if is_tensor(y) and y:dim() == view:dim() then y = y:transpose(1, d) end
    write_rows('x[rows] = y', view:transpose(1, d), rows:reshape(-1), y)
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
