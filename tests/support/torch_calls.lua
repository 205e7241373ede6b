--- The cr equivalents of torch's tensor operations: elementwise, reductions, sorting, shapes.

local cr = require 'cr'
local given = require 'tests.support.torch_arguments'

local skip, dim, arg_of, number_of = given.skip, given.dim, given.arg_of, given.number_of
local plain, floats_only = given.plain, given.floats_only

local calls = {}

local function method(name, fn) calls[name] = fn or function(a) return a[1][name](a[1]) end end

for _, name in ipairs { 'abs', 'acos', 'asin', 'atan', 'ceil', 'cos', 'cosh', 'exp', 'expm1', 'floor', 'frac', 'isfinite', 'isinf',
  'isnan', 'log', 'log10', 'log1p', 'log2', 'logical_not', 'neg', 'reciprocal', 'rsqrt', 'sigmoid', 'sign', 'sin', 'sinh',
  'sqrt', 'square', 'tan', 'tanh', 'trunc', 't', 'float', 'half', 'bfloat16', 'long', 'bool', 'contiguous', 'clone', 'trace',
  'unique', 'nonzero' } do method(name) end

local function round(a, k)
  if k.decimals and k.decimals ~= 0 then skip 'decimals' end
  return a[1]:round()
end
calls.round = round

-- Two operands, either of which may be a number.
for _, name in ipairs { 'atan2', 'eq', 'fmod', 'ge', 'gt', 'le', 'lt', 'maximum', 'minimum', 'mul', 'ne', 'pow', 'remainder' } do
  calls[name] = function(a)
    local x, y = number_of(a[1]), number_of(a[2])
    local tensor = cr.is_tensor(x) and x or y
    return tensor[name](x, y)
  end
end

local function scaled(name)
  return function(a, k)
    local y = number_of(a[2])
    local alpha = arg_of(a, k, 3, 'alpha')
    if alpha and alpha ~= 1 then y = y * number_of(alpha) end
    return a[1][name](a[1], y)
  end
end
calls.add, calls.sub = scaled 'add', scaled 'sub'
calls.rsub = function(a, k)
  local x, alpha = a[1], arg_of(a, k, 3, 'alpha')
  if alpha and alpha ~= 1 then x = x * number_of(alpha) end
  return a[2] - x
end
calls.div = function(a, k)
  local mode = k.rounding_mode
  local y = a[1] / number_of(a[2])
  if mode then
    floats_only(a[1])
    return mode == 'floor' and y:floor() or y:trunc()
  end
  return y
end
calls.true_divide = calls.div
calls.__radd__ = function(a) return number_of(a[2]) + a[1] end
calls.__rmul__ = function(a) return number_of(a[2]) * a[1] end
calls.__rsub__ = function(a) return number_of(a[2]) - a[1] end
calls.__rdiv__ = function(a) return number_of(a[2]) / a[1] end
calls.__rmod__ = function(a) return a[1].remainder(number_of(a[2]), a[1]) end
calls.__rpow__ = function(a) return number_of(a[2]) ^ a[1] end

for _, name in ipairs { 'logical_and', 'logical_or', 'logical_xor', 'bmm', 'mm', 'mv', 'dot', 'outer', 'matmul' } do
  calls[name] = function(a)
    if name:find '^logical' == nil then floats_only(a[1]) end
    return a[1][name](a[1], a[2])
  end
end

calls.equal = function(a) return a[1]:equal(a[2]) end
calls.allclose = function(a, k)
  if k.equal_nan then skip 'equal_nan' end
  return a[1]:allclose(a[2], arg_of(a, k, 3, 'rtol'), arg_of(a, k, 4, 'atol'))
end
calls.addcmul = function(a, k) return a[1]:addcmul(a[2], a[3], number_of(k.value)) end
calls.addcdiv = function(a, k) return a[1]:addcdiv(a[2], a[3], number_of(k.value)) end
calls.lerp = function(a) return a[1]:lerp(a[2], a[3]) end
calls.nan_to_num = function(a, k) return a[1]:nan_to_num(arg_of(a, k, 2, 'nan'), arg_of(a, k, 3, 'posinf'), arg_of(a, k, 4, 'neginf')) end
calls.clamp = function(a, k)
  local low, high = arg_of(a, k, 2, 'min'), arg_of(a, k, 3, 'max')
  if cr.is_tensor(low) or cr.is_tensor(high) then
    local x = a[1]
    if low ~= nil then x = x:maximum(low) end
    if high ~= nil then x = x:minimum(high) end
    return x
  end
  return a[1]:clamp(low, high)
