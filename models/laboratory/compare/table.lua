--- Formats the results as tables: for a terminal, as Markdown, as CSV.
--
-- A column is {key, title, get(cell), format}; columns without any value are omitted.

local axes = require 'models.laboratory.compare.axes'
local grid = require 'models.laboratory.compare.grid'

local tables = {}

local function of_result(key, factor)
  return function(cell)
    local v = cell.result and cell.result[key]
    if v == nil then return nil end
    return type(v) == 'number' and v * (factor or 1) or v
  end
end

local function fixed(digits)
  return function(v) return v == math.huge and 'equal' or ('%.' .. digits .. 'f'):format(v) end
end

-- Equal pixels have an infinite PSNR.
local function psnr(cell)
  local r = cell.result
  if r and r.ssim and not r.psnr then return math.huge end
  return r and r.psnr
end

local function judged(key)
  return function(cell) return cell.result and cell.result.judged and cell.result.judged[key] end
end

local MIB = 2 ^ -20

local measured = {
  { key = 'seconds', title = 's in all', get = of_result 'seconds', format = fixed(2) },
  { key = 'sampling_seconds', title = 'sampling s', get = of_result 'sampling_seconds', format = fixed(2) },
  { key = 'step_ms', title = 'ms a step', get = of_result('step_seconds', 1e3), format = fixed(1) },
  { key = 'peak_mib', title = 'peak MiB', get = of_result('peak_bytes', MIB), format = fixed(0) },
  { key = 'latents_distance', title = 'latents error', get = of_result 'latents_distance', format = fixed(4) },
  { key = 'psnr', title = 'PSNR dB', get = psnr, format = fixed(2) },
  { key = 'ssim', title = 'SSIM', get = of_result 'ssim', format = fixed(4) },
  { key = 'sharpness', title = 'sharpness', get = of_result 'sharpness', format = fixed(2) },
  { key = 'shimmer', title = 'shimmer', get = of_result 'shimmer', format = fixed(2) },
  { key = 'confidence', title = 'confidence', get = judged 'confidence', format = fixed(2) },
  { key = 'offset', title = 'AV offset', get = judged 'offset', format = fixed(0) },
}

local published = {
  { key = 'seconds', title = 'elapsed s', get = of_result 'seconds', format = fixed(1) },
  { key = 'peak_mib', title = 'peak GPU MiB', get = of_result('peak_bytes', MIB), format = fixed(0) },
  { key = 'confidence', title = 'SyncNet confidence', get = judged 'confidence', format = fixed(2) },
  { key = 'offset', title = 'AV offset', get = judged 'offset', format = fixed(0) },
}

-- The reason why a cell failed; shown only if one did.
local reason = {
  key = 'problem', title = 'failed because', left = true, get = function(cell) return cell.problem or '' end, format = tostring,
}

tables.measured, tables.published = measured, published

--- The columns for some cells: the axes that distinguish them, then the measurements, and the reasons of failures.
--- @param cells table[] with results
--- @param options table? {published = use the published table's columns, device = the device of the cells}
--- @return table[]
function tables.columns(cells, options)
  local columns = {}
  for _, axis in ipairs(grid.varying(cells)) do
    columns[#columns + 1] = {
      key = axis.name, title = axis.title, left = type(cells[1][axis.name]) == 'string',
      get = function(cell) return cell[axis.name] end, format = grid.shown,
      axis = true,
    }
  end
  local o = options or {}
  local fixed_columns = o.published
  for _, column in ipairs(fixed_columns and published or measured) do
    local any = fixed_columns
    for _, cell in ipairs(cells) do any = any or column.get(cell) ~= nil end
    if any and column.key == 'peak_mib' and o.device == 'cpu' then
      column = setmetatable({ title = 'peak MiB' }, { __index = column })
    end
    if any then columns[#columns + 1] = column end
  end
  for _, cell in ipairs(cells) do
    if cell.problem then
      columns[#columns + 1] = reason
      break
    end
  end
  return columns
end

--- A cell's value in a column, as text.
function tables.text(column, cell)
  local v = column.get(cell)
  if v ~= nil then return column.format(v) end
  if column.axis then return '' end
  return cell.problem and 'failed' or '-'
end

-- The rows in the order of the requested axes; references are marked.
local function rows_of(columns, cells)
  local rows = {}
  for _, cell in ipairs(cells) do
    local row = {}
    for i, column in ipairs(columns) do
      row[i] = tables.text(column, cell)
      if column.key == 'scheduler' and cell.is_reference then row[i] = row[i] .. ' (reference)' end
    end
    rows[#rows + 1] = row
  end
  return rows
end

local function lay_out(columns, rows, join, rule)
  local widths = {}
  for i, column in ipairs(columns) do
    widths[i] = #column.title
    for _, row in ipairs(rows) do widths[i] = math.max(widths[i], #row[i]) end
  end
  local function line(texts)
    local parts = {}
    for i, column in ipairs(columns) do
      local pad = (' '):rep(widths[i] - #texts[i])
      parts[i] = column.left and texts[i] .. pad or pad .. texts[i]
    end
    return join(parts)
  end
  local titles = {}
  for i, column in ipairs(columns) do titles[i] = column.title end
  local lines = { line(titles) }
  if rule then lines[2] = rule(columns, widths) end
  for _, row in ipairs(rows) do lines[#lines + 1] = line(row) end
  return table.concat(lines, '\n') .. '\n'
end

--- A table for a terminal.
function tables.plain(cells, options)
  local columns = tables.columns(cells, options)
  return lay_out(columns, rows_of(columns, cells), function(parts) return (('  ' .. table.concat(parts, '  ')):gsub('%s+$', '')) end)
end

--- A table in Markdown.
function tables.markdown(cells, options)
  local columns = tables.columns(cells, options)
  local rows = rows_of(columns, cells)
  for _, row in ipairs(rows) do
    for i, text in ipairs(row) do row[i] = text:gsub('|', '\\|') end
  end
  return lay_out(columns, rows, function(parts) return '| ' .. table.concat(parts, ' | ') .. ' |' end, function(_, widths)
    local parts = {}
    for i, column in ipairs(columns) do
      parts[i] = column.left and ('-'):rep(widths[i] + 1) .. '-' or ('-'):rep(widths[i] + 1) .. ':'
    end
    return '|' .. table.concat(parts, '|') .. '|'
  end)
end

local function csv_field(v)
  if v == nil then return '' end
  local text = v == math.huge and 'inf' or type(v) == 'number' and require 'cr.json'.number(v) or tostring(v)
  return text:find '[",\r\n]' and '"' .. text:gsub('"', '""') .. '"' or text
end

--- All axes and measurements of all cells as CSV (RFC 4180).
function tables.csv(cells)
  local lines = {}
  local function add(values) lines[#lines + 1] = table.concat(values, ',') end
  local head = { 'id', 'reference' }
  local there = axes.of(cells)
  for _, axis in ipairs(there) do head[#head + 1] = axis.name end
  for _, column in ipairs(measured) do head[#head + 1] = column.key end
  head[#head + 1] = reason.key
  add(head)
  for _, cell in ipairs(cells) do
    local row = { csv_field(cell.id), tostring(cell.is_reference or false) }
    for _, axis in ipairs(there) do row[#row + 1] = csv_field(cell[axis.name]) end
    for _, column in ipairs(measured) do row[#row + 1] = csv_field(column.get(cell)) end
    row[#row + 1] = csv_field(cell.problem)
    add(row)
  end
  return table.concat(lines, '\r\n') .. '\r\n'
end

return tables
