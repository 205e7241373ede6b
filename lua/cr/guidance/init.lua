--- Guidance, by the name or the file of a method: guidance.new { method = 'apg:eta=0', scale = 2 }.
--
-- Each file of this folder is a method; no other list names them. A file returns a table, or only the function
-- `combine`:
--
--     return {
--       help = 'one line',
--       options = { { 'power', 0.5, 'what it does', min = 0 } },     -- declared as in cr.sampling.options; optional
--       combine = function(self, uncond, cond, step) return ... end, -- the guided prediction
--       applies = function(self, step) return ... end,               -- whether a step is guided (scale > 1)
--       halves = function(self) return ... end,                      -- whether uncond is needed at all (scale > 1)
--       moves = true,                                                -- combine also returns a sample
--     }
--
-- self.scale is the weight, self.options holds the checked options. uncond and cond are predictions [1 F h w 4];
-- uncond is nil where it was not computed. `step` is {index, count, t, x, alpha, sigma, prediction}, with
-- step:keep(name, tensor) and step.held[name] to pass tensors to later steps of the window, step:predict { hook = ...
-- } to run the network once more (models/networks/unet3d_hook.lua), step:data_weights() and step:noise_weights(). A
-- method computes with tensors only and reads nothing from the device, because a read would wait for it.
--
-- A method can influence the scheduler by a second result: the sample to step from, in place of x. Every scheduler
-- derives the data and the noise from the two (cfgpp.lua).
--
-- The files of around/ wrap a guidance: only between two timesteps, off in the last steps, rescaled.
--
--     local g = guidance.new { scale = 1.5, interval = { 100, 800 }, rescale = 0.7, off_last = 2 }
--     local unet = guidance.wrap(model:denoiser(cond, hear, { guidance = 1.5, timesteps = ts }), g)
--     local eps = unet:call(x, i)

local arguments = require 'cr.arguments'
local cr = require 'cr'
local errors = require 'cr.errors'
local guidances = require 'cr.sampling.guidances'
local held = require 'cr.sampling.held'
local level = require 'cr.sampling.level'
local lists = require 'cr.sampling.lists'
local options_of = require 'cr.sampling.options'
local specs = require 'cr.sampling.spec'
local user_file = require 'cr.sampling.user_file'

local M = {}

local FOLDER = require 'cr'.root .. '/lua/cr/guidance'
local DEFAULT = 'cfg'
local KNOWN = { 'scale', 'interval', 'rescale', 'off_last', 'method' }

--- Returns the names of all methods, sorted.
--- @return string[]
function M.names() return require 'cr.files'.modules(FOLDER) end

local classes = {} -- classes of the methods in FOLDER, by name

-- Returns the class of a method, by name or file.
local function class_of(name)
  if name:find '%.lua$' then
    return guidances.method('guidance file ' .. name, user_file.run('guidance', name))
  end
  local names = M.names()
  if not lists.has(names, name) then
    error(("there is no guidance method '%s': %s (%s)"):format(name, errors.did_you_mean(name, names, ''),
      table.concat(names, ', ')), 0)
  end
  classes[name] = classes[name] or guidances.method('guidance file ' .. name, require('cr.guidance.' .. name), true)
  return classes[name]
end

-- Makes a method from a name with options, or from a value that a file would return.
local function method(asked, scale)
  if type(asked) == 'table' or type(asked) == 'function' then
    return guidances.make(guidances.method('guidance method', asked), 'own', nil, scale)
  elseif type(asked) ~= 'string' or not asked:find '%S' then
    error(("guidance method: %s is not one: it is a name such as 'apg', a .lua file, or a function combine(self, uncond, cond, step)")
      :format(lists.shown(asked)), 0)
  end
  local name, given = specs.split('guidance', asked)
  return guidances.make(class_of(name), name, given, scale)
end

