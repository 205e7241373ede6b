--- Inputs and outputs in every layout for the tests of GPU operations, and exact comparison.
local cr = require 'cr'
local t = require 'tests.support.tap'
local cuda = require 'tests.support.cuda'
local flat = require 'tests.support.flat'

local M = {
  floats = { 'f32', 'f16', 'bf16', 'f64' },
  integers = { 'u8', 'i8', 'i16', 'i32', 'i64' },
  all = { 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64', 'bool' },
}

--- Random numbers of any dtype on the CPU: normal ones times `scale`, or integers around zero.
function M.random(shape, dtype, scale)
  return cr.scope(function()
    local x = cuda.randn(shape) * (scale or 1)
    if dtype == 'bool' then return x:gt(0) end
    if flat.tolerance[dtype] then return x:to(dtype) end
    return (x * 40):clamp(dtype == 'u8' and 0 or -120, 120):to(dtype)
  end)
end

--- A view of `shape` on the GPU whose dimensions are stored in reverse order and with gaps, inside of a tensor that
--- is full of `poison` (NaN for floats); returns both.
function M.holes(shape, dtype, poison)
  local order, big = {}, {}
  for k = 1, #shape do
    order[k] = #shape + 1 - k
    big[k] = 2 * shape[order[k]] + 1
  end
  local whole = cr.full(big, poison or flat.tolerance[dtype] and 0 / 0 or 1, { dtype = dtype, device = cuda.device })
  local view = whole
  for k = 1, #shape do view = view:slice(k, 2, 2 * shape[order[k]] + 1, 2) end
  return #shape > 0 and view:permute(unpack(order)) or view, whole
end

--- A dense tensor full of NaN (or ones) on the GPU.
function M.poisoned(shape, dtype)
  return cr.full(shape, flat.tolerance[dtype] and 0 / 0 or 1, { dtype = dtype, device = cuda.device })
end

--- x on the GPU in several layouts: dense, with gaps, as columns of a wider tensor, shifted by one element, with
--- reversed dimensions.
function M.layouts(x)
  local shape, dtype = x.shape, x.dtype
  local list = { dense = x:to(cuda.device) }
  if #shape == 0 then return list end
  list.gaps = M.holes(shape, dtype):copy_(x)
  local wide = { unpack(shape) }
  wide[#wide] = wide[#wide] + 8
  list.rows = M.poisoned(wide, dtype):narrow(#wide, 1, shape[#shape])
  list.rows:copy_(x)
  wide[#wide] = shape[#shape] + 1
  list.shifted = M.poisoned(wide, dtype):narrow(#wide, 2, shape[#shape])
  list.shifted:copy_(x)
  local order = {}
  for k = 1, #shape do order[k] = #shape + 1 - k end
  list.reversed = x:permute(unpack(order)):contiguous():to(cuda.device):permute(unpack(order))
  return list
end

--- x [... M N] on the GPU in the layouts that a matrix product can meet, surrounded by NaN, as {name, view}. The
--- order is fixed: dense, transposed, from a wider one, transposed from a wider one, with gaps in both dimensions;
--- for rank 3 with outer dimensions exchanged with rows, with columns; then the rest.
function M.matrices(x)
  local list, lead = {}, {}
  local m, n = x:size(-2), x:size(-1)
  for i = 1, x:dim() - 2 do lead[i] = x:size(i) end
  local function add(name, view) list[#list + 1] = { name, view:copy_(x) } end
  local function empty(rows, columns)
    local shape = { unpack(lead) }
    shape[#shape + 1], shape[#shape + 2] = rows, columns
    return M.poisoned(shape, x.dtype)
  end
  add('dense', empty(m, n))
  add('turned', empty(n, m):transpose(-1, -2))
  add('from a wider one', empty(m + 3, 2 * n + 1):slice(-2, 4, m + 3):slice(-1, 2, n + 1))
  add('transposed, from a wider one', empty(n + 3, 2 * m + 1):slice(-2, 4, n + 3):slice(-1, 2, m + 1):transpose(-1, -2))
  add('with gaps in both', empty(2 * m, 3 * n):slice(-2, 1, 2 * m, 2):slice(-1, 2, 3 * n, 3))
  if #lead == 1 then
    add('outer and rows exchanged', M.poisoned({ m, lead[1], n }, x.dtype):transpose(1, 2))
    add('outer and columns exchanged', M.poisoned({ n, m, lead[1] }, x.dtype):transpose(1, 3))
  end
  add('columns of a wider one', empty(m, 3 * n):slice(-1, n + 1, 2 * n))
  add('every second row', empty(2 * m, n):slice(-2, 2, 2 * m, 2))
  add('every second column', empty(m, 2 * n):slice(-1, 1, 2 * n, 2))
  add('every third of both, transposed', empty(3 * n, 3 * m):slice(-1, 2, 3 * m, 3):slice(-2, 1, 3 * n, 3):transpose(-1, -2))
  return list
end

-- NaNs are replaced by the canonical one in f64: LuaJIT interprets some other NaNs as values of other types.
local function values(x)
  return cr.scope(function()
    x = x:to 'cpu'
    return flat.values(flat.tolerance[x.dtype] and x:to 'f64' or x)
  end)
end

--- The result on the GPU has exactly the reference's dtype, shape and values.
function M.same(result, reference, message)
  message = ('%s (CR_SEED=%d)'):format(message or '', cuda.seed)
  if result.dtype ~= reference.dtype or table.concat(result.shape, ' ') ~= table.concat(reference.shape, ' ') then
    return t.ok(false, ('%s: %s [%s] instead of %s [%s]'):format(message, result.dtype, table.concat(result.shape, ' '),
      reference.dtype, table.concat(reference.shape, ' ')))
  end
  local got, want = values(result), values(reference)
  for i = 1, #want do
    if got[i] ~= want[i] and not (got[i] ~= got[i] and want[i] ~= want[i]) then
      return t.ok(false, ('%s: element %d is %s, expected %s'):format(message, i, tostring(got[i]), tostring(want[i])))
    end
  end
  t.ok(true)
end

--- `near` for floats, `same` for other dtypes.
function M.check(result, reference, message, limit)
  if not flat.tolerance[result.dtype] then return M.same(result, reference, message) end
  if result.dtype ~= reference.dtype then
    return t.ok(false, ('%s: %s instead of %s'):format(message, result.dtype, reference.dtype))
  end
  cuda.near(result, reference, { message = message, limit = limit or (result.dtype == 'f64' and 1e-13 or 2e-6) })
end

--- The elements of `whole` outside of a view of `n` elements are still NaN.
function M.untouched(whole, n, message)
  cr.scope(function()
    local left = whole:to 'cpu':to 'f32'
    t.equal(left:ne(left):sum():item(), whole:numel() - n, (message or '') .. ': elements beside the view')
  end)
end

return M
