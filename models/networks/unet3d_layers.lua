--- UNet3D's layers as functions over their weights: transformers with attention and feed-forward, motion modules,
--- resnets. models/networks/unet3d.lua combines them and describes the layouts.

local cr = require 'cr'
local nn = require 'cr.nn'
local quant = require 'cr.quant'

local LAYER_EPS = 1e-5 -- eps of LayerNorm
local TOKEN_EPS = 1e-6 -- eps of GroupNorm in transformers and motion modules
local MOTION_GROUPS = 32

local function query_key_value(w, x)
  if not rawget(w, 'to_qkv') then return nn.linear(w.to_q, x), nn.linear(w.to_k, x), nn.linear(w.to_v, x) end
  local packed = nn.linear(w.to_qkv, x)
  local last = packed:dim()
  local n = packed:size(last) / 3
  return packed:narrow(last, 1, n), packed:narrow(last, n + 1, n), packed:narrow(last, 2 * n + 1, n)
end

-- Layer norm for one product with weight `w`: the result is quantized if that product takes quantized inputs.
local function normed(norm, x, w, after)
  return nn.layer_norm(norm, x, LAYER_EPS, { codes = w, after = after })
end

-- Runs a layer in its own scope, wrapped by the pass's hook if there is one (models/networks/unet3d_hook.lua). fn(x,
-- how, ...) with how = { identity = true }, { attend = FUNCTION } or nil.
local function layer(pass, kind, w, x, fn, ...)
  if not pass.hook then return cr.scope(fn, x, nil, ...) end
  local more = { ... }
  return pass.hook(kind, w, x, function(input, how) return cr.scope(fn, input, how, unpack(more)) end)
end

local function self_attention(x, how, w, norm, heads)
  local q, k, v = query_key_value(w, normed(norm, x, rawget(w, 'to_qkv')))
  local seen = how and (how.identity and v:contiguous() or how.attend and how.attend(q, k, v, heads))
    or nn.attention(q, k, v, { heads = heads, codes = w.to_out[0] })
  return nn.linear(w.to_out[0], seen, { residual = x })
end

local WIDE = 2 ^ 26 -- maximum number of elements of the widest temporary

local hoppers = {} -- whether a device is a Hopper GPU

-- The number of elements, in x's dtype, of a feed-forward's widest temporary per row. Where one kernel computes the
-- product and GEGLU (on a Hopper GPU, in 16 bits), this is GEGLU's result, perhaps quantized; else both halves before
-- GEGLU.
local function widest(x, into, back)
  local both = into.weight:size(1)
  if x.device == 'cpu' or x.dtype == 'f32' or not cr.cuda.options(x.device).linear_geglu then return both end
  if hoppers[x.device] == nil then hoppers[x.device] = cr.cuda.info(x.device).capability:match '^9%.' ~= nil end
  if not hoppers[x.device] then return both end
  local codes = quant.takes(back)
  if not quant.format(into) then return both / 2 end
  if not quant.takes(into) or codes and not rawget(back, 'input') then return both end
  return codes and both / 4 or both / 2
end

-- The rows are independent, so they are processed in chunks where the first product would be the network's largest
-- tensor.
local function feed_forward(x, _, w, norm)
  local into, back = w.net[0].proj, w.net[2]
  local function run(part, out)
    local wide = nn.linear_geglu(into, normed(norm, part, into), { codes = back })
    return nn.linear(back, wide, { residual = part, out = out })
  end
  local width = x:size(-1)
  local rows = x:numel() / width
  local turns = math.ceil(rows * widest(x, into, back) / WIDE)
  if turns <= 1 then return run(x) end
  local out = cr.empty(x.shape, { dtype = x.dtype, device = x.device })
  local from, to = x:view(rows, width), out:view(rows, width)
  local step = math.ceil(rows / turns / 128) * 128
  for first = 1, rows, step do
    local n = math.min(step, rows - first + 1)
    cr.scope(run, from:narrow(1, first, n), to:narrow(1, first, n))
  end
  return out
end

