-- Audio to the audio tokens of each video frame: Whisper's log-mel spectrogram, encoder features per segment,
-- ten positions around each frame.
--
-- The audio is never in memory as a whole. A source is opened twice: once for the clip's length and its
-- maximum mel value (Whisper clamps relative to the maximum of the whole clip), then for the features, which
-- are computed segment by segment when windows ask for them. Rates per second: 16000 samples, 100 mel frames,
-- 50 encoder positions, 25 video frames.

local ffi = require 'ffi'
local cr = require 'cr'
local nn = require 'cr.nn'

local M = {}

local RATE, FFT, HOP, MELS = 16000, 400, 160, 80
local BINS = FFT / 2 + 1
local HALF = FFT / 2
local BLOCK = 1500 -- mel frames per computation

M.rate = RATE

-- ---- tables ----

-- Slaney's mel scale: linear below 1000 Hz, logarithmic above.
local function hz_of_mel(m)
  if m < 15 then return m * 200 / 3 end
  return 1000 * math.exp((m - 15) * math.log(6.4) / 27)
end

local function mel_of_hz(f)
  if f < 1000 then return f * 3 / 200 end
  return 15 + math.log(f / 1000) * 27 / math.log(6.4)
end

--- The mel filter bank as rows [bins][mels]: triangles of equal area on Slaney's scale, from 0 Hz to the
--- Nyquist frequency.
--- @return number[][]
function M.mel_filters()
  local edges, top = {}, mel_of_hz(RATE / 2)
  for i = 0, MELS + 1 do edges[i] = hz_of_mel(top * i / (MELS + 1)) end
  local rows = {}
  for bin = 0, BINS - 1 do
    local f, row = bin * RATE / FFT, {}
    for m = 1, MELS do
      local rise = (f - edges[m - 1]) / (edges[m] - edges[m - 1])
      local fall = (edges[m + 1] - f) / (edges[m + 1] - edges[m])
      row[m] = math.max(0, math.min(rise, fall)) * 2 / (edges[m + 1] - edges[m - 1])
    end
    rows[bin + 1] = row
  end
  return rows
end

-- The windowed Fourier transform as a matrix [FFT, 2 * BINS] (cosines, then sines, each times the periodic
-- Hann window), and the filter bank. They are in double precision: quiet bands lie far below the loudest bin
-- of a frame, and would drown in the rounding errors of single-precision sums.
local function make_tables()
  local fourier = cr.empty({ FFT, 2 * BINS }, { dtype = 'f64' })
  local p = fourier:pointer()
  for n = 0, FFT - 1 do
    local window = 0.5 - 0.5 * math.cos(2 * math.pi * n / FFT)
    local row = p + n * 2 * BINS
    for k = 0, BINS - 1 do
      local angle = 2 * math.pi * ((n * k) % FFT) / FFT
      row[k], row[BINS + k] = window * math.cos(angle), window * math.sin(angle)
    end
  end
  -- `keep`, because streams outlive the scope that is open now.
  return { fourier = cr.keep(fourier), mel = cr.keep(cr.tensor(M.mel_filters(), { dtype = 'f64' })) }
end

-- log10 of the mel powers of n frames; samples f32 [(n + 2) * HOP].
local function log_mel(tables, samples, n)
  -- A frame spans two and a half hops: three shifted views of the hops, concatenated.
  local hops = samples:view(n + 2, HOP)
  local frames = cr.cat({ hops:narrow(1, 1, n), hops:narrow(1, 2, n),
    hops:narrow(1, 3, n):narrow(2, 1, FFT - 2 * HOP) }, 2):to 'f64'
  local power = frames:matmul(tables.fourier):square():view(n, 2, BINS):sum(2)
  return power:matmul(tables.mel):clamp(1e-10, math.huge):log10()
end

-- ---- the spectrogram of a stream ----

--- @class MelStream
--- @field count integer mel frames returned so far
--- @field finished boolean
local mel_stream = {}
mel_stream.__index = mel_stream

-- A sound is a tensor of samples, or a function that opens the sound and returns an iterator over its pieces
-- (nil at the end).
local function open_source(source)
  if cr.is_tensor(source) then
    local at, n = 0, source:size(1)
    return function()
      if at >= n then return nil end
      local take = math.min(RATE, n - at)
      at = at + take
      return source:narrow(1, at - take + 1, take)
    end
  end
  if type(source) ~= 'function' then
    error('audio: the source must be a tensor of samples, or a function that opens a sound', 3)
  end
  local next_piece = source()
  if type(next_piece) ~= 'function' then
    error('audio: the source must return an iterator over pieces of sound', 3)
  end
  return next_piece
