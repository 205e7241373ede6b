--- Upscales images with a network, whole or in tiles, at any scale.
--
-- A tile includes the margin that the network needs; at the image's border there is no margin, and the network's zero
-- padding acts as without tiles. Only the inner part is kept. A scale that the network does not have is made from its
-- clamped result, resized by Lanczos4.
--
-- Invariant: a result that is not finite is never returned. What overflows in float16 is computed again in float32,
-- tile by tile.

local cr = require 'cr'
local deep = require 'cr.media.deep'
local image = require 'cr.image'
local upscaler = require 'models.networks.upscaler'

local M = {}

local SHARE = 0.5 -- of the free memory
local LEAST = 32 -- minimum side of a tile in pixels

-- The network's result in a dtype, and whether any of its values is not finite.
local function run(net, x, dtype, told)
  local flaw = cr.zeros({ 1 }, { dtype = 'i32', device = net.device })
  return net:forward(x, { dtype = dtype, flaw = flaw, told = told }), flaw
end

local Enlarger = {}
Enlarger.__index = Enlarger

--- @param net table from models/networks/upscaler.lua
--- @param options table? {scale = the network's, tile = 'auto' or the side of tiles in pixels, note = function(text) receives
---   messages for the user, beside = true: other tasks run while the GPU works, told = function(k, n)? is called on a CPU after
---   part k of the n parts of an image, which takes seconds to minutes there}
function M.new(net, options)
  options = options or {}
  local self
  local function told(k, n)
    options.told(self.tiles_done * n + k, self.tiles * n)
  end
  local inner = net.device == 'cpu' and options.told and told or nil
  self = setmetatable({
    -- On a GPU the second image of a size is recorded as a CUDA graph, which is replayed from the third on.
    graph = cr.graph(function(x, dtype) return run(net, x, dtype, inner) end),
    net = net, scale = options.scale or net.scale, tile = options.tile or 'auto', note = options.note or function() end,
    beside = options.beside, tiles = 1, tiles_done = 0,
    sides = {},
  }, Enlarger)
  return self
end

--- The size of the result.
--- @return integer height, integer width
function Enlarger:size(height, width) return math.floor(height * self.scale), math.floor(width * self.scale) end

local function free_bytes(device)
  if device ~= 'cpu' then return cr.cuda.info(device).memory_free + cr.memory(device).cached end
  for line in io.lines '/proc/meminfo' do
    local kib = line:match '^MemAvailable:%s*(%d+)'
    if kib then return tonumber(kib) * 1024 end
  end
  return 2 ^ 30
end

--- The side of the tiles for an image; nil if it needs no tiles.
--- @param free integer? free bytes of memory on the network's device
function Enlarger:tile_of(height, width, free)
  local net = self.net
  if self.tile ~= 'auto' then return math.ceil(self.tile / net.multiple) * net.multiple end
  local pixel = net.pixel_values * (net.device == 'cpu' and 4 or net.dtype == 'f32' and 4 or 2)
  local pixels = (free or free_bytes(net.device)) * SHARE / pixel
  if height * width <= pixels then return nil end
  local side = math.floor(math.sqrt(pixels)) - 2 * net.margin
  return math.max(LEAST, math.floor(side / net.multiple) * net.multiple)
end

-- The same, decided once per image size, because querying the free memory takes time.
local function side_of(self, height, width)
  local size = height .. ' ' .. width
  if self.sides[size] == nil then self.sides[size] = self:tile_of(height, width) or false end
  return self.sides[size] or nil
end

-- Mirrors rows and columns at the end until their number is a multiple.
local function padded(x, multiple)
  for d = 2, 3 do
    local size, parts = x:size(d), { x }
    for k = 1, -size % multiple do parts[k + 1] = x:narrow(d, math.max(1, size - k), 1) end
    if #parts > 1 then x = cr.cat(parts, d) end
  end
  return x
end

-- The network in float32, for results that overflow.
local function exact_network(self)
  if not self.exact then
    self.note(('%s overflows in %s: affected images are computed again in f32'):format(self.net.path, self.net.dtype))
    self.exact = upscaler.load(self.net.path, { device = self.net.device, other = self.net.other, share = self.net.share })
  end
  return self.exact
end

-- Runs the network on f32 [1 H W 3], whose sizes are multiples of the network's.
local function tile(self, x, dtype)
  local net = self.net
  local y, flaw = self.graph(x:to(net.dtype), dtype)
  if self.beside then cr.cuda.synchronize(net.device) end
  if flaw:item() == 0 then return y end
  if net.dtype ~= 'f32' then
    y, flaw = run(exact_network(self), x, dtype)
    if flaw:item() == 0 then return y end
  end
  require 'cr.errors'.fail(net.path ..
    ' produces values that are not finite: its weights are damaged, or belong to another network')
end