--- Describes a method and its options, or lists all methods.
--- @param name string? or a .lua file
--- @return string
function M.help(name)
  local lines = {}
  if name ~= nil and type(name) ~= 'string' then error(('guidance.help needs a name as text, not a %s'):format(type(name)), 0) end
  for _, other in ipairs(name and { name } or M.names()) do
    local class = class_of(other)
    lines[#lines + 1] = ('%s: %s'):format(other, class.help or 'has no description')
    if name and #class.spec > 0 then lines[#lines + 1] = options_of.text(class.spec) end
  end
  return table.concat(lines, '\n')
end

--- Returns the first method, in the order of names, that has an option, or nil.
--- @param option string
--- @return string?
function M.having(option)
  for _, name in ipairs(M.names()) do
    if lists.find(class_of(name).spec, option) then return name end
  end
end

--- Makes a guidance from settings. Settings that are left out change nothing; an invalid setting is an error.
---
---     local g = guidance.new { method = 'apg:eta=0.2', scale = 2, interval = { 100, 800 } }
--- @param settings table {scale = 1.5, interval = {lowest, highest timestep}, rescale = 0 to 1, off_last = steps,
---   method = 'cfg': a name with options, a .lua file, a table as such a file returns, or a function `combine`}
--- @return table
function M.new(settings)
  if type(settings) ~= 'table' then
    error(('guidance: settings must be a table such as { scale = 1.5 }, not %s'):format(settings == nil and 'nil'
      or 'a ' .. type(settings)), 0)
  end
  for _, key in ipairs(lists.keys(settings)) do
    if not lists.has(KNOWN, key) then
      error(('guidance: no setting "%s": %s: %s'):format(tostring(key), table.concat(KNOWN, ', '),
        errors.did_you_mean(key, KNOWN, '"')), 0)
    end
  end
  local function value(key, default)
    if settings[key] == nil then return default end
    return settings[key]
  end
  local scale = value('scale', 1.5)
  if type(scale) ~= 'number' or not (scale >= 0 and scale < math.huge) then
    error(('guidance scale: %s is not a weight: it is a number from 0 on, and 1 means no guidance'):format(lists.shown(scale)), 0)
  end
  local g = method(value('method', DEFAULT), scale)
  local interval = value 'interval'
  if interval ~= nil then g = require 'cr.guidance.around.interval'.of(g, interval) end
  if value('off_last', 0) ~= 0 then g = require 'cr.guidance.around.off_last'.new(g, settings.off_last) end
  if value('rescale', 0) ~= 0 then
    if g.moves then
      error(('guidance %s: it also moves the sample, which rescale cannot handle: leave rescale out'):format(g.name), 0)
    end
    g = require 'cr.guidance.around.rescaled'.new(g, settings.rescale)
  end
  return g
end

--- @class Guided
--- @field timesteps number[]
--- @field guidance table the method
--- @field held table the prediction of the last step
--- @field predictor table the denoiser that is guided
--- @field scheduler table
--- @field network table
local Guided = require 'cr.sampling.wrapper'.class 'predictor'

-- Raises a sentence if the result of a method has the wrong shape or type.
local function check(name, what, y, x)
  local problem = user_file.misfit(y, x)
  if not problem then return end
  error(('guidance %s: combine returned %s; it must return %s, %s on %s [%s]'):format(name, problem, what, x.dtype, x.device,
    table.concat(x.shape, ' ')), 0)
end

--- Returns the guided prediction at step i.
--- @param x Tensor [1 F h w 4]
--- @param i integer
--- @return Tensor [1 F h w 4]
--- @return Tensor? the sample from which the scheduler steps in place of x
function Guided:call(x, i)
  local g = self.guidance
  return cr.scope(function()
    local t = self.timesteps[i]
    local alpha, sigma = level(self.scheduler, i, t)
    local step = guidances.step {
      index = i, count = #self.timesteps, t = t, x = x, alpha = alpha, sigma = sigma, held = self.held,
      prediction = self.scheduler and self.scheduler.options and self.scheduler.options.prediction or 'epsilon',
      ask = function(how)
        local from = how.x or x
        return (self.network:predict(from, i, { guided = how.guided or false, hook = how.hook }))
      end,
    }
    local applies = g:applies(step)
    local halves = applies and g:halves()
    local y = self.predictor:predict(x, i, { guided = halves })
    local both = y:size(1) == 2
    if not applies or halves and not both then return y end
    local cond = both and y:narrow(1, 2, 1) or y
    local guided, from = g:combine(both and y:narrow(1, 1, 1) or nil, cond, step)
    check(g.name, 'the prediction', guided, cond)
    if from ~= nil then check(g.name, 'a sample', from, x) end
    return guided, from
  end)
end

--- Frees what the network and the method keep for the window.
function Guided:free()
  held.free(self.held)
  self.predictor:free()
end

--- Wraps a network so that its call(x, i) returns guided predictions.
---
---     local unet = guidance.wrap(denoiser, guidance.new { method = 'cfgpp', scale = 0.6 }, scheduler)
--- @param predictor table a denoiser (models/networks/unet3d_denoiser.lua), or a cache around one
--- @param g table a guidance
--- @param scheduler table? the scheduler of these steps, for methods that need noise levels (default: LatentSync's
---   noise schedule)
--- @param network table? the denoiser inside the caches, for methods that run it once more (predictor)
--- @return Guided
function M.wrap(predictor, g, scheduler, network)
  return setmetatable({ predictor = predictor, guidance = g, scheduler = scheduler, network = network or predictor, held = {} }, Guided)
end

local object, maybe = arguments.table, arguments.maybe
local name = arguments.one_of(M.names) -- the functions check the value themselves
arguments.methods(Guided, 'predictor', { call = { cr.kinds.alive, arguments.natural }, free = {} }, 'any')
return arguments.guard('guidance.', M, {
  new = { arguments.any }, wrap = { object, object, maybe(object), maybe(object) }, names = {}, help = { name },
  having = { arguments.string },
})
