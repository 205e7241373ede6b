--- Images with text: where rectangles, images and text are drawn, and how they are clipped.
--
-- How glyphs look depends on the font; tested is where they leave marks, and how wide they are.

local cr = require 'cr'
local draw = require 'cr.tools.draw'
local t = require 'tests.support.tap'

-- Bounds of the non-white pixels: first row, last row, first column, last column; from 0.
local function mark(picture)
  local p, rows, columns = picture:pointer(), picture:size(1), picture:size(2)
  local top, bottom, left, right
  for i = 0, rows * columns - 1 do
    if p[3 * i] ~= 255 or p[3 * i + 1] ~= 255 or p[3 * i + 2] ~= 255 then
      local row, column = math.floor(i / columns), i % columns
      top, bottom = top or row, row
      left, right = math.min(left or column, column), math.max(right or column, column)
    end
  end
  return top, bottom, left, right
end

local function color(picture, row, column)
  local q = picture:pointer() + (row * picture:size(2) + column) * 3
  return q[0] * 65536 + q[1] * 256 + q[2]
end

t.test('rectangles', function()
  cr.scope(function()
    local canvas = draw.canvas(37, 21)
    t.equal(mark(canvas:finish()), nil, 'white at first')
    canvas:rectangle(5, 3, 7, 11, 0x123456)
    local picture = canvas:finish()
    t.equal(table.concat(picture.shape, ' ') .. ' ' .. picture.dtype, '21 37 3 u8')
    t.equal(table.concat({ mark(picture) }, ' '), '3 13 5 11')
    t.equal(color(picture, 3, 5), 0x123456)
    t.equal(color(picture, 13, 11), 0x123456)
    t.equal(color(draw.canvas(3, 2, 0xfedcba):finish(), 1, 2), 0xfedcba)
  end)
end)

t.test('images, and clipping', function()
  cr.scope(function()
    local h, w = 6, 9
    local face = (cr.rand(h, w, 3) * 200):to 'u8'
    for _, at in ipairs { { 4, 2 }, { -3, -2 }, { 15, 8 }, { 40, 2 }, { 4, -30 } } do
      local x, y = at[1], at[2]
      local canvas = draw.canvas(20, 12)
      canvas:picture(face, x, y)
      local got = canvas:finish()
      for row = 0, 11 do
        for column = 0, 19 do
          local inside = row >= y and row < y + h and column >= x and column < x + w
          local want = inside and color(face, row - y, column - x) or 0xffffff
          if color(got, row, column) ~= want then error(('at %d, %d: pixel %d %d'):format(x, y, row, column)) end
        end
      end
    end
    -- A view is an image too: every second column of it.
    local half = face:narrow(2, 1, 8):reshape(h, 4, 2, 3):select(3, 1)
    local canvas = draw.canvas(4, h)
    canvas:picture(half, 0, 0)
    t.near(canvas:finish():to 'f32', half:to 'f32', 0, 'a view')
  end)
end)

t.test('words', function()
  cr.scope(function()
    local canvas = draw.canvas(400, 60)
    canvas:text(30, 40, 20, 'Higher', { color = 0xff0000 })
    local picture = canvas:finish()
    local top, bottom, left, right = mark(picture)
    local width = canvas:text_width(20, 'Higher')
    t.ok(left >= 28 and left < 36 and right > left + width / 2 and right <= 32 + width, 'from x on, as wide as told')
    t.ok(top > 18 and top < 32 and bottom >= 40 and bottom < 50, 'on the line y, the g below it')
    for row = top, bottom do
      for column = left, right do t.ok(math.floor(color(picture, row, column) / 65536) == 255, 'red') end
    end
    t.ok(canvas:text_width(20, 'HigherHigher') > 1.8 * width, 'twice the word')
    t.near(canvas:text_width(40, 'Higher') / width, 2, 0.2, 'twice the size')
    t.equal(canvas:text_width(20, ''), 0)
  end)
end)

t.test('text that is truncated', function()
  cr.scope(function()
    -- The pixels of a text with a maximum size.
    local function drawn(words, width)
      local canvas = draw.canvas(300, 30)
      canvas:text(0, 20, 15, words, { width = width })
      return canvas:finish()
    end
    local canvas = draw.canvas(1, 1)
    local long = 'größe der Übertragung' -- two bytes a letter, here and there
    local whole = canvas:text_width(15, long)
    t.near(drawn(long, whole):to 'f32', drawn(long):to 'f32', 0, 'one that fits is left alone')
    -- With each pixel less, it is a prefix of whole letters.
    local beginnings, letters = {}, {}
    for letter in long:gmatch '[%z\1-\127\194-\244][\128-\191]*' do letters[#letters + 1] = letter end
    for n = 0, #letters do beginnings[n] = table.concat(letters, '', 1, n) .. '…' end
    for width = 0, math.floor(whole) - 1, 7 do
      local n = #letters
      while n > 0 and canvas:text_width(15, beginnings[n]) > width do n = n - 1 end
      t.near(drawn(long, width):to 'f32', drawn(beginnings[n]):to 'f32', 0, width .. ' pixels')
    end
  end)
end)

t.test('invalid sizes', function()
  for _, size in ipairs { { 0, 5 }, { 5, 0 }, { 32768, 5 }, { 5, 32768 } } do
    t.raises(function() draw.canvas(size[1], size[2]) end, 'cannot be drawn: sides must be 1 to 32767')
  end
end)

t.done()
