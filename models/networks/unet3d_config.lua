-- UNet3D's configuration (the `model` block of LatentSync's files), and the tensors that its checkpoint contains.
--
-- config() fills in defaults and refuses, with one sentence, what this implementation does not support, so that all
-- other code may rely on every field. expected() lists names and PyTorch shapes.

local checks = require 'cr.config'

local M = {}

local WHERE = 'unet configuration'

-- LatentSync's own network (versions 1.5 and 1.6).
local defaults = {
  act_fn = 'silu',
  add_audio_layer = true,
  attention_head_dim = 8,
  block_out_channels = { 320, 640, 1280, 1280 },
  center_input_sample = false,
  cross_attention_dim = 384,
  down_block_types = { 'CrossAttnDownBlock3D', 'CrossAttnDownBlock3D', 'CrossAttnDownBlock3D',
    'DownBlock3D' },
  mid_block_type = 'UNetMidBlock3DCrossAttn',
  up_block_types = { 'UpBlock3D', 'CrossAttnUpBlock3D', 'CrossAttnUpBlock3D', 'CrossAttnUpBlock3D' },
  downsample_padding = 1,
  flip_sin_to_cos = true,
  freq_shift = 0,
  in_channels = 13,
  layers_per_block = 2,
  mid_block_scale_factor = 1,
  norm_eps = 1e-5,
  norm_num_groups = 32,
  out_channels = 4,
  sample_size = 64,
  resnet_time_scale_shift = 'default',
  use_linear_projection = false,
  use_inflated_groupnorm = false,
  use_motion_module = true,
  motion_module_resolutions = { 1, 2, 4, 8 },
  motion_module_mid_block = false,
  motion_module_decoder_only = false,
  motion_module_type = 'Vanilla',
}

local motion_defaults = {
  num_attention_heads = 8,
  num_transformer_block = 1,
  attention_block_types = { 'Temporal_Self', 'Temporal_Self' },
  temporal_position_encoding = true,
  temporal_position_encoding_max_len = 24,
  temporal_attention_dim_div = 1,
  zero_initialize = true,
}

-- Options of the reference that a file may contain as long as they are off. Those in the second list have no effect
-- at inference.
local must_be_off = { 'dual_cross_attention', 'class_embed_type', 'num_class_embeds' }
local no_effect = { 'only_cross_attention', 'upcast_attention', 'sample_size' }
local motion_no_effect = { 'zero_initialize', 'cross_frame_attention_mode' }

-- Bounds of the numbers: what plausible networks have, far below what would exhaust memory.
local bounds = {
  in_channels = 4096, out_channels = 4096, layers_per_block = 32, norm_num_groups = 4096, cross_attention_dim = 65536,
  downsample_padding = 8, attention_head_dim = 1024,
}
local motion_bounds = {
  num_attention_heads = 1024, num_transformer_block = 32, temporal_position_encoding_max_len = 4096,
  temporal_attention_dim_div = 1024,
}
local MOST_LEVELS, MOST_CHANNELS = 8, 65536

local function fail(...) checks.fail(WHERE, ...) end

-- null in JSON and YAML is decoded as a userdata.
local function given(v)
  if type(v) == 'userdata' or type(v) == 'cdata' then return nil end
  return v
end

