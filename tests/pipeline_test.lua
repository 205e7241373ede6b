--- The reference's whole pipeline, through the command line: from frames and samples to pasted frames.

local t = require 'tests.support.tap'

t.test('the golden pipeline: latents and frames', function() require 'tests.support.golden_pipeline' 'cpu' end)

t.with_shared('the golden pipeline from the sound itself', function(shared)
  require 'tests.support.golden_pipeline'('cpu', shared 'demo/demo1_audio.wav')
end)

t.done()