end
calls.clamp_min = function(a) return a[1]:clamp_min(a[2]) end
calls.clamp_max = function(a) return a[1]:clamp_max(a[2]) end

-- ---- reductions

for _, name in ipairs { 'sum', 'mean', 'amax', 'amin', 'any', 'all', 'logsumexp' } do
  local own = ({ amax = 'max', amin = 'min' })[name] or name
  calls[name] = function(a, k)
    if name == 'mean' then floats_only(a[1]) end
    if k.dtype then return calls[name]({ a[1]:to(k.dtype), a[2], a[3] }, { dim = k.dim, keepdim = k.keepdim }) end
    local d = dim(arg_of(a, k, 2, 'dim'))
    if a[1]:dim() == 0 then d = nil end
    return a[1][own](a[1], d, arg_of(a, k, 3, 'keepdim'))
  end
end
for _, name in ipairs { 'argmax', 'argmin' } do
  calls[name] = function(a, k)
    local d = dim(arg_of(a, k, 2, 'dim'))
    if a[1]:dim() == 0 then d = nil end
    if d == nil and arg_of(a, k, 3, 'keepdim') then skip 'keepdim of all' end
    return a[1][name](a[1], d, arg_of(a, k, 3, 'keepdim')) - 1
  end
end
for name, at in pairs { max = 'max_at', min = 'min_at' } do
  calls[name] = function(a, k)
    if cr.is_tensor(a[2]) then return a[1][name == 'max' and 'maximum' or 'minimum'](a[1], a[2]) end
    local d = dim(arg_of(a, k, 2, 'dim'))
    if d == nil then return a[1][name](a[1]) end
    if a[1]:dim() == 0 then return a[1]:clone(), cr.zeros({}, { dtype = 'i64' }) end
    local v, i = a[1][at](a[1], d, arg_of(a, k, 3, 'keepdim'))
    return v, i - 1
  end
end
local function deviation(name)
  return function(a, k)
    local d, keep, correction = arg_of(a, k, 2, 'dim'), k.keepdim, k.correction
    if d == true or d == false then d, correction = nil, d and 1 or 0 end -- the old form: unbiased
    if a[3] == true or a[3] == false then correction = a[3] and 1 or 0 end
    if a[4] ~= nil then keep = a[4] end
    if k.unbiased ~= nil then correction = k.unbiased and 1 or 0 end
    if correction == nil then correction = 1 end
    if a[1]:dim() == 0 then d = nil end
    return a[1][name](a[1], dim(d), keep, correction)
  end
end
calls.var, calls.std = deviation 'var', deviation 'std'
calls.prod = function(a, k)
  local x = k.dtype and a[1]:to(k.dtype) or a[1]
  local d = dim(arg_of(a, k, 2, 'dim'))
  if x:dim() == 0 then d = nil end
  local y = x:prod(d, arg_of(a, k, 3, 'keepdim'))
  return k.dtype and y:to(k.dtype) or y
end
calls.norm = function(a, k)
  local p = arg_of(a, k, 2, 'p')
  if p == 'fro' or p == nil then p = 2 end
  if type(p) ~= 'number' then skip 'norms of matrices' end
  local d = arg_of(a, k, 3, 'dim')
  if a[1]:dim() == 0 then d = nil end
  return a[1]:norm(p, dim(d), arg_of(a, k, 4, 'keepdim'))
end
calls.median = function(a, k)
  local d = arg_of(a, k, 2, 'dim')
  if a[1]:dim() == 0 then return a[1]:clone(), { any = true } end
  if d ~= nil then
    if arg_of(a, k, 3, 'keepdim') then skip 'keepdim' end
    local v = a[1]:median(dim(d))
    return v, { any = true } -- which of several equal elements torch returns is unspecified
  end
  return a[1]:median()
end
calls.quantile = function(a, k)
  local q = a[2]
  if cr.is_tensor(q) then
    if q:dim() ~= 0 then skip 'several quantiles at once' end
    q = q:item()
  end
  if arg_of(a, k, 4, 'keepdim') then skip 'keepdim' end
  if k.interpolation and k.interpolation ~= 'linear' then skip 'interpolation' end
  if a[1]:dim() == 0 then return a[1]:quantile(q) end
  return a[1]:quantile(q, dim(arg_of(a, k, 3, 'dim')))
end

-- ---- order

local function of_line(name, from_zero)
  return function(a, k)
    local x = k.dtype and a[1]:to(k.dtype) or a[1]
    if x:dim() == 0 then skip 'a scalar has no dimension' end
    local y = x[name](x, dim(arg_of(a, k, 2, 'dim')))
    if k.dtype then y = y:to(k.dtype) end
    return from_zero and y - 1 or y
  end
