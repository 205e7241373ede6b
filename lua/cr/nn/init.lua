--- Layers as plain functions, weights first: nn.linear(w.proj, x).
--
-- A layer's weights are a table {weight =, bias =}, usually a node of a tree made by `weights.tree`. The node knows
-- its path in the checkpoint, and errors name it. Fused forms are options or explicit names (group_norm_silu,
-- linear's residual) that compute the same numbers as the separate operations.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local cuda = require 'cr.cuda'
local quant = require 'cr.quant'
local tensor = require 'cr.tensor'
local diffusion = require 'cr.nn.diffusion'
local layers = require 'cr.nn.layers'
local resampling = require 'cr.nn.resampling'
local upsample = require 'cr.nn.upsample'

local C = base.C
local new, filled, is_tensor = tensor.new, tensor.filled, tensor.is_tensor

--- @class cr.nn
local nn = {}

--- Returns the path of a node of a weight tree in its checkpoint, or nil.
local function path_of(w)
  local meta = type(w) == 'table' and getmetatable(w)
  return meta and meta.__path
end

local function want(w, name, x)
  if not is_tensor(x) then
    local path = path_of(w)
    base.fail(('%s%s: a tensor is needed, not %s'):format(path and path .. ': ' or '', name, arguments.shown(x)))
  end
  return x.c
end

--- Returns the C struct of an optional tensor; nil stays nil.
local function optional(w, name, x)
  if x == nil then return nil end
  return want(w, name, x)
end

local none = {}

-- Returns the input of a quantized layer as C structs: codes (for int4 the floats themselves), their scales, and the
-- dtype of the result.
local function quantized_input(w, name, x)
  want(w, name .. ': weight', w.weight)
  want(w, name .. ': scale', w.scale)
  if not is_tensor(x) then
    if not quant.takes(w) then want(w, name, x) end -- which raises that a tensor is needed
    return x.codes.c, x.scale and x.scale.c, base.dtypes[x.dtype]
  end
  if quant.format(w) == 'int4' then return x.c, nil, x.c.dtype end
  local q = quant.for_layer(w, x)
  return q.codes.c, q.scale and q.scale.c, x.c.dtype
end

-- Runs a layer with or without a low-rank branch. `branch` computes the product of x and `down`; run(x, residual,
-- act, out) is the layer itself.
local function with_branch(w, x, options, branch, run)
  if not rawget(w, 'down') then return run(x, options.residual, options.act, options.out) end
  return tensor.scope(function()
    local low = branch({ weight = want(w, 'down', w.down) and w.down }, x)
    if options.act and options.act ~= 'none' then
      local sum = run(x, nn.linear({ weight = w.up }, low))
      local y = nn[options.act](sum)
      if options.residual then y = y + options.residual end
      return options.out and options.out:copy_(y) or y
    end
    return run(x, nn.linear({ weight = w.up }, low, { residual = options.residual }), nil, options.out)
  end)
end

local function quantized_linear(w, x, options)
  return with_branch(w, x, options, nn.linear, function(input, residual, act, out)
    return tensor.scope(function()
      out = out or new()
      local codes, scale, dtype = quantized_input(w, 'linear', input)
      if C.cr_quant_linear(out.c, codes, scale, w.weight.c, w.scale.c,
        optional(w, 'linear: bias', rawget(w, 'bias')), residual and residual.c, base.acts[act or 'none'], dtype) < 0 then
        base.raise(path_of(w))
      end
      return out
    end)
  end)
end

--- act(x weight' + bias) + residual. A layer that cr.quant has quantized computes with its codes.
--- @param w table weight [N K], bias [N] or nil; for a quantized layer further fields (cr.quant)
--- @param x Tensor [... K], or the Quantized that its producer made for this layer
--- @param options table? {act = 'silu'|'gelu'|'relu', residual = Tensor [... N], out = Tensor to fill}
--- @return Tensor [... N]
function nn.linear(w, x, options)
  options = options or none
  if rawget(w, 'scale') then return quantized_linear(w, x, options) end
  local out = options.out or new()
  if C.cr_linear(out.c, want(w, 'linear', x), want(w, 'linear: weight', w.weight), optional(w, 'linear: bias', rawget(w, 'bias')),
    options.residual and options.residual.c, base.acts[options.act or 'none']) < 0 then
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

local function fill_conv(options, act)
  local o = conv_options
  o.stride_h, o.stride_w = pair(options.stride or 1)
  o.dilation_h, o.dilation_w = pair(options.dilation or 1)
  fill_padding(o.pad, options.padding)
  o.groups = options.groups or 1
  o.act = base.acts[act or 'none']
  return o
end

local function quantized_conv2d(w, x, options)
  if options.slope then base.fail((path_of(w) or 'conv2d') .. ': a quantized convolution has no PReLU') end
  local function branch(down, input)
    return nn.conv2d(down, input, { stride = options.stride, padding = options.padding, dilation = options.dilation })
  end
  return with_branch(w, x, options, branch, function(input, residual, act, out)
    return tensor.scope(function()
      out = out or new()
      local codes, scale, dtype = quantized_input(w, 'conv2d', input)
      if scale then base.fail((path_of(w) or 'conv2d') .. ': a convolution in 8 bits needs an `input`, the divisor of its codes') end
      if C.cr_quant_conv2d(out.c, codes, w.weight.c, w.scale.c,
        optional(w, 'conv2d: bias', rawget(w, 'bias')), residual and residual.c, fill_conv(options, act), dtype) < 0 then
        base.raise(path_of(w))
      end
      return out
    end)
  end)
end

--- act(convolution + bias) + residual, channels-last. A layer that cr.quant has quantized computes with its codes.
--- @param w table weight [O kh kw C/groups], bias [O] or nil; for a quantized layer further fields (cr.quant)
--- @param x Tensor [N H W C], or the Quantized that its producer made for this layer
--- @param options table? {stride = 1|{h, w}, padding = 0|{h, w}|{top, bottom, left, right}, dilation,
---   groups, act, residual, slope (PReLU's [O]), out = Tensor to fill}
--- @return Tensor [N H' W' O]
function nn.conv2d(w, x, options)
  options = options or none
  if rawget(w, 'scale') then return quantized_conv2d(w, x, options) end
  local out = options.out or new()
  if C.cr_conv2d(out.c, want(w, 'conv2d', x), want(w, 'conv2d: weight', w.weight), optional(w, 'conv2d: bias', rawget(w, 'bias')),
    options.residual and options.residual.c, options.slope and options.slope.c,
    fill_conv(options, options.act or options.slope and 'prelu')) < 0 then
    base.raise(path_of(w))
  end
  return out
end

--- Doubles a picture by repeating pixels, then applies a 3x3 convolution: conv2d(w, upsample_nearest(x, 2), { padding
--- = 1 }). With `folded` weights it is a single convolution of the small picture (lua/cr/nn/upsample.lua), unless the
--- card's option conv_upsample is off.
--- @param w table weight [O 3 3 C], bias [O] or nil; folded (made by lua/cr/nn/upsample.lua) or nil
--- @param x Tensor [N H W C], or the Quantized that its producer made for `folded`
--- @return Tensor [N 2H 2W O]
function nn.upsample_conv2d(w, x)
  return tensor.scope(function()
    local folded = rawget(w, 'folded')
    if folded and quant.takes(folded) then
      local codes, _, dtype = quantized_input(folded, 'upsample_conv2d', x)
      local out = new()
      if C.cr_quant_upsample_conv2d(out.c, codes, folded.weight.c, folded.scale.c,
        optional(folded, 'upsample_conv2d: bias', rawget(folded, 'bias')), dtype) < 0 then
        base.raise(path_of(w))
      end
      return out
    end
    if folded and cuda.wants('conv_upsample', x.c.device) then
      return upsample.interleave(nn.conv2d(folded, x, { padding = 1 }))
    end
    return nn.conv2d(w, nn.upsample_nearest(x, 2), { padding = 1 })
  end)
end

--- Group normalization. Statistics are computed over all dimensions but the first, so the view determines them: [B*F
--- H W C] is normalized per frame, [B F H W C] over all frames of the window.
--- @param w table weight [C], bias [C]
--- @param x Tensor [N ... C]
--- @param groups integer
--- @param eps number
--- @param options table? {silu = true, bias_before = Tensor [N C] added to x first, codes = a quantized layer: the
---   result is what that layer takes}
--- @return Tensor|Quantized the Quantized if `codes` is given
function nn.group_norm(w, x, groups, eps, options)
  options = options or none
  if options.codes and quant.takes(options.codes) then
    local q, divisor = quant.target(options.codes, x.dtype)
    if C.cr_quant_group_norm(q.codes.c, q.scale and q.scale.c, x.c, groups, optional(w, 'group_norm: weight', rawget(w, 'weight')),
      optional(w, 'group_norm: bias', rawget(w, 'bias')), eps or 1e-5, options.silu and 1 or 0,
      options.bias_before and options.bias_before.c, divisor, quant.code_dtype(options.codes)) < 0 then
      base.raise(path_of(w))
    end
    return q
  end
  local out = new()
  if C.cr_group_norm(out.c, x.c, groups, optional(w, 'group_norm: weight', rawget(w, 'weight')),
    optional(w, 'group_norm: bias', rawget(w, 'bias')), eps or 1e-5, options.silu and 1 or 0,
    options.bias_before and options.bias_before.c) < 0 then
    base.raise(path_of(w))
  end
  return out
end

local with_silu = { silu = true }

--- Group normalization followed by SiLU, fused.
--- @return Tensor
function nn.group_norm_silu(w, x, groups, eps) return nn.group_norm(w, x, groups, eps, with_silu) end

--- Layer normalization over the last dimension.
--- @param w table weight [C], bias [C]
--- @param x Tensor [... C]
--- @param eps number? 1e-5
--- @param options table? {after = Tensor that is broadcast and added to the result (a position encoding), codes = a
---   quantized layer: the result is what that layer takes}
--- @return Tensor|Quantized the Quantized if `codes` is given
function nn.layer_norm(w, x, eps, options)
  options = options or none
  if options.codes and quant.takes(options.codes) then
    local q, divisor = quant.target(options.codes, x.dtype)
    if C.cr_quant_layer_norm(q.codes.c, q.scale and q.scale.c, x.c, optional(w, 'layer_norm: weight', rawget(w, 'weight')),
      optional(w, 'layer_norm: bias', rawget(w, 'bias')), eps or 1e-5, options.after and options.after.c, divisor,
      quant.code_dtype(options.codes)) < 0 then
      base.raise(path_of(w))
    end
    return q
  end
  local out = new()
  if C.cr_layer_norm(out.c, x.c, optional(w, 'layer_norm: weight', rawget(w, 'weight')),
    optional(w, 'layer_norm: bias', rawget(w, 'bias')), eps or 1e-5, options.after and options.after.c) < 0 then
    base.raise(path_of(w))
  end
  return out
end

--- Multi-head attention: softmax(scale q k' + mask) v. Non-contiguous views (of a packed qkv, or of frames as tokens)
--- need no copy.
--- @param q Tensor [... T h*d]
--- @param k Tensor [... S h*d]
--- @param v Tensor [... S h*dv]
--- @param options table? {heads = 1, scale = number (1 / sqrt d), mask = Tensor f32 (added to the scores) or bool
---   (true where attention is allowed), out = Tensor to fill (any strides), codes = a quantized layer: the result is
---   what that layer takes, and `out` then holds codes, which requires a layer with static input scale}
--- @return Tensor|Quantized [... T h*dv]; the Quantized if `codes` is given
function nn.attention(q, k, v, options)
  options = options or none
  local mask = options.mask
  if mask and mask.dtype == 'bool' then mask = tensor.where(mask, 0, -math.huge) end
  if options.codes and quant.takes(options.codes) then
    local made, divisor = quant.target(options.codes, q.dtype)
    if options.out and made.scale then base.fail 'attention: codes can be written to `out` only if the layer has an `input`' end
    made.codes = options.out or made.codes
    base.check(C.cr_quant_attention(made.codes.c, made.scale and made.scale.c, q.c, k.c, v.c, options.heads or 1,
      options.scale or 0, mask and mask.c, divisor, quant.code_dtype(options.codes)))
    return made
  end
  local out = options.out or new()
  if C.cr_attention(out.c, q.c, k.c, v.c, options.heads or 1, options.scale or 0, mask and mask.c) < 0 then base.raise() end
  return out
end

--- a * gelu(g), where x [... 2D] = (a, g):
---
---     h = nn.geglu(nn.linear(w.proj, x))
--- @param x Tensor [... 2D]
--- @param options table? {codes = a quantized layer: the result is what that layer takes}
--- @return Tensor|Quantized [... D]; the Quantized if `codes` is given
function nn.geglu(x, options)
  if options and options.codes and quant.takes(options.codes) then
    local q, divisor = quant.target(options.codes, x.dtype)
    base.check(C.cr_quant_geglu(q.codes.c, q.scale and q.scale.c, x.c, divisor, quant.code_dtype(options.codes)))
    return q
  end
  local out = new()
  return filled(out, C.cr_geglu(out.c, x.c))
end

-- linear_geglu of a quantized layer. It returns static codes for the next layer, or floats.
local function quantized_linear_geglu(w, x, options)
  return tensor.scope(function()
    local codes, scale, dtype = quantized_input(w, 'linear_geglu', x)
    local q, divisor
    if options.codes and quant.takes(options.codes) and rawget(options.codes, 'input') then
      q, divisor = quant.target(options.codes, x.dtype)
    end
    local out = q and q.codes or options.out or new()
    if C.cr_quant_linear_geglu(out.c, codes, scale, w.weight.c, w.scale.c,
      optional(w, 'linear_geglu: bias', rawget(w, 'bias')), divisor, dtype, q and quant.code_dtype(options.codes) or 0) < 0 then
      base.raise(path_of(w))
    end
    return q or out
  end)
end

--- geglu(linear(w, x)). On Hopper it is one kernel if the card's option linear_geglu is on.
---
---     h = nn.linear_geglu(w.proj, x)
--- @param w table weight [2D K], the values' rows first, bias [2D] or nil; for a quantized layer further fields (cr.quant)
--- @param x Tensor [... K], or the Quantized that its producer made for this layer
--- @param options table? {out = Tensor to fill, codes = a quantized layer: the result is what that layer takes (not
---   together with `out`)}
--- @return Tensor|Quantized [... D]; the Quantized if `codes` is given
function nn.linear_geglu(w, x, options)
  options = options or none
  local codes = options.codes and quant.takes(options.codes) and options.codes
  if rawget(w, 'scale') then
    -- Scales by row need whole rows, which only a separate pass over the result sees.
    local static = not codes or rawget(codes, 'input')
    if quant.takes(w) and static then return quantized_linear_geglu(w, x, options) end
    return tensor.scope(nn.geglu, nn.linear(w, x), options)
  end
  if codes then return tensor.scope(function() return quant.for_layer(codes, nn.linear_geglu(w, x)) end) end
  local out = options.out or new()
  if C.cr_linear_geglu(out.c, x.c, want(w, 'linear_geglu: weight', w.weight),
    optional(w, 'linear_geglu: bias', rawget(w, 'bias'))) < 0 then
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

--- Softmax over a dimension: p = nn.softmax(scores).
--- @param x Tensor [... T]
--- @param dim integer? the last
--- @return Tensor of x's shape
function nn.softmax(x, dim) return x:softmax(dim) end

--- Resizes a picture.
--- @param x Tensor [N H W C] or [H W C]
--- @param height integer
--- @param width integer
--- @param method string 'nearest', 'bilinear', 'linear' (u8 in OpenCV's fixed-point arithmetic), 'bilinear_edge',
---   'bicubic_aa' or 'lanczos4'
--- @return Tensor
function nn.resize(x, height, width, method)
  local out = new()
  return filled(out, C.cr_resize(out.c, x.c, height, width, base.resize_methods[method or 'nearest']))
end

--- Repeats every pixel `factor` times in both directions.
--- @param x Tensor [N H W C]
--- @param factor integer? 2
--- @return Tensor
function nn.upsample_nearest(x, factor)
  local h = x.c.rank - 3
  if h < 0 then base.fail('upsample_nearest: a picture [N H W C] or [H W C] is needed, not ' .. tensor.shape_text(x)) end
  factor = factor or 2
  return nn.resize(x, x.c.shape[h] * factor, x.c.shape[h + 1] * factor, 'nearest')
end

--- Rearranges the channels of a pixel, in the order row, column, channel, to scale x scale pixels. `base`, upsampled
--- by repeating its pixels, is added. Shi et al. 2016.
--- @param x Tensor [N H W scale*scale*C], f32, f16 or bf16
--- @param scale integer 1 to 16
--- @param options table? {base = Tensor [N H W C], dtype = x's, 'f32', 'u8' (clamped to 0..1, times 255, rounded) or
---   'i16' (the same times 65535, as the bits of an unsigned number, which media.write_picture takes), flaw = Tensor
---   i32 [1] that is set to 1 if an element of the result is not finite}
--- @return Tensor [N scale*H scale*W C]
function nn.pixel_shuffle(x, scale, options)
  options = options or none
  local out = new()
  return filled(out, C.cr_pixel_shuffle(out.c, x.c, scale, options.base and options.base.c,
    options.dtype and base.dtypes[options.dtype] or x.c.dtype, options.flaw and options.flaw.c))
end

local more, more_rows, padding = layers(nn.conv2d)

--- Pads with a number or with the tensor's own elements. `before` and `after` list the padding of each dimension; it
--- is 0 for dimensions that are left out.
--- @param x Tensor
--- @param before integer[]
--- @param after integer[]
--- @param value number|string|nil 0, or 'reflect' (without repeating the edge), 'replicate' (repeats the edge), 'circular'
--- @return Tensor
function nn.pad(x, before, after, value)
  local rank = x.c.rank
  if #before > rank or #after > rank then
    base.fail(('pad: %s has only %d dimensions, but more are padded'):format(tensor.shape_text(x), rank))
  end
  if type(value) == 'string' then return padding.by_own(x, before, after, value) end
  local b, a = ffi.new 'int32_t[8]', ffi.new 'int32_t[8]'
  for i = 1, rank do b[i - 1], a[i - 1] = before[i] or 0, after[i] or 0 end
  local out = new()
  return filled(out, C.cr_pad(out.c, x.c, b, a, value or 0))
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
  return filled(out, C.cr_max_pool2d(out.c, x.c, kh, kw, sh, sw, pad))
end

-- ---- what they take --------------------------------------------------------------------------

local function names_of(list, count)
  local names = {}
  for i = 0, count - 1 do names[i + 1] = list[i] end
  return names
end

local maybe, integer = arguments.maybe, arguments.integer
local kinds = tensor.kinds
local layer, x, result, out = kinds.layer, kinds.alive, maybe(kinds.alive), maybe(kinds.result)
local input = arguments.either('a tensor', x, kinds.quantized)
local act = maybe(arguments.choice('activation', names_of(base.acts, C.CR_ACTS)))
local both = arguments.list('', integer, 1, 2)
local steps = arguments.either('a whole number or {h, w}', integer, both)
local four = arguments.list('', integer, 1, 4)
local edges = arguments.kind('a whole number, {h, w} or {top, bottom, left, right}', function(v)
  return integer.test(v) or type(v) == 'table' and #v ~= 3 and four.test(v)
end)
local epsilon = maybe(arguments.finite)
local per_dimension = arguments.list('a list of a whole number for each dimension', integer, 0, 8)

local rows = {
  linear = { layer, input, maybe(arguments.options {
    act = act, residual = result, out = out,
  }) },
  conv2d = { layer, input, maybe(arguments.options {
    stride = maybe(steps), padding = maybe(edges), dilation = maybe(steps), groups = maybe(integer), act = act,
    residual = result, slope = result, out = out,
  }) },
  upsample_conv2d = { layer, input },
  group_norm = { layer, x, integer, epsilon, maybe(arguments.options {
    silu = maybe(arguments.boolean), bias_before = result, codes = maybe(layer),
  }) },
  group_norm_silu = { layer, x, integer, epsilon },
  layer_norm = { layer, x, epsilon, maybe(arguments.options { after = result, codes = maybe(layer) }) },
  attention = { x, x, x, maybe(arguments.options {
    heads = maybe(integer), scale = maybe(arguments.finite), mask = result, out = out, codes = maybe(layer),
  }) },
  geglu = { x, maybe(arguments.options { codes = maybe(layer) }) },
  linear_geglu = { layer, input, maybe(arguments.options { out = out, codes = maybe(layer) }) },
  silu = { x }, gelu = { x }, relu = { x }, softmax = { x, maybe(integer) },
  resize = { x, integer, integer,
    maybe(arguments.choice('method', names_of(base.resize_methods, C.CR_RESIZE_METHODS), {
      area = "use nn.interpolate(x, { size = { h, w }, mode = 'area' })",
      bicubic = "use nn.interpolate(x, { size = { h, w }, mode = 'bicubic' }), or bicubic_aa, which is antialiased",
    })) },
  upsample_nearest = { x, maybe(integer) },
  pixel_shuffle = { x, arguments.positive, maybe(arguments.options {
    base = result, flaw = out, dtype = maybe(arguments.choice('dtype', { 'f32', 'f16', 'bf16', 'u8', 'i16' })),
  }) },
  pad = { x, per_dimension, per_dimension, maybe(arguments.either('a number or a mode of padding', arguments.number,
    arguments.choice('mode of padding', padding.modes))) },
  max_pool2d = { x, arguments.options { kernel = steps, stride = maybe(steps), padding = maybe(edges) } },
}
for _, part in ipairs { { more, more_rows }, { resampling.functions, resampling.rows }, { diffusion.functions, diffusion.rows } } do
  for name, row in pairs(part[2]) do nn[name], rows[name] = part[1][name], row end
end
arguments.guard('', nn, rows)

return setmetatable(nn, { __index = function(_, name)
  local absent, known = require 'cr.tensor.absent', {}
  for other in pairs(nn) do known[#known + 1] = other end
  local method = tensor.methods[name] and ('it is a method: x:%s(...)'):format(name)
  absent.refuse('nn', name, absent.layers[name] or method or absent.methods[name], known)
end })
