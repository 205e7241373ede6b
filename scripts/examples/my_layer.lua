--- An example of a modified network layer, to copy: scales the contribution of temporal attention.
---
---     build/crescent lipsync --cache scripts/examples/my_layer.lua:1.2 ...
--
-- A hook wraps every layer: it gets the layer's checkpoint name and kind, its input, and a function that computes the
-- layer; see models/networks/unet3d_hook.lua. It is installed as a cache, because caches wrap the network.

local M = { help = 'temporal attention times GAIN (my_layer.lua:GAIN): an example to copy' }

function M.parse(word)
  local gain = tonumber(word or '1.2')
  assert(gain and gain >= 0, 'my_layer: GAIN must be a number of at least 0')
  return { gain = gain }
end

function M.new(inner, options)
  local hook = { name = ('my_layer %.17g'):format(options.gain), layer = function(layer, x, compute)
    local y = compute(x) -- x plus the layer's contribution
    if layer.kind ~= 'motion' then return y end
    return x + (y - x) * options.gain
  end }
  local network = {}
  function network:predict(x, i, how) -- luacheck: no self
    local asked = { hook = hook }
    for key, value in pairs(how or {}) do asked[key] = value end
    return inner:predict(x, i, asked)
  end
  return network
end

return M
