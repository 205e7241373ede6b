--- Tracks faces over time by the rules of LatentSync's metric: scene cuts, faces of the same person in successive
--- frames, and crops around them.
--
-- Only numbers are kept: the faces of the current scene, and the boxes and points of each track.

local cr = require 'cr'
local ffi = require 'ffi'
local nn = require 'cr.nn'

local tracks = {}

-- ---- scenes ----------------------------------------------------------------------------------

local CUT = 27 -- mean difference of hue, saturation and value from which a scene begins
local SHORTEST = 15 -- minimum length of a scene in frames
local LOOK_WIDTH = 256 -- frames are compared at about this width

local Scenes = {}
Scenes.__index = Scenes

--- Detects scene cuts as PySceneDetect's content detector does.
function tracks.scenes() return setmetatable({ count = 0, begun = 0 }, Scenes) end

--- Hue (0..180), saturation and value (0..255) of a small image, as consecutive planes.
local function hsv(frame)
  local factor = math.max(1, math.floor(frame:size(2) / LOOK_WIDTH))
  local h, w = math.floor(frame:size(1) / factor + 0.5), math.floor(frame:size(2) / factor + 0.5)
  return cr.scope(function()
    local small = (factor > 1 and nn.resize(frame, h, w, 'bilinear') or frame):to 'cpu':contiguous()
    local p, n = small:pointer(), h * w
    local out = ffi.new('uint8_t[?]', 3 * n)
    for i = 0, n - 1 do
      local r, g, b = p[3 * i], p[3 * i + 1], p[3 * i + 2]
      local value = math.max(r, g, b)
      local range = value - math.min(r, g, b)
      local hue = 0
      if range > 0 then
        if value == r then
          hue = (g - b) / range
          if hue < 0 then hue = hue + 6 end
        elseif value == g then
          hue = (b - r) / range + 2
        else
          hue = (r - g) / range + 4
        end
      end
      out[i] = math.floor(30 * hue + 0.5)
      out[n + i] = value > 0 and math.floor(255 * range / value + 0.5) or 0
      out[2 * n + i] = value
    end
    return out, 3 * n
  end)
end

--- Processes the next frame.
--- @param frame Tensor u8 [H W 3]
--- @return boolean whether a scene begins with it (false for the first frame)
function Scenes:push(frame)
  local now, n = hsv(frame)
  local before, cut = self.seen, false
  self.count = self.count + 1
  if before and self.size == n then
    local sum = 0
    for i = 0, n - 1 do sum = sum + math.abs(now[i] - before[i]) end
    cut = sum / n >= CUT and self.count - 1 - self.begun >= SHORTEST
  end
  if cut then self.begun = self.count - 1 end
  self.seen, self.size = now, n
  return cut
end

-- ---- tracks ----------------------------------------------------------------------------------

local GAP = 25 -- maximum frames between two faces of a track
local SAME = 0.5 -- minimum overlap (IoU) of a face with itself one frame later
local NUMBERS = 10 -- numbers per face: its box (4), its three points (6)

--- @class crescent.track
--- @field first integer its first frame, from 0
--- @field count integer frames
--- @field found integer number of frames in which the face was found
--- @field width number mean width of the face in pixels
--- @field height number mean height
--- @field has_points boolean
--- @field data ffi.cdata* ten numbers a frame: x1, y1, x2, y2, and the points' x and y

local function overlap(a, b)
  local w = math.max(0, math.min(a[3], b[3]) - math.max(a[1], b[1]))
  local h = math.max(0, math.min(a[4], b[4]) - math.max(a[2], b[2]))
  return w * h / ((a[3] - a[1]) * (a[4] - a[2]) + (b[3] - b[1]) * (b[4] - b[2]) - w * h)
end

