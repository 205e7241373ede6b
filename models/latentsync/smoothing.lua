--- Steadying of face points over time, and detection of scene cuts.
--
-- The smoother is a symmetric filter: what it gives for a frame weighs frames before and after it
-- alike, so a steady movement passes unchanged and nothing lags. It never reaches over a scene cut or
-- a frame without a face. Both keep a bounded number of numbers, and no frame.

local cr = require 'cr'

local steady = {}

-- ---- smoother --------------------------------------------------------------------------------

local REACH = 3

-- Binomial weights; the first of each is the frame's own, the second its neighbours', and so on.
local KERNELS = {
  [0] = { 1 },
  { 2 / 4, 1 / 4 },
  { 6 / 16, 4 / 16, 1 / 16 },
  { 20 / 64, 15 / 64, 6 / 64, 1 / 64 },
}

---@class crescent.smoother
local Smoother = {}
Smoother.__index = Smoother

--- Steadies points: the impulse response is [1 6 15 20 15 6 1] / 64 around the frame. Within three
--- frames of a scene cut, of a frame without a face or of an end the kernel shrinks on both sides
--- ([1 4 6 4 1] / 16, [1 2 1] / 4, [1]), so that it stays symmetric.
---@return crescent.smoother
function steady.smoother()
  return setmetatable({ count = 0, emitted = 0, frames = {}, cuts = {} }, Smoother)
end

--- Whether frames i - 1 and i are both there, with faces, in one scene.
local function linked(self, i)
  return self.frames[i - 1] and self.frames[i] and not self.cuts[i] or false
end

local function emit(self)
  self.emitted = self.emitted + 1
  local i = self.emitted
  local points = self.frames[i]
  local result = false
  if points then
    local reach = 0
    while reach < REACH and linked(self, i - reach) and linked(self, i + reach + 1) do
      reach = reach + 1
    end
    local kernel = KERNELS[reach]
    result = {}
    for k, p in ipairs(points) do
      local x, y = kernel[1] * p[1], kernel[1] * p[2]
      for d = 1, reach do
        local before, after = self.frames[i - d][k], self.frames[i + d][k]
        x = x + kernel[d + 1] * (before[1] + after[1])
        y = y + kernel[d + 1] * (before[2] + after[2])
      end
      result[k] = { x, y }
    end
  end
  self.frames[i - REACH], self.cuts[i - REACH] = nil, nil
  return result
end

--- Takes the next frame's points; gives those of three frames ago.
---@param points number[][]|nil nil (or false): no face in this frame
---@param cut boolean? this frame begins a new scene
---@return number[][]|false|nil points; false: that frame has no face; nil: too early
function Smoother:push(points, cut)
  self.count = self.count + 1
  self.frames[self.count] = points or false
  self.cuts[self.count] = cut or nil
  if self.count - self.emitted > REACH then return emit(self) end
  return nil
end

