--- Sampling of one window after another by one method: a scheduler, guidance and a cache over steps, around the
--- network. Invariant: a window that failed leaves nothing in the scheduler that the next one sees.

local arguments = require 'cr.arguments'
local cache = require 'cr.cache'
local cr = require 'cr'
local errors = require 'cr.errors'
local guidance = require 'cr.guidance'
local schedulers = require 'cr.schedulers'

--- @class Sampler
--- @field scheduler table
--- @field name string of the scheduler, for people
--- @field counts table<string, integer> steps by what the cache did with them
local Sampler = {}
Sampler.__index = Sampler

local function told(fn, ...)
  local ok, result = pcall(fn, ...)
  if not ok then errors.fail(errors.is_failure(result) and result.message or result) end
  return result
end

-- The scheduler that settings name; one sentence if there is none such.
local function scheduler_of(s)
  local strength = s.strength or 1
  if type(s.scheduler) == 'table' then
    if strength < 1 then
      errors.fail 'strength: it needs the scheduler by its name or file; one that is loaded begins where its begin_index says'
    end
    return s.scheduler
  end
  local options = {}
  for key, value in pairs(s.options or {}) do options[key] = value end
  -- Listed steps are as many as they are.
  if not (options.timesteps or type(options.sigmas) == 'table') then options.steps = options.steps or s.steps end
  local whole = told(schedulers.load, s.scheduler or 'ddim', options)
  if strength == 1 then return whole end
  if (whole.begin_index or 0) > 0 then
    errors.fail 'strength and begin_index contradict each other: leave one out'
  end
  local steps = whole.options.steps or #whole.timesteps
  local kept = math.floor(steps * strength + 1e-9)
  if kept == 0 then
    errors.fail(('strength: %g of %d steps leaves none: at least %.3g, or more steps'):format(strength, steps, 1 / steps))
  end
  options.begin_index = steps - kept
  return told(schedulers.load, s.scheduler or 'ddim', options)
end

--- @param s table settings of the stage 'sample': {scheduler (a name, a file, or one that is loaded), steps, guidance,
---   guidance_interval, guidance_rescale, guidance_off_last, guidance_method, cache,
---   strength, options = the scheduler's}
--- @param counts table? of another sampler, which counts along
--- @return Sampler
function Sampler.new(s, counts)
  local self = setmetatable({
    scheduler = scheduler_of(s), counts = counts or {},
    settings = { scale = s.guidance, rescale = s.guidance_rescale, off_last = s.guidance_off_last, interval = s.guidance_interval,
      method = s.guidance_method },
  }, Sampler)
  self.name = type(s.scheduler) == 'string' and s.scheduler or self.scheduler.name or 'own'
  self.guidance = told(guidance.new, self.settings)
  self.plan = s.cache and s.cache ~= 'none' and told(cache.plan, s.cache) or nil
  return self
end

-- From noise, or from a source that is noised, to latents; predict(x, i) is the network at step i.
local function walk(scheduler, x, source, predict, each)
  if scheduler.reset then scheduler:reset() end
  if scheduler.start then x = scheduler:start(x, source) end
  for i, t in ipairs(scheduler.timesteps) do
    local before = x
    local prediction, from = predict(before, i)
    x = scheduler:step(prediction, t, from or before)
    if each then each(i, prediction, x, function() return predict(before, i) end) end
  end
  return x
end

--- Has the method draw its noise from a generator, if it draws any on the way.
function Sampler:use(generator)
  if self.scheduler.use then self.scheduler:use(generator) end
end

--- @return integer
function Sampler:steps() return #self.scheduler.timesteps end

--- From noise to latents. On a card they may still be on their way.
--- @param model LatentSync
--- @param window table {cond, hear} of model:condition and model:listen
--- @param noise Tensor [1 F h w 4]
--- @param each (fun(i: integer, prediction: Tensor, latents: Tensor, predict: fun()))? called after step i was given to the
---   device, with what the network predicted and what the scheduler made of it; predict asks the network once more. Other
---   tasks get no turn but by this function (cr.yield)
--- @return Tensor [1 F h w 4]
function Sampler:run(model, window, noise, each)
  local scheduler = self.scheduler
  -- (the network only asks whether it is above 1: then there are both halves)
  local network = model:denoiser(window.cond, window.hear, {
    guidance = self.guidance:halves() and 2 or 1, timesteps = scheduler.timesteps,
  })
  local unet = guidance.wrap(cache.wrap(network, self.plan, self.counts), self.guidance, scheduler, network)
  -- A scheduler that begins on the way wants a sample that has some signal: the window's own pictures.
  local source = (scheduler.begin_index or 0) > 0 and model:source(window.cond):to(noise.dtype) or nil
  local ok, x = pcall(walk, scheduler, noise, source, function(x, i) return unet:call(x, i) end, each)
  unet:free()
  if not ok then error(x, 0) end
  return x
end

--- Makes the random draws of run, and nothing else: for a window that is not made.
--- @param noise Tensor [1 F h w 4]
function Sampler:skip(noise)
  cr.scope(function() walk(self.scheduler, noise, nil, function() return noise end) end)
end

--- Whether the method draws noise on the way. It draws from another generator meanwhile: see use.
--- @return boolean
function Sampler:draws()
  return cr.scope(function()
    local drawn, fresh = cr.generator(0), cr.generator(0)
    self:use(drawn)
    self:skip(cr.zeros(1, 1, 2, 2, 4))
    return cr.randn(1, { generator = drawn }):item() ~= cr.randn(1, { generator = fresh }):item()
  end)
end

arguments.methods(Sampler, 'sampler', {
  use = { arguments.any }, steps = {}, skip = { cr.kinds.alive }, draws = {},
  run = { arguments.table, arguments.table, cr.kinds.alive, arguments.maybe(arguments.callable) },
})
return arguments.guard('sampler.', Sampler, { new = { arguments.table, arguments.maybe(arguments.table) } })
