--- The windows of a video with one or several voices, in order: their frames, aligned faces and speakers. This is the
--- input of a lip-sync job.
--
-- If several people are generated in a window, there is one clip for each of them over the same frames, one after
-- another. The last of these clips is marked, and only then the frames are finished. speaker.lua has what belongs to
-- one person alone.

local cr = require 'cr'
local arguments = require 'cr.arguments'
local align = require 'models.latentsync.align'
local casts = require 'models.latentsync.cast'
local choices = require 'models.latentsync.choice'
local finders = require 'models.latentsync.finder'
local frames = require 'models.latentsync.frames'
local film_part = require 'models.latentsync.part'
local people = require 'models.latentsync.people'
local settings = require 'models.latentsync.settings'
local speakers = require 'models.latentsync.speaker'
local voices = require 'models.latentsync.voice'

local M = {}

local CLOSE = 2e-3 -- seconds: Matroska rounds frame times to whole milliseconds

--- @class SpeakerItem: FrameItem a frame with one person's data
--- @field matrix number[]? six numbers, source pixels to crop; nil if the frame has no face
--- @field share number? weight of the generated mouth (1); 0 leaves the frame unchanged
--- @field made integer? index of the window's generated frame that it shows, if the video keeps its own rate

--- @class Clip one person's part of a window of a video
--- @field source Speaker? the person; nil for a window without people
--- @field n integer frames
--- @field items SpeakerItem[] one video frame for each
--- @field shown SpeakerItem[]? the video's own frames that show them, if it keeps its own rate; see their `made`
--- @field first integer index of its first frame in the output, from 1
--- @field window integer index of its window in the film, from 1
--- @field number integer? its number in its window, from 1 (1)
--- @field clips integer? the clips of its window (1)
--- @field last boolean? it is the last clip of its window
--- @field faces Tensor? u8 [F S S 3]: the aligned faces, on the model's device; nil if the window is not generated
--- @field pixels Tensor? f32 [F S S 3]: the same in [-1, 1], after condition() was called

--- @class Windows
--- @field total integer frames of the result; for a part of a film, of the whole film's
--- @field skipped integer frames before the part, which are not generated
--- @field stop integer frames of the result up to the end of the part: no window begins behind it
--- @field voices Voice[] the voices
--- @field cast Cast the selected people
--- @field source table the video's frames: models/latentsync/frames.lua
--- @field own_rate boolean the result keeps the video's own frames and times
--- @field silent {windows: integer, frames: integer} so far: windows with faces that were not generated, and frames in which no
---   selected person speaks
local Windows = {}
Windows.__index = Windows