--- The frames that are left, at the end; the smoother then starts afresh.
---@return (number[][]|false)[]
function Smoother:flush()
  local rest = {}
  while self.emitted < self.count do rest[#rest + 1] = emit(self) end
  self.count, self.emitted, self.frames, self.cuts = 0, 0, {}, {}
  return rest
end

-- ---- scene cuts ------------------------------------------------------------------------------

local COLUMNS, ROWS, BINS, SAMPLES = 48, 27, 32, 4

local across, down = COLUMNS * SAMPLES, ROWS * SAMPLES

--- Which of n rows (or columns) are sampled: from 0.
local function places(count, n)
  local list = {}
  for i = 0, count - 1 do list[i] = math.floor((i + 0.5) * n / count) end
  return list
end

--- The samples of a frame on a card, fetched from there: u8 [down across 3].
local function fetched(frame)
  local function index(count, n)
    local list = {}
    for i, place in pairs(places(count, n)) do list[i + 1] = place + 1 end
    return cr.tensor(list, { dtype = 'i32', device = frame.device })
  end
  local rows = frame:gather_rows(index(down, frame:size(1)))
  local both = rows:permute(2, 1, 3):gather_rows(index(across, frame:size(2)))
  return both:to 'cpu':permute(2, 1, 3):contiguous()
end

--- What of a frame scene_cut compares: mean brightness in a grid of cells, a few samples each, and the
--- histogram of the samples.
---@class crescent.look
---@field height integer
---@field width integer
---@field cells number[]
---@field histogram number[]

local function look(frame)
  local size = { frame:size(1), frame:size(2) }
  if frame.device ~= 'cpu' then frame = fetched(frame) end
  local height, width = frame:size(1), frame:size(2)
  local p = frame:contiguous():pointer()
  local rows, columns = places(down, height), places(across, width)
  local cells, histogram = {}, {}
  for b = 1, BINS do histogram[b] = 0 end
  local floor = math.floor
  for i = 1, COLUMNS * ROWS do cells[i] = 0 end
  for y = 0, down - 1 do
    local row = rows[y] * width
    local first = floor(y / SAMPLES) * COLUMNS + 1
    for x = 0, across - 1 do
      local at = 3 * (row + columns[x])
      local luma = 0.299 * p[at] + 0.587 * p[at + 1] + 0.114 * p[at + 2]
      local cell = first + floor(x / SAMPLES)
      cells[cell] = cells[cell] + luma
      local bin = floor(luma * (BINS / 256)) + 1
      histogram[bin] = histogram[bin] + 1
    end
  end
  for i = 1, COLUMNS * ROWS do cells[i] = cells[i] / (SAMPLES * SAMPLES) end
  for b = 1, BINS do histogram[b] = histogram[b] / (across * down) end
  return { height = size[1], width = size[2], cells = cells, histogram = histogram }
end

--- What scene_cut has to know of a frame, which need not be kept for it.
---@param frame Tensor u8 [H W 3]
---@return crescent.look
function steady.look(frame) return cr.scope(look, frame) end

--- Correlation, from -1 to 1, of the cells of b moved by (dx, dy) with those of a; and the mean
--- difference. Two flat pictures correlate fully, a flat one and another not at all.
local function compare(a, b, dx, dy)
  local n, sa, sb, saa, sbb, sab, difference = 0, 0, 0, 0, 0, 0, 0
  for y = math.max(0, dy), math.min(ROWS, ROWS + dy) - 1 do
    for x = math.max(0, dx), math.min(COLUMNS, COLUMNS + dx) - 1 do
      local u, v = a[y * COLUMNS + x + 1], b[(y - dy) * COLUMNS + x - dx + 1]
      n, sa, sb = n + 1, sa + u, sb + v
      saa, sbb, sab = saa + u * u, sbb + v * v, sab + u * v
      difference = difference + math.abs(u - v)
    end
  end
  local va, vb = saa / n - (sa / n) ^ 2, sbb / n - (sb / n) ^ 2
  local correlation
  if va < 4 and vb < 4 then
    correlation = 1
  elseif va < 4 or vb < 4 then
    correlation = 0
  else
    correlation = (sab / n - sa / n * sb / n) / math.sqrt(va * vb)
  end
  return correlation, difference / n, math.abs(sa - sb) / n
end

--- Whether a new scene begins between two frames: the coarse picture no longer correlates, wherever
--- it may have moved to (up to an eighth of the picture), and the brightness is spread otherwise.
--- A moving camera keeps the first, a flash or a fade both.
---@param previous Tensor|crescent.look a frame, u8 [H W 3], or what look() gave of it
---@param frame Tensor|crescent.look
---@return boolean
function steady.scene_cut(previous, frame)
  if cr.is_tensor(previous) then previous = steady.look(previous) end
  if cr.is_tensor(frame) then frame = steady.look(frame) end
  if previous.height ~= frame.height or previous.width ~= frame.width then return true end
  local a, b = previous.cells, frame.cells
  local correlation, difference, shift = compare(a, b, 0, 0)
  if difference < 8 or correlation > 0.8 and shift < 90 then return false end
  if correlation == 1 then return shift > 48 end
  for dy = -3, 3 do
    for dx = -6, 6 do
      correlation = math.max(correlation, (compare(a, b, dx, dy)))
    end
  end
  local moved = 0
  for k = 1, BINS do moved = moved + math.abs(previous.histogram[k] - frame.histogram[k]) / 2 end
  return correlation < 0.3 or correlation < 0.6 and moved > 0.2
end

return steady
