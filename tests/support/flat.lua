--- Support for tests that compare operations with float64 references in plain Lua.
local cr = require 'cr'

local flat = {}

local generator = cr.generator(os.time() % 100000, 'philox')

--- Standard normal numbers, different in each run.
function flat.randn(shape) return cr.randn(shape, { generator = generator }) end

--- The elements of a tensor as float64 in row-major order, read one by one through the strides, without any operation
--- under test (half types are decoded here).
function flat.values(x)
  local ffi = require 'ffi'
  local names = { f32 = 'float', f64 = 'double', u8 = 'uint8_t', i8 = 'int8_t', i16 = 'int16_t',
    i32 = 'int32_t', i64 = 'int64_t', bool = 'uint8_t', f16 = 'uint16_t', bf16 = 'uint16_t' }
  local p = ffi.cast(names[x.dtype] .. ' *', cr.C.cr_data(x.c))
  local decode = x.dtype == 'f16' and flat.half or x.dtype == 'bf16' and flat.brain or tonumber
  local out, rank, c = {}, x.c.rank, x.c
  local function walk(k, at)
    if k == rank then
      out[#out + 1] = decode(p[at])
      return
    end
    local step = tonumber(c.stride[k])
    for i = 0, c.shape[k] - 1 do walk(k + 1, at + i * step) end
  end
  walk(0, 0)
  return out
end

--- All orders of 1 .. n, as lists.
function flat.permutations(n)
  if n == 0 then return { {} } end
  local out = {}
  for _, p in ipairs(flat.permutations(n - 1)) do
    for k = 1, n do
      local q = { unpack(p) }
      table.insert(q, k, n)
      out[#out + 1] = q
    end
  end
  return out
end

--- The float64 value of an f16 number's bits.
function flat.half(bits)
  local sign = bits >= 0x8000 and -1 or 1
  local exponent, fraction = math.floor(bits / 1024) % 32, bits % 1024
  if exponent == 31 then return fraction == 0 and sign * math.huge or 0 / 0 end
  if exponent == 0 then return sign * fraction * 2 ^ -24 end
  return sign * (1024 + fraction) * 2 ^ (exponent - 25)
end

--- The float64 value of a bfloat16's bits.
function flat.brain(bits)
  local sign = bits >= 0x8000 and -1 or 1
  local exponent, fraction = math.floor(bits / 128) % 256, bits % 128
  if exponent == 255 then return fraction == 0 and sign * math.huge or 0 / 0 end
  if exponent == 0 then return sign * fraction * 2 ^ -133 end
  return sign * (128 + fraction) * 2 ^ (exponent - 134)
end

--- A tensor with x's values whose dimensions are stored in reverse order and with gaps.
function flat.strided(x)
  local shape, order, big = x.shape, {}, {}
  for k = 1, #shape do
    order[k] = #shape + 1 - k
    big[k] = 2 * shape[order[k]] + 1
  end
  local t = cr.zeros(big, { dtype = x.dtype, device = x.device })
  for k = 1, #shape do t = t:slice(k, 2, 2 * shape[order[k]] + 1, 2) end
  t = #shape > 0 and t:permute(unpack(order)) or t
  t:copy_(x)
  return t
end

--- The largest |a - b| / scale of two lists; infinite if only one of them is NaN.
function flat.distance(a, b)
  if #a ~= #b then return math.huge end
  local square, norm = 0, 0
  for i = 1, #a do
    local x, y = a[i], b[i]
    if (x ~= x) ~= (y ~= y) then return math.huge end
    if x == x and x ~= y then
      square = square + (x - y) ^ 2
      norm = math.max(norm, 1e-300)
    end
    if y == y and math.abs(y) ~= math.huge then norm = norm + y ^ 2 end
  end
  return norm > 0 and math.sqrt(square / norm) or 0
end

--- The values of x broadcast to a shape, by index arithmetic.
function flat.spread(x, shape)
  local list, own = flat.values(x), x.shape
  local out, total = {}, 1
  for _, n in ipairs(shape) do total = total * n end
  for i = 0, total - 1 do
    local rest, at, step = i, 0, 1
    for k = #shape, 1, -1 do
      local index = rest % shape[k]
      rest = math.floor(rest / shape[k])
      local size = own[k - (#shape - #own)]
      if size then
        at = at + (size == 1 and 0 or index) * step
        step = step * size
      end
    end
    out[i + 1] = list[at + 1]
  end
  return out
end

--- The dtype in which operands of two dtypes are computed, as crescent.h defines it.
function flat.promoted(a, b)
  if a == b then return a end
  local rank = { f64 = 9, f32 = 8, f16 = 7, bf16 = 7, i64 = 6, i32 = 5, i16 = 4, u8 = 3, i8 = 3, bool = 2 }
  if rank[a] == 7 and rank[b] == 7 then return 'f32' end
  if rank[a] == 3 and rank[b] == 3 then return 'i16' end
  return rank[a] > rank[b] and a or b
end

--- For each result of a reduction, the list of its input elements, in row-major order of the results.
function flat.groups(list, shape, mask)
  local out, index = {}, {}
  for k = 1, #shape do index[k] = 0 end
  for i = 1, #list do
    local at = 0
    for k = 1, #shape do
      if not mask[k] then at = at * shape[k] + index[k] end
    end
    out[at + 1] = out[at + 1] or {}
    table.insert(out[at + 1], list[i])
    for k = #shape, 1, -1 do
      index[k] = index[k] + 1
      if index[k] < shape[k] then break end
      index[k] = 0
    end
  end
  return out
end

--- The rounding error of one stored number per float dtype, with some tolerance for f32 arithmetic.
flat.tolerance = { f32 = 3e-7, f16 = 6e-4, bf16 = 5e-3, f64 = 1e-14 }

return flat
