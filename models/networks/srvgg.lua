--- SRVGGNetCompact, Real-ESRGAN's small network: convolutions at the image's size, then a pixel shuffle, plus the
--- input upscaled by nearest neighbour. Wang et al. 2021.
--
-- Images are [N H W 3] in [0, 1]. Keys are the authors': body.0, body.2, ... are convolutions, body.1, body.3, ...
-- the slopes of their PReLU.

local cr = require 'cr'
local nn = require 'cr.nn'

local M = { name = 'SRVGGNetCompact' }

local MOST_LAYERS, MOST_SCALE = 256, 8

--- @class SRVGGConfig
--- @field layers integer number of convolutions between the first and the last
--- @field features integer channels
--- @field scale integer

--- Maps a file's names to the names used here, as in rrdbnet.lua; nil if the file is not an SRVGGNetCompact.
function M.names(file, prefix)
  if file:has(prefix .. 'body.0.weight') and file:has(prefix .. 'body.1.weight') then return function(name) return name end end
end

--- Derives a network's configuration from its tensors' shapes.
--- @param shapes table<string, integer[]>
--- @param path string for messages
--- @return SRVGGConfig
function M.config(shapes, path)
  local function fail(...) error(path .. ': ' .. (...):format(select(2, ...)), 0) end
  local last = 0
  while shapes[('body.%d.weight'):format(last + 2)] do last = last + 2 end
  local shape = shapes[('body.%d.weight'):format(last)]
  local scale = math.sqrt(shape[1] / 3)
  if last < 2 or scale ~= math.floor(scale) or scale < 1 or scale > MOST_SCALE then
    fail('body.%d has %d output channels, which do not form an upscaled image: the network is truncated, or another one', last, shape[1])
  end
  if last / 2 > MOST_LAYERS then fail('%d convolutions are more than %d', last / 2, MOST_LAYERS) end
  return { layers = last / 2 - 1, features = shapes['body.0.weight'][1], scale = scale }
end

--- All tensors of a network, with their shapes.
--- @param c SRVGGConfig
--- @return table[]
function M.expected(c)
  local list = {}
  local function add(place, kind, ...) list[#list + 1] = { name = ('body.%d.%s'):format(place, kind), shape = { ... } } end
  for layer = 0, c.layers + 1 do
    local output = layer > c.layers and 3 * c.scale ^ 2 or c.features
    add(2 * layer, 'weight', output, layer == 0 and 3 or c.features, 3, 3)
    add(2 * layer, 'bias', output)
    if layer <= c.layers then add(2 * layer + 1, 'weight', c.features) end
  end
  return list
end

local Net = {}
Net.__index = Net

-- Reorders the output channels of the last convolution from (c, r, q), at c s s + r s + q, to (r, q, c), as
-- nn.pixel_shuffle expects.
local function by_pixels(x, s)
  local shape = x.shape
  local n = x:numel() / shape[1]
  return x:contiguous():view(3, s * s, n):permute(2, 1, 3):contiguous():view(unpack(shape))
end

--- @param tree table tree of the weights (weights.tree), which the network takes over
--- @param config SRVGGConfig
--- @return table a network: forward, scale, margin, multiple, exact, pixel_values
function M.new(tree, config)
  local last = tree.body[2 * config.layers + 2]
  for _, kind in ipairs { 'weight', 'bias' } do
    local before = last[kind]
    last[kind] = cr.keep(cr.scope(function() return by_pixels(before, config.scale):clone() end))
    before:free()
  end
  return setmetatable({
    w = tree, config = config, scale = config.scale, multiple = 1,
    margin = config.layers + 2, exact = true, -- each convolution extends the receptive field by one pixel
    pixel_values = math.max(3 * config.features, 9 * config.scale ^ 2 + config.features),
  }, Net)
end

--- Upscales images; the result is not clamped.
--- @param x Tensor [N H W 3] in [0, 1], of the weights' dtype
--- @param finish table? {dtype, flaw} options of nn.pixel_shuffle, which produces the result; told = function(k, n)? is called after
---   part k of n
--- @return Tensor [N scale*H scale*W 3]
function Net:forward(x, finish)
  local w, s = self.w.body, self.scale
  return cr.scope(function()
    local y = x
    for layer = 0, self.config.layers do
      local after = nn.conv2d(w[2 * layer], y, { padding = 1, slope = w[2 * layer + 1].weight })
      if layer > 0 then y:free() end
      y = after
      if finish and finish.told then finish.told(layer + 1, self.config.layers + 1) end
    end
    y = nn.conv2d(w[2 * self.config.layers + 2], y, { padding = 1 })
    return nn.pixel_shuffle(y, s, { base = x, dtype = finish and finish.dtype, flaw = finish and finish.flaw })
  end)
end

return M
