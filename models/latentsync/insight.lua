--- The face of a frame by InsightFace's networks, as the reference finds it: box, 106 points and the three points that
--- frames are aligned by. A finder as models/latentsync/face.lua's, of an exact twin of the reference's arithmetic.
--
--     local finder = require 'models.latentsync.insight'.load { dir = 'DIR/auxiliary/models/buffalo_l' }
--     local found = finder:find(frame)          -- frame u8 [H W 3], RGB; nil: there is no face

local lfs = require 'lfs'
local round_even = require 'models.latentsync.align'.round_even
local detector = require 'models.networks.insight_detector'
local landmarks = require 'models.networks.insight_landmarks'

local insight = {}
insight.__index = insight

-- The reference's rules of a usable face, in whole pixels.
local MIN_WIDTH, MIN_HEIGHT = 50, 80
local MIN_ASPECT, MAX_ASPECT = 0.2, 1.5

-- The points, by the package's numbers, whose means frames are aligned by: left brow, right brow, nose.
local ALIGNED_BY = { { 43, 48, 49, 51, 50 }, { 101, 102, 103, 104, 105 }, { 74, 77, 83, 86 } }

---@class crescent.insight.found
---@field box number[] x1, y1, x2, y2 in pixels, as the detector gives them
---@field score number
---@field keypoints number[][] five points
---@field landmarks number[][] 106 of {x, y}
---@field points number[][] left brow, right brow, nose (as seen in the picture), in whole pixels

--- Where the pack lies in a checkpoint's folder.
---@param dir string
---@return string
function insight.folder(dir) return dir .. '/auxiliary/models/buffalo_l' end

--- Which of the pack's two files a checkpoint's folder has.
---@param dir string
---@return string? missing what is not there; nil: both are
---@return boolean any whether one is
function insight.missing(dir)
  local missing, any
  for _, name in ipairs { detector.FILE, landmarks.FILE } do
    local path = insight.folder(dir) .. '/' .. name
    if lfs.attributes(path, 'mode') == 'file' then any = true else missing = missing or path end
  end
  return missing, any or false
end

--- The pack's two files in a checkpoint's folder.
---@param dir string
---@return table<string, string> by what they are
function insight.files(dir)
  local folder = insight.folder(dir)
  return { detector = folder .. '/' .. detector.FILE, landmarks = folder .. '/' .. landmarks.FILE }
end

--- Loads both networks.
---@param options {dir: string, device: string?} the pack's folder; where the networks run and the frames lie ('cpu')
function insight.load(options)
  local self = setmetatable({ device = options.device or 'cpu' }, insight)
  self.detector = detector.load(options.dir .. '/' .. detector.FILE, options.device)
  local ok, result = pcall(landmarks.load, options.dir .. '/' .. landmarks.FILE, options.device)
  if not ok then
    self.detector:free()
    error(result, 0)
  end
  self.landmarks = result
  return self
end

local function toward_0(x) return x < 0 and math.ceil(x) or math.floor(x) end

--- The size by which the reference chooses, or nil if it passes a face over.
---@param box number[]
---@return number? square pixels
function insight.area(box)
  local w = toward_0(box[3]) - toward_0(box[1])
  local h = toward_0(box[4]) - toward_0(box[2])
  if not (w >= MIN_WIDTH and h >= MIN_HEIGHT and w * h < math.huge) or w / h > MAX_ASPECT or w / h < MIN_ASPECT then return nil end
  return w * h
end

--- The points that frames are aligned by.
---@param points number[][] 106 of {x, y}
---@return number[][] three, in whole pixels
function insight.aligned_by(points)
  local means = {}
  for i, numbers in ipairs(ALIGNED_BY) do
    local x, y = 0, 0
    for _, k in ipairs(numbers) do
      x, y = x + round_even(points[k + 1][1]), y + round_even(points[k + 1][2])
    end
    means[i] = { round_even(x / #numbers), round_even(y / #numbers) }
  end
  return means
end

--- The faces of a frame that may be used, the surest first, as the detector gives them.
---@param frame Tensor u8 [H W 3], RGB, on the finder's device
---@return crescent.insight.detection[]
function insight:detect(frame)
  local list = {}
  for _, f in ipairs(self.detector:detect(frame)) do
    if insight.area(f.box) then list[#list + 1] = f end
  end
  return list
end

--- The face of a detection with its points.
---@param frame Tensor u8 [H W 3], RGB, on the finder's device
---@param f crescent.insight.detection
---@return crescent.insight.found?
function insight:place(frame, f)
  local points = self.landmarks:find(frame, f.box)
  return points and { box = f.box, score = f.score, keypoints = f.keypoints, landmarks = points,
    points = insight.aligned_by(points) }
end

local function with_frame(self, frame, fn)
  if frame.dtype ~= 'u8' or frame:dim() ~= 3 or frame.shape[3] ~= 3 then
    error(('insight: the frame must be u8 [H W 3], not %s [%s]'):format(frame.dtype, table.concat(frame.shape, ' ')), 3)
  end
  local there = frame:to(self.device)
  local result = fn(there)
  if not rawequal(there, frame) then there:free() end
  return result
end

--- All usable faces of a frame, the surest first.
---@param frame Tensor u8 [H W 3], RGB
---@return crescent.insight.found[]
function insight:find_all(frame)
  return with_frame(self, frame, function(there)
    local list = {}
    for _, f in ipairs(self:detect(there)) do list[#list + 1] = self:place(there, f) end
    return list
  end)
end

--- The face that the reference takes: of those that may be used the largest, the surer one of two.
---@param frame Tensor u8 [H W 3], RGB
---@return crescent.insight.found?
function insight:find(frame)
  return with_frame(self, frame, function(there)
    local best, most = nil, 0
    for _, f in ipairs(self:detect(there)) do
      local area = insight.area(f.box)
      if area > most then best, most = f, area end
    end
    return best and self:place(there, best)
  end)
end

--- A frame has to do with no other one.
function insight.reset() end

--- Frees the networks' weights. Twice is fine.
function insight:free()
  self.detector:free()
  self.landmarks:free()
end

return insight
