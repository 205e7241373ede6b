--- Metrics of a result against a reference: the relative L2 error of latents, and PSNR and SSIM (Wang, Bovik, Sheikh,
--- Simoncelli 2004, doi 10.1109/TIP.2003.819861) of the mouth's pixels.
--
-- The mouth's pixels are those that the network regenerates: where the mask is below one half. All other pixels of
-- the face come from the input and would agree anyway. Pixels are 8-bit RGB, as in a file. SSIM's window is the
-- paper's, a Gaussian of standard deviation 1.5 on 11 x 11 pixels, per channel. The mean over the SSIM map includes
-- the windows whose centre is a mouth pixel.

local cr = require 'cr'

local metrics = {}

local TAPS, SIGMA, PEAK = 11, 1.5, 255
local C1, C2 = (0.01 * PEAK) ^ 2, (0.03 * PEAK) ^ 2
local HALF = (TAPS - 1) / 2

--- @class Mouth
--- @field top integer first row (from 1) of the pixels' bounding box, extended by half a window
--- @field left integer
--- @field height integer
--- @field width integer
local Mouth = {}
Mouth.__index = Mouth

-- The Gaussian as a matrix [n - 10, n]: one row per position at which the whole window fits.
local function window_matrix(n)
  local taps, sum = {}, 0
  for k = 1, TAPS do
    taps[k] = math.exp(-(k - 1 - HALF) ^ 2 / (2 * SIGMA ^ 2))
    sum = sum + taps[k]
  end
  local m = cr.zeros(n - TAPS + 1, n)
  local p = m:pointer()
  for i = 0, n - TAPS do
    for k = 1, TAPS do p[i * n + i + k - 1] = taps[k] / sum end
  end
  return m
end

--- Prepares the metrics for a mask; the caller frees the result.
--- @param mask Tensor f32 [S S 1]: 1 keeps a pixel, 0 regenerates it
--- @param device string device on which images are compared
--- @return Mouth
function metrics.mouth(mask, device)
  local self = setmetatable({ device = device }, Mouth)
  cr.scope(function()
    local m = mask:to('cpu'):contiguous()
    local S, p = m:size(1), m:pointer()
    local top, bottom, left, right = S, -1, S, -1
    for y = 0, S - 1 do
      for x = 0, S - 1 do
        if p[y * S + x] < 0.5 then
          top, bottom, left, right = math.min(top, y), math.max(bottom, y), math.min(left, x), math.max(right, x)
        end
      end
    end
    if bottom < 0 then error('the mask keeps every pixel, so there is no mouth to compare', 0) end
    top, left = math.max(0, top - HALF), math.max(0, left - HALF)
    bottom, right = math.min(S - 1, bottom + HALF), math.min(S - 1, right + HALF)
    self.top, self.left, self.height, self.width = top + 1, left + 1, bottom - top + 1, right - left + 1
    if self.height < TAPS or self.width < TAPS then
      error(('a mouth of %d x %d pixels is too small for SSIM: it needs %d'):format(self.width, self.height, TAPS), 0)
    end
    local weight = self:cut(m:unsqueeze(1)):select(1, 1):lt(0.5):to 'f32':contiguous() -- [h w 1]
    local inner = weight:narrow(1, 1 + HALF, self.height - 2 * HALF):narrow(2, 1 + HALF, self.width - 2 * HALF)
    self.pixels, self.windows = weight:sum():item(), inner:sum():item()
    -- Transposed to [w' h'], the layout of filtered()'s maps.
    self.weight, self.inner = weight:to(device):clone(), inner:squeeze(3):t():contiguous():to(device):clone()
    self.down, self.across = window_matrix(self.height):t():contiguous():to(device):clone(),
      window_matrix(self.width):t():contiguous():to(device):clone()
    cr.keep(self.weight, self.inner, self.down, self.across)
  end)
  return self
end

function Mouth:free()
  for _, name in ipairs { 'weight', 'inner', 'down', 'across' } do self[name]:free() end
end

--- Crops the box of the mouth from faces.
--- @param faces Tensor [F S S C]
--- @return Tensor [F h w C], a view
function Mouth:cut(faces)
  return faces:narrow(2, self.top, self.height):narrow(3, self.left, self.width)
end

-- Weighted means over windows: [N h w] to [N w' h'].
local function filtered(self, x)
  local N, h, w = x:size(1), self.height, self.width
  local rows = x:reshape(N * h, w):matmul(self.across):view(N, h, w - TAPS + 1)
  return rows:permute(1, 3, 2):contiguous():view(N * (w - TAPS + 1), h):matmul(self.down):view(N, w - TAPS + 1, h - TAPS + 1)
end

-- [F h w C] to [F C h w], flattened to single-channel images.
local function channels(x)
  local F, h, w, C = x:size(1), x:size(2), x:size(3), x:size(4)
  return x:permute(1, 4, 2, 3):contiguous():view(F * C, h, w)
end

--- Sums over frames: call add() for frames, then result().
--- @return table
function metrics.sums() return { frames = 0, squares = 0, similarity = 0, difference = 0, norm = 0 } end

--- Adds the comparison of some frames' mouths with the reference's.
--- @param sums table
--- @param a Tensor u8 [F h w 3], from cut()
--- @param b Tensor u8 [F h w 3] the reference's
function Mouth:add(sums, a, b)
  for f = 1, a:size(1) do
    cr.scope(function()
      local x, y = a:narrow(1, f, 1):to(self.device):to 'f32', b:narrow(1, f, 1):to(self.device):to 'f32'
      sums.squares = sums.squares + ((x - y):square() * self.weight):sum():item() / (3 * self.pixels)
      x, y = channels(x), channels(y)
      local mx, my = filtered(self, x), filtered(self, y)
      local xx, yy, xy = filtered(self, x * x) - mx * mx, filtered(self, y * y) - my * my, filtered(self, x * y) - mx * my
      local map = ((mx * my * 2 + C1) * (xy * 2 + C2)) / ((mx * mx + my * my + C1) * (xx + yy + C2))
      sums.similarity = sums.similarity + (map * self.inner):sum():item() / (3 * self.windows)
    end)
    sums.frames = sums.frames + 1
  end
end

--- Adds the comparison of latents with the reference's.
--- @param sums table
--- @param x Tensor
--- @param reference Tensor of the same shape
function metrics.add_latents(sums, x, reference)
  cr.scope(function()
    local a, b = x:to('cpu'):to 'f64', reference:to('cpu'):to 'f64'
    sums.difference = sums.difference + (a - b):square():sum():item()
    sums.norm = sums.norm + b:square():sum():item()
  end)
end

--- @param sums table
--- @return table {psnr = dB (nil for equal pixels), ssim, latents = |x - reference| / |reference|}
function metrics.result(sums)
  local mse = sums.squares / sums.frames
  return {
    psnr = mse > 0 and 10 * math.log10(PEAK ^ 2 / mse) or nil, ssim = sums.similarity / sums.frames,
    latents = math.sqrt(sums.difference / sums.norm),
  }
end

return metrics
