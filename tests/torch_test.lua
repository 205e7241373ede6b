--- Operations compared with PyTorch's results on its own sample inputs; tests/bench/torch_samples.lua runs all
--- samples.
local t = require 'tests.support.tap'
local cr = require 'cr'
local samples = require 'tests.support.torch_samples'

t.test("PyTorch's samples, a few of each operation", function()
  local count, names, passed = { pass = 0, fail = 0, skip = 0 }, {}, 0
  samples.run(cr.root .. '/tests/golden/torch_samples.safetensors', function(case, result, why)
    count[result] = count[result] + 1
    if result == 'fail' then t.ok(false, ('%s of %s: %s'):format(case.name, case.dtype, why)) end
    if result == 'pass' and not names[case.op] then names[case.op], passed = true, passed + 1 end
  end)
  t.ok(count.pass > 400 and passed > 140,
    ('%d samples of %d operations pass, %d have no counterpart'):format(count.pass, passed, count.skip))
end)

t.done()
