--- The cells of a comparison: every combination of the axes' values, their names, and for each the
--- reference that it is measured against.
--
-- A cell is {scheduler, steps, guidance, interval ('all' or 'A:B'), cache ('none' or as cr.cache takes it),
-- dtype ('fp8': f16 with the UNet's products in 8-bit floats), size, upscale ('none' or 'mouth[:MODEL]'), seed, id,
-- reference (id of another cell, or nil), is_reference}. Its id names its folder:
-- the same settings have the same id in every run, and a scheduler's or cache's file goes by its contents.

local errors = require 'cr.errors'
local schema = require 'cr.schema'
local settings = require 'models.latentsync.settings'

local grid = {}

--- The axes in the order in which cells are listed; `title` for tables.
grid.axes = {
  { name = 'size', title = 'px' }, { name = 'dtype', title = 'dtype' }, { name = 'scheduler', title = 'scheduler' },
  { name = 'steps', title = 'steps' }, { name = 'guidance', title = 'guidance' },
  { name = 'interval', title = 'guided at' }, { name = 'cache', title = 'cache' },
  { name = 'upscale', title = 'upscale' }, { name = 'seed', title = 'seed' },
}

local DTYPES = { f32 = 3, f16 = 2, bf16 = 1, fp8 = 0 } -- the greater, the more exact

--- The values of a list as typed. Of options that follow a name after a colon the commas belong to it:
--- 'ddim,dpmpp_2m:order=3,spacing=trailing' has two.
--- @param text string
--- @return string[]
function grid.split(text)
  local list = {}
  for part in (text .. ','):gmatch '%s*(.-)%s*,' do
    if part:find '^[%a_][%w_]*=' and #list > 0 and list[#list]:find ':[%a_][%w_]*=' then
      list[#list] = list[#list] .. ',' .. part
    elseif part ~= '' then
      list[#list + 1] = part
    end
  end
  return list
end

local fail = errors.failf

-- The values of a setting, as the command lipsync reads them.
local function values_of(option, name, list)
  local row, out = settings.schema.by_name[name], {}
  for i, text in ipairs(list) do
    local value, problem = schema.read(row, text)
    if value == nil then fail('%s: %s', option, problem) end
    out[i] = value
  end
  return out
end

--- The guidance settings that a cell's interval means.
--- @param cell table
--- @return table for cr.guidance.new
function grid.guidance(cell)
  local interval = cell.interval ~= 'all' and schema.read(settings.schema.by_name.guidance_interval, cell.interval) or nil
  return { scale = cell.guidance, interval = interval }
end

--- The cache that a cell means, as cr.cache.plan takes it; nil: none. Several are joined by + in an axis.
function grid.cache(cell) return cell.cache ~= 'none' and cell.cache:gsub('%+', ',') or nil end

local readers = {
  scheduler = function(list) return list end,
  steps = function(list) return values_of('--steps', 'steps', list) end,
  guidance = function(list) return values_of('--guidance', 'guidance', list) end,
  seed = function(list)
    local seeds = values_of('--seeds', 'seed', list)
    for _, seed in ipairs(seeds) do
      if seed < 0 then fail('--seeds: %d is less than 0', seed) end
    end
    return seeds
  end,
  size = function(list) return values_of('size', 'size', list) end,
  dtype = function(list)
    for _, name in ipairs(list) do
      if not DTYPES[name] then fail("dtype: '%s' is not f32, f16, bf16 or fp8", name) end
    end
    return list
  end,
  interval = function(list)
    for _, text in ipairs(list) do
      if text ~= 'all' and not schema.read(settings.schema.by_name.guidance_interval, text) then
        fail("interval: '%s' is neither all nor of the form A:B, as in 100:800", text)
      end
    end
    return list
  end,
  cache = function(list) return list end,
  upscale = function(list)
    for _, text in ipairs(list) do
      if text ~= 'none' and not text:find '^mouth' or not schema.read(settings.schema.by_name.upscale, text) then
        fail("upscale: '%s' is neither none nor mouth[:MODEL]: faces are compared, not frames", text)
      end
    end
    return list
  end,
}

--- Reads the axes, from lists as typed.
--- @param texts table<string, string> axis name -> values with commas between them
--- @return table<string, any[]>
function grid.read(texts)
  local values = {}
  for name, text in pairs(texts) do
    if not readers[name] then
      local names = {}
      for known in pairs(readers) do names[#names + 1] = known end
      fail("there is no axis '%s': %s", name, errors.did_you_mean(name, names))
    end
    local list = grid.split(text)
    if #list == 0 then fail('%s: there is no value', name) end
    values[name] = readers[name](list)
  end
  return values
end

local hashes = {}
local function hash_of(path)
  hashes[path] = hashes[path] or require 'cr.weights'.sha256(path)
  return hashes[path]
end

-- A name for a folder's name: files by their contents, odd characters away.
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
  cell.id = table.concat(parts, '-')
  return cell
end

local function copy(cell, changes)
  local new = {}
  for key, value in pairs(cell) do new[key] = value end
  for key, value in pairs(changes) do new[key] = value end
  return new
end

-- What is wrong with a cell's scheduler, guidance or cache is told before anything is loaded.
local function check(cell)
  local ok, problem = pcall(function()
    cell.calls = #require 'cr.schedulers'.load(cell.scheduler, { steps = cell.steps }).timesteps
    require 'cr.guidance'.new(grid.guidance(cell))
    if cell.cache ~= 'none' then require 'cr.cache'.plan(grid.cache(cell)) end
    require 'models.latentsync.stages.upscale' { settings = { upscale = cell.upscale } }
  end)
  if not ok then errors.fail(errors.is_failure(problem) and problem.message or problem) end
  return cell
end

--- The reference as typed: 'ddim:100' is {scheduler = 'ddim', steps = 100}; 'none' is nil.
--- @param text string
--- @return table?
function grid.reference(text)
  if text == 'none' then return nil end
  local scheduler, steps = text:match '^(.+):(%d+)$'
  if not scheduler then fail("--reference: '%s' is not of the form NAME:STEPS, as in ddim:100, nor none", text) end
  return { scheduler = scheduler, steps = tonumber(steps) }
end

--- All cells, references among them, in the order in which they are to be run: by size, then by dtype,
--- references first.
--- @param values table from read(), every axis given; `rows` = {{scheduler, steps}, ...} in place of those two
--- @param reference table? from reference()
--- @return table[] cells
function grid.cells(values, reference)
  local rows = values.rows
  if not rows then
    rows = {}
    for _, scheduler in ipairs(values.scheduler) do
      for _, steps in ipairs(values.steps) do rows[#rows + 1] = { scheduler, steps } end
    end
  end
  local exact = grid.exact_dtype(values.dtype)
  local dtypes = { exact } -- first: what is prepared is prepared in it
  for _, dtype in ipairs(values.dtype) do
    if dtype ~= exact then dtypes[#dtypes + 1] = dtype end
  end
  local cells, by_id, references = {}, {}, {}
  local function add(cell)
    name_cell(cell)
    if not by_id[cell.id] then
      by_id[cell.id] = check(cell)
      cells[#cells + 1] = cell
    end
    return by_id[cell.id]
  end
  for _, size in ipairs(values.size) do
    for _, dtype in ipairs(dtypes) do
      for _, row in ipairs(rows) do
        for _, guidance in ipairs(values.guidance) do
          for _, interval in ipairs(values.interval) do
            for _, cache in ipairs(values.cache) do
              for _, upscale in ipairs(values.upscale) do
                for _, seed in ipairs(values.seed) do
                  local cell = { scheduler = row[1], steps = row[2], guidance = guidance, interval = interval, cache = cache,
                    dtype = dtype, size = size, upscale = upscale, seed = seed, asked = true }
                  if reference then
                    local r = name_cell(copy(cell, { scheduler = reference.scheduler, steps = reference.steps, interval = 'all',
                      cache = 'none', upscale = 'none', dtype = exact, asked = false }))
                    cell.reference = r.id
                    if not references[r.id] then references[r.id], references[#references + 1] = r, r end
                  end
                  add(cell)
                end
              end
            end
          end
        end
      end
    end
  end
  local all = {}
  for _, r in ipairs(references) do
    local cell = by_id[r.id] or check(r)
    cell.is_reference, cell.reference = true, nil
    all[#all + 1] = cell
  end
  for _, cell in ipairs(cells) do
    if not cell.is_reference then all[#all + 1] = cell end
  end
  local function place(list, value)
    for i, v in ipairs(list) do if v == value then return i end end
  end
  for i, cell in ipairs(all) do cell.order = i end
  table.sort(all, function(a, b)
    if a.size ~= b.size then return place(values.size, a.size) < place(values.size, b.size) end
    if a.dtype ~= b.dtype then return place(dtypes, a.dtype) < place(dtypes, b.dtype) end
    return a.order < b.order
  end)
  return all
end

--- What a cell's dtype means to who loads a model.
--- @param dtype string
--- @return string dtype
--- @return string? quant
function grid.precision(dtype)
  if dtype == 'fp8' then return 'f16', 'fp8' end
  return dtype
end

--- The most exact of some dtypes.
function grid.exact_dtype(list)
  local best = list[1]
  for _, dtype in ipairs(list) do if DTYPES[dtype] > DTYPES[best] then best = dtype end end
  return best
end

-- How a value reads: files without their folders.
local function shown(axis, value)
  if axis == 'scheduler' or axis == 'cache' or axis == 'upscale' then return (tostring(value):gsub('[^%s:,+]*/', '')) end
  return type(value) == 'number' and ('%.10g'):format(value) or tostring(value)
end
grid.shown = shown

--- The axes that tell cells apart: scheduler and steps always, the others where they differ.
--- @param cells table[]
--- @return table[] of grid.axes
function grid.varying(cells)
  local list = {}
  for _, axis in ipairs(grid.axes) do
    local differs = axis.name == 'scheduler' or axis.name == 'steps'
    for _, cell in ipairs(cells) do differs = differs or cell[axis.name] ~= cells[1][axis.name] end
    if differs then list[#list + 1] = axis end
  end
  return list
end

--- Gives each cell a `label`, such as 'dpmpp_2m 15' or 'ddim 20, deepcache:3, 512 px', and a `curve`:
--- the label without the steps.
--- @param cells table[]
function grid.label(cells)
  local axes = grid.varying(cells)
  local function text_of(cell, with_steps)
    local head = shown('scheduler', cell.scheduler) .. (with_steps and ' ' .. cell.steps or '')
    local parts = { head }
    for _, axis in ipairs(axes) do
      local name, value = axis.name, cell[axis.name]
      local text = shown(name, value)
      if name == 'size' then text = text .. ' px'
      elseif name == 'seed' then text = 'seed ' .. text
      elseif name == 'guidance' then text = 'guidance ' .. text
      elseif name == 'interval' then text = value ~= 'all' and 'guided at ' .. text or nil
      elseif name == 'upscale' then text = value ~= 'none' and 'upscale ' .. text or nil
      elseif name == 'cache' then text = value ~= 'none' and text or nil end
      if name ~= 'scheduler' and name ~= 'steps' and text then parts[#parts + 1] = text end
    end
    return table.concat(parts, ', ')
  end
  for _, cell in ipairs(cells) do cell.label, cell.curve = text_of(cell, true), text_of(cell, false) end
end

return grid
