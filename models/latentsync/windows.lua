--- The windows of a video and a sound, in order: their frames, the aligned faces, the audio tokens, the random
--- numbers. What a lip-sync job takes in.
--
-- Drawn first is the noise, then for each window what model:condition draws: see models/latentsync/model.lua.

local cr = require 'cr'
local arguments = require 'cr.arguments'
local align = require 'models.latentsync.align'
local audio = require 'models.latentsync.audio'
local choice = require 'models.latentsync.choice'
local colour = require 'models.latentsync.colour'
local finders = require 'models.latentsync.finder'
local frames = require 'models.latentsync.frames'
local people = require 'models.latentsync.people'
local settings = require 'models.latentsync.settings'
local silences = require 'models.latentsync.silence'

local M = {}

local CLOSE = 2e-3 -- seconds: times of frames in Matroska are whole milliseconds

--- A sound as models/latentsync/audio.lua wants it: a function that opens it anew, cut to a piece.
local function sound(path, start, duration)
  local media = require 'cr.media'
  local RATE = audio.rate
  return function()
    local reader = media.audio(path, { rate = RATE, channels = 1, s16 = true })
    local skip = math.floor((start or 0) * RATE + 0.5)
    local left = duration and math.floor(duration * RATE + 0.5) or math.huge
    local given = 0
    return function()
      while left > 0 do
        local piece = reader:read(RATE * 4)
        local n = piece and piece:size(1) or 0
        if n == 0 then break end
        if skip >= n then
          skip = skip - n
          piece:free()
        else
          local first, count = skip + 1, math.min(n - skip, left)
          skip, left, given = 0, left - count, given + count
          return piece:narrow(1, first, count):contiguous()
        end
      end
      reader:close()
      if given == 0 and start and start > 0 then error(('%s ends before %g s'):format(path, start), 0) end
      return nil
    end
  end
end

--- @class Clip one window of a video
--- @field n integer frames
--- @field items FrameItem[] a frame of the video for each
--- @field shown FrameItem[]? the video's own frames in which they are shown, if it keeps its rate; their `made` tells which
--- @field first integer number of its first frame in the output, from 1
--- @field faces Tensor? u8 [F S S 3]: the aligned faces, on the model's device; nil if the window is not made
--- @field pixels Tensor? f32 [F S S 3]: the same in [-1, 1], once condition() has been asked

--- @class Windows
--- @field total integer frames of the result
--- @field tokens table the voice, heard
--- @field noise Tensor [1 1 h w 4]
--- @field source table the video's frames: models/latentsync/frames.lua
--- @field colour Colour? matches the colour of what is made
--- @field own_rate boolean the result has the video's own frames
--- @field silence Silence? where nobody speaks, if that was asked for
--- @field silent {windows: integer, frames: integer} so far: windows that have faces and are not made, frames of a pause
local Windows = {}
Windows.__index = Windows

