--- FORA's idea (Selvaraju et al. 2024, arXiv 2407.01425): the residuals of attention and feed-forward layers are
--- reused for INTERVAL steps.
--
-- Steps 1, 1 + INTERVAL, ... are full steps, which store the residual that each layer adds. In the other steps each
-- layer adds its stored residual. Resnets are always computed, because their input differs in each step. The paper's
-- networks are transformers; here the layers are those of the UNet's transformers and motion modules.

local caches = require 'cr.sampling.caches'
local wrapper = require 'cr.sampling.wrapper'

local M = { help = 'FORA: the residuals of attention and feed-forward layers are reused for INTERVAL steps (fora:INTERVAL)' }

local Fora = wrapper.class 'inner'

-- Where the two halves of guidance diverge, a layer has two results for one input.
local whole = { name = 'fora whole', layer = function(layer, h, compute, memory)
  local y = compute(h)
  if not layer.widens then memory:put(layer, y - h) end
  return y
end }

local again = { name = 'fora again', layer = function(layer, h, compute, memory)
  local share = not layer.widens and memory:get(layer)
  return share and h + share or compute(h)
end }

function Fora:predict(x, i, how)
  if how and how.hook then error('fora cannot be combined with another hook around the network: use one of the two', 0) end
  local guided = not how or how.guided ~= false
  local fresh = (i - 1) % self.interval == 0 or guided ~= self.guided
  self.guided = guided
  self.count(fresh and 'full' or 'shallow')
  return self.inner:predict(x, i, {
    guided = guided, branch = how and how.branch, deep = how and how.deep, hook = fresh and whole or again,
  })
end

function Fora:free() self.inner:free() end

--- Parses the options of 'fora:INTERVAL'.
function M.parse(interval, more)
  local n = tonumber(interval or '2')
  if not n or n ~= math.floor(n) or n < 1 or n >= 2 ^ 31 or more then
    error(('fora: %s is not INTERVAL, a whole number from 1'):format(table.concat({ interval, more }, ':')), 0)
  end
  return { interval = n }
end

--- Wraps a denoiser so that its layers are computed only every INTERVAL steps.
--- @param predictor table a denoiser
--- @param options table {interval = integer}
--- @param count fun(kind: string) called for each step with 'full' or 'shallow'
function M.new(predictor, options, count)
  return setmetatable({ inner = predictor, interval = options.interval, count = count or function() end }, Fora)
end

return caches.guard(M, Fora)
