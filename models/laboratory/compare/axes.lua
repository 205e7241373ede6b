--- The axes of a comparison: what can vary from cell to cell, and the engine setting behind each value.
--
-- Every setting of models/latentsync/settings.lua that affects the generated faces is an axis with the same name,
-- without a line here. Rows are needed only for axes that have another name or form, or that every cell has:
--
--   name       the axis, and the field of a cell
--   setting    the setting that it sets (default: its name)
--   title      the column's title in tables (default: its name)
--   plain      the value that a reference cell has instead; nil: the cell's own value
--   always     every cell has it; other axes are there only if they were requested
--   read       parses a list of values
--   value      maps a cell's value to the setting's value (default: the same); nil: unset
--   label      the text for a value in a cell's label; nil: no text (default: 'NAME VALUE')
--   part       what must be recomputed if the value changes: the 'piece' (frames, sound, latents), the 'model', the 'sample', or
--              a 'stage' after it

local errors = require 'cr.errors'
local schema = require 'cr.schema'
local settings = require 'models.latentsync.settings'

local M = {}

local fail = errors.failf
local by_setting = settings.schema.by_name

local DTYPES = { f32 = 3, f16 = 2, bf16 = 1, fp8 = 0 } -- larger numbers are more exact
M.exactness = DTYPES

-- Parses the values of a setting, as the command lipsync does.
local function values_of(option, name, list)
  local row, out = by_setting[name], {}
  for i, text in ipairs(list) do
    local value, problem = schema.read(row, text)
    if value == nil then fail('%s: %s', option, problem) end
    out[i] = value
  end
  return out
end

local function of_setting(option, name) return function(list) return values_of(option, name, list) end end
local function as_typed(list) return list end
-- A label format that is omitted for one value.
local function unless(word, format)
  return function(text) return text ~= word and format:format(text) or nil end
end

local own = {
  { name = 'size', title = 'px', always = true, part = 'piece', read = of_setting('size', 'size'),
    label = function(text) return text .. ' px' end },
  { name = 'dtype', always = true, part = 'model', label = function(text) return text end, read = function(list)
    for _, name in ipairs(list) do
      if not DTYPES[name] then fail("dtype: '%s' is not f32, f16, bf16 or fp8", name) end
    end
    return list
  end },
  { name = 'scheduler', always = true, part = 'sample', read = as_typed },
  { name = 'steps', always = true, part = 'sample', read = of_setting('--steps', 'steps') },
  { name = 'guidance', always = true, part = 'sample', read = of_setting('--guidance', 'guidance'),
    label = function(text) return 'guidance ' .. text end },
  { name = 'interval', setting = 'guidance_interval', title = 'guided at', always = true, plain = 'all', part = 'sample',
    label = unless('all', 'guided at %s'),
    value = function(text) return text ~= 'all' and schema.read(by_setting.guidance_interval, text) or nil end,
    read = function(list)
      for _, text in ipairs(list) do
        if text ~= 'all' and not schema.read(by_setting.guidance_interval, text) then
          fail("interval: '%s' is not all or A:B, as in 100:800", text)
        end
      end
      return list
    end },
  -- In this list, several caches are joined by + instead of commas.
  { name = 'cache', always = true, plain = 'none', part = 'sample', read = as_typed, label = unless('none', '%s'),
    value = function(text) return text ~= 'none' and (text:gsub('%+', ',')) or nil end },
  { name = 'upscale', always = true, plain = 'none', part = 'stage', label = unless('none', 'upscale %s'), read = function(list)
    for _, text in ipairs(list) do
      if text ~= 'none' and not text:find '^mouth' or not schema.read(by_setting.upscale, text) then
        fail("upscale: '%s' is not none or mouth[:MODEL]: a comparison compares faces, not frames", text)
      end
    end
    return list
  end },
  -- Another number of frames gives other windows, so it has a reference of its own.
  { name = 'frames_per_window', title = 'frames a window', part = 'piece', label = function(text) return text .. ' frames a window' end },
  { name = 'vae', part = 'piece' },
  { name = 'quant', part = 'model', plain = 'none', read = function(list)
    for _, text in ipairs(list) do
      local ok, problem = pcall(require 'models.quantize.recipe'.named, text)
      if not ok then fail('quant: %s', problem) end
    end
    return list
  end },
  { name = 'card', part = 'model', plain = 'none', read = function(list)
    for _, text in ipairs(list) do
      local _, problem = require 'models.latentsync.card'.read(text)
      if problem then fail('card: %s', problem) end
    end
    return list
  end },
}

