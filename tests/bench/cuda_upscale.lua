--- The upscaling networks on a card, whole frames as `crescent upscale` makes them (recorded, checked for numbers that
-- are not finite, rounded to 8 bits): median ms, TFLOP/s, per cent of the tensor cores' limit, memory.
--
--     build/crescent tests/bench/cuda_upscale.lua [--net x4plus,animevideov3] [--runs 20] [--limit 790]
--
-- Checked first: a small picture in float16 against float32 on the CPU. PyTorch's side: torch_upscale.py.

local cr = require 'cr'
local enlargers = require 'models.upscale.enlarger'
local networks = require 'models.upscale.networks'
local options = require 'tests.bench.options'

local o = options.read('The upscaling networks on a card.', {
  { '--net', default = 'animevideov3,x4plus', help = 'which' },
  { '--runs', 'int', default = 20, min = 1, help = 'of which the median is told' },
  { '--limit', 'int', default = 790, min = 1, unit = 'TFLOP/s', help = 'of a large product in 16 bits on this card' },
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
