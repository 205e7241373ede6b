--- RRDBNet, the network of ESRGAN and Real-ESRGAN: residual dense blocks at the picture's size, then doublings.
--- Wang et al. 2018, 2021.
--
-- Pictures are [N H W 3] in [0, 1]. Real-ESRGAN's networks double twice; those for ×2 and ×1 first fold squares of 2
-- or 4 pixels into channels (pixel unshuffle). Keys are the authors' (conv_first, body.0.rdb1.conv1, ...); those of
-- the first ESRGAN, which files of other people still have (model.1.sub.0.RDB1.conv1.0), are read as these.

local cr = require 'cr'
local nn = require 'cr.nn'

local M = { name = 'RRDBNet' }

local SLOPE = 0.2    -- of LeakyReLU
local RESIDUAL = 0.2 -- share of what a block adds
local DENSE = 5      -- convolutions of a dense block
local MOST_BLOCKS, MOST_DOUBLINGS = 128, 4

--- Pixels of a tile's surroundings that count: 347 convolutions reach some 350 pixels far, but what lies beyond 64 moves
--- no value by more than a level (x4plus; with 48 one in 300 moves further, with 32 one in 40).
M.MARGIN = 64

--- @class RRDBConfig
--- @field blocks integer
--- @field features integer channels
--- @field growth integer channels that a convolution of a dense block adds
--- @field doublings integer
--- @field unshuffle integer side of the squares that become channels: 1, 2 or 4
--- @field output integer channels of the result

-- ---- keys ----------------------------------------------------------------------------------------

-- The convolutions of the first ESRGAN's `sub` and of what follows it, by their place there.
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
  -- An enlargement, its convolution and an activation: places 2 to 4, 5 to 7 and so on.
  for place = 3, last - 4, 3 do places[tostring(place)] = 'conv_up' .. place / 3 end
  return places
end

--- What names a file's tensors have here: a function from the file's name without `prefix`, or nil where the file
--- has no RRDBNet.
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

--- The configuration of a network from its tensors' shapes.
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
    fail('conv_first takes %d channels: 3, 12 or 48 were expected', first[2])
  end
  if config.output ~= 3 then fail('conv_last gives %d channels: 3 were expected', config.output) end
  if config.blocks > MOST_BLOCKS then fail('%d blocks are more than %d', config.blocks, MOST_BLOCKS) end
  if config.doublings > MOST_DOUBLINGS then fail('%d doublings are more than %d', config.doublings, MOST_DOUBLINGS) end
  if 2 ^ config.doublings < config.unshuffle then fail 'its result would be smaller than the picture' end
  return config
end

--- Every tensor of a network, with its shape.
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

--- @param tree table of the weights (weights.tree), which is the network's own from now on
--- @param config RRDBConfig
--- @return table a network: forward, scale, margin, multiple, exact, pixel_values
function M.new(tree, config)
  local weight = tree.conv_first.weight
  local options = { dtype = weight.dtype, device = weight.device }
  local self = setmetatable({
    w = tree, config = config, scale = 2 ^ config.doublings / config.unshuffle, margin = M.MARGIN, exact = false,
    multiple = config.unshuffle,
    -- Numbers per pixel of the picture that are held at once, at the most: around the last doubling.
    pixel_values = 3 * config.features * (2 ^ config.doublings / config.unshuffle) ^ 2,
    leak = cr.full({ config.features }, SLOPE, options),
    growing_leak = cr.full({ config.growth }, SLOPE, options),
  }, Net)
  cr.keep(self.leak, self.growing_leak)
  -- The share that a dense block adds lies in its last convolution, which then adds the block's input itself.
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

-- A dense block: x stands in the first channels of `all`, and each convolution writes behind what it has read. The last
-- one, which reads everything, adds `residual` and fills `out`.
local function dense_block(self, w, all, residual, out)
  local c = self.config
  for k = 1, DENSE - 1 do
    local seen = c.features + (k - 1) * c.growth
    nn.conv2d(w['conv' .. k], all:narrow(4, 1, seen),
      { padding = 1, slope = self.growing_leak, out = all:narrow(4, seen + 1, c.growth) })
  end
  nn.conv2d(w['conv' .. DENSE], all, { padding = 1, residual = residual, out = out })
end

-- From x in the first channels of `from` to those of `to`, which may not be the same; `other` is for the work.
local function block(self, w, from, to, other)
  local function first(all) return all:narrow(4, 1, self.config.features) end
  cr.scope(function()
    local x, y = first(from), first(to)
    dense_block(self, w.rdb1, from, x, y)
    dense_block(self, w.rdb2, to, y, first(other))
    -- Only the sum below is rounded at x's scale, once a block: in float16 these roundings are what adds up.
    dense_block(self, w.rdb3, other, first(other), y)
    cr.lincomb({ y, x }, { RESIDUAL, 1 }, { out = y })
  end)
end

-- Squares of s x s pixels as channels: channel c, row r, column q go to channel c s s + r s + q.
local function unshuffle(x, s)
  if s == 1 then return x end
  local n, h, w, c = x:size(1), x:size(2) / s, x:size(3) / s, x:size(4)
  return x:contiguous():view(n, h, s, w, s, c):permute(1, 2, 4, 6, 3, 5):contiguous():view(n, h, w, c * s * s)
end

-- The blocks and the convolution after them, which adds what went in.
local function body(self, first)
  local c, shape = self.config, { unpack(first.shape) }
  shape[4] = c.features + (DENSE - 1) * c.growth
  return cr.scope(function()
    local options = { dtype = first.dtype, device = first.device }
    local from, to, other = cr.empty(shape, options), cr.empty(shape, options), cr.empty(shape, options)
    from:narrow(4, 1, c.features):copy_(first)
    for b = 0, c.blocks - 1 do
      block(self, self.w.body[b], from, to, other)
      from, to = to, from
    end
    return nn.conv2d(self.w.conv_body, from:narrow(4, 1, c.features), { padding = 1, residual = first })
  end)
end

--- The picture enlarged, not clamped.
--- @param x Tensor [N H W 3] in [0, 1], of the weights' dtype; H and W multiples of `multiple`
--- @param finish table? {dtype, flaw} of nn.pixel_shuffle, through which the result goes then
--- @return Tensor [N scale*H scale*W 3]
function Net:forward(x, finish)
  local w, c = self.w, self.config
  local step = { padding = 1, slope = self.leak }
  return cr.scope(function()
    local y = body(self, nn.conv2d(w.conv_first, unshuffle(x, c.unshuffle), { padding = 1 }))
    for k = 1, c.doublings do
      y = cr.scope(function() return nn.conv2d(w['conv_up' .. k], nn.upsample_nearest(y, 2), step) end)
    end
    y = nn.conv2d(w.conv_hr, y, step)
    y = nn.conv2d(w.conv_last, y, { padding = 1 })
    return finish and nn.pixel_shuffle(y, 1, { dtype = finish.dtype, flaw = finish.flaw }) or y
  end)
end

return M
