--- The contact sheet: one row per cell, one column per frame, with labels.

local cr = require 'cr'
local draw = require 'cr.tools.draw'
local media = require 'cr.media'

local sheet = {}

local COLUMNS = 6
local SIDE = 160 -- longer side of an image in pixels
local LARGE = 320 -- the same for fine differences, and for the stored strips
local GAP, MARGIN, HEAD = 6, 16, 64
local LABEL = 250 -- width of the text beside a row
local NOTE, LINE = 12, 17 -- size of its notes, and the distance of their lines
local GREY = 0x666666

--- The indices (from 1) of the frames to show, evenly spread.
--- @param frames integer
--- @return table<integer, boolean>, integer[]
function sheet.places(frames)
  local set, list = {}, {}
  local n = math.min(COLUMNS, frames)
  for k = 1, n do
    list[k] = math.floor((k - 0.5) * frames / n) + 1
    set[list[k]] = true
  end
  return set, list
end

-- Resizes an image u8 [H W 3] by a factor.
local function resized(picture, factor)
  if factor == 1 then return picture end
  local h, w = math.max(1, math.floor(picture:size(1) * factor + 0.5)), math.max(1, math.floor(picture:size(2) * factor + 0.5))
  return require 'cr.nn'.resize(picture:to 'f32', h, w, factor < 1 and 'bicubic_aa' or 'bilinear'):round():clamp(0, 255):to 'u8'
end

--- Writes a cell's images side by side.
--- @param path string
--- @param pictures Tensor[] u8 [H W 3] of one size
function sheet.write_strip(path, pictures)
  cr.scope(function()
    local list = {}
    for i, p in ipairs(pictures) do list[i] = resized(p, LARGE / math.max(p:size(1), p:size(2))) end
    local temporary = path:gsub('([^/]*)$', '.%1')
    media.write_picture(temporary, cr.cat(list, 2))
    assert(os.rename(temporary, path))
  end)
end

-- Breaks notes into lines of a width, at their dots and commas; at most so many lines, the last of which is then cut.
local function lines_of(canvas, notes, size, width, most)
  local lines = {}
  for _, note in ipairs(notes) do
    local line
    for part in (note .. '\n'):gsub(' · ', '\n'):gsub(', ', ',\n'):gmatch '([^\n]+)\n' do
      local longer = line and line .. (line:sub(-1) == ',' and ' ' or ' · ') .. part
      if line and canvas:text_width(size, longer) > width and #lines + 1 < most then
        lines[#lines + 1], longer = line, part
      end
      line = longer or part
    end
    lines[#lines + 1] = line
  end
  return lines
end

--- Draws the sheet from the cells' strips.
--- @param path string
--- @param rows table[] {label, notes = {line, line}, strip = path, frames = integer}
--- @param title string
--- @param subtitle string
--- @param large boolean? use images of twice the size
function sheet.write(path, rows, title, subtitle, large)
  cr.scope(function()
    local strips, width, height = {}, 0, MARGIN + HEAD
    for i, row in ipairs(rows) do
      local strip, count = media.read_picture(row.strip), #select(2, sheet.places(row.frames))
      strips[i] = resized(strip, (large and LARGE or SIDE) / math.max(strip:size(1), strip:size(2) / count))
      width, height = math.max(width, strips[i]:size(2)), height + strips[i]:size(1) + GAP
    end
    local canvas = draw.canvas(MARGIN + LABEL + width + MARGIN, height + MARGIN - GAP)
    local room = LABEL - 14
    canvas:text(MARGIN, MARGIN + 16, 18, title, { bold = true, width = canvas.width - 2 * MARGIN })
    canvas:text(MARGIN, MARGIN + 36, 12, subtitle, { color = GREY, width = canvas.width - 2 * MARGIN })
    local y = MARGIN + HEAD
    for i, row in ipairs(rows) do
      local strip = strips[i]
      local _, places = sheet.places(row.frames)
      -- Column headers appear above each row whose frames or image sizes differ from the previous row.
      if i == 1 or row.frames ~= rows[i - 1].frames then
        for k, frame in ipairs(places) do
          canvas:text(MARGIN + LABEL + (k - 1) * strip:size(2) / #places + 2, y - 6, 11, ('frame %d'):format(frame - 1), { color = GREY })
        end
      end
      canvas:text(MARGIN, y + 18, 14, row.label, { bold = true, width = room })
      for k, line in ipairs(lines_of(canvas, row.notes, NOTE, room, math.floor(strip:size(1) / LINE) - 1)) do
        canvas:text(MARGIN, y + 20 + LINE * k, NOTE, line, { color = GREY, width = room })
      end
      canvas:picture(strip, MARGIN + LABEL, y)
      y = y + strip:size(1) + GAP
    end
    local temporary = path:gsub('([^/]*)$', '.%1')
    media.write_picture(temporary, canvas:finish())
    assert(os.rename(temporary, path))
  end)
end

return sheet
