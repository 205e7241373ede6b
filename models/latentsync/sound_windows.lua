--- The windows of MFCC rows that SyncNet takes, beside the frames of a video, read in sequence.

local cr = require 'cr'
local ffi = require 'ffi'
local media = require 'cr.media'
local mfcc = require 'models.networks.mfcc'
local syncnet = require 'models.networks.syncnet'

local M = {
  SPARE = 5, -- difference between the numbers of frames and windows: the reference omits one window that would fit
}

local SPARE, FPS = M.SPARE, 25
local PER_FRAME = mfcc.rate / FPS -- samples per frame

local Sound = {}
Sound.__index = Sound

--- Opens the sound that belongs to some frames.
--- @param path string a file with sound
--- @param first integer frame, from 0, at 25 per second
--- @param count integer number of frames; math.huge for all
function M.open(path, first, count)
  local self = setmetatable({
    reader = media.audio(path, { rate = mfcc.rate, channels = 1, s16 = true }),
    left = count * PER_FRAME, -- samples of the track that are not read yet
    held = 0, buffer = nil, room = 0, before = 0,
  }, Sound)
  local ok, reason = pcall(function()
    self.piece, self.at = self.reader:read(PER_FRAME), 0
    local skip = first * PER_FRAME
    while skip > 0 and self:more(2 ^ 20) do
      local n = math.min(skip, self.piece:numel() - self.at)
      self.at, skip = self.at + n, skip - n
    end
  end)
  if not ok then
    self:close()
    error(reason, 0)
  end
  return self
end

-- Whether `piece` has a sample at `at`; reads up to n more samples if necessary.
function Sound:more(n)
  if self.at < self.piece:numel() then return true end
  self.piece:free()
  self.piece, self.at = self.reader:read(n), 0
  return self.piece:numel() > 0
end

-- Reads samples until `n` are held, or until the end.
function Sound:fill(n)
  if n > self.room then
    local larger = ffi.new('double[?]', n)
    if self.held > 0 then ffi.copy(larger, self.buffer, self.held * 8) end
    self.buffer, self.room = larger, n
  end
  while self.held < n and self.left > 0 do
    local take = math.min(n - self.held, self.left)
    if self:more(take) then
      take = math.min(take, self.piece:numel() - self.at)
      local p = self.piece:pointer() + self.at
      for i = 0, take - 1 do self.buffer[self.held + i] = p[i] * 32768 end
      self.at = self.at + take
    else
      self.left = 0
      break
    end
    self.held, self.left = self.held + take, self.left - take
  end
end

--- The rows of up to `count` more windows, f32 [4 (n - 1) + 20, 13], and n; nil and 0 at the end.
function Sound:windows(count)
  self:fill((count + SPARE) * PER_FRAME)
  local n = math.min(count, math.floor(self.held / PER_FRAME) - SPARE)
  if n < 1 then return nil, 0 end
  local samples = (4 * (n - 1) + syncnet.ROWS - 1) * mfcc.hop + mfcc.frame
  local rows = cr.scope(function()
    return mfcc.compute(cr.from_pointer(self.buffer, { samples }, 'f64', self.buffer), self.before)
  end)
  local done = n * PER_FRAME
  self.before = self.buffer[done - 1]
  self.held = self.held - done
  for i = 0, self.held - 1 do self.buffer[i] = self.buffer[i + done] end
  return rows, n
end

--- Closes the file.
function Sound:close()
  if self.piece then self.piece:free() end
  self.reader:close()
end

return M
