--- DeepCache (Ma et al. 2023, arXiv 2312.00858): the deep layers run only every INTERVAL steps, uniformly spaced as
--- in its authors' package. The steps in between run only the outer layers.
--
-- Steps 1, 1 + INTERVAL, ... are full steps. Each other step takes the input of one late layer from the last full
-- step and computes the layers after it, with its own skip connections. At branch 0 it computes the first
-- convolution, the last layer (resnet, attention, motion module) and the output.

local caches = require 'cr.sampling.caches'
local cr = require 'cr'
local wrapper = require 'cr.sampling.wrapper'

local M = { help = 'DeepCache: the deep layers run every INTERVAL steps (deepcache:INTERVAL[:BRANCH])' }

local DeepCache = wrapper.class 'inner'

function DeepCache:predict(x, i, how)
  if how and how.branch then error('deepcache cannot wrap another deepcache', 0) end
  local guided, hook = not how or how.guided ~= false, how and how.hook
  local deep, half = self.deep, nil
  local whole = (i - 1) % self.interval == 0 or not deep
  if not whole and deep:size(1) == 2 and not guided then
    half = deep:narrow(1, 2, 1)
  elseif not whole and deep:size(1) == 1 and guided and self.inner.two_halves then
    whole = true -- the last full step computed no unconditional half
  end
  if not whole then
    self.count 'shallow'
    local y = self.inner:predict(x, i, { guided = guided, branch = self.branch, deep = half or deep, hook = hook })
    return y
  end
  self.count 'full'
  local y, fresh = self.inner:predict(x, i, { guided = guided, branch = self.branch, hook = hook })
  if deep then deep:free() end
  self.deep = cr.keep(fresh)
  return y
end

function DeepCache:free()
  if self.deep then self.deep:free() end
  self.deep = nil
  self.inner:free()
end

local function whole_number(text, least)
  local n = tonumber(text)
  return n and n == math.floor(n) and n >= least and n < 2 ^ 31 and n or nil
end

--- Parses the options of 'deepcache:INTERVAL[:BRANCH]'.
function M.parse(interval, branch, more)
  local options = { interval = whole_number(interval or '3', 1), branch = whole_number(branch or '0', 0) }
  if not options.interval or not options.branch or more then
    error(('deepcache: %s is not INTERVAL[:BRANCH], whole numbers from 1 and from 0'):format(
      table.concat({ interval, branch, more }, ':')), 0)
  end
  return options
end

--- Wraps a denoiser so that its deep layers are cached.
--- @param predictor table a denoiser
--- @param options table {interval = integer, branch = integer, how many layers of the up path after the cached one
---   are computed}
--- @param count fun(kind: string) called for each step with 'full' or 'shallow'
function M.new(predictor, options, count)
  return setmetatable({ inner = predictor, interval = options.interval, branch = options.branch,
    count = count or function() end }, DeepCache)
end

return caches.guard(M, DeepCache)
