--- A layer of the network changed, to copy: what attention over the frames adds becomes stronger or weaker.
---
---     build/crescent lipsync --cache scripts/examples/my_layer.lua:1.2 ...
--
-- A hook goes around every layer: it gets the layer's name in the checkpoint and its kind, its input, and the layer's work
-- as a function; models/networks/unet3d_hook.lua says more. It comes in at the door of caches, which stand around the network.

local M = { help = 'attention over the frames times GAIN (my_layer.lua:GAIN): an example to copy' }

function M.parse(word)
  local gain = tonumber(word or '1.2')
  assert(gain and gain >= 0, 'my_layer: GAIN is a number from 0 on')
  return { gain = gain }
end

function M.new(inner, options)
  local hook = { name = ('my_layer %.17g'):format(options.gain), layer = function(layer, x, compute)
    local y = compute(x) -- x and what the layer adds
    if layer.kind ~= 'motion' then return y end
    return x + (y - x) * options.gain
  end }
  local network = setmetatable({}, { __index = inner })
  function network:predict(x, i, how) -- luacheck: no self
    local asked = { hook = hook }
    for key, value in pairs(how or {}) do asked[key] = value end
    return inner:predict(x, i, asked)
  end
  function network.free() inner:free() end
  return network
end

return M
