--- Loads a model's weights to a card, into one allocation for all weights that live as long as the model.
--
-- Tensors are uploaded in the file's dtype, from the mapped file through pinned staging memory, and are converted and
-- transposed on the card. Each starts at a multiple of 256 bytes, except adjacent ones: joined() returns a single
-- tensor over these without copying. Nothing here synchronizes with the card.

local base = require 'cr.ffi'
local memory = require 'cr.tensor.memory'
local tensor = require 'cr.tensor'

local C = base.C

local M = {}

local ALIGN = 256 -- bytes

--- @class ArenaItem
--- @field full string the name in the file
--- @field name string the name in the tree
--- @field info table the description in the file: {dtype, shape}
--- @field dtype string the dtype on the card
--- @field turn? integer[] the permutation of its dimensions
--- @field make? fun(x: Tensor): Tensor computes it on the card from the file's tensor; `info` then has the shape of
---   the result

local function numel(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

--- Calls visit(list) for every group of adjacent items, in the file's order. Most groups have one item.
local function each_group(items, adjacent, visit)
  local by_name, seen = {}, {}
  for _, item in ipairs(items) do by_name[item.name] = by_name[item.name] or item end
  local function group_of(name)
    for _, endings in ipairs(adjacent or {}) do
      for _, ending in ipairs(endings) do
        if #ending <= #name and name:sub(-#ending) == ending then return endings, name:sub(1, -#ending - 1) end
      end
    end
  end
  for _, item in ipairs(items) do
    if not seen[item] then
      local endings, stem = group_of(item.name)
      local list = {}
      for _, ending in ipairs(endings or {}) do
        local one = by_name[stem .. ending]
        if one and not seen[one] and one.dtype == item.dtype then list[#list + 1] = one end
      end
      if #list == 0 then list[1] = item end
      for _, one in ipairs(list) do seen[one] = true end
      visit(list)
    end
  end
end

--- Assigns every item its place: item.arena, and the offset item.at in elements. Returns the arenas, which consist of
--- rows of ALIGN bytes: one for each dtype, and one for each group that needs a separate allocation.
local function lay_out(items, options)
  local arenas, common = {}, {}
  each_group(items, options.adjacent, function(list)
    local dtype = list[1].dtype
    local apart = options.apart and options.apart(list[1].name, list[1].info.shape)
    --- @type table|false|nil
    local arena = not apart and common[dtype]
    if not arena then
      arena = { dtype = dtype, rows = 0 }
      arenas[#arenas + 1] = arena
      if not apart then common[dtype] = arena end
    end
    local unit = ALIGN / C.cr_dtype_size(tensor.dtype_code('weights', dtype))
    local at = arena.rows * unit
    for _, item in ipairs(list) do
      item.arena, item.at, item.unit = arena, at, unit
      at = at + numel(item.info.shape)
    end
    arena.rows = math.ceil(at / unit)
  end)
  return arenas
end

--- Returns the place of an item in its arena as a tensor.
local function place_of(item)
  local shape = {}
  for i, size in ipairs(item.info.shape) do shape[i] = size end
  if item.turn then
    for i, d in ipairs(item.turn) do shape[i] = item.info.shape[d] end
  end
  local n = numel(shape)
  local first = math.floor(item.at / item.unit)
  local count = math.max(1, math.ceil((item.at + n) / item.unit) - first)
  if n == 0 then first, count = 0, 0 end
  local rows = item.arena.memory:narrow(1, first + 1, count):view(count * item.unit)
  return rows:narrow(1, n == 0 and 1 or item.at - first * item.unit + 1, n):view(shape)
end

--- Uploads items of a file to a card. visit(name, tensor) is called for each tensor, whose contents are valid in
--- stream order. The tensors belong to no scope.
--- @param file WeightsFile
--- @param items ArenaItem[]
--- @param options table {device =, tag = name in cr.memory's report, adjacent = lists of endings of names:
---   { { 'to_q.weight', 'to_k.weight' } } makes those with the same stem adjacent, apart = function(name, shape) that
---   returns whether a tensor gets a separate allocation, which can be freed before the rest}
--- @param visit fun(name: string, t: Tensor)
function M.load(file, items, options, visit)
  local arenas = lay_out(items, options)
  local function fill()
    for _, arena in ipairs(arenas) do
      local shape = { arena.rows, ALIGN / C.cr_dtype_size(tensor.dtype_code('weights', arena.dtype)) }
      arena.memory = tensor.keep(memory.tagged(options.tag or '', tensor.empty, shape,
        { dtype = arena.dtype, device = options.device }))
    end
    for _, item in ipairs(items) do
      local t = tensor.scope(function()
        local x = file:get(item.full)
        local place = place_of(item)
        if item.make then
          x = item.make(x:to(options.device))
        elseif item.turn or x.dtype ~= item.dtype then
          x = x:to(options.device)
          if item.turn then x = x:permute(unpack(item.turn)) end
        end
        place:copy_(x)
        return place
      end)
      visit(item.name, tensor.keep(t))
    end
  end
  local ok, err = pcall(fill)
  for _, arena in ipairs(arenas) do
    if arena.memory then arena.memory:free() end -- the tensors keep the storage alive
  end
  if not ok then error(err, 0) end
end

--- Returns one tensor over several that are adjacent in memory, joined along the first dimension, or nil if they are
--- not adjacent. Nothing is copied.
--- @param parts Tensor[]
--- @return Tensor?
function M.joined(parts)
  local first = parts[1].c
  local stop, rows = first.offset, 0
  for _, part in ipairs(parts) do
    local c = part.c
    if c.storage ~= first.storage or c.dtype ~= first.dtype or c.offset ~= stop or c.rank ~= first.rank
        or c.rank == 0 or C.cr_is_contiguous(c) == 0 then
      return nil
    end
    for d = 1, c.rank - 1 do
      if c.shape[d] ~= first.shape[d] then return nil end
    end
    stop, rows = stop + C.cr_numel(c), rows + c.shape[0]
  end
  local out = tensor.new()
  base.check(C.cr_share(out.c, first))
  out.c.shape[0] = rows
  return out
end

return M
