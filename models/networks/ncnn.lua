--- Reads upscaling networks in ncnn's format, a .param file (the graph as text) and a .bin file (the weights), as a
--- weights file with the authors' key names: RRDBNet and SRVGGNetCompact.
--
-- The graph is not executed. Its layers are matched one by one against the two known networks, including connections
-- and scales; the k-th convolution is then the network's k-th. Nothing in a file is executed.
--
-- Invariants: every line must be a known layer. Every count is checked against the .bin's size before it is used, and
-- the .bin must end with the last layer. A file that violates this gives one sentence.

local cr = require 'cr'
local ffi = require 'ffi'

local M = {}

local MAGIC = '7767517'
local MOST_TEXT, MOST_BYTES, MOST_LAYERS, MOST_CHANNELS = 2 ^ 22, 2 ^ 30, 8192, 4096
local F16_TAG, F32_TAGS = 0x01306B47, { [0] = true, [0x0002C056] = true }

local function fail(path, ...) error(path .. ': ' .. (...):format(select(2, ...)), 0) end

local function read_file(path, most)
  local handle, reason = io.open(path, 'rb')
  if not handle then error(reason, 0) end
  local size = handle:seek 'end'
  if not size or size > most then
    handle:close()
    fail(path, 'it has more than %d bytes, too many for an upscaling network', most)
  end
  handle:seek('set', 0)
  local text = handle:read '*a' or ''
  handle:close()
  return text
end

-- ---- the graph -----------------------------------------------------------------------------------

--- @class NcnnLayer
--- @field kind string
--- @field inputs table[] the layers whose results it takes; Split layers are skipped
--- @field values table<integer, string> by ncnn's parameter ids
--- @field line integer

local KNOWN = { Input = true, Split = true, Convolution = true, PReLU = true, Concat = true, Eltwise = true, BinaryOp = true,
  Interp = true, PixelShuffle = true }

