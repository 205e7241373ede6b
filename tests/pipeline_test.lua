--- The reference's whole pipeline, through the command line: from frames and samples to pasted frames.

local t = require 'tests.support.tap'

t.test('the golden pipeline: latents and frames', function() require 'tests.support.golden_pipeline' 'cpu' end)

t.done()
