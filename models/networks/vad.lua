--- Voice activity detection: the probability of speech, 31 times per second, and the resulting segments of speech.
--- Silero VAD 6.2, 16 kHz (the Silero team, MIT).
--
--     local net = vad.load()
--     local stream = net:stream()
--     local probabilities = stream:feed(samples)   -- one for each complete chunk of 512 samples
--     local last = stream:finish()                 -- for the rest, padded with silence
--     local speech = vad.segments(all, { samples = n })
--
-- A chunk is processed with the 64 samples before it: four spectra, four convolutions down to one row of 128 numbers,
-- an LSTM cell, a sigmoid. Chunks that arrive together pass the convolutions as a batch; the LSTM cell takes them one
-- by one, and its state lives as long as the stream. The weights are the 15 initializers of the package's
-- silero_vad_16k_op15.onnx, under the same names. (The package's .safetensors contains another network's weights.)

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local cr = require 'cr'
local nn = require 'cr.nn'
local weights = require 'cr.weights'
local finite = require 'models.networks.finite'

local M = { rate = 16000, chunk = 512 }

local CHUNK, CONTEXT, MIRRORED = M.chunk, 64, 64 -- samples: per chunk, before it, and mirrored after the end
local SEEN = CONTEXT + CHUNK + MIRRORED
local WINDOW, HOP, BINS = 256, 128, 129 -- of the spectra
local SPECTRA = (SEEN - WINDOW) / HOP + 1
local STATE = 128 -- size of the LSTM's state
local TOGETHER = 256 -- chunks per batch: 8 s
local LAYERS = { { BINS, 128, 1 }, { 128, 64, 2 }, { 64, 64, 2 }, { 64, STATE, 1 } } -- input and output channels, stride

-- ---- weights -------------------------------------------------------------------------------------