local function parse_layer(path, number, text, made)
  local words = {}
  for word in text:gmatch '%S+' do words[#words + 1] = word end
  local inputs, outputs = tonumber(words[3]), tonumber(words[4])
  if not inputs or not outputs or inputs < 0 or outputs < 1 or inputs % 1 ~= 0 or outputs % 1 ~= 0 or
      #words < 4 + inputs + outputs then
    fail(path, 'line %d is not a layer of a .param file', number)
  end
  local kind = words[1]
  if not KNOWN[kind] then
    fail(path, 'line %d: neither RRDBNet nor SRVGGNetCompact has a layer %s', number, cr.weights.printable(kind))
  end
  local layer = { kind = kind, inputs = {}, values = {}, line = number }
  for i = 1, inputs do
    local from = made[words[4 + i]]
    if not from then fail(path, 'line %d: %s is used before it is defined', number, cr.weights.printable(words[4 + i])) end
    layer.inputs[i] = from
  end
  for i = 5 + inputs + outputs, #words do
    local key, value = words[i]:match '^(-?%d+)=(%S+)$'
    if not key then fail(path, 'line %d: %s is not a parameter', number, cr.weights.printable(words[i])) end
    layer.values[tonumber(key)] = value
  end
  if kind == 'Split' and #layer.inputs ~= 1 then fail(path, 'line %d: a Split has one input', number) end
  for i = 1, outputs do made[words[4 + inputs + i]] = kind == 'Split' and layer.inputs[1] or layer end
  return layer
end

-- The layers of a .param file in order, without Split.
local function parse(path)
  local layers, made, number, count = {}, {}, 0, nil
  for text in read_file(path, MOST_TEXT):gmatch '[^\r\n]+' do
    number = number + 1
    if number == 1 then
      if text:match '^%s*(%S+)%s*$' ~= MAGIC then fail(path, 'it does not begin like a .param file of ncnn') end
    elseif number == 2 then
      count = tonumber(text:match '^%s*(%d+)%s+%d+%s*$')
      if not count or count > MOST_LAYERS then fail(path, 'line 2 is not a count of at most %d layers', MOST_LAYERS) end
    else
      local layer = parse_layer(path, number, text, made)
      if layer.kind ~= 'Split' then layers[#layers + 1] = layer end
    end
  end
  if not count or count ~= number - 2 then fail(path, 'it is truncated: expected %d layers', count or 0) end
  return layers
end

-- ---- matching the graph --------------------------------------------------------------------------------

--- Walks through the layers of a .param file: each layer must match the network's.
local Walk = {}
Walk.__index = Walk

function Walk:peek() return self.layers[self.at] and self.layers[self.at].kind end

function Walk:refuse(layer, what)
  fail(self.path, 'line %d: %s: the graph is neither RRDBNet nor SRVGGNetCompact', layer and layer.line or 0, what)
end

local function number_of(layer, key, default)
  local value = layer.values[key]
  return value == nil and default or tonumber(value)
end

local function same_numbers(text, want)
  local n = 0
  for word in (text or ''):gmatch '[^,]+' do
    n = n + 1
    if not tonumber(word) or not want[n] or math.abs(tonumber(word) - want[n]) > 1e-6 then return false end
  end
  return n == #want
end

--- Returns the next layer, which must be of a kind and take the results of `inputs`.
function Walk:take(kind, inputs, values)
  local layer = self.layers[self.at]
  if not layer or layer.kind ~= kind then
    self:refuse(layer or self.layers[#self.layers], ('expected a layer %s here'):format(kind))
  end
  local same = #inputs == #layer.inputs
  for i, input in ipairs(inputs) do same = same and rawequal(layer.inputs[i], input) end
  -- Sums may list their two operands in either order.
  if not same and kind == 'BinaryOp' and #layer.inputs == 2 then
    same = rawequal(layer.inputs[1], inputs[2]) and rawequal(layer.inputs[2], inputs[1])
  end
  if not same then self:refuse(layer, 'its inputs differ') end
  for key, want in pairs(values or {}) do
    local right
    if type(want) == 'table' then right = same_numbers(layer.values[key], want) else right = number_of(layer, key, 0) == want end
    if not right then self:refuse(layer, ('its parameter %d differs'):format(key)) end
  end
  self.at = self.at + 1
  return layer
end

--- A 3x3 convolution with the same size and a known number of input channels; `leaky`: followed by LeakyReLU 0.2.
function Walk:convolution(name, input, channels, leaky)
  local layer = self:take('Convolution', { input }, { [1] = 3, [4] = 1, [5] = 1, [9] = leaky and 2 or 0,
    [-23310] = leaky and { 1, 0.2 } or nil })
  local output = number_of(layer, 0, 0)
  if not (output >= 1 and output <= MOST_CHANNELS and output % 1 == 0) then self:refuse(layer, 'its number of channels is invalid') end
  if number_of(layer, 6, 0) ~= output * channels * 9 then self:refuse(layer, ('it does not take %d channels'):format(channels)) end
  for _, key in ipairs { 2, 3, 11, 12, 13 } do -- dilation, stride, and both for the height
    if number_of(layer, key, key == 11 and 3 or 1) ~= (key == 11 and 3 or 1) then self:refuse(layer, 'it strides or is dilated') end
  end
  self.weights[#self.weights + 1] = { name = name, output = output, input = channels }
  return layer, output
end

local function dense_block(walk, name, x, features)
  local all, channels = { x }, features
  local last, output
  for k = 1, 5 do
    local input = k == 1 and x or walk:take('Concat', all, { [0] = 0 })
    last, output = walk:convolution(name .. '.conv' .. k, input, channels, k < 5)
    all[#all + 1], channels = last, channels + output
  end
  return walk:take('Eltwise', { last, x }, { [0] = 1, [-23301] = { 2, 0.2, 1 } })
end

local function follow_rrdb(walk, data)
  local first, features = walk:convolution('conv_first', data, 3, false)
  local y, blocks = first, 0
  -- Of these convolutions, only a block's first one has an activation.
  while walk:peek() == 'Convolution' and number_of(walk.layers[walk.at], 9, 0) == 2 do
    local x = y
    for dense = 1, 3 do y = dense_block(walk, ('body.%d.rdb%d'):format(blocks, dense), y, features) end
    y = walk:take('Eltwise', { y, x }, { [0] = 1, [-23301] = { 2, 0.2, 1 } })
    blocks = blocks + 1
  end
  y = walk:convolution('conv_body', y, features, false)
  y = walk:take('BinaryOp', { first, y }, { [0] = 0 })
  for k = 1, 2 do
    y = walk:take('Interp', { y }, { [0] = 1, [1] = 2, [2] = 2 })
    y = walk:convolution('conv_up' .. k, y, features, true)
  end
  y = walk:convolution('conv_hr', y, features, true)
  return walk:convolution('conv_last', y, features, false)
end

local function follow_srvgg(walk, data)
  local y, channels, place = data, 3, 0
  repeat
    y, channels = walk:convolution('body.' .. place, y, channels, false)
    place = place + 2
    local more = walk:peek() == 'PReLU'
    if more then
      y = walk:take('PReLU', { y }, { [0] = channels })
      walk.weights[#walk.weights + 1] = { name = 'body.' .. place - 1, output = channels }
    end
  until not more
  local scale = math.sqrt(channels / 3)
  y = walk:take('PixelShuffle', { y }, { [0] = scale, [1] = 0 })
  local large = walk:take('Interp', { data }, { [0] = 1, [1] = scale, [2] = scale })
  y = walk:take('BinaryOp', { y, large }, { [0] = 0 })
  -- Files for x2 and x3 contain the x4 network and downscale its result; the upscaling engine does that itself.
  if walk:peek() == 'Interp' then y = walk:take('Interp', { y }, { [0] = 3 }) end
  return y
end

local function follow(path)
  local walk = setmetatable({ path = path, layers = parse(path), at = 1, weights = {} }, Walk)
  local data = walk:take('Input', {})
  local second = walk.layers[3]
  local ok = second and (second.kind == 'PReLU' and follow_srvgg or follow_rrdb)(walk, data)
  if not ok or walk.at <= #walk.layers then walk:refuse(walk.layers[walk.at], 'the graph has more or fewer layers than the network') end
  return walk.weights
end

-- ---- the numbers ---------------------------------------------------------------------------------

local function read_numbers(path, weights)
  local text = read_file(path, MOST_BYTES)
  local at, all = 0, {}
  local function take(bytes, shape, dtype)
    if at + bytes > #text then fail(path, 'it is truncated: the graph needs more than its %d bytes', #text) end
    local x = cr.scope(function()
      return cr.from_pointer(ffi.cast('char *', ffi.cast('const char *', text)) + at, shape, dtype, text):clone()
    end)
    at = at + bytes
    return x
  end
  for _, w in ipairs(weights) do
    if w.input then
      local count = w.output * w.input * 9
      local tag = cr.scope(function() return take(4, { 1 }, 'i32'):item() end) % 2 ^ 32
      if tag ~= F16_TAG and not F32_TAGS[tag] then
        fail(path, 'the weights of %s are quantized (0x%08X): expected float16 or float32', w.name, tag)
      end
      local shape = { w.output, w.input, 3, 3 }
      if tag == F16_TAG then
        all[w.name .. '.weight'] = take(2 * count, shape, 'f16')
        at = at + 2 * count % 4
      else
        all[w.name .. '.weight'] = take(4 * count, shape, 'f32')
      end
      all[w.name .. '.bias'] = take(4 * w.output, { w.output }, 'f32')
    else
      all[w.name .. '.weight'] = take(4 * w.output, { w.output }, 'f32')
    end
  end
  if at ~= #text then fail(path, 'it has %d bytes, but the graph needs only %d', #text, at) end
  return all
end

local File = {}
File.__index = File

--- Opens a pair of files.
--- @param param string the .param
--- @param bin string? the .bin (beside it, of the same name)
--- @return table with the interface of a WeightsFile: path, names, has, info, get, close
function M.open(param, bin)
  bin = bin or param:gsub('%.param$', '') .. '.bin'
  local tensors, names = read_numbers(bin, follow(param)), {}
  for name, x in pairs(tensors) do
    names[#names + 1] = name
    cr.keep(x)
  end
  table.sort(names)
  return setmetatable({ path = param, names = names, tensors = tensors, format = 'ncnn' }, File)
end

function File:has(name) return self.tensors[name] ~= nil end

function File:info(name)
  local x = self.tensors[name]
  return { dtype = x.dtype, shape = x.shape }
end

-- A separate view, so that the caller may free it.
function File:get(name) return self.tensors[name]:view(self.tensors[name].shape) end

function File:close()
  for _, x in pairs(self.tensors) do x:free() end
  self.tensors = {}
end

--- Converts a pair to safetensors with the authors' key names, in the data types of the file.
--- @param param string
--- @param bin string
--- @param to string ends in .safetensors
function M.convert(param, bin, to)
  local file = M.open(param, bin)
  local ok, problem = pcall(cr.save, to, file.tensors)
  file:close()
  if not ok then error(problem, 0) end
end

return M
