--- Layers composed of other operations: one-dimensional and transposed convolutions, average pooling, RMS norm,
--- embeddings. init.lua passes in the convolution that they use.

local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local shape_text = tensor.shape_text
local none = {}

local function pair(v)
  if type(v) == 'table' then return v[1], v[2] or v[1] end
  return v, v
end

-- Returns the weight of a layer, or fails.
local function weight_of(name, w) return tensor.want_tensor(name .. ': weight', w.weight) end

--- @param conv2d function nn.conv2d
--- @return cr.nn
--- @return table<string, table> rows kinds of arguments, by functions' names
--- @return table padding {modes = ways to pad by a tensor's own elements, by_own = what pads so}
return function(conv2d)
  --- @class cr.nn
  local nn = {}

  --- Convolution along the middle dimension.
  --- @param w table weight [O k C/groups], bias [O] or nil
  --- @param x Tensor [N T C]
  --- @param options table? {stride = 1, padding = 0, dilation = 1, groups = 1, act}
  --- @return Tensor [N T' O]
  function nn.conv1d(w, x, options)
    options = options or none
    local weight = weight_of('conv1d', w)
    if x:dim() ~= 3 or weight:dim() ~= 3 then
      base.fail(('conv1d: x [N T C] and weight [O k C] are needed, not %s and %s'):format(shape_text(x), shape_text(weight)))
    end
    local padding = options.padding or 0
    return tensor.scope(function()
      local y = conv2d({ weight = weight:unsqueeze(2), bias = w.bias }, x:unsqueeze(2), {
        stride = { 1, options.stride or 1 }, padding = { 0, padding }, dilation = { 1, options.dilation or 1 },
        groups = options.groups, act = options.act })
      return y:squeeze(2)
    end)
  end

  -- Inserts zeros between the pixels of x [N H W C].
  local function spread(x, sh, sw)
    if sh == 1 and sw == 1 then return x end
    local N, H, W, C = unpack(x.shape)
    local wide = tensor.zeros({ N, H, sh, W, sw, C }, { dtype = x.dtype, device = x.device })
    wide:select(3, 1):select(4, 1):copy_(x)
    return wide:view(N, H * sh, W * sw, C):narrow(2, 1, (H - 1) * sh + 1):narrow(3, 1, (W - 1) * sw + 1):contiguous()
  end

  -- Flips the kernel [C kh kw O/g] of a transposed convolution and rearranges it to conv2d's [O kh kw C/g].
  local function turned(weight, groups)
    local C, kh, kw, O = unpack(weight.shape)
    local w = weight:flip { 2, 3 }:view(groups, C / groups, kh, kw, O)
    return w:permute(1, 5, 3, 4, 2):contiguous():view(groups * O, kh, kw, C / groups)
  end

  --- Transposed convolution, which enlarges by its stride: torch's conv_transpose2d.
  --- @param w table weight [C kh kw O/groups], bias [O] or nil
  --- @param x Tensor [N H W C]
  --- @param options table? {stride = 1|{h, w}, padding = 0|{h, w} (cropped from the result), output_padding = 0|{h,
  ---   w} (added at the bottom and right), dilation = 1|{h, w}, groups = 1}
  --- @return Tensor [N (H-1)*stride - 2*padding + dilation*(kh-1) + output_padding + 1 ... O]
  function nn.conv_transpose2d(w, x, options)
    options = options or none
    local groups = options.groups or 1
    local sh, sw = pair(options.stride or 1)
    local ph, pw = pair(options.padding or 0)
    local eh, ew = pair(options.output_padding or 0)
    local dh, dw = pair(options.dilation or 1)
    local weight = weight_of('conv_transpose2d', w)
    if x:dim() ~= 4 or weight:dim() ~= 4 or weight:size(1) ~= x:size(4) or x:size(4) % groups ~= 0 then
      base.fail(('conv_transpose2d: x [N H W C] and weight [C kh kw O] are needed, not %s and %s'):format(shape_text(x),
        shape_text(weight)))
    end
    return tensor.scope(function()
      local fh, fw = (weight:size(2) - 1) * dh, (weight:size(3) - 1) * dw
      local y = conv2d({ weight = turned(weight, groups), bias = w.bias }, spread(x, sh, sw), {
        padding = { fh, fh + eh, fw, fw + ew }, dilation = { dh, dw }, groups = groups })
      if ph == 0 and pw == 0 then return y end
      local height, width = y:size(2) - 2 * ph, y:size(3) - 2 * pw
      if height < 1 or width < 1 then
        base.fail(('conv_transpose2d: a padding of %d x %d leaves nothing of %s'):format(ph, pw, shape_text(y)))
      end
      return y:narrow(2, ph + 1, height):narrow(3, pw + 1, width):contiguous()
    end)
  end

  --- Average over windows.
  --- @param x Tensor [N H W C]
  --- @param options table {kernel, stride (= kernel), padding = 0, count_padding = true (false: the padding does not
  ---   count in the average)}
  --- @return Tensor
  function nn.avg_pool2d(x, options)
    local kh, kw = pair(options.kernel)
    local C = x:size(-1)
    return tensor.scope(function()
      local o = { stride = options.stride or options.kernel, padding = options.padding, groups = C }
      local function sum(of, channels)
        o.groups = channels
        return conv2d({ weight = tensor.ones({ channels, kh, kw, 1 }, { dtype = x.dtype, device = x.device }) }, of, o)
      end
      local y = sum(x, C)
      if options.count_padding == false then
        return y / sum(tensor.ones({ 1, x:size(2), x:size(3), 1 }, { dtype = x.dtype, device = x.device }), 1)
      end
      return y * (1 / (kh * kw))
    end)
  end

  --- x / sqrt(mean(x^2) + eps) * weight over the last dimension. Zhang and Sennrich 2019.
  --- @param w table weight [C] or nil
  --- @param x Tensor [... C]
  --- @param eps number? 1e-6
  --- @return Tensor
  function nn.rms_norm(w, x, eps)
    local weight = w.weight and weight_of('rms_norm', w)
    return tensor.scope(function()
      local wide = x.dtype == 'f64' and x or x:to 'f32'
      local y = (wide * (wide:square():mean(-1, true) + (eps or 1e-6)):rsqrt()):to(x.dtype)
      return weight and y * weight or y
    end)
  end

  --- Looks up rows of a table by their indices, from 1: nn.embedding(w, tokens).
  --- @param w table weight [V C]
  --- @param index Tensor i64 or i32 [...]
  --- @return Tensor [... C]
  function nn.embedding(w, index)
    local weight = weight_of('embedding', w)
    if weight:dim() ~= 2 then base.fail(('embedding: the weight must be [V C], not %s'):format(shape_text(weight))) end
    return tensor.scope(function()
      local shape = index.shape
      shape[#shape + 1] = weight:size(2)
      return weight:gather_rows(index:reshape(-1)):view(shape, {})
    end)
  end

  local MODES = {
    -- The source index in 0 .. n - 1 for index i from -before to n - 1 + after.
    replicate = function(i, n) return math.max(0, math.min(n - 1, i)) end,
    circular = function(i, n) return i % n end,
    reflect = function(i, n)
      local period = math.max(1, 2 * (n - 1))
      i = i % period
      return i < n and i or period - i
    end,
  }
  local padding = { modes = { 'circular', 'reflect', 'replicate' } }

  --- Pads with a tensor's own elements, dimension by dimension.
  --- @param x Tensor
  --- @param before integer[]
  --- @param after integer[]
  --- @param mode string
  --- @return Tensor
  function padding.by_own(x, before, after, mode)
    return tensor.scope(function()
      local y = x
      for d = 1, x:dim() do
        local b, a, n = before[d] or 0, after[d] or 0, x:size(d)
        if b ~= 0 or a ~= 0 then
          if b < 0 or a < 0 or n == 0 or mode == 'reflect' and math.max(a, b) >= n or mode == 'circular' and math.max(a, b) > n then
            base.fail(("pad: dimension %d of %s cannot grow by %d and %d with '%s'"):format(d, shape_text(x), b, a, mode))
          end
          local at = {}
          for i = -b, n - 1 + a do at[#at + 1] = MODES[mode](i, n) + 1 end
          y = y:index_select(d, at)
        end
      end
      return rawequal(y, x) and x:clone() or y
    end)
  end

  local kinds = tensor.kinds
  local maybe, integer = arguments.maybe, arguments.natural
  local sides = maybe(arguments.either('a whole number or {h, w}', integer, arguments.list('', integer, 1, 2)))
  local steps = maybe(arguments.either('a whole number from 1 or {h, w}', arguments.positive, arguments.list('', arguments.positive, 1, 2)))
  local layer, x = kinds.layer, kinds.alive
  local rows = {
    conv1d = { layer, x, maybe(arguments.options { stride = maybe(arguments.positive), padding = maybe(integer),
      dilation = maybe(arguments.positive), groups = maybe(arguments.positive), act = maybe(arguments.string) }) },
    conv_transpose2d = { layer, x, maybe(arguments.options { stride = steps, padding = sides, output_padding = sides, dilation = steps,
      groups = maybe(arguments.positive) }) },
    avg_pool2d = { x, arguments.options { kernel = steps, stride = steps, padding = sides, count_padding = maybe(arguments.boolean) } },
    rms_norm = { layer, x, maybe(arguments.finite) }, embedding = { layer, x },
  }
  return nn, rows, padding
end
