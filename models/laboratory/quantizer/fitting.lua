--- Chooses a layer's quantization parameters from its observed inputs: range and smoothing, GPTQ and the low-rank
--- branch for 4 bits.

local apply = require 'models.quantize.apply'
local cr = require 'cr'
local nn = require 'cr.nn'
local rounding = require 'models.quantize.rounding'

local M = {}

-- Candidate ranges, as multiples of the largest magnitude. On the small model, 0.8 would cost 10 dB.
local SHARES = { 1.1, 1, 0.9 }
-- Candidate exponents of smoothing (SmoothQuant, arXiv 2211.10438), for per-row input scales.
local ALPHAS = { 0.5, 0.75 }
-- Smoothing must reduce the error to this share, because it costs an extra division.
local PAYS = 0.9

-- The minimum range of a channel relative to the layer's: a channel that was silent so far may become active.
local FLOOR = 0.02

local function squares(x) return x:square():sum():item() end

-- A static range for each channel that minimizes the error in the product.
local function static(layer, found)
  return cr.scope(function()
    local most = found.most:maximum(math.max(1e-6, found.most:max():item() * FLOOR))
    local weight = layer.node.weight:to('f32'):square():contiguous():view(-1, layer.K):sum(1)
    local least, input
    for _, share in ipairs(SHARES) do
      local divisor = most * (share / rounding.most.int8)
      local codes = (found.rows / divisor):round():clamp(-rounding.most.int8, rounding.most.int8)
      local off = ((codes * divisor - found.rows):square() * weight):sum():item()
      if not least or off < least then least, input = off, divisor end
    end
    return input:clone()
  end)
end

-- The product of x, quantized per row, and w, in 8 bits, from unquantized values.
local function product(x, w)
  local sx = x:abs():max(2, true):maximum(1e-30) / rounding.most.int8
  local sw = w:abs():max(2, true):maximum(1e-30) / rounding.most.int8
  return nn.linear({ weight = (w / sw):round() * sw }, (x / sx):round() * sx)
end

-- The smoothing of a product, if it reduces the error on the observed rows; else nil.
local function smoothing(layer, found)
  return cr.scope(function()
    local x, w = found.rows, layer.node.weight:to('f32'):contiguous():view(layer.N, layer.K)
    local y = nn.linear({ weight = w }, x)
    local least = squares(product(x, w) - y) * PAYS ^ 2
    local best
    local rows, columns = found.most:maximum(1e-5), w:abs():max(1):maximum(1e-5)
    for _, alpha in ipairs(ALPHAS) do
      local smooth = (rows:log() * alpha - columns:log() * (1 - alpha)):exp()
      local off = squares(product(x / smooth, w * smooth) - y)
      if off < least then least, best = off, smooth end
    end
    return best and best:clone()
  end)
end

--- The rank of the 16-bit low-rank branch of a 4-bit layer: a sixteenth of the layer's size, so that it stays small;
--- nil if the layer has none.
--- @param layer QuantLayer
--- @param format string
--- @return integer?
function M.rank(layer, format)
  if format ~= 'int4' or layer.kind ~= 'product' then return nil end
  return math.min(32, math.floor(math.min(layer.N, layer.K) / 16))
end

-- Convolutions have no rows, so they need a static range. A feed-forward's second product has rows, but with a static
-- range the kernel of the first one writes quantized values (nn.linear_geglu), and so does attention for the product
-- behind it.
local function is_static(layer)
  return layer.kind == 'convolution' or layer.name:find '%.net%.2$' ~= nil or layer.name:find '%.to_out%.0$' ~= nil
end

--- The options of encode.encoded for a layer; nil if it cannot be quantized because its range is unknown.
--- @param layer QuantLayer
--- @param format string
--- @param found LayerStatistics? nil if the layer was not observed
--- @return table?
function M.how(layer, format, found)
  if format == 'int4' then return { gram = found and found.gram, rank = M.rank(layer, format) } end
  if format == 'int8' and is_static(layer) then
    local input = found and static(layer, found) or apply.range(layer)
    if input or layer.kind == 'convolution' then return input and { input = input } end
  end
  return { smooth = format == 'int8' and found and smoothing(layer, found) or nil }
end

return M
