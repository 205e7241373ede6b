--- Detects whether one shot has replaced another piece by piece: wipes, and slides of one or both images.
--
-- Input are three coarse images (models/latentsync/cuts.lua): before, during and after. In a wipe or slide the middle
-- one is divided by a seam: one side shows the old shot, the other the new one, each in place or displaced. A camera
-- that pans by its whole field of view looks like a slide of both images, but has no seam.

local ffi = require 'ffi'

local M = {}

local NEAR = 9 -- a cell matches an image if its brightness differs by less, in levels
local CHANGED = 14 -- cells with a larger difference between both images are classified
local ENOUGH = 0.4 -- minimum share of classified cells
local WRONG, NEITHER = 0.06, 0.25 -- maximum share of these on the wrong side of the seam; that match neither image
local SIDE = 0.15 -- minimum share of the image on either side of a seam
local ALIKE, BOTH = 0.9, 0.78 -- minimum correlation along a displacement: for one moving image; for each of two
local SEAM, ROWS_OF = 14, 0.6 -- brightness step across a seam in levels; in this share of its cells

-- The grid of columns x rows, seen along `across`: cell k of line i has index i * line + k * step.
local function grids(columns, rows)
  return { { length = columns, lines = rows, step = 1, line = columns }, { length = rows, lines = columns, step = columns, line = 1 } }
end

