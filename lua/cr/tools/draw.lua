--- Draws pictures and text with cairo, for labels of contact sheets.
--
--     local canvas = draw.canvas(640, 480)
--     canvas:text(10, 20, 14, 'ddim, 20 steps')
--     canvas:picture(face, 10, 30)
--     media.write_picture('sheet.png', canvas:finish())
--
-- Coordinates are pixels from the upper left corner, colours 0xRRGGBB. cairo is always present with FFmpeg's
-- libraries, which depend on it.

local ffi = require 'ffi'
local lfs = require 'lfs'
local uv = require 'luv'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local M = {}

ffi.cdef [[
typedef struct cr_cairo_surface cr_cairo_surface;
typedef struct cr_cairo cr_cairo;
typedef struct { double x_bearing, y_bearing, width, height, x_advance, y_advance; } cr_cairo_extents;
cr_cairo_surface *cairo_image_surface_create(int format, int width, int height);
int cairo_surface_status(cr_cairo_surface *surface);
unsigned char *cairo_image_surface_get_data(cr_cairo_surface *surface);
int cairo_image_surface_get_stride(cr_cairo_surface *surface);
void cairo_surface_flush(cr_cairo_surface *surface);
void cairo_surface_mark_dirty(cr_cairo_surface *surface);
void cairo_surface_destroy(cr_cairo_surface *surface);
cr_cairo *cairo_create(cr_cairo_surface *surface);
void cairo_destroy(cr_cairo *c);
void cairo_set_source_rgb(cr_cairo *c, double r, double g, double b);
void cairo_rectangle(cr_cairo *c, double x, double y, double width, double height);
void cairo_fill(cr_cairo *c);
void cairo_select_font_face(cr_cairo *c, const char *family, int slant, int weight);
void cairo_set_font_size(cr_cairo *c, double size);
void cairo_text_extents(cr_cairo *c, const char *text, cr_cairo_extents *out);
void cairo_move_to(cr_cairo *c, double x, double y);
void cairo_show_text(cr_cairo *c, const char *text);
]]

local RGB24, MOST = 1, 32767 -- cairo's format of 32-bit pixels; its largest side

local library
local function cairo()
  if not library then
    -- The tarball of make dist contains a font, because a minimal system has none, and cairo's fallback covers ASCII only.
    local fonts = base.root .. '/fonts/fonts.conf'
    if (os.getenv 'FONTCONFIG_FILE' or '') == '' and lfs.attributes(fonts) then uv.os_setenv('FONTCONFIG_FILE', fonts) end
    library = base.system_library 'libcairo.so.2'
    if not library then base.fail 'draw: libcairo.so.2 is missing: apt-get install libcairo2' end
  end
  return library
end

--- @class Canvas
--- @field width integer
--- @field height integer
--- @field context ffi.cdata* of cairo
--- @field surface ffi.cdata* of cairo
local Canvas = {}
Canvas.__index = Canvas

--- Makes an empty picture, white by default.
--- @param width integer pixels, 1 to 32767
--- @param height integer
--- @param color integer? 0xRRGGBB
--- @return Canvas
function M.canvas(width, height, color)
  if width < 1 or height < 1 or width > MOST or height > MOST then
    base.fail(('draw: a picture of %d x %d cannot be drawn: sides must be 1 to %d'):format(width, height, MOST))
  end
  local c = cairo()
  local surface = ffi.gc(c.cairo_image_surface_create(RGB24, width, height), c.cairo_surface_destroy)
  if c.cairo_surface_status(surface) ~= 0 then
    base.fail(('draw: there is no memory for a picture of %d x %d'):format(width, height))
  end
  local self = setmetatable({ width = width, height = height, surface = surface }, Canvas)
  self.context = ffi.gc(c.cairo_create(surface), c.cairo_destroy)
  self:rectangle(0, 0, width, height, color or 0xffffff)
  return self
end

local function set_color(self, color)
  library.cairo_set_source_rgb(self.context, bit.rshift(color, 16) / 255, bit.band(bit.rshift(color, 8), 255) / 255,
    bit.band(color, 255) / 255)
end

--- Draws a filled rectangle.
function Canvas:rectangle(x, y, width, height, color)
  set_color(self, color)
  library.cairo_rectangle(self.context, x, y, width, height)
  library.cairo_fill(self.context)
end

local function set_font(self, size, bold)
  library.cairo_select_font_face(self.context, 'sans-serif', 0, bold and 1 or 0)
  library.cairo_set_font_size(self.context, size)
end

--- Returns the width of a text in pixels.
--- @param size number font size in pixels
--- @param words string UTF-8
--- @param bold boolean?
--- @return number
function Canvas:text_width(size, words, bold)
  set_font(self, size, bold)
  local extents = ffi.new 'cr_cairo_extents'
  library.cairo_text_extents(self.context, words, extents)
  return extents.x_advance
end

--- Draws text that begins at x on the baseline y.
--- @param options table? {color = 0x222222, bold = boolean, width = pixels after which the text is cut}
function Canvas:text(x, y, size, words, options)
  local o = options or {}
  if o.width and self:text_width(size, words, o.bold) > o.width then
    -- Whole UTF-8 characters are removed.
    repeat words = words:gsub('[^\128-\191][\128-\191]*$', '') until words == '' or
      self:text_width(size, words .. '…', o.bold) <= o.width
    words = words .. '…'
  end
  set_font(self, size, o.bold)
  set_color(self, o.color or 0x222222)
  library.cairo_move_to(self.context, x, y)
  library.cairo_show_text(self.context, words)
end

-- Returns the pixels: blue, green, red and an unused byte.
local function pixels(self)
  library.cairo_surface_flush(self.surface)
  return library.cairo_image_surface_get_data(self.surface), library.cairo_image_surface_get_stride(self.surface)
end

--- Draws a picture with its upper left corner at (x, y), clipped to the canvas.
--- @param picture Tensor u8 [H W 3] on the CPU
--- @param x integer
--- @param y integer
function Canvas:picture(picture, x, y)
  tensor.scope(function()
    local from = picture:contiguous()
    local source, width = from:pointer(), from:size(2)
    local data, stride = pixels(self)
    for row = math.max(0, -y), math.min(from:size(1), self.height - y) - 1 do
      local p, q = source + row * width * 3, data + (y + row) * stride + x * 4
      for column = math.max(0, -x), math.min(width, self.width - x) - 1 do
        local a, b = 3 * column, 4 * column
        q[b], q[b + 1], q[b + 2] = p[a + 2], p[a + 1], p[a]
      end
    end
    library.cairo_surface_mark_dirty(self.surface)
  end)
end

--- Returns the finished picture.
--- @return Tensor u8 [H W 3]
function Canvas:finish()
  local out = tensor.empty({ self.height, self.width, 3 }, { dtype = 'u8' })
  local target = out:pointer()
  local data, stride = pixels(self)
  for row = 0, self.height - 1 do
    local p, q = data + row * stride, target + row * self.width * 3
    for column = 0, self.width - 1 do
      local a, b = 4 * column, 3 * column
      q[b], q[b + 1], q[b + 2] = p[a + 2], p[a + 1], p[a]
    end
  end
  return out
end

return M
