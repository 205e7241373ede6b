--- ONNX networks on a GPU: the cases of tests/golden/onnx.safetensors, run directly, then recorded and replayed.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local onnx_cases = require 'tests.support.onnx_cases'
local t = require 'tests.support.tap'

local TOLERANCE = 1e-3 -- relative to the result's range: the GPU's products have 10 bits of mantissa

local list = onnx_cases.all()

for _, case in ipairs(list) do
  if case.model then
    cuda.test(case.name .. ': as onnxruntime, replayed too', function()
      local net = cr.onnx.open(case.model, { device = cuda.device })
      for run = 1, 4 do
        cr.scope(function()
          local inputs = {}
          for i, v in ipairs(net.inputs) do inputs[v.name] = case.inputs[i] end
          local results = { net:run(inputs) }
          for _, y in ipairs(results) do t.ok(y.device ~= 'cpu', 'it stays on the card') end
          local off = onnx_cases.off(case, results)
          t.ok(type(off) == 'number' and off <= TOLERANCE, ('run %d: %s'):format(run, tostring(off)))
        end)
      end
      for _, plan in pairs(net.plans) do
        t.equal(plan.graph:why(), nil, 'what stood in the way of a recording')
      end
      net:free()
    end)
  end
end

t.done()
