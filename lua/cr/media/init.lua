--- Video, sound and pictures: what FFmpeg's libraries read and write.
--
-- Decoding and encoding run on other threads; the functions that wait (read, seek, write, close)
-- let other tasks run meanwhile. Frames are numbered from 0, as times begin at 0. Nothing here holds
-- a whole file: a reader holds one read's frames, a writer the frames of two writes.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'
local loop = require 'cr.loop'
local memory = require 'cr.tensor.memory'

local C = base.C
local media = {}

-- The library beside libcrescent.so, loaded on first use, so that a machine without FFmpeg can do
-- everything else.
local function load_library()
  local path = os.getenv 'CR_MEDIA_LIBRARY'
  if not path then
    local info = ffi.new 'cr_dl_info'
    local known = ffi.C.dladdr(ffi.cast('void *', C.cr_version), info) ~= 0
    path = (known and ffi.string(info.file):match '^(.*)/[^/]*$' or '.') .. '/crescent_media.so'
  end
  local ok, loaded = pcall(ffi.load, path)
  if ok then return loaded end
  base.fail(('media: crescent_media.so cannot be loaded (%s): install FFmpeg\'s libraries with `make deps`')
    :format((tostring(loaded):gsub('%s+', ' '))))
end

local library
local lib = setmetatable({}, {
  __index = function(self, name)
    library = library or load_library()
    local value = library[name]
    rawset(self, name, value)
    return value
  end,
})

local function want_path(name, path)
  if type(path) ~= 'string' or path == '' then
    base.fail(name .. ': a file\'s path is needed, not ' .. type(path))
  end
  return path
end

local function want_count(name, n, least)
  if type(n) ~= 'number' or n ~= math.floor(n) or n < least then
    base.fail(('%s: a whole number from %d is needed, not %s'):format(name, least, tostring(n)))
  end
  return n
end

-- Waits for a job; its failure is raised as C's sentence.
local function await(job)
  if tonumber(job) < 0 then base.raise() end
  return loop.await(job)
end

-- ---- what a file holds -----------------------------------------------------------------------

local color = { 'color_space', 'color_range', 'color_primaries', 'color_transfer', 'aspect_num', 'aspect_den' }

--- What the headers of a video or sound file say.
---@param path string
---@return table {has_video, has_audio, width, height (as shown), rotation, fps, duration, frames (at 25 a
---second, estimated), sample_rate, channels, audio_duration, video_codec, audio_codec, format, color_*, aspect_*}
function media.probe(path)
  local c = ffi.new 'cr_media_info'
  if lib.cr_media_probe(want_path('probe', path), c) < 0 then base.raise() end
  local info = {
    has_video = c.has_video ~= 0, has_audio = c.has_audio ~= 0, width = c.width, height = c.height,
    rotation = c.rotation, fps = c.fps, duration = c.duration, frames = tonumber(c.frames),
    sample_rate = c.sample_rate, channels = c.channels, audio_duration = c.audio_duration,
    video_codec = ffi.string(c.video_codec), audio_codec = ffi.string(c.audio_codec),
    format = ffi.string(c.format),
  }
  for _, name in ipairs(color) do info[name] = c[name] end
  return info
end

--- The versions of FFmpeg's libraries, such as 'libavcodec 59.37.100, libavformat 59.27.100'.
---@return string
function media.version() return ffi.string(lib.cr_media_version()) end

-- ---- video -----------------------------------------------------------------------------------

--- @class VideoReader
--- @field path string
--- @field fps number 0: the file's own frames
--- @field device string where the frames that it gives lie
--- @field position integer number of the frame that the next read begins with
local Reader = {}
Reader.__index = Reader

local video_holder = ffi.typeof 'cr_video *[1]'
local yuv_type = ffi.typeof 'cr_yuv'

--- @class VideoFrame a decoded picture that waits: as it was decoded where that is known, which takes half the memory
--- of RGB or less, else in RGB; one for a card is kept in the main memory too
--- @field height integer
--- @field width integer
--- @field device string
--- @field bytes integer that it takes
local Frame = {}
Frame.__index = Frame

