--- What computes with tensors: elementwise operations, reductions, matrix products. Methods of cr/tensor.lua,
-- which takes them in.

local base = require 'cr.ffi'

local C, raise = base.C, base.raise

-- Puts them into M.methods; M holds `new`, `is_tensor`, `scope` and `want_tensor`, dim_of is its own.
return function(M, dim_of)
  local methods, new, is_tensor, want_tensor = M.methods, M.new, M.is_tensor, M.want_tensor

  local function binary(name, op)
    return function(a, b, out)
      out = out or new()
      local rc
      if type(b) == 'number' then
        rc = C.cr_binary_scalar(out.c, op, want_tensor(name, a).c, b, 0)
      elseif type(a) == 'number' then
        rc = C.cr_binary_scalar(out.c, op, want_tensor(name, b).c, a, 1)
      else
        rc = C.cr_binary(out.c, op, want_tensor(name, a).c, want_tensor(name, b).c)
      end
      if rc < 0 then raise() end
      return out
    end
  end

  --- Elementwise operations with broadcasting; the other side may be a number. Called as methods they
  --- take a tensor to fill as a third argument: x:add(y, out).
  --- @field add fun(self, b): Tensor  a + b, broadcast; b may be a number
  --- @field sub fun(self, b): Tensor  a - b
  --- @field mul fun(self, b): Tensor  a * b
  --- @field div fun(self, b): Tensor  a / b
  --- @field pow fun(self, b): Tensor  a ^ b
  --- @field maximum fun(self, b): Tensor  the greater of both
  --- @field minimum fun(self, b): Tensor  the smaller of both
  --- @field eq fun(self, b): Tensor  bool: equal
  --- @field ne fun(self, b): Tensor  bool: different
  --- @field lt fun(self, b): Tensor  bool: less
  --- @field le fun(self, b): Tensor  bool: less or equal
  --- @field gt fun(self, b): Tensor  bool: greater
  --- @field ge fun(self, b): Tensor  bool: greater or equal
  for name, op in pairs {
    add = C.CR_ADD, sub = C.CR_SUB, mul = C.CR_MUL, div = C.CR_DIV, pow = C.CR_POW,
    maximum = C.CR_MAX, minimum = C.CR_MIN, eq = C.CR_EQ, ne = C.CR_NE, lt = C.CR_LT,
    le = C.CR_LE, gt = C.CR_GT, ge = C.CR_GE,
  } do
    methods[name] = binary(name, op)
  end

  --- Elementwise functions, of floats; abs, neg, square and relu of integers too: x:exp().
  --- @field neg fun(self): Tensor  -x
  --- @field abs fun(self): Tensor  |x|
  --- @field exp fun(self): Tensor  e^x
  --- @field log fun(self): Tensor  the natural logarithm
  --- @field log10 fun(self): Tensor  the logarithm to base 10
  --- @field sqrt fun(self): Tensor  the square root
  --- @field rsqrt fun(self): Tensor  1 / sqrt(x)
  --- @field sin fun(self): Tensor  the sine of radians
  --- @field cos fun(self): Tensor  the cosine of radians
  --- @field tanh fun(self): Tensor  the hyperbolic tangent
  --- @field erf fun(self): Tensor  the error function
  --- @field sigmoid fun(self): Tensor  1 / (1 + e^-x)
  --- @field silu fun(self): Tensor  x * sigmoid(x)
  --- @field gelu fun(self): Tensor  x * (1 + erf(x / sqrt 2)) / 2
  --- @field relu fun(self): Tensor  max(x, 0)
  --- @field floor fun(self): Tensor  the next whole number below
  --- @field ceil fun(self): Tensor  the next whole number above
  --- @field trunc fun(self): Tensor  towards zero
  --- @field round fun(self): Tensor  to the nearest whole number, half to even
  --- @field square fun(self): Tensor  x * x
  --- @field reciprocal fun(self): Tensor  1 / x
  --- @field logical_not fun(self): Tensor  of bool
  for name, op in pairs {
    neg = C.CR_NEG, abs = C.CR_ABS, exp = C.CR_EXP, log = C.CR_LOG, log10 = C.CR_LOG10,
    sqrt = C.CR_SQRT, rsqrt = C.CR_RSQRT, sin = C.CR_SIN, cos = C.CR_COS, tanh = C.CR_TANH,
    erf = C.CR_ERF, sigmoid = C.CR_SIGMOID, silu = C.CR_SILU, gelu = C.CR_GELU, relu = C.CR_RELU,
    floor = C.CR_FLOOR, ceil = C.CR_CEIL, trunc = C.CR_TRUNC, round = C.CR_ROUND,
    square = C.CR_SQUARE, reciprocal = C.CR_RECIPROCAL, logical_not = C.CR_NOT,
  } do
    methods[name] = function(x)
      local out = new()
      if C.cr_unary(out.c, op, want_tensor(name, x).c) < 0 then raise() end
      return out
    end
  end

  --- Every element limited to low..high.
  --- @return Tensor
  function methods:clamp(low, high)
    local out = new()
    if C.cr_clamp(out.c, self.c, low or -math.huge, high or math.huge) < 0 then raise() end
    return out
  end

  local function dims_mask(name, t, dims)
    if dims == nil then return 0 end
    if type(dims) == 'number' then dims = { dims } end
    local mask = 0
    for _, d in ipairs(dims) do mask = bit.bor(mask, bit.lshift(1, dim_of(name, t, d))) end
    return mask
  end

  --- Reductions over a dimension, a list of them, or (without) all; with keep they stay with size 1.
  --- @field sum fun(self, dims, keep): Tensor  the sum: x:sum(), x:sum(2), x:sum({ 1, 2 }, true)
  --- @field mean fun(self, dims, keep): Tensor  the mean
  --- @field max fun(self, dims, keep): Tensor  the greatest; a nan is passed on
  --- @field min fun(self, dims, keep): Tensor  the least; a nan is passed on
  --- @field var fun(self, dims, keep): Tensor  the population variance
  for name, op in pairs {
    sum = C.CR_SUM, mean = C.CR_MEAN, max = C.CR_AMAX, min = C.CR_AMIN, var = C.CR_VAR,
  } do
    methods[name] = function(x, dims, keep)
      local out = new()
      if C.cr_reduce(out.c, op, want_tensor(name, x).c, dims_mask(name, x, dims), keep and 1 or 0) < 0 then raise() end
      return out
    end
  end

  --- Population standard deviation over dimensions.
  --- @return Tensor
  function methods:std(dims, keep) return self:var(dims, keep):sqrt() end

  local function arg_reduce(name, op)
    return function(x, dim, keep)
      local out = new()
      if C.cr_reduce(out.c, op, want_tensor(name, x).c, dims_mask(name, x, dim), keep and 1 or 0) < 0 then raise() end
      return out + 1
    end
  end
  methods.argmax = arg_reduce('argmax', C.CR_ARGMAX)
  methods.argmin = arg_reduce('argmin', C.CR_ARGMIN)

  --- Matrix product [... M K] x [... K N]; leading dimensions broadcast.
  --- @return Tensor
  function methods:matmul(b)
    local out = new()
    if C.cr_matmul(out.c, self.c, want_tensor('matmul', b).c) < 0 then raise() end
    return out
  end

  --- Softmax over the last dimension.
  --- @return Tensor
  function methods:softmax()
    local out = new()
    if C.cr_softmax(out.c, self.c) < 0 then raise() end
    return out
  end

  --- Rows (1-based numbers in a table or tensor) of the first dimension.
  --- @return Tensor
  function methods:gather_rows(index)
    return M.scope(function()
      index = is_tensor(index) and index:to 'i64' or M.tensor(index, { dtype = 'i64' })
      local zero_based = (index - 1):to(self.device)
      local out = new()
      if C.cr_gather_rows(out.c, self.c, zero_based.c) < 0 then raise() end
      return out
    end)
  end
end
