--- Layers as plain functions, weights first: nn.linear(w.proj, x).
--
-- A layer's weights are a table {weight =, bias =}, usually a node of a tree made by
-- `weights.tree`, which remembers its path in the checkpoint: an error raised here names it.
-- Fused forms are options or explicit names (group_norm_silu, linear's residual) that give the same
-- numbers as the plain operations one after another.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local cuda = require 'cr.cuda'
local tensor = require 'cr.tensor'
local upsample = require 'cr.nn.upsample'

local C = base.C
local new, filled, is_tensor = tensor.new, tensor.filled, tensor.is_tensor

local nn = {}

--- Where a node of a weight tree stands in its checkpoint, or nil.
local function path_of(w)
  local meta = type(w) == 'table' and getmetatable(w)
  return meta and meta.__path
end

local function act_code(w, act)
  local code = base.acts[act or 'none']
  if not code then base.fail(('%s: unknown activation %s'):format(path_of(w) or 'nn', tostring(act))) end
  return code
end

local function want(w, name, x)
  if not is_tensor(x) then
    local path = path_of(w)
    base.fail(('%s%s: a tensor is needed, not %s'):format(path and path .. ': ' or '', name, type(x)))
  end
  return x.c
end

--- The C struct of an optional tensor: nil stays nil.
local function optional(w, name, x)
  if x == nil then return nil end
  return want(w, name, x)
end

local none = {}

-- A weight of 8-bit floats; x may be quantized already.
local function quantized_linear(w, x, options)
  local out = options.out or new()
  local codes = type(x) == 'table' and rawget(x, 'codes')
  if C.cr_fp8_linear(out.c, codes and codes.c or want(w, 'linear', x), codes and x.scale.c or nil, w.weight.c, w.scale.c,
    optional(w, 'linear', rawget(w, 'bias')), optional(w, 'linear', options.residual), act_code(w, options.act),
    codes and base.dtypes[x.dtype] or 0) < 0 then
    base.raise(path_of(w))
  end
  return out
end

--- act(x weight' + bias) + residual. A layer that cr.fp8 has quantized computes in 8-bit floats.
--- @param w table weight [N K], bias [N] or nil
--- @param x Tensor [... K], or (where the weight is quantized) what cr.fp8 made of one
--- @param options table? {act = 'silu'|'gelu'|'relu', residual = Tensor [... N], out = Tensor to fill}
--- @return Tensor [... N]
function nn.linear(w, x, options)
  options = options or none
  if rawget(w, 'scale') then return quantized_linear(w, x, options) end
  local out = options.out or new()
  if C.cr_linear(out.c, want(w, 'linear', x), want(w, 'linear', w.weight), optional(w, 'linear', rawget(w, 'bias')),
    optional(w, 'linear', options.residual), act_code(w, options.act)) < 0 then
    base.raise(path_of(w))
  end
  return out
end

local function pair(v)
  if type(v) == 'table' then return v[1], v[2] or v[1] end
  return v, v
end

local function fill_padding(pad, v)
  if type(v) == 'table' and #v == 4 then
    for i = 0, 3 do pad[i] = v[i + 1] end
  else
    local h, w = pair(v or 0)
    pad[0], pad[1], pad[2], pad[3] = h, h, w, w
  end
end

local conv_options = ffi.new 'cr_conv'

--- act(convolution + bias) + residual, channels-last.
--- @param w table weight [O kh kw C/groups], bias [O] or nil
--- @param x Tensor [N H W C]
--- @param options table? {stride = 1|{h, w}, padding = 0|{h, w}|{top, bottom, left, right}, dilation,
---   groups, act, residual, slope (PReLU's [O])}
--- @return Tensor [N H' W' O]
function nn.conv2d(w, x, options)
  options = options or none
  local o = conv_options
  o.stride_h, o.stride_w = pair(options.stride or 1)
  o.dilation_h, o.dilation_w = pair(options.dilation or 1)
  fill_padding(o.pad, options.padding)
  o.groups = options.groups or 1
  o.act = act_code(w, options.act or (options.slope and 'prelu'))
  local out = new()
  if C.cr_conv2d(out.c, want(w, 'conv2d', x), want(w, 'conv2d', w.weight), optional(w, 'conv2d', rawget(w, 'bias')),
    optional(w, 'conv2d', options.residual), optional(w, 'conv2d', options.slope), o) < 0 then
    base.raise(path_of(w))
  end
  return out
end

--- The picture doubled by repeating pixels, then a 3x3 convolution of the same size:
--- conv2d(w, upsample_nearest(x, 2), { padding = 1 }). With `folded` weights it is one convolution of the
--- small picture (cr.upsample), unless the card's option conv_upsample is off.
--- @param w table weight [O 3 3 C], bias [O] or nil; folded (of cr.upsample's `made`) or nil
--- @param x Tensor [N H W C]
--- @return Tensor [N 2H 2W O]
function nn.upsample_conv2d(w, x)
  return tensor.scope(function()
    local folded = rawget(w, 'folded')
    if folded and cuda.wants('conv_upsample', want(w, 'upsample_conv2d', x).device) then
      return upsample.interleave(nn.conv2d(folded, x, { padding = 1 }))
    end
    return nn.conv2d(w, nn.upsample_nearest(x, 2), { padding = 1 })
  end)
end

--- Group normalization. Statistics cover everything but the first dimension, so the view decides:
--- [B*F H W C] is per frame, [B F H W C] over all frames of the window.
--- @param w table weight [C], bias [C]
--- @param x Tensor [N ... C]
--- @param groups integer
--- @param eps number
--- @param options table? {silu = true, bias_before = Tensor [N C], added to x first}
--- @return Tensor
function nn.group_norm(w, x, groups, eps, options)
  options = options or none
  local out = new()
  if C.cr_group_norm(out.c, want(w, 'group_norm', x), groups, optional(w, 'group_norm', rawget(w, 'weight')),
    optional(w, 'group_norm', rawget(w, 'bias')), eps or 1e-5, options.silu and 1 or 0,
    optional(w, 'group_norm', options.bias_before)) < 0 then
    base.raise(path_of(w))
  end
  return out
end

local with_silu = { silu = true }

--- Group normalization followed by SiLU, in one pass.
--- @return Tensor
function nn.group_norm_silu(w, x, groups, eps) return nn.group_norm(w, x, groups, eps, with_silu) end

--- Layer normalization over the last dimension.
--- @param w table weight [C], bias [C]
--- @param x Tensor [... C]
--- @param eps number? 1e-5
--- @param options table? {after = Tensor, broadcast and added to the result (a position encoding)}
--- @return Tensor
function nn.layer_norm(w, x, eps, options)
  options = options or none
  local out = new()
  if C.cr_layer_norm(out.c, want(w, 'layer_norm', x), optional(w, 'layer_norm', rawget(w, 'weight')),
    optional(w, 'layer_norm', rawget(w, 'bias')), eps or 1e-5, optional(w, 'layer_norm', options.after)) < 0 then
    base.raise(path_of(w))
  end
  return out
end

--- softmax(scale q k' + mask) v by heads. Views with gaps (of a packed qkv, or frames seen as
--- tokens) need no copy.
--- @param q Tensor [... T h*d]
--- @param k Tensor [... S h*d]
--- @param v Tensor [... S h*dv]
--- @param options table {heads = integer, scale = number (1 / sqrt d), mask = Tensor f32, out = Tensor to fill (any strides)}
--- @return Tensor [... T h*dv]
function nn.attention(q, k, v, options)
  local out = options.out or new()
  if C.cr_attention(out.c, want(nil, 'attention', q), want(nil, 'attention', k), want(nil, 'attention', v),
    options.heads or 1, options.scale or 0, optional(nil, 'attention', options.mask)) < 0 then
    base.raise()
  end
  return out
end

--- a * gelu(g), where x [... 2D] = (a, g):
---
---     h = nn.geglu(nn.linear(w.proj, x))
--- @param x Tensor [... 2D]
--- @return Tensor [... D]
function nn.geglu(x)
  local out = new()
  return filled(out, C.cr_geglu(out.c, want(nil, 'geglu', x)))
end

--- geglu(linear(w, x)). On Hopper one kernel may do it (the card's option linear_geglu).
---
---     h = nn.linear_geglu(w.proj, x)
--- @param w table weight [2D K], the values' rows first, bias [2D] or nil
--- @param x Tensor [... K]
--- @param options table? {out = Tensor to fill}
--- @return Tensor [... D]
function nn.linear_geglu(w, x, options)
  local out = options and options.out or new()
  if C.cr_linear_geglu(out.c, want(w, 'linear_geglu', x), want(w, 'linear_geglu', w.weight),
    optional(w, 'linear_geglu', rawget(w, 'bias'))) < 0 then
    base.raise(path_of(w))
  end
  return out
end

--- x * sigmoid(x): y = nn.silu(x).
--- @param x Tensor
--- @return Tensor of x's shape
function nn.silu(x) return x:silu() end

--- The exact GELU, by erf: y = nn.gelu(x).
--- @param x Tensor
--- @return Tensor of x's shape
function nn.gelu(x) return x:gelu() end

--- max(x, 0): y = nn.relu(x).
--- @param x Tensor
--- @return Tensor of x's shape
function nn.relu(x) return x:relu() end

--- Softmax over the last dimension: p = nn.softmax(scores).
--- @param x Tensor [... T]
--- @return Tensor of x's shape
function nn.softmax(x) return x:softmax() end

--- A picture at another size.
--- @param x Tensor [N H W C] or [H W C]
--- @param height integer
--- @param width integer
--- @param method string 'nearest', 'bilinear', 'bilinear_edge', 'bicubic_aa' or 'lanczos4'
--- @return Tensor
function nn.resize(x, height, width, method)
  local code = base.resize_methods[method or 'nearest']
  if not code then base.fail('resize: unknown method ' .. tostring(method)) end
  local out = new()
  if C.cr_resize(out.c, want(nil, 'resize', x), height, width, code) < 0 then base.raise() end
  return out
end

--- Every pixel repeated `factor` times in both directions.
--- @param x Tensor [N H W C]
--- @param factor integer? 2
--- @return Tensor
function nn.upsample_nearest(x, factor)
  local h = x.c.rank - 3
  factor = factor or 2
  return nn.resize(x, x.c.shape[h] * factor, x.c.shape[h + 1] * factor, 'nearest')
end

--- Pads with `value`: before and after list elements per dimension.
--- @return Tensor
function nn.pad(x, before, after, value)
  local rank = x.c.rank
  local b, a = ffi.new 'int32_t[8]', ffi.new 'int32_t[8]'
  for i = 1, rank do b[i - 1], a[i - 1] = before[i] or 0, after[i] or 0 end
  local out = new()
  return filled(out, C.cr_pad(out.c, want(nil, 'pad', x), b, a, value or 0))
end

--- Maximum over windows.
--- @param x Tensor [N H W C]
--- @param options table {kernel, stride (= kernel), padding}
--- @return Tensor
function nn.max_pool2d(x, options)
  local kh, kw = pair(options.kernel)
  local sh, sw = pair(options.stride or options.kernel)
  local pad = ffi.new 'int32_t[4]'
  fill_padding(pad, options.padding)
  local out = new()
  return filled(out, C.cr_max_pool2d(out.c, want(nil, 'max_pool2d', x), kh, kw, sh, sw, pad))
end

--- Sinusoidal embedding of timesteps, cosines first (diffusers' flip_sin_to_cos, shift 0); computed
--- in float64.
--- @param timesteps number[]|Tensor [T]
--- @param dim integer
--- @param options table? {dtype = 'f32', device = 'cpu' (of a list; a tensor's own)}
--- @return Tensor [T dim]
function nn.timestep_embedding(timesteps, dim, options)
  options = options or none
  local code = tensor.dtype_code('timestep_embedding', options.dtype)
  return tensor.scope(function()
    local t = timesteps
    if not is_tensor(t) then t = tensor.tensor(t, { dtype = 'f64', device = options.device }) end
    local out = new()
    return filled(out, C.cr_timestep_embedding(out.c, t.c, dim, code))
  end)
end

--- A draw from a normal posterior: (mean + exp(logvar / 2) * noise) * scale, logvar limited to -30 .. 20.
--- @param mean Tensor
--- @param logvar Tensor like mean
--- @param noise Tensor? standard normal draws like mean; nil gives the mean
--- @param scale number? 1
--- @return Tensor
function nn.posterior_sample(mean, logvar, noise, scale)
  local out = new()
  return filled(out, C.cr_posterior_sample(out.c, want(nil, 'posterior_sample', mean), want(nil, 'posterior_sample', logvar),
    optional(nil, 'posterior_sample', noise), scale or 1))
end

return nn
