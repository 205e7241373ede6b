-- What sampling by script costs on a card: whole loops of a scheduler, guidance and caches, beside as
-- many bare replays of the recorded step.
--
--     build/crescent tests/bench/cuda_sampling.lua [--size 256,512] [--steps 20] [--runs 3]
--         [--schedulers ddim,dpmpp_2m,unipc,...] [--caches deepcache:3,tea:0.2]
--
-- LatentSync's own UNet with random weights, float16, windows of 16 frames, guidance 1.5. A loop begins
-- with latents and ends with latents. The median of the runs, after one that records.

local cr = require 'cr'
local clock = require 'cr.clock'
local measure = require 'models.measure'
local schedulers = require 'cr.schedulers'
local guidance = require 'cr.guidance'
local cache = require 'cr.cache'

local o = { size = '256,512', steps = '20', runs = '3', schedulers = 'ddim,dpmpp_2m,dpmpp_3m_sde,unipc,lms,pndm',
  caches = 'deepcache:3,deepcache:3:1,tea:0.2' }
for i = 1, #arg, 2 do
  local key = arg[i]:match '^%-%-(%a+)$'
  if not o[key] then error('unknown argument ' .. arg[i], 0) end
  o[key] = arg[i + 1]
end

local ok, why = cr.cuda.available()
if not ok then
  print(why)
  os.exit(1)
end

local unet = measure.random({ device = 'cuda', dtype = 'f16', vae = false }).unet
local F, c = 16, unet.config
local function noise(...) return cr.randn({ ... }, { dtype = 'f16', device = 'cuda' }) end

local function median(fn)
  local times = {}
  fn()
  cr.cuda.synchronize 'cuda'
  for run = 1, tonumber(o.runs) do
    local start = clock()
    fn()
    cr.cuda.synchronize 'cuda'
    times[run] = clock() - start
  end
  table.sort(times)
  return times[math.ceil(#times / 2)]
end

for size in o.size:gmatch '%d+' do
  local side = size / 8
  local cond, audio = noise(1, F, side, side, c.in_channels - c.out_channels), noise(F, 50, c.cross_attention_dim)
  local start = noise(1, F, side, side, c.out_channels)

  local function loop(name, plan)
    local s = schedulers.load(name, { steps = tonumber(o.steps), generator = cr.generator(1, 'philox') })
    local counts = {}
    local d = guidance.wrap(cache.wrap(unet:denoiser { cond = cond, audio = audio, guidance = 1.5, timesteps = s.timesteps },
      plan, counts), guidance.new { scale = 1.5 })
    local seconds = median(function()
      cr.scope(function()
        local x = s:start(start)
        for i, t in ipairs(s.timesteps) do x = s:step(d:call(x, i), t, x) end
      end)
    end)
    d:free()
    return seconds, #s.timesteps, counts
  end

  -- The recorded step alone: its inputs copied in, launched, its results copied out.
  local bare
  do
    local d = unet:denoiser { cond = cond, audio = audio, guidance = 1.5, timesteps = { 981 } }
    for _ = 1, 3 do d:predict(start, 1) end
    local step
    for _, recorded in pairs(d.state.steps) do step = recorded end
    local n = tonumber(o.steps)
    bare = median(function()
      for _ = 1, n do cr.scope(step, start, d.times) end
    end) / n
    d:free()
  end
  print(('%s px: the recorded step alone %.3f ms'):format(size, bare * 1e3))
  for name in o.schedulers:gmatch '[^,]+' do
    local seconds, calls = loop(name)
    print(('%-24s %3d calls  %8.2f ms  %+.2f %% over bare replays'):format(name, calls, seconds * 1e3,
      (seconds / calls / bare - 1) * 100))
  end
  local plain = loop 'ddim'
  for spec in o.caches:gmatch '[^,]+' do
    local seconds, _, counts = loop('ddim', cache.plan(spec))
    local kinds = {}
    for kind, n in pairs(counts) do kinds[#kinds + 1] = ('%s %d'):format(kind, n) end
    table.sort(kinds)
    print(('%-24s %8.2f ms  %.3f of plain DDIM (of all runs: %s)'):format('ddim, ' .. spec, seconds * 1e3, seconds / plain,
      table.concat(kinds, ', ')))
  end
end