-- The cells sorted along eight directions, for seams perpendicular to them.
local orders = {}
local function orders_of(columns, rows)
  local key = columns .. 'x' .. rows
  if orders[key] then return orders[key] end
  local list = {}
  for k = 0, 7 do
    local angle, cells = k * math.pi / 8, {}
    for i = 0, columns * rows - 1 do
      local x, y = (i % columns + 0.5) / columns, (math.floor(i / columns) + 0.5) / rows
      cells[i + 1] = { i, x * math.cos(angle) + y * math.sin(angle) }
    end
    table.sort(cells, function(a, b) return a[2] < b[2] or a[2] == b[2] and a[1] < b[1] end)
    local order = ffi.new('int32_t[?]', #cells)
    for i, cell in ipairs(cells) do order[i - 1] = cell[1] end
    list[k + 1] = order
  end
  orders[key] = list
  return list
end

-- Classes of cells: 1 matches the image before, 2 the image after, 3 neither, 0 unclassified.
local classes
local function classify(first, middle, last, n)
  if not classes or ffi.sizeof(classes) < n then classes = ffi.new('uint8_t[?]', n) end
  local count = { [0] = 0, 0, 0, 0 }
  for i = 0, n - 1 do
    local class, f, m, l = 0, first[i], middle[i], last[i]
    if math.abs(l - f) >= CHANGED then
      local a, b = math.abs(m - f), math.abs(m - l)
      class = math.min(a, b) > NEAR and 3 or a <= b and 1 or 2
    end
    classes[i] = class
    count[class] = count[class] + 1
  end
  return count
end

-- The smallest number of classified cells on the wrong side of a seam, over eight directions and both orientations.
local function least_wrong(count, n, columns, rows)
  local least = n
  for _, order in ipairs(orders_of(columns, rows)) do
    local before, after = 0, 0 -- cells counted so far
    for i = 0, n - 1 do
      local class = classes[order[i]]
      if class == 1 then before = before + 1 elseif class == 2 then after = after + 1 end
      least = math.min(least, before + count[2] - after, after + count[1] - before)
    end
  end
  return least
end

-- Correlation of cells k of `a` with cells k + shift of `b`, for k from `from` to `to`.
local function alike(g, a, b, from, to, shift)
  local n, sa, sb, saa, sbb, sab = 0, 0, 0, 0, 0, 0
  for k = math.max(from, -shift), math.min(to, g.length - 1 - shift) do
    for i = 0, g.lines - 1 do
      local u, v = a[i * g.line + k * g.step], b[i * g.line + (k + shift) * g.step]
      n, sa, sb, saa, sbb, sab = n + 1, sa + u, sb + v, saa + u * u, sbb + v * v, sab + u * v
    end
  end
  if n == 0 then return 0 end
  local va, vb = saa / n - (sa / n) ^ 2, sbb / n - (sb / n) ^ 2
  if va < 4 or vb < 4 then return 0 end
  return (sab / n - sa / n * sb / n) / math.sqrt(va * vb)
end

-- The same, with the shift varied by one, because a seam may lie within a cell.
local function about(g, a, b, from, to, shift)
  local most = 0
  for d = -1, 1 do most = math.max(most, alike(g, a, b, from, to, shift + d)) end
  return most
end

-- Whether the middle image has a brightness step after cell k - 1 in most lines, and more often there than elsewhere.
local function has_seam(g, middle, k)
  if k < 2 or k > g.length - 2 then return false end
  local strong, here, elsewhere, n = 0, 0, 0, 0
  for i = 0, g.lines - 1 do
    local d = math.abs(middle[i * g.line + (k - 2) * g.step] - middle[i * g.line + (k + 1) * g.step])
    here = here + d
    if d >= SEAM then strong = strong + 1 end
    for x = 2, g.length - 2 do
      elsewhere, n = elsewhere + math.abs(middle[i * g.line + (x - 2) * g.step] - middle[i * g.line + (x + 1) * g.step]), n + 1
    end
  end
  return strong >= ROWS_OF * g.lines and here / g.lines >= 1.5 * elsewhere / n
end

-- Whether one image is static up to a seam at cell k, and beyond it the other one moves in or out. `still`: the class
-- of the static image's cells; `moving`: the other image.
local function slides(g, middle, moving, still)
  local there, all = ffi.new('int32_t[?]', g.length + 1), ffi.new('int32_t[?]', g.length + 1)
  for k = 0, g.length - 1 do
    local own, any = 0, 0
    for i = 0, g.lines - 1 do
      local class = classes[i * g.line + k * g.step]
      if class ~= 0 then any = any + 1 end
      if class == still then own = own + 1 end
    end
    there[k + 1], all[k + 1] = there[k] + own, all[k] + any
  end
  local least = math.ceil(SIDE * g.length)
  for k = least, g.length - least do
    -- Static before k and moving from k on, or the reverse.
    if there[k] >= 0.85 * all[k] and all[k] > 0 and there[g.length] - there[k] <= 0.5 * (all[g.length] - all[k]) and
      about(g, middle, moving, k, g.length - 1, -k) >= ALIKE then return true end
    if there[g.length] - there[k] >= 0.85 * (all[g.length] - all[k]) and all[g.length] > all[k] and there[k] <= 0.5 * all[k] and
      about(g, middle, moving, 0, k - 1, g.length - k) >= ALIKE then return true end
  end
  return false
end

-- Whether both images have moved, one behind the other, with a seam between them.
local function both_slide(g, first, middle, last)
  local least = math.ceil(SIDE * g.length)
  for k = least, g.length - least do
    if has_seam(g, middle, k) then
      -- The new image comes from the far end, or from the near one.
      if about(g, middle, first, 0, k - 1, g.length - k) >= BOTH and about(g, middle, last, k, g.length - 1, -k) >= BOTH then
        return true
      end
      if about(g, middle, first, k, g.length - 1, -k) >= BOTH and about(g, middle, last, 0, k - 1, g.length - k) >= BOTH then
        return true
      end
    end
  end
  return false
end

--- Whether the middle image is composed of the two others. Cells are those of cuts.look(), [rows columns].
--- @param first ffi.cdata*
--- @param middle ffi.cdata*
--- @param last ffi.cdata*
--- @param columns integer
--- @param rows integer
--- @return boolean
function M.between(first, middle, last, columns, rows)
  local n = columns * rows
  local count = classify(first, middle, last, n)
  local changed = n - count[0]
  if changed < ENOUGH * n then return false end
  if count[3] <= NEITHER * changed and math.min(count[1], count[2]) >= SIDE * changed and
    least_wrong(count, n, columns, rows) <= WRONG * changed then return true end
  for _, g in ipairs(grids(columns, rows)) do
    if count[1] >= SIDE * changed and slides(g, middle, last, 1) then return true end
    if count[2] >= SIDE * changed and slides(g, middle, first, 2) then return true end
    if both_slide(g, first, middle, last) then return true end
  end
  return false
end

return M
