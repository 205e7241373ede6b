-- Runs PyTorch's own sample inputs (its OpInfo database) through the operations with the same names. It prints each
-- operation's share of passed samples and why others failed; the exit status is 1 below 95 % of the samples that can
-- be expressed.
--
--     python tests/golden/torch_samples.py samples.safetensors
--     build/crescent tests/bench/torch_samples.lua --file samples.safetensors
--
-- Tiny: --file tests/golden/torch_samples.safetensors
local bench_options = require 'tests.bench.options'
local samples = require 'tests.support.torch_samples'

local o = bench_options.read("Runs PyTorch's sample inputs.", {
  { '--file', 'file', required = true, help = 'the samples that tests/golden/torch_samples.py wrote' },
  { '--all', 'flag', help = 'every failure, not three of an operation' },
})
local byname, order, total = {}, {}, { pass = 0, fail = 0, skip = 0 }
samples.run(o.file, function(case, result, why)
  local row = byname[case.op]
  if not row then
    row = { pass = 0, fail = 0, skip = 0 }
    byname[case.op] = row
    order[#order + 1] = case.op
  end
  row[result], total[result] = row[result] + 1, total[result] + 1
  if result == 'fail' and (o.all or row.fail <= 3) then print(('%-28s %-5s %s'):format(case.name, case.dtype, why)) end
end)
for _, name in ipairs(order) do
  local row = byname[name]
  if row.fail > 0 or row.pass == 0 then print(('%-36s %4d pass %4d fail %4d inexpressible'):format(name, row.pass, row.fail, row.skip)) end
end
local share = 100 * total.pass / math.max(1, total.pass + total.fail)
print(('%d operations: %d samples pass, %d fail: %.1f %%; %d inexpressible'):format(#order, total.pass, total.fail, share, total.skip))
os.exit(share >= 95 and 0 or 1)
