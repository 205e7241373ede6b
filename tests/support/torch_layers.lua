--- The cr equivalents of torch's indexing, tensor creation and layers.

local cr = require 'cr'
local given = require 'tests.support.torch_arguments'

local skip, dim, arg_of, number_of = given.skip, given.dim, given.arg_of, given.number_of
local plain, floats_only = given.plain, given.floats_only
local nn = require 'cr.nn'
local last, first = given.last, given.first
local calls = {}

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
  return cr.where(a[2], a[1], a[3]) -- the database has the condition as the second argument
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
  -- torch excludes the end.
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
  -- In torch, channels come before the positions in the square.
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

return calls
