--- Tensor methods: elementwise functions composed of the core's operations, and in-place operations.

local common = require 'cr.tensor.common'
local creation = require 'cr.tensor.creation'
local arithmetic = require 'cr.tensor.arithmetic'
local in_reals = require 'cr.tensor.operands'.in_reals

local C, base, arguments, kinds, scope = common.C, common.base, common.arguments, common.kinds, common.scope
local fail, filled, is_tensor = common.fail, common.filled, common.is_tensor
local alive, maybe = common.alive, common.maybe

--- @class Tensor
local methods = {}
local number = maybe(arguments.number)
local unary = { alive }
local signatures = {}

-- ---- what a number is -------------------------------------------------------------------------------

--- True where an element is nan.
--- @return Tensor bool
function methods:isnan() return self:ne(self) end

--- True where an element is infinite.
--- @return Tensor bool
function methods:isinf() return scope.scope(function() return self:abs():eq(math.huge) end) end

--- True where an element is finite.
--- @return Tensor bool
function methods:isfinite() return scope.scope(function() return (self - self):eq(0) end) end

--- Replaces nan (by 0) and infinities (by the dtype's largest and smallest number).
--- @param nan number?
--- @param posinf number?
--- @param neginf number?
--- @return Tensor
function methods:nan_to_num(nan, posinf, neginf)
  return scope.scope(function()
    local most = self.dtype == 'f16' and 65504 or self.dtype == 'bf16' and 0x1.fep127 or self.dtype == 'f64' and 0x1.fffffffffffffp1023
      or 0x1.fffffep127
    local y = self:masked_fill(self:isnan(), nan or 0)
    if not posinf and not neginf then return y:clamp(-most, most) end
    return y:masked_fill(self:eq(math.huge), posinf or most):masked_fill(self:eq(-math.huge), neginf or -most)
  end)
end

-- ---- functions ----------------------------------------------------------------------------------------

--- The tangent of radians.
--- @return Tensor
function methods:tan() return in_reals(self, function(x) return x:sin() / x:cos() end) end

--- The arctangent, in radians.
--- @return Tensor
function methods:atan() return self:atan2(1) end

--- The arcsine, in radians.
--- @return Tensor
function methods:asin() return in_reals(self, function(x) return x:atan2(((1 - x) * (1 + x)):sqrt()) end) end

--- The arccosine, in radians.
--- @return Tensor
function methods:acos() return in_reals(self, function(x) return ((1 - x) * (1 + x)):sqrt():atan2(x) end) end

--- The hyperbolic sine.
--- @return Tensor
function methods:sinh()
  return in_reals(self, function(x)
    local e = x:abs():expm1() -- expm1 is precise for small x
    return x:sign() * creation.where(e:eq(math.huge), e, (e + e / (e + 1)) * 0.5)
  end)
end

--- The hyperbolic cosine.
--- @return Tensor
function methods:cosh() return in_reals(self, function(x) return x:exp() * 0.5 + x:neg():exp() * 0.5 end) end

--- The fractional part: x - x:trunc().
--- @return Tensor
function methods:frac() return scope.scope(function() return self - self:trunc() end) end

--- log(1 + e^x), stable for large |x|.
--- @return Tensor
function methods:softplus() return in_reals(self, function(x) return x:relu() + x:abs():neg():exp():log1p() end) end

--- log(sigmoid(x)).
--- @return Tensor
function methods:logsigmoid() return in_reals(self, function(x) return -x:neg():softplus() end) end

--- x * tanh(softplus(x)). Misra 2019.
--- @return Tensor
function methods:mish() return in_reals(self, function(x) return x * x:softplus():tanh() end) end

--- x, times `slope` (0.01) where it is negative.
--- @param slope number?
--- @return Tensor
function methods:leaky_relu(slope)
  return in_reals(self, function(x) return creation.where(x:ge(0), x, x * (slope or 0.01)) end)
end

--- x, or alpha (1) * (e^x - 1) where it is negative.
--- @param alpha number?
--- @return Tensor
function methods:elu(alpha)
  return in_reals(self, function(x) return creation.where(x:gt(0), x, x:clamp(-math.huge, 0):expm1() * (alpha or 1)) end)
end

--- Clamps x to low (-1) .. high (1).
--- @return Tensor
function methods:hardtanh(low, high) return self:clamp(low or -1, high or 1) end

--- Clamps x to 0 .. 6.
--- @return Tensor
function methods:relu6() return self:clamp(0, 6) end

--- The maximum of each element and a number or a tensor.
--- @return Tensor
function methods:clamp_min(low) return self:maximum(low) end

--- The minimum of each element and a number or a tensor.
--- @return Tensor
function methods:clamp_max(high) return self:minimum(high) end

--- x + (y - x) * weight.
--- @param y Tensor
--- @param weight number|Tensor
--- @return Tensor
function methods:lerp(y, weight)
  if type(weight) == 'number' and self.dtype == y.dtype and table.concat(self.shape, ' ') == table.concat(y.shape, ' ') then
    return creation.lincomb({ self, y }, { 1 - weight, weight })
  end
  return in_reals(self, function(x) return x + (y - x) * weight end)
end

--- x + value (1) * a * b.
--- @return Tensor
function methods:addcmul(a, b, value)
  if self.dtype:sub(1, 1) == 'i' or self.dtype == 'u8' then return scope.scope(function() return self + a * b * (value or 1) end) end
  return in_reals(self, function(x) return x + a:to(x.dtype) * b * (value or 1) end)
end

--- x + value (1) * a / b.
--- @return Tensor
function methods:addcdiv(a, b, value) return in_reals(self, function(x) return x + a:to(x.dtype) / b * (value or 1) end) end

-- ---- truth ----------------------------------------------------------------------------------------------

--- True where an element is 0.
--- @return Tensor bool
function methods:logical_not()
  if self.dtype ~= 'bool' then return self:eq(0) end
  return arithmetic.logical_not(self)
end

--- True where both are nonzero.
--- @return Tensor bool
function methods:logical_and(b) return scope.scope(function() return self:ne(0):minimum(b:ne(0)) end) end

--- True where at least one of the two is nonzero.
--- @return Tensor bool
function methods:logical_or(b) return scope.scope(function() return self:ne(0):maximum(b:ne(0)) end) end

--- True where exactly one of the two is nonzero.
--- @return Tensor bool
function methods:logical_xor(b) return scope.scope(function() return self:ne(0):ne(b:ne(0)) end) end

--- Returns whether any element is nonzero, over all or over some dimensions.
--- @return Tensor bool
function methods:any(dims, keep) return scope.scope(function() return self:ne(0):max(dims, keep) end) end

--- Returns whether all elements are nonzero, over all or over some dimensions.
--- @return Tensor bool
function methods:all(dims, keep) return scope.scope(function() return self:ne(0):min(dims, keep) end) end

--- Returns whether two tensors have the same sizes and elements.
--- @return boolean
function methods:equal(b)
  if table.concat(self.shape, ' ') ~= table.concat(b.shape, ' ') then return false end
  if self:numel() == 0 then return true end
  return scope.scope(function() return self:eq(b):min():item() end)
end

--- Returns whether |a - b| <= atol (1e-8) + rtol (1e-5) * |b| everywhere.
--- @param b Tensor|number
--- @param rtol number?
--- @param atol number?
--- @return boolean
function methods:allclose(b, rtol, atol)
  return scope.scope(function()
    if not is_tensor(b) then b = creation.full({}, b, { dtype = self.dtype, device = self.device }) end
    local x, y = self:to 'f64', b:to 'f64'
    local near = (x - y):abs():le(y:abs() * (rtol or 1e-5) + (atol or 1e-8)):logical_or(x:eq(y))
    return near:numel() == 0 or near:min():item()
  end)
end

-- ---- in place ---------------------------------------------------------------------------------------------

-- Makes the in-place form of an operation. The result is converted to x's dtype.
local function in_place(name, row, exact)
  signatures[name .. '_'] = row
  local fn = arithmetic[name]
  methods[name .. '_'] = function(x, ...)
    local other = ...
    -- With an operand of another dtype, or one that shares x's storage, the result is computed in a new tensor and copied.
    if not is_tensor(other) or other.c.dtype == x.c.dtype and other.c.storage ~= x.c.storage then return exact(x, other) end
    scope.scope(function(...) x:copy_(fn(x, ...)) end, ...)
    return x
  end
end

local operand = { alive, kinds.operand }
for op = 0, C.CR_BINARY_OPS - 1 do
  local name = base.binary[op]
  local real = name == 'div' or name == 'atan2' or name == 'pow'
  in_place(name, operand, function(x, y)
    local dtype = x.dtype
    local float = dtype == 'f32' or dtype == 'f64' or dtype == 'f16' or dtype == 'bf16'
    if not float and (real or type(y) == 'number' and y % 1 ~= 0) then
      fail(('%s_: %s cannot hold the result, which is not whole: use x:%s(...) for a new tensor'):format(name, dtype, name))
    end
    return arithmetic[name](x, y, x)
  end)
end
for op = 0, C.CR_UNARY_OPS - 1 do
  in_place(base.unary[op], unary, function(x) return filled(x, C.cr_unary(x.c, op, x.c)) end)
end

--- Clamps every element to low..high in place.
--- @param low number? without it no lower limit
--- @param high number? without it no upper limit
--- @return Tensor itself
function methods:clamp_(low, high)
  scope.scope(function() self:copy_(self:clamp(low, high)) end)
  return self
end

--- Overwrites every element with 0.
--- @return Tensor itself
function methods:zero_() return self:fill_(0) end

--- x + (y - x) * weight in place.
--- @return Tensor itself
function methods:lerp_(y, weight)
  scope.scope(function() self:copy_(self:lerp(y, weight)) end)
  return self
end

--- Writes y where the mask is true.
--- @return Tensor itself
function methods:masked_fill_(mask, y)
  scope.scope(function() self:copy_(self:masked_fill(mask, y)) end)
  return self
end

local function drawn_in_place(draw, fn)
  return function(x, a, b, options)
    scope.scope(function()
      local made = draw(x.shape, { device = x.device, generator = options and options.generator })
      x:copy_(fn(made, a, b))
    end)
    return x
  end
end

--- Fills the tensor with normal numbers with a mean (0) and a standard deviation (1).
--- @param mean number?
--- @param std number?
--- @param options table? {generator = from cr.generator}
--- @return Tensor itself
function methods:normal_(mean, std, options)
  return drawn_in_place(creation.randn, function(x, a, b) return x * (b or 1) + (a or 0) end)(self, mean, std, options)
end

--- Fills the tensor with uniform numbers from low (0) up to, but excluding, high (1).
--- @param low number?
--- @param high number?
--- @param options table? {generator = from cr.generator}
--- @return Tensor itself
function methods:uniform_(low, high, options)
  return drawn_in_place(creation.rand, function(x, a, b) return x * ((b or 1) - (a or 0)) + (a or 0) end)(self, low, high, options)
end

local two, alpha = { alive, alive }, { alive, number }
local dimensions = { alive, maybe(kinds.dimensions), maybe(arguments.boolean) }
local drawn = maybe(arguments.options { generator = maybe(kinds.generator) })
for name, row in pairs {
  isnan = unary, isinf = unary, isfinite = unary, nan_to_num = { alive, number, number, number },
  tan = unary, atan = unary, asin = unary, acos = unary, sinh = unary, cosh = unary, frac = unary, softplus = unary, logsigmoid = unary,
  mish = unary, leaky_relu = alpha, elu = alpha, hardtanh = { alive, number, number }, relu6 = unary,
  clamp_ = { alive, number, number }, clamp_min = operand, clamp_max = operand,
  lerp = { alive, alive, kinds.operand }, lerp_ = { alive, alive, kinds.operand },
  addcmul = { alive, alive, alive, number }, addcdiv = { alive, alive, alive, number },
  logical_not = unary, logical_and = two, logical_or = two, logical_xor = two, any = dimensions, all = dimensions, equal = two,
  allclose = { alive, kinds.operand, number, number }, zero_ = unary, masked_fill_ = { alive, alive, kinds.operand },
  normal_ = { alive, number, number, drawn }, uniform_ = { alive, number, number, drawn },
} do signatures[name] = row end
return arguments.guard('', methods, signatures, 'x')
