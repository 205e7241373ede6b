--- Quantized layers in weights files: NAME.weight holds codes in the layout of the checkpoint's weight, beside
--- NAME.scale and the other tensors of a quantized layer (cr.quant). The file determines which layers are quantized;
--- this module checks them against what a network expects.
--
-- A layer whose i8 codes have a scale of shape [N 1] is quantized only in the file ("weight-only"): its codes are
-- dequantized on loading, and it computes like any other layer.

local M = {}

-- Tensors that may accompany a layer's codes, and whether each keeps its dtype regardless of the network's.
local PARTS = { scale = true, input = true, smooth = true, down = false, up = false }

local GROUP = 64 -- inputs that share a scale in int4

--- Returns whether a tensor of a tree keeps the file's dtype.
--- @param name string
--- @param known table<string, boolean> names of quantized layers
--- @return boolean
function M.is_exact(name, known)
  local layer, part = name:match '^(.*)%.(%w+)$'
  return layer ~= nil and PARTS[part] == true and known[layer] == true
end

local function numel(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

-- Returns the shapes of a layer's tensors for the shape of its weight in the checkpoint, [N K] or [N K kh kw].
local function shapes(shape, format)
  local N, K = shape[1], shape[2]
  local taps = {}
  for i = 3, #shape do taps[#taps + 1] = shape[i] end
  local one_by_one = #shape == 4 and numel(taps) == 1
  local function with(first, last) -- for tensors that are channels-last in the file, too
    if #shape == 2 or one_by_one then return { first, last } end
    local s = { first, unpack(taps) }
    s[#s + 1] = last
    return s
  end
  local weight = { N, format == 'int4' and K / 2 or K, unpack(taps) }
  local scales = { int4 = with(N, math.ceil(K / GROUP)), ['weight-only'] = { N, 1 } }
  return {
    weight = weight, matrix = one_by_one and { weight[1], weight[2] } or nil,
    scale = scales[format] or { N }, input = { K }, smooth = { K },
    down = function(found) return with(found[1], K) end, up = function(found) return { N, found[2] } end,
  }
end

local function format_of(file, full)
  local dtype = file:info(full .. '.weight').dtype
  local grouped = #file:info(full .. '.scale').shape > 1
  if dtype == 'i8' then return grouped and 'weight-only' or 'int8' end
  if dtype ~= 'u8' then return nil, dtype end
  return grouped and 'int4' or 'fp8'
end

-- Tensors by which x is divided; others are factors.
local DIVISORS = { input = true, smooth = true }

-- Checks that the numbers beside a layer's codes are finite, and that divisors are not 0. It reads them one by one,
-- because operations on so many small tensors would add a tenth of a second to every start.
local function check_numbers(file, full, part, fail)
  local cr = require 'cr.tensor'
  local flaw = cr.scope(function()
    local x = file:get(full .. '.' .. part):to('f32'):contiguous()
    local p, zeros = x:pointer(), false
    for i = 0, x:numel() - 1 do
      local v = p[i]
      if v - v ~= 0 then return 'numbers that are not finite' end
      zeros = zeros or v == 0
    end
    if zeros and DIVISORS[part] then return 'zeros, which cannot be divisors' end
  end)
  if flaw then fail(('%s: tensor %s.%s holds %s'):format(file.path, full, part, flaw)) end
end

-- Returns the function that dequantizes the codes of a weight-only layer on their device.
local function expander(file, full)
  return function(codes)
    local rows = codes:view(codes:size(1), codes:numel() / codes:size(1)):to 'f32'
    return (rows * file:get(full .. '.scale'):to(codes.device)):view(codes.shape)
  end
end

--- Adapts the list of expected tensors to the quantized layers of a file: their codes and the tensors beside them.
--- @param file WeightsFile
--- @param expected table[] as weights.check takes them
--- @param prefix string precedes the names in the file
--- @param fail fun(text: string) raises
--- @return table[] expected
--- @return table<string, boolean> layers that are quantized, without the prefix
--- @return table<string, fun(codes: Tensor): Tensor> functions that dequantize weight-only layers, by the names of
---   their weights in the file
function M.expected(file, expected, prefix, fail)
  local list, layers, alone = {}, {}, {}
  for _, item in ipairs(expected) do
    local name, shape = item.name or item[1], item.shape or item[2]
    local layer = name:match '^(.*)%.weight$'
    local full = layer and prefix .. layer
    local quantized = full and file:has(full .. '.scale') and file:has(full .. '.weight')
    if not quantized then
      local dtype = full and file:has(full .. '.weight') and file:info(full .. '.weight').dtype
      if dtype == 'i8' or dtype == 'u8' then
        fail(('%s: tensor %s.weight holds codes (%s), but %s.scale is missing'):format(file.path, full, dtype, full))
      end
      list[#list + 1] = item
    else
      local format, dtype = format_of(file, full)
      if not format then
        fail(('%s: tensor %s.weight is %s beside a scale: codes are i8 or u8'):format(file.path, full, dtype))
      end
      if #shape < 2 then fail(('%s: %s is not a layer that can be quantized'):format(file.path, full)) end
      local s = shapes(shape, format)
      if format == 'weight-only' then alone[full .. '.weight'] = expander(file, full) else layers[layer] = true end
      list[#list + 1] = { name = name, shape = s.weight, or_shape = s.matrix }
      for part in pairs(PARTS) do
        if file:has(full .. '.' .. part) then
          local wanted = s[part]
          if type(wanted) == 'function' then wanted = wanted(file:info(full .. '.' .. part).shape) end
          list[#list + 1] = { name = layer .. '.' .. part, shape = wanted }
          check_numbers(file, full, part, fail)
        end
      end
      local has_down, has_up = file:has(full .. '.down'), file:has(full .. '.up')
      if has_down ~= has_up then
        fail(('%s: tensor %s.%s is there without %s'):format(file.path, full, has_down and 'down' or 'up', has_down and 'up' or 'down'))
      end
      if layers[layer] and format ~= 'int4' and s.matrix == nil and #shape == 4 and not file:has(full .. '.input') then
        fail(('%s: tensor %s.input is missing: a convolution in 8 bits needs it'):format(file.path, full))
      end
    end
  end
  return list, layers, alone
end

return M
