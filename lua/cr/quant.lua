--- Quantization: layers whose weights are 8- or 4-bit codes, and activations as 8-bit codes.
--
--     quant.quantize_layer(w.proj, { format = 'int8' })   -- weights: codes, and a scale for each channel of the result
--     y = nn.linear(w.proj, x)                            -- x is quantized by row first
--     h = nn.layer_norm(w.norm, x, eps, { codes = w.proj })   -- the norm returns the codes that the layer takes, in the same kernel
--
-- A quantized layer is a node of weights with these tensors besides `bias`. K is the number of input features, or the
-- input channels C of a convolution:
--
--     weight   int8: i8 [N K] or [O kh kw C]; fp8 (E4M3): u8 of that shape; int4: u8 with half the last size, two codes in
--              a byte
--     scale    f32 [N]; int4: [N ceil(K/64)] or [O kh kw ceil(C/64)], one for each group of 64
--     input    f32 [K] or nil: static quantization, x's codes are x / input, and `scale` is that of the sum of code products.
--              nil: dynamic quantization, each row of x has the scale of its largest magnitude. Convolutions must have `input`
--     smooth   f32 [K] or nil: x is divided by it before dynamic quantization (SmoothQuant)
--     down, up f32 or 16 bits, [r K] (or [r kh kw C]) and [N r], or nil: a low-rank branch, x down' up' of the unquantized x is added
--
-- The format follows from the dtypes and shapes of weight and scale. int4 is weight-only: its values are dequantized
-- and multiplied with the unquantized x. int8 loses up to half a step; fp8 keeps 3 bits of mantissa.

local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local C = base.C

local M = {}

local maybe = arguments.maybe
local layer, quantized, alive = tensor.kinds.layer, tensor.kinds.quantized, tensor.kinds.alive

local function is_quantized(w) return type(w) == 'table' and alive.test(rawget(w, 'weight')) and alive.test(rawget(w, 'scale')) end
local quantized_layer = arguments.kind("a quantized layer's weights, {weight = codes, scale = ...},", is_quantized)

--- @class Quantized
--- @field codes Tensor i8 (int8) or u8 (fp8) [... K]
--- @field scale Tensor? f32 [...]; nil for static codes, whose scale the layer holds
--- @field dtype string dtype of the numbers that were quantized, and of a layer's result

local CODES = { int8 = 'i8', fp8 = 'u8' } -- dtypes of the formats of activations
local GROUP = 64 -- elements that share a scale in int4

M.formats = { 'int8', 'fp8', 'int4' }

local NEEDS = { -- the compute capability that a card needs
  fp8 = { 8.9, 'the RTX 40 series, an H100 or a later one' }, int8 = { 8.0, 'the A100, the RTX 30 series or a later one' },
  int4 = { 8.0, 'the A100, the RTX 30 series or a later one' },
}

--- Returns whether a device can multiply matrices of a format and, if not, why.
--- @param device string 'cpu', 'cuda:0'
--- @param format string 'int8', 'fp8' or 'int4'
--- @return boolean
--- @return string? why
function M.available(device, format)
  local least, cards = NEEDS[format][1], NEEDS[format][2]
  local need = ('%s needs an NVIDIA GPU of %s'):format(format, cards)
  if device == 'cpu' then
    if format ~= 'fp8' then return true end
    return false, need .. ', not a CPU'
  end
  local info = require 'cr.cuda'.info(device)
  if tonumber(info.capability) >= least then return true end
  return false, ('%s; %s has compute capability %s'):format(need, info.name, info.capability)
end

--- Returns the format of a layer: 'int8', 'fp8', 'int4', or nil if it is not quantized.
--- @param w table?
--- @return string?
function M.format(w)
  if not is_quantized(w) then return nil end
  local weight, scale = w.weight, w.scale
  if weight.dtype == 'i8' then return 'int8' end
  return scale:dim() == weight:dim() and 'int4' or 'fp8'
end