local function merge(target, source, base, ignored, where)
  local unknown = {}
  for k, v in pairs(source) do
    v = given(v)
    local want = base[k]
    if want == nil then
      if not ignored[k] and v ~= nil then unknown[#unknown + 1] = tostring(k) end
    elseif v ~= nil then
      if type(want) == 'number' and type(v) == 'string' then v = tonumber(v) or v end
      if k == 'attention_head_dim' and type(v) == 'table' then want = v end
      if type(v) ~= type(want) then
        fail('%s%s must be a %s, not a %s', where, k, type(want) == 'table' and 'list' or type(want),
          type(v))
      end
      target[k] = v
    end
  end
  table.sort(unknown)
  if unknown[1] then fail('there is no option %s%s', where, unknown[1]) end
end

local function list_of(c, key, kind, n)
  local list = c[key]
  if n and #list ~= n then fail('%s must have %d entries, not %d', key, n, #list) end
  for i, v in ipairs(list) do
    if kind == 'number' and type(v) == 'string' then list[i] = tonumber(v) or v end
    if kind == 'string' and type(v) ~= kind then fail('entry %d of %s must be a %s', i, key, kind) end
  end
  if kind == 'number' then checks.integers(WHERE, key, list, 1, MOST_CHANNELS, n or 0, n or 16) end
end

local function copy(t)
  local c = {}
  for k, v in pairs(t) do c[k] = type(v) == 'table' and copy(v) or v end
  return c
end

--- @class UNetConfig
--- @field block_out_channels integer[] channels per level
--- @field heads integer[] attention heads per level
--- @field layers_per_block integer
--- @field cross_attention_dim integer
--- @field motion table settings of the motion modules

--- Checks a `model` block of LatentSync's YAML or JSON files (or a whole file's table with that block) and fills in
--- LatentSync's values for missing fields.
--- @param source? table
--- @return UNetConfig
function M.config(source)
  source = source or {}
  if type(source) ~= 'table' then fail('expected a table, not a %s', type(source)) end
  if type(source.model) == 'table' then source = source.model end
  local c = copy(defaults)
  local ignored = { motion_module_kwargs = true, heads = true, motion = true }
  for _, k in ipairs(must_be_off) do ignored[k] = true end
  for _, k in ipairs(no_effect) do ignored[k] = true end
  for k in pairs(source) do
    if type(k) == 'string' and k:sub(1, 1) == '_' then ignored[k] = true end -- diffusers' metadata
  end
  merge(c, copy(source), defaults, ignored, '')
  for _, k in ipairs(must_be_off) do
    if given(source[k]) then fail('%s is not supported', k) end
  end

  local function need(key, ...)
    for _, v in ipairs { ... } do if c[key] == v then return end end
    fail('%s = %s is not supported', key, tostring(c[key]))
  end
  need('act_fn', 'silu', 'swish')
  need('flip_sin_to_cos', true)
  need('freq_shift', 0)
  need('resnet_time_scale_shift', 'default')
  need('mid_block_type', 'UNetMidBlock3DCrossAttn')
  local function integer(of, key, most, prefix) checks.number(WHERE, (prefix or '') .. key, of[key], 1, most, true) end
  for _, key in ipairs { 'in_channels', 'out_channels', 'layers_per_block', 'norm_num_groups',
    'cross_attention_dim', 'downsample_padding' } do
    integer(c, key, bounds[key])
  end
  checks.number(WHERE, 'norm_eps', c.norm_eps, 1e-12, 1)
  checks.number(WHERE, 'mid_block_scale_factor', c.mid_block_scale_factor, -1e6, 1e6)
  if c.mid_block_scale_factor == 0 then fail('mid_block_scale_factor must not be 0') end

  local levels = #c.block_out_channels
  if levels < 1 then fail('block_out_channels is empty') end
  if levels > MOST_LEVELS then fail('block_out_channels has %d entries; at most %d are supported', levels, MOST_LEVELS) end
  list_of(c, 'block_out_channels', 'number')
  list_of(c, 'down_block_types', 'string', levels)
  list_of(c, 'up_block_types', 'string', levels)
  list_of(c, 'motion_module_resolutions', 'number')
  if type(c.attention_head_dim) == 'table' then
    list_of(c, 'attention_head_dim', 'number', levels)
    c.heads = c.attention_head_dim
  else
    integer(c, 'attention_head_dim', bounds.attention_head_dim)
    c.heads = {}
    for i = 1, levels do c.heads[i] = c.attention_head_dim end
  end
  for i = 1, levels do
    local down, up = c.down_block_types[i]:gsub('^UNetRes', ''), c.up_block_types[i]:gsub('^UNetRes', '')
    if down ~= 'DownBlock3D' and down ~= 'CrossAttnDownBlock3D' then
      fail('the down block %s is not supported', down)
    end
    if up ~= 'UpBlock3D' and up ~= 'CrossAttnUpBlock3D' then
      fail('the up block %s is not supported', up)
    end
    c.down_block_types[i], c.up_block_types[i] = down, up
    local width = c.block_out_channels[i]
    if width % c.norm_num_groups ~= 0 then
      fail('%d channels are not divisible into %d groups', width, c.norm_num_groups)
    end
    if width % c.heads[i] ~= 0 then
      fail('%d channels are not divisible into %d heads', width, c.heads[i])
    end
  end

  local m = copy(motion_defaults)
  local kwargs = given(source.motion_module_kwargs) or source.motion
  if kwargs then
    if type(kwargs) ~= 'table' then fail('motion_module_kwargs must be a table') end
    local ignore = {}
    for _, k in ipairs(motion_no_effect) do ignore[k] = true end
    merge(m, copy(kwargs), motion_defaults, ignore, 'motion_module_kwargs.')
  end
  if c.use_motion_module then
    if c.motion_module_type ~= 'Vanilla' then
      fail('motion_module_type = %s is not supported', c.motion_module_type)
    end
    for _, key in ipairs { 'num_attention_heads', 'num_transformer_block',
      'temporal_position_encoding_max_len', 'temporal_attention_dim_div' } do
      integer(m, key, motion_bounds[key], 'motion_module_kwargs.')
    end
    if #m.attention_block_types > 8 then fail('motion_module_kwargs.attention_block_types has more than 8 entries') end
    for _, kind in ipairs(m.attention_block_types) do
      if kind ~= 'Temporal_Self' then fail('motion attention %s is not supported', tostring(kind)) end
    end
    -- The reference's motion modules have 32 groups, whatever norm_num_groups says.
    for _, width in ipairs(c.block_out_channels) do
      if width % 32 ~= 0 then fail('%d channels: motion modules need a multiple of 32', width) end
      if math.floor(math.floor(width / m.num_attention_heads) / m.temporal_attention_dim_div) < 1 then
        fail('%d channels are too few for %d motion heads', width, m.num_attention_heads)
      end
    end
  end
  c.motion = m
  return c
