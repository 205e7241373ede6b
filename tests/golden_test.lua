--- The files of tests/golden equal what cut.lua creates from the reference programs' outputs.

local t = require 'tests.support.tap'
local cr = require 'cr'
local cut = require 'tests.golden.cut'
local golden = require 'tests.support.golden'

t.test("a thinned tensor has every step-th element of the whole, and requires the reference's shape", function()
  local gold = golden.open 'networks'
  local key = 'unet_nano.act.t481.conv_in'
  local whole = cr.zeros(2, 32, 8, 16, 16)
  whole:view(-1):slice(1, 1, whole:numel(), 7):copy_(gold:get(key))
  t.equal(gold:error(whole, key), 0)
  whole:view(-1):slice(1, 8, 8, 1):fill_(100)
  t.ok(gold:error(whole, key) > 0.1, 'the eighth number counts')
  t.raises(function() gold:near(whole:transpose(4, 5):narrow(4, 1, 15), key, 1) end, 'the result is 2x32x8x15x16, the reference')
  gold:close()
end)

for _, name in ipairs(cut.names) do
  t.with_shared(name .. ' is cut from the whole outputs', function(shared)
    local have, want = cr.load(golden.folder .. name .. '.safetensors'), cut.cut(shared 'golden', name)
    for key, x in pairs(want) do
      t.ok(have[key], key .. ' is there')
      if have[key] then t.near(have[key], x, 0, key) end
    end
    for key in pairs(have) do t.ok(want[key], key .. ' is among them') end
  end)
end

t.with_shared('the schedulers\' numbers are diffusers\'', function(shared)
  local whole, copy = cr.weights.open(shared 'golden/golden_sched64.safetensors'), golden.open 'schedulers'
  for _, key in ipairs(whole.names) do copy:near(whole:get(key), key, 0) end
  whole:close()
  copy:close()
end)

t.done()