--- Returns the format of the codes that a layer takes as its input, or nil if it takes floats.
--- @param w table?
--- @return string?
function M.takes(w)
  if not w or rawget(w, 'down') then return nil end
  local format = M.format(w)
  return CODES[format] and format
end

--- Returns an empty Quantized to which a producer writes codes for a layer, and the divisor (a C struct or nil) for them.
--- @param w table a layer that takes codes
--- @param dtype string dtype of the unquantized numbers
--- @return Quantized
--- @return ffi.cdata*?
function M.target(w, dtype)
  local input, smooth = rawget(w, 'input'), rawget(w, 'smooth')
  local q = { codes = tensor.new(), scale = not input and tensor.new() or nil, dtype = dtype }
  local divisor = input or smooth
  return q, divisor and divisor.c
end

--- Returns C's number of the dtype of a layer's codes.
--- @param w table
--- @return integer
function M.code_dtype(w) return base.dtypes[w.weight.dtype] end

--- Returns a tensor itself, or the codes of a Quantized.
--- @param x Tensor|Quantized
--- @return Tensor
function M.tensor_of(x) return tensor.is_tensor(x) and x or x.codes end

--- Quantizes x to the codes that a layer takes.
--- @param w table a layer that takes codes
--- @param x Tensor [... K]
--- @return Quantized
function M.for_layer(w, x)
  local q, divisor = M.target(w, x.dtype)
  base.check(C.cr_quantize(q.codes.c, q.scale and q.scale.c, x.c, divisor, M.code_dtype(w)))
  return q
end

--- Quantizes x with a scale for each row: q = quant.quantize(x, { format = 'int8' }).
--- @param x Tensor [... K]
--- @param options table? {format = 'int8' or 'fp8' ('int8'), divisor = Tensor f32 [K] by which x is divided first,
---   static = true: no scales, the codes are x / divisor}
--- @return Quantized
function M.quantize(x, options)
  options = options or {}
  local divisor = options.divisor
  local q = { codes = tensor.new(), scale = not options.static and tensor.new() or nil, dtype = x.dtype }
  base.check(C.cr_quantize(q.codes.c, q.scale and q.scale.c, x.c, divisor and divisor.c,
    base.dtypes[CODES[options.format or 'int8']]))
  return q
end

--- Dequantizes codes and scales of activations, or of a layer's weight.
--- @param q table {codes = or weight =, scale =}
--- @param options table? {dtype = string (q.dtype, else f32), divisor = Tensor f32 by which the last dimension is multiplied}
--- @return Tensor
function M.dequantize(q, options)
  options = options or {}
  local out, scale, divisor = tensor.new(), rawget(q, 'scale'), options.divisor
  base.check(C.cr_dequantize(out.c, (rawget(q, 'codes') or q.weight).c, scale and scale.c, divisor and divisor.c,
    tensor.dtype_code('quant.dequantize', options.dtype or rawget(q, 'dtype') or 'f32')))
  return out
end

--- Packs 4-bit codes, two in each byte.
--- @param codes Tensor whole numbers -8 to 7, [... K], K even
--- @return Tensor u8 [... K/2]
function M.pack4(codes)
  return tensor.scope(function()
    local last = codes:dim()
    local n = last > 0 and codes:size(last) or 1
    if n % 2 ~= 0 then base.fail(('quant.pack4: the last dimension of %s is not even'):format(tensor.shape_text(codes))) end
    local shape = codes.shape
    shape[last], shape[last + 1] = n / 2, 2
    local pairs_of = codes:to 'i32':contiguous():view(shape)
    local low, high = pairs_of:narrow(last + 1, 1, 1), pairs_of:narrow(last + 1, 2, 1)
    if codes:numel() > 0 and (codes:to 'f32':min():item() < -8 or codes:to 'f32':max():item() > 7) then
      base.fail 'quant.pack4: codes of 4 bits are from -8 to 7'
    end
    local function unsigned(x) return x + x:lt(0):to 'i32' * 16 end
    return (unsigned(low) + unsigned(high) * 16):squeeze(last + 1):to 'u8'
  end)
