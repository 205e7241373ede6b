--- A cache after TeaCache (Liu et al. 2024, arXiv 2411.19108): while the latents have changed little, the last
--- prediction is reused.
--
-- The relative L1 change of the latents from step to step, mean |x - before| / mean |before|, is accumulated. While
-- the sum is below the threshold, the prediction is reused; otherwise the network is called and the sum starts again
-- from 0. The first and the last step are always computed. TeaCache measures the modulated input of the first layer
-- and fits its change to that of the output. Here the latents themselves are measured, so thresholds differ from the
-- paper's. Reading the change from the device waits for the previous step.

local caches = require 'cr.sampling.caches'
local cr = require 'cr'
local held = require 'cr.sampling.held'
local wrapper = require 'cr.sampling.wrapper'

local M = { help = 'TeaCache: the last prediction is reused until the latents have changed by THRESHOLD (tea:THRESHOLD)' }

local Tea = wrapper.class 'inner'

local function distance(x, before)
  return cr.scope(function()
    local a, b = x:to 'f32', before:to 'f32'
    return ((a - b):abs():mean() / b:abs():mean()):item()
  end)
end

function Tea:predict(x, i, how)
  if how and how.branch then error('tea must wrap deepcache, not the reverse: write deepcache:...,tea:...', 0) end
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

--- Parses the options of 'tea:THRESHOLD'.
function M.parse(threshold, more)
  local value = tonumber(threshold)
  if not value or not (value >= 0 and value < math.huge) or more then
    error(('tea: %s is no threshold: a number from 0 on, as in tea:0.2'):format(table.concat({ threshold or 'nothing', more }, ':')), 0)
  end
  return { threshold = value }
end

--- Wraps a denoiser so that it is called only when the latents have changed enough.
--- @param predictor table a denoiser, or a cache around one
--- @param options table {threshold = number}
--- @param count fun(kind: string) called with 'reused' for each reused step
function M.new(predictor, options, count)
  return setmetatable({ inner = predictor, threshold = options.threshold, sum = 0, count = count or function() end }, Tea)
end

return caches.guard(M, Tea)
