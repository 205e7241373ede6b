--- The face of one person in each frame of a video: alignment matrices from points, which are smoothed and held.
--
-- Points come for every frame in turn; with smoothing, a frame is settled a few frames later. A matrix is computed
-- once per source frame, in source order, and looked up when the frame is shown again.

local ffi = require 'ffi'
local align = require 'models.latentsync.align'

local M = {}

local HOLD = 12 -- frames for which a lost face's last position is reused

--- Six doubles per frame and a valid flag, in flat memory: an hour of video has 90000 of them.
local Matrices = {}
Matrices.__index = Matrices

local function new_matrices()
  return setmetatable({ capacity = 1024, data = ffi.new('double[?]', 1024 * 7) }, Matrices)
end

function Matrices:set(i, m)
  if i > self.capacity then
    local capacity = math.max(2 * self.capacity, i)
    local data = ffi.new('double[?]', capacity * 7)
    ffi.copy(data, self.data, self.capacity * 7 * 8)
    self.capacity, self.data = capacity, data
  end
  local row = self.data + (i - 1) * 7
  row[6] = m and 1 or 0
  for k = 1, 6 do row[k - 1] = m and m[k] or 0 end
end

function Matrices:get(i)
  if i > self.capacity then return nil end
  local row = self.data + (i - 1) * 7
  if row[6] == 0 then return nil end
  local m = {}
  for k = 1, 6 do m[k] = row[k - 1] end
  return m
end

--- @class Place
--- @field settled integer the last frame whose matrix is known, from 1
local Place = {}
Place.__index = Place

--- @param o table {size = side of the model's images, smooth = smooth the points, hold = reuse the last position while the face
---   is hidden, cut = a shot begins without anything known from before}
--- @param settled integer frames that were settled before this place existed
--- @param waiting integer later frames that have been processed
--- @return Place
function M.new(o, settled, waiting)
  local self = setmetatable({
    aligner = align.new { size = o.size }, smoother = o.smooth and align.smoother() or nil, hold = o.hold, cut = o.cut,
    matrices = new_matrices(), settled = settled, since_face = math.huge,
  }, Place)
  for _ = 1, waiting do self:push(nil) end
  return self
end

-- The matrix of the next frame, from its points if it has any.
local function settle(self, points)
  local matrix
  if points then
    self.since_face, self.last = 0, self.aligner:matrix(points)
    matrix = self.last
  else
    self.since_face = self.since_face + 1
    if self.hold and self.since_face <= HOLD then matrix = self.last end
  end
  self.settled = self.settled + 1
  if matrix then self.matrices:set(self.settled, matrix) end
end

--- Processes the next frame.
--- @param points number[][]? three points; nil if the face is hidden
--- @param afresh boolean? a new shot or another person begins: smoothing does not cross this border
--- @param other boolean? it is another person in the same shot: no state is kept
function Place:push(points, afresh, other)
  if afresh then
    self:flush() -- earlier frames are settled with the points that they have
    if other or self.cut then self.aligner:reset() end
    if self.cut then self.last = nil end
  end
  if not self.smoother then return settle(self, points) end
  local steadied = self.smoother:push(points, afresh)
  if steadied ~= nil then settle(self, steadied or nil) end
end

--- Settles the remaining frames, at the end of the video.
function Place:flush()
  if not self.smoother then return end
  for _, points in ipairs(self.smoother:flush()) do settle(self, points or nil) end
end

--- The matrix of a frame that is settled.
--- @param i integer from 1
--- @return number[]? six numbers, source pixels to crop; nil if there is no face
function Place:matrix(i) return self.matrices:get(i) end

return M
