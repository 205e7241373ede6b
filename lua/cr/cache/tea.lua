--- A cache that the distance of inputs triggers, after TeaCache (Liu et al. 2024, arXiv 2411.19108):
--- as long as the latents have changed little, the last prediction serves again.
--
-- The relative change |x - before| / |before| (means) of one step's latents to the next is added up;
-- below the threshold the network is not asked, else it is and the sum begins anew. The first and the
-- last step are always computed. TeaCache measures the first layer's modulated input and fits the
-- distance to the output's; here the latents serve as they are, so thresholds are not the paper's.
-- The distance has to be read from the device, which waits for the step before.

local caches = require 'cr.sampling.caches'
local cr = require 'cr'
local held = require 'cr.sampling.held'
local wrapper = require 'cr.sampling.wrapper'

local M = { help = 'TeaCache: the last prediction serves until the latents have moved by THRESHOLD (tea:THRESHOLD)' }

local Tea = wrapper.class 'inner'

local function distance(x, before)
  return cr.scope(function()
    local a, b = x:to 'f32', before:to 'f32'
    return ((a - b):abs():mean() / b:abs():mean()):item()
  end)
end

function Tea:predict(x, i, how)
  if how and how.branch then error('tea must stand around deepcache, not within: deepcache:...,tea:...', 0) end
  local guided = not how or how.guided ~= false
  local moved = self.before and i > 1 and distance(x, self.before)
  held.put(self, 'before', x)
  self.sum = self.sum + (moved or 0)
  if moved and i < #self.timesteps and guided == self.guided and self.sum < self.threshold then
    self.count 'reused'
    return self.kept:narrow(1, 1, self.kept:size(1))
  end
  local y = self.inner:predict(x, i, how)
  held.put(self, 'kept', y)
  self.guided, self.sum = guided, 0
  return y
end

function Tea:free()
  held.put(self, 'before', nil)
  held.put(self, 'kept', nil)
  self.inner:free()
end

--- The options of 'tea:THRESHOLD'.
function M.parse(threshold, more)
  local value = tonumber(threshold)
  if not value or not (value >= 0 and value < math.huge) or more then
    error(('tea: %s is no threshold: a number from 0 on, as in tea:0.2'):format(table.concat({ threshold or 'nothing', more }, ':')), 0)
  end
  return { threshold = value }
end

--- The denoiser, asked only where the latents have moved.
--- @param predictor table a denoiser, or a cache around one
--- @param options table {threshold = number}
--- @param count function
function M.new(predictor, options, count)
  return setmetatable({ inner = predictor, threshold = options.threshold, sum = 0, count = count or function() end }, Tea)
end

return caches.guard(M, Tea)
