--- SyncNet: embeddings of five mouth frames and of 0.2 s of sound, which are close to each other if both belong
--- together. Chung & Zisserman 2016.
--
-- Reads LatentSync's syncnet_v2.model, and any network of the same layers with other widths, which are derived from
-- the file. A JSON beside the file describes the network's input (syncnet.DEFAULTS is that of syncnet_v2.model).
-- Batch norms are folded into the preceding layers. The only convolution over time spans all five frames, so it is a
-- 2D convolution over images whose channels are those of all frames.

local cr = require 'cr'
local nn = require 'cr.nn'
local weights = require 'cr.weights'
local finite = require 'models.networks.finite'

local syncnet = {}

syncnet.FRAMES = 5 -- frames per image window; window i begins at frame i
syncnet.ROWS = 20 -- MFCC rows per sound window; window i begins at row 4 i
syncnet.SHIFT = 15 -- offsets that the metric tries in each direction

local COEFFICIENTS = 13
local NORM_EPS = 1e-5
local DISTANCE_EPS = 1e-6 -- torch's pairwise_distance adds it to every difference

--- The network's default input: the reference's.
syncnet.DEFAULTS = {
  crop = 'box', -- crop around the tracked face; 'aligned': crop from LatentSync's aligned face
  height = 224, width = 224, -- size of the image (for 'box')
  size = 256, -- side of the aligned face, and the rows and
  rows = { 0, 256 }, columns = { 0, 256 }, -- columns that are used (for 'aligned'): from 0, end exclusive
  channels = 'bgr', scale = 1, shift = 0, -- channel order; pixels (0..255) are multiplied by scale, then shift is added
  normalize = false, -- whether embeddings are normalized before they are compared
}

-- ---- layers ----------------------------------------------------------------------------------

-- { index in the checkpoint, options of nn.conv2d } or { pool = options of nn.max_pool2d }.
local SOUND = {
  { 0, { padding = 1 } }, { 4, { padding = 1 } }, { pool = { kernel = 3, stride = { 1, 2 } } },
  { 8, { padding = 1 } }, { 11, { padding = 1 } }, { 14, { padding = 1 } }, { pool = { kernel = 3, stride = 2 } },
  { 18, {} },
}
local MOUTH = {
  { 0, { stride = 2 } }, { pool = { kernel = 3, stride = 2 } },
  { 4, { stride = 2, padding = 1 } }, { pool = { kernel = 3, stride = 2, padding = 1 } },
  { 8, { padding = 1 } }, { 11, { padding = 1 } }, { 14, { padding = 1 } }, { pool = { kernel = 3, stride = 2 } },
  { 18, {} },
}
-- Kernel sizes, except that of the last image convolution, which covers what is left of the image.
local SOUND_KERNELS = { [0] = { 3, 3 }, [4] = { 3, 3 }, [8] = { 3, 3 }, [11] = { 3, 3 }, [14] = { 3, 3 }, [18] = { 5, 4 } }
local MOUTH_KERNELS = { [0] = { 5, 7, 7 }, [4] = { 1, 5, 5 }, [8] = { 1, 3, 3 }, [11] = { 1, 3, 3 }, [14] = { 1, 3, 3 } }

-- The size along one axis after a layer.
local function reduced(n, kernel, stride, padding) return math.floor((n + 2 * padding - kernel) / stride) + 1 end

--- The side of the feature map before the last convolution.
local function left_of(n)
  for _, layer in ipairs(MOUTH) do
    if layer[1] == 18 then return n end
    local o = layer.pool or layer[2]
    local kernel = layer.pool and o.kernel or MOUTH_KERNELS[layer[1]][3]
    n = reduced(n, kernel, o.stride or 1, o.padding or 0)
  end
end

--- The sizes of the full network, as `expected` takes them.
syncnet.FULL = {
  sound = { 64, 192, 384, 256, 256, 512 }, mouth = { 96, 256, 256, 256, 256, 512 }, picture = { 6, 6 },
  sound_hidden = 512, mouth_hidden = 512, embedding = 1024,
}

