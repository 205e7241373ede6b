--- Writes a checkpoint folder with quantized layers: the same files under the checkpoint's own names, which the same
--- code reads. Each file is written completely or not at all, the UNet's last, so that an incomplete folder is not a
--- checkpoint.

local cr = require 'cr'
local files = require 'cr.files'
local json = require 'cr.json'
local layers = require 'models.quantize.layers'

local M = {}

local floats = { f32 = true, f16 = true, bf16 = true, f64 = true }

-- A quantized convolution weight in the checkpoint's layout, channels before taps.
local function turned(t) return t:dim() == 4 and t:permute(1, 4, 2, 3):contiguous() or t end

-- The tensors of a part of a fused layer: rows first .. first+n-1 of tensors with rows, the others unchanged.
local function part_of(codes, first, n)
  local rows = { weight = true, scale = true, up = true }
  local out = {}
  for name, t in pairs(codes) do
    t = rows[name] and t:narrow(1, first, n) or t
    out[name] = name == 'weight' and turned(t) or t:contiguous()
  end
  return out
end

--- The tensors of a network's file.
--- @param network string
--- @param source table {names = the network's tensors, get = fun(name): Tensor}
--- @param list QuantLayer[] from errors.choose
--- @return table<string, Tensor>
function M.tensors(network, source, list)
  local out, quantized = {}, {}
  for _, layer in ipairs(list) do
    local parts = layers.parts(network, layer.name)
    local codes = layer.codes
    if layer.kept then codes = layer.kept == 'weight-only' and layer.alone_codes end
    for i, name in ipairs(codes and parts or {}) do
      local n = layer.N / #parts
      for field, t in pairs(part_of(codes, (i - 1) * n + 1, n)) do out[name .. '.' .. field] = t end
      quantized[name .. '.weight'] = true
    end
  end
  for _, name in ipairs(source.names) do
    if not quantized[name] then
      local t = source.get(name)
      out[name] = floats[t.dtype] and t:to 'f16' or t
    end
  end
  return out
end

--- The size of a network's file in bytes, computed from the checkpoint's shapes.
--- @param network string
--- @param shapes table<string, integer[]> by name
--- @param format_of fun(layer: QuantLayer): string, integer? format, and rank of its branch
--- @return integer
function M.bytes(network, shapes, format_of)
  local total = 0
  for name, shape in pairs(shapes) do
    local n = 1
    for _, size in ipairs(shape) do n = n * size end
    local stem = name:match '^(.*)%.weight$'
    local layer = stem and layers.described(layers.fused(network, stem), shape)
    local format, rank = 'none', nil
    if layer then format, rank = format_of(layer) end
    if format == 'none' then
      total = total + 2 * n
    elseif format == 'int4' then
      total = total + n / 2 + 4 * layer.N * layer.taps * math.ceil(layer.K / 64) + 2 * (rank or 0) * (layer.N + layer.K)
    else
      total = total + n + 4 * layer.N + (layer.taps > 1 and 4 * layer.K or 0)
    end
  end
  return total
end

local function make(path)
  if not files.make_folder(path) then error(('the folder %s cannot be created'):format(path), 0) end
end

--- Writes one network's file.
--- @param path string
--- @param network string
--- @param source table as for `tensors`
--- @param list QuantLayer[]
--- @param about table? metadata about the quantization; nil if nothing is quantized
--- @param metadata table<string, string>? further metadata
function M.write(path, network, source, list, about, metadata)
  make(path:match '^(.*)/[^/]*$')
  cr.scope(function()
    local head = {}
    for key, value in pairs(metadata or {}) do head[key] = value end
    if about then head.quantization = json.encode(about) end
    cr.save(path, M.tensors(network, source, list), next(head) and head or nil)
  end)
end

--- Copies a small file, such as a configuration.
--- @param from string
--- @param to string
function M.copy(from, to)
  local f, reason = io.open(from, 'rb')
  if not f then error(reason, 0) end
  local text = f:read '*a'
  f:close()
  make(to:match '^(.*)/[^/]*$')
  files.write(to, text)
end

return M
