--- Plots of quality against steps and against time, as SVG: one panel per measure, one curve for cells that differ
--- only in steps.

local plot = {}

local WIDTH, HEIGHT = 500, 320 -- of one panel
local LEFT, RIGHT, TOP, BOTTOM = 64, 18, 40, 46
local LEGEND_LINE, LEGEND_TOP = 20, 22
-- Colours that colour-blind people can distinguish (Okabe and Ito 2008); they repeat with other markers.
local COLORS = { '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#7a5195', '#444444' }

plot.measures = {
  { key = 'latents_distance', title = 'Latents: relative distance to the reference (lower is better)', log = true },
  { key = 'psnr', title = 'Mouth: PSNR to the reference, dB (higher is better)' },
  { key = 'ssim', title = 'Mouth: SSIM to the reference (higher is better)' },
  { key = 'confidence', title = 'SyncNet confidence (higher is better)' },
}

plot.against = {
  steps = { title = 'steps', get = function(cell) return cell.steps end },
  time = { title = 'seconds of sampling', get = function(cell) return cell.result.sampling_seconds end },
}

local function escaped(text)
  return (text:gsub('[%c&<>"]', function(c)
    return ({ ['&'] = '&amp;', ['<'] = '&lt;', ['>'] = '&gt;', ['"'] = '&quot;' })[c] or '?'
  end))
end
plot.escaped = escaped

local function value_of(cell, measure)
  local r = cell.result
  if not r then return nil end
  local v = r[measure.key] or r.judged and r.judged[measure.key]
  if v and measure.log and v <= 0 then return nil end
  return v
end

