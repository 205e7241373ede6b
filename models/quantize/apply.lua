--- A recipe applied to a network that is loaded: codes take the place of its weights, rounded to the nearest. Inputs are
--- quantized by rows; those of convolutions need a range beforehand, and without measured ones it is told by the
--- group norm before them.

local cr = require 'cr'
local encode = require 'models.quantize.encode'
local layers = require 'models.quantize.layers'
local quant = require 'cr.quant'
local recipes = require 'models.quantize.recipe'
local rounding = require 'models.quantize.rounding'
local upsample = require 'cr.nn.upsample'

local M = {}

-- How many deviations of a normalized channel are within range: on the small model 6 cut off too much, 12 are too coarse.
local DEVIATIONS = 8

--- The divisor of the codes of what a group norm and SiLU make; nil: nothing is known of it.
--- @param layer QuantLayer
--- @return Tensor? f32 [K]
function M.range(layer)
  local norm = layer.norm
  if not norm then return nil end
  return cr.scope(function()
    -- One for all channels: what a norm's weight says of a single one is too little.
    local most = (norm.weight:to('f32'):abs() * DEVIATIONS + norm.bias:to('f32'):abs()):max():item()
    return cr.full({ layer.K }, most / rounding.most.int8, { device = norm.weight.device })
  end)
end

--- Quantizes a network's layers in place; what they were is freed.
--- @param tree table the network's weights
--- @param list table a recipe's rows for it
--- @param device string
--- @return table {layers = names, formats = {int8 = number of layers, ...}, lacking = why other formats took the place of
---   some, or nil}
function M.network(tree, list, device)
  local told = { layers = {}, formats = {} }
  for _, layer in ipairs(layers.of(tree)) do
    local format, lacking = recipes.choose(list, layer, device)
    told.lacking = told.lacking or lacking
    local convolution = format == 'int8' and layer.kind == 'convolution'
    local input = convolution and M.range(layer) or nil
    if format ~= 'none' and (input or not convolution) then
      encode.layer(layer, format, { input = input })
      told.layers[#told.layers + 1] = layer.name
      told.formats[format] = (told.formats[format] or 0) + 1
    end
  end
  return told
end

--- Gives convolutions in codes that double a picture their folded form (cr.nn.upsample), which files do not hold: sums of
--- taps, rounded again. A folded bias may be there already: a card's weights are made beside each other as they come, and
--- codes are not made into anything.
--- @param tree table
function M.fold(tree)
  for _, layer in ipairs(layers.quantized(tree)) do
    local node = layer.node
    local folded = rawget(node, 'folded')
    local whole = folded and rawget(folded, 'weight')
    if layer.name:find 'upsamplers%.%d+%.conv$' and layer.format == 'int8' and rawget(node, 'input') and not whole then
      cr.scope(function()
        local w, b = upsample.fold(quant.dequantize(node)), rawget(node, 'bias')
        local q = quant.quantize(w:view(w:size(1), w:numel() / w:size(1)))
        node.folded = { weight = cr.keep(q.codes:view(w.shape)), scale = cr.keep(q.scale), input = node.input,
          bias = b and cr.keep(cr.cat({ b, b, b, b }, 1)) }
      end)
    end
  end
end

--- The same of a model that was made without a checkpoint, or is loaded already.
--- @param model table {unet =, vae =, whisper =}, any of them
--- @param recipe string|table a recipe or its name
--- @param device string
--- @return table<string, table> what was done, by network
function M.recipe(model, recipe, device)
  local told = {}
  for network, rows in pairs(type(recipe) == 'string' and recipes.named(recipe) or recipe) do
    if model[network] then told[network] = M.network(model[network].w, rows, device) end
  end
  return told
end

--- Lets what a file held quantized run on a device that lacks its format: it becomes int8.
--- @param tree table
--- @param device string
--- @return string? lacking why, if any layer was changed
function M.fit(tree, device)
  local lacking
  for _, layer in ipairs(layers.quantized(tree)) do
    local there, why = quant.available(device, layer.format)
    if not there then
      lacking = why
      encode.again(layer, 'int8')
    end
  end
  return lacking
end

return M
