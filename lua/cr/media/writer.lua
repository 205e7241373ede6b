--- Writes video files. Frames are encoded while the caller continues.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local errors = require 'cr.errors'
local tensor = require 'cr.tensor'
local deep = require 'cr.media.deep'
local library = require 'cr.media.library'
local probe = require 'cr.media.probe'

local lib = library.lib
local C, yuv_type = base.C, ffi.typeof 'cr_yuv'
local M = {}

--- @class VideoWriter
--- @field path string
--- @field handle ffi.cdata* the cr_writer
--- @field options table as they were given
--- @field like table? the result of cr.media.probe for the video given as `like`
local Writer = {}
Writer.__index = Writer

local function set_string(name, field, limit, value)
  if #value >= limit then base.fail(('writer: %s is longer than %d bytes'):format(name, limit - 1)) end
  ffi.copy(field, value)
end

-- Writers with an unfinished file, the number of writers opened, and the failure of a writer that was collected as garbage.
local open_writers = setmetatable({}, { __mode = 'k' })
local opened_count, lost = 0, nil

local function forgotten(note)
  io.stderr:write(('crescent: %s: the writer was never closed, so the file is finished now, with %d frames: call close()\n')
    :format(note.path, note.frames))
end

-- Finalizes a writer that became garbage: its film is finished, unless an error has ended the script or the command
-- at the prompt since the writer was last used. A finalizer cannot wait for other tasks.
local function finalizer(note)
  return function(handle)
    if note.frames == 0 or note.failed or note.errors ~= errors.uncaught or C.cr_interrupted() ~= 0 then
      return lib.cr_writer_close(handle)
    end
    forgotten(note)
    if lib.cr_writer_end(handle) < 0 then
      lost = ffi.string(C.cr_last_error())
      io.stderr:write('crescent: ', lost, '\n')
    end
  end
end

