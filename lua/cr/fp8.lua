--- 8-bit floating point (E4M3) for matrix products: half the bytes and twice the speed of float16 on cards that have it.
--
--     fp8.quantize_layer(w.proj)                    -- weights: codes, and a scale for each channel of the result
--     y = nn.linear(w.proj, x)                      -- x is quantized by rows on the way in
--
-- Scales are of the largest magnitude of a row, so nothing overflows; what is lost is precision: 3 bits
-- of mantissa, and what is 2^-15 of its row's largest or less becomes 0. On a CPU the same arithmetic
-- is done in f32: for comparison, not for speed.

local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local C = base.C

local M = {}

local maybe = arguments.maybe
local layer, quantized, alive = tensor.kinds.layer, tensor.kinds.quantized, tensor.kinds.alive
local tensor_or_nil = maybe(alive)

--- @class Quantized
--- @field codes Tensor u8 [... K]
--- @field scale Tensor f32 [...]
--- @field dtype string of what was quantized, and of what a product makes of it

local CAPABILITY = 8.9

--- Whether a device's matrix units multiply these numbers; if not, why.
--- @param device string 'cpu', 'cuda:0'
--- @return boolean
--- @return string? why
function M.available(device)
  local need = 'fp8 needs an NVIDIA GPU of the RTX 40 series, an H100 or a later one'
  if device == 'cpu' then return false, need .. ', not a CPU' end
  local info = require 'cr.cuda'.info(device)
  if tonumber(info.capability) >= CAPABILITY then return true end
  return false, ('%s; %s has compute capability %s'):format(need, info.name, info.capability)
end

local function result(dtype) return { codes = tensor.new(), scale = tensor.new(), dtype = dtype } end

--- Codes and scales of x, by rows: q = fp8.quantize(x).
--- @param x Tensor [... K]
--- @param scale Tensor? f32 [...]: these scales, as measured before; what exceeds 448 of them becomes 448 of them
--- @return Quantized
function M.quantize(x, scale)
  local q = { codes = tensor.new(), scale = scale or tensor.new(), dtype = x.dtype }
  base.check(C.cr_fp8_quantize(q.codes.c, q.scale.c, x.c, scale and 1 or 0))
  return q
end

--- The numbers that codes and scales stand for.
--- @param q Quantized
--- @param dtype string? q.dtype
--- @return Tensor
function M.dequantize(q, dtype)
  local out = tensor.new()
  base.check(C.cr_fp8_dequantize(out.c, q.codes.c, q.scale.c,
    tensor.dtype_code('fp8.dequantize', dtype or q.dtype)))
  return out
end

--- nn.geglu, quantized in the same pass.
--- @param x Tensor [... 2D]
--- @return Quantized of [... D]
function M.geglu(x)
  local q = result(x.dtype)
  base.check(C.cr_fp8_geglu(q.codes.c, q.scale.c, x.c))
  return q
end

--- nn.layer_norm, quantized in the same pass.
--- @param w table weight [C], bias [C]
--- @param x Tensor [... C]
--- @param eps number? 1e-5
--- @param options table? {after = Tensor, added to the result}
--- @return Quantized
function M.layer_norm(w, x, eps, options)
  local q = result(x.dtype)
  local weight = arguments.want('fp8.layer_norm: weight', tensor_or_nil, rawget(w, 'weight'))
  local bias = arguments.want('fp8.layer_norm: bias', tensor_or_nil, rawget(w, 'bias'))
  local after = options and options.after
  if C.cr_fp8_layer_norm(q.codes.c, q.scale.c, x.c, weight and weight.c or nil, bias and bias.c or nil,
    eps or 1e-5, after and after.c or nil) < 0 then
    local meta = getmetatable(w)
    base.raise(meta and meta.__path)
  end
  return q
end

--- Whether a layer's weight is quantized.
--- @param w table?
--- @return boolean
function M.is(w) return w ~= nil and rawget(w, 'scale') ~= nil end

--- Makes a linear layer's weight codes and scales, in place; its other values stay as they are.
--- @param w table {weight = Tensor [N K], ...}
function M.quantize_layer(w)
  local q = M.quantize(w.weight)
  w.weight, w.scale = tensor.keep(q.codes), tensor.keep(q.scale)
end

return arguments.guard('fp8.', M, {
  available = { arguments.string },
  quantize = { alive, tensor_or_nil },
  dequantize = { quantized, maybe(arguments.string) },
  geglu = { alive },
  layer_norm = { layer, alive, maybe(arguments.finite), maybe(arguments.options { after = tensor_or_nil }) },
  is = { maybe(arguments.table) },
  quantize_layer = { layer },
})