--- @class WindowOptions settings of the stages 'find' and 'paste' (models/latentsync/settings.lua)
--- @field frames integer? frames a window (16)
--- @field seed integer? 1247
--- @field rng string? 'torch-cpu', 'torch-cuda' or 'philox' (the device's own torch kind)
--- @field points table? see models/latentsync/frames.lua; or a file of them
--- @field detector string? 'auto', 'insightface' or 'mediapipe': see models/latentsync/finder.lua
--- @field face string? whose mouth is made (models/latentsync/choice.lua), or 'reference' (each frame's largest)
--- @field smooth boolean? steady the points (on for the detector's, but for face = 'reference')
--- @field no_face string? 'keep', 'hold' or 'error'
--- @field mask string? a picture in place of the fixed mask
--- @field paste string? 'region' or 'reference'
--- @field match_colour boolean? shift the new region to the colour around it
--- @field start number? seconds to leave out
--- @field duration number? seconds to do
--- @field audio_overlap number? seconds that Whisper's segments overlap (2)
--- @field silence string? 'keep', 'close' or 'model': see models/latentsync/silence.lua
--- @field finder table? what detects and places faces (models/latentsync/people.lua); by default the detector's
--- @field measure function? (stage, frames, fn, ...): times a stage
--- @field pause function? called after each frame is looked at, so that others get their turn

--- Frames of a piece of so many seconds, at 25 a second.
local function frames_of(seconds) return math.floor(seconds * 25 + 0.5) end

-- Who looks for people in the frames.
local function crowd_of(o, model)
  local reference = o.face == 'reference'
  local finder = o.finder or finders.load(o.detector, model.dir, { device = model.device, alone = reference })
  if reference then return people.reference(finder) end
  return people.open { finder = finder, choices = { choice.new(o.face) } }
end

--- Opens a video and a sound.
--- @param model LatentSync
--- @param video string
--- @param sound_path string
--- @param options WindowOptions?
--- @return Windows
function M.open(model, video, sound_path, options)
  local o = settings.check('windows', options or {}, { 'find', 'paste' }, { 'finder', 'measure', 'pause' })
  o = settings.resolve(o, nil, model)
  local F = o.frames_per_window
  if F > model:max_frames() then
    error(('a window of %s frames cannot be used: this checkpoint takes 1 to %d'):format(tostring(F), model:max_frames()), 0)
  end
  local measure = o.measure or function(_, _, fn, ...) return fn(...) end
  local self = setmetatable({
    model = model, frames = F, measure = measure, shown = 0, paste = o.paste, own_rate = o.fps == 'source',
    silent = { windows = 0, frames = 0 },
    generator = cr.generator(o.seed, o.rng), mask = align.mask(model.size, o.mask),
  }, Windows)
  self.colour = o.match_colour and colour.new(self.mask, model.device) or nil
  self.tokens = measure('audio', 0, function()
    local ok, result = pcall(function()
      local voice = sound(sound_path, o.start, o.duration)
      if o.silence ~= 'model' then self.silence = silences.find(voice) end
      if o.silence == 'close' then voice = self.silence:muted(voice) end
      return audio.tokens(model.whisper, voice, { overlap = o.audio_overlap })
    end)
    if not ok then error((tostring(result):gsub('^audio: ', sound_path .. ': ')), 0) end
    return result
  end)
  local limit = o.duration and math.max(1, frames_of(o.duration))
  local heard = self.tokens:count()
  -- The reference makes two frames more than the sound lasts, which shows its last pictures backward.
  if o.length == 'sound' then heard = math.min(heard, math.max(1, math.ceil(25 * self.tokens.samples / audio.rate - 1e-6))) end
  self.total = math.min(heard, limit or math.huge)
  self.source = frames.open {
    video = video, size = model.size, device = model.device, first = frames_of(o.start), limit = limit,
    own_rate = self.own_rate, start = o.start, duration = o.duration,
    points = o.points, people = o.points == nil and crowd_of(o, model) or nil,
    smooth = o.smooth, no_face = o.no_face, measure = measure, pause = o.pause,
  }
  self.keeps = o.silence == 'keep'
  self.noise = model:draw(1, self.generator):unsqueeze(1)
  return self
end

-- The aligned faces of a window: u8 [F S S 3]. A frame without a face lends the position of the nearest frame
-- that has one: the network wants a whole window, the frame itself stays untouched.
local function aligned_faces(items, size)
  local parts = {}
  for i, item in ipairs(items) do
    local matrix = item.matrix
    for distance = 1, #items do
      if matrix then break end
      local before, after = items[i - distance], items[i + distance]
      matrix = before and before.matrix or after and after.matrix
    end
    parts[i] = cr.scope(function() return (align.warp(item.frame:rgb(), matrix, size)) end)
  end
  return cr.stack(parts, 1)
end

-- The video's own frames whose nearest of the next n made ones, by time, are these; `made` of each says which.
local function own_frames(self, n)
  local list = {}
  while true do
    local item = self.ahead or self.source:next(false, self.frames)
    self.ahead = nil
    local nearest = math.min(math.floor(item.seconds * 25 + 0.5), self.total - 1)
    if item.seconds >= self.total / 25 - CLOSE or nearest >= self.shown + n then
      self.ahead = item
      return list
    end
    item.made = nearest - self.shown + 1
    list[#list + 1] = item
  end
end

-- Which of the frames in which a window is shown each of its n made ones is made from: the nearest in time, of those
-- in which it is shown itself one with a face.
local function pictures_of(shown, first, n)
  local items = {}
  for i = 1, n do
    local least = math.huge
    for _, item in ipairs(shown) do
      local distance = math.abs(item.seconds - (first + i - 2) / 25)
      if item.made == i and item.matrix then distance = distance - 1 end
      if distance < least then least, items[i] = distance, item end
    end
  end
  return items
end

--- The next window, or nil after the last. Its faces are aligned by whoever asks, so that on a card the frames
--- stay with that task's stream: another one, at work on a window, would have to be waited for at each of them.
--- @return Clip?
function Windows:next()
  if self.shown >= self.total then return nil end
  local model = self.model
  local n, first = math.min(self.frames, self.total - self.shown), self.shown + 1
  local shown = self.own_rate and own_frames(self, n) or nil
  -- A window that falls between two frames of a slow video has no items: nobody sees it.
  local items = shown and pictures_of(shown, first, n) or self.source:take(n)
  local clip = { source = self, items = items, shown = shown, n = n, first = first }
  for i, item in ipairs(shown or items) do
    item.share = self.keeps and self.silence:share(self.shown + (item.made or i)) or nil
    if item.share == 0 then self.silent.frames = self.silent.frames + 1 end
  end
  if M.is_skipped(clip) then self.silent.windows = self.silent.windows + 1 end
  if M.is_made(clip) then
    clip.faces = cr.keep(self.measure('align', clip.n, function()
      return cr.scope(function() return aligned_faces(items, model.size):to(model.device) end)
    end))
  end
  for _, item in ipairs(shown or items) do item.frame:leave_card() end -- those that are shown again, too
  model:wait() -- the faces go on to another stream of the card
  self.shown = self.shown + n
  return clip
end

--- How many windows there are in all.
--- @return integer
function Windows:count() return math.ceil(self.total / self.frames) end

--- Which window a clip is, from 1.
--- @param clip Clip
--- @return integer
function Windows:index(clip) return math.ceil(clip.first / self.frames) end

--- Frames of the video after the sound has ended, n at most; empty at its end.
--- @return FrameItem[]
function Windows:rest(n)
  local ahead = self.ahead
  if not ahead or ahead.turned then return self.source:take(n, true) end
  self.ahead = nil
  return { ahead }
end

function Windows:close()
  self.tokens:free()
  if self.ahead then self.ahead.frame:free() end
  self.source:close()
  self.mask:free()
  self.noise:free()
  if self.colour then self.colour:free() end
end

--- Whether any frame of a window has a face.
--- @param clip Clip
function M.has_face(clip)
  for _, item in ipairs(clip.items) do
    if item.matrix then return true end
  end
  return false
end

--- Whether anything of a window is made anew: a frame that has a face and is not left as it is where nobody speaks.
--- @param clip Clip
function M.is_made(clip)
  for _, item in ipairs(clip.items) do
    if item.matrix and item.share ~= 0 then return true end
  end
  return false
end

--- Whether a window has faces and is not made all the same: its random draws are (model:skip), so that the windows
--- behind it have their own.
--- @param clip Clip
function M.is_skipped(clip) return M.has_face(clip) and not M.is_made(clip) end

local clip = arguments.kind('a window', arguments.table.test)
arguments.methods(Windows, 'windows', { next = {}, count = {}, index = { clip }, rest = { arguments.positive }, close = {} })
return arguments.guard('windows.', M, {
  open = { arguments.table, arguments.string, arguments.string, arguments.maybe(arguments.table) }, has_face = { clip },
  is_made = { clip }, is_skipped = { clip },
})