-- host: the same in the main memory, if the picture is on a card.
local function frame_of(picture, format, host)
  local self = setmetatable({
    picture = picture, format = format, host = host, device = picture.device, bytes = picture:numel(),
  }, Frame)
  self.height = format and format.height or picture:size(1)
  self.width = format and format.width or picture:size(2)
  return self
end

--- The frame in RGB: a tensor of its own, which goes with its scope or is to be freed.
---@return Tensor u8 [H W 3], on the frame's device, not to be written to
function Frame:rgb()
  local picture = self.picture
  if not picture then
    if not self.host then base.fail 'frame: it has been freed' end
    picture = memory.tagged('frames', self.host.to, self.host, self.device)
  end
  local rgb
  if self.format then
    rgb = tensor.new()
    base.check(C.cr_yuv_to_rgb(rgb.c, picture.c, self.format))
  else
    rgb = picture:view(self.height, self.width, 3)
  end
  if not self.picture then picture:free() end
  return rgb
end

--- Gives back what it holds of a card's memory; rgb() brings it there again, for that once.
function Frame:leave_card()
  if not self.host then return end
  if self.picture then self.picture:free() end
  self.picture = nil
end

--- Gives its memory back; tensors from rgb() stay. Twice is fine.
function Frame:free()
  if self.picture then self.picture:free() end
  if self.host then self.host:free() end
  self.picture, self.host = nil, nil
end

