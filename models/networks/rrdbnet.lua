--- RRDBNet, the network of ESRGAN and Real-ESRGAN: residual dense blocks at the image's size, followed by upsampling
--- by 2. Wang et al. 2018, 2021.
--
-- Images are [N H W 3] in [0, 1]. Real-ESRGAN's networks upsample twice by 2; those for x2 and x1 first move squares
-- of 2 or 4 pixels into channels (pixel unshuffle). Keys are the authors' (conv_first, body.0.rdb1.conv1, ...); the
-- first ESRGAN's keys, which many files use (model.1.sub.0.RDB1.conv1.0), are renamed to these.

local cr = require 'cr'
local nn = require 'cr.nn'

local M = { name = 'RRDBNet' }

local SLOPE = 0.2    -- of LeakyReLU
local RESIDUAL = 0.2 -- weight of a residual branch
local DENSE = 5 -- convolutions per dense block
local MOST_BLOCKS, MOST_DOUBLINGS = 128, 4

--- Margin of a tile in pixels. The receptive field reaches about 350 pixels, but what is farther than 64 pixels away
--- changes no value by more than one level (x4plus; with 48 pixels one value in 300 changes by more, with 32 one in
--- 40).
M.MARGIN = 64

--- @class RRDBConfig
--- @field blocks integer
--- @field features integer channels
--- @field growth integer channels that each convolution of a dense block adds
--- @field doublings integer number of upsamplings by 2
--- @field unshuffle integer side of the squares that pixel unshuffle moves to channels: 1, 2 or 4
--- @field output integer output channels

-- ---- keys ----------------------------------------------------------------------------------------

