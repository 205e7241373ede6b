--- Functions of `cr` that make tensors: constants, from numbers, from memory, random ones, and from lists of tensors.

local common = require 'cr.tensor.common'
local operands = require 'cr.tensor.operands'

local ffi, base, arguments, kinds = common.ffi, common.base, common.arguments, common.kinds
local C, raise, fail, shape_type = common.C, common.raise, common.fail, common.shape_type
local pointers_type = ffi.typeof 'const cr_tensor *[?]'

local M = {}

local new, filled, is_tensor = common.new, common.filled, common.is_tensor
local shape_of, dim_of = operands.shape_of, operands.dim_of
local dtype_code, device_code = operands.dtype_code, operands.device_code
local alive, maybe, want = common.alive, common.maybe, arguments.want
local text = maybe(arguments.string)
local placed = arguments.options { dtype = text, device = text }
local drawing = arguments.options {
  dtype = text, device = text,
  generator = maybe(kinds.generator),
}

--- Makes a tensor with undefined contents.
--- @param ... integer|table sizes, then options {dtype=, device=}
--- @return Tensor
function M.empty(...)
  local shape, rank, o = shape_of('empty', placed, ...)
  local out = new()
  return filled(out, C.cr_empty(out.c, rank, shape, dtype_code('empty', o.dtype), device_code('empty', o.device)))
end

local function constant(name, value, ...)
  local shape, rank, o = shape_of(name, placed, ...)
  local out = new()
  filled(out, C.cr_empty(out.c, rank, shape, dtype_code(name, o.dtype), device_code(name, o.device)))
  return filled(out, C.cr_fill(out.c, value))
end

--- Makes a tensor of zeros: cr.zeros(2, 3) or cr.zeros({2, 3}, {dtype = 'f16'}).
--- @return Tensor
function M.zeros(...) return constant('zeros', 0, ...) end

--- Makes a tensor of ones.
--- @return Tensor
function M.ones(...) return constant('ones', 1, ...) end

--- Makes a tensor with one value in all elements: cr.full({2, 3}, 0.5).
--- @param shape integer[]
--- @param value number
--- @param options table? {dtype=, device=}
--- @return Tensor
function M.full(shape, value, options) return constant('full', value, shape, options or {}) end

--- Makes evenly spaced numbers, including the end: cr.arange(3) is 1 2 3, cr.arange(0, 1, 0.5) is 0 0.5 1.
--- @return Tensor
function M.arange(first, last, step, options)
  if type(step) == 'table' then step, options = nil, step end
  if type(last) == 'table' then last, options = nil, last end
  if last == nil then first, last = 1, first end
  want('arange: last', arguments.finite, last)
  step = want('arange: step', arguments.finite, step or 1)
  options = want('arange', placed, options or {})
  if step == 0 then fail 'arange: step: steps of 0 never reach the end' end
  local n = math.max(0, math.floor((last - first) / step + 1e-9) + 1)
  if n > 2 ^ 31 - 1 then fail(('arange: %g numbers are too many for one dimension'):format(n)) end
  local out = new()
  return filled(out, C.cr_arange(out.c, n, first, step, dtype_code('arange', options.dtype),
    device_code('arange', options.device)))
end

