--- Who is in a video: each person, when and where they are visible, and how well their lips agree with a sound.
--
--     local result = census.of('talk.mp4', { finder = finder, sound = 'talk.mp4' })
--     result.people[1].segments[1].confidence
--
-- The video is read once. It keeps a few numbers per frame, and one image per person.

local cr = require 'cr'
local ffi = require 'ffi'
local media = require 'cr.media'
local align = require 'models.latentsync.align'
local choice = require 'models.latentsync.choice'
local people = require 'models.latentsync.people'
local silences = require 'models.latentsync.silence'
local sound_windows = require 'models.latentsync.sound_windows'
local syncnet = require 'models.networks.syncnet'

local M = {}

local FPS, RATE = 25, 16000
local BATCH = 8 -- frames decoded at once; also mouth windows computed at once
local SHIFTS = 2 * syncnet.SHIFT + 1
local FRAMES = syncnet.FRAMES -- frames per SyncNet window
local PORTRAIT, LARGER = 128, 1.5 -- pixels; a face must be this much larger to replace the portrait
local VIEW, VIEWS = 384, 16 -- longer side of a stored view in pixels; maximum number of views
local TOGETHER = 3 -- largest offset of lips and sound, in frames, that still counts as synchronous
local PIECE = 25 -- frames per segment of speech; one person speaks in each
local MARGIN = 0.03 -- by this much another person's lips must agree better to become the speaker

-- ---- the sound -------------------------------------------------------------------------------

-- Opens `count` frames of a sound from frame `first`, for silence.lua.
local function pieces_of(path, first, count)
  return function()
    local reader = media.audio(path, { rate = RATE, channels = 1, s16 = true })
    local skip, left = first * RATE / FPS, count * RATE / FPS
    return function()
      while left > 0 do
        local piece = reader:read(RATE * 4)
        local n = piece and piece:size(1) or 0
        if n == 0 then break end
        local from, take = math.min(skip, n), math.min(n - math.min(skip, n), left)
        skip, left = skip - from, left - take
        if take > 0 then return piece:narrow(1, from + 1, take):contiguous() end
      end
      reader:close()
      return nil
    end
  end
end

