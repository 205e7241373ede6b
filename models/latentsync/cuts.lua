--- Detects where the shots of a video begin.
--
--     local shots = cuts.new()
--     local begins = shots:push(frame)      -- frame u8 [H W 3]
--
-- A frame is reduced to a coarse image, the brightness of 48 x 27 cells. Two images belong to the same shot if most
-- blocks correlate after one global displacement, or if many blocks correlate closely after displacements of their
-- own. This tolerates shaking and panning cameras, lights that go on, and people who walk through. A uniform image
-- and a flash carry no evidence: the next image is compared with the one before it, so that a flash is no cut, and a
-- black gap between two shots is one. A dissolve is detected because the image in the middle of the change is the
-- mean of both ends; its shot begins where the dissolve is over. A wipe or a slide is detected by its moving seam
-- (wipes.lua).

local cr = require 'cr'
local ffi = require 'ffi'
local wipes = require 'models.latentsync.wipes'

local cuts = {}

local COLUMNS, ROWS, SAMPLES = 48, 27, 4
local CELLS = COLUMNS * ROWS
local across, down = COLUMNS * SAMPLES, ROWS * SAMPLES
local BLOCK_X, BLOCK_Y = 8, 9 -- cells per block
local FLAT = 3 -- a block whose brightness has a smaller standard deviation (of 255 levels) has no texture
local LIKE = 0.6 -- correlation from which two blocks match
local SHARE, MOVED = 0.4, 0.6 -- share of blocks that must match within a shot: in place; after a global displacement
local CLOSE, EACH = 0.8, 0.35 -- correlation, and share of blocks, when each block moves by itself
local NEAR_X, NEAR_Y = 3, 2 -- largest displacement of one block, in cells
local EDGE, STILL = 3, 3 -- brightness difference between cells that makes an edge; largest change of a cell that counts as unchanged
local REACH_X, REACH_Y = 18, 8 -- largest displacement of the whole image between frames, in cells
local BRIGHT, FLASH = 235, 0.3 -- a flash: at least the share FLASH of cells is this bright, and was not before
local PAUSE = 50 -- frames without texture after which the next image begins a shot
local SPANS = { 4, 8, 16, 32, 48 } -- frame distances at which dissolves are searched
local LINE = 0.06 -- share of the change that may deviate from a linear mixture of both ends
local CHANGE = 14 -- mean change of a cell, in levels, from which a change can be a dissolve
local LEFT = 0.25 -- share of blocks that may still match after another shot has replaced this one
local RESTS, RECENT = 0.6, 3 -- a change below RESTS times the largest change is rest; frames since the last larger change

-- ---- reducing a frame ---------------------------------------------------------------------------------

-- The indices (from 0) of the n rows or columns that are sampled.
local function places(count, n)
  local list = {}
  for i = 0, count - 1 do list[i] = math.floor((i + 0.5) * n / count) end
  return list
end

-- The samples of frames on a GPU, copied to the host: u8 [n down across 3].
local function fetched(frames)
  local function index(count, n)
    local list = {}
    for i, place in pairs(places(count, n)) do list[i + 1] = place + 1 end
    return cr.tensor(list, { dtype = 'i32', device = frames[1].device })
  end
  local rows, columns, samples = index(down, frames[1]:size(1)), index(across, frames[1]:size(2)), {}
  for i, frame in ipairs(frames) do
    samples[i] = frame:gather_rows(rows):permute(2, 1, 3):gather_rows(columns):view(1, across, down, 3)
  end
  return cr.cat(samples, 1):to 'cpu':permute(1, 3, 2, 4):contiguous()
end