end
calls.cumsum, calls.cumprod = of_line 'cumsum', of_line 'cumprod'
calls.diff = function(a, k)
  if a[2] and a[2] ~= 1 or k.n and k.n ~= 1 or k.prepend or k.append or a[4] or a[5] then skip 'n, prepend, append' end
  return a[1]:diff(dim(arg_of(a, k, 3, 'dim')))
end
local function order(a, k)
  if a[1]:dim() == 0 then skip 'a scalar has no dimension' end
  local v, i = a[1]:sort(dim(arg_of(a, k, 2, 'dim')) or -1, arg_of(a, k, 3, 'descending') and true or false)
  return v, i - 1
end
calls.sort = function(a, k)
  local v, i = order(a, k)
  return v, k.stable and i or { places = i, d = dim(arg_of(a, k, 2, 'dim')) or -1, x = a[1] }
end
calls.argsort = function(a, k)
  local _, i = order(a, k)
  return k.stable and i or { places = i, d = dim(arg_of(a, k, 2, 'dim')) or -1, x = a[1] }
end
calls.topk = function(a, k)
  if a[1]:dim() == 0 then skip 'a scalar has no dimension' end
  local d, largest = dim(arg_of(a, k, 3, 'dim')) or -1, arg_of(a, k, 4, 'largest')
  if arg_of(a, k, 2, 'k') == 0 then skip 'none' end
  if arg_of(a, k, 5, 'sorted') == false then skip 'in any order' end
  local v, i = a[1]:topk(arg_of(a, k, 2, 'k'), d, largest)
  return v, { places = i - 1, d = d, x = a[1] }
end
calls.kthvalue = function(a, k)
  if a[1]:dim() == 0 or arg_of(a, k, 4, 'keepdim') then skip 'scalars, keepdim' end
  local v = a[1]:kthvalue(arg_of(a, k, 2, 'k'), dim(arg_of(a, k, 3, 'dim')))
  return v, { any = true }
end
calls.histc = function(a, k)
  floats_only(a[1])
  return a[1]:histc(arg_of(a, k, 2, 'bins'), arg_of(a, k, 3, 'min'), arg_of(a, k, 4, 'max')):to(a[1].dtype)
end
calls.bincount = function(a, k)
  if arg_of(a, k, 2, 'weights') then skip 'weights' end
  return a[1]:bincount(arg_of(a, k, 3, 'minlength'))
end
calls.unique = function(a, k)
  if k.return_inverse or k.return_counts or k.dim ~= nil then skip 'inverse, counts, dim' end
  return a[1]:unique()
end
calls.nonzero = function(a, k)
  if k.as_tuple then skip 'as_tuple' end
  return a[1]:nonzero() - 1
end

-- ---- shapes