-- SyncNet embeddings of all windows of the sound, with SHIFT zero windows before the first and a few after the last.
local function hear(net, path, first, count)
  local sound, list = sound_windows.open(path, first, count), {}
  local ok, reason = pcall(function()
    while true do
      local rows, n = sound:windows(64)
      if n == 0 then break end
      list[#list + 1] = cr.keep(cr.scope(function() return net:sound(rows):to 'cpu':to 'f32':clone() end))
      rows:free()
    end
  end)
  sound:close()
  if not ok then error(reason, 0) end
  if #list == 0 then return nil end
  return cr.keep(cr.scope(function()
    local zeros = cr.zeros(syncnet.SHIFT, list[1]:size(2))
    local all = cr.cat({ zeros, cr.cat(list, 1), zeros }, 1)
    for _, x in ipairs(list) do x:free() end
    return all
  end))
end

-- ---- the mouths ------------------------------------------------------------------------------

-- Distances between windows of one person's mouth and the sound. `pictures` are crops of frames t, t + 1, ...
local function measure_mouth(self, one, pictures, t)
  local n = math.min(#pictures - FRAMES + 1, self.heard:size(1) - SHIFTS + 1 - t)
  if n < 1 then return end
  local data = ffi.new('float[?]', n * SHIFTS)
  cr.scope(function()
    local stack = {}
    for i = 1, n + FRAMES - 1 do stack[i] = pictures[i]:unsqueeze(1) end
    local mouth = self.net:mouth(cr.cat(stack, 1)):to 'cpu':to 'f32'
    for k = 1, SHIFTS do
      local d = (mouth - self.heard:narrow(1, t + k, n)):square():sum(2):sqrt():contiguous():pointer()
      for i = 0, n - 1 do data[i * SHIFTS + k - 1] = d[i] end
    end
  end)
  one.windows[#one.windows + 1] = { first = t, n = n, data = data }
end

-- Processes the queued mouth crops, but keeps those that the next windows also need.
local function flush(self, one, last)
  local waiting = one.pictures
  if #waiting >= FRAMES then measure_mouth(self, one, waiting, one.begun) end
  local keep = last and 0 or math.min(#waiting, FRAMES - 1)
  for i = 1, #waiting - keep do waiting[i]:free() end
  one.pictures, one.begun = { unpack(waiting, #waiting - keep + 1) }, one.begun + #waiting - keep
end

local function add_mouth(self, one, frame, points, t)
  if #one.pictures > 0 and one.begun + #one.pictures ~= t then flush(self, one, true) end
  if #one.pictures == 0 then one.begun, one.aligner = t, align.new { size = self.net.settings.size } end
  local s = self.net.settings
  one.pictures[#one.pictures + 1] = cr.keep(cr.scope(function()
    return align.warp(frame, one.aligner:matrix(points), s.size):narrow(1, s.rows[1] + 1, s.height)
      :narrow(2, s.columns[1] + 1, s.width):clone()
  end))
  if #one.pictures >= BATCH + FRAMES - 1 then flush(self, one) end
end

-- Mean distances over the windows of a person whose middle lies in frames a to b, by shift, as syncnet.judge takes
-- them; and their count.
local function distances_of(one, a, b)
  local sums, n = {}, 0
  for k = 1, SHIFTS do sums[k] = 0 end
  for _, w in ipairs(one.windows) do
    for i = math.max(0, a - 2 - w.first), math.min(w.n - 1, b - 2 - w.first) do
      n = n + 1
      for k = 1, SHIFTS do sums[k] = sums[k] + w.data[i * SHIFTS + k - 1] end
    end
  end
  for k = 1, SHIFTS do sums[k] = sums[k] / math.max(n, 1) end
  return sums, n
end

-- ---- everybody -------------------------------------------------------------------------------

local function box_area(b) return (b[3] - b[1]) * (b[4] - b[2]) end

-- A crop of a person's head.
local function portrait_of(frame, b)
  local x, y, half = (b[1] + b[3]) / 2, (b[2] + b[4]) / 2, 0.8 * math.max(b[3] - b[1], b[4] - b[2])
  return cr.keep(cr.scope(function()
    return require 'cr.image'.cut_square(frame, { x = x, y = y, side = 2 * half }, PORTRAIT, 1, 0):clamp(0, 255):to 'u8':to 'cpu':clone()
  end))
end

-- A reduced copy of a frame, with the boxes of the people in it.
local function view_of(frame, t, seen)
  local height, width = frame:size(1), frame:size(2)
  local scale = math.min(1, VIEW / math.max(height, width))
  local view = { frame = t, boxes = {}, picture = cr.keep(cr.scope(function()
    local h, w = math.max(1, math.floor(height * scale)), math.max(1, math.floor(width * scale))
    return cr.nn.resize(frame, h, w, 'bilinear'):to 'cpu':clone()
  end)) }
  for i, p in ipairs(seen.people) do
    view.boxes[i] = { number = p.number }
    for k = 1, 4 do view.boxes[i][k] = p.box[k] * scale end
  end
  return view
end

-- Records who is in frame t.
local function note(self, frame, t, seen, points)
  for from, to in pairs(seen.renamed) do
    local a, b = self.by_number[from], self.by_number[to]
    for _, view in ipairs(self.views) do
      for _, box in ipairs(view.boxes) do box.number = box.number == from and to or box.number end
    end
    if a and b then
      for _, run in ipairs(a.runs) do b.runs[#b.runs + 1] = run end
      for _, w in ipairs(a.windows) do b.windows[#b.windows + 1] = w end
      for _, picture in ipairs(a.pictures) do picture:free() end
      if a.portrait then a.portrait:free() end
      self.by_number[from] = nil
    end
  end
  local fresh = seen.cut and #seen.people > 0
  for _, p in ipairs(seen.people) do
    local one = self.by_number[p.number]
    if not one then
      fresh = true
      one = { number = p.number, runs = {}, windows = {}, pictures = {}, box = p.box, area = 0 }
      self.by_number[p.number] = one
    end
    local run = one.runs[#one.runs]
    if run and run.last == t - 1 and not seen.cut then run.last = t else one.runs[#one.runs + 1] = { first = t, last = t } end
    if self.o.portraits and box_area(p.box) > LARGER * one.area then
      if one.portrait then one.portrait:free() end
      one.portrait, one.area = portrait_of(frame, p.box), box_area(p.box)
    end
    if points and p.points then add_mouth(self, one, frame, p.points, t) end
  end
  if fresh and self.o.portraits and #self.views < VIEWS then self.views[#self.views + 1] = view_of(frame, t, seen) end
end

-- The segments reported for a person: runs of frames, or, with a sound, the runs in which someone speaks, with
-- SyncNet's verdict.
local function segments_of(one, speech)
  local list = {}
  for _, run in ipairs(one.runs) do
    if not speech then list[#list + 1] = { first = run.first, last = run.last } end
    for _, s in ipairs(speech or {}) do
      local a, b = math.max(run.first, s.first), math.min(run.last, s.last)
      local distances, n = distances_of(one, a, b)
      if n > 0 then
        local offset, confidence = syncnet.judge(distances)
        list[#list + 1] = { first = a, last = b, windows = n, offset = offset, confidence = confidence }
      end
    end
  end
  return list
end

-- How well a person's lips agree with the sound in frames a to b; negative if they do not.
local function agreement(one, a, b)
  local distances, n = distances_of(one, a, b)
  if n == 0 then return -math.huge end
  local least = math.huge
  for k = syncnet.SHIFT + 1 - TOGETHER, syncnet.SHIFT + 1 + TOGETHER do least = math.min(least, distances[k]) end
  table.sort(distances)
  return distances[syncnet.SHIFT + 1] - least
end

-- The frame near `a` at which the next speaker's lips begin to agree with the sound, and the previous speaker's cease
-- to.
local function change_between(before, after, a)
  local best, least = a, math.huge
  for x = a - math.floor(PIECE / 2), a + math.floor(PIECE / 2) do
    local own, n = distances_of(before, a - PIECE, x - 1)
    local others, m = distances_of(after, x, a + PIECE - 1)
    if n > 0 and m > 0 then
      local sum = own[syncnet.SHIFT + 1] * n + others[syncnet.SHIFT + 1] * m
      if sum < least then best, least = x, sum end
    end
  end
  return best
end

-- Who speaks when: a list of {first frame, person number}.
local function speakers_of(list, speech)
  local turns = {}
  for _, s in ipairs(speech) do
    local pieces = math.max(1, math.floor((s.last - s.first + 1) / PIECE + 0.5))
    for k = 1, pieces do
      local a = s.first + math.floor((k - 1) * (s.last - s.first + 1) / pieces)
      local b = s.first + math.floor(k * (s.last - s.first + 1) / pieces) - 1
      local now, before, best, most = turns[#turns], nil, nil, -math.huge
      for _, one in ipairs(list) do
        if now and now.number == one.number then before = one end
        local value = agreement(one, a, b) + (before == one and MARGIN or 0)
        if value > most then best, most = one, value end
      end
      if best and best ~= before then
        turns[#turns + 1] = { first = k > 1 and before and change_between(before, best, a) or a, number = best.number }
      end
    end
  end
  return turns
end

local function speech_of(path, first, count)
  local list = silences.speech(pieces_of(path, first, count))
  for i, s in ipairs(list) do
    list[i] = { first = math.floor(s[1] * FPS / RATE), last = math.ceil(s[2] * FPS / RATE) - 1 }
  end
  return list
end

-- Processes all frames.
local function look(self, reader, count)
  local crowd = people.open { finder = self.o.finder, choices = { self.heard and choice.new 'all' or nil } }
  local t = 0
  while t < count do
    local list = self.measure('decode', 0, function() return reader:read(math.min(BATCH, count - t)) end)
    for _, frame in ipairs(list) do
      local seen = self.measure('find faces', 1, function() return crowd:push(frame) end)
      if seen.cut then self.cuts[#self.cuts + 1] = t end
      note(self, frame, t, seen, self.heard)
      frame:free()
      self.advance(1)
      t = t + 1
    end
    if #list < BATCH then break end
  end
  self.frames = t
  for _, one in pairs(self.by_number) do
    if self.heard then flush(self, one, true) end
  end
end

--- Finds everybody in a video.
--- @param video string path
--- @param options {finder: table, sound: string?, start: number?, duration: number?, portraits: boolean?, device: string?,
---  measure: function?, advance: function?} finder: as people.lua takes it; sound: compared with the lips; start, duration:
---  the piece in seconds; portraits: return images, which the caller frees; measure(stage, frames, fn, ...): times a stage;
---  advance(n): is called after n frames
--- @return table result {frames, cuts = frames (from 0) at which shots begin, people = by number {number, first, last (frames),
---  count, share (0 to 1), box (in the first frame), segments = a list of {first, last; with a sound also windows, offset,
---  confidence}, portrait = u8 [128 128 3]}, turns = with a sound a list of {first, number}: who speaks from this frame on,
---  views = a list of {frame, picture = u8 [h w 3], boxes = {x1, y1, x2, y2, number}}: frames in which a person first appears}
function M.of(video, options)
  local o = options
  local first = math.floor((o.start or 0) * FPS + 0.5)
  local count = o.duration and math.max(1, math.floor(o.duration * FPS + 0.5)) or math.huge
  local self = {
    o = o, by_number = {}, cuts = {}, views = {}, frames = 0,
    measure = o.measure or function(_, _, fn, ...) return fn(...) end, advance = o.advance or function() end,
  }
  local speech, reader
  local ok, reason = pcall(function()
    if o.sound then
      self.net = syncnet.load(cr.root .. '/models/mini/syncnet.safetensors', { device = o.device })
      self.heard = self.measure('listen', 0, hear, self.net, o.sound, first, count)
      speech = self.measure('listen', 0, speech_of, o.sound, first, count)
    end
    reader = media.reader(video, { fps = FPS, device = o.device })
    if first > 0 then reader:seek(first) end
    look(self, reader, count)
  end)
  if reader then reader:close() end
  if self.net then self.net:free() end
  if self.heard then self.heard:free() end
  local list = {}
  for _, one in pairs(self.by_number) do
    for _, picture in ipairs(one.pictures) do picture:free() end
    if one.portrait and not ok then one.portrait:free() end
    list[#list + 1] = one
  end
  if not ok then
    for _, view in ipairs(self.views) do view.picture:free() end
    error(reason, 0)
  end
  table.sort(list, function(a, b) return a.number < b.number end)
  local result = { frames = self.frames, cuts = self.cuts, views = self.views, people = {} }
  if speech then result.turns = speakers_of(list, speech) end
  for i, one in ipairs(list) do
    local present = 0
    table.sort(one.runs, function(a, b) return a.first < b.first end)
    for _, run in ipairs(one.runs) do present = present + run.last - run.first + 1 end
    result.people[i] = {
      number = one.number, first = one.runs[1].first, last = one.runs[#one.runs].last, count = present,
      share = present / self.frames, box = one.box, segments = segments_of(one, speech), portrait = one.portrait,
    }
  end
  return result
end

return M