-- The summary of a frame of height x width; p points to the rows of samples, which have `wide` pixels.
local function summary(height, width, p, rows, columns, wide)
  local cells, floor = ffi.new('float[?]', CELLS), math.floor
  for y = 0, down - 1 do
    local row, first = rows[y] * wide, floor(y / SAMPLES) * COLUMNS
    for x = 0, across - 1 do
      local at = 3 * (row + columns[x])
      local cell = first + floor(x / SAMPLES)
      cells[cell] = cells[cell] + (0.299 * p[at] + 0.587 * p[at + 1] + 0.114 * p[at + 2]) / (SAMPLES * SAMPLES)
    end
  end
  local sum, squares, bright = 0, 0, 0
  for i = 0, CELLS - 1 do
    sum, squares = sum + cells[i], squares + cells[i] * cells[i]
    if cells[i] > BRIGHT then bright = bright + 1 / CELLS end
  end
  local mean = sum / CELLS
  return { height = height, width = width, cells = cells, mean = mean, bright = bright,
    deviation = math.sqrt(math.max(0, squares / CELLS - mean * mean)) }
end

--- The coarse image of a frame.
--- @class crescent.cuts.look
--- @field height integer height of the frame
--- @field width integer
--- @field cells ffi.cdata* brightness of ROWS x COLUMNS cells
--- @field mean number mean brightness of the cells
--- @field deviation number standard deviation of the cells' brightness
--- @field bright number share of cells that are very bright

--- Reduces several frames to coarse images; on a GPU they are waited for only once.
--- @param frames Tensor[] u8 [H W 3], at least one, all of the same size
--- @return crescent.cuts.look[]
function cuts.look_each(frames)
  return cr.scope(function()
    local height, width, list = frames[1]:size(1), frames[1]:size(2), {}
    if frames[1].device ~= 'cpu' then
      local rows, columns, p = places(down, down), places(across, across), fetched(frames):pointer()
      for i = 1, #frames do
        list[i] = summary(height, width, p + (i - 1) * down * across * 3, rows, columns, across)
      end
    else
      local rows, columns = places(down, height), places(across, width)
      for i, frame in ipairs(frames) do list[i] = summary(height, width, frame:contiguous():pointer(), rows, columns, width) end
    end
    return list
  end)
end

--- Reduces a frame to its coarse image.
--- @param frame Tensor u8 [H W 3]
--- @return crescent.cuts.look
function cuts.look(frame) return cuts.look_each({ frame })[1] end

-- ---- comparing -------------------------------------------------------------------------------

-- Correlation of a block of b with the block of a that is displaced by (dx, dy) cells; nil if neither has texture.
local function block(a, b, x0, y0, dx, dy)
  local n, sa, sb, saa, sbb, sab = 0, 0, 0, 0, 0, 0
  for y = math.max(y0, dy), math.min(y0 + BLOCK_Y, ROWS + dy) - 1 do
    for x = math.max(x0, dx), math.min(x0 + BLOCK_X, COLUMNS + dx) - 1 do
      local u, v = a[(y - dy) * COLUMNS + x - dx], b[y * COLUMNS + x]
      n, sa, sb = n + 1, sa + u, sb + v
      saa, sbb, sab = saa + u * u, sbb + v * v, sab + u * v
    end
  end
  if n < BLOCK_X * BLOCK_Y / 3 then return nil end
  local va, vb = saa / n - (sa / n) ^ 2, sbb / n - (sb / n) ^ 2
  local least = FLAT * FLAT
  if va < least and vb < least then return nil end
  if va < least / 4 or vb < least / 4 then return 0 end
  return (sab / n - sa / n * sb / n) / math.sqrt(va * vb)
end

-- The share of textured blocks that match at this displacement, and the number of textured blocks.
local function share_at(a, b, dx, dy)
  local same, n = 0, 0
  for y = 0, ROWS - BLOCK_Y, BLOCK_Y do
    for x = 0, COLUMNS - BLOCK_X, BLOCK_X do
      local c = block(a, b, x, y, dx, dy)
      if c then
        n = n + 1
        if c >= LIKE then same = same + 1 end
      end
    end
  end
  return n > 0 and same / n or 1, n
end

