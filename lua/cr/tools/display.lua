--- Shows tensors as pictures: converts them to 8-bit RGB, for a terminal or a PNG.
--
--     local display = require 'cr.tools.display'
--     display.show(frames)                  -- [H W C], [N H W C], a list of pictures, ...
--     display.save('faces.png', frames)
--
-- Pictures are sent by kitty's, iTerm2's or the sixel protocol. In other terminals each character shows two pixels,
-- one above the other.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local base64 = require 'cr.base64'
local tensor = require 'cr.tensor'
local terminal = require 'cr.tools.terminal'

local M = {}

local MOST = 8            -- largest number of pictures shown of a batch
local IN_A_ROW = 4
local GAP = 2             -- pixels between them
local BLOCK_LINES = 30    -- largest height in text lines of a picture of half blocks
local PIXEL_LINES = 24    -- the same for pictures made of pixels
local SMALL = 160         -- pictures narrower than this are enlarged

-- ---- to RGB -------------------------------------------------------------------------------------

-- Returns the pictures in a tensor or list, each as [H W C].
local function pictures_of(x)
  local list = {}
  if type(x) == 'table' and type(x.rgb) == 'function' then x = x:rgb() end -- a decoded frame
  if type(x) == 'table' then
    for _, t in ipairs(x) do
      for _, p in ipairs(pictures_of(t)) do list[#list + 1] = p end
    end
    return list
  end
  local rank = x:dim()
  if rank < 2 then base.fail('show: a picture needs at least two dimensions, not ' .. tensor.shape_text(x) .. '; :plot shows curves') end
  if x:numel() == 0 then base.fail('show: ' .. tensor.shape_text(x) .. ' has no pixels') end
  if rank == 2 then return { x:unsqueeze(3) } end
  local channels = x:size(-1)
  if rank == 3 and channels <= 4 then
    if channels == 1 or channels == 3 then return { x } end
    if channels == 4 and x.dtype == 'u8' then return { x:narrow(3, 1, 3) } end
    for c = 1, channels do list[c] = x:narrow(3, c, 1) end -- such as latents: one picture for each channel
    return list
  end
  if rank == 3 then x = x:unsqueeze(4) end
  local shape = x.shape
  local lead = 1
  for d = 1, #shape - 3 do lead = lead * shape[d] end
  local flat = x:reshape({ lead, shape[#shape - 2], shape[#shape - 1], shape[#shape] }, {})
  local count = math.min(lead, MOST)
  for i = 1, count do
    local index = count == lead and i or math.floor((i - 1) * (lead - 1) / (count - 1) + 1.5)
    for _, p in ipairs(pictures_of(flat:select(1, index))) do list[#list + 1] = p end
  end
  return list, lead
end

-- Returns the offset and the factor that map numbers to 0 .. 255, and a note about the range.
local function range_of(list)
  local first = list[1]
  if first.dtype == 'u8' then return 0, 1 end
  if first.dtype == 'bool' then return 0, 255 end
  local low, high = math.huge, -math.huge
  for _, p in ipairs(list) do
    local f = p:to 'f32'
    low, high = math.min(low, f:min():item()), math.max(high, f:max():item())
  end
  if low ~= low or high ~= high or low == -math.huge or high == math.huge then
    return 0, 255, 'contains nan or inf'
  end
  local colored = first:size(3) == 3
  if low >= -0.01 and high <= 1.01 then return 0, 255 end
  if colored and low >= -1.5 and high <= 1.5 then return 1, 127.5, '-1 .. 1' end
  if low >= -1 and high <= 256 and high > 8 then return 0, 1 end
  return -low, 255 / math.max(high - low, 1e-30), ('%.3g .. %.3g'):format(low, high)
end

local function to_rgb(p, offset, factor)
  local f = (p:to('cpu'):to 'f32' + offset) * factor
  local safe = tensor.where(f:eq(f), f, 0):clamp(0, 255):round()
  if safe:size(3) == 1 then safe = safe:expand(safe:size(1), safe:size(2), 3) end
  return safe:to('u8'):contiguous()
end

local function grid(list)
  if #list == 1 then return list[1] end
  local height, width = 0, 0
  for _, p in ipairs(list) do height, width = math.max(height, p:size(1)), math.max(width, p:size(2)) end
  local columns = #list <= IN_A_ROW and #list or math.min(#list, IN_A_ROW)
  local rows = math.ceil(#list / columns)
  local sheet = tensor.zeros({ rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3 }, { dtype = 'u8' })
  for i, p in ipairs(list) do
    local top, left = math.floor((i - 1) / columns) * (height + GAP), (i - 1) % columns * (width + GAP)
    sheet:narrow(1, top + 1, p:size(1)):narrow(2, left + 1, p:size(2)):copy_(p)
  end
  return sheet
end

--- Converts a tensor to a picture. Floats in 0..1, in -1..1 (with three channels) or in 0..255 are recognized as
--- such; others are scaled from their minimum and maximum. A batch becomes a sheet of at most 8 pictures. If there
--- are not 1 or 3 channels, the channels are shown side by side.
--- @param x Tensor|VideoFrame|table [H W], [H W C], [N H W C] or more, any dtype and device; or a list of such
--- @return Tensor u8 [H W 3] on the CPU
--- @return string? a note about the scaling
function M.rgb(x)
  if not tensor.is_tensor(x) and type(x) ~= 'table' then
    base.fail('show: a tensor or a list of them is needed, not ' .. type(x))
  end
  local note
  local out = tensor.scope(function()
    local list, all = pictures_of(x)
    if #list == 0 then base.fail 'show: the list holds no pictures' end
    local offset, factor
    offset, factor, note = range_of(list)
    if all and all > MOST then note = (note and note .. ', ' or '') .. ('%d of %d'):format(MOST, all) end
    local colored = {}
    for i, p in ipairs(list) do colored[i] = to_rgb(p, offset, factor) end
    return grid(colored)
  end)
  return out, note
end

--- Writes a PNG.
--- @param path string
--- @param x Tensor|Tensor[] as for rgb
function M.save(path, x)
  tensor.scope(function() require 'cr.media'.write_picture(path, (M.rgb(x))) end)
end

-- ---- to a terminal ------------------------------------------------------------------------------

-- Fits a picture into a box; small ones are enlarged by whole factors.
local function fitted(rgb, width, height, enlarge)
  local nn = require 'cr.nn'
  local H, W = rgb:size(1), rgb:size(2)
  local factor = math.min(width / W, height / H)
  if factor < 1 then
    local h, w = math.max(1, math.floor(H * factor + 0.5)), math.max(1, math.floor(W * factor + 0.5))
    return nn.resize(rgb:to 'f32', h, w, 'bicubic_aa'):round():clamp(0, 255):to('u8'):contiguous()
  end
  local times = enlarge and math.floor(math.min(factor, math.max(1, enlarge / W))) or 1
  if times <= 1 then return rgb end
  return nn.resize(rgb, H * times, W * times, 'nearest'):contiguous()
end

local levels = { [0] = 0, 95, 135, 175, 215, 255 }

-- Returns the nearest colour of xterm's 6 x 6 x 6 cube and 24 greys.
local function color_256(r, g, b)
  local function level(v) return v < 48 and 0 or v < 115 and 1 or math.floor((v - 35) / 40) end
  local i, j, k = level(r), level(g), level(b)
  local step = math.min(23, math.max(0, math.floor(((r + g + b) / 3 - 3) / 10)))
  local grey = 8 + 10 * step
  local to_cube = (r - levels[i]) ^ 2 + (g - levels[j]) ^ 2 + (b - levels[k]) ^ 2
  local to_grey = (r - grey) ^ 2 + (g - grey) ^ 2 + (b - grey) ^ 2
  return to_grey < to_cube and 232 + step or 16 + 36 * i + 6 * j + k
end

local function blocks(rgb, colors)
  local H, W, p = rgb:size(1), rgb:size(2), rgb:pointer()
  local lines = {}
  local function code(layer, y, x)
    local at = (y * W + x) * 3
    local r, g, b = p[at], p[at + 1], p[at + 2]
    if colors == 'true' then return ('%d;2;%d;%d;%d'):format(layer, r, g, b) end
    return ('%d;5;%d'):format(layer, color_256(r, g, b))
  end
  local shades = { ' ', '.', ':', '-', '=', '+', '*', '#', '%', '@' }
  for y = 0, H - 1, 2 do
    local parts, upper, lower = {}, nil, nil
    for x = 0, W - 1 do
      if colors == 'none' then
        local at = (y * W + x) * 3
        local light = (p[at] * 0.3 + p[at + 1] * 0.59 + p[at + 2] * 0.11) / 256
        parts[#parts + 1] = shades[math.floor(light * #shades) + 1]
      else
        local u, l = code(38, y, x), y + 1 < H and code(48, y + 1, x) or '49'
        if u ~= upper or l ~= lower then parts[#parts + 1] = '\27[' .. u .. ';' .. l .. 'm' end
        upper, lower = u, l
        parts[#parts + 1] = '\226\150\128' -- U+2580, the upper half block
      end
    end
    lines[#lines + 1] = table.concat(parts) .. (colors == 'none' and '' or '\27[0m')
  end
  return table.concat(lines, '\n') .. '\n'
end

ffi.cdef [[
typedef struct cr_sixel_encoder cr_sixel_encoder;
int sixel_encoder_new(cr_sixel_encoder **out, void *allocator);
int sixel_encoder_setopt(cr_sixel_encoder *e, int option, const char *value);
int sixel_encoder_encode_bytes(cr_sixel_encoder *e, unsigned char *pixels, int width, int height, int format,
                               unsigned char *palette, int colors);
void sixel_encoder_unref(cr_sixel_encoder *e);
]]

local function file_bytes(path)
  local file = assert(io.open(path, 'rb'))
  local data = file:read '*a'
  file:close()
  return data
end

-- https://sw.kovidgoyal.net/kitty/graphics-protocol
local function kitty(rgb)
  local H, W = rgb:size(1), rgb:size(2)
  local data, parts, at = base64.encode(ffi.string(rgb:pointer(), H * W * 3)), {}, 1
  while at <= #data do
    local piece = data:sub(at, at + 4095)
    at = at + #piece
    local head = #parts == 0 and ('a=T,f=24,s=%d,v=%d,'):format(W, H) or ''
    parts[#parts + 1] = ('\27_G%sm=%d;%s\27\\'):format(head, at <= #data and 1 or 0, piece)
  end
  return table.concat(parts) .. '\n'
end

-- https://iterm2.com/documentation-images.html
local function iterm2(rgb)
  local path = os.tmpname()
  require 'cr.media'.write_picture(path, rgb)
  local data = file_bytes(path)
  os.remove(path)
  return ('\27]1337;File=inline=1;size=%d;width=%dpx;height=%dpx:%s\7\n'):format(#data, rgb:size(2), rgb:size(1), base64.encode(data))
end

local sixel_library
local function sixel(rgb)
  local RGB888, OUTPUT = 3, ('o'):byte()
  if sixel_library == nil then
    sixel_library = base.system_library 'libsixel.so.1' or false
  end
  if not sixel_library then return nil end
  local path, holder = os.tmpname(), ffi.new 'cr_sixel_encoder *[1]'
  local data
  if sixel_library.sixel_encoder_new(holder, nil) == 0 then
    local e = holder[0]
    data = sixel_library.sixel_encoder_setopt(e, OUTPUT, path) == 0 and sixel_library.sixel_encoder_encode_bytes(e,
      ffi.cast('unsigned char *', rgb:pointer()), rgb:size(2), rgb:size(1), RGB888, nil, 0) == 0
    sixel_library.sixel_encoder_unref(e)
  end
  if data then data = file_bytes(path) end
  os.remove(path)
  return data and data ~= '' and data .. '\n' or nil
end

--- Encodes a picture for a terminal.
--- @param rgb Tensor u8 [H W 3], on the CPU
--- @param options table? {protocol = 'kitty'|'iterm2'|'sixel'|'blocks' (the terminal's),
---   columns, rows (the terminal's), colors = 'true'|'256'|'none'}
--- @return string
function M.encode(rgb, options)
  options = options or {}
  local protocol, size = options.protocol or terminal.pictures(), terminal.size()
  local columns, rows = options.columns or size.columns, options.rows or size.rows
  return tensor.scope(function()
    if protocol ~= 'blocks' then
      local width, height = columns * size.cell_width * 0.95, math.min(rows - 2, PIXEL_LINES) * size.cell_height
      local pixels = fitted(rgb, math.max(8, width), math.max(8, height), SMALL)
      local text
      if protocol == 'kitty' then text = kitty(pixels)
      elseif protocol == 'iterm2' then text = iterm2(pixels)
      else text = sixel(pixels) end
      if text then return text end
    end
    local small = fitted(rgb, math.max(2, columns - 2), 2 * math.max(2, math.min(rows - 3, BLOCK_LINES)), 48)
    return blocks(small, options.colors or terminal.colors())
  end)
end

--- Shows a picture in the terminal.
--- @param x Tensor|Tensor[] as for rgb
--- @param options table? as for encode
function M.show(x, options)
  tensor.scope(function()
    local rgb, note = M.rgb(x)
    io.write(M.encode(rgb, options))
    io.flush()
    if note then print('  ' .. note) end
  end)
end

return M
