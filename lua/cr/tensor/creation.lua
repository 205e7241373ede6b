--- Tensors from nothing, from numbers, from memory, from generators and from lists of tensors: the
--- functions of cr.tensor that are not methods. cr/tensor.lua takes them in.

local ffi = require 'ffi'
local base = require 'cr.ffi'

local C, raise, fail = base.C, base.raise, base.fail

local shape_type = ffi.typeof 'int32_t[8]'
local pointers_type = ffi.typeof 'const cr_tensor *[?]'

-- Puts them into M, which holds `new`, `filled`, `is_tensor`, `scope` and the checks of arguments; shape_of and
-- dim_of are its own of those.
return function(M, shape_of, dim_of)
  local new, filled, is_tensor, want_tensor = M.new, M.filled, M.is_tensor, M.want_tensor
  local dtype_code, device_code = M.dtype_code, M.device_code

  --- A tensor with undefined contents.
  --- @param ... integer|table sizes, then options {dtype=, device=}
  --- @return Tensor
  function M.empty(...)
    local shape, rank, o = shape_of('empty', ...)
    local out = new()
    return filled(out, C.cr_empty(out.c, rank, shape, dtype_code('empty', o.dtype), device_code('empty', o.device)))
  end

  local function constant(name, value, ...)
    local shape, rank, o = shape_of(name, ...)
    local out = new()
    filled(out, C.cr_empty(out.c, rank, shape, dtype_code(name, o.dtype), device_code(name, o.device)))
    return filled(out, C.cr_fill(out.c, value))
  end

  --- A tensor of zeros: cr.zeros(2, 3) or cr.zeros({2, 3}, {dtype = 'f16'}).
  --- @return Tensor
  function M.zeros(...) return constant('zeros', 0, ...) end

  --- A tensor of ones.
  --- @return Tensor
  function M.ones(...) return constant('ones', 1, ...) end

  --- A tensor of one value: cr.full({2, 3}, 0.5).
  --- @param shape integer[]
  --- @param value number
  --- @param options table? {dtype=, device=}
  --- @return Tensor
  function M.full(shape, value, options) return constant('full', value, shape, options or {}) end

  --- Numbers in even steps, the end included: cr.arange(3) is 1 2 3, cr.arange(0, 1, 0.5) is 0 0.5 1.
  --- @return Tensor
  function M.arange(first, last, step, options)
    if type(step) == 'table' then step, options = nil, step end
    if type(last) == 'table' then last, options = nil, last end
    if last == nil then first, last = 1, first end
    step, options = step or 1, options or {}
    local n = math.max(0, math.floor((last - first) / step + 1e-9) + 1)
    local out = new()
    return filled(out, C.cr_arange(out.c, n, first, step, dtype_code('arange', options.dtype),
      device_code('arange', options.device)))
  end

  local function table_shape(value)
    local shape = {}
    while type(value) == 'table' do
      shape[#shape + 1] = #value
      value = value[1]
    end
    return shape
  end

  local function fill_flat(buffer, at, value, shape, depth)
    if depth > #shape then
      local kind = type(value)
      if kind == 'boolean' then value = value and 1 or 0
      elseif kind ~= 'number' and kind ~= 'cdata' then fail('tensor: element ' .. at + 1 .. ' is a ' .. kind) end
      buffer[at] = value
      return at + 1
    end
    if type(value) ~= 'table' or #value ~= shape[depth] then
      fail('tensor: rows at depth ' .. depth .. ' differ in length')
    end
    for i = 1, #value do at = fill_flat(buffer, at, value[i], shape, depth + 1) end
    return at
  end

  --- A tensor of the numbers in a nested table, or a scalar.
  ---
  ---     cr.tensor {{1, 2}, {3, 4}}
  --- @param value number|table
  --- @param options table? {dtype = 'f32', device=, shape = integer[] (of a flat table)}
  --- @return Tensor
  function M.tensor(value, options)
    options = options or {}
    if is_tensor(value) then return value:to(options.dtype or value.dtype) end
    local shape = table_shape(value)
    local n = 1
    for _, size in ipairs(shape) do n = n * size end
    local dtype = options.dtype or 'f32'
    local code = dtype_code('tensor', dtype)
    -- i64 keeps whole numbers that a double cannot
    local staging = dtype == 'i64' and 'i64' or 'f64'
    local c_shape = shape_type(shape)
    local out = M.scope(function()
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

  --- A CPU tensor over memory that Lua or C keeps; `keep` is held as long as the tensor lives.
  --- @return Tensor
  function M.from_pointer(pointer, shape, dtype, keep)
    if pointer == nil then fail 'from_pointer: an address is needed, not nil' end
    local out = new()
    if C.cr_from_memory(out.c, ffi.cast('void *', pointer), #shape, shape_type(shape),
      dtype_code('from_pointer', dtype)) < 0 then
      raise()
    end
    if keep ~= nil then M.anchors[out] = keep end
    return out
  end
  -- Keeps Lua-owned memory alive beside tensors over it.
  M.anchors = setmetatable({}, { __mode = 'k' })

  local function pointers(name, list)
    if type(list) ~= 'table' or #list == 0 then fail(name .. ': a list of tensors is needed') end
    local xs = pointers_type(#list)
    for i, t in ipairs(list) do xs[i - 1] = want_tensor(name, t).c end
    return xs, #list
  end

  --- Joins tensors along dimension `dim`.
  --- @param list Tensor[]
  --- @param dim integer
  --- @return Tensor
  function M.cat(list, dim)
    local xs, n = pointers('cat', list)
    local out = new()
    if C.cr_cat(out.c, n, xs, dim_of('cat', list[1], dim or 1)) < 0 then raise() end
    return out
  end

  --- Joins tensors of one shape along a new dimension `dim`.
  --- @return Tensor
  function M.stack(list, dim)
    dim = dim or 1
    local parts = {}
    for i, t in ipairs(list) do parts[i] = want_tensor('stack', t):unsqueeze(dim) end
    return M.cat(parts, dim)
  end

  --- Sum of coefficients[i] * xs[i]: one fused operation, what every sampling step is made of.
  --- @param xs Tensor[] equal shapes
  --- @param coefficients number[]
  --- @return Tensor
  function M.lincomb(xs, coefficients)
    local list, n = pointers('lincomb', xs)
    if #coefficients ~= n then fail(('lincomb: %d tensors but %d coefficients'):format(n, #coefficients)) end
    local out = new()
    return filled(out, C.cr_lincomb(out.c, n, list, ffi.new('double[?]', n, coefficients)))
  end

  --- condition ? a : b, elementwise; numbers are allowed for a and b.
  --- @return Tensor
  function M.where(condition, a, b)
    local like = is_tensor(a) and a or want_tensor('where', b)
    local function operand(v)
      return is_tensor(v) and v or M.full({}, v, { dtype = like.dtype, device = like.device })
    end
    local out = new()
    return filled(out, C.cr_where(out.c, want_tensor('where', condition).c, operand(a).c, operand(b).c))
  end

  -- ---- random numbers ------------------------------------------------------------------------

  --- A generator of random numbers: kind 'philox' (the same numbers on every device; the default),
  --- 'torch-cpu' or 'torch-cuda' (torch.randn's numbers for the seed).
  --- @param seed integer
  --- @param kind string?
  function M.generator(seed, kind)
    local code = base.generator_kinds[kind or 'philox']
    if not code then fail(('generator: unknown kind %s: philox, torch-cpu or torch-cuda'):format(tostring(kind))) end
    local out = ffi.new 'cr_generator *[1]'
    if C.cr_generator_new(out, code, seed) < 0 then raise() end
    return ffi.gc(out[0], C.cr_generator_free)
  end

  local default_generator
  --- Seeds the generator that cr.randn and cr.rand use when none is given.
  function M.manual_seed(seed) default_generator = M.generator(seed, 'philox') end

  local function drawn(name, fn, ...)
    local shape, rank, o = shape_of(name, ...)
    if not o.generator and not default_generator then M.manual_seed(os.time()) end
    local out = new()
    if fn(out.c, rank, shape, dtype_code(name, o.dtype), device_code(name, o.device),
      o.generator or default_generator) < 0 then
      raise()
    end
    return out
  end

  --- Standard normal numbers: cr.randn(2, 3, {generator = cr.generator(1247, 'torch-cpu')}).
  --- @return Tensor
  function M.randn(...) return drawn('randn', C.cr_randn, ...) end

  --- Uniform numbers in [0, 1).
  --- @return Tensor
  function M.rand(...) return drawn('rand', C.cr_rand, ...) end
end
