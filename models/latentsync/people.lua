--- Tracks the people of a video: who is in each frame, and who is the same person from frame to frame.
--
--     local crowd = people.open { finder = face.load(), choices = { choice.new 'largest' } }
--     local seen = crowd:push(frame)     -- frame u8 [H W 3]
--     seen.people, seen.picks[1], seen.cut
--
-- A person is `seen` (detected), `followed` (the detector missed them, but their mesh was found near the expected
-- place) or `lost`. Faces are assigned to people by place and appearance. A person whom the detector missed is
-- followed before faces are assigned to others. A lost person is recognized again by appearance, so that nobody takes
-- over another person's number. A face that appears while somebody is lost gets a number only when it is clear whose
-- it is, because it may be half hidden. Only numbers are kept, no frames.

local cuts = require 'models.latentsync.cuts'
local detector = require 'models.networks.face_detector'
local similarity = require 'models.latentsync.face_similarity'
local mesh = require 'models.networks.face_mesh'

local people = {}

-- Overlaps (IoU) of boxes.
local SAME_PLACE = 0.2 -- minimum of a face with itself one frame later
local STEADY = 0.5 -- of a face that hardly moves
local TAKEN = 0.3 -- with another person's face: from this on a followed mesh belongs to that person
-- Minimum similarities of a face with itself (models/latentsync/face_similarity.lua).
local KEEPS = 0.4 -- one frame later, if it hardly moved
local NEAR = 0.7 -- if it moved, or is back in its place
local SURE = 0.8 -- elsewhere, later, or in another shot
local PATTERN = 0.75 -- one frame later, of the upper face's pattern alone, while the lighting changes
local LEARNS = 0.9 -- a new appearance that is less similar than this is also kept
local LOOKS = 6 -- appearances kept per person
-- Durations in frames.
local SOON = 50 -- for which a lost person's place counts
local WAIT = 8 -- after which a face that appears while somebody is lost is considered another person
local YOUNG = 12 -- for which a person who appeared with a shot may still be identified as an earlier one

--- @class crescent.person a person in a frame
--- @field number integer from 1, by first appearance and then from left to right
--- @field state 'seen'|'followed'
--- @field box number[] x1, y1, x2, y2 in pixels
--- @field score number from the detector, or the mesh's presence
--- @field points number[][]? left brow, right brow, nose; may be nil for a person whom no choice selected
--- @field mesh number[][]? 468 points {x, y}
--- @field presence number? the mesh network's confidence

--- @class crescent.people.seen
--- @field people crescent.person[] the people in the frame, by number
--- @field cut boolean a shot begins with this frame
--- @field renamed table<integer, integer> discarded numbers, and the numbers of the people to whom they belong
--- @field seconds number presentation time
--- @field picks integer[][] for each choice the selected numbers; all of them are in `people` and have points

--- @class crescent.crowd
local Crowd = {}
Crowd.__index = Crowd

--- Creates a tracker for the people of a video.
--- @param options {finder: table, choices: crescent.choice[]?, cuts: boolean?} finder: finds faces in one frame, without memory:
---  detect(frame) returns detections, place(frame, detection) and follow(frame, before, dx, dy) return a face with its points
---  or nil (models/latentsync/face.lua); cuts: whether to detect cuts (true)
--- @return crescent.crowd
function people.open(options)
  local self = setmetatable({ finder = options.finder, choices = options.choices or {}, looks_for_cuts = options.cuts ~= false }, Crowd)
  self:reset()
  return self
end

--- Forgets everybody, for another video.
function Crowd:reset()
  self.frame, self.tracks, self.unknown = -1, {}, {}
  self.shots = self.looks_for_cuts and cuts.new() or nil
end

local function centre(box) return (box[1] + box[3]) / 2, (box[2] + box[4]) / 2 end

-- The similarity of a face to a person's known appearances; with `still` also to the last one. The last one may be
-- affected by a change of light, or belong to a person whose face always overlapped with others.
local function alike(track, look, still)
  local recent = still and (track.recent or not track.looks[1] and track.found.look)
  local most = recent and similarity.compare(recent, look) or 0
  for _, known in ipairs(track.looks) do most = math.max(most, (similarity.compare(known, look))) end
  return most
end

