--- Fourier transforms of real tensors, as pairs of real tensors: for guidance and filters by frequencies.
--
-- Each transform along a dimension is a product with a matrix of cosines and sines. Latents are 32 to 128 long, where
-- that is as fast as a fast transform, exact to f32's rounding, the same on every device, and can be recorded.

local common = require 'cr.tensor.common'
local creation = require 'cr.tensor.creation'
local operands = require 'cr.tensor.operands'

local fail, arguments, scope = common.fail, common.arguments, common.scope
local dim_of, shape_text, alive = operands.dim_of, operands.shape_text, common.alive

local M = {}

local LONGEST = 8192 -- of a dimension: its matrices have that many numbers squared

-- Cosines and sines of 2 pi j k / n, [rows n] from column 0 on: two matrices [rows, columns].
local function waves(n, rows, columns, like)
  if n > LONGEST then fail(('rfft: a dimension of %d is too long: %d at most'):format(n, LONGEST)) end
  local o = { dtype = 'i64', device = like.device }
  local j, k = creation.arange(0, rows - 1, 1, o):unsqueeze(2), creation.arange(0, columns - 1, 1, o)
  local angle = (j * k):remainder(n):to 'f64' * (2 * math.pi / n)
  return angle:cos():to(like.dtype), angle:sin():to(like.dtype)
end

-- fn(x, ...) with dimension d as the last of all tensors.
local function along(d, fn, ...)
  local list = { ... }
  for i, x in ipairs(list) do list[i] = x:transpose(d, -1):contiguous() end
  local out = { fn(unpack(list)) }
  for i, x in ipairs(out) do out[i] = x:transpose(d, -1):contiguous() end
  return unpack(out)
end

-- The transform of complex numbers along dimension d; sign -1: the inverse one, divided by the length.
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

--- The Fourier transform of a real tensor along a dimension or several (the last): real and imaginary parts, whose last
--- named dimension has the n / 2 + 1 frequencies from 0 on: re, im = cr.rfft(x, { 2, 3 }).
--- @param x Tensor
--- @param dims integer|integer[]|nil
--- @return Tensor f32 (f64 of f64)
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

--- The real tensor whose transform rfft would give: x = cr.irfft(re, im, { 2, 3 }, 64).
--- @param re Tensor
--- @param im Tensor
--- @param dims integer|integer[]|nil as given to rfft
--- @param n integer? how long the last named dimension was: 2 (frequencies - 1) unless it was odd
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
        fail(('irfft: %d frequencies are not those of a length of %d'):format(m, length))
      end
      local c, s = waves(length, m, length, p)
      -- Frequencies but 0 and the highest of an even length stand for their mirror images, too.
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
