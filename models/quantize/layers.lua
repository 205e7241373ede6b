--- The layers of a network that can be quantized: their names, sizes and preceding norms.

local quant = require 'cr.quant'

local M = {}

-- ---- names ---------------------------------------------------------------------------------------

-- Suffixes of the checkpoint's layers that a network fuses (models/networks/unet3d.lua, whisper.lua), per network.
local FUSED = {
  unet = {
    { 'to_qkv', { 'to_q', 'to_k', 'to_v' }, function(stem) return not stem:find '%.attn2%.$' end },
    { 'to_kv', { 'to_k', 'to_v' }, function(stem) return stem:find '%.attn2%.$' ~= nil end },
  },
  whisper = { { 'packed', { 'query', 'key', 'value' }, function(stem) return stem:find '%.attn%.$' ~= nil end } },
  vae = {},
}

--- The name that a checkpoint's layer has after the network has fused its projections.
--- @param network string 'unet', 'vae' or 'whisper'
--- @param name string without '.weight'
--- @return string
function M.fused(network, name)
  local stem, last = name:match '^(.*%.)([^.]*)$'
  for _, rule in ipairs(stem and FUSED[network] or {}) do
    for _, part in ipairs(rule[2]) do
      if part == last and rule[3](stem) then return stem .. rule[1] end
    end
  end
  return name
end

--- The checkpoint's layers that were fused into a network's layer, in the order of its rows.
--- @param network string
--- @param name string
--- @return string[]
function M.parts(network, name)
  local stem, last = name:match '^(.*%.)([^.]*)$'
  for _, rule in ipairs(stem and FUSED[network] or {}) do
    if rule[1] == last then
      local list = {}
      for i, part in ipairs(rule[2]) do list[i] = stem .. part end
      return list
    end
  end
  return { name }
end

-- ---- what a layer is -----------------------------------------------------------------------------

--- @class QuantLayer
--- @field name string
--- @field kind string 'product' or 'convolution'
--- @field N integer output channels
--- @field K integer input channels
--- @field taps integer 1, or a convolution's kh kw
--- @field node table? its node in the tree of weights
--- @field norm table? the group norm (followed by SiLU) that feeds this layer only

-- Describes a layer by its weight's shape, with taps in the middle (in a tree) or at the end (in a checkpoint).
local function describe(name, shape, channels_last)
  local taps = 1
  for i = 2, #shape do taps = taps * shape[i] end
  local K = channels_last and shape[#shape] or shape[2]
  taps = taps / K
  return { name = name, kind = taps > 1 and 'convolution' or 'product', N = shape[1], K = K, taps = taps }
end

--- A layer of a checkpoint, from its weight's shape; nil if it is not a layer.
--- @param name string without '.weight'
--- @param shape integer[]
--- @return QuantLayer?
function M.described(name, shape)
  if #shape ~= 2 and #shape ~= 4 then return nil end
  return describe(name, shape, false)
end

-- The kernels need sizes that are multiples of 16 bytes.
local UNIT = { int8 = 16, fp8 = 16, int4 = 32 }

--- Whether a layer's sizes are supported in a format.
--- @param layer QuantLayer
--- @param format string
--- @return boolean
function M.takes(layer, format)
  if format == 'fp8' and layer.kind == 'convolution' then return false end -- no GPU runs it faster
  return layer.N % 16 == 0 and layer.K % UNIT[format] == 0 and (format ~= 'int4' or layer.K >= 64)
end

local floats = { f32 = true, f16 = true, bf16 = true }

-- Calls visit(node, name, parent) for each node with a weight, in the order of their names.
local function each(tree, visit)
  local found = {}
  local function walk(node, parent)
    local meta = type(node) == 'table' and getmetatable(node)
    if type(node) ~= 'table' or not (meta and meta.__path ~= nil or node == tree) then return end
    local weight, name = rawget(node, 'weight'), meta and meta.__path
    if name and type(weight) ~= 'table' and weight and (weight:dim() == 2 or weight:dim() == 4) then
      found[#found + 1] = { node, name, parent }
    end
    for key, child in pairs(node) do
      if key ~= 'folded' then walk(child, node) end
    end
  end
  walk(tree)
  table.sort(found, function(a, b) return a[2] < b[2] end)
  for _, entry in ipairs(found) do visit(unpack(entry)) end
end

--- The layers of a network that are not quantized yet, in the order of their names.
--- @param tree table
--- @return QuantLayer[]
function M.of(tree)
  local list = {}
  each(tree, function(node, name, parent)
    if not floats[node.weight.dtype] then return end
    local layer = describe(name, node.weight.shape, true)
    local which = name:match '%.conv([12])$'
    layer.node, layer.norm = node, which and rawget(parent, 'norm' .. which) or nil
    list[#list + 1] = layer
  end)
  return list
end

--- The layers that are quantized; each has a field `format`.
--- @param tree table
--- @return QuantLayer[]
function M.quantized(tree)
  local list = {}
  each(tree, function(node, name)
    local format = quant.format(node)
    if not format then return end
    local shape = node.weight.shape
    if format == 'int4' then shape[#shape] = 2 * shape[#shape] end
    local layer = describe(name, shape, true)
    layer.node, layer.format = node, format
    list[#list + 1] = layer
  end)
  return list
end

return M