--- Finishes the films of writers that were never closed, when a script ends without an error.
function M.finish_open()
  local list = {}
  for writer in pairs(open_writers) do list[#list + 1] = writer end
  table.sort(list, function(a, b) return a.number < b.number end)
  for _, writer in ipairs(list) do
    if writer.note.frames > 0 and not writer.note.failed then
      forgotten(writer.note)
      writer:close()
    else
      writer:abort()
    end
  end
  collectgarbage()
  if lost then errors.fail(lost) end
end

local function close_handle(self)
  local handle = self.handle
  self.handle, open_writers[self] = nil, nil
  if handle then lib.cr_writer_close(ffi.gc(handle, nil)) end
end

-- Returns the files whose sound is added.
local function sounds_of(o) return type(o.audio) == 'table' and o.audio or { o.audio } end

local function open_writer(self, width, height)
  local o = self.options
  local c = ffi.new 'cr_writer_options'
  c.width, c.height = width, height
  c.fps, c.crf, c.lossless = o.fps or 25, o.crf or -1, o.lossless and 1 or 0
  c.color_space, c.color_range, c.color_primaries, c.color_transfer = 2, 0, 2, 2 -- unspecified
  c.aspect_num, c.aspect_den = 0, 1
  if self.like then
    for _, name in ipairs(probe.tags) do c[name] = self.like[name] end
    c.bits, c.hdr = self.like.bits, self.like.hdr
    ffi.copy(c.source_pix_fmt, self.like.pix_fmt)
  end
  if o.deep and not self.like then c.bits = 10 end
  c.deep = o.deep and c.bits > 8 and 1 or 0
  c.timed = o.timed and 1 or 0
  c.live = o.live and 1 or 0
  set_string('container', c.container, 32, o.container or '')
  c.sound_rate, c.sound_channels = o.sound_rate or 0, o.sound_channels or 1
  set_string('pix_fmt', c.pix_fmt, 32, o.pix_fmt or '')
  set_string('codec', c.codec, 32, o.codec or '')
  local sounds = sounds_of(o)
  local names = ffi.new('const char *[?]', #sounds + 1, sounds)
  c.audio_paths, c.audio_count, c.audio_gain = names, #sounds, o.audio_gain or 1
  set_string('comment', c.comment, 500, o.comment or '')
  c.audio_start, c.audio_end = o.audio_start or 0, o.audio_end or 0
  local note = { path = self.path, frames = 0, errors = errors.uncaught }
  self.handle = library.open('cr_writer', finalizer(note), self.path, c)
  if self.like and self.like.alpha then
    library.say(('%s: the transparency of the video (%s) is lost'):format(self.path, self.like.pix_fmt))
  end
  self.note, self.width, self.height = note, width, height
  opened_count = opened_count + 1
  self.number, open_writers[self] = opened_count, true
end

--- Opens a video file for writing: H.264 in .mp4, .mov or .mkv, VP9 in .webm, or `codec`; with `lossless` FFV1 in RGB
--- (.mkv). The file has a temporary name until close() finishes it.
---
--- With `like`, the colour tags and the bit depth are those of that video, and the file is created at once; without
--- it, the file is created when the first frames are written. The first frames determine the size unless width and
--- height do. Frames have 8 bits per value. If the video given as `like` has more, a line says so, and the file has
--- 10 bits, where the encoder can, and the HDR metadata of that video. With `deep`, frames may also be f32 [H W 3] in
--- [0, 1] or a DeepPicture, and the file has the pixel format of the video given as `like` where the encoder can
--- (without `like`, 10 bits); otherwise a line says what is lost.
---
--- With `live`, frames are encoded without lookahead and output at once. `path` is then a URL for FFmpeg, 'pipe:1',
--- or a file that grows, or '' for memory, whose bytes take() returns. With sound_rate, the sound is supplied by
--- sound().
---
--- A writer that is never closed finishes its file, and prints a warning, when it becomes garbage or the script ends.
--- After an error no file appears.
--- @param path string
--- @param options table? {like = a video's path, width, height, fps = 25, codec, crf = 18, lossless, pix_fmt = libav's name of
---   the encoder's pixel format ('yuv420p10le'), audio = a file whose sound is added, or a list of files whose sum is added,
---   audio_gain = factor of that sum (1; see media.loudest), audio_start = seconds to skip, audio_end = second at which it stops,
---   comment, deep, timed = frames have explicit times, live, container = FFmpeg's name of a live container (by the ending of the
---   path), sound_rate, sound_channels (1)}
--- @return VideoWriter
function M.writer(path, options)
  options = options or {}
  local memory = options.live and path == ''
  local self = setmetatable({ path = memory and '' or library.want_path('writer', path), options = options, jobs = {} }, Writer)
  local inputs = { ['the video'] = options.like }
  for i, sound in ipairs(sounds_of(options)) do inputs[i == 1 and 'the sound' or 'sound ' .. i] = sound end
  if not options.live then require 'cr.files'.check_output(path, inputs) end
  if options.like then
    self.like = probe.probe(options.like)
    if not self.like.has_video then base.fail(options.like .. ' has no video stream') end
  end
  local width = options.width or self.like and self.like.width
  local height = options.height or self.like and self.like.height
  if width and height then open_writer(self, width, height) end
  return self
end

-- At most one write is pending, so that memory is bounded and a failure is reported soon.
local function settle(self, jobs)
  self.note.failed = true -- until success is known
  for _, job in ipairs(jobs) do library.await(job) end
  self.note.failed = nil
end

local function opened(self, t)
  if self.ended then base.fail('write: ' .. self.path .. ' is closed') end
  local rank, o = t:dim(), self.options
  if self.handle then
    -- The first frame determines the size, since the headers of the `like` video may be wrong.
    local fits = rank < 3 or (t:size(rank - 1) == self.width and t:size(rank - 2) == self.height)
    if fits or self.note.frames > 0 or (o.width and o.height) then return self.handle end
    close_handle(self)
  end
  if rank < 3 then base.fail('write: frames are u8 [F H W 3] or [H W 3], not of rank ' .. rank) end
  open_writer(self, t:size(rank - 1), t:size(rank - 2))
  return self.handle
end

local SAME = { 'width', 'height', 'shift_x', 'shift_y', 'full_range', 'bits' }

-- Returns whether two cr_yuv describe the same layout.
local function same_planes(a, b)
  for _, name in ipairs(SAME) do
    if a[name] ~= b[name] then return false end
  end
  for i = 0, 3 do
    if a.matrix[i] ~= b.matrix[i] then return false end
  end
  return true
end

-- Converts a frame with more than 8 bits to planes of the encoder in main memory. Planes of the same layout are used
-- as they are. If the encoder has 8 bits only, the frame becomes 8-bit RGB.
local function pack_deep(self, frame)
  local format = yuv_type()
  if not self.options.deep then base.fail 'write: frames of more than 8 bits need the option deep = true' end
  if lib.cr_writer_planes(opened(self, frame), format) == 0 or format.bits == 0 then
    return tensor.scope(function() return self:pack(deep.eight_bits(frame)) end)
  end
  if deep.is(frame) and same_planes(frame.format, format) then return frame.values:to 'cpu' end
  return tensor.scope(function() return deep.planes(deep.floats(frame):clamp(0, 1), format).values:to 'cpu' end)
end

--- Moves a finished frame to main memory, in a form that write() takes. A frame on a card is converted to the planes
--- of the encoder there, if they are known: this halves the bytes to download and spares the encoder the conversion.
--- The file has the same bytes.
--- @param frame Tensor|DeepPicture u8 [H W 3], or more bits with the option `deep`
--- @return Tensor the frame itself if it is u8 on the CPU
function Writer:pack(frame)
  if deep.is(frame) or frame.dtype == 'f32' then return pack_deep(self, frame) end
  local t = frame
  if t.device == 'cpu' then return t end
  local format = yuv_type()
  if t:dim() ~= 3 or lib.cr_writer_planes(opened(self, t), format) == 0 or format.bits ~= 0 then return t:to 'cpu' end
  local planes = tensor.new()
  base.check(C.cr_rgb_to_yuv(planes.c, t.c, format))
  local host = planes:to 'cpu'
  planes:free()
  return host
end

local function start_write(self, frames, seconds)
  local t = frames
  local handle = opened(self, t)
  local host = self:pack(t)
  local job = lib.cr_writer_write_start(handle, host.c, seconds or -1)
  if not rawequal(host, t) and not (deep.is(t) and rawequal(host, t.values)) then host:free() end
  if tonumber(job) < 0 then base.raise() end
  self.note.frames = self.note.frames + (t:dim() == 4 and t:size(1) or 1)
  self.note.errors = errors.uncaught
  return job
end

--- Queues frames to be encoded while the caller continues, after waiting for the frames of the previous write. The
--- frames must not be changed afterwards, but may be freed. Frames on a card are downloaded.
--- @param frames Tensor|Tensor[] u8 [F H W 3] or [H W 3], or an array of them; also what pack() takes or returns
--- @param seconds number? the time at which the first of them is shown, later than earlier frames; needs the option `timed`
function Writer:write(frames, seconds)
  if seconds and not self.options.timed then base.fail 'write: a time for frames needs the option timed = true' end
  local list = (deep.is(frames) or type(frames) ~= 'table') and { frames } or frames
  local before, jobs = self.jobs, {}
  self.jobs = jobs
  for i, frame in ipairs(list) do jobs[#jobs + 1] = start_write(self, frame, i == 1 and seconds or nil) end
  settle(self, before)
end

--- Queues sound for a writer with a sound_rate. It is written together with the frames that follow.
--- @param samples Tensor f32 [n channels] on the CPU
function Writer:sound(samples)
  if not self.handle then base.fail 'sound: the size of the frames is not known yet: open the writer with width and height' end
  local job = lib.cr_writer_sound_start(self.handle, samples.c)
  if tonumber(job) < 0 then base.raise() end
  self.jobs[#self.jobs + 1] = job
end

--- Waits until everything written is encoded.
function Writer:settle()
  local before = self.jobs
  self.jobs = {}
  settle(self, before)
end

--- Returns by how many seconds the output sound ends before the output pictures after settle(): the delay of the
--- sound's encoder.
--- @return number
function Writer:sound_lag() return self.handle and lib.cr_writer_sound_lag(self.handle) or 0 end

--- Returns what a live writer to memory has written since the last call.
--- @return string may be empty
function Writer:take()
  if not self.handle then return '' end
  local t = tensor.new()
  base.check(lib.cr_writer_take(self.handle, t.c))
  local bytes = ffi.string(t:pointer(), t:numel())
  t:free()
  return bytes
end

--- Encodes the rest, cuts the sound or pads it with silence to the length of the video, and renames the file to its
--- final name. After close() or abort() it does nothing.
--- @return string? what a live writer to memory has written since take()
function Writer:close()
  if self.ended then return end
  if not self.handle then
    self.ended = true
    base.fail(self.path .. ': no frame was written')
  end
  local memory = self.options.live and self.path == ''
  local ok, result = pcall(function()
    settle(self, self.jobs)
    library.await(lib.cr_writer_finish_start(self.handle))
    return memory and self:take() or nil
  end)
  self:abort()
  if not ok then error(result, 0) end
  return result
end

--- Stops and deletes the unfinished file. After close() it does nothing.
function Writer:abort()
  self.ended, self.jobs = true, {}
  close_handle(self)
end

local picture = deep.kind
arguments.methods(Writer, 'writer', {
  pack = { picture }, close = {}, abort = {}, settle = {}, take = {}, sound_lag = {}, sound = { tensor.kinds.alive },
  write = { arguments.either('a tensor or a list of them', picture, arguments.list('', picture)), arguments.maybe(arguments.finite) },
})

return M
