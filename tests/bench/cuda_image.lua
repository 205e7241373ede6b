--- Times of the picture operations on a GPU at the sizes of the pipeline: milliseconds, and GB/s of the bytes that
--- each must read and write.
--
--     build/crescent tests/bench/cuda_image.lua

local cr = require 'cr'
local image = require 'cr.image'
local align = require 'models.latentsync.align'
local nn = require 'cr.nn'
local base = require 'cr.ffi'
local ffi = require 'ffi'
local steady = require 'models.latentsync.smoothing'
local tflite = require 'cr.graphs.tflite'

require 'tests.bench.options'.read('Picture operations on a card.', {})
require 'tests.bench.card' ()

local device = 'cuda:0'
local function show(name, bytes, fn)
  local ms = cr.cuda.time(fn)
  print(('%-44s %8.4f ms  %7.0f GB/s'):format(name, ms, bytes / ms / 1e6))
end

cr.scope(function()
  for _, s in ipairs { { 32, 32, 32, 640 }, { 32, 16, 16, 1280 }, { 4, 256, 256, 256 }, { 16, 128, 128, 512 } } do
    local x = cr.zeros(s, { dtype = 'f16', device = device })
    show('nearest x2 f16 [' .. table.concat(s, ' ') .. ']', x:numel() * 2 * 5, function() return nn.upsample_nearest(x, 2) end)
  end
  local frame = cr.full({ 1080, 1920, 3 }, 90, { dtype = 'u8', device = device })
  local aligner = align.new { size = 512 }
  local m = aligner:matrix { { 860, 420 }, { 1060, 415 }, { 965, 560 } }
  local face = cr.zeros(512, 512, 3, { device = device })
  local mask = align.mask(512):to(device)
  local weight = cr.full({ 1080, 1920, 1 }, 0.5, { device = device })
  local paint = cr.full({ 1080, 1920, 3 }, 0.5, { device = device })
  show('warp 1080p -> 512', 560 * 420 * 6 + 512 * 512 * 3, function() return (align.warp(frame, m, 512)) end)
  show('lanczos4 u8 560 x 420 -> 512', 560 * 420 * 3 + 512 * 512 * 3, function()
    return nn.resize(frame:narrow(1, 1, 560):narrow(2, 1, 420), 512, 512, 'lanczos4')
  end)
  show('bicubic_aa f32 512 -> 560 x 420', 4 * 3 * (560 * 420 + 512 * 512), function()
    return nn.resize(face, 560, 420, 'bicubic_aa')
  end)
  show('warp_affine f32 512 -> 600', 4 * 3 * 2 * 600 * 600, function()
    return image.warp_affine(face, { 1.1, 0.1, 3, -0.1, 1.1, 9 }, { width = 600, height = 600 })
  end)
  show('warp_bicubic f32 512 -> 600', 4 * 3 * 2 * 600 * 600, function()
    return image.warp_bicubic(face, { 1.1, 0.1, 3, -0.1, 1.1, 9 }, { width = 600, height = 600 })
  end)
  show('warp_bicubic f32 512 -> 200', 4 * 3 * (512 * 512 + 200 * 200), function()
    return image.warp_bicubic(face, { 0.4, 0.02, 3, -0.02, 0.4, 9 }, { width = 200, height = 200 })
  end)
  local square = weight:narrow(1, 1, 600):narrow(2, 1, 600):contiguous()
  show('erode 600, 25 + 25', 600 * 600 * 8, function() return image.erode(square, 25, 25) end)
  show('gaussian_blur 600, 51 taps', 600 * 600 * 8, function() return image.gaussian_blur(square, 51, 8) end)
  show('blend 1080p', 1080 * 1920 * (3 + 12 + 4 + 3), function() return image.blend(frame, paint, weight) end)
  show('paste_region 512 -> 1080p', 2 * 1080 * 1920 * 3, function() return align.paste_region(frame, face, m, mask) end)
  show('paste_reference 512 -> 1080p', 2 * 1080 * 1920 * 3, function() return align.paste_reference(frame, face, m) end)

  local host = cr.full({ 1080 * 1920 * 3 / 2 }, 90, { dtype = 'u8' })
  local yuv = cr.full({ 1080 * 1920 * 3 / 2 }, 90, { dtype = 'u8', device = device })
  local format = ffi.new('cr_yuv', { 1920, 1080, 1, 1, 0, { 117489, 138438, 13975, 34925 } })
  show('yuv_to_rgb 4:2:0 1080p', 1080 * 1920 * 4.5, function()
    local out = cr.empty({ 1080, 1920, 3 }, { dtype = 'u8', device = device })
    base.check(base.C.cr_yuv_to_rgb(out.c, yuv.c, format))
    return out
  end)
  show('rgb_to_yuv 4:2:0 1080p', 1080 * 1920 * 4.5, function()
    local out = cr.empty({ 1920 * 1080 * 3 / 2 }, { dtype = 'u8', device = device })
    base.check(base.C.cr_rgb_to_yuv(out.c, frame.c, format))
    return out
  end)
  show('up: a frame of 1080p planes', 1080 * 1920 * 1.5, function() return host:to(device) end)
  show('down: a frame of 1080p planes', 1080 * 1920 * 1.5, function() return yuv:to 'cpu' end)
  show('down: a frame of 1080p', 1080 * 1920 * 3, function() return frame:to 'cpu' end)
  show('scene cut: look at 1080p', 192 * 108 * 3, function() steady.look(frame) end)
  show('cut_square 1080p -> 192', 960 * 960 * 3, function()
    return image.cut_square(frame, { x = 960, y = 540, side = 1920, angle = 0 }, 192)
  end)
  for _, name in ipairs { 'face_detection_full_range', 'face_detection_short_range', 'face_landmark' } do
    local path = ('%s/models/fetched/face/%s.tflite'):format(cr.root, name)
    local found, net = pcall(tflite.open, path, { device = device })
    if found then
      local x = cr.zeros(net.input.shape, { device = device })
      show(name, x:numel() * 4, function() return net:run(x) end)
      local there, here = cr.zeros(net.input.shape), tflite.open(path, { threads = 1 })
      local clock = require 'cr.clock'
      local start = clock()
      for _ = 1, 10 do cr.scope(function() here:run(there) end) end
      print(('%-44s %8.4f ms'):format('  on a CPU', (clock() - start) * 100))
      net:free()
      here:free()
    end
  end
end)