end

-- Returns the scales of groups of 64 and the 4-bit codes of a weight [rows K] in f32.
local function quantize4(weight)
  local rows, n = weight:size(1), weight:size(2)
  local codes, scales = {}, {}
  for first = 1, n, GROUP do
    local part = weight:narrow(2, first, math.min(GROUP, n - first + 1))
    local scale = part:abs():max(2, true):clamp(1e-30, math.huge) / 7
    scales[#scales + 1] = scale
    codes[#codes + 1] = (part / scale):round():clamp(-8, 7)
  end
  return M.pack4(tensor.cat(codes, 2)), tensor.cat(scales, 2):view(rows, #scales)
end

--- Quantizes the weight of a layer in place by rounding to the nearest code. Its other values stay.
--- @param w table {weight = Tensor [N K] or [O kh kw C], ...}
--- @param options table? {format = 'int8', 'fp8' or 'int4' ('int8'), input = Tensor f32 [K] for static codes x /
---   input, smooth = Tensor f32 [K] by which x is divided; the layer keeps both. A convolution in 8 bits needs
---   `input`}
function M.quantize_layer(w, options)
  options = options or {}
  local format, input, smooth = options.format or 'int8', options.input, options.smooth
  local before = rawget(w, 'weight')
  if not alive.test(before) then base.fail 'quant.quantize_layer: the layer has no weight' end
  local shape = before.shape
  if #shape == 4 and format ~= 'int4' and not input then
    base.fail('quant.quantize_layer: a convolution needs an input, the divisor of its codes')
  end
  if input and (smooth or format == 'int4') or smooth and format == 'int4' then
    base.fail('quant.quantize_layer: ' .. (format == 'int4' and 'int4 does not quantize the input, so give neither input nor smooth' or
      'input already includes the smoothing: give only one of the two'))
  end
  local codes, scale = tensor.scope(function()
    local weight, divisor = before:to 'f32', input or smooth
    if divisor then weight = weight * divisor end
    if format == 'int4' then
      local last = shape[#shape]
      local c, s = quantize4(weight:contiguous():view(weight:numel() / last, last))
      local to, groups = { unpack(shape) }, { unpack(shape) }
      to[#to], groups[#groups] = last / 2, s:size(2)
      return c:view(to), s:view(groups)
    end
    local q = M.quantize(weight:contiguous():view(shape[1], weight:numel() / shape[1]), { format = format })
    return q.codes:view(shape), q.scale
  end)
  if rawget(w, 'folded') then M.quantize_layer(w.folded, options) end -- the weights of nn.upsample_conv2d
  w.weight, w.scale = tensor.keep(codes), tensor.keep(scale)
  w.input, w.smooth = input and tensor.keep(input), smooth and tensor.keep(smooth)
end

local format, any_format = maybe(arguments.choice('format', { 'int8', 'fp8' })), arguments.choice('format', M.formats)
return arguments.guard('quant.', M, {
  available = { arguments.string, any_format },
  format = { maybe(arguments.table) },
  takes = { maybe(arguments.table) },
  target = { quantized_layer, arguments.string },
  code_dtype = { quantized_layer },
  tensor_of = { arguments.either('a tensor', alive, quantized) },
  for_layer = { quantized_layer, alive },
  quantize = { alive, maybe(arguments.options { format = format, divisor = maybe(alive), static = maybe(arguments.boolean) }) },
  dequantize = { arguments.either("a quantized tensor or layer", quantized, quantized_layer), maybe(arguments.options {
    dtype = maybe(arguments.string), divisor = maybe(alive),
  }) },
  pack4 = { alive },
  quantize_layer = { layer, maybe(arguments.options {
    format = maybe(any_format), input = maybe(alive), smooth = maybe(alive),
  }) },
})
