--- Plots the distance against the offset as SVG. The clearer the minimum, the better lips and sound agree.

local plot = {}

local WIDTH, HEIGHT = 720, 440
local LEFT, RIGHT, TOP, BOTTOM = 70, 20, 62, 58

local function escaped(text)
  return (text:gsub('[%c&<>"]', function(c)
    return ({ ['&'] = '&amp;', ['<'] = '&lt;', ['>'] = '&gt;', ['"'] = '&quot;' })[c] or '?'
  end))
end

--- A round step that divides a range into about five parts.
local function step_of(range)
  local power = 10 ^ math.floor(math.log10(range / 5))
  for _, factor in ipairs { 1, 2, 5 } do
    if factor * power >= range / 6 then return factor * power end
  end
  return 10 * power
end

--- Plots a result of models/laboratory/evaluate.lua.
--- @param result table
--- @return string svg
function plot.svg(result)
  local low, high = math.huge, -math.huge
  for _, track in ipairs(result.tracks) do
    for _, d in ipairs(track.distances) do low, high = math.min(low, d), math.max(high, d) end
  end
  local step = step_of(math.max(high - low, 1e-6))
  low, high = math.floor(low / step) * step, math.ceil(high / step) * step
  if high == low then high = low + step end
  local reach = result.offsets[1]
  local function x_of(offset) return LEFT + (offset + reach) / (2 * reach) * (WIDTH - LEFT - RIGHT) end
  local function y_of(distance) return TOP + (high - distance) / (high - low) * (HEIGHT - TOP - BOTTOM) end
  local out = {}
  local function add(...) out[#out + 1] = (...):format(select(2, ...)) end
  local function text(x, y, anchor, size, words, more)
    add('<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d"%s>%s</text>', x, y, anchor, size, more or '', escaped(words))
  end

  add('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" fill="#222">',
    WIDTH, HEIGHT, WIDTH, HEIGHT)
  add('<rect width="%d" height="%d" fill="#fff"/>', WIDTH, HEIGHT)
  text(LEFT, 26, 'start', 17, ('confidence %.2f, offset %d frames'):format(result.confidence, result.offset))
  text(LEFT, 46, 'start', 12, result.video:match '[^/]*$', ' fill="#666"')
  local digits = math.max(0, math.ceil(-math.log10(step) - 1e-9))
  for k = 0, math.floor((high - low) / step + 0.5) do
    local d = low + k * step
    add('<path d="M%d %.1fH%d" stroke="#ddd"/>', LEFT, y_of(d), WIDTH - RIGHT)
    text(LEFT - 8, y_of(d) + 4, 'end', 12, ('%%.%df'):format(digits):format(d))
  end
  for offset = -reach, reach, 5 do
    add('<path d="M%.1f %dv5" stroke="#888"/>', x_of(offset), HEIGHT - BOTTOM)
    text(x_of(offset), HEIGHT - BOTTOM + 20, 'middle', 12, ('%d'):format(offset))
  end
  add('<path d="M%d %dV%dH%d" fill="none" stroke="#888"/>', LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT)
  text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, 'middle', 13, 'frames by which the sound precedes the video')
  text(0, 0, 'middle', 13, 'mean distance', (' transform="translate(20 %d) rotate(-90)"'):format((TOP + HEIGHT - BOTTOM) / 2))
  add('<path d="M%.1f %dV%d" stroke="#c33" stroke-dasharray="4 4"/>', x_of(result.offset), TOP, HEIGHT - BOTTOM)

  local function curve(distances, style)
    local points = {}
    for k, d in ipairs(distances) do points[k] = ('%.1f,%.1f'):format(x_of(result.offsets[k]), y_of(d)) end
    add('<polyline points="%s" fill="none" %s/>', table.concat(points, ' '), style)
  end
  if #result.tracks > 1 then
    for _, track in ipairs(result.tracks) do curve(track.distances, 'stroke="#9bd" stroke-width="1"') end
  end
  curve(result.distances, 'stroke="#05a" stroke-width="2"')
  for k, d in ipairs(result.distances) do
    add('<circle cx="%.1f" cy="%.1f" r="2.5" fill="#05a"/>', x_of(result.offsets[k]), y_of(d))
  end
  out[#out + 1] = '</svg>\n'
  return table.concat(out, '\n')
end

return plot