-- Names for the convolutions of the first ESRGAN's `sub` and of what follows it, by their index.
local function old_places(file, prefix)
  local last, count = 0, 0
  for _, name in ipairs(file.names) do
    local place = name:sub(1, #prefix) == prefix and name:sub(#prefix + 1):match '^model%.(%d+)%.weight$'
    if place then last = math.max(last, tonumber(place)) end
    local block = name:match '^[%w_.]-model%.1%.sub%.(%d+)%.RDB1%.'
    if block then count = math.max(count, tonumber(block) + 1) end
  end
  local places = { ['0'] = 'conv_first', ['1.sub.' .. count] = 'conv_body', [tostring(last)] = 'conv_last',
    [tostring(last - 2)] = 'conv_hr' }
  -- An upsampling, its convolution and an activation have indices 2 to 4, 5 to 7 and so on.
  for place = 3, last - 4, 3 do places[tostring(place)] = 'conv_up' .. place / 3 end
  return places
end

--- A function from the names in a file, without `prefix`, to the names used here; nil if the file is not an RRDBNet.
--- @param file WeightsFile
--- @param prefix string
--- @return (fun(name: string): string)?
function M.names(file, prefix)
  if file:has(prefix .. 'conv_first.weight') then return function(name) return name end end
  if not (file:has(prefix .. 'model.0.weight') and file:has(prefix .. 'model.1.sub.0.RDB1.conv1.0.weight')) then return nil end
  local places = old_places(file, prefix)
  return function(name)
    local block, dense, conv, kind = name:match '^model%.1%.sub%.(%d+)%.RDB(%d)%.conv(%d)%.0%.(%a+)$'
    if block then return ('body.%s.rdb%s.conv%s.%s'):format(block, dense, conv, kind) end
    local place
    place, kind = name:match '^model%.(.+)%.(%a+)$'
    return places[place] and places[place] .. '.' .. kind or name
  end
end

--- Derives a network's configuration from its tensors' shapes.
--- @param shapes table<string, integer[]> by the authors' names
--- @param path string for messages
--- @return RRDBConfig
function M.config(shapes, path)
  local function fail(...) error(path .. ': ' .. (...):format(select(2, ...)), 0) end
  local first, growing = shapes['conv_first.weight'], shapes['body.0.rdb1.conv1.weight']
  if not growing then fail 'tensor body.0.rdb1.conv1.weight is missing' end
  local config = { features = first[1], growth = growing[1], blocks = 0, doublings = 0 }
  local last = shapes['conv_last.weight']
  config.output = last and last[1] or 3
  while shapes[('body.%d.rdb1.conv1.weight'):format(config.blocks)] do config.blocks = config.blocks + 1 end
  while shapes[('conv_up%d.weight'):format(config.doublings + 1)] do config.doublings = config.doublings + 1 end
  config.unshuffle = math.sqrt(first[2] / 3)
  if config.unshuffle ~= 1 and config.unshuffle ~= 2 and config.unshuffle ~= 4 then
    fail('conv_first takes %d channels, expected 3, 12 or 48', first[2])
  end
  if config.output ~= 3 then fail('conv_last has %d output channels, expected 3', config.output) end
  if config.blocks > MOST_BLOCKS then fail('%d blocks are more than %d', config.blocks, MOST_BLOCKS) end
  if config.doublings > MOST_DOUBLINGS then fail('%d doublings are more than %d', config.doublings, MOST_DOUBLINGS) end
  if 2 ^ config.doublings < config.unshuffle then fail 'its result would be smaller than its input' end
  return config
end

--- All tensors of a network, with their shapes.
--- @param c RRDBConfig
--- @return table[]
function M.expected(c)
  local list = {}
  local function convolution(name, output, input)
    list[#list + 1] = { name = name .. '.weight', shape = { output, input, 3, 3 } }
    list[#list + 1] = { name = name .. '.bias', shape = { output } }
  end
  convolution('conv_first', c.features, 3 * c.unshuffle ^ 2)
  for block = 0, c.blocks - 1 do
    for dense = 1, 3 do
      for k = 1, DENSE do
        convolution(('body.%d.rdb%d.conv%d'):format(block, dense, k), k == DENSE and c.features or c.growth,
          c.features + (k - 1) * c.growth)
      end
    end
  end
  convolution('conv_body', c.features, c.features)
  for k = 1, c.doublings do convolution('conv_up' .. k, c.features, c.features) end
  convolution('conv_hr', c.features, c.features)
  convolution('conv_last', c.output, c.features)
  return list
end

-- ---- the network ---------------------------------------------------------------------------------

local Net = {}
Net.__index = Net

--- @param tree table tree of the weights (weights.tree), which the network takes over
--- @param config RRDBConfig
--- @return table a network: forward, scale, margin, multiple, exact, pixel_values
function M.new(tree, config)
  local weight = tree.conv_first.weight
  local options = { dtype = weight.dtype, device = weight.device }
  local self = setmetatable({
    w = tree, config = config, scale = 2 ^ config.doublings / config.unshuffle, margin = M.MARGIN, exact = false,
    multiple = config.unshuffle,
    -- Maximum number of elements per input pixel that exist at once: around the last upsampling.
    pixel_values = 3 * config.features * (2 ^ config.doublings / config.unshuffle) ^ 2,
    leak = cr.full({ config.features }, SLOPE, options),
    growing_leak = cr.full({ config.growth }, SLOPE, options),
  }, Net)
  cr.keep(self.leak, self.growing_leak)
  -- The weight of the residual is folded into a dense block's last convolution, which then adds the block's input
  -- itself.
  for block = 0, config.blocks - 1 do
    for dense = 1, 3 do
      local last = tree.body[block]['rdb' .. dense]['conv' .. DENSE]
      for _, kind in ipairs { 'weight', 'bias' } do
        local whole = last[kind]
        last[kind] = cr.keep(whole * RESIDUAL)
        whole:free()
      end
    end
  end
  return self
end

-- A dense block: x is in the first channels of `all`, and each convolution appends its result to what it has read.
-- The last one reads everything, adds `residual` and writes to `out`.
local function dense_block(self, w, all, residual, out)
  local c = self.config
  for k = 1, DENSE - 1 do
    local seen = c.features + (k - 1) * c.growth
    nn.conv2d(w['conv' .. k], all:narrow(4, 1, seen),
      { padding = 1, slope = self.growing_leak, out = all:narrow(4, seen + 1, c.growth) })
  end
  nn.conv2d(w['conv' .. DENSE], all, { padding = 1, residual = residual, out = out })
end

-- From x in the first channels of `from` to those of `to`, which must be different; `other` is scratch space.
local function block(self, w, from, to, other)
  local function first(all) return all:narrow(4, 1, self.config.features) end
  cr.scope(function()
    local x, y = first(from), first(to)
    dense_block(self, w.rdb1, from, x, y)
    dense_block(self, w.rdb2, to, y, first(other))
    -- Only this sum is rounded at x's magnitude, once per block: in float16, these rounding errors accumulate.
    dense_block(self, w.rdb3, other, first(other), y)
    cr.lincomb({ y, x }, { RESIDUAL, 1 }, { out = y })
  end)
end

-- Pixel unshuffle: channel c, row r, column q of s x s squares go to channel c s s + r s + q.
local function unshuffle(x, s)
  if s == 1 then return x end
  local n, h, w, c = x:size(1), x:size(2) / s, x:size(3) / s, x:size(4)
  return x:contiguous():view(n, h, s, w, s, c):permute(1, 2, 4, 6, 3, 5):contiguous():view(n, h, w, c * s * s)
end

-- All blocks and the convolution after them, which adds the input.
local function body(self, first, told)
  local c, shape = self.config, { unpack(first.shape) }
  shape[4] = c.features + (DENSE - 1) * c.growth
  return cr.scope(function()
    local options = { dtype = first.dtype, device = first.device }
    local from, to, other = cr.empty(shape, options), cr.empty(shape, options), cr.empty(shape, options)
    from:narrow(4, 1, c.features):copy_(first)
    for b = 0, c.blocks - 1 do
      block(self, self.w.body[b], from, to, other)
      from, to = to, from
      if told then told(b + 1, c.blocks + 1) end
    end
    return nn.conv2d(self.w.conv_body, from:narrow(4, 1, c.features), { padding = 1, residual = first })
  end)
end

--- Upscales images; the result is not clamped.
--- @param x Tensor [N H W 3] in [0, 1], of the weights' dtype; H and W multiples of `multiple`
--- @param finish table? {dtype, flaw} options of nn.pixel_shuffle, which the result then passes through; told = function(k, n)?
---   is called after part k of n
--- @return Tensor [N scale*H scale*W 3]
function Net:forward(x, finish)
  local w, c = self.w, self.config
  local step = { padding = 1, slope = self.leak }
  return cr.scope(function()
    local y = body(self, nn.conv2d(w.conv_first, unshuffle(x, c.unshuffle), { padding = 1 }), finish and finish.told)
    for k = 1, c.doublings do
      y = cr.scope(function() return nn.conv2d(w['conv_up' .. k], nn.upsample_nearest(y, 2), step) end)
    end
    y = nn.conv2d(w.conv_hr, y, step)
    y = nn.conv2d(w.conv_last, y, { padding = 1 })
    if finish and finish.told then finish.told(c.blocks + 1, c.blocks + 1) end
    return finish and nn.pixel_shuffle(y, 1, { dtype = finish.dtype, flaw = finish.flaw }) or y
  end)
end

return M
