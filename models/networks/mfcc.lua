--- Mel-frequency cepstral coefficients as python_speech_features computes them by default, the audio input of
--- SyncNet: 13 coefficients per 25 ms frame, 100 frames per second, from 16-bit samples at 16 kHz.
--
-- Pre-emphasis 0.97, no window function, power spectrum of 512 points, 26 mel triangles, logarithm, cosine transform,
-- liftering with 22; the first coefficient is the log energy of the frame. Davis & Mermelstein 1980. All steps except
-- the two logarithms are linear, so the transform is three matrix products, in double precision.

local cr = require 'cr'
local nn = require 'cr.nn'

local M = { rate = 16000, coefficients = 13, frame = 400, hop = 160 }

local FFT, FILTERS, LIFTER, EMPHASIS = 512, 26, 22, 0.97
local BINS = FFT / 2 + 1
local TINY = 2 ^ -52 -- replaces a power of exactly 0

local function mel_of_hz(f) return 2595 * math.log10(1 + f / 700) end
local function hz_of_mel(m) return 700 * (10 ^ (m / 2595) - 1) end

-- Rows [bins][filters]: triangles whose corners are at integer bins.
local function mel_filters()
  local corner = {}
  for i = 0, FILTERS + 1 do
    corner[i] = math.floor((FFT + 1) * hz_of_mel(mel_of_hz(M.rate / 2) * i / (FILTERS + 1)) / M.rate)
  end
  local rows = {}
  for bin = 0, BINS - 1 do
    local row = {}
    for m = 1, FILTERS do
      local low, mid, high = corner[m - 1], corner[m], corner[m + 1]
      row[m] = 0
      if bin >= low and bin < mid then row[m] = (bin - low) / (mid - low) end
      if bin >= mid and bin < high then row[m] = (high - bin) / (high - mid) end
    end
    rows[bin + 1] = row
  end
  return rows
end

-- The orthonormal cosine transform (type II), including the lifter: rows [filters][coefficients].
local function cosines()
  local rows = {}
  for m = 0, FILTERS - 1 do
    local row = {}
    for k = 0, M.coefficients - 1 do
      local norm = math.sqrt((k == 0 and 1 or 2) / FILTERS)
      local lift = 1 + LIFTER / 2 * math.sin(math.pi * k / LIFTER)
      row[k + 1] = norm * lift * math.cos(math.pi * k * (2 * m + 1) / (2 * FILTERS))
    end
    rows[m + 1] = row
  end
  return rows
end

local tables

local function make_tables()
  local fourier = cr.empty({ M.frame, 2 * BINS }, { dtype = 'f64' })
  local p = fourier:pointer()
  for n = 0, M.frame - 1 do
    local row = p + n * 2 * BINS
    for k = 0, BINS - 1 do
      local angle = 2 * math.pi * ((n * k) % FFT) / FFT
      row[k], row[BINS + k] = math.cos(angle), math.sin(angle)
    end
  end
  local f64 = { dtype = 'f64' }
  -- `keep`, because the tables outlive the scope that is open now.
  return { fourier = cr.keep(fourier), mel = cr.keep(cr.tensor(mel_filters(), f64)), cosine = cr.keep(cr.tensor(cosines(), f64)) }
end

--- Frees the tables that the first call of `compute` created.
function M.free()
  for _, t in pairs(tables or {}) do t:free() end
  tables = nil
end

local function positive(x) return cr.where(x:eq(0), TINY, x) end

--- The coefficients of a sound. The last frame is zero-padded.
--- @param samples Tensor f32 or f64 [n], 16 kHz, in units of 16-bit integers (-32768..32767)
--- @param before number? the sample before the first, if this is a piece of a longer sound
--- @return Tensor f32 [rows 13]: row r covers samples 160 r .. 160 r + 399 (from 0)
function M.compute(samples, before)
  if not cr.is_tensor(samples) or samples:dim() ~= 1 or samples:numel() == 0 then
    error('mfcc: the sound must be a tensor of samples [n]', 2)
  end
  tables = tables or make_tables()
  return cr.scope(function()
    local n = samples:numel()
    local rows = n <= M.frame and 1 or 1 + math.ceil((n - M.frame) / M.hop)
    local x = samples:to 'cpu':to 'f64'
    local previous = cr.cat({ cr.tensor({ before or 0 }, { dtype = 'f64' }), x:narrow(1, 1, n - 1) }, 1)
    local signal = x - previous * EMPHASIS
    -- A frame spans two and a half hops: three shifted views of the hops, concatenated.
    local hops = nn.pad(signal, { 0 }, { math.max(0, (rows + 2) * M.hop - n) }):narrow(1, 1, (rows + 2) * M.hop)
      :view(rows + 2, M.hop)
    local frames = cr.cat({ hops:narrow(1, 1, rows), hops:narrow(1, 2, rows),
      hops:narrow(1, 3, rows):narrow(2, 1, M.frame - 2 * M.hop) }, 2)
    local power = frames:matmul(tables.fourier):square():view(rows, 2, BINS):sum(2) / FFT
    local energy = positive(power:sum(2, true)):log()
    local cepstrum = positive(power:matmul(tables.mel)):log():matmul(tables.cosine)
    return cr.cat({ energy, cepstrum:narrow(2, 2, M.coefficients - 1) }, 2):to 'f32'
  end)
end

return M
