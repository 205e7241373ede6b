--- People of a video: who is in each frame, and who is the same from frame to frame.
--
--     local crowd = people.open { finder = face.load(), choices = { choice.new 'largest' } }
--     local seen = crowd:push(frame)     -- frame u8 [H W 3]
--     seen.people, seen.picks[1], seen.cut
--
-- Somebody is `seen` (detected), `followed` (the detector missed them, their mesh is found around the place where they
-- should be) or `lost`. Whom the detector misses is followed before anybody else is looked at, and nobody else takes a
-- lost one's place. Numbers are kept of people, no frame.

local cuts = require 'models.latentsync.cuts'
local detector = require 'models.networks.face_detector'

local people = {}

local SAME_PLACE = 0.2 -- overlap of a face with itself a frame later at least
local TAKEN = 0.3      -- overlap with another's face from which a followed mesh is that other's

---@class crescent.person somebody in a frame
---@field number integer from 1, by first appearance and then from left to right
---@field state 'seen'|'followed'
---@field box number[] x1, y1, x2, y2 in pixels
---@field score number the detector's, or the mesh's presence
---@field points number[][]? left brow, right brow, nose; of whom no choice picked perhaps nil
---@field mesh number[][]? 468 points {x, y}
---@field presence number? how sure the mesh is of a face

---@class crescent.people.seen
---@field people crescent.person[] who is in the frame, by number
---@field cut boolean a shot begins with this frame
---@field picks integer[][] of each choice the numbers that it picks; all of them are in `people` and have points

---@class crescent.crowd
local Crowd = {}
Crowd.__index = Crowd

--- Follows the people of a video.
---@param options {finder: table, choices: crescent.choice[]?, cuts: boolean?} cuts: look for them (true)
---@return crescent.crowd
function people.open(options)
  local self = setmetatable({ finder = options.finder, choices = options.choices or {}, looks_for_cuts = options.cuts ~= false }, Crowd)
  self:reset()
  return self
end

--- Forgets everybody: another video.
function Crowd:reset()
  self.frame, self.tracks = -1, {}
  self.shots = self.looks_for_cuts and cuts.new() or nil
end

local function centre(box) return (box[1] + box[3]) / 2, (box[2] + box[4]) / 2 end

-- Where a track's face should be in this frame.
local function expected(track)
  local b, v = track.box, track.speed
  return { b[1] + v[1], b[2] + v[2], b[3] + v[1], b[4] + v[2] }
end

local function by_most(list)
  table.sort(list, function(a, b)
    if a.value ~= b.value then return a.value > b.value end
    return a.order < b.order
  end)
end

