--- ONNX's elementwise operators.

local layers = require 'cr.graphs.layers'
local tensor = require 'cr.tensor'

local rows = {}

local FLOATS = { f32 = true, f16 = true, bf16 = true, f64 = true }

-- ---- of one tensor ----------------------------------------------------------------------------

--- Makes the row of a unary operator, which keeps the layout. `fn` is the function of a tensor.
local function unary(fn) return { make = function(n)
  n:any(1)
  return fn
end } end

local function with(prepare) return { make = function(n)
  local fn = prepare(n)
  n:any(1)
  return fn
end } end

for name, method in pairs {
  Abs = 'abs', Neg = 'neg', Exp = 'exp', Log = 'log', Sqrt = 'sqrt', Sin = 'sin', Cos = 'cos', Tanh = 'tanh', Erf = 'erf',
  Floor = 'floor', Ceil = 'ceil', Round = 'round', Reciprocal = 'reciprocal',
} do
  rows[name] = unary(function(x) return x[method](x) end)
end

rows.Relu = unary(function(x) return x:relu() end)
rows.Relu.act = function() return { act = 'relu' } end
rows.Sigmoid = unary(function(x) return x:sigmoid() end)
rows.Sigmoid.act = function() return { act = 'sigmoid' } end

rows.Not = unary(function(x) return x:eq(0) end)
rows.Tan = unary(function(x) return x:sin() / x:cos() end)
rows.Sinh = unary(function(x) return (x:exp() - x:neg():exp()) / 2 end)
rows.Cosh = unary(function(x) return (x:exp() + x:neg():exp()) / 2 end)
rows.Sign = unary(function(x) return x:gt(0):to(x.dtype) - x:lt(0):to(x.dtype) end)
rows.Softsign = unary(function(x) return x / (x:abs() + 1) end)
rows.IsNaN = unary(function(x) return x:ne(x) end)
rows.HardSwish = unary(function(x) return x * (x / 6 + 0.5):clamp(0, 1) end)

-- log(1 + e^x) without overflow.
local function softplus(x) return x:maximum(0) + (x:abs():neg():exp() + 1):log() end
rows.Softplus = unary(softplus)
rows.Mish = unary(function(x) return x * softplus(x):tanh() end)

--- gain * x above 0, gain * alpha * (e^(x / scale) - 1) below.
local function exponential(x, alpha, gain, scale)
  local below = (((x:minimum(0) / scale):exp()) - 1) * alpha
  return (x:maximum(0) + below) * gain
end

rows.Elu = with(function(n)
  local alpha = n:attribute('alpha', 1)
  return function(x) return exponential(x, alpha, 1, 1) end
end)
rows.Celu = with(function(n)
  local alpha = n:attribute('alpha', 1)
  return function(x) return exponential(x, alpha, 1, alpha) end
end)
rows.Selu = with(function(n)
  local alpha = n:attribute('alpha', 1.67326319217681884765625)
  local gamma = n:attribute('gamma', 1.05070102214813232421875)
  return function(x) return exponential(x, alpha, gamma, 1) end
end)

rows.LeakyRelu = with(function(n)
  local alpha = n:attribute('alpha', 0.01)
  local steep = layers.is_steep(alpha)
  return function(x) return layers.prelu(x, alpha, steep) end
end)
rows.LeakyRelu.act = function(node) return { act = 'prelu', slope = node.attributes.alpha or 0.01 } end

rows.ThresholdedRelu = with(function(n)
  local alpha = n:attribute('alpha', 1)
  return function(x) return x * x:gt(alpha):to(x.dtype) end
end)
rows.HardSigmoid = with(function(n)
  local alpha, beta = n:attribute('alpha', 0.2), n:attribute('beta', 0.5)
  return function(x) return (x * alpha + beta):clamp(0, 1) end
end)
rows.Shrink = with(function(n)
  local bias, lambd = n:attribute('bias', 0), n:attribute('lambd', 0.5)
  return function(x) return x:lt(-lambd):to(x.dtype) * (x + bias) + x:gt(lambd):to(x.dtype) * (x - bias) end
end)
rows.Gelu = with(function(n)
  if n:text('approximate', 'none') ~= 'tanh' then return function(x) return x:gelu() end end
  return function(x)
    return x * 0.5 * (((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)):tanh() + 1)
  end
end)
rows.IsInf = with(function(n)
  local below, above = n:attribute('detect_negative', 1), n:attribute('detect_positive', 1)
  return function(x)
    local up, down = x:eq(math.huge), x:eq(-math.huge)
    return above == 0 and (below == 0 and up:ne(up) or down) or below == 0 and up or up + down
  end
end)

rows.Clip = { make = function(n)
  local low, high = n:attribute 'min', n:attribute 'max'
  if n.opset >= 11 then low, high = n:number(2), n:number(3) end
  n:any(1)
  low, high = low or -math.huge, high or math.huge
  return function(x) return low > high and x:clamp(high, high) or x:clamp(low, high) end
end, act = function(node)
  local limits = { node.attributes.min or false, node.attributes.max or false }
  for k = 1, 2 do
    local v = node.inputs[k + 1]
    if v then
      if not v.load or v.shape[1] then return nil end
      local ok, number = pcall(tensor.scope, function() return v.load():item() end)
      if not ok then return nil end -- the error is raised when it runs
      limits[k] = number
    end
  end
  if limits[1] ~= 0 or limits[2] and limits[2] ~= 6 then return nil end
  return { act = limits[2] and 'relu6' or 'relu' }
end }

