--- Reads video frame by frame, forward and backward. VideoFrames keep pictures in their decoded form until they are needed.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'
local memory = require 'cr.tensor.memory'
local deep = require 'cr.media.deep'
local library = require 'cr.media.library'

local lib, await, open_handle = library.lib, library.await, library.open_handle
local M = {}

--- @class VideoReader
--- @field path string
--- @field fps number frames per second; 0: the file's own frames
--- @field device string device of the frames that are read
--- @field bits integer bits per value: 8, or those of the file with the option `deep`
--- @field position integer number of the frame at which the next read begins
local Reader = {}
Reader.__index = Reader

local yuv_type = ffi.typeof 'cr_yuv'

--- @class VideoFrame a decoded picture, kept in its decoded form if that is known, which takes at most half the
---   memory of RGB, otherwise as RGB. A frame for a card is kept in main memory, too.
--- @field height integer
--- @field width integer
--- @field device string
--- @field bytes integer how much memory it takes
--- @field picture Tensor as it was decoded
--- @field format ffi.cdata*? the cr_yuv of a picture that is not RGB
local Frame = {}
Frame.__index = Frame

-- `host` is the copy in main memory of a picture on a card.
local function frame_of(picture, format, host)
  local self = setmetatable({
    picture = picture, format = format, host = host, device = picture.device,
    bytes = picture:numel() * (picture.dtype == 'i16' and 2 or 1),
  }, Frame)
  self.height = format and format.height or picture:size(1)
  self.width = format and format.width or picture:size(2)
  return self
end

-- Calls fn with the picture on the frame's device.
local function with_picture(self, fn)
  local picture = self.picture
  if not picture then
    if not self.host then base.fail 'frame: this frame has been freed' end
    picture = memory.tagged('frames', self.host.to, self.host, self.device)
  end
  local result = fn(self, picture)
  if not self.picture and not rawequal(picture, self.host) then picture:free() end
  return result
end

local function is_deep(format) return format ~= nil and format.bits ~= 0 end

local function to_rgb(self, picture)
  local rgb
  if is_deep(self.format) then
    rgb = deep.eight_bits(deep.picture(picture, self.format))
  elseif self.format then
    rgb = tensor.new()
    base.check(base.C.cr_yuv_to_rgb(rgb.c, picture.c, self.format))
  else
    rgb = picture:view(self.height, self.width, 3)
  end
  return rgb
end

--- Returns the frame in RGB, as a new tensor that belongs to the open scope.
--- @return Tensor u8 [H W 3], on the frame's device, read-only
function Frame:rgb() return with_picture(self, to_rgb) end

--- Returns the frame with all bits that the reader keeps.
--- @return Tensor|DeepPicture the same as rgb(), or the planes of a picture with more than 8 bits; read-only
function Frame:whole()
  if not is_deep(self.format) then return self:rgb() end
  return with_picture(self, function(_, picture) return deep.picture(picture:view(picture:numel()), self.format) end)
end

local function drop(self, name)
  if self[name] then self[name]:free() end
  self[name] = nil
end

--- Frees its memory on a card. A later rgb() uploads the picture again for that one call.
function Frame:leave_card()
  if self.host then drop(self, 'picture') end
end

--- Chooses the device on which rgb() and whole() return the frame from now on.
--- @param device string
function Frame:move(device)
  if self.device == device then return end
  self.host = self.host or self.picture
  if not rawequal(self.picture, self.host) then drop(self, 'picture') end
  self.picture, self.device = nil, device
end

--- Frees its memory; tensors from rgb() stay valid. Calling it twice is allowed.
function Frame:free()
  drop(self, 'picture')
  drop(self, 'host')
end