-- The detection of each track: pairs are formed from the likeliest on.
local function match(tracks, detections)
  local pairs_of, of_track, taken = {}, {}, {}
  for _, track in ipairs(tracks) do
    local there = expected(track)
    for i, d in ipairs(detections) do
      local shared = math.max(detector.overlap(d.box, there), detector.overlap(d.box, track.box))
      if shared >= SAME_PLACE then
        pairs_of[#pairs_of + 1] = { track = track, detection = i, value = shared, order = #pairs_of }
      end
    end
  end
  by_most(pairs_of)
  for _, pair in ipairs(pairs_of) do
    if not of_track[pair.track] and not taken[pair.detection] then
      of_track[pair.track], taken[pair.detection] = detections[pair.detection], true
    end
  end
  return of_track, taken
end

-- Notes where a track's face is.
local function move(self, track, state, found)
  local x, y = centre(found.box)
  local x0, y0 = centre(track.box or found.box)
  local near = track.last == self.frame - 1
  track.speed = near and { (track.speed[1] + x - x0) / 2, (track.speed[2] + y - y0) / 2 } or { 0, 0 }
  if track.last ~= self.frame then track.count = track.count + 1 end
  track.state, track.box, track.found, track.last = state, found.box, found, self.frame
end

-- Whether a box is somebody else's.
local function is_taken(box, track, others)
  for _, other in ipairs(others) do
    if other ~= track and detector.overlap(box, other.box) > TAKEN then return true end
  end
  return false
end

-- Follows whom the detector missed.
local function follow(self, frame, track, others)
  local finder = self.finder
  local found = finder.follow and finder:follow(frame, track.found, track.speed[1], track.speed[2])
  if not found or is_taken(found.box, track, others) then
    track.state = 'lost'
    return false
  end
  -- The box of a mesh is smaller than the detector's, with which it will be compared.
  move(self, track, 'followed', found)
  return true
end

local function new_track(self, found)
  local track = { number = #self.tracks + 1, first = self.frame, count = 0, speed = { 0, 0 } }
  self.tracks[#self.tracks + 1] = track
  move(self, track, 'seen', found)
  return track
end

-- Who was lost and is back.
local function returned(self, d)
  for _, track in ipairs(self.tracks) do
    if track.state == 'lost' and detector.overlap(d.box, track.box) >= SAME_PLACE then return track end
  end
end

-- Everybody in this frame.
local function look(self, frame)
  local here, active = {}, {}
  for _, track in ipairs(self.tracks) do
    if track.state ~= 'lost' then active[#active + 1] = track end
  end
  local detections = self.finder:detect(frame)
  local of_track, taken = match(active, detections)
  for track, d in pairs(of_track) do
    move(self, track, 'seen', d)
    here[#here + 1] = track
  end
  for _, track in ipairs(active) do
    if not of_track[track] and follow(self, frame, track, here) then here[#here + 1] = track end
  end
  local fresh = {}
  for i, d in ipairs(detections) do
    if not taken[i] then fresh[#fresh + 1] = d end
  end
  table.sort(fresh, function(a, b) return centre(a.box) < centre(b.box) end)
  for _, d in ipairs(fresh) do
    local found = self.finder:place(frame, d)
    if found then
      local track = returned(self, d)
      if track then move(self, track, 'seen', found) else track = new_track(self, found) end
      here[#here + 1] = track
    end
  end
  table.sort(here, function(a, b) return a.number < b.number end)
  return here
end

local function as_person(track)
  local f = track.found
  return { number = track.number, state = track.state, box = track.box, score = f.score, points = f.points, mesh = f.mesh,
    presence = f.presence }
end

-- Gives those who were picked their points; who has no face after all leaves the list and the picks.
local function settle(self, frame, seen, here)
  local picked, gone = {}, {}
  for _, numbers in ipairs(seen.picks) do
    for _, number in ipairs(numbers) do picked[number] = true end
  end
  for i, track in ipairs(here) do
    if picked[track.number] and not track.found.points then
      local found = self.finder:place(frame, track.found)
      if found then
        track.found = found
      else
        track.found = track.placed or track.found
        if not follow(self, frame, track, here) then gone[track.number] = true end
      end
      if not gone[track.number] then seen.people[i] = as_person(track) end
    end
    if track.found.points then track.placed = track.found end
  end
  if not next(gone) then return end
  local function drop(list, number_of)
    for i = #list, 1, -1 do
      if gone[number_of(list[i])] then table.remove(list, i) end
    end
  end
  drop(seen.people, function(p) return p.number end)
  for _, numbers in ipairs(seen.picks) do drop(numbers, function(n) return n end) end
end

--- Takes the next frame.
---@param frame Tensor u8 [H W 3], RGB
---@return crescent.people.seen
function Crowd:push(frame)
  self.frame = self.frame + 1
  local there = frame:to(self.finder.device or frame.device)
  local seen = { people = {}, picks = {}, cut = self.shots ~= nil and self.shots:push(there) }
  if seen.cut then
    for _, track in ipairs(self.tracks) do track.state = 'lost' end
  end
  local here = look(self, there)
  for i, track in ipairs(here) do seen.people[i] = as_person(track) end
  for k, choice in ipairs(self.choices) do seen.picks[k] = choice:pick(seen) end
  settle(self, there, seen, here)
  if not rawequal(there, frame) then there:free() end
  return seen
end

---@class crescent.crowd.reference
local Reference = {}
Reference.__index = Reference

--- Each frame by itself, as the reference looks at it: what the finder's find() gives is person 1, who is picked.
---@param finder table with find(frame)
function people.reference(finder) return setmetatable({ finder = finder }, Reference) end

--- Takes the next frame.
---@param frame Tensor u8 [H W 3], RGB
---@return crescent.people.seen
function Reference:push(frame)
  local found = self.finder:find(frame)
  local person = found and as_person { number = 1, state = 'seen', box = found.box, found = found }
  return { people = { person }, cut = false, picks = { { person and 1 } } }
end

--- Everybody so far.
---@return table[] by number: {number, state, first, last (frames, from 0), count (frames in which seen or followed), box (the last)}
function Crowd:known()
  local list = {}
  for i, track in ipairs(self.tracks) do
    list[i] = { number = track.number, state = track.state, first = track.first, last = track.last, count = track.count,
      box = track.box }
  end
  return list
end

return people
