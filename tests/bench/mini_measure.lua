--- The measurements of tests/bench/mini.lua: opening of the mouth, the VAE's error, seams, generated clips.

local cr = require 'cr'
local align = require 'models.latentsync.align'
local media = require 'cr.media'
local samplers = require 'models.latentsync.sampler'
local settings = require 'models.latentsync.settings'
local windows = require 'models.latentsync.windows'
local scratch = require 'tests.support.scratch'

local M = {}

-- Indices of MediaPipe's mesh points, plus 1.
local UPPER_LIP, LOWER_LIP, LEFT_CORNER, RIGHT_CORNER, CHIN, LEFT_CHEEK, RIGHT_CHEEK = 14, 15, 62, 292, 153, 235, 455

-- ---- numbers ---------------------------------------------------------------------------------

function M.mean(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + v end
  return #list > 0 and sum / #list or nil
end

function M.median(list)
  if #list == 0 then return nil end
  local sorted = { unpack(list) }
  table.sort(sorted)
  local half = #sorted / 2
  return (sorted[math.floor(half + 0.5)] + sorted[math.floor(half + 1)]) / 2
end

--- Share of the list's values for which `holds` is true.
function M.share(list, holds)
  local n = 0
  for _, v in ipairs(list) do n = n + (holds(v) and 1 or 0) end
  return #list > 0 and n / #list or nil
end

--- Pearson's correlation of two arrays over the positions where both have a number; nil if one is constant.
function M.correlation(a, b)
  local n, sa, sb, saa, sbb, sab = 0, 0, 0, 0, 0, 0
  for i = 1, math.min(a.n or #a, b.n or #b) do
    local x, y = a[i], b[i]
    if x and y then
      n, sa, sb, saa, sbb, sab = n + 1, sa + x, sb + y, saa + x * x, sbb + y * y, sab + x * y
    end
  end
  local va, vb = n * saa - sa * sa, n * sbb - sb * sb
  if n < 3 or va <= 1e-12 or vb <= 1e-12 then return nil end
  return (n * sab - sa * sb) / math.sqrt(va * vb)
end

-- ---- meshes ----------------------------------------------------------------------------------

local function distance(p, q) return math.sqrt((p[1] - q[1]) ^ 2 + (p[2] - q[2]) ^ 2) end

--- Distance of the inner lips over the mouth's width.
--- @param mesh number[][] 468 points
function M.opening(mesh) return distance(mesh[UPPER_LIP], mesh[LOWER_LIP]) / distance(mesh[LEFT_CORNER], mesh[RIGHT_CORNER]) end

--- Curves of a video's frames: call read(frame) for each in turn; a frame without a face has false.
--- @return table {n, opening = {}, chin = {{x, y} in pixels}, widths = {pixels of each face}, read = fun(frame)}
function M.curves(finder)
  finder:reset()
  local self = { n = 0, opening = {}, chin = {}, widths = {} }
  function self.read(frame)
    local found = finder:find(frame)
    self.n = self.n + 1
    self.opening[self.n] = found and M.opening(found.mesh) or false
    self.chin[self.n] = false
    if found then
      local mesh = found.mesh
      self.chin[self.n] = mesh[CHIN]
      self.widths[#self.widths + 1] = distance(mesh[LEFT_CHEEK], mesh[RIGHT_CHEEK])
    end
    return found
  end
  return self
end

--- Root mean square of the chin's second difference (its jitter), in mean widths of the face.
function M.jitter(curves)
  local track, sum, count = curves.chin, 0, 0
  for i = 2, curves.n - 1 do
    local a, b, c = track[i - 1], track[i], track[i + 1]
    if a and b and c then
      sum = sum + (a[1] - 2 * b[1] + c[1]) ^ 2 + (a[2] - 2 * b[2] + c[2]) ^ 2
      count = count + 1
    end
  end
  return count > 0 and math.sqrt(sum / count) / M.mean(curves.widths) or nil
end

--- A detector of all faces that processes a video once, even if it is evaluated several times: call of(key) before
--- each time.
--- @param finder table as models.face.load gives it; free() frees it
function M.remembering(finder)
  local self, known, list, at = {}, {}, nil, 0
  function self.of(_, key)
    known[key] = known[key] or {}
    list, at = known[key], 0
  end
  function self.find_all(_, frame)
    at = at + 1
    if not list[at] then list[at] = finder:find_all(frame) end
    return list[at]
  end
  function self.find_in(_, ...) return finder:find_in(...) end
  function self.forget(_, key) known[key] = nil end
  function self.free() finder:free() end
  return self
end

-- ---- the VAE ---------------------------------------------------------------------------------

--- Sums of squared errors (in 8-bit levels) of a face image after encoding (to the mean) and decoding.
--- @param model LatentSync
--- @param frame Tensor u8 [H W 3]
--- @param points number[][] the three alignment points
--- @param mask Tensor f32 [size size 1]: 0 is the mouth's region
--- @return table {whole =, mouth =} mean squared errors
function M.vae_error(model, frame, points, mask)
  return cr.scope(function()
    local S = model.size
    local face = align.warp(frame, align.new({ size = S }):matrix(points), S):to 'f32'
    local x = ((face / 255 - 0.5) / 0.5):view(1, S, S, 3):to(model.device):to(model.dtype)
    local mean = model.vae:encode(x)
    local y = ((model.vae:decode(mean):to('f32'):to 'cpu' + 1) * 127.5):clamp(0, 255):contiguous()
    face = face:to('cpu'):contiguous()
    local flat = mask:to('cpu'):to('f32'):contiguous()
    local p, q, m = face:pointer(), y:pointer(), flat:pointer()
    local whole, mouth, count = 0, 0, 0
    for i = 0, S * S - 1 do
      local e = 0
      for c = 0, 2 do e = e + (p[3 * i + c] - q[3 * i + c]) ^ 2 end
      whole = whole + e
      if m[i] < 0.5 then mouth, count = mouth + e, count + 1 end
    end
    return { whole = whole / (3 * S * S), mouth = mouth / math.max(1, 3 * count) }
  end)
end

function M.psnr(squared) return squared and 10 * math.log10(255 ^ 2 / math.max(squared, 1e-9)) end

-- ---- the seam --------------------------------------------------------------------------------

--- The number of pixels that differ from the input although the mask, warped to the frame, keeps them.
--- @param before Tensor u8 [H W 3]
--- @param after Tensor u8 [H W 3]
--- @param matrix number[]? frame to crop; nil: no face, nothing may change
--- @param mask Tensor f32 [size size 1] on the CPU
function M.changed_outside(before, after, matrix, mask)
  local H, W, S = before:size(1), before:size(2), mask:size(1)
  local width, height = align.crop_size(S)
  local p, q, m = before:pointer(), after:pointer(), mask:pointer()
  local count = 0
  local function regenerated(x, y) -- the mask at this place, with a tolerance of one pixel, because the frame is scaled
    local u = (matrix[1] * x + matrix[2] * y + matrix[3]) * S / width
    local v = (matrix[4] * x + matrix[5] * y + matrix[6]) * S / height
    for j = math.floor(v) - 1, math.floor(v) + 2 do
      for i = math.floor(u) - 1, math.floor(u) + 2 do
        if i >= 0 and j >= 0 and i < S and j < S and m[j * S + i] < 1 then return true end
      end
    end
    return false
  end
  for y = 0, H - 1 do
    for x = 0, W - 1 do
      local at = 3 * (y * W + x)
      if (p[at] ~= q[at] or p[at + 1] ~= q[at + 1] or p[at + 2] ~= q[at + 2])
        and not (matrix and regenerated(x, y)) then
        count = count + 1
      end
    end
  end
  return count
end

--- The colour jump at the edge of the regenerated area, in 8-bit levels: the mean change of the pixels just inside,
--- as root mean square over red, green and blue. Moving cheeks change single pixels in both directions; a face of
--- another colour changes all of them equally, which is visible as an edge.
--- @param before Tensor u8 [H W 3]
--- @param after Tensor u8 [H W 3]
--- @param matrix number[] frame to crop
--- @param mask Tensor f32 [size size 1] on the CPU
--- @return number? nil if no pixel lies there
function M.seam(before, after, matrix, mask)
  local H, W, S = before:size(1), before:size(2), mask:size(1)
  local width, height = align.crop_size(S)
  local p, q, m = before:pointer(), after:pointer(), mask:pointer()
  local NEAR, FAR = math.floor(S / 40), math.floor(S / 16) -- pixels of the face image: inside the blended border, and outside the lips
  local function kept_within(i, j, r)
    for y = math.max(0, j - r), math.min(S - 1, j + r) do
      for x = math.max(0, i - r), math.min(S - 1, i + r) do
        if m[y * S + x] > 0 then return true end
      end
    end
    return false
  end
  local ring = {}
  for j = 0, S - 1 do
    for i = 0, S - 1 do ring[j * S + i] = kept_within(i, j, FAR) and not kept_within(i, j, NEAR) end
  end
  local sums, count = { 0, 0, 0 }, 0
  for y = 0, H - 1 do
    for x = 0, W - 1 do
      local u = math.floor((matrix[1] * x + matrix[2] * y + matrix[3]) * S / width + 0.5)
      local v = math.floor((matrix[4] * x + matrix[5] * y + matrix[6]) * S / height + 0.5)
      if u >= 0 and v >= 0 and u < S and v < S and ring[v * S + u] then
        local at = 3 * (y * W + x)
        for c = 1, 3 do sums[c] = sums[c] + q[at + c - 1] - p[at + c - 1] end
        count = count + 1
      end
    end
  end
  if count == 0 then return nil end
  return math.sqrt((sums[1] ^ 2 + sums[2] ^ 2 + sums[3] ^ 2) / 3) / count
end

-- ---- generating ------------------------------------------------------------------------------

--- Lip-syncs a video with the checkpoint's own sampling, as the command lipsync does.
--- @param model LatentSync
--- @param video string
--- @param audio string
--- @param options table {out = path of a lossless video with the sound (nil: none), steps, guidance, start, duration (seconds),
---  frame = fun(before, after, item, mask, i)}
--- @return integer frames
function M.generate(model, video, audio, options)
  local sampler = samplers.new(settings.of_model({ steps = options.steps, guidance = options.guidance }, model.sampling,
    require 'models.latentsync.checkpoint'.scheduler(model.dir)))
  local source = windows.open(model, video, audio, {
    frames = math.min(16, model:max_frames()), start = options.start, duration = options.duration,
  })
  local sink = options.out and media.writer(options.out, { like = video, lossless = true, audio = audio })
  local count = 0
  local ok, reason = pcall(function()
    local mask = source.mask:to('cpu'):to('f32'):contiguous()
    while true do
      local clip = source:next()
      if not clip then break end
      cr.scope(function()
        local painted = {}
        if windows.has_face(clip) then
          local window = { cond = model:condition(clip), hear = model:listen(clip) }
          sampler:use(clip.source.generator)
          local x = sampler:run(model, window, model:noise(clip))
          model:wait()
          painted = model:paint(x, clip)
        end
        for i, item in ipairs(clip.items) do
          count = count + 1
          local before = item.frame:rgb():to('cpu'):contiguous()
          local after = painted[i] and painted[i]:contiguous() or before
          if sink then sink:write { after } end
          options.frame(before, after, item, mask, count)
        end
      end)
    end
    if sink then sink:close() end
  end)
  source:close()
  if not ok then
    if sink then sink:abort() end
    error(reason, 0)
  end
  return count
end

-- ---- sound -----------------------------------------------------------------------------------

--- Writes a sound as 16-bit WAV of 16 kHz with silence of `seconds` before it.
function M.delay_sound(path, out, seconds)
  local rate = 16000
  local samples = media.load_audio(path, { rate = rate, channels = 1 }):contiguous()
  local p, parts = samples:pointer(), { ('\0'):rep(2 * math.floor(seconds * rate + 0.5)) }
  for i = 0, samples:size(1) - 1 do
    local v = math.max(-32768, math.min(32767, math.floor(p[i] * 32768 + 0.5)))
    parts[#parts + 1] = scratch.le(v % 65536, 2)
  end
  require 'cr.files'.write(out, scratch.wav(table.concat(parts)))
end

return M
