--- Which of the UNet's matrix products are computed in 8-bit floats: a list to copy and change
-- (`--quant mine.lua`), and what reads it.
--
-- A file of one's own returns { keep = {...}, only = {...} } like the one below: Lua patterns of names
-- as in the checkpoint; fused weights are to_qkv and to_kv.

local M = {}

--- What stays in the network's own dtype, though it could be quantized. Errors and times that this list follows:
-- tests/bench/cuda_fp8.lua and cuda_fp8_linear.lua.
M.keep = {
  -- Computed once a window or on a handful of rows: nothing to win.
  '^time_embedding%.', '%.time_emb_proj$', '%.to_kv$', '%.attn2%.to_k$', '%.attn2%.to_v$', '^mid_block%.',
  -- The whole signal passes here, not what a branch adds to it: most error, little work.
  '%.conv_shortcut$', '%.proj_in$', '%.proj_out$',
  -- Quantizing their input, a pass of its own, takes most of what the product saves.
  '%.to_out%.0$',
  -- Narrow products: memory bounds them, and one kernel does the feed-forward's first one in float16 with GEGLU behind it.
  '^down_blocks%.0%.', '^up_blocks%.3%.',
}

--- What is quantized of the rest; nil: all.
M.only = nil

-- The kernels' requirement: sizes in multiples of 16 bytes.
local UNIT = 16

local function matches(name, patterns)
  for _, pattern in ipairs(patterns or {}) do
    if name:find(pattern) then return true end
  end
  return false
end

local function chosen(name, spec)
  return not matches(name, spec.keep) and (not spec.only or matches(name, spec.only))
end

--- What a layer of the checkpoint is called once the network has fused its projections (models/networks/unet3d.lua).
--- @param name string
--- @return string
function M.fused(name)
  local stem, part = name:match '^(.*%.to_)([qkv])$'
  if not stem then return name end
  if not stem:find '%.attn2%.to_$' then return stem .. 'qkv' end
  return part == 'q' and name or stem .. 'kv'
end

--- For weights.tree's `apart`: what a list asks for, so that the memory of what is quantized can be given back.
--- @param spec? table {keep =, only =}, or the lists above
--- @return fun(name: string, shape: integer[]): boolean
function M.apart(spec)
  spec = spec or M
  return function(name, shape)
    local layer = name:match '^(.*)%.weight$'
    local product = #shape == 2 or #shape == 4 and shape[3] * shape[4] == 1
    return layer ~= nil and product and chosen(M.fused(layer), spec)
  end
end

--- The layers of a weights' tree that a list asks for, in the order of their names.
--- @param tree table
--- @param spec? table {keep =, only =}, or the lists above
--- @return table[] {name =, node = {weight = [N K], ...}} each
function M.layers(tree, spec)
  spec = spec or M
  local list = {}
  local function visit(node)
    if type(node) ~= 'table' then return end
    local meta = getmetatable(node)
    if not (meta and meta.__path ~= nil or node == tree) then return end
    local weight = rawget(node, 'weight')
    local name = meta and meta.__path
    if weight and name and weight:dim() == 2 and weight:size(1) % UNIT == 0 and weight:size(2) % UNIT == 0
        and weight.dtype ~= 'u8' and weight.dtype ~= 'f64' and chosen(name, spec) then
      list[#list + 1] = { name = name, node = node }
    end
    for key, child in pairs(node) do
      if key ~= 'weight' and key ~= 'bias' then visit(child) end
    end
  end
  visit(tree)
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

--- A list of one's own, from a file that returns it.
--- @param path string
--- @return table
function M.read(path)
  local chunk, why = loadfile(path)
  if not chunk then error(why, 0) end
  local ok, spec = pcall(chunk)
  if not ok then error(('%s: %s'):format(path, spec), 0) end
  if type(spec) ~= 'table' then error(('%s: it must return a table { keep = {...} }, not %s'):format(path, type(spec)), 0) end
  for key, patterns in pairs(spec) do
    local good = (key == 'keep' or key == 'only') and type(patterns) == 'table'
    for _, pattern in ipairs(good and patterns or {}) do good = good and type(pattern) == 'string' and pcall(string.find, '', pattern) end
    if not good then error(("%s: '%s' is not a list of Lua patterns under keep or only"):format(path, tostring(key)), 0) end
  end
  return spec
end

--- The list that a name stands for: 'fp8' is the one above, anything else a file.
--- @param name string
--- @return table
function M.named(name)
  if name == 'fp8' then return { keep = M.keep, only = M.only } end
  if not name:find '%.lua$' then error(("there is no '%s', only fp8 and files that end in .lua"):format(name), 0) end
  return M.read(name)
end

return M
