--- How a layer is quantized, from what it was given: the range and the smoothing of its input, GPTQ and a branch beside 4 bits.

local apply = require 'models.quantize.apply'
local cr = require 'cr'
local nn = require 'cr.nn'
local rounding = require 'models.quantize.rounding'

local M = {}

-- Shares of the largest magnitudes that a static range may reach to. On the small model 0.8 of them cost 10 dB.
local SHARES = { 1.1, 1, 0.9 }
-- How much of a channel's size goes into the weight (SmoothQuant, arXiv 2211.10438), for inputs by rows.
local ALPHAS = { 0.5, 0.75 }
-- It must pay: smoothing is a division more.
local PAYS = 0.9

-- The least that a channel's range is of the layer's: what was silent so far may yet speak.
local FLOOR = 0.02

local function squares(x) return x:square():sum():item() end

-- Each channel's own range, as far as loses least of what its weights make of it.
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

-- x by rows and w in 8 bits, each from what the other is not.
local function product(x, w)
  local sx = x:abs():max(2, true):maximum(1e-30) / rounding.most.int8
  local sw = w:abs():max(2, true):maximum(1e-30) / rounding.most.int8
  return nn.linear({ weight = (w / sw):round() * sw }, (x / sx):round() * sx)
end

-- Of a product: smoothing, where the layer's rows say that it pays; nil: none.
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

--- How many directions a layer's 16-bit branch beside 4 bits has: a sixteenth of the layer's, so that it stays a small part
--- of its size; nil: none.
--- @param layer QuantLayer
--- @param format string
--- @return integer?
function M.rank(layer, format)
  if format ~= 'int4' or layer.kind ~= 'product' then return nil end
  return math.min(32, math.floor(math.min(layer.N, layer.K) / 16))
end

-- Convolutions have no rows that could have scales. A feed-forward's second product has, but with ranges the first one's
-- kernel writes its codes (nn.linear_geglu), and attention those of the product behind it.
local function is_static(layer)
  return layer.kind == 'convolution' or layer.name:find '%.net%.2$' ~= nil or layer.name:find '%.to_out%.0$' ~= nil
end

--- What encode.encoded is to be told of a layer; nil: it cannot be quantized, since nothing is known of its range.
--- @param layer QuantLayer
--- @param format string
--- @param found LayerStatistics? nil: it was not watched
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