-- Runs the network on f32 [1 H W 3], in tiles of `side` if given.
local function through(self, x, side, dtype)
  local net, height, width = self.net, x:size(2), x:size(3)
  x = padded(x, net.multiple)
  self.tiles, self.tiles_done = 1, 0
  if not side or side >= height and side >= width then return tile(self, x, dtype) end
  local h, w, s, margin = x:size(2), x:size(3), net.scale, math.ceil(net.margin / net.multiple) * net.multiple
  local out = cr.empty({ 1, h * s, w * s, 3 }, { dtype = dtype, device = x.device })
  self.tiles = math.ceil(h / side) * math.ceil(w / side)
  for top = 0, h - 1, side do
    for left = 0, w - 1, side do
      cr.scope(function()
        local y0, x0 = math.max(0, top - margin), math.max(0, left - margin)
        local y1, x1 = math.min(h, top + side + margin), math.min(w, left + side + margin)
        local rows, columns = math.min(side, h - top) * s, math.min(side, w - left) * s
        local part = tile(self, x:narrow(2, y0 + 1, y1 - y0):narrow(3, x0 + 1, x1 - x0):contiguous(), dtype)
        out:narrow(2, top * s + 1, rows):narrow(3, left * s + 1, columns)
          :copy_(part:narrow(2, (top - y0) * s + 1, rows):narrow(3, (left - x0) * s + 1, columns))
        self.tiles_done = self.tiles_done + 1
      end)
    end
  end
  return out
end

-- f32 [H W 3] at the network's own scale: [H' W' 3] u8, i16 (as unsigned numbers) or f32, which is not clamped.
local function at_own_scale(self, x, dtype)
  local net, height, width = self.net, x:size(1), x:size(2)
  local y = through(self, x:to(net.device):unsqueeze(1), side_of(self, height, width), dtype)
  return y:narrow(2, 1, height * net.scale):narrow(3, 1, width * net.scale):squeeze(1):contiguous()
end

--- Upscales an image.
--- @param x Tensor f32 [H W 3] in [0, 1], on any device
--- @return Tensor f32 [H' W' 3] in [0, 1], on the network's device
function Enlarger:enlarge(x)
  return cr.scope(function()
    local y, h, w = at_own_scale(self, x, 'f32'):clamp(0, 1), self:size(x:size(1), x:size(2))
    if h == y:size(1) and w == y:size(2) then return y end
    return cr.nn.resize(y, h, w, 'lanczos4'):clamp(0, 1)
  end)
end

-- Runs `enlarge` on x (u8, or f32 in [0, 1]) as f32. The result has the given dtype, rounded half to even unless
-- `enlarge` returned it: u8, i16 (the bits of unsigned numbers, as media.write_picture takes them) or f32.
local function through_floats(self, x, dtype, enlarge)
  return cr.scope(function()
    local y = enlarge(x.dtype == 'u8' and x:to(self.net.device):to 'f32' / 255 or x)
    if y.dtype == dtype then return y end
    return dtype == 'u8' and (y * 255):round():to 'u8' or deep.whole(y * 65535)
  end)
end

--- Upscales a frame.
--- @param frame Tensor [H W 3] u8, or f32 in [0, 1]
--- @return Tensor [H' W' 3] of the same dtype, on the network's device
function Enlarger:frame(frame)
  return through_floats(self, frame, frame.dtype, function(x)
    if frame.dtype == 'u8' and self.scale == self.net.scale then return at_own_scale(self, x, 'u8') end
    return self:enlarge(x)
  end)
end

-- Upscales one channel [H W 1] as a grey image.
local function enlarge_grey(self, x)
  return cr.scope(function()
    local y = self:enlarge(cr.cat({ x, x, x }, 3))
    return image.luma(y)
  end)
end

--- Upscales an image with any number of channels, like the authors' program: grey passes through the network as three
--- equal channels, alpha as a separate grey image, and colours are kept where they are transparent.
--- @param picture Tensor [H W C] u8, or f32 in [0, 1]; C: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha
--- @return Tensor [H' W' C] u8, or i16 for an f32 input, the bits of numbers up to 65535; on the network's device
function Enlarger:picture(picture)
  local dtype = picture.dtype == 'u8' and 'u8' or 'i16'
  return through_floats(self, picture, dtype, function(x)
    local channels = x:size(3)
    if channels == 3 and self.scale == self.net.scale then return at_own_scale(self, x, dtype) end
    local colours = channels < 3 and 1 or 3
    local part = x:narrow(3, 1, colours):contiguous()
    local y = colours == 1 and enlarge_grey(self, part) or self:enlarge(part)
    if channels == colours then return y end
    return cr.cat({ y, enlarge_grey(self, x:narrow(3, channels, 1):contiguous()) }, 3)
  end)
end

--- Frees the network.
function Enlarger:free()
  self.graph:free()
  self.net.free()
  if self.exact then self.exact.free() end
end

return M
