--- Samples windows with one method: a scheduler, with guidance and a cache around the network. Invariant: a window
--- that failed leaves no state in the scheduler that affects the next one.

local arguments = require 'cr.arguments'
local cache = require 'cr.cache'
local cr = require 'cr'
local errors = require 'cr.errors'
local guidance = require 'cr.guidance'
local schedulers = require 'cr.schedulers'

--- @class Sampler
--- @field scheduler table
--- @field name string name of the scheduler, for messages
--- @field counts table<string, integer> number of steps by what the cache did in them
local Sampler = {}
Sampler.__index = Sampler

-- What fn makes of a setting; what it raises says which setting that is.
local function told(field, fn, ...)
  local ok, result = pcall(fn, ...)
  if not ok then errors.fail(errors.is_failure(result) and result.message or result, nil, field) end
  return result
end

local GUIDANCE = { scale = 'guidance', rescale = 'guidance_rescale', off_last = 'guidance_off_last', interval = 'guidance_interval',
  method = 'guidance_method' }

-- The first setting of guidance that is invalid by itself.
local function wrong_guidance(settings)
  for key, field in pairs(GUIDANCE) do
    if not pcall(guidance.new, { [key] = settings[key] }) then return field end
  end
  return 'guidance'
end

-- The scheduler of the settings; raises one sentence if it does not exist.
local function scheduler_of(s)
  local strength = s.strength or 1
  if type(s.scheduler) == 'table' and s.scheduler.inner then -- one that is loaded
    if strength < 1 then
      errors.fail('strength: it needs the scheduler by name or file; a loaded scheduler starts at its own begin_index', nil, 'strength')
    end
    return s.scheduler
  end
  local options = {}
  for key, value in pairs(s.options or {}) do options[key] = value end
  -- An explicit list of timesteps or sigmas fixes the number of steps.
  if not (options.timesteps or type(options.sigmas) == 'table') then options.steps = options.steps or s.steps end
  local whole = told('scheduler', schedulers.load, s.scheduler or 'ddim', options)
  if strength == 1 then return whole end
  if (whole.begin_index or 0) > 0 then
    errors.fail('strength and begin_index both set the first step: leave one out', nil, 'strength')
  end
  local steps = whole.options.steps or #whole.timesteps
  local kept = math.floor(steps * strength + 1e-9)
  if kept == 0 then
    errors.fail(('strength: %g of %d steps leaves no step: use at least %.3g, or more steps'):format(strength, steps, 1 / steps), nil,
      'strength')
  end
  options.begin_index = steps - kept
  return told('scheduler', schedulers.load, s.scheduler or 'ddim', options)
end

--- @param s table settings of the stage 'sample': {scheduler (a name, a file, or a loaded one), steps, guidance,
---   guidance_interval, guidance_rescale, guidance_off_last, guidance_method, cache,
---   strength, options = the scheduler's}
--- @param counts table? counts of another sampler, to which this one adds
--- @return Sampler
function Sampler.new(s, counts)
  local self = setmetatable({
    scheduler = scheduler_of(s), counts = counts or {},
    settings = {},
  }, Sampler)
  for key, field in pairs(GUIDANCE) do self.settings[key] = s[field] end
  self.name = type(s.scheduler) == 'string' and s.scheduler or self.scheduler.name or 'own'
  local ok, made = pcall(guidance.new, self.settings)
  self.guidance = ok and made or told(wrong_guidance(self.settings), error, made, 0)
  self.plan = s.cache and s.cache ~= 'none' and told('cache', cache.plan, s.cache) or nil
  return self
end

-- Samples from noise, or from source latents with noise, to latents; predict(x, i) is the network at step i.
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

--- Sets the generator from which a stochastic method draws its noise.
function Sampler:use(generator)
  if self.scheduler.use then self.scheduler:use(generator) end
end

--- @return integer
function Sampler:steps() return #self.scheduler.timesteps end

--- Samples a window from noise to latents. On a GPU the work may still be in progress when this returns.
--- @param model LatentSync
--- @param window table {cond, hear} from model:condition and model:listen
--- @param noise Tensor [1 F h w 4]
--- @param each (fun(i: integer, prediction: Tensor, latents: Tensor, predict: fun()))? is called after step i was queued on
---   the device, with the network's prediction and the scheduler's result; predict() runs the network once more. Other tasks
---   run only if this function yields (cr.yield)
--- @return Tensor [1 F h w 4]
function Sampler:run(model, window, noise, each)
  local scheduler = self.scheduler
 -- the network only checks whether it is above 1, which enables both halves
  local network = model:denoiser(window.cond, window.hear, {
    guidance = self.guidance:halves() and 2 or 1, timesteps = scheduler.timesteps,
  })
  local unet = guidance.wrap(cache.wrap(network, self.plan, self.counts), self.guidance, scheduler, network)
  -- A scheduler that starts at a later step needs a sample that contains signal: the window's own images.
  local source = (scheduler.begin_index or 0) > 0 and model:source(window.cond):to(noise.dtype) or nil
  local ok, x = pcall(walk, scheduler, noise, source, function(x, i) return unet:call(x, i) end, each)
  unet:free()
  if not ok then error(x, 0) end
  return x
end

--- Makes only the random draws of run, for a window that is not generated.
--- @param noise Tensor [1 F h w 4]
function Sampler:skip(noise)
  cr.scope(function() walk(self.scheduler, noise, nil, function() return noise end) end)
end

--- Whether the method draws noise during sampling; such draws use a separate generator (see use).
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