-- Whether most textured blocks match near their places, each with its own displacement.
local function found_apart(a, b)
  local found, n = 0, 0
  for y = 0, ROWS - BLOCK_Y, BLOCK_Y do
    for x = 0, COLUMNS - BLOCK_X, BLOCK_X do
      if block(a, b, x, y, 0, 0) then
        local most = 0
        for dy = -NEAR_Y, NEAR_Y do
          for dx = -NEAR_X, NEAR_X do most = math.max(most, block(a, b, x, y, dx, dy) or 0) end
        end
        n = n + 1
        if most >= CLOSE then found = found + 1 end
      end
    end
  end
  return found >= EACH * n
end

-- The share of cells with an edge whose brightness is unchanged. In a static scene it is high, whatever covers the
-- rest.
local function unchanged(a, b)
  local same, n = 0, 0
  for y = 0, ROWS - 2 do
    for x = 0, COLUMNS - 2 do
      local i = y * COLUMNS + x
      local u, v = a[i], b[i]
      local edge = math.max(math.abs(u - a[i + 1]), math.abs(u - a[i + COLUMNS]), math.abs(v - b[i + 1]), math.abs(v - b[i + COLUMNS]))
      if edge >= EDGE then
        n = n + 1
        if math.abs(u - v) <= STILL then same = same + 1 end
      end
    end
  end
  return n > 0 and same / n or 0
end

--- Whether two images belong to the same shot.
--- @param a table a result of look()
--- @param b table
--- @param vx integer? the previous displacement in cells, which is tried first
--- @param vy integer?
--- @return boolean
--- @return integer dx the displacement in cells
--- @return integer dy
function cuts.same_shot(a, b, vx, vy)
  if a.height ~= b.height or a.width ~= b.width then return false, 0, 0 end
  local share, n = share_at(a.cells, b.cells, 0, 0)
  if n < 3 then return math.abs(a.mean - b.mean) <= 48, 0, 0 end
  if share >= SHARE or unchanged(a.cells, b.cells) >= SHARE then return true, 0, 0 end
  local most, bx, by = 0, 0, 0
  local function try(dx, dy)
    local s, k = share_at(a.cells, b.cells, dx, dy)
    if k >= n / 2 and s > most then most, bx, by = s, dx, dy end
  end
  try(vx or 0, vy or 0)
  if most < MOVED then
    for dy = -REACH_Y, REACH_Y, 2 do
      for dx = -REACH_X, REACH_X, 2 do try(dx, dy) end
    end
    local x, y = bx, by
    for dy = y - 1, y + 1 do
      for dx = x - 1, x + 1 do try(dx, dy) end
    end
  end
  if most >= MOVED then return true, bx, by end
  return found_apart(a.cells, b.cells), 0, 0
end

-- How far `middle` is between `first` and `last` (0 to 1), and the share of the change that deviates from their
-- mixture.
local function along(first, middle, last)
  local dd, md, mm = 0, 0, 0
  for i = 0, CELLS - 1 do
    local d, m = last[i] - first[i], middle[i] - first[i]
    dd, md, mm = dd + d * d, md + m * d, mm + m * m
  end
  if dd == 0 then return 0, 1 end
  local a = md / dd
  return a, math.max(0, mm - a * md) / dd
end

local function mean_change(a, b)
  local sum = 0
  for i = 0, CELLS - 1 do sum = sum + math.abs(a[i] - b[i]) end
  return sum / CELLS
end

-- ---- frame by frame --------------------------------------------------------------------------

--- @class crescent.cuts
--- @field lit boolean the last frame as a whole has another brightness than the one before
local Cuts = {}
Cuts.__index = Cuts

--- Creates a detector of shots. It keeps only a few thousand numbers about previous frames.
--- @return crescent.cuts
function cuts.new() return setmetatable({ count = 0, begun = 0, ring = {}, vx = 0, vy = 0, lit = false }, Cuts) end