--- All tensors of the network: names and shapes.
--- @return table[]
function M.expected()
  local list = { { 'model.stft.forward_basis_buffer', { 2 * BINS, 1, WINDOW } } }
  local function add(name, ...) list[#list + 1] = { name, { ... } } end
  for i, layer in ipairs(LAYERS) do
    local name = ('model.encoder.%d.reparam_conv.'):format(i - 1)
    add(name .. 'weight', layer[2], layer[1], 3)
    add(name .. 'bias', layer[2])
  end
  for _, part in ipairs { 'ih', 'hh' } do
    add('model.decoder.rnn.weight_' .. part, 4 * STATE, STATE)
    add('model.decoder.rnn.bias_' .. part, 4 * STATE)
  end
  add('model.decoder.decoder.2.weight', 1, STATE, 1)
  add('model.decoder.decoder.2.bias', 1)
  return list
end

--- Converts the package's ONNX file to safetensors.
--- @param from string silero_vad_16k_op15.onnx
--- @param to string ends in .safetensors
function M.convert(from, to)
  local file, kept = weights.open(from), {}
  local ok, problem = pcall(function()
    weights.check(file, M.expected())
    for _, item in ipairs(M.expected()) do kept[item[1]] = file:get(item[1]) end
    cr.save(to, kept)
  end)
  for _, tensor in pairs(kept) do tensor:free() end
  file:close()
  if not ok then error(problem, 0) end
end

local FETCHED = cr.root .. '/models/fetched/vad/silero_vad_16k.safetensors'

--- The path of the fetched weights; one sentence as an error if they are missing.
--- @return string path
function M.file()
  if not require 'lfs'.attributes(FETCHED, 'mode') then
    require 'cr.errors'.fail 'the voice activity detector is not fetched: run `make models`'
  end
  return FETCHED
end

--- @class VoiceActivity
--- @field device string
local Net = {}
Net.__index = Net

--- Loads the network, f32.
--- @param path string? its 15 tensors, safetensors or the package's ONNX file (the fetched ones)
--- @param options table? {device = 'cpu'}
--- @return VoiceActivity
function M.load(path, options)
  local device = options and options.device or 'cpu'
  local file = weights.open(path or M.file())
  local ok, tree = pcall(weights.known, file, M.expected(), { device = device }, { '' })
  file:close()
  if not ok then error(tree, 0) end
  local w = finite.weights(tree, file.path).model
  local rnn = w.decoder.rnn
  local self = setmetatable({ tree = tree, device = device, layers = {} }, Net)
  self.spectra = { weight = w.stft.forward_basis_buffer:view(2 * BINS, WINDOW) }
  for i, layer in ipairs(LAYERS) do
    local conv = w.encoder[i - 1].reparam_conv
    self.layers[i] = { weight = conv.weight:view(layer[2], 1, 3, layer[1]), bias = conv.bias }
  end
  self.input, self.back = { weight = rnn.weight_ih, bias = rnn.bias_ih }, { weight = rnn.weight_hh, bias = rnn.bias_hh }
  self.last = { weight = w.decoder.decoder[2].weight:view(1, STATE), bias = w.decoder.decoder[2].bias }
  cr.keep(self.spectra.weight, self.last.weight)
  for _, layer in ipairs(self.layers) do cr.keep(layer.weight) end
  return self
end

--- Frees the weights.
function Net:free()
  self.spectra.weight:free()
  self.last.weight:free()
  for _, layer in ipairs(self.layers) do layer.weight:free() end
  weights.free(self.tree)
end

-- ---- the network ---------------------------------------------------------------------------------

-- The convolutions, from chunks [N 640] to [N 128].
local function encode(net, x)
  local N = x:size(1)
  local frames = {}
  for i = 1, SPECTRA do frames[i] = x:narrow(2, (i - 1) * HOP + 1, WINDOW) end
  local both = nn.linear(net.spectra, cr.stack(frames, 2):contiguous()):square() -- [N 4 258]
  local y = (both:narrow(3, 1, BINS) + both:narrow(3, BINS + 1, BINS)):sqrt():view(N, 1, SPECTRA, BINS)
  for i, layer in ipairs(LAYERS) do
    y = nn.conv2d(net.layers[i], y, { stride = { 1, layer[3] }, padding = { 0, 1 }, act = 'relu' })
  end
  return y:view(N, STATE)
end

-- The LSTM cell over N rows [N 128], from a state of h and c [1 128]; returns all h [N 128], and the last c.
local function cell(net, rows, h, c)
  local gates, list = nn.linear(net.input, rows), {}
  for i = 1, rows:size(1) do
    local all = nn.linear(net.back, h, { residual = gates:narrow(1, i, 1) })
    local open = all:sigmoid()
    local new = all:narrow(2, 2 * STATE + 1, STATE):tanh()
    c = open:narrow(2, STATE + 1, STATE) * c + open:narrow(2, 1, STATE) * new
    h = open:narrow(2, 3 * STATE + 1, STATE) * c:tanh()
    list[i] = h
  end
  return cr.cat(list, 1), c
end

-- ---- a stream ------------------------------------------------------------------------------------

--- @class VoiceStream
--- @field net VoiceActivity
local Stream = {}
Stream.__index = Stream

--- Begins a sound, with silence before it and a new state.
--- @return VoiceStream
function Net:stream()
  local function zeros() return cr.keep(cr.zeros({ 1, STATE }, { device = self.device })) end
  -- The samples of up to TOGETHER chunks, after their context.
  local self_ = { net = self, samples = ffi.new('float[?]', CONTEXT + TOGETHER * CHUNK), held = 0, h = zeros(), c = zeros() }
  return setmetatable(self_, Stream)
end

-- Runs the complete chunks through the network; appends their probabilities to `out`.
local function run(self, out)
  local N = math.floor(self.held / CHUNK)
  if N == 0 then return end
  local seen, s = ffi.new('float[?]', N * SEEN), self.samples
  for k = 0, N - 1 do
    local row = seen + k * SEEN
    ffi.copy(row, s + k * CHUNK, (CONTEXT + CHUNK) * 4)
    for j = 0, MIRRORED - 1 do row[CONTEXT + CHUNK + j] = row[CONTEXT + CHUNK - 2 - j] end
  end
  local h, c, values = cr.scope(function()
    local x = cr.from_pointer(seen, { N, SEEN }, 'f32', seen):to(self.net.device)
    local all, last = cell(self.net, encode(self.net, x), self.h, self.c)
    local values = nn.linear(self.net.last, all:relu()):sigmoid():to('cpu'):view(N):tolist()
    return all:narrow(1, N, 1):clone(), last:clone(), values
  end)
  self.h:free()
  self.c:free()
  self.h, self.c = cr.keep(h, c)
  for i = 1, N do out[#out + 1] = values[i] end
  -- The last samples become the next chunk's context. (ffi.copy does not allow overlapping memory.)
  for i = 0, CONTEXT + self.held - N * CHUNK - 1 do s[i] = s[N * CHUNK + i] end
  self.held = self.held - N * CHUNK
end

--- Takes the next samples.
--- @param samples Tensor f32 [n] or [n 1], mono, 16 kHz, in [-1, 1]; of any length
--- @return number[] the probability of speech for each chunk of 512 samples that is complete now; often none
function Stream:feed(samples)
  local out = {}
  cr.scope(function()
    local x = samples:reshape(samples:numel()):to('cpu'):to('f32'):contiguous()
    local n, at = x:numel(), 0
    while at < n do
      local take = math.min(n - at, TOGETHER * CHUNK - self.held)
      ffi.copy(self.samples + CONTEXT + self.held, x:pointer() + at, take * 4)
      self.held, at = self.held + take, at + take
      run(self, out)
    end
  end)
  return out
end

--- Ends the sound: the rest is padded with silence. The stream cannot be fed any more.
--- @return number[] one probability, or none if nothing is left
function Stream:finish()
  local out = {}
  if self.held > 0 then
    ffi.fill(self.samples + CONTEXT + self.held, (CHUNK - self.held) * 4)
    self.held = CHUNK
    run(self, out)
  end
  self:free()
  return out
end

--- Frees the state; finish also does that.
function Stream:free()
  self.h:free()
  self.c:free()
end

-- ---- segments ------------------------------------------------------------------------------------

-- Longer segments are split at their longest inner silence, or at their last one.
local DEFAULTS = {
  threshold = 0.5, min_speech_duration_ms = 250, min_silence_duration_ms = 100, speech_pad_ms = 30,
  max_speech_duration_s = math.huge, min_silence_at_max_speech = 98, use_max_poss_sil_at_max_speech = true,
}

-- The segments before padding, in samples: a list of {start, stop}.
local function found(probabilities, o, samples)
  local function of(ms) return M.rate * ms / 1000 end
  local enter, leave = o.threshold, o.neg_threshold or math.max(o.threshold - 0.15, 0.01)
  local pad, least, silence, cut = of(o.speech_pad_ms), of(o.min_speech_duration_ms), of(o.min_silence_duration_ms),
    of(o.min_silence_at_max_speech)
  local longest = M.rate * o.max_speech_duration_s - CHUNK - 2 * pad
  local list = {}
  local start -- start of the current segment
  local quiet -- start of the silence that may end it
  local ends = {} -- silences inside it that are long enough to split at: {position, length}
  local before, after -- the last of these, if only the last counts: its start, and the end of the silence

  local function close(stop)
    list[#list + 1] = { start, stop }
    start, quiet, before, after, ends = nil, nil, nil, nil, {}
  end

  -- Splits a segment that has become too long; returns whether this chunk is finished.
  local function shorten(at)
    if o.use_max_poss_sil_at_max_speech and ends[1] then
      local best = ends[1]
      for _, e in ipairs(ends) do
        if e[2] > best[2] then best = e end
      end
      close(best[1])
      start = best[1] + best[2]
      return false
    end
    local again = before and after and after >= before and after or nil
    if not before then
      close(at)
      return true
    end
    close(before)
    start = again
    return false
  end

  for i, p in ipairs(probabilities) do
    local at, done = CHUNK * (i - 1), false
    if p >= enter and quiet then
      if at - quiet > cut then ends[#ends + 1] = { quiet, at - quiet } end
      quiet = nil
      if before and not (after and after >= before) then after = at end
    end
    if p >= enter and not start then
      start, done = at, true
    elseif start and at - start > longest then
      done = shorten(at)
    end
    if not done and p < leave and start then
      quiet = quiet or at
      if not o.use_max_poss_sil_at_max_speech and at - quiet > cut then before = quiet end
      if at - quiet >= silence then
        if quiet - start > least then close(quiet) else start, quiet, before, after, ends = nil, nil, nil, nil, {} end
      end
    end
  end
  if start and samples - start > least then close(samples) end
  return list, pad
end

--- Segments of speech from the probabilities of a sound's chunks, by the rules and options of the package's
--- get_speech_timestamps: speech begins at `threshold`, and ends when the probability stays below neg_threshold for
--- long enough.
--- @param probabilities number[] of chunks of 512 samples
--- @param options table? {samples = length of the sound (default: all chunks complete), threshold = 0.5, neg_threshold =
---   threshold - 0.15 (at least 0.01), min_speech_duration_ms = 250, min_silence_duration_ms = 100, speech_pad_ms = 30 on each
---   side, max_speech_duration_s = unlimited, min_silence_at_max_speech = 98 (ms), use_max_poss_sil_at_max_speech = true: split at
---   the longest inner silence, not at the last one}
--- @return integer[][] a list of {first sample (from 0), sample after the last}, in order
function M.segments(probabilities, options)
  local o = setmetatable(options or {}, { __index = DEFAULTS })
  local samples = o.samples or #probabilities * CHUNK
  local list, pad = found(probabilities, o, samples)
  for i, s in ipairs(list) do
    local following = list[i + 1]
    if i == 1 then s[1] = math.floor(math.max(0, s[1] - pad)) end
    local gap = following and following[1] - s[2]
    if gap and gap < 2 * pad then
      -- Neighbouring segments share the gap between them.
      s[2] = s[2] + math.floor(gap / 2)
      following[1] = math.floor(math.max(0, following[1] - math.floor(gap / 2)))
    else
      s[2] = math.floor(math.min(samples, s[2] + pad))
      if following then following[1] = math.floor(math.max(0, following[1] - pad)) end
    end
  end
  return list
end

local maybe, number, flag = arguments.maybe, arguments.finite, arguments.maybe(arguments.boolean)
local text = maybe(arguments.string)
arguments.methods(Net, 'vad net', { stream = {}, free = {} })
arguments.methods(Stream, 'vad stream', { feed = { cr.kinds.alive }, finish = {}, free = {} })
return arguments.guard('vad.', M, {
  expected = {}, convert = { arguments.string, arguments.string }, file = {},
  load = { text, maybe(arguments.options { device = text }) },
  segments = { arguments.list('a list of probabilities', number), maybe(arguments.options {
    samples = maybe(number), threshold = maybe(number), neg_threshold = maybe(number), min_speech_duration_ms = maybe(number),
    min_silence_duration_ms = maybe(number), speech_pad_ms = maybe(number), max_speech_duration_s = maybe(arguments.number),
    min_silence_at_max_speech = maybe(number), use_max_poss_sil_at_max_speech = flag,
  }) },
})
