--- Fourier transforms of real tensors, as pairs of real tensors, for filters and guidance in the frequency domain.
--
-- The transform along a dimension is a product with a matrix of cosines and sines. For latents, with sizes of 32 to
-- 128, this is as fast as an FFT, exact up to f32 rounding, the same on every device, and can be recorded as a graph.

local common = require 'cr.tensor.common'
local creation = require 'cr.tensor.creation'
local operands = require 'cr.tensor.operands'

local fail, arguments, scope = common.fail, common.arguments, common.scope
local dim_of, shape_text, alive = operands.dim_of, operands.shape_text, common.alive

local M = {}

local LONGEST = 8192 -- largest dimension; the matrix has the square of that many elements

-- Returns the cosines and sines of 2 pi j k / n as two matrices [rows columns].
local function waves(n, rows, columns, like)
  if n > LONGEST then fail(('rfft: a dimension of %d is too long: the limit is %d'):format(n, LONGEST)) end
  local o = { dtype = 'i64', device = like.device }
  local j, k = creation.arange(0, rows - 1, 1, o):unsqueeze(2), creation.arange(0, columns - 1, 1, o)
  local angle = (j * k):remainder(n):to 'f64' * (2 * math.pi / n)
  return angle:cos():to(like.dtype), angle:sin():to(like.dtype)
end

-- Calls fn with dimension d of all tensors moved to the end.
local function along(d, fn, ...)
  local list = { ... }
  for i, x in ipairs(list) do list[i] = x:transpose(d, -1):contiguous() end
  local out = { fn(unpack(list)) }
  for i, x in ipairs(out) do out[i] = x:transpose(d, -1):contiguous() end
  return unpack(out)
end

-- Transforms complex numbers along dimension d. With sign -1 it is the inverse transform, divided by the length.
local function complex(re, im, d, sign)
  return along(d, function(a, b)
    local n = a:size(-1)
    local c, s = waves(n, n, n, a)
    if sign > 0 then return a:matmul(c) + b:matmul(s), b:matmul(c) - a:matmul(s) end
    return (a:matmul(c) - b:matmul(s)) * (1 / n), (b:matmul(c) + a:matmul(s)) * (1 / n)
  end, re, im)
end

local function listed(name, x, dims)
  local list = {}
  for i, d in ipairs(type(dims) == 'table' and dims or { dims or -1 }) do list[i] = dim_of(name, x, d) + 1 end
  return list
end

local floats = { f32 = true, f64 = true, f16 = true, bf16 = true }
local function float_of(x) return (x.dtype == 'f32' or x.dtype == 'f64') and x or x:to 'f32' end

--- Fourier transform of a real tensor along one or several dimensions (by default the last): re, im = cr.rfft(x, { 2,
--- 3 }). It returns real and imaginary parts. The last listed dimension has the n / 2 + 1 frequencies from 0 on.
--- @param x Tensor
--- @param dims integer|integer[]|nil
--- @return Tensor f32 (f64 if x is f64)
--- @return Tensor
function M.rfft(x, dims)
  return scope.scope(function()
    local list = listed('rfft', x, dims)
    local re, im = along(list[#list], function(a)
      local n = a:size(-1)
      if n == 0 then fail(('rfft: %s has no elements'):format(shape_text(x))) end
      local c, s = waves(n, n, math.floor(n / 2) + 1, a)
      return a:matmul(c), -a:matmul(s)
    end, float_of(x))
    for k = #list - 1, 1, -1 do re, im = complex(re, im, list[k], 1) end
    return re, im
  end)
end

--- The inverse of rfft: x = cr.irfft(re, im, { 2, 3 }, 64).
--- @param re Tensor
--- @param im Tensor
--- @param dims integer|integer[]|nil as given to rfft
--- @param n integer? the original size of the last listed dimension (2 (frequencies - 1)); needed if it was odd
--- @return Tensor
function M.irfft(re, im, dims, n)
  if not floats[re.dtype] or shape_text(re) ~= shape_text(im) then
    fail(('irfft: two tensors of floats of one shape are needed, not %s and %s'):format(shape_text(re), shape_text(im)))
  end
  return scope.scope(function()
    local list = listed('irfft', re, dims)
    local a, b = float_of(re), float_of(im)
    for k = 1, #list - 1 do a, b = complex(a, b, list[k], -1) end
    return (along(list[#list], function(p, q)
      local m = p:size(-1)
      local length = n or 2 * (m - 1)
      if length < 1 or math.floor(length / 2) + 1 ~= m then
        fail(('irfft: %d frequencies do not belong to a length of %d'):format(m, length))
      end
      local c, s = waves(length, m, length, p)
      -- All frequencies represent their mirror images as well, except 0 and the highest one of an even length.
      local weight = creation.full({ m }, 2 / length, { dtype = p.dtype, device = p.device })
      weight:narrow(1, 1, 1):fill_(1 / length)
      if length % 2 == 0 then weight:narrow(1, m, 1):fill_(1 / length) end
      return (p * weight):matmul(c) - (q * weight):matmul(s)
    end, a, b))
  end)
end

local which = common.maybe(common.kinds.dimensions)
return arguments.guard('', M, {
  rfft = { alive, which }, irfft = { alive, alive, which, common.maybe(arguments.positive) },
})