end

--- The width of a motion module's attention for `channels` channels.
function M.motion_width(config, channels)
  local m = config.motion
  return m.num_attention_heads
    * math.floor(math.floor(channels / m.num_attention_heads) / m.temporal_attention_dim_div)
end

--- Whether level i (1 is the finest) of the down or up half has motion modules.
function M.has_motion(config, i, half)
  if not config.use_motion_module then return false end
  if half == 'mid' then return config.motion_module_mid_block end
  if half == 'down' and config.motion_module_decoder_only then return false end
  -- The reference counts the up half's resolutions from 8 down, whatever the number of levels.
  local resolution = half == 'down' and 2 ^ (i - 1) or 2 ^ (4 - i)
  for _, r in ipairs(config.motion_module_resolutions) do
    if r == resolution then return true end
  end
  return false
end

--- The tensors of a checkpoint: a list of { name =, shape =, optional = } with PyTorch shapes.
--- @param c UNetConfig
function M.expected(c)
  local list = {}
  local function add(name, ...)
    list[#list + 1] = { name = name, shape = { ... } }
  end
  local function both(name, out, ...)
    add(name .. '.weight', out, ...)
    add(name .. '.bias', out)
  end
  local function norm(name, n) both(name, n) end
  local embed = 4 * c.block_out_channels[1]

  local function resnet(name, from, to)
    norm(name .. '.norm1', from)
    both(name .. '.conv1', to, from, 3, 3)
    both(name .. '.time_emb_proj', to, embed)
    norm(name .. '.norm2', to)
    both(name .. '.conv2', to, to, 3, 3)
    if from ~= to then both(name .. '.conv_shortcut', to, from, 1, 1) end
  end
  local function attention(name, width, inner, context)
    add(name .. '.to_q.weight', inner, width)
    add(name .. '.to_k.weight', inner, context)
    add(name .. '.to_v.weight', inner, context)
    both(name .. '.to_out.0', width, inner)
  end
  local function feed_forward(name, width)
    both(name .. '.net.0.proj', 8 * width, width)
    both(name .. '.net.2', width, 4 * width)
  end
  local function projection(name, width)
    if c.use_linear_projection then both(name, width, width) else both(name, width, width, 1, 1) end
  end
  local function transformer(name, width)
    norm(name .. '.norm', width)
    projection(name .. '.proj_in', width)
    local block = name .. '.transformer_blocks.0'
    norm(block .. '.norm1', width)
    attention(block .. '.attn1', width, width, width)
    if c.add_audio_layer then
      norm(block .. '.norm2', width)
      attention(block .. '.attn2', width, width, c.cross_attention_dim)
    end
    feed_forward(block .. '.ff', width)
    norm(block .. '.norm3', width)
    projection(name .. '.proj_out', width)
  end
  local function motion(name, width)
    name = name .. '.temporal_transformer'
    local inner, m = M.motion_width(c, width), c.motion
    norm(name .. '.norm', width)
    both(name .. '.proj_in', inner, width)
    for b = 0, m.num_transformer_block - 1 do
      local block = ('%s.transformer_blocks.%d'):format(name, b)
      for i = 0, #m.attention_block_types - 1 do
        attention(('%s.attention_blocks.%d'):format(block, i), inner, inner, inner)
        if m.temporal_position_encoding then
          add(('%s.attention_blocks.%d.pos_encoder.pe'):format(block, i), 1,
            m.temporal_position_encoding_max_len, inner)
          list[#list].optional = true -- the sinusoidal table can be computed
        end
      end
      for i = 0, #m.attention_block_types - 1 do norm(('%s.norms.%d'):format(block, i), inner) end
      feed_forward(block .. '.ff', inner)
      norm(block .. '.ff_norm', inner)
    end
    both(name .. '.proj_out', width, inner)
  end

  both('conv_in', c.block_out_channels[1], c.in_channels, 3, 3)
  both('time_embedding.linear_1', embed, c.block_out_channels[1])
  both('time_embedding.linear_2', embed, embed)

  local levels = #c.block_out_channels
  local width = c.block_out_channels[1]
  for i = 1, levels do
    local name = ('down_blocks.%d'):format(i - 1)
    local from, to = width, c.block_out_channels[i]
    width = to
    if c.down_block_types[i] == 'CrossAttnDownBlock3D' then
      for j = 0, c.layers_per_block - 1 do transformer(('%s.attentions.%d'):format(name, j), to) end
    end
    for j = 0, c.layers_per_block - 1 do
      resnet(('%s.resnets.%d'):format(name, j), j == 0 and from or to, to)
    end
    if M.has_motion(c, i, 'down') then
      for j = 0, c.layers_per_block - 1 do motion(('%s.motion_modules.%d'):format(name, j), to) end
    end
    if i < levels then both(name .. '.downsamplers.0.conv', to, to, 3, 3) end
  end

  local before = c.block_out_channels[levels]
  for i = 1, levels do
    local name = ('up_blocks.%d'):format(i - 1)
    local to = c.block_out_channels[levels + 1 - i]
    local skip_last = c.block_out_channels[math.max(levels - i, 1)]
    local last = c.layers_per_block
    if c.up_block_types[i] == 'CrossAttnUpBlock3D' then
      for j = 0, last do transformer(('%s.attentions.%d'):format(name, j), to) end
    end
    for j = 0, last do
      resnet(('%s.resnets.%d'):format(name, j),
        (j == 0 and before or to) + (j == last and skip_last or to), to)
    end
    if M.has_motion(c, i, 'up') then
      for j = 0, last do motion(('%s.motion_modules.%d'):format(name, j), to) end
    end
    if i < levels then both(name .. '.upsamplers.0.conv', to, to, 3, 3) end
    before = to
  end

  local bottom = c.block_out_channels[levels]
  transformer('mid_block.attentions.0', bottom)
  resnet('mid_block.resnets.0', bottom, bottom)
  resnet('mid_block.resnets.1', bottom, bottom)
  if M.has_motion(c, levels, 'mid') then motion('mid_block.motion_modules.0', bottom) end

  norm('conv_norm_out', c.block_out_channels[1])
  both('conv_out', c.out_channels, c.block_out_channels[1], 3, 3)
  return list
end

return M
