--- How much networks for upscaling shimmer: the mean change of brightness from frame to frame in flat parts of a picture,
--- before it is enlarged and after, in levels of 255.
--
--     build/crescent tests/bench/upscale_shimmer.lua VIDEO|PICTURE [--models x4plus,animevideov3,lanczos4] [--scale 2]
--       [--frames 25] [--start 0] [--crop W:H:X:Y] [--still] [--noise 2] [--device cuda]
--
-- Tiny: models/mini/demo.mp4 --frames 3 --crop 48:32:200:300 --models lanczos4 --device cpu
--
-- A still is one frame repeated with fresh noise like that of a camera; an unchanged picture would not shimmer,
-- because a network is deterministic. `lanczos4` is plain resizing, for comparison. The flat regions are found in the
-- frames before upscaling (models/laboratory/detail.lua).

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local detail = require 'models.laboratory.detail'
local image = require 'cr.image'
local enlargers = require 'models.upscale.enlarger'
local media = require 'cr.media'
local networks = require 'models.upscale.networks'
local nn = require 'cr.nn'

io.stdout:setvbuf 'line'
local o = cli.parse(arg, {
  name = 'tests/bench/upscale_shimmer.lua', summary = 'How much networks for upscaling shimmer.',
  options = {
    { '--models', 'string', default = 'x4plus,animevideov3,lanczos4', metavar = 'NAME,...', help = 'as of `upscale`, and lanczos4' },
    { '--scale', 'number', default = 2, min = 1, help = 'how many times larger' },
    { '--frames', 'int', default = 25, min = 2, help = 'how many' },
    { '--start', 'number', default = 0, min = 0, unit = 'seconds', help = 'where to begin' },
    { '--crop', 'string', metavar = 'W:H:X:Y', help = 'only this part of the picture', default_text = 'all' },
    { '--still', 'flag', help = 'the first frame alone, with noise' },
    { '--noise', 'number', default = 2, min = 0, unit = 'levels', help = "deviation of a still's noise" },
    { '--device', 'string', default = 'auto', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N' },
    { '--dtype', 'choice', choices = { 'f32', 'f16', 'bf16' }, help = 'of the weights', default_text = 'f16 on a GPU, f32 on a CPU' },
  },
  positional = { { 'file', 'file', help = 'video or picture' } },
})

local device = cli.device(o.device)
local dtype = o.dtype or (device == 'cpu' and 'f32' or 'f16')
local still = o.still or o.file:lower():find '%.png$' ~= nil

local function cropped(frame)
  if not o.crop then return frame end
  local w, h, x, y = o.crop:match '^(%d+):(%d+):(%d+):(%d+)$'
  w, h, x, y = tonumber(w), tonumber(h), tonumber(x), tonumber(y)
  if not w or x + w > frame:size(2) or y + h > frame:size(1) then
    cli.failf('--crop: %s is no part W:H:X:Y of %d x %d pixels', o.crop, frame:size(2), frame:size(1))
  end
  return frame:narrow(1, y + 1, h):narrow(2, x + 1, w):contiguous()
end

-- The frames one after another, u8 [H W 3] on the device.
local function frames()
  if still then
    local first
    if o.file:lower():find '%.png$' then
      first = media.read_picture(o.file)
    else
      local reader = media.reader(o.file, { fps = 25 })
      reader:seek(math.floor(o.start * 25 + 0.5))
      first = reader:read(1)[1]
      reader:close()
    end
    first = cr.keep(cr.scope(function() return cropped(first):to(device):to('f32'):clone() end))
    local generator = cr.generator(1247, 'philox')
    return function()
      return cr.scope(function()
        local noise = cr.randn(first.shape, { generator = generator, device = device }) * o.noise
        return (first + noise):round():clamp(0, 255):to 'u8'
      end)
    end, function() first:free() end
  end
  local reader = media.reader(o.file, { fps = 25 })
  if o.start > 0 then reader:seek(math.floor(o.start * 25 + 0.5)) end
  return function()
    local frame = reader:read(1)[1]
    if not frame then cli.failf('%s ends before %d frames from %g s on', o.file, o.frames, o.start) end
    return cr.scope(function() return cropped(frame):to(device):clone() end)
  end, function() reader:close() end
end

cr.run(function()
  print(('%s%s, %d frames, %s'):format(o.file, still and (', a still with noise of %g levels'):format(o.noise) or '', o.frames, device))
  print '  network            scale   before    after   after/before'
  for name in o.models:gmatch '[^,]+' do
    local enlarger
    if name ~= 'lanczos4' then enlarger = enlargers.new(networks.load(name, { device = device, dtype = dtype }), { scale = o.scale }) end
    local function enlarged(frame)
      if enlarger then return enlarger:frame(frame) end
      local h, w = math.floor(frame:size(1) * o.scale), math.floor(frame:size(2) * o.scale)
      return nn.resize(frame, h, w, 'lanczos4')
    end
    local sums, last, next_frame, close = {}, nil, frames()
    for _ = 1, o.frames do
      local now = {}
      cr.scope(function()
        local frame = next_frame()
        now.small, now.large = cr.keep(image.luma(frame), image.luma(enlarged(frame)))
        now.flat = cr.keep(detail.flat(now.small))
        if last then
          local flat = now.flat * last.flat
          detail.add_shimmer(sums, 'before', last.small, now.small, flat)
          flat = nn.resize(flat, now.large:size(1), now.large:size(2), 'nearest')
          detail.add_shimmer(sums, 'after', last.large, now.large, flat)
        end
      end)
      if last then for _, x in pairs(last) do x:free() end end
      last = now
    end
    for _, x in pairs(last) do x:free() end
    close()
    local before, after = detail.shimmer(sums, 'before'), detail.shimmer(sums, 'after')
    if not before then cli.fail 'no part of the picture is flat' end
    print(('  %-18s %5g %8.3f %8.3f %9.2f'):format(name, o.scale, before, after, after / before))
    detail.free(sums)
    if enlarger then enlarger:free() end
  end
end)
