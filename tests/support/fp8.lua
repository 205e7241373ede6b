--- E4M3 with per-row scales, for GPU tests and benchmarks: the functions of cr.quant with this format.

local cr = require 'cr'
local nn = require 'cr.nn'
local quant = require 'cr.quant'

local M = {}

-- A layer that takes such inputs; only its input format matters.
local function taker(x)
  return { weight = cr.zeros({ 1, 1 }, { dtype = 'u8', device = x.device }), scale = cr.ones({ 1 }, { device = x.device }) }
end

function M.available(device) return quant.available(device, 'fp8') end

--- With a static `scale` [rows]: values beyond 448 times the scale are clamped.
function M.quantize(x, scale)
  if not scale then return quant.quantize(x, { format = 'fp8' }) end
  local width = x:size(-1)
  local inverse = (cr.ones(scale.shape, { device = x.device }) / scale):view(scale:numel(), 1)
  local q = quant.quantize(x:to 'f32' * inverse, { format = 'fp8', static = true, divisor = cr.ones({ width }, { device = x.device }) })
  return { codes = q.codes, scale = scale, dtype = x.dtype }
end

function M.dequantize(q, dtype) return quant.dequantize(q, { dtype = dtype }) end
function M.quantize_layer(w) quant.quantize_layer(w, { format = 'fp8' }) end

function M.geglu(x)
  return cr.scope(function() return nn.geglu(x, { codes = taker(x) }) end)
end

function M.layer_norm(w, x, eps, options)
  return cr.scope(function() return nn.layer_norm(w, x, eps, { after = options and options.after, codes = taker(x) }) end)
end

return M