-- ---- of several -------------------------------------------------------------------------------

--- Makes the row of a binary operator with NumPy broadcasting.
local function binary(fn)
  return { make = function(n)
    if n.opset < 7 then n:fail('broadcasting of operator set %d is not handled', n.opset) end
    n:broadcast { 1, 2 }
    return fn
  end }
end

rows.Add = binary(function(a, b) return a + b end)
rows.Add.kind = 'add'
rows.Sub = binary(function(a, b) return a - b end)
rows.Mul = binary(function(a, b) return a * b end)
rows.Equal = binary(function(a, b) return a:eq(b) end)
rows.Greater = binary(function(a, b) return a:gt(b) end)
rows.GreaterOrEqual = binary(function(a, b) return a:ge(b) end)
rows.Less = binary(function(a, b) return a:lt(b) end)
rows.LessOrEqual = binary(function(a, b) return a:le(b) end)
rows.And = binary(function(a, b) return a * b end)
rows.Or = binary(function(a, b) return a + b end)
rows.Xor = binary(function(a, b) return a:ne(b) end)

-- Integer division truncates towards zero.
rows.Div = binary(function(a, b)
  if FLOATS[a.dtype] then return a / b end
  return (a:to 'f64' / b:to 'f64'):trunc():to(a.dtype)
end)
rows.Pow = binary(function(a, b)
  if FLOATS[a.dtype] then return a ^ b:to(a.dtype) end
  return (a:to 'f64' ^ b:to 'f64'):to(a.dtype)
end)
rows.Mod = { make = function(n)
  local like_c = n:attribute('fmod', 0) ~= 0
  n:broadcast { 1, 2 }
  return function(a, b)
    local x, y = a:to 'f64', b:to 'f64'
    local q = x / y
    return (x - (like_c and q:trunc() or q:floor()) * y):to(a.dtype)
  end
end }

rows.PRelu = { make = function(n)
  local shape, slope = n:shape(1), n:shape(2)
  local rank = #shape
  if rank >= 3 and #slope == 1 and slope[1] ~= 1 and layers.is_by_channel(slope, shape) then
    n:last(1) -- old exporters mean the channels by a slope of one dimension
    n:plain(2)
    n.lasts = true
  else
    n:broadcast { 1, 2 }
  end
  local steep = n:is_constant(2) and layers.is_steep(n:constant(2))
  return function(x, by) return layers.prelu(x, by, steep) end
end, act = function(node)
  local slope = node.inputs[2]
  return slope and slope.load and { act = 'prelu', slope = slope } or nil
end }

--- Makes the row of an operator of any number of tensors.
local function many(fn, finish)
  return { make = function(n)
    local all = {}
    for i = 1, #n.inputs do all[i] = i end
    n:broadcast(all)
    return function(first, ...)
      local y, count = first, select('#', ...)
      for i = 1, count do y = fn(y, (select(i, ...))) end
      return finish and finish(y, count + 1) or y
    end
  end }
end

rows.Max = many(function(a, b) return a:maximum(b) end)
rows.Min = many(function(a, b) return a:minimum(b) end)
rows.Sum = many(function(a, b) return a + b end)
rows.Mean = many(function(a, b) return a + b end, function(y, count) return y / count end)

rows.Where = { make = function(n)
  n:broadcast { 1, 2, 3 }
  return function(condition, a, b) return tensor.where(condition, a, b) end
end }

-- ---- other types ------------------------------------------------------------------------------

-- The index is the number of TensorProto's DataType.
local TYPES = { 'f32', 'u8', 'i8', nil, 'i16', 'i32', 'i64', nil, 'bool', 'f16', 'f64', [16] = 'bf16' }

local function cast(n, dtype)
  n:any(1)
  if dtype == 'bool' then return function(x) return x:ne(0) end end
  -- A conversion to f32 converts to the network's dtype instead, unless its input is a constant.
  local narrow = dtype == 'f32' and not n:is_constant(1) and n.plan.net.dtype
  return function(x) return x:to(narrow or dtype) end
end

rows.Cast = { make = function(n)
  local to = n:attribute 'to'
  if not TYPES[to] then n:fail('a conversion to type %s is not handled', tostring(to)) end
  return cast(n, TYPES[to])
end }
rows.CastLike = { make = function(n) return cast(n, n:dtype(2)) end }

rows.Identity = { make = function(n)
  n:any(1)
  return function(x) return x end
end }

rows.Dropout = { make = function(n)
  if n.opset >= 12 and n:has(3) and n:number(3) ~= 0 and n:number(2, 0.5) ~= 0 then
    n:fail('training is not handled')
  end
  local mask = n.node.outputs[2]
  n:any(1)
  return function(x) return x, mask and x:eq(x):ne(-1) or nil end
end }

return rows