-- Settings that are not axes: those that all cells share, those that apply after the faces, and those of the command.
local shared = { device = true, points = true, start = true, duration = true, fps = true, length = true, checkpoint = true }
local parts = { load = 'piece', find = 'piece', paste = 'piece', sample = 'sample' } -- by the setting's stage

local function is_plain(row) return row.default ~= nil and type(row.default) ~= 'function' end

-- Creates the axis for a setting. The value that stands for "unset" is called 'none' or 'default'.
local function generic(row)
  local name = row[1]
  local word = is_plain(row) and tostring(row.default) or row.default_text == 'none' and 'none' or 'default'
  local plain = word
  if is_plain(row) then plain = row.default end
  return {
    name = name, part = parts[row.stage], plain = plain,
    read = function(list)
      local out = {}
      for i, text in ipairs(list) do
        if text == word and not is_plain(row) then
          out[i] = word
        elseif row[2] == 'flag' then
          if text ~= 'true' and text ~= 'false' then fail("%s: '%s' is not true or false", name, text) end
          out[i] = text == 'true'
        else
          out[i] = values_of(name, name, { text })[1]
        end
        if type(out[i]) == 'table' then fail('%s: it cannot be an axis', name) end
      end
      return out
    end,
    value = function(v)
      if v == word and not is_plain(row) then return nil end
      return v
    end,
  }
end

--- All axes, in the order in which cells are listed.
M.list = {}
--- The axes by name.
M.by_name = {}

local function add(axis)
  local row = by_setting[axis.setting or axis.name]
  local filled = row and generic(row) or {}
  for key, value in pairs(axis) do filled[key] = value end
  -- A row above that omits `plain` says that a reference has the cell's value.
  if rawget(axis, 'always') or axis.name == 'frames_per_window' or axis.name == 'vae' then filled.plain = axis.plain end
  filled.title = filled.title or filled.name
  filled.usual = row and generic(row).plain -- the value that is omitted from a cell's label
  filled.label = filled.label or function(text) return ('%s %s'):format(filled.name, text) end
  filled.value = filled.value or function(v) return v end
  M.list[#M.list + 1], M.by_name[filled.name] = filled, filled
end

local taken = {}
for _, axis in ipairs(own) do
  add(axis)
  taken[axis.setting or axis.name] = true
end
for _, row in ipairs(settings.schema.rows) do
  if parts[row.stage] and not taken[row[1]] and not shared[row[1]] and row[1] ~= 'seed' then add { name = row[1] } end
end
add { name = 'seed', always = true, part = 'sample', label = function(text) return 'seed ' .. text end, read = function(list)
  local seeds = values_of('--seeds', 'seed', list)
  for _, seed in ipairs(seeds) do
    if seed < 0 then fail('--seeds: %d is less than 0', seed) end
  end
  return seeds
end }

--- The axes that some cells have: those that every cell has, and the requested ones.
--- @param cells table[]
--- @return table[]
function M.of(cells)
  local list = {}
  for _, axis in ipairs(M.list) do
    local there = axis.always
    for _, cell in ipairs(cells) do there = there or cell[axis.name] ~= nil end
    if there then list[#list + 1] = axis end
  end
  return list
end

--- The engine settings of a cell.
--- @param cell table
--- @param ... string parts
--- @return table<string, any> settings by name, as in models/latentsync/settings.lua
function M.settings(cell, ...)
  local found = {}
  for _, part in ipairs { ... } do
    for _, axis in ipairs(M.list) do
      if axis.part == part and cell[axis.name] ~= nil then found[axis.setting or axis.name] = axis.value(cell[axis.name]) end
    end
  end
  return found
end

--- A key that is equal for cells that can share a part of the work.
--- @param cell table
--- @param part string
--- @param but table<string, boolean>? axes that are ignored
--- @return string
function M.key(cell, part, but)
  local words = {}
  for _, axis in ipairs(M.list) do
    if axis.part == part and not (but and but[axis.name]) then words[#words + 1] = tostring(cell[axis.name]) end
  end
  return table.concat(words, ' ')
end

return M
