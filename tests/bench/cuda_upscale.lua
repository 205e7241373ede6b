--- The upscaling networks on a GPU, for whole frames as `crescent upscale` computes them (recorded, with the check
--- for non-finite values, rounded to 8 bits): median ms, TFLOP/s, percentage of the tensor cores' limit, memory.
--
--     build/crescent tests/bench/cuda_upscale.lua [--net x4plus,animevideov3] [--runs 20] [--limit 790]
--         [--video FILE [--scale 2]]
--
-- With a video, it also compares the whole command with its parts on the same frames, in frames/s: only the network
-- on frames on the GPU, only the encoder on finished frames (12 MB of host memory for each 2160p frame), and
-- `crescent upscale`. First, a small picture in float16 is compared with float32 on the CPU. torch_upscale.py
-- measures PyTorch.

local cr = require 'cr'
local clock = require 'cr.clock'
local enlargers = require 'models.upscale.enlarger'
local job = require 'models.upscale.job'
local media = require 'cr.media'
local networks = require 'models.upscale.networks'
local options = require 'tests.bench.options'

local o = options.read('The upscaling networks on a GPU.', {
  { '--net', default = 'animevideov3,x4plus', help = 'which' },
  { '--runs', 'int', default = 20, min = 1, help = 'number of runs; the median is printed' },
  { '--limit', 'int', default = 790, min = 1, unit = 'TFLOP/s', help = 'speed of a large 16-bit matrix product on this GPU' },
  { '--video', 'file', help = 'a video to time the whole command' },
  { '--scale', 'number', default = 2, min = 1, help = 'scale for the video' },
})
require 'tests.bench.card' ()
local device = 'cuda:0'

local NETS = {
  x4plus = { macs = 17.9e6, sizes = { { 512, 512 } } },
  animevideov3 = { macs = 0.6196e6, sizes = { { 720, 1280 }, { 1080, 1920 } } },
}

local function picture(h, w) return cr.scope(function() return (cr.rand { h, w, 3 } * 255):to 'u8' end) end

local function check(name, net)
  local exact = networks.load(name, { device = 'cpu', dtype = 'f32' })
  cr.scope(function()
    local x = picture(67, 141)
    local y = enlargers.new(net):frame(x):to 'cpu':to 'f32' - enlargers.new(exact):frame(x):to 'f32'
    local most, mean = y:abs():max():item(), y:abs():mean():item()
    print(('%s: f16 on the card against f32 on the CPU: at most %d levels, %.4f in the mean'):format(name, most, mean))
    if not (most <= 4 and mean < 0.1) then error(name .. ' is off', 0) end
  end)
  exact.free()
end

for name in o.net:gmatch '[^,]+' do
  local net = networks.load(name, { device = device, dtype = 'f16' })
  check(name, net)
  for _, size in ipairs(NETS[name].sizes) do
    local h, w = unpack(size)
    local enlarger = enlargers.new(net)
    local x = cr.keep(picture(h, w):to(device))
    cr.reset_peak(device)
    local ms = cr.cuda.time(function() cr.scope(function() enlarger:frame(x) end) end, o.runs)
    local rate = 2 * NETS[name].macs * h * w / ms * 1e-9
    print(('%s %dx%d: %.2f ms, %.0f TFLOP/s, %.0f %% of the limit, peak %.2f GB'):format(name, w, h, ms, rate,
      100 * rate / o.limit, cr.memory(device).peak / 1e9))
    x:free()
    enlarger.graph:free()
  end
  net.free()
end

-- ---- the whole command ----

local function network_alone(enlarger, frames)
  local function enlarge(frame) cr.scope(function() enlarger:frame(frame) end) end
  for i = 1, 3 do enlarge(frames[i]) end -- recorded
  local begun = clock()
  for _, frame in ipairs(frames) do enlarge(frame) end
  cr.cuda.synchronize(device)
  return #frames / (clock() - begun)
end

local function encoder_alone(enlarger, frames, info, path)
  local h, w = enlarger:size(info.height, info.width)
  local writer = media.writer(path, { like = o.video, width = w, height = h, fps = info.fps })
  local ready = {}
  for i, frame in ipairs(frames) do
    ready[i] = cr.scope(function() return cr.keep(writer:pack(enlarger:frame(frame))) end)
  end
  local begun = clock()
  for _, frame in ipairs(ready) do writer:write { frame } end
  writer:close()
  local rate = #frames / (clock() - begun)
  for _, frame in ipairs(ready) do frame:free() end
  return rate
end

local function whole_command(path)
  return job.run(o.video, path, { model = 'animevideov3', scale = o.scale, device = device, quiet = true })
end

local function video()
  local info, path = media.probe(o.video), os.tmpname() .. '.mp4'
  local enlarger = enlargers.new(networks.load('animevideov3', { device = device, dtype = 'f16' }), { scale = o.scale })
  local reader, frames = media.reader(o.video, { device = device, wait = true }), {}
  for frame in function() return reader:read(1, 1)[1] end do
    frames[#frames + 1] = cr.keep(frame:rgb())
    frame:free()
  end
  reader:close()
  local network, encoder = network_alone(enlarger, frames), encoder_alone(enlarger, frames, info, path)
  enlarger:free()
  local done = whole_command(path)
  local whole = done.frames / done.seconds
  print(('%s, %d x %d, x %g: network %.1f, encoder %.1f, whole command %.1f frames/s (%.2f of the slower), %.1f s for %d frames')
    :format(o.video:match '[^/]*$', info.width, info.height, o.scale, network, encoder, whole,
      whole / math.min(network, encoder), done.seconds, done.frames))
  os.remove(path)
end

if o.video then cr.run(video) end
