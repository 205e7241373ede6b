--- Reads the frames of a video in presentation order and finds the faces of the selected people: forward once, and
--- then, if the sound is longer than the video, backward and forward in turn.
--
-- Frames are held in their decoded format and converted to RGB when needed. Invariants: at most one batch of frames
-- is held, whatever the length of the video. Faces are searched once per source frame, in source order. The frame at
-- which the direction turns is shown twice.

local cr = require 'cr'
local media = require 'cr.media'
local people = require 'models.latentsync.people'

local frames = {}

local BATCH = 16 -- frames decoded at once
local CARD_BATCH = 8 -- the same on a GPU, where memory is scarce
local PIECE_BYTES = 96 * 2 ^ 20 -- maximum size of the frames held while playing backward
local GLANCE_BYTES = 64 * 2 ^ 20 -- maximum size of RGB frames on a GPU that are analysed together
local FIT = 1e-6 -- tolerance of times, in seconds

--- @class FrameItem
--- @field frame VideoFrame on the requested device; frame:rgb() is u8 [H W 3], frame:whole() has the full bit depth
--- @field index integer the frame's index in the source, from 1
--- @field seconds number? presentation time, if the source's own frame rate is kept
--- @field turned boolean? part of a repetition, backward or forward
--- @field cut boolean a shot begins with it, in presentation order

local Source = {}
Source.__index = Source

--- @class FrameOptions
--- @field video string path
--- @field device string? device of the decoded frames ('cpu')
--- @field first integer? first frame of the source (from 0, at 25 per second)
--- @field limit integer? maximum number of source frames
--- @field own_rate boolean? use all source frames with their own times, instead of 25 per second
--- @field start number? start in seconds, with own_rate (instead of `first`)
--- @field duration number? maximum number of seconds, with own_rate (instead of `limit`)
--- @field points table? points[i] = {{x, y} x 3} or nil, are the points of source frame i; no detector is used
--- @field people table? tracks people (models/latentsync/people.lua), instead of points
--- @field cast Cast the selected people; is told who is in each frame
--- @field no_face string? 'error': a frame without a selected person is an error
--- @field pause fun()? is called after each frame, so that other tasks can run
--- @field measure fun(stage: string, frames: integer, fn: function, ...): ... times a stage

--- Opens a video.
--- @param options FrameOptions
function frames.open(options)
  local reader = media.reader(options.video, { fps = options.own_rate and 0 or 25, device = options.device, wait = true, deep = true })
  local self = setmetatable({
    reader = reader, o = options, first = not options.own_rate and options.first or 0,
    limit = not options.own_rate and options.limit or math.huge, times = options.own_rate and {} or nil,
    batch_size = reader.device == 'cpu' and BATCH or CARD_BATCH,
    measure = options.measure or function(_, _, fn, ...) return fn(...) end,
    decoded = 0, -- source frames read in the first pass
    length = nil, -- length of the source, once it is known
    batch = {}, taken = 0,
    glances = {}, -- by decoded frame, its part of the result of glance()
    pending = {}, -- decoded frames that are not settled yet
    ready = {}, -- items that can be returned
    shown = 0, missing = 0, found = 0,
    cuts = {}, -- frames at which a shot begins
  }, Source)
  if self.first > 0 then
    local ok, reason = pcall(reader.seek, reader, self.first)
    if not ok then
      reader:close()
      error(('%s: the start of %g s cannot be reached: %s'):format(options.video, self.first / 25, tostring(reason)), 0)
    end
  end
  return self
end

function Source:read(n, ahead)
  return self.measure('decode', 0, function() return self.reader:read(n, ahead) end)
end

--- Records the time of a decoded frame. Returns false if the frame is before the start or after the end, and so not
--- used.
function Source:begins(seconds)
  local times, n = self.times, self.decoded
  local at = seconds - (self.o.start or 0)
  if at < -FIT then
    self.first = self.first + 1
    return false
  end
  if at >= (self.o.duration or math.huge) - FIT then
    self.limit = n
    return false
  end
  times[n + 1] = math.max(at, n > 0 and times[n] + FIT or 0)
  return true