local function sizes_from(a, k, name)
  if type(a[2]) == 'table' then return plain(a[2]) end
  if k[name] then return plain(k[name]) end
  local list = {}
  for i = 2, a.n do list[#list + 1] = a[i] end
  return list
end
for _, name in ipairs { 'view', 'reshape', 'expand' } do
  calls[name] = function(a, k)
    local s = sizes_from(a, k, name == 'expand' and 'size' or 'shape')
    if type(s[1]) == 'string' then skip 'view as a dtype' end
    local x = a[1]
    if name == 'expand' and #s == 0 then return x end
    return x[name](x, s, {})
  end
end
calls.broadcast_to = function(a) return a[1]:expand(plain(a[2]), {}) end
calls.expand_as = function(a) return a[1]:expand_as(a[2]) end
calls.permute = function(a, k)
  local s = sizes_from(a, k, 'dims')
  if #s == 0 then return a[1] end
  return a[1]:permute(dim(s), {})
end
calls.T = function(a) return a[1]:dim() < 2 and a[1] or a[1]:dim() == 2 and a[1].T or skip 'of matrices' end
calls.transpose = function(a)
  if a[1]:dim() == 0 then skip 'a scalar has no dimension' end
  return a[1]:transpose(dim(a[2]), dim(a[3]))
end
calls.movedim = function(a)
  if type(a[2]) == 'table' or a[1]:dim() == 0 then skip 'several at once' end
  return a[1]:movedim(dim(a[2]), dim(a[3]))
end
calls.squeeze = function(a)
  if type(a[2]) == 'table' then skip 'several at once' end
  local d = dim(a[2])
  if d and (a[1]:dim() == 0 or a[1]:size(d) ~= 1) then skip 'a dimension that is not 1 is refused here' end
  return a[1]:squeeze(d)
end
calls.unsqueeze = function(a) return a[1]:unsqueeze(dim(a[2])) end
calls.flatten = function(a, k)
  if a[1]:dim() == 0 then return a[1]:reshape(-1) end
  return a[1]:flatten(dim(arg_of(a, k, 2, 'start_dim') or 0), dim(arg_of(a, k, 3, 'end_dim') or -1))
end
calls.unflatten = function(a) return a[1]:unflatten(dim(a[2]), plain(a[3])) end
calls['repeat'] = function(a, k) return a[1]:tile(sizes_from(a, k, 'repeats'), {}) end
calls.tile = function(a, k) return a[1]:tile(sizes_from(a, k, 'dims'), {}) end
calls.repeat_interleave = function(a, k)
  local n = arg_of(a, k, 2, 'repeats')
  if type(n) ~= 'number' or a[1]:dim() == 0 then skip 'a number for each element' end
  return a[1]:repeat_interleave(n, dim(arg_of(a, k, 3, 'dim')))
end
calls.chunk = function(a, k)
  if a[1]:dim() == 0 then skip 'a scalar has no dimension' end
  return unpack(a[1]:chunk(a[2], dim(arg_of(a, k, 3, 'dim'))))
end
calls.split = function(a, k)
  if a[1]:dim() == 0 then skip 'a scalar has no dimension' end
  local n = a[2]
  if n == 0 then skip 'parts of nothing' end
  return unpack(a[1]:split(plain(n), dim(arg_of(a, k, 3, 'dim'))))
end
calls.unbind = function(a, k) return unpack(a[1]:unbind(dim(arg_of(a, k, 2, 'dim')))) end
calls.unfold = function(a)
  if a[1]:dim() == 0 or a[3] == 0 then skip 'scalars, empty windows' end
  return a[1]:unfold(dim(a[2]), a[3], a[4])
end
calls.cat = function(a, k)
  local list = {}
  for i = 1, a[1].n do
    list[i] = a[1][i]
    if list[i]:dim() == 1 and list[i]:numel() == 0 and a[1][1]:dim() ~= 1 then skip 'an empty vector among others' end
    if list[i].dtype ~= a[1][1].dtype or list[i]:dim() ~= a[1][1]:dim() then skip 'of several dtypes, or an empty vector' end
  end
  return cr.cat(list, dim(arg_of(a, k, 2, 'dim')))
end
calls.stack = function(a, k) return cr.stack(plain(a[1]), dim(arg_of(a, k, 2, 'dim'))) end
calls.flip = function(a, k)
  local d = arg_of(a, k, 2, 'dims')
  if type(d) == 'number' then d = { d, n = 1 } end
  if a[1]:dim() == 0 or d.n == 0 then skip 'no dimension' end
  return a[1]:flip(dim(d))
end
calls.roll = function(a, k)
  local n, d = arg_of(a, k, 2, 'shifts'), arg_of(a, k, 3, 'dims')
  if a[1]:dim() == 0 then skip 'a scalar has no dimension' end
  if type(n) ~= 'table' then n, d = { n, n = 1 }, d ~= nil and { d, n = 1 } or nil end
  if type(d) == 'number' then d = { d, n = 1 } end
  if not d or d.n == 0 then return a[1]:roll(n[1]) end
  local x = a[1]
  for i = 1, n.n do x = x:roll(n[i], dim(d[i])) end
  return x
end
calls.narrow = function(a)
  local start = cr.is_tensor(a[3]) and a[3]:item() or a[3]
  if a[1]:dim() == 0 then skip 'a scalar has no dimension' end
  if start < 0 then start = a[1]:size(dim(a[2])) + start end
  return a[1]:narrow(dim(a[2]), start + 1, a[4])
end
calls.select = function(a)
  if a[1]:dim() == 0 then skip 'a scalar has no dimension' end
  return a[1]:select(dim(a[2]), dim(a[3]))
end
calls.tril = function(a) return a[1]:tril(a[2]) end
calls.triu = function(a) return a[1]:triu(a[2]) end
calls.diag = function(a) return a[1]:diag(a[2]) end
calls.item = function(a) return number_of(a[1]:item()) end
calls.meshgrid = function(a, k)
  local list = a.n > 1 and a or a[1]
  if cr.is_tensor(list) then list = { list } end
  if k.indexing == 'xy' then skip 'indexing' end
  for i = 1, #list do
    if not cr.is_tensor(list[i]) or list[i]:dim() ~= 1 then skip 'of scalars' end
  end
  return unpack(cr.meshgrid(unpack(list)))
end

return calls