-- Whether a dissolve is in progress: the middle of the last frames is a mixture of the ends, which differ.
local function dissolving(self, now)
  for _, span in ipairs(SPANS) do
    local first, middle = self.ring[self.count - span], self.ring[self.count - span / 2]
    if first and middle and mean_change(first.cells, now.cells) >= CHANGE then
      local a, off = along(first.cells, middle.cells, now.cells)
      if a > 0.25 and a < 0.75 and off < LINE and first.deviation > 2 * FLAT and now.deviation > 2 * FLAT and
        not cuts.same_shot(first, now) then return first, span end
    end
  end
end

-- The change at the frame that was `ago` frames earlier.
local function step_of(self, ago)
  local frame = self.ring[self.count - ago]
  return frame and frame.step or 0
end

-- Whether the image matches no shot from `ago` frames earlier or before. If it does, somebody only walked through.
local function is_new(self, now, ago)
  local oldest = self.count - ago
  while self.ring[oldest - 1] do oldest = oldest - 1 end
  for _, place in ipairs { self.count - ago, math.floor((self.count - ago + oldest) / 2), oldest } do
    local older = self.ring[place]
    if share_at(older.cells, now.cells, 0, 0) > LEFT or cuts.same_shot(older, now) then return false end
  end
  return true
end

-- Whether another shot has replaced the previous one piece by piece, and is at rest now.
local function replaced(self, now)
  for _, span in ipairs(SPANS) do
    local first, middle, steps = self.ring[self.count - span], self.ring[self.count - span / 2], 0
    if first and middle and mean_change(first.cells, now.cells) >= CHANGE then
      for ago = 0, span - 1 do steps = steps + step_of(self, ago) end
      local rest = RESTS * steps / span
      if now.step <= rest and step_of(self, RECENT) > rest and share_at(first.cells, now.cells, 0, 0) <= LEFT and
        wipes.between(first.cells, middle.cells, now.cells, COLUMNS, ROWS) and is_new(self, now, span) then return true end
    end
  end
end

local function begin(self)
  self.begun, self.ring, self.dissolve, self.vx, self.vy = self.count, {}, nil, 0, 0
  return true
end

-- Whether the dissolve in progress is over: the image no longer follows the mixture.
local function is_over(self, now)
  local d = self.dissolve
  local a = along(d.first.cells, now.cells, d.last.cells)
  local step = a - d.at
  d.at, d.fastest = a, math.max(d.fastest, step)
  return step < d.fastest / 4 or self.count - d.since > SPANS[#SPANS]
end

--- Processes the next frame.
--- @param frame Tensor u8 [H W 3], RGB
--- @param now crescent.cuts.look? its result of look_each()
--- @return boolean whether a shot begins with it (false for the first frame)
function Cuts:push(frame, now)
  local before = self.before
  now = now or cuts.look(frame)
  self.count = self.count + 1
  self.lit = self.previous ~= nil and math.abs(now.mean - self.previous.mean) > 8
  self.previous = now
  if now.deviation < FLAT or before and now.bright > FLASH and now.bright > 3 * before.bright then
    self.blank = (self.blank or 0) + 1
    if self.blank <= PAUSE then return false end
  end
  local blank = self.blank
  self.before, self.blank = now, nil
  self.ring[self.count], self.ring[self.count - SPANS[#SPANS] - 1] = now, nil
  if not before then return false end
  local same, vx, vy = cuts.same_shot(before, now, self.vx, self.vy)
  if not same then return begin(self) end
  self.vx, self.vy, now.step = vx, vy, mean_change(before.cells, now.cells)
  if blank then return false end
  if replaced(self, now) then return begin(self) end
  if self.dissolve then return is_over(self, now) and begin(self) end
  local first, span = dissolving(self, now)
  if first then
    self.dissolve = { first = first, last = now, at = 1, fastest = 1 / SPANS[#SPANS], since = self.count, from = self.count - span }
  end
  return false
end

--- The number of frames since the dissolve in progress began; nil if there is none.
--- @return integer?
function Cuts:dissolving() return self.dissolve and self.count - self.dissolve.from end

--- Ends the dissolve in progress: a shot has begun with the last frame.
function Cuts:begin() begin(self) end

return cuts
