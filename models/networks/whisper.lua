-- Whisper's audio encoder as LatentSync uses it: it returns the input embedding and every block's output, stacked,
-- without the final layer norm.
--
-- Sizes are derived from the file. Layout: mel spectrogram [frames mels], features [positions layers D]. The
-- decoder's tensors are ignored.

local cr = require 'cr'
local checks = require 'cr.config'
local config_file = require 'models.networks.config_file'
local nn = require 'cr.nn'
local weights = require 'cr.weights'

local M = {}

local EPS = 1e-5

--- @class WhisperDims
--- @field n_mels integer
--- @field n_audio_ctx integer positions per segment (1500)
--- @field n_audio_state integer D
--- @field n_audio_head integer
--- @field n_audio_layer integer

-- The upper bounds of the fields of `dims`.
local dim_bounds = { { 'n_mels', 1024 }, { 'n_audio_ctx', 65536 }, { 'n_audio_state', 65536 }, { 'n_audio_head', 1024 },
  { 'n_audio_layer', 256 } }

--- @class Whisper
--- @field dims WhisperDims
--- @field w table
local whisper = {}
whisper.__index = whisper

local function find_dims(file, path)
  local where = path
  local found = type(file.metadata) == 'table' and file.metadata.dims or nil
  if type(found) == 'string' then
    local ok, value = pcall(require 'cjson'.decode, found)
    found = ok and value or nil
  end
  if not found then
    local beside = path:gsub('%.[^./]*$', '') .. '.json'
    if require 'lfs'.attributes(beside, 'mode') == 'file' then found = config_file.read(beside) end
    where = beside
    if found and type(found.dims) == 'table' then found = found.dims end
    if not found then
      error(("%s: Whisper's dims are missing in the file and in %s"):format(path, beside), 0)
    end
  end
  local dims = {}
  if type(found) ~= 'table' then error(("%s: Whisper's dims are %s, not a table"):format(where, checks.shown(found)), 0) end
  for _, bound in ipairs(dim_bounds) do
    local key, most = unpack(bound)
    dims[key] = checks.number(where, key, tonumber(found[key]) or found[key], 1, most, true)
  end
  if dims.n_audio_state % dims.n_audio_head ~= 0 then
    error(('%s: %d channels are not divisible into %d heads'):format(where, dims.n_audio_state,
      dims.n_audio_head), 0)
  end
  return dims
end

