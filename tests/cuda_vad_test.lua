--- Voice activity detection on a GPU: the CPU's probabilities.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local media = require 'cr.media'
local t = require 'tests.support.tap'
local vad = require 'models.networks.vad'

cuda.test('a stream on the card', function()
  local path = t.fetched 'vad/silero_vad_16k.safetensors'
  local host, there = vad.load(path), vad.load(path, { device = cuda.device })
  cr.scope(function()
    local demo = media.load_audio(cr.root .. '/models/mini/demo.flac', { rate = 16000, channels = 1, s16 = true }):narrow(1, 1, 20000)
    local a, b = host:stream(), there:stream()
    local want, got = a:feed(demo), b:feed(demo)
    want[#want + 1], got[#got + 1] = a:finish()[1], b:finish()[1]
    t.equal(#got, 40)
    for i, p in ipairs(want) do t.ok(math.abs(got[i] - p) < 1e-4, ('chunk %d: %g, %g'):format(i, got[i], p)) end
  end)
  host:free()
  there:free()
end)

t.done()
