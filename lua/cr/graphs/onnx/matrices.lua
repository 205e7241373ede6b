--- ONNX's matrix products and softmax.

local nn = require 'cr.nn'

local rows = {}

rows.MatMul = { make = function(n)
  local a, b = n:rank(1), n:rank(2)
  if a == 0 or b == 0 then n:fail 'a scalar is no matrix' end
  local shape, left = {}, n:shape(1)
  for k = 1, math.max(a, b) do shape[k] = math.max(left[k - math.max(a, b) + a] or 1, n:shape(2)[k - math.max(a, b) + b] or 1) end
  if a > 1 and b > 1 then shape[#shape - 1], shape[#shape] = left[a - 1], n:shape(2)[b] end
  n:room(shape)
  n:plain(1)
  -- The pixels of a picture, or the rows of a batch, times one constant matrix.
  if b == 2 and a >= 2 and n:is_constant(2) and n:dtype(1) ~= 'f64' and n:dtype(1):find 'f' then
    n:once('weight', { 2 }, function() return n:constant(2):t():contiguous() end)
    return function(x, w) return nn.linear({ weight = w }, x:contiguous()) end
  end
  n:plain(2)
  return function(x, y)
    local dtype = x.dtype
    if dtype ~= 'f32' and not dtype:find 'f' then x, y = x:to 'f64', y:to 'f64' end
    if a == 1 then x = x:unsqueeze(1) end
    if b == 1 then y = y:unsqueeze(2) end
    local z = x:matmul(y)
    if b == 1 then z = z:squeeze(-1) end
    if a == 1 then z = z:squeeze(b == 1 and -1 or -2) end
    return z:to(dtype)
  end
end }

rows.Gemm = { make = function(n)
  local alpha, beta = n:attribute('alpha', 1), n:attribute('beta', 1)
  local turn_a, turn_b = n:attribute('transA', 0) ~= 0, n:attribute('transB', 0) ~= 0
  local columns = n:shape(2)[turn_b and 1 or 2]
  n:plain(1)
  local function left(x) return turn_a and x:t() or x end
  local vector = not n:has(3) or (n:is_constant(3) and #n:shape(3) == 1 and n:shape(3)[1] == columns)
  if n:is_constant(2) and vector then
    n:once('weight', { 2 }, function()
      local w = n:constant(2)
      w = turn_b and w or w:t()
      return alpha == 1 and w:clone() or w * alpha
    end)
    if n:has(3) then n:once('bias', { 3 }, function() return n:constant(3) * beta end) end
    return function(x, w, b) return nn.linear({ weight = w, bias = b }, left(x):contiguous()) end
  end
  n:plain(2)
  if n:has(3) then n:plain(3) end
  return function(x, w, c)
    local y = left(x):matmul(turn_b and w:t() or w)
    if alpha ~= 1 then y = y * alpha end
    return c and y + (beta == 1 and c or c * beta) or y
  end
end }

--- Makes the row of an operator along one axis or, before operator set 13, along all axes from one on.
local function along(fn)
  return { make = function(n)
    local rank, old = n:rank(1), n.opset < 13
    local axis = n:axis(n:attribute('axis', old and 1 or -1), math.max(rank, 1))
    n:plain(1)
    if old and axis < rank - 1 then
      local rows_, columns = 1, 1
      for k, size in ipairs(n:shape(1)) do
        if k <= axis then rows_ = rows_ * size else columns = columns * size end
      end
      return function(x) return fn(x:reshape(rows_, columns), 2):reshape(x.shape) end
    end
    return function(x) return fn(x, axis + 1) end
  end }
end

rows.Softmax = along(function(x, dim) return x:softmax(dim) end)
rows.LogSoftmax = along(function(x, dim)
  local y = x - x:max(dim, true)
  return y - y:exp():sum(dim, true):log()
end)
rows.Hardmax = along(function(x, dim)
  local place = x:argmax(dim, true) -- counted from 1
  local shape = {}
  for k = 1, x:dim() do shape[k] = k == dim and x.shape[dim] or 1 end
  local numbers = x:eq(x):to('i64')
  -- The index of each element along the dimension, as a cumulative sum of ones.
  local parts = {}
  for i = 1, shape[dim] do parts[i] = numbers:narrow(dim, i, 1) * i end
  return require 'cr.tensor'.cat(parts, dim):eq(place):to(x.dtype)
end)

return rows
