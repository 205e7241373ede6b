--- Measures the error that quantization causes: of each layer alone and of all together, and selects the layers that
--- must not be quantized so that the total stays within a bound. Such a layer first becomes weight-only: its weight
--- is rounded to 8 bits, which takes no more space in the file, but its input, which causes most of the error, is not
--- quantized. If that does not suffice, it stays unchanged.

local cr = require 'cr'
local quant = require 'cr.quant'
local rounding = require 'models.quantize.rounding'

local M = {}

local SHARE = 0.08 -- share of the remaining layers that are exempted at a time until the bound is met

local FIELDS = { 'weight', 'scale', 'input', 'smooth', 'down', 'up' }

-- The fields of a layer in each state.
local forms = {
  codes = function(layer) return layer.codes end,
  exact = function(layer) return { weight = layer.own } end,
  ['weight-only'] = function(layer)
    if not layer.alone_codes then
      local own = layer.own
      layer.alone_codes, layer.numbers = cr.scope(function()
        local w = own:to('f32'):contiguous():view(layer.N, layer.taps * layer.K)
        local codes, scale = rounding.nearest(w, rounding.most.int8)
        codes = codes:to 'i8'
        return { weight = cr.keep(codes:view(own.shape)), scale = cr.keep(scale) },
          cr.keep(quant.dequantize({ weight = codes, scale = scale:view(layer.N) }, { dtype = own.dtype }):view(own.shape))
      end)
    end
    return { weight = layer.numbers }
  end,
}

--- Switches a layer to another state.
--- @param layer QuantLayer with `codes` (of encode.encoded); in the state 'weight-only' it gets `alone_codes` = {weight, scale [N 1]}
--- @param state string 'codes', 'weight-only', or 'exact' (unquantized)
function M.switch(layer, state)
  layer.own = layer.own or layer.node.weight
  local form = forms[state](layer)
  for _, name in ipairs(FIELDS) do layer.node[name] = form[name] end
end

-- The relative L2 error of the probes' outputs against the unquantized ones: the mean over the probes.
local function error_of(probes)
  local sum = 0
  for _, probe in ipairs(probes) do
    sum = sum + cr.scope(function()
      local y = probe.run():to 'f32'
      return (y - probe.before):square():sum():item() / probe.before:square():sum():item()
    end)
  end
  return math.sqrt(sum / #probes)
end

--- Measures all errors, and exempts the worst layers until the bound is met.
--- @param list QuantLayer[] each with `codes`; gets `alone` (its own error), and `kept` = 'weight-only' or 'exact' if it is
---   exempted
--- @param probes table[] a list of {run = fun(): Tensor}, which get `before`; free them with M.free
--- @param bound number maximum relative error of the output
--- @param each fun(layer: QuantLayer)? is called after each layer was measured alone
--- @return number together the error with all layers that are not exempted
function M.choose(list, probes, bound, each)
  for _, probe in ipairs(probes) do
    probe.before = cr.keep(cr.scope(function() return probe.run():to('f32'):clone() end))
  end
  for _, layer in ipairs(list) do
    M.switch(layer, 'codes')
    layer.alone = error_of(probes)
    M.switch(layer, 'exact')
    if each then each(layer) end
  end
  local order = { unpack(list) }
  -- A layer whose output is NaN is worse than all others.
  local function badness(layer) return layer.alone == layer.alone and layer.alone or math.huge end
  table.sort(order, function(a, b)
    if badness(a) ~= badness(b) then return badness(a) < badness(b) end
    return a.name < b.name
  end)
  for _, layer in ipairs(order) do M.switch(layer, 'codes') end
  local together = error_of(probes)
  for _, state in ipairs { 'weight-only', 'exact' } do
    local left = #order
    while left > 0 and (together > bound or together ~= together) do
      for _ = 1, math.max(1, math.floor(left * SHARE)) do
        local worst = order[left]
        M.switch(worst, state)
        worst.kept = state
        left = left - 1
      end
      together = error_of(probes)
    end
  end
  return together
end

--- Frees what `choose` stored in the probes.
--- @param probes table[]
function M.free(probes)
  for _, probe in ipairs(probes) do
    if probe.before then probe.before:free() end
    if probe.free then probe.free() end
  end
end

return M