-- The same one frame later, when the lighting may have changed: then only the face's pattern is unchanged.
local function alike_now(self, track, look)
  local recent = self.shots and self.shots.lit and (track.recent or track.looks[#track.looks])
  if recent and select(2, similarity.compare(recent, look))[4] >= PATTERN then return 1 end
  return alike(track, look, true)
end

-- Stores another appearance of a person, replacing the second: the first one belongs to the face that got the number.
local function learn(track, look)
  local looks = track.looks
  looks[#looks + 1] = look
  if #looks > LOOKS then table.remove(looks, 2) end
end

local function overlaps_other(box, track, others, least)
  for _, other in ipairs(others) do
    if other ~= track and detector.overlap(box, other.box) > least then return true end
  end
  return false
end

-- Records where a person's face is.
local function move(self, track, state, found)
  local x, y = centre(found.box)
  if track.last == self.frame - 1 then
    local x0, y0 = centre(track.box)
    track.speed = { (track.speed[1] + x - x0) / 2, (track.speed[2] + y - y0) / 2 }
  else
    track.speed = { 0, 0 }
  end
  if track.last ~= self.frame then track.count = track.count + 1 end
  track.state, track.box, track.found, track.last = state, found.box, found, self.frame
end

-- Assigns detections to tracks, the most similar pairs first. Also counts the people in whose place somebody else is.
local function match(self, tracks, detections)
  local likely, of_track, taken, replaced = {}, {}, {}, 0
  for _, track in ipairs(tracks) do
    local b, v = track.box, track.speed
    local expected = { b[1] + v[1], b[2] + v[2], b[3] + v[1], b[4] + v[2] }
    for i, d in ipairs(detections) do
      local shared = math.max(detector.overlap(d.box, expected), detector.overlap(d.box, b))
      if shared >= SAME_PLACE then
        local same = alike_now(self, track, d.look)
        if same >= (shared >= STEADY and KEEPS or NEAR) then
          likely[#likely + 1] = { track = track, detection = i, value = shared + 2 * same, order = #likely }
        elseif track.number and shared >= STEADY and same < KEEPS then
          replaced = replaced + 1
        end
      end
    end
  end
  table.sort(likely, require 'cr.order'.most_first('value', 'order'))
  for _, pair in ipairs(likely) do
    if not of_track[pair.track] and not taken[pair.detection] then
      local d = detections[pair.detection]
      of_track[pair.track], taken[pair.detection] = d, true
    end
  end
  return of_track, taken, replaced
end

-- The box of a followed face, as the detector would return it: it moves and scales with the mesh.
local function box_of_followed(before, found)
  if not before.mesh then return found.box end
  local a, b = mesh.box_of(before.mesh), found.box
  local x0, y0 = centre(a)
  local x1, y1 = centre(b)
  local scale = math.sqrt((b[3] - b[1]) * (b[4] - b[2]) / ((a[3] - a[1]) * (a[4] - a[2])))
  local box = {}
  for k = 1, 4 do box[k] = k % 2 == 1 and x1 + (before.box[k] - x0) * scale or y1 + (before.box[k] - y0) * scale end
  return box
end

-- Follows a person whom the detector missed; false if they are lost.
local function follow(self, frame, track, others)
  local finder, before = self.finder, track.found
  local found = finder.follow and finder:follow(frame, before, track.speed[1], track.speed[2])
  if found then
    found.box = box_of_followed(before, found)
    if overlaps_other(found.box, track, others, TAKEN) or
      alike_now(self, track, similarity.of(frame, found)) < KEEPS then found = nil end
  end
  if not found then
    track.state = 'lost'
    return false
  end
  move(self, track, 'followed', found)
  return true
end

-- The lost person to whom a face surely belongs, if any.
local function returned(self, look, box)
  local best, most
  for _, track in ipairs(self.tracks) do
    if track.state == 'lost' and not track.renamed then
      local in_place = track.shot == self.shot and self.frame - track.last <= SOON and detector.overlap(box, track.box) >= SAME_PLACE
      local value = alike(track, look) + (in_place and SURE - NEAR or 0)
      if value >= SURE and (not most or value > most) then best, most = track, value end
    end
  end
  return best
end

local function somebody_lost(self)
  for _, track in ipairs(self.tracks) do
    if track.state == 'lost' and not track.renamed then return true end
  end
  return false
end

local function new_track(self)
  return { first = self.frame, count = 0, speed = { 0, 0 }, looks = {}, shot = self.shot, since = self.frame }
end

local function give_number(self, track)
  track.number = #self.tracks + 1
  self.tracks[track.number] = track
end

-- Merges a track with that of a lost person.
local function go_on(self, track, as)
  track.state, track.box, track.found, track.last, track.speed = as.state, as.box, as.found, as.last, as.speed
  track.count = track.count + as.count
  as.state = 'lost'
end

-- Identifies people who appeared with a shot as people from before.
local function recognize(self, seen, here)
  for i, track in ipairs(here) do
    if track.state == 'seen' and track.since == self.shot and self.shot > 0 and self.frame - track.since <= YOUNG then
      local before = returned(self, track.found.look, track.box)
      if before then
        go_on(self, before, track)
        track.renamed, seen.renamed[track.number], here[i] = before.number, before.number, before
        if track.number == #self.tracks then self.tracks[track.number] = nil end
      end
    end
  end
end

-- Assigns numbers to undecided faces: of a lost person, or of a new one after some time.
local function identify(self, here)
  local unknown = {}
  for _, track in ipairs(self.unknown) do
    if track.last == self.frame then
      local before = returned(self, track.found.look, track.box)
      if before then
        go_on(self, before, track)
        here[#here + 1] = before
      elseif self.frame - track.since >= WAIT or not somebody_lost(self) then
        give_number(self, track)
        here[#here + 1] = track
      else
        unknown[#unknown + 1] = track
      end
    end
  end
  self.unknown = unknown
end

local function lose_all(self)
  for _, track in ipairs(self.tracks) do track.state = 'lost' end
  self.shot, self.unknown = self.frame, {}
end

-- Whether a dissolve has progressed so far that nobody from before can be found any more.
local function faded(self, here)
  local ago = self.shots and self.shots:dissolving()
  if not ago or #here == 0 then return false end
  for _, track in ipairs(here) do
    if track.first <= self.frame - ago then return false end
  end
  return true
end

-- Finds everybody in this frame, by number.
local function look(self, frame, seen, glance)
  local here, active = {}, {}
  for _, track in ipairs(self.tracks) do
    if track.state ~= 'lost' then active[#active + 1] = track end
  end
  local people_before = #active
  for _, track in ipairs(self.unknown) do active[#active + 1] = track end
  local detections = glance and glance.detections or self.finder:detect(frame)
  for _, d in ipairs(detections) do d.look = d.look or similarity.of(frame, d) end
  local of_track, taken, replaced = match(self, active, detections)
  if self.shots and replaced > 0 and replaced >= people_before and not next(of_track) then
    -- All people being replaced between two frames is a cut, even if the rest of the image is similar.
    seen.cut, active = true, {}
    lose_all(self)
  end
  local matched = {}
  for track, d in pairs(of_track) do
    move(self, track, 'seen', d)
    matched[#matched + 1] = track
    if track.number then here[#here + 1] = track end
  end
  for _, track in ipairs(active) do
    if track.number and not of_track[track] and follow(self, frame, track, matched) then
      here[#here + 1], matched[#matched + 1] = track, track
    end
  end
  local fresh = {}
  for i, d in ipairs(detections) do
    if not taken[i] and not overlaps_other(d.box, nil, matched, TAKEN) then fresh[#fresh + 1] = d end
  end
  table.sort(fresh, function(a, b) return centre(a.box) < centre(b.box) end)
  for _, d in ipairs(fresh) do
    local found = self.finder:place(frame, d)
    if found then
      local track = returned(self, d.look, d.box)
      if not track then
        track = new_track(self)
        if self.frame == self.shot or not somebody_lost(self) then give_number(self, track) else table.insert(self.unknown, track) end
      end
      found.look = d.look
      move(self, track, 'seen', found)
      if track.number then here[#here + 1] = track end
    end
  end
  recognize(self, seen, here)
  identify(self, here)
  if faded(self, here) then
    seen.cut, self.shot = true, self.frame
    self.shots:begin()
  end
  local all = {}
  for _, list in ipairs { here, self.unknown } do
    for _, track in ipairs(list) do all[#all + 1] = track end
  end
  for _, track in ipairs(all) do
    local d = track.found
    track.shot = self.shot
    if track.state == 'seen' and not overlaps_other(d.box, track, all, 0) then
      track.recent = d.look
      local lit = self.shots and self.shots.lit and #track.looks > 0
      if not lit and alike(track, d.look) < LEARNS then learn(track, d.look) end
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

-- Computes the points of the selected people; a person without a mesh is removed from the list and the selection.
local function settle(self, frame, seen, here)
  local picked, gone = {}, {}
  for _, numbers in ipairs(seen.picks) do
    for _, number in ipairs(numbers) do picked[number] = true end
  end
  for i, track in ipairs(here) do
    if picked[track.number] and not track.found.points then
      local found, placed = self.finder:place(frame, track.found), track.placed
      if found then
        found.look, track.found = track.found.look, found
      else
        track.found = placed and track.placed_in == self.frame - 1 and placed or track.found
        gone[track.number] = not follow(self, frame, track, here) or nil
      end
      seen.people[i] = as_person(track)
    end
    if track.found.points then track.placed, track.placed_in = track.found, self.frame end
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

--- What a frame shows, independent of other frames.
--- @class crescent.people.glance
--- @field detections crescent.face.detection[]
--- @field cells crescent.cuts.look? if cuts are detected

--- Analyses several frames together, before push() takes them: a GPU is waited for a few times in all instead of for
--- each frame, and its small networks take hardly longer for several frames than for one.
--- @param frames Tensor[] u8 [H W 3], RGB, on the finder's device, at least one, all of the same size
--- @return crescent.people.glance[]? nil if the finder treats one frame at a time
function Crowd:glance(frames)
  local finder = self.finder
  if not finder.detect_each then return nil end
  local list, faces = {}, {}
  local cells = self.shots and cuts.look_each(frames) or {}
  for i, detections in ipairs(finder:detect_each(frames)) do
    list[i] = { detections = detections, cells = cells[i] }
    for _, d in ipairs(detections) do faces[#faces + 1] = { frame = frames[i], face = d } end
  end
  for i, look_of_face in ipairs(similarity.of_each(faces)) do faces[i].face.look = look_of_face end
  return list
end

--- Processes the next frame.
--- @param frame Tensor u8 [H W 3], RGB
--- @param seconds number? presentation time (25 frames per second)
--- @param glance crescent.people.glance? its result of glance()
--- @return crescent.people.seen
function Crowd:push(frame, seconds, glance)
  self.frame = self.frame + 1
  local there = frame:to(self.finder.device or frame.device)
  local seen = { people = {}, picks = {}, renamed = {}, seconds = seconds or self.frame / 25 }
  seen.cut = self.shots ~= nil and self.shots:push(there, glance and glance.cells)
  if seen.cut or self.frame == 0 then lose_all(self) end
  local here = look(self, there, seen, glance)
  for i, track in ipairs(here) do seen.people[i] = as_person(track) end
  for k, choice in ipairs(self.choices) do seen.picks[k] = choice:pick(seen) end
  settle(self, there, seen, here)
  if not rawequal(there, frame) then there:free() end
  return seen
end

--- Everybody seen so far.
--- @return table[] by number: {number, state, first, last (frames, from 0), count (frames in which seen or followed), box (the last)}
function Crowd:known()
  local list = {}
  for _, track in ipairs(self.tracks) do
    if not track.renamed then
      list[#list + 1] = { number = track.number, state = track.state, first = track.first, last = track.last,
        count = track.count, box = track.box }
    end
  end
  return list
end

--- A sentence about the people: 'there are 2 people: 1 (0.0 to 4.9 s, at 320,180), 2 (...)'.
--- @param known table[] the result of known()
--- @param seconds_of fun(frame: integer): number
--- @return string
function people.describe(known, seconds_of)
  local list = {}
  for i, p in ipairs(known) do
    local x, y = centre(p.box)
    list[i] = ('%d (%.1f to %.1f s, at %.0f,%.0f)'):format(p.number, seconds_of(p.first), seconds_of(p.last), x, y)
  end
  return ('there %s: %s'):format(#list == 1 and 'is one person' or ('are %d people'):format(#list), table.concat(list, ', '))
end

--- @class crescent.crowd.reference
local Reference = {}
Reference.__index = Reference

--- Treats each frame independently, as the reference does: the face that the finder's find() returns is person 1, who is
--- selected.
--- @param finder table with find(frame)
function people.reference(finder) return setmetatable({ finder = finder }, Reference) end

--- As for the tracker, but with the detections alone: no frame is compared with another.
--- @param frames Tensor[] u8 [H W 3], RGB, on the finder's device, at least one, all of the same size
--- @return crescent.people.glance[]?
function Reference:glance(frames)
  local finder = self.finder
  if not finder.detect_each then return nil end
  local list = {}
  for i, detections in ipairs(finder:detect_each(frames)) do list[i] = { detections = detections } end
  return list
end

--- Processes the next frame.
--- @param frame Tensor u8 [H W 3], RGB
--- @param glance crescent.people.glance? its result of glance()
--- @return crescent.people.seen
function Reference:push(frame, _, glance)
  local found = self.finder:find(frame, glance and glance.detections)
  local person = found and as_person { number = 1, state = 'seen', box = found.box, found = found }
  return { people = { person }, cut = false, renamed = {}, picks = { { person and 1 } } }
end

--- Always empty: people are not tracked over time.
function Reference.known() return {} end

return people
