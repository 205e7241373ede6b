--- The time from the start to the first face on a GPU, and the time of the next faces. It runs in its own program,
--- because it measures what libraries initialize at first use.
--
--     build/crescent tests/bench/cuda_face.lua [--video FILE]

local cr = require 'cr'
local clock = require 'cr.clock'
local face = require 'models.latentsync.face'
local media = require 'cr.media'

local o = require 'tests.bench.options'.read('Time to the first face.', {
  { '--video', 'file', default = cr.root .. '/models/mini/demo.mp4', help = 'a face' },
})
require 'tests.bench.card' ()

local start = clock()
cr.zeros(1, { device = 'cuda' }):free()
print(('the card starts                %8.1f ms'):format((clock() - start) * 1e3))
start = clock()
local finder = face.load { device = 'cuda' }
print(('networks loaded                %8.1f ms'):format((clock() - start) * 1e3))
start = clock()
local reader = media.reader(o.video, { device = 'cuda' })
local frames = reader:read(16)
reader:close()
print(('16 frames decoded, on the card %8.1f ms'):format((clock() - start) * 1e3))
for i = 1, 4 do
  start = clock()
  finder:find(frames[i])
  print(('face %d                         %8.1f ms'):format(i, (clock() - start) * 1e3))
end