end

--- Whisper's spectrogram of a sound, piece by piece: log10 of the mel powers, before the clamping and scaling
--- that need the maximum of the whole clip.
--- @param source Tensor|fun(): fun(): Tensor? f32 samples at 16 kHz: a tensor, or a function that opens the sound
--- @param tables? table the tables of another stream, to share them
--- @return MelStream
function M.mel_stream(source, tables)
  return setmetatable({
    next_piece = open_source(source), tables = tables or make_tables(), count = 0, samples = 0,
    finished = false, ended = false, buffer = ffi.new('float[?]', (BLOCK + 2) * HOP), held = 0,
    size = 0, at = 0,
  }, mel_stream)
end

-- Copies the next piece of sound into Lua's memory, because scopes may end before it is used; false at the
-- end.
function mel_stream:fetch()
  return cr.scope(function()
    local piece = self.next_piece()
    if not piece then
      self.ended = true
      return false
    end
    if piece:dim() == 2 and piece:size(2) == 1 then piece = piece:reshape(piece:size(1)) end
    if piece:dim() ~= 1 then
      error(('audio: a piece of mono sound must have shape [n], not [%s]'):format(table.concat(piece.shape, ' ')), 0)
    end
    piece = piece:to('cpu'):to('f32'):contiguous()
    self.at, self.size = 0, piece:numel()
    if not self.piece or self.room < self.size then
      self.room = self.size
      self.piece = ffi.new('float[?]', self.size)
    end
    if self.size > 0 then ffi.copy(self.piece, piece:pointer(), self.size * 4) end
    return true
  end)
end

-- Moves up to n samples to the buffer; false at the end of the sound.
function mel_stream:pull(n)
  while n > 0 do
    if self.at >= self.size and not self:fetch() then return false end
    local take = math.min(n, self.size - self.at)
    if take > 0 then
      ffi.copy(self.buffer + self.held, self.piece + self.at, take * 4)
      self.held, self.at, n = self.held + take, self.at + take, n - take
      self.samples = self.samples + take
    end
  end
  return true
end

--- Reads up to n (<= 1500) more mel frames.
--- @param n integer
--- @return Tensor? f64 [m 80], nil at the end
function mel_stream:read(n)
  n = math.min(n, BLOCK)
  if self.finished then return nil end
  local b = self.buffer
  if self.samples == 0 and self.held == 0 then
    -- The first frame is centred on the first sample: the samples before it are mirrored.
    self.held = HALF
    self:pull(HALF + 1)
    if self.samples < HALF + 1 then
      error(('audio: the sound is too short: %d samples at 16 kHz, at least %d are needed'):format(
        self.samples, 2 * HOP), 0)
    end
    for i = 0, HALF - 1 do b[i] = b[2 * HALF - i] end
  end
  -- The n-th frame ends at (n - 1) * HOP + FFT; half a hop more is read, so that the view of whole hops below
  -- fits.
  local want = (n + 2) * HOP
  if not self.ended then self:pull(want - self.held) end
  if self.ended then
    -- Frames whose start lies in the sound, without the last one, whose centre is past the end.
    local left = math.floor(self.samples / HOP) - self.count
    n = math.min(n, left)
    if n <= 0 then
      self.finished = true
      return nil
    end
    local need = (n - 1) * HOP + FFT
    local tail = self.held
    for i = tail, math.max(need, (n + 2) * HOP) - 1 do
      b[i] = i < need and b[2 * tail - 2 - i] or 0
    end
  end
  local out = cr.scope(function()
    return log_mel(self.tables, cr.from_pointer(b, { (n + 2) * HOP }, 'f32', b), n)
  end)
  -- Drops the hops that are done; the mirrored samples at the end are not kept.
  local done = n * HOP
  local rest = math.max(0, self.held - done)
  for i = 0, rest - 1 do b[i] = b[i + done] end
  self.held = rest
  self.count = self.count + n
  return out
end

