--- Quantized numbers: layers whose weights are codes of 8 or 4 bits, and activations as codes.
--
--     quant.quantize_layer(w.proj, { format = 'int8' })   -- weights: codes, and a scale for each channel of the result
--     y = nn.linear(w.proj, x)                            -- x is quantized by rows on the way in
--     h = nn.layer_norm(w.norm, x, eps, { codes = w.proj })   -- what the layer takes: codes, without a pass of their own
--
-- A quantized layer is a node of weights with these tensors besides `bias`, the same for products and convolutions
-- (K: what a result sums over, without a convolution's taps C):
--
--     weight   int8: i8 [N K] or [O kh kw C]; fp8 (E4M3): u8 of that shape; int4: u8 with half the last size, two codes
--              a byte
--     scale    f32 [N]; int4: [N ceil(K/64)] or [O kh kw ceil(C/64)], one for each 64 neighbours
--     input    f32 [K] or nil: x's codes are x / input, whatever x is (static); `scale` is then that of the sum of codes.
--              nil: x is quantized by rows, each with a scale of its largest magnitude. Convolutions must have it
--     smooth   f32 [K] or nil: x is divided by it before it is quantized by rows
--     down, up f32 or 16 bits, [r K] (or [r kh kw C]) and [N r], or nil: x down' up' is added, of x as it comes
--
-- The format follows from weight and scale. int4 is for weights alone: its numbers are multiplied with x as it is.
-- What is lost is precision: of int8 what is less than half a step, of fp8 all but 3 bits of mantissa.

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
--- @field scale Tensor? f32 [...]; nil: static codes, which only the layer knows that they were made for
--- @field dtype string of what was quantized, and of what a product makes of it

local CODES = { int8 = 'i8', fp8 = 'u8' } -- dtypes of the formats of activations
local GROUP = 64 -- neighbours that share one of int4's scales

M.formats = { 'int8', 'fp8', 'int4' }

local NEEDS = { -- what a card must have
  fp8 = { 8.9, 'the RTX 40 series, an H100 or a later one' }, int8 = { 8.0, 'the A100, the RTX 30 series or a later one' },
  int4 = { 8.0, 'the A100, the RTX 30 series or a later one' },
}

--- Whether a device's matrix units multiply a format's numbers; if not, why.
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

--- A layer's format: 'int8', 'fp8', 'int4', or nil of one that is not quantized.
--- @param w table?
--- @return string?
function M.format(w)
  if not is_quantized(w) then return nil end
  local weight, scale = w.weight, w.scale
  if weight.dtype == 'i8' then return 'int8' end
  return scale:dim() == weight:dim() and 'int4' or 'fp8'
end

--- The format of the codes that a layer takes as its input, or nil: it takes numbers.
--- @param w table?
--- @return string?
function M.takes(w)
  if not w or rawget(w, 'down') then return nil end
  local format = M.format(w)
  return CODES[format] and format
end

--- Where a producer puts codes for a layer: an empty Quantized, and the divisor (C's struct or nil) that goes with it.
--- @param w table a layer that takes codes
--- @param dtype string of the numbers
--- @return Quantized
--- @return ffi.cdata*?
function M.target(w, dtype)
  local input, smooth = rawget(w, 'input'), rawget(w, 'smooth')
  local q = { codes = tensor.new(), scale = not input and tensor.new() or nil, dtype = dtype }
  local divisor = input or smooth
  return q, divisor and divisor.c
end

--- The codes of a layer's format, as C names their dtype.
--- @param w table
--- @return integer
function M.code_dtype(w) return base.dtypes[w.weight.dtype] end

--- A tensor itself, or the codes of a quantized one.
--- @param x Tensor|Quantized
--- @return Tensor
function M.tensor_of(x) return tensor.is_tensor(x) and x or x.codes end

--- x as the codes that a layer takes.
--- @param w table a layer that takes codes
--- @param x Tensor [... K]
--- @return Quantized
function M.for_layer(w, x)
  local q, divisor = M.target(w, x.dtype)
  base.check(C.cr_quantize(q.codes.c, q.scale and q.scale.c, x.c, divisor, M.code_dtype(w)))
  return q
end

--- Codes of x, with a scale for each row: q = quant.quantize(x, { format = 'int8' }).
--- @param x Tensor [... K]
--- @param options table? {format = 'int8' or 'fp8' ('int8'), divisor = Tensor f32 [K]: x is divided by it first,
---   static = true: no scales, the codes are of x / divisor}
--- @return Quantized
function M.quantize(x, options)
  options = options or {}
  local divisor = options.divisor
  local q = { codes = tensor.new(), scale = not options.static and tensor.new() or nil, dtype = x.dtype }
  base.check(C.cr_quantize(q.codes.c, q.scale and q.scale.c, x.c, divisor and divisor.c,
    base.dtypes[CODES[options.format or 'int8']]))
  return q
end

--- The numbers that codes and scales stand for: activations, or a layer's weight.
--- @param q table {codes = or weight =, scale =}
--- @param options table? {dtype = string (q.dtype, else f32), divisor = Tensor f32 of the last dimension, multiplied}
--- @return Tensor
function M.dequantize(q, options)
  options = options or {}
  local out, scale, divisor = tensor.new(), rawget(q, 'scale'), options.divisor
  base.check(C.cr_dequantize(out.c, (rawget(q, 'codes') or q.weight).c, scale and scale.c, divisor and divisor.c,
    tensor.dtype_code('quant.dequantize', options.dtype or rawget(q, 'dtype') or 'f32')))
  return out
end

--- Codes of 4 bits, two in a byte.
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

-- Scale of each group of 64 and codes of 4 bits, of a weight [rows K] in f32.
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

--- Makes a layer's weight codes and scales by rounding to the nearest, in place; its other values stay.
--- @param w table {weight = Tensor [N K] or [O kh kw C], ...}
--- @param options table? {format = 'int8', 'fp8' or 'int4' ('int8'), input = Tensor f32 [K]: static codes of x / input,
---   smooth = Tensor f32 [K]: x is divided by it; the layer keeps them. A convolution in 8 bits needs an input}
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
    base.fail('quant.quantize_layer: ' .. (format == 'int4' and 'int4 takes no codes, so neither input nor smooth' or
      'input holds the smoothing: give one of both'))
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
  if rawget(w, 'folded') then M.quantize_layer(w.folded, options) end -- of a convolution that doubles a picture
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
