--- Progress with a simulated clock: the step of the window, and the remaining time.

local t = require 'tests.support.tap'
local child = require 'tests.support.child'

-- The output of a script whose clock only advances by wait(seconds).
local function printed(code)
  local result = child.run { '-e', [[
    local time = 100
    package.loaded['cr.clock'] = function() return time end
    local function wait(seconds) time = time + seconds end
    local progress = require 'cr.tools.progress'
  ]] .. code }
  t.equal(result.code, 0, result.err)
  return result.err
end

t.test('a job of frames: step, window, and remaining time from the first step on', function()
  local text = printed [[
    local p = progress.new { total = 20 }
    p:measure('denoise', 0, function()
      for w = 1, 2 do
        for k = 1, 3 do wait(4) p:step(w, 2, k, 3) end
      end
    end)]]
  t.equal(text, '0/20 frames  denoise\n0/20 frames  0:20 left  step 1 of 3 in window 1 of 2\n' ..
    '0/20 frames  0:16 left  step 2 of 3 in window 1 of 2\n0/20 frames  0:12 left  step 3 of 3 in window 1 of 2\n' ..
    '0/20 frames  0:08 left  step 1 of 3 in window 2 of 2\n0/20 frames  0:04 left  step 2 of 3 in window 2 of 2\n' ..
    '0/20 frames  0:00 left  step 3 of 3 in window 2 of 2\n')
end)

t.test('two people in each window: the time for both is left, and none at the end', function()
  local text = printed [[
    local p = progress.new { total = 32 }
    for w = 1, 2 do
      for person = 1, 2 do
        p:measure('denoise', 16, function()
          for k = 1, 2 do wait(3) p:step(w, 2, (person - 1) * 2 + k, 4, 2) end
        end)
        p:measure('decode latents', 16, wait, 8)
      end
      p:advance(16)
    end]]
  -- A window is four steps of 3 s, and 16 s of decoding.
  for _, line in ipairs { '0/32 frames  0:21 left  step 1 of 4 in window 1 of 2', '0/32 frames  0:38 left  step 3 of 4 in window 1 of 2',
    '16/32 frames  [%d.]+ frames/s  0:24 left  step 1 of 4 in window 2 of 2' } do
    t.ok(text:find('\n' .. line .. '\n'), line .. ': ' .. text)
  end
  t.ok(text:find '\n32/32 frames  [%d.]+ frames/s  decode latents\n$', text)
end)

t.test('a slow stage after the steps counts from its first frames on', function()
  local text = printed [[
    local p = progress.new { total = 32 }
    for w = 1, 2 do
      p:measure('denoise', 16, function()
        for k = 1, 2 do wait(2) p:step(w, 2, k, 2) end
      end)
      p:measure('upscale', 16, wait, 48)
    end]]
  t.ok(text:find '\n0/32 frames  0:50 left  step 1 of 2 in window 2 of 2\n', text) -- 16 frames of 3 s, one step of 2 s
end)

t.test('before the number of frames is known the stage is shown alone', function()
  t.equal(printed [[progress.new {}:measure('load', 0, wait, 1)]], 'load\n')
end)

t.test('cells with steps: the same, including the time between the steps', function()
  local text = printed [[
    local p = progress.new { unit = 'steps' }
    p:expect(4)
    for cell = 1, 2 do
      wait(10) -- decoding, the file
      for k = 1, 2 do wait(2) p:step(1, 1, k, 2) p:advance(1) end
    end]]
  t.ok(text:find '\n0/4 steps  step 1 of 2 in window 1 of 1\n', 'one step tells nothing yet: ' .. text)
  -- Two are done, and the third is drawn before it counts: 14 seconds after the first one, 7 per step.
  t.ok(text:find '2/4 steps  [%d.]+ steps/s  0:14 left  step 1 of 2 in window 1 of 1\n', text)
end)

t.done()
