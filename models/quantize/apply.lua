--- Applies a recipe to a loaded network: weights are replaced by quantized ones, rounded to the nearest. Inputs are
--- quantized per row at run time. Convolutions need a static input range; without a measured one it is derived from
--- the preceding group norm.

local cr = require 'cr'
local encode = require 'models.quantize.encode'
local layers = require 'models.quantize.layers'
local quant = require 'cr.quant'
local recipes = require 'models.quantize.recipe'
local rounding = require 'models.quantize.rounding'
local upsample = require 'cr.nn.upsample'

local M = {}

-- A static range in standard deviations of a normalized channel. On the small model 6 clips too much and 12 is too
-- coarse.
local DEVIATIONS = 8

--- The static input scale of a layer behind a group norm and SiLU; nil if there is no such norm.
--- @param layer QuantLayer
--- @return Tensor? f32 [K]
function M.range(layer)
  local norm = layer.norm
  if not norm then return nil end
  return cr.scope(function()
    -- One range for all channels: a norm's weight says too little about a single channel.
    local most = (norm.weight:to('f32'):abs() * DEVIATIONS + norm.bias:to('f32'):abs()):max():item()
    return cr.full({ layer.K }, most / rounding.most.int8, { device = norm.weight.device })
  end)
end

--- Quantizes a network's layers in place and frees the original weights.
--- @param tree table the network's weights
--- @param list table a recipe's rows for it
--- @param device string
--- @return table {layers = names, formats = {int8 = number of layers, ...}, lacking = why other formats were used for some, or
---   nil, unmatched = a sentence about a user's row without a layer, or nil}
function M.network(tree, list, device)
  local all = layers.of(tree)
  local told = { layers = {}, formats = {}, unmatched = recipes.unmatched(list, all) }
  for _, layer in ipairs(all) do
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

--- Gives quantized convolutions that follow a nearest-neighbour upsampling their folded form (cr.nn.upsample), which
--- files do not contain: sums of taps, rounded again. A folded bias may exist already, because on a GPU derived
--- weights are computed while the file is loaded, but not from quantized weights.
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

--- Applies a recipe to a model that has no checkpoint, or is loaded already.
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

--- Makes quantized weights of a file usable on a device that lacks their format, by converting them to int8.
--- @param tree table
--- @param device string
--- @return string? lacking the reason, if any layer was converted
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