local function table_shape(value)
  local shape = {}
  while type(value) == 'table' do
    if #shape == 8 then fail 'tensor: a tensor has at most 8 dimensions' end
    shape[#shape + 1] = #value
    value = value[1]
  end
  return shape
end

local function fill_flat(buffer, at, value, shape, depth)
  if depth > #shape then
    local kind = type(value)
    if kind == 'boolean' then value = value and 1 or 0
    elseif kind ~= 'number' and not ffi.istype('int64_t', value) and not ffi.istype('uint64_t', value) then
      fail(('tensor: element %d is %s, not a number'):format(at + 1, arguments.shown(value)))
    end
    buffer[at] = value
    return at + 1
  end
  if type(value) ~= 'table' or #value ~= shape[depth] then
    fail('tensor: rows at depth ' .. depth .. ' differ in length')
  end
  for i = 1, #value do at = fill_flat(buffer, at, value[i], shape, depth + 1) end
  return at
end

--- Makes a tensor from a nested table of numbers, or a scalar from a number.
---
---     cr.tensor {{1, 2}, {3, 4}}
--- @param value number|table
--- @param options table? {dtype = 'f32', device=, shape = integer[] (for a flat table)}
--- @return Tensor
function M.tensor(value, options)
  options = options or {}
  if is_tensor(value) then
    local out = value:to(options.dtype or value.dtype):to(options.device or value.device)
    return options.shape and out:reshape(options.shape) or out
  end
  local shape = table_shape(value)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  local dtype = options.dtype or 'f32'
  local code = dtype_code('tensor', dtype)
  -- i64 represents whole numbers that a double cannot.
  local staging = dtype == 'i64' and 'i64' or 'f64'
  local c_shape = shape_type(shape)
  local out = common.scope.scope(function()
    local flat = M.empty({ n }, { dtype = staging })
    fill_flat(flat:pointer(), 0, value, shape, 1)
    local full = new()
    if C.cr_view(full.c, flat.c, #shape, c_shape) < 0 then raise() end
    local cast = new()
    if C.cr_cast(cast.c, full.c, code) < 0 then raise() end
    return cast
  end)
  if options.shape then out = out:view(options.shape) end
  if options.device and options.device ~= 'cpu' then out = out:to(options.device) end
  return out
end

--- Makes a CPU tensor over existing memory. `keep` is referenced as long as the tensor lives.
--- @return Tensor
function M.from_pointer(pointer, shape, dtype, keep)
  local out = new()
  if C.cr_from_memory(out.c, ffi.cast('void *', pointer), #shape, shape_type(shape),
    dtype_code('from_pointer', dtype)) < 0 then
    raise()
  end
  if keep ~= nil then M.anchors[out] = keep end
  return out
end
-- Keeps Lua objects alive as long as the tensors over their memory.
M.anchors = setmetatable({}, { __mode = 'k' })

local function pointers(list)
  local xs = pointers_type(#list)
  for i, t in ipairs(list) do xs[i - 1] = t.c end
  return xs, #list
end

--- Joins tensors along a dimension.
--- @param list Tensor[]
--- @param dim integer? 1
--- @return Tensor
function M.cat(list, dim)
  local xs, n = pointers(list)
  local out = new()
  if C.cr_cat(out.c, n, xs, dim_of('cat', list[1], dim or 1)) < 0 then raise() end
  return out
end

--- Joins tensors of one shape along a new dimension.
--- @param list Tensor[]
--- @param dim integer? its number in the result (1)
--- @return Tensor
function M.stack(list, dim)
  dim = dim or 1
  local parts = {}
  for i, t in ipairs(list) do parts[i] = t:unsqueeze(dim) end
  return M.cat(parts, dim)
end

--- Computes the sum of coefficients[i] * xs[i] in one fused operation. Every sampling step is one such call.
--- @param xs Tensor[] equal shapes
--- @param coefficients number[]
--- @param options table? {out = Tensor to fill, which may be one of xs}
--- @return Tensor
function M.lincomb(xs, coefficients, options)
  local list, n = pointers(xs)
  if #coefficients ~= n then fail(('lincomb: %d tensors but %d coefficients'):format(n, #coefficients)) end
  local out = options and options.out or new()
  return filled(out, C.cr_lincomb(out.c, n, list, ffi.new('double[?]', n, coefficients)))
end

--- condition ? a : b, elementwise. a and b may be numbers (two numbers give f32).
--- @return Tensor
function M.where(condition, a, b)
  local like = is_tensor(a) and a or is_tensor(b) and b or { dtype = 'f32', device = condition.device }
  local function operand(v)
    return is_tensor(v) and v or M.full({}, v, { dtype = like.dtype, device = like.device })
  end
  local out, yes, no = new(), operand(a), operand(b) -- the locals keep tensors alive, since C holds only their addresses
  return filled(out, C.cr_where(out.c, condition.c, yes.c, no.c))
end

-- ---- like another tensor -------------------------------------------------------------------

-- Completes options with the dtype and the device of a tensor.
local function like(x, options)
  options = options or {}
  return { dtype = options.dtype or x.dtype, device = options.device or x.device, generator = options.generator }
end

--- Makes zeros with the sizes, dtype and device of another tensor.
--- @param x Tensor
--- @param options table? {dtype=, device=}
--- @return Tensor
function M.zeros_like(x, options) return M.zeros(x.shape, like(x, options)) end

--- Makes ones with the sizes, dtype and device of another tensor.
--- @param x Tensor
--- @param options table? {dtype=, device=}
--- @return Tensor
function M.ones_like(x, options) return M.ones(x.shape, like(x, options)) end

--- Makes a tensor with undefined contents, with the sizes, dtype and device of another tensor.
--- @param x Tensor
--- @param options table? {dtype=, device=}
--- @return Tensor
function M.empty_like(x, options) return M.empty(x.shape, like(x, options)) end

--- Makes a tensor of one value with the sizes, dtype and device of another tensor.
--- @param x Tensor
--- @param value number
--- @param options table? {dtype=, device=}
--- @return Tensor
function M.full_like(x, value, options) return M.full(x.shape, value, like(x, options)) end

-- ---- series and grids ------------------------------------------------------------------------

--- Makes n evenly spaced numbers from first to last, both included.
--- @param first number
--- @param last number
--- @param n integer
--- @param options table? {dtype=, device=}
--- @return Tensor [n]
function M.linspace(first, last, n, options)
  options = options or {}
  local out = new()
  return filled(out, C.cr_arange(out.c, n, first, n > 1 and (last - first) / (n - 1) or 0, dtype_code('linspace', options.dtype),
    device_code('linspace', options.device)))
end

--- Makes n powers of 10, whose exponents are evenly spaced from first to last.
--- @param first number
--- @param last number
--- @param n integer
--- @param options table? {dtype=, device=}
--- @return Tensor [n]
function M.logspace(first, last, n, options)
  options = options or {}
  return common.scope.scope(function()
    local exponents = M.linspace(first, last, n, { dtype = 'f64', device = options.device })
    return (exponents * math.log(10)):exp():to(options.dtype or 'f32')
  end)
end

--- Makes an n x n (or n x m) matrix with ones on the diagonal.
--- @param n integer
--- @param m integer? n
--- @param options table? {dtype=, device=}
--- @return Tensor
function M.eye(n, m, options)
  if type(m) == 'table' then m, options = nil, m end
  want('eye: m', maybe(arguments.natural), m)
  want('eye', maybe(placed), options)
  m = m or n
  return common.scope.scope(function()
    local out = M.zeros({ n * m }, options or {})
    local diagonal = math.min(n, m)
    if diagonal > 0 then out:slice(1, 1, (diagonal - 1) * (m + 1) + 1, m + 1):fill_(1) end
    return out:view(n, m)
  end)
end

--- Makes coordinate grids, one tensor for each given vector. The sizes are the lengths of all vectors.
--- @param ... Tensor vectors
--- @return Tensor[] views
function M.meshgrid(...)
  local list, sizes, grids = { ... }, {}, {}
  for k, v in ipairs(list) do
    want(('meshgrid: argument %d'):format(k), alive, v)
    if v:dim() ~= 1 then fail(('meshgrid: argument %d: a vector is needed, not %s'):format(k, operands.shape_text(v))) end
    sizes[k] = v:size(1)
  end
  for k, v in ipairs(list) do
    local shape = {}
    for j = 1, #list do shape[j] = j == k and sizes[k] or 1 end
    grids[k] = v:view(shape, {}):expand(sizes, {})
  end
  return grids
end

-- ---- random numbers ------------------------------------------------------------------------

--- @alias Generator ffi.cdata* what cr.generator makes

--- Makes a generator of random numbers of the kind 'philox' (the same numbers on every device; the default),
--- 'torch-cpu' or 'torch-cuda' (torch.randn's numbers for the seed). From another generator it makes an independent
--- copy with the same state.
--- @param seed integer|Generator
--- @param kind string? only with a seed
function M.generator(seed, kind)
  local out = ffi.new 'cr_generator *[1]'
  if kinds.generator.test(seed) then
    if kind then fail 'generator: a copy has the kind of its original: leave the kind out' end
    if C.cr_generator_copy(out, seed) < 0 then raise() end
  elseif C.cr_generator_new(out, base.generator_kinds[kind or 'philox'], seed) < 0 then
    raise()
  end
  return ffi.gc(out[0], C.cr_generator_free)
end

--- Advances a generator as cr.randn of n numbers would. For 'philox' and 'torch-cuda' this draws no numbers.
--- @param generator Generator
--- @param n integer
--- @param dtype string? 'f32'
function M.skip_randn(generator, n, dtype)
  if C.cr_generator_skip(generator, n, dtype_code('skip_randn', dtype)) < 0 then raise() end
end

local default_generator
--- Seeds the generator that cr.randn and cr.rand use when none is given.
function M.manual_seed(seed) default_generator = M.generator(seed, 'philox') end

local function drawn(name, fn, ...)
  local shape, rank, o = shape_of(name, drawing, ...)
  if not o.generator and not default_generator then M.manual_seed(os.time()) end
  local out = new()
  if fn(out.c, rank, shape, dtype_code(name, o.dtype), device_code(name, o.device),
    o.generator or default_generator) < 0 then
    raise()
  end
  return out
end

--- Draws standard normal numbers: cr.randn(2, 3, {generator = cr.generator(1247, 'torch-cpu')}).
--- @return Tensor
function M.randn(...) return drawn('randn', C.cr_randn, ...) end

--- Draws uniform numbers in [0, 1).
--- @return Tensor
function M.rand(...) return drawn('rand', C.cr_rand, ...) end

--- Draws standard normal numbers with the sizes, dtype and device of another tensor.
--- @param x Tensor
--- @param options table? {dtype=, device=, generator=}
--- @return Tensor
function M.randn_like(x, options) return M.randn(x.shape, like(x, options)) end

--- Draws uniform numbers in [0, 1) with the sizes, dtype and device of another tensor.
--- @param x Tensor
--- @param options table? {dtype=, device=, generator=}
--- @return Tensor
function M.rand_like(x, options) return M.rand(x.shape, like(x, options)) end

--- Draws uniform whole numbers from low up to, but excluding, high: cr.randint(0, 10, { 3 }).
--- @param low integer
--- @param high integer
--- @param shape integer[]
--- @param options table? {dtype = 'i64', device=, generator=}
--- @return Tensor
function M.randint(low, high, shape, options)
  options = options or {}
  if high <= low then fail(('randint: low = %d must be below high = %d'):format(low, high)) end
  return common.scope.scope(function()
    local u = M.rand(shape, { dtype = 'f64', device = options.device, generator = options.generator })
    -- Rounding may give 1.
    return (u * (high - low)):floor():clamp(0, high - low - 1):add(low):to(options.dtype or 'i64')
  end)
end

--- Draws a random permutation of the numbers 1 to n.
--- @param n integer
--- @param options table? {device=, generator=}
--- @return Tensor i64 [n]
function M.randperm(n, options)
  options = options or {}
  return common.scope.scope(function()
    return (M.rand({ n }, { dtype = 'f64', device = options.device, generator = options.generator }):argsort())
  end)
end

local generators = {}
for i = 0, C.CR_RNG_KINDS - 1 do generators[i + 1] = base.generator_kinds[i] end
local address = arguments.kind('an address', function(v)
  return type(v) == 'cdata' and v ~= nil and not is_tensor(v) and pcall(ffi.cast, 'void *', v)
end)
local sizes = arguments.list('a list of sizes', arguments.integer, 0, 8)
local tensors = arguments.list('a list of tensors', alive, 1)
return arguments.guard('', M, {
  full = { arguments.either('a list of sizes', sizes, arguments.integer), arguments.number, maybe(placed) },
  arange = { arguments.finite, arguments.any, arguments.any, arguments.any },
  tensor = { arguments.kind('a number or a table of numbers', function(v) return v ~= nil end, nil),
    maybe(arguments.options { dtype = text, device = text, shape = maybe(sizes) }) },
  from_pointer = { address, sizes, text, arguments.any },
  cat = { tensors, maybe(arguments.integer) },
  stack = { tensors, maybe(arguments.integer) },
  lincomb = { tensors, arguments.list('a list of numbers', arguments.number), maybe(arguments.options { out = maybe(kinds.result) }) },
  where = { alive, kinds.operand, kinds.operand },
  zeros_like = { alive, maybe(placed) }, ones_like = { alive, maybe(placed) }, empty_like = { alive, maybe(placed) },
  full_like = { alive, arguments.number, maybe(placed) }, randn_like = { alive, maybe(drawing) }, rand_like = { alive, maybe(drawing) },
  linspace = { arguments.finite, arguments.finite, arguments.natural, maybe(placed) },
  logspace = { arguments.finite, arguments.finite, arguments.natural, maybe(placed) },
  eye = { arguments.natural, arguments.any, arguments.any }, meshgrid = { alive, vararg = true },
  randint = { arguments.integer, arguments.integer, sizes, maybe(drawing) },
  randperm = { arguments.natural, maybe(arguments.options { device = text, generator = maybe(kinds.generator) }) },
  skip_randn = { kinds.generator, arguments.natural, text },
  generator = { arguments.either('a seed or a generator', arguments.seed, kinds.generator),
    maybe(arguments.choice('generator', generators)) },
  manual_seed = { arguments.seed },
})