--- Opens a video for reading, frame by frame, at a constant rate (25), choosing frames as
--- `ffmpeg -r 25` does; turned upright, in RGB by the stream's own matrix and range.
---@param path string
---@param options table? {fps = 25 (0: the file's own frames), device = 'cpu', planes = frames are converted
--- by cr's own code where they can be, on a card always, wait = what is read are VideoFrames instead of tensors}
---@return VideoReader
function media.reader(path, options)
  options = options or {}
  local fps, device = options.fps or 25, options.device or 'cpu'
  tensor.device_code('reader', device)
  local out = video_holder()
  if lib.cr_video_open(out, want_path('reader', path), fps) < 0 then base.raise() end
  local planes = device ~= 'cpu' or options.planes or false
  base.check(lib.cr_video_planes(out[0], planes and 1 or 0))
  return setmetatable({
    path = path, fps = fps, device = device, planes = planes, wait = options.wait, position = 0,
    handle = ffi.gc(out[0], lib.cr_video_close), last_seconds = {},
  }, Reader)
end

local function open_handle(self, name)
  if not self.handle then base.fail(name .. ': ' .. self.path .. ' is closed') end
  return self.handle
end

-- Frame i of the last read, on the reader's device. To a card it goes up as it was decoded.
local function take(self, handle, i, seconds)
  local t, format = tensor.new(), nil
  if not self.planes then
    if lib.cr_video_take(handle, i, t.c, seconds) < 0 then base.raise() end
  else
    format = yuv_type()
    local planes = lib.cr_video_take_planes(handle, i, t.c, format, seconds)
    if planes < 0 then base.raise() end
    if planes == 0 then format = nil end
  end
  local there = memory.tagged('frames', t.to, t, self.device)
  local moved = not rawequal(there, t)
  if self.wait then return frame_of(tensor.keep(there), format, moved and tensor.keep(t) or nil) end
  if moved then t:free() end
  if not format then return there end
  local frame = frame_of(there, format)
  local rgb = frame:rgb()
  frame:free()
  return rgb
end

-- One job of at most 256 frames, or the one that an earlier read began.
local function read_some(self, n, frames)
  local begun = self.begun
  self.begun = nil
  local got = await(begun and begun.job or lib.cr_video_read_start(open_handle(self, 'read'), n))
  local handle = open_handle(self, 'read') -- another task may have closed it meanwhile
  local seconds = ffi.new 'double[1]'
  for i = 0, got - 1 do
    frames[#frames + 1] = take(self, handle, i, seconds)
    self.last_seconds[#self.last_seconds + 1] = seconds[0]
  end
  self.position = self.position + got
  return got
end

-- Begins what the next read will ask for, and says that it did.
local function begin(self, n)
  local job = tonumber(lib.cr_video_read_start(open_handle(self, 'read'), n))
  if job < 0 then base.raise() end
  self.begun = { job = job, n = n }
end

--- The next n frames; fewer only at the end, none after it. Their times in the source, in seconds,
--- are then in `last_seconds`.
---@param n integer? 1
---@param ahead integer? (0) of the frames after these, as many are decoded while the caller goes on; the next read
--- must ask for at least so many, at most 256
---@return Tensor[]|VideoFrame[] u8 [H W 3] each
function Reader:read(n, ahead)
  n = want_count('read', n or 1, 1)
  if self.begun and n < self.begun.n then
    base.fail(('read: %d frames were begun, so fewer cannot be read'):format(self.begun.n))
  end
  local frames, ended = {}, false
  self.last_seconds = {}
  while #frames < n and not ended do
    local part = self.begun and self.begun.n or math.min(256, n - #frames)
    ended = read_some(self, part, frames) < part
  end
  if ahead and ahead > 0 and not ended then begin(self, ahead) end
  return frames
end

--- Moves to frame `index`, so that the next read begins there: the same pictures as in a run from
--- the start.
---@param index integer from 0
function Reader:seek(index)
  want_count('seek', index, 0)
  if self.begun then
    local job = self.begun.job
    self.begun = nil
    await(job) -- its frames go with the next read
  end
  await(lib.cr_video_seek_start(open_handle(self, 'seek'), index))
  self.position = index
end

--- Iterates over frames `last` down to `first`, decoding forward in pieces that hold at most `bytes`
--- of pictures.
---@param first integer from 0
---@param last integer
---@param bytes integer? 128 MiB
---@return fun(): Tensor?, integer? frame, index
function Reader:backward(first, last, bytes)
  want_count('backward', first, 0)
  want_count('backward', last, 0)
  bytes = bytes or 128 * 2 ^ 20
  local piece, from, picture_bytes = {}, last + 1, nil
  return function()
    if #piece == 0 then
      if from <= first then return nil end
      local n = picture_bytes and math.max(1, math.floor(bytes / picture_bytes)) or 1
      local to = from - 1
      from = math.max(first, to - n + 1)
      self:seek(from)
      piece = self:read(to - from + 1)
      if #piece < to - from + 1 then
        base.fail(('%s: frame %d could not be read again'):format(self.path, from + #piece))
      end
      picture_bytes = piece[1]:numel()
    end
    local frame = table.remove(piece)
    return frame, from + #piece
  end
end

--- Closes the file. Twice is fine.
function Reader:close()
  local handle = self.handle
  self.handle = nil
  if handle then lib.cr_video_close(ffi.gc(handle, nil)) end
end

--- Iterates over a video's frames: `for frame, seconds in media.frames(path) do ... end`.
---@param path string
---@param options table? {fps = 25, first = 0, batch = 8 (frames decoded at once), device = 'cpu'}
---@return fun(): Tensor?, number?
function media.frames(path, options)
  options = options or {}
  local reader = media.reader(path, options)
  if options.first and options.first > 0 then reader:seek(options.first) end
  local batch, seconds, at = {}, {}, 0
  return function()
    at = at + 1
    if at > #batch then
      batch = reader:read(options.batch or 8)
      seconds, at = reader.last_seconds, 1
      if #batch == 0 then
        reader:close()
        return nil
      end
    end
    local frame = batch[at]
    batch[at] = false
    return frame, seconds[at]
  end
end

-- ---- sound -----------------------------------------------------------------------------------

--- @class AudioReader
--- @field path string
--- @field rate integer
--- @field channels integer
local Audio = {}
Audio.__index = Audio

local audio_holder = ffi.typeof 'cr_audio *[1]'

--- Opens the sound of a sound or video file, resampled and mixed as ffmpeg does.
---@param path string
---@param options table? {rate (the file's), channels (the file's), s16 = false (through 16-bit integers)}
---@return AudioReader
function media.audio(path, options)
  options = options or {}
  local out = audio_holder()
  if lib.cr_audio_open(out, want_path('audio', path), options.rate or 0, options.channels or 0,
      options.s16 and 1 or 0) < 0 then
    base.raise()
  end
  local handle = ffi.gc(out[0], lib.cr_audio_close)
  return setmetatable({
    path = path, handle = handle, rate = lib.cr_audio_rate(handle), channels = lib.cr_audio_channels(handle),
  }, Audio)
end

--- The next n samples (of each channel); fewer only at the end, none after it.
---@param n integer
---@return Tensor f32 [n], or [n channels] if there are several
function Audio:read(n)
  want_count('read', n, 1)
  await(lib.cr_audio_read_start(open_handle(self, 'read'), n))
  local t = tensor.new()
  if lib.cr_audio_take(open_handle(self, 'read'), t.c) < 0 then base.raise() end
  if self.channels > 1 then return t end
  local flat = t:view(t:size(1))
  t:free()
  return flat
end

--- Seconds after the file's start at which its sound begins (0 for most files; below 0 where it comes
--- first); what is read begins there. Known from the first read on.
---@return number
function Audio:start() return lib.cr_audio_start(open_handle(self, 'start')) end

--- Closes the file. Twice is fine.
function Audio:close()
  local handle = self.handle
  self.handle = nil
  if handle then lib.cr_audio_close(ffi.gc(handle, nil)) end
end

--- A whole sound at once; for short ones (options.seconds at most, 600).
---@param path string
---@param options table? as of media.audio
---@return Tensor f32 [n], or [n channels]
---@return integer rate
function media.load_audio(path, options)
  local reader = media.audio(path, options)
  local ok, result = pcall(function()
    local most = math.floor((options and options.seconds or 600) * reader.rate)
    local parts, count, step = {}, 0, 2 ^ 18
    while true do
      local part = reader:read(step)
      local n = part:size(1)
      count = count + n
      if count > most then
        error(('%s: the sound is longer than %g s: read it in pieces with media.audio'):format(path, most / reader.rate), 0)
      end
      if n > 0 or #parts == 0 then parts[#parts + 1] = part end
      if n < step then break end
    end
    if #parts == 1 then return parts[1] end
    local all = tensor.cat(parts, 1)
    for _, part in ipairs(parts) do part:free() end
    return all
  end)
  local rate = reader.rate
  reader:close()
  if not ok then error(result, 0) end
  return result, rate
end

-- ---- writing ---------------------------------------------------------------------------------

--- @class VideoWriter
--- @field path string
local Writer = {}
Writer.__index = Writer

local writer_holder = ffi.typeof 'cr_writer *[1]'

local function set_string(name, field, limit, value)
  if #value >= limit then base.fail(('writer: %s is longer than %d bytes'):format(name, limit - 1)) end
  ffi.copy(field, value)
end

local function open_writer(self, width, height)
  local o = self.options
  local c = ffi.new 'cr_writer_options'
  c.width, c.height = width, height
  c.fps, c.crf, c.lossless = o.fps or 25, o.crf or -1, o.lossless and 1 or 0
  c.color_space, c.color_range, c.color_primaries, c.color_transfer = 2, 0, 2, 2 -- unspecified
  c.aspect_num, c.aspect_den = 0, 1
  for _, name in ipairs(color) do
    if self.like then c[name] = self.like[name] end
  end
  set_string('codec', c.codec, 32, o.codec or '')
  set_string('audio', c.audio_path, 4096, o.audio or '')
  set_string('comment', c.comment, 500, o.comment or '')
  c.audio_start, c.audio_end = o.audio_start or 0, o.audio_end or 0
  local out = writer_holder()
  if lib.cr_writer_open(out, self.path, c) < 0 then base.raise() end
  self.handle, self.width, self.height = ffi.gc(out[0], lib.cr_writer_close), width, height
end

--- Opens a video file for writing: H.264 in .mp4, .mov or .mkv, VP9 in .webm, or `codec`; with
--- `lossless` FFV1 in RGB (.mkv). The file has a temporary name until close() ends it.
---
--- With `like` the frames' size and the colour tags are those of that video, and the file is made
--- at once; without, the first frames written tell the size.
---@param path string
---@param options table? {like = a video's path, width, height, fps = 25, codec, crf = 18, lossless, audio = a
---file whose sound goes along, audio_start = seconds of it to leave out, audio_end = seconds of it at
---which it stops, comment}
---@return VideoWriter
function media.writer(path, options)
  options = options or {}
  local self = setmetatable({ path = want_path('writer', path), options = options, jobs = {} }, Writer)
  if options.like then
    self.like = media.probe(options.like)
    if not self.like.has_video then base.fail(options.like .. ' has no video stream') end
  end
  local width = options.width or self.like and self.like.width
  local height = options.height or self.like and self.like.height
  if width and height then open_writer(self, width, height) end
  return self
end

-- At most one write is on its way, so that memory is bounded and a failure is heard of soon.
local function settle(jobs)
  for _, job in ipairs(jobs) do await(job) end
end

local function opened(self, t)
  if self.handle then return self.handle end
  if self.ended then base.fail('write: ' .. self.path .. ' is closed') end
  local rank = t:dim()
  if rank < 3 then base.fail('write: frames are u8 [F H W 3] or [H W 3], not of rank ' .. rank) end
  open_writer(self, t:size(rank - 1), t:size(rank - 2))
  return self.handle
end

--- A finished frame in the main memory, as write takes it. One on a card comes down in the encoder's
--- own planes where they are known, half as many bytes, and the encoder need not convert it: its file
--- has the same bytes.
---@param frame Tensor u8 [H W 3]
---@return Tensor a frame on a CPU as it is
function Writer:pack(frame)
  local t = tensor.want_tensor('pack', frame)
  if t.device == 'cpu' then return t end
  local format = yuv_type()
  if t:dim() ~= 3 or lib.cr_writer_planes(opened(self, t), format) == 0 then return t:to 'cpu' end
  local planes = tensor.new()
  base.check(C.cr_rgb_to_yuv(planes.c, t.c, format))
  local host = planes:to 'cpu'
  planes:free()
  return host
end

local function start_write(self, frames)
  local t = tensor.want_tensor('write', frames)
  local handle = opened(self, t)
  local host = self:pack(t)
  local job = lib.cr_writer_write_start(handle, host.c)
  if not rawequal(host, t) then host:free() end
  if tonumber(job) < 0 then base.raise() end
  return job
end

--- Queues frames, which are encoded while the caller goes on; waits for those of the write before.
--- They must not be changed afterwards (freeing them is fine). Those on a card are fetched from there.
---@param frames Tensor|Tensor[] u8 [F H W 3] or [H W 3], or an array of them; or what pack gave
function Writer:write(frames)
  local list = type(frames) == 'table' and frames or { tensor.want_tensor('write', frames) }
  local before, jobs = self.jobs, {}
  self.jobs = jobs
  for _, frame in ipairs(list) do jobs[#jobs + 1] = start_write(self, frame) end
  settle(before)
end

--- Encodes what is left, cuts the sound or pads it with silence to the pictures' length, and gives
--- the file its name. After close() or abort() nothing happens.
function Writer:close()
  if self.ended then return end
  if not self.handle then
    self.ended = true
    base.fail(self.path .. ': no frame was written')
  end
  local ok, err = pcall(function()
    settle(self.jobs)
    await(lib.cr_writer_finish_start(self.handle))
  end)
  self:abort()
  if not ok then error(err, 0) end
end

--- Stops, and deletes the unfinished file. After close() nothing happens.
function Writer:abort()
  self.ended = true
  local handle = self.handle
  self.handle, self.jobs = nil, {}
  if handle then lib.cr_writer_close(ffi.gc(handle, nil)) end
end

-- ---- pictures --------------------------------------------------------------------------------

--- Reads a picture file (PNG, JPEG, ...).
---@param path string
---@return Tensor u8 [H W 3]
function media.read_picture(path)
  local t = tensor.new()
  if lib.cr_picture_read(t.c, want_path('read_picture', path)) < 0 then base.raise() end
  return t
end

--- Writes a PNG.
---@param path string
---@param picture Tensor u8 [H W 3] or [H W 1]
function media.write_picture(path, picture)
  if lib.cr_picture_write(tensor.want_tensor('write_picture', picture).c, want_path('write_picture', path)) < 0 then
    base.raise()
  end
end

return media
