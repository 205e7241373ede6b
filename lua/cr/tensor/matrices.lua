--- Products of tensors: methods, einsum and cdist.

local common = require 'cr.tensor.common'
local operands = require 'cr.tensor.operands'

local C, fail, arguments, scope = common.C, common.fail, common.arguments, common.scope
local new, filled = common.new, common.filled
local shape_text = operands.shape_text
local alive = common.alive

--- @class Tensor
local methods = {}
local M = {}

local floats = { f32 = true, f64 = true, f16 = true, bf16 = true }

local function product(a, b)
  if not floats[a.dtype] and a.dtype == b.dtype and a.dtype ~= 'bool' then -- integers, exact up to 2^53
    return scope.scope(function() return product(a:to 'f64', b:to 'f64'):to(a.dtype) end)
  end
  local out = new()
  return filled(out, C.cr_matmul(out.c, a.c, b.c))
end

--- Matrix product [... M K] x [... K N]; leading dimensions broadcast. A vector is a row on the left, a column on the right.
--- @return Tensor
function methods:matmul(b)
  if self.c.rank ~= 1 and b.c.rank ~= 1 then return product(self, b) end
  return scope.scope(function()
    local y = product(self.c.rank == 1 and self:unsqueeze(1) or self, b.c.rank == 1 and b:unsqueeze(2) or b)
    if b.c.rank == 1 then y = y:squeeze(-1) end
    return self.c.rank == 1 and y:squeeze(b.c.rank == 1 and -1 or -2) or y
  end)
end

local function of_rank(name, rank, fn)
  return function(a, b)
    if a:dim() ~= rank or b:dim() ~= rank then
      fail(('%s: two tensors of %d dimension%s are needed, not %s and %s: %s'):format(name, rank, rank > 1 and 's' or '', shape_text(a),
        shape_text(b), rank == 1 and 'x:flatten() has one' or 'a:matmul(b) takes any'))
    end
    return fn(a, b)
  end
end

--- The product of two matrices.
--- @return Tensor
function methods:mm(b) return of_rank('mm', 2, product)(self, b) end

--- Batched product of matrices: [B M K] x [B K N].
--- @return Tensor
function methods:bmm(b) return of_rank('bmm', 3, product)(self, b) end

--- The product of a matrix and a vector.
--- @return Tensor
function methods:mv(b)
  if self:dim() ~= 2 or b:dim() ~= 1 then
    fail(('mv: a matrix and a vector are needed, not %s and %s'):format(shape_text(self), shape_text(b)))
  end
  return self:matmul(b)
end

--- The dot product of two vectors.
--- @return Tensor a scalar
function methods:dot(b) return of_rank('dot', 1, function(x, y) return x:matmul(y) end)(self, b) end

--- The outer product: [N] and [M] give [N M].
--- @return Tensor
function methods:outer(b)
  return of_rank('outer', 1, function(x, y) return scope.scope(function() return x:unsqueeze(2) * y end) end)(self, b)
end

--- The sum of a matrix's diagonal.
--- @return Tensor a scalar
function methods:trace()
  if self:dim() ~= 2 then fail(('trace: a matrix is needed, not %s'):format(shape_text(self))) end
  return scope.scope(function() return self:diag():sum() end)
end

--- Returns the distances of all rows of [... M K] to all rows of [... N K] in the p-norm (2).
--- @param a Tensor
--- @param b Tensor
--- @param p number?
--- @return Tensor [... M N]
function M.cdist(a, b, p)
  return scope.scope(function() return (a:unsqueeze(-2) - b:unsqueeze(-3)):norm(p, -1) end)
end

-- ---- sums of products by letters --------------------------------------------------------------------

