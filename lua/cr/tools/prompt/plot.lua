--- Plots curves of a tensor as text, in braille characters of 2 x 4 dots, with numbers at the axes.

local tensor = require 'cr.tensor'
local base = require 'cr.ffi'
local terminal = require 'cr.tools.terminal'

local M = {}

local LINES, MOST_CURVES = 14, 6
local BINS = 60
local ESC = '\27['
local hues = { 36, 33, 35, 32, 31, 34 }

-- The bit of each dot (column 0..1, row 0..3) in a braille character.
local dots = { [0] = { [0] = 0x01, 0x02, 0x04, 0x40 }, { [0] = 0x08, 0x10, 0x20, 0x80 } }

-- Encodes U+2800 + bits as UTF-8.
local function braille(bits)
  return string.char(0xe2, 0xa0 + bit.rshift(bits, 6), 0x80 + bit.band(bits, 0x3f))
end

local function finite(v) return v == v and v ~= math.huge and v ~= -math.huge end

local function bounds(curves)
  local low, high = math.huge, -math.huge
  for _, curve in ipairs(curves) do
    for _, v in ipairs(curve) do
      if finite(v) then low, high = math.min(low, v), math.max(high, v) end
    end
  end
  if low > high then return nil end
  if low == high then low, high = low - 0.5, high + 0.5 end
  return low, high
end

local function number(v)
  local text = ('%.4g'):format(v)
  return text == '-0' and '0' or text
end

-- Sets the dots from (x, y0) to (x, y1).
local function draw_column(canvas, x, y0, y1, curve)
  if y0 > y1 then y0, y1 = y1, y0 end
  for y = y0, y1 do
    local cell = math.floor(y / 4) * canvas.width + math.floor(x / 2)
    canvas[cell] = bit.bor(canvas[cell] or 0, dots[x % 2][y % 4])
    canvas.hue[cell] = curve
  end
end

local function draw_curve(canvas, curve, index, low, high)
  local columns, rows, n = canvas.width * 2, canvas.height * 4, #curve
  local function row_of(v) return math.floor((high - v) / (high - low) * (rows - 1) + 0.5) end
  local last
  for x = 0, columns - 1 do
    -- The column covers all values that fall into it, so that no peak is lost.
    local from = math.floor(x * n / columns) + 1
    local to = math.max(from, math.floor((x + 1) * n / columns))
    local least, most
    for i = from, math.min(to, n) do
      local v = curve[i]
      if finite(v) then least, most = math.min(least or v, v), math.max(most or v, v) end
    end
    if least then
      local top, bottom = row_of(most), row_of(least)
      if last then
        if last < top then top = math.min(top, last + 1) elseif last > bottom then bottom = math.max(bottom, last - 1) end
      end
      draw_column(canvas, x, top, bottom, index)
      last = row_of(finite(curve[math.min(to, n)]) and curve[math.min(to, n)] or most)
    else
      last = nil
    end
  end
end

--- Formats curves as text.
--- @param curves number[][]
--- @param options table? {columns, lines, first = 1, last = the longest length (numbers under the axis), color = boolean}
--- @return string
function M.curves(curves, options)
  local o = options or {}
  local low, high = bounds(curves)
  if not low then return '  all values are nan or inf' end
  local width, height = o.columns or math.min(100, terminal.size().columns - 14), o.lines or LINES
  local canvas = { width = width, height = height, hue = {} }
  local longest = 0
  for i, curve in ipairs(curves) do
    draw_curve(canvas, curve, i, low, high)
    longest = math.max(longest, #curve)
  end
  local lines = {}
  for y = 0, height - 1 do
    local parts = {}
    for x = 0, width - 1 do
      local cell = y * width + x
      local text = canvas[cell] and braille(canvas[cell]) or ' '
      local hue = #curves > 1 and o.color and canvas.hue[cell]
      parts[#parts + 1] = hue and canvas[cell] and ESC .. hues[hue] .. 'm' .. text .. ESC .. '0m' or text
    end
    local label = y == 0 and number(high) or y == height - 1 and number(low) or
        y == math.floor(height / 2) and number(high - (high - low) * (y + 0.5) / height) or ''
    lines[#lines + 1] = ('%11s \226\148\130%s'):format(label, (table.concat(parts):gsub('%s+$', '')))
  end
  local first, last = number(o.first or 1), number(o.last or longest)
  lines[#lines + 1] = (' '):rep(13) .. first .. (' '):rep(math.max(1, width - #first - #last)) .. last
  return table.concat(lines, '\n')
end

-- Counts the values in equal intervals between the minimum and the maximum.
local function histogram(values)
  local low, high = bounds { values }
  if not low then return nil end
  local counts = {}
  for i = 1, BINS do counts[i] = 0 end
  for _, v in ipairs(values) do
    if finite(v) then
      local i = math.min(BINS, math.floor((v - low) / (high - low) * BINS) + 1)
      counts[i] = counts[i] + 1
    end
  end
  return counts, low, high
end

--- Plots a tensor: rank 1 as one curve, rank 2 with up to 6 rows as one curve for each row, others as a histogram.
--- @param x Tensor|number[]
--- @return string
function M.text(x)
  if type(x) == 'table' and type(x[1]) == 'number' then x = tensor.tensor(x, { dtype = 'f64' }) end
  if not tensor.is_tensor(x) then base.fail('plot: a tensor or a list of numbers is needed, not ' .. type(x)) end
  if x:numel() == 0 then base.fail('plot: ' .. tensor.shape_text(x) .. ' has no elements') end
  local color = terminal.is_terminal() and terminal.colors() ~= 'none'
  if x:dim() <= 1 then
    local list = x:dim() == 0 and { x:item() } or x:tolist()
    return M.curves({ list }, { color = color })
  end
  if x:dim() == 2 and x:size(1) <= MOST_CURVES then return M.curves(x:tolist(), { color = color }) end
  local counts, low, high = histogram(x:reshape({ x:numel() }, {}):tolist())
  if not counts then return '  all values are nan or inf' end
  return ('  histogram of the values, %d bins\n'):format(BINS) ..
      M.curves({ counts }, { first = low, last = high, color = color })
end

return M