--- Opens a video for reading frame by frame at a constant rate (25), for which frames are chosen as by `ffmpeg -r
--- 25`. Frames are rotated upright and converted to RGB by the matrix and range of the stream.
--- @param path string
--- @param options table? {fps = 25 (0: the file's own frames), device = 'cpu', planes = convert to RGB by cr's own
---   code where possible (always done for a card), wait = read VideoFrames instead of tensors, deep = keep all bits
---   of a video with more than 8 bits per value: frames are f32 [H W 3] in [0, 1], or VideoFrames whose whole() has
---   all bits}
--- @return VideoReader
function M.reader(path, options)
  options = options or {}
  local fps, device = options.fps or 25, options.device or 'cpu'
  tensor.device_code('reader', device)
  local handle = library.open('cr_video', lib.cr_video_close, library.want_path('reader', path), fps)
  local bits = options.deep and base.check(lib.cr_video_deep(handle)) or 8
  local planes = device ~= 'cpu' or options.planes or bits > 8
  base.check(lib.cr_video_planes(handle, planes and 1 or 0))
  return setmetatable({
    path = path, fps = fps, device = device, planes = planes, wait = options.wait, position = 0, bits = bits,
    handle = handle, last_seconds = {},
  }, Reader)
end

-- Returns frame i of the last read on the reader's device. It is uploaded to a card in its decoded form, which is
-- smaller than RGB.
local function take(self, handle, i, seconds)
  local t, format = tensor.new(), nil
  if not self.planes then
    base.check(lib.cr_video_take(handle, i, t.c, seconds))
  else
    format = yuv_type()
    local planes = base.check(lib.cr_video_take_planes(handle, i, t.c, format, seconds))
    if planes == 0 then format = nil end
  end
  local there = memory.tagged('frames', t.to, t, self.device)
  local moved = not rawequal(there, t)
  if self.wait then return frame_of(tensor.keep(there), format, moved and tensor.keep(t) or nil) end
  if moved then t:free() end
  if not format then return there end
  local frame = frame_of(there, format)
  local rgb = is_deep(format) and tensor.scope(function() return deep.floats(frame:whole()) end) or frame:rgb()
  frame:free()
  return rgb
end

-- Runs one job of at most 256 frames, or finishes the one that an earlier read began.
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

-- Starts the job of the next read, and returns whether it did.
local function begin(self, n)
  local job = tonumber(lib.cr_video_read_start(open_handle(self, 'read'), n))
  if job < 0 then base.raise() end
  self.begun = { job = job, n = n }
end

--- Reads the next n frames. It returns fewer only at the end, and none after the end. `last_seconds` then holds their
--- times in the source, in seconds.
--- @param n integer? 1
--- @param ahead integer? how many of the following frames to decode while the caller continues (0, at most 256); the
---   next read must ask for at least that many
--- @return Tensor[]|VideoFrame[] u8 [H W 3] each (from a `deep` reader possibly f32)
function Reader:read(n, ahead)
  n = n or 1
  if self.begun and n < self.begun.n then
    base.fail(('read: %d frames are already being decoded, so a read of fewer is not possible'):format(self.begun.n))
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

--- Seeks to frame `index`, where the next read begins. The frames are the same as when reading from the start.
--- @param index integer from 0
function Reader:seek(index)
  if self.begun then
    local job = self.begun.job
    self.begun = nil
    await(job) -- the next read replaces its frames
  end
  await(lib.cr_video_seek_start(open_handle(self, 'seek'), index))
  self.position = index
end

--- Iterates over frames from `last` down to `first`. It decodes forward in pieces of at most `bytes`.
--- @param first integer from 0
--- @param last integer
--- @param bytes integer? 128 MiB
--- @return fun(): Tensor?, integer? next it returns a frame and its number
function Reader:backward(first, last, bytes)
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
      picture_bytes = piece[1]:numel() * (piece[1].dtype == 'f32' and 4 or 1)
    end
    local frame = table.remove(piece)
    return frame, from + #piece
  end
end

--- Closes the file. Calling it twice is allowed.
function Reader:close() library.close(self, lib.cr_video_close) end

--- Iterates over a video's frames: `for frame, seconds in media.frames(path) do ... end`.
--- @param path string
--- @param options table? {fps = 25, first = 0, batch = 8 (frames decoded at once), device = 'cpu', planes, wait, deep
---   (see media.reader)}
--- @return fun(): Tensor?, number?
function M.frames(path, options)
  options = options or {}
  local reader = M.reader(path, options)
  if options.first and options.first > 0 then reader:seek(options.first) end
  --- @type any[], number[], integer
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

local natural, maybe = arguments.natural, arguments.maybe
arguments.methods(Frame, 'frame', { rgb = {}, whole = {}, leave_card = {}, move = { arguments.string }, free = {} })
arguments.methods(Reader, 'reader', {
  read = { maybe(arguments.positive), maybe(natural) }, seek = { natural },
  backward = { natural, natural, maybe(arguments.number) }, close = {},
})

return M
