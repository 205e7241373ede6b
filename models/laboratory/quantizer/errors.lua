--- What codes cost a network: each layer alone, all together, and which layers must stay as they were for the whole to stay
--- within a bound.

local cr = require 'cr'

local M = {}

local SHARE = 0.08 -- of the layers that are left go back at a time, as long as the bound is not met

local FIELDS = { 'weight', 'scale', 'input', 'smooth', 'down', 'up' }

--- Lets a layer compute with its codes, or with what it was before.
--- @param layer QuantLayer with `codes` (of encode.encoded)
--- @param on boolean
function M.switch(layer, on)
  layer.own = layer.own or layer.node.weight
  for _, name in ipairs(FIELDS) do layer.node[name] = on and layer.codes[name] or nil end
  if not on then layer.node.weight = layer.own end
end

-- Lengths of what a probe gives beside what it gave before: the mean over the probes.
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

--- Measures, and takes back what hurts most until the bound is met.
--- @param list QuantLayer[] each with `codes`; gets `alone`, and `kept` = true where it stays as it was
--- @param probes table[] {run = fun(): Tensor} each, which get `before`; free them with M.free
--- @param bound number of the output's relative error
--- @param each fun(layer: QuantLayer)? called after each layer was measured alone
--- @return number together the error with all that are not kept
function M.choose(list, probes, bound, each)
  for _, probe in ipairs(probes) do
    probe.before = cr.keep(cr.scope(function() return probe.run():to('f32'):clone() end))
  end
  for _, layer in ipairs(list) do
    M.switch(layer, true)
    layer.alone = error_of(probes)
    M.switch(layer, false)
    if each then each(layer) end
  end
  local left = { unpack(list) }
  -- A layer that makes numbers which are none is worse than all others.
  local function badness(layer) return layer.alone == layer.alone and layer.alone or math.huge end
  table.sort(left, function(a, b)
    if badness(a) ~= badness(b) then return badness(a) < badness(b) end
    return a.name < b.name
  end)
  for _, layer in ipairs(left) do M.switch(layer, true) end
  local together = #left > 0 and error_of(probes) or 0
  while #left > 0 and (together > bound or together ~= together) do
    for _ = 1, math.max(1, math.floor(#left * SHARE)) do
      local worst = table.remove(left)
      M.switch(worst, false)
      worst.kept = true
    end
    together = #left > 0 and error_of(probes) or 0
  end
  return together
end

--- Gives back what `choose` kept of probes.
--- @param probes table[]
function M.free(probes)
  for _, probe in ipairs(probes) do
    if probe.before then probe.before:free() end
    if probe.free then probe.free() end
  end
end

return M
