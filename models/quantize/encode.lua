--- Quantizes one layer's weight: smoothing, an optional low-rank branch in 16 bits, and rounding of the rest, to the
--- nearest or by GPTQ.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local gptq = require 'models.quantize.gptq'
local linalg = require 'models.quantize.linalg'
local quant = require 'cr.quant'
local rounding = require 'models.quantize.rounding'

local M = {}

-- Calls fn for each tap of a convolution as a matrix of its own. The input statistics are the same for all taps.
local function each_tap(layer, w, fn)
  local codes, scales = {}, {}
  for tap = 1, layer.taps do
    codes[tap], scales[tap] = fn(w:narrow(2, (tap - 1) * layer.K + 1, layer.K):contiguous())
  end
  return cr.cat(codes, 2), cr.cat(scales, 2)
end

-- The low-rank branch and the remainder. With a Gram matrix it minimizes the error of the product, else that of the
-- weight.
local function low_rank(layer, w, rank, gram)
  local up, down
  if gram and layer.taps == 1 then
    local lower, inverse = linalg.cholesky(gram)
    up, down = linalg.low_rank(w:to 'cpu':to 'f64':matmul(lower), rank)
    down = down:matmul(inverse)
  else
    up, down = linalg.low_rank(w, rank)
  end
  -- Both factors get about the same magnitude, so that 16 bits can hold them.
  local balance = math.sqrt(math.max(1e-30, down:abs():max():item()))
  up, down = (up * balance):to 'f16', (down / balance):to 'f16'
  return up, down, w - up:to('f32'):matmul(down:to 'f32'):to(w.device)
end

-- A Gram matrix with damping, so that it always has a Cholesky factor.
local function damped(gram)
  return cr.scope(function()
    local g = gram:to 'cpu':to('f64'):clone()
    local n, p, mean = g:size(1), g:pointer(), 0
    for i = 0, n - 1 do mean = mean + p[i * (n + 1)] / n end
    for i = 0, n - 1 do p[i * (n + 1)] = p[i * (n + 1)] + math.max(mean, 1e-30) * 1e-3 end
    return g
  end)
end

local function int4(layer, w, how)
  local up, down
  local gram = how.gram and damped(how.gram)
  if how.rank then up, down, w = low_rank(layer, w, how.rank, gram) end
  local prepared = gram and gptq.prepare(gram)
  local codes, scale = each_tap(layer, w, function(part)
    if prepared then return gptq.round(part, prepared, rounding.most.int4, { group = rounding.GROUP }) end
    return rounding.nearest(part, rounding.most.int4, { group = rounding.GROUP })
  end)
  return quant.pack4(codes), scale, up, down
end

-- The parameters of a quantized layer, on its device and in the shape of its weight.
local function placed(layer, shape, device, format, codes, scale)
  local to, groups = { unpack(shape) }, { unpack(shape) }
  if format ~= 'int4' then return codes:view(shape):to(device), scale:view(shape[1]):to(device) end
  to[#to], groups[#groups] = layer.K / 2, math.ceil(layer.K / rounding.GROUP)
  return codes:view(to):to(device), scale:view(groups):to(device)
end

--- A layer's quantized weight and parameters, all on the weight's device.
--- @param layer QuantLayer
--- @param format string 'int8', 'fp8' or 'int4'
--- @param how table? {input = f32 [K] for a static input scale, or smooth = f32 [K] for per-row input scales, gram = [K K] of the
---   layer's inputs: use GPTQ (int4), rank = of a 16-bit branch (int4)}
--- @return table {weight, scale, input, smooth, up, down}
function M.encoded(layer, format, how)
  how = how or {}
  return cr.scope(function()
    local weight = layer.node.weight
    local shape, device = weight.shape, weight.device
    local w = weight:to 'f32'
    local divisor = how.input or how.smooth
    if divisor then w = w * divisor end
    w = w:contiguous():view(layer.N, layer.taps * layer.K)
    local codes, scale, up, down
    if format == 'int4' then
      codes, scale, up, down = int4(layer, w, how)
    elseif format == 'int8' then
      codes, scale = rounding.nearest(w, rounding.most.int8)
      codes = codes:to 'i8'
    else
      local q = quant.quantize(w, { format = 'fp8' })
      codes, scale = q.codes, q.scale
    end
    codes, scale = placed(layer, shape, device, format, codes, scale)
    return { weight = codes, scale = scale, input = how.input and how.input:to(device), smooth = how.smooth and how.smooth:to(device),
      up = up and up:to(device), down = down and down:to(device) }
  end)
end

--- Replaces a layer's weight by quantized values and frees it, and what was derived from it (cr.nn.upsample).
--- @param layer QuantLayer
--- @param format string
--- @param how table? as for `encoded`
function M.layer(layer, format, how)
  local node, fields = layer.node, M.encoded(layer, format, how)
  node.weight:free()
  if rawget(node, 'folded') then
    node.folded.weight:free()
    node.folded = nil
  end
  for name, t in pairs(fields) do node[name] = cr.keep(t) end
end

--- Converts a quantized layer to another format, with per-row input scales.
--- @param layer QuantLayer from layers.quantized
--- @param format string
function M.again(layer, format)
  local node = layer.node
  local before = { node.weight, node.scale, rawget(node, 'input'), rawget(node, 'smooth') }
  local divisor = rawget(node, 'input') or rawget(node, 'smooth')
  node.weight = cr.keep(cr.scope(function()
    local w = quant.dequantize(node)
    return divisor and w / divisor or w
  end))
  node.scale, node.input, node.smooth = nil, nil, nil
  for _, t in pairs(before) do t:free() end
  M.layer(layer, format)
end

local layer = arguments.kind('a layer of models/quantize/layers.lua', arguments.table.test)
local format, maybe = arguments.choice('format', quant.formats), arguments.maybe
local tensor = maybe(cr.kinds.alive)
local how = maybe(arguments.options { input = tensor, smooth = tensor, gram = tensor, rank = maybe(arguments.positive) })
return arguments.guard('encode.', M, { encoded = { layer, format, how }, layer = { layer, format, how }, again = { layer, format } })
