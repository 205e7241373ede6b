--- The frames of a video in the order in which they are shown, each with the matrix that aligns its
--- face: forward once, and then, if the sound is longer, backward and forward in turn.
--
-- Frames wait as they were decoded, and become RGB where one is looked at. Invariants: at most a batch
-- of frames is held, whatever the length of the video; a matrix is computed once per source frame, in
-- source order, and looked up when the frame is shown again; the frame at which the direction turns is
-- shown twice.

local ffi = require 'ffi'
local media = require 'cr.media'
local align = require 'models.latentsync.align'
local people = require 'models.latentsync.people'

local frames = {}

local BATCH = 16                 -- frames decoded at once
local CARD_BATCH = 8             -- the same where they go to a card, whose memory is dear
local PIECE_BYTES = 96 * 2 ^ 20  -- pictures held at most when playing backward
local HOLD = 12                  -- frames for which a lost face's last position is reused
local FIT = 1e-6                 -- seconds by which times may be off

--- @class FrameItem
--- @field frame VideoFrame on the device that was asked for; frame:rgb() is u8 [H W 3], frame:whole() has all its bits
--- @field index integer which frame of the source, from 1
--- @field matrix number[]? six numbers, source pixels to crop; nil if the frame has no face
--- @field seconds number? when it is shown, if the source keeps its own rate
--- @field turned boolean? shown again, backward or forward
--- @field share number? how much of the new mouth it gets (1); 0: it stays as it is

local Source = {}
Source.__index = Source

--- Six doubles per source frame and whether they are valid, in flat memory: an hour of video has
--- 90000 of them.
local Matrices = {}
Matrices.__index = Matrices

local function new_matrices()
  return setmetatable({ capacity = 1024, data = ffi.new('double[?]', 1024 * 7) }, Matrices)
end

function Matrices:set(i, m)
  if i > self.capacity then
    local capacity = self.capacity * 2
    local data = ffi.new('double[?]', capacity * 7)
    ffi.copy(data, self.data, self.capacity * 7 * 8)
    self.capacity, self.data = capacity, data
  end
  local row = self.data + (i - 1) * 7
  row[6] = m and 1 or 0
  for k = 1, 6 do row[k - 1] = m and m[k] or 0 end
end

function Matrices:get(i)
  local row = self.data + (i - 1) * 7
  if row[6] == 0 then return nil end
  local m = {}
  for k = 1, 6 do m[k] = row[k - 1] end
  return m
end

--- @class FrameOptions
--- @field video string path
--- @field size integer the model's picture size
--- @field device string? where the frames go once decoded ('cpu')
--- @field first integer? frame of the source (from 0, at 25 a second) at which to begin
--- @field limit integer? frames of the source to use at most
--- @field own_rate boolean? all of the source's own frames, with their times, instead of 25 a second
--- @field start number? seconds at which to begin, and
--- @field duration number? to use at most, in place of `first` and `limit`, at the source's own rate
--- @field points table? points[i] = {{x, y} x 3} or nil, of source frame i: no detector is used
--- @field people table? a crowd (models/latentsync/people.lua) whose first choice is made
--- @field smooth boolean steady the points
--- @field no_face string 'keep', 'hold' or 'error'
--- @field reset_at_cuts boolean? forget the alignment's drift correction at scene cuts
--- @field pause fun()? called after each frame's work, so that others get their turn
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
    aligner = align.new { size = options.size }, matrices = new_matrices(),
    smoother = options.smooth and align.smoother() or nil,
    decoded = 0,         -- source frames read in the first pass
    length = nil,        -- of the source, once known
    batch = {}, taken = 0,
    pending = {},        -- decoded, waiting for the smoother
    ready = {},          -- items to give out
    shown = 0, missing = 0, found = 0, since_face = math.huge,
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

--- Notes the time of a frame that was decoded. False: it is not used, since it lies before the start or after the end.
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

--- How long frame i of a source with its own rate is shown.
function Source:lasts(i)
  local times = self.times
  if times[i + 1] then return times[i + 1] - times[i] end
  return i > 1 and times[i] - times[i - 1] or 1 / 25
end

--- When frame i is shown in a turn (0: the first pass); nil at 25 frames a second.
function Source:time_of(i, turn)
  local times, last = self.times, self.length
  if not times then return nil end
  if turn == 0 then return times[i] end
  local whole = times[last] + self:lasts(last) - times[1]
  local within = times[i] - times[1]
  if turn % 2 == 1 then within = whole - within - self:lasts(i) end
  return times[1] + turn * whole + within
