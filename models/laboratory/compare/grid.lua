--- The cells of a comparison: every combination of the axes' values, their names, and the reference that each is
--- compared with.
--
-- A cell is {scheduler, steps, guidance, interval ('all' or 'A:B'), cache ('none' or as cr.cache takes it), dtype
-- ('fp8': f16 with fp8 products in the UNet), size, upscale ('none' or 'mouth[:MODEL]'), seed, the requested other
-- axes (models/laboratory/compare/axes.lua), id, reference (the id of another cell, or nil), is_reference}. Its id is
-- the name of its folder: the same settings have the same id in every run, and a scheduler or cache file is
-- identified by its contents.

local axes = require 'models.laboratory.compare.axes'
local errors = require 'cr.errors'
local schema = require 'cr.schema'
local settings = require 'models.latentsync.settings'
local specs = require 'cr.sampling.spec'

local grid = {}

--- Splits a list of values. The options after a name's colon may contain commas:
--- 'ddim,dpmpp_2m:order=3,spacing=trailing' has two values.
--- @param text string
--- @return string[]
function grid.split(text)
  local list = {}
  for _, typed in ipairs(specs.parts(text, ',')) do
    local part = typed:match '^%s*(.-)%s*$'
    if part:find '^[%a_][%w_]*=' and #list > 0 and list[#list]:find ':[%a_][%w_]*=' then
      list[#list] = list[#list] .. ',' .. part
    elseif part ~= '' then
      list[#list + 1] = part
    end
  end
  return list
end

local fail = errors.failf

--- Parses the axes.
--- @param texts table<string, string> axis name -> values separated by commas; bracketed lists may contain commas
--- @return table<string, any[]>
function grid.read(texts)
  local values = {}
  for name, text in pairs(texts) do
    local axis = axes.by_name[name]
    if not axis then
      local names = {}
      for known in pairs(axes.by_name) do names[#names + 1] = known end
      fail("there is no axis '%s': %s", name, schema.unknown(settings.schema.rows, name, name, names))
    end
    local list = grid.split(text)
    if #list == 0 then fail('%s: the list of values is empty', name) end
    values[name] = axis.read(list)
  end
  return values
end

local hashes = {}
local function hash_of(path)
  hashes[path] = hashes[path] or require 'cr.weights'.sha256(path)
  return hashes[path]
end

-- A name as part of a folder name: files by a hash of their contents, without special characters.
local function slug(text)
  local plain = text:gsub('[^%s:,+]+%.%a+', function(path)
    if not require 'lfs'.attributes(path) then return nil end
    return path:match '([^/]*)%.%a+$' .. '.' .. hash_of(path):sub(1, 8)
  end)
  return (plain:gsub('[^%w_.=-]', '~'))
end

local function name_cell(cell)
  local parts = {
    slug(cell.scheduler), cell.steps, ('g%g'):format(cell.guidance), slug(cell.interval), slug(cell.cache), cell.dtype,
    cell.size, ('s%d'):format(cell.seed),
  }
  if cell.upscale ~= 'none' then parts[#parts + 1] = slug(cell.upscale) end
  for _, axis in ipairs(axes.list) do
    local value = cell[axis.name]
    if not axis.always and value ~= nil and value ~= axis.usual then
      parts[#parts + 1] = slug(('%s=%s'):format(axis.name, grid.shown_whole(value)))
    end
  end
  cell.id = table.concat(parts, '-')
  return cell
end

local function copy(cell, changes)
  local new = {}
  for key, value in pairs(cell) do new[key] = value end
  for key, value in pairs(changes) do new[key] = value end
  return new
end

-- Checks a cell's sampling before anything is loaded.
local function check(cell)
  local ok, problem = pcall(function()
    local sampler = require 'models.latentsync.sampler'.new(axes.settings(cell, 'sample'))
    -- The number of steps may differ from the requested one if steps are listed or a strength is set.
    cell.calls, cell.steps_made = sampler:steps(), sampler.scheduler.options.steps or cell.steps
    require 'models.latentsync.stages.upscale' { settings = { upscale = cell.upscale } }
  end)
  if not ok then errors.fail(errors.is_failure(problem) and problem.message or problem) end
  return cell
end

--- Parses the reference: 'ddim:100' is {scheduler = 'ddim', steps = 100}; 'none' is nil.
--- @param text string
--- @return table?
function grid.reference(text)
  if text == 'none' then return nil end
  local scheduler, steps = text:match '^(.+):(%d+)$'
  if not scheduler then fail("--reference: '%s' is not NAME:STEPS, as in ddim:100, or none", text) end
  return { scheduler = scheduler, steps = tonumber(steps) }
end

-- Calls visit(cell) for every combination of values; the last axis varies fastest.
local function each_cell(values, dtypes, visit)
  local list = {}
  for _, axis in ipairs(axes.list) do
    if values[axis.name] and not (values.rows and values.rows[1][axis.name] ~= nil and axis.name ~= 'scheduler') then
      list[#list + 1] = axis.name
    end
  end
  local cell = {}
  local function fill(at)
    local name = list[at]
    if not name then return visit(copy(cell, { asked = true })) end
    local choices = name == 'dtype' and dtypes or name == 'scheduler' and values.rows or values[name]
    for _, value in ipairs(choices) do
      if name == 'scheduler' and values.rows then
        for key, v in pairs(value) do cell[key] = v end
      else
        cell[name] = value
      end
      fill(at + 1)
    end
  end
  fill(1)
end

-- Numbers texts in the order in which they first occur.
local function places()
  local known, count = {}, 0
  return function(text)
    if not known[text] then count, known[text] = count + 1, count + 1 end
    return known[text]
  end
end

--- All cells including references, in the order in which they are run: by the preparation that they need, then by
--- model, the most exact first, references first.
--- @param values table from read(), with every axis that all cells have; `rows` = {{scheduler =, steps =, ...}, ...} replaces
--- the axes that the rows contain
--- @param reference table? from reference()
--- @return table[] cells
function grid.cells(values, reference)
  local exact = grid.exact_dtype(values.dtype)
  local dtypes = { exact } -- the preparation uses the first one
  for _, dtype in ipairs(values.dtype) do
    if dtype ~= exact then dtypes[#dtypes + 1] = dtype end
  end
  local cells, by_id, references = {}, {}, {}
  each_cell(values, dtypes, function(cell)
    if reference then
      local plain = { scheduler = reference.scheduler, steps = reference.steps, dtype = exact, asked = false }
      for _, axis in ipairs(axes.list) do
        if cell[axis.name] ~= nil and axis.plain ~= nil then plain[axis.name] = axis.plain end
      end
      local r = name_cell(copy(cell, plain))
      cell.reference = r.id
      if not references[r.id] then references[r.id], references[#references + 1] = r, r end
    end
    name_cell(cell)
    if not by_id[cell.id] then
      by_id[cell.id] = check(cell)
      cells[#cells + 1] = cell
    end
  end)
  local all = {}
  for _, r in ipairs(references) do
    local cell = by_id[r.id] or check(r)
    cell.is_reference, cell.reference = true, nil
    all[#all + 1] = cell
  end
  for _, cell in ipairs(cells) do
    if not cell.is_reference then all[#all + 1] = cell end
  end
  local piece, model = places(), places()
  for _, dtype in ipairs(dtypes) do model(dtype) end
  for i, cell in ipairs(all) do
    cell.order = { piece(axes.key(cell, 'piece')), model(cell.dtype), model(axes.key(cell, 'model')), i }
  end
  table.sort(all, function(a, b)
    for k = 1, 4 do
      if a.order[k] ~= b.order[k] then return a.order[k] < b.order[k] end
    end
    return false
  end)
  return all
end

--- The dtype and quantization that a cell's dtype means.
--- @param dtype string
--- @return string dtype
--- @return string? quant
function grid.precision(dtype)
  if dtype == 'fp8' then return 'f16', 'fp8' end
  return dtype
end

--- The most exact of several dtypes.
function grid.exact_dtype(list)
  local best = list[1]
  for _, dtype in ipairs(list) do if axes.exactness[dtype] > axes.exactness[best] then best = dtype end end
  return best
end

--- A value as text.
function grid.shown_whole(value) return type(value) == 'number' and ('%.10g'):format(value) or tostring(value) end

--- A value as text, with files without their folders.
function grid.shown(value) return (grid.shown_whole(value):gsub('[^%s:,+]*/', '')) end
local shown = grid.shown

--- The axes that distinguish the cells: scheduler and steps always, others if they vary.
--- @param cells table[]
--- @return table[] from models/laboratory/compare/axes.lua
function grid.varying(cells)
  local list = {}
  for _, axis in ipairs(axes.list) do
    local differs = axis.name == 'scheduler' or axis.name == 'steps'
    for _, cell in ipairs(cells) do differs = differs or cell[axis.name] ~= cells[1][axis.name] end
    if differs then list[#list + 1] = axis end
  end
  return list
end

--- Gives each cell a `label`, such as 'dpmpp_2m 15' or 'ddim 20, deepcache:3, 512 px', and a `curve`: the label
--- without the steps.
--- @param cells table[]
function grid.label(cells)
  local varying = grid.varying(cells)
  local function text_of(cell, with_steps)
    local parts = { shown(cell.scheduler) .. (with_steps and ' ' .. cell.steps or '') }
    for _, axis in ipairs(varying) do
      local value = cell[axis.name]
      local text = value ~= nil and axis.name ~= 'scheduler' and axis.name ~= 'steps' and axis.label(shown(value))
      if text then parts[#parts + 1] = text end
    end
    return table.concat(parts, ', ')
  end
  for _, cell in ipairs(cells) do cell.label, cell.curve = text_of(cell, true), text_of(cell, false) end
end

return grid