--- The encoder's tensors: a list of { name =, shape = } with PyTorch shapes.
--- @param d WhisperDims
function M.expected(d)
  local list = {}
  local D = d.n_audio_state
  local function add(name, ...) list[#list + 1] = { name = 'encoder.' .. name, shape = { ... } } end
  local function both(name, out, ...)
    add(name .. '.weight', out, ...)
    add(name .. '.bias', out)
  end
  add('positional_embedding', d.n_audio_ctx, D)
  both('conv1', D, d.n_mels, 3)
  both('conv2', D, D, 3)
  for i = 0, d.n_audio_layer - 1 do
    local block = ('blocks.%d.'):format(i)
    both(block .. 'attn.query', D, D)
    add(block .. 'attn.key.weight', D, D)
    both(block .. 'attn.value', D, D)
    both(block .. 'attn.out', D, D)
    both(block .. 'attn_ln', D)
    both(block .. 'mlp.0', 4 * D, D)
    both(block .. 'mlp.2', D, 4 * D)
    both(block .. 'mlp_ln', D)
  end
  return list
end

--- Converts the encoder of a CTranslate2 model.bin to OpenAI's names; also returns its dims.
--- @param file table from weights.open
--- @return table<string, Tensor>, WhisperDims
function M.from_ctranslate2(file)
  local out = {}
  local function take(to, from) out['encoder.' .. to] = file:get('encoder/' .. from) end
  local function both(to, from)
    take(to .. '.weight', from .. '/weight')
    take(to .. '.bias', from .. '/bias')
  end
  local function layer_norm(to, from)
    take(to .. '.weight', from .. '/gamma')
    take(to .. '.bias', from .. '/beta')
  end
  both('conv1', 'conv1')
  both('conv2', 'conv2')
  take('positional_embedding', 'position_encodings/encodings')
  local D = out['encoder.conv1.weight']:size(1)
  local layers = 0
  while file:has(('encoder/layer_%d/ffn/linear_0/weight'):format(layers)) do
    local from, to = ('layer_%d/'):format(layers), ('blocks.%d.'):format(layers)
    layer_norm(to .. 'attn_ln', from .. 'self_attention/layer_norm')
    local packed = file:get('encoder/' .. from .. 'self_attention/linear_0/weight')
    local bias = file:get('encoder/' .. from .. 'self_attention/linear_0/bias')
    for i, name in ipairs { 'query', 'key', 'value' } do
      local first = (i - 1) * D + 1
      out['encoder.' .. to .. 'attn.' .. name .. '.weight'] = packed:narrow(1, first, D)
      if name ~= 'key' then out['encoder.' .. to .. 'attn.' .. name .. '.bias'] = bias:narrow(1, first, D) end
    end
    both(to .. 'attn.out', from .. 'self_attention/linear_1')
    layer_norm(to .. 'mlp_ln', from .. 'ffn/layer_norm')
    both(to .. 'mlp.0', from .. 'ffn/linear_0')
    both(to .. 'mlp.2', from .. 'ffn/linear_1')
    layers = layers + 1
  end
  if file:has 'encoder/layer_norm/gamma' then layer_norm('ln_post', 'layer_norm') end
  return out, {
    n_mels = out['encoder.conv1.weight']:size(2),
    n_audio_ctx = out['encoder.positional_embedding']:size(1),
    n_audio_state = D,
    n_audio_head = math.max(1, math.floor(D / 64)), -- every Whisper has heads of width 64
    n_audio_layer = layers,
  }
end

-- A table of tensors with the part of a weights file's interface that weights.tree uses.
local function as_file(tensors, path)
  local names = {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  return {
    names = names, path = path, format = 'table',
    get = function(_, name) return tensors[name] end,
    has = function(_, name) return tensors[name] ~= nil end,
    info = function(_, name)
      local t = tensors[name]
      return { dtype = t.dtype, shape = t.shape }
    end,
    close = function() end,
  }
end

--- Loads the encoder of OpenAI's .pt, of a .safetensors with the dims in a .json beside it, or of a CTranslate2
--- model.bin.
--- @param path string
--- @param options? { dtype?: string, device?: string, state?: integer } state: the width that the UNet's cross-attention
--- requires
--- @return Whisper
function M.load(path, options)
  options = options or {}
  local opened = weights.open(path)
  local ok, result = pcall(function()
    local file, dims = opened
    if file.format == 'ctranslate2' then
      local tensors
      tensors, dims = M.from_ctranslate2(file)
      file = as_file(tensors, path)
    else
      dims = find_dims(file, path)
    end
    if options.state and dims.n_audio_state ~= options.state then
      error(('%s: this Whisper has width %d, but the UNet needs width %d'):format(path,
        dims.n_audio_state, options.state), 0)
    end
    local prefix = ''
    for _, p in ipairs { 'model_state_dict.', 'model.' } do
      if file:has(p .. 'encoder.conv1.weight') then prefix = p end
    end
    local tree = weights.known(file, M.expected(dims), {
      prefix = prefix, dtype = options.dtype or 'f32', device = options.device or 'cpu',
      tag = 'whisper weights', adjacent = { { 'query.weight', 'key.weight', 'value.weight' } },
    }, { prefix .. 'encoder.ln_post.', prefix .. 'decoder.' })
    return M.new(tree.encoder, dims)
  end)
  opened:close()
  if not ok then error(result, 0) end
  return result
end

--- The feature width of a Whisper file, without loading it.
--- @param path string
--- @return integer
function M.width(path)
  local file = weights.open(path)
  local ok, width = pcall(function()
    if file.format == 'ctranslate2' then return file:info('encoder/conv1/weight').shape[1] end
    return find_dims(file, path).n_audio_state
  end)
  file:close()
  if not ok then error(width, 0) end
  return width
end

--- Creates the encoder from the tree of its weights (below `encoder.`), which it takes over.
--- @param tree table
--- @param dims WhisperDims
--- @return Whisper
function M.new(tree, dims)
  local D = dims.n_audio_state
  for _, name in ipairs { 'conv1', 'conv2' } do
    local w = tree[name]
    if w.weight:dim() == 3 then w.weight = cr.keep(w.weight:unsqueeze(2)) end
  end
  for i = 0, dims.n_audio_layer - 1 do
    local a = tree.blocks[i].attn
    -- One product for query, key and value; the key has no bias, so zeros are used.
    a.key.bias = cr.keep(cr.zeros({ D }, { dtype = a.query.bias.dtype, device = a.query.bias.device }))
    a.packed = setmetatable(weights.joined_layers { a.query, a.key, a.value }, { __path = ('encoder.blocks.%d.attn.packed'):format(i) })
    a.query, a.key, a.value = nil, nil, nil
  end
  local pos = tree.positional_embedding
  tree.positional_embedding = cr.keep(pos:reshape(1, 1, dims.n_audio_ctx, D))
  return setmetatable({
    dims = dims, w = tree, dtype = tree.conv1.weight.dtype, device = tree.conv1.weight.device,
  }, whisper)
end

local function block(w, x, heads)
  return cr.scope(function()
    local D = x:size(3)
    local packed = nn.linear(w.attn.packed, nn.layer_norm(w.attn_ln, x, EPS, { codes = w.attn.packed }))
    local a = nn.attention(packed:narrow(3, 1, D), packed:narrow(3, D + 1, D),
      packed:narrow(3, 2 * D + 1, D), { heads = heads, codes = w.attn.out })
    local h = nn.linear(w.attn.out, a, { residual = x })
    local m = nn.linear(w.mlp[0], nn.layer_norm(w.mlp_ln, h, EPS, { codes = w.mlp[0] }), { act = 'gelu' })
    return nn.linear(w.mlp[2], m, { residual = h })
  end)
end

--- The number of mel frames in a segment (3000).
function whisper:segment_frames() return 2 * self.dims.n_audio_ctx end

--- The features of one segment.
--- @param mel Tensor [n 80], normalized log-mel: 3000 frames padded with 0, or a smaller even number, which costs less
--- @return Tensor [n/2 layers+1 D]
function whisper:encode(mel)
  local d = self.dims
  local n = mel:size(1)
  if mel:dim() ~= 2 or n < 2 or n % 2 ~= 0 or n > self:segment_frames() or mel:size(2) ~= d.n_mels then
    error(('whisper: a segment must be [%d %d], or shorter with an even length, not [%s]'):format(self:segment_frames(), d.n_mels,
      table.concat(mel.shape, ' ')), 2)
  end
  return cr.scope(function()
    local w = self.w
    local x = mel:to(self.device):to(self.dtype):contiguous():view(1, 1, n, d.n_mels)
    x = nn.conv2d(w.conv1, x, { padding = { 0, 0, 1, 1 }, act = 'gelu' })
    x = nn.conv2d(w.conv2, x, { stride = { 1, 2 }, padding = { 0, 0, 1, 1 }, act = 'gelu',
      residual = w.positional_embedding:narrow(3, 1, n / 2) })
    x = x:view(1, n / 2, d.n_audio_state)
    local stack = { x:squeeze(1) }
    for i = 0, d.n_audio_layer - 1 do
      x = block(w.blocks[i], x, d.n_audio_head)
      stack[#stack + 1] = x:squeeze(1)
    end
    return cr.stack(stack, 2)
  end)
end

return M