end

--- The next frame of the first pass, or nil at the end.
function Source:decode()
  if self.decoded >= self.limit then return nil end
  if self.taken >= #self.batch then
    -- The batch after it is decoded while faces are found in this one.
    local n, left = self.batch_size, self.limit - self.decoded
    self.batch = self:read(math.min(n, left), math.max(0, math.min(n, left - n)))
    self.taken, self.seconds = 0, self.reader.last_seconds
    if #self.batch == 0 then return nil end
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

--- Points of a source frame (its RGB, if it is looked at), or nil; and whether those of the frame before are of another
--- shot or of another person.
function Source:points_of(rgb, i)
  local o = self.o
  if o.points then return o.points[self.first + i] or nil, false end
  return self.measure('detect', 1, function()
    local seen = o.people:push(rgb)
    local number, person = seen.picks[1][1], nil
    for _, p in ipairs(seen.people) do
      if p.number == number then person = p end
    end
    local other = number and self.made and number ~= self.made
    self.made = number or self.made
    return person and person.points, seen.cut or other or false
  end)
end

--- Gives a frame its matrix and puts it into `ready`.
function Source:settle(frame, i, points)
  local matrix = self.measure('align', 0, function()
    if points then
      self.since_face, self.found = 0, self.found + 1
      self.last = self.aligner:matrix(points)
      return self.last
    end
    self.missing = self.missing + 1
    self.since_face = self.since_face + 1
    if self.o.no_face == 'error' then
      error(('%s: frame %d (at %.2f s) has no face'):format(self.o.video, self.first + i,
        self.times and self.times[i] + (self.o.start or 0) or (self.first + i - 1) / 25), 0)
    end
    if self.o.no_face == 'hold' and self.since_face <= HOLD then return self.last end
  end)
  self.matrices:set(i, matrix)
  self.ready[#self.ready + 1] = { frame = frame, index = i, matrix = matrix, seconds = self.times and self.times[i] }
end

--- Hands on the frame whose points the smoother gave (false: it has none).
function Source:settle_first(points)
  local waiting = table.remove(self.pending, 1)
  self:settle(waiting.frame, waiting.index, points or nil)
end

--- The next item of the first pass; nil when the video is at its end.
function Source:advance()
  while #self.ready == 0 do
    local frame = self:decode()
    if not frame then
      if self.smoother then
        for _, points in ipairs(self.smoother:flush()) do self:settle_first(points) end
      end
      break
    end
    local i = self.decoded
    local rgb = not self.o.points and frame:rgb()
    local points, cut = self:points_of(rgb, i)
    if rgb then rgb:free() end
    -- It is long until it is aligned and pasted, and three windows would fill a tenth of a gigabyte.
    frame:leave_card()
    if self.o.pause then self.o.pause() end
    if cut and self.o.reset_at_cuts then self.aligner:reset() end
    if self.smoother then
      self.pending[#self.pending + 1] = { frame = frame, index = i }
      local steadied = self.smoother:push(points, cut)
      if steadied ~= nil then self:settle_first(steadied) end
    else
      self:settle(frame, i, points)
    end
  end
  return table.remove(self.ready, 1)
end

--- Frames a..b of the source (from 1) by seeking.
function Source:fetch(a, b)
  self.measure('decode', 0, function() self.reader:seek(self.first + a - 1) end)
  local list = self:read(b - a + 1)
  if #list < b - a + 1 then
    error(('%s: frame %d could not be read again'):format(self.o.video, self.first + a + #list), 0)
  end
  return list
end

--- Fills `ready` with at most `wanted` frames of the repetition that begins at shown frame
--- `self.shown`: not more than are asked for, so that none wait beside the window that is made.
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
      frame = frame, index = i, matrix = self.matrices:get(i), seconds = self:time_of(i, turn), turned = true,
    }
  end
end

--- The next item in the order of showing; with `once`, nil after the last frame of the source
--- instead of turning round.
--- @param once boolean?
--- @param wanted integer? how many frames will be asked for in a row, this one included
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
  return item
end

--- Up to n items in the order of showing.
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

--- Why nothing is made, once the source is at its end.
function Source:nobody()
  local known = self.o.people and self.o.people:known() or {}
  if #known == 0 then return ('no face was found in any of the %d frames of %s'):format(self.decoded, self.o.video) end
  return ('nobody in %s is who was chosen: %s'):format(self.o.video, people.describe(known, function(frame)
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
