--- Writes index.html: synchronized clips side by side, the table, the plots and the contact sheet, in one
--- self-contained file. Its template is page.html beside this file.

local cr = require 'cr'
local files = require 'cr.files'
local axes = require 'models.laboratory.compare.axes'
local grid = require 'models.laboratory.compare.grid'
local plot = require 'models.laboratory.compare.plot'
local tables = require 'models.laboratory.compare.table'

local page = {}

local escaped = plot.escaped

local function data_uri(kind, path)
  local bytes = files.read(path)
  return bytes and ('data:%s;base64,%s'):format(kind, require 'cr.base64'.encode(bytes))
end

page.QUALITY, page.COST = { 'psnr', 'ssim', 'sharpness', 'confidence', 'offset' }, { 'seconds', 'step_ms', 'peak_mib' }

-- The formats of the measurements shown under a clip.
local SHORT = {
  { 'psnr', 'PSNR %s' }, { 'ssim', 'SSIM %s' }, { 'sharpness', 'sharpness %s' }, { 'confidence', 'confidence %s' },
  { 'offset', 'offset %s' }, { 'seconds', '%s s' }, { 'step_ms', '%s ms a step' }, { 'peak_mib', '%s MiB' },
}

--- A cell's figures as a short text.
--- @param cell table
--- @param columns table[] from tables.columns
--- @param keys string[] keys of the columns to show
--- @return string
function page.figures(cell, columns, keys)
  local wanted = {}
  for _, key in ipairs(keys) do wanted[key] = true end
  local parts = {}
  for _, short in ipairs(SHORT) do
    for _, column in ipairs(columns) do
      if column.key == short[1] and wanted[column.key] and column.get(cell) ~= nil then
        parts[#parts + 1] = short[2]:format(tables.text(column, cell))
      end
    end
  end
  return table.concat(parts, ' · ')
end

local function tile(cell, folder, columns)
  local video = data_uri('video/mp4', folder:file(cell, cell.result.shown))
  local lines = {}
  for _, keys in ipairs { page.QUALITY, page.COST } do
    local text = page.figures(cell, columns, keys)
    if text ~= '' then lines[#lines + 1] = '<span>' .. escaped(text) .. '</span>' end
  end
  return ('<figure%s><video muted playsinline preload="auto" src="%s"></video><figcaption>%s<b>%s</b>%s</figcaption></figure>')
    :format(cell.is_reference and ' class="reference"' or '', video,
      cell.is_reference and '<span class="badge">reference</span>' or '', escaped(cell.label), table.concat(lines))
end

-- For each measure, the direction in which values are better; the best one is bold.
local BEST = { seconds = -1, sampling_seconds = -1, step_ms = -1, peak_mib = -1, latents_distance = -1, psnr = 1, ssim = 1, confidence = 1 }

local function best_of(column, cells)
  local sign = BEST[column.key]
  if not sign then return nil end
  local best, count = nil, 0
  for _, cell in ipairs(cells) do
    local v = not cell.is_reference and column.get(cell)
    if v then
      count = count + 1
      if not best or v * sign > best * sign then best = v end
    end
  end
  return count > 1 and best or nil
end

local function html_table(cells, columns)
  local out = { '<table><thead><tr>' }
  local function add(...) out[#out + 1] = (...):format(select(2, ...)) end
  for _, column in ipairs(columns) do add('<th%s>%s</th>', column.left and ' class="left"' or '', escaped(column.title)) end
  add '</tr></thead><tbody>'
  local best = {}
  for i, column in ipairs(columns) do best[i] = best_of(column, cells) end
  for _, cell in ipairs(cells) do
    add '<tr>'
    for i, column in ipairs(columns) do
      local v = column.get(cell)
      local text = tables.text(column, cell)
      if column.key == 'scheduler' and cell.is_reference then text = text .. ' (reference)' end
      local class = column.left and 'left' or v ~= nil and v == best[i] and not cell.is_reference and 'best' or nil
      add('<td%s%s>%s</td>', class and (' class="%s"'):format(class) or '',
        type(v) == 'number' and (' data-v="%s"'):format(v == math.huge and 'Infinity' or ('%.9g'):format(v)) or '', escaped(text))
    end
    add '</tr>'
  end
  add '</tbody></table>'
  return table.concat(out)
end

local TITLES = { { 'steps', 'Quality against steps' }, { 'time', 'Quality against time' } }

--- Renders the page.
--- @param folder ComparisonFolder
--- @param cells table[] labelled; cells without a result appear only in the table, if they failed
--- @param o table {title, subtitle, columns, svgs = {steps, time}, sheet = path or nil}
--- @return string
function page.html(folder, cells, o)
  local done, tiles = {}, {}
  for _, cell in ipairs(cells) do
    if cell.result then
      tiles[#tiles + 1] = tile(cell, folder, o.columns)
    end
    if cell.result or cell.problem then done[#done + 1] = cell end
  end
  local plots = {}
  for _, entry in ipairs(TITLES) do
    local svg = o.svgs[entry[1]]
    if svg then plots[#plots + 1] = ('<h2>%s</h2><div class="card plot">%s</div>'):format(entry[2], svg) end
  end
  local sheet = o.sheet and data_uri('image/png', o.sheet)
  local settings, names = {}, {}
  for name in pairs(folder.settings) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    settings[#settings + 1] = ('<dt>%s</dt><dd>%s</dd>'):format(escaped(name), escaped(tostring(folder.settings[name])))
  end
  for _, axis in ipairs(axes.of(cells)) do
    local seen, list = {}, {}
    for _, cell in ipairs(cells) do
      local text = cell[axis.name] ~= nil and grid.shown(cell[axis.name]) or ''
      if not seen[text] then seen[text], list[#list + 1] = true, text end
    end
    settings[#settings + 1] = ('<dt>%s</dt><dd>%s</dd>'):format(axis.name, escaped(table.concat(list, ', ')))
  end
  local parts = {
    title = escaped(o.title), subtitle = escaped(o.subtitle), tiles = table.concat(tiles, '\n'),
    table = html_table(done, o.columns), plots = table.concat(plots, '\n'),
    sheet = sheet and ('<h2>Frames</h2><div class="card sheet"><img alt="contact sheet" src="%s"></div>'):format(sheet) or '',
    settings = table.concat(settings), footer = escaped('The lips in these clips were made by AI (Crescent ' .. cr.version .. ').'),
  }
  local form = files.read(cr.root .. '/models/laboratory/compare/page.html') or error('models/laboratory/compare/page.html is missing', 0)
  return (form:gsub('{{(%w+)}}', parts))
end

return page
