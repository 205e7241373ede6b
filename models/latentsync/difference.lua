--- Compares two samples of a session: metrics, and images side by side.

local cr = require 'cr'
local errors = require 'cr.errors'
local metrics = require 'models.latentsync.metrics'

local M = {}

local STRONGER = 4 -- gain of the difference image

--- @class Difference
--- @field psnr number? dB, over the mouth region; nil if the pixels are equal
--- @field ssim number over the mouth region
--- @field latents number relative L2 error of the latents: |a - b| / |b|
--- @field frames integer number of frames compared
--- @field pictures Tensor[]? u8 [S 3S 3] each: the sample, the other one, and their difference around grey
local Difference = {}
Difference.__index = Difference

function Difference:__tostring()
  return ('PSNR %s, SSIM %.4f, relative L2 difference of the latents %.4g (%d frames)'):format(
    self.psnr and ('%.2f dB'):format(self.psnr) or 'infinite', self.ssim, self.latents, self.frames)
end

-- The windows that both samples have.
local function windows_of(a, b)
  if not (type(b) == 'table' and type(b.latents) == 'table' and type(b.run) == 'table') then
    errors.fail 'compare: the argument must be another sample: a:compare(b), both from run:sample { ... }'
  end
  local list = {}
  for w, x in ipairs(a.latents) do
    local y = b.latents[w]
    if x and y then
      if table.concat(x.shape, ' ') ~= table.concat(y.shape, ' ') then
        errors.fail(('compare: window %d is [%s] in one sample and [%s] in the other: compare samples of the same run'):format(w,
          table.concat(x.shape, ' '), table.concat(y.shape, ' ')))
      end
      list[#list + 1] = w
    end
  end
  if #list == 0 then errors.fail 'compare: the samples have no window in common' end
  return list
end

local function as_bytes(faces) return ((faces + 1) * 127.5):round():clamp(0, 255):to 'u8' end

--- Computes the metrics.
--- @param a table a sample
--- @param b table another sample of the same run
--- @return Difference
function M.compare(a, b)
  local list, sums = windows_of(a, b), metrics.sums()
  local mouth = metrics.mouth(a.run.mask, a.run.model.device)
  local ok, problem = pcall(function()
    for _, w in ipairs(list) do
      cr.scope(function()
        local places = {}
        for i = 1, a.latents[w]:size(2) do places[i] = { w, i } end
        mouth:add(sums, mouth:cut(as_bytes(a:faces(places))):contiguous(), mouth:cut(as_bytes(b:faces(places))):contiguous())
        metrics.add_latents(sums, a.latents[w], b.latents[w])
      end)
    end
  end)
  mouth:free()
  if not ok then error(problem, 0) end
  local found = metrics.result(sums)
  found.frames = sums.frames
  return setmetatable(found, Difference)
end

--- Images of both samples and their difference, from frames that are spread over their common windows.
--- @param a table a sample
--- @param b table another sample of the same run
--- @param count integer
--- @return Tensor[] u8 [S 3S 3], on the CPU
function M.pictures(a, b, count)
  local places = {}
  for _, w in ipairs(windows_of(a, b)) do
    for i = 1, a.latents[w]:size(2) do places[#places + 1] = { w, i } end
  end
  local chosen = {}
  for k = 1, math.min(count, #places) do chosen[k] = places[math.floor((k - 0.5) * #places / math.min(count, #places)) + 1] end
  return cr.scope(function()
    local one, other = a:faces(chosen):to 'cpu', b:faces(chosen):to 'cpu'
    local all, list = as_bytes(cr.cat({ one, other, (one - other) * STRONGER }, 3)), {}
    for k = 1, #chosen do list[k] = all:select(1, k):clone() end
    return list
  end)
end

return M
