--- Benchmarks the networks on this machine: a UNet step, encoding and decoding, and the resulting frames per second.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local clock = require 'cr.clock'

local args = cli.parse(arg, {
  name = 'bench', summary = 'Benchmarks the networks on this machine, with random weights if you have none.',
  options = {
    { '--size', 'string', default = '256,512', metavar = 'N,N', unit = 'pixels', help = 'sides of the face image' },
    { '--part', 'string', default = 'unet,vae', metavar = 'NAMES', help = 'unet, vae or both' },
    { '--checkpoint', 'file', metavar = 'DIR', help = 'folder with the weights', default_text = 'random weights' },
    { '--device', 'string', default = 'auto', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N' },
    { '--dtype', 'choice', choices = { 'f32', 'f16', 'bf16' }, help = 'data type', default_text = 'f16 on a GPU, f32 on a CPU' },
    { '--frames', 'int', default = 16, min = 1, max = 24, help = 'of a window' },
    { '--steps', 'int', default = 20, min = 1, max = 1000, help = 'denoising steps, for the frames per second' },
    { '--runs', 'int', min = 1, help = 'number of measurements; the median is shown', default_text = '10 on a GPU, 3 on a CPU' },
  },
})

local fail = cli.failf

local sizes = {}
for text in args.size:gmatch '[^,]+' do
  local n = tonumber(text)
  if not n or n % 8 ~= 0 or n < 16 or n > 2048 then
    fail("--size: '%s' is not a multiple of 8 from 16 to 2048", text)
  end
  sizes[#sizes + 1] = n
end
local parts = {}
for name in args.part:gmatch '[^,]+' do
  if name ~= 'unet' and name ~= 'vae' then fail("--part: '%s' is not unet or vae", name) end
  parts[name] = true
end
if #sizes == 0 or not next(parts) then fail '--size or --part is empty, so there is nothing to measure' end

local device = cli.device(args.device)
local on_card = device ~= 'cpu'
local dtype = args.dtype or (on_card and 'f16' or 'f32')

--- Median duration of fn in milliseconds.
local function time(fn)
  if on_card then return cr.cuda.time(fn, args.runs, device) end
  local times = {}
  for i = 1, args.runs or 3 do
    local start = clock()
    cr.scope(fn)
    times[i] = (clock() - start) * 1e3
  end
  table.sort(times)
  return times[math.floor((#times + 1) / 2)]
end

cr.run(function()
  local measure = require 'models.laboratory.measure'
  local model
  if args.checkpoint then
    model = require 'models.latentsync'.load(args.checkpoint, { device = device, dtype = dtype })
  else
    model = measure.random { device = device, dtype = dtype, unet = parts.unet, vae = parts.vae }
  end
  if on_card then
    local i = cr.cuda.info(device)
    print(('%s, %.0f GiB, CUDA %s, cuBLAS %s, cuDNN %s'):format(i.name, i.memory_total / 2 ^ 30, i.runtime, i.cublas, i.cudnn))
  else
    print(('processor, %d threads'):format(cr.threads()))
  end
  print(('%s, windows of %d frames, %s'):format(dtype, args.frames, args.checkpoint or 'random weights'))
  for _, size in ipairs(sizes) do
    local ms = {}
    for case in measure.cases(model, size, { frames = args.frames, parts = parts }) do
      cr.reset_peak(device)
      local took = time(case.run)
      ms[case.name:match '^(.*) %d+$'] = took
      print(('%-16s %10.2f ms  %7s  peak %5.2f GiB'):format(case.name, took,
        case.work and ('%.1f TFLOP/s'):format(case.work / took * 1e3) or '', cr.memory(device).peak / 2 ^ 30))
      case.free()
    end
    -- A window: masked and reference images are encoded, the steps are run, the result is decoded.
    if ms['unet step'] and ms['vae encode'] then
      local window = 2 * ms['vae encode'] + ms['unet window'] + args.steps * ms['unet step'] + ms['vae decode']
      print(('a window of %d steps at %d px: %.2f s, %.2f frames per second'):format(args.steps, size, window / 1e3,
        args.frames / window * 1e3))
    end
    cr.trim(device)
  end
end)