--- Interpolates the numbers from..to of every frame of `data` linearly between frames where they are known; before
--- the first and after the last known frame they are constant.
local function fill_gaps(data, count, from, to, known)
  local frames = {}
  for i = 0, count - 1 do
    if known[i] then frames[#frames + 1] = i end
  end
  for k = 0, #frames do
    local a, b = frames[k] or frames[1], frames[k + 1] or frames[#frames]
    for i = frames[k] and a + 1 or 0, frames[k + 1] and b - 1 or count - 1 do
      local share = a == b and 0 or (i - a) / (b - a)
      for j = from, to do
        local low, high = data[NUMBERS * a + j], data[NUMBERS * b + j]
        data[NUMBERS * i + j] = low + (high - low) * share
      end
    end
  end
end

--- Creates a track from faces in ascending frame order.
local function new_track(faces)
  local first = faces[1].frame
  local count = faces[#faces].frame - first + 1
  local data = ffi.new('double[?]', NUMBERS * count)
  local boxes, points, has_points = {}, {}, false
  for _, face in ipairs(faces) do
    local i = face.frame - first
    local row = data + NUMBERS * i
    boxes[i] = true
    for j = 1, 4 do row[j - 1] = face.box[j] end
    if face.points then
      points[i], has_points = true, true
      for k, p in ipairs(face.points) do row[2 + 2 * k], row[3 + 2 * k] = p[1], p[2] end
    end
  end
  fill_gaps(data, count, 0, 3, boxes)
  if has_points then fill_gaps(data, count, 4, 9, points) end
  local width, height, x, y = 0, 0, 0, 0
  for i = 0, count - 1 do
    local row = data + NUMBERS * i
    width, height = width + (row[2] - row[0]) / count, height + (row[3] - row[1]) / count
    x, y = x + (row[0] + row[2]) / 2 / count, y + (row[1] + row[3]) / 2 / count
  end
  return { first = first, count = count, found = #faces, width = width, height = height, x = x, y = y, has_points = has_points,
    data = data }
end

--- Extracts the tracks of a scene: takes the first remaining face, and in each later frame one that overlaps the
--- last; repeats until no face is left.
--- @param scene table[][] the faces of each frame: {frame = from 0, box, points = three {x, y} or nil}; is emptied
--- @param options table {longer_than = 50 (frames), larger_than = 100 (pixels, the larger side)}
--- @return crescent.track[]
function tracks.of_scene(scene, options)
  local result = {}
  while true do
    local track = {}
    for _, faces in ipairs(scene) do
      local i = 1
      while i <= #faces do
        local face, last = faces[i], track[#track]
        if last and face.frame - last.frame > GAP then break end
        if not last or overlap(face.box, last.box) > SAME then
          track[#track + 1] = face
          -- As in the reference, the face after the removed one is skipped in this pass.
          table.remove(faces, i)
        end
        i = i + 1
      end
    end
    if #track == 0 then return result end
    if #track > options.longer_than then
      local new = new_track(track)
      if math.max(new.width, new.height) > options.larger_than then result[#result + 1] = new end
    end
  end
end

-- ---- pictures around a track -------------------------------------------------------------------

local MEDIAN = 13
local MARGIN = 0.4
local BORDER = 110

--- The running median over MEDIAN values; values beyond the ends count as zeros.
local function median_filter(values, n)
  local half, out, window = (MEDIAN - 1) / 2, ffi.new('double[?]', n), {}
  for i = 0, n - 1 do
    for k = 1, MEDIAN do
      local j = i - half + k - 1
      window[k] = j >= 0 and j < n and values[j] or 0
    end
    table.sort(window)
    out[i] = window[half + 1]
  end
  return out
end

--- Smoothed boxes of a track: centres and half sides in pixels.
--- @param track crescent.track
--- @return table {x, y, side} of doubles, from 0
function tracks.steady_boxes(track)
  local n = track.count
  local x, y, side = ffi.new('double[?]', n), ffi.new('double[?]', n), ffi.new('double[?]', n)
  for i = 0, n - 1 do
    local b = track.data + NUMBERS * i
    x[i], y[i], side[i] = (b[0] + b[2]) / 2, (b[1] + b[3]) / 2, math.max(b[3] - b[1], b[2] - b[0]) / 2
  end
  return { x = median_filter(x, n), y = median_filter(y, n), side = median_filter(side, n) }
end

--- Smoothed alignment points of a track.
--- @param track crescent.track
--- @return number[][][] three {x, y} per frame, from 1
function tracks.steady_points(track)
  local smoother, out = require 'models.latentsync.align'.smoother(), {}
  for i = 0, track.count - 1 do
    local row = track.data + NUMBERS * i
    local steadied = smoother:push { { row[4], row[5] }, { row[6], row[7] }, { row[8], row[9] } }
    if steadied then out[#out + 1] = steadied end
  end
  for _, steadied in ipairs(smoother:flush()) do out[#out + 1] = steadied end
  return out
end

--- The reference's crop around a box: 2.8 half sides wide and high, shifted down; grey outside of the frame.
--- @param frame Tensor u8 [H W 3]
--- @param x number centre x
--- @param y number centre y
--- @param half number half the box's larger side
--- @param height integer height of the result
--- @param width integer
--- @return Tensor u8 [height width 3]
function tracks.cut_box(frame, x, y, half, height, width)
  return cr.scope(function()
    local H, W = frame:size(1), frame:size(2)
    -- The reference pads the frame before it truncates, so coordinates refer to the padded frame.
    local border = math.floor(half * (1 + 2 * MARGIN))
    local function place(v, limit)
      return math.min(math.max(0, math.floor(v + border)), limit + 2 * border) - border
    end
    local top, bottom = place(y - half, H), place(y + half * (1 + 2 * MARGIN), H)
    local left, right = place(x - half * (1 + MARGIN), W), place(x + half * (1 + MARGIN), W)
    -- The visible part: at least one pixel, even if the square lies outside of the frame.
    local t, l = math.max(0, math.min(top, H - 1)), math.max(0, math.min(left, W - 1))
    local b, r = math.max(t + 1, math.min(bottom, H)), math.max(l + 1, math.min(right, W))
    local part = frame:narrow(1, t + 1, b - t):narrow(2, l + 1, r - l)
    local before, after = { math.max(0, t - top), math.max(0, l - left) }, { math.max(0, bottom - b), math.max(0, right - r) }
    local padded = nn.pad(part, before, after, BORDER)
    return nn.resize(padded, height, width, 'bilinear')
  end)
end

return tracks
