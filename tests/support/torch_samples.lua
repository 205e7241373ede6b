--- Runs PyTorch's sample inputs (tests/golden/torch_samples.py) and compares with its results.
--
-- What is written here is how a call of torch's is said with cr: dimensions from 1, pictures channels-last. A call that
-- asks for what no argument here can say is inexpressible: `skip` says why.

local cr = require 'cr'
local json = require 'cjson'
local nn = require 'cr.nn'
local weights = require 'cr.weights'

local M = {}

local SKIP = {}
local function skip(why) error(setmetatable({ why = why }, SKIP), 0) end

-- ---- arguments --------------------------------------------------------------------------------------

local null = json.null
local function value(v, tensors)
  if v == null then return nil end
  if type(v) ~= 'table' then return v end
  if v.t then return tensors[v.t] end
  if v.dtype then return v.dtype end
  if v.float then return v.float == 'inf' and math.huge or v.float == '-inf' and -math.huge or 0 / 0 end
  local list = { n = #v }
  for i, each in ipairs(v) do list[i] = value(each, tensors) end
  return list
end

local function plain(list)
  if type(list) ~= 'table' then return list end
  local out = {}
  for i = 1, list.n or #list do out[i] = list[i] end
  return out
end

-- A dimension from 1.
local function dim(d)
  if type(d) == 'table' then
    local out = {}
    for i = 1, d.n or #d do out[i] = dim(d[i]) end
    return #out > 0 and out or nil
  end
  return d and (d >= 0 and d + 1 or d) or nil
end

-- Argument i, or the one of a name.
local function arg_of(a, k, i, name)
  if a[i] ~= nil then return a[i] end
  return k[name]
end

local function number_of(v) return v == true and 1 or v == false and 0 or v end

local function last(x) -- [N C H W] to [N H W C]
  if x:dim() == 3 then return x:permute(1, 3, 2):contiguous() end
  return x:permute(1, 3, 4, 2):contiguous()
end
local function first(x)
  if x:dim() == 3 then return x:permute(1, 3, 2):contiguous() end
  return x:permute(1, 4, 2, 3):contiguous()
end

local function floats_only(x)
  local d = x.dtype
  if d ~= 'f32' and d ~= 'f16' and d ~= 'bf16' and d ~= 'f64' then skip 'of floats only' end
end

-- ---- how calls are said --------------------------------------------------------------------------------

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
    return v, { any = true } -- which of equal ones torch names is not told
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

-- ---- parts

local function from_one(index) return index:ge(0):where(index:ge(0), 0), index + 1 end
local function one_based(index)
  local _, shifted = from_one(index)
  return cr.where(index:ge(0), shifted, index)
end
local function whole_index(x, index)
  if x:dim() == 0 or index:dim() == 0 then skip 'scalars' end
  return one_based(index)
end
calls.index_select = function(a)
  return a[1]:index_select(dim(a[2]), whole_index(a[1], a[3]):reshape(-1))
end
calls.gather = function(a) return a[1]:gather(dim(a[2]), whole_index(a[1], a[3])) end
calls.take = function(a)
  if a[1]:numel() == 0 then skip 'of nothing' end
  return a[1]:take(one_based(a[2]))
end
calls.scatter = function(a, k)
  if k.reduce then skip 'reduce' end
  local y = number_of(a[4])
  return a[1]:clone():scatter_(dim(a[2]), whole_index(a[1], a[3]), y)
end
calls.scatter_add = function(a) return a[1]:clone():scatter_add_(dim(a[2]), whole_index(a[1], a[3]), a[4]) end
calls.index_add = function(a, k)
  local y = a[4]
  if k.alpha and k.alpha ~= 1 then y = y * number_of(k.alpha) end
  return a[1]:clone():index_add_(dim(a[2]), whole_index(a[1], a[3]), y)
end
calls.index_copy = function(a) return a[1]:clone():index_copy_(dim(a[2]), whole_index(a[1], a[3]), a[4]) end
calls.masked_fill = function(a)
  local y = number_of(a[3])
  return a[1]:masked_fill(a[2], y)
end
calls.masked_select = function(a) return a[1]:masked_select(a[2]) end
calls.where = function(a)
  if a.n == 1 then skip 'places' end
  return cr.where(a[2], a[1], a[3]) -- the database puts the condition second
end

-- ---- making tensors

calls.zeros = function(a, k) return cr.zeros(plain(type(a[1]) == 'table' and a[1] or a), { dtype = k.dtype }) end
calls.ones = function(a, k) return cr.ones(plain(type(a[1]) == 'table' and a[1] or a), { dtype = k.dtype }) end
calls.full = function(a, k) return cr.full(plain(a[1]), number_of(a[2]), { dtype = k.dtype }) end
calls.zeros_like = function(a, k) return cr.zeros_like(a[1], { dtype = k.dtype }) end
calls.ones_like = function(a, k) return cr.ones_like(a[1], { dtype = k.dtype }) end
calls.full_like = function(a, k) return cr.full_like(a[1], number_of(a[2]), { dtype = k.dtype }) end
calls.eye = function(a, k) return cr.eye(a[1], a[2], { dtype = k.dtype }) end
calls.linspace = function(a, k)
  if cr.is_tensor(a[1]) or cr.is_tensor(a[2]) then skip 'ends as tensors' end
  return cr.linspace(a[1], a[2], a[3], { dtype = k.dtype })
end
calls.logspace = function(a, k)
  if cr.is_tensor(a[1]) or cr.is_tensor(a[2]) or a[4] and a[4] ~= 10 or k.base and k.base ~= 10 then skip 'ends as tensors, bases' end
  return cr.logspace(a[1], a[2], a[3], { dtype = k.dtype })
end
calls.arange = function(a, k)
  -- torch leaves the end out
  local start, stop, step = a[1], arg_of(a, k, 2, 'end'), arg_of(a, k, 3, 'step') or 1
  if type(stop) == 'boolean' or type(start) == 'boolean' then skip 'truth as a number' end
  if stop == nil then start, stop = 0, start end
  if step == 0 then skip 'no steps' end
  local n = math.max(0, math.ceil((stop - start) / step))
  if n == 0 then return cr.zeros({ 0 }, { dtype = k.dtype }) end
  return cr.arange(start, start + (n - 1) * step, step, { dtype = k.dtype })
end

-- ---- functions of more

calls.softmax = function(a, k)
  local x = k.dtype and a[1]:to(k.dtype) or a[1]
  floats_only(x)
  if x:dim() == 0 then skip 'a scalar has no dimension' end
  return x:softmax(dim(arg_of(a, k, 2, 'dim')))
end
calls.log_softmax = function(a, k)
  local x = k.dtype and a[1]:to(k.dtype) or a[1]
  floats_only(x)
  if x:dim() == 0 then skip 'a scalar has no dimension' end
  return x:log_softmax(dim(arg_of(a, k, 2, 'dim')))
end
calls.einsum = function(a)
  local formula = a[2] or a[1]
  local list = type(a[1]) == 'table' and a[1] or a[2]
  if type(formula) ~= 'string' then formula, list = a[2], a[1] end
  if type(formula) ~= 'string' or formula:find '%.%.%.' or formula:find '%u' and false then skip 'ellipses' end
  return cr.einsum(formula, unpack(plain(list)))
end
calls.cdist = function(a, k)
  if a[1]:numel() == 0 or a[2]:numel() == 0 then skip 'of nothing' end
  return cr.cdist(a[1], a[2], arg_of(a, k, 3, 'p'))
end
local NORMS = { backward = true }
calls['fft.rfft'] = function(a, k)
  if arg_of(a, k, 2, 'n') or k.norm and not NORMS[k.norm] then skip 'n, norm' end
  local re, im = cr.rfft(a[1], dim(arg_of(a, k, 3, 'dim')))
  return re, im
end

-- ---- layers

local F = 'nn.functional.'
for _, name in ipairs { 'gelu', 'relu', 'relu6', 'silu', 'logsigmoid', 'mish' } do
  calls[F .. name] = function(a, k)
    if k.approximate and k.approximate ~= 'none' then skip 'approximate' end
    if name ~= 'relu' and name ~= 'relu6' then floats_only(a[1]) end
    return a[1][name](a[1])
  end
end
calls[F .. 'softplus'] = function(a, k)
  if k.beta and k.beta ~= 1 or k.threshold and k.threshold ~= 20 then skip 'beta' end
  return a[1]:softplus()
end
calls[F .. 'leaky_relu'] = function(a, k) return a[1]:leaky_relu(arg_of(a, k, 2, 'negative_slope')) end
calls[F .. 'elu'] = function(a, k)
  if k.scale or k.input_scale then skip 'scale' end
  return a[1]:elu(arg_of(a, k, 2, 'alpha'))
end
calls[F .. 'hardtanh'] = function(a, k) return a[1]:hardtanh(arg_of(a, k, 2, 'min_val'), arg_of(a, k, 3, 'max_val')) end
calls[F .. 'mse_loss'] = function(a, k)
  if k.reduction and k.reduction ~= 'mean' then skip 'reduction' end
  return nn.mse_loss(a[1], a[2])
end
calls[F .. 'l1_loss'] = function(a, k)
  if k.reduction and k.reduction ~= 'mean' then skip 'reduction' end
  return nn.l1_loss(a[1], a[2])
end
calls[F .. 'linear'] = function(a)
  floats_only(a[1])
  if a[2]:dim() == 1 then skip 'a weight that is a vector' end
  return nn.linear({ weight = a[2], bias = a[3] }, a[1])
end
calls[F .. 'embedding'] = function(a, k)
  if k.max_norm or k.scale_grad_by_freq then skip 'max_norm' end
  local index, weight = a[1], a[2]
  if index.dtype ~= 'i64' and index.dtype ~= 'i32' then index, weight = weight, index end
  return nn.embedding({ weight = weight }, index + 1)
end
calls[F .. 'rms_norm'] = function(a, k)
  local shape, x = arg_of(a, k, 2, 'normalized_shape'), a[1]
  if shape.n ~= 1 then skip 'several dimensions' end
  return nn.rms_norm({ weight = arg_of(a, k, 3, 'weight') }, x, arg_of(a, k, 4, 'eps') or 2 ^ -23)
end
calls[F .. 'layer_norm'] = function(a, k)
  local shape = arg_of(a, k, 2, 'normalized_shape')
  if shape.n ~= 1 then skip 'several dimensions' end
  return nn.layer_norm({ weight = arg_of(a, k, 3, 'weight'), bias = arg_of(a, k, 4, 'bias') }, a[1], arg_of(a, k, 5, 'eps'))
end
calls[F .. 'group_norm'] = function(a, k)
  if a[1]:dim() ~= 4 and a[1]:dim() ~= 3 then skip 'of pictures' end
  return first(nn.group_norm({ weight = k.weight or a[3], bias = k.bias or a[4] }, last(a[1]), a[2], k.eps or a[5]))
end
calls[F .. 'scaled_dot_product_attention'] = function(a, k)
  if k.is_causal or k.dropout_p and k.dropout_p > 0 or k.enable_gqa then skip 'causal, dropout, groups' end
  local q, key, v, mask = a[1], a[2], a[3], k.attn_mask
  if q:dim() ~= key:dim() or q:dim() < 3 then skip 'shapes' end
  if mask and mask.dtype ~= 'bool' then mask = mask:to 'f32' end
  return nn.attention(q, key, v, { mask = mask, scale = k.scale })
end
local function sides(v, n)
  if type(v) == 'table' then
    local list = plain(v)
    if #list == 1 then list[2] = list[1] end
    return n == 1 and list[1] or list
  end
  return v
end
local function convolution(name, n)
  calls[F .. name] = function(a, k)
    floats_only(a[1])
    if a[1]:dim() ~= n + 2 then skip 'without a batch' end
    local o = { stride = sides(arg_of(a, k, 4, 'stride'), n), padding = sides(arg_of(a, k, 5, 'padding'), n) }
    if name == 'conv_transpose2d' then
      o.output_padding, o.groups, o.dilation = sides(arg_of(a, k, 6, 'output_padding'), n), arg_of(a, k, 7, 'groups'),
        sides(arg_of(a, k, 8, 'dilation'), n)
    else
      o.dilation, o.groups = sides(arg_of(a, k, 6, 'dilation'), n), arg_of(a, k, 7, 'groups')
    end
    local w = a[2]
    if type(o.padding) == 'string' then
      if o.padding == 'valid' then
        o.padding = 0
      else
        skip 'same'
      end
    end
    local weight = n == 1 and w:permute(1, 3, 2):contiguous() or w:permute(1, 3, 4, 2):contiguous()
    return first(nn[name]({ weight = weight, bias = arg_of(a, k, 3, 'bias') }, last(a[1]), o))
  end
end
convolution('conv1d', 1)
convolution('conv2d', 2)
convolution('conv_transpose2d', 2)
calls[F .. 'avg_pool2d'] = function(a, k)
  floats_only(a[1])
  if a[1]:dim() ~= 4 or arg_of(a, k, 5, 'ceil_mode') or arg_of(a, k, 7, 'divisor_override') then skip 'ceil_mode, divisor' end
  local stride = arg_of(a, k, 3, 'stride')
  if type(stride) == 'table' and stride.n == 0 then stride = nil end
  return first(nn.avg_pool2d(last(a[1]), { kernel = sides(arg_of(a, k, 2, 'kernel_size')), stride = sides(stride),
    padding = sides(arg_of(a, k, 4, 'padding')), count_padding = arg_of(a, k, 6, 'count_include_pad') }))
end
calls[F .. 'max_pool2d'] = function(a, k)
  floats_only(a[1])
  if a[1]:dim() ~= 4 or k.ceil_mode or k.return_indices or k.dilation and k.dilation ~= 1 then skip 'ceil_mode, indices, dilation' end
  return first(nn.max_pool2d(last(a[1]), { kernel = sides(k.kernel_size), stride = sides(k.stride), padding = sides(k.padding) }))
end
calls[F .. 'pixel_shuffle'] = function(a, k)
  floats_only(a[1])
  if a[1]:dim() ~= 4 then skip 'without a batch' end
  local r, x = arg_of(a, k, 2, 'upscale_factor'), last(a[1])
  -- torch's channels come before their places in the square.
  local s = x.shape
  x = x:view(s[1], s[2], s[3], s[4] / (r * r), r * r):permute(1, 2, 3, 5, 4):contiguous():view(s, {})
  return first(nn.pixel_shuffle(x, r))
end
calls[F .. 'interpolate'] = function(a, k)
  local mode = arg_of(a, k, 4, 'mode') or 'nearest'
  if a[1]:dim() ~= 4 or mode:find 'exact' or mode == 'linear' then skip 'of pictures' end
  local size, scale = arg_of(a, k, 2, 'size'), arg_of(a, k, 3, 'scale_factor')
  if k.recompute_scale_factor then skip 'recompute_scale_factor' end
  if type(scale) == 'table' then
    if scale[1] ~= scale[2] then skip 'two scales' end
    scale = scale[1]
  end
  return first(nn.interpolate(last(a[1]), { size = sides(size) and (type(size) == 'table' and plain(size) or { size }), scale = scale,
    mode = mode, align_corners = arg_of(a, k, 5, 'align_corners') or nil, antialias = k.antialias }))
end
calls[F .. 'grid_sample'] = function(a, k)
  if a[1]:dim() ~= 4 or k.mode == 'bicubic' or k.padding_mode == 'reflection' then skip 'bicubic, reflection' end
  return first(nn.grid_sample(last(a[1]), a[2], { mode = k.mode, padding = k.padding_mode, align_corners = k.align_corners }))
end
calls[F .. 'pad'] = function(a, k)
  local pads, mode = arg_of(a, k, 2, 'pad'), arg_of(a, k, 3, 'mode') or 'constant'
  local x, before, after = a[1], {}, {}
  for i = 1, x:dim() do before[i], after[i] = 0, 0 end
  for i = 1, pads.n / 2 do
    local d = x:dim() + 1 - i
    before[d], after[d] = pads[2 * i - 1], pads[2 * i]
    if before[d] < 0 or after[d] < 0 then skip 'cropping' end
  end
  return nn.pad(x, before, after, mode == 'constant' and number_of(arg_of(a, k, 4, 'value')) or mode ~= 'constant' and mode or nil)
end

--- How torch's calls are said, by their names.
M.calls = calls

-- ---- comparing ---------------------------------------------------------------------------------------------

-- PyTorch's own tolerances (torch.testing.assert_close): relative, absolute.
local TOLERANCES = { f64 = { 1e-7, 1e-7 }, f32 = { 1.3e-6, 1e-5 }, f16 = { 1e-3, 1e-5 }, bf16 = { 1.6e-2, 1e-5 } }

-- What is wrong with a result, or nil.
local function fault(got, want)
  if type(got) == 'table' and got.any then return nil end
  if type(got) == 'table' and got.places then -- an order of equal elements is free: what stands at the places counts
    if got.places.shape[1] ~= want.shape[1] then return 'other sizes' end
    local x, d = got.x, got.d
    return fault(x:gather(d, got.places + 1), x:gather(d, want + 1))
  end
  if got == nil then return 'nothing' end
  if not cr.is_tensor(got) then
    if cr.is_tensor(want) then want = want:item() end
    want, got = number_of(want), number_of(got)
    local near = got == want or got ~= got and want ~= want or math.abs(got - want) <= 1e-5 + 1e-3 * math.abs(want)
    return not near and ('%s, not %s'):format(tostring(got), tostring(want)) or nil
  end
  if not cr.is_tensor(want) then return 'a tensor' end
  local a, b = table.concat(got.shape, ' '), table.concat(want.shape, ' ')
  if a ~= b then return ('sizes [%s], not [%s]'):format(a, b) end
  if got.dtype ~= want.dtype then return ('%s, not %s'):format(got.dtype, want.dtype) end
  if got:numel() == 0 then return nil end
  local tolerance = TOLERANCES[want.dtype] or { 0, 0 }
  local x, y = got:to 'f64', want:to 'f64'
  local near = (x - y):abs():le(y:abs() * tolerance[1] + tolerance[2]):logical_or(x:eq(y)):logical_or(x:isnan():logical_and(y:isnan()))
  if near:min():item() then return nil end
  return ('off by %.3g'):format((x - y):abs():nan_to_num(1e9, 1e9, 1e9):max():item())
end

--- Runs the cases of a file.
--- @param path string
--- @param report fun(case: table, result: 'pass'|'fail'|'skip', why: string?)
function M.run(path, report)
  local file = weights.open(path)
  local cases = json.decode(file.metadata.cases)
  for _, case in ipairs(cases) do
    cr.scope(function()
      local tensors = setmetatable({}, { __index = function(t, n)
        local x = file:get(tostring(n)):clone()
        rawset(t, n, x)
        return x
      end })
      local args = { n = #case.args }
      for i, v in ipairs(case.args) do args[i] = value(v, tensors) end
      local kwargs = {}
      for name, v in pairs(case.kwargs) do kwargs[name] = value(v, tensors) end
      local expected = value(case.expected, tensors)
      local call = calls[case.op]
      if not call then return report(case, 'skip', 'has no counterpart') end
      local list
      local ok, why = pcall(function() list = { call(args, kwargs) } end)
      if not ok and getmetatable(why) == SKIP then return report(case, 'skip', why.why) end
      if not ok then return report(case, 'fail', tostring(why)) end
      for i = 1, expected.n do
        local wrong = fault(list[i], expected[i])
        if wrong then return report(case, 'fail', ('result %d: %s'):format(i, wrong)) end
      end
      report(case, 'pass')
    end)
  end
  file:close()
end

return M