end

--- The duration of frame i, if the source's own rate is kept.
function Source:lasts(i)
  local times = self.times
  if times[i + 1] then return times[i + 1] - times[i] end
  return i > 1 and times[i] - times[i - 1] or 1 / 25
end

--- The presentation time of frame i in a pass (0 is the first); nil at 25 frames per second.
function Source:time_of(i, turn)
  local times, last = self.times, self.length
  if not times then return nil end
  if turn == 0 then return times[i] end
  local whole = times[last] + self:lasts(last) - times[1]
  local within = times[i] - times[1]
  if turn % 2 == 1 then within = whole - within - self:lasts(i) end
  return times[1] + turn * whole + within
end

--- Returns the next frame of the first pass, or nil at the end.
function Source:decode()
  if self.decoded >= self.limit then return nil end
  if self.taken >= #self.batch then
    -- The next batch is decoded while faces are found in this one.
    local n, left = self.batch_size, self.limit - self.decoded
    self.batch = self:read(math.min(n, left), math.max(0, math.min(n, left - n)))
    self.taken, self.seconds = 0, self.reader.last_seconds
    if #self.batch == 0 then return nil end
    self:glance()
  end
  self.taken = self.taken + 1
  local frame = self.batch[self.taken]
  self.batch[self.taken] = false
  if self.times and not self:begins(self.seconds[self.taken]) then
    frame:free()
    return self:decode()
  end
  self.decoded = self.decoded + 1
  return frame
end