--- @class WindowOptions settings of the stages 'find' and 'paste' (models/latentsync/settings.lua)
--- @field frames integer? frames per window (16)
--- @field seed integer? 1247
--- @field rng string? 'torch-cpu', 'torch-cuda' or 'philox' (the device's own torch kind)
--- @field points table? see models/latentsync/frames.lua; or a file of them
--- @field detector string? 'auto', 'insightface' or 'mediapipe': see models/latentsync/finder.lua
--- @field face string? whose mouth is generated (models/latentsync/choice.lua), or 'reference' (each frame's largest)
--- @field smooth boolean? smooth the points (default: on, except with given points or face = 'reference')
--- @field no_face string? 'keep', 'hold' or 'error'
--- @field cut_windows boolean? windows end at cuts
--- @field mask string? an image instead of the built-in mask
--- @field paste string? 'region' or 'reference'
--- @field match_colour boolean? match the colour of the generated region to its surroundings
--- @field start number? start in seconds
--- @field duration number? length in seconds
--- @field audio_overlap number? seconds that Whisper's segments overlap (2)
--- @field silence string? 'keep', 'close' or 'model': see models/latentsync/silence.lua
--- @field finder table? finds faces (models/latentsync/people.lua); default: that of `detector`
--- @field measure function? (stage, frames, fn, ...): times a stage
--- @field colours table? with several GPUs: the state of colour matching by person, kept for windows that are opened again
--- @field pause function? is called after each processed frame, so that other tasks can run
--- @field passed fun(clip: Clip)? is called with each clip before a part of a film, which is not generated

--- The number of frames in `seconds`, at 25 per second.
local function frames_of(seconds) return math.floor(seconds * 25 + 0.5) end

-- Finds who speaks when, for the choice `speaking`: by the video's own sound, or by the voice if it has none.
local function find_speakers(o, chosen, finder, video, paths)
  local turns
  for i, choice in ipairs(chosen) do
    if choice.text == 'speaking' then
      local sound = require 'cr.media'.probe(video).has_audio and video or paths[i]
      turns = turns or require 'models.latentsync.census'.of(video, {
        finder = finder, device = finder.device, sound = sound, start = o.start, duration = o.duration, measure = o.measure,
      }).turns
      choice:speak(turns)
    end
  end
end

--- Creates the tracker that finds people in the frames.
--- @param o table settings {points, face, detector, start, duration}, finder, measure
--- @param model LatentSync
--- @param chosen table[] choices (models/latentsync/choice.lua)
--- @param video string
--- @param paths string[] the sound of each choice, used if the video has none
--- @return table? a crowd (models/latentsync/people.lua); nil if points are given
function M.crowd(o, model, chosen, video, paths)
  if o.points then return nil end
  local reference = o.face == 'reference'
  local finder = o.finder or finders.load(o.detector, model.dir, { device = model.device, alone = reference })
  if reference then return people.reference(finder) end
  find_speakers(o, chosen, finder, video, paths)
  return people.open { finder = finder, choices = chosen }
end

-- The speaker of a part; its random sequence begins when the part does.
local function speaker_of(self, part)
  local speaker = self.speakers[part]
  if not speaker then
    speaker = speakers.new(self, part, self.voices[part.voice], self.o)
    self.speakers[part] = speaker
  end
  return speaker
end

-- Restricts the film to a part: sets the first frame to analyse, and the number of frames that are only analysed.
local function begin_part(self, part)
  if part.first % self.frames ~= 0 or part.first >= self.total then
    error(('part: no window of this film begins at frame %d'):format(part.first), 0)
  end
  self.stop = math.min(self.total, part.first + part.frames)
  if not part.near then return 0, 0 end
  self.shown, self.window = part.first, part.first / self.frames
  local lead = math.min(film_part.LEAD, part.first)
  return part.first - lead, lead
end

local next_window -- below

-- Passes over the windows before a part, which are not generated.
local function pass_over(self, part)
  local passed = self.o.passed or function() end
  if part.near then -- (each is assumed to contain a face)
    for _, speaker in pairs(self.speakers) do
      for _ = 1, part.first / self.frames do passed { source = speaker, n = self.frames, items = {} } end
    end
    return
  end
  while self.shown < part.first do
    next_window(self)
    for _, clip in ipairs(self.clips) do
      if M.has_face(clip) then passed(clip) end
    end
    local last = self.clips[#self.clips]
    for _, item in ipairs(last.shown or last.items) do item.frame:free() end
    self.clips = {}
  end
  self.silent = { windows = 0, frames = 0 }
end

--- Opens a video and its voices.
--- @param model LatentSync
--- @param video string
--- @param sounds string|table[] a sound for the person whom options.face selects, or a list of {face = choice, path = sound}
--- @param options WindowOptions?
--- @return Windows
function M.open(model, video, sounds, options)
  local o = settings.check('windows', options or {}, { 'find', 'paste' }, { 'finder', 'measure', 'pause', 'colours', 'passed' })
  o = settings.resolve(o, nil, model)
  local F = o.frames_per_window
  if F > model:max_frames() then
    error(('a window of %s frames cannot be used: this checkpoint allows 1 to %d'):format(tostring(F), model:max_frames()), 0)
  end
  local measure = o.measure or function(_, _, fn, ...) return fn(...) end
  local self = setmetatable({
    model = model, o = o, frames = F, measure = measure, shown = 0, window = 0, own_rate = o.fps == 'source',
    silent = { windows = 0, frames = 0 }, mask = align.mask(model.size, o.mask), keeps = o.silence == 'keep', speakers = {}, clips = {},
  }, Windows)
  local chosen, paths = {}, {}
  for i, sound in ipairs(type(sounds) == 'table' and sounds or { { face = o.face, path = sounds } }) do
    paths[i] = sound.path
    chosen[i] = (o.points or sound.face == 'reference') and { text = sound.face } or choices.new(sound.face)
  end
  self.voices = measure('audio', 0, voices.hear, model.whisper, paths, o)
  local limit, heard = o.duration and math.max(1, frames_of(o.duration)), 0
  for _, voice in ipairs(self.voices) do heard = math.max(heard, voice:frames(o.length)) end
  self.total = math.min(heard, limit or math.huge)
  self.stop = self.total
  local first, lead = 0, 0
  if o.part then first, lead = begin_part(self, o.part) end
  self.crowd = M.crowd(o, model, chosen, video, paths)
  self.cast = casts.new { video = video, choices = chosen, size = model.size, smooth = o.smooth, hold = o.no_face == 'hold',
    cut = o.cut_windows }
  self.source = frames.open {
    video = video, device = model.device, first = frames_of(o.start) + first, limit = limit and limit - first,
    own_rate = self.own_rate, start = o.start, duration = o.duration,
    points = o.points, people = self.crowd, cast = self.cast, no_face = o.no_face, measure = measure, pause = o.pause,
  }
  for _, part in ipairs(self.cast.parts) do speaker_of(self, part) end
  for _, item in ipairs(self.source:take(lead, true)) do item.frame:free() end
  if o.part then pass_over(self, o.part) end
  self.skipped = self.shown
  return self
end

-- The aligned faces of a window: u8 [F S S 3]. A frame without a face uses the matrix of the nearest frame that has
-- one, because the network needs a complete window; the frame itself stays unchanged.
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

-- The video's own frames that show the next n generated frames, each the nearest in time; `made` says which one.
local function own_frames(self, n)
  local list = {}
  while true do
    local item = self.ahead or self.source:next(false, self.frames)
    self.ahead = nil
    local nearest = math.min(math.floor(item.seconds * 25 + 0.5), self.total - 1)
    local cut = self.o.cut_windows and item.cut and nearest > self.shown
    if item.seconds >= self.total / 25 - CLOSE or nearest >= self.shown + n or cut then
      self.ahead, item.cut = item, false
      return list, cut and math.min(n, nearest - self.shown) or n
    end
    item.made = nearest - self.shown + 1
    list[#list + 1] = item
  end
end

-- The next frames, at most n; of one shot if windows end at cuts.
local function shot_of(self, n)
  if not self.o.cut_windows then return self.source:take(n) end
  local list = {}
  while #list < n do
    local item = self.ahead or self.source:next(false, n - #list)
    self.ahead = nil
    if item.cut and #list > 0 then
      self.ahead, item.cut = item, false
      break
    end
    list[#list + 1] = item
  end
  return list, #list
end

-- For each of the n generated frames of a window, the video frame that it is generated from: the nearest in time,
-- preferably one with a face among those that show it.
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

-- One person's clip of a window.
local function clip_of(self, speaker, items, n, first)
  local own = speaker:items(items, first)
  -- A window between two frames of a slow video has no items, because it is never visible.
  return { source = speaker, items = self.own_rate and pictures_of(own, first, n) or own, shown = self.own_rate and own or nil,
    n = n, first = first, window = self.window }
end

-- The clips of the next window: one for each person in it, or one without a person.
function next_window(self)
  local n, first, clips = math.min(self.frames, self.total - self.shown), self.shown + 1, {}
  local items, least = (self.own_rate and own_frames or shot_of)(self, n)
  n, self.window = least or n, self.window + 1
  if self.o.part and self.o.part.near and items[#items].turned then
    error('part: the video ends before the sound, so the rest would play backward: set duration to the length of the video, or use ' ..
      '--look all', 0)
  end
  local silent = {} -- for each frame, whether it is silent for everybody
  local nobody = { items = items, shown = self.own_rate and items or nil, n = n, first = first,
    window = self.window }
  for i, part in ipairs(self.cast.parts) do
    local clip = clip_of(self, speaker_of(self, part), items, n, first)
    if M.has_face(clip) then clips[#clips + 1] = clip end
    if i == 1 then nobody = clip end
  end
  if #clips == 0 then clips[1] = nobody end
  for number, clip in ipairs(clips) do
    clip.number, clip.clips = number, #clips
    for i, item in ipairs(clip.shown or clip.items) do silent[i] = silent[i] ~= false and item.share == 0 end
    if M.is_skipped(clip) then self.silent.windows = self.silent.windows + 1 end
  end
  for i = 1, #items do self.silent.frames = self.silent.frames + (silent[i] and 1 or 0) end
  clips[#clips].last = true
  self.clips, self.shown = clips, self.shown + n
end

--- Returns the next clip, or nil after the last. The caller aligns its faces in its own task, so that on a GPU the
--- frames belong to that task's stream; otherwise each frame would have to wait for the stream that generates
--- windows.
--- @return Clip?
function Windows:next()
  local model = self.model
  if #self.clips == 0 then
    if self.shown >= self.stop then return nil end
    next_window(self)
  end
  local clip = table.remove(self.clips, 1)
  if M.is_made(clip) then
    clip.faces = cr.keep(self.measure('align', clip.n, function()
      return cr.scope(function() return aligned_faces(clip.items, model.size):to(model.device) end)
    end))
  end
  for _, item in ipairs(clip.shown or clip.items) do item.frame:leave_card() end -- including those that are shown again
  model:wait() -- the faces are used on another stream of the GPU
  return clip
end

--- Encodes the audio of each voice's first frame in advance.
function Windows:listen()
  cr.scope(function()
    for _, voice in ipairs(self.voices) do voice.tokens:window(self.shown + 1, 1) end
  end)
end

--- The number of windows; if they end at cuts, an estimate.
--- @return integer
function Windows:count() return self.window + math.ceil((self.stop - self.shown) / self.frames) end

--- A clip's window index, from 1.
--- @param clip Clip
--- @return integer
function Windows:index(clip) return clip.window end -- luacheck: no self

--- Returns up to n frames of the video after the end of the sound; empty at its end.
--- @return FrameItem[]
function Windows:rest(n)
  local ahead = self.ahead
  if not ahead or ahead.turned then return self.source:take(n, true) end
  self.ahead = nil
  return { ahead }
end

--- A sentence that names the selected people who were never seen, at the end; nil if there are none.
--- @return string?
function Windows:missed() return self.source:missed() end

function Windows:close()
  for _, voice in ipairs(self.voices) do voice:free() end
  for _, speaker in pairs(self.speakers) do speaker:free() end
  if self.ahead then self.ahead.frame:free() end
  self.source:close()
  self.mask:free()
end

--- Whether any frame of a window has a face.
--- @param clip Clip
function M.has_face(clip)
  for _, item in ipairs(clip.items) do
    if item.matrix then return true end
  end
  return false
end

--- Whether anything of a window is generated: it has a frame with a face in which the person speaks or is close to
--- speech.
--- @param clip Clip
function M.is_made(clip)
  for _, item in ipairs(clip.items) do
    if item.matrix and item.share ~= 0 then return true end
  end
  return false
end

--- Whether a clip has faces but is not generated. Its random draws must still be made (model:skip), so that later
--- windows get their own numbers.
--- @param clip Clip
function M.is_skipped(clip) return M.has_face(clip) and not M.is_made(clip) end

local clip = arguments.kind('a window', arguments.table.test)
local sounds = arguments.either('a path or a list of voices', arguments.string, arguments.table)
arguments.methods(Windows, 'windows', {
  next = {}, listen = {}, missed = {}, count = {}, index = { clip }, rest = { arguments.positive }, close = {},
})
return arguments.guard('windows.', M, {
  open = { arguments.table, arguments.string, sounds, arguments.maybe(arguments.table) },
  crowd = { arguments.table, arguments.table, arguments.table, arguments.string, arguments.table }, has_face = { clip }, is_made = { clip },
  is_skipped = { clip },
})