local function key_value(w, tokens)
  if not rawget(w, 'to_kv') then return nn.linear(w.to_k, tokens), nn.linear(w.to_v, tokens) end
  local packed = nn.linear(w.to_kv, tokens)
  local n = packed:size(3) / 2
  return packed:narrow(3, 1, n), packed:narrow(3, n + 1, n)
end

local function attend(block, x, heads, pass, how, out)
  local w = block.attn2
  local k, v = pass.keys(w)
  local q = nn.linear(w.to_q, normed(block.norm2, x, w.to_q))
  local seen = how and how.attend and how.attend(q, k, v, heads) or nn.attention(q, k, v, { heads = heads, codes = w.to_out[0] })
  return nn.linear(w.to_out[0], seen, { residual = x, out = out })
end

-- Cross-attention to the audio, x [B*F T C]. With guidance only the second half attends: zero keys and values would
-- give the first half zeros, so the output projection leaves only its bias. If both halves were computed together so
-- far, the result has both.
local function cross_attention(x, how, block, heads, pass)
  if not pass.guided then return attend(block, x, heads, pass, how) end
  local n = pass.frames
  local deaf, hearing = x, x
  if x:size(1) > n then deaf, hearing = x:narrow(1, 1, n), x:narrow(1, n + 1, n) end
  local both = cr.empty({ 2 * n, x:size(2), x:size(3) }, { dtype = x.dtype, device = x.device })
  deaf:add(block.attn2.to_out[0].bias, both:narrow(1, 1, n))
  cr.scope(attend, block, hearing, heads, pass, how, both:narrow(1, n + 1, n))
  return both
end

-- Repeats x along the batch, as a view, if `batch` is twice its size.
local function widened(x, batch)
  if x:size(1) == batch then return x end
  return x:expand(batch, -1, -1, -1, -1)
end

-- Spatial self-attention, cross-attention and feed-forward of each frame.
local function transformer(self, w, x, heads, pass)
  return cr.scope(function()
    local B, F, H, W, C = unpack(x.shape)
    local h = nn.linear(w.proj_in, nn.group_norm(w.norm, x:view(B * F, H * W, C), self.config.norm_num_groups, TOKEN_EPS,
      { codes = w.proj_in }))
    local block = w.transformer_blocks[0]
    h = layer(pass, 'attention', block.attn1, h, self_attention, block.attn1, block.norm1, heads)
    if pass.keys and rawget(block, 'attn2') then
      h = layer(pass, 'cross_attention', block.attn2, h, cross_attention, block, heads, pass)
    end
    h = layer(pass, 'feed_forward', block.ff, h, feed_forward, block.ff, block.norm3)
    local batch = h:size(1) / F
    return nn.linear(w.proj_out, h:view(batch, F, H, W, h:size(3)), { residual = widened(x, batch) })
  end)
end

-- x [B F T C]: temporal self-attention of each position over the frames; [B T F C] is a view.
local function temporal_attention(x, how, w, norm, heads)
  local F, C = x:size(2), x:size(4)
  local position
  if rawget(w, 'pos_encoder') then position = w.pos_encoder.pe:narrow(2, 1, F):view(F, 1, C) end
  local q, k, v = query_key_value(w, normed(norm, x, rawget(w, 'to_qkv'), position))
  if how and how.identity then return nn.linear(w.to_out[0], v:contiguous(), { residual = x }) end
  if how and how.attend then
    local seen = how.attend(q:transpose(2, 3), k:transpose(2, 3), v:transpose(2, 3), heads)
    return nn.linear(w.to_out[0], seen:transpose(2, 3):contiguous(), { residual = x })
  end
  local into = w.to_out[0]
  local coded = quant.takes(into) and rawget(into, 'input') -- with per-row scales attention writes unquantized values
  local out = cr.empty(x.shape, { dtype = coded and into.weight.dtype or x.dtype, device = x.device })
  nn.attention(q:transpose(2, 3), k:transpose(2, 3), v:transpose(2, 3),
    { heads = heads, out = out:transpose(2, 3), codes = coded and into or nil })
  return nn.linear(into, coded and { codes = out, dtype = x.dtype } or out, { residual = x })
end