--- Groups cells into curves {name, cells}, in the order of their first cell, without references.
local function curves_of(cells)
  local list, by_name = {}, {}
  for _, cell in ipairs(cells) do
    if cell.result and not cell.is_reference then
      local curve = by_name[cell.curve]
      if not curve then
        curve = { name = cell.curve, cells = {} }
        by_name[cell.curve], list[#list + 1] = curve, curve
      end
      curve.cells[#curve.cells + 1] = cell
    end
  end
  return list
end

-- Round tick values that divide a range into about five parts.
local function ticks_of(low, high, whole)
  local range = math.max(high - low, 1e-12)
  local power = 10 ^ math.floor(math.log10(range / 5))
  local step = 10 * power
  for _, factor in ipairs { 5, 2, 1 } do
    if factor * power >= range / 6.5 then step = factor * power end
  end
  if whole then step = math.max(1, math.floor(step)) end
  local list = {}
  for k = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) do list[#list + 1] = k * step end
  return list, step
end

local function log_ticks(low, high)
  local list = {}
  for e = math.floor(math.log10(low)), math.ceil(math.log10(high)) do
    for _, f in ipairs(high / low < 8 and { 1, 1.5, 2, 3, 5, 7 } or high / low < 100 and { 1, 2, 5 } or { 1 }) do
      local v = f * 10 ^ e
      if v >= low * 0.999 and v <= high * 1.001 then list[#list + 1] = v end
    end
  end
  return list
end

local function scale_of(values, log)
  local low, high = math.huge, -math.huge
  for _, v in ipairs(values) do low, high = math.min(low, v), math.max(high, v) end
  if log then
    low, high = low / 1.25, high * 1.25
    return low, high, function(v) return math.log(v / low) / math.log(high / low) end
  end
  local pad = high > low and (high - low) * 0.08 or math.max(math.abs(high) * 0.1, 0.01)
  low, high = low - pad, high + pad
  return low, high, function(v) return (v - low) / (high - low) end
end

local function tick_text(v, step)
  if step then return ('%%.%df'):format(math.max(0, math.ceil(-math.log10(step) - 1e-9))):format(v) end
  return ('%.2g'):format(v)
end

local function dot(x, y, color, round, title)
  local inside = '<title>' .. escaped(title) .. '</title>'
  if round % 2 == 0 then return ('<circle cx="%.1f" cy="%.1f" r="4" fill="%s">%s</circle>'):format(x, y, color, inside) end
  return ('<rect x="%.1f" y="%.1f" width="8" height="8" fill="%s">%s</rect>'):format(x - 4, y - 4, color, inside)
end

local function panel(add, left, top, measure, axis, curves)
  local xs, ys = {}, {}
  for _, curve in ipairs(curves) do
    for _, cell in ipairs(curve.cells) do
      local x, y = axis.get(cell), value_of(cell, measure)
      if x and y then xs[#xs + 1], ys[#ys + 1] = x, y end
    end
  end
  local x_low, x_high, fx = scale_of(xs)
  local y_low, y_high, fy = scale_of(ys, measure.log)
  local x0, x1, y0, y1 = left + LEFT, left + WIDTH - RIGHT, top + HEIGHT - BOTTOM, top + TOP
  local function px(v) return x0 + fx(v) * (x1 - x0) end
  local function py(v) return y0 + fy(v) * (y1 - y0) end
  add('<text x="%d" y="%d" font-size="13" font-weight="600">%s</text>', left + 12, top + 22, escaped(measure.title))
  local y_ticks, y_step = ticks_of(y_low, y_high), nil
  if measure.log then y_ticks = log_ticks(y_low, y_high) else y_step = select(2, ticks_of(y_low, y_high)) end
  for _, v in ipairs(y_ticks) do
    add('<path d="M%.1f %.1fH%.1f" class="grid" stroke="#8883"/>', x0, py(v), x1)
    add('<text x="%.1f" y="%.1f" text-anchor="end" font-size="11" class="dim">%s</text>', x0 - 7, py(v) + 4, tick_text(v, y_step))
  end
  local x_ticks, x_step = ticks_of(x_low, x_high, axis.title == 'steps')
  for _, v in ipairs(x_ticks) do
    add('<path d="M%.1f %.1fv5" stroke="#888"/>', px(v), y0)
    add('<text x="%.1f" y="%.1f" text-anchor="middle" font-size="11" class="dim">%s</text>', px(v), y0 + 18, tick_text(v, x_step))
  end
  add('<path d="M%.1f %.1fV%.1fH%.1f" fill="none" stroke="#888"/>', x0, y1, y0, x1)
  add('<text x="%.1f" y="%.1f" text-anchor="middle" font-size="12" class="dim">%s</text>', (x0 + x1) / 2, y0 + 37, axis.title)
  for i, curve in ipairs(curves) do
    local color, round = COLORS[(i - 1) % #COLORS + 1], math.floor((i - 1) / #COLORS)
    local points = {}
    for _, cell in ipairs(curve.cells) do
      local x, y = axis.get(cell), value_of(cell, measure)
      if x and y then points[#points + 1] = { px(x), py(y), ('%s: %s'):format(cell.label, ('%.4g'):format(y)), x } end
    end
    table.sort(points, function(a, b) return a[4] < b[4] end)
    local line = {}
    for k, p in ipairs(points) do line[k] = ('%.1f,%.1f'):format(p[1], p[2]) end
    if #points > 1 then
      add('<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>', table.concat(line, ' '), color,
        round > 0 and ' stroke-dasharray="6 4"' or '')
    end
    for _, p in ipairs(points) do add('%s', dot(p[1], p[2], color, round, p[3])) end
  end
end

--- Draws the plots against steps or time.
--- @param cells table[] labelled, with results
--- @param against string 'steps' or 'time'
--- @return string? svg, nil if there is nothing to draw
function plot.svg(cells, against)
  local axis, curves = plot.against[against], curves_of(cells)
  local shown = {}
  for _, measure in ipairs(plot.measures) do
    local any = false
    for _, curve in ipairs(curves) do
      for _, cell in ipairs(curve.cells) do any = any or axis.get(cell) and value_of(cell, measure) ~= nil end
    end
    if any then shown[#shown + 1] = measure end
  end
  if #shown == 0 then return nil end
  local columns = #shown <= 3 and #shown or 2
  local width = columns * WIDTH
  -- The legend, with as many lines as its entries need.
  local places, x, line = {}, 14, 0
  for i, curve in ipairs(curves) do
    local room = 46 + 7.4 * #curve.name
    if x + room > width and x > 14 then x, line = 14, line + 1 end
    places[i] = { x, LEGEND_TOP + line * LEGEND_LINE }
    x = x + room
  end
  local head = LEGEND_TOP + (line + 1) * LEGEND_LINE
  local height = head + math.ceil(#shown / columns) * HEIGHT
  local out = {}
  local function add(...) out[#out + 1] = (...):format(select(2, ...)) end
  add('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" fill="#222">',
    width, height, width, height)
  add '<style>.dim{fill:#666}</style>'
  add('<rect width="%d" height="%d" fill="#fff"/>', width, height)
  for i, curve in ipairs(curves) do
    local color, round = COLORS[(i - 1) % #COLORS + 1], math.floor((i - 1) / #COLORS)
    add('<path d="M%d %dh18" stroke="%s" stroke-width="2"%s/>', places[i][1], places[i][2] - 4, color,
      round > 0 and ' stroke-dasharray="6 4"' or '')
    add('%s', dot(places[i][1] + 9, places[i][2] - 4, color, round, curve.name))
    add('<text x="%d" y="%d" font-size="12">%s</text>', places[i][1] + 24, places[i][2], escaped(curve.name))
  end
  for i, measure in ipairs(shown) do
    panel(add, (i - 1) % columns * WIDTH, head + math.floor((i - 1) / columns) * HEIGHT, measure, axis, curves)
  end
  out[#out + 1] = '</svg>\n'
  return table.concat(out, '\n')
end

return plot
