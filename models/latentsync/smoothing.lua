--- Smooths face points over time.
--
-- The smoother is a symmetric filter: it weighs earlier and later frames equally, so that a uniform movement passes
-- unchanged and nothing lags. It never reaches across a scene cut or a frame without a face. It keeps a bounded
-- number of points and no frames.

local steady = {}

local REACH = 3

-- Binomial weights: the first is the frame's own, the second that of its two neighbours, and so on.
local KERNELS = {
  [0] = { 1 },
  { 2 / 4, 1 / 4 },
  { 6 / 16, 4 / 16, 1 / 16 },
  { 20 / 64, 15 / 64, 6 / 64, 1 / 64 },
}

--- @class crescent.smoother
local Smoother = {}
Smoother.__index = Smoother

--- Creates a smoother with the impulse response [1 6 15 20 15 6 1] / 64. Within three frames of a scene cut, of a
--- frame without a face or of an end, the kernel shrinks on both sides ([1 4 6 4 1] / 16, [1 2 1] / 4, [1]), so that
--- it stays symmetric.
--- @return crescent.smoother
function steady.smoother()
  return setmetatable({ count = 0, emitted = 0, frames = {}, cuts = {} }, Smoother)
end

--- Whether frames i - 1 and i both have faces and belong to one scene.
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

--- Takes the next frame's points and returns the smoothed points of three frames ago.
--- @param points number[][]|nil nil (or false): no face in this frame
--- @param cut boolean? this frame begins a new scene
--- @return number[][]|false|nil points; false if that frame has no face; nil if there is none yet
function Smoother:push(points, cut)
  self.count = self.count + 1
  self.frames[self.count] = points or false
  self.cuts[self.count] = cut or nil
  if self.count - self.emitted > REACH then return emit(self) end
  return nil
end

--- Returns the remaining frames, at the end; the smoother is then reset.
--- @return (number[][]|false)[]
function Smoother:flush()
  local rest = {}
  while self.emitted < self.count do rest[#rest + 1] = emit(self) end
  self.count, self.emitted, self.frames, self.cuts = 0, 0, {}, {}
  return rest
end

return steady