--- Analyses all frames of a batch on a GPU together.
function Source:glance()
  local o, batch = self.o, self.batch
  self.glances = {}
  if self.reader.device == 'cpu' or o.points then return end
  local most = math.max(1, math.floor(GLANCE_BYTES / (3 * batch[1].height * batch[1].width)))
  self.measure('detect', 0, function()
    for first = 1, #batch, most do
      cr.scope(function()
        local some = {}
        for i = first, math.min(#batch, first + most - 1) do some[#some + 1] = batch[i]:rgb() end
        for k, glance in ipairs(o.people:glance(some) or {}) do self.glances[batch[first + k - 1]] = glance end
      end)
    end
  end)
  if o.pause then o.pause() end
end

-- Given points of a frame, in the form in which people.lua reports one person.
local function given(points)
  return { people = { points and { number = 1, points = points } }, picks = { points and { 1 } or {} }, cut = false }
end

--- Finds who is in frame i (rgb, if it is needed), and tells the cast. Returns whether a selected person is in it.
function Source:look(rgb, i, glance)
  local o = self.o
  local seen = o.points and given(o.points[self.first + i] or nil) or
    self.measure('detect', 1, function() return o.people:push(rgb, self.times and self.times[i], glance) end)
  local seconds = self.times and self.times[i] + (o.start or 0) or (self.first + i - 1) / 25
  local there = self.measure('align', 0, function() return o.cast:push(seen, seconds) end)
  if seen.cut then self.cuts[i] = true end
  if not there and o.no_face == 'error' then
    error(('%s: frame %d (at %.2f s) has no face'):format(o.video, self.first + i, seconds), 0)
  end
  return there
end

--- Releases the frames that are settled.
function Source:settle()
  while self.pending[1] and self.pending[1].index <= self.o.cast.settled do
    local waiting = table.remove(self.pending, 1)
    if waiting.there then self.found = self.found + 1 else self.missing = self.missing + 1 end
    self.ready[#self.ready + 1] = { frame = waiting.frame, index = waiting.index, seconds = self.times and self.times[waiting.index] }
  end
end

--- Returns the next item of the first pass; nil at the end of the video.
function Source:advance()
  while #self.ready == 0 do
    local frame = self:decode()
    if not frame then
      self.o.cast:flush()
      self:settle()
      break
    end
    local i = self.decoded
    local rgb = not self.o.points and frame:rgb()
    local there = self:look(rgb, i, self.glances[frame])
    if rgb then rgb:free() end
    -- The frame is aligned and pasted much later, and three windows of frames would occupy 100 MB of GPU memory.
    frame:leave_card()
    if self.o.pause then self.o.pause() end
    self.pending[#self.pending + 1] = { frame = frame, index = i, there = there }
    self:settle()
  end
  return table.remove(self.ready, 1)
end

--- Reads frames a..b of the source (from 1) by seeking.
function Source:fetch(a, b)
  self.measure('decode', 0, function() self.reader:seek(self.first + a - 1) end)
  local list = self:read(b - a + 1)
  if #list < b - a + 1 then
    error(('%s: frame %d could not be read again'):format(self.o.video, self.first + a + #list), 0)
  end
  return list
end

--- Fills `ready` with at most `wanted` frames of the repetition that begins at shown frame `self.shown`. It reads no
--- more than requested, so that no frames wait in memory beside the current window.
function Source:replay(wanted)
  local L = self.length
  local position = self.shown
  local turn, within = math.floor(position / L), position % L
  local sample = self.sample_bytes
  local n = math.max(1, math.min(L - within, math.floor(PIECE_BYTES / sample), wanted))
  local forward = turn % 2 == 0
  local a = forward and within + 1 or L - within - n + 1
  local list = self:fetch(a, a + n - 1)
  for k = 1, n do
    local i = forward and a + k - 1 or a + n - k
    local frame = list[i - a + 1]
    self.ready[#self.ready + 1] = {
      frame = frame, index = i, seconds = self:time_of(i, turn), turned = true,
    }
  end
end

--- Returns the next item in presentation order. With `once`, it returns nil after the last frame of the source
--- instead of reversing.
--- @param once boolean?
--- @param wanted integer? how many frames the caller will request in a row, including this one
--- @return FrameItem?
function Source:next(once, wanted)
  local item
  if not self.length then
    item = self:advance()
    if item then
      self.sample_bytes = item.frame.bytes
    else
      self.length = self.decoded
      if self.length == 0 then
        local start = self.times and self.o.start or self.first / 25
        error(start > 0 and ('%s has no frame after %g s'):format(self.o.video, start) or
          self.o.video .. ' has no frame that can be decoded', 0)
      end
    end
  end
  if self.length and not item then
    if once then return nil end
    if #self.ready == 0 then self:replay(wanted or 1) end
    item = table.remove(self.ready, 1)
  end
  self.shown = self.shown + 1
  local before = self.last or item.index
  item.cut = before ~= item.index and self.cuts[math.max(before, item.index)] or false
  self.last = item.index
  return item
end

--- Returns up to n items in presentation order.
--- @param n integer
--- @param once boolean?
--- @return FrameItem[]
function Source:take(n, once)
  local items = {}
  while #items < n do
    local item = self:next(once, n - #items)
    if not item then break end
    items[#items + 1] = item
  end
  return items
end

--- A sentence that names the selected people who were never seen, once the source is at its end; nil if there are
--- none.
--- @return string?
function Source:missed()
  local known, absent = self.o.people and self.o.people:known() or {}, self.o.cast:absent()
  if #known == 0 and self.found == 0 then
    return ('no face was found in any of the %d frames of %s'):format(self.decoded, self.o.video)
  end
  if #absent == 0 then return nil end
  return ('nobody in %s is %s: %s'):format(self.o.video, table.concat(absent, ' or '), people.describe(known, function(frame)
    return self.times and self.times[frame + 1] or frame / 25
  end))
end

function Source:close()
  for _, list in ipairs { self.batch, self.pending, self.ready } do
    for _, x in ipairs(list) do
      local frame = x and (x.frame or x)
      if frame then frame:free() end
    end
  end
  self.reader:close()
end

return frames
