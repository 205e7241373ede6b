-- The overhead of sampling in Lua on a GPU: whole sampling loops with a scheduler, guidance and caches, compared with
-- the same number of bare replays of the recorded step.
--
--     build/crescent tests/bench/cuda_sampling.lua [--size 256,512] [--steps 20] [--runs 3]
--         [--schedulers ddim,dpmpp_2m,unipc,...] [--caches deepcache:3,tea:0.2]
--
-- It uses LatentSync's own UNet with random weights in float16, windows of 16 frames, and guidance 1.5. A loop begins
-- and ends with latents. Printed is the median of the runs, after one run that records.

local cr = require 'cr'
local clock = require 'cr.clock'
local schedulers = require 'cr.schedulers'
local guidance = require 'cr.guidance'
local cache = require 'cr.cache'

local o = require 'tests.bench.options'.read('Overhead of sampling in Lua on a GPU.', {
  { '--size', default = '256,512', help = 'pixels' },
  { '--steps', 'int', default = 20, min = 1, help = 'of a loop' },
  { '--runs', 'int', default = 3, min = 1, help = 'number of runs; the median is printed' },
  { '--schedulers', default = 'ddim,dpmpp_2m,dpmpp_3m_sde,unipc,lms,pndm', help = 'names or files' },
  { '--caches', default = 'deepcache:3,deepcache:3:1,tea:0.2', help = 'step caches' },
})
require 'tests.bench.card' ()

local unet = require 'models.laboratory.measure'.random({ device = 'cuda', dtype = 'f16', vae = false }).unet
local F, c = 16, unet.config
local function noise(...) return cr.randn({ ... }, { dtype = 'f16', device = 'cuda' }) end

local function seconds_of(fn)
  local start = clock()
  fn()
  cr.cuda.synchronize 'cuda'
  return clock() - start
end

-- Medians of functions that run alternately, after one round that records: thermal slowdown of the GPU affects all of
-- them equally.
local function medians(...)
  local functions, times = { ... }, {}
  for run = 0, o.runs do
    for k, fn in ipairs(functions) do
      local seconds = seconds_of(fn)
      times[k] = times[k] or {}
      if run > 0 then times[k][run] = seconds end
    end
  end
  for k, list in ipairs(times) do
    table.sort(list)
    times[k] = list[math.ceil(#list / 2)]
  end
  return unpack(times)
end

for size in o.size:gmatch '%d+' do
  local side = size / 8
  local cond, audio = noise(1, F, side, side, c.in_channels - c.out_channels), noise(F, 50, c.cross_attention_dim)
  local start = noise(1, F, side, side, c.out_channels)

  -- The recorded step only, as often as a loop has steps: inputs are copied in, the graph is launched, results are
  -- copied out.
  local single = unet:denoiser { cond = cond, audio = audio, guidance = 1.5, timesteps = { 981 } }
  for _ = 1, 3 do single:predict(start, 1) end
  local _, step = next(single.state.steps)
  local function bare()
    for _ = 1, o.steps do cr.scope(step, start, single.times) end
  end

  -- Seconds of a loop, its calls, the cache's counters, and seconds of the other function, which ran alternately.
  local function loop(name, plan, other)
    local s = schedulers.load(name, { steps = o.steps })
    s:use(cr.generator(1, 'philox'))
    local counts = {}
    local d = guidance.wrap(cache.wrap(unet:denoiser { cond = cond, audio = audio, guidance = 1.5, timesteps = s.timesteps },
      plan, counts), guidance.new { scale = 1.5 })
    local function sample()
      cr.scope(function()
        local x = s:start(start)
        for i, t in ipairs(s.timesteps) do x = s:step(d:call(x, i), t, x) end
      end)
    end
    local seconds, beside = medians(sample, other)
    d:free()
    return seconds, #s.timesteps, counts, beside
  end

  print(('%s px: the recorded step alone %.3f ms'):format(size, medians(bare) / o.steps * 1e3))
  for name in o.schedulers:gmatch '[^,]+' do
    local seconds, calls, _, replays = loop(name, nil, bare)
    print(('%-24s %3d calls  %8.2f ms  %+.2f %% over bare replays'):format(name, calls, seconds * 1e3,
      (seconds / calls / (replays / o.steps) - 1) * 100))
  end
  single:free()
  local plain = loop('ddim', nil, function() end)
  for spec in o.caches:gmatch '[^,]+' do
    local seconds, _, counts = loop('ddim', cache.plan(spec), function() end)
    local kinds = {}
    for kind, n in pairs(counts) do kinds[#kinds + 1] = ('%s %d'):format(kind, n) end
    table.sort(kinds)
    print(('%-24s %8.2f ms  %.3f of plain DDIM (of all runs: %s)'):format('ddim, ' .. spec, seconds * 1e3, seconds / plain,
      table.concat(kinds, ', ')))
  end
end