local function motion_module(self, w, x, pass)
  return cr.scope(function()
    w = w.temporal_transformer
    local B, F, H, W, C = unpack(x.shape)
    local m = self.config.motion
    local h = nn.linear(w.proj_in, nn.group_norm(w.norm, x:view(B * F, H * W, C), MOTION_GROUPS, TOKEN_EPS, { codes = w.proj_in }))
    h = h:view(B, F, H * W, h:size(3))
    for b = 0, m.num_transformer_block - 1 do
      local block = w.transformer_blocks[b]
      for i = 0, #m.attention_block_types - 1 do
        local attention = block.attention_blocks[i]
        h = layer(pass, 'motion', attention, h, temporal_attention, attention, block.norms[i], m.num_attention_heads)
      end
      h = layer(pass, 'feed_forward', block.ff, h, feed_forward, block.ff, block.ff_norm)
    end
    return nn.linear(w.proj_out, h:view(B, F, H, W, h:size(4)), { residual = x })
  end)
end

-- A view with another shape of a tensor, or of quantized values.
local function viewed(x, ...)
  if cr.is_tensor(x) then return x:view(...) end
  return { codes = x.codes:view(...), scale = x.scale, dtype = x.dtype } -- quantized values with a static scale have no scale tensor
end

-- A convolution of each frame of x [B F H W C], which may be quantized.
local function conv(w, x, options)
  local B, F, H, W, C = unpack(quant.tensor_of(x).shape)
  local residual = options.residual
  if residual then
    options.residual = residual:view(B * F, residual:size(3), residual:size(4), residual:size(5))
  end
  local y = nn.conv2d(w, viewed(x, B * F, H, W, C), options)
  return y:view(B, F, y:size(2), y:size(3), y:size(4))
end

local function norm(self, w, x, options)
  local B, F, H, W, C = unpack(x.shape)
  local groups, eps = self.config.norm_num_groups, self.config.norm_eps
  if not self.config.use_inflated_groupnorm then return nn.group_norm(w, x, groups, eps, options) end
  local before = options.bias_before
  if before then
    options.bias_before = before:view(B, 1, C):expand(B, F, C):reshape(B * F, C)
  end
  return viewed(nn.group_norm(w, x:view(B * F, H, W, C), groups, eps, options), B, F, H, W, C)
end

local function resnet(self, w, x, pass, scale)
  return cr.scope(function()
    local h = conv(w.conv1, norm(self, w.norm1, x, { silu = true, codes = w.conv1 }), { padding = 1 })
    h = norm(self, w.norm2, h, { silu = true, bias_before = pass.bias(w, x:size(1)), codes = w.conv2 })
    local shortcut = rawget(w, 'conv_shortcut')
    local skip = shortcut and nn.linear(shortcut, x) or x
    local y = conv(w.conv2, h, { padding = 1, residual = skip })
    return scale and scale ~= 1 and y / scale or y
  end)
end

--- Calls visit(w, motion) for each transformer among the weights; motion: the motion module that contains it.
local function each_transformer(w, config, visit)
  local function visit_list(list, motion)
    if not list then return end
    for i = 0, 1e3 do
      local t = rawget(list, i)
      if not t then return end
      visit(motion and t.temporal_transformer or t, motion)
    end
  end
  for _, half in ipairs { w.down_blocks, w.up_blocks } do
    for i = 0, #config.block_out_channels - 1 do
      visit_list(rawget(half[i], 'attentions'))
      visit_list(rawget(half[i], 'motion_modules'), true)
    end
  end
  visit_list(rawget(w.mid_block, 'attentions'))
  visit_list(rawget(w.mid_block, 'motion_modules'), true)
end

-- A node of the tree that is not in the checkpoint; errors mention its name.
local function node(parent, name, fields)
  local path = (getmetatable(parent) or {}).__path
  return setmetatable(fields, { __path = path and path .. '.' .. name or name })
end

local function shape_text(t) return '[' .. table.concat(t.shape, ' ') .. ']' end

return {
  each_transformer = each_transformer, node = node, shape_text = shape_text,
  conv = conv, key_value = key_value, motion_module = motion_module, norm = norm, resnet = resnet, transformer = transformer,
  widened = widened,
}