local function letters_of(text, x, n)
  local list = {}
  for letter in text:gmatch '.' do
    if not letter:find '%a' then
      fail(("einsum: '%s' is not a letter: each dimension has a letter, as in 'bik,bkj->bij'"):format(letter))
    end
    list[#list + 1] = letter
  end
  if #list ~= x:dim() then
    fail(("einsum: '%s' has %d letters, tensor %d has %d dimensions: %s"):format(text, #list, n, x:dim(), shape_text(x)))
  end
  return list
end

-- Takes the diagonal for a letter that occurs twice in one operand.
local function without_repeats(x, list)
  for i = 1, #list do
    for j = #list, i + 1, -1 do
      if list[i] == list[j] then
        local n = x:size(i)
        if x:size(j) ~= n then fail(("einsum: the two dimensions '%s' of %s differ in size"):format(list[i], shape_text(x))) end
        local y = x:movedim(i, -1):movedim(j > i and j - 1 or j, -1):diag()
        local left = {}
        for k = 1, #list do
          if k ~= i and k ~= j then left[#left + 1] = list[k] end
        end
        left[#left + 1] = list[i]
        return without_repeats(y, left)
      end
    end
  end
  return x, list
end

local function set_of(list)
  local set = {}
  for _, letter in ipairs(list) do set[letter] = true end
  return set
end

-- Sums over dimensions whose letters are not needed any further.
local function summed(x, list, needed)
  local dims, left = {}, {}
  for k, letter in ipairs(list) do
    if needed[letter] then left[#left + 1] = letter else dims[#dims + 1] = k end
  end
  return #dims > 0 and x:sum(dims) or x, left
end

local function ordered(x, list, order)
  local at, dims = {}, {}
  for k, letter in ipairs(list) do at[letter] = k end
  for _, letter in ipairs(order) do dims[#dims + 1] = at[letter] end
  return x:permute(dims, {})
end

local function joined(...)
  local all = {}
  for _, list in ipairs { ... } do
    for _, v in ipairs(list) do all[#all + 1] = v end
  end
  return all
end

-- Combines two operands by one batched matrix product.
local function pair(a, la, b, lb, needed)
  local in_a, in_b, sizes = set_of(la), set_of(lb), {}
  for k, letter in ipairs(la) do sizes[letter] = a:size(k) end
  for k, letter in ipairs(lb) do
    if sizes[letter] and sizes[letter] ~= b:size(k) then
      fail(("einsum: '%s' has both the size %d and the size %d"):format(letter, sizes[letter], b:size(k)))
    end
    sizes[letter] = b:size(k)
  end
  local batch, inner, rows, columns = {}, {}, {}, {}
  for _, letter in ipairs(la) do
    table.insert(not in_b[letter] and rows or needed[letter] and batch or inner, letter)
  end
  for _, letter in ipairs(lb) do
    if not in_a[letter] then columns[#columns + 1] = letter end
  end
  local function size(list)
    local n = 1
    for _, letter in ipairs(list) do n = n * sizes[letter] end
    return n
  end
  local x = ordered(a, la, joined(batch, rows, inner)):reshape(size(batch), size(rows), size(inner))
  local y = ordered(b, lb, joined(batch, inner, columns)):reshape(size(batch), size(inner), size(columns))
  local result, shape = joined(batch, rows, columns), {}
  for k, letter in ipairs(result) do shape[k] = sizes[letter] end
  return product(x, y):reshape(shape, {}), result
end

--- Einstein summation: cr.einsum('bik,bkj->bij', a, b). Letters that the result lacks are summed over. Without an
--- arrow, the result has the letters that occur once, in alphabetical order.
--- @param formula string
--- @param ... Tensor tensors, or one list of tensors
--- @return Tensor
function M.einsum(formula, ...)
  local tensors, lists = { ... }, {}
  if type(tensors[1]) == 'table' and not tensors[2] then tensors = tensors[1] end
  for k, x in ipairs(tensors) do arguments.want(('einsum: argument %d'):format(k + 1), alive, x) end
  local text = formula:gsub('%s', '')
  local left, right = text:match '^([^>]*)%->([^>]*)$'
  left = left or text
  for part in (left .. ','):gmatch '([^,]*),' do lists[#lists + 1] = part end
  if #lists ~= #tensors then fail(("einsum: '%s' has %d operands, but %d tensors are given"):format(formula, #lists, #tensors)) end
  return scope.scope(function()
    local times = {}
    for k, part in ipairs(lists) do
      lists[k] = letters_of(part, tensors[k], k)
      for _, letter in ipairs(lists[k]) do times[letter] = (times[letter] or 0) + 1 end
    end
    local result = {}
    if right then
      for letter in right:gmatch '.' do
        if not times[letter] or set_of(result)[letter] then
          fail(("einsum: '%s' of the result is in no operand, or occurs twice"):format(letter))
        end
        result[#result + 1] = letter
      end
    else
      for letter, n in pairs(times) do
        if n == 1 then result[#result + 1] = letter end
      end
      table.sort(result)
    end
    -- Returns the letters that are needed after tensor k: those of the result and of later tensors.
    local function needed_after(k)
      local set = set_of(result)
      for j = k + 1, #lists do
        for _, letter in ipairs(lists[j]) do set[letter] = true end
      end
      return set
    end
    local y, ly = without_repeats(tensors[1], lists[1])
    y, ly = summed(y, ly, needed_after(1))
    for k = 2, #tensors do
      local x, lx = without_repeats(tensors[k], lists[k])
      local needed = needed_after(k)
      local with_y = set_of(joined(ly))
      for letter in pairs(needed) do with_y[letter] = true end
      x, lx = summed(x, lx, with_y)
      y, ly = pair(y, ly, x, lx, needed)
      y, ly = summed(y, ly, needed)
    end
    return ordered(y, ly, result):contiguous()
  end)
end

local two = { alive, alive }
M.methods = arguments.guard('', methods, { matmul = two, mm = two, bmm = two, mv = two, dot = two, outer = two, trace = { alive } }, 'x')
local tensors = arguments.either('a tensor', alive, arguments.list('a list of tensors', alive, 1))
arguments.guard('', M, { cdist = { alive, alive, common.maybe(arguments.number) }, einsum = { arguments.string, tensors, vararg = true } })
return M
