--- Writes test films frame by frame, and reads them again.

local cr = require 'cr'
local inputs = require 'tests.support.media_inputs'
local media = require 'cr.media'
local t = require 'tests.support.tap'

local path = inputs.path
local M = {}

--- A smooth moving image, u8 [h w 3], that encodes its index: a block with brightness `i`.
function M.picture(i, h, w)
  local x = cr.empty(h, w, 3, { dtype = 'u8' })
  local p = x:pointer()
  for y = 0, h - 1 do
    for k = 0, w - 1 do
      local at = (y * w + k) * 3
      p[at] = math.floor(40 + 170 * k / w)
      p[at + 1] = math.floor(40 + 170 * y / h)
      p[at + 2] = math.floor(60 + 100 * (0.5 + 0.5 * math.sin(i / 5 + k / w * 6)))
      if k < w / 3 and y < h / 3 then p[at], p[at + 1], p[at + 2] = 30 + i * 4, 30 + i * 4, 30 + i * 4 end
    end
  end
  return x
end

--- Writes n such images to a file of the tests' folder.
function M.write(name, options, n, h, w)
  local writer = media.writer(path(name), options)
  for i = 0, n - 1 do
    local x = M.picture(i, h, w)
    writer:write(x)
    x:free()
  end
  writer:close()
end

--- Reads all frames of a file.
function M.read_all(name, options)
  local reader = media.reader(path(name), options)
  local frames = {}
  repeat
    local part = reader:read(16)
    for _, frame in ipairs(part) do frames[#frames + 1] = frame end
  until #part < 16
  reader:close()
  return frames
end

--- Frees frames.
function M.free_all(frames)
  for _, frame in ipairs(frames) do frame:free() end
end

--- The peak signal-to-noise ratio of two u8 images of the same size, in dB.
function M.psnr(a, b)
  local p, q, n, sum = a:pointer(), b:pointer(), a:numel(), 0
  for i = 0, n - 1 do
    local d = p[i] - q[i]
    sum = sum + d * d
  end
  return sum == 0 and math.huge or 10 * math.log10(255 * 255 * n / sum)
end

--- Checks that frames match the written images to a minimum PSNR.
function M.compare(name, frames, n, h, w, least)
  t.equal(#frames, n, name .. ': number of frames')
  for i, frame in ipairs(frames) do
    local x = M.picture(i - 1, h, w)
    local own = frame:narrow(1, 1, h):narrow(2, 1, w):contiguous()
    local decibels = M.psnr(own, x)
    t.ok(decibels >= least, ('%s: frame %d: %.1f dB'):format(name, i - 1, decibels))
    x:free()
    own:free()
  end
end

return M
