-- Times an ONNX network: minimum and median of the runs. onnx_runtime.py compares it with onnxruntime in alternating
-- runs.
--
--     build/crescent tests/bench/onnx.lua --model MODEL.onnx --shape 1,3,480,640 [--runs N] [--device cuda] [--dtype f16]
--
-- Tiny: --model tests/golden/none.onnx --shape 1,3,8,8 => No such file

local cr = require 'cr'
local now = require 'cr.clock'

local bench_options = require 'tests.bench.options'
local options = bench_options.read('Times an ONNX network.', {
  { '--model', 'file', required = true, help = 'the ONNX file' },
  { '--shape', required = true, help = 'of its first input; others get ones of the sizes that the file declares' },
  { '--runs', 'int', default = 15, min = 1, help = 'runs, after two that are not counted' },
  { '--device', 'string', default = 'cpu', metavar = 'NAME', help = 'cpu or cuda' },
  { '--dtype', 'choice', choices = { 'f32', 'f16', 'bf16' }, default = 'f32', help = 'of the floats' },
})

local ok, net = pcall(cr.onnx.open, options.model, { device = options.device, dtype = options.dtype })
if not ok then require 'cr.tools.cli'.fail(net) end

local function wait()
  if options.device ~= 'cpu' then cr.cuda.synchronize() end
end

cr.scope(function()
  local inputs = {}
  for i, v in ipairs(net.inputs) do
    local shape = i == 1 and bench_options.numbers(options.shape) or v.shape
    inputs[v.name] = i == 1 and cr.randn(shape, { generator = cr.generator(1) }) or cr.ones(shape, { dtype = v.dtype })
    inputs[v.name] = inputs[v.name]:to(options.device)
  end
  local times = {}
  for run = -1, options.runs do
    cr.scope(function()
      wait()
      local start = now()
      net:run(inputs)
      wait()
      if run > 0 then times[run] = (now() - start) * 1e3 end
    end)
  end
  table.sort(times)
  print(('%s [%s] on %s, %s: minimum %.2f ms, median %.2f ms'):format(options.model, options.shape, options.device, options.dtype,
    times[1], times[math.ceil(#times / 2)]))
end)