--- The whole spectrogram of a short sound, normalized as in Whisper.
--- @param source Tensor|fun(): fun(): Tensor?
--- @return Tensor f32 [frames 80]
function M.log_mel_spectrogram(source)
  return cr.scope(function()
    local stream, parts = M.mel_stream(source), {}
    while true do
      local part = stream:read(BLOCK)
      if not part then break end
      parts[#parts + 1] = part
    end
    if not parts[1] then error('audio: the sound is shorter than a hundredth of a second', 0) end
    local all = cr.cat(parts, 1)
    local top = all:max():item()
    return ((all:clamp(top - 8, math.huge) + 4) / 4):to 'f32'
  end)
end

-- ---- tokens ----

--- @class AudioTokens
--- @field frames integer mel frames in the clip
--- @field positions integer Whisper encoder positions in the clip
--- @field samples integer samples in the clip
--- @field top number the largest log10 mel power
local tokens = {}
tokens.__index = tokens

--- @class SoundFacts figures that need the whole sound
--- @field samples integer
--- @field frames integer mel frames
--- @field top number the largest log10 mel power

--- Reads a sound once, to get its length and its maximum.
--- @param source Tensor|fun(): fun(): Tensor? f32 mono samples at 16 kHz
--- @param tables? table the tables of a stream, to share them
--- @return SoundFacts
function M.facts(source, tables)
  local stream, top = M.mel_stream(source, tables), -math.huge
  while true do
    local more = cr.scope(function()
      local part = stream:read(BLOCK)
      if part then top = math.max(top, part:max():item()) end
      return part ~= nil
    end)
    if not more then break end
  end
  if not tables then
    for _, table in pairs(stream.tables) do table:free() end
  end
  return { samples = stream.samples, frames = stream.count, top = top }
end

--- Prepares the audio tokens of a clip. It reads the sound once for its length and maximum, unless these are
--- given.
--- @param model Whisper
--- @param source Tensor|fun(): fun(): Tensor? f32 mono samples at 16 kHz, already passed through 16 bits
--- @param options? { overlap?: number, facts?: SoundFacts } overlap: seconds by which segments of 30 s overlap; one fades
--- into the next over the middle half of the overlap, so that no border is audible. 0 is the reference's behaviour
--- @return AudioTokens
function M.tokens(model, source, options)
  local overlap = options and options.overlap or 0
  local length = model:segment_frames()
  -- An integer number of positions on either side of the seam.
  local shared = math.floor(overlap * 100 / 4 + 0.5) * 4
  if overlap < 0 or overlap ~= overlap or shared > length / 2 then
    error(('audio: an overlap of %s s does not fit segments of %g s (at most half)'):format(
      tostring(overlap), length / 100), 2)
  end
  local tables = make_tables()
  local facts = options and options.facts or M.facts(source, tables)
  if facts.frames < 2 then
    error(('audio: the sound is too short: %d samples at 16 kHz, at least %d are needed'):format(
      facts.samples, 2 * HOP), 2)
  end
  local self = setmetatable({
    model = model, source = source, top = facts.top, frames = facts.frames, samples = facts.samples,
    positions = math.floor(facts.frames / 2), length = length, shared = shared,
    stride = length - shared, tables = tables, cache = {}, order = {},
  }, tokens)
  self.segments = math.max(1, math.ceil((self.frames - shared) / self.stride))
  return self
end

--- How many video frames the clip has tokens for: two more than it lasts.
--- @return integer
function tokens:count() return math.floor(self.positions / 2) + 2 end

-- The normalized mel frames of segment s (from 0), [length 80]. Reading continues where the last segment
-- stopped; the frames that the next segment shares are kept.
function tokens:read_segment(s)
  local first = s * self.stride
  if not self.stream or self.next_segment ~= s then
    -- A segment that does not follow the last one: restart from the beginning.
    self.stream = M.mel_stream(self.source, self.tables)
    if self.kept then self.kept:free() end
    self.kept = nil
    while self.stream.count < first do
      if not cr.scope(function() return self.stream:read(first - self.stream.count) ~= nil end) then break end
    end
  end
  local mel, kept = cr.scope(function()
    local parts = { self.kept }
    local have = self.kept and self.kept:size(1) or 0
    while have < self.length do
      local part = self.stream:read(self.length - have)
      if not part then break end
      have = have + part:size(1)
      parts[#parts + 1] = ((part:clamp(self.top - 8, math.huge) + 4) / 4):to 'f32'
    end
    local all = cr.cat(parts, 1)
    local rest
    if self.shared > 0 and have == self.length then
      rest = all:narrow(1, self.stride + 1, self.shared):clone()
    end
    if have < self.length then all = nn.pad(all, {}, { self.length - have }, 0) end
    return all, rest
  end)
  if self.kept then self.kept:free() end
  self.kept, self.next_segment = kept and cr.keep(kept), s + 1
  return mel
end

-- Encoder features of segment s; the two most recent segments are cached.
function tokens:features(s)
  if self.cache[s] then return self.cache[s] end
  local f = cr.keep(cr.scope(function() return self.model:encode(self:read_segment(s)) end))
  self.cache[s] = f
  self.order[#self.order + 1] = s
  if #self.order > 2 then
    local old = table.remove(self.order, 1)
    self.cache[old]:free()
    self.cache[old] = nil
  end
  return f
end

-- Which segment position p (from 0) is taken from, the last position of the same run, and whether that run
-- fades into the next segment. Segments meet in the middle of their overlap and fade over half of it.
function tokens:segment_of(p)
  local stride, seam, fade = self.stride / 2, self.shared / 4, math.floor(self.shared / 8)
  local s = math.max(0, math.min(self.segments - 1, math.floor((p - seam + fade) / stride)))
  -- Counted from the middle of the seam with the previous segment.
  local since = p - s * stride - seam
  if s > 0 and since < fade then return s - 1, s * stride + seam + fade - 1, true end
  return s, s == self.segments - 1 and self.positions - 1 or (s + 1) * stride + seam - fade - 1, false
end

-- Positions first..last (from 0) of one run of segment_of, as a new tensor [n layers D].
function tokens:positions_of(first, last)
  local s, _, fades = self:segment_of(first)
  local n, stride = last - first + 1, self.stride / 2
  local function of(segment) return self:features(segment):narrow(1, first - segment * stride + 1, n) end
  -- A copy, because the cache may drop the segment before the parts are joined.
  local rows = of(s):clone()
  if not fades then return rows end
  local fade = math.floor(self.shared / 8)
  local begin = (s + 1) * stride + self.shared / 4 - fade
  local share = (cr.arange(first - begin, last - begin) + 0.5) / (2 * fade)
  return rows + (of(s + 1) - rows) * share:view(n, 1, 1):to(rows.dtype):to(rows.device)
end

--- Tokens of n video frames at 25 per second, from frame `first` (1-based). Frames past count() repeat the
--- last position, as the last frames of the clip do.
--- @param first integer
--- @param n integer
--- @return Tensor [n 50 D]: ten positions of all layers for each frame
function tokens:window(first, n)
  if first < 1 or n < 1 or first ~= math.floor(first) or n ~= math.floor(n) then
    error(('audio: there is no window of %s frames from frame %s'):format(tostring(n), tostring(first)), 2)
  end
  return cr.scope(function()
    -- Frame i (from 0) takes positions 2i - 4 .. 2i + 5, clamped to the clip.
    local low, high = 2 * (first - 1) - 4, 2 * (first + n - 2) + 5
    local parts = {}
    local function repeated(p, times)
      parts[#parts + 1] = self:positions_of(p, p):expand(times, -1, -1):contiguous()
    end
    if low < 0 then repeated(0, math.min(-low, high - low + 1)) end
    local p = math.max(low, 0)
    while p <= math.min(high, self.positions - 1) do
      local _, last = self:segment_of(p)
      local stop = math.min(last, high)
      parts[#parts + 1] = self:positions_of(p, stop)
      p = stop + 1
    end
    if high >= self.positions then
      repeated(self.positions - 1, math.min(high - self.positions + 1, high - low + 1))
    end
    local all = cr.cat(parts, 1)
    local layers, D = all:size(2), all:size(3)
    local frames = {}
    for i = 1, n do frames[i] = all:narrow(1, 2 * i - 1, 10):view(1, 10 * layers, D) end
    return cr.cat(frames, 1)
  end)
end

--- Frees the cached features.
function tokens:free()
  for _, f in pairs(self.cache) do f:free() end
  if self.kept then self.kept:free() end
  for _, t in pairs(self.tables) do t:free() end
  self.cache, self.order, self.kept, self.stream, self.tables = {}, {}, nil, nil, nil
end

return M