--- All tensors of a network, with their shapes in the checkpoint.
--- @param sizes table? like syncnet.FULL: channels of the convolutions, the last image kernel, the linear layers
--- @return table[] {name, shape}, {name =, shape =, optional = true}
function syncnet.expected(sizes)
  sizes = sizes or syncnet.FULL
  local list = {}
  local function norm(at, n)
    for _, part in ipairs { 'weight', 'bias', 'running_mean', 'running_var' } do
      list[#list + 1] = { name = at .. '.' .. part, shape = { n } }
    end
    list[#list + 1] = { name = at .. '.num_batches_tracked', shape = {}, optional = true }
  end
  local function convolutions(part, layers, kernels, channels, input)
    local k = 0
    for _, layer in ipairs(layers) do
      local place = layer[1]
      if place then
        k = k + 1
        local at, shape = ('%s.%d'):format(part, place), { channels[k], input }
        for _, size in ipairs(kernels[place]) do shape[#shape + 1] = size end
        list[#list + 1] = { name = at .. '.weight', shape = shape }
        list[#list + 1] = { name = at .. '.bias', shape = { channels[k] } }
        norm(('%s.%d'):format(part, place + 1), channels[k])
        input = channels[k]
      end
    end
    return input
  end
  local function head(part, input, hidden)
    list[#list + 1] = { name = part .. '.0.weight', shape = { hidden, input } }
    list[#list + 1] = { name = part .. '.0.bias', shape = { hidden } }
    norm(part .. '.1', hidden)
    list[#list + 1] = { name = part .. '.3.weight', shape = { sizes.embedding, hidden } }
    list[#list + 1] = { name = part .. '.3.bias', shape = { sizes.embedding } }
  end
  local mouth_kernels = { [18] = { 1, sizes.picture[1], sizes.picture[2] } }
  for place, kernel in pairs(MOUTH_KERNELS) do mouth_kernels[place] = kernel end
  local sound = convolutions('netcnnaud', SOUND, SOUND_KERNELS, sizes.sound, 1)
  head('netfcaud', sound, sizes.sound_hidden)
  local mouth = convolutions('netcnnlip', MOUTH, mouth_kernels, sizes.mouth, 3)
  head('netfclip', mouth, sizes.mouth_hidden)
  return list
end

--- The sizes of the network in a weights file.
local function sizes_of(file)
  local function shape(name, rank)
    if not file:has(name) then
      error(('%s is not a SyncNet: tensor %s is missing'):format(file.path, name), 0)
    end
    local s = file:info(name).shape
    if #s ~= rank then
      error(('%s is not a SyncNet: tensor %s has %d dimensions, expected %d'):format(file.path, name, #s, rank), 0)
    end
    return s
  end
  local sizes = { sound = {}, mouth = {} }
  for _, layer in ipairs(SOUND) do
    if layer[1] then table.insert(sizes.sound, shape(('netcnnaud.%d.weight'):format(layer[1]), 4)[1]) end
  end
  for _, layer in ipairs(MOUTH) do
    if layer[1] then table.insert(sizes.mouth, shape(('netcnnlip.%d.weight'):format(layer[1]), 5)[1]) end
  end
  local last = shape('netcnnlip.18.weight', 5)
  sizes.picture = { last[4], last[5] }
  sizes.sound_hidden, sizes.mouth_hidden = shape('netfcaud.0.weight', 2)[1], shape('netfclip.0.weight', 2)[1]
  sizes.embedding = shape('netfcaud.3.weight', 2)[1]
  return sizes
end

-- ---- input settings --------------------------------------------------------------------

local function range(value, limit)
  return type(value) == 'table' and #value == 2 and value[1] >= 0 and value[1] < value[2] and value[2] <= limit
    and value[1] % 1 == 0 and value[2] % 1 == 0
end

--- Checks settings and fills in defaults; `height` and `width` become those of the image.
--- @param settings table? like syncnet.DEFAULTS
--- @param where string? their origin, for messages
function syncnet.settings(settings, where)
  local s = {}
  for key, value in pairs(syncnet.DEFAULTS) do s[key] = value end
  local function bad(key)
    error(('%s: "%s" has an invalid value'):format(where or 'syncnet', key), 0)
  end
  for key, value in pairs(settings or {}) do
    if s[key] ~= nil then
      if type(value) ~= type(s[key]) then bad(key) end
      s[key] = value
    end
  end
  if s.crop ~= 'box' and s.crop ~= 'aligned' then bad 'crop' end
  if s.channels ~= 'bgr' and s.channels ~= 'rgb' then bad 'channels' end
  for _, key in ipairs { 'size', 'height', 'width' } do
    if s[key] % 1 ~= 0 or s[key] < 16 or s[key] > 4096 then bad(key) end
  end
  if s.crop == 'aligned' then
    -- The whole face, unless rows or columns are given.
    local given = settings or {}
    s.rows, s.columns = given.rows or { 0, s.size }, given.columns or { 0, s.size }
    if not range(s.rows, s.size) then bad 'rows' end
    if not range(s.columns, s.size) then bad 'columns' end
    s.height, s.width = s.rows[2] - s.rows[1], s.columns[2] - s.columns[1]
  end
  return s
end

--- The settings beside a weights file: its name with the extension .json.
local function settings_beside(path)
  local file = path:gsub('%.[^./]*$', '') .. '.json'
  local f = io.open(file, 'rb')
  if not f then return syncnet.settings(nil, path) end
  f:close()
  return syncnet.settings(require 'models.networks.config_file'.read(file), file)
end

-- ---- loading ---------------------------------------------------------------------------------

--- A layer's weight and bias, with the following batch norm folded in.
local function folded(layer, norm)
  local factor = norm.weight / (norm.running_var + NORM_EPS):sqrt()
  local shape = { factor:numel() }
  for i = 2, layer.weight:dim() do shape[i] = 1 end
  return {
    weight = layer.weight * factor:view(shape, {}),
    bias = (layer.bias - norm.running_mean) * factor + norm.bias,
  }
end

--- Copies that outlive the scope and the tree.
local function to_device(w, device)
  local function copy(x) return cr.keep(x:clone():to(device)) end
  return { weight = copy(w.weight), bias = copy(w.bias) }
end

local Net = {}
Net.__index = Net

--- Creates a network from a tree of its weights (float32, on the CPU, convolutions channels-last as weights.tree
--- makes them).
--- @param tree table
--- @param options table? {settings (see syncnet.DEFAULTS), device = 'cpu', where = a name for messages}
function syncnet.new(tree, options)
  options = options or {}
  local settings = syncnet.settings(options.settings, options.where)
  local last = tree.netcnnlip[18].weight
  local kernel_h, kernel_w = last:size(3), last:size(4)
  local left_h, left_w = left_of(settings.height), left_of(settings.width)
  if kernel_h ~= left_h or kernel_w ~= left_w then
    error(('%s: the last convolution is %d x %d, but an image of %d x %d leaves %d x %d for it'):format(
      options.where or 'syncnet', kernel_h, kernel_w, settings.height, settings.width, left_h, left_w), 0)
  end
  local self = setmetatable({ settings = settings, device = options.device or 'cpu', layers = {},
    embedding = tree.netfclip[3].weight:size(1) }, Net)
  cr.scope(function()
    local function convolutions(part, layers)
      local out = {}
      for i, layer in ipairs(layers) do
        if layer.pool then
          out[i] = { pool = layer.pool }
        else
          local w = folded(tree[part][layer[1]], tree[part][layer[1] + 1])
          -- Over images [O kt kh kw I]: time becomes part of the channels, [O kh kw kt*I].
          if w.weight:dim() == 5 then
            local s = w.weight.shape
            w.weight = w.weight:permute(1, 3, 4, 2, 5):reshape(s[1], s[3], s[4], s[2] * s[5])
          end
          local o = { act = 'relu', stride = layer[2].stride, padding = layer[2].padding }
          out[i] = { weights = to_device(w, self.device), options = o }
        end
      end
      self.layers[part] = out
    end
    local function head(part)
      self.layers[part] = { to_device(folded(tree[part][0], tree[part][1]), self.device),
        to_device(tree[part][3], self.device) }
    end
    convolutions('netcnnaud', SOUND)
    convolutions('netcnnlip', MOUTH)
    head 'netfcaud'
    head 'netfclip'
  end)
  return self
end

local function same_shapes(a, b)
  for i, item in ipairs(a) do
    if table.concat(item.shape, ' ') ~= table.concat(b[i].shape, ' ') then return false end
  end
  return true
end

--- Loads a SyncNet.
--- @param path string weights in any readable format, with their settings in NAME.json beside them, except for
---  syncnet_v2.model
--- @param options table? {device = 'cpu', settings = used instead of those beside the file}
--- @return table net: `full` says whether it has syncnet_v2.model's sizes
function syncnet.load(path, options)
  options = options or {}
  local settings = options.settings or settings_beside(path)
  local file = weights.open(path)
  local ok, result = pcall(function()
    local expected = syncnet.expected(sizes_of(file))
    local tree = finite.weights(weights.known(file, expected), path)
    local net = syncnet.new(tree, { settings = settings, device = options.device, where = path })
    weights.free(tree)
    net.full = same_shapes(expected, syncnet.expected())
    return net
  end)
  file:close()
  if not ok then error(result, 0) end
  return result
end

-- ---- embeddings ------------------------------------------------------------------------------

local function run(self, x, part, head)
  for _, layer in ipairs(self.layers[part]) do
    x = layer.pool and nn.max_pool2d(x, layer.pool) or nn.conv2d(layer.weights, x, layer.options)
  end
  local h = self.layers[head]
  local y = nn.linear(h[2], nn.linear(h[1], x:reshape(x:size(1), -1), { act = 'relu' }))
  if self.settings.normalize then y = y / (y:square():sum(2, true):sqrt() + 1e-12) end
  return y
end

--- Embeddings of sound windows.
--- @param rows Tensor f32 [4 (n - 1) + 20, 13]: MFCCs, the first window begins at the first row
--- @return Tensor f32 [n D]
function Net:sound(rows)
  if rows:dim() ~= 2 or rows:size(2) ~= COEFFICIENTS or rows:size(1) < syncnet.ROWS then
    error(('syncnet: the sound is %s, expected rows [20 or more, 13]'):format(cr.is_tensor(rows)
      and '[' .. table.concat(rows.shape, ' ') .. ']' or type(rows)), 2)
  end
  return cr.scope(function()
    local n = math.floor((rows:size(1) - syncnet.ROWS) / 4) + 1
    local x = rows:t()
    local list = {}
    for i = 1, n do list[i] = x:narrow(2, 4 * i - 3, syncnet.ROWS):unsqueeze(1) end
    return run(self, cr.cat(list, 1):unsqueeze(4):contiguous():to(self.device), 'netcnnaud', 'netfcaud')
  end)
end

--- Embeddings of image windows.
--- @param pictures Tensor u8 or float [n + 4, H, W, 3], RGB, 0..255: consecutive frames
--- @return Tensor f32 [n D]
function Net:mouth(pictures)
  local s = self.settings
  local shape = pictures.shape
  if #shape ~= 4 or shape[1] < syncnet.FRAMES or shape[2] ~= s.height or shape[3] ~= s.width or shape[4] ~= 3 then
    error(('syncnet: expected images [5 or more, %d %d 3], not [%s]'):format(s.height, s.width,
      table.concat(shape, ' ')), 2)
  end
  return cr.scope(function()
    local n = shape[1] - syncnet.FRAMES + 1
    local x = pictures:to(self.device):to 'f32'
    if s.channels == 'bgr' then x = cr.cat({ x:narrow(4, 3, 1), x:narrow(4, 2, 1), x:narrow(4, 1, 1) }, 4) end
    if s.scale ~= 1 then x = x * s.scale end
    if s.shift ~= 0 then x = x + s.shift end
    local frames = {}
    for i = 1, syncnet.FRAMES do frames[i] = x:narrow(1, i, n) end
    return run(self, cr.cat(frames, 4), 'netcnnlip', 'netfclip')
  end)
end

--- Frees the weights. May be called twice.
function Net:free()
  for _, layers in pairs(self.layers) do
    for _, layer in ipairs(layers) do
      local w = layer.weights or layer
      if w.weight then
        w.weight:free()
        w.bias:free()
      end
    end
  end
end

-- ---- the metric ------------------------------------------------------------------------------

local Metric = {}
Metric.__index = Metric

--- Accumulates the distances of a clip's windows: call `metric:add(mouth, sound)` in order, then `metric:result()`.
--- It holds about 30 windows, whatever the clip's length.
--- @return table
function syncnet.metric()
  return setmetatable({ count = 0, sums = {} }, Metric)
end

--- The distances at all offsets of the first `n` waiting image windows.
local function compare(self, n)
  if n < 1 then return end
  local shifts = 2 * syncnet.SHIFT + 1
  cr.scope(function()
    local mouth = self.mouth:narrow(1, 1, n)
    for k = 1, shifts do
      local distances = (mouth - self.sound:narrow(1, k, n) + DISTANCE_EPS):square():sum(2):sqrt()
      self.sums[k] = (self.sums[k] or 0) + distances:to 'f64':sum():item()
    end
  end)
  self.count = self.count + n
  local function drop(x)
    local rest = x:size(1) - n
    local kept = rest > 0 and cr.keep(cr.scope(function() return x:narrow(1, n + 1, rest):clone() end)) or nil
    x:free()
    return kept
  end
  self.mouth, self.sound = drop(self.mouth), drop(self.sound)
end

local function append(old, new)
  if not old then return cr.keep(new:clone()) end
  local joined = cr.keep(cr.cat({ old, new }, 1))
  old:free()
  return joined
end

--- Adds the embeddings of more windows, equally many of images and of sound.
--- @param mouth Tensor [n D]
--- @param sound Tensor [n D]
function Metric:add(mouth, sound)
  if mouth:dim() ~= 2 or sound:dim() ~= 2 or mouth:size(1) ~= sound:size(1) or mouth:size(2) ~= sound:size(2) then
    error(('syncnet: expected embeddings [n D] of equally many windows, not [%s] and [%s]'):format(
      table.concat(mouth.shape, ' '), table.concat(sound.shape, ' ')), 2)
  end
  cr.scope(function()
    mouth, sound = mouth:to 'cpu':to 'f32', sound:to 'cpu':to 'f32'
    -- Before the first and after the last window the sound's embeddings are zero.
    if not self.sound then self.sound = cr.keep(cr.zeros(syncnet.SHIFT, sound:size(2))) end
    self.mouth, self.sound = append(self.mouth, mouth), append(self.sound, sound)
    compare(self, math.min(self.mouth:size(1), self.sound:size(1) - 2 * syncnet.SHIFT))
  end)
end

--- The offset with the smallest mean distance, and the confidence: how far this distance is below the median.
--- @param distances number[] 31 means, for offsets 15 ... -15
--- @return number offset in frames, number confidence, number minimum
function syncnet.judge(distances)
  local best = 1
  for k, d in ipairs(distances) do
    if d < distances[best] then best = k end
  end
  local sorted = { unpack(distances) }
  table.sort(sorted)
  local median = sorted[math.floor((#sorted + 1) / 2)]
  return syncnet.SHIFT - (best - 1), median - distances[best], distances[best]
end

--- Finishes the clip.
--- @return table? {offset (frames; positive if the sound precedes the video), confidence, minimum, distances = number[31]: the
---  mean distances at offsets 15, 14 ... -15, windows}; nil if there was no window
function Metric:result()
  if not self.sound then return nil end
  cr.scope(function()
    if self.mouth then
      local n = self.mouth:size(1)
      self.sound = append(self.sound, cr.zeros(syncnet.SHIFT, self.sound:size(2)))
      compare(self, n)
    end
  end)
  self:free()
  local distances = {}
  for k, sum in ipairs(self.sums) do distances[k] = sum / self.count end
  local offset, confidence, minimum = syncnet.judge(distances)
  return { offset = offset, confidence = confidence, minimum = minimum, distances = distances, windows = self.count }
end

--- Frees the queued frames. May be called twice.
function Metric:free()
  if self.mouth then self.mouth:free() end
  if self.sound then self.sound:free() end
  self.mouth, self.sound = nil, nil
end

return syncnet
